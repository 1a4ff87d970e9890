"""The batch size whose throughput is near the best: measured, before training begins."""

import time
from collections.abc import Callable, Iterable
from itertools import chain, count, pairwise, takewhile
from statistics import median
from typing import NamedTuple

import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.memory import peak_host_memory
from lightning_bbox.core.messages import say
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Batch
from lightning_bbox.pictures.places import measure_room

NEAR = 0.95
"""What a batch size must reach of the best throughput."""

PATIENCE = 3
"""Doublings that may bring nothing: beyond, larger batches are not measured."""

_SMALLEST = 16
_SECONDS = 1.0  # of measuring a size
_FEWEST = 3  # steps of a size


class Knee(NamedTuple):
    """The smallest batch whose throughput is near the best.

    Attributes:
        size: Samples in the global batch.
        rates: Samples a second by size, over all processes.
        limit: What ended the search.
    """

    size: int
    rates: dict[int, float]
    limit: str

    def sentence(self) -> str:
        """Say what was found."""
        found = ", ".join(f"{size}: {rate:.0f}" for size, rate in self.rates.items())
        return (
            f"batch_size: {self.size}, the smallest within {100 * (1 - NEAR):.0f} % of the most "
            f"crops a second ({found}; {self.limit}); the learning rate is as you set it"
        )


def find_knee(sizes: Iterable[int], measure: Callable[[int], float | None]) -> Knee:
    """Measure ever larger batches, and return the smallest that is near the best.

    Args:
        sizes: Batch sizes, ascending.
        measure: Samples a second of a size, or None where it doesn't fit into memory.

    Raises:
        BadInput: Not even the smallest batch fits into memory.
    """
    rates, limit = dict[int, float](), "no more are drawn in an epoch"
    for size in sizes:
        rate = measure(size)
        if rate is None:
            limit = f"{size} don't fit into memory"
            break
        rates[size] = rate
        if sum(larger > _smallest_near_the_best(rates) for larger in rates) >= PATIENCE:
            limit = "more bring no more"
            break
    if not rates:
        msg = "data.batch_size is auto, but not even the smallest batch fits into memory; free some"
        raise BadInput(msg)
    return Knee(_smallest_near_the_best(rates), rates, limit)


def _smallest_near_the_best(rates: dict[int, float]) -> int:
    least = NEAR * max(rates.values())
    return min(size for size, rate in rates.items() if rate >= least)


def batch_sizes(draws_per_epoch: int, world_size: int) -> list[int]:
    """Return the sizes to try: powers of two, of two samples a process or more.

    Args:
        draws_per_epoch: Most that a batch can hold.
        world_size: Number of processes.
    """
    powers = list(takewhile(lambda size: size <= draws_per_epoch, (1 << n for n in count())))
    enough = [size for size in powers if size >= max(_SMALLEST, 2 * world_size)]
    return enough or powers[-1:]


def find_batch_size(data: CropDataModule, step: Callable[[Batch], object]) -> None:
    """Find the batch size of a data module whose trainer is about to train.

    All processes measure; the first one decides.

    Args:
        data: What makes the batches.
        step: Trains on one, and leaves no trace in the model.

    Raises:
        BadInput: Not even the smallest batch fits into memory.
    """
    trainer = data.trainer
    assert trainer is not None
    device = trainer.strategy.root_device
    room = measure_room(device)
    free = room.device // (trainer.num_devices if room.shared else 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_memory(device)

    def measure(size: int) -> float | None:
        if 2 * (peak_memory(device) - before) > free:  # twice what half as many took
            return None
        data.batch_size = size
        try:
            return size / median(_seconds(data, step, device))
        except torch.OutOfMemoryError:
            return None

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        knee = find_knee(batch_sizes(data.draws_per_epoch, trainer.world_size), measure)
    data.batch_size = trainer.strategy.broadcast(knee.size)
    say(knee.sentence())


def _seconds(
    data: CropDataModule, step: Callable[[Batch], object], device: torch.device
) -> list[float]:
    """Return the seconds of each of some steps but the first, which warms up."""
    batches = chain.from_iterable(data.batches("train", 0, device) for _ in count())
    ends = list[float]()
    while len(ends) <= _FEWEST or ends[-1] - ends[0] < _SECONDS:
        step(next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(ends)]


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_host_memory()
