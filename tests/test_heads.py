import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.bin_head import BinHead
from lightning_bbox.codecs import (
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    OffsetSpec,
    PixelCodec,
)
from lightning_bbox.crops import CropGeometry
from lightning_bbox.errors import BadInput
from lightning_bbox.heads import LinearHead
from lightning_bbox.losses import L1Loss, L2Loss, SmoothL1Loss
from lightning_bbox.parts import from_plain
from tests.parts import spec_with

CODECS = [DeltaCodec, FixedStdCodec, MeanStdCodec, MaxShiftCodec, PixelCodec]
BOUNDS = {"two": [5.0, 5.0], "four": [5.0, 5.0, 0.2, 0.2], "uneven": [3.0, 3.0, 0.51, 0.51]}

codecs = pytest.mark.parametrize("codec", CODECS)
several_bounds = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)


def spec_of(num_targets=4):
    return OffsetSpec(CropGeometry(), num_targets, max_shift=5.0, max_log_size=0.2)


def boxes_at(offsets):
    """Return true boxes and anchors with these offsets, in px and log size."""
    anchors = torch.tensor([10.0, 20.0, 55.0, 80.0], dtype=torch.float64).expand(len(offsets), 4)
    sizes = anchors[:, 2:] - anchors[:, :2]
    centers = (anchors[:, 2:] + anchors[:, :2]) / 2 + offsets[:, :2] * sizes / 30
    sizes = sizes * offsets[:, 2:].exp() if offsets.shape[1] == 4 else sizes
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1).float(), anchors.float()


def draw_offsets(num=500, bounds=(5.0, 5.0, 0.2, 0.2), seed=0):
    unit = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * unit - 1) * torch.tensor(bounds) + torch.tensor([0.3, -0.2, 0.01, 0.0])


def fitted_codec(codec, num_targets=4):
    fitted = codec().build(spec_of(num_targets))
    fitted.fit(*boxes_at(draw_offsets()))
    return fitted


def bin_head(bounds=(5.0, 5.0), codec=None, **arguments):
    head = BinHead(**arguments).build(8, spec_with(bounds))
    if codec is not None:
        head.fit(codec.space())
    return head


def num_bins(bound, width, sigma=0.75):
    return 2 * math.ceil(bound / width + 4 * sigma - 1e-6) + 1


def hl_gauss(offset, bound, width, sigma=0.75):
    """Return centres and masses of one coordinate's bins, straight from the formula."""
    reach = math.ceil(bound / width + 4 * sigma - 1e-6)
    edges = (np.arange(-reach, reach + 2) - 0.5) * width
    offset = np.clip(offset, edges[0], edges[-1])
    cdf = scipy.stats.norm.cdf(edges, loc=offset, scale=sigma * width)
    return np.arange(-reach, reach + 1) * width, np.diff(cdf) / (cdf[-1] - cdf[0])


@several_bounds
def test_bins_reach_four_sigma_beyond_the_bound(bounds):
    head = bin_head(bounds)
    for row, bound in enumerate(bounds):
        width = 0.5 if row < 2 else 0.05
        centers = head.centers[row][head.inside[row]]
        assert len(centers) == num_bins(bound, width)
        expected = torch.arange(len(centers)) * width - width * (len(centers) // 2)
        torch.testing.assert_close(centers, expected)
        assert bound + 4 * 0.75 * width - 1e-5 <= centers[-1] < bound + 5 * 0.75 * width + width


def test_the_default_bins_are_27_from_minus_6_and_a_half():
    head = bin_head()
    assert head.centers.shape == (2, 27)
    assert head.centers[:, [0, 13, -1]].tolist() == [[-6.5, 0.0, 6.5]] * 2


@several_bounds
def test_loss_at_chance_is_the_sum_of_ln_of_the_bins(bounds):
    head = bin_head(bounds)
    offsets = torch.zeros(3, len(bounds))
    losses = head.loss(torch.zeros(3, *head.centers.shape), offsets)
    widths = [0.5, 0.5, 0.05, 0.05]
    expected = sum(math.log(num_bins(b, w)) for b, w in zip(bounds, widths, strict=False))
    assert losses.tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_loss_at_chance_of_two_coordinates_is_2_ln_27():
    assert bin_head().loss(torch.zeros(1, 2, 27), torch.tensor([[1.3, -4.9]])).item() == (
        pytest.approx(2 * math.log(27), rel=1e-5)
    )


@several_bounds
@pytest.mark.parametrize("sigma", [0.5, 0.75, 2.0])
def test_target_probs_are_those_of_hl_gauss(bounds, sigma):
    head = bin_head(bounds, sigma=sigma)
    offsets = draw_offsets(100, [*bounds, 0.2, 0.2][:4])[:, : len(bounds)]
    probs = head.target_probs(offsets.float())
    assert probs.shape == (100, *head.centers.shape)
    for row, bound in enumerate(bounds):
        width = 0.5 if row < 2 else 0.05
        inside = head.inside[row]
        expected = np.stack([hl_gauss(y, bound, width, sigma)[1] for y in offsets[:, row].numpy()])
        np.testing.assert_allclose(probs[:, row, inside], expected, atol=2e-6)
        assert (probs[:, row, ~inside] == 0).all()


@several_bounds
def test_expectation_of_perfect_probs_is_the_offset_over_the_whole_range(bounds):
    head = bin_head(bounds)
    offsets = torch.linspace(-1, 1, 1_001)[:, None] * torch.tensor(bounds)
    logits = head.target_probs(offsets).log().clamp(min=-100)
    bias = (head.decode(logits) - offsets).abs().amax(dim=0)
    assert bias[:2].max() < 1e-3
    assert bias[2:].numel() == 0 or bias[2:].max() < 1e-4


@several_bounds
def test_bins_beyond_a_coordinates_own_range_have_no_probability(bounds):
    head = bin_head(bounds)
    logits = 20 * torch.randn(50, *head.centers.shape)
    probs = head.probs(logits)
    assert (probs[:, ~head.inside] == 0).all()
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(50, len(bounds)))
    changed = torch.where(head.inside, logits, 1e4)
    assert torch.equal(head.decode(changed), head.decode(logits))


