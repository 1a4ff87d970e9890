"""How displacement laws are found: from what a model says, from pairs of boxes, or a jitter."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import encode_deltas
from lightning_bbox.geometry.displacement import DisplacementLaw, Offsets, posterior
from lightning_bbox.geometry.reliability import NORMAL, Tails

FEWEST_BOXES = 50
"""Boxes from which on their law can be told from the model's errors."""

_TELLABLE = 0.5
"""Share of a model's standard deviation: what is smaller may be the bias of the model itself."""
_NEAR = 1.5  # below this share of it, errors of a picture, which go together, look like a law
_FACTORS = (1.0, 1.05, 1.1)  # by which a model may err more than it tells where boxes are right
_LEVEL = 0.05  # chance of a law that is none, of the likelihood ratio test
_MOST_FITTED = 20_000  # boxes: more don't change a law of at most 27 numbers
_MOST_STEPS = 500
_SETTLED = 1e-6  # gain of the mean log likelihood by a step, in nats a box
_LEAST_STD = 1e-4  # of a component, in shares of a box: far below any annotation's noise


def fit_law(
    said: Offsets, stds: Offsets, num_pictures: int | None = None, tails: Tails = NORMAL
) -> DisplacementLaw:
    """Find how boxes are off from what a model says of them, by expectation and maximisation.

    Beside the boxes that are right there is one normal law, or there are two where the Bayesian
    information criterion wants them. All count as right where that is as likely, by a test of the
    likelihood ratio: of pictures where the law is narrower than one and a half of the model's
    standard deviations, as errors of a picture, which go together, look like one, and of boxes
    where it is wider. A model may err by up to a tenth more than it tells there, which looks like a
    narrow law too. Those whose law is within half of its standard deviations count as right as
    well: it can't be told from a bias of the model.

    Args:
        said: How a model says that each box is off, as shares of its sides and changes of log size.
        stds: Its standard deviations, in the same units.
        num_pictures: How many pictures the boxes lie in: what counts as independent, since errors
            within a picture go together; by default each box does.
        tails: How the model's errors are spread about these (see `Reliability`).

    Raises:
        BadInput: There are fewer than 50 boxes, or the model tells no standard deviations.

    References:
        Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm
        (1977). Schwarz, Estimating the dimension of a model (1978). Wilks, The large-sample
        distribution of the likelihood ratio for testing composite hypotheses (1938); with a share
        at its bound, the test is on the safe side.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> off = 0.1 + 0.02 * torch.randn(500, 2, generator=generator)
        >>> law = fit_law(off + 0.03 * torch.randn(500, 2, generator=generator), off * 0 + 0.03)
        >>> max(law.shares) > 0.9
        True
    """
    if len(said) < FEWEST_BOXES:
        msg = f"{len(said)} boxes are too few to tell how they are off; {FEWEST_BOXES} do"
        raise BadInput(msg)
    if not bool((stds > 0).all() & said.isfinite().all()):
        msg = "the model tells no standard deviations, so how boxes are off can't be told from them"
        raise BadInput(msg)
    if len(said) > _MOST_FITTED:
        kept = torch.randperm(len(said), generator=keyed_generator("law"))[:_MOST_FITTED]
        said, stds = said[kept], stds[kept]
    said, stds = said.double(), stds.double()
    independent = min(num_pictures or len(said), len(said))
    middle, spread = said.mean(dim=0), said.var(dim=0)
    still = torch.zeros_like(middle)
    one = [(0.5, still, still), (0.5, middle, spread)]
    two = [(0.4, still, still), (0.3, middle, spread / 9), (0.3, middle, 4 * spread)]
    fits = [_maximise(begun, said, stds, tails) for begun in (one, two)]
    scores = [
        fit.log_likelihood * independent
        - 0.5 * math.log(independent) * (len(fit.shares) - 1) * (1 + 2 * said.shape[1])
        for fit in fits
    ]
    best = fits[0] if scores[0] >= scores[1] else fits[1]
    extents = (best.means.square() + best.variances).sqrt()
    told = stds.square().mean(dim=0).sqrt()
    near = bool((extents < _NEAR * told).all())
    alone = best.shares[:1] * 0 + 1, still[None], still[None]
    right = max(
        float(posterior(*alone, said, factor * stds, tails)[-1].mean()) for factor in _FACTORS
    )
    ratio = (independent if near else len(said)) * (best.log_likelihood - right)
    numbers = (len(best.shares) - 1) * (1 + 2 * said.shape[1])
    chance = torch.special.gammaincc(*torch.tensor([numbers / 2, max(ratio, 0.0)]).double())
    tellable = (extents >= _TELLABLE * told).any(dim=1) & (chance < _LEVEL)
    shares = best.shares * tellable
    untold = ((best.shares - shares)[1:, None] * extents[1:].square()).sum(dim=0)
    part = 1 - float(shares[1:].sum())
    within = (untold / max(part, 1e-12)).sqrt().tolist()
    means, deviations = best.means[1:].tolist(), best.variances[1:].sqrt().tolist()
    rows = tuple(map(tuple, means)), tuple(map(tuple, deviations))
    return DisplacementLaw(max(part, 0.0), tuple(shares[1:].tolist()), *rows, tuple(within))


