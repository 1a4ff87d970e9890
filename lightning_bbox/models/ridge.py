"""The LightningModule that learns box offsets in closed form, in one pass over the training set."""

import math
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.callbacks import BackboneFinetuning, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_bbox.core.compiling import Compile
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.memory import host_memory
from lightning_bbox.core.messages import say
from lightning_bbox.data.loader import Split
from lightning_bbox.data.samples import Batch
from lightning_bbox.geometry.codecs import DeltaCodec
from lightning_bbox.models.advice import refuse_idle_dropout
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import CHECKPOINT_KEY
from lightning_bbox.models.fitting import invalid_features
from lightning_bbox.models.refining import Parts
from lightning_bbox.models.training.divergence import of_all_processes
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.losses import L2Loss
from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.solvers.least_squares import (
    Moments,
    RidgeSolution,
    Rows,
    Scaling,
    first_invalid,
    score_lambdas,
)
from lightning_bbox.solvers.sums import RidgeRows, RidgeSums

ILL_CONDITIONED = 1e12
"""Condition number from which about four of fp64's sixteen digits are left."""

Sums = list[RidgeSums | RidgeRows]
Gathered = list[Moments | Rows | None]
Solutions = list[RidgeSolution | None]
"""One for each class that has a regressor of its own; None for a class without samples."""