@codecs
@pytest.mark.parametrize("num_targets", [2, 4])
def test_bins_lie_in_px_whatever_the_codec(codec, num_targets):
    fitted = fitted_codec(codec, num_targets)
    offsets = draw_offsets(200, seed=1)[:, :num_targets]
    reference = bin_head(spec_of(num_targets).bounds)
    expected = reference.target_probs(offsets.float())
    head = bin_head(spec_of(num_targets).bounds, fitted)
    boxes, anchors = boxes_at(offsets)
    targets = fitted.encode(boxes, anchors)
    torch.testing.assert_close(head.target_probs(targets), expected, rtol=0, atol=1e-4)
    logits = torch.randn(200, *head.centers.shape)
    torch.testing.assert_close(
        head.loss(logits, targets), reference.loss(logits, offsets.float()), rtol=1e-4, atol=1e-4
    )
    perfect = head.target_probs(targets).log().clamp(min=-100)
    torch.testing.assert_close(
        fitted.decode(head.decode(perfect), anchors), boxes, rtol=0, atol=2e-3
    )


@given(offset=st.floats(-1e6, 1e6), logit=st.floats(-100, 100))
def test_offsets_beyond_the_range_stay_finite(offset, logit):
    head = bin_head(BOUNDS["four"])
    targets = torch.full((1, 4), offset)
    probs = head.target_probs(targets)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(1, 4))
    logits = torch.zeros(1, *head.centers.shape)
    logits[..., 0] = logit
    assert head.loss(logits, targets).isfinite().all()


def test_an_offset_beyond_the_range_counts_as_its_end():
    head = bin_head()
    end = head.edges[0, -1].item()
    far, at_end = (head.target_probs(torch.full((1, 2), x)) for x in (1e3, end))
    assert torch.equal(far, at_end)
    assert far.argmax(dim=-1).tolist() == [[26, 26]]


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
    for gradient in (features.grad, head.linear.weight.grad, head.linear.bias.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_bf16_logits_lose_nothing_more_in_the_loss():
    head = bin_head()
    logits, targets = torch.randn(64, 2, 27).bfloat16(), torch.randn(64, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, decoded = head.loss(logits, targets), head.decode(logits)
    torch.testing.assert_close(losses, head.loss(logits.float(), targets), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decoded, head.decode(logits.float()), rtol=1e-6, atol=1e-6)


def test_cross_entropy_is_least_at_the_target_distribution():
    head = bin_head(BOUNDS["uneven"])
    targets = torch.randn(20, 4) * torch.tensor([2.0, 3.0, 0.05, 0.2])
    best = head.target_probs(targets).log().clamp(min=-100)
    noise = 0.3 * torch.randn(20, *head.centers.shape)
    assert (head.loss(best, targets) < head.loss(best + noise, targets)).all()
    logits = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(head.loss(logits, targets).sum(), logits)
    assert gradient.abs().max() < 1e-5


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


@pytest.mark.parametrize("head", [BinHead(0.25), LinearHead(L2Loss())])
def test_what_was_fitted_travels_in_the_checkpoint(head):
    head.build(8, spec_with(BOUNDS["four"])).fit(fitted_codec(MeanStdCodec).space())
    other = from_plain(head.recipe()).build(8, spec_with(BOUNDS["four"]))
    other.load_state_dict(head.state_dict())
    outputs, targets = head(torch.randn(5, 8)), torch.randn(5, 4)
    assert torch.equal(other.decode(outputs), head.decode(outputs))
    assert torch.equal(other.loss(outputs, targets), head.loss(outputs, targets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bin_width": 0.0}, r"bin_width 0\.0"),
        ({"log_bin_width": -0.1}, r"log_bin_width -0\.1"),
        ({"sigma": 0.0}, r"sigma 0\.0 must all be positive"),
    ],
)
def test_impossible_bins_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        BinHead(**arguments)
