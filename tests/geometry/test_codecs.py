import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox import (
    BadInput,
    CropGeometry,
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    OffsetSpec,
    PixelCodec,
    WhitenedCodec,
)
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.geometry.boxes import box_centers, box_sizes, mirror_boxes, shift_boxes
from lightning_bbox.geometry.codecs import MAX_LOG_SIZE, decode_deltas, encode_deltas
from tests import reference
from tests.draws import THOROUGH, box_sets
from tests.parts import CODECS, two_or_four

GEOMETRY = CropGeometry(context=1.5, reference_size=45.0)
MAX_SHIFT, MAX_LOG = 5.0, 0.2
STDS = (0.2, 0.3, 0.4, 0.5)
BOUNDS = [MAX_SHIFT, MAX_SHIFT, MAX_LOG, MAX_LOG]
each_codec = pytest.mark.parametrize("kind", [*CODECS, WhitenedCodec])
each_unmixed_codec = pytest.mark.parametrize("kind", CODECS)


def made_up_anchors(count):
    generator = torch.Generator().manual_seed(0)
    centers = 50 + 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    half = 10 + 20 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([centers - half, centers + half], dim=1)


def moved_by(anchors, offsets):
    """True boxes whose offsets are (x, y) in px and the logarithms of the size's ratios."""
    centers = box_centers(anchors) + offsets[:, :2] * GEOMETRY.px(anchors)
    half = box_sizes(anchors) * torch.exp(offsets[:, 2:]) / 2
    return torch.cat([centers - half, centers + half], dim=1)


def drawn_offsets(count, num_targets):
    """Uniform up to the bounds, off centre, so that means are not zero."""
    generator = torch.Generator().manual_seed(1)
    unit = 2 * torch.rand(count, 4, generator=generator, dtype=torch.float64) ** 0.8 - 1
    return unit * torch.tensor(BOUNDS) * (torch.arange(4) < num_targets)


def built(codec, num_targets, max_log=MAX_LOG):
    return codec.build(OffsetSpec(GEOMETRY, num_targets, MAX_SHIFT, max_log))


def fitted(kind, num_targets, count=400):
    """A codec and the training set (true boxes, anchors, offsets) that it was fitted on."""
    codec = built(kind(), num_targets)
    anchors, offsets = made_up_anchors(count), drawn_offsets(count, num_targets)
    gt_boxes = moved_by(anchors, offsets)
    codec.fit(gt_boxes, anchors)
    return codec, gt_boxes, anchors, offsets


def test_deltas_equal_the_oracle_whatever_the_leading_dimensions():
    _, gt_boxes, anchors, _ = fitted(DeltaCodec, 4, count=50)
    expected = torch.from_numpy(reference.each(reference.encode, gt_boxes, anchors))
    for shape in ((50, 4), (5, 10, 4)):
        found = encode_deltas(gt_boxes.view(shape), anchors.view(shape))
        torch.testing.assert_close(found, expected.view(shape))
    torch.testing.assert_close(encode_deltas(gt_boxes[0], anchors[0]), expected[0])
    assert decode_deltas(expected[:0], anchors[:0]).shape == (0, 4)


@two_or_four
def test_decoded_deltas_equal_the_oracle(num_targets):
    generator = torch.Generator().manual_seed(2)
    deltas = torch.randn(50, num_targets, generator=generator, dtype=torch.float64) * 2
    anchors = made_up_anchors(50)
    expected = torch.from_numpy(reference.each(reference.decode, deltas, anchors))
    torch.testing.assert_close(decode_deltas(deltas, anchors), expected)


@each_codec
@two_or_four
@given(drawn=box_sets(2))
@THOROUGH
def test_decode_inverts_encode(kind, num_targets, drawn):
    """With two targets the anchor moves onto the centre, and keeps its size."""
    codec = fitted(kind, num_targets)[0]
    boxes, anchors = (tensor.float() for tensor in drawn)
    decoded = codec.decode(codec.encode(boxes, anchors), anchors)
    sizes = box_sizes(boxes if num_targets == 4 else anchors)
    torch.testing.assert_close(box_centers(decoded), box_centers(boxes), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(box_sizes(decoded), sizes, rtol=1e-4, atol=1e-3)


@each_codec
@two_or_four
@given(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4))
@THOROUGH
def test_encode_inverts_decode(kind, num_targets, numbers):
    codec, _, anchors, _ = fitted(kind, num_targets)
    targets = torch.tensor([numbers[:num_targets]])
    again = codec.encode(codec.decode(targets, anchors[:1]), anchors[:1])
    torch.testing.assert_close(again, targets, rtol=1e-4, atol=1e-3)


