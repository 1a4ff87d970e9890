"""Proposals matched to the true boxes that they mean, and what finds no partner."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.validity import LEFT_OUT
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.geometry.boxes import paired_iou


@dataclass(frozen=True)
class Matching:
    """How proposals find their true boxes: of their class, and by overlap.

    Args:
        min_iou: Least IoU of a proposal with its true box.
        several: Whether a true box may have several proposals: each then goes with the one it
            overlaps most. Otherwise each has one at most; the proposals of the highest scores
            choose first, those without scores by their overlap.

    Raises:
        BadInput: The least IoU isn't in (0, 1].
    """

    min_iou: float = 0.5
    several: bool = False

    def __post_init__(self) -> None:
        """Check the least IoU."""
        if not 0 < self.min_iou <= 1:
            msg = f"data.matching.min_iou is {self.min_iou}; choose one in (0, 1]"
            raise BadInput(msg)


class Pairs(NamedTuple):
    """Proposals with their true boxes, in the order of the latter.

    Attributes:
        truths: Index of the true box of each pair.
        proposals: Index of its proposal.
    """

    truths: Int64[Tensor, " n"]
    proposals: Int64[Tensor, " n"]


def match_proposals(truth: BoxTable, proposals: BoxTable, matching: Matching) -> Pairs:
    """Match proposals to true boxes of the same picture and class.

    Args:
        truth: The true boxes.
        proposals: The proposals; their pictures and classes are found by name.
        matching: By what.

    References:
        Girshick et al., Rich feature hierarchies (2014), appendix C: pairs of a proposal and the
        true box it overlaps most. One for each by score is how detections are judged (Everingham et
        al., The PASCAL VOC challenge, 2010, section 4.2).
    """
    mine, theirs = _places(truth), _places(proposals)
    scores = proposals.scores
    ranks = np.full(len(proposals.boxes), 0.0) if scores is None else -scores.numpy()
    ranks = np.nan_to_num(ranks, nan=math.inf)
    pairs = []
    for place in mine.keys() & theirs.keys():
        truths, others = mine[place], theirs[place]
        overlaps = paired_iou(truth.boxes[truths, None], proposals.boxes[others]).numpy()
        order = np.lexsort((-overlaps.max(axis=0), ranks[others]))
        pairs += [(truths[t], others[p]) for t, p in _greedy(overlaps, order, matching)]
    found = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return Pairs(*found.unbind(dim=1))


def unmatched(truth: BoxTable, proposals: BoxTable, pairs: Pairs) -> list[tuple[str, str]]:
    """Say which true boxes and proposals have no partner, each with the path of its picture.

    Args:
        truth: The true boxes.
        proposals: The proposals.
        pairs: What `match_proposals` found of them.
    """
    told = []
    kinds = (
        (truth, pairs.truths, "the true box has no proposal"),
        (proposals, pairs.proposals, "the proposal has no true box"),
    )
    for table, matched, what in kinds:
        lone = torch.ones(len(table.boxes), dtype=torch.bool)
        lone[matched] = False
        for at in lone.nonzero().flatten().tolist():
            image = table.images[table.image_index[at]]
            told.append((image, f"{table.ids[at]}: {what} in {image}{LEFT_OUT}"))
    return told


def sentence_of(truth: BoxTable, proposals: BoxTable, pairs: Pairs, matching: Matching) -> str:
    """Say how many found each other.

    Args:
        truth: The true boxes.
        proposals: The proposals.
        pairs: What `match_proposals` found of them.
        matching: By what.

    Raises:
        BadInput: None did.
    """
    by = f"by class and an IoU of {matching.min_iou:g} or more"
    if not len(pairs.truths):
        problem = f"none of {len(proposals.boxes)} proposals is matched to a true box {by}"
        remedy = "lower data.matching.min_iou, or see whether pictures and classes have one name"
        raise BadInput.at(listed(proposals.files), problem, remedy)
    lone = len(truth.boxes) - len(set(pairs.truths.tolist()))
    rest = len(proposals.boxes) - len(pairs.proposals)
    return (
        f"proposals: {proposals.note}; {len(pairs.proposals)} are matched to true boxes {by}, "
        f"{rest} aren't; {lone} of {len(truth.boxes)} true boxes have none; "
        f"{len(proposals.skipped)} are invalid; all these are left out"
    )


def _places(table: BoxTable) -> dict[tuple[str, str], list[int]]:
    """Return the boxes of each picture and class."""
    places = dict[tuple[str, str], list[int]]()
    columns = zip(table.image_index.tolist(), table.labels.tolist(), strict=True)
    for at, (image, label) in enumerate(columns):
        places.setdefault((table.images[image], table.classes[label]), []).append(at)
    return places


def _greedy(
    overlaps: np.ndarray, order: np.ndarray, matching: Matching
) -> Iterator[tuple[int, int]]:
    """Yield each proposal that finds a true box, with it: the first ones choose first."""
    free = overlaps.copy()
    for proposal in order.tolist():
        truth = int(free[:, proposal].argmax())
        if free[truth, proposal] >= matching.min_iou:
            yield truth, proposal
            if not matching.several:
                free[truth] = 0.0
