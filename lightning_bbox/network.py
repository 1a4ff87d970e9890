"""Preprocessing, backbone and head as one network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.backbones import Backbone
from lightning_bbox.calibration import Calibration
from lightning_bbox.heads import Head
from lightning_bbox.preprocess import Preprocess


class OffsetNet(nn.Module):
    """Preprocessing, backbone and head in one module, so that they compile to one graph.

    Beside them lies how the head's standard deviations are calibrated, so that it travels along.
    """

    def __init__(self, preprocess: Preprocess, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.preprocess, self.backbone, self.head = preprocess, backbone, head
        self.calibration = Calibration()

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Tensor:
        """Return the head's outputs for raw crops in [0, 1]."""
        outputs: Tensor = self.head(self.features(crops))
        return outputs

    def features(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f"]:
        """Return what the backbone makes of raw crops in [0, 1]."""
        normal = self.preprocess(crops.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.backbone(normal.to(self.dtype))
        return features

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return next(self.parameters()).dtype

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Be in evaluation mode for a while, without gradients; every layer's own mode returns."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def fit_head(self, crops: Float[Tensor, "n 3 s s"], batch_size: int) -> None:
        """Fit the head on the features of training crops; nothing else in the network changes."""
        with self.evaluating():
            features = [self.features(chunk) for chunk in torch.split(crops, batch_size)]
            self.head.fit_features(torch.cat(features))
