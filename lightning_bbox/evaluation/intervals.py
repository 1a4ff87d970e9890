"""How sure a mean is: Student's t over few runs, and a bootstrap over runs and pictures."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.randomness import keyed_generator


class Mean(NamedTuple):
    """A mean of `n` values with its 95 % interval; both ends are nan where one tells no spread."""

    value: float
    low: float
    high: float
    n: int


def t_quantile(probability: float, dof: int) -> float:
    """Return the quantile of Student's t distribution, by bisection on its exact integral.

    Args:
        probability: Above a half, below 1.
        dof: Degrees of freedom, a whole number, for which the integral is a finite sum.

    References:
        Abramowitz and Stegun, Handbook of mathematical functions (1964), 26.7.3 and 26.7.4.

    Examples:
        >>> round(t_quantile(0.975, 2), 4)
        4.3027
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        below = _t_between(middle, dof) < 2 * probability - 1
        low, high = (middle, high) if below else (low, middle)
    return math.tan(low) * math.sqrt(dof)


def _t_between(angle: float, dof: int) -> float:
    """Return the probability that t lies between -tan(angle) sqrt(dof) and the same above 0."""
    square, odd = math.cos(angle) ** 2, dof % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if dof == 1 else term
    for power in range(2 + odd, dof - 1, 2):
        term *= square * (power - 1) / power
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def t_interval(values: Sequence[float]) -> Mean:
    """Return the mean of a few values with its 95 % t-interval.

    Args:
        values: One for each run; of a single one there is no interval.

    References:
        Student, The probable error of a mean (1908).

    Examples:
        >>> mean = t_interval([1.0, 2.0, 3.0])
        >>> f"{mean.value} ({mean.low:.2f} to {mean.high:.2f})"
        '2.0 (-0.48 to 4.48)'
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, math.nan, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(0.975, count - 1) * math.sqrt(variance / count)
    return Mean(mean, mean - half, mean + half, count)


def crossed_bootstrap(
    values: Sequence[Float[Tensor, " _"]],
    pictures: Sequence[Int64[Tensor, " _"]],
    resamples: int = 2000,
) -> Mean:
    """Return a mean over runs with the 95 % percentile interval over runs, then pictures.

    Each resample draws runs, then whole pictures. All runs see the same pictures, so those drawn
    are the same for each run drawn: what is peculiar to a picture doesn't average out over runs.
    A resample of a few runs spreads less than their mean does, so their deviations are widened
    until they weigh as much as in the t-interval. A single run's interval is over pictures only.

    Args:
        values: For each run, one number a draw.
        pictures: For each run, the picture of each draw.
        resamples: How many times.

    References:
        Owen, The pigeonhole bootstrap (2007): two crossed factors. Davison and Hinkley, Bootstrap
        methods and their application (1997), section 3.8: hierarchical data. The widening is ours.

    Examples:
        >>> apart = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])]
        >>> crossed_bootstrap(apart, [torch.tensor([0, 1])] * 2)
        Mean(value=1.5, low=1.0, high=2.0, n=2)
    """
    count = len(values)
    names, places = torch.unique(torch.cat([*pictures]), return_inverse=True)
    lengths = torch.tensor([len(run) for run in values])
    cells = (torch.arange(count).repeat_interleave(lengths), places)
    numbers = torch.cat([*values]).double()
    empty = torch.zeros(count, len(names), dtype=torch.float64)
    sums = empty.index_put(cells, numbers, accumulate=True)
    sizes = empty.index_put(cells, torch.ones_like(numbers), accumulate=True)
    means = sums.sum(dim=1) / sizes.sum(dim=1)
    sums += (_widening(count) - 1) * (means - means.mean())[:, None] * sizes
    generator = keyed_generator("crossed bootstrap")
    runs = _resampled(count, resamples, generator)
    drawn = _resampled(len(names), resamples, generator)
    resampled = (runs @ sums * drawn).sum(dim=1) / (runs @ sizes * drawn).sum(dim=1)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = resampled.quantile(tails).tolist()
    return Mean(float(means.mean()), low, high, count)


def _widening(count: int) -> float:
    """Return how much wider the t-interval of a few values is than their bootstrap's."""
    if count == 1:
        return 1.0
    wider = t_quantile(0.975, count - 1) / NormalDist().inv_cdf(0.975)
    return math.sqrt(count / (count - 1)) * wider


def _resampled(count: int, resamples: int, generator: torch.Generator) -> Float[Tensor, "r n"]:
    """Return how often each of some is drawn, with replacement, in each resample."""
    draws = torch.randint(count, (resamples, count), generator=generator)
    often = torch.zeros(resamples, count, dtype=torch.float64)
    return often.scatter_add_(1, draws, torch.ones_like(often))