def with_shares_of(
    law: DisplacementLaw, said: Offsets, stds: Offsets, tails: Tails = NORMAL
) -> DisplacementLaw:
    """Return a law with the shares that its parts have among other boxes.

    Args:
        law: The law.
        said: How a model says that each of these boxes is off.
        stds: Its standard deviations, in the same units.
        tails: How its errors are spread about these.

    Examples:
        >>> law = DisplacementLaw(0.5, (0.5,), ((1.0, 0.0),), ((0.1, 0.1),))
        >>> said = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        >>> round(with_shares_of(law, said, torch.full((4, 2), 0.1)).right, 4)
        0.75
    """
    shares, means, variances = law.parts()
    told = said.double(), stds.double(), tails
    for _ in range(_MOST_STEPS):
        before = shares
        shares = posterior(before, means, variances, *told)[0].sum(dim=(1, 2)) / len(said)
        if float((shares - before).abs().max()) < _SETTLED:
            break
    right, *others = shares.tolist()
    return replace(law, right=right, shares=tuple(others))


def law_of_pairs(
    boxes: Boxes, proposals: Boxes, num_pictures: int | None = None
) -> DisplacementLaw:
    """Find how proposals are off whose true boxes are known, such as a detector's.

    Args:
        boxes: The true box of each pair.
        proposals: Its proposal.
        num_pictures: How many pictures they lie in.

    Raises:
        BadInput: There are fewer than 50 pairs.

    Examples:
        >>> boxes = torch.rand(500, 4, generator=torch.Generator().manual_seed(0))
        >>> boxes = boxes * 0.1 + torch.tensor([0.0, 0.0, 1.0, 1.0])
        >>> law_of_pairs(boxes, boxes + torch.tensor([0.0, 0.1, 0.0, 0.1])).words()
        '100 % of the boxes are 10 % too far down on average, and off by 0 % at random'
    """
    offsets = encode_deltas(boxes, proposals)
    return fit_law(offsets, torch.full_like(offsets, _LEAST_STD), num_pictures)


def usual_law(truth: Offsets, widths: Float[Tensor, " n"], right: float) -> DisplacementLaw:
    """Return the law of boxes of which nothing is known: some are right, others off by any width.

    It is for boxes too few to tell how they are off: those that are right mostly stay under it, and
    those that are far off go nearly as far as the model says.

    Args:
        truth: How boxes are off that were drawn at several widths.
        widths: How wide each one's law was; where it is 0, the box is right.
        right: Share of the boxes that is taken to be right.

    Examples:
        >>> truth = torch.tensor([[0.0, 0.0], [0.1, 0.2], [-0.1, -0.2]])
        >>> usual_law(truth, torch.tensor([0.0, 1.0, 1.0]), 0.5).shares
        (0.5,)
    """
    groups = [truth[widths == width].double() for width in sorted(set(widths.tolist())) if width]
    means = tuple(tuple(group.mean(dim=0).tolist()) for group in groups)
    stds = tuple(tuple(group.std(dim=0, correction=0).tolist()) for group in groups)
    return DisplacementLaw(right, ((1 - right) / len(groups),) * len(groups), means, stds)


class _Fit(NamedTuple):
    shares: Float64[Tensor, " k"]
    means: Float64[Tensor, "k t"]
    variances: Float64[Tensor, "k t"]
    log_likelihood: float  # a box


def _maximise(
    begun: list[tuple[float, Tensor, Tensor]],
    said: Float64[Tensor, "n t"],
    stds: Float64[Tensor, "n t"],
    tails: Tails,
) -> _Fit:
    """Raise the likelihood from a beginning until it settles; the first part stays at zero."""
    shares = torch.tensor([share for share, _, _ in begun], dtype=torch.float64)
    means, variances = (torch.stack(column) for column in list(zip(*begun, strict=True))[1:])
    least, likelihood = _LEAST_STD**2, -math.inf
    variances[1:] = variances[1:].clamp(min=least)
    for _ in range(_MOST_STEPS):
        chances, where, spread, told = posterior(shares, means, variances, said, stds, tails)
        evidence = float(told.mean())
        if evidence - likelihood < _SETTLED:
            break
        likelihood = evidence
        total = chances.sum(dim=(1, 2))
        weights = (chances / total.clamp(min=1e-12)[:, None, None])[..., None]
        means = (weights * where).sum(dim=(1, 2))
        off = spread + (where - means[:, None, None]).square()
        variances = (weights * off).sum(dim=(1, 2)).clamp(min=least)
        means[0], variances[0] = 0, 0
        shares = total / len(said)
    return _Fit(shares, means, variances, likelihood)
