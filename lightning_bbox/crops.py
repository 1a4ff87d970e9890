"""From boxes to crops: context, the px unit, and the cut.

Pixel j of a crop lies at (j + 0.5) / S of the crop box; outside the picture the border repeats. A
crop box with swapped corners gives a mirrored crop, so flips cost nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from lightning_bbox.boxes import Boxes, box_sizes, scale_boxes, square_boxes
from lightning_bbox.compiling import compiled
from lightning_bbox.errors import BadInput
from lightning_bbox.images import ImageStore


@dataclass(frozen=True)
class CropGeometry:
    """How a proposal becomes a crop, and what a px is.

    Args:
        size: Side of the crop the network sees, in pixels.
        context: Side of the crop box over the side of the proposal.
        square: Cut a square around the proposal's longer side, instead of scaling each side on its
            own.
        reference_size: A px, the unit of jitter, bins and errors, is the crop box's side over this.
        supersample: Each crop pixel averages this many samples squared; by default the training
            pictures' median shrink, rounded.

    Raises:
        BadInput: A value is out of its range.

    Examples:
        >>> CropGeometry(context=1.5).px_per_delta
        30.0
    """

    size: int = 45
    context: float = 1.5
    square: bool = False
    reference_size: float = 45.0
    supersample: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.size < 8:
            msg = f"crop size {self.size} is too small to see an object in; expected at least 8"
            raise BadInput(msg)
        if not 1 <= self.context <= 10:
            msg = f"crop context {self.context} is outside 1..10; 1 cuts the proposal itself"
            raise BadInput(msg)
        if not 0 < self.reference_size < math.inf:
            msg = f"crop reference_size {self.reference_size} isn't positive; 45 is usual"
            raise BadInput(msg)
        if self.supersample is not None and self.supersample < 1:
            msg = f"crop supersample {self.supersample} is below 1; 1 takes one sample a pixel"
            raise BadInput(msg)

    @property
    def px_per_delta(self) -> float:
        """How many px a shift by the anchor's whole side is."""
        return self.reference_size / self.context

    def anchors(self, proposals: Boxes) -> Boxes:
        """Return the boxes that targets are relative to: proposals, squared where crops are."""
        return square_boxes(proposals) if self.square else proposals

    def crop_boxes(self, proposals: Boxes) -> Boxes:
        """Return where to cut: the anchors with their context."""
        return scale_boxes(self.anchors(proposals), self.context)

    def px(self, proposals: Boxes) -> Float[Tensor, "*b 2"]:
        """Return the size of a px in picture pixels, (x, y)."""
        return box_sizes(self.anchors(proposals)) / self.px_per_delta


Kernel = Callable[
    [
        Int32[Tensor, " p"],
        Int64[Tensor, " b"],
        Int32[Tensor, " b"],
        Int32[Tensor, " b"],
        Boxes,
        int,
    ],
    Float[Tensor, "b 3 s s"],
]


