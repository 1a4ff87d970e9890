"""Watch the losses without waiting for the device, and say where they first were not finite."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed

from lightning_bbox.core.errors import listed

T = TypeVar("T")

OUTCOME = "outcome.json"
"""The file of a run that did not arrive: what became of it, at which step, and why."""


BAD_STEP = "bad_step.pt"
"""The file that keeps weights and batch of the step at which a run diverged."""
BAD_STEP_KEY = "bad_step"
"""Where the batch stands in it; all else is a checkpoint's."""
_MOST_BYTES = 64 * 2**20  # of the crops that are kept, and of the weights


class DivergedError(RuntimeError):
    """Training produced a loss, or weights, that are not finite.

    Args:
        message: What happened, and what helps.
        step: The step at which it was first seen.
        kept: What `BAD_STEP` is to hold, in the one process whose step it was.
    """

    def __init__(self, message: str, step: int, kept: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.step, self.kept = step, kept


class FirstBadStep(NamedTuple):
    """The first step whose loss was not finite, or whose gradient spoilt the weights.

    Attributes:
        step: Its number.
        epoch: Its epoch.
        rate: Its learning rate.
        rows: Rows of the epoch, of this process, whose losses were not finite, or which spoilt
            the weights.
        what: What is not finite.
        rank: The process it was first seen in.
    """

    step: int
    epoch: int
    rate: float
    rows: list[int]
    what: str = "loss is"
    rank: int = 0


class SoundStep(NamedTuple):
    """The last step whose weights were still finite, up to the first that went wrong.

    Attributes:
        step: Its number.
        epoch: Its epoch.
        rate: Its learning rate.
        rows: Its rows of the epoch, of this process.
        weights: What was followed, as it was before the step.
    """

    step: int
    epoch: int
    rate: float
    rows: Int64[Tensor, " b"]
    weights: list[Tensor]


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
        self._summed = 0
        self._newest: tuple[int, int, float] | None = None
        self._newest_rows = self._rows
        self._weights: list[Tensor] = []
        self._sound = torch.zeros(0, device=device)  # the weights, one after the other
        self._sound_rows = self._rows
        self._sound_at = torch.full_like(self._taken, -1)

    def follow(self, weights: Sequence[Tensor]) -> None:
        """Keep these weights as they are before each step, until one goes wrong.

        More than 64 MB of them aren't kept: copies would take longer than a step may be slowed.

        Args:
            weights: Those that learn; others than before are kept from the next step on.
        """
        if sum(own.nbytes for own in weights) > _MOST_BYTES:
            weights = ()
        if [*map(id, weights)] != [*map(id, self._weights)]:
            self._weights = list(weights)
            self._sound = self._flat().clone()
            self._sound_at.fill_(-1)

    def _flat(self) -> Float[Tensor, " w"]:
        flat = [weights.detach().flatten() for weights in self._weights]
        return torch.cat(flat) if flat else self._sound[:0]

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
            self._sound_rows = torch.full_like(rows, -1)
        flat = self._flat()
        sound = self._first < 0
        if len(flat):
            ends = torch.stack(torch.aminmax(flat))  # in a tenth of the time of a look at each
            sound = sound & ends.isfinite().all()
        for kept, now in (
            (self._sound, flat),
            (self._sound_rows, rows),
            (self._sound_at, self._taken),
        ):
            torch.where(sound, now, kept, out=kept)
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
        self._summed += 1

    def mean(self) -> Float[Tensor, ""]:
        """Return the mean loss since the last call."""
        mean = self._sum / max(1, self._summed)
        self._sum.zero_()
        self._summed = 0
        # The next step may show that the newest one spoilt the weights.
        self._steps = {at: self._steps[at] for at in [*self._steps][-1:]}
        return mean

    def last_sound(self) -> SoundStep | None:
        """Wait for the device, and return the step that went wrong, as it was before it did.

        It is the first whose loss was not finite, or the one before where that one had spoilt the
        weights; None where it isn't known any more, or no weights were followed.
        """
        noted = self._steps.get(int(self._sound_at))
        if noted is None or not self._weights:
            return None
        sizes = [weights.numel() for weights in self._weights]
        pieces = zip(torch.split(self._sound, sizes), self._weights, strict=True)
        weights = [piece.view_as(like).to(like.dtype) for piece, like in pieces]
        return SoundStep(*noted, self._sound_rows, weights)

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
        found = [
            bad._replace(rank=rank)
            for rank, bad in enumerate(of_all_processes(mine))
            if bad is not None
        ]
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


def kept_rows(
    rows: Int64[Tensor, " b"], blamed: Sequence[int], bytes_each: int
) -> Int64[Tensor, " k"]:
    """Return the places of a batch's samples that are kept: all that fit, those to blame first.

    Args:
        rows: Row of each sample in the epoch.
        blamed: Rows of those to blame.
        bytes_each: Size of one in the file.

    Examples:
        >>> kept_rows(torch.tensor([7, 8, 9]), [9], 30 * 2**20).tolist()
        [0, 2]
    """
    fit = max(1, _MOST_BYTES // max(1, bytes_each))
    innocent = ~torch.isin(rows, torch.tensor(blamed, dtype=rows.dtype, device=rows.device))
    return torch.argsort(innocent.int(), stable=True)[:fit].sort().values


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
