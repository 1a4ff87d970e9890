"""Which annotations are wrong, from what models say of boxes that they haven't learned from."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.evaluation.intervals import Mean, clustered_interval
from lightning_bbox.geometry.boxes import Boxes, box_sizes, paired_iou
from lightning_bbox.geometry.class_laws import ClassLaws, learn_laws
from lightning_bbox.geometry.codecs import decode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.weighing import Said, places_of, said_of
from lightning_bbox.refinement.outcomes import clip_or_restore

OVERLAP = 0.9
"""IoU with the truth below which a box counts as wrong."""

LIKELY = 0.5
"""Probability from which on a box counts as wrong."""

_EDGES = (
    ("left", "too far left", "too far right"),
    ("top", "too high", "too low"),
    ("right", "too far left", "too far right"),
    ("bottom", "too high", "too low"),
)
_TOLD = 0.25
"""Share of the largest error of a box's edges from which on another one is told too."""


class Audit(NamedTuple):
    """What is thought of annotated boxes.

    Attributes:
        law: How they are off, learned from all of them, by class where classes differ.
        boxes: Where each should be, `xyxy` in picture pixels, inside the picture.
        wrong: Probability that its IoU with the truth is below `overlap`.
        apart: What it lacks of an IoU of 1 with where the picture alone would put it.
        gain: Rise of the expected IoU with the truth at its new place.
        share: Share of the boxes that are wrong, with its 95 % interval.
        overlap: The IoU below which a box counts as wrong.
    """

    law: ClassLaws
    boxes: Boxes
    wrong: Float[Tensor, " n"]
    apart: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    share: Mean
    overlap: float = OVERLAP

    def worst_first(self) -> list[int]:
        """Return the boxes in the order of how probably they are wrong times how far apart.

        Where none of some is likelier wrong than others, the farthest apart come first.
        """
        apart = self.apart.argsort(descending=True, stable=True)
        worst = (self.wrong * self.apart)[apart].argsort(descending=True, stable=True)
        order: list[int] = apart[worst].tolist()
        return order


def said_inside(
    found: Boxes,
    stds: Float[Tensor, "n t"],
    annotated: Boxes,
    sizes: Int64[Tensor, "n 2"],
    geometry: CropGeometry,
    reliability: Reliability | None,
) -> Said:
    """Return what a model says of annotated boxes, which end where the picture does.

    Args:
        found: Where it puts them, `xyxy` in picture pixels.
        stds: How far off it deems that, x and y in px (and log sizes).
        annotated: The boxes as they are.
        sizes: Height and width of each box's picture.
        geometry: What a px is.
        reliability: How it errs, where that is known.
    """
    inside, _ = clip_or_restore(found, annotated, sizes, geometry)
    return said_of(inside, stds, annotated, geometry, reliability)


def pooled(parts: Sequence[Said]) -> Said:
    """Put together what several models say, each of its own boxes.

    Errors are spread as those of all models together, each as often as it has boxes.

    Args:
        parts: What each says.

    Examples:
        >>> one = Said(torch.zeros(1, 2), torch.ones(1, 2), ((1.0, 1.0),))
        >>> pooled([one, one._replace(tails=((1.0, 2.0),))]).tails
        ((0.5, 1.0), (0.5, 2.0))
    """
    count = sum(len(part.offsets) for part in parts)
    tails = tuple(
        (share * len(part.offsets) / count, factor)
        for part in parts
        for share, factor in part.tails
    )
    offsets, stds = (torch.cat(column) for column in list(zip(*parts, strict=True))[:2])
    return Said(offsets, stds, tails)


def judge(
    said: Said,
    annotated: Boxes,
    sizes: Int64[Tensor, "n 2"],
    clusters: Int64[Tensor, " n"],
    names: Sequence[str] = (),
    overlap: float = OVERLAP,
) -> Audit:
    """Weigh what models say of annotated boxes against how all of these are off.

    Args:
        said: What models say that haven't seen the box's picture, nor its group.
        annotated: The boxes as they are, `xyxy` in picture pixels.
        sizes: Height and width of each box's picture.
        clusters: The group of each box: errors within one go together.
        names: Its class, where classes may be off in different ways.
        overlap: The IoU with the truth below which a box counts as wrong.

    Raises:
        BadInput: The boxes are too few, or the models tell no standard deviations.
    """
    limits = sizes.flip(-1).to(annotated.dtype)
    names = names or [""] * len(annotated)
    law = learn_laws(said, annotated, limits, clusters, names)
    moved = law.move(said, names)
    places = places_of(moved, said, annotated, limits)
    stays = (places == annotated).all(dim=1, keepdim=True)
    boxes = torch.where(stays, annotated, _clipped(places, sizes))
    apart = 1 - paired_iou(annotated, _clipped(decode_deltas(said.offsets, annotated), sizes))
    wrong = law.short_of(overlap, said, names).float()
    share = share_of_wrong(wrong, clusters)
    return Audit(law, boxes, wrong, apart, moved.gain, share, overlap)


