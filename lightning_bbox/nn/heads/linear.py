"""The head that regresses: a linear layer, which may begin with the exact solution."""

from collections.abc import Callable, Mapping
from typing import Literal, Self, get_args

import torch
from jaxtyping import Float, Int64
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.nn.box_losses import BoxLoss
from lightning_bbox.nn.heads.base import MapShape, PointHead, Targets, near_zero_linear, of_class
from lightning_bbox.nn.losses import Loss
from lightning_bbox.solvers.least_squares import score_lambdas, usual_deviations
from lightning_bbox.solvers.sums import gather

Activation = Literal["none", "relu", "sigmoid", "tanh"]

_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda outputs: outputs,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class LinearHead(PointHead):
    """Regress the targets: a linear layer, no non-linearity, and a loss on the error.

    The layer runs in fp32 whatever the network runs in: an exact solution is worth its digits.

    Args:
        loss: Of `nn.losses` on targets, or of `nn.box_losses` on decoded boxes; smooth L1 by
            default.
        standardize: Centre and scale the features by their training mean and standard deviation, so
            that plain gradient descent gets on: uncentred features allow but a small learning rate.
        per_class: A regressor for each class, as in R-CNN, instead of one for all.
        activation: A non-linearity on the output, to show what it costs: what it can't reach is
            never predicted.
        exact_start: Training draws whose ridge solution, exact and with lambda by generalised
            cross-validation, the layer begins with: what there is to read in the features before
            the backbone learns. 0 for small random weights. Where features are cached, all are
            taken. Weights to start from (`model.weights`) win.

    Raises:
        BadInput: There is no such activation, or there are fewer than no draws.
    """

    in_fp32 = True
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        loss: Loss | BoxLoss | None = None,
        standardize: bool = False,
        per_class: bool = False,
        activation: Activation = "none",
        exact_start: int = 0,
    ) -> None:
        super().__init__(loss)
        if activation not in get_args(Activation):
            names = ", ".join(get_args(Activation))
            msg = f"LinearHead activation is {activation!r}; expected one of {names}"
            raise BadInput(msg)
        if activation in ("relu", "sigmoid"):
            rank_zero_warn(
                f"LinearHead activation {activation!r} can't predict targets below 0, which some "
                f"half of them are; leave it out"
            )
        if exact_start < 0:
            msg = f"LinearHead exact_start is {exact_start}; expected a number of draws, or 0"
            raise BadInput(msg)
        self.standardize, self.per_class, self.exact_start = standardize, per_class, exact_start
        self.activation = activation
        self.takes_features = standardize or exact_start > 0
        self.draws = exact_start or None

    def build(self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None) -> Self:
        """Make the layer, near zero, so that the first prediction is the training mean."""
        super().build(in_features, spec)
        regressors = max(1, len(spec.classes)) if self.per_class else 1
        self.linear = near_zero_linear(in_features, regressors * spec.num_targets)
        if self.standardize:
            self.register_buffer("feature_mean", torch.zeros(in_features))
            self.register_buffer("feature_std", torch.ones(in_features))
        return self

    def fit_features(
        self, features: Float[Tensor, "n f"], targets: Targets, labels: Int64[Tensor, " n"]
    ) -> None:
        """Take over the features' mean and deviation and the exact solution, where asked for.

        What hardly ever varies is divided by more than its own (`usual_deviations`): a rare value
        would be huge, and the largest stable learning rate tiny.
        """
        if self.standardize:
            mean = features.mean(dim=0, dtype=torch.float64)
            chunks = torch.split(features, 2048)
            squares = [(chunk.double() - mean).square().sum(dim=0) for chunk in chunks]
            variances = torch.stack(squares).sum(dim=0) / len(features)
            self.feature_mean.copy_(mean)
            if bool(variances.any()):
                self.feature_std.copy_(usual_deviations(variances))
        if self.exact_start:
            self._start_exactly(features, targets, labels)

    @torch.no_grad()
    def _start_exactly(self, features: Tensor, targets: Tensor, labels: Tensor) -> None:
        """Take the solution of each regressor; one without samples keeps its small weights."""
        count = targets.shape[1]
        for number in range(self.linear.out_features // count):
            rows = slice(number * count, (number + 1) * count)
            own = labels == number if self.per_class else slice(None)
            if not len(features[own]):
                continue
            spectrum = gather(features[own], targets[own]).spectrum("standard")
            lambdas, scores = score_lambdas([spectrum])
            found = spectrum.solution(float(lambdas[scores.argmin()]))
            weight, bias = found.weight, found.bias
            if self.standardize:
                bias = bias + weight @ self.feature_mean.to(weight)
                weight = weight * self.feature_std.to(weight)
            self.linear.weight[rows] = weight.to(self.linear.weight)
            self.linear.bias[rows] = bias.to(self.linear.bias)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b m"]:
        """Return the predicted targets, one class after the other where each has its regressor."""
        with torch.autocast(features.device.type, enabled=False):
            exact = features.to(self.linear.weight.dtype)
            if self.standardize:
                exact = (exact - self.feature_mean.to(exact)) / self.feature_std.to(exact)
            outputs: Tensor = self.linear(exact)
            return outputs

    def select(self, outputs: Float[Tensor, "b m"], labels: Int64[Tensor, " b"]) -> Targets:
        """Return the targets that the regressor of each sample's class predicts."""
        if not self.per_class:
            return outputs
        return of_class(torch.unflatten(outputs, 1, (-1, len(self.std))), labels)

    def decode(self, outputs: Targets) -> Targets:
        """Return the outputs in fp32, through the activation."""
        return _ACTIVATIONS[self.activation](outputs.float())