def _taps(low: Tensor, high: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two neighbours of each sample along one side, and the second one's weight.

    Indices are clamped as integers too, so that a box that is not finite can't read outside the
    store.
    """
    last = (limit - 1)[:, None]
    steps = (torch.arange(size, device=low.device) + 0.5) * ((high - low) / size)[:, None]
    position = torch.minimum((low[:, None] + steps - 0.5).clamp(min=0), last.float())
    first = torch.minimum(position.int().clamp(min=0), last)
    return first, torch.minimum(first + 1, last), position - first


def sample_bilinear(
    pixels: Int32[Tensor, " p"],
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
) -> Float[Tensor, "b 3 s s"]:
    """Cut one bilinear sample a crop pixel from packed pixels.

    Args:
        pixels: The store's packed pixels.
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes; swapped corners mirror.
        size: Side of the crops.

    Returns:
        Crops in [0, 1]. The content is undefined where a box isn't finite.

    Examples:
        >>> red, one = torch.tensor([255]).int(), torch.tensor([1]).int()
        >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> sample_bilinear(red, torch.tensor([0]), one, one, box, size=1).flatten()
        tensor([1., 0., 0.])
    """
    x0, x1, weight_x = (t[:, None, :] for t in _taps(boxes[:, 0], boxes[:, 2], widths, size))
    y0, y1, weight_y = (t[:, :, None] for t in _taps(boxes[:, 1], boxes[:, 3], heights, size))
    row0, row1 = (offsets[:, None, None] + y * widths[:, None, None] for y in (y0, y1))
    corners = [pixels[row + x] for row in (row0, row1) for x in (x0, x1)]
    channels = []
    for shift in (0, 8, 16):
        top_left, top_right, low_left, low_right = (((c >> shift) & 255).float() for c in corners)
        top = top_left + (top_right - top_left) * weight_x
        low = low_left + (low_right - low_left) * weight_x
        channels.append(top + (low - top) * weight_y)
    return torch.stack(channels, dim=1) * (1 / 255)


CPU_CHUNK = 32
"""Crops sampled together: their source pixels stay in the cache (14.5 against 18.7 ms, k = 3)."""

compiled_bilinear: Kernel = compiled(sample_bilinear)
"""The fast twin of `sample_bilinear`; one graph serves every batch of two or more."""


def cut_crops(
    store: ImageStore,
    image_index: Int64[Tensor, " b"],
    crop_boxes: Boxes,
    size: int,
    supersample: int = 1,
    kernel: Kernel = sample_bilinear,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from the store with one resampling.

    Args:
        store: The pictures.
        image_index: Which picture each crop comes from.
        crop_boxes: Where to cut, `xyxy` in picture pixels; swapped corners mirror the crop.
        size: Side of the crops in pixels.
        supersample: Each crop pixel averages this many bilinear samples squared.
        kernel: `sample_bilinear` or `compiled_bilinear`.

    Returns:
        Crops in [0, 1].

    Examples:
        >>> import numpy as np
        >>> store = ImageStore.from_array(np.full((1, 8, 8, 3), 255, dtype=np.uint8))
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> cut_crops(store, torch.tensor([0]), box, size=2).unique()
        tensor([1.])
    """
    if supersample == 1 or not len(crop_boxes):
        return _sample(store, image_index, crop_boxes, size, kernel)
    shifts = _sample_shifts(supersample, crop_boxes, size)
    samples_per_pixel = shifts.shape[1]
    chunk = CPU_CHUNK if crop_boxes.device.type == "cpu" else len(crop_boxes)
    averaged = []
    for start in range(0, len(crop_boxes), chunk):
        rows = slice(start, start + chunk)
        boxes = (crop_boxes[rows, None] + shifts[rows]).flatten(0, 1)
        repeated = image_index[rows].repeat_interleave(samples_per_pixel)
        samples = _sample(store, repeated, boxes, size, kernel)
        averaged.append(samples.view(-1, samples_per_pixel, *samples.shape[1:]).mean(dim=1))
    return torch.cat(averaged)


def _sample(
    store: ImageStore, image_index: Tensor, boxes: Boxes, size: int, kernel: Kernel
) -> Float[Tensor, "b 3 s s"]:
    offsets, heights = store.offsets[image_index], store.heights[image_index]
    widths = store.widths[image_index]
    if kernel is compiled_bilinear:
        for tensor in (store.pixels, offsets, heights, widths, boxes):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return kernel(store.pixels, offsets, heights, widths, boxes, size)


def _sample_shifts(supersample: int, crop_boxes: Boxes, size: int) -> Float[Tensor, "b k 4"]:
    """Return the shifts of the crop boxes that put k x k samples evenly into each crop pixel."""
    fractions = (torch.arange(supersample, device=crop_boxes.device) + 0.5) / supersample - 0.5
    grid = torch.cartesian_prod(fractions, fractions)
    shifts = grid * (box_sizes(crop_boxes) / size)[:, None]
    return torch.cat([shifts, shifts], dim=-1)
