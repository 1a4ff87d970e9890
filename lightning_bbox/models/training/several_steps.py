"""Several steps of the optimizer in one Lightning batch, each perhaps one CUDA graph.

Lightning's own work is done once for all of them; whatever counts steps (schedule, logs, seeds,
progress) counts each. That takes a loop of our own inside of Lightning's, and some of its privates:
here, and nowhere else. `BoxRegressor` makes a `SeveralSteps` where they are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lightning_bbox.core.errors import BadInput
from lightning_bbox.cuda.step_graph import StepGraph
from lightning_bbox.data.loader import Rows
from lightning_bbox.data.samples import Samples

if TYPE_CHECKING:
    from lightning_bbox.models.regressor import BoxRegressor


class SeveralSteps:
    """Make several steps in one Lightning batch.

    Args:
        model: What learns, in manual optimization.
        count: How many steps.
        cuda_graph: Record one step, and replay it for the others.
    """

    def __init__(self, model: "BoxRegressor", count: int, cuda_graph: bool) -> None:
        self.model, self.count, self.cuda_graph = model, count, cuda_graph
        self._graph: StepGraph[Tensor | None] | None = None
        self._kept: tuple[Samples, Tensor] | None = None  # of an epoch, for the recorded step
        self._epoch = 0

    def begin(self, optimizer: Optimizer | None = None) -> None:
        """Refuse what can't be one CUDA graph, if that is asked for, and get ready to record one.

        Args:
            optimizer: Of the run, once it and the pictures' place are known.

        Raises:
            BadInput: Steps are to be recorded, and something in them can't be.
        """
        if self.cuda_graph and self.model.trainer.state.fn == "fit":
            self.refuse_graph(optimizer)
            self._graph = StepGraph(optimizer) if optimizer else None

    def refuse_graph(self, optimizer: Optimizer | None) -> None:
        """Refuse what can't be one CUDA graph; see `begin`."""
        trainer, data = self.model.trainer, self.model.data
        known, name = optimizer is not None, type(optimizer).__name__
        lacking = optimizer is not None and "capturable" not in optimizer.defaults
        device = trainer.strategy.root_device
        reasons = {
            f"the run is on {device}": device.type != "cuda",
            "it takes model.steps_per_call of 2 or more": self.count < 2,
            f"there are {trainer.world_size} processes": trainer.world_size > 1,
            "16-mixed looks at each step's gradients": trainer.precision == "16-mixed",
            f"crops are cut on the host (store.place is {data.placement.asked})": (
                known and data.on_host
            ),
            "model.groups has weights learn by epoch": bool(self.model.groups.by_epoch),
            "augment.extra draws on the host": bool(data.augment.extra),
            f"{name} has no option capturable": lacking,
        }
        if found := [reason for reason, holds in reasons.items() if holds]:
            why = "; ".join(found)
            msg = f"model.cuda_graph can't record this run's steps: {why}; leave cuda_graph out"
            raise BadInput(msg)

    def planned_steps(self, by_lightning: float) -> float:
        """Return how many steps the run has in all, infinity where nobody said.

        Args:
            by_lightning: What Lightning says, to whom a batch is a step.
        """
        trainer, data = self.model.trainer, self.model.data
        epochs, longest = trainer.max_epochs or -1, trainer.max_steps
        if epochs < 0:
            return by_lightning
        in_epoch = data.num_draws("train") // data.batch_size
        in_epoch = min(in_epoch, int(trainer.num_training_batches) * self.count)
        return in_epoch * epochs if longest < 0 else min(in_epoch * epochs, longest)

    def end(self) -> None:
        """Give back the memory of the recorded step."""
        self._graph = self._kept = None

    def make(self, rows: Rows) -> None:
        """Make a step for each row of rows."""
        trainer = self.model.trainer
        begun = trainer.global_step
        for each in rows.steps():
            if 0 <= trainer.max_steps <= trainer.global_step:
                break
            self._step(each)
        # What Lightning and its callbacks log by: one is added at the end of the batch.
        trainer.fit_loop.epoch_loop._batches_that_stepped += trainer.global_step - begun - 1

    def log(self, name: str, value: Tensor | float, step: int, reduce: bool) -> None:
        """Log a number at its step, where Lightning would log once a batch."""
        if reduce:
            value = self.model.trainer.strategy.reduce(value)
        # What shows or watches numbers finds this one still.
        self.model.log(name, value, logger=False)
        for logger in self.model.loggers:
            logger.log_metrics({name: float(value)}, step)

    def _step(self, rows: Rows) -> None:
        model, graph = self.model, self._graph
        optimizer, schedule = model.optimizers(), model.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        step = model.trainer.global_step
        model.data.seed_step(step)
        with _as_between_steps(model.device):
            samples = self._samples(rows)
        descend = partial(self._descend, rows, samples)
        if graph is None:
            penalty = descend(optimizer, rows.rows)
        elif not graph.is_warm:
            penalty = graph.warm_up(partial(descend, optimizer, rows.rows), rows.rows.device)
        else:
            optimizer._on_before_step()  # counts the step, as Lightning does around its own
            penalty = graph.replay(partial(descend, optimizer.optimizer), rows.rows)
            optimizer._on_after_step()
        model.note_step(step, rows.rows, penalty)
        schedule.step()

    def _samples(self, rows: Rows) -> tuple[Samples, Tensor]:
        """Return an epoch's samples and draws; a recorded step has them in the same memory."""
        laid_out = self.model.data.lay_out(rows)
        if self._graph is None:
            return laid_out
        samples, draws = laid_out
        if self._kept is None:
            self._kept = Samples(*(column.clone() for column in samples)), draws.clone()
        elif rows.epoch != self._epoch:
            for kept, new in zip((*self._kept[0], self._kept[1]), (*samples, draws), strict=True):
                kept.copy_(new)
        self._epoch = rows.epoch
        return self._kept

    def _descend(
        self,
        rows: Rows,
        samples: tuple[Samples, Tensor],
        optimizer: LightningOptimizer | Optimizer,
        chosen: Tensor,
    ) -> Tensor | None:
        """Make a step, from the crops to the weights; nothing here waits for the device."""
        model = self.model
        with _as_between_steps(model.device):
            batch = model.data.batch_of(rows._replace(rows=chosen), *samples)
        total, penalty = model.objective(batch)
        model.manual_backward(total)
        optimizer.step()
        model.project_weights()
        optimizer.zero_grad()
        # Autocast keeps half-precision weights until it ends, which is after the last step.
        torch.clear_autocast_cache()
        return penalty


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
