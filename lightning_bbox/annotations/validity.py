"""Whether a box is valid (finite, of some area, in its picture), and what becomes of others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from lightning_bbox.annotations.formats.format import NO_BOX, Format, Record
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes, box_sizes

if TYPE_CHECKING:
    from lightning_bbox.annotations.table import BoxTable

LEFT_OUT = "; left out"
"""What ends the sentence of a box that is skipped in training."""

_FAR = 0.1  # the share of a side by which a rough box may well overhang
_SHARE = 0.25  # of boxes that make none, for another meaning of their numbers to be thought of
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
    finite, flat, outside = flaws_of(boxes, limits)
    if sides is not None:
        flat |= sides <= 0
    reach = torch.cat([-boxes[:, :2], boxes[:, 2:] - limits], dim=1).amax(dim=1)
    if not partly_outside:
        outside = reach > _REACH
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


def flaws_of(
    boxes: Boxes, limits: Float[Tensor, "#n 2"]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Tell which boxes are finite, which sides aren't positive, and which boxes lie outside.

    Args:
        boxes: The boxes, `xyxy` in pixels.
        limits: Width and height of each box's picture.

    Examples:
        >>> flaws_of(torch.tensor([[5.0, 2.0, 5.0, 4.0]]), torch.tensor([[5.0, 9.0]]))
        (tensor([True]), tensor([[ True, False]]), tensor([True]))
    """
    outside = ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits)).any(dim=1)
    flat = box_sizes(boxes.float()) <= 0  # so is one that fp32 can't tell from a line
    return boxes.isfinite().all(dim=1), flat, outside


def without_invalid(
    table: "BoxTable",
    faults: Mapping[int, str],
    records: Sequence[Record],
    fields: Sequence[str],
    on_bad: Literal["skip", "error"],
) -> "BoxTable":
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


def refuse_fractions(kind: Format, records: Sequence[Record]) -> None:
    """Refuse numbers that all lie within the picture's first pixel: they are meant otherwise.

    Args:
        kind: The format.
        records: The boxes as the files state them.

    Raises:
        BadInput: If they do, or if fractions all are larger than 1.
    """
    finite = [record for record in records if all(map(math.isfinite, record.values))]
    numbers = [number for record in finite for number in record.values]
    if not numbers:
        return
    if kind.convention.fractions:
        _refuse_pixels(kind, finite)
        return
    if not min(numbers) >= 0 < max(numbers) <= 1:
        return
    pairs = zip(kind.convention.fields, finite[0].values, strict=True)
    stated = ", ".join(f"{name}={value:.10g}" for name, value in pairs)
    problem = f"{stated} and all other boxes lie between 0 and 1, as fractions of a picture do"
    remedy = f"if they are, say {argument('units', 'fraction')}"
    raise BadInput.at(finite[0].place, problem, remedy)


def _refuse_pixels(kind: Format, records: Sequence[Record]) -> None:
    """Refuse numbers of pixels where fractions are due: every box would lie far outside."""
    sizes = torch.ones(len(records), 2, dtype=torch.int64)
    values = torch.tensor([record.values for record in records], dtype=torch.float64)
    edges = kind.convention.edges(values, sizes)
    if bool((edges[:, 2:] > 2).all()):
        stated = ", ".join(f"{number:.10g}" for number in records[0].values)
        problem = f"{stated} and all other boxes lie far beyond 1, as pixels do"
        remedy = f"if they are, say {argument('units', 'pixels')}"
        raise BadInput.at(records[0].place, problem, remedy)


def refuse_other_meaning(
    kind: Format,
    records: Sequence[Record],
    values: Float64[Tensor, "n 4"],
    sizes: Int64[Tensor, "n 2"],
    turned: Bool[Tensor, " n"],
) -> None:
    """Refuse numbers that make no boxes as the format has them, but all do in another order.

    Args:
        kind: The format.
        records: The boxes as the files state them.
        values: Their numbers.
        sizes: Height and width of each box's picture.
        turned: Whether that was turned after the box was drawn; such ones aren't judged.

    Raises:
        BadInput: If they do.
    """
    faulty = [bool(record.outline or record.fault) for record in records]
    stated = values.isfinite().all(dim=1) & ~turned & ~torch.tensor(faulty, dtype=torch.bool)
    values, sizes = values[stated], sizes[stated]
    convention = kind.convention
    wrong = ~_may_lie_in(convention.edges(values, sizes), sizes, _FAR)
    count = int(wrong.sum())
    if count < max(2, _SHARE * len(values)):
        return
    for fields, to_xyxy in convention.others:
        other = replace(convention, to_xyxy=to_xyxy)
        if bool(_may_lie_in(other.edges(values, sizes), sizes, 0.0).all()):
            first = records[int(stated.nonzero()[wrong][0])]
            problem = (
                f"{count} of {len(values)} boxes don't lie in their pictures as "
                f"{', '.join(convention.fields)}, and all of them do as {fields}"
            )
            remedy = f"write {', '.join(convention.fields)}"
            raise BadInput.at(first.place, problem, convention.remedy or remedy)


def _may_lie_in(
    edges: Float64[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"], share: float
) -> Bool[Tensor, " n"]:
    """Tell which boxes have an area, and overhang by no more than this share of a side."""
    limits = sizes.flip(-1)
    most = torch.clamp(share * limits, min=1.0)
    inside = (edges[:, :2] >= -most) & (edges[:, 2:] <= limits + most)
    return (inside & (box_sizes(edges) > 0)).all(dim=1)
