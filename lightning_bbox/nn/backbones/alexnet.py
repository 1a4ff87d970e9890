"""AlexNet, in torchvision's layout and in Caffe's, read at any of its layers."""

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import say
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.pretrained import find_weights, read_weights, refuse_other_weights
from lightning_bbox.nn.inits import HeInit, Init
from lightning_bbox.nn.preprocess import CaffeNorm, ImageNetNorm, Preprocess

AlexNetLayer = Literal[
    "conv1", "conv2", "conv3", "conv4", "conv5", "pool1", "pool2", "pool5", "fc6", "fc7"
]
AlexNetLayout = Literal["torchvision", "caffe"]

_FEATURES = (
    *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2"),
    *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
)
_CLASSIFIER = ("drop5", "fc6", "relu6", "drop6", "fc7", "relu7", "fc8")
TORCHVISION_NAMES = {
    **{f"features.{index}": name for index, name in enumerate(_FEATURES)},
    **{f"classifier.{index}": name for index, name in enumerate(_CLASSIFIER)},
}
"""Layers of torchvision's AlexNet, and what the field calls them."""

CAFFE_NAMES = {
    f"{kind}{number}": f"{kind}{number}"
    for kind in ("conv", "relu", "pool", "norm", "fc")
    for number in range(1, 8)
}
"""Layers of Caffe's AlexNet go by the field's names already."""

_LARGEST_TRIED = 300  # px: a layer that takes crops of this side takes larger ones


def torchvision_alexnet() -> nn.Sequential:
    """Make the AlexNet of torchvision, of one tower and without response normalisation.

    Names, order and shapes of its state dict are those of the public weights. No layer works in
    place, so that hooks see what each one makes.

    References:
        Krizhevsky, One weird trick for parallelizing convolutional neural networks (2014).
    """
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
        nn.Linear(4096, 1000),
    )
    return nn.Sequential(
        OrderedDict(
            features=features,
            avgpool=nn.AdaptiveAvgPool2d(6),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )


def caffe_alexnet() -> nn.Sequential:
    """Make the AlexNet of Caffe that R-CNN read, up to fc7.

    It pools before it normalises. As in Caffe, pooling windows may reach beyond the map's end.

    References:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks (2012).
        Jia et al., Caffe (2014): the reference model, whose order of layers this is.
    """
    pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
    norm = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=1.0)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 96, 11, stride=4)),
        ("relu1", nn.ReLU()),
        ("pool1", pool()),
        ("norm1", norm()),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU()),
        ("pool2", pool()),
        ("norm2", norm()),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=2)),
        ("relu5", nn.ReLU()),
        ("pool5", pool()),
        ("flatten", nn.Flatten()),
        ("fc6", nn.Linear(256 * 6 * 6, 4096)),
        ("relu6", nn.ReLU()),
        ("drop6", nn.Dropout()),
        ("fc7", nn.Linear(4096, 4096)),
        ("relu7", nn.ReLU()),
    ]
    return nn.Sequential(OrderedDict(layers))


_LAYOUTS = {"torchvision": torchvision_alexnet, "caffe": caffe_alexnet}
_LAYOUT_OF = {"imagenet": "torchvision", "caffe": "caffe"}


