"""Soft-argmax: the object's place as the expectation of a heat map over the crop."""

import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.nn.box_losses import BoxLoss
from lightning_bbox.nn.heads.base import MapShape, PointHead, Targets, ToBoxes, near_zero_linear
from lightning_bbox.nn.losses import Loss

HeatMap = Float[Tensor, "b k"]
"""A number for each cell of the map, row by row."""


class SoftArgmaxHead(PointHead):
    """Turn the backbone's map into a heat map of the object's centre, and take its expectation.

    A 1x1 convolution makes a logit for each cell of the map, the softmax over all of them a
    distribution over places in the crop, each cell standing for its equal part of it. Beside the
    loss on the expectation, the heat map's divergence from a Gaussian about the true place keeps
    it in one piece. It runs in fp32 whatever the network runs in.

    The backbone must give a map: `ShallowConvNet` with `fc: []`, `AlexNet` up to `pool5`; each cell
    must see enough of the object to know its centre. A map of 6 cells a side cuts the Gaussian
    short, and the divergence pulls an offset of 5 px to 4.84; one of 12 doesn't. Where sizes are
    asked for too, a linear layer on the whole map says them, as `LinearHead` would.

    Args:
        js_weight: Of the divergence, which is at most ln 2, beside the loss on the targets.
        sigma: Standard deviation of the Gaussian, in cells of the map.
        loss: Of `lightning_bbox.nn.losses` or `lightning_bbox.nn.box_losses`; smooth L1 by default.

    Raises:
        BadInput: An argument is out of range.

    References:
        Nibali et al., Numerical coordinate regression with convolutional neural networks (2018):
        the grid and the Jensen-Shannon regularisation; their loss is the Euclidean distance.
        Levine et al., End-to-end training of deep visuomotor policies (2016) and Luvizon et al.,
        Human pose regression by combining indirect part detection and contextual information (2017)
        for soft-argmax.

    Examples:
        >>> from lightning_bbox import CropGeometry
        >>> head = SoftArgmaxHead().build(150, OffsetSpec(CropGeometry(), 2, 5.0, 0.0), (6, 5, 5))
        >>> head.places[:5, 0]
        tensor([-18.,  -9.,   0.,   9.,  18.])
    """

    in_fp32 = True
    keeps = ("std", "origin", "unit")
    places: Tensor
    spread: Tensor
    origin: Tensor
    unit: Tensor

    def __init__(
        self, js_weight: float = 1.0, sigma: float = 1.0, loss: Loss | BoxLoss | None = None
    ) -> None:
        super().__init__(loss)
        if not (0 <= js_weight < math.inf and 0 < sigma < math.inf):
            msg = (
                f"SoftArgmaxHead js_weight is {js_weight} and sigma {sigma}; expected 0 or more, "
                f"and above 0"
            )
            raise BadInput(msg)
        self.js_weight, self.sigma = js_weight, sigma

    def build(self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None) -> Self:
        """Make the layers, near zero, so that the first heat map is flat and says the middle.

        Raises:
            BadInput: The backbone's features are no map, or one too coarse for the offsets.
        """
        if map_shape is None:
            msg = (
                "SoftArgmaxHead needs a backbone whose features are a map; give ShallowConvNet "
                "fc: [] without global_pool or two_scales, or have a layer read that makes one"
            )
            raise BadInput(msg)
        super().build(in_features, spec)
        self.map_shape = map_shape
        channels, height, width = map_shape
        self.conv = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.normal_(self.conv.weight, std=0.001)
        if spec.num_targets > 2:
            self.sizes = near_zero_linear(in_features, spec.num_targets - 2)
        self._lay_out(height, width, spec)
        return self

    def _lay_out(self, height: int, width: int, spec: OffsetSpec) -> None:
        """Place the cells over the crop, in px from its middle."""
        self.edge = spec.geometry.reference_size / 2
        y, x = (self.edge * _middles(cells) for cells in (height, width))
        outermost = min(float(x[-1]), float(y[-1]))
        if outermost < spec.max_shift:
            msg = (
                f"SoftArgmaxHead's map of {height} x {width} cells reaches {outermost:.3g} px from "
                f"the middle, and offsets {spec.max_shift:.3g} px; read an earlier layer or scale"
            )
            raise BadInput(msg)
        self.reach = (outermost, math.inf)
        self.register_buffer("places", torch.cartesian_prod(y, x).flip(1), persistent=False)
        spread = 2 * self.edge * self.sigma / torch.tensor([width, height])
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b m"]:
        """Return the heat map's logits, row by row, then the log sizes where asked for."""
        with torch.autocast(features.device.type, enabled=False):
            exact = features.to(self.conv.weight.dtype)
            outputs: Tensor = self.conv(torch.unflatten(exact, 1, self.map_shape)).flatten(1)
            if len(self.unit) > 2:
                outputs = torch.cat([outputs, self.sizes(exact)], dim=1)
            return outputs

    def probs(self, outputs: Float[Tensor, "b m"]) -> HeatMap:
        """Return how probable the object's centre is in each cell."""
        return self._log_probs(outputs).exp()

    def target_probs(self, shifts: Float[Tensor, "b 2"]) -> HeatMap:
        """Return the Gaussian about a place, renormalised over the map.

        A place beyond the crop counts as lying on its edge.

        Args:
            shifts: Of the centre from the crop's, (x, y) in px.
        """
        return self._log_target_probs(shifts).exp()

    def loss(
        self, outputs: Float[Tensor, "b m"], targets: Targets, to_boxes: ToBoxes | None = None
    ) -> Float[Tensor, " b"]:
        """Return the loss on the targets, plus the heat map's divergence from the Gaussian."""
        true_shifts = ((targets.float() - self.origin) / self.unit)[:, :2]
        divergence = _jensen_shannon(self._log_probs(outputs), self._log_target_probs(true_shifts))
        return super().loss(outputs, targets, to_boxes) + self.js_weight * divergence

    def decode(self, outputs: Float[Tensor, "b m"]) -> Targets:
        """Return the expectation over the heat map, as targets, and the sizes as they are."""
        shifts = self._mean(self.probs(outputs))
        sizes = outputs[:, len(self.places) :].float()
        return torch.cat([self.origin[:2] + shifts * self.unit[:2], sizes], dim=1)

    def stds(self, outputs: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        """Return the heat map's standard deviation, without the blur of the Gaussian, in px.

        That is the variance that the Gaussian about the predicted place has on this map. NaN for
        sizes, and everywhere if `js_weight` is 0: then nothing tells the heat map how wide to be.
        """
        probs = self.probs(outputs)
        shifts = self._mean(probs)
        variances = self._variance(probs) - self._variance(self.target_probs(shifts))
        stds = super().stds(outputs)
        if self.js_weight:
            stds = torch.cat([variances.clamp(min=0).sqrt(), stds[:, 2:]], dim=1)
        return stds

    def _log_probs(self, outputs: Tensor) -> HeatMap:
        return outputs[:, : len(self.places)].float().log_softmax(dim=1)

    def _log_target_probs(self, shifts: Float[Tensor, "b 2"]) -> HeatMap:
        inside = shifts.clamp(-self.edge, self.edge)[:, None]
        return (-0.5 * ((self.places - inside) / self.spread).square().sum(dim=2)).log_softmax(1)

    def _mean(self, probs: HeatMap) -> Float[Tensor, "b 2"]:
        # A sum, not a matrix product: this stays in fp32 under autocast and without TF32.
        return (probs[..., None] * self.places).sum(dim=1)

    def _variance(self, probs: HeatMap) -> Float[Tensor, "b 2"]:
        distances = self.places - self._mean(probs)[:, None]
        return (probs[..., None] * distances.square()).sum(dim=1)


def _middles(cells: int) -> Float[Tensor, " n"]:
    """Return where the middles of cells lie that share -1 to 1."""
    return (2 * torch.arange(cells) - (cells - 1)) / cells


def _jensen_shannon(log_p: HeatMap, log_q: HeatMap) -> Float[Tensor, " b"]:
    """Return half the divergence of each distribution from their average, in nats."""
    log_average = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = log_p.exp() * (log_p - log_average) + log_q.exp() * (log_q - log_average)
    return 0.5 * terms.sum(dim=1)
