"""From boxes to crop boxes: context, the px unit, and the numbers by which crops are sampled."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes, box_sizes, scale_boxes, square_boxes

MOST_LEVELS = 16
"""Levels of a picture at most: sides of 32,768 pixels have as many."""

LEAST = 2.69
"""What rule 2 of `pictures/pyramid` asks of a level: samples then reach 0.23 of its pixels far."""

EXACT, HALVED = 3.0, 2.27
"""The c of its rule 3. By them crops of all sizes keep within 1.5 times what exact means leave of
a white picture above the crop's Nyquist limit; 3 on all levels would leave up to 2.5 times."""

SHARP = 1.15
"""Shrink up to which a crop pixel of level 0 is one bilinear sample."""


@dataclass(frozen=True)
class CropGeometry:
    """How a proposal becomes a crop, and what a px is.

    Args:
        size: Side of the crop the network sees, in pixels.
        context: Side of the crop box over the side of the proposal.
        square: Cut a square around the proposal's longer side, instead of scaling each side on its
            own.
        reference_size: A px, the unit of jitter, bins and errors, is the crop box's side over this.

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
