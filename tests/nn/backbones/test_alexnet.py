"""AlexNet's layers are those of plain re-implementations, and its weights those of the files."""

import itertools
import math
import re
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from lightning_bbox import (
    AlexNet,
    BadInput,
    BoxRegressor,
    CaffeNorm,
    ImageNetNorm,
)
from lightning_bbox.nn.backbones.alexnet import (
    TORCHVISION_NAMES,
    AlexNetLayer,
    caffe_alexnet,
    torchvision_alexnet,
)
from lightning_bbox.nn.backbones.pretrained import FILES
from tests import reference

LAYERS = get_args(AlexNetLayer)
PUBLIC = {  # of torchvision's file, in its order
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
SHAPES = {
    f"{name}.{kind}": shape if kind == "weight" else shape[:1]
    for name, shape in PUBLIC.items()
    for kind in ("weight", "bias")
}
CONVS = {
    "conv1.weight": (96, 3, 11, 11),
    "conv2.weight": (256, 48, 5, 5),
    "conv3.weight": (384, 256, 3, 3),
    "conv4.weight": (384, 192, 3, 3),
    "conv5.weight": (256, 192, 3, 3),
}


def build(*arguments, size=71, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AlexNet(*arguments, **options).build(size)


def draw_crops(num=2, size=71, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    return torch.randn(num, 3, size, size, generator=random, dtype=dtype)


def with_biases(net):
    """Give the biases values too, which are zero in the beginning."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=random)
    return net


def write_whole(path, drop=(), **changed):
    """Write weights of torchvision's shapes that take no room: one number each."""
    shapes = {name: shape for name, shape in (SHAPES | changed).items() if name not in drop}
    state = {
        name: torch.tensor(1.0 + index).expand(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }
    torch.save(state, path)
    return str(path)


def write_convs(path, drop=(), **changed):
    shapes = CONVS | {name.replace("weight", "bias"): shape[:1] for name, shape in CONVS.items()}
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(-50, 50, shape, dtype=np.int8)
        for name, shape in (shapes | changed).items()
        if name not in drop
    }
    np.savez(path, **arrays)
    return str(path)


layouts = pytest.mark.parametrize("layout", ["torchvision", "caffe"])


def test_the_nets_have_the_public_names_order_and_shapes():
    with torch.device("meta"):
        nets = torchvision_alexnet(), caffe_alexnet()
    ours, caffes = ({n: tuple(v.shape) for n, v in net.state_dict().items()} for net in nets)
    assert list(ours.items()) == list(SHAPES.items())
    assert sum(math.prod(shape) for shape in SHAPES.values()) == 61_100_840
    assert {name: caffes[name] for name in CONVS} == CONVS
    assert (caffes["fc6.weight"], caffes["fc7.weight"]) == ((4096, 9216), (4096, 4096))
    assert len(caffes) == 14


@torch.no_grad()
def test_torchvisions_layout_equals_a_plain_one_at_every_layer():
    torch.manual_seed(0)
    whole, crops = torchvision_alexnet().eval(), draw_crops(size=224)
    state = whole.state_dict()
    expected = reference.torchvision_alexnet(state, crops)
    torch.testing.assert_close(whole(crops), expected["fc8"], rtol=1e-5, atol=1e-5)
    for layer, relu in itertools.product(LAYERS, [False, True]):
        net = build(layer, relu, size=224)
        net.load_state_dict({name: state[name] for name in net.state_dict()})
        features = expected[layer].flatten(1)
        features = features.relu() if relu else features
        assert features.shape == (2, net.out_features)
        torch.testing.assert_close(net(crops), features, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_caffes_layout_equals_a_plain_one_at_every_layer():
    state = with_biases(build("pool5", layout="caffe").double()).state_dict()
    crops = 50 * draw_crops(dtype=torch.float64)  # so large that the normalisation tells
    arrays = {name: value.numpy() for name, value in state.items()}
    expected = reference.caffe_alexnet(arrays, crops[1].numpy())
    assert expected["pool5"].shape == (256, 2, 2)
    assert np.abs(expected["norm2"] / expected["pool2"].clip(1e-9)).min() < 0.9
    for layer, relu in itertools.product(LAYERS[:8], [False, True]):
        net = build(layer, relu, "caffe").double()
        net.load_state_dict({name: state[name] for name in net.state_dict()})
        value = expected[layer.replace("conv", "relu") if relu else layer].ravel()
        accuracy = {"rtol": 1e-9, "atol": 1e-9 * np.abs(value).max()}
        np.testing.assert_allclose(net(crops)[1].numpy(), value, **accuracy)


@torch.no_grad()
def test_caffes_fully_connected_layers_follow_pool5():
    net = with_biases(build("fc7", layout="caffe", size=199))
    maps = crops = draw_crops(size=199)
    names = [name for name, _ in net.named_children()]
    assert names[-7:] == ["pool5", "flatten", "fc6", "relu6", "drop6", "fc7", "relu7"]
    for name in names[:-6]:
        maps = net.get_submodule(name)(maps)
    six = torch.relu(maps.reshape(2, 9216) @ net.fc6.weight.T + net.fc6.bias)
    seven = torch.relu(six @ net.fc7.weight.T + net.fc7.bias)
    torch.testing.assert_close(net(crops), seven, rtol=1e-4, atol=1e-4)


def test_the_layers_are_named_as_the_field_names_them():
    net = build("fc6", size=63)
    leaves = {n: module for n, module in net.named_modules() if not list(module.children())}
    called = {net.layer_names.get(name, name): type(leaf) for name, leaf in leaves.items()}
    kinds = {"c": nn.Conv2d, "r": nn.ReLU, "p": nn.MaxPool2d, "f": nn.Linear, "d": nn.Dropout}
    expected = (
        *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3"),
        *("conv4", "relu4", "conv5", "relu5", "pool5", "avgpool", "flatten", "drop5"),
        *("fc6", "relu6"),
    )
    kinds_of = {name: kinds[name[0]] for name in expected if name[-1].isdigit()}
    assert tuple(called) == expected
    assert called == kinds_of | {"avgpool": nn.AdaptiveAvgPool2d, "flatten": nn.Flatten}
    caffe = build("pool2", layout="caffe")
    names = [name for name, _ in caffe.named_children()]
    assert names == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2"]
    assert [caffe.layer_names[name] for name in names] == names


@layouts
def test_nothing_is_made_behind_the_layer(layout):
    names = {"torchvision": TORCHVISION_NAMES, "caffe": {}}[layout]
    for layer in LAYERS[:8]:
        net = build(layer, False, layout)
        modules = [name for name, module in net.named_modules() if not list(module.children())]
        assert names.get(modules[-1], modules[-1]) == layer
        assert not any(parameter.is_meta for parameter in net.parameters())
    fc6 = build("fc6", layout=layout, size=199)
    assert max(parameter.numel() for parameter in fc6.parameters()) == 9216 * 4096
    assert sum(isinstance(module, nn.Linear) for module in fc6.modules()) == 1


@layouts
def test_weights_are_normal_of_hes_variance_and_biases_are_zero(layout):
    for layer in build("conv5", layout=layout).modules():
        if isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / layer.weight[0].numel())
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("layer", "layout", "wrong", "right", "message"),
    [
        ("conv1", "torchvision", 6, 7, "conv1 .* takes at least 7 px"),
        ("conv3", "torchvision", 30, 31, "takes at least 31 px"),
        ("pool5", "torchvision", 62, 63, "data.crop.size is 62, and pool5 of AlexNet in torchv"),
        ("fc6", "torchvision", 45, None, "takes at least 63 px; set it so, or read an earlier"),
        ("pool5", "caffe", 10, 45, "takes at least"),
        ("fc6", "caffe", 198, None, "fc6 of AlexNet in caffe's layout takes 199 to 230 px"),
        ("fc7", "caffe", 231, None, "takes 199 to 230 px; set it so, or read an earlier layer"),
    ],
)
def test_crops_that_a_layer_does_not_take_are_refused(layer, layout, wrong, right, message):
    net = AlexNet(layer, layout=layout)
    with pytest.raises(BadInput, match=message):
        net.build(wrong)
    assert not list(net.parameters())
    if right is not None:
        assert build(layer, layout=layout, size=right).out_features > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "fc8"}, "AlexNet layer is 'fc8'; expected one of conv1, conv2, .*, fc7"),
        ({"layout": "keras"}, "AlexNet layout is 'keras'; expected one of torchvision, caffe"),
        ({"weights": "caffe"}, "'caffe' don't fit layout 'torchvision'; set layout to 'caffe'"),
        (
            {"weights": "imagenet", "layout": "caffe"},
            "'imagenet' don't fit layout 'caffe'; set layout to 'torchvision'",
        ),
    ],
)
def test_impossible_nets_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        AlexNet(**arguments)


