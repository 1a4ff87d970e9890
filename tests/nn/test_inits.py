"""Initialisations: their variances by theory, against torch's own, and what they do to a net."""

import math

import pytest
import torch
from torch import nn

from lightning_bbox import (
    AlexNet,
    BadInput,
    FanInInit,
    GlorotInit,
    HeInit,
    NormalInit,
    ShallowConvNet,
    SparseInit,
    ZeroInit,
)

RANDOM = [NormalInit, FanInInit, GlorotInit, HeInit, SparseInit]
ALL = [ZeroInit, *RANDOM]
LAYERS = {
    "linear": lambda: nn.Linear(300, 500),
    "conv": lambda: nn.Conv2d(32, 96, 5),
    "groups": lambda: nn.Conv2d(64, 128, 5, groups=2),
}

layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def begun(init, layer, seed=0):
    torch.manual_seed(seed)
    init.apply_to(layer)
    return layer


def fans(weight):
    """Return inputs and outputs of a neuron, a kernel's positions counted."""
    positions = math.prod(weight.shape[2:])
    return weight.shape[1] * positions, weight.shape[0] * positions


@layers
@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (ZeroInit(), "0"),
        (NormalInit(), "1e-4"),
        (NormalInit(0.2), "0.04"),
        (FanInInit(), "1 / n"),
        (GlorotInit(), "2 / (n + m)"),
        (HeInit(), "2 / n"),
        (SparseInit(), "1 / n"),
        (SparseInit(15, std=1.0), "15 / n"),
    ],
)
def test_weights_have_mean_zero_and_the_variance_of_theory(layer, init, variance):
    weight = begun(init, layer()).weight
    expected = eval(variance, dict(zip("nm", fans(weight), strict=True)))
    assert weight.square().mean().item() == pytest.approx(expected, rel=0.06)
    assert abs(weight.mean().item()) <= 5 * math.sqrt(expected / weight.numel())


@layers
@pytest.mark.parametrize(
    ("init", "torchs"),
    [
        (FanInInit(), lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear")),
        (HeInit(), nn.init.kaiming_normal_),
        (GlorotInit(), nn.init.xavier_normal_),
        (NormalInit(), lambda weight: nn.init.normal_(weight, 0.0, 0.01)),
    ],
)
def test_weights_are_drawn_as_torch_draws_them(layer, init, torchs):
    mine = begun(init, layer()).weight
    torch.manual_seed(0)
    assert torch.equal(mine, torchs(torch.empty_like(mine)))


@layers
@pytest.mark.parametrize("inputs", [1, 10, 10_000])
def test_each_neuron_of_a_sparse_layer_has_so_many_inputs(layer, inputs):
    weight = begun(SparseInit(inputs), layer()).weight.flatten(1)
    connected = weight.count_nonzero(dim=1)
    assert (connected == min(inputs, weight.shape[1])).all()


def test_sparse_connections_are_spread_evenly_over_the_inputs():
    weight = begun(SparseInit(10), nn.Linear(40, 4000)).weight
    used = weight.count_nonzero(dim=0).double()
    assert used.mean() == 1000
    assert (used - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


@layers
@pytest.mark.parametrize("init", ALL)
@pytest.mark.parametrize("bias", [0.0, 0.01])
def test_biases_begin_at_a_constant(layer, init, bias):
    assert (begun(init(bias=bias), layer()).bias == bias).all()


@pytest.mark.parametrize("init", RANDOM)
def test_the_seed_decides(init):
    first, again, other = (begun(init(), nn.Linear(20, 20), seed).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("init", [HeInit, FanInInit, NormalInit])
def test_through_many_relu_layers_only_he_keeps_the_variance(init):
    net = nn.Sequential(*(m for _ in range(10) for m in (nn.Linear(400, 400), nn.ReLU())))
    begun(init(), net)
    kept = net(torch.randn(200, 400)).square().mean().item()
    expected = {HeInit: 1.0, FanInInit: 0.5**10, NormalInit: (400e-4 / 2) ** 10}[init]
    assert kept == pytest.approx(expected, rel=0.5)


def test_from_zeros_nothing_but_the_last_bias_learns():
    torch.manual_seed(0)
    backbone = ShallowConvNet((4, 8), fc=(16,), batch_norm=False, init=ZeroInit()).build(24)
    head = nn.Linear(16, 2)
    head(backbone(torch.randn(8, 3, 24, 24))).square().sum().backward()
    assert not any(weights.grad.any() for weights in backbone.parameters())
    assert not head.weight.grad.any()
    assert head.bias.grad.any()


def test_alexnet_begins_as_asked():
    weight = AlexNet("conv1", init=NormalInit(0.05, bias=0.01)).build(63).features[0]
    assert weight.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert (weight.bias == 0.01).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalInit(0.0), "NormalInit std is 0.0; expected above 0"),
        (lambda: SparseInit(0), "SparseInit inputs is 0; expected at least 1"),
        (lambda: SparseInit(std=-1.0), "SparseInit std is -1.0; expected above 0"),
    ],
)
def test_impossible_inits_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
