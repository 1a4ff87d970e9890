"""The steps of gradient descent: one a Lightning batch, or several at once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lightning_bbox.divergence import DivergedError, LossWatch, Moment, divergence_message
from lightning_bbox.errors import BadInput
from lightning_bbox.loader import Rows
from lightning_bbox.models import OffsetModel
from lightning_bbox.regularizers import Regularization
from lightning_bbox.samples import Batch


class SteppingModel(OffsetModel):
    """Descend along the gradient of the head's loss, and watch it.

    Of several steps a call, Lightning's own work is done once for all; whatever counts steps
    (schedule, logs, seeds, progress) counts each.
    """

    _regularization: Regularization

    def setup(self, stage: str) -> None:
        """Build the model for the data, and begin to watch."""
        super().setup(stage)
        self._watch = LossWatch(torch.device("cpu"))

    def planned_steps(self) -> float:
        """Return how many steps the run has in all, infinity where nobody said."""
        total: float = self.trainer.estimated_stepping_batches
        epochs, longest = self.trainer.max_epochs or -1, self.trainer.max_steps
        if self.steps_per_call == 1 or epochs < 0:
            return total
        in_epoch = self.data.num_draws("train") // self.data.batch_size
        in_epoch = min(in_epoch, int(self.trainer.num_training_batches) * self.steps_per_call)
        return in_epoch * epochs if longest < 0 else min(in_epoch * epochs, longest)

    def on_train_start(self) -> None:
        """Begin to watch the losses."""
        super().on_train_start()
        self._watch = LossWatch(self.device)

    def training_step(self, batch: Batch | Rows, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or make a step for each row of rows."""
        if isinstance(batch, Batch):
            return self._loss(batch)
        begun = self.trainer.global_step
        for rows in batch.steps():
            if 0 <= self.trainer.max_steps <= self.trainer.global_step:
                break
            self._step(rows)
        # What Lightning and its callbacks log by: one is added at the end of the batch.
        progress = self.trainer.fit_loop.epoch_loop
        progress._batches_that_stepped += self.trainer.global_step - begun - 1
        return None

    def _step(self, rows: Rows) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        with _as_between_steps(self.device):
            self.data.seed_step(self.trainer.global_step)
            batch = self.data.make_batch(rows)
        self.manual_backward(self._loss(batch))
        optimizer.step()
        self._regularization.project()
        optimizer.zero_grad()
        schedule.step()
        # Autocast keeps half-precision weights until it ends, which is after the last step.
        torch.clear_autocast_cache()

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss, weighted so that the ranks' gradients average to the global batch's."""
        losses = self.learnable_losses(batch)
        loss = losses.sum() * (self.trainer.world_size / self.data.batch_size)
        step, rate = self.trainer.global_step, self.trainer.optimizers[0].param_groups[0]["lr"]
        moment = Moment(self.trainer.current_epoch, rate)
        self._watch.update(step, moment, loss.detach(), losses.detach(), batch.rows)
        if self.logs_after(step + 1):
            self.refuse_divergence()
            self.log_scalar("train/loss", self._watch.mean(), step, reduce=True)
            self.log_scalar("train/lr", rate, step)
        return self._with_penalty(loss)

    def learnable_losses(self, batch: Batch) -> Tensor:
        """Return the losses of a batch.

        Raises:
            BadInput: They have no gradient.
        """
        losses = self._losses(self._outputs(batch.crops, batch.labels, batch.features), batch)
        if not losses.requires_grad:
            head = type(self.net.head).__name__
            msg = f"the loss of {head} has no gradient, so nothing can learn by it; choose another"
            raise BadInput(msg)
        return losses

    def _with_penalty(self, loss: Tensor) -> Tensor:
        """Add the penalty whole: the ranks' gradients are averaged, and those of this are equal."""
        if not self._regularization:
            return loss
        penalty, step = self._regularization.penalty(), self.trainer.global_step
        if self.logs_after(step + 1):
            self.log_scalar("train/penalty", penalty.detach(), step)
        return loss + penalty

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Make a step, and see to the weights after it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._regularization.project()

    def on_validation_epoch_start(self) -> None:
        """Begin empty tables, unless there is nothing to validate any more."""
        if self.trainer.state.fn == "fit":
            self.refuse_divergence(self.parameters())
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation, unless the boxes are no boxes any more."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit":
            self.refuse_divergence([self.evaluations["val"].refined.boxes], "refined boxes are")

    def refuse_divergence(self, values: Iterable[Tensor] = (), what: str = "weights are") -> None:
        """Stop the run where a loss was not finite.

        Args:
            values: What must be finite too.
            what: What that is.

        Raises:
            DivergedError: Says at which step, with what learning rate and which samples.
        """
        if (bad := self._watch.first_bad(values, what)) is not None:
            items = self.data.samples("train", bad.moment.epoch).items[bad.rows].tolist()
            train = self.data.source.splits["train"]
            names = [train.name(item) for item in items]
            raise DivergedError(divergence_message(bad, names), bad.step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save nothing that diverged.

        Raises:
            DivergedError: A loss or the weights are not finite: nothing is saved.
        """
        super().on_save_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.refuse_divergence(self.parameters())


@contextmanager
def _as_between_steps(device: torch.device) -> Iterator[None]:
    """Cut crops as Lightning has it done before a step: in fp32, whatever the network runs in."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
