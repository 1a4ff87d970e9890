"""A displacement law at work: what a model says of boxes, weighed against how they are off."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes, box_sizes
from lightning_bbox.geometry.codecs import decode_deltas, encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw, Moved
from lightning_bbox.geometry.reliability import NORMAL, Reliability, Tails


class Weighed(NamedTuple):
    """Where boxes go once a law of how they are off was weighed against the pictures.

    Attributes:
        boxes: The boxes, `xyxy` in picture pixels; one that is right is the given one to the bit.
        stds: How far off they are deemed, x and y in px (and log sizes).
        gain: Rise of the expected IoU with the truth.
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


def move_under(
    law: DisplacementLaw,
    boxes: Boxes,
    stds: Float[Tensor, "n t"],
    rough: Boxes,
    geometry: CropGeometry,
    reliability: Reliability | None = None,
) -> Weighed:
    """Move rough boxes by what the pictures say and by what is known of how they are off.

    Args:
        law: How they are off.
        boxes: Where the model would move them, `xyxy` in picture pixels.
        stds: How far off it deems these, x and y in px (and log sizes).
        rough: The boxes it started from.
        geometry: What a px is.
        reliability: How the model errs, where that is known.

    Raises:
        BadInput: The law is of other coordinates than the model's, or the model tells no standard
            deviations.
    """
    refuse_other_coordinates(law, stds.shape[1])
    if bool(stds.isnan().any()):
        msg = "the model tells no standard deviations to weigh a law against; do without the law"
        raise BadInput(msg)
    moved = law.move(*said_of(boxes, stds, rough, geometry, reliability))
    return placed(moved, rough, geometry)


def placed(moved: Moved, rough: Boxes, geometry: CropGeometry) -> Weighed:
    """Put rough boxes where they go under a law.

    Args:
        moved: How far they go, in shares of their sides and log sizes.
        rough: The boxes, `xyxy` in picture pixels.
        geometry: What a px is.
    """
    stays = (moved.offsets == 0).all(dim=1, keepdim=True)
    places = torch.where(stays, rough, decode_deltas(moved.offsets, rough))
    px = moved.stds / _shares(moved.stds, rough, geometry)
    return Weighed(places, px, moved.gain, moved.wrong)


def refuse_other_coordinates(law: DisplacementLaw, num_targets: int) -> None:
    """Refuse a law that says nothing of what a model predicts, or more.

    Raises:
        BadInput: The numbers of coordinates differ.
    """
    if law.num_targets != num_targets:
        msg = f"the law has {law.num_targets} coordinates, the model {num_targets}; give its own"
        raise BadInput(msg)


def _shares(
    stds: Float[Tensor, "n t"], rough: Boxes, geometry: CropGeometry
) -> Float[Tensor, "n t"]:
    """Return what a px is as a share of each box's sides, and 1 for log sizes."""
    shares = torch.ones_like(stds)
    shares[:, :2] = geometry.px(rough) / box_sizes(rough)
    return shares
