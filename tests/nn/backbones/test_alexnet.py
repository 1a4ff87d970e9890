"""AlexNet's layers are those of plain re-implementations, and its weights those of the files."""

import math
import re
import warnings
from typing import get_args

import lightning.pytorch as pl
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
    LinearHead,
    SceneDataModule,
)
from lightning_bbox.core.recipes import from_plain
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


@pytest.fixture(scope="module")
def whole():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision_alexnet().eval()


def test_torchvisions_net_has_the_public_names_order_and_shapes():
    with torch.device("meta"):
        net = torchvision_alexnet()
    assert [(name, tuple(value.shape)) for name, value in net.state_dict().items()] == list(
        SHAPES.items()
    )
    assert sum(math.prod(shape) for shape in SHAPES.values()) == 61_100_840


@torch.no_grad()
def test_torchvisions_layout_equals_a_plain_one_at_every_layer(whole):
    crops, state = draw_crops(size=224), whole.state_dict()
    expected = reference.torchvision_alexnet(state, crops)
    torch.testing.assert_close(whole(crops), expected["fc8"], rtol=1e-5, atol=1e-5)
    for layer in LAYERS:
        net = AlexNet(layer, relu=False).build(224)
        net.load_state_dict({name: state[name] for name in net.state_dict()})
        features = net(crops)
        assert features.shape == (2, net.out_features)
        torch.testing.assert_close(features, expected[layer].flatten(1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_caffes_layout_equals_a_plain_one_at_every_layer():
    net = with_biases(build("pool5", layout="caffe").double())
    crops = 50 * draw_crops(dtype=torch.float64)  # so large that the normalisation tells
    made = {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda *args, name=name: made.update({name: args[2]}))
    net(crops)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    expected = reference.caffe_alexnet(state, crops[1].numpy())
    assert list(made) == list(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(made[name][1].numpy(), value, rtol=1e-9, atol=1e-9 * scale)
    assert expected["pool5"].shape == (256, 2, 2)
    assert np.abs(expected["norm2"] / expected["pool2"].clip(1e-9)).min() < 0.9


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv5", "pool1", "pool2", "pool5"])
@pytest.mark.parametrize("relu", [False, True])
def test_caffes_features_are_those_of_the_layer(layer, relu):
    net = build(layer, relu, "caffe").double()
    crops = draw_crops(1, dtype=torch.float64)
    state = build("conv5", layout="caffe").double().state_dict() | net.state_dict()
    state = {name: value.numpy() for name, value in state.items()}
    name = layer.replace("conv", "relu") if relu else layer
    expected = reference.caffe_alexnet(state, crops[0].numpy())[name]
    np.testing.assert_allclose(net(crops)[0].numpy(), expected.ravel(), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_caffes_fully_connected_layers_follow_pool5():
    net = with_biases(build("fc7", layout="caffe", size=199))
    crops = draw_crops(size=199)
    maps = crops
    for name, module in net.named_children():
        maps = module(maps)
        if name == "pool5":
            break
    six = torch.relu(maps.reshape(2, 9216) @ net.fc6.weight.T + net.fc6.bias)
    seven = torch.relu(six @ net.fc7.weight.T + net.fc7.bias)
    torch.testing.assert_close(net(crops), seven, rtol=1e-4, atol=1e-4)
    names = [name for name, _ in net.named_children()]
    assert names[-6:] == ["flatten", "fc6", "relu6", "drop6", "fc7", "relu7"]


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv5"])
def test_relu_decides_on_which_side_of_it_a_layer_is_read(layer):
    before, after = build(layer, relu=False), build(layer, relu=True)
    crops = draw_crops()
    assert (before(crops) < 0).any()
    assert torch.equal(before(crops).relu(), after(crops))


@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
def test_pools_are_the_same_with_and_without_relu(layout):
    layers = [list(build("pool2", relu, layout).state_dict()) for relu in (False, True)]
    assert layers[0] == layers[1]
    crops = draw_crops()
    assert torch.equal(build("pool2", False, layout)(crops), build("pool2", True, layout)(crops))


@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
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


def test_the_layers_are_named_as_the_field_names_them():
    net = build("fc6", size=199)
    leaves = [name for name, module in net.named_modules() if not list(module.children())]
    known = [net.layer_names[name] for name in leaves if name in net.layer_names]
    assert known == [
        *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3"),
        *("conv4", "relu4", "conv5", "relu5", "pool5", "drop5", "fc6", "relu6"),
    ]
    assert {name for name in leaves if name not in net.layer_names} == {"avgpool", "flatten"}
    for name, called in net.layer_names.items():
        kind = {"conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d, "fc6": nn.Linear}
        if called[:-1] in kind and name in leaves:
            assert isinstance(net.get_submodule(name), kind[called[:-1]])
    caffe = build("pool2", layout="caffe")
    assert [name for name, _ in caffe.named_children()] == [
        *("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2"),
    ]
    assert {caffe.layer_names[name] for name, _ in caffe.named_children()} == {
        name for name, _ in caffe.named_children()
    }


@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
def test_weights_are_normal_of_hes_variance_and_biases_are_zero(layout):
    for layer in build("conv5", layout=layout).modules():
        if isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / layer.weight[0].numel())
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert (layer.bias == 0).all()


def test_weights_are_a_function_of_torchs_generator():
    first, again, other = (build("conv2", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_a_frozen_net_neither_learns_nor_drops():
    net = build("fc6", size=63).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    crops = draw_crops(size=63)
    assert torch.equal(net(crops), net(crops))
    assert not net(crops).requires_grad


def test_a_net_that_is_not_frozen_learns_and_drops():
    net = build("fc6", size=63, frozen=False).train()
    crops = draw_crops(size=63)
    assert not torch.equal(net(crops), net(crops))
    net(crops).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert torch.equal(net.eval()(crops), net(crops))


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
    order = list(SHAPES)
    assert len(net.state_dict()) == 6
    for name, value in net.state_dict().items():
        assert (value == 1 + order.index(name)).all()
        assert value.shape == SHAPES[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["classifier.6.bias"]}, "lacks classifier.6.bias; give weights of the same net"),
        ({"features.0.weight": (64, 3, 7, 7)}, "features.0.weight has shape [64, 3, 7, 7], the"),
        ({"classifier.6.weight": (10, 4096)}, "has shape [10, 4096], the net's has [1000, 4096]"),
        ({"features.1.weight": (3,)}, "holds features.1.weight, which the net lacks"),
    ],
)
def test_torchvisions_weights_must_be_those_of_the_whole_net(tmp_path, change, message):
    net = build("conv1", weights=write_whole(tmp_path / "a.pth", **change))
    before = net.features[0].weight.clone()
    with pytest.raises(BadInput, match=re.escape(message)):
        net.load_pretrained()
    assert torch.equal(net.features[0].weight, before)


def test_caffes_weights_need_only_reach_to_the_layer(tmp_path):
    path = write_convs(tmp_path / "a.npz", drop=["conv5.weight"])
    net = build("conv4", layout="caffe", weights=path)
    net.load_pretrained()
    arrays = np.load(path)
    for name, value in net.state_dict().items():
        assert np.array_equal(value.numpy(), arrays[name] / np.float32(128))
    with pytest.raises(BadInput, match=r"a\.npz: lacks conv5\.weight; give weights of the same"):
        build("pool5", layout="caffe", weights=path).load_pretrained()
    with pytest.raises(BadInput, match=r"a\.npz: lacks conv5\.weight, fc6\.weight, fc6\.bias"):
        build("fc6", layout="caffe", weights=path, size=227).load_pretrained()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2.weight": (256, 96, 5, 5)}, "conv2.weight has shape [256, 96, 5, 5], the net's"),
        ({"fc8.bias": (1000,)}, "holds fc8.bias, which the net lacks"),
    ],
)
def test_caffes_weights_must_be_its_own(tmp_path, change, message):
    net = build("conv1", layout="caffe", weights=write_convs(tmp_path / "a.npz", **change))
    with pytest.raises(BadInput, match=re.escape(message)):
        net.load_pretrained()


def test_without_fc6_weights_the_figures_are_random_and_it_says_so(tmp_path):
    write_convs(tmp_path / FILES["caffe"])
    net = build("fc6", layout="caffe", weights="caffe", weights_dir=str(tmp_path), size=199)
    before = net.fc6.weight.clone()
    with pytest.warns(UserWarning, match=r"^fc6 has random weights: .*_int8.npz holds conv1\.\.co"):
        net.load_pretrained()
    assert torch.equal(net.fc6.weight, before)
    assert net.conv1.weight.unique().numel() <= 100
    net = build("fc7", layout="caffe", weights="caffe", weights_dir=str(tmp_path), size=199)
    with pytest.warns(UserWarning, match=r"^fc6 and fc7 have random weights"):
        net.load_pretrained()


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


def test_the_recipe_rebuilds_it():
    net = AlexNet("pool2", False, "caffe", "caffe", "folder", False)
    again = from_plain(net.recipe())
    assert again.recipe() == net.recipe()
    assert (again.layer, again.relu, again.layout) == ("pool2", False, "caffe")
    assert (again.weights, again.weights_dir, again.frozen) == ("caffe", "folder", False)


def trained(tmp_path, backbone):
    data = SceneDataModule(
        num_scenes=20, draws_per_epoch=16, batch_size=8, eval_draws=16, compile=False
    )
    model = BoxRegressor(backbone, LinearHead(), compile=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.pytorch")  # workers, logging interval
        trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_model_reloads_without_the_file_of_weights(tmp_path, frozen):
    path = tmp_path / "a.npz"
    backbone = AlexNet("pool2", layout="caffe", weights=write_convs(path), frozen=frozen)
    model = trained(tmp_path, backbone)
    start = torch.from_numpy(np.load(path)["conv1.weight"] / np.float32(128))
    assert torch.equal(model.net.backbone.conv1.weight, start) == frozen
    path.unlink()
    again = BoxRegressor.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.net.backbone.weights == str(path)
    assert again.net.backbone.conv1.weight.requires_grad != frozen
    crops, boxes = torch.rand(2, 3, 45, 45), torch.tensor([[10.0, 10, 40, 40]] * 2)
    assert torch.equal(again(crops, boxes), model(crops, boxes))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
def test_it_runs_in_half_and_in_double_precision(layout):
    net, crops = build("pool5", layout=layout), draw_crops()
    expected = net(crops)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(crops)
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() < 0.03 * expected.norm()
    double = net.double()(crops.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
def test_it_compiles_to_one_graph(layout):
    net, crops = build("pool5", layout=layout), draw_crops()
    expected = net(crops)
    net.compile(fullgraph=True, backend="aot_eager")  # whose code is generated isn't ours to test
    torch.testing.assert_close(net(crops), expected, rtol=1e-4, atol=1e-4)


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


def test_caffes_net_is_the_whole_up_to_fc7():
    with torch.device("meta"):
        net = caffe_alexnet()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert {name: shapes[name] for name in CONVS} == CONVS
    assert shapes["fc6.weight"] == (4096, 9216)
    assert shapes["fc7.weight"] == (4096, 4096)
    assert len(shapes) == 14
