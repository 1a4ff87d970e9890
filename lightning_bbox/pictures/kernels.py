"""The kernels that cut: from packed pixels and boxes to crops, each plain and compiled.

Pixel j of a crop lies at (j + 0.5) / S of the crop box; outside the picture the border repeats. A
crop box with swapped corners gives a mirrored crop, so flips cost nothing. What a crop pixel reads,
`pictures/pyramid` says: some sixteen pixels at most, whatever the size of the box.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lightning_bbox.core.compiling import compiled_for_any_batch
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.pyramid import is_shrunk, regions, sample_places, taps

Kernel = Callable[
    [
        Float32[Tensor, " p"],
        Int64[Tensor, " b"],
        Int32[Tensor, " b"],
        Int32[Tensor, " b"],
        Boxes,
        int,
    ],
    Float[Tensor, "b 3 s s"],
]
"""What cuts: packed pixels, where each box's picture begins, its rows and columns, the boxes, and
the crops' side."""


Sampler = Callable[[Tensor, Tensor, Tensor, Tensor, Boxes, int], Float[Tensor, "b 3 s s"]]


def _taps(low: Tensor, high: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two neighbours of each sample along one side, and the second one's weight.

    Indices are clamped as integers too, so that a box that is not finite can't read outside the
    store.
    """
    last = (limit - 1)[:, None]
    position = torch.minimum(sample_places(low, high, size).clamp(min=0), last.float())
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
    # In 64 bits: pictures may have 2^31 pixels and more.
    row0, row1 = (offsets[:, None, None] + y.long() * widths[:, None, None] for y in (y0, y1))
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


def _add(sums: list[Tensor], terms: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms


def _blend(
    pixels: Float32[Tensor, " p"],
    rows: Int64[Tensor, "b 4 s"],
    x: Int32[Tensor, "b 4 s"],
    weight_y: Float[Tensor, "b 4 s"],
    weight_x: Float[Tensor, "b 4 s"],
) -> Float[Tensor, "b 3 s s"]:
    """Take the weighted mean of four by four pixels a crop pixel, by where their rows begin."""
    sums: list[Tensor] = []
    for row, down in zip(rows.unbind(dim=1), weight_y.unbind(dim=1), strict=True):
        across: list[Tensor] = []
        for column, weight in zip(x.unbind(dim=1), weight_x.unbind(dim=1), strict=True):
            packed = pixels[row[:, :, None] + column[:, None]].int()
            channels = [((packed >> shift) & 255).float() for shift in (0, 8, 16)]
            across = _add(across, [channel * weight[:, None] for channel in channels])
        sums = _add(sums, [channel * down[:, :, None] for channel in across])
    return torch.stack([channel * (1 / 255) for channel in sums], dim=1)


def _sample_spread(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    blend: Callable[..., Float[Tensor, "b 3 s s"]] = _blend,
) -> Float[Tensor, "b 3 s s"]:
    """Take the mean of samples a crop pixel, from the level of each box."""
    place = regions(offsets, heights, widths, boxes, size)
    x1, y1, x2, y2 = place.boxes.unbind(dim=1)
    x, weight_x = taps(x1, x2, place.reach[:, 0], place.widths, size)
    y, weight_y = taps(y1, y2, place.reach[:, 1], place.heights, size)
    rows = place.offsets[:, None, None] + y.long() * place.widths[:, None, None]
    return blend(pixels, rows, x, weight_y, weight_x)


# On the CPU the places are worked out as they are: with them compiling takes half as long again.
_spread_on_cpu = partial(_sample_spread, blend=compiled_for_any_batch(_blend))
_spread_elsewhere = compiled_for_any_batch(_sample_spread)


def _compiled_spread(pixels: Tensor, *crops: Any) -> Tensor:  # noqa: ANN401 (as `_sample_spread`)
    fast = _spread_on_cpu if pixels.device.type == "cpu" else _spread_elsewhere
    return fast(pixels, *crops)


def sample_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    once: Sampler = _sample_once,
    spread: Sampler = _sample_spread,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from packed pixels, by the rule of the pyramid.

    On the CPU boxes that are hardly shrunk, which are the usual ones of crop size, are cut apart
    from the others, in 0.4 of the time. Elsewhere nobody waits to learn which these are.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.
        once: What takes one sample a crop pixel, from level 0.
        spread: What takes the mean of several, from the level of each box.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.
    """
    if boxes.device.type != "cpu":
        return spread(pixels, offsets, heights, widths, boxes, size)
    shrunk = is_shrunk(boxes, size)
    if shrunk.all() == shrunk.any():
        way = spread if shrunk.any() else once
        return way(pixels, offsets, heights, widths, boxes, size)
    crops = boxes.new_empty(len(boxes), 3, size, size)
    for way, chosen in ((once, ~shrunk), (spread, shrunk)):
        rows = chosen.nonzero()[:, 0]
        if len(rows) == 1:  # compiled kernels have graphs of their own for a single box
            rows = rows.repeat(2)
        crops[rows] = way(pixels, offsets[rows], heights[rows], widths[rows], boxes[rows], size)
    return crops


compiled_bilinear = partial(sample_bilinear, once=_compiled_once, spread=_compiled_spread)
"""The compiled twin of `sample_bilinear`: its graphs serve every store, and every batch of two or
more."""
