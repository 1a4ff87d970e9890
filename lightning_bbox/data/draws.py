"""What an epoch draws: which item, its proposal, flips, photometry and noise, keyed by the sample.

Nothing here knows a trainer: samples are a function of items, laws and the epoch's plan.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.randomness import EpochPlan
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.data.samples import Items, Samples
from lightning_bbox.geometry.boxes import (
    Boxes,
    box_centers,
    box_sizes,
    boxes_around,
    mirror_boxes,
)
from lightning_bbox.geometry.codecs import OffsetSpec, White, encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.jitter import Jitter
from lightning_bbox.geometry.law_fitting import law_of_pairs
from lightning_bbox.pictures.augment import Augment, NoiseBank

WIDTHS = (0.0, 0.1, 0.4, 1.0, 2.0)
"""Shares of the jitter's way that boxes are off by, where they are drawn at several widths."""


ClassWeights = dict[str, float] | Literal["balanced"]
"""How much boxes of each class count: all classes alike, or as is said of some, and others 1."""


def refuse_weights(asked: ClassWeights | None, option: str) -> None:
    """Refuse weights of classes that can't be.

    Args:
        asked: What is asked for.
        option: What asks for it, for errors.

    Raises:
        BadInput: It is neither `balanced` nor a positive weight for each class that is named.
    """
    if asked is None or asked == "balanced":
        return
    if not isinstance(asked, dict):
        msg = f"{option} is {asked!r}; give balanced, or weights by class, such as {{WBC: 4}}"
        raise BadInput(msg)
    for name, weight in asked.items():
        if not 0 < weight < math.inf:
            msg = f"{option} of {name} is {weight:g}; give more than 0, or leave it out of the data"
            raise BadInput(msg)


def class_weights(
    asked: ClassWeights, items: Items, classes: Sequence[str], option: str
) -> Float64[Tensor, " c"]:
    """Return how much a box of each class counts.

    Args:
        asked: What is asked for.
        items: The training boxes.
        classes: Names of their labels.
        option: What asks for it, for errors.

    Raises:
        BadInput: The boxes are of one class, or there is no such class.

    Examples:
        >>> boxes, labels = torch.zeros(4, 4), torch.tensor([0, 0, 0, 1])
        >>> items = Items(labels, boxes, labels, labels)
        >>> class_weights("balanced", items, ["a", "b"], "data.class_sampling")
        tensor([0.3333, 1.0000], dtype=torch.float64)
    """
    counts = items.labels.bincount(minlength=len(classes)).double()
    there = [f"{name} ({n:.0f})" for name, n in zip(classes, counts.tolist(), strict=True) if n]
    if len(there) < 2:
        msg = f"{option} is {asked!r}, but all boxes are {listed(there)}; leave it out"
        raise BadInput(msg)
    if asked == "balanced":
        return torch.where(counts > 0, 1 / counts.clamp(min=1), 0)
    assert isinstance(asked, dict)
    weights = torch.ones(len(classes), dtype=torch.float64)
    for name, weight in asked.items():
        if name not in classes or not counts[classes.index(name)]:
            msg = f"{option}: no training box is of class {name!r}; choose from {listed(there)}"
            raise BadInput(msg)
        weights[classes.index(name)] = weight
    return weights


def widths_of(num_draws: int, jitter: Jitter) -> Float[Tensor, " n"]:
    """Return each draw's width, in turn, where they are drawn at several.

    Args:
        num_draws: How many draws there are.
        jitter: The law; one that draws whole px goes all of its way or none, as patches end there.

    Examples:
        >>> from lightning_bbox import UniformJitter
        >>> widths_of(6, UniformJitter())
        tensor([0.0000, 0.1000, 0.4000, 1.0000, 2.0000, 0.0000])
    """
    widths = torch.tensor(WIDTHS)[torch.arange(num_draws) % len(WIDTHS)]
    return widths.round().clamp(max=1) if getattr(jitter, "integer", False) else widths


