"""Metrics of refined boxes: error, overlap, slope and R2.

A torchmetrics state collects the refined boxes row by row; everything else is computed from them by
pure functions, on the whole evaluation at once. Rows are summed over processes, each row being
written by one of them, so nothing is counted twice and nothing grows.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, distributed
from torchmetrics import Metric

from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, paired_iou
from lightning_bbox.nn.calibration import LEVELS, ErrorLaw, can_tell, coverage

HARM = 1e-3
"""Fall of the IoU from which on a box counts as made worse."""
COORDINATES = ("dx", "dy", "dw", "dh")
BESIDE_THE_MEAN = {
    "mae_px": "error of the centre, px",
    "mae_edge_px": "error of the edges, px",
    "error_fraction": "  as a fraction of the box",
    "error_picture": "  in picture pixels",
    "iou_after": "IoU after (before: {iou_before:.3f})",
    "harmed": "share of boxes made worse",
}
"""Figures that a test prints, beside those of predicting the mean, and how it calls them."""


class RefinedBoxes(Metric):
    """Collect refined boxes and what else a model says of a fixed set of rows.

    Args:
        num_rows: How many samples the evaluation has.
        num_targets: How many coordinates are predicted.
    """

    full_state_update = False
    table: Tensor

    def __init__(self, num_rows: int, num_targets: int) -> None:
        super().__init__(dist_sync_fn=_summed)
        self._widths = [4, 1, num_targets, num_targets, 2, 1]
        self.add_state("table", torch.zeros(num_rows, sum(self._widths)), dist_reduce_fx="sum")

    def update(
        self,
        rows: Int64[Tensor, " b"],
        valid: Bool[Tensor, " b"],
        boxes: Float[Tensor, "b 4"],
        losses: Float[Tensor, " b"],
        stds: Float[Tensor, "b t"],
        nll: Float[Tensor, "b t"],
        traits: Float[Tensor, "b 2"],
    ) -> None:
        """Write rows; those that aren't valid are left alone."""
        columns = boxes, losses[:, None], stds, nll, traits, torch.ones_like(losses[:, None])
        written = torch.cat([column.float() for column in columns], dim=1)
        self.table.index_add_(0, rows, torch.where(valid[:, None], written, 0.0))

    def compute(self) -> Float[Tensor, "n c"]:
        """Return the table of all processes, in columns that `refined` takes apart."""
        return self.table

    def refined(self) -> "Refined":
        """Return the table by its columns, on the CPU."""
        # Not from `compute`: torchmetrics squeezes what has one element, as columns of one row do.
        columns = torch.split(self.compute().cpu(), self._widths, dim=1)
        boxes, losses, stds, nll, traits, seen = columns
        return Refined(boxes, losses[:, 0], stds, nll, traits, seen[:, 0] > 0)


def _summed(table: Tensor, group: Any = None) -> list[Tensor]:  # noqa: ANN401 (torchmetrics')
    """Return the sum of all processes' tables; gathered, all of them would lie in each."""
    distributed.all_reduce(table, group=group)
    return [table]


class Refined(NamedTuple):
    """Refined boxes by row, their losses, and what the model deems its standard deviations.

    These are in px and log size, NaN where the head has none, and so is `nll`, the negative log
    density per px and log size of the truth. By `traits` boxes beyond the trained range are known
    (see `traits_of`); `seen` is false for rows left out.
    """

    boxes: Boxes
    losses: Float[Tensor, " n"]
    stds: Float[Tensor, "n t"]
    nll: Float[Tensor, "n t"]
    traits: Float[Tensor, "n 2"]
    seen: Bool[Tensor, " n"]


