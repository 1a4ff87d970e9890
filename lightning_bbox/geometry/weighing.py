"""A displacement law at work: what a model says of boxes, weighed against how they are off."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.geometry.boxes import Boxes, box_sizes
from lightning_bbox.geometry.codecs import decode_deltas, encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw, Moved
from lightning_bbox.geometry.law_fitting import FEWEST_BOXES, fit_law, with_shares_of
from lightning_bbox.geometry.reliability import NORMAL, Reliability, Tails

MOST_LEARNED_FROM = 50_000
"""Boxes that a law is learned from: of more it is a sample, always the same."""

_AT_BORDER = 0.5  # pixels of the picture
_SURE = 3.0  # standard deviations

Limits = Float[Tensor, "#n 2"]
"""Width and height of each box's picture."""


class Weighed(NamedTuple):
    """Where boxes go once a law of how they are off was weighed against the pictures.

    Attributes:
        boxes: The boxes, `xyxy` in picture pixels; one that is right is the given one to the bit.
        stds: How far off they are deemed, x and y in px (and log sizes).
        gain: Rise of the expected IoU with the truth; where sides stay at a border, that of the
            whole move.
        wrong: Probability that the given box wasn't right.
    """

    boxes: Boxes
    stds: Float[Tensor, "n t"]
    gain: Float[Tensor, " n"]
    wrong: Float[Tensor, " n"]


class Said(NamedTuple):
    """What a model says of rough boxes, as displacement laws take it.

    Attributes:
        offsets: How each is off, in shares of its sides and log sizes.
        stds: How far off that usually is, in the same units.
        tails: How errors are spread about these.
    """

    offsets: Float[Tensor, "n t"]
    stds: Float[Tensor, "n t"]
    tails: Tails

    def take(self, rows: Tensor) -> "Said":
        """Return what is said of some of the boxes.

        Args:
            rows: Their places, or which they are.
        """
        return Said(self.offsets[rows], self.stds[rows], self.tails)


def said_of(
    boxes: Boxes,
    stds: Float[Tensor, "n t"],
    rough: Boxes,
    geometry: CropGeometry,
    reliability: Reliability | None = None,
) -> Said:
    """Return what a model says of rough boxes, as displacement laws take it.

    Args:
        boxes: Where the model would move them, `xyxy` in picture pixels.
        stds: How far off it deems these, x and y in px (and log sizes).
        rough: The boxes it started from.
        geometry: What a px is.
        reliability: How it errs, which is taken off; where nothing is known of that, what it says
            is taken as it is.
    """
    said = encode_deltas(boxes, rough)[:, : stds.shape[1]]
    spread = stds * _shares(stds, rough, geometry)
    if reliability is None:
        return Said(said, spread, NORMAL)
    return Said(*reliability.corrected(said, spread), reliability.tails)


def at_border(boxes: Boxes, limits: Limits) -> Bool[Tensor, "n 4"]:
    """Tell which sides of boxes lie at their picture's border.

    Such a side was cut there: it isn't off as others are.

    Args:
        boxes: The boxes, `xyxy` in picture pixels.
        limits: Width and height of each one's picture.

    Examples:
        >>> at_border(torch.tensor([[0.0, 3.0, 8.0, 9.0]]), torch.tensor([[8.0, 10.0]]))
        tensor([[ True, False,  True, False]])
    """
    near = boxes[:, :2].abs() <= _AT_BORDER
    return torch.cat([near, (boxes[:, 2:] - limits).abs() <= _AT_BORDER], dim=1)


def a_sample(count: int) -> Int64[Tensor, " k"]:
    """Return the places of those of so many boxes that a law is learned from, in order.

    Examples:
        >>> len(a_sample(60_000)), len(a_sample(10))
        (50000, 10)
    """
    order = torch.randperm(count, generator=keyed_generator("learned from"))
    return order[:MOST_LEARNED_FROM].sort().values


def learn_law(
    said: Said, rough: Boxes, limits: Limits, clusters: Int64[Tensor, " n"]
) -> DisplacementLaw:
    """Learn how boxes are off, of those that no border cuts where these are enough.

    How large a part of the boxes is right, and off in either way, is learned of all.

    Args:
        said: What a model says of each.
        rough: The boxes.
        limits: Width and height of each one's picture.
        clusters: Its picture or group.

    Raises:
        BadInput: There are too few, or the model tells no standard deviations.
    """
    if len(rough) > MOST_LEARNED_FROM:
        some = a_sample(len(rough))
        return learn_law(said.take(some), rough[some], limits[some], clusters[some])
    whole = ~at_border(rough, limits).any(dim=1)
    if int(whole.sum()) < FEWEST_BOXES:
        whole = torch.ones_like(whole)
    part, pictures = said.take(whole), len(torch.unique(clusters[whole]))
    law = fit_law(part.offsets, part.stds, pictures, part.tails)
    return law if bool(whole.all()) else with_shares_of(law, *said)


