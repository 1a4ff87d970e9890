"""Heads: from features to targets. A head owns its loss and its decoding."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lightning_bbox.codecs import TargetSpace
from lightning_bbox.errors import BadInput
from lightning_bbox.least_squares import usual_deviations
from lightning_bbox.losses import SmoothL1Loss
from lightning_bbox.parts import Part

Targets = Float[Tensor, "b n"]


class Head(Part):
    """A last layer with its loss and its decoder.

    `build` makes the layer, `fit` places it in the codec's target space once the training targets
    are known. Losses and decoding run in fp32 whatever the network runs in.
    """

    per_class: bool = False
    """Whether it can only refine boxes whose class is known."""
    standardize: bool = False
    """Whether it takes over statistics of training features."""

    def build(self, in_features: int, bounds: list[float], num_classes: int = 1) -> "Head":
        """Make the layer; `bounds` holds each coordinate's largest offset, in px or log size."""
        raise NotImplementedError

    def fit(self, space: TargetSpace) -> None:
        """Take over the codec's target space."""
        raise NotImplementedError

    def fit_features(self, features: Float[Tensor, "n f"]) -> None:
        """Take over statistics of training features; none by default."""

    def select(self, outputs: Tensor, labels: Int64[Tensor, " b"]) -> Tensor:
        """Return the outputs that belong to each sample's class; all by default."""
        return outputs

    def loss(self, outputs: Tensor, targets: Targets) -> Float[Tensor, " b"]:
        """Return each sample's loss."""
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> Targets:
        """Return the predicted targets."""
        raise NotImplementedError

    def stds(self, outputs: Tensor) -> Float[Tensor, "b n"]:
        """Return how far off the head deems itself, in px and log size; NaN where it can't tell."""
        return torch.full_like(self.decode(outputs), math.nan)


