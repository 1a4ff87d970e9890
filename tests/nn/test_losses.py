import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.losses import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    LogCoshLoss,
    Loss,
    SmoothL1Loss,
)

ROUND = [HuberLoss(), HuberLoss(0.3), LogCoshLoss(), CharbonnierLoss(), CharbonnierLoss(0.01)]
STD = torch.tensor([1.0, 0.5, 2.0, 0.1])
LOSSES = [L2Loss(), L1Loss(), SmoothL1Loss(), SmoothL1Loss(1 / 9), SmoothL1Loss(0.0), *ROUND]


def uniform_targets(num=50_001):
    """Targets of unit variance on an even grid, so that means are free of chance."""
    return torch.linspace(-math.sqrt(3), math.sqrt(3), num)[:, None].expand(-1, 2)


def draw_pair(num=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num, 4, generator=generator).unbind()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (L2Loss(), 1.0),
        (L1Loss(), 0.866),
        (SmoothL1Loss(1.0), 0.462),
        (SmoothL1Loss(1 / 9), 0.812),
        (SmoothL1Loss(0.0), 0.866),
        (LogCoshLoss(), 0.401),
        (HuberLoss(1.0), 0.462),
        (HuberLoss(2.0), 0.5),
        (CharbonnierLoss(1e-3), 0.865),
    ],
)
def test_loss_at_chance_is_the_known_one_a_coordinate(loss, expected):
    targets = uniform_targets()
    losses = loss(torch.zeros_like(targets), targets, torch.ones(2))
    assert losses.shape == (50_001,)
    assert losses.mean().item() / 2 == pytest.approx(expected, abs=6e-4)


TORCHS = [
    (L1Loss(), F.l1_loss, {}),
    (L2Loss(), F.mse_loss, {}),
    *((SmoothL1Loss(beta), F.smooth_l1_loss, {"beta": beta}) for beta in (0.0, 1 / 9, 1.0, 3.0)),
    *((HuberLoss(delta), F.huber_loss, {"delta": delta}) for delta in (1 / 9, 1.0, 3.0)),
]


@pytest.mark.parametrize(("loss", "torchs", "options"), TORCHS)
def test_losses_equal_torchs(loss, torchs, options):
    predictions, targets = draw_pair()
    expected = torchs(predictions, targets, reduction="none", **options).sum(dim=1)
    torch.testing.assert_close(loss(predictions, targets, torch.ones(4)), expected)


@pytest.mark.parametrize(
    ("loss", "penalty"),
    [
        (LogCoshLoss(), lambda errors: np.log(np.cosh(errors))),
        (CharbonnierLoss(0.3), lambda errors: np.sqrt(errors**2 + 0.3**2) - 0.3),
    ],
)
def test_log_cosh_and_charbonnier_equal_their_formulas_in_fp64(loss, penalty):
    predictions, targets = draw_pair()
    errors = ((predictions - targets) / STD).double().numpy()
    expected = torch.from_numpy((penalty(errors) * STD.numpy()).sum(axis=1)).float()
    torch.testing.assert_close(loss(predictions, targets, STD), expected)


@pytest.mark.parametrize(
    ("loss", "slope"), [(LogCoshLoss(), 1.0), (CharbonnierLoss(), 1.0), (HuberLoss(2.0), 2.0)]
)
def test_huge_errors_cost_their_distance_and_stay_finite(loss, slope):
    errors = torch.tensor([[1e4], [-1e20], [1e37]], requires_grad=True)
    losses = loss(errors, torch.zeros_like(errors), torch.ones(1))
    torch.testing.assert_close(losses, slope * errors.detach().abs()[:, 0], rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), errors)
    assert gradient.flatten().tolist() == [slope, -slope, slope]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(scale=st.floats(1e-3, 1e3))
def test_lengths_are_in_units_of_the_targets_std(loss, scale):
    predictions, targets = draw_pair(50)
    power = 2 if isinstance(loss, L2Loss | HuberLoss) else 1
    unscaled = loss(predictions, targets, STD)
    scaled = loss(predictions * scale, targets * scale, STD * scale)
    torch.testing.assert_close(scaled, unscaled * scale**power, rtol=1e-4, atol=1e-6 * scale**power)


class CauchyLoss(Loss):
    """What a user writes: the penalty alone."""

    def penalty(self, error, std):
        return torch.log1p((error / std).square())


def test_a_loss_is_its_penalty_summed_over_coordinates():
    losses = CauchyLoss()(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2), torch.ones(2))
    assert losses.tolist() == pytest.approx([math.log(10), 0.0])
    assert CauchyLoss().curvature(torch.ones(2)) is None


def test_a_coordinates_own_std_decides_where_it_turns_linear():
    error = torch.tensor([[0.5, 0.5]])
    losses = SmoothL1Loss(1.0)(error, torch.zeros(1, 2), torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(losses, torch.tensor([0.125 + 0.45]))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_are_zero_at_the_target_and_even_about_it(loss):
    predictions, targets = draw_pair()
    assert (loss(targets, targets, STD) == 0).all()
    mirrored = 2 * targets - predictions
    torch.testing.assert_close(loss(predictions, targets, STD), loss(mirrored, targets, STD))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_are_finite_at_the_target_and_far_from_it(loss):
    targets = torch.zeros(3, 2)
    predictions = torch.tensor([[0.0, 0.0], [1e-30, -1e-30], [1e4, -1e4]], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(predictions, targets, torch.ones(2)).sum(), predictions)
    assert gradient.isfinite().all()
    assert (gradient[2] * torch.tensor([1, -1]) > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothL1Loss(-0.5), r"smooth L1 beta is -0\.5; expected 0 \(L1\) or more"),
        (lambda: HuberLoss(0.0), r"Huber delta is 0\.0; expected above 0"),
        (lambda: CharbonnierLoss(-1.0), r"Charbonnier eps is -1\.0; expected above 0, or use L1"),
    ],
)
def test_impossible_lengths_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.parametrize(
    "loss", [L2Loss(), SmoothL1Loss(), SmoothL1Loss(1 / 9), *ROUND[:4]], ids=repr
)
def test_curvature_is_the_largest_second_derivative(loss):
    std = STD.double()
    errors = (torch.linspace(-3, 3, 6_001).double()[:, None] * std).requires_grad_()
    (slope,) = torch.autograd.grad(loss(errors, torch.zeros_like(errors), std).sum(), errors)
    steepest = (slope.diff(dim=0) / (1e-3 * std)).amax(dim=0)
    torch.testing.assert_close(loss.curvature(std), steepest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [L1Loss(), SmoothL1Loss(0.0), Loss()], ids=repr)
def test_losses_with_a_kink_have_no_curvature(loss):
    assert loss.curvature(torch.ones(2)) is None
