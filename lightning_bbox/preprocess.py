"""Preprocessing, fitted on the training split: part of the model, so the checkpoint carries it."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.parts import Part


class Preprocess(Part):
    """A transformation of the crops that is fitted on the training split."""

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Set the statistics from training crops in [0, 1]."""
        raise NotImplementedError


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
        double = crops.detach().cpu().double()
        std = double.std(dim=(0, 2, 3))
        self.mean.copy_(double.mean(dim=(0, 2, 3)))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise crops."""
        return (crops - self.mean[:, None, None]) / self.std[:, None, None]


class ImageNetNorm(Preprocess):
    """Centre and scale by the statistics of ImageNet, which torchvision's weights expect.

    Nothing is fitted.

    Examples:
        >>> ImageNetNorm()(torch.full((1, 3, 1, 1), 0.485))[0, 0]
        tensor([[0.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants: they move with the model, but needn't travel in its checkpoint.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Leave the statistics as they are."""

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise crops."""
        return (crops - self.mean[:, None, None]) / self.std[:, None, None]


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