def test_torchvisions_weights_are_cut_to_what_the_layer_needs(tmp_path):
    net = build("conv3", weights=write_whole(tmp_path / "a.pth"))
    net.load_pretrained()
    assert len(net.state_dict()) == 6
    for name, value in net.state_dict().items():
        assert torch.equal(value, torch.full(SHAPES[name], 1.0 + list(SHAPES).index(name)))


def test_caffes_weights_need_only_reach_to_the_layer(tmp_path):
    path = write_convs(tmp_path / "a.npz", drop=["conv5.weight"])
    net = build("conv4", layout="caffe", weights=path)
    net.load_pretrained()
    arrays = np.load(path)
    for name, value in net.state_dict().items():
        assert np.array_equal(value.numpy(), arrays[name] / np.float32(128))


@pytest.mark.parametrize(
    ("layout", "layer", "change", "message"),
    [
        ("torchvision", "conv1", {"drop": ["classifier.6.bias"]}, "lacks classifier.6.bias; give"),
        (
            *("torchvision", "conv1", {"features.0.weight": (64, 3, 7, 7)}),
            "features.0.weight has shape [64, 3, 7, 7], the",
        ),
        (
            *("torchvision", "conv1", {"classifier.6.weight": (10, 4096)}),
            "has shape [10, 4096], the net's has [1000, 4096]",
        ),
        (
            *("torchvision", "conv1", {"features.1.weight": (3,)}),
            "holds features.1.weight, which the net lacks",
        ),
        ("caffe", "pool5", {"drop": ["conv5.weight"]}, "lacks conv5.weight; give weights of the"),
        (
            *("caffe", "fc6", {"drop": ["conv5.weight"]}),
            "lacks conv5.weight, fc6.weight, fc6.bias; give",
        ),
        (
            *("caffe", "conv1", {"conv2.weight": (256, 96, 5, 5)}),
            "conv2.weight has shape [256, 96, 5, 5], the net's",
        ),
        ("caffe", "conv1", {"fc8.bias": (1000,)}, "holds fc8.bias, which the net lacks"),
    ],
)
def test_weights_must_be_those_of_the_net(tmp_path, layout, layer, change, message):
    write, name = {"torchvision": (write_whole, "a.pth"), "caffe": (write_convs, "a.npz")}[layout]
    weights = write(tmp_path / name, **change)
    net = build(layer, layout=layout, weights=weights, size=199)
    before = next(net.parameters()).clone()
    with pytest.raises(BadInput, match=re.escape(message)):
        net.load_pretrained()
    assert torch.equal(next(net.parameters()), before)


