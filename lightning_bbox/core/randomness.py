"""The epoch plan: which item is drawn when, and every random number of an epoch.

All randomness of a sample is a function of (seed, epoch, sample index). It is drawn for the whole
epoch at once on the CPU and then moved, so every device, every number of processes and every
resumed run sees the same samples.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


def stream_seed(*key: int | str) -> int:
    """Hash a key to a seed for one stream of random numbers.

    Args:
        key: What the stream depends on, for instance ("shift", seed, epoch).

    Returns:
        An integer in [0, 2^63), the same on every machine.

    Examples:
        >>> stream_seed("shift", 0, 1) == stream_seed("shift", 0, 1) != stream_seed("shift", 1, 0)
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by a key.

    Examples:
        >>> first, again = (torch.rand(3, generator=keyed_generator("a", 1)) for _ in range(2))
        >>> first.equal(again)
        True
    """
    return torch.Generator().manual_seed(stream_seed(*key))


@contextmanager
def fp32_by_default() -> Iterator[None]:
    """Let tensors be made in fp32 for a while, whatever torch's default is.

    It is that of all threads: for what happens before any runs beside.

    Examples:
        >>> with fp32_by_default():
        ...     torch.zeros(1).dtype
        torch.float32
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class EpochPlan:
    """The order and the random numbers of one epoch.

    Items are used evenly: the epochs walk along one endless sequence of shuffled passes over the
    items, so after any number of epochs two items' counts differ by one at most.

    Args:
        seed: Seed of the run; evaluation uses a fixed one.
        epoch: Number of the epoch, from 0.
        num_items: How many items (boxes, patches) there are to draw from.
        num_draws: How many samples the epoch has.

    Examples:
        >>> EpochPlan(seed=0, epoch=0, num_items=2, num_draws=4).order.bincount()
        tensor([2, 2])
    """

    seed: int
    epoch: int
    num_items: int
    num_draws: int

    @property
    def order(self) -> Int64[Tensor, " num_draws"]:
        """The item of each sample."""
        start = self.epoch * self.num_draws
        first, last = start // self.num_items, (start + self.num_draws - 1) // self.num_items
        passes = [
            torch.randperm(self.num_items, generator=keyed_generator("order", self.seed, index))
            for index in range(first, last + 1)
        ]
        offset = start - first * self.num_items
        return torch.cat(passes)[offset : offset + self.num_draws]

    def order_by(
        self, kinds: Int64[Tensor, " num_items"], weights: Float64[Tensor, " k"]
    ) -> Int64[Tensor, " num_draws"]:
        """Return the item of each sample where items of some kinds are drawn more often.

        How often a kind is drawn in an epoch doesn't change, and each kind's items are used evenly,
        as `order` uses all.

        Args:
            kinds: The kind of each item, from 0.
            weights: How often an item of each kind is drawn, beside those of the others.

        Examples:
            >>> plan = EpochPlan(seed=0, epoch=0, num_items=4, num_draws=6)
            >>> kinds, weights = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 3.0]).double()
            >>> plan.order_by(kinds, weights).bincount()
            tensor([1, 1, 1, 3])
        """
        orders = []
        for kind, count in enumerate(self.draws_by(kinds, weights).tolist()):
            own = (kinds == kind).nonzero().flatten()
            if count:
                seed = stream_seed("kind", self.seed, kind)
                orders.append(own[EpochPlan(seed, self.epoch, len(own), count).order])
        mixed = keyed_generator("mixed kinds", self.seed, self.epoch)
        return torch.cat(orders)[torch.randperm(self.num_draws, generator=mixed)]

    def draws_by(
        self, kinds: Int64[Tensor, " num_items"], weights: Float64[Tensor, " k"]
    ) -> Int64[Tensor, " k"]:
        """Return how often each kind is drawn: its share, and the largest rests rounded up.

        Args:
            kinds: The kind of each item, from 0.
            weights: How often an item of each kind is drawn, beside those of the others.
        """
        shares = kinds.bincount(minlength=len(weights)) * weights
        asked = shares / shares.sum() * self.num_draws
        counts = asked.long()
        first = (counts - asked).argsort(stable=True)[: self.num_draws - int(counts.sum())]
        counts[first] += 1
        return counts

    def uniform(self, stream: str, columns: int) -> Float[Tensor, "num_draws columns"]:
        """Draw numbers in [0, 1), one row a sample; streams don't influence each other.

        They are in fp32 whatever torch's default is, which draws other numbers in fp64.
        """
        generator = keyed_generator(stream, self.seed, self.epoch)
        shape = self.num_draws, columns
        return torch.rand(shape, dtype=torch.float32, generator=generator)
