"""Preprocessing, fitted on the training split: part of the model, so the checkpoint carries it."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part

Per = Literal["global", "channel", "pixel"]
"""What has a statistic of its own: nothing (one for all), each channel, or each channel of each
pixel."""

_POOLED: dict[Per, tuple[int, ...]] = {"global": (0, 1, 2, 3), "channel": (0, 2, 3), "pixel": (0,)}
_CONSTANT = 1e-6  # crops that vary by less, in [0, 1], don't


class Preprocess(Part):
    """A transformation of the crops that is fitted on the training split.

    Attributes:
        draws: How many training draws it is fitted on; those of the fixed training probe by
            default.
    """

    draws: int | None = None

    def build(self, crop_size: int) -> "Preprocess":
        """Make room for the statistics of square crops of this side; nothing by default."""
        return self

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Set the statistics from training crops in [0, 1]."""
        raise NotImplementedError

    def pictures(self) -> dict[str, Float[Tensor, "n 3 h w"]]:
        """Return pictures of what was fitted, in [0, 1], by their title; none by default."""
        return {}


class ChannelNorm(Preprocess):
    """Subtract the training mean of each channel and divide by its standard deviation.

    Examples:
        >>> norm = ChannelNorm()
        >>> norm.fit(torch.rand(100, 3, 8, 8))
        >>> round(norm(torch.full((1, 3, 2, 2), float(norm.mean[0]))).abs()[0, 0, 0, 0].item(), 6)
        0.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Set the statistics from training crops; a channel without variation is only centred."""
        mean, std = _moments(crops, "channel", "channel")
        self.mean.copy_(mean.flatten())
        self.std.copy_(std.flatten())

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise crops."""
        return (crops - self.mean[:, None, None]).div_(self.std[:, None, None])


class ImageNetNorm(ChannelNorm):
    """Centre and scale by the statistics of ImageNet, which torchvision's weights expect.

    Nothing is fitted.

    Examples:
        >>> ImageNetNorm()(torch.full((1, 3, 1, 1), 0.485))[0, 0]
        tensor([[0.]])
    """

    def __init__(self) -> None:
        super().__init__()
        # Constants: they move with the model, but needn't travel in its checkpoint.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Leave the statistics as they are."""


class MeanNorm(Preprocess):
    """Subtract a training mean, and divide by a standard deviation where one is asked for.

    A mean of each pixel is a picture; a deviation is that of the centred crops. What doesn't vary
    is only centred.

    Args:
        mean: What has a mean of its own: `global` (none: one number for all), `channel`, or `pixel`
            (each channel of each pixel).
        std: What has a standard deviation of its own; by default nothing is divided.

    Raises:
        BadInput: There is no such kind.

    References:
        CS231n notes, Neural Networks 2, Data Preprocessing: mean subtraction, normalization.

    Examples:
        >>> norm = MeanNorm("pixel").build(2)
        >>> crops = torch.rand(50, 3, 2, 2)
        >>> norm.fit(crops)
        >>> norm(crops).mean(dim=0).abs().max().item() < 1e-6
        True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Per = "channel", std: Per | None = None) -> None:
        super().__init__()
        _refuse_unknown("MeanNorm mean", mean)
        if std is not None:
            _refuse_unknown("MeanNorm std", std)
        self.mean_per, self.std_per = mean, std

    def build(self, crop_size: int) -> "MeanNorm":
        """Make the buffers: before it is fitted, crops pass through."""
        self.register_buffer("mean", torch.zeros(_shape(self.mean_per, crop_size)))
        self.register_buffer("std", torch.ones(_shape(self.std_per or "global", crop_size)))
        return self

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Set the statistics from training crops."""
        mean, std = _moments(crops, self.mean_per, self.std_per)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Centre, and scale."""
        return (crops - self.mean) / self.std

    def pictures(self) -> dict[str, Float[Tensor, "n 3 h w"]]:
        """Return the mean and the deviation of each pixel, where these are what was asked for."""
        shown = {}
        if self.mean_per == "pixel":
            shown["mean"] = self.mean[None]
        if self.std_per == "pixel":
            largest = self.std.max()
            shown[f"deviation / {float(largest):.3f}"] = self.std[None] / largest
        return shown


class RangeNorm(Preprocess):
    """Scale linearly so that training crops span [-1, 1].

    Other crops may reach beyond; what doesn't vary is only centred.

    Args:
        per: What has a range of its own: `global` (one for all), `channel`, or `pixel` (each
            channel of each pixel, the notes' "along each dimension").

    Raises:
        BadInput: There is no such kind.

    References:
        CS231n notes, Neural Networks 2, Data Preprocessing: the second form of normalization.

    Examples:
        >>> norm = RangeNorm("global").build(2)
        >>> norm.fit(torch.linspace(0.2, 0.6, 12).view(1, 3, 2, 2))
        >>> norm(torch.tensor([0.2, 0.4, 0.7]).view(1, 3, 1, 1)).flatten()
        tensor([-1.0000,  0.0000,  1.5000])
    """

    low: Tensor
    high: Tensor

    def __init__(self, per: Per = "pixel") -> None:
        super().__init__()
        _refuse_unknown("RangeNorm per", per)
        self.per = per

    def build(self, crop_size: int) -> "RangeNorm":
        """Make the buffers: before it is fitted, crops pass through."""
        shape = _shape(self.per, crop_size)
        self.register_buffer("low", -torch.ones(shape))
        self.register_buffer("high", torch.ones(shape))
        return self

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Set the ends of the range from training crops."""
        dims = _POOLED[self.per]
        low = crops.detach().amin(dim=dims, keepdim=True)[0].double()
        high = crops.detach().amax(dim=dims, keepdim=True)[0].double()
        varies = high - low > _CONSTANT
        self.low.copy_(torch.where(varies, low, low - 1))
        self.high.copy_(torch.where(varies, high, low + 1))

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Scale."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return (crops - middle) / half

    def pictures(self) -> dict[str, Float[Tensor, "n 3 h w"]]:
        """Return the ends of each pixel's range, where these are what was asked for."""
        if self.per != "pixel":
            return {}
        return {"smallest value": self.low[None], "largest value": self.high[None]}


class CaffeNorm(Preprocess):
    """Turn crops to what Caffe's nets expect: BGR from 0 to 255, less the mean of ImageNet.

    Nothing is fitted.

    Examples:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> CaffeNorm()(red).flatten()
        tensor([-104., -117.,  132.])
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A constant, in the order of the channels that come out.
        self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0]), persistent=False)

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Leave the mean as it is."""

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Reorder, scale and centre crops."""
        return crops.flip(1) * 255 - self.mean[:, None, None]


def _moments(
    crops: Float[Tensor, "n 3 h w"], mean_per: Per, std_per: Per | None
) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Return the means and the deviations from them, in fp64; 1 for what doesn't vary."""
    double = crops.detach().cpu().double()
    mean = double.mean(dim=_POOLED[mean_per], keepdim=True)
    if std_per is None:
        return mean[0], torch.ones(1, 1, 1)
    centred = double if std_per == mean_per else double - mean  # a deviation has its own mean
    std = centred.std(dim=_POOLED[std_per], keepdim=True)
    return mean[0], torch.where(std > _CONSTANT, std, 1.0)[0]


def _refuse_unknown(name: str, per: str) -> None:
    if per not in get_args(Per):
        msg = f"{name} is {per!r}; expected one of {', '.join(get_args(Per))}"
        raise BadInput(msg)


def _shape(per: Per, crop_size: int) -> tuple[int, int, int]:
    side = crop_size if per == "pixel" else 1
    return (1 if per == "global" else 3), side, side
