"""Parts as their users might write them, each of which raises somewhere."""

from typing import NoReturn

import torch
from kornia.augmentation import RandomBrightness
from torch import Tensor

from lightning_bbox import (
    L1Loss,
    LinearHead,
    MeanStdCodec,
    SceneDataModule,
    Schedule,
    ShallowConvNet,
)


class FailingLoss(L1Loss):
    def penalty(self, error: Tensor, std: Tensor) -> Tensor:
        msg = "no such penalty"
        raise KeyError(msg)


class FailingHead(LinearHead):
    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.view(3, 5, 7)  # torch raises: these aren't so many


class UnmadeHead(LinearHead):
    def __init__(self) -> None:
        super().__init__()
        msg = "no such file"
        raise FileNotFoundError(msg)


class FailingConvNet(ShallowConvNet):
    """Can't be trained, and can be looked at."""

    def forward(self, crops: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError
        return super().forward(crops)


class FlatConvNet(ShallowConvNet):
    """Raises nothing by itself, but returns what no head takes."""

    def forward(self, crops: Tensor) -> Tensor:
        return super().forward(crops)[:, 0]


class UnbuiltConvNet(ShallowConvNet):
    def build(self, crop_size: int) -> NoReturn:
        msg = f"a side of {crop_size}"
        raise ArithmeticError(msg)


class FailingCodec(MeanStdCodec):
    def decode(self, targets: Tensor, proposals: Tensor) -> Tensor:
        raise ZeroDivisionError


class FailingBrightness(RandomBrightness):
    """Fails with pictures, not with the disc that it is tried on as it is made."""

    def apply_transform(self, crops: Tensor, *args: object, **more: object) -> Tensor:
        if len(crops.unique()) > 1000:
            msg = "too bright"
            raise ValueError(msg)
        return super().apply_transform(crops, *args, **more)


class FailingScenes(SceneDataModule):
    def crops_of(self, samples, augment=False, raw=None):
        msg = "no such file"
        raise FileNotFoundError(msg)


class FailingSchedule(Schedule):
    def factor(self, progress: float) -> float:
        return [1.0, 0.5][int(progress * 3)]


class FailingSGD(torch.optim.SGD):
    def step(self, closure=None):
        msg = "no step"
        raise RuntimeError(msg)
