import math

import pytest
import torch
from torch import nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.stochastic import FractionalPool2d, StochasticPool2d


def build(crop_size=45, seed=0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ShallowConvNet(**{"channels": (8, 16), "convs_per_scale": 2, **arguments}).build(
            crop_size
        )


def layers_of(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)]


def draw_crops(num=4, size=45):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("downsample", "side", "pools"),
    [
        ("stride", 12, []),
        ("max", 11, [nn.MaxPool2d] * 2),
        ("avg", 11, [nn.AvgPool2d] * 2),
        ("none", 45, []),
        ("stochastic", 11, [StochasticPool2d] * 2),
        ("fractional", 21, [FractionalPool2d] * 2),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_scale_halves_the_map_as_asked(downsample, side, pools, batch_norm):
    net = build(downsample=downsample, batch_norm=batch_norm)
    assert net.convs(draw_crops()).shape == (4, 16, side, side)
    assert net.fcs[0].in_features == 16 * side * side
    features = net(draw_crops())
    assert features.shape == (4, 256)
    assert features.isfinite().all()
    assert (features >= 0).all()
    strides = [conv.stride for conv in layers_of(net, nn.Conv2d)]
    assert strides == [(2, 2) if downsample == "stride" else (1, 1), (1, 1)] * 2
    assert [type(layer) for layer in net.convs if "Pool" in type(layer).__name__] == pools


@pytest.mark.parametrize(
    ("convs_per_scale", "expected"),
    [(1, [(3, 8), (8, 16)]), ((1, 3), [(3, 8), (8, 16), (16, 16), (16, 16)])],
)
def test_each_scale_has_its_own_number_of_convolutions(convs_per_scale, expected):
    net = build(convs_per_scale=convs_per_scale)
    convs = layers_of(net, nn.Conv2d)
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == expected
    assert [conv.stride for conv in convs][:2] == [(2, 2), (2, 2)]
    assert net.convs(draw_crops()).shape == (4, 16, 12, 12)


@pytest.mark.parametrize("crop_size", [17, 32, 45])
@pytest.mark.parametrize("fc", [(), (32,), (64, 16)])
@pytest.mark.parametrize("global_pool", [False, True])
def test_out_features_are_the_length_of_the_features(crop_size, fc, global_pool):
    net = build(crop_size, fc=fc, global_pool=global_pool)
    assert net(draw_crops(size=crop_size)).shape == (4, net.out_features)
    side = 1 if global_pool else math.ceil(crop_size / 4)
    assert net.out_features == (fc[-1] if fc else 16 * side**2)


def test_without_fully_connected_layers_the_features_are_the_map():
    net = build(fc=()).eval()
    crops = draw_crops()
    torch.testing.assert_close(net(crops), net.convs(crops).flatten(1))
    pooled = build(fc=(), global_pool=True).eval()
    torch.testing.assert_close(pooled(crops), pooled.convs(crops).mean(dim=(2, 3)))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_batch_norm_stands_before_every_non_linearity_or_nowhere(batch_norm):
    net = build(batch_norm=batch_norm, fc=(32, 16))
    kinds = [type(layer) for layer in (*net.convs, *net.fcs)]
    per_conv = [nn.Conv2d, *[nn.BatchNorm2d] * batch_norm, nn.ReLU]
    per_fc = [nn.Linear, *[nn.BatchNorm1d] * batch_norm, nn.ReLU]
    assert kinds == per_conv * 4 + per_fc * 2
    biases = [layer.bias is not None for layer in layers_of(net, nn.Conv2d | nn.Linear)]
    assert biases == [not batch_norm] * 6


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_are_normal_of_hes_variance_and_biases_are_zero(batch_norm):
    net = build(channels=(32, 64), kernel=5, fc=(256, 128), batch_norm=batch_norm)
    for layer in layers_of(net, nn.Conv2d | nn.Linear):
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert layer.weight.mean().abs() < 0.1 * layer.weight.std()
        assert layer.weight.abs().max() > 2.5 * layer.weight.std()
        assert layer.bias is None or (layer.bias == 0).all()


def test_building_leaves_the_running_statistics_as_they_begin():
    for norm in layers_of(build(), nn.BatchNorm1d | nn.BatchNorm2d):
        fresh = type(norm)(norm.num_features).state_dict()
        for name, value in norm.state_dict().items():
            assert torch.equal(value, fresh[name]), name


def test_dropout_is_active_in_training_alone():
    net = build(dropout=0.5)
    crops = draw_crops()
    assert not torch.equal(net.train()(crops), net(crops))
    assert torch.equal(net.eval()(crops), net(crops))
    assert len(layers_of(net, nn.Dropout)) == 1
    assert not layers_of(build(), nn.Dropout)


def test_without_fully_connected_layers_dropout_drops_what_the_head_sees():
    net = build(fc=(), dropout=0.5)
    assert (net.train()(draw_crops()) == 0).double().mean() > 0.4
    assert net.map_shape == (16, 12, 12)
    assert torch.equal(net.eval()(draw_crops()), net.convs(draw_crops()).flatten(1))


def test_flattening_keeps_where_things_are_and_global_pooling_loses_it():
    crops = torch.zeros(2, 3, 45, 45)
    crops[0, :, 18:24, 18:24] = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    crops[1] = crops[0].roll(3, dims=2)
    changes = []
    for global_pool in (False, True):
        net = build(downsample="none", fc=(64,), global_pool=global_pool).eval()
        here, there = net(crops)
        changes.append(((here - there).norm() / here.norm()).item())
    assert changes[0] > 0.3
    assert changes[1] < 0.01 * changes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ()}, r"channels \(\)"),
        ({"channels": (8, 0)}, r"channels \(8, 0\)"),
        ({"fc": (-1,)}, r"fc \(-1,\)"),
        ({"convs_per_scale": 0}, "convs_per_scale 0"),
        ({"convs_per_scale": (2, 2)}, r"has 3 scales, but convs_per_scale \(2, 2\)"),
        ({"kernel": 4}, "kernel is 4; expected an odd number"),
        ({"kernel": -1}, "kernel is -1"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected 0 to below 1"),
        ({"dropout": -0.1}, r"dropout is -0\.1"),
        ({"input_dropout": 1.5}, r"input_dropout is 1\.5; expected 0 to below 1"),
        ({"dropconnect": 0.5, "fc": ()}, r"dropconnect is 0\.5, but fc is empty, .* use dropout"),
        ({"downsample": "strides"}, "downsample.*strides"),
    ],
)
def test_impossible_nets_are_refused(arguments, message):
    with pytest.raises(BadInput, match=f"ShallowConvNet.*{message}"):
        ShallowConvNet(**arguments)


