"""Watch the losses without waiting for the device, and say where they first were not finite."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed

from lightning_bbox.core.errors import listed

T = TypeVar("T")

OUTCOME = "outcome.json"
"""The file of a run that did not arrive: what became of it, at which step, and why."""


class DivergedError(RuntimeError):
    """Training produced a loss, or weights, that are not finite.

    Args:
        message: What happened, and what helps.
        step: The step at which it was first seen.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class FirstBadStep(NamedTuple):
    """The first step whose loss was not finite, or whose gradient spoilt the weights.

    Attributes:
        step: Its number.
        epoch: Its epoch.
        rate: Its learning rate.
        rows: Rows of the epoch, of this process, whose losses were not finite, or which spoilt
            the weights.
        what: What is not finite.
    """

    step: int
    epoch: int
    rate: float
    rows: list[int]
    what: str = "loss is"


class LossWatch:
    """Sum the losses between two logs, and keep the first step that went wrong, on the device.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._taken = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.full((), -1, device=device)  # which of those taken was the first bad
        self._rows = torch.full((0,), -1, device=device)
        self._noted = 0
        self._steps: dict[int, tuple[int, int, float]] = {}  # step, epoch and rate
        self._newest: tuple[int, int, float] | None = None
        self._newest_rows = self._rows

    def take(
        self, loss: Float[Tensor, ""], losses: Float[Tensor, " b"], rows: Int64[Tensor, " b"]
    ) -> None:
        """Take in the losses of a step, on the device alone: what is kept changes in place.

        Args:
            loss: What is minimised.
            losses: The loss of each sample.
            rows: The row of each sample in the epoch.
        """
        if self._sum.dtype != loss.dtype:
            self._sum = self._sum.to(loss.dtype)
        if len(self._rows) != len(rows):
            self._rows = torch.full_like(rows, -1)
        self._sum += loss
        first = ~torch.isfinite(loss) & (self._first < 0)
        self._first.copy_(torch.where(first, self._taken, self._first))
        bad = torch.where(torch.isfinite(losses), -1, rows)
        self._rows.copy_(torch.where(first, bad, self._rows))
        self._taken += 1

    def note(self, step: int, epoch: int, rate: float, rows: Int64[Tensor, " b"]) -> None:
        """Note on the host which step it was whose losses were taken in.

        Args:
            step: Its number.
            epoch: Its epoch.
            rate: Its learning rate.
            rows: The row of each sample in the epoch.
        """
        self._newest = self._steps[self._noted] = (step, epoch, rate)
        self._newest_rows = rows
        self._noted += 1

    def mean(self) -> Float[Tensor, ""]:
        """Return the mean loss since the last call."""
        mean = self._sum / max(1, len(self._steps))
        self._sum.zero_()
        self._steps.clear()
        return mean

    def first_bad(
        self, values: Iterable[Tensor] = (), what: str = "weights are"
    ) -> FirstBadStep | None:
        """Wait for the device, and return where the loss was first not finite, on any process.

        Args:
            values: What must be finite too; after losses that were, it is the newest step that
                spoilt it.
            what: What that is.
        """
        mine = None
        if (first := int(self._first)) >= 0:
            rows = [row for row in self._rows.tolist() if row >= 0]
            mine = FirstBadStep(*self._steps[first], rows)
        elif self._newest and not all(bool(value.isfinite().all()) for value in values):
            mine = FirstBadStep(*self._newest, self._newest_rows.tolist(), what)
        found = [bad for bad in of_all_processes(mine) if bad is not None]
        if not found:
            return None
        earliest = min(found, key=lambda bad: bad.step)
        rows = sorted(row for bad in found if bad.step == earliest.step for row in bad.rows)
        return earliest._replace(rows=rows)


def of_all_processes(mine: T) -> list[T]:
    """Return what each process has, in all of them.

    Examples:
        >>> of_all_processes("alone")
        ['alone']
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [mine]
    every = [mine] * distributed.get_world_size()
    distributed.all_gather_object(every, mine)
    return every


def divergence_message(bad: FirstBadStep, names: list[str]) -> str:
    """Say where and with what a run diverged, and what helps.

    Args:
        bad: The first step whose loss was not finite.
        names: The samples of it that are to blame.
    """
    samples = f"; samples {listed(names)}" if names else ""
    return (
        f"the {bad.what} not finite since step {bad.step} (learning rate {bad.rate:.3g}"
        f"{samples}); lower the learning rate, clip gradients (trainer.gradient_clip_val) or use "
        f"a 32-bit precision"
    )
