"""Layers that draw: their means, their draws, and that nothing else of a run is touched."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.stochastic import (
    DropConnect,
    FractionalPool2d,
    StochasticPool2d,
    sampling,
    stochastic_layers,
)

POOLS = [StochasticPool2d, FractionalPool2d]
TRICKS = {
    "coordinates": {"coordinates": True},
    "input dropout": {"input_dropout": 0.2},
    "dropconnect": {"dropconnect": 0.5},
    "stochastic": {"downsample": "stochastic"},
    "fractional": {"downsample": "fractional"},
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def maps_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()


def windows_of(maps):
    """Return the 2 x 2 windows of one map as rows of four, by a plain loop."""
    height, width = maps.shape
    return np.array(
        [
            [maps[y, x], maps[y, x + 1], maps[y + 1, x], maps[y + 1, x + 1]]
            for y in range(0, height - 1, 2)
            for x in range(0, width - 1, 2)
        ]
    )


def test_stochastic_pooling_weights_by_size_in_evaluation():
    maps = maps_of(1, 1, 7, 9)
    maps[0, 0, :2, :2] = 0
    windows = windows_of(maps[0, 0].double().numpy())
    expected = [sum(a * a for a in row) / sum(row) if any(row) else 0.0 for row in windows]
    pooled = StochasticPool2d().eval()(maps)
    assert pooled.shape == (1, 1, 3, 4)
    np.testing.assert_allclose(pooled.flatten().numpy(), expected, rtol=1e-5)


def test_stochastic_pooling_draws_each_activation_by_its_share():
    window = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    pooled = StochasticPool2d()(window.expand(1, 40_000, 2, 2)).flatten()
    shares = [(pooled == value).double().mean().item() for value in (1.0, 2.0, 0.0, 5.0)]
    assert shares == pytest.approx([1 / 8, 2 / 8, 0, 5 / 8], abs=0.01)


def test_stochastic_pooling_sends_the_gradient_to_what_was_drawn():
    maps = maps_of(2, 3, 8, 8).requires_grad_()
    pooled = StochasticPool2d()(maps)
    pooled.sum().backward()
    torch.testing.assert_close((maps.grad * maps).sum(), pooled.sum())
    assert set(maps.grad.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(StochasticPool2d()(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("side", [2, 3, 8, 45])
def test_fractional_pooling_shrinks_by_the_root_of_two(side):
    pooled = FractionalPool2d().eval()(maps_of(2, 3, side, side))
    assert pooled.shape == (2, 3, *[int(side / math.sqrt(2))] * 2)


def test_fractional_pooling_takes_the_largest_of_graham_s_regions():
    maps = maps_of(1, 1, 9, 9)
    pooled = FractionalPool2d().eval()(maps)[0, 0]
    out, step, u = 6, (9 - 2) / 5, 0.5
    starts = [int((k + u) * step) - int(u * step) for k in range(out - 1)] + [7]
    for row, y in enumerate(starts):
        for column, x in enumerate(starts):
            assert pooled[row, column] == maps[0, 0, y : y + 2, x : x + 2].max()


def test_fractional_regions_are_those_of_all_channels_of_a_sample():
    ramp = torch.arange(21 * 21.0).view(1, 1, 21, 21).expand(16, 4, 21, 21).contiguous()
    pooled = FractionalPool2d()(ramp)
    assert torch.equal(pooled, pooled[:, :1].expand_as(pooled))
    assert len(pooled[:, 0].flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("pool", POOLS)
def test_pools_draw_in_training_from_torchs_generator_and_not_in_evaluation(pool):
    maps, layer = maps_of(4, 8, 21, 21), pool()
    torch.manual_seed(0)
    first, other = layer(maps), layer(maps)
    torch.manual_seed(0)
    assert torch.equal(layer(maps), first)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    assert torch.equal(layer.eval()(maps), layer(maps))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pools_keep_the_dtype(pool, dtype):
    maps = maps_of(2, 3, 9, 9).to(dtype)
    for layer in (pool(), pool().eval()):
        pooled = layer(maps)
        assert pooled.dtype == dtype
        assert pooled.isfinite().all()


def test_dropconnect_drops_weights_in_training_and_uses_their_mean_after():
    layer, inputs = DropConnect(50, 20, p=0.3), maps_of(6, 50)
    torch.manual_seed(0)
    dropped = layer(inputs)
    torch.manual_seed(0)
    mask = functional.dropout(torch.ones(20, 50), 0.3)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
    torch.testing.assert_close(dropped, inputs @ (layer.weight * mask).T + layer.bias)
    mean = torch.stack([layer(inputs) for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, layer.eval()(inputs), atol=0.05, rtol=0)
    torch.testing.assert_close(layer(inputs), inputs @ layer.weight.T + layer.bias)


def built(**arguments):
    return ShallowConvNet(channels=(4, 8), fc=(16,), **arguments).build(21)


@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick_learns_under_bf16_and_evaluates_the_same_twice(trick):
    net, crops = built(**TRICKS[trick]), maps_of(4, 3, 21, 21)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(crops.contiguous(memory_format=torch.channels_last)).float().square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())
    assert all(weight.grad.any() for name, weight in net.named_parameters() if "weight" in name)
    net.eval()
    assert torch.equal(net(crops), net(crops))


@pytest.mark.compile
@pytest.mark.parametrize(
    "downsample", ["stochastic", pytest.param("fractional", marks=pytest.mark.slow)]
)
def test_a_net_with_every_trick_is_one_graph(downsample):
    tricks = {"coordinates": True, "input_dropout": 0.1, "dropout": 0.2, "dropconnect": 0.3}
    net, crops = built(downsample=downsample, **tricks).eval(), maps_of(4, 3, 21, 21)
    plain = net(crops)
    net.compile(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(net(crops), plain)
    net.train()(crops).sum().backward()


def test_stochastic_layers_are_found_where_they_draw():
    assert not stochastic_layers(built())
    assert not stochastic_layers(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(3)))
    net = built(downsample="stochastic", dropout=0.1, input_dropout=0.2, dropconnect=0.3)
    kinds = [type(layer) for layer in stochastic_layers(net)]
    pools = [StochasticPool2d] * 2
    assert kinds == [nn.Dropout, *pools, nn.Dropout, DropConnect]


def test_sampling_draws_the_same_again_and_leaves_all_else_alone():
    net, crops = built(dropout=0.5).eval(), maps_of(4, 3, 21, 21)
    state, buffers = torch.get_rng_state(), {n: b.clone() for n, b in net.named_buffers()}
    mean = net(crops)
    draws = []
    for _ in range(2):
        with sampling(net, crops.device):
            draws.append((net(crops), net(crops)))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(*draws[0])
    assert torch.equal(net(crops), mean)
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
