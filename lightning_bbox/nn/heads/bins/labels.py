"""Bins: how each coordinate's range is cut, and what a classifier is to say of an offset.

A grid has a row of bins for each coordinate, in px and log size; shifted copies of it are further
rows, one grid after the other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe

Probs = Float[Tensor, "b r k"]
Offsets = Float[Tensor, "b r"]


class BinGrid(NamedTuple):
    """Rows of bins of equal width; a row that needs fewer than the longest is masked at its ends.

    Attributes:
        centers: Middle of each bin, in px and log size.
        edges: Of the bins; those outside a row have no width.
        inside: Which bins a row has.
        widths: Of each row's bins.
    """

    centers: Float[Tensor, "r k"]
    edges: Float[Tensor, "r k1"]
    inside: Bool[Tensor, "r k"]
    widths: Float[Tensor, " r"]

    def sentence(self) -> str:
        """Say how wide and how many the bins of each coordinate are."""
        rows = zip(self.widths.tolist(), self.inside.sum(dim=1).tolist(), strict=True)
        return ", ".join(dict.fromkeys(f"{count} of {width:.3g}" for width, count in rows))

    def positions(self, offsets: Offsets) -> Offsets:
        """Return where offsets lie among a row's bins, 0 at the first centre, 1 at the next.

        An offset beyond the range counts as its end.
        """
        positions = (offsets - self.centers[:, 0]) / self.widths
        first = self.inside.int().argmax(dim=-1)
        return torch.minimum(positions.clamp(min=first), first + self.inside.sum(dim=-1) - 1)

    def true_bins(self, offsets: Offsets) -> Int64[Tensor, "b r"]:
        """Return the bin that each offset lies in."""
        return (self.positions(offsets) + 0.5).floor().long().clamp(max=self.centers.shape[-1] - 1)

    def one_hot(self, offsets: Offsets) -> Probs:
        """Return 1 for the bin that each offset lies in."""
        index = torch.arange(self.centers.shape[-1], device=offsets.device)
        return (self.true_bins(offsets)[..., None] == index).float()

    def prior(self, bounds: Float[Tensor, " r"]) -> Float[Tensor, "r k"]:
        """Return the mass of each bin under offsets uniform within the bounds.

        One part in a hundred is spread over the whole row, so that no bin of it is impossible.
        """
        bounds = bounds[:, None]
        uniform = self.edges.clamp(-bounds, bounds).diff(dim=-1)
        uniform = uniform / uniform.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        anywhere = self.inside / self.inside.sum(dim=-1, keepdim=True)
        mass = 0.99 * uniform + 0.01 * anywhere
        return mass / mass.sum(dim=-1, keepdim=True)


def lay_grid(
    bounds: Sequence[float], widths: Sequence[float], padding: float, grids: int = 1
) -> BinGrid:
    """Cut each coordinate's range into bins, symmetric about 0.

    Args:
        bounds: Largest offset of each coordinate, in px and log size.
        widths: Of each coordinate's bins.
        padding: How far the bins' centres reach beyond the bounds, in bins.
        grids: How many copies there are, each shifted by a bin's width over their number.

    References:
        Hara et al., Designing deep convolutional neural networks for continuous object orientation
        estimation (2017), section 3.3: several discretisations, each shifted.
    """
    shifts = [(grid + 0.5) / grids - 0.5 for grid in range(grids)]
    reach = [
        math.ceil(bound / width + padding + max(shifts) - 1e-6)
        for bound, width in zip(bounds, torch.tensor(widths), strict=True)
    ] * grids
    width = torch.tensor([*widths] * grids)
    shift = torch.tensor(shifts).repeat_interleave(len(bounds))[:, None]
    index = torch.arange(-max(reach), max(reach) + 1)
    limits = torch.tensor(reach)[:, None] + 0.5
    edges = (torch.arange(-max(reach), max(reach) + 2) - 0.5).expand(len(reach), -1)
    return BinGrid(
        centers=(index + shift) * width[:, None],
        edges=(edges.clamp(-limits, limits) + shift) * width[:, None],
        inside=index.abs() <= torch.tensor(reach)[:, None],
        widths=width,
    )


def refuse_other_bins(trained: BinGrid, asked: BinGrid) -> None:
    """Refuse to take over weights for other bins than they were trained on.

    Raises:
        BadInput: The bins differ.

    Examples:
        >>> refuse_other_bins(lay_grid([5.0], [0.5], padding=3), lay_grid([5.0], [0.5], padding=3))
    """
    then, now = trained.centers, asked.centers
    if then.shape != now.shape or not torch.allclose(then, now.to(then), atol=1e-4):
        msg = (
            f"its bins are {trained.sentence()}, those asked for {asked.sentence()}; leave out "
            f"what says so of the head (bin_width, log_bin_width, max_shift, grids), or train anew"
        )
        raise BadInput(msg)


def running_sums(values: Float[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Return the sums of all values up to each, doubling what is summed from step to step.

    Not cumsum, of which CUDA has no deterministic form; nor a product with a triangle of ones,
    which takes k^2 numbers, or is rounded where products are.

    Examples:
        >>> running_sums(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([ 1.,  3.,  6., 10.])
    """
    reach = 1
    while reach < values.shape[-1]:
        values = values + F.pad(values[..., :-reach], (reach, 0))
        reach *= 2
    return values


