"""Layers that draw at random in training and take the mean in evaluation, and passes that draw."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from lightning_bbox.core.randomness import stream_seed


class DropConnect(nn.Linear):
    """A linear layer that drops weights, not inputs, in training.

    What is kept is divided by the share kept, so that evaluation uses the weights as they are:
    their mean. The samples of a batch share a mask.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        bias: Whether there is one; it isn't dropped.
        p: Probability of dropping a weight.

    References:
        Wan et al., Regularization of neural networks using DropConnect (2013), section 3. Theirs
        draws a mask for each sample, and a Gaussian of the outputs in evaluation.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.p = p

    def forward(self, inputs: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """Return the outputs."""
        weight = functional.dropout(self.weight, self.p, self.training)
        return functional.linear(inputs, weight, self.bias)

    def extra_repr(self) -> str:
        """Say the sizes and the probability."""
        return f"{super().extra_repr()}, p={self.p}"


class StochasticPool2d(nn.Module):
    """Pool windows of 2 x 2: draw one activation by its size in training, else weight by size.

    An activation is drawn with the probability of its share in the window's sum. In evaluation each
    is weighted by this probability. Negative ones count as zero; a window without any is zero.

    References:
        Zeiler and Fergus, Stochastic pooling for regularization of deep convolutional neural
        networks (2013), equations 4-6.
    """

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the pooled maps; an odd last row or column is left out, as in max pooling."""
        height, width = (side // 2 * 2 for side in maps.shape[2:])
        corners = [maps[:, :, y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]
        windows = torch.stack(corners, dim=-1).clamp(min=0)
        exact = windows.to(torch.promote_types(maps.dtype, torch.float32))
        if self.training:
            # The largest of a / Exp(1) is a draw in proportion to a.
            waits = -torch.rand_like(exact).log()
            drawn = (exact.detach() / waits).argmax(dim=-1, keepdim=True)
            return windows.gather(-1, drawn).squeeze(-1)
        total = exact.sum(dim=-1)
        tiny = torch.finfo(exact.dtype).tiny
        return (exact * (exact / total.clamp(min=tiny)[..., None])).sum(dim=-1).to(maps.dtype)


class FractionalPool2d(nn.Module):
    """Max pooling in overlapping windows of 2 x 2 that shrinks the map by the root of two.

    Where the windows lie is drawn in training for each sample, the same for all its channels, and
    fixed in evaluation.

    References:
        Graham, Fractional max-pooling (2014): pseudo-random, overlapping regions.
    """

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return the pooled maps."""
        samples, channels, height, width = maps.shape
        if self.training:
            starts = torch.rand(samples, 1, 2, dtype=maps.dtype, device=maps.device)
        else:
            starts = maps.new_full((samples, 1, 2), 0.5)
        starts = starts.expand(-1, channels, -1).contiguous()
        size = [int(side / math.sqrt(2)) for side in (height, width)]
        return functional.fractional_max_pool2d(maps, 2, size, _random_samples=starts)


def stochastic_layers(net: nn.Module) -> list[nn.Module]:
    """Return the layers of a network that draw at random in training."""
    return [
        module
        for module in net.modules()
        if isinstance(module, StochasticPool2d | FractionalPool2d)
        or (isinstance(module, _DropoutNd | DropConnect) and module.p > 0)
    ]


@contextmanager
def sampling(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the stochastic layers of a network draw for a while, always the same; others stay.

    Args:
        net: In evaluation mode.
        device: Where it is applied; its random numbers go on afterwards as if nothing had been.
    """
    layers = stochastic_layers(net)
    modes = [layer.training for layer in layers]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed("passes"))
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer, mode in zip(layers, modes, strict=True):
                layer.training = mode
