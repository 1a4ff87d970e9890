import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.metrics import mean_iou_bbox

from lightning_bbox.geometry import boxes as ours
from tests import reference
from tests.draws import THOROUGH, box_sets

FORMATS = {
    ours.xyxy_to_xywh: reference.to_xywh,
    ours.xywh_to_xyxy: reference.from_xywh,
    ours.xyxy_to_cxcywh: reference.to_cxcywh,
    ours.cxcywh_to_xyxy: reference.from_cxcywh,
}
IOU_FAMILY = {
    ours.paired_iou: reference.iou,
    ours.paired_giou: reference.giou,
    ours.paired_diou: reference.diou,
    ours.paired_ciou: reference.ciou,
}
each_format = pytest.mark.parametrize(("function", "oracle"), FORMATS.items())
each_iou = pytest.mark.parametrize(("function", "oracle"), IOU_FAMILY.items())
flips = st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])


def made_up_boxes(*shape, seed=0, spread=60.0):
    """Overlapping boxes, 5 to 45 px wide and high."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(*shape, 4, generator=generator)
    low = numbers[..., :2] * spread
    return torch.cat([low, low + 5 + 40 * numbers[..., 2:]], dim=-1)


def close_to_oracle(found, expected):
    expected = torch.from_numpy(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@each_format
def test_formats_equal_the_oracle(function, oracle):
    boxes = made_up_boxes(20)
    close_to_oracle(function(boxes), reference.each(oracle, boxes))


@given(box_sets(1))
@THOROUGH
def test_formats_there_and_back_are_the_identity(drawn):
    (boxes,) = drawn
    torch.testing.assert_close(ours.xywh_to_xyxy(ours.xyxy_to_xywh(boxes)), boxes)
    torch.testing.assert_close(ours.cxcywh_to_xyxy(ours.xyxy_to_cxcywh(boxes)), boxes)


def test_centers_sizes_and_area_equal_the_oracle():
    boxes = made_up_boxes(20)
    cxcywh = reference.each(reference.to_cxcywh, boxes)
    close_to_oracle(ours.box_centers(boxes), cxcywh[:, :2])
    close_to_oracle(ours.box_sizes(boxes), cxcywh[:, 2:])
    close_to_oracle(ours.box_area(boxes) / 100, reference.each(reference.area, boxes) / 100)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 3.0])
def test_scaling_keeps_the_centre_and_multiplies_the_size(factor):
    boxes = made_up_boxes(20)
    scaled = ours.scale_boxes(boxes, factor)
    torch.testing.assert_close(ours.box_centers(scaled), ours.box_centers(boxes))
    torch.testing.assert_close(ours.box_sizes(scaled), ours.box_sizes(boxes) * factor)


def test_squaring_widens_the_shorter_side_about_the_centre():
    boxes = made_up_boxes(20)
    squared = ours.square_boxes(boxes)
    width, height = ours.box_sizes(squared).unbind(dim=-1)
    torch.testing.assert_close(width, height)
    torch.testing.assert_close(width, ours.box_sizes(boxes).amax(dim=-1))
    torch.testing.assert_close(ours.box_centers(squared), ours.box_centers(boxes))


def test_shifts_move_both_corners():
    shifted = ours.shift_boxes(
        torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2), torch.tensor([[10.0, -1.0], [0.0, 0.5]])
    )
    assert shifted.tolist() == [[11.0, 1.0, 13.0, 3.0], [1.0, 2.5, 3.0, 4.5]]


@pytest.mark.parametrize("across", [0.0, 1.0])
@pytest.mark.parametrize("down", [0.0, 1.0])
def test_mirroring_reflects_every_corner(across, down):
    boxes, centers = made_up_boxes(20), made_up_boxes(20, seed=1)[:, :2]
    mirrored = ours.mirror_boxes(boxes, centers, torch.tensor([across, down]).expand(20, 2))
    for box, (x, y), found in zip(boxes.tolist(), centers.tolist(), mirrored, strict=True):
        xs = sorted(2 * x - edge if across else edge for edge in box[::2])
        ys = sorted(2 * y - edge if down else edge for edge in box[1::2])
        close_to_oracle(found, [xs[0], ys[0], xs[1], ys[1]])


@given(box_sets(3), flips)
@THOROUGH
def test_mirroring_twice_is_the_identity_and_mirroring_both_keeps_the_iou(drawn, chosen):
    boxes, others, third = drawn
    centers, flips = ours.box_centers(third), boxes.new_tensor(chosen).expand(len(boxes), 2)
    mirrored = [ours.mirror_boxes(b, centers, flips) for b in (boxes, others)]
    torch.testing.assert_close(ours.mirror_boxes(mirrored[0], centers, flips), boxes)
    torch.testing.assert_close(ours.paired_iou(*mirrored), ours.paired_iou(boxes, others))


@each_iou
def test_iou_family_equals_the_oracle_whatever_the_leading_dimensions(function, oracle):
    boxes, others = made_up_boxes(40, 5), made_up_boxes(40, 5, seed=1)
    expected = reference.each(oracle, boxes.flatten(0, 1), others.flatten(0, 1))
    close_to_oracle(function(boxes, others).flatten(), expected)
    assert function(boxes[0, 0], others[0, 0]).shape == ()
    assert function(boxes[:0], others[:0]).shape == (0, 5)


def test_paired_iou_equals_kornias_for_every_pair():
    boxes, others = made_up_boxes(6), made_up_boxes(9, seed=1)
    found = ours.paired_iou(boxes[:, None], others[None])
    torch.testing.assert_close(found, mean_iou_bbox(boxes, others))


@given(box_sets(2))
@THOROUGH
def test_iou_family_is_symmetric(drawn):
    for function in IOU_FAMILY:
        torch.testing.assert_close(function(*drawn), function(*drawn[::-1]))


@given(box_sets(2))
@THOROUGH
def test_iou_lies_between_0_and_1_and_its_kin_below_it(drawn):
    iou, giou, diou, ciou = (function(*drawn) for function in IOU_FAMILY)
    rounding = 1e-12
    assert bool(((iou >= 0) & (iou <= 1 + rounding)).all())
    assert bool(((giou >= -1) & (giou <= iou + rounding)).all())
    assert bool(((diou >= -1) & (diou <= iou + rounding)).all())
    assert bool((ciou <= diou + rounding).all())


@given(box_sets(2), st.floats(-500, 500), st.floats(-500, 500), st.floats(0.1, 10))
@THOROUGH
def test_iou_family_ignores_shift_and_scale(drawn, x, y, scale):
    moved = [boxes * scale + boxes.new_tensor([x, y, x, y]) for boxes in drawn]
    for function in IOU_FAMILY:
        torch.testing.assert_close(function(*moved), function(*drawn), rtol=1e-6, atol=1e-6)


@given(box_sets(1))
@THOROUGH
def test_iou_family_of_a_box_with_itself_is_one(drawn):
    for function in IOU_FAMILY:
        torch.testing.assert_close(
            function(*drawn, *drawn), torch.ones(len(drawn[0]), dtype=torch.float64)
        )


@each_iou
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2e-4 / 30, 1e-9, 1.0, 1e9])
def test_the_iou_family_of_tiny_and_huge_boxes_is_that_of_plain_loops(
    function, oracle, scale, dtype
):
    """A bound in square pixels made it 0.4 of boxes that are equal and 0.0002 wide."""
    boxes, others = (scale * made_up_boxes(40, seed=seed).double() for seed in (0, 1))
    found = function(boxes.to(dtype), others.to(dtype))
    expected = reference.each(oracle, boxes.numpy(), others.numpy())
    rounding = 1e-4 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=rounding)
    equal = function(boxes.to(dtype), boxes.to(dtype))
    np.testing.assert_allclose(equal.double().numpy(), 1, rtol=0, atol=rounding)


@pytest.mark.parametrize("function", IOU_FAMILY)
def test_gradients_of_tiny_boxes_are_those_of_larger_ones_over_the_scale(function):
    scale, gradients = 2e-4 / 30, []
    for factor in (1.0, scale):
        leaf = (factor * made_up_boxes(40).double()).requires_grad_()
        others = factor * made_up_boxes(40, seed=1).double()
        function(leaf, others).sum().backward()
        gradients.append(factor * leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0, 29.0, 30.0])
def test_iou_under_a_shift_is_width_minus_shift_over_width_plus_shift(shift):
    box = torch.tensor([10.0, 10.0, 40.0, 40.0])
    moved = ours.shift_boxes(box, torch.tensor([shift, 0.0]))
    assert float(ours.paired_iou(box, moved)) == pytest.approx((30 - shift) / (30 + shift))


def test_ciou_equals_diou_where_the_aspects_agree():
    boxes = made_up_boxes(20)
    others = ours.shift_boxes(ours.scale_boxes(boxes, 0.7), torch.full((20, 2), 3.0))
    torch.testing.assert_close(ours.paired_ciou(boxes, others), ours.paired_diou(boxes, others))


@pytest.mark.parametrize(
    "corners",
    [(5, 5, 5, 5), (5, 0, 5, 9), (3, 3, 9, 3), (9, 9, 0, 0), (5, 0, 0, 5), (0, 5, 5, 0)],
)
def test_empty_and_swapped_boxes_have_no_area_and_overlap_nothing(corners):
    empty, box = torch.tensor(corners).float(), torch.tensor([0.0, 0.0, 9.0, 9.0])
    assert ours.box_area(empty) == 0
    for pair in ((empty, box), (box, empty), (empty, empty)):
        assert ours.paired_iou(*pair) == 0
        assert all(bool(function(*pair).isfinite()) for function in IOU_FAMILY)


@pytest.mark.parametrize("function", IOU_FAMILY)
@pytest.mark.parametrize(
    "other",
    [(0.0, 0.0, 9.0, 9.0), (50.0, 0.0, 60.0, 9.0), (9.0, 0.0, 12.0, 9.0), (4.0, 4.0, 4.0, 4.0)],
    ids=["equal", "apart", "touching", "empty"],
)
def test_iou_family_has_finite_gradients(function, other):
    box = torch.tensor([0.0, 0.0, 9.0, 9.0], requires_grad=True)
    function(box, torch.tensor(other)).backward()
    assert bool(box.grad.isfinite().all())


@each_iou
def test_gradients_equal_finite_differences(function, oracle):
    """The weight of the aspect term counts as a constant."""
    box, other = np.array([2.0, 3.0, 31.0, 22.0]), np.array([8.0, 5.0, 30.0, 45.0])
    weight = reference.aspect_weight(box, other)

    def value(moved):
        if oracle is reference.ciou:
            return reference.diou(moved, other) - weight * reference.aspect_term(moved, other)
        return oracle(moved, other)

    expected = [(value(box + step) - value(box - step)) / 2e-5 for step in 1e-5 * np.eye(4)]
    leaf = torch.from_numpy(box).requires_grad_()
    function(leaf, torch.from_numpy(other)).backward()
    torch.testing.assert_close(leaf.grad, torch.tensor(expected).double(), rtol=1e-5, atol=1e-8)
