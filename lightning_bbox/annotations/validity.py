"""Whether a box is valid (finite, of some area, in its picture), and what becomes of others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.annotations.formats.format import NO_BOX, Record
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes, box_sizes

LEFT_OUT = "; left out"
"""What ends the sentence of a box that is skipped in training."""

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


def without_invalid(
    table: BoxTable,
    faults: Mapping[int, str],
    records: Sequence[Record],
    fields: Sequence[str],
    on_bad: Literal["skip", "error"],
) -> BoxTable:
    """Leave the invalid boxes out and say so, or refuse the first of them.

    Args:
        table: All boxes.
        faults: What is wrong with the invalid ones, by index.
        records: Where each box stands, and the numbers that its file states.
        fields: What the file calls these.
        on_bad: Which of the two.

    Raises:
        BadInput: A box is invalid, and such boxes are to be refused.
    """
    skipped = []
    for at in sorted(faults):
        place, values = records[at].place, records[at].values
        stated = ", ".join(
            f"{name}={value:.10g}" for name, value in zip(fields, values, strict=True)
        )
        what = f"the box {stated}" if values != NO_BOX else "the object"
        problem = f"{what} in {table.images[table.image_index[at]]} {faults[at]}"
        if on_bad == "error":
            remedy = f"correct it, or leave such boxes out with {argument('on_bad', 'skip')}"
            raise BadInput.at(place, problem, remedy)
        skipped.append(f"{place}: {problem}{LEFT_OUT}")
    good = torch.tensor([at not in faults for at in range(len(records))], dtype=torch.bool)
    index = table.image_index[~good].tolist()
    return replace(table.boxes_where(good), skipped=tuple(skipped), skipped_index=tuple(index))
