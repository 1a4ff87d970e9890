"""Regularizers: their values and gradients by hand, whom they spare, and their place in a run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_bbox import (
    BinHead,
    BoxRegressor,
    Constant,
    CropGeometry,
    ElasticNet,
    L1Penalty,
    L2Penalty,
    LinearHead,
    MaxNorm,
    ShallowConvNet,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.regularizers import Regularization
from tests.parts import spec_with
from tests.runs import scenes, trained_quietly


def net_of(**arguments):
    torch.manual_seed(0)
    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=(6,), **arguments), BinHead())
    model.build(spec_with([5.0, 5.0]), seed=0)
    return model.net


VALUES = [
    (L2Penalty(0.3), lambda w: 0.5 * 0.3 * (w**2).sum(), lambda w: 0.3 * w),
    (L1Penalty(0.3), lambda w: 0.3 * np.abs(w).sum(), lambda w: 0.3 * np.sign(w)),
    (
        ElasticNet(0.3, 0.2),
        lambda w: 0.3 * np.abs(w).sum() + 0.2 * (w**2).sum(),
        lambda w: 0.3 * np.sign(w) + 2 * 0.2 * w,
    ),
]


@pytest.mark.parametrize(("rule", "value", "gradient"), VALUES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_penalty_and_its_gradient_are_the_formulas(rule, value, gradient, dtype):
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 0, 0] = 0
    weight.requires_grad_()
    penalty = rule.penalty(weight)
    penalty.backward()
    numbers = weight.detach().double().numpy()
    assert penalty.dtype == torch.promote_types(dtype, torch.float32)
    assert penalty.item() == pytest.approx(value(numbers), rel=1e-5)
    accuracy = 1e-2 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(weight.grad.double().numpy(), gradient(numbers), rtol=accuracy)


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0.1, 10),
)
def test_max_norm_is_the_nearest_point_within_the_limit(rows, limit):
    weight = torch.tensor(rows)
    before = weight.double().numpy()
    MaxNorm(limit).project(weight)
    for old, new in zip(before, weight.double().numpy(), strict=True):
        length = np.sqrt((old**2).sum())
        expected = old if length <= limit else old * limit / length
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)


def test_max_norm_takes_a_filter_for_a_neuron_and_keeps_what_is_short():
    conv = nn.Conv2d(3, 4, 5)
    with torch.no_grad():
        conv.weight[0] *= 0.01
        conv.weight[1:] *= 100
    before = conv.weight.detach().clone()
    Regularization([MaxNorm(2.0)], conv).project()
    assert torch.equal(conv.weight[0], before[0])
    lengths = conv.weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[1:], torch.full((3,), 2.0))


def test_biases_and_norms_are_exempt_unless_asked_for():
    net = net_of(batch_norm=True)
    names = dict(net.named_parameters())
    weights = {id(names[name]) for name in names if names[name].dim() > 1}
    assert {id(weight) for weight in L2Penalty().weights_of(net)} == weights
    assert len(weights) == 3
    every = {id(weight) for weight in L2Penalty(exempt_biases=False).weights_of(net)}
    assert every == {id(weight) for weight in names.values()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^head", ["head.link.linear.weight"]),
        (r"backbone\.fcs", ["backbone.fcs.0.weight"]),
        ("fcs|head", ["backbone.fcs.0.weight", "head.link.linear.weight"]),
    ],
)
def test_a_pattern_chooses_weights_by_name(pattern, expected):
    net = net_of()
    names = {id(weight): name for name, weight in net.named_parameters()}
    assert [names[id(weight)] for weight in L1Penalty(pattern=pattern).weights_of(net)] == expected


def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are():
    net = net_of()
    message = (
        "MaxNorm pattern 'fc6' fits no weight that learns; choose from backbone.convs.0.weight, "
        r"backbone.fcs.0.weight, head.link.linear.weight \(biases and norms are exempt\)"
    )
    with pytest.raises(BadInput, match=message):
        MaxNorm(pattern="fc6").weights_of(net)
    net.backbone.freeze()
    with pytest.raises(BadInput, match="'backbone' fits no weight that learns; choose from head"):
        L2Penalty(pattern="backbone").weights_of(net)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Penalty(-1.0), r"L2Penalty strength is -1\.0; expected 0 or more"),
        (lambda: L1Penalty(float("nan")), "L1Penalty strength is nan; expected 0 or more"),
        (lambda: ElasticNet(l2=float("inf")), "ElasticNet l2 is inf; expected 0 or more"),
        (lambda: MaxNorm(0.0), r"MaxNorm limit is 0\.0; expected above 0"),
        (lambda: MaxNorm(pattern="("), r"MaxNorm pattern is '\(', which is no regular expression"),
        (lambda: BoxRegressor(passes=-1), "passes is -1; expected 0"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def trained(rules, epochs=1, weight_decay=0.0, **options):
    """Train a tiny net with SGD, in fp64, and return it and what was logged last."""
    model = BoxRegressor(
        ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(8,), batch_norm=False),
        LinearHead(),
        optimizer=lambda weights: torch.optim.SGD(
            weights, lr=0.05, momentum=0.9, weight_decay=weight_decay
        ),
        schedule=Constant(),
        regularizers=rules,
    )
    data = scenes(num_scenes=20, crop=CropGeometry(), draws_per_epoch=48, eval_draws=16)
    options |= {"max_epochs": epochs, "precision": "64-true", "log_every_n_steps": 1}
    return model, trained_quietly(model, data, **options).logged_metrics


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}])
def test_l2_with_sgd_is_weight_decay(options):
    decayed, logged = trained([], weight_decay=0.3, **options)
    penalised, with_penalty = trained([L2Penalty(0.3, exempt_biases=False)], **options)
    for name, weight in decayed.net.state_dict().items():
        found = penalised.net.state_dict()[name]
        torch.testing.assert_close(found, weight, rtol=1e-9, atol=1e-12, msg=name)
    assert "train/penalty" not in logged
    torch.testing.assert_close(with_penalty["train/loss"], logged["train/loss"])
    assert with_penalty["train/penalty"] > 0


def test_max_norm_holds_after_training_and_moves_nothing_else():
    model, _ = trained([MaxNorm(0.1, pattern="fcs")])
    rows = model.net.backbone.fcs[0].weight.detach().norm(dim=1)
    assert rows.max() < 0.1 + 1e-9
    assert model.net.backbone.convs[0].weight.detach().flatten(1).norm(dim=1).max() > 0.5


def test_l1_makes_more_weights_small_than_none():
    plain, _ = trained([], epochs=3)
    sparse, _ = trained([L1Penalty(0.02, pattern="fcs")], epochs=3)
    small = [
        float((m.net.backbone.fcs[0].weight.abs() < 1e-2).double().mean()) for m in (plain, sparse)
    ]
    assert small[1] > 2 * small[0]
