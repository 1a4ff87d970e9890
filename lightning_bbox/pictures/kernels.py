"""The kernels that cut: from packed pixels and boxes to crops, plain and compiled.

Pixel j of a crop lies at (j + 0.5) / S of the crop box; outside the picture the border repeats. A
crop box with swapped corners gives a mirrored crop, so flips cost nothing. What a crop pixel reads,
`pictures/pyramid` says: some sixteen pixels at most, whatever the size of the box.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lightning_bbox.core.compiling import compiled_for_any_batch, native_library
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.crop_geometry import EXACT, HALVED, LEAST, MOST_LEVELS, SHARP
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

_LEAST_A_THREAD = 1 << 18  # numbers of crops, for which a thread of its own pays


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


def _add(sums: list[Tensor], terms: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, terms, strict=True)] if sums else terms


def _sample_spread(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Take the mean of samples a crop pixel, from the level of each box."""
    place = regions(offsets, heights, widths, boxes, size)
    x1, y1, x2, y2 = place.boxes.unbind(dim=1)
    x, weight_x = taps(x1, x2, place.reach[:, 0], place.widths, size)
    y, weight_y = taps(y1, y2, place.reach[:, 1], place.heights, size)
    rows = place.offsets[:, None, None] + y.long() * place.widths[:, None, None]
    sums: list[Tensor] = []
    for row, down in zip(rows.unbind(dim=1), weight_y.unbind(dim=1), strict=True):
        across: list[Tensor] = []
        for column, weight in zip(x.unbind(dim=1), weight_x.unbind(dim=1), strict=True):
            packed = pixels[row[:, :, None] + column[:, None]].int()
            channels = [((packed >> shift) & 255).float() for shift in (0, 8, 16)]
            across = _add(across, [channel * weight[:, None] for channel in channels])
        sums = _add(sums, [channel * down[:, :, None] for channel in across])
    return torch.stack([channel * (1 / 255) for channel in sums], dim=1)


def sample_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from packed pixels, by the rule of the pyramid.

    On the CPU boxes that are hardly shrunk, which are the usual ones of crop size, are cut apart
    from the others, by a quarter of the reads. Elsewhere nobody waits to learn which these are.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.
    """
    if boxes.device.type != "cpu":
        return _sample_spread(pixels, offsets, heights, widths, boxes, size)
    shrunk = is_shrunk(boxes, size)
    if shrunk.all() == shrunk.any():
        way = _sample_spread if shrunk.any() else _sample_once
        return way(pixels, offsets, heights, widths, boxes, size)
    crops = boxes.new_empty(len(boxes), 3, size, size)
    for way, chosen in ((_sample_once, ~shrunk), (_sample_spread, shrunk)):
        rows = chosen.nonzero()[:, 0]
        crops[rows] = way(pixels, offsets[rows], heights[rows], widths[rows], boxes[rows], size)
    return crops


def compiled_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Do as `sample_bilinear` does: by a library of our own on the CPU, by Inductor elsewhere.

    Inductor loads what lies apart a number at a time on a CPU, by way of memory; the library, where
    the CPU can, sixteen in an instruction, and each row of the picture once.

    Raises:
        BadInput: On the CPU, the library can't be compiled.
    """
    if boxes.device.type != "cpu":
        return _spread_elsewhere(pixels, offsets, heights, widths, boxes, size)
    cut, crops = native_cut(), torch.empty(len(boxes), 3, size, size, dtype=torch.float32)
    columns = (offsets.long(), heights.int(), widths.int(), boxes.detach().float())
    # A slice of what is contiguous is that too.
    whole = [column.contiguous() for column in columns]

    def part(rows: slice) -> None:
        cut(pixels, *(column[rows] for column in whole), size, crops[rows])

    most = max(1, min(torch.get_num_threads(), crops.numel() // _LEAST_A_THREAD))
    step = max(1, -(-len(boxes) // most))
    parts = [slice(start, start + step) for start in range(0, len(boxes), step)]
    if len(parts) > 1:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(part, parts))
    else:
        part(slice(None))
    return crops.to(boxes.dtype)


_spread_elsewhere = compiled_for_any_batch(_sample_spread)
"""One graph for every store, and every batch of two or more."""


def native_cut() -> Callable[..., None]:
    """Return the cut of `kernels.cpp`, compiled at the first call, which takes half a second.

    It takes what `compiled_bilinear` takes, contiguous, and the crops to fill.

    Raises:
        BadInput: It can't be compiled here.
    """
    made = _made()
    if isinstance(made, BadInput):
        raise made
    return made


@cache
def _made() -> Callable[..., None] | BadInput:
    try:
        library = native_library(Path(__file__).with_suffix(".cpp"))
    except BadInput as problem:
        return problem  # kept, or it would be tried again for every batch
    function, pointers = library.cut, [ctypes.c_void_p] * 5
    counts, rule_of = [ctypes.c_int64, ctypes.c_int32, ctypes.c_int32], [ctypes.c_float] * 4
    function.argtypes = [*pointers, *counts, *rule_of, ctypes.c_void_p]

    def cut(
        pixels: Tensor,
        offsets: Tensor,
        heights: Tensor,
        widths: Tensor,
        boxes: Tensor,
        size: int,
        crops: Tensor,
    ) -> None:
        given = (each.data_ptr() for each in (pixels, offsets, heights, widths, boxes))
        rule = MOST_LEVELS, LEAST, EXACT, HALVED, SHARP
        if function(*given, len(boxes), size, *rule, crops.data_ptr()):
            msg = f"no memory to cut crops of {size} x {size}"
            raise MemoryError(msg)

    return cut
