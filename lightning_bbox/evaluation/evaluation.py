"""One evaluation: the metrics of a split, beside predicting the mean, and of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_bbox.data.loader import Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples
from lightning_bbox.evaluation.intervals import clustered_interval
from lightning_bbox.evaluation.metrics import (
    BESIDE_THE_MEAN,
    Refined,
    box_metrics,
    calibration_metrics,
    coordinate_errors,
    error_px,
)
from lightning_bbox.evaluation.widths import HarmRow
from lightning_bbox.geometry.boxes import Boxes, box_area
from lightning_bbox.nn.calibration import ErrorLaw


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation found.

    Attributes:
        samples: The fixed draws, those that were seen.
        refined: The boxes the model made of them.
        metrics: Numbers by name.
        rows: The same error for parts of the set: (kind, name, samples, mae_px).
        harm: What becomes of boxes by how far off they are; of the test only.
    """

    samples: Samples
    refined: Refined
    metrics: dict[str, float]
    rows: list[tuple[str, str, int, float]]
    harm: Sequence[HarmRow] = ()


def evaluate(
    data: CropDataModule,
    split: Split,
    samples: Samples,
    refined: Refined,
    predicted_mean: Boxes,
    law: ErrorLaw = "gaussian",
) -> Evaluation:
    """Measure refined boxes, and what predicting the training mean would have given.

    The test also gets an interval over pictures or groups, where there are enough of them, and the
    error by class and by size.

    Args:
        data: Where the samples come from.
        split: Which split they are of.
        samples: The samples, in the order of `refined`.
        refined: What the model made of them.
        predicted_mean: What predicting the training mean makes of them.
        law: How errors are spread, given the standard deviations of `refined`.
    """
    px = data.geometry.px(samples.proposals)
    truth, proposals, count = samples.gt_boxes, samples.proposals, data.num_targets
    metrics = {"loss": float(refined.losses.mean())}
    metrics |= box_metrics(refined.boxes, proposals, truth, px, count)
    baseline = box_metrics(predicted_mean, proposals, truth, px, count)
    metrics |= {
        f"{name}_predict_mean": baseline[name] for name in BESIDE_THE_MEAN if name in baseline
    }
    errors = coordinate_errors(refined.boxes, truth, px, count)
    metrics |= calibration_metrics(errors, refined.stds, refined.nll, law)
    if split != "test":
        return Evaluation(samples, refined, metrics, [])
    items = data.source.splits[split]
    error = error_px(refined.boxes, truth, px).abs().mean(dim=1)
    clusters = items.clusters[samples.items]
    mean = clustered_interval(error, clusters, positive=True)
    metrics |= {"groups": mean.n, "pictures": len(set(items.image_index[samples.items].tolist()))}
    if mean.low <= mean.value:
        metrics |= {"mae_px_low": mean.low, "mae_px_high": mean.high}
    metrics |= data.error_floor(samples)
    rows = _rows(error, items.labels[samples.items], data.source.classes, truth)
    return Evaluation(samples, refined, metrics, rows)


def _rows(
    error: Tensor, labels: Tensor, classes: tuple[str, ...], gt_boxes: Boxes
) -> list[tuple[str, str, int, float]]:
    """Return the mean error by class and by thirds of the box's size."""
    rows = [
        (
            "class",
            classes[label],
            int((labels == label).sum()),
            float(error[labels == label].mean()),
        )
        for label in sorted(set(labels.tolist()))
    ]
    side = box_area(gt_boxes).sqrt()
    limits = side.quantile(torch.tensor([1 / 3, 2 / 3]))
    third = (side[:, None] > limits).sum(dim=1)
    for index in sorted(set(third.tolist())):
        chosen = third == index
        name = f"{side[chosen].min():.0f} to {side[chosen].max():.0f} px"
        rows.append(("size", name, int(chosen.sum()), float(error[chosen].mean())))
    return rows
