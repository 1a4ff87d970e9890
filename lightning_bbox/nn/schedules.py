"""Learning-rate schedules as functions of the run's progress: no config repeats its length."""

import math
from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe


class Schedule(Recipe):
    """A factor of the learning rate for each moment of the run."""

    def factor(self, progress: float) -> float:
        """Return the factor at a progress between 0 (first step) and 1 (last)."""
        raise NotImplementedError


class Constant(Schedule):
    """Keep the learning rate.

    Examples:
        >>> Constant().factor(0.5)
        1.0
    """

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(Schedule):
    """Fall along half a cosine.

    Args:
        final: Last factor.

    References:
        Loshchilov and Hutter, SGDR (2017), equation 5, without restarts.

    Examples:
        >>> [round(Cosine().factor(p), 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """

    def __init__(self, final: float = 0.0) -> None:
        if not 0 <= final <= 1:
            msg = f"cosine final factor is {final}; expected 0 to 1"
            raise BadInput(msg)
        self.final = final

    def factor(self, progress: float) -> float:
        """Return the factor."""
        return _cosine(1.0, self.final, progress)


class OneCycle(Schedule):
    """Rise along a cosine, then fall along another, far below the start.

    Args:
        warmup: Share of the run in which it rises.
        initial: First factor.
        final: Last factor.

    References:
        Smith and Topin, Super-convergence (2018); the constants are PyTorch's, without its momentum
        cycle.

    Examples:
        >>> [round(OneCycle().factor(p), 2) for p in (0.0, 0.3, 1.0)]
        [0.04, 1.0, 0.0]
    """

    def __init__(self, warmup: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> None:
        if not (0 < warmup < 1 and 0 <= initial <= 1 and 0 <= final <= 1):
            msg = f"one-cycle warmup {warmup}, initial {initial}, final {final}: expected 0 to 1"
            raise BadInput(msg)
        self.warmup, self.initial, self.final = warmup, initial, final

    def factor(self, progress: float) -> float:
        """Return the factor."""
        if progress < self.warmup:
            return _cosine(self.initial, 1.0, progress / self.warmup)
        return _cosine(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))


class RunSchedule(LambdaLR):
    """Have the rates of all groups of an optimizer follow a schedule, those added later too.

    An added group goes on from the rate that it was given: what adds it, such as Lightning's
    `BackboneFinetuning`, may set that anew at any time.

    Args:
        optimizer: Whose groups.
        factor: From a step to the factor of the rates.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.factor_now = 1.0
        super().__init__(optimizer, factor)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group."""
        rates = super().get_lr()
        before, self.factor_now = self.factor_now, self.lr_lambdas[0](self.last_epoch)
        ratio = self.factor_now / before if before else 1.0
        added = self.optimizer.param_groups[len(rates) :]
        return [*rates, *(group["lr"] * ratio for group in added)]


def run_progress(trainer: pl.Trainer, total: float) -> Callable[[int], float]:
    """Return the way from a step to how far a run is then: 0 at its first step, 1 at its last.

    By steps, or by the time spent of `trainer.max_time` where that is more; several processes,
    whose clocks differ, go by steps alone.

    Args:
        trainer: What is about to train.
        total: How many steps it makes, infinity where nobody said.

    Raises:
        BadInput: The run has no end.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined] # Lightning sets it
    timers = [c for c in callbacks if isinstance(c, Timer) and trainer.world_size == 1]
    if total == float("inf") and not timers:
        msg = "the run has no end to plan the learning rate for; set trainer.max_epochs"
        raise BadInput(msg)
    last = max(1.0, total - 1)

    def progress(step: int) -> float:
        return min(1.0, max([step / last, *(_share_of_time(timer) for timer in timers)]))

    return progress


def _share_of_time(timer: Timer) -> float:
    spent, left = timer.time_elapsed(), timer.time_remaining()
    return 0.0 if left is None else spent / max(spent + left, 1e-9)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