class RidgeRegressor(OffsetModel):
    """Learn in closed form how far the true box lies from a proposal.

    The features of every training draw are summed up in fp64 as they pass, over all processes, and
    at the end of the epoch ridge regression is solved exactly; the solution lands in an ordinary
    `nn.Linear`. One epoch is one pass; more epochs are more draws. With fewer draws than features
    they are kept and the dual is solved.

    Args:
        backbone: Crops to features; a `ShallowConvNet` by default. Nothing in it learns.
        codec: Boxes to targets and back; a `MeanStdCodec` by default.
        preprocess: Fitted on training crops; what the backbone's weights expect by default, else a
            `ChannelNorm`.
        lam: Weight of the penalty `lambda ||W||^2` on the scaled features' weights; 0 gives the
            solution of minimum norm. `val` takes that of 21 over ten decades whose error on the
            validation split is least, `gcv` that of least generalised cross-validation, which takes
            the draws of one box for independent.
        scaling: What centred features are divided by: their standard deviations, R-CNN's mean norm
            over 20, or nothing.
        per_class: A regressor for each class, as in R-CNN, instead of one for all.
        robust: Share of each class's draws, those of largest error, that a second solution is made
            without.
        average_flips: At evaluation, average the boxes found on the crop and its three mirror
            images; as its checkpoint says by default, else not.
        compile: Compile the network; `auto` does on CUDA.
        cache: Where the features of a frozen backbone are kept: `memory`, or a folder of files that
            later runs use again. Every epoch then has the same draws, so one is enough.

    Raises:
        BadInput: A value is out of its range.

    References:
        Girshick et al., Rich feature hierarchies (2014), appendix C: lambda 1000 on pool5. Its code
        penalises the intercept and leaves out samples coordinate by coordinate; ours does not
        penalise it and leaves out a sample as a whole.

    Examples:
        >>> RidgeRegressor(lam=1000.0, scaling="norm20", per_class=True).net.head.per_class
        True
    """

    default_epochs = 1

    def __init__(
        self,
        backbone: Backbone | None = None,
        codec: DeltaCodec | None = None,
        preprocess: Preprocess | None = None,
        *,
        lam: float | Literal["val", "gcv"] = "val",
        scaling: Scaling = "standard",
        per_class: bool = False,
        robust: float = 0.0,
        average_flips: bool | None = None,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
        cache: str | None = None,
    ) -> None:
        if not (lam in ("val", "gcv") if isinstance(lam, str) else 0 <= lam < math.inf):
            msg = f"RidgeRegressor lam is {lam!r}; expected 0 or more, 'val' or 'gcv'"
            raise BadInput(msg)
        if not 0 <= robust < 1:
            msg = f"RidgeRegressor robust is {robust}; expected 0 (keep all) to below 1"
            raise BadInput(msg)
        head = LinearHead(L2Loss(), per_class=per_class)
        super().__init__(
            Parts(preprocess, backbone, head, codec),
            average_flips=average_flips,
            compile=compile,
            cache=cache,
        )
        if not per_class:  # then it isn't asked for, and a checkpoint's is taken
            self._asked = self._asked._replace(head=None)
        self.automatic_optimization = False
        self.lam, self.scaling, self.robust = lam, scaling, robust
        self._sums: Sums = []
        self._restored: list[dict[str, Tensor]] | None = None
        self._unsolved = self._finished = False

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add none, but refuse one that works on an optimizer's steps.

        Raises:
            BadInput: There is one.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined] # Lightning sets it
            if isinstance(callback, WeightAveraging | BackboneFinetuning):
                name = type(callback).__name__
                msg = (
                    f"trainer.callbacks: {name} works on an optimizer's steps, and a ridge has "
                    f"none; leave it out"
                )
                raise BadInput(msg)
        return super().configure_callbacks()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make none; but a run that goes on must be the same run."""
        refuse_idle_dropout(self.net.backbone)
        self.choose_batch_size(self._try_features)
        self.keep_to_the_run({"the ridge": f"{self.scaling} {self.lam}"})
        return []

    def on_train_start(self) -> None:
        """Begin to sum up, or go on where a stopped pass was.

        Raises:
            BadInput: The sums would not fit into memory, or a checkpoint's head isn't linear.
        """
        self._refuse_other_heads()
        self.net.backbone.freeze()
        super().on_train_start()
        self.eval()
        self._finished = self.trainer.global_step > 0 and self._restored is None
        self._unsolved = bool(self._restored)
        self._sums = self._empty_sums("train", self._num_epochs)
        if self._restored and self.trainer.is_global_zero:
            for sums, state in zip(self._sums, self._restored, strict=True):
                sums.restore(state)
        self._restored = None

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch's features and targets to the sums.

        Raises:
            BadInput: The pass was finished, and its sums weren't kept.
        """
        if self._finished:
            msg = (
                "this run's pass is finished and its sums are gone, so it can't take more draws; "
                "begin a new run with more trainer.max_epochs"
            )
            raise BadInput(msg)
        self._add(self._sums, batch)
        self._unsolved = True
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()  # without an optimizer nobody else counts the steps
        progress.increment_completed()

    def on_validation_epoch_start(self) -> None:
        """Solve for what was summed up, then begin empty tables."""
        self._solve_what_is_new()
        super().on_validation_epoch_start()

    def on_train_epoch_end(self) -> None:
        """Solve where there was no validation."""
        self._solve_what_is_new()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums, while there are draws to come or the solution is."""
        super().on_save_checkpoint(checkpoint)
        to_come = (
            self.trainer.current_epoch + 1 < self._num_epochs or not self.trainer.is_last_batch
        )
        if self.trainer.state.fn == "fit" and (to_come or self._unsolved) and not self._finished:
            checkpoint[CHECKPOINT_KEY]["sums"] = [sums.state() for sums in self._sums]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the layers of the weights, and take the sums of a pass that was stopped."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self._restored = checkpoint[CHECKPOINT_KEY].get("sums")

    def _refuse_other_heads(self) -> None:
        head = self.net.head
        activation = getattr(head, "activation", None)
        if not isinstance(head, LinearHead) or activation != "none":
            msg = (
                f"RidgeRegressor solves for a LinearHead of activation 'none', and the model has a "
                f"{type(head).__name__} of activation {activation!r}; train it by BoxRegressor"
            )
            raise BadInput(msg)

    @property
    def _linear(self) -> nn.Linear:
        head = self.net.head
        assert isinstance(head, LinearHead)
        return head.linear

    @property
    def _num_epochs(self) -> int:
        return max(1, self.trainer.max_epochs or 1)

    @torch.no_grad()
    def _solve_what_is_new(self) -> None:
        if not self._unsolved:
            return
        self._unsolved = False
        gathered = self._gather(self._sums, "train")
        lam, solutions = self._choose(gathered)
        if self.robust:
            self._take(solutions)
            kept = [sums.compute() for sums in self._sums_without_worst()]
            solutions = [each.solve(lam, self.scaling) if each else None for each in kept]
        self._take(solutions)
        self._report(lam, gathered, solutions)

    def _empty_sums(self, split: Split, epochs: int) -> Sums:
        """Return what is to be summed up, or kept where there are fewer samples than features."""
        counts = [self.data.num_draws(split) * epochs]
        if self.net.head.per_class:
            assert self.spec is not None
            labels = self.data.samples(split).labels
            counts = (labels.bincount(minlength=len(self.spec.classes)) * epochs).tolist()
        length, outputs = self.net.backbone.out_features, self.data.num_targets
        self._refuse_size(length, counts)
        sums: Sums = [
            RidgeRows() if count < length else RidgeSums(length, outputs) for count in counts
        ]
        return [each.to(self.device) for each in sums]

    def _refuse_size(self, length: int, counts: list[int]) -> None:
        """Refuse sums that don't fit into half of the memory: a solution needs the rest."""
        needed = sum(4 * n * length if n < length else 8 * length**2 for n in counts)
        if self.device.type == "cuda":
            there = torch.cuda.get_device_properties(self.device).total_memory
        else:
            there = host_memory()
        if needed > there / 2:
            msg = (
                f"a ridge on {length} features of {sum(counts)} draws needs {needed / 1e9:.0f} GB "
                f"for its sums, of {there / 1e9:.0f} that are there; read a layer with fewer "
                f"features, or lower data.draws_per_epoch"
            )
            raise BadInput(msg)

    def _features(self, batch: Batch) -> Float[Tensor, "b f"]:
        if batch.features is not None:
            return batch.features
        return self.net.fast_features(batch.crops)

    def _try_features(self, batch: Batch) -> None:
        """Do of a step what leaves no trace."""
        step_context = self.trainer.precision_plugin.train_step_context()
        with torch.no_grad(), self.net.evaluating(), step_context:
            self._features(batch)

    @torch.no_grad()
    def _add(self, sums: Sums, batch: Batch, keep: Bool[Tensor, " b"] | None = None) -> None:
        """Add the samples of a batch that are to be kept, each to the sums of its class."""
        features = self._features(batch)
        targets = self.codec.encode(batch.gt_boxes, batch.proposals)
        if len(sums) == 1 and keep is None:
            sums[0].update(features, targets)
            return
        keep = batch.valid if keep is None else keep
        for number, own in enumerate(sums):
            chosen = keep & (batch.labels == number) if len(sums) > 1 else keep
            own.update(features[chosen], targets[chosen])

    def _choose(self, gathered: Gathered) -> tuple[float, Solutions]:
        """Return the lambda and each class's solution."""
        if not isinstance(self.lam, str):
            lam = float(self.lam)
            return lam, [each.solve(lam, self.scaling) if each else None for each in gathered]
        spectra = [each.spectrum(self.scaling) if each else None for each in gathered]
        held = self._sums_of("val") if self.lam == "val" else None
        grid, scores = score_lambdas(spectra, held)
        lam = float(grid[scores.argmin()])
        if lam == float(grid[-1]):
            rank_zero_warn(
                f"the largest lambda tried, {lam:.3g}, is the best: the features tell next to "
                f"nothing of the offset, so read another layer"
            )
        return lam, [each.solution(lam) if each else None for each in spectra]

    def _sums_of(self, split: Split) -> Gathered:
        sums = self._empty_sums(split, 1)
        for batch in self.data.batches(split, 0, self.device):
            with self.trainer.precision_plugin.val_step_context():
                self._add(sums, batch, batch.valid)
        return self._gather(sums, split)

    def _gather(self, sums: Sums, split: Split) -> Gathered:
        """Put together what all processes summed up.

        Raises:
            BadInput: It isn't finite; the first draw that made it so is named.
        """
        gathered: Gathered = [each.compute() for each in sums]
        if all(each.is_finite() for each in gathered if each):
            return gathered
        found = [bad for bad in of_all_processes(self._first_invalid(split)) if bad]
        if not found:
            msg = "the ridge's sums aren't finite, though each feature is; scale the features down"
            raise BadInput(msg)
        epoch, row, what = min(found)
        item = int(self.data.samples(split, epoch).items[row])
        raise invalid_features(self.data, split, item, row, what)

    def _first_invalid(self, split: Split) -> tuple[int, int, str] | None:
        """Return epoch and row of this process's first draw that isn't finite, and what isn't."""
        precision = self.trainer.precision_plugin
        for epoch in range(self.trainer.current_epoch + 1 if split == "train" else 1):
            for batch in self.data.batches(split, epoch, self.device):
                with precision.train_step_context():
                    features = self._features(batch)
                targets = self.codec.encode(batch.gt_boxes, batch.proposals)
                if bad := first_invalid(features[batch.valid], targets[batch.valid]):
                    row, what = bad
                    return epoch, int(batch.rows[batch.valid][row]), what
        return None

    def _sums_without_worst(self) -> Sums:
        """Pass over the same draws twice more: to find the largest errors, and without them."""
        errors = RidgeRows().to(self.device)
        for batch in self._seen_batches():
            with self.trainer.precision_plugin.train_step_context():
                errors.update(self._squared_errors(batch)[:, None], batch.labels[:, None])
        found = errors.compute()
        assert found is not None
        sums = self._empty_sums("train", self._num_epochs)
        limits = torch.stack([self._limit(found, number) for number in range(len(sums))])
        for batch in self._seen_batches():
            limit = limits[batch.labels if len(sums) > 1 else 0]
            with self.trainer.precision_plugin.train_step_context():
                self._add(sums, batch, self._squared_errors(batch) <= limit)
        return sums

    def _limit(self, errors: Rows, label: int) -> Float[Tensor, ""]:
        """Return the largest error of a class, or of all, that is kept."""
        own = errors.features.flatten()
        if self.net.head.per_class:
            own = own[errors.targets.flatten() == label]
        kept = max(1, round((1 - self.robust) * len(own)))
        return own.sort().values[kept - 1] if len(own) else own.new_zeros(())

    def _seen_batches(self) -> Iterator[Batch]:
        # Drawn and cut in fp32, whatever the network runs in, as batches between two steps are.
        trainer, left = self.trainer, self.trainer.global_step
        for epoch in range(trainer.current_epoch + 1):
            count = min(left, int(trainer.num_training_batches))  # an epoch may be cut short
            own = min(epoch, self.data.epoch)  # where batches are overfitted, the first always
            with closing(self.data.batches("train", own, self.device)) as batches:
                yield from islice(batches, count)
            left -= count

    def _squared_errors(self, batch: Batch) -> Float[Tensor, " b"]:
        outputs = self.net.head.select(self.net.head(self._features(batch)), batch.labels)
        targets = self.codec.encode(batch.gt_boxes, batch.proposals)
        return (outputs.double() - targets).square().sum(dim=1)

    def _take(self, solutions: Solutions) -> None:
        """Put the solutions into the head; a class without samples predicts the training mean."""
        linear, mean = self._linear, self.codec.mean.double()
        nothing = mean.new_zeros(len(mean), linear.in_features)
        weights = [each.weight if each else nothing for each in solutions]
        linear.weight.copy_(torch.cat(weights))
        linear.bias.copy_(torch.cat([each.bias if each else mean for each in solutions]))

    def _report(self, lam: float, gathered: Gathered, solutions: Solutions) -> None:
        """Log and say what was solved, how, and what is doubtful about it."""
        condition = max(each.condition for each in solutions if each)
        self.log("ridge/lambda", lam)
        self.log("ridge/condition", condition)
        count = sum(each.count for each in gathered if each)
        how = f" (by {self.lam})" if isinstance(self.lam, str) else ""
        regressors = f", {len(solutions)} regressors" if len(solutions) > 1 else ""
        say(
            f"ridge on {self.net.backbone.out_features} features of {count} draws{regressors}: "
            f"lambda {lam:.4g}{how}, condition number {condition:.2g}"
        )
        if condition > ILL_CONDITIONED:
            rank_zero_warn(
                f"the ridge is ill-conditioned: with a condition number of {condition:.1e} about "
                f"{max(0, 16 - math.log10(condition)):.0f} of 16 digits are left; raise model.lam"
            )
        assert self.spec is not None
        pairs = zip(self.spec.classes, solutions, strict=False) if self.net.head.per_class else ()
        if unseen := [name for name, solution in pairs if solution is None]:
            rank_zero_warn(
                f"{listed(unseen)} had no training draws: their boxes are moved by the mean offset"
            )
