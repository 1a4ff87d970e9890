"""The kernels that cut: from packed pixels and boxes to crops, each plain and compiled.

Pixel j of a crop lies at (j + 0.5) / S of the crop box; outside the picture the border repeats. A
crop box with swapped corners gives a mirrored crop, so flips cost nothing.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lightning_bbox.core.compiling import compiled
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


def _for_any_batch(sampler: Sampler, reads: int) -> Sampler:
    """Compile to one graph that serves every store, and every batch of two or more.

    Args:
        sampler: What to compile.
        reads: On the CPU, what is made of more reads than these becomes a table, worked out once a
            crop. Elsewhere all is worked out anew for each pixel, in one kernel.
    """
    on_cpu, elsewhere = compiled(sampler, realize_acc_reads_threshold=reads), compiled(sampler)

    def call(
        pixels: Tensor, offsets: Tensor, heights: Tensor, widths: Tensor, boxes: Boxes, size: int
    ) -> Tensor:
        for tensor in (pixels, offsets, heights, widths, boxes):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        fast = on_cpu if pixels.device.type == "cpu" else elsewhere
        return fast(pixels, offsets, heights, widths, boxes, size)

    return call


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


_compiled_once = _for_any_batch(_sample_once, reads=5)

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

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.

    Examples:
        >>> red, one = torch.tensor([255.0]), torch.tensor([1]).int()
        >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> sample_bilinear(red, torch.tensor([0]), one, one, box, size=1).flatten()
        tensor([1., 0., 0.])
    """
    return _average(_sample_once, pixels, offsets, heights, widths, boxes, size, supersample)


def compiled_bilinear(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    supersample: int = 1,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops faster: the compiled twin of `sample_bilinear`, one graph for batches of any size.

    Examples:
        >>> callable(compiled_bilinear)
        True
    """
    return _average(_compiled_once, pixels, offsets, heights, widths, boxes, size, supersample)


def _average(
    sample: Sampler,
    pixels: Tensor,
    offsets: Tensor,
    heights: Tensor,
    widths: Tensor,
    boxes: Boxes,
    size: int,
    supersample: int,
) -> Float[Tensor, "b 3 s s"]:
    """Take all samples of a crop pixel, and their mean."""
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


def _sample_shifts(supersample: int, boxes: Boxes, size: int) -> Float[Tensor, "b k 4"]:
    """Return the shifts of the crop boxes that put k x k samples evenly into each crop pixel."""
    fractions = torch.arange(supersample, device=boxes.device, dtype=boxes.dtype)
    fractions = (fractions + 0.5) / supersample - 0.5
    grid = torch.cartesian_prod(fractions, fractions)
    shifts = grid * (box_sizes(boxes) / size)[:, None]
    return torch.cat([shifts, shifts], dim=-1)


def _copy_rows(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Copy each crop's rows as they lie, from the last one upwards where it is mirrored."""
    up = boxes[:, 3] < boxes[:, 1]
    top = torch.minimum(boxes[:, 1], boxes[:, 3]).long().clamp(min=0)
    top = torch.minimum(top, (heights - size).clamp(min=0))
    first, step = torch.where(up, top + size - 1, top), torch.where(up, -widths, widths)
    starts = offsets + first * widths + boxes[:, 0].long()
    rows = starts[:, None] + torch.arange(size, device=boxes.device) * step[:, None]
    # An index of whole rows: within one the pixels are neighbours, so that they load as vectors.
    packed = pixels.unfold(0, size, 1)[rows.clamp(0, len(pixels) - size)].int()
    return torch.stack(
        [((packed >> shift) & 255).float() * (1 / 255) for shift in (0, 8, 16)], dim=1
    )


_compiled_rows = _for_any_batch(_copy_rows, reads=2)


def sample_whole(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    supersample: int = 1,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops that need no resampling: `sample_bilinear` to the bit, where boxes allow it.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes with corners at whole pixels, of the crops' own size, inside the picture;
            swapped y mirrors, but x must not be swapped: rows aren't copied backwards.
        size: Side of the crops.
        supersample: 1, as there is nothing to average.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't as it should be.

    Examples:
        >>> reds, three = torch.arange(9.0), torch.tensor([3]).int()
        >>> box = torch.tensor([[1.0, 2.0, 2.0, 3.0]])
        >>> crop = sample_whole(reds, torch.tensor([0]), three, three, box, size=1)
        >>> (crop.flatten() * 255).round()
        tensor([7., 0., 0.])
    """
    assert supersample == 1
    return _copy_rows(pixels, offsets, heights, widths, boxes, size)


def compiled_whole(
    pixels: Float32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    supersample: int = 1,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops that need no resampling faster: the compiled twin of `sample_whole`.

    Examples:
        >>> callable(compiled_whole)
        True
    """
    assert supersample == 1
    return _compiled_rows(pixels, offsets, heights, widths, boxes, size)
