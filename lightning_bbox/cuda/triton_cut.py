"""The cut as a Triton kernel for CUDA, beside the one that torch.compile makes.

A program makes a block of one crop's pixels, so the crop's box and picture are loaded once, not per
pixel. Triton is imported if it is there; torch's CUDA builds bring it, its CPU builds don't.
"""

# Nor are annotations evaluated there: `tl.constexpr` tells Triton which arguments it compiles in.
from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK = 1024
"""Most pixels a program makes: two fill a crop of 45 px but for 1 % of the lanes, with eight pixels
a thread and nothing spilled. Not measured on a card yet, nor is the rest of this module."""


def _cut_block(
    pixels: tl.tensor,
    offsets: tl.tensor,
    heights: tl.tensor,
    widths: tl.tensor,
    boxes: tl.tensor,
    crops: tl.tensor,
    size: tl.constexpr,
    supersample: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Make a block of a crop's pixels; every tensor is a pointer here.

    Lanes past the crop's end sample too, at places clamped to the picture, and store nothing.
    """
    blocks: tl.constexpr = (size * size + block - 1) // block
    # One axis of programs, because the others end at 65,535; a crop's blocks follow one another and
    # so find its source pixels in the cache.
    crop, part = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    pixel = part * block + tl.arange(0, block)
    row, column = pixel // size, pixel % size
    picture, width = pixels + tl.load(offsets + crop), tl.load(widths + crop)
    last_x, last_y = width - 1, tl.load(heights + crop) - 1
    x1, y1 = tl.load(boxes + 4 * crop), tl.load(boxes + 4 * crop + 1)
    x2, y2 = tl.load(boxes + 4 * crop + 2), tl.load(boxes + 4 * crop + 3)
    # `/` is only close to the quotient on CUDA, and whole-pixel cuts have to be bit-equal.
    step_x, step_y = tl.div_rn(x2 - x1, size * 1.0), tl.div_rn(y2 - y1, size * 1.0)
    # A picture pixel to a crop pixel: three of the four taps weigh nothing, and a thread's eight
    # pixels take 380 instructions instead of 763 (sm_90, 45 px).
    whole = (tl.abs(step_x) == 1) & (tl.abs(step_y) == 1) & (supersample == 1)
    whole &= (tl.floor(x1) == x1) & (tl.floor(y1) == y1)

    red = tl.full([block], 0.0, tl.float32)
    green, blue = red, red
    for sample in range(supersample * supersample):
        within_x = (sample % supersample + 0.5) * (1 / supersample)
        within_y = (sample // supersample + 0.5) * (1 / supersample)
        x = x1 + (column + within_x) * step_x - 0.5
        y = y1 + (row + within_y) * step_y - 0.5
        # `where` and not `maximum`: what isn't a number has to become a place in the picture.
        x = tl.minimum(tl.where(x > 0, x, 0.0), last_x.to(tl.float32))
        y = tl.minimum(tl.where(y > 0, y, 0.0), last_y.to(tl.float32))
        left, top = tl.minimum(x.to(tl.int32), last_x), tl.minimum(y.to(tl.int32), last_y)
        right_weight, low_weight = x - left, y - top
        if whole:
            packed = tl.load(picture + (top * width + left)).to(tl.int32)
            red += packed & 255
            green += packed >> 8 & 255
            blue += packed >> 16 & 255
        else:
            for tap in tl.static_range(4):
                tap_x = tl.minimum(left + tap % 2, last_x)
                tap_y = tl.minimum(top + tap // 2, last_y)
                weight_x = right_weight if tap % 2 else 1 - right_weight
                weight_y = low_weight if tap // 2 else 1 - low_weight
                packed = tl.load(picture + (tap_y * width + tap_x)).to(tl.int32)
                weight = weight_x * weight_y
                red += (packed & 255) * weight
                green += (packed >> 8 & 255) * weight
                blue += (packed >> 16 & 255) * weight

    plane: tl.constexpr = size * size
    unit: tl.constexpr = 1 / (255 * supersample * supersample)
    # 64 bits: the crops of a large batch pass 2^31 numbers.
    made, kept = crops + crop.to(tl.int64) * (3 * plane) + pixel, pixel < plane
    tl.store(made, red * unit, mask=kept)
    tl.store(made + plane, green * unit, mask=kept)
    tl.store(made + 2 * plane, blue * unit, mask=kept)


# Called and not a decorator, so that the module can be imported where Triton can't.
_kernel = None if triton is None else triton.jit(_cut_block)


def triton_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    supersample: int,
) -> Float[Tensor, "b 3 s s"]:
    """Do as `sample_bilinear` does, in one kernel.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.
        supersample: Each crop pixel averages this many samples squared.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.

    Raises:
        BadInput: Triton isn't there, or the store isn't on a CUDA device. With TRITON_INTERPRET=1
            set before this module is imported, Triton's interpreter takes the CPU too, slowly.
    """
    if _kernel is None:
        msg = "the Triton kernel needs triton; install it, or cut with the compiled kernel"
        raise BadInput(msg)
    if not pixels.is_cuda and isinstance(_kernel, triton.JITFunction):
        msg = (
            f"the Triton kernel needs a CUDA device, but the store is on {pixels.device}; cut with "
            "the compiled kernel there"
        )
        raise BadInput(msg)
    crops = torch.empty(len(boxes), 3, size, size, device=pixels.device)
    block = min(BLOCK, 1 << (size * size - 1).bit_length())
    programs = len(boxes) * -(-size * size // block)
    if programs:
        with torch.cuda.device(pixels.get_device()):
            _kernel[programs,](
                *(tensor.contiguous() for tensor in (pixels, offsets, heights, widths, boxes)),
                crops,
                size=size,
                supersample=supersample,
                block=block,
            )
    return crops
