"""Features from any layer of any net: a user's own pretrained one serves as a backbone."""

import copy
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.recipes import find_class, to_plain
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.pretrained import read_weights, refuse_other_weights

_TRIED = 5  # crops to try a net on: an uncommon number, to tell the batch from other dimensions


class _LayerReached(Exception):  # noqa: N818 - no error: the rest of the net isn't needed
    """The layer has made its output, the only argument: threads may share the net."""


class FeatureExtractor(Backbone):
    """Any net up to one of its layers, whose output is flattened to the features.

    The net is made by its class path when the model is, also out of a checkpoint, so the class must
    be importable there too. Its module is imported, as that of any class path.

    Args:
        net: Class path of a subclass of `torch.nn.Module`.
        layer: Dotted name of the submodule to read; nothing after it runs. Where it runs more than
            once, its first output is read.
        net_args: Arguments of the class, plain values only; sequences are given as lists.
        weights: Path of the whole net's weights: `.pth`, `.pt`, `.safetensors` or `.npz`; as the
            class initialises them by default.
        frozen: Keep the weights as they are and the net in evaluation mode, so that only the head
            learns.

    Raises:
        BadInput: The net can't be imported, or isn't a `torch.nn.Module`.

    Examples:
        >>> net = FeatureExtractor("torch.nn.functional.relu", layer="conv1")
        Traceback (most recent call last):
        lightning_bbox.BadInput: FeatureExtractor net names torch.nn.functional.relu, which isn't
        derived from Module; it isn't built
        >>> net = FeatureExtractor("torch.nn.Conv2d", "", {"in_channels": 3, "out_channels": 4,
        ...     "kernel_size": 5}).build(9)
        >>> net(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        net: str,
        layer: str,
        net_args: dict[str, Any] | None = None,
        weights: str | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self._net_class = find_class(net, nn.Module, "FeatureExtractor net")
        self.net_path, self.layer = net, layer
        # Lists, also where a checkpoint's recipe came back with tuples: the same on every way.
        self.net_args: Any = to_plain(net_args or {}, "FeatureExtractor net_args")
        self.weights, self.frozen = weights, frozen
        self._output: object = None

    def build(self, crop_size: int) -> "FeatureExtractor":
        """Make the net, and see what its layer makes of crops.

        Raises:
            BadInput: The net can't be made, doesn't take such crops, or has no such layer.
        """
        self.net = self._made()
        self._layer_of(self.net).register_forward_hook(self._keep)
        self.net.eval()
        try:
            with torch.enable_grad():
                output = self._run(torch.zeros(_TRIED, 3, crop_size, crop_size))
        except Exception as error:  # a user's net may raise anything
            msg = (
                f"{self.net_path} can't take crops of {crop_size} px up to its layer "
                f"{self.layer!r} ({error}); set data.crop.size to what it takes"
            )
            raise BadInput(msg) from error
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != _TRIED:
            made = "nothing" if output is None else f"a {type(output).__name__}"
            if isinstance(output, Tensor):
                made = f"a tensor of shape {list(output.shape)} for {_TRIED} crops"
            msg = (
                f"layer {self.layer!r} of {self.net_path} makes {made}; "
                f"name one that makes one tensor, with a row for each crop"
            )
            raise BadInput(msg)
        self.out_features = output.flatten(1).shape[1]
        if output.dim() == 4:
            channels, height, width = output.shape[1:]
            self.map_shape = (channels, height, width)
        if self.frozen:
            self.freeze()
        else:
            self._hold_unused(output)
            self.net.train(self.training)
        return self

    def _made(self) -> nn.Module:
        try:
            net: nn.Module = self._net_class(**copy.deepcopy(self.net_args))
        except Exception as error:  # a user's class may raise anything
            msg = (
                f"{self.net_path} can't be made with net_args {self.net_args} ({error}); "
                f"give the arguments of its __init__"
            )
            raise BadInput(msg) from error
        return net

    def _layer_of(self, net: nn.Module) -> nn.Module:
        layers: dict[str, nn.Module] = dict(net.named_modules())
        if self.layer not in layers:
            near = difflib.get_close_matches(self.layer, layers, n=5, cutoff=0.0)
            names = listed([repr(name) for name in near])
            msg = f"{self.net_path} has no layer {self.layer!r}; the nearest names are {names}"
            raise BadInput(msg)
        return layers[self.layer]

    def _hold_unused(self, output: Tensor) -> None:
        """Keep weights that the output doesn't depend on from learning.

        Several processes would wait for their gradients, which never come.
        """
        parameters = [weights for weights in self.net.parameters() if weights.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if output.requires_grad:
            ones = torch.ones_like(output)
            gradients = torch.autograd.grad(output, parameters, ones, allow_unused=True)
        for weights, gradient in zip(parameters, gradients, strict=True):
            weights.requires_grad_(gradient is not None)

    def _keep(self, module: nn.Module, inputs: object, output: object) -> None:
        if torch.compiler.is_exporting():  # which loses its way where a module raises
            if self._output is None:
                # A layer behind it may work in place.
                self._output = output.clone() if isinstance(output, Tensor) else output
        else:
            raise _LayerReached(output)

    def _run(self, crops: Tensor) -> object:
        try:
            self.net(crops)
        except _LayerReached as reached:
            return reached.args[0]
        output, self._output = self._output, None
        return output

    def load_pretrained(self) -> None:
        """Take over the weights that were asked for.

        Raises:
            BadInput: They aren't there, can't be read, or are another net's.
        """
        if self.weights is not None:
            weights, mine = read_weights(self.weights), self.net.state_dict()
            refuse_other_weights(self.weights, weights, mine, needed=mine)
            self.net.load_state_dict(weights)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f"]:
        """Return the features of preprocessed crops."""
        output = self._run(crops)
        assert isinstance(output, Tensor)
        return output.flatten(1)
