"""The head that predicts how far off it is: a mean, a scale, and a likelihood of the errors.

Errors and scales are in units of the training targets' standard deviation; an error is the truth
minus the prediction. Logarithms are natural.
"""

import math
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part
from lightning_bbox.geometry.codecs import OffsetSpec, TargetSpace
from lightning_bbox.nn.calibration import ErrorLaw
from lightning_bbox.nn.heads.base import (
    Head,
    MapShape,
    Targets,
    ToBoxes,
    near_zero_linear,
    of_class,
)

Errors = Float[Tensor, "b n"]
Moments = tuple[Float[Tensor, "#n"], Float[Tensor, "#n"]]
_HALF_LN_2_PI = 0.5 * math.log(2 * math.pi)
_LOG_SCALES = (-7.0, 3.0)


class Likelihood(Part):
    """A density of errors, with a location and a scale."""

    error_law: ErrorLaw = "gaussian"
    """Which quantiles go with its standard deviation."""

    def build(self, num_targets: int) -> "Likelihood":
        """Make what is learned of the density's form; nothing by default."""
        return self

    def nll(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return the negative log density of each coordinate's error.

        Args:
            errors: Truth minus prediction.
            log_scales: Logarithms of the predicted scales.
        """
        raise NotImplementedError

    def loss(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return what is trained on: the negative log density by default."""
        return self.nll(errors, log_scales)

    def moments(self, like: Tensor) -> Moments:
        """Return the mean and the standard deviation of errors at scale 1.

        Args:
            like: Any tensor of the device and dtype wanted.
        """
        return like.new_zeros(1), like.new_ones(1)


class GaussianLikelihood(Likelihood):
    """Normal errors: 0.5 e^2 / s^2 + ln s, weighted by s^(2 beta).

    Without a weight, samples deemed difficult hardly count, and a mean that is wrong may hide
    behind a large s. With beta = 0.5 their gradient counts as under L1, with 1 as under L2.

    Args:
        beta: Exponent of the weight, which has no gradient; 0 is the plain likelihood.

    Raises:
        BadInput: beta isn't within 0 to 1.

    References:
        Nix and Weigend, Estimating the mean and variance of the target probability distribution
        (1994). Seitzer et al., On the pitfalls of heteroscedastic uncertainty estimation with
        probabilistic neural networks (2022), equation 5.

    Examples:
        >>> GaussianLikelihood().loss(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
        tensor([[2., 0.]])
        >>> GaussianLikelihood().nll(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
        tensor([[2.9189, 0.9189]])
    """

    def __init__(self, beta: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            msg = f"GaussianLikelihood beta is {beta}; expected 0 (plain) to 1 (as L2)"
            raise BadInput(msg)
        self.beta = beta

    def nll(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return the negative log density of each coordinate's error."""
        return 0.5 * (errors * (-log_scales).exp()).square() + log_scales + _HALF_LN_2_PI

    def loss(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return the weighted negative log density, without its constant."""
        weights = (2 * self.beta * log_scales.detach()).exp()
        return weights * (self.nll(errors, log_scales) - _HALF_LN_2_PI)


class LaplaceLikelihood(Likelihood):
    """Double exponential errors: |e| / b + ln 2 b, an L1 loss whose scale is predicted.

    Examples:
        >>> LaplaceLikelihood().loss(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2))
        tensor([[2.6931, 0.6931]])
    """

    error_law: ErrorLaw = "laplace"

    def nll(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return the negative log density of each coordinate's error."""
        return errors.abs() * (-log_scales).exp() + log_scales + math.log(2)

    def moments(self, like: Tensor) -> Moments:
        """Return 0 and the square root of 2."""
        return like.new_zeros(1), like.new_full((1,), math.sqrt(2))


class FlowLikelihood(Likelihood):
    """Errors whose form is learned (RLE): a flow makes them normal, at a scale predicted for each.

    The flow is a chain of affine couplings, each of which scales and shifts every other coordinate
    by what a small net makes of the rest. It begins as the identity, so that what it learns is how
    the errors' density differs from a normal one.

    Args:
        couplings: How many.
        hidden: Width of the two hidden layers of their nets.

    Raises:
        BadInput: There is no coupling, or no width.

    References:
        Li et al., Human pose regression with residual log-likelihood estimation (2021), section
        3.3; Dinh et al., Density estimation using Real NVP (2017). Theirs multiplies a simple
        density by a flow's, and leaves out what would normalise the product; ours is one flow, a
        density by itself, whose ratio to its normal base is the residual. Theirs predicts the
        location, ours the density's mean, which a skewed flow moves away from it.

    Examples:
        >>> flow = FlowLikelihood().build(2)
        >>> flow.nll(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)).detach()
        tensor([[1.9189, 1.9189]])
    """

    masks: Tensor
    normal: Tensor

    def __init__(self, couplings: int = 6, hidden: int = 64) -> None:
        super().__init__()
        if min(couplings, hidden) < 1:
            msg = f"FlowLikelihood has {couplings} couplings of width {hidden}; expected 1 or more"
            raise BadInput(msg)
        self.couplings, self.hidden = couplings, hidden

    def build(self, num_targets: int) -> "FlowLikelihood":
        """Make the nets, and the points whose images tell the density's moments."""
        self.scales, self.shifts = (
            nn.ModuleList(
                _identity_net(num_targets, self.hidden, last) for _ in range(self.couplings)
            )
            for last in (nn.Tanh(), nn.Identity())
        )
        turns = torch.arange(self.couplings)[:, None] + torch.arange(num_targets)
        self.register_buffer("masks", (turns % 2).float(), persistent=False)
        even = torch.quasirandom.SobolEngine(num_targets, scramble=True, seed=0)  # type: ignore[no-untyped-call] # not typed in torch
        normal = torch.special.ndtri(even.draw(1024).clamp(1e-6, 1 - 1e-6))
        self.register_buffer("normal", normal, persistent=False)
        return self

    def nll(self, errors: Errors, log_scales: Errors) -> Errors:
        """Return the negative log density, split evenly over the coordinates: it is a joint one."""
        points, logs = errors * (-log_scales).exp(), -log_scales.sum(dim=-1)
        for step in range(self.couplings):
            free, log_scale, shift = self._coupling(step, points)
            points = torch.where(free > 0, points * log_scale.exp() + shift, points)
            logs = logs + (free * log_scale).sum(dim=-1)
        logs = logs - (0.5 * points.square() + _HALF_LN_2_PI).sum(dim=-1)
        return -(logs / errors.shape[-1])[..., None].expand_as(errors)

    def moments(self, like: Tensor) -> Moments:
        """Return the mean and the standard deviation of errors at scale 1, from 1,024 of them."""
        points = self.normal
        for step in reversed(range(self.couplings)):
            free, log_scale, shift = self._coupling(step, points)
            points = torch.where(free > 0, (points - shift) * (-log_scale).exp(), points)
        return points.mean(dim=0).to(like), points.std(dim=0).to(like)

    def _coupling(self, step: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which coordinates a coupling changes, the logarithm of its scale, and its shift.

        The other coordinates alone decide on these, so that it is undone as easily.
        """
        free = self.masks[step]
        with torch.autocast(points.device.type, enabled=False):
            given = (points * (1 - free)).to(next(self.parameters()).dtype)
            return free, self.scales[step](given).float(), self.shifts[step](given).float()


class LikelihoodHead(Head):
    """Regress the targets with the scale of their errors: a linear layer and a likelihood.

    Whatever the codec's scaling, means and scales are in units of the training targets' standard
    deviation; logarithms of scales are kept within -7 and 3. The layer runs in fp32 whatever the
    network runs in.

    Args:
        likelihood: `GaussianLikelihood` by default, `LaplaceLikelihood` or `FlowLikelihood`.
        per_class: A layer for each class instead of one for all; the likelihood's form is shared.

    References:
        Kendall and Gal, What uncertainties do we need in Bayesian deep learning for computer
        vision? (2017), section 2.2: the logarithm of the scale is predicted, for stability.
    """

    in_fp32 = True
    keeps = ("std", "unit")
    std: Tensor
    unit: Tensor

    def __init__(self, likelihood: Likelihood | None = None, per_class: bool = False) -> None:
        super().__init__()
        self.per_class = per_class
        self.likelihood = likelihood or GaussianLikelihood()
        self.error_law = self.likelihood.error_law

    def build(self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None) -> Self:
        """Make the layer, near zero: the first prediction is an error like the targets' own."""
        super().build(in_features, spec)
        layers = max(1, len(spec.classes)) if self.per_class else 1
        self.linear = near_zero_linear(in_features, layers * 2 * spec.num_targets, std=1e-4)
        self.likelihood.build(spec.num_targets)
        return self

    def refit(self, space: TargetSpace) -> None:
        """Keep the standard deviation, which is the outputs' unit."""

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b m"]:
        """Return the means, then the logarithms of the scales, one class after the other."""
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = self.linear(features.to(self.linear.weight.dtype))
            return outputs

    def select(self, outputs: Float[Tensor, "b m"], labels: Int64[Tensor, " b"]) -> Tensor:
        """Return what the layer of each sample's class says."""
        if not self.per_class:
            return outputs
        return of_class(torch.unflatten(outputs, 1, (-1, 2 * len(self.std))), labels)

    def loss(
        self,
        outputs: Float[Tensor, "b m"],
        targets: Targets,
        to_boxes: ToBoxes | None = None,
    ) -> Float[Tensor, " b"]:
        """Return the likelihood's loss in units of the targets' std, summed over coordinates.

        Logarithms of scales out of their bounds cost their distance from these.
        """
        losses = self.likelihood.loss(*self._errors(outputs, targets))
        # The bounds have no gradient: without this one, what a bad step put outside stays there.
        log_scales = outputs.float().chunk(2, dim=-1)[1]
        beyond = (log_scales - log_scales.clamp(*_LOG_SCALES)).abs()
        return (losses + beyond).sum(dim=-1)

    def nll(self, outputs: Float[Tensor, "b m"], targets: Targets) -> Targets:
        """Return the negative log density per px; a joint one is split evenly."""
        return self.likelihood.nll(*self._errors(outputs, targets)) + (self.std / self.unit).log()

    def decode(self, outputs: Float[Tensor, "b m"]) -> Targets:
        """Return the expected targets."""
        means, log_scales = self._split(outputs)
        return (means + self.likelihood.moments(means)[0] * log_scales.exp()) * self.std

    def stds(self, outputs: Float[Tensor, "b m"]) -> Targets:
        """Return the standard deviations of the likelihood, in px and log size."""
        scales = self._split(outputs)[1].exp()
        return self.likelihood.moments(scales)[1] * scales * self.std / self.unit

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        means, log_scales = outputs.float().chunk(2, dim=-1)
        return means, log_scales.clamp(*_LOG_SCALES)

    def _errors(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        means, log_scales = self._split(outputs)
        return targets.float() / self.std - means, log_scales


def _identity_net(num_targets: int, hidden: int, last: nn.Module) -> nn.Sequential:
    """Make a net of two hidden layers that gives 0 until it has learned something."""
    end = nn.Linear(hidden, num_targets)
    nn.init.zeros_(end.weight)
    nn.init.zeros_(end.bias)
    layers = [nn.Linear(num_targets, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers, nn.LeakyReLU(), end, last)
