"""Parity: whether an exported model gives what its checkpoint gives, on real and odd pictures."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.geometry.boxes import Boxes, boxes_around
from lightning_bbox.refinement.refiner import Refinement, Refiner

TOLERANCE = 1e-3
"""Largest difference of an edge or a standard deviation, in px, at which results are the same."""

_SIZES = ((1, 1), (1, 5000), (5000, 1), (97, 61), (2160, 3840), (480, 640))
_FEW, _MANY = (0, 1, 2), 500  # boxes
_DRAWN = 20  # boxes on each of the pictures that are given


class Case(NamedTuple):
    """A picture with boxes, on which both are tried.

    Attributes:
        name: What it is.
        picture: RGB.
        boxes: Rough boxes.
        labels: Their classes.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"]
    boxes: Boxes
    labels: list[str]


class Difference(NamedTuple):
    """How far apart the two are.

    Attributes:
        case: Where.
        boxes: How many boxes.
        largest: Largest difference of an edge, in px.
        total: Sum over the boxes of the largest one of each.
        stds: Largest difference of a standard deviation, in px and log size.
        others: Boxes that stay in the one and not in the other.
        seconds: What the exported model took.
        refiner_seconds: What the checkpoint took.
    """

    case: str
    boxes: int
    largest: float
    total: float
    stds: float
    others: int
    seconds: float
    refiner_seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether the results are the same, within the tolerance."""
        return max(self.largest, self.stds) <= TOLERANCE and not self.others


def odd_cases(classes: Sequence[str]) -> Iterator[Case]:
    """Yield pictures and boxes that are hard to get right: none, many, tiny, huge, overhanging.

    Args:
        classes: Names to draw the boxes' classes from; none where these don't matter.
    """
    generator = keyed_generator("parity")
    pictures = [
        torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in _SIZES
    ]
    for picture in pictures:
        height, width, _ = picture.shape
        for count in (*_FEW, _MANY) if min(height, width) > 100 else _FEW:
            boxes = _boxes_on(height, width, count, generator)
            labels = _labels(classes, count, generator)
            yield Case(f"{count} boxes on {height} x {width}", picture.numpy(), boxes, labels)
    invalid = [[5, 5, 5, 9], [9, 9, 2, 2], [-9, 0, -1, 5], [700, 5, 720, 9], [0, 0, torch.nan, 5]]
    overhanging = [[-40, -40, 90, 90], [-1e4, -1e4, 1e4, 1e4], [600, 400, 700, 500]]
    boxes = torch.tensor([*invalid, [0, 0, torch.inf, 9], *overhanging])
    labels = _labels(classes, len(boxes), generator)
    yield Case("invalid and overhanging boxes", pictures[-1].numpy(), boxes, labels)


def cases_of_data(data: CropDataModule) -> Iterator[Case]:
    """Yield the draws of a data module's test split, picture by picture."""
    samples, source = data.samples("test"), data.source
    classes = source.classes
    items = source.splits["test"]
    for at in sorted(set(samples.image_index.tolist())):
        rows = samples.image_index == at
        labels = [classes[number] for number in items.labels[samples.items[rows]].tolist()]
        for part, own in source.store.parts(torch.tensor([at])):
            picture = part.picture(int(own[0]))
            yield Case(f"test picture {at}", picture, samples.proposals[rows], labels)


def cases_of_pictures(
    pictures: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]], classes: Sequence[str]
) -> Iterator[Case]:
    """Yield given pictures, with boxes drawn on them.

    Args:
        pictures: Names and pixels.
        classes: As in `odd_cases`.
    """
    generator = keyed_generator("parity pictures")
    for name, picture in pictures:
        height, width, _ = picture.shape
        boxes = _boxes_on(height, width, _DRAWN, generator)
        yield Case(name, picture, boxes, _labels(classes, _DRAWN, generator))


