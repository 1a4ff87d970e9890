"""Losses on boxes: values by plain loops, gradients by differences, descent to the true boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given

from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.geometry.codecs import DeltaCodec, MaxShiftCodec, MeanStdCodec, WhitenedCodec
from lightning_bbox.nn.box_losses import BoxLoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from lightning_bbox.nn.heads.linear import LinearHead
from tests import reference
from tests.draws import THOROUGH, box_sets
from tests.parts import boxes_at, draw_offsets, fitted_codec, spec_of

ORACLES = {
    IoULoss: reference.iou,
    GIoULoss: reference.giou,
    DIoULoss: reference.diou,
    CIoULoss: reference.ciou,
}
family = pytest.mark.parametrize("kind", ORACLES)
BOX = [10.0, 20.0, 40.0, 50.0]


def draw_pairs(num=60, seed=0):
    """Draw boxes in fp64 and others that overlap with half of them."""
    random = np.random.default_rng(seed)
    corners, sizes = random.uniform(0, 60, (2, num, 2)), random.uniform(5, 40, (2, num, 2))
    corners[1, ::2] = corners[0, ::2] + random.uniform(-4, 4, (num // 2, 2))
    return torch.from_numpy(np.concatenate([corners, corners + sizes], axis=2)).unbind()


@family
@given(boxes=box_sets(2))
@THOROUGH
def test_values_equal_plain_loops(kind, boxes):
    expected = 1 - reference.each(ORACLES[kind], *boxes)
    np.testing.assert_allclose(kind()(*boxes).numpy(), expected, atol=1e-6)


@family
def test_gradients_equal_differences(kind):
    boxes, gt_boxes = draw_pairs()
    boxes.requires_grad_()
    (gradient,) = torch.autograd.grad(kind()(boxes, gt_boxes).sum(), boxes)
    boxes, step = boxes.detach().numpy(), 1e-5
    # The weight of the aspect ratio is held where it is: it carries no gradient.
    weights = reference.each(reference.aspect_weight, boxes, gt_boxes)

    def value(moved):
        if kind is not CIoULoss:
            return 1 - reference.each(ORACLES[kind], moved, gt_boxes)
        aspects = weights * reference.each(reference.aspect_term, moved, gt_boxes)
        return 1 - reference.each(reference.diou, moved, gt_boxes) + aspects

    for corner in range(4):
        shift = step * np.eye(4)[corner]
        slope = (value(boxes + shift) - value(boxes - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[:, corner].numpy(), slope, rtol=1e-4, atol=1e-7)


def test_iou_under_a_shift_is_w_less_d_over_w_plus_d():
    width, shifts = 30.0, torch.linspace(-29, 29, 59)
    box = torch.tensor(BOX)
    for axes in ([1.0, 0.0], [0.0, 1.0]):
        losses = IoULoss()(shift_boxes(box, shifts[:, None] * torch.tensor(axes)), box)
        expected = (width - shifts.abs()) / (width + shifts.abs())
        torch.testing.assert_close(1 - losses, expected)


@family
@pytest.mark.parametrize(
    "box",
    [
        BOX,
        [60.0, 80.0, 90.0, 110.0],
        [15.0] * 4,
        [10.0, 20.0, 10.0, 50.0],
        [40.0, 50.0, 10.0, 20.0],
    ],
    ids=["equal", "apart", "a point", "a line", "swapped"],
)
def test_gradients_are_finite_for_any_boxes(kind, box):
    for gt_box in (BOX, box):
        boxes = torch.tensor([box], requires_grad=True)
        losses = kind()(boxes, torch.tensor([gt_box]))
        (gradient,) = torch.autograd.grad(losses.sum(), boxes)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@family
def test_equal_boxes_pull_nowhere_and_those_apart_together_but_for_the_plain_iou(kind):
    boxes = draw_pairs()[0].float().requires_grad_()
    losses = kind()(boxes, boxes.detach())
    (gradient,) = torch.autograd.grad(losses.sum(), boxes)
    assert losses.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6
    apart = torch.tensor([[60.0, 20.0, 90.0, 50.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(kind()(apart, torch.tensor([BOX])).sum(), apart)
    assert bool(gradient[0, [0, 2]].sum() > 0) == (kind is not IoULoss)


@family
@pytest.mark.parametrize(
    ("codec", "num_targets"),
    [(DeltaCodec, 4), (MeanStdCodec, 2), (MaxShiftCodec, 4), (WhitenedCodec, 4)],
)
def test_descent_on_free_targets_finds_the_true_boxes(kind, num_targets, codec):
    fitted = fitted_codec(codec, num_targets)
    head = LinearHead(kind()).build(4, spec_of(num_targets))
    gt_boxes, proposals = boxes_at(draw_offsets(20, seed=1)[:, :num_targets])
    targets = fitted.encode(gt_boxes, proposals)
    free = fitted.mean.repeat(20, 1).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.1 * float(fitted.std.mean()))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)

    def to_boxes(values):
        return fitted.decode(values, proposals)

    for _ in range(200):
        losses = head.loss(free, targets, to_boxes)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    assert losses.shape == (20,)
    start, end = (
        (to_boxes(values.detach()) - gt_boxes).abs().max()
        for values in (fitted.mean.expand(20, -1), free)
    )
    assert start > 3
    assert end < 0.1


@family
def test_gradients_reach_the_layer_under_bf16_autocast(kind):
    torch.manual_seed(0)
    fitted = fitted_codec(MeanStdCodec)
    head = LinearHead(kind()).build(8, spec_of())
    gt_boxes, proposals = boxes_at(draw_offsets(32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.loss(
            head(torch.randn(32, 8)),
            fitted.encode(gt_boxes, proposals),
            lambda targets: fitted.decode(targets, proposals),
        )
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert head.linear.weight.grad.isfinite().all()
    assert head.linear.weight.grad.abs().max() > 0


@family
def test_nothing_waits_for_the_device(kind):
    boxes, gt_boxes = draw_pairs()
    boxes.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        kind()(boxes, gt_boxes).sum().backward()
    assert "aten::_local_scalar_dense" not in {event.key for event in profile.key_averages()}


def test_the_base_leaves_the_loss_to_its_subclasses():
    with pytest.raises(NotImplementedError):
        BoxLoss()(torch.zeros(1, 4), torch.zeros(1, 4))
