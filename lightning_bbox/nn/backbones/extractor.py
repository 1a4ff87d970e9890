"""Features from any layers of any net: a user's own pretrained one serves as a backbone."""

import copy
import difflib
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.messages import say
from lightning_bbox.core.recipes import Plain, find_maker, to_plain
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.neck import Neck
from lightning_bbox.nn.backbones.pretrained import fitting_weights, read_weights

_TRIED = 5  # crops to try a net on: an uncommon number, to tell the batch from other dimensions
_READ: ContextVar[dict[str, object] | None] = ContextVar("_READ", default=None)
"""What several layers have made so far, in this thread."""


class _LayerReached(Exception):  # noqa: N818 - no error: the rest of the net isn't needed
    """The last layer has made its output, the only argument: threads may share the net."""


class FeatureExtractor(Backbone):
    """Any net up to one of its layers, or to several, whose outputs are made features.

    The net is made by its class path when the model is, also out of a checkpoint, so that must be
    importable there too. Its module is imported, as that of any class path.

    Args:
        net: Class path of a subclass of `torch.nn.Module`, or of a function that makes one, such as
            `timm.create_model`, `torchvision.models.resnet18`, `torch.hub.load`.
        layer: Dotted name of the submodule to read, or a list of them; nothing after the last one
            runs. Where one runs more than once, its first output is read.
        net_args: Arguments of the class or function, plain values only; sequences are given as
            lists.
        pretrained_args: What is added to them where the net is to come with its weights, such as
            `{pretrained: true}`: a new model begins with those, and one out of a checkpoint, whose
            weights are in there, is made without.
        weights: Path of the net's weights: `.pth`, `.pt`, `.safetensors` or `.npz`; as it is
            made by default.
        prefix: What names in that file begin with, such as `module.`; others are left out.
        strict: Refuse weights that the net lacks, or that it has and the file lacks. Without, all
            that fit are taken, and a line says which were left.
        neck: Makes features of what the layers make; flattens it by default.
        frozen: Keep the weights as they are and the net in evaluation mode, so that only the head
            learns, and a neck that can.

    Raises:
        BadInput: The net can't be imported or called, or arguments don't go together.

    Examples:
        >>> FeatureExtractor("torch.nn.functional.relu", layer="", net_args={"input": 1}).build(9)
        Traceback (most recent call last):
        lightning_bbox.BadInput: torch.nn.functional.relu can't be made with net_args {'input': 1}
        (...); give the arguments that it takes
        >>> net = FeatureExtractor("torch.nn.Conv2d", "", {"in_channels": 3, "out_channels": 4,
        ...     "kernel_size": 5}).build(9)
        >>> net(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        net: str,
        layer: str | list[str],
        net_args: dict[str, Any] | None = None,
        weights: str | None = None,
        frozen: bool = True,
        pretrained_args: dict[str, Any] | None = None,
        prefix: str = "",
        strict: bool = True,
        neck: Neck | None = None,
    ) -> None:
        super().__init__()
        # Lists, also where a checkpoint's recipe came back with tuples: the same on every way.
        self.net_args: Any = to_plain(net_args or {}, "FeatureExtractor net_args")
        self.pretrained_args: Any = to_plain(pretrained_args or {}, "FeatureExtractor net_args")
        arguments: Plain = [self.net_args, self.pretrained_args]
        self._maker = find_maker(net, nn.Module, "FeatureExtractor net", arguments)
        self.net_path = net
        self.layers = [layer] if isinstance(layer, str) else list(layer)
        self.weights, self.prefix, self.strict = weights, prefix, strict
        self.neck, self._net_frozen = neck or Neck(), frozen
        self.frozen = frozen and self.neck.channels is None
        self._traced: dict[str, object] | None = (
            None  # what has no threads, but knows no ContextVar
        )
        self._refuse_misfits(pretrained_args)

    def _refuse_misfits(self, pretrained_args: dict[str, Any] | None) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            msg = f"FeatureExtractor layer is {self.layers}; name one, or several that differ"
            raise BadInput(msg)
        if self.weights is not None and pretrained_args:
            msg = (
                "FeatureExtractor weights and pretrained_args both say what the net begins with; "
                "leave one out"
            )
            raise BadInput(msg)
        if self.weights is None and (self.prefix or not self.strict):
            msg = (
                "FeatureExtractor prefix and strict say how a file of weights is read, and there "
                "is none; name it by weights, or leave them out"
            )
            raise BadInput(msg)

    def build(self, crop_size: int) -> "FeatureExtractor":
        """Make the net, and see what its layers make of crops.

        Raises:
            BadInput: The net can't be made, doesn't take such crops, or has no such layer.
        """
        self.net = self._made(self.net_args)
        for layer in self.layers:
            self._module_of(layer).register_forward_hook(_Reader(self, layer))
        self.net.eval()
        try:
            with torch.enable_grad():
                outputs = self._run(torch.zeros(_TRIED, 3, crop_size, crop_size))
        except Exception as error:  # a user's net may raise anything
            layers = listed([repr(layer) for layer in self.layers])
            msg = (
                f"{self.net_path} can't take crops of {crop_size} px up to its layer {layers} "
                f"({error}); set data.crop.size to what it takes"
            )
            raise BadInput(msg) from error
        maps = [
            self._checked(layer, output) for layer, output in zip(self.layers, outputs, strict=True)
        ]
        with torch.enable_grad():
            self.neck.build(maps)
            features = self.neck(maps)
        self.out_features, self.map_shape = features.shape[1], self.neck.map_shape
        if self._net_frozen:
            self.net.requires_grad_(False).eval()
        else:
            self._hold_unused(features)
            self.net.train(self.training)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training, but for a frozen net: that one stays in evaluation."""
        super().train(mode)
        if self._net_frozen and hasattr(self, "net"):
            self.net.eval()
        return self

    def _checked(self, layer: str, output: object) -> Tensor:
        if isinstance(output, Tensor) and output.dim() > 0 and len(output) == _TRIED:
            return output
        made = "nothing" if output is None else f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            made = f"a tensor of shape {list(output.shape)} for {_TRIED} crops"
        msg = (
            f"layer {layer!r} of {self.net_path} makes {made}; "
            f"name one that makes one tensor, with a row for each crop"
        )
        raise BadInput(msg)

    def _made(self, arguments: dict[str, Any]) -> nn.Module:
        try:
            net = self._maker(**copy.deepcopy(arguments))
        except Exception as error:  # a user's class may raise anything
            said = " ".join(str(error).split())
            msg = (
                f"{self.net_path} can't be made with net_args {arguments} ({said}); "
                f"give the arguments that it takes"
            )
            raise BadInput(msg) from error
        if not isinstance(net, nn.Module):
            msg = (
                f"FeatureExtractor net {self.net_path} makes a {type(net).__name__}; "
                f"name what makes a torch.nn.Module"
            )
            raise BadInput(msg)
        return net

    def _module_of(self, layer: str) -> nn.Module:
        layers: dict[str, nn.Module] = dict(self.net.named_modules())
        if layer not in layers:
            near = difflib.get_close_matches(layer, layers, n=5, cutoff=0.0)
            names = listed([repr(name) for name in near])
            msg = f"{self.net_path} has no layer {layer!r}; the nearest names are {names}"
            raise BadInput(msg)
        return layers[layer]

    def _hold_unused(self, features: Tensor) -> None:
        """Keep weights that the features don't depend on from learning.

        Several processes would wait for their gradients, which never come.
        """
        parameters = [weights for weights in self.net.parameters() if weights.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if features.requires_grad and parameters:
            ones = torch.ones_like(features)
            gradients = torch.autograd.grad(features, parameters, ones, allow_unused=True)
        for weights, gradient in zip(parameters, gradients, strict=True):
            weights.requires_grad_(gradient is not None)

    def keep(self, layer: str, output: object) -> None:
        """Take what a layer has made, and end the net's run once all have.

        Args:
            layer: Which of `layers`.
            output: What it made.
        """
        exporting = torch.compiler.is_exporting()  # it loses its way where a module raises
        if len(self.layers) == 1 and not exporting:
            raise _LayerReached([output])
        read = self._traced if torch.compiler.is_compiling() else _READ.get()
        if read is None:  # somebody else runs the layer
            return
        if layer not in read:
            # A layer behind it may work in place.
            read[layer] = output.clone() if isinstance(output, Tensor) else output
        if len(read) == len(self.layers) and not exporting:
            raise _LayerReached([read[layer] for layer in self.layers])

    def _run(self, crops: Tensor) -> list[object]:
        """Return what each layer makes of crops, None where one isn't reached."""
        read: dict[str, object] = {}
        token = None
        if torch.compiler.is_compiling():
            self._traced = read
        else:
            token = _READ.set(read)
        try:
            self.net(crops)
        except _LayerReached as reached:
            outputs: list[object] = reached.args[0]
            return outputs
        finally:
            self._traced = None
            if token is not None:
                _READ.reset(token)
        return [read.get(layer) for layer in self.layers]

    def load_pretrained(self) -> None:
        """Take over the weights that were asked for.

        Raises:
            BadInput: They aren't there, can't be read, or are another net's.
        """
        if self.pretrained_args:
            whole = self._made(self.net_args | self.pretrained_args)
            arguments = f"{self.net_path} with {self.pretrained_args}"
            weights, _ = fitting_weights(arguments, whole.state_dict(), self.net.state_dict())
            self.net.load_state_dict(weights)
        if self.weights is not None:
            read, mine = read_weights(self.weights), self.net.state_dict()
            fitting, left = fitting_weights(self.weights, read, mine, self.prefix, self.strict)
            self.net.load_state_dict(fitting, strict=False)
            if left:
                say(left)

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f"]:
        """Return the features of preprocessed crops."""
        features: Tensor = self.neck(self._run(crops))
        return features


class _Reader:
    """The hook of a layer: copies and pickles of an extractor have their own."""

    def __init__(self, extractor: FeatureExtractor, layer: str) -> None:
        self.extractor, self.layer = extractor, layer

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        self.extractor.keep(self.layer, output)
