import math
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.noise_bound import matched_errors
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import LaplaceJitter, OverlapJitter, UniformJitter
from lightning_bbox.pictures.augment import Augment
from tests import runs
from tests.crops import batch_of

SPLITS = ("train", "val", "test")


scenes = partial(runs.scenes, crop=None, eval_draws=60)


@pytest.mark.parametrize("counts", [(30, 3, 6), (10, 1, 2)])
def test_splits_hold_scenes_of_their_own(counts):
    source = scenes(num_scenes=counts[0]).source
    assert tuple(len(source.splits[name]) for name in SPLITS) == counts
    index = torch.cat([source.splits[name].image_index for name in SPLITS])
    assert index.tolist() == list(range(len(source.store)))
    assert len({source.store.picture(at).tobytes() for at in index.tolist()}) == sum(counts)
    boxes = torch.cat([source.splits[name].boxes for name in SPLITS])
    assert len(boxes.unique(dim=0)) == sum(counts)


def test_the_runs_seed_changes_the_draws_but_no_scene():
    first, other = scenes(seed=0), scenes(seed=1)
    assert torch.equal(first.source.store.pixels, other.source.store.pixels)
    assert not torch.equal(first.samples("train").proposals, other.samples("train").proposals)


@pytest.fixture
def fp64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def all_drawn(data):
    """Return everything random of an epoch, and its crops."""
    samples = data.samples("train", 1)
    return samples._asdict() | {"crops": data.crops_of(samples, augment=True)}


