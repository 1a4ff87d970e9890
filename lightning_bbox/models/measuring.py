"""How a model is measured: on draws that stay the same, by a trainer or outside of its loops.

What validation finds of how it errs travels in the checkpoint.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.loader import Rows, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Batch, Samples
from lightning_bbox.evaluation.evaluation import Evaluation, evaluate
from lightning_bbox.evaluation.metrics import Refined, RefinedBoxes, coordinate_errors
from lightning_bbox.evaluation.widths import (
    AtWidths,
    harm_rows,
    measure_range,
    measure_reliability,
)
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.models.advice import refuse_equal_passes
from lightning_bbox.models.refining import Cut, Parts, RefiningModel
from lightning_bbox.nn.calibration import can_tell


class MeasuredModel(RefiningModel):
    """Refine the boxes of evaluations batch by batch, and say how far they end from the truth.

    Args:
        parts: As `RefiningModel` takes them.
        average_flips: As well.
    """

    def __init__(self, parts: Parts, average_flips: bool | None = None) -> None:
        super().__init__(parts, average_flips)
        self.evaluations: dict[Split, Evaluation] = {}  # what was measured last
        self._tables: dict[Split, RefinedBoxes] = {}
        self._calibrated: dict[str, Tensor] | None = None  # by the last validation

    @property
    def data(self) -> CropDataModule:
        """The data module of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CropDataModule):
            ours, theirs = type(self).__name__, type(data).__name__
            msg = f"{ours} needs a data module of lightning_bbox; got {theirs}"
            raise BadInput(msg)
        return data

    def on_validation_epoch_start(self) -> None:
        """Begin empty tables."""
        self._begin("val", "train_eval")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refine a batch of the validation or the fixed training draws."""
        self._evaluate(batch, "val" if dataloader_idx == 0 else "train_eval")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation, and the error on the fixed training draws."""
        for name, value in self._finish("val").metrics.items():
            self.log(f"val/{name}", value, sync_dist=True)
        error = self._finish("train_eval").metrics["mae_px"]
        self.log("train/mae_px", error, sync_dist=True)
        if can_tell(self.evaluations["val"].refined.stds) and not self.trainer.sanity_checking:
            self._measure_reliability()

    def on_test_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Refine a batch of the test draws."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test, and see what becomes of boxes off by little and by much."""
        for name, value in self._finish("test").metrics.items():
            self.log(f"test/{name}", value, sync_dist=True)
        drawn = self._at_widths("test_widths", self.trainer.num_test_batches)
        harm = harm_rows(drawn, self.data.geometry, self.reliability, self.law)
        self.evaluations["test"] = replace(self.evaluations["test"], harm=harm)

    def on_predict_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("predict")

    def predict_step(self, batch: Batch, batch_idx: int) -> Boxes:
        """Refine a batch of rough boxes, and return this process's own of them."""
        cut = self._cut_again("predict", batch)
        with torch.no_grad():
            boxes, stds, traits = self._look(batch.crops, batch.proposals, batch.labels, cut)
        nothing = torch.zeros(len(boxes), device=boxes.device)
        told = boxes, nothing, stds, torch.full_like(stds, torch.nan), traits
        self._tables["predict"].update(batch.rows, batch.valid, *told)
        return boxes[batch.valid]

    def on_predict_epoch_end(self) -> None:
        """Put the refined boxes together, over all processes."""
        self.predictions = self._tables["predict"].refined()

    def _begin(self, *splits: Split) -> None:
        refuse_equal_passes(self.net, self.passes or 0)
        for split in splits:
            table = RefinedBoxes(self.data.num_draws(split), self.data.num_targets)
            self._tables[split] = table.to(self.device)

    def _evaluate(self, batch: Batch, split: Split) -> None:
        outputs = self._outputs(batch.crops, batch.labels, batch.features)
        found = self._refined(outputs, batch.crops, batch.proposals, batch.labels)
        cut = self._cut_again(split, batch)
        boxes, stds = self._look_again(*found, batch.proposals, batch.labels, cut)
        losses = self._losses(outputs, batch)
        nll = self.net.head.nll(outputs, self.codec.encode(batch.gt_boxes, batch.proposals))
        if self.second is not None:  # the density told is that of the first look
            nll = torch.full_like(nll, torch.nan)
        told = boxes, losses, stds, nll, self._traits(*found, batch.proposals)
        self._tables[split].update(batch.rows, batch.valid, *told)

    def _cut_again(self, split: Split, batch: Batch) -> Cut:
        return partial(self.data.crops_again, Rows(split, 0, batch.rows, batch.valid))

    @torch.no_grad()
    def validation_errors(self) -> Float[Tensor, "n t"]:
        """Return the errors on the validation's draws, in px and log size, after training."""
        self.to(self.trainer.strategy.root_device).eval()
        samples, refined, _ = self._walk("val")
        px = self.data.geometry.px(samples.proposals)
        return coordinate_errors(refined.boxes, samples.gt_boxes, px, self.data.num_targets)

    @torch.no_grad()
    def look_twice(self, second: RefiningModel) -> None:
        """Have a second stage look again, and measure anew how both err, after training.

        Args:
            second: The stage.
        """
        self.second = second
        self.to(self.trainer.strategy.root_device).eval()
        samples, refined, _ = self._walk("val")
        self._calibrate(samples, refined)
        if can_tell(refined.stds):
            self._measure_reliability()

    def _finish(self, split: Split) -> Evaluation:
        samples, refined, _ = self._seen(split)
        told = refined._replace(stds=self.net.calibration(refined.stds))
        mean, law = self._predict_mean(samples), self.net.head.error_law
        evaluation = evaluate(self.data, split, samples, told, mean, law)
        fits = self.trainer.state.fn == "fit"
        if split == "val" and fits and not self.trainer.sanity_checking:
            # Only now: intervals are measured with a factor that wasn't fitted on these errors.
            self._calibrate(samples, refined)
        elif split == "val" and not fits:  # it was, so that what they hold says nothing
            measured = evaluation.metrics.items()
            metrics = {name: value for name, value in measured if not name.startswith("coverage")}
            evaluation = replace(evaluation, metrics=metrics)
        self.evaluations[split] = evaluation
        return evaluation

    def _calibrate(self, samples: Samples, refined: Refined) -> None:
        """Fit the factor of the standard deviations on what validation found, on every rank."""
        px, count = self.data.geometry.px(samples.proposals), self.data.num_targets
        errors = coordinate_errors(refined.boxes, samples.gt_boxes, px, count)
        self.net.calibration.fit(errors, refined.stds, self.net.head.error_law)
        state = self.net.calibration.state_dict()
        self._calibrated = {name: value.clone() for name, value in state.items()}

    def _measure_reliability(self) -> None:
        """See how what the model says errs, on validation boxes off by little and by much."""
        assert self.spec is not None
        drawn = self._at_widths("val_widths", self.trainer.num_val_batches)
        usual = self._told("val", *self._seen("val"))
        geometry, bounds = self.data.geometry, tuple(self.spec.bounds)
        self.reliability, self.law = measure_reliability(drawn, usual, geometry)
        self.range = measure_range(drawn, usual, geometry, bounds)

    def _at_widths(
        self, split: Literal["val_widths", "test_widths"], batches: Sequence[int | float]
    ) -> AtWidths:
        """Refine boxes drawn at several widths, outside of the trainer's loops.

        Args:
            split: Whose boxes.
            batches: How many batches the trainer's own loops had, of each loader, if they ran.
        """
        return self._told(split, *self._walk(split, batches[0] if batches else math.inf))

    def _told(
        self, split: Split, samples: Samples, refined: Refined, seen: Bool[Tensor, " n"]
    ) -> AtWidths:
        """Return what was found with the standard deviations that are told."""
        told = refined._replace(stds=self.net.calibration(refined.stds))
        return AtWidths(samples, told, self.data.widths(split)[seen])

    def _walk(
        self, split: Split, most: float = math.inf
    ) -> tuple[Samples, Refined, Bool[Tensor, " n"]]:
        """Refine an evaluation's draws outside of the trainer's loops, in so many batches at most.

        Returns what `_seen` does; standard deviations are without their factor.
        """
        self._begin(split)
        with closing(self.data.batches(split, 0, self.device)) as batches:
            for batch in islice(batches, None if most == math.inf else int(most)):
                with self.trainer.precision_plugin.val_step_context():
                    self._evaluate(batch, split)
        return self._seen(split)

    def _seen(self, split: Split) -> tuple[Samples, Refined, Bool[Tensor, " n"]]:
        """Return the samples of a split that were evaluated, what was found, and which they are."""
        refined = self._tables[split].refined()
        seen = refined.seen
        samples = self.data.samples(split).take(seen)
        return samples, Refined(*(tensor[seen] for tensor in refined)), seen

    def _predict_mean(self, samples: Samples) -> Boxes:
        """Return the boxes of the training targets' mean: the baseline of every evaluation."""
        proposals = samples.proposals.to(self.device)
        return self.codec.decode(self.codec.mean.expand(len(proposals), -1), proposals).cpu()

    def _losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        targets = self.codec.encode(batch.gt_boxes, batch.proposals)
        return self.net.head.loss(
            outputs, targets, partial(self.codec.decode, proposals=batch.proposals)
        )