class BinLabels(Recipe):
    """What a classifier is to say of a known offset: a distribution over the bins."""

    padding: float = 0.0
    """How many bins the range must reach beyond the largest offset."""

    def __call__(self, offsets: Offsets, grid: BinGrid) -> Probs:
        """Return the distribution over each row's bins; 0 outside of them."""
        raise NotImplementedError

    def blur(self, grid: BinGrid) -> Float[Tensor, " r"]:
        """Return the variance that the labels add to that of the offset, in squared bins."""
        raise NotImplementedError


class OneHotLabels(BinLabels):
    """All on the bin that the offset lies in, as in plain classification.

    The offset is rounded, which costs the width over root 12.

    References:
        CS231n notes, Loss functions: quantise the output rather than regress it.

    Examples:
        >>> OneHotLabels()(torch.tensor([[0.1]]), lay_grid([1.0], [1.0], padding=0))
        tensor([[[0., 1., 0.]]])
    """

    def __call__(self, offsets: Offsets, grid: BinGrid) -> Probs:
        """Return 1 for the true bin."""
        return grid.one_hot(offsets)

    def blur(self, grid: BinGrid) -> Float[Tensor, " r"]:
        """Return that of rounding (Sheppard's correction)."""
        return torch.full_like(grid.widths, 1 / 12)


class SmoothedLabels(BinLabels):
    """One-hot, of which a share is given to the other bins alike.

    The expectation is drawn towards 0 by that share; `ArgmaxDecoder` and `ModeDecoder` aren't.

    Args:
        eps: The share of the others together.

    References:
        Szegedy et al., Rethinking the Inception architecture (2016), section 7; ours gives nothing
        of the share to the true bin.

    Examples:
        >>> SmoothedLabels(0.2)(torch.tensor([[0.1]]), lay_grid([1.0], [1.0], padding=0))
        tensor([[[0.1000, 0.8000, 0.1000]]])
    """

    def __init__(self, eps: float = 0.1) -> None:
        super().__init__()
        if not 0 <= eps < 1:
            msg = f"SmoothedLabels eps is {eps}; expected 0 or more, below 1"
            raise BadInput(msg)
        self.eps = eps

    def __call__(self, offsets: Offsets, grid: BinGrid) -> Probs:
        """Return 1 - eps for the true bin, and the rest for the others."""
        one_hot = grid.one_hot(offsets)
        others = (grid.inside.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
        return (1 - self.eps) * one_hot + self.eps / others * (grid.inside * (1 - one_hot))

    def blur(self, grid: BinGrid) -> Float[Tensor, " r"]:
        """Return that of rounding and of the share, on average over a uniform offset."""
        bins = grid.inside.sum(dim=-1)
        share = self.eps * bins / (bins - 1).clamp(min=1)
        return (1 + share * (2 - share) * (bins.square() - 1)) / 12


class GaussianLabels(BinLabels):
    """The mass of a Gaussian about the offset in each bin: HL-Gauss.

    Args:
        sigma: The Gaussian's standard deviation, in bins.

    References:
        Imani and White, Improving regression performance with distributional losses (2018).
        Farebrother et al., Stop regressing (2024). Ours pads the range by four sigma so that the
        expectation isn't biased at its ends.

    Examples:
        >>> GaussianLabels(0.5)(torch.tensor([[0.0]]), lay_grid([1.0], [1.0], padding=0))
        tensor([[[0.1577, 0.6845, 0.1577]]])
    """

    def __init__(self, sigma: float = 0.75) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            msg = f"GaussianLabels sigma is {sigma}; expected a positive number of bins"
            raise BadInput(msg)
        self.sigma, self.padding = sigma, 4 * sigma

    def __call__(self, offsets: Offsets, grid: BinGrid) -> Probs:
        """Return the mass in each bin, renormalised over the range.

        An offset beyond the range counts as lying on its end, where the mass would otherwise
        vanish.
        """
        offsets = torch.minimum(offsets.maximum(grid.edges[:, 0]), grid.edges[:, -1])
        spread = grid.widths * self.sigma
        z = (grid.edges - offsets[..., None]) / (spread[:, None] * math.sqrt(2))
        mass = torch.erf(z).diff(dim=-1)
        return mass / mass.sum(dim=-1, keepdim=True)

    def blur(self, grid: BinGrid) -> Float[Tensor, " r"]:
        """Return that of the Gaussian, and of a bin's width (Sheppard's correction)."""
        return torch.full_like(grid.widths, self.sigma**2 + 1 / 12)


class TwoHotLabels(BinLabels):
    """The two bins whose centres are nearest, weighted by nearness: their expectation is exact.

    References:
        Li et al., Generalized focal loss (2020), section 3.2, distribution focal loss.

    Examples:
        >>> TwoHotLabels()(torch.tensor([[0.25]]), lay_grid([1.0], [1.0], padding=0))
        tensor([[[0.0000, 0.7500, 0.2500]]])
    """

    def __call__(self, offsets: Offsets, grid: BinGrid) -> Probs:
        """Return the weight of each bin."""
        index = torch.arange(grid.centers.shape[-1], device=offsets.device)
        return (1 - (grid.positions(offsets)[..., None] - index).abs()).clamp(min=0)

    def blur(self, grid: BinGrid) -> Float[Tensor, " r"]:
        """Return the weights' variance, on average over where the offset lies between them."""
        return torch.full_like(grid.widths, 1 / 6)