def error_px(boxes: Boxes, gt_boxes: Boxes, px: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Return the signed error of the centre along x and y, in px.

    Args:
        boxes: Refined boxes.
        gt_boxes: True boxes.
        px: Size of a px in picture pixels.
    """
    return (box_centers(boxes) - box_centers(gt_boxes)) / px


def coordinate_errors(
    boxes: Boxes, gt_boxes: Boxes, px: Float[Tensor, "n 2"], num_targets: int
) -> Float[Tensor, "n t"]:
    """Return the signed error of each predicted coordinate, in px and log size.

    Args:
        boxes: Refined boxes.
        gt_boxes: True boxes.
        px: Size of a px in picture pixels.
        num_targets: 4 adds the sizes' errors to the centre's.
    """
    return _offsets(boxes, gt_boxes, px)[:, :num_targets]


def calibration_metrics(
    errors: Float[Tensor, "n t"],
    stds: Float[Tensor, "n t"],
    nll: Float[Tensor, "n t"],
    law: ErrorLaw,
) -> dict[str, float]:
    """Measure how well a model knows its errors, of those that it tells; nothing if of none.

    Args:
        errors: Signed errors in px and log size.
        stds: What the model deems their standard deviations.
        nll: Negative log densities of the truth per px and log size.
        law: How errors are spread, given their standard deviation.

    Returns:
        `coverage_50`, `coverage_90` and `coverage_95`, the share of coordinates within the central
        interval; `std_px`, the mean standard deviation, and `nll`, in nats, both of x and y.
    """
    metrics = {}
    if can_tell(stds):
        for level in LEVELS:
            metrics[f"coverage_{100 * level:.0f}"] = coverage(errors, stds, law, level)
    for name, values in (("std_px", stds[:, :2]), ("nll", nll[:, :2])):
        if can_tell(values):
            metrics[name] = float(values.double().nanmean())
    return metrics


def box_metrics(
    boxes: Boxes, proposals: Boxes, gt_boxes: Boxes, px: Float[Tensor, "n 2"], num_targets: int
) -> dict[str, float]:
    """Measure refined boxes against true ones.

    Args:
        boxes: Refined boxes.
        proposals: The boxes they were refined from.
        gt_boxes: True boxes.
        px: Size of a px in picture pixels.
        num_targets: 4 adds the error of the edges.

    Returns:
        `mae_px`, `rmse_px` (means over samples, x and y), `p95_px` and `within_1px` (of the larger
        of |x| and |y|), `error_fraction` (x by the true width, y by its height), `error_picture`
        (picture pixels), `iou_before`, `iou_after`, `harmed` (share of boxes whose IoU falls by
        more than a thousandth), `mae_edge_px` with 4 targets, and for x and y the slope of the
        prediction on the truth and R2.
    """
    boxes, proposals, gt_boxes, px = (t.double() for t in (boxes, proposals, gt_boxes, px))
    error = error_px(boxes, gt_boxes, px)
    worst = error.abs().amax(dim=1)
    before, after = paired_iou(proposals, gt_boxes), paired_iou(boxes, gt_boxes)
    metrics = {
        "mae_px": error.abs().mean(),
        "rmse_px": error.square().mean().sqrt(),
        "p95_px": worst.quantile(0.95),
        "within_1px": (worst <= 1).double().mean(),
        "error_fraction": (error * px / box_sizes(gt_boxes)).abs().mean(),
        "error_picture": (error * px).abs().mean(),
        "iou_before": before.mean(),
        "iou_after": after.mean(),
        "harmed": (after < before - HARM).double().mean(),
    }
    if num_targets == 4:
        metrics["mae_edge_px"] = ((boxes - gt_boxes) / px.repeat(1, 2)).abs().mean()
    truth, predicted = (_offsets(b, proposals, px)[:, :num_targets] for b in (gt_boxes, boxes))
    for axis, name in enumerate(COORDINATES[:num_targets]):
        if bool(truth[:, axis].std(correction=0) > 1e-9):
            slope, r2 = _slope_and_r2(predicted[:, axis], truth[:, axis])
            metrics |= {f"slope_{name}": slope, f"r2_{name}": r2}
    return {name: float(value) for name, value in metrics.items()}


def _offsets(boxes: Boxes, proposals: Boxes, px: Tensor) -> Tensor:
    """Return shifts in px and changes of log size, (n, 4)."""
    sizes = torch.log(box_sizes(boxes) / box_sizes(proposals))
    return torch.cat([error_px(boxes, proposals, px), sizes], dim=1)


def _slope_and_r2(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    centred = truth - truth.mean()
    variance = centred.square().sum()
    slope = (centred * (predicted - predicted.mean())).sum() / variance
    return slope, 1 - (predicted - truth).square().sum() / variance