@pytest.mark.parametrize("kind", ["bright", "texture", "template"])
@pytest.mark.parametrize("jitter", [UniformJitter, LaplaceJitter, OverlapJitter])
def test_what_is_drawn_does_not_depend_on_the_default_dtype(kind, jitter, request):
    augment = Augment(flip_x=True, brightness=0.2, noise=0.02)
    made = partial(scenes, kind=kind, jitter=jitter(), num_targets=4, augment=augment)
    usual = made()
    expected, pictures = all_drawn(usual), usual.source.store.pixels
    request.getfixturevalue("fp64_by_default")
    other = made()
    assert torch.equal(other.source.store.pixels, pictures)
    found = all_drawn(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("kind", ["polar", "texture"])
def test_the_kinds_share_their_boxes_but_not_their_pictures(kind):
    first, other = scenes().source, scenes(kind=kind).source
    for name in SPLITS:
        assert torch.equal(first.splits[name].boxes, other.splits[name].boxes)
    assert (first.store.pixels != other.store.pixels).float().mean() > 0.02
    assert other.notes == (f"{kind} scenes, noise 0.05 of the range",)


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("split", SPLITS)
def test_noise_of_the_known_level_is_added_to_every_crop(noise, split):
    data = scenes(noise=noise)
    added = batch_of(data, split).crops - data.cut(data.samples(split))
    assert added.std().item() == pytest.approx(noise, rel=0.02)
    assert added.mean().abs() < 0.02 * noise
    per_crop = added.flatten(1)
    assert per_crop.std(dim=1).sub(noise).abs().max() < 0.1 * noise
    assert per_crop[:20].corrcoef().fill_diagonal_(0).abs().max() < 0.1


def jacobian_of(data, samples):
    """Return how each crop's values change with a shift by a px, by cutting to both sides."""
    step = 0.25 * data.geometry.px(samples.proposals)
    slopes = []
    for axis in (0, 1):
        move = torch.zeros_like(samples.proposals)
        move[:, axis] = move[:, axis + 2] = step[:, axis]
        moved = samples.proposals + move, samples.proposals - move
        cuts = (samples.cut_at(data.geometry, boxes, samples.flips) for boxes in moved)
        ahead, behind = map(data.cut, cuts)
        slopes.append(((ahead - behind) / 0.5).flatten(1).double())
    return torch.stack(slopes, dim=2)


def floor_of(data):
    """Return the Cramer-Rao bound of the test."""
    return data.error_floor(data.samples("test"))["cramer_rao_mae_px"]


@pytest.mark.parametrize("kind", ["bright", "polar", "texture"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_cramer_rao_bound_is_finite_and_positive(kind, split):
    data = scenes(kind=kind)
    bounds = data.error_floor(data.samples(split))
    assert list(bounds) == ["cramer_rao_mae_px", "cramer_rao_rmse_px"]
    assert 0 < bounds["cramer_rao_mae_px"] < 0.5
    least = math.sqrt(math.pi / 2) * bounds["cramer_rao_mae_px"]  # where all draws are alike
    assert least <= bounds["cramer_rao_rmse_px"] < 3 * least


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_cramer_rao_bound_is_that_of_the_crops_derivatives(noise):
    data = scenes(eval_draws=12, noise=noise)
    jacobian = jacobian_of(data, data.samples("test"))
    covariance = noise**2 * torch.linalg.inv(jacobian.mT @ jacobian)
    std = covariance.diagonal(dim1=1, dim2=2).sqrt().mean().item()
    expected = std * math.sqrt(2 / math.pi)  # the mean absolute value of a Gaussian
    assert floor_of(data) == pytest.approx(expected, rel=1e-3)


def test_matching_the_clean_crop_lies_near_the_bound_and_not_below():
    """One Gauss-Newton step from the truth, where the clean crop is known, is efficient."""
    data = scenes(eval_draws=200, jitter=UniformJitter(2.0))
    samples = data.samples("test")
    clean, noisy = data.cut(samples), batch_of(data, "test").crops
    jacobian = jacobian_of(data, samples)
    residual = (noisy - clean).flatten(1)[..., None].double()
    error = torch.linalg.solve(jacobian.mT @ jacobian, jacobian.mT @ residual)
    mae = error.abs().mean().item()
    assert mae == pytest.approx(floor_of(data), rel=0.12)


def test_a_template_is_one_picture_for_all_scenes_of_all_splits():
    source = scenes(kind="template").source
    assert len(source.store) == 1
    assert {name: len(source.splits[name]) for name in SPLITS} == {"train": 30, "val": 3, "test": 6}
    assert torch.cat([source.splits[name].boxes for name in SPLITS]).unique(dim=0).shape == (1, 4)
    assert source.splits["test"].clusters.tolist() == list(range(6))
    assert source.notes == ("template scenes, noise 0.05 of the range",)


def test_a_template_is_cut_to_two_thousandths_of_a_px_wherever_the_crop_lies():
    errors = matched_errors(scenes(kind="template", noise=1e-6, crop=CropGeometry()))
    assert np.abs(errors).max() < 2e-3


def test_the_likeliest_shift_of_a_template_reaches_the_cramer_rao_bound():
    crop = CropGeometry()
    data = scenes(kind="template", num_scenes=20, crop=crop, eval_draws=800)
    errors = matched_errors(data)
    bound = data.error_floor(data.samples("test"))["cramer_rao_rmse_px"]
    # 1,600 errors: their RMSE is known to 1.8 %.
    assert np.sqrt((errors**2).mean()) == pytest.approx(bound, rel=0.05)
    assert np.abs(errors.mean(axis=0)).max() < 4 * bound / math.sqrt(800)
    assert abs(np.corrcoef(errors[:400, 0], errors[400:, 0])[0, 1]) < 0.2
    assert 0.008 < bound < 0.011


def test_bright_objects_lie_where_the_boxes_say_in_the_crops():
    data = scenes(plain=True, noise=1e-3, crop=CropGeometry(size=45))
    for split in SPLITS:
        samples, batch = data.samples(split), batch_of(data, split)
        weights = (batch.crops - batch.crops[:, :, :1, :1]).mean(dim=1).clamp(min=0.05) - 0.05
        grid = (torch.arange(45) + 0.5) / 45
        x, y = (weights.sum(1) * grid).sum(1), (weights.sum(2) * grid).sum(1)
        crop_boxes = data.geometry.crop_boxes(samples.proposals)
        found = torch.stack([x, y], dim=1) / weights.sum((1, 2))[:, None]
        found = crop_boxes[:, :2] + found * (crop_boxes[:, 2:] - crop_boxes[:, :2])
        assert (found - box_centers(batch.gt_boxes)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 9}, "data num_scenes is 9; expected at least 10"),
        ({"noise": 0.0}, r"data noise is 0\.0; expected above 0"),
        ({"kind": "dark"}, "the kind of scene is 'dark'; expected one of bright, polar, texture"),
        ({"kind": "template", "plain": True}, "a template scene can't be plain"),
    ],
)
def test_impossible_scenes_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        scenes(**arguments)