def draw_samples(
    items: Items,
    order: Int64[Tensor, " n"],
    plan: EpochPlan,
    *,
    geometry: CropGeometry,
    jitter: Jitter,
    resize: bool,
    augment: Augment | None,
    noise: NoiseBank,
    widths: Float[Tensor, " n"] | None = None,
) -> tuple[Samples, int]:
    """Draw the samples of an epoch.

    Args:
        items: What to draw from.
        order: The item of each draw.
        plan: The random numbers.
        geometry: How proposals become crops.
        jitter: Law of the proposals, for items that have none of their own.
        resize: Whether the law changes the size of a box too.
        augment: What happens to training crops; None for evaluations.
        noise: Where the samples' noise begins.
        widths: How much of the law's way each proposal goes; all of it by default.

    Returns:
        The samples, and how many proposals the law failed to draw.
    """
    gt_boxes, failed = items.boxes[order], 0
    if items.proposals is None:
        uniforms = plan.uniform("jitter", jitter.columns * jitter.tries)
        jittered = jitter.propose(gt_boxes, uniforms, geometry, resize=resize)
        proposals, failed = jittered.proposals, int(jittered.failed.sum())
        if widths is not None:
            proposals = _part_of_the_way(gt_boxes, proposals, widths[:, None])
    else:
        proposals = items.proposals[order]
    flips = augment.flips(plan) if augment else gt_boxes.new_zeros(len(order), 2)
    factors = augment.factors(plan) if augment else None
    samples = Samples(
        items=order,
        labels=items.labels[order],
        image_index=items.image_index[order],
        gt_boxes=mirror_boxes(gt_boxes, box_centers(proposals), flips),
        proposals=proposals,
        flips=flips,
        factors=gt_boxes.new_zeros(len(order), 0) if factors is None else factors,
        noise=noise.offsets(plan),
        crop_boxes=proposals,
    )
    return samples.cut_at(geometry, proposals, flips), failed


def _part_of_the_way(boxes: Boxes, proposals: Boxes, share: Float[Tensor, "n 1"]) -> Boxes:
    """Return what lies between boxes and their proposals, or beyond these, with some size left."""
    ratio = box_sizes(proposals) / box_sizes(boxes)
    farther = boxes_around(
        torch.lerp(box_centers(boxes), box_centers(proposals), share),
        box_sizes(boxes) * ratio**share,
    )
    return torch.where(share > 1, farther, torch.lerp(boxes, proposals, share))


def offset_spec(
    train: Items,
    *,
    geometry: CropGeometry,
    jitter: Jitter,
    num_targets: int,
    classes: tuple[str, ...],
    white_level: White | None,
    part: TiffPart,
) -> OffsetSpec:
    """Return what a model must know of the data, from the training items alone."""
    max_shift, max_log_size = jitter.bounds(geometry)
    if train.proposals is not None:
        deltas = encode_deltas(train.boxes, geometry.anchors(train.proposals)).abs()
        max_shift = float(deltas[:, :2].max()) * geometry.px_per_delta
        max_log_size = float(deltas[:, 2:].max())
    elif geometry.square:
        width, height = box_sizes(train.boxes).unbind(dim=1)
        max_log_size += float((width / height).log().abs().max())
    return OffsetSpec(geometry, num_targets, max_shift, max_log_size, classes, white_level, part)


def how_off(train: Items) -> tuple[DisplacementLaw | None, list[str]]:
    """Fit the law by which given proposals are off, and say it.

    Args:
        train: The training items; of those without proposals there is nothing to say.
    """
    if train.proposals is None:
        return None, []
    try:
        law = law_of_pairs(train.boxes, train.proposals, len(set(train.image_index.tolist())))
    except BadInput as problem:
        return None, [f"how the proposals are off: {problem}"]
    return law, [f"how the training proposals are off: {law.words()}"]
