"""Whether a box is valid: finite, of some area, and in its picture."""

from itertools import compress

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes, box_sizes

_REACH = 1.0  # pixels that a box may reach outside its picture: people and tools differ by one


def box_faults(
    boxes: Boxes,
    sizes: Int64[Tensor, "n 2"],
    sides: Float[Tensor, "n 2"] | None = None,
    partly_outside: bool = False,
) -> dict[int, str]:
    """Say by index what is wrong with invalid boxes, in words that follow "the box".

    Args:
        boxes: The boxes, `xyxy` in pixels.
        sizes: Height and width of each box's picture.
        sides: Widths and heights that must be positive too, such as those between pixels that
            belong to a box.
        partly_outside: Whether a box may reach outside its picture by more than a pixel, as long as
            some of it lies inside.
    """
    limits = sizes.flip(-1)
    finite = boxes.isfinite().all(dim=1)
    flat = box_sizes(boxes) <= 0
    if sides is not None:
        flat |= sides <= 0
    reach = torch.cat([-boxes[:, :2], boxes[:, 2:] - limits], dim=1).amax(dim=1)
    outside = reach > _REACH
    if partly_outside:
        outside = ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits)).any(dim=1)
    faults = {}
    for at in (~finite | flat.any(dim=1) | outside).nonzero().flatten().tolist():
        if not finite[at]:
            faults[at] = "is not finite"
        elif flat[at].any():
            lacking = compress(("width", "height"), flat[at].tolist())
            faults[at] = f"has no positive {' and '.join(lacking)}"
        elif partly_outside:
            faults[at] = "lies outside the picture"
        else:
            width, height = limits[at].tolist()
            faults[at] = f"reaches {reach[at]:.6g} px outside the {width} x {height} picture"
    return faults
