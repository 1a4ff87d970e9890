import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.geometry.codecs import (
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    PixelCodec,
)
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.losses import L1Loss, L2Loss, SmoothL1Loss
from tests.parts import boxes_at, draw_offsets, fitted_codec, spec_with

CODECS = [DeltaCodec, FixedStdCodec, MeanStdCodec, MaxShiftCodec, PixelCodec]
BOUNDS = {"two": [5.0, 5.0], "four": [5.0, 5.0, 0.2, 0.2], "uneven": [3.0, 3.0, 0.51, 0.51]}

codecs = pytest.mark.parametrize("codec", CODECS)
several_bounds = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)


@pytest.mark.parametrize(
    "head", [BinHead(), LinearHead(), LinearHead(L2Loss()), LinearHead(L1Loss())]
)
@several_bounds
def test_gradients_are_finite_under_bf16_autocast(head, bounds):
    torch.manual_seed(0)
    head.build(8, spec_with(bounds))
    features = torch.randn(32, 8, requires_grad=True)
    targets = 3 * torch.randn(32, len(bounds))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head(features)
        losses = head.loss(outputs, targets)
        decoded = head.decode(outputs)
    assert outputs.dtype == (torch.float32 if isinstance(head, LinearHead) else torch.bfloat16)
    assert losses.dtype == decoded.dtype == torch.float32
    assert losses.shape == (32,)
    losses.sum().backward()
    for gradient in (features.grad, *(weight.grad for weight in head.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("head", [BinHead(), LinearHead()])
def test_the_first_prediction_is_the_middle(head):
    torch.manual_seed(0)
    codec = fitted_codec(MeanStdCodec, 2)
    head.build(256, spec_with([5.0, 5.0])).fit(codec.space())
    decoded = head.decode(head(torch.randn(100, 256).relu()))
    middle = codec.space().origin if isinstance(head, BinHead) else torch.zeros(2)
    assert (decoded - middle).abs().max() < 0.2


@codecs
def test_the_linear_heads_beta_is_in_units_of_the_codecs_std(codec):
    fitted = fitted_codec(codec, 2)
    head = LinearHead(SmoothL1Loss(beta=1.0)).build(8, spec_with([5.0, 5.0]))
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
        head = LinearHead(loss).build(8, spec_with([5.0, 5.0]))
        assert head.loss(torch.zeros(1, 2), targets).item() == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_an_activation_that_hides_half_of_the_targets_is_warned_of(activation):
    with pytest.warns(UserWarning, match=f"activation '{activation}' can't predict targets below"):
        head = LinearHead(L2Loss(), activation=activation).build(8, spec_with([5.0, 5.0]))
    outputs = 3 * torch.randn(20, 2)
    torch.testing.assert_close(head.decode(outputs), getattr(torch, activation)(outputs))
    assert (head.decode(outputs) >= 0).all()
    torch.testing.assert_close(
        head.loss(outputs, -torch.ones(20, 2)), (head.decode(outputs) + 1).square().sum(dim=1)
    )


def test_a_bounded_activation_is_a_choice_that_nothing_is_said_of():
    head = LinearHead(activation="tanh").build(8, spec_with([5.0, 5.0]))
    outputs = 3 * torch.randn(20, 2)
    assert torch.equal(head.decode(outputs), outputs.tanh())
    with pytest.raises(BadInput, match="activation is 'gelu'; expected one of none, relu, sigm"):
        LinearHead(activation="gelu")


@pytest.mark.parametrize("head", [BinHead(bin_width=0.25), LinearHead(L2Loss())])
def test_what_was_fitted_travels_in_the_checkpoint(head):
    head.build(8, spec_with(BOUNDS["four"])).fit(fitted_codec(MeanStdCodec).space())
    other = from_plain(head.recipe()).build(8, spec_with(BOUNDS["four"]))
    other.load_state_dict(head.state_dict())
    outputs, targets = head(torch.randn(5, 8)), torch.randn(5, 4)
    assert torch.equal(other.decode(outputs), head.decode(outputs))
    assert torch.equal(other.loss(outputs, targets), head.loss(outputs, targets))
