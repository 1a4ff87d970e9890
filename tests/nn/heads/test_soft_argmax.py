"""Soft-argmax: heat maps decode to places, and the divergence is the one of the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from lightning_bbox import (
    AlexNet,
    BadInput,
    CropGeometry,
    DeltaCodec,
    FeatureExtractor,
    L1Loss,
    MaxShiftCodec,
    MeanStdCodec,
    OffsetSpec,
    PixelCodec,
    ShallowConvNet,
    SoftArgmaxHead,
)
from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.store import ImageStore
from tests.parts import boxes_at, draw_offsets, fitted_codec, spec_with

MAP = (3, 6, 9)  # channels, height, width
CONV = {"in_channels": 3, "out_channels": 3, "kernel_size": 3}
PX = [45 / 9, 45 / 6]  # of a cell's width and height


def soft_argmax(num_targets=2, codec=PixelCodec, map_shape=MAP, **arguments):
    head = SoftArgmaxHead(**arguments)
    head.build(math.prod(map_shape), spec_with([5.0, 5.0, 0.2, 0.2][:num_targets]), map_shape)
    head.fit(fitted_codec(codec, num_targets).space())
    return head


def cell_place(row, column):
    return (column + 0.5) * PX[0] - 22.5, (row + 0.5) * PX[1] - 22.5


def gaussian(x, y, sigma=1.0):
    """Return a normal distribution over the map, sigma in cells, cell by cell."""
    mass = np.zeros((6, 9))
    for row, column in np.ndindex(6, 9):
        cell_x, cell_y = cell_place(row, column)
        squares = ((cell_x - x) / PX[0]) ** 2 + ((cell_y - y) / PX[1]) ** 2
        mass[row, column] = math.exp(-squares / (2 * sigma**2))
    return mass / mass.sum()


def draw_logits(num=20, scale=2.0):
    return scale * np.random.default_rng(0).normal(size=(num, 6, 9))


def as_outputs(logits):
    return torch.from_numpy(np.asarray(logits)).float().flatten(1)


def test_the_expectation_equals_a_plain_loop():
    logits = draw_logits()
    expected = []
    for probs in softmax(logits, axis=(1, 2)):
        places = [(cell_place(row, column), probs[row, column]) for row, column in np.ndindex(6, 9)]
        expected.append([sum(place[axis] * p for place, p in places) for axis in (0, 1)])
    decoded = soft_argmax().decode(as_outputs(logits))
    np.testing.assert_allclose(decoded.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_loss_is_that_of_the_point_and_the_divergence_from_a_gaussian(sigma):
    logits, targets = draw_logits(), draw_offsets(20)[:, :2].float()
    head = soft_argmax(js_weight=0.7, sigma=sigma, loss=L1Loss())
    outputs = as_outputs(logits)
    gaussians = np.stack([gaussian(*target, sigma) for target in targets.tolist()])
    probs = softmax(logits, axis=(1, 2))
    divergences = jensenshannon(probs.reshape(20, -1), gaussians.reshape(20, -1), axis=1) ** 2
    expected = (head.decode(outputs) - targets).abs().sum(dim=1).numpy()
    losses = head.loss(outputs, targets).numpy()
    np.testing.assert_allclose(losses, expected + 0.7 * divergences, atol=1e-4)
    found = head.target_probs(targets).view(20, 6, 9)
    np.testing.assert_allclose(found, gaussians, atol=1e-6)


def test_the_divergence_is_0_at_the_gaussian_and_ln_2_where_nothing_is_shared():
    head, targets = soft_argmax(loss=L1Loss()), torch.tensor([[2.0, -3.0]])
    alone = soft_argmax(js_weight=0.0, loss=L1Loss())
    far = torch.full((1, 54), -200.0).index_fill(1, torch.tensor([53]), 200.0)
    there = head.target_probs(targets).log()
    for outputs, divergence in ((there, 0.0), (far, math.log(2))):
        found = head.loss(outputs, targets) - alone.loss(outputs, targets)
        assert found.item() == pytest.approx(divergence, abs=2e-3)


@pytest.mark.parametrize("codec", [DeltaCodec, MeanStdCodec, MaxShiftCodec, PixelCodec])
@pytest.mark.parametrize("cell", [(0, 0), (2, 4), (5, 8), (3, 1)])
def test_a_peaked_heat_map_decodes_to_its_place_whatever_the_codec(codec, cell):
    fitted, head = fitted_codec(codec, 2), soft_argmax(codec=codec)
    logits = np.zeros((1, 6, 9))
    logits[0, *cell] = 50
    boxes, proposals = boxes_at(torch.tensor([cell_place(*cell)], dtype=torch.float64))
    decoded = fitted.decode(head.decode(as_outputs(logits)), proposals)
    torch.testing.assert_close(decoded, boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("square", [False, True])
def test_a_blob_moved_by_some_px_moves_the_prediction_by_as_many(square):
    """The head on the crop itself, as a map of brightness: cut, px, head and codec agree."""
    rows, columns = np.mgrid[:120, :160] + 0.5
    blob = 255 * np.exp(-((columns - 80) ** 2 + (rows - 60) ** 2) / 30)
    store = ImageStore.from_array(np.repeat(blob[None, ..., None], 3, axis=3).astype(np.uint8))
    spec = OffsetSpec(CropGeometry(square=square), 2, 5.0, 0.0)
    gt_boxes = torch.tensor([[62.0, 48.0, 98.0, 72.0]]).expand(5, 4)
    steps = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 4.0], [0.5, -4.5]])
    proposals = shift_boxes(gt_boxes, -steps * spec.geometry.px(gt_boxes))
    crop_boxes = spec.geometry.crop_boxes(proposals)
    crops = cut_crops(store, torch.zeros(5, dtype=torch.long), crop_boxes, 45)
    head = SoftArgmaxHead().build(3 * 45 * 45, spec, (3, 45, 45))
    torch.nn.init.constant_(head.conv.weight, 15.0)
    codec = PixelCodec().build(spec)
    codec.fit(gt_boxes, proposals)
    head.fit(codec.space())
    decoded = head.decode(head(crops.flatten(1)))
    torch.testing.assert_close(decoded, steps, rtol=0, atol=0.03)
    torch.testing.assert_close(codec.decode(decoded, proposals), gt_boxes, rtol=0, atol=0.04)


def test_the_heat_map_is_that_of_the_backbones_map():
    torch.manual_seed(0)
    backbone = ShallowConvNet((4, 8), fc=()).build(45).eval()
    head = SoftArgmaxHead().build(backbone.out_features, spec_with([5.0, 5.0]), backbone.map_shape)
    crops = torch.rand(2, 3, 45, 45).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = head.conv(backbone.convs(crops))
        torch.testing.assert_close(head(backbone(crops)), expected.flatten(1))


def test_stds_leave_out_the_blur_that_the_gaussian_brings():
    head = soft_argmax(map_shape=(1, 45, 45), sigma=2.0)
    shifts = torch.tensor([[0.0, 0.0], [4.3, -3.1]])
    perfect = head.target_probs(shifts).log()
    assert head.stds(perfect).max() < 0.02
    wide = soft_argmax(map_shape=(1, 45, 45), sigma=math.hypot(2.0, 1.5))
    stds = head.stds(wide.target_probs(shifts).log())
    torch.testing.assert_close(stds, torch.full((2, 2), 1.5), rtol=0, atol=0.01)
    sharp = torch.zeros(1, 2025).index_fill(1, torch.tensor([1000]), 100.0)
    assert (head.stds(sharp) == 0).all()


def test_stds_are_nan_where_nothing_tells():
    outputs = torch.zeros(3, 56)
    assert soft_argmax(js_weight=0.0).stds(outputs[:, :54]).isnan().all()
    stds = soft_argmax(num_targets=4).stds(outputs)
    assert stds[:, :2].isfinite().all()
    assert stds[:, 2:].isnan().all()


def test_sizes_come_from_the_whole_map():
    torch.manual_seed(0)
    head, features = soft_argmax(num_targets=4), torch.randn(5, math.prod(MAP))
    torch.nn.init.normal_(head.sizes.weight)
    decoded = head.decode(head(features))
    torch.testing.assert_close(decoded[:, 2:], head.sizes(features))
    losses = head.loss(head(features), decoded.detach())
    assert losses.shape == (5,)


@given(offset=st.floats(-1e30, 1e30), logit=st.floats(-1e4, 1e4))
def test_places_far_beyond_the_map_stay_finite(offset, logit):
    head = soft_argmax(loss=L1Loss())
    outputs = torch.zeros(1, 54)
    outputs[0, 7] = logit
    outputs.requires_grad_()
    losses = head.loss(outputs, torch.full((1, 2), offset))
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_descent_on_logits_finds_the_true_place():
    """Of both terms alone, and together: on a map that doesn't cut the Gaussian, they agree."""
    targets = draw_offsets(20)[:, :2].float()
    for weight in (0.0, 1.0):
        head = soft_argmax(map_shape=(1, 12, 12), js_weight=weight, loss=L1Loss())
        logits = torch.zeros(20, 144, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        for _ in range(300):
            optimizer.zero_grad()
            head.loss(logits, targets).sum().backward()
            optimizer.step()
            schedule.step()
        assert (head.decode(logits) - targets).abs().max() < 0.05


def test_a_map_too_coarse_for_the_offsets_is_refused():
    for cells, px in ((1, "0"), (3, "15")):
        with pytest.raises(BadInput, match=f"{cells} x 6 cells reaches {px} px from the middle"):
            SoftArgmaxHead().build(6 * cells, spec_with([15.1, 15.1]), (1, cells, 6))


@pytest.mark.parametrize("arguments", [{"js_weight": -1.0}, {"sigma": 0.0}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(BadInput, match=r"SoftArgmaxHead js_weight is .* and sigma"):
        SoftArgmaxHead(**arguments)


@pytest.mark.parametrize(
    ("backbone", "map_shape"),
    [
        (ShallowConvNet((4, 8), fc=()), (8, 12, 12)),
        (ShallowConvNet((4, 8), fc=(), global_pool=True), None),
        (ShallowConvNet((4, 8), fc=(16,)), None),
        (AlexNet("pool2"), (192, 1, 1)),
        (AlexNet("conv3", layout="caffe"), (384, 2, 2)),
        (FeatureExtractor("torch.nn.Conv2d", "", CONV), (3, 43, 43)),
        (FeatureExtractor("torch.nn.Flatten", ""), None),
    ],
)
def test_backbones_tell_the_map_that_their_features_are(backbone, map_shape):
    backbone.build(45)
    assert backbone.map_shape == map_shape
    if map_shape is None:
        with pytest.raises(BadInput, match="features are a map; give ShallowConvNet fc:"):
            SoftArgmaxHead().build(8, spec_with([5.0, 5.0]), backbone.map_shape)
    else:
        assert backbone.out_features == math.prod(map_shape)
