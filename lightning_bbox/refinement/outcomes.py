"""Where refined boxes may go: clipped to their pictures, or left where they were, and why."""

from enum import IntEnum

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes
from lightning_bbox.geometry.crop_geometry import CropGeometry


class Reason(IntEnum):
    """Why a box stays where it was, as exported graphs say it; 0 where it may have moved."""

    MOVED = 0
    NOT_FINITE = 1
    FLAT = 2
    OUTSIDE = 3
    UNKNOWN_CLASS = 4
    MODEL_NOT_FINITE = 5
    TOO_FAR = 6
    NO_AREA = 7


def refuse_max_shift(max_shift: float | None) -> None:
    """Refuse a largest shift that no shift can be compared with.

    Raises:
        BadInput: It isn't 0 or more.

    Examples:
        >>> refuse_max_shift(-1.0)
        Traceback (most recent call last):
        lightning_bbox.BadInput: max_shift is -1.0; expected 0 or more px
    """
    if max_shift is not None and not max_shift >= 0:
        msg = f"max_shift is {max_shift}; expected 0 or more px"
        raise BadInput(msg)


def clip(
    boxes: Boxes,
    rough: Boxes,
    limits: Float[Tensor, "#n 2"],
    px: Float[Tensor, "n 2"],
    max_shift: float | None = None,
    least_side: float = 0.0,
) -> tuple[Boxes, Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Clip boxes to their pictures and put back those that can't be meant, in tensors alone.

    Args:
        boxes: What the model says, `xyxy` in picture pixels.
        rough: The boxes it started from.
        limits: Width and height of each box's picture.
        px: The size of a px of each.
        max_shift: Largest shift of an edge to believe, in px.
        least_side: Width and height that must be left.

    Returns:
        The boxes, the `Reason` of each, and how far its farthest edge would have moved, in px.
    """
    clipped = torch.minimum(boxes.clamp(min=0), limits.repeat(1, 2))
    far = farthest_px(boxes, rough, px)
    finite, flat = boxes.isfinite().all(dim=1), (box_sizes(clipped) <= least_side).any(dim=1)
    reasons = torch.where(flat, Reason.NO_AREA, Reason.MOVED)
    if max_shift is not None:
        reasons = reasons.masked_fill(far > max_shift, Reason.TOO_FAR)
    reasons = reasons.masked_fill(~finite, Reason.MODEL_NOT_FINITE)
    return torch.where((reasons == Reason.MOVED)[:, None], clipped, rough), reasons, far


def clip_or_restore(
    boxes: Boxes,
    rough: Boxes,
    sizes: Int64[Tensor, "n 2"],
    geometry: CropGeometry,
    max_shift: float | None = None,
    least_side: float = 0.0,
) -> tuple[Boxes, dict[int, str]]:
    """Clip refined boxes to their pictures, and put back those that can't be meant.

    Args:
        boxes: What the model says, `xyxy` in picture pixels.
        rough: The boxes it started from.
        sizes: Height and width of each box's picture.
        geometry: What a px is.
        max_shift: Largest shift of an edge to believe, in px.
        least_side: Width and height that must be left.

    Returns:
        The boxes, and why some stay where they were, by index.
    """
    limits = sizes.flip(-1).to(boxes.dtype)
    given = boxes, rough, limits, geometry.px(rough), max_shift, least_side
    placed, reasons, far = clip(*given)
    told = {
        at: words_of(Reason(int(reasons[at])), max_shift, float(far[at]))
        for at in reasons.nonzero().flatten().tolist()
    }
    return placed, told


def words_of(reason: Reason, max_shift: float | None = None, far: float | None = None) -> str:
    """Say why a box stays where it was, in words that follow "the box".

    Args:
        reason: Why.
        max_shift: The largest shift of an edge to believe, in px.
        far: How far its farthest edge would have moved, where that is known.

    Examples:
        >>> words_of(Reason.TOO_FAR, 3.0, 4.25)
        'would move by 4.25 px, more than max_shift 3'
    """
    if reason == Reason.TOO_FAR:
        way = "farther" if far is None else f"by {far:.3g} px, more"
        return f"would move {way} than max_shift {max_shift:g}"
    return _WORDS[reason]


_WORDS = {
    Reason.NOT_FINITE: "is not finite",
    Reason.FLAT: "has no positive width or height",
    Reason.OUTSIDE: "lies outside the picture",
    Reason.UNKNOWN_CLASS: "is of a class that the model doesn't know",
    Reason.MODEL_NOT_FINITE: "the model's box is not finite",
    Reason.NO_AREA: "would have no area inside the picture",
}


def farthest_px(boxes: Boxes, rough: Boxes, px: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Return how far the edge of each box moved that moved farthest, in px.

    Args:
        boxes: Where the boxes are, `xyxy` in picture pixels.
        rough: Where they were.
        px: The size of a px of each.

    Examples:
        >>> rough = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> farthest_px(torch.tensor([[0.0, 3.0, 28.0, 30.0]]), rough, torch.tensor([[1.0, 2.0]]))
        tensor([2.])
    """
    return ((boxes - rough).abs() / px.repeat(1, 2)).amax(dim=1)


def shifts_px(boxes: Boxes, rough: Boxes, geometry: CropGeometry) -> Float[Tensor, "n 2"]:
    """Return how far the centres moved along x and y, in px."""
    return (box_centers(boxes) - box_centers(rough)) / geometry.px(rough)
