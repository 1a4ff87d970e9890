"""Short trainings on the same crops: as the run is, and with what should mend it."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.messages import quietly
from lightning_bbox.evaluation.intervals import Mean, clustered_interval
from lightning_bbox.insight.diagnosis.case import TALKERS, Case, Make, trainer_for
from lightning_bbox.insight.diagnosis.findings import Alter
from lightning_bbox.models.training.divergence import DivergedError

_EXACT_DRAWS = 4_000  # that a short exact training has
_LOOKS = 12  # steps at which a recorder looks at weights


class Trial(NamedTuple):
    """What a short training came to.

    Attributes:
        name: What it was.
        errors: Mean absolute error of the centre of each validation draw, over predict-mean's.
        clusters: The picture or group of each.
        steps: How many steps it made.
        seconds: How long it took, evaluation included.
        diverged: Whether a loss was not finite.
    """

    name: str
    errors: Float[Tensor, " n"]
    clusters: Int64[Tensor, " n"]
    steps: int
    seconds: float
    diverged: bool

    @property
    def error(self) -> float:
        """The mean of the errors: 1 is predict-mean's."""
        return float(self.errors.mean())


class Recorder(pl.Callback):
    """Note how a training goes: losses, and how far steps move the weights.

    Attributes:
        losses: Of each step.
        moved: At some steps, the size of the update over that of the weights, by layer.
        unchanged: At those, the share of weights with a gradient that came out as they were.
        decay: At those, the size of weight decay's pull over the gradient's.
    """

    def __init__(self, steps: int) -> None:
        self.losses: list[float] = []
        self.moved: list[list[float]] = []
        self.unchanged: list[float] = []
        self.decay: list[float] = []
        self._every = max(1, steps // _LOOKS)
        self._before: dict[str, Tensor] | None = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the weights before a step that is looked at."""
        if trainer.global_step % self._every or trainer.global_step == 0:
            return
        self._before = {
            name: weights.detach().clone()
            for name, weights in pl_module.named_parameters()
            if weights.grad is not None and weights.dim() > 1
        }
        group = optimizer.param_groups[0]
        if not isinstance(optimizer, torch.optim.AdamW) and group.get("weight_decay"):
            pulls, grads = 0.0, 0.0
            for weights in group["params"]:
                if weights.grad is not None:
                    pulls += float((group["weight_decay"] * weights).square().sum())
                    grads += float(weights.grad.square().sum())
            self.decay.append(math.sqrt(pulls / max(grads, 1e-30)))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's)
        batch: Any,  # noqa: ANN401 (Lightning's)
        batch_idx: int,
    ) -> None:
        """Note the loss, and what a step that is looked at did."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(float(loss.detach()))
        if self._before is None:
            return
        after, before, self._before = dict(pl_module.named_parameters()), self._before, None
        moved, same, many = [], 0, 0
        for name, weights in before.items():
            change = after[name].detach().float() - weights.float()
            moved.append(float(change.norm() / weights.float().norm().clamp(min=1e-12)))
            grad = after[name].grad
            acting = torch.ones_like(change, dtype=torch.bool) if grad is None else grad != 0
            same += int(((change == 0) & acting).sum())
            many += int(acting.sum())
        self.moved.append(moved)
        self.unchanged.append(same / max(1, many))

    @property
    def update(self) -> float:
        """The middle size of an update over its weights."""
        every = sorted(value for layers in self.moved for value in layers)
        return every[len(every) // 2] if every else math.nan


class Trials:
    """Runs short trainings, each on the same crops, as long as there is time.

    Args:
        make: Makes the training anew, with other options.
        base: The training as it is; its pictures are read.
        steps: How many steps each makes.
        minutes: How long all may take; the first is made in any case.
    """

    def __init__(self, make: Make, base: Case, steps: int, minutes: float) -> None:
        self.make, self.base, self.steps = make, base, steps
        self.ends = time.monotonic() + 60 * minutes
        self.longest = 0.0

    def has_time(self) -> bool:
        """Tell whether another trial would end in time."""
        return time.monotonic() + self.longest <= self.ends

    def run(
        self,
        name: str,
        options: Sequence[str] = (),
        alters: Sequence[Alter] = (),
        recorder: Recorder | None = None,
        steps: int | None = None,
    ) -> tuple[Trial, Case]:
        """Make a short training and measure it on validation.

        Args:
            name: What it is.
            options: Added to the training's own.
            alters: Applied to all true boxes first.
            recorder: Notes how it goes.
            steps: How many steps; those of all by default.

        Returns:
            What it came to, and its case, trained.

        Raises:
            BadInput: The options can't be used together.
        """
        since = time.monotonic()
        made = self.make(["--model.steps_per_call=1", *options] if self.base.descends else options)
        case = Case(made, shared=self.base)
        for alter in alters:
            case.data.take_source(case.shifted(alter).source)
        callbacks = [] if recorder is None else [recorder]
        limits: dict[str, Any] = {"max_steps": steps or self.steps, "max_epochs": -1}
        if not case.descends:
            batches = max(1, _EXACT_DRAWS // case.data.batch_size)
            limits = {"max_epochs": 1, "limit_train_batches": batches}
        trainer = trainer_for(made, callbacks=callbacks, limit_val_batches=0, **limits)
        diverged = False
        with quietly(*TALKERS):
            try:
                trainer.fit(case.model, datamodule=case.data)
            except DivergedError:
                diverged = True
        trial = self._measured(name, case, trainer.global_step, since, diverged)
        self.longest = max(self.longest, trial.seconds)
        return trial, case

    def _measured(self, name: str, case: Case, steps: int, since: float, diverged: bool) -> Trial:
        samples = case.data.samples("val")
        offsets = case.offsets(samples)
        mean = case.offsets(case.train).mean(dim=0)
        chance = (offsets - mean)[:, :2].abs().mean().clamp(min=1e-9)
        errors = torch.full((len(samples.items),), math.inf)
        if not diverged:
            with quietly(*TALKERS):
                found = case.model.validation_errors().cpu()
            errors = found[:, :2].abs().mean(dim=1) / chance
            diverged = not bool(errors.isfinite().all())
            errors = torch.where(errors.isfinite(), errors, math.inf)
        clusters = case.clusters(samples)
        capped = errors.clamp(max=3.0)  # a run that went astray is not twice as bad as another
        return Trial(name, capped, clusters, steps, time.monotonic() - since, diverged)


def gain(before: Trial, after: Trial) -> Mean:
    """Return by how much of predict-mean's error a trial is better, paired by draw.

    Args:
        before: What it is compared with.
        after: The trial.
    """
    if len(before.errors) != len(after.errors):
        value = before.error - after.error
        return Mean(value, math.nan, math.nan, 0)
    return clustered_interval(before.errors - after.errors, before.clusters)
