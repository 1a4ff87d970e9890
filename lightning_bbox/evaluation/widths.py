"""What a model makes of boxes that are off by little and by much, those that are right among them.

On validation it tells how far what the model says can be relied on, on the test whom it harms.
"""

from bisect import bisect_left
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.data.samples import Samples
from lightning_bbox.evaluation.metrics import HARM, Refined, coordinate_errors
from lightning_bbox.geometry.boxes import Boxes, paired_iou
from lightning_bbox.geometry.codecs import encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.law_fitting import usual_law
from lightning_bbox.geometry.reliability import Reliability, common_errors, fit_reliability
from lightning_bbox.geometry.trained_range import TrainedRange, fit_range
from lightning_bbox.geometry.weighing import Said, move_under, said_of
from lightning_bbox.nn.calibration import can_tell

_WORDS = {
    0.0: "right",
    0.1: "a little off",
    0.4: "off by less than in training",
    2.0: "up to twice as far off as in training",
}
_RIGHT = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # shares of right boxes that a model's own law may take
_HARMLESS = 0.003  # of IoU, on average


class AtWidths(NamedTuple):
    """Boxes drawn at several widths of the jitter law, and what a model made of them.

    Attributes:
        samples: The boxes.
        refined: What the model made of them, with calibrated standard deviations.
        widths: How much of the law's way each one went.
    """

    samples: Samples
    refined: Refined
    widths: Float[Tensor, " n"]

    def said(
        self, geometry: CropGeometry, reliability: Reliability | None = None
    ) -> tuple[Said, Float[Tensor, "n t"]]:
        """Return what the model says of the boxes, and how they are off.

        Args:
            geometry: What a px is.
            reliability: How the model errs, where that is known.
        """
        samples, refined, _ = self
        said = said_of(refined.boxes, refined.stds, samples.proposals, geometry, reliability)
        truth = encode_deltas(samples.gt_boxes, samples.proposals)
        return said, truth[:, : said.offsets.shape[1]]

    def within(self) -> "AtWidths":
        """Return those that are off by no more than in training."""
        rows = self.widths <= 1
        refined = Refined(*(column[rows] for column in self.refined))
        return AtWidths(self.samples.take(rows), refined, self.widths[rows])


class HarmRow(NamedTuple):
    """What becomes of boxes that are about equally far off.

    Attributes:
        name: How far off they are, in words.
        draws: How many there are.
        iou_before: Mean IoU with the truth, as they are.
        iou_after: Where the model puts them.
        harmed: Share that is made worse by that, as `box_metrics` counts.
        iou_law: Where they go under the model's own law; None where it has none.
        harmed_law: Share that is made worse by that.
    """

    name: str
    draws: int
    iou_before: float
    iou_after: float
    harmed: float
    iou_law: float | None = None
    harmed_law: float | None = None


def measure_reliability(
    drawn: AtWidths, usual: AtWidths, geometry: CropGeometry
) -> tuple[Reliability | None, DisplacementLaw | None]:
    """Measure how what a model says errs, and the law it has for boxes too few to tell theirs.

    That law takes as few of them to be right as harms none: boxes of no width may lose more than
    0.003 of IoU by it on average.

    Args:
        drawn: Boxes of the validation, off by little and by much.
        usual: Others that are off as in training.
        geometry: What a px is.

    Returns:
        Both, or neither where the boxes are too few or the model tells no standard deviations.
    """
    within = drawn.within()
    said, truth = within.said(geometry)
    reliability = fit_reliability(said.offsets, said.stds, truth)
    if reliability is None:
        return None, None
    others, truths = usual.said(geometry, reliability)
    common = common_errors(others.offsets, others.stds, truths)
    reliability = replace(reliability, common=common)
    laws = [usual_law(truth, within.widths, right) for right in _RIGHT]
    # The more of them are right, the less is lost; where even the last one harms, it is taken.
    fewest = bisect_left(
        laws[:-1],
        True,
        key=lambda law: _most_lost(within, geometry, reliability, law) <= _HARMLESS,
    )
    return reliability, laws[fewest]


def _most_lost(
    drawn: AtWidths, geometry: CropGeometry, reliability: Reliability, law: DisplacementLaw
) -> float:
    """Return how much IoU the boxes of the width that suffers most lose by a law on average."""
    rows = harm_rows(drawn, geometry, reliability, law)
    return max(row.iou_before - row.iou_law for row in rows if row.iou_law is not None)


def measure_range(
    drawn: AtWidths, usual: AtWidths, geometry: CropGeometry, bounds: tuple[float, ...]
) -> TrainedRange | None:
    """Find how boxes farther off than those of the training are told from these.

    Args:
        drawn: Boxes of the validation, some of them farther off.
        usual: Others that are off as in training.
        geometry: What a px is.
        bounds: How far off they were in training at most, in px and log sizes.

    Returns:
        What was found; None where boxes are too few or the model tells no standard deviations.
    """
    (near, found, widths), (_, others, _) = drawn, usual
    px, num_targets = geometry.px(near.proposals), found.stds.shape[1]
    truth = coordinate_errors(near.gt_boxes, near.proposals, px, num_targets)
    inside = (truth.abs() <= truth.new_tensor(bounds)).all(dim=1)
    traits = torch.cat([found.traits, others.traits])
    as_usual = torch.ones(len(others.traits), dtype=torch.bool)
    return fit_range(
        traits, torch.cat([inside, as_usual]), torch.cat([inside & (widths == 1), as_usual])
    )


def harm_rows(
    drawn: AtWidths,
    geometry: CropGeometry,
    reliability: Reliability | None = None,
    law: DisplacementLaw | None = None,
) -> list[HarmRow]:
    """See whom a model harms, by how far off boxes are.

    Args:
        drawn: Boxes of the test.
        geometry: What a px is.
        reliability: How what the model says errs.
        law: The model's own.
    """
    samples, refined, widths = drawn
    moved: Boxes | None = None
    if law is not None and can_tell(refined.stds):
        told = refined.boxes, refined.stds, samples.proposals, geometry
        moved = move_under(law, *told, reliability).boxes
    places = [samples.proposals, refined.boxes, *([] if moved is None else [moved])]
    before, *after = [paired_iou(boxes, samples.gt_boxes).double() for boxes in places]
    rows = []
    for width in sorted(set(widths.tolist())):
        own = widths == width
        found = [
            float(number)
            for iou in after
            for number in (iou[own].mean(), (iou < before - HARM)[own].double().mean())
        ]
        name = _WORDS.get(round(width, 3), "off as in training")
        rows.append(HarmRow(name, int(own.sum()), float(before[own].mean()), *found))
    return rows
