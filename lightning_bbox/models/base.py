"""The base of all models: how they are applied and measured."""

from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.loader import Split
from lightning_bbox.data.samples import Batch, Samples
from lightning_bbox.evaluation.evaluation import Evaluation, evaluate
from lightning_bbox.evaluation.metrics import Refined, RefinedBoxes, coordinate_errors
from lightning_bbox.geometry.boxes import Boxes, box_centers, mirror_boxes
from lightning_bbox.models.advice import refuse_equal_passes
from lightning_bbox.models.checkpointed import CheckpointedModel
from lightning_bbox.models.feature_cache import fill_cache
from lightning_bbox.models.tuning import settle_batch_size
from lightning_bbox.nn.stochastic import sampling


class OffsetModel(CheckpointedModel):
    """Say how far the true box lies from a proposal, from the crop around it.

    Attributes:
        steps_per_call: How many steps of training are made in one call of `training_step`.
    """

    steps_per_call: int = 1

    def setup(self, stage: str) -> None:
        """Build the model for the data, and say how many steps rows are wanted for."""
        # Another model may have wanted otherwise.
        self.data.steps_per_call, self.data.in_place = self.steps_per_call, False
        super().setup(stage)

    @cached_property
    def evaluations(self) -> dict[Split, Evaluation]:
        """What was measured last, by split."""
        return {}

    @cached_property
    def _tables(self) -> dict[Split, RefinedBoxes]:
        return {}

    def on_train_start(self) -> None:
        """Have batches hold features, where they are cached: only now are the weights final."""
        if self.cache is not None:
            # Averages over flips and passes need crops.
            averages = self.average_flips or self.passes
            evaluated: tuple[Split, ...] = () if averages else ("train_eval", "val")
            fill_cache(self.cache, self.data, ("train", *evaluated), self.net)

    def settle_batch_size(self, step: Callable[[Batch], object]) -> None:
        """Find the batch size where it is `auto`; a run that goes on keeps its own.

        Args:
            step: Trains on a batch, and leaves no trace in the model.
        """
        data = self.data
        if not data.finds_batch_size:
            return
        if self._resumed_run is not None:
            data.batch_size = int(str(self._resumed_run["data.batch_size"]))
            return
        if self.cache is not None:  # steps take features, which are not known yet
            shape = data.num_draws("train"), self.net.backbone.out_features
            data.features["train"] = torch.zeros(shape, device=self.device)
        try:
            settle_batch_size(data, step)
        finally:
            data.features.pop("train", None)

    def forward(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
    ) -> Boxes:
        """Return refined boxes, in fp32 and in the proposals' frame.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.
            labels: Their classes, for a head that has a regressor for each.
        """
        return self._decode(self._outputs(crops, labels), proposals)

    def _outputs(
        self, crops: Tensor, labels: Tensor | None, features: Tensor | None = None
    ) -> Tensor:
        if features is None:
            outputs: Tensor = self.net(crops)
        else:
            outputs = self.net.head(features.to(self.net.dtype))
        if labels is not None:
            return self.net.head.select(outputs, labels)
        if self.net.head.per_class:
            msg = "the model has a regressor for each class; say the boxes' labels"
            raise BadInput(msg)
        return outputs

    def _decode(self, outputs: Tensor, proposals: Boxes) -> Boxes:
        return self.codec.decode(self.net.head.decode(outputs), proposals)

    def _losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        targets = self.codec.encode(batch.gt_boxes, batch.proposals)
        return self.net.head.loss(
            outputs, targets, partial(self.codec.decode, proposals=batch.proposals)
        )

    def logs_after(self, steps: int, begun: int | None = None) -> bool:
        """Tell whether scalars are logged once this many steps are done.

        Args:
            steps: How many.
            begun: Tell whether they are logged at any step since so many; the last by default.
        """
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it
        return steps // every > (steps - 1 if begun is None else begun) // every

    def log_scalar(self, name: str, value: Tensor | float, step: int, reduce: bool = False) -> None:
        """Log a number of training.

        Args:
            name: What it is.
            value: The number.
            step: The step it belongs to, counted from 0.
            reduce: Average it over the processes.
        """
        if self.automatic_optimization:
            self.log(name, value, sync_dist=reduce)
            return
        if reduce:
            value = self.trainer.strategy.reduce(value)
        # Lightning would log once a batch; what shows or watches numbers finds this one still.
        self.log(name, value, logger=False)
        for logger in self.loggers:
            logger.log_metrics({name: float(value)}, step)

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

    def on_test_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Refine a batch of the test draws."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        for name, value in self._finish("test").metrics.items():
            self.log(f"test/{name}", value, sync_dist=True)

    def _begin(self, *splits: Split) -> None:
        refuse_equal_passes(self.net, self.passes or 0)
        for split in splits:
            table = RefinedBoxes(self.data.num_draws(split), self.data.num_targets)
            self._tables[split] = table.to(self.device)

    def on_predict_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("predict")

    def predict_step(self, batch: Batch, batch_idx: int) -> Boxes:
        """Refine a batch of rough boxes, and return this process's own of them."""
        boxes, stds = self.refine(batch.crops, batch.proposals, batch.labels)
        nothing = torch.zeros(len(boxes), device=boxes.device)
        untold = torch.full_like(stds, torch.nan)
        self._tables["predict"].update(batch.rows, batch.valid, boxes, nothing, stds, untold)
        return boxes[batch.valid]

    def on_predict_epoch_end(self) -> None:
        """Put the refined boxes together, over all processes."""
        self.predictions = self._tables["predict"].compute()

    @torch.no_grad()
    def refine(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return refined boxes, and how far off the model deems them, averaged if asked to.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.
            labels: Their classes, for a head that has a regressor for each.

        Returns:
            The boxes in the proposals' frame, and their calibrated standard deviations in px and
            log size, NaN where the head can't tell.
        """
        boxes, stds = self._refined(self._outputs(crops, labels), crops, proposals, labels)
        return boxes, self.net.calibration(stds)

    def _evaluate(self, batch: Batch, split: Split) -> None:
        outputs = self._outputs(batch.crops, batch.labels, batch.features)
        boxes, stds = self._refined(outputs, batch.crops, batch.proposals, batch.labels)
        losses = self._losses(outputs, batch)
        nll = self.net.head.nll(outputs, self.codec.encode(batch.gt_boxes, batch.proposals))
        self._tables[split].update(batch.rows, batch.valid, boxes, losses, stds, nll)

    def _refined(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> tuple[Boxes, Tensor]:
        if not self.passes:
            return self._over_flips(outputs, crops, proposals, labels)
        with sampling(self.net, crops.device):
            passes = [
                self._over_flips(self._outputs(crops, labels), crops, proposals, labels)
                for _ in range(self.passes)
            ]
        boxes, stds = zip(*passes, strict=True)
        return torch.stack(boxes).mean(dim=0), torch.stack(stds).mean(dim=0)

    def _over_flips(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> tuple[Boxes, Tensor]:
        boxes, stds = [self._decode(outputs, proposals)], [self.net.head.stds(outputs)]
        centers = box_centers(proposals)
        for flips in ((1, 0), (0, 1), (1, 1)) if self.average_flips else ():
            axes = [dim for dim, flip in zip((3, 2), flips, strict=True) if flip]
            outputs = self._outputs(crops.flip(axes), labels)
            mirrored = self._decode(outputs, proposals)
            axes_flipped = centers.new_tensor(flips).expand_as(centers)
            boxes.append(mirror_boxes(mirrored, centers, axes_flipped))
            stds.append(self.net.head.stds(outputs))
        return torch.stack(boxes).mean(dim=0), torch.stack(stds).mean(dim=0)

    def _finish(self, split: Split) -> Evaluation:
        refined = self._tables[split].compute()
        seen = refined.seen
        samples = self.data.samples(split).take(seen)
        refined = Refined(*(tensor[seen] for tensor in refined))
        if split == "val" and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._calibrate(samples, refined)
        refined = refined._replace(stds=self.net.calibration(refined.stds))
        mean, law = self._predict_mean(samples), self.net.head.error_law
        self.evaluations[split] = evaluate(self.data, split, samples, refined, mean, law)
        return self.evaluations[split]

    def _calibrate(self, samples: Samples, refined: Refined) -> None:
        """Fit the factor of the standard deviations on what validation found, on every rank."""
        px, count = self.data.geometry.px(samples.proposals), self.data.num_targets
        errors = coordinate_errors(refined.boxes, samples.gt_boxes, px, count)
        self.net.calibration.fit(errors, refined.stds, self.net.head.error_law)

    def _predict_mean(self, samples: Samples) -> Boxes:
        """Return the boxes of the training targets' mean: the baseline of every evaluation."""
        proposals = samples.proposals.to(self.device)
        return self.codec.decode(self.codec.mean.expand(len(proposals), -1), proposals).cpu()