class LinearHead(Head):
    """Regress the targets: a linear layer, no non-linearity, and a loss on the error.

    The layer runs in fp32 whatever the network runs in: an exact solution is worth its digits.

    Args:
        loss: A loss of `lightning_bbox.losses`; smooth L1 by default.
        standardize: Centre and scale the features by their training mean and standard deviation, so
            that plain gradient descent gets on: uncentred features allow but a small learning rate.
        per_class: A regressor for each class, as in R-CNN, instead of one for all.

    Examples:
        >>> head = LinearHead().build(8, bounds=[5.0, 5.0])
        >>> head.decode(head(torch.zeros(3, 8))).shape
        torch.Size([3, 2])
    """

    std: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self, loss: Part | None = None, standardize: bool = False, per_class: bool = False
    ) -> None:
        super().__init__()
        self.criterion = loss or SmoothL1Loss()
        self.standardize, self.per_class = standardize, per_class

    def build(self, in_features: int, bounds: list[float], num_classes: int = 1) -> "LinearHead":
        """Make the layer, near zero, so that the first prediction is the training mean."""
        regressors = num_classes if self.per_class else 1
        self.linear = nn.Linear(in_features, regressors * len(bounds))
        nn.init.normal_(self.linear.weight, std=0.001)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("std", torch.ones(len(bounds)))
        if self.standardize:
            self.register_buffer("feature_mean", torch.zeros(in_features))
            self.register_buffer("feature_std", torch.ones(in_features))
        return self

    def fit(self, space: TargetSpace) -> None:
        """Take over the targets' standard deviation, the unit of the loss's lengths."""
        self.std.copy_(space.std)

    def fit_features(self, features: Float[Tensor, "n f"]) -> None:
        """Take over the features' mean and standard deviation, where they are asked for.

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
        regressors = outputs.view(len(outputs), -1, len(self.std))
        return regressors[torch.arange(len(labels), device=labels.device), labels]

    def loss(self, outputs: Targets, targets: Targets) -> Float[Tensor, " b"]:
        """Apply the loss in fp32."""
        losses: Tensor = self.criterion(outputs.float(), targets.float(), self.std)
        return losses

    def decode(self, outputs: Targets) -> Targets:
        """Return the outputs in fp32."""
        return outputs.float()


class BinHead(Head):
    """Classify each coordinate into bins, with soft targets, and decode by expectation.

    Each coordinate's range is cut into bins that reach four sigma beyond the largest offset. The
    target is the mass that a Gaussian about the true offset puts into each bin, the loss the
    cross-entropy.

    Args:
        bin_width: Width of the shifts' bins, in px.
        log_bin_width: Width of the sizes' bins, in log size.
        sigma: Standard deviation of the target's Gaussian, in bins.

    Raises:
        BadInput: A width isn't positive.

    References:
        Imani and White, Improving regression performance with distributional losses (2018).
        Farebrother et al., Stop regressing (2024). Ours pads the range so that the expectation
        isn't biased at its ends.

    Examples:
        >>> head = BinHead().build(8, bounds=[5.0, 5.0])
        >>> head.centers[0, [0, 13, 26]]
        tensor([-6.5000,  0.0000,  6.5000])
    """

    edges: Tensor
    centers: Tensor
    inside: Tensor
    origin: Tensor
    unit: Tensor
    spread: Tensor

    def __init__(
        self, bin_width: float = 0.5, log_bin_width: float = 0.05, sigma: float = 0.75
    ) -> None:
        super().__init__()
        if min(bin_width, log_bin_width, sigma) <= 0:
            given = f"bin_width {bin_width}, log_bin_width {log_bin_width}, sigma {sigma}"
            msg = f"BinHead's {given} must all be positive"
            raise BadInput(msg)
        self.bin_width, self.log_bin_width, self.sigma = bin_width, log_bin_width, sigma

    def build(self, in_features: int, bounds: list[float], num_classes: int = 1) -> "BinHead":
        """Lay the bins out, symmetric about 0, in px and log size; the shorter rows are masked."""
        widths = torch.tensor([self.bin_width] * 2 + [self.log_bin_width] * (len(bounds) - 2))
        reach = [
            math.ceil(bound / width + 4 * self.sigma - 1e-6)
            for bound, width in zip(bounds, widths, strict=True)
        ]
        index = torch.arange(-max(reach), max(reach) + 1)
        self.register_buffer("centers", index * widths[:, None])
        self.register_buffer("inside", index.abs() <= torch.tensor(reach)[:, None])
        edges = (torch.arange(-max(reach), max(reach) + 2) - 0.5).expand(len(bounds), -1)
        limits = torch.tensor(reach)[:, None] + 0.5
        self.register_buffer("edges", edges.clamp(-limits, limits) * widths[:, None])
        self.register_buffer("spread", widths * self.sigma)
        self.register_buffer("origin", torch.zeros(len(bounds)))
        self.register_buffer("unit", torch.ones(len(bounds)))
        self.linear = nn.Linear(in_features, self.centers.numel())
        nn.init.normal_(self.linear.weight, std=0.001)
        nn.init.zeros_(self.linear.bias)
        return self

    def fit(self, space: TargetSpace) -> None:
        """Take over where px lie in target units.

        Raises:
            BadInput: The codec mixes the coordinates, so that bins of one mean nothing.
        """
        if space.mixed:
            msg = (
                "BinHead needs a codec that keeps the coordinates apart, which WhitenedCodec does "
                "not; choose MeanStdCodec, or LinearHead"
            )
            raise BadInput(msg)
        self.origin.copy_(space.origin)
        self.unit.copy_(space.unit)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b n k"]:
        """Return the logits, a row of bins for each coordinate."""
        logits: Tensor = self.linear(features)
        return logits.view(-1, *self.centers.shape)

    def target_probs(self, targets: Targets) -> Float[Tensor, "b n k"]:
        """Return the mass of the truth's Gaussian in each bin, renormalised over the range.

        An offset beyond the range counts as lying on its end, where the mass would otherwise
        vanish.
        """
        limit = self.edges[:, -1]
        offsets = ((targets.float() - self.origin) / self.unit).clamp(-limit, limit)
        z = (self.edges - offsets[..., None]) / (self.spread[:, None] * math.sqrt(2))
        mass = torch.erf(z).diff(dim=-1)
        return mass / mass.sum(dim=-1, keepdim=True)

    def loss(self, outputs: Float[Tensor, "b n k"], targets: Targets) -> Float[Tensor, " b"]:
        """Return the cross-entropy, summed over coordinates."""
        log_probs = self._masked(outputs).log_softmax(dim=-1)
        return -(self.target_probs(targets) * log_probs).sum(dim=(1, 2))

    def probs(self, outputs: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        """Return the predicted distribution over the bins."""
        return self._masked(outputs).softmax(dim=-1)

    def decode(self, outputs: Float[Tensor, "b n k"]) -> Targets:
        """Return the expectation, as targets."""
        offsets = (self.probs(outputs) * self.centers).sum(dim=-1)
        return self.origin + offsets * self.unit

    def stds(self, outputs: Float[Tensor, "b n k"]) -> Float[Tensor, "b n"]:
        """Return the distributions' standard deviations, without the blur of the soft targets.

        A target's variance is that of its Gaussian, and of a bin's width (Sheppard's correction).
        """
        probs = self.probs(outputs)
        means = (probs * self.centers).sum(dim=-1, keepdim=True)
        variances = (probs * (self.centers - means).square()).sum(dim=-1)
        blur = self.spread.square() + (self.spread / self.sigma).square() / 12
        return (variances - blur).clamp(min=0).sqrt()

    def _masked(self, outputs: Tensor) -> Tensor:
        inside: Bool[Tensor, "n k"] = self.inside
        return outputs.float().masked_fill(~inside, -1e4)
