"""Which boxes lie farther off than any of the training did, by what a model says of them.

Out there a model errs by more than it tells: it has seen no such box. It mostly says so, if not in
so many words, by large standard deviations and by shifts up to the end of its range.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput

FEWEST_DRAWS = 20
"""Boxes on either side of the range's end from which on they can be told apart."""
_LEVEL = 0.99  # of the boxes inside, which are to stay unmarked

Offsets = Float[Tensor, "n t"]
Traits = Float[Tensor, "n 2"]


@dataclass(frozen=True)
class TrainedRange:
    """How boxes that lie farther off than those of the training are told from these.

    Args:
        weights: How much each of a box's traits (see `traits_of`) counts.
        limit: What their weighted sum is at most inside the range.

    Raises:
        BadInput: The numbers can't be those of a range.

    Examples:
        >>> trained = TrainedRange((1.0, 2.0), -2.0)
        >>> trained.is_left(torch.tensor([[0.9, -3.0], [0.4, -0.9]]))
        tensor([False,  True])
    """

    weights: tuple[float, float]
    limit: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        numbers = [*self.weights, self.limit]
        if not all(math.isfinite(number) for number in numbers):
            msg = f"{self} can't be a model's: expected finite numbers"
            raise BadInput(msg)

    def is_left(self, traits: Traits) -> Bool[Tensor, " n"]:
        """Tell which boxes lie farther off than those of the training.

        Args:
            traits: What a model says of each. Of one that tells no deviation nothing is told.
        """
        return traits @ traits.new_tensor(self.weights) > self.limit

    def plain(self) -> dict[str, Any]:
        """Return it as lists of numbers, for a checkpoint."""
        return {"weights": list(self.weights), "limit": self.limit}

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Self:
        """Make it of what `plain` returned.

        Raises:
            ValueError, TypeError, KeyError: It isn't that.
        """
        displacement, deviation = told["weights"]
        return cls((displacement, deviation), told["limit"])


def of_another_kind(beyond: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Tell which of a set of boxes had better stay: those beyond the range, where most are.

    Where few are marked, what the model says of these helps in the mean. Where most are, boxes are
    farther off than in training, and end somewhere on the way, or pictures are of another kind,
    and moving does harm: which of the two can't be told.

    Args:
        beyond: Which boxes of the set lie beyond the trained range.

    Examples:
        >>> of_another_kind(torch.tensor([True, True, False])).tolist()
        [True, True, False]
        >>> of_another_kind(torch.tensor([True, False, False])).tolist()
        [False, False, False]
    """
    return beyond & (2 * beyond.sum() > len(beyond))


def traits_of(said: Offsets, stds: Offsets, bounds: Sequence[float]) -> Traits:
    """Return the traits by which boxes beyond the trained range are known.

    They are how far off a model says that a box is, and the logarithm of its standard deviation:
    both of the coordinate where it is largest, and as shares of the largest displacement trained.

    Args:
        said: How a model says that each box is off, in px and log sizes, at its first look.
        stds: Its standard deviations there.
        bounds: How far off boxes were in training at most. A coordinate that never was counts for
            nothing.

    Examples:
        >>> traits_of(torch.tensor([[5.0, -9.0]]), torch.tensor([[10.0, 1.0]]), (10.0, 10.0))
        tensor([[0.9000, 0.0000]])
    """
    taken = [at for at, bound in enumerate(bounds) if bound > 0]
    ends = said.new_tensor([bounds[at] for at in taken])
    displacement = (said[:, taken].abs() / ends).amax(dim=1)
    return torch.stack([displacement, (stds[:, taken] / ends).amax(dim=1).log()], dim=1)


def fit_range(
    traits: Traits, inside: Bool[Tensor, " n"], usual: Bool[Tensor, " n"]
) -> TrainedRange | None:
    """Find how boxes beyond a range are told from those inside, by the linear discriminant.

    Of new boxes that are off as in training, at most 1 % will count as beyond in the mean: the
    limit is the rank below which a new one falls with that probability.

    Args:
        traits: What a model says of each box.
        inside: Which boxes are off by no more than any in training.
        usual: Which of them are off as in training.

    Returns:
        What was found; None where there are fewer than 20 boxes inside, outside or usual ones, or
        no standard deviations told.

    References:
        Fisher, The use of multiple measurements in taxonomic problems (1936). Vovk, Gammerman and
        Shafer, Algorithmic learning in a random world (2005), for the limit.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> traits = torch.rand(2000, 2, generator=generator)
        >>> inside = traits[:, 1] < 0.5
        >>> fit_range(traits, inside, inside).is_left(torch.tensor([[0.5, 0.1], [0.5, 0.9]]))
        tensor([False,  True])
    """
    traits, known = traits.double(), traits.isfinite().all(dim=1)
    groups = [traits[known & group] for group in (inside, ~inside, usual & inside)]
    if min(map(len, groups)) < FEWEST_DRAWS:
        return None
    within, beyond, ranked = groups
    scatter = within.T.cov() + beyond.T.cov()
    slack = 1e-6 * scatter.diagonal().mean().clamp(min=1e-6) * torch.eye(2, dtype=scatter.dtype)
    weights = torch.linalg.solve(scatter + slack, beyond.mean(dim=0) - within.mean(dim=0))
    scores = (ranked @ weights).sort().values
    rank = min(len(scores), math.ceil(_LEVEL * (len(scores) + 1)))
    displacement, deviation = weights.tolist()
    return TrainedRange((displacement, deviation), float(scores[rank - 1]))
