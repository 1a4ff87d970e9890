"""Initialisations of convolutions and linear layers: one small class each."""

import math

import torch
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe


class Init(Recipe):
    """How the weights of a layer begin, drawn from torch's global generator; biases are a constant.

    A layer before batch norm has no bias.

    Args:
        bias: What biases begin at: 0, or a little more (0.01), so that every ReLU fires at first.
    """

    def __init__(self, bias: float = 0.0) -> None:
        if not math.isfinite(bias):
            msg = f"{type(self).__name__} bias is {bias}; expected a finite number"
            raise BadInput(msg)
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


class ZeroInit(Init):
    """All zero: the pitfall, to be seen failing.

    The units of a layer compute the same and get the same gradients, so they stay equal; behind a
    ReLU, with biases of 0, there are none at all, and only the head's bias learns.

    References:
        CS231n notes, Neural Networks 2, Weight Initialization.

    Examples:
        >>> layer = nn.Linear(2, 3)
        >>> ZeroInit(bias=0.01).apply_to(layer)
        >>> layer(torch.ones(2)).tolist() == layer.bias.tolist()
        True
    """

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        nn.init.zeros_(weight)


class NormalInit(Init):
    """Normal, of one standard deviation whatever the layer: small numbers break the symmetry.

    What a layer passes on then depends on how many inputs it has, and vanishes in a deep net.

    Args:
        std: Standard deviation of the weights.
        bias: What biases begin at.

    Raises:
        BadInput: The deviation isn't positive.

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks (2012).
        CS231n notes, Neural Networks 2, Weight Initialization.

    Examples:
        >>> layer = nn.Linear(100, 100)
        >>> NormalInit().apply_to(layer)
        >>> 0.009 < layer.weight.std().item() < 0.011
        True
    """

    def __init__(self, std: float = 0.01, bias: float = 0.0) -> None:
        super().__init__(bias)
        _refuse_std(self, std)
        self.std = std

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        nn.init.normal_(weight, std=self.std)


class FanInInit(Init):
    """Normal, of variance 1 / inputs: a linear layer passes on the variance of its inputs.

    References:
        LeCun et al., Efficient BackProp (1998). CS231n notes, Neural Networks 2, Weight
        Initialization.

    Examples:
        >>> layer = nn.Linear(100, 10_000)
        >>> FanInInit().apply_to(layer)
        >>> abs(layer(torch.ones(100)).std().item() - 1) < 0.1
        True
    """

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        nn.init.kaiming_normal_(weight, nonlinearity="linear")


class GlorotInit(Init):
    """Normal, of variance 2 / (inputs + outputs): between what activations and gradients ask for.

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks
        (2010). CS231n notes, Neural Networks 2, Weight Initialization.

    Examples:
        >>> layer = nn.Conv2d(16, 48, 5)
        >>> GlorotInit().apply_to(layer)
        >>> abs(layer.weight.std().item() * (25 * 64 / 2) ** 0.5 - 1) < 0.05
        True
    """

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        nn.init.xavier_normal_(weight)


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


class SparseInit(Init):
    """Connect each neuron to a few of its inputs, drawn at random; its other weights are zero.

    What a neuron sums up then doesn't grow with the number of its inputs.

    Args:
        inputs: How many inputs each neuron is connected to; all where there aren't as many.
        std: Standard deviation of their weights; 1 / sqrt(inputs) by default, which passes on the
            variance of the inputs. (The notes take small ones, as of `NormalInit`.)
        bias: What biases begin at.

    Raises:
        BadInput: A value isn't positive.

    References:
        Martens, Deep learning via Hessian-free optimization (2010), section 5. CS231n notes, Neural
        Networks 2, Weight Initialization. Unlike `torch.nn.init.sparse_`, which leaves each input a
        number of neurons, this leaves each neuron a number of inputs.

    Examples:
        >>> layer = nn.Conv2d(3, 8, 3)
        >>> SparseInit(inputs=10).apply_to(layer)
        >>> layer.weight.flatten(1).count_nonzero(dim=1).tolist()
        [10, 10, 10, 10, 10, 10, 10, 10]
    """

    def __init__(self, inputs: int = 10, std: float | None = None, bias: float = 0.0) -> None:
        super().__init__(bias)
        if inputs < 1:
            msg = f"SparseInit inputs is {inputs}; expected at least 1"
            raise BadInput(msg)
        if std is not None:
            _refuse_std(self, std)
        self.inputs, self.std = inputs, std

    def fill(self, weight: Tensor) -> None:
        """Fill a weight in place."""
        rows = weight.flatten(1)
        count = min(self.inputs, rows.shape[1])
        chosen = torch.rand_like(rows).topk(count, dim=1).indices
        drawn = torch.randn_like(rows[:, :count]) * (self.std or 1 / math.sqrt(count))
        weight.copy_(torch.zeros_like(rows).scatter_(1, chosen, drawn).view_as(weight))


def _refuse_std(init: Init, std: float) -> None:
    if not 0 < std < math.inf:
        msg = f"{type(init).__name__} std is {std}; expected above 0"
        raise BadInput(msg)
