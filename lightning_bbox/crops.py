"""From boxes to crops: context, the px unit, and the cut."""

import math
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.boxes import Boxes, box_sizes, scale_boxes, square_boxes
from lightning_bbox.errors import BadInput
from lightning_bbox.images import ImageStore
from lightning_bbox.kernels import Kernel, sample_bilinear


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
        kernel: What samples (see `lightning_bbox.kernels`).

    Returns:
        Crops in [0, 1].

    Examples:
        >>> import numpy as np, torch
        >>> store = ImageStore.from_array(np.full((1, 8, 8, 3), 255, dtype=np.uint8))
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> cut_crops(store, torch.tensor([0]), box, size=2).unique()
        tensor([1.])
    """
    offsets, heights = store.offsets[image_index], store.heights[image_index]
    widths = store.widths[image_index]
    return kernel(store.pixels, offsets, heights, widths, crop_boxes, size, supersample)