@pytest.mark.parametrize("downsample", ["stride", "max", "avg", "stochastic", "fractional"])
def test_a_crop_must_be_large_enough_to_be_halved(downsample):
    net = build(8, channels=(8, 8, 8), downsample=downsample)
    assert net(draw_crops(size=8)).shape == (4, 256)
    with pytest.raises(BadInput, match="crops of 31 px can't be halved 5 times; use fewer"):
        build(31, channels=(8,) * 5, downsample=downsample)
    assert build(31, channels=(8,) * 5, downsample="none", global_pool=True).out_features == 256


def test_each_scale_may_have_its_own_way_down():
    torch.manual_seed(0)
    net = ShallowConvNet((4, 6, 8), downsample=("max", "stride", "none"), fc=()).build(45)
    assert net.map_shape == (8, 11, 11)  # 45 -> 22 pooled -> 11 by stride -> 11
    pools = [type(layer).__name__ for layer in net.convs if "Pool" in type(layer).__name__]
    assert pools == ["MaxPool2d"]
    strides = [layer.stride[0] for layer in net.convs if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [1, 2, 1, 1, 1]
    again = from_plain(net.recipe())
    assert again.downsample == net.downsample == ("max", "stride", "none")
    with pytest.raises(BadInput, match="expected one or 3 of stride, max"):
        ShallowConvNet((4, 6, 8), downsample=("max", "stride"))


@pytest.mark.parametrize("coordinates", [False, True])
def test_two_scales_are_channels_of_one_net_at_half_the_crops_side(coordinates):
    net = build(88, two_scales=True, coordinates=coordinates, fc=())
    assert net.convs[0].in_channels == 6 + 2 * coordinates
    assert net.out_features == build(44, fc=()).out_features
    assert net.map_shape is None  # its places are two
    crops = draw_crops(size=88).contiguous(memory_format=torch.channels_last)
    far = crops.clone()
    far[:, :, :20] = 0.0  # beyond the middle
    assert not torch.equal(net.eval()(crops), net(far))
    from_plain(net.recipe()).build(88).load_state_dict(net.state_dict())


def test_two_scales_of_crops_without_a_middle_are_refused():
    with pytest.raises(BadInput, match=r"set data.crop.size to a multiple of 4, such as 44"):
        build(45, two_scales=True)
