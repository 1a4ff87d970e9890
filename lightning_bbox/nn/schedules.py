"""Learning-rate schedules as functions of the run's progress: no config repeats its length."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe


class Schedule(Recipe):
    """A factor of the learning rate for each moment of the run.

    Attributes:
        ends_low: Whether the rate comes down by the run's end, wherever the error stands.
    """

    ends_low: ClassVar[bool] = True

    def factor(self, progress: float) -> float:
        """Return the factor at a progress between 0 (first step) and 1 (last)."""
        raise NotImplementedError

    def fall(self, errors: Sequence[float]) -> float:
        """Return a factor beside that one, by the errors of all validations; 1 by default."""
        return 1.0


class Constant(Schedule):
    """Keep the learning rate, after a rise in a straight line.

    Args:
        warmup: Share of the run in which it rises.
        initial: First factor, where it does.

    References:
        Goyal et al., Accurate, large minibatch SGD (2017), section 2.2: gradual warm-up.

    Examples:
        >>> [round(Constant(warmup=0.5, initial=0.2).factor(p), 2) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.2, 0.6, 1.0, 1.0]
    """

    ends_low = False

    def __init__(self, warmup: float = 0.0, initial: float = 0.04) -> None:
        if not (0 <= warmup < 1 and 0 <= initial <= 1):
            msg = (
                f"{type(self).__name__} warmup {warmup}, initial {initial}: expected 0 to below 1, "
                f"and 0 to 1"
            )
            raise BadInput(msg)
        self.warmup, self.initial = warmup, initial

    def factor(self, progress: float) -> float:
        """Return the factor."""
        if progress < self.warmup:
            return self.initial + (1 - self.initial) * progress / self.warmup
        return 1.0


class Plateau(Constant):
    """Keep the learning rate until validation finds no less error, then lower it, and so on.

    Args:
        patience: Validations in a row without a new least error that it takes.
        drop: What the rate is multiplied with then.
        least: The factor it doesn't fall below.
        warmup: Share of the run in which it rises in a straight line.
        initial: First factor, where it does.

    Examples:
        >>> Plateau(patience=1, drop=0.5).fall([3.0, 2.0, 2.5, 2.1, 1.9])
        0.5
    """

    def __init__(
        self,
        patience: int = 3,
        drop: float = 0.3,
        least: float = 1e-3,
        warmup: float = 0.0,
        initial: float = 0.04,
    ) -> None:
        super().__init__(warmup, initial)
        if not (patience >= 0 and 0 < drop < 1 and 0 <= least < 1):
            msg = (
                f"Plateau patience {patience}, drop {drop}, least {least}: expected 0 or more, and "
                f"values between 0 and 1"
            )
            raise BadInput(msg)
        self.patience, self.drop, self.least = patience, drop, least

    def fall(self, errors: Sequence[float]) -> float:
        """Return the factor after so many validations."""
        fall, best, waited = 1.0, math.inf, 0
        for error in errors:
            best, waited = (error, 0) if error < best else (best, waited + 1)
            if waited > self.patience:
                fall, waited = max(fall * self.drop, self.least), 0
        return fall


class Cosine(Schedule):
    """Fall along half a cosine, once or several times.

    Args:
        final: Last factor, of each time.
        cycles: How many times, of equal length; each begins at the whole rate again.

    References:
        Loshchilov and Hutter, SGDR (2017), equation 5, with T_mult = 1.

    Examples:
        >>> [round(Cosine().factor(p), 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
        >>> [round(Cosine(cycles=2).factor(p), 2) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [1.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, final: float = 0.0, cycles: int = 1) -> None:
        if not 0 <= final <= 1:
            msg = f"cosine final factor is {final}; expected 0 to 1"
            raise BadInput(msg)
        if cycles < 1:
            msg = f"cosine cycles is {cycles}; expected 1 or more"
            raise BadInput(msg)
        self.final, self.cycles = final, cycles

    def factor(self, progress: float) -> float:
        """Return the factor."""
        share = progress * self.cycles
        return _cosine(1.0, self.final, share - min(math.floor(share), self.cycles - 1))


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
        schedule: What to follow.
        progress: From a step to how far the run is then.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Schedule, progress: Callable[[int], float]
    ) -> None:
        self.errors: list[float] = []  # of all validations so far
        self.fall = self.factor_now = 1.0
        super().__init__(optimizer, lambda step: schedule.factor(progress(step)))

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group."""
        rates = super().get_lr()
        before, self.factor_now = self.factor_now, self.lr_lambdas[0](self.last_epoch) * self.fall
        ratio = self.factor_now / before if before else 1.0
        added = self.optimizer.param_groups[len(rates) :]
        return [*(rate * self.fall for rate in rates), *(group["lr"] * ratio for group in added)]

    def see(self, error: float, schedule: Schedule) -> None:
        """Take the error of a validation, and lower the rates if the schedule wants that.

        Args:
            error: The error.
            schedule: What is followed.
        """
        self.errors.append(error)
        before, self.fall = self.fall, schedule.fall(self.errors)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.fall / before
        self.factor_now *= self.fall / before


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