@each_unmixed_codec
@two_or_four
def test_an_offset_in_px_is_the_target_origin_plus_px_times_unit(kind, num_targets):
    codec, gt_boxes, anchors, offsets = fitted(kind, num_targets)
    space = codec.space()
    expected = space.origin + offsets[:, :num_targets] * space.unit
    torch.testing.assert_close(
        codec.encode(gt_boxes, anchors), expected.float(), rtol=1e-4, atol=1e-4
    )


@each_codec
@two_or_four
def test_the_space_knows_the_training_targets_spread_and_the_bounds(kind, num_targets):
    codec, gt_boxes, anchors, _ = fitted(kind, num_targets)
    targets, space = codec.encode(gt_boxes, anchors), codec.space()
    torch.testing.assert_close(space.std, targets.std(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codec.mean, targets.mean(dim=0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(space.bound, torch.tensor(BOUNDS[:num_targets]))
    assert bool((space.unit > 0).all())
    assert space.mixed == (kind is WhitenedCodec)


@each_codec
@two_or_four
def test_targets_equal_the_codecs_formula(kind, num_targets):
    codec, gt_boxes, anchors, offsets = fitted(kind, num_targets)
    deltas = reference.each(reference.encode, gt_boxes, anchors)[:, :num_targets]
    centred = deltas - deltas.mean(axis=0)
    px = offsets[:, :num_targets].numpy()
    values, axes = np.linalg.eigh(np.cov(deltas.T))
    expected = {
        DeltaCodec: deltas,
        FixedStdCodec: deltas / np.array([0.1, 0.1, 0.2, 0.2])[:num_targets],
        MeanStdCodec: centred / deltas.std(axis=0, ddof=1),
        MaxShiftCodec: px / np.array(BOUNDS)[:num_targets],
        PixelCodec: px,
        WhitenedCodec: centred @ axes @ np.diag((values + 0.001 * values.mean()) ** -0.5) @ axes.T,
    }
    targets = codec.encode(gt_boxes, anchors)
    np.testing.assert_allclose(targets, expected[kind], rtol=1e-4, atol=1e-4)


@given(st.integers(-9, 9), st.integers(-9, 9))
@THOROUGH
def test_shifting_the_proposal_by_k_px_shifts_the_target_by_minus_k(x, y):
    codec, gt_boxes, anchors, _ = fitted(PixelCodec, 2, count=20)
    shifts = torch.tensor([x, y], dtype=torch.float64)
    moved = shift_boxes(anchors, shifts * GEOMETRY.px(anchors))
    change = codec.encode(gt_boxes, moved) - codec.encode(gt_boxes, anchors)
    torch.testing.assert_close(change, -shifts.float().expand(20, 2), rtol=0, atol=1e-3)


@each_codec
@given(drawn=box_sets(2), x=st.floats(-99, 99), y=st.floats(-99, 99), scale=st.floats(0.5, 4))
@THOROUGH
def test_targets_ignore_a_shift_and_a_scale_of_the_picture(kind, drawn, x, y, scale):
    codec = fitted(kind, 4)[0]
    frame = torch.tensor([x, y, x, y], dtype=torch.float64)
    targets = codec.encode(*drawn)
    moved = codec.encode(*(boxes * scale + frame for boxes in drawn))
    torch.testing.assert_close(moved, targets, rtol=1e-3, atol=2e-2)


@each_unmixed_codec
def test_mirroring_the_picture_changes_the_sign_of_the_shift(kind):
    codec, gt_boxes, anchors, _ = fitted(kind, 4)
    centers, across = torch.full((400, 2), 100.0), torch.tensor([1.0, 0.0]).expand(400, 2)
    mirrored = [mirror_boxes(boxes, centers, across) for boxes in (gt_boxes, anchors)]
    space = codec.space()
    shifts, expected = (
        (codec.encode(*boxes) - space.origin) / space.unit
        for boxes in (mirrored, (gt_boxes, anchors))
    )
    expected[:, 0] *= -1
    torch.testing.assert_close(shifts, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("delta", [10.0, -10.0, math.inf, -math.inf])
def test_decoding_clamps_the_change_of_size(delta):
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    decoded = decode_deltas(torch.tensor([[0.0, 0.0, delta, delta]]), anchors)
    factor = math.exp(math.copysign(MAX_LOG_SIZE, delta))
    torch.testing.assert_close(box_sizes(decoded), torch.tensor([[10.0, 20.0]]) * factor)


@each_codec
def test_targets_and_boxes_are_fp32_whatever_comes_in(kind):
    codec, gt_boxes, anchors, _ = fitted(kind, 4)
    targets = codec.encode(gt_boxes, anchors)
    assert targets.dtype == torch.float32
    decoded = codec.decode(targets.bfloat16(), anchors)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, codec.decode(targets.bfloat16().float(), anchors.float()))
    assert codec.decode(targets.double(), anchors).dtype == torch.float32


@two_or_four
def test_one_target_serves_many_anchors(num_targets):
    """As the error of predicting the training mean is measured."""
    codec, _, anchors, _ = fitted(MeanStdCodec, num_targets)
    expected = codec.decode(codec.mean.expand(len(anchors), -1), anchors)
    assert torch.equal(codec.decode(codec.mean, anchors), expected)


@each_codec
@two_or_four
def test_statistics_travel_in_the_state(kind, num_targets):
    codec, gt_boxes, anchors, _ = fitted(kind, num_targets)
    copy = from_plain(codec.recipe()).build(codec.spec)
    copy.load_state_dict(codec.state_dict())
    assert torch.equal(copy.encode(gt_boxes, anchors), codec.encode(gt_boxes, anchors))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(copy.space()[:4], codec.space()[:4], strict=True)
    )


@each_codec
@two_or_four
def test_targets_that_are_all_the_same_are_refused(kind, num_targets):
    codec = built(kind(), num_targets)
    anchors = made_up_anchors(20)
    offsets = drawn_offsets(20, num_targets)
    offsets[:, 1] = 0
    with pytest.raises(BadInput, match=r"20 training targets .* all the same"):
        codec.fit(moved_by(anchors, offsets), anchors)


@each_codec
def test_sizes_that_change_by_rounding_alone_are_refused(kind):
    """In fp32 a shifted box has another width in the last bit."""
    codec = built(kind(), 4, max_log=0.0)
    gt_boxes = made_up_anchors(50).float()
    proposals = shift_boxes(gt_boxes, drawn_offsets(50, 2)[:, :2].float())
    with pytest.raises(BadInput, match="use 2 targets where sizes don't change"):
        codec.fit(gt_boxes, proposals)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count):
    codec = built(MeanStdCodec(), 2)
    anchors = made_up_anchors(count)
    with pytest.raises(BadInput, match=f"{count} training targets"):
        codec.fit(moved_by(anchors, drawn_offsets(count, 2)), anchors)


def test_fixed_stds_are_those_given_and_kept_by_the_recipe():
    _, gt_boxes, anchors, _ = fitted(DeltaCodec, 4)
    codec = built(from_plain(FixedStdCodec(STDS).recipe()), 4)
    codec.fit(gt_boxes, anchors)
    torch.testing.assert_close(codec.scale, torch.tensor(STDS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedStdCodec((0.1, 0.1, 0.0, 0.2)), "must be positive"),
        (lambda: FixedStdCodec((0.1, -0.1, 0.2, 0.2)), "must be positive"),
        (lambda: WhitenedCodec(eps=-1.0), r"WhitenedCodec eps is -1\.0"),
    ],
)
def test_impossible_codecs_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_a_square_crop_leaves_the_size_of_a_shifted_box_alone():
    spec = OffsetSpec(CropGeometry(square=True), 2, 5.0, 0.0)
    proposals = torch.tensor([[10.0, 10.0, 30.0, 50.0]])
    boxes = shift_boxes(proposals, torch.tensor([[4.0, -2.0]]))
    codec = DeltaCodec().build(spec)
    targets = codec.encode(boxes, proposals)
    torch.testing.assert_close(targets, torch.tensor([[0.1, -0.05]]))
    torch.testing.assert_close(codec.decode(targets, proposals), boxes)


def test_whitening_takes_out_a_correlation():
    shifts = drawn_offsets(400, 2)[:, :2]
    shifts[:, 1] = shifts[:, 0] + 0.1 * shifts[:, 1]
    anchors = made_up_anchors(400)
    gt_boxes = shift_boxes(anchors, shifts * GEOMETRY.px(anchors))
    codec = built(WhitenedCodec(eps=0.0), 2)
    codec.fit(gt_boxes, anchors)
    targets = codec.encode(gt_boxes, anchors)
    torch.testing.assert_close(targets.T.cov(), torch.eye(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(codec.decode(targets, anchors), gt_boxes.float())
