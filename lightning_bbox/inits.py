"""Initialisations of convolutions and linear layers: one small class each."""

import torch
from torch import Tensor, nn

from lightning_bbox.parts import Part


class Init(Part):
    """How the weights of a layer begin, drawn from torch's global generator; biases are a constant.

    Args:
        bias: What biases begin at.
    """

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def fill(self, weight: Tensor) -> None:
        """Fill a weight, (outputs, inputs) or (outputs, inputs, height, width), in place."""
        raise NotImplementedError

    @torch.no_grad()
    def apply_to(self, net: nn.Module) -> None:
        """Fill the weights of all convolutions and linear layers of a network."""
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.fill(module.weight)
                if module.bias is not None:
                    module.bias.fill_(self.bias)


class HeInit(Init):
    """Normal, of variance 2 / inputs: made for ReLU.

    References:
        He et al., Delving deep into rectifiers (2015). CS231n notes, Weight initialization.

    Examples:
        >>> layer = nn.Linear(2, 3)
        >>> HeInit().apply_to(layer)
        >>> layer.bias.tolist()
        [0.0, 0.0, 0.0]
    """

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