class AlexNet(Backbone):
    """AlexNet up to one of its layers, whose output is flattened to the features.

    Args:
        layer: Where the features are read; nothing is made of what comes after it. `pool1` and
            `pool2` of Caffe's layout are read before the response normalisation.
        relu: Whether a convolution or a fully connected layer is read after its ReLU, where its
            features aren't negative; pools always are.
        layout: `torchvision`: one tower, no normalisation, crops of any size from some 63 px.
            `caffe`: two groups and response normalisation; its `fc6` needs crops of 227 px.
        weights: `imagenet` (torchvision's, fetched where they aren't at hand), `caffe` (conv1 to
            conv5 alone), or the path of a `.pth`, `.pt`, `.safetensors` or `.npz` file; random by
            default.
        weights_dir: The folder of the named weights; `$LIGHTNING_BBOX_WEIGHTS` by default.
        frozen: Keep the weights as they are, without dropout, so that only the head learns.
        init: How weights that aren't loaded begin; `HeInit` by default.

    Raises:
        BadInput: There is no such layer or layout, or the weights are those of the other layout.

    References:
        Girshick et al., Rich feature hierarchies (2014): boxes regressed from pool5, and fc6 and
        fc7 compared with it.

    Examples:
        >>> net = AlexNet("pool2").build(45)
        >>> net(torch.zeros(2, 3, 45, 45)).shape
        torch.Size([2, 192])
    """

    def __init__(
        self,
        layer: AlexNetLayer = "fc6",
        relu: bool = True,
        layout: AlexNetLayout = "torchvision",
        weights: str | None = None,
        weights_dir: str | None = None,
        frozen: bool = True,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self._initialise = (init or HeInit()).apply_to  # not the part itself: children are layers
        for name, value, kinds in (
            ("layer", layer, get_args(AlexNetLayer)),
            ("layout", layout, get_args(AlexNetLayout)),
        ):
            if value not in kinds:
                msg = f"AlexNet {name} is {value!r}; expected one of {', '.join(kinds)}"
                raise BadInput(msg)
        if _LAYOUT_OF.get(weights or "", layout) != layout:
            right = _LAYOUT_OF[str(weights)]
            msg = (
                f"AlexNet weights {weights!r} don't fit layout {layout!r}; set layout to {right!r}"
            )
            raise BadInput(msg)
        self.layer, self.relu, self.layout = layer, relu, layout
        self.weights, self.weights_dir, self.frozen = weights, weights_dir, frozen
        self.layer_names = TORCHVISION_NAMES if layout == "torchvision" else CAFFE_NAMES

    def build(self, crop_size: int) -> "AlexNet":
        """Make and initialise the layers up to the one that is read.

        Raises:
            BadInput: The layer doesn't take crops of this size.
        """
        with torch.device("meta"):  # nothing is allocated for the layers that aren't kept
            self._take_layers(_LAYOUTS[self.layout]())
            width = self._width(crop_size)
            if width is None:
                message = self._wrong_size(crop_size)
                self._modules.clear()  # or Lightning fails on moving what has no data
                raise BadInput(message)
            shape = self._maps(torch.zeros(1, 3, crop_size, crop_size)).shape[1:]
        self.out_features = width
        if len(shape) == 3:
            self.map_shape = (shape[0], shape[1], shape[2])
        for child in self.children():
            child.to_empty(device=torch.get_default_device())
        self._initialise(self)
        if self.frozen:
            self.freeze()
        return self

    def _take_layers(self, net: nn.Sequential) -> None:
        """Take over a net's layers under their names, up to the last that is needed."""
        pooled = self.layer.startswith("pool") or not self.relu
        last = self.layer if pooled else f"relu{self.layer[-1]}"
        for name, module in net.named_modules():
            if next(module.children(), None) is not None:
                continue
            parent, _, child = name.rpartition(".")
            if parent and not hasattr(self, parent):
                self.add_module(parent, nn.Sequential())
            self.get_submodule(parent).add_module(child, module)
            if self.layer_names.get(name, name) == last:
                return

    def _width(self, crop_size: int) -> int | None:
        """Return the length of the features of crops of a size; None where a map vanishes."""
        try:
            features: Tensor = self(torch.zeros(1, 3, crop_size, crop_size, device="meta"))
        except RuntimeError:
            return None
        return features.shape[1]

    def _wrong_size(self, crop_size: int) -> str:
        sizes = [size for size in range(1, _LARGEST_TRIED) if self._width(size) is not None]
        open_end = sizes[-1] == _LARGEST_TRIED - 1
        expected = f"at least {sizes[0]}" if open_end else f"{sizes[0]} to {sizes[-1]}"
        return (
            f"data.crop.size is {crop_size}, and {self.layer} of AlexNet in {self.layout}'s layout "
            f"takes {expected} px; set it so, or read an earlier layer"
        )

    def load_pretrained(self) -> None:
        """Take over the weights that were asked for, and say which ones stay random.

        Raises:
            BadInput: They aren't there, can't be read, or are another net's.
        """
        if self.weights is None:
            if self.frozen:
                say("AlexNet's weights are random, and stay so; name others by its weights")
            return
        path = find_weights(self.weights, self.weights_dir)
        weights = read_weights(path)
        with torch.device("meta"):
            whole = _LAYOUTS[self.layout]().state_dict()
        mine = self.state_dict()
        needed = set(whole if self.layout == "torchvision" else mine)
        if self.weights == "caffe":
            needed -= self._left_random(path, mine.keys() - weights.keys())
        refuse_other_weights(path, weights, whole, [name for name in whole if name in needed])
        kept = {name: value for name, value in weights.items() if name in mine}
        self.load_state_dict(kept, strict=False)

    def _left_random(self, path: Path, missing: set[str]) -> set[str]:
        """Return the weights of fully connected layers that the file lacks, and warn of them."""
        random = {name for name in missing if name.startswith("fc")}
        layers = sorted({name.partition(".")[0] for name in random})
        if layers:
            have = "has" if len(layers) == 1 else "have"
            which = f"{' and '.join(layers)} {have} random weights"
            rank_zero_warn(f"{which}: {path.name} holds conv1..conv5 only")
        return random

    def default_preprocess(self) -> Preprocess:
        """Return the preprocessing that the layout's weights were trained with."""
        return ImageNetNorm() if self.layout == "torchvision" else CaffeNorm()

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f"]:
        """Return the features of preprocessed crops."""
        return self._maps(crops).flatten(1)

    def _maps(self, crops: Tensor) -> Tensor:
        maps = crops
        for child in self.children():
            maps = child(maps)
        return maps