def compare(case: Case, refiner: Refiner, exported: Refiner) -> Difference:
    """Refine the boxes of a case by both, and say how far apart they are.

    Args:
        case: The picture and its boxes.
        refiner: The checkpoint's.
        exported: The exported model's.
    """
    (ours, before), (theirs, after) = (_timed(each, case) for each in (refiner, exported))
    there = [at for at in range(len(case.boxes)) if at not in ours.unmoved]
    others = set(ours.unmoved) ^ set(theirs.unmoved)
    px = refiner.spec.geometry.px(case.boxes[there]).repeat(1, 2)
    shifts = ((ours.boxes[there] - theirs.boxes[there]).abs() / px).amax(dim=1).double()
    stds = _largest((ours.stds[there] - theirs.stds[there]).abs())
    told = bool((ours.stds[there].isnan() == theirs.stds[there].isnan()).all())
    stayed = torch.equal(
        ours.boxes[list(ours.unmoved)].nan_to_num(), theirs.boxes[list(ours.unmoved)].nan_to_num()
    )
    largest = _largest(shifts) if stayed else torch.inf
    stds = stds if told else torch.inf
    total = float(shifts.sum())
    return Difference(case.name, len(case.boxes), largest, total, stds, len(others), after, before)


def report_of(differences: Sequence[Difference]) -> dict[str, Any]:
    """Return the figures over several cases, and the ten that are farthest apart."""
    boxes = sum(each.boxes for each in differences)
    return {
        "pictures": len(differences),
        "boxes": boxes,
        "largest_px": max((each.largest for each in differences), default=0.0),
        "mean_px": sum(each.total for each in differences) / max(1, boxes),
        "largest_std": max((each.stds for each in differences), default=0.0),
        "boxes_that_stay_in_one_only": sum(each.others for each in differences),
        "seconds": sum(each.seconds for each in differences),
        "refiner_seconds": sum(each.refiner_seconds for each in differences),
        "farthest": [each._asdict() for each in sorted(differences, key=_distance)[:-11:-1]],
    }


def refuse_unequal(path: Path, differences: Sequence[Difference]) -> None:
    """Refuse an exported model whose results aren't its checkpoint's.

    Args:
        path: Where the model was to be.
        differences: What was found.

    Raises:
        BadInput: A result is another.
    """
    unequal = [each for each in differences if not each.is_equal]
    if not unequal:
        return
    worst = max(unequal, key=lambda each: (each.largest, each.stds, each.others))
    problem = (
        f"{len(unequal)} of {len(differences)} pictures get other boxes than from the checkpoint, "
        f"the worst by {worst.largest:.3g} px (deviations by {worst.stds:.3g}, {worst.others} that "
        f"stay in one alone): {worst.case}"
    )
    remedy = f"nothing was kept, as {TOLERANCE:g} px is the most; try another --format"
    raise BadInput.at(str(path), problem, remedy)


def _distance(each: Difference) -> tuple[float, float]:
    return each.largest, each.stds


def _timed(refiner: Refiner, case: Case) -> tuple[Refinement, float]:
    begun = time.perf_counter()
    found = refiner.refine_with_std(case.picture, case.boxes, case.labels)
    return found, time.perf_counter() - begun


def _largest(values: Tensor) -> float:
    told = values[~values.isnan()]
    return float(told.max()) if len(told) else 0.0


def _boxes_on(height: int, width: int, count: int, generator: torch.Generator) -> Boxes:
    """Draw boxes of all sizes whose centres lie in a picture, so that many reach out of it."""
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    largest = torch.tensor([float(min(max(height, width), 2000))]).clamp(min=10)
    sides = 6 * (largest / 6) ** torch.rand(count, 2, generator=generator)
    return boxes_around(centers, sides)


def _labels(classes: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    names = [*classes] or [""]
    drawn = torch.randint(0, len(names), (count,), generator=generator)
    return [names[at] for at in drawn.tolist()]