def move_under(
    law: DisplacementLaw,
    boxes: Boxes,
    stds: Float[Tensor, "n t"],
    rough: Boxes,
    geometry: CropGeometry,
    reliability: Reliability | None = None,
    limits: Limits | None = None,
) -> Weighed:
    """Move rough boxes by what the pictures say and by what is known of how they are off.

    Args:
        law: How they are off.
        boxes: Where the model would move them, `xyxy` in picture pixels.
        stds: How far off it deems these, x and y in px (and log sizes).
        rough: The boxes it started from.
        geometry: What a px is.
        reliability: How the model errs, where that is known.
        limits: Width and height of each one's picture, where boxes are cut at its border.

    Raises:
        BadInput: The law is of other coordinates than the model's, or the model tells no standard
            deviations.
    """
    refuse_other_coordinates(law, stds.shape[1])
    refuse_untold(stds)
    said = said_of(boxes, stds, rough, geometry, reliability)
    return placed(law.move(*said), said, rough, geometry, reliability, limits)


def placed(
    moved: Moved,
    said: Said,
    rough: Boxes,
    geometry: CropGeometry,
    reliability: Reliability | None = None,
    limits: Limits | None = None,
) -> Weighed:
    """Put rough boxes where they go under a law.

    Args:
        moved: How far they go, in shares of their sides and log sizes.
        said: What the model says of them.
        rough: The boxes, `xyxy` in picture pixels.
        geometry: What a px is.
        reliability: How the model errs, where that is known.
        limits: Width and height of each one's picture, where boxes are cut at its border.
    """
    stds = moved.stds if reliability is None else reliability.under_a_law(moved.stds, said.stds)
    px = stds / _shares(stds, rough, geometry)
    return Weighed(places_of(moved, said, rough, limits), px, moved.gain, moved.wrong)


def places_of(moved: Moved, said: Said, rough: Boxes, limits: Limits | None = None) -> Boxes:
    """Return where rough boxes go under a law, but for sides that their picture's border cut.

    Such a side stays, as the law says nothing of it, unless the picture alone says that it lies
    more than three standard deviations away. A model of two targets moves boxes whole.

    Args:
        moved: How far they go, in shares of their sides and log sizes.
        said: What the model says of them.
        rough: The boxes, `xyxy` in picture pixels.
        limits: Width and height of each one's picture, where boxes are cut at its border.
    """
    stays = (moved.offsets == 0).all(dim=1, keepdim=True)
    if limits is not None and moved.offsets.shape[1] == 4:
        sides = (decode_deltas(said.offsets, rough) - rough).abs() / box_sizes(rough).repeat(1, 2)
        # Centre and log size say where a side is: of its share, half the log size.
        spread = (said.stds[:, :2].square() + said.stds[:, 2:].square() / 4).sqrt().repeat(1, 2)
        stays = stays | (at_border(rough, limits) & (sides <= _SURE * spread))
    return torch.where(stays, rough, decode_deltas(moved.offsets, rough))


def refuse_other_coordinates(law: DisplacementLaw, num_targets: int) -> None:
    """Refuse a law that says nothing of what a model predicts, or more.

    Raises:
        BadInput: The numbers of coordinates differ.
    """
    if law.num_targets != num_targets:
        msg = f"the law has {law.num_targets} coordinates, the model {num_targets}; give its own"
        raise BadInput(msg)


def refuse_untold(stds: Float[Tensor, "n t"]) -> None:
    """Refuse to weigh what is told without standard deviations.

    Raises:
        BadInput: There are none.
    """
    if bool(stds.isnan().any()):
        msg = "the model tells no standard deviations to weigh a law against; do without the law"
        raise BadInput(msg)


def _shares(
    stds: Float[Tensor, "n t"], rough: Boxes, geometry: CropGeometry
) -> Float[Tensor, "n t"]:
    """Return what a px is as a share of each box's sides, and 1 for log sizes."""
    shares = torch.ones_like(stds)
    shares[:, :2] = geometry.px(rough) / box_sizes(rough)
    return shares
