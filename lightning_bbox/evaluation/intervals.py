"""How sure a mean is: over few runs, over pictures or groups of them, and over both."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

FEWEST_CLUSTERS = 5
"""Pictures or groups from which on an interval over them is told: fewer don't show their spread."""

TOO_FEW = "too few groups for an interval"


class Mean(NamedTuple):
    """A mean of `n` runs, pictures or groups with its interval; nan where they tell no spread."""

    value: float
    low: float
    high: float
    n: int


def t_quantile(probability: float, dof: int | float) -> float:
    """Return the quantile of Student's t distribution, by bisection on its exact integral.

    Args:
        probability: Above a half, below 1.
        dof: Degrees of freedom, 1 or more. The integral is a finite sum for a whole number; between
            two of them the logarithm of the quantile is interpolated in 1 / dof, within 3 %.

    References:
        Abramowitz and Stegun, Handbook of mathematical functions (1964), 26.7.3 and 26.7.4.
    """
    below = math.floor(dof)
    if below < dof:
        ends = [math.log(t_quantile(probability, whole)) for whole in (below, below + 1)]
        share = (1 / below - 1 / dof) * below * (below + 1)
        return math.exp(ends[0] + share * (ends[1] - ends[0]))
    return _t_quantile(probability, below)


@lru_cache
def _t_quantile(probability: float, dof: int) -> float:
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


def clustered_interval(
    values: Float[Tensor, " n"],
    clusters: Int64[Tensor, " n"],
    weights: Float[Tensor, " n"] | None = None,
    level: float = 0.95,
    *,
    positive: bool = False,
) -> Mean:
    """Return a mean with its interval over clusters, whose values may resemble each other.

    The variance is the sum of the clusters' squared residuals, each divided by what its own share
    leaves over; its degrees of freedom are those it has where clusters differ as wholes. With
    clusters of one size this is the t-interval of their means. With weights the mean is a ratio:
    the sum of the values over that of the weights.

    Args:
        values: One number a sample.
        clusters: The picture or group of each sample.
        weights: What the values are divided by, in sum; 1 each by default.
        level: Probability of the interval.
        positive: Whether values are errors and the like, never below 0: few of these are skewed, so
            that their interval is taken on the scale of the logarithm.

    References:
        Bell and McCaffrey, Bias reduction in standard errors for linear regression with multi-stage
        samples (2002), for a mean. Their working model has independent samples, ours independent
        clusters: the coverage of both was simulated.
    """
    mean = _crossed([values], [clusters], None if weights is None else [weights], level)
    if not positive or not mean.low < mean.value:
        return mean
    factor = math.exp((mean.high - mean.value) / mean.value)
    return mean._replace(low=mean.value / factor, high=mean.value * factor)


def crossed_interval(
    values: Sequence[Float[Tensor, " _"]], clusters: Sequence[Int64[Tensor, " _"]]
) -> Mean:
    """Return a mean over runs with the 95 % interval over runs and pictures.

    Halves of the t-intervals over runs and over pictures or groups add up as squares; what is
    peculiar to a run on a picture, and so is part of both, counts once. A single run's interval is
    over pictures only, and `n` is how many runs there are.

    Args:
        values: For each run, one number a draw.
        clusters: For each run, the picture or group of each draw.

    References:
        Cameron, Gelbach and Miller, Robust inference with multiway clustering (2011), for the
        variance. A quantile for each of its parts, instead of one for their sum, is ours: two or
        three runs hold less than they tell otherwise.
    """
    return _crossed(values, clusters, None, 0.95)._replace(n=len(values))


def _crossed(
    values: Sequence[Tensor],
    clusters: Sequence[Tensor],
    weights: Sequence[Tensor] | None,
    level: float,
) -> Mean:
    """Return a mean over runs and clusters with its interval, and the number of clusters."""
    sums, sizes = _totals(values, clusters, weights)
    runs, count = sums.shape
    totals = sizes.sum(dim=1, keepdim=True)
    means, shares = sums.sum(dim=1, keepdim=True) / totals, sizes / totals
    residuals = sums / totals - means * shares
    value = float(means.mean())
    if count < FEWEST_CLUSTERS:
        return Mean(value, math.nan, math.nan, count)
    probability = (1 + level) / 2
    share = shares.mean(dim=0)
    of_clusters = residuals.mean(dim=0)
    variance = (of_clusters.square() / (1 - share)).sum()
    square = t_quantile(probability, _degrees_of_freedom(share)) ** 2
    if runs == 1:
        half = math.sqrt(square * variance)
    else:
        peculiar = (residuals - of_clusters).square() / (1 - share)
        variance = (variance - peculiar.sum() / (runs * (runs - 1))).clamp(min=0)
        of_runs = means.var() / runs
        half = math.sqrt(square * variance + t_quantile(probability, runs - 1) ** 2 * of_runs)
    return Mean(value, value - half, value + half, count)


def _degrees_of_freedom(share: Float64[Tensor, " c"]) -> float:
    """Return those of the variance of a mean over clusters that have these shares of it.

    Satterthwaite's, for clusters whose means vary alike: the squared trace of the variance's
    quadratic form, over the trace of its square, multiplied out.
    """
    spread, apart = share.square(), 1 / (1 - share)
    drawn = share * apart
    shift = (share * drawn).sum()
    own = shift - 2 * drawn
    whole, first, second = spread.sum(), (spread * drawn).sum(), (spread * drawn.square()).sum()
    trace = (spread * (apart + own)).sum()
    crossed = (shift * whole) ** 2 + 2 * second * whole + 2 * first**2 - 4 * shift * whole * first
    squared = crossed + (spread.square() * apart * (apart + 2 * own)).sum()
    return max(float(trace**2 / squared), 1.0)


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