@pytest.mark.parametrize(
    ("layer", "warning"),
    [
        ("fc6", r"^fc6 has random weights: .*_int8.npz holds conv1\.\.co"),
        ("fc7", "^fc6 and fc7 have random weights"),
    ],
)
def test_without_fc6_weights_the_figures_are_random_and_it_says_so(tmp_path, layer, warning):
    write_convs(tmp_path / FILES["caffe"])
    net = build(layer, layout="caffe", weights="caffe", weights_dir=str(tmp_path), size=199)
    before = net.fc6.weight.clone()
    with pytest.warns(UserWarning, match=warning):
        net.load_pretrained()
    assert torch.equal(net.fc6.weight, before)
    assert net.conv1.weight.unique().numel() <= 100


def test_a_file_that_lacks_convolutions_is_not_caffes(tmp_path):
    write_convs(tmp_path / FILES["caffe"], drop=["conv2.bias"])
    net = build("conv5", layout="caffe", weights="caffe", weights_dir=str(tmp_path))
    with pytest.raises(BadInput, match=r"lacks conv2\.bias"):
        net.load_pretrained()


def test_preprocessing_is_that_of_the_weights():
    assert isinstance(AlexNet().default_preprocess(), ImageNetNorm)
    assert isinstance(AlexNet(layout="caffe").default_preprocess(), CaffeNorm)
    net = BoxRegressor(AlexNet(layout="caffe")).net
    assert isinstance(net.preprocess, CaffeNorm)


@torch.no_grad()
def test_the_real_weights_make_sparse_features_of_known_filters(real_weights):
    net = build("pool5", layout="caffe", weights="caffe", weights_dir=str(real_weights), size=227)
    net.load_pretrained()
    filters = net.conv1.weight
    assert 0.02 < filters.std() < 0.1
    assert filters.mean().abs() < 0.01
    # Edges vary within a filter, so most of its variance isn't between filters.
    assert filters.mean(dim=(1, 2, 3)).var() < 0.05 * filters.var()
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 12, 12, generator=random)
    crops = nn.functional.interpolate(coarse, size=227, mode="bicubic").clamp(0, 1)
    features = net(CaffeNorm()(crops))
    assert features.shape == (2, 9216)
    assert (features >= 0).all()
    assert 0.5 < (features == 0).float().mean() < 0.99
    assert 1 < features.max() < 500
