"""A fixed reader of offsets: an exact ridge on what random filters see, the same for all data.

It needs no training, so that a fault of labels and crops shows apart from one of the network.
"""

from functools import lru_cache
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.solvers.least_squares import RidgeSolution, Rows, score_lambdas
from lightning_bbox.solvers.sums import gather

_SIDE, _FILTERS, _KERNEL, _PLACES, _COARSE = 45, 16, 7, 8, 9


class Offsets(NamedTuple):
    """Crops as the reader sees them, and their offsets.

    Attributes:
        features: Of each crop.
        targets: Where the true box lies, in px and log size.
        pictures: Which each is of; all of another by default.
    """

    features: Float[Tensor, "n f"]
    targets: Float[Tensor, "n t"]
    pictures: Int64[Tensor, " n"] | None = None

    def take(self, rows: Tensor) -> Self:
        """Return some rows."""
        pictures = None if self.pictures is None else self.pictures[rows]
        return type(self)(self.features[rows], self.targets[rows], pictures)


@lru_cache(maxsize=1)
def _filters() -> Float[Tensor, "k 3 h w"]:
    """Draw smooth filters of unit norm that see no constant; half of them see no colour."""
    drawn = torch.randn(_FILTERS, 3, _KERNEL, _KERNEL, generator=keyed_generator("reader"))
    half = _FILTERS // 2
    drawn[:half] = drawn[:half].mean(dim=1, keepdim=True)
    padded = functional.pad(drawn, (1, 1, 1, 1), mode="replicate")
    smooth = functional.avg_pool2d(padded, 3, 1)
    smooth = smooth - smooth.mean(dim=(1, 2, 3), keepdim=True)
    filters: Tensor = smooth / smooth.flatten(1).norm(dim=1)[:, None, None, None]
    return filters


@torch.no_grad()
def features_of(crops: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n f"]:
    """Return what the reader sees of crops in [0, 1]: filters' answers by place, and the picture.

    Each crop is centred by channel and scaled by its own contrast; filters' answers are rectified
    both ways and averaged over a grid of places, which keeps where they are.

    Args:
        crops: Of any side.
    """
    seen = []
    for some in torch.split(crops.float().cpu(), 256):
        if some.shape[-1] != _SIDE:
            some = functional.interpolate(  # noqa: PLW2901 (the same crops, as the reader sees them)
                some, (_SIDE, _SIDE), mode="bilinear", antialias=True
            )
        centred = some - some.mean(dim=(2, 3), keepdim=True)
        centred = centred / (centred.std(dim=(1, 2, 3), keepdim=True) + 1e-3)
        answers = functional.conv2d(centred, _filters(), stride=2, padding=_KERNEL // 2)
        rectified = torch.cat([answers.relu(), (-answers).relu()], dim=1)
        parts = (
            functional.adaptive_avg_pool2d(rectified, _PLACES),
            functional.adaptive_avg_pool2d(centred, _COARSE),
        )
        seen.append(torch.cat([part.flatten(1) for part in parts], dim=1))
    return torch.cat(seen)


class Reader:
    """An exact ridge from the fixed features to offsets, lambda by a quarter of the pictures.

    There are more features than crops, and several crops of a picture: generalised cross-validation
    then takes crops learned by heart for crops that are read, once in a few data sets.

    Args:
        train: What it learns from.
    """

    def __init__(self, train: Offsets) -> None:
        spectrum = gather(train.features, train.targets).spectrum("standard")
        self.solution: RidgeSolution = spectrum.solution(_best_lambda(train))

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n t"]:
        """Return the offsets that it reads, in fp64."""
        solution = self.solution
        return features.double() @ solution.weight.T + solution.bias

    def r2(self, seen: Offsets) -> Float[Tensor, " t"]:
        """Return the share of the offsets' variance that it explains, by coordinate."""
        truth = seen.targets.double()
        left = (self(seen.features) - truth).square().mean(dim=0)
        there = (truth - truth.mean(dim=0)).square().mean(dim=0)
        return 1 - left / there.clamp(min=1e-12)


def _best_lambda(train: Offsets) -> float:
    """Return the lambda by which those of a quarter of the pictures are read best."""
    count = len(train.targets)
    pictures = torch.arange(count) if train.pictures is None else train.pictures
    names = torch.unique(pictures)
    order = torch.randperm(len(names), generator=keyed_generator("reader", "held"))
    held = torch.isin(pictures, names[order[: max(1, len(names) // 4)]])
    if held.all():  # of one picture
        held = torch.arange(count) % 4 == 0
    learned, judged = train.take(~held), train.take(held)
    spectrum = gather(learned.features, learned.targets).spectrum("standard")
    grid, scores = score_lambdas([spectrum], [Rows(judged.features, judged.targets)])
    return float(grid[scores.argmin()]) * count / len(learned.targets)
