"""The loader: which rows of the epoch's plan this process takes next.

It yields row numbers only. A rank takes every n-th row of one and the same global batch, and after
a stop the first batch is where Lightning's own progress says.
"""

import math
from collections.abc import Callable, Generator, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Split = Literal["train", "train_eval", "val", "val_widths", "test", "test_widths", "predict"]
"""`train_eval` are fixed, unaugmented training draws: people get stuck there already. `predict` are
rough boxes to refine, each once. `val_widths` and `test_widths` are drawn at several widths of the
jitter law, from boxes that are right to those that are off as in training."""


class HostCrops:
    """Crops that were cut on the host, ahead of the step.

    Wrapped, so that Lightning doesn't round them to the precision of the network before they are
    augmented.

    Args:
        tensor: The crops.
    """

    def __init__(self, tensor: Float[Tensor, "b 3 s s"]) -> None:
        self.tensor = tensor

    def to(self, device: torch.device) -> "HostCrops":
        """Move them, without waiting for it where they are page-locked."""
        return HostCrops(self.tensor.to(device, non_blocking=True))


class Rows(NamedTuple):
    """What a loader yields: rows of an epoch, for a step or, a row of rows each, for several.

    `valid` is false where a row only fills up the batch. `crops` are there where they were cut on
    the host, ahead of the step.
    """

    split: Split
    epoch: int
    rows: Int64[Tensor, "*k b"]
    valid: Bool[Tensor, "*k b"]
    crops: HostCrops | None = None

    def to(self, device: torch.device) -> "Rows":
        """Move all of it."""
        crops = None if self.crops is None else self.crops.to(device)
        return self._replace(rows=self.rows.to(device), valid=self.valid.to(device), crops=crops)

    def steps(self) -> Iterator["Rows"]:
        """Yield what each of several steps takes."""
        for index in range(len(self.rows)):
            crops = None if self.crops is None else HostCrops(self.crops.tensor[index])
            yield self._replace(rows=self.rows[index], valid=self.valid[index], crops=crops)


Walk = Generator[Rows, None, None]


def rank_share(
    num_rows: int, batch_size: int, batch: int, rank: int, world_size: int
) -> Int64[Tensor, " share"]:
    """Return the rows of a global batch that belong to one rank.

    Args:
        num_rows: How many rows the epoch has; the last batch may be short.
        batch_size: Size of the global batch.
        batch: Number of the global batch.
        rank: This process.
        world_size: Number of processes.
    """
    start = batch * batch_size
    return torch.arange(start, min(start + batch_size, num_rows))[rank::world_size]


class PlanLoader:
    """Yield the rows of each global batch that belong to this rank, from wherever the run stands.

    Args:
        split: Split to walk through.
        num_rows: Samples in an epoch.
        batch_size: Size of the global batch.
        rank: This process.
        world_size: Number of processes.
        position: Called at the first batch: the epoch and the global batch to begin with.
        full: Leave out a short last batch, instead of filling it up.
        prefetch: What makes ready what the rows stand for, ahead of the steps.
        steps: How many global batches are yielded at once, the last ones of an epoch perhaps fewer;
            the position counts them as one. Only where all are full.
    """

    def __init__(
        self,
        split: Split,
        num_rows: int,
        batch_size: int,
        rank: int,
        world_size: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        full: bool = False,
        prefetch: Callable[[Walk], Walk] = lambda walk: walk,
        steps: int = 1,
    ) -> None:
        assert full or steps == 1
        self.split, self.num_rows, self.batch_size = split, num_rows, batch_size
        self.rank, self.world_size, self.position, self.full = rank, world_size, position, full
        self.prefetch, self.steps = prefetch, steps

    def __len__(self) -> int:
        """Return how often something is yielded in a whole epoch."""
        return math.ceil(self.num_batches / self.steps)

    @property
    def num_batches(self) -> int:
        """The number of global batches in a whole epoch."""
        return (
            self.num_rows // self.batch_size if self.full else -(-self.num_rows // self.batch_size)
        )

    def state_dict(self) -> dict[str, int]:
        """Return nothing: Lightning asks, but the position is read from its own progress."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore nothing, for the same reason."""

    def __iter__(self) -> Walk:
        """Walk from the position to the end of the epoch."""
        return self.prefetch(self._walk())

    def _walk(self) -> Walk:
        epoch, first = self.position()
        for start in range(first * self.steps, self.num_batches, self.steps):
            batches = range(start, min(start + self.steps, self.num_batches))
            rows, valid = zip(*(self._share(index) for index in batches), strict=True)
            if self.steps == 1:
                yield Rows(self.split, epoch, rows[0], valid[0])
            else:
                yield Rows(self.split, epoch, torch.stack(rows), torch.stack(valid))

    def _share(self, index: int) -> tuple[Int64[Tensor, " b"], Bool[Tensor, " b"]]:
        """Return this rank's rows of a global batch, and which of them are valid."""
        rows = rank_share(self.num_rows, self.batch_size, index, self.rank, self.world_size)
        if self.full:
            return rows, torch.ones(len(rows), dtype=torch.bool)
        filled = torch.zeros(-(-self.batch_size // self.world_size), dtype=torch.int64)
        filled[: len(rows)] = rows
        return filled, torch.arange(len(filled)) < len(rows)
