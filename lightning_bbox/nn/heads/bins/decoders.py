"""Decoders: from weighted votes for offsets to one offset, in px and log size.

Votes are the bins of all shifted grids together, sorted, so that their centres are equally spaced.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe
from lightning_bbox.nn.heads.bins.labels import running_sums

Weights = Float[Tensor, "b n v"]
Centers = Float[Tensor, "n v"]
Widths = Float[Tensor, " n"]
Decoded = Float[Tensor, "b n"]


class Decoder(Recipe):
    """Weighted votes to one offset."""

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return the decoded offsets.

        Args:
            probs: Weight of each vote; those of a coordinate sum to 1.
            centers: What is voted for, ascending, equally spaced.
            widths: Of each coordinate's bins.
        """
        raise NotImplementedError


class ExpectationDecoder(Decoder):
    """The mean of the votes: the least squared error where they are the truth's distribution.

    Examples:
        >>> votes, centers = torch.tensor([[[0.1, 0.6, 0.3]]]), torch.tensor([[-1.0, 0.0, 1.0]])
        >>> ExpectationDecoder()(votes, centers, torch.ones(1))
        tensor([[0.2000]])
    """

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return the mean."""
        return (probs * centers).sum(dim=-1)


class ArgmaxDecoder(Decoder):
    """The largest vote, of several alike the first: no finer than the bins.

    Examples:
        >>> votes, centers = torch.tensor([[[0.1, 0.6, 0.3]]]), torch.tensor([[-1.0, 0.0, 1.0]])
        >>> ArgmaxDecoder()(votes, centers, torch.ones(1))
        tensor([[0.]])
    """

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return the centre of the largest vote."""
        largest = probs.argmax(dim=-1, keepdim=True)
        return centers.expand_as(probs).gather(-1, largest).squeeze(-1)


class MedianDecoder(Decoder):
    """The offset that half the votes lie below, each spread evenly up to its neighbours.

    It has the least absolute error where the votes are the truth's distribution.

    Examples:
        >>> votes, centers = torch.tensor([[[0.1, 0.6, 0.3]]]), torch.tensor([[-1.0, 0.0, 1.0]])
        >>> MedianDecoder()(votes, centers, torch.ones(1))
        tensor([[0.1667]])
    """

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return the median, interpolated inside its vote's share of the range."""
        below = running_sums(probs)
        index = (below < 0.5).sum(dim=-1, keepdim=True).clamp(max=probs.shape[-1] - 1)
        share = probs.gather(-1, index).clamp(min=torch.finfo(torch.float32).tiny)
        inside = ((0.5 - below.gather(-1, index)) / share + 1).clamp(0, 1)
        middle = centers.expand_as(probs).gather(-1, index)
        spacing = (centers[:, 1] - centers[:, 0])[:, None]
        return (middle + (inside - 0.5) * spacing).squeeze(-1)


class MeanShiftDecoder(Decoder):
    """The peak of the votes' density, climbed to from the largest vote.

    x <- sum p K((x - c) / w) c / sum p K, with a Gaussian K as wide as a bin. A coordinate stops
    when a step is below a thousandth of a bin.

    Args:
        steps: The most steps to take.

    References:
        Hara et al., Designing deep convolutional neural networks for continuous object orientation
        estimation (2017), section 3.3, whose votes lie on a circle; Comaniciu and Meer, Mean
        shift (2002).

    Examples:
        >>> votes, centers = torch.tensor([[[0.1, 0.6, 0.3]]]), torch.tensor([[-1.0, 0.0, 1.0]])
        >>> MeanShiftDecoder()(votes, centers, torch.ones(1))
        tensor([[0.1969]])
    """

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        if steps < 1:
            msg = f"MeanShiftDecoder steps is {steps}; expected 1 or more"
            raise BadInput(msg)
        self.steps = steps

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return where the climb ends; what has arrived stays while others go on."""
        scaled = centers / widths[:, None]
        peak = scaled.expand_as(probs).gather(-1, probs.argmax(dim=-1, keepdim=True))
        moving = torch.ones_like(peak, dtype=torch.bool)
        # exp(-(x - c)^2 / 2) without what doesn't depend on c: a softmax weighs the votes.
        logs = probs.clamp(min=torch.finfo(torch.float32).tiny).log() - scaled.square() / 2
        for _ in range(self.steps):
            weights = (logs + peak * scaled).softmax(dim=-1)
            step = (weights * scaled).sum(dim=-1, keepdim=True) - peak
            peak = peak + step * moving
            moving = moving & (step.abs() >= 1e-3)
        return peak.squeeze(-1) * widths


class ModeDecoder(Decoder):
    """The mean of the votes around the largest: several peaks don't mix.

    Args:
        bins: How many bins wide the window is: odd.

    Examples:
        >>> votes = torch.tensor([[[0.2, 0.0, 0.0, 0.6, 0.2]]])
        >>> ModeDecoder()(votes, torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]]), torch.ones(1))
        tensor([[1.2500]])
    """

    def __init__(self, bins: int = 3) -> None:
        super().__init__()
        if bins < 1 or bins % 2 == 0:
            msg = f"ModeDecoder bins is {bins}; expected an odd number: 1, 3, 5, ..."
            raise BadInput(msg)
        self.bins = bins

    def __call__(self, probs: Weights, centers: Centers, widths: Widths) -> Decoded:
        """Return the mean within the window."""
        largest = probs.argmax(dim=-1, keepdim=True)
        mode = centers.expand_as(probs).gather(-1, largest)
        near = (centers - mode).abs() < widths[:, None] * self.bins / 2
        votes = probs * near
        return (votes * centers).sum(dim=-1) / votes.sum(dim=-1)
