"""Parts as their users might write them, which come to values that aren't finite."""

import torch
from torch import Tensor, nn

from lightning_bbox import L1Loss, ShallowConvNet


class LogLoss(L1Loss):
    """Takes the logarithm of what is negative as soon as an error is."""

    def penalty(self, error: Tensor, std: Tensor) -> Tensor:
        return error.log()


class RootLoss(L1Loss):
    """Is finite at no error, where its gradient isn't."""

    def penalty(self, error: Tensor, std: Tensor) -> Tensor:
        return (error * 0).abs().sqrt()


class Reciprocal(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return 1 / maps.relu()


class Root(nn.Module):
    """Is finite at 0, where its gradient isn't."""

    def forward(self, maps: Tensor) -> Tensor:
        return (maps * 0).sqrt()


class RootConvNet(ShallowConvNet):
    def build(self, crop_size: int) -> "RootConvNet":
        super().build(crop_size)
        self.convs.append(Root())
        return self


class ReciprocalConvNet(ShallowConvNet):
    """Divides by what is 0 in places."""

    def build(self, crop_size: int) -> "ReciprocalConvNet":
        super().build(crop_size)
        self.convs.append(Reciprocal())
        return self


class RatioConvNet(ShallowConvNet):
    """Divides by what is 0, in a line of its own and not in a layer."""

    def forward(self, crops: Tensor) -> Tensor:
        features = super().forward(crops)
        return features / torch.zeros_like(features)
