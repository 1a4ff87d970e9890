"""How far what a model says of boxes can be relied on, measured where the truth is known.

What a model says errs by a bias, follows the truth by a slope below one, since far offsets are
rare, and is off by more than it tells, sometimes by much more. Weighed against a law of how boxes
are off, each of these would look like one of the boxes' own ways of being off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_bbox.core.errors import BadInput

FEWEST_DRAWS = 50
"""Draws from which on what is measured tells more than it errs itself."""
_STEPS = 60
_FARTHEST = 10.0
_LEAST_SLOPE = 0.1  # below it what is said hardly depends on the truth
_LEAST_FACTOR = 1e-3
_GROSS = 5.0  # usual errors: the model took another object for the box's own
_LEAST_SPREAD = 1e-6  # of truths, in shares of a box
_BEGUN_SHARES, _BEGUN_WIDTHS = (0.9, 0.1), (1.0, 3.0)
_MEDIAN = 0.6745  # of a standard normal error's size

Offsets = Float[Tensor, "n t"]
Tails = tuple[tuple[float, float], ...]
"""Shares of boxes, and by what factor of the usual one their errors are spread."""
NORMAL: Tails = ((1.0, 1.0),)
"""Errors that are all spread as told."""


@dataclass(frozen=True)
class Reliability:
    """How what a model says of boxes errs.

    Offsets and standard deviations are in shares of the given box's sides and changes of log size,
    a number for each coordinate.

    Args:
        bias: What it says of boxes that are right, in the mean.
        slope: How much of a displacement it says.
        factors: The usual error over the standard deviation told.
        tails: Shares of boxes whose errors, in all coordinates, are by a factor the usual ones.
        common: How large a part of the usual error boxes that are off alike have in common, as
            standard deviations; () where that isn't known.

    Raises:
        BadInput: The numbers can't be those of a model.
    """

    bias: tuple[float, ...]
    slope: tuple[float, ...]
    factors: tuple[float, ...]
    tails: Tails = NORMAL
    common: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive = [*self.slope, *self.factors, *(factor for _, factor in self.tails)]
        shares = [share for share, _ in self.tails]
        lengths = {len(self.bias), len(self.slope), len(self.factors)}
        are_usable = (
            all(math.isfinite(number) for number in (*self.bias, *positive, *shares, *self.common))
            and lengths in ({2}, {4})
            and len(self.common) in (0, len(self.bias))
            and min(self.common, default=0) >= 0
            and min(positive) > 0 <= min(shares)
            and abs(sum(shares) - 1) < 1e-3
        )
        if not are_usable:
            msg = (
                f"{self} can't be a model's: expected 2 or 4 numbers each, slopes and factors "
                f"above 0, and shares that add up to 1"
            )
            raise BadInput(msg)

    def corrected(self, said: Offsets, stds: Offsets) -> tuple[Offsets, Offsets]:
        """Return what was said without bias, and its usual error.

        Args:
            said: How a model says that each box is off.
            stds: Its standard deviations.

        Examples:
            >>> model = Reliability((0.02,) * 2, (0.8,) * 2, (1.6,) * 2)
            >>> model.corrected(torch.tensor([[0.1, 0.02]]), torch.full((1, 2), 0.05))
            (tensor([[0.1000, 0.0000]]), tensor([[0.1000, 0.1000]]))
        """
        bias, slope, factors = map(said.new_tensor, (self.bias, self.slope, self.factors))
        return (said - bias) / slope, stds * factors / slope

    def under_a_law(self, stds: Offsets, usual: Offsets) -> Offsets:
        """Return how far off boxes are that moved under a law, which knows no common error.

        A law learns from many boxes how they are off, and so has little left of each one's own
        error. What they have in common, as they are off alike, it takes for a way of being off.

        Args:
            stds: How far off they are deemed under the law.
            usual: The usual errors, as `corrected` returns them.

        Examples:
            >>> model = Reliability((0.0,) * 2, (1.0,) * 2, (1.0,) * 2, common=(0.0, 0.5))
            >>> model.under_a_law(torch.tensor([[0.0, 0.0]]), torch.full((1, 2), 0.1))
            tensor([[0.0000, 0.0500]])
        """
        if not self.common:
            return stds
        taken_off = (usual.square() - stds.square()).clamp(min=0)
        return (stds.square() + usual.new_tensor(self.common).square() * taken_off).sqrt()

    def plain(self) -> dict[str, Any]:
        """Return it as lists of numbers, for a checkpoint."""
        told = {name: list(getattr(self, name)) for name in ("bias", "slope", "factors", "common")}
        return told | {"tails": [list(pair) for pair in self.tails]}

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Self:
        """Make it of what `plain` returned.

        Raises:
            ValueError, TypeError, KeyError: It isn't that.
        """
        rows = {name: tuple(told[name]) for name in ("bias", "slope", "factors")}
        tails = tuple((share, factor) for share, factor in told["tails"])
        return cls(**rows, tails=tails, common=tuple(told.get("common", ())))  # older ones: none


def fit_reliability(said: Offsets, stds: Offsets, truth: Offsets) -> Reliability | None:
    """Measure how what a model says errs, by maximum likelihood.

    Errors are normal, about a line in the truth; a part of the boxes has errors of a wider normal
    law in all coordinates, as where a model took another object for the box's own.

    Args:
        said: How the model says that each box is off.
        stds: Its standard deviations.
        truth: How they are off, narrowly and widely.

    Returns:
        What was found; None where there are fewer than 50 draws, or no standard deviations told.

    References:
        Lange, Little and Taylor, Robust statistical modeling using the t distribution (1989), for
        regression by a mixture of scales; with two of them it is Tukey's contaminated normal law.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> truth, noise = (torch.randn(4000, 2, generator=generator) for _ in range(2))
        >>> found = fit_reliability(0.9 * truth + 0.1 + 0.2 * noise, 0 * truth + 0.1, truth)
        >>> [round(number, 1) for number in (*found.bias, *found.slope, *found.factors)]
        [0.1, 0.1, 0.9, 0.9, 2.0, 2.0]
    """
    # No crop shows what lies farther off; what isn't finite is no less than that.
    usable = ((said.abs() < _FARTHEST) & (truth.abs() < _FARTHEST) & (stds > 0)).all(dim=1)
    if int(usable.sum()) < FEWEST_DRAWS:
        return None
    said, stds, truth = (each[usable].double() for each in (said, stds, truth))
    shares, widths = said.new_tensor(_BEGUN_SHARES), said.new_tensor(_BEGUN_WIDTHS)
    bias, slope = _lines(said, truth, 1 / stds.square())
    ratios = ((said - bias - slope * truth) / stds).square()
    # By the median: a few wild errors would make all others look small.
    factors = ratios.median(dim=0).values.sqrt() / _MEDIAN
    for _ in range(_STEPS):
        total = (ratios / factors.square()).sum(dim=1)
        joint = shares.log() - said.shape[1] * widths.log()
        chances = (joint - 0.5 * total[:, None] / widths.square()).softmax(dim=1)
        shares = chances.mean(dim=0)
        wide = (chances[:, 1] * total).sum() / (said.shape[1] * chances[:, 1].sum())
        widths = torch.stack([widths[0], wide.sqrt().clamp(min=1.0)])
        weights = (chances / widths.square()).sum(dim=1, keepdim=True)
        bias, slope = _lines(said, truth, weights / stds.square())
        ratios = ((said - bias - slope * truth) / stds).square()
        factors = (weights * ratios).mean(dim=0).sqrt().clamp(min=_LEAST_FACTOR)
    tails = tuple(zip(shares.tolist(), widths.tolist(), strict=True))
    return Reliability(tuple(bias.tolist()), tuple(slope.tolist()), tuple(factors.tolist()), tails)


def common_errors(said: Offsets, stds: Offsets, truth: Offsets) -> tuple[float, ...]:
    """Measure how large a part of the usual error boxes that are off alike have in common.

    That is what a cubic of how they are off explains of their errors, by their standard deviations.

    Args:
        said: How the model says that each box is off, corrected.
        stds: Its usual errors.
        truth: How they are off, in many ways.

    Returns:
        A standard deviation for each coordinate, as a share of the usual error; () where there are
        fewer than 50 draws. Gross errors, of more than five usual ones, are left out.

    References:
        Theil, Economic forecasts and policy (1961), for what is explained beyond chance: the
        residuals' mean square is over the number of draws less that of terms.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> truth, noise = (torch.randn(4000, 2, generator=generator) for _ in range(2))
        >>> said = truth + 0.3 * truth[:, [1, 0]] + noise
        >>> [round(part, 1) for part in common_errors(said, torch.ones_like(said), truth)]
        [0.3, 0.3]
    """
    errors, truth = ((said - truth) / stds).double().cpu(), truth.cpu()
    usable = ((errors.abs() < _GROSS) & (truth.abs() < _FARTHEST)).all(dim=1)
    if int(usable.sum()) < FEWEST_DRAWS:
        return ()
    errors, off = errors[usable], truth[usable].double()
    # As shares of their spread: powers of numbers far below 1 tell nothing apart.
    off = off / off.square().mean(dim=0).sqrt().clamp(min=_LEAST_SPREAD)
    count = off.shape[1]
    pairs = [off[:, [at]] * off[:, at:] for at in range(count)]
    terms = torch.cat([torch.ones_like(off[:, :1]), off, *pairs, off**3], dim=1)
    left = errors - terms @ torch.linalg.lstsq(terms, errors, driver="gelsd").solution
    beyond = left.square().sum(dim=0) / (len(errors) - terms.shape[1])
    explained = (errors.square().mean(dim=0) - beyond).clamp(min=0)
    return tuple(explained.sqrt().tolist())


def _lines(
    said: Float64[Tensor, "n t"], truth: Float64[Tensor, "n t"], weights: Float64[Tensor, "n t"]
) -> tuple[Float64[Tensor, " t"], Float64[Tensor, " t"]]:
    """Return intercept and slope of each coordinate's weighted least squares."""
    total = weights.sum(dim=0)
    middle, height = ((weights * each).sum(dim=0) / total for each in (truth, said))
    spread = (weights * (truth - middle).square()).sum(dim=0)
    slope = (weights * (truth - middle) * (said - height)).sum(dim=0) / spread
    slope = slope.where(spread > 0, 1.0).clamp(min=_LEAST_SLOPE)
    return height - slope * middle, slope
