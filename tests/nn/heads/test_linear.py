import pytest
import torch

from lightning_bbox import BadInput, L1Loss, L2Loss, LinearHead, SmoothL1Loss
from tests.parts import boxes_at, draw_offsets, each_codec, fitted_codec, spec_with

SPEC = spec_with([5.0, 5.0])


@each_codec
def test_beta_is_in_units_of_the_codecs_std(codec):
    fitted = fitted_codec(codec, 2)
    head = LinearHead(SmoothL1Loss(beta=1.0)).build(8, SPEC)
    head.fit(fitted.space())
    boxes, anchors = boxes_at(draw_offsets(seed=1)[:, :2])
    targets = fitted.encode(boxes, anchors)
    losses = head.loss(fitted.mean.expand_as(targets), targets)
    error = (targets - fitted.mean) / fitted.std
    quadratic = 0.5 * error.square() * fitted.std
    linear = (error.abs() - 0.5) * fitted.std
    expected = torch.where(error.abs() < 1, quadratic, linear).sum(dim=1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    assert ((error.abs() < 1) & (error != 0)).any()
    assert (error.abs() > 1).any()


def test_a_linear_head_uses_smooth_l1_unless_told_otherwise():
    targets = torch.tensor([[0.5, -3.0]])
    for loss, expected in ((None, 0.125 + 2.5), (L2Loss(), 9.25), (L1Loss(), 3.5)):
        head = LinearHead(loss).build(8, SPEC)
        assert head.loss(torch.zeros(1, 2), targets).item() == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_an_activation_that_hides_half_of_the_targets_is_warned_of(activation):
    with pytest.warns(UserWarning, match=f"activation '{activation}' can't predict targets below"):
        head = LinearHead(L2Loss(), activation=activation).build(8, SPEC)
    outputs = 3 * torch.randn(20, 2)
    decoded = head.decode(outputs)
    torch.testing.assert_close(decoded, getattr(torch, activation)(outputs))
    losses = head.loss(outputs, -torch.ones(20, 2))
    torch.testing.assert_close(losses, (decoded + 1).square().sum(dim=1))


def test_a_bounded_activation_is_a_choice_that_nothing_is_said_of():
    head = LinearHead(activation="tanh").build(8, SPEC)
    outputs = 3 * torch.randn(20, 2)
    assert torch.equal(head.decode(outputs), outputs.tanh())
    with pytest.raises(BadInput, match="activation is 'gelu'; expected one of none, relu, sigm"):
        LinearHead(activation="gelu")
