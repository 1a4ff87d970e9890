"""How sure a mean is: Student's t over few runs, bootstraps over pictures, and over both."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
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
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, math.nan, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(0.975, count - 1) * math.sqrt(variance / count)
    return Mean(mean, mean - half, mean + half, count)


def bootstrap_interval(
    values: Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    resamples: int = 1000,
    level: float = 0.95,
    weights: Float[Tensor, " n"] | None = None,
) -> tuple[float, float]:
    """Return the percentile interval of a mean under resampling of whole clusters.

    With weights it is that of a ratio: the sum of the values over the sum of the weights.

    Args:
        values: One number a sample.
        clusters: The picture or group each sample belongs to; these are drawn with replacement.
        resamples: How many times.
        level: Probability of the interval.
        weights: What the values are divided by, in sum; 1 each by default.

    References:
        Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    (sums,), (sizes,) = _totals([values], [clusters], None if weights is None else [weights])
    draws = _draws(len(sums), resamples, keyed_generator("bootstrap"))
    return _percentiles(sums[draws].sum(dim=1) / sizes[draws].sum(dim=1), (1 - level) / 2)


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
    """
    sums, sizes = _totals(values, pictures)
    count, num_pictures = sums.shape
    means = sums.sum(dim=1) / sizes.sum(dim=1)
    sums += (_widening(count) - 1) * (means - means.mean())[:, None] * sizes
    generator = keyed_generator("crossed bootstrap")
    runs = _times_drawn(count, resamples, generator)
    drawn = _times_drawn(num_pictures, resamples, generator)
    resampled = (runs @ sums * drawn).sum(dim=1) / (runs @ sizes * drawn).sum(dim=1)
    low, high = _percentiles(resampled, 0.025)
    return Mean(float(means.mean()), low, high, count)


def _totals(
    values: Sequence[Tensor], clusters: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> tuple[Float64[Tensor, "r c"], Float64[Tensor, "r c"]]:
    """Return the sums of the values and of the weights, by run and cluster."""
    names, places = torch.unique(torch.cat([*clusters]), return_inverse=True)
    numbers = torch.cat([*values]).double()
    sizes = torch.ones_like(numbers) if weights is None else torch.cat([*weights]).double()
    lengths = torch.tensor([len(run) for run in values])
    cells = torch.arange(len(values)).repeat_interleave(lengths) * len(names) + places
    shape = len(values), len(names)
    empty = torch.zeros(shape, dtype=torch.float64).flatten()
    return (
        empty.index_add(0, cells, numbers).view(shape),
        empty.index_add(0, cells, sizes).view(shape),
    )


def _widening(count: int) -> float:
    """Return how much wider the t-interval of a few values is than their bootstrap's."""
    if count == 1:
        return 1.0
    wider = t_quantile(0.975, count - 1) / NormalDist().inv_cdf(0.975)
    return math.sqrt(count / (count - 1)) * wider


def _draws(count: int, resamples: int, generator: torch.Generator) -> Int64[Tensor, "r n"]:
    """Return which of some are drawn, with replacement, in each resample."""
    return torch.randint(count, (resamples, count), generator=generator)


def _times_drawn(count: int, resamples: int, generator: torch.Generator) -> Float64[Tensor, "r n"]:
    """Return how often each of some is drawn, with replacement, in each resample."""
    draws = _draws(count, resamples, generator)
    often = torch.zeros(resamples, count, dtype=torch.float64)
    return often.scatter_add_(1, draws, torch.ones_like(often))


def _percentiles(resampled: Float64[Tensor, " r"], tail: float) -> tuple[float, float]:
    """Return the values that this share of the resamples is below, and above."""
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = resampled.quantile(ends).tolist()
    return low, high
