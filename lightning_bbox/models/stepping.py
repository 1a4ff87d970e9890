"""The steps of gradient descent: one a Lightning batch, or several at once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.loader import Rows
from lightning_bbox.data.samples import Batch
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.divergence import DivergedError, LossWatch, Moment, divergence_message
from lightning_bbox.models.step_graph import StepGraph
from lightning_bbox.nn.regularizers import Regularization


class SteppingModel(OffsetModel):
    """Descend along the gradient of the head's loss, and watch it.

    Of several steps a call, Lightning's own work is done once for all; whatever counts steps
    (schedule, logs, seeds, progress) counts each.
    """

    cuda_graph: bool = False
    _regularization: Regularization
    _graph: "StepGraph[Objective] | None" = None

    def prepare_data(self) -> None:
        """Refuse what can't work before any data is read."""
        if self.cuda_graph and self.trainer.state.fn == "fit":
            self.refuse_graph()

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
        self.data.in_place = self.cuda_graph
        if self.cuda_graph:
            optimizer = self.trainer.optimizers[0]
            self._graph = StepGraph(partial(self._descend, optimizer=optimizer), optimizer)

    def refuse_graph(self, optimizer: Optimizer | None = None) -> None:
        """Refuse what can't be one CUDA graph.

        Args:
            optimizer: Of the run, once it and the pictures' place are known.

        Raises:
            BadInput: Steps are to be recorded, and something in them can't be.
        """
        device, data = self.trainer.strategy.root_device, self.data
        known, name = optimizer is not None, type(optimizer).__name__
        lacking = optimizer is not None and "capturable" not in optimizer.defaults
        reasons = {
            f"the run is on {device}": device.type != "cuda",
            "it takes model.steps_per_call of 2 or more": self.steps_per_call < 2,
            f"there are {self.trainer.world_size} processes": self.trainer.world_size > 1,
            "16-mixed looks at each step's gradients": self.trainer.precision == "16-mixed",
            f"crops are cut on the host (data.store is {data.store})": known and data.stays,
            "augment.extra draws on the host": bool(data.augment.extra),
            f"{name} has no option capturable": lacking,
        }
        if found := [reason for reason, holds in reasons.items() if holds]:
            why = "; ".join(found)
            msg = f"model.cuda_graph can't record this run's steps: {why}; leave cuda_graph out"
            raise BadInput(msg)

    def on_train_end(self) -> None:
        """Give back the memory of the recorded step."""
        self._graph = None

    def training_step(self, batch: Batch | Rows, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or make a step for each row of rows."""
        if isinstance(batch, Batch):
            objective = self._objective(batch)
            self._take_note(self.trainer.global_step, batch.rows, objective)
            return objective.total
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
        step, graph = self.trainer.global_step, self._graph
        self.data.seed_step(step)
        if graph is None:
            objective = self._descend(rows, optimizer)
        elif not graph.is_warm:
            objective = graph.warm_up(partial(self._descend, optimizer=optimizer), rows)
        else:
            self.data.lay_out(rows)
            optimizer._on_before_step()  # counts the step, as Lightning does around its own
            objective = graph.replay(rows)
            optimizer._on_after_step()
        self._take_note(step, rows.rows, objective)
        schedule.step()

    def _descend(self, rows: Rows, optimizer: LightningOptimizer | Optimizer) -> "Objective":
        """Make a step, from the crops to the weights; nothing here waits for the device."""
        with _as_between_steps(self.device):
            batch = self.data.make_batch(rows)
        objective = self._objective(batch)
        self.manual_backward(objective.total)
        optimizer.step()
        self._regularization.project()
        optimizer.zero_grad()
        # Autocast keeps half-precision weights until it ends, which is after the last step.
        torch.clear_autocast_cache()
        return objective.detach()

    def _objective(self, batch: Batch) -> "Objective":
        """Return what a batch is to minimise.

        The losses are weighted so that the ranks' gradients average to the global batch's, which
        takes in the penalty whole: it is the same on all of them.
        """
        losses = self.learnable_losses(batch)
        loss = losses.sum() * (self.trainer.world_size / self.data.batch_size)
        self._watch.take(loss.detach(), losses.detach(), batch.rows)
        return Objective(loss, self._regularization.penalty() if self._regularization else None)

    def _take_note(self, step: int, rows: Tensor, objective: "Objective") -> None:
        """Remember on the host what a step was, and log where it is time to."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._watch.note(step, Moment(self.trainer.current_epoch, rate), rows)
        if not self.logs_after(step + 1):
            return
        self.refuse_divergence()
        self.log_scalar("train/loss", self._watch.mean(), step, reduce=True)
        self.log_scalar("train/lr", rate, step)
        if objective.penalty is not None:
            self.log_scalar("train/penalty", objective.penalty.detach().clone(), step)

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


class Objective(NamedTuple):
    """What a step minimises: the loss of a batch, and the penalty for the weights if any.

    Examples:
        >>> Objective(torch.tensor(2.0), torch.tensor(0.5)).total
        tensor(2.5000)
    """

    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""] | None

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of both."""
        return self.loss if self.penalty is None else self.loss + self.penalty

    def detach(self) -> "Objective":
        """Return the numbers alone, without what they were made by."""
        penalty = None if self.penalty is None else self.penalty.detach()
        return Objective(self.loss.detach(), penalty)


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
