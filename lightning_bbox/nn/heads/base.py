"""What a head is: from features to targets, with a loss and a decoding of its own."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import OffsetSpec, TargetSpace
from lightning_bbox.nn.box_losses import BoxLoss
from lightning_bbox.nn.calibration import ErrorLaw
from lightning_bbox.nn.losses import Loss, SmoothL1Loss

Targets = Float[Tensor, "b n"]
MapShape = tuple[int, int, int]
"""Channels, height and width of a map that a backbone's features are, flattened."""
ToBoxes = Callable[[Targets], Boxes]
"""From targets to the boxes they stand for, in a batch: the codec, with its proposals."""


class Head(Part):
    """A last layer with its loss and its decoder.

    `build` makes the layer, `fit` places it in the codec's target space once the training targets
    are known. Losses and decoding run in fp32 whatever the network runs in.
    """

    per_class: bool = False
    """Whether it can only refine boxes whose class is known."""
    takes_features: bool = False
    """Whether it takes over something of training features."""
    draws: int | None = None
    """How many training draws it takes that of; those of the fixed training probe by default."""
    error_law: ErrorLaw = "gaussian"
    """How errors are spread, given the standard deviation it tells: which quantiles this has."""

    in_fp32: ClassVar[bool] = False
    """Whether its layers stay in fp32 where the network runs in half precision."""
    reach: tuple[float, float] | None = None
    """The largest shift and change of log size that it can say, once it is built; None for any."""

    keeps: ClassVar[tuple[str, ...]] = ()
    """What it keeps of the codec's target space, as buffers: any of origin, unit and std."""

    def build(self, in_features: int, spec: OffsetSpec, map_shape: MapShape | None = None) -> Self:
        """Make the layer; by default, only what is kept of the target space.

        Args:
            in_features: Length of the feature vector.
            spec: What there is to know of the data: coordinates, their bounds, classes.
            map_shape: Of the map that the features are, flattened, where they are one.
        """
        for name in self.keeps:
            start = 0.0 if name == "origin" else 1.0
            self.register_buffer(name, torch.full((spec.num_targets,), start))
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast the head, its layers to nothing less than fp32 where they stay in that."""
        if self.in_fp32 and fn(torch.zeros(())).dtype in (torch.bfloat16, torch.float16):
            return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return super()._apply(fn, recurse)

    def fit(self, space: TargetSpace) -> None:
        """Take over the codec's target space.

        Raises:
            BadInput: The codec mixes the coordinates, so that px of one mean nothing.
        """
        if space.mixed and "unit" in self.keeps:
            msg = (
                f"{type(self).__name__} needs a codec that keeps the coordinates apart, which "
                f"WhitenedCodec does not; choose MeanStdCodec, or LinearHead"
            )
            raise BadInput(msg)
        for name in self.keeps:
            self.get_buffer(name).copy_(getattr(space, name))

    def refit(self, space: TargetSpace) -> None:
        """Take over the target space of other data, whose scaling is the same.

        What the outputs mean stays, so that weights that are there go on saying what they said.
        """
        self.fit(space)

    def fit_features(
        self, features: Float[Tensor, "n f"], targets: Targets, labels: Int64[Tensor, " n"]
    ) -> None:
        """Take over what training features say; nothing by default.

        Args:
            features: Of training draws, before the backbone learns.
            targets: Their targets.
            labels: Their classes.
        """

    def select(self, outputs: Tensor, labels: Int64[Tensor, " b"]) -> Tensor:
        """Return the outputs that belong to each sample's class; all by default."""
        return outputs

    def loss(
        self, outputs: Tensor, targets: Targets, to_boxes: ToBoxes | None = None
    ) -> Float[Tensor, " b"]:
        """Return each sample's loss.

        Args:
            outputs: What the layer said.
            targets: What is true.
            to_boxes: From targets to boxes, for a loss on these.
        """
        raise NotImplementedError

    def decode(self, outputs: Tensor) -> Targets:
        """Return the predicted targets."""
        raise NotImplementedError

    def stds(self, outputs: Tensor) -> Float[Tensor, "b n"]:
        """Return how far off the head deems itself, in px and log size; NaN where it can't tell."""
        return torch.full_like(self.decode(outputs), math.nan)

    def nll(self, outputs: Tensor, targets: Targets) -> Float[Tensor, "b n"]:
        """Return the negative log density of the truth, NaN where the head can't tell.

        Args:
            outputs: What the layer said.
            targets: What is true.

        Returns:
            In nats, of the density per px and per log size; a joint one is split evenly over the
            coordinates, so that their sum is right.
        """
        return torch.full_like(self.decode(outputs), math.nan)


class PointHead(Head, ABC):
    """Say one target for each coordinate, and learn by a loss on its error or on the box.

    Args:
        loss: Of `lightning_bbox.nn.losses` or `lightning_bbox.nn.box_losses`; smooth L1 by default.
    """

    keeps: ClassVar[tuple[str, ...]] = ("std",)
    std: Tensor

    def __init__(self, loss: Loss | BoxLoss | None = None) -> None:
        super().__init__()
        self.criterion = loss or SmoothL1Loss()

    @abstractmethod
    def forward(self, features: Float[Tensor, "b f"]) -> Tensor:
        """Return what `decode` makes targets of."""

    def loss(
        self, outputs: Tensor, targets: Targets, to_boxes: ToBoxes | None = None
    ) -> Float[Tensor, " b"]:
        """Apply the loss in fp32, to targets or to the boxes they stand for."""
        predictions, targets = self.decode(outputs), targets.float()
        if isinstance(self.criterion, BoxLoss):
            assert to_boxes is not None
            losses: Tensor = self.criterion(to_boxes(predictions), to_boxes(targets))
        else:
            losses = self.criterion(predictions, targets, self.std)
        return losses


def of_class(outputs: Float[Tensor, "b c *m"], labels: Int64[Tensor, " b"]) -> Tensor:
    """Return what a layer says for the class of each sample, of what it says for all.

    Examples:
        >>> of_class(torch.arange(6.0).view(1, 3, 2), torch.tensor([1]))
        tensor([[2., 3.]])
    """
    own = labels.view(-1, *[1] * (outputs.dim() - 1)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, own).squeeze(1)


def near_zero_linear(
    in_features: int, outputs: int, bias: bool = True, std: float = 0.001
) -> nn.Linear:
    """Return a linear layer that says next to nothing yet."""
    linear = nn.Linear(in_features, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
