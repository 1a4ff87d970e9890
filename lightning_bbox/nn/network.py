"""Preprocessing, backbone and head as one network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.calibration import Calibration
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.preprocess import Preprocess


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
    def fast_features(self) -> Callable[[Float[Tensor, "b 3 s s"]], Float[Tensor, "b f"]]:
        """What `features` does, compiled where the network is."""
        if self._compiled_call_impl is None:
            return self.features
        return torch.compile(self.features, fullgraph=True)  # one graph, however often it is asked

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return next(self.parameters()).dtype

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Be in evaluation mode for a while, without gradients; every layer's own mode returns."""
        with self._in_mode(training=False):
            yield

    @contextmanager
    def _in_mode(self, training: bool) -> Iterator[None]:
        modes = [(module, module.training) for module in self.modules()]
        self.train(training)
        try:
            with torch.no_grad():
                yield
        finally:
            for module, before in modes:
                module.training = before

    def settle_norms(self, batches: Iterable[Float[Tensor, "b 3 s s"]]) -> None:
        """Give batch norms that learn the statistics of some batches, weighed alike.

        They begin at none, and forget that over the first hundred steps: until then features in
        evaluation aren't those in training.
        """
        with self._in_mode(training=True):
            norms = [
                module
                for module in self.modules()
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.training
            ]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's name for the plain average
            for crops in batches if norms else ():
                if len(crops) > 1:  # one alone has no deviation
                    self.features(crops)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked.zero_()
