"""Losses on targets: one small class each.

A loss maps predictions and targets to one number a sample, summed over coordinates (CS231n's form).
Lengths such as beta are in units of the training targets' standard deviation, whatever the codec's
scaling.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe

Errors = Float[Tensor, "b n"]


class Loss(Recipe):
    """Predictions and targets to a number for each sample: a penalty on each error, summed.

    A subclass says what the penalty is. Where it says its curvature too, the largest stable
    learning rate of SGD is known.

    Examples:
        >>> class CauchyLoss(Loss):
        ...     def penalty(self, error, std):
        ...         return torch.log1p((error / std).square())
        >>> CauchyLoss()(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([2.3026])
    """

    def __call__(
        self, predictions: Errors, targets: Errors, std: Float[Tensor, " n"]
    ) -> Float[Tensor, " b"]:
        """Return the loss of each sample.

        Args:
            predictions: What the head said.
            targets: What is true.
            std: Standard deviation of the training targets.
        """
        return self.penalty(predictions - targets, std).sum(dim=-1)

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return what each coordinate's error costs.

        Args:
            error: Prediction less target, in the targets' units.
            std: Standard deviation of the training targets.
        """
        raise NotImplementedError

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Return the largest second derivative by each coordinate, None where there is no bound.

        Args:
            std: Standard deviation of the training targets.
        """
        return None


class L2Loss(Loss):
    """Sum of squared errors.

    References:
        CS231n notes, Loss functions: the squared L2 norm of the difference, without a half.

    Examples:
        >>> L2Loss()(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([5.])
    """

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the squared errors."""
        return error.square()

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return 2: there is no half in the loss."""
        return torch.full_like(std, 2.0)


class L1Loss(Loss):
    """Sum of absolute errors.

    Examples:
        >>> L1Loss()(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([3.])
    """

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the absolute errors."""
        return error.abs()


class SmoothL1Loss(Loss):
    """Quadratic near zero, linear beyond beta: 0.5 d^2 / beta, then d - 0.5 beta.

    Args:
        beta: Where the two meet, in standard deviations of the training targets. With 1, errors as
            small as the targets themselves are squared. 1/9 is torchvision's choice and 0, plain
            L1, Detectron2's, on targets that they scale likewise.

    References:
        Girshick, Fast R-CNN (2015), equation 3, with the beta that later detectors added.

    Examples:
        >>> SmoothL1Loss()(torch.tensor([[0.5, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([1.6250])
    """

    def __init__(self, beta: float = 1.0) -> None:
        if not 0 <= beta < math.inf:
            msg = f"smooth L1 beta is {beta}; expected 0 (L1) or more"
            raise BadInput(msg)
        self.beta = beta

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the penalty on each error."""
        distance = error.abs()
        beta = self.beta * std
        quadratic = 0.5 * distance.square() / beta.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(distance < beta, quadratic, distance - 0.5 * beta)

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Return that of the quadratic part, 1 / beta; L1 has none."""
        return 1 / (self.beta * std) if self.beta else None


class HuberLoss(Loss):
    """Quadratic near zero, linear beyond delta: 0.5 d^2, then delta (d - 0.5 delta).

    It is delta times the smooth L1 of beta = delta, and turns to half of L2 as delta grows.

    Args:
        delta: Where the two meet, in standard deviations of the training targets.

    Raises:
        BadInput: delta isn't positive.

    References:
        Huber, Robust estimation of a location parameter (1964).

    Examples:
        >>> HuberLoss(0.5)(torch.tensor([[0.5, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([1.])
    """

    def __init__(self, delta: float = 1.0) -> None:
        if not 0 < delta < math.inf:
            msg = f"Huber delta is {delta}; expected above 0"
            raise BadInput(msg)
        self.delta = delta

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the penalty on each error."""
        distance = error.abs()
        squared = torch.minimum(distance, self.delta * std)
        return squared * (distance - 0.5 * squared)

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return 1, that of the quadratic part."""
        return torch.ones_like(std)


class LogCoshLoss(Loss):
    """Logarithm of the hyperbolic cosine: 0.5 d^2 / std near zero, d - 0.69 std far from it.

    Smooth L1 of beta = 1 without its corner in the slope, which is tanh(d / std).

    References:
        Chen et al., Log hyperbolic cosine loss improves variational auto-encoder (2018). Ours is in
        units of the training targets' standard deviation.

    Examples:
        >>> LogCoshLoss()(torch.tensor([[0.5, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([1.4451])
    """

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the penalty on each error, in a form whose exponential can't overflow."""
        distance = error.abs() / std
        return std * (distance + F.softplus(-2 * distance) - math.log(2))

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return 1 / std, that at zero."""
        return 1 / std


class CharbonnierLoss(Loss):
    """L1 with its kink rounded off: sqrt(d^2 + eps^2) - eps.

    Args:
        eps: Radius of the rounding, in standard deviations of the training targets.

    Raises:
        BadInput: eps isn't positive.

    References:
        Charbonnier et al., Two deterministic half-quadratic regularization algorithms (1994). Ours
        is less eps, so that no error costs nothing.

    Examples:
        >>> CharbonnierLoss(eps=1.5)(torch.tensor([[0.0, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([1.])
    """

    def __init__(self, eps: float = 0.1) -> None:
        if not 0 < eps < math.inf:
            msg = f"Charbonnier eps is {eps}; expected above 0, or use L1Loss"
            raise BadInput(msg)
        self.eps = eps

    def penalty(self, error: Errors, std: Float[Tensor, " n"]) -> Errors:
        """Return the penalty on each error."""
        radius = self.eps * std
        return torch.hypot(error, radius) - radius

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return 1 / eps, that at zero."""
        return 1 / (self.eps * std)
