"""A few convolutions and fully connected layers."""

import itertools
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.backbones.base import Backbone, flattened
from lightning_bbox.nn.backbones.inputs import Coordinates, TwoScales
from lightning_bbox.nn.inits import HeInit, Init
from lightning_bbox.nn.stochastic import DropConnect, FractionalPool2d, StochasticPool2d

Downsample = Literal["stride", "max", "avg", "none", "stochastic", "fractional"]

_POOLS: dict[Downsample, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "avg": lambda: nn.AvgPool2d(2),
    "stochastic": StochasticPool2d,
    "fractional": FractionalPool2d,
}


class ShallowConvNet(Backbone):
    """A few convolutions, then fully connected layers on the flattened map.

    Flattening keeps where things are, and that is what offsets need.

    Args:
        channels: Channels of each scale; the map is halved before or within each.
        kernel: Side of the (odd) convolution kernels.
        convs_per_scale: Convolutions at each scale, one number for all or one for each; by default
            one at the first scale, whose map is the largest, and two at the others.
        downsample: How a scale halves the map: the first convolution's stride, pooling of 2 after
            the last convolution (the largest, the average, or one drawn at random: `stochastic`),
            or not at all; one way for all scales or one for each. `fractional` pooling, of windows
            that lie at random, shrinks it by the root of two only.
        fc: Widths of the fully connected layers.
        batch_norm: Normalise before each non-linearity.
        dropout: Probability of dropping an input of each fully connected layer; of the head where
            there is none.
        global_pool: Average the map over space before the fully connected layers, which loses where
            things are.
        init: How the weights begin; `HeInit` by default.
        coordinates: Append the pixels' x and y to the crop, as channels from -1 to 1 (CoordConv).
        input_dropout: Probability of dropping a value of the crop.
        dropconnect: Probability of dropping a weight of the fully connected layers.
        two_scales: See the crop's middle and the whole crop on each other, at half its side both;
            by a crop of twice the side and twice the context the net sees as much of the object as
            before, and twice as far.

    Raises:
        BadInput: An argument is out of range or has nothing to act on, there are more scales than
            the crop can be halved, or it has no middle for `two_scales`.

    References:
        Ioffe and Szegedy, Batch normalization (2015). Srivastava et al., Dropout (2014). For the
        pools and DropConnect see `lightning_bbox.nn.stochastic`; for CoordConv and two scales
        `lightning_bbox.nn.backbones.inputs`.

    Examples:
        >>> net = ShallowConvNet(channels=(8, 16), fc=(32,)).build(45)
        >>> net(torch.zeros(2, 3, 45, 45)).shape
        torch.Size([2, 32])
    """

    layer_names: Mapping[str, str] = {"pool": "global pooling"}

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128),
        kernel: int = 3,
        convs_per_scale: int | tuple[int, ...] | None = None,
        downsample: Downsample | tuple[Downsample, ...] = "stride",
        fc: tuple[int, ...] = (256,),
        batch_norm: bool = True,
        dropout: float = 0.0,
        global_pool: bool = False,
        init: Init | None = None,
        coordinates: bool = False,
        input_dropout: float = 0.0,
        dropconnect: float = 0.0,
        two_scales: bool = False,
    ) -> None:
        super().__init__()
        scales = len(channels)
        convs = (1, *(2,) * (scales - 1)) if convs_per_scale is None else convs_per_scale
        convs = (convs,) * scales if isinstance(convs, int) else convs
        if not channels or min((*channels, *fc, *convs)) < 1:
            given = f"channels {channels}, fc {fc}, convs_per_scale {convs_per_scale}"
            msg = f"ShallowConvNet's {given} must all be positive"
            raise BadInput(msg)
        if len(convs) != scales:
            msg = f"ShallowConvNet has {scales} scales, but convs_per_scale {convs}; give {scales}"
            raise BadInput(msg)
        if kernel < 1 or kernel % 2 == 0:
            msg = f"ShallowConvNet kernel is {kernel}; expected an odd number"
            raise BadInput(msg)
        halving = (downsample,) * scales if isinstance(downsample, str) else tuple(downsample)
        if len(halving) != scales or not {*halving} <= {*get_args(Downsample)}:
            names = ", ".join(get_args(Downsample))
            msg = (
                f"ShallowConvNet downsample is {downsample!r}; expected one or {scales} of {names}"
            )
            raise BadInput(msg)
        shares = {"dropout": dropout, "input_dropout": input_dropout, "dropconnect": dropconnect}
        for name, share in shares.items():
            if not 0 <= share < 1:
                msg = f"ShallowConvNet {name} is {share}; expected 0 to below 1"
                raise BadInput(msg)
        if dropconnect and not fc:
            msg = (
                f"ShallowConvNet dropconnect is {dropconnect}, but fc is empty, so there are no "
                f"weights to drop; give fc a width, or use dropout"
            )
            raise BadInput(msg)
        self.channels, self.kernel, self.convs_per_scale = tuple(channels), kernel, tuple(convs)
        self.downsample, self.fc, self.batch_norm = halving, tuple(fc), batch_norm
        self.shares, self.global_pool, self.coordinates = shares, global_pool, coordinates
        self.init, self.two_scales = init or HeInit(), two_scales

    def build(self, crop_size: int) -> "ShallowConvNet":
        """Make and initialise the layers."""
        times = sum(way != "none" for way in self.downsample)
        self.inputs = nn.Sequential(*self._input_layers(crop_size))
        side = crop_size // 2 if self.two_scales else crop_size
        if side < 2**times:
            msg = f"crops of {crop_size} px can't be halved {times} times; use fewer channels"
            raise BadInput(msg)
        self.convs = nn.Sequential(*self._conv_layers()).eval()
        with torch.no_grad():
            maps = self.convs(torch.zeros(1, self._input_channels, side, side))
        channels, height, width = maps[0].shape
        self.convs.train()
        self.pool = nn.AdaptiveAvgPool2d(1) if self.global_pool else nn.Identity()
        if not (self.fc or self.global_pool or self.two_scales):
            self.map_shape = (channels, height, width)
        flat = channels if self.global_pool else channels * height * width
        widths = [flat, *self.fc]
        self.fcs = nn.Sequential(*self._fc_layers(widths))
        self.out_features = widths[-1]
        self.init.apply_to(self)
        return self

    @property
    def _input_channels(self) -> int:
        return (6 if self.two_scales else 3) + (2 if self.coordinates else 0)

    def _input_layers(self, crop_size: int) -> list[nn.Module]:
        layers = _dropout(self.shares["input_dropout"])
        layers += [TwoScales(crop_size)] if self.two_scales else []
        return [*layers, Coordinates()] if self.coordinates else layers

    def _conv_layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = []
        inputs = self._input_channels
        scales = zip(self.channels, self.convs_per_scale, self.downsample, strict=True)
        for outputs, convs, downsample in scales:
            for index in range(convs):
                stride = 2 if downsample == "stride" and index == 0 else 1
                padding = self.kernel // 2
                layers.append(
                    nn.Conv2d(
                        inputs, outputs, self.kernel, stride, padding, bias=not self.batch_norm
                    )
                )
                layers += [nn.BatchNorm2d(outputs)] * self.batch_norm + [nn.ReLU()]
                inputs = outputs
            if downsample in _POOLS:
                layers.append(_POOLS[downsample]())
        return layers

    def _fc_layers(self, widths: list[int]) -> list[nn.Module]:
        if not self.fc:
            return _dropout(self.shares["dropout"])
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [*_dropout(self.shares["dropout"]), self._linear(inputs, outputs)]
            layers += [nn.BatchNorm1d(outputs)] * self.batch_norm + [nn.ReLU()]
        return layers

    def _linear(self, inputs: int, outputs: int) -> nn.Module:
        bias = not self.batch_norm
        if share := self.shares["dropconnect"]:
            return DropConnect(inputs, outputs, bias, share)
        return nn.Linear(inputs, outputs, bias)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f"]:
        """Return the features of preprocessed crops."""
        features: Tensor = self.fcs(flattened(self.pool(self.convs(self.inputs(crops)))))
        return features


def _dropout(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share else []
