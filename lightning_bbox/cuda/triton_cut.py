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
from lightning_bbox.geometry.crop_geometry import EXACT, HALVED, LEAST, MOST_LEVELS, SHARP

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK = 1024
"""Most pixels a program makes: two fill a crop of 45 px but for 1 % of the lanes, with eight pixels
a thread and nothing spilled. Not measured on a card yet, nor is the rest of this module."""

RULE = {"levels": MOST_LEVELS, "least": LEAST, "exact": EXACT, "halved": HALVED, "sharp": SHARP}
"""The numbers of the pyramid's rule, which the kernel is compiled with."""


def _cut_block(
    pixels: tl.tensor,
    offsets: tl.tensor,
    heights: tl.tensor,
    widths: tl.tensor,
    boxes: tl.tensor,
    crops: tl.tensor,
    size: tl.constexpr,
    levels: tl.constexpr,
    least: tl.constexpr,
    exact: tl.constexpr,
    halved: tl.constexpr,
    sharp: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Make a block of a crop's pixels by the rule of the pyramid; every tensor is a pointer here.

    Lanes past the crop's end sample too, at places clamped to the picture, and store nothing.
    """
    blocks: tl.constexpr = (size * size + block - 1) // block
    # One axis of programs, because the others end at 65,535; a crop's blocks follow one another and
    # so find its source pixels in the cache.
    crop, part = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    pixel = part * block + tl.arange(0, block)
    row, column = pixel // size, pixel % size
    begin, width, height = tl.load(offsets + crop), tl.load(widths + crop), tl.load(heights + crop)
    x1, y1 = tl.load(boxes + 4 * crop), tl.load(boxes + 4 * crop + 1)
    x2, y2 = tl.load(boxes + 4 * crop + 2), tl.load(boxes + 4 * crop + 3)
    # `/` is only close to the quotient on CUDA, and whole-pixel cuts have to be bit-equal.
    step_x, step_y = tl.div_rn(x2 - x1, size * 1.0), tl.div_rn(y2 - y1, size * 1.0)
    shrink_x, shrink_y = tl.abs(step_x), tl.abs(step_y)
    # Whatever of this isn't a number is not true, and the level stays what it is.
    once = (shrink_x < sharp) & (shrink_y < sharp)
    unit, held = tl.full([], 1.0, tl.float32), tl.full([], exact, tl.float32)
    for level in tl.static_range(1, levels):
        climbs = (shrink_x * shrink_y + 2) * (0.25**level) >= least
        climbs &= tl.maximum(width, height) > 1
        begin += tl.where(climbs, width.to(tl.int64) * height, 0)
        width = tl.where(climbs, (width + 1) // 2, width)
        height = tl.where(climbs, (height + 1) // 2, height)
        unit, held = tl.where(climbs, unit * 0.5, unit), tl.where(climbs, halved, held)
    picture, last_x, last_y = pixels + begin, width - 1, height - 1
    spread_x = (shrink_x * shrink_x + 2) * (unit * unit) - held
    spread_y = (shrink_y * shrink_y + 2) * (unit * unit) - held
    reach_x = tl.sqrt(tl.minimum(tl.where(spread_x > 0, spread_x / 8, 0.0), 1.0))
    reach_y = tl.sqrt(tl.minimum(tl.where(spread_y > 0, spread_y / 8, 0.0), 1.0))
    reach_x = tl.where((unit == 1) & (shrink_x < sharp), 0.0, reach_x)
    reach_y = tl.where((unit == 1) & (shrink_y < sharp), 0.0, reach_y)
    # A picture pixel to a crop pixel: three of the four taps weigh nothing, and a thread's eight
    # pixels take 380 instructions instead of 763 (sm_90, 45 px).
    whole = (shrink_x == 1) & (shrink_y == 1) & (tl.floor(x1) == x1) & (tl.floor(y1) == y1)

    red = tl.full([block], 0.0, tl.float32)
    green, blue = red, red
    x = (x1 + (column + 0.5) * step_x) * unit - 0.5
    y = (y1 + (row + 0.5) * step_y) * unit - 0.5
    # `where` and not `maximum`: what isn't a number has to become a place in the picture.
    x = tl.minimum(tl.where(x > -2, x, -2.0), (last_x + 2).to(tl.float32))
    y = tl.minimum(tl.where(y > -2, y, -2.0), (last_y + 2).to(tl.float32))
    left, top = tl.floor(x), tl.floor(y)
    off_x, off_y = x - left, y - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    if whole:
        at_x = tl.minimum(tl.maximum(left, 0), last_x)
        at_y = tl.minimum(tl.maximum(top, 0), last_y)
        packed = tl.load(picture + (at_y * width + at_x)).to(tl.int32)
        red += packed & 255
        green += packed >> 8 & 255
        blue += packed >> 16 & 255
    elif once:
        for tap in tl.static_range(4):
            at_x = tl.minimum(tl.maximum(left + tap % 2, 0), last_x)
            at_y = tl.minimum(tl.maximum(top + tap // 2, 0), last_y)
            weight_x = off_x if tap % 2 else 1 - off_x
            weight_y = off_y if tap // 2 else 1 - off_y
            packed = tl.load(picture + (at_y * width + at_x)).to(tl.int32)
            weight = weight_x * weight_y
            red += (packed & 255) * weight
            green += (packed >> 8 & 255) * weight
            blue += (packed >> 16 & 255) * weight
    else:
        for tap in tl.static_range(16):
            away_x, away_y = off_x - (tap % 4 - 1), off_y - (tap // 4 - 1)
            at_x = tl.minimum(tl.maximum(left + (tap % 4 - 1), 0), last_x)
            at_y = tl.minimum(tl.maximum(top + (tap // 4 - 1), 0), last_y)
            weight_x = tl.maximum(1 - tl.abs(away_x), 0.0)
            weight_x += tl.maximum(1 - tl.abs(away_x - reach_x), 0.0)
            weight_x += tl.maximum(1 - tl.abs(away_x + reach_x), 0.0)
            weight_y = tl.maximum(1 - tl.abs(away_y), 0.0)
            weight_y += tl.maximum(1 - tl.abs(away_y - reach_y), 0.0)
            weight_y += tl.maximum(1 - tl.abs(away_y + reach_y), 0.0)
            packed = tl.load(picture + (at_y * width + at_x)).to(tl.int32)
            weight = weight_x * weight_y * (1 / 9)
            red += (packed & 255) * weight
            green += (packed >> 8 & 255) * weight
            blue += (packed >> 16 & 255) * weight

    plane: tl.constexpr = size * size
    scale: tl.constexpr = 1 / 255
    # 64 bits: the crops of a large batch pass 2^31 numbers.
    made, kept = crops + crop.to(tl.int64) * (3 * plane) + pixel, pixel < plane
    tl.store(made, red * scale, mask=kept)
    tl.store(made + plane, green * scale, mask=kept)
    tl.store(made + 2 * plane, blue * scale, mask=kept)


# Called and not a decorator, so that the module can be imported where Triton can't.
_kernel = None if triton is None else triton.jit(_cut_block)


def triton_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Do as `sample_bilinear` does, in one kernel.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.

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
                **RULE,
                block=block,
            )
    return crops
