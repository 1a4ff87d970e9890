"""The graph: from a picture and rough boxes to refined ones, all that a `Refiner` does."""

from functools import partial

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor, nn

from lightning_bbox.annotations.validity import flaws_of
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.displacement import DisplacementLaw, law_draws, move_by
from lightning_bbox.geometry.weighing import placed, refuse_other_coordinates, said_of
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.refinement.exporting.cutting import cut_in_graph
from lightning_bbox.refinement.outcomes import Reason, clip

LAW_ROWS = 4
"""Rows of a law's table that a graph has room for at least: `fit_law` finds up to three."""


class RefinementGraph(nn.Module):
    """Do what a `Refiner` does to the boxes of one picture, in tensors alone.

    Args:
        model: A trained model, in evaluation mode.
        law: How the boxes are off, where nothing else is said; None takes them to be off as those
            of the training were.
        max_shift: Largest shift of an edge to believe, in px.

    Raises:
        BadInput: The model draws at random, or the law is of other coordinates.
    """

    draws: Tensor
    law: Tensor

    def __init__(
        self, model: OffsetModel, law: DisplacementLaw | None, max_shift: float | None = None
    ) -> None:
        super().__init__()
        if model.passes:
            msg = (
                f"the model averages {model.passes} passes that draw at random, which a graph "
                f"can't; train it with model.passes: 0, or refine by a Refiner"
            )
            raise BadInput(msg)
        assert model.spec is not None
        self.model, self.spec, self.max_shift = model, model.spec, max_shift
        self.has_law = law is not None
        if law is not None:
            refuse_other_coordinates(law, model.spec.num_targets)
            table = law.table()
            spare = max(0, LAW_ROWS - len(table))
            table = torch.cat([table, table.new_zeros(spare, table.shape[1])])
            self.register_buffer("law", table, persistent=False)
            draws = law_draws(model.spec.num_targets)
            self.register_buffer("draws", draws, persistent=False)

    def forward(
        self,
        picture: UInt8[Tensor, "h w 3"],
        boxes: Float[Tensor, "n 4"],
        classes: Int64[Tensor, " n"] | None = None,
        law: Float64[Tensor, "k m"] | None = None,
    ) -> tuple[Boxes, Float[Tensor, "n t"], Float[Tensor, " n"], Int64[Tensor, " n"]]:
        """Return the boxes, how far off each is deemed, its expected gain of IoU, and its `Reason`.

        Args:
            picture: RGB.
            boxes: Rough boxes, `xyxy` in picture pixels.
            classes: Their classes' numbers, for a model that has a regressor for each.
            law: How they are off (see `DisplacementLaw.table`); that of the graph where it is NaN.
        """
        height, width = picture.shape[0], picture.shape[1]
        limits = torch.cat([boxes.new_full((1, 1), side) for side in (width, height)], dim=1)
        # One box more, so that there is always one.
        rough = torch.cat([boxes, boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]])])
        reasons = _reasons(rough, limits)
        numbers = None
        if classes is not None:
            numbers = torch.cat([classes, classes.new_zeros(1)])
            known = (numbers >= 0) & (numbers < len(self.spec.classes))
            unknown = ~known & (reasons == Reason.MOVED)
            reasons = reasons.masked_fill(unknown, Reason.UNKNOWN_CLASS)
            numbers = torch.where(known, numbers, 0)
        usable = reasons == Reason.MOVED
        safe = torch.where(usable[:, None], rough, rough[-1:])
        refined, stds, gain = self._refined(picture, safe, limits, numbers, law)
        clipped, ends, _ = clip(refined, safe, limits, self.spec.geometry.px(safe), self.max_shift)
        found = torch.where(usable[:, None], clipped, rough)
        stds = torch.where(usable[:, None], stds, torch.nan)
        gain = torch.where(usable, gain, torch.nan)
        return found[:-1], stds[:-1], gain[:-1], torch.where(usable, ends, reasons)[:-1]

    def _refined(
        self,
        picture: Tensor,
        rough: Boxes,
        limits: Tensor,
        numbers: Tensor | None,
        law: Tensor | None,
    ) -> tuple[Boxes, Tensor, Tensor]:
        cut = partial(cut_in_graph, picture)
        crops = cut(self.spec.geometry, rough)
        boxes, stds, beyond = self.model.refine_and_mark(crops, rough, numbers, cut)
        beyond = beyond[:, None]
        geometry, reliability = self.spec.geometry, self.model.reliability
        if not self.has_law:
            gain = torch.full_like(boxes[:, 0], torch.nan)
            return boxes, stds.masked_fill(beyond, torch.nan), gain
        table = self.law if law is None else torch.where(law.isnan(), self.law, law)
        said = said_of(boxes, stds, rough, geometry, reliability)
        moved = move_by(table, *said, self.draws)
        to_stay = type(moved)(*(column.to(boxes.dtype) for column in moved))
        weighed = placed(to_stay, said, rough, geometry, reliability, limits)
        return weighed.boxes, weighed.stds.masked_fill(beyond, torch.nan), weighed.gain


def _reasons(boxes: Boxes, limits: Float[Tensor, "1 2"]) -> Int64[Tensor, " n"]:
    """Return why boxes can't be refined."""
    finite, flat, outside = flaws_of(boxes, limits)
    reasons = torch.where(outside, Reason.OUTSIDE, Reason.MOVED)
    reasons = reasons.masked_fill(flat.any(dim=1), Reason.FLAT)
    return reasons.masked_fill(~finite, Reason.NOT_FINITE)
