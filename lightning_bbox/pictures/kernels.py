"""The kernels that cut: from packed pixels and boxes to crops, each plain and compiled.

Pixel j of a crop lies at (j + 0.5) / S of the crop box; outside the picture the border repeats. A
crop box with swapped corners gives a mirrored crop, so flips cost nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lightning_bbox.core.compiling import compiled_for_any_batch
from lightning_bbox.geometry.boxes import Boxes, box_sizes

Kernel = Callable[
    [
        Float32[Tensor, " p"],
        Int64[Tensor, " b"],
        Int32[Tensor, " b"],
        Int32[Tensor, " b"],
        Boxes,
        int,
        int,
    ],
    Float[Tensor, "b 3 s s"],
]
"""What cuts: packed pixels, where each box's picture begins, its rows and columns, the boxes, the
crops' side, and how many samples squared each crop pixel averages."""


Sampler = Callable[[Tensor, Tensor, Tensor, Tensor, Boxes, int], Float[Tensor, "b 3 s s"]]


def _taps(low: Tensor, high: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two neighbours of each sample along one side, and the second one's weight.

    Indices are clamped as integers too, so that a box that is not finite can't read outside the
    store.
    """
    last = (limit - 1)[:, None]
    steps = torch.arange(size, device=low.device, dtype=low.dtype) + 0.5
    steps = steps * ((high - low) / size)[:, None]
    position = torch.minimum((low[:, None] + steps - 0.5).clamp(min=0), last.float())
    first = torch.minimum(position.int().clamp(min=0), last)
    return first, torch.minimum(first + 1, last), position - first


def _sample_once(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Take one bilinear sample a crop pixel."""
    x0, x1, weight_x = (t[:, None, :] for t in _taps(boxes[:, 0], boxes[:, 2], widths, size))
    y0, y1, weight_y = (t[:, :, None] for t in _taps(boxes[:, 1], boxes[:, 3], heights, size))
    row0, row1 = (offsets[:, None, None] + y * widths[:, None, None] for y in (y0, y1))
    corners = [pixels[row + x].int() for row in (row0, row1) for x in (x0, x1)]
    channels = []
    for shift in (0, 8, 16):
        top_left, top_right, low_left, low_right = (((c >> shift) & 255).float() for c in corners)
        top = top_left + (top_right - top_left) * weight_x
        low = low_left + (low_right - low_left) * weight_x
        # Scaled before they are stacked: after it would be a pass of its own over all crops.
        channels.append((top + (low - top) * weight_y) * (1 / 255))
    return torch.stack(channels, dim=1)


# On the CPU, what is made of more than five reads becomes a table, worked out once a crop.
# Elsewhere all is worked out anew for each pixel, in one kernel.
_once_on_cpu = compiled_for_any_batch(_sample_once, realize_acc_reads_threshold=5)
_once_elsewhere = compiled_for_any_batch(_sample_once)


def _compiled_once(pixels: Tensor, *crops: Any) -> Tensor:  # noqa: ANN401 (as `_sample_once`)
    fast = _once_on_cpu if pixels.device.type == "cpu" else _once_elsewhere
    return fast(pixels, *crops)


CPU_CHUNK = 32
"""Crops sampled together: their source pixels stay in the cache (14.5 against 18.7 ms, k = 3)."""


def sample_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    supersample: int = 1,
    sample: Sampler = _sample_once,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from packed pixels: bilinear samples, averaged where there are several a pixel.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.
        supersample: Each crop pixel averages this many samples squared, evenly spread over it.
        sample: What takes one sample a crop pixel.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.
    """
    places = offsets, heights, widths
    if supersample == 1 or not len(boxes):
        return sample(pixels, *places, boxes, size)
    shifts = _sample_shifts(supersample, boxes, size)
    samples_per_pixel = shifts.shape[1]
    chunk = CPU_CHUNK if boxes.device.type == "cpu" else len(boxes)
    averaged = []
    for start in range(0, len(boxes), chunk):
        rows = slice(start, start + chunk)
        shifted = (boxes[rows, None] + shifts[rows]).flatten(0, 1)
        offset, height, width = (p[rows].repeat_interleave(samples_per_pixel) for p in places)
        samples = sample(pixels, offset, height, width, shifted, size)
        averaged.append(samples.view(-1, samples_per_pixel, *samples.shape[1:]).mean(dim=1))
    return torch.cat(averaged)


compiled_bilinear = partial(sample_bilinear, sample=_compiled_once)
"""The compiled twin of `sample_bilinear`: one graph serves every store, and every batch of two or
more."""


def _sample_shifts(supersample: int, boxes: Boxes, size: int) -> Float[Tensor, "b k 4"]:
    """Return the shifts of the crop boxes that put k x k samples evenly into each crop pixel."""
    fractions = torch.arange(supersample, device=boxes.device, dtype=boxes.dtype)
    fractions = (fractions + 0.5) / supersample - 0.5
    grid = torch.cartesian_prod(fractions, fractions)
    shifts = grid * (box_sizes(boxes) / size)[:, None]
    return torch.cat([shifts, shifts], dim=-1)
