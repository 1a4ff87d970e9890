"""Bins: classify each coordinate's offset, and decode the distribution."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_bbox.codecs import OffsetSpec, TargetSpace
from lightning_bbox.errors import BadInput
from lightning_bbox.heads import Head, MapShape, Targets, ToBoxes


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
        >>> from lightning_bbox import CropGeometry
        >>> head = BinHead().build(8, OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
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

    def build(
        self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None
    ) -> "BinHead":
        """Lay the bins out, symmetric about 0, in px and log size; the shorter rows are masked."""
        bounds = spec.bounds
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
        self._refuse_mixed(space)
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

    def loss(
        self,
        outputs: Float[Tensor, "b n k"],
        targets: Targets,
        to_boxes: ToBoxes | None = None,
    ) -> Float[Tensor, " b"]:
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
