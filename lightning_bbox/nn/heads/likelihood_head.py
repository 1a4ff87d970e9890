"""The head that predicts how far off it is: a mean and a scale for each coordinate."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.geometry.codecs import OffsetSpec, TargetSpace
from lightning_bbox.nn.heads.likelihoods import GaussianLikelihood, Likelihood
from lightning_bbox.nn.heads.linear import Head, MapShape, Targets, ToBoxes

_LOG_SCALES = (-7.0, 3.0)


class LikelihoodHead(Head):
    """Regress the targets with the scale of their errors: a linear layer and a likelihood.

    Whatever the codec's scaling, means and scales are in units of the training targets' standard
    deviation; logarithms of scales are kept within -7 and 3. The layer runs in fp32 whatever the
    network runs in.

    Args:
        likelihood: Of `lightning_bbox.nn.heads.likelihoods`; Gaussian by default.

    References:
        Kendall and Gal, What uncertainties do we need in Bayesian deep learning for computer
        vision? (2017), section 2.2: the logarithm of the scale is predicted, for stability.

    Examples:
        >>> from lightning_bbox import CropGeometry
        >>> head = LikelihoodHead().build(8, OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
        >>> outputs = head(torch.zeros(3, 8))
        >>> head.decode(outputs).shape, head.stds(outputs)[0].tolist()
        (torch.Size([3, 2]), [1.0, 1.0])
    """

    std: Tensor
    unit: Tensor

    def __init__(self, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        self.likelihood = likelihood or GaussianLikelihood()
        self.error_law = self.likelihood.error_law

    def build(
        self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None
    ) -> "LikelihoodHead":
        """Make the layer, near zero: the first prediction is an error like the targets' own."""
        self.linear = nn.Linear(in_features, 2 * spec.num_targets)
        nn.init.normal_(self.linear.weight, std=1e-4)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("std", torch.ones(spec.num_targets))
        self.register_buffer("unit", torch.ones(spec.num_targets))
        self.likelihood.build(spec.num_targets)
        return self

    def fit(self, space: TargetSpace) -> None:
        """Take over the targets' standard deviation, and what a px is.

        Raises:
            BadInput: The codec mixes the coordinates, so that no scale is one of px.
        """
        self._refuse_mixed(space)
        self.std.copy_(space.std)
        self.unit.copy_(space.unit)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b m"]:
        """Return the means, then the logarithms of the scales."""
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = self.linear(features.to(self.linear.weight.dtype))
            return outputs

    def loss(
        self,
        outputs: Float[Tensor, "b m"],
        targets: Targets,
        to_boxes: ToBoxes | None = None,
    ) -> Float[Tensor, " b"]:
        """Return the likelihood's loss in units of the targets' std, summed over coordinates."""
        return self.likelihood.loss(*self._errors(outputs, targets)).sum(dim=-1)

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
