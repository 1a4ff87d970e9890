"""What a backbone is: from crops to feature vectors."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.recipes import Part
from lightning_bbox.nn.preprocess import ChannelNorm, Preprocess


class Backbone(Part):
    """A network that is built once the size of the crops is known.

    Attributes:
        out_features: Length of the feature vector, set by `build`.
        map_shape: Channels, height and width of the map that the feature vector is, flattened;
            None where it isn't one.
        frozen: Whether the features stay what they are: nothing in it learns.
        layer_names: What the field calls the layers whose own names don't say it.
    """

    out_features: int
    map_shape: tuple[int, int, int] | None = None
    frozen: bool = False
    layer_names: Mapping[str, str] = {}

    def build(self, crop_size: int) -> "Backbone":
        """Make the layers for square crops of this side; torch's global generator is used."""
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Take over weights that a new model begins with; nothing by default.

        A model that comes out of a checkpoint does without: its weights are in there.
        """

    def freeze(self) -> None:
        """Keep what is built as it is: no gradients, and the evaluation mode for good."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training, but for a frozen backbone: that one stays in evaluation."""
        return super().train(mode and not self.frozen)

    def default_preprocess(self) -> Preprocess:
        """Return the preprocessing that the weights expect, where none is asked for."""
        return ChannelNorm()


def flattened(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
    """Return maps as feature vectors: channel by channel, row by row.

    Their gradients come back in the layout that the maps have. As flattening makes them, they would
    have another one, and on a CPU the ReLU and batch norm before then take ten times as long.
    Compiled code chooses its layouts itself.

    Args:
        maps: What a layer made.

    Examples:
        >>> flattened(torch.arange(8.0).reshape(1, 2, 2, 2))
        tensor([[0., 1., 2., 3., 4., 5., 6., 7.]])
    """
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    if maps.requires_grad and channels_last and not torch.compiler.is_compiling():
        maps = _GradientsInChannelsLast.apply(maps)  # type: ignore[no-untyped-call] # torch's
    return maps.flatten(1)


class _GradientsInChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, maps: Tensor) -> Tensor:  # noqa: ANN401 (torch's context)
        return maps.view_as(maps)

    @staticmethod
    def backward(_: Any, gradients: Tensor) -> Tensor:  # noqa: ANN401 (torch's context)
        return gradients.contiguous(memory_format=torch.channels_last)
