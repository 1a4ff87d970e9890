"""Losses on targets: one small class each.

A loss maps predictions and targets to one number a sample, summed over coordinates (CS231n's form).
Lengths such as beta are in units of the training targets' standard deviation, whatever the codec's
scaling.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.boxes import Boxes
from lightning_bbox.errors import BadInput
from lightning_bbox.parts import Part


class Loss(Part):
    """Predictions and targets to a number for each sample."""

    def forward(
        self,
        predictions: Float[Tensor, "b n"],
        targets: Float[Tensor, "b n"],
        std: Float[Tensor, " n"],
    ) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        raise NotImplementedError

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Return the largest second derivative by each coordinate, None where there is no bound.

        Args:
            std: Standard deviation of the training targets.
        """
        return None


class BoxLoss(Part):
    """Predicted and true boxes to a number for each sample."""

    def forward(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        raise NotImplementedError


class L2Loss(Loss):
    """Sum of squared errors.

    References:
        CS231n notes, Loss functions: the squared L2 norm of the difference, without a half.

    Examples:
        >>> L2Loss()(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([5.])
    """

    def forward(
        self,
        predictions: Float[Tensor, "b n"],
        targets: Float[Tensor, "b n"],
        std: Float[Tensor, " n"],
    ) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return (predictions - targets).square().sum(dim=-1)

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return 2: there is no half in the loss."""
        return torch.full_like(std, 2.0)


class L1Loss(Loss):
    """Sum of absolute errors.

    Examples:
        >>> L1Loss()(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([3.])
    """

    def forward(
        self,
        predictions: Float[Tensor, "b n"],
        targets: Float[Tensor, "b n"],
        std: Float[Tensor, " n"],
    ) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return (predictions - targets).abs().sum(dim=-1)


class SmoothL1Loss(Loss):
    """Quadratic near zero, linear beyond beta: 0.5 d^2 / beta, then d - 0.5 beta.

    Args:
        beta: Where the two meet, in standard deviations of the training targets (0: L1).

    References:
        Girshick, Fast R-CNN (2015), equation 3, with the beta that later detectors added.

    Examples:
        >>> SmoothL1Loss()(torch.tensor([[0.5, -2.0]]), torch.zeros(1, 2), torch.ones(2))
        tensor([1.6250])
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if beta < 0:
            msg = f"smooth L1 beta is {beta}; expected 0 (L1) or more"
            raise BadInput(msg)
        self.beta = beta

    def forward(
        self,
        predictions: Float[Tensor, "b n"],
        targets: Float[Tensor, "b n"],
        std: Float[Tensor, " n"],
    ) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        distance = (predictions - targets).abs()
        beta = self.beta * std
        quadratic = 0.5 * distance.square() / beta.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(distance < beta, quadratic, distance - 0.5 * beta).sum(dim=-1)

    def curvature(self, std: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Return that of the quadratic part, 1 / beta; L1 has none."""
        return 1 / (self.beta * std) if self.beta else None