def _clipped(boxes: Boxes, sizes: Int64[Tensor, "n 2"]) -> Boxes:
    return boxes.clamp(min=0).minimum(sizes.flip(-1).repeat(1, 2).to(boxes.dtype))


def share_of_wrong(wrong: Float[Tensor, " n"], clusters: Int64[Tensor, " n"]) -> Mean:
    """Return the share of boxes that are wrong with its 95 % interval over pictures or groups.

    Each box's part in the share is its probability's distance from it, over how much of what is
    to be known of the boxes these probabilities tell: the less sure they are, the wider the
    interval. Where none is wrong, three boxes still might be; probabilities that are all alike
    tell nothing.

    Args:
        wrong: Probability that each box is wrong, by a law that was fitted to all of them.
        clusters: The group of each box.

    References:
        Hanley and Lippman-Hand, If nothing goes wrong, is everything all right? (1983), for none.
        Louis, Finding the observed information matrix when using the EM algorithm (1982), for one
        parameter, the share; that of the law's other numbers is left out, and clusters are ours.

    Examples:
        >>> share_of_wrong(torch.tensor([0.0, 1.0]).repeat(50), torch.arange(100)).value
        0.5
    """
    share, count = float(wrong.double().mean()), len(torch.unique(clusters))
    least = min(3 / len(wrong), 1.0)
    if not 1e-6 < share < 1 - 1e-6:
        return Mean(share, *((0.0, least) if share < 0.5 else (1 - least, 1.0)), count)
    told = float((wrong.double() - share).square().mean()) / (share * (1 - share))
    if told < 1e-6:
        return Mean(share, 0.0, 1.0, count)
    values = share + (wrong.double() - share) / told
    mean = clustered_interval(values, clusters, positive=True)
    high = min(max(mean.high, least), 1.0) if math.isfinite(mean.high) else mean.high
    return mean._replace(low=max(mean.low, 0.0), high=high)


def edge_errors(annotated: Boxes, boxes: Boxes) -> Float[Tensor, "n 4"]:
    """Return how far each edge is off, as a share of the box's side: the annotated one less ours.

    Args:
        annotated: The boxes as they are.
        boxes: Where they should be.

    Examples:
        >>> edge_errors(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 0, 10, 10]]))
        tensor([[-0.1111,  0.0000,  0.0000,  0.0000]])
    """
    return (annotated - boxes) / box_sizes(boxes).repeat(1, 2)


def reasons_of(annotated: Boxes, boxes: Boxes) -> list[str]:
    """Say in words how boxes are off, the largest error of an edge first.

    Args:
        annotated: The boxes as they are.
        boxes: Where they should be.

    Examples:
        >>> reasons_of(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 0, 10, 9.9]]))
        ['left edge 1 px too far left']
    """
    reasons = []
    for row in (annotated - boxes).double().tolist():
        largest = max(map(abs, row))
        shown = sorted(range(4), key=lambda at: -abs(row[at])) if largest else []
        told = [
            f"{_EDGES[at][0]} edge {abs(row[at]):.3g} px {_EDGES[at][1 if row[at] < 0 else 2]}"
            for at in shown
            if abs(row[at]) >= _TOLD * largest
        ]
        reasons.append(", ".join(told))
    return reasons


def words_of(audit: Audit, what: str) -> list[str]:
    """Say what an audit has found.

    Args:
        audit: What is thought of the boxes.
        what: What the interval is over, such as pictures.

    Returns:
        A sentence on the share of wrong boxes, and one on how they are off.
    """
    count = len(audit.wrong)
    likely = int((audit.wrong >= LIKELY).sum())
    mean = audit.share
    told = f"{100 * mean.value:.1f} %"
    if not math.isnan(mean.low):
        told += f" (95 % interval over {mean.n} {what}: {100 * mean.low:.1f} to "
        told += f"{100 * mean.high:.1f} %)"
    told += f" of the {count} boxes are wrong, which means an IoU with the truth below "
    told += f"{audit.overlap:g}; {likely} are likelier wrong than right"
    return [told, audit.law.words()]
