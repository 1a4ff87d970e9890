"""How what a model says errs: what was planted is found, and taken off again."""

import json
import math

import numpy as np
import pytest
import torch

from lightning_bbox import BadInput
from lightning_bbox.geometry.boxes import boxes_around
from lightning_bbox.geometry.codecs import decode_deltas, encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.reliability import (
    NORMAL,
    Reliability,
    common_errors,
    fit_reliability,
)
from lightning_bbox.geometry.weighing import learn_law, placed, said_of

PLANTED = Reliability(
    bias=(0.01, -0.02, 0.03, 0.0),
    slope=(0.9, 0.95, 0.8, 1.0),
    factors=(0.7, 1.0, 1.5, 1.2),
    tails=((0.85, 1.0), (0.15, 3.0)),
    common=(0.3, 0.2, 0.0, 0.1),
)


def drawn(count=8000, seed=0):
    """Return what a model says that errs as planted, its deviations, and the truth."""
    random = np.random.default_rng(seed)
    widths = random.choice([0.0, 0.02, 0.1, 0.3], (count, 1))
    truth = widths * random.uniform(-1, 1, (count, 4))
    stds = 0.04 * np.exp(0.4 * random.normal(size=(count, 4)))
    shares, factors = zip(*PLANTED.tails, strict=True)
    wide = random.choice(factors, (count, 1), p=shares)
    errors = stds * np.array(PLANTED.factors) * wide * random.normal(size=(count, 4))
    said = np.array(PLANTED.bias) + np.array(PLANTED.slope) * truth + errors
    return tuple(torch.from_numpy(each).float() for each in (said, stds, truth))


def test_planted_errors_are_found():
    found = fit_reliability(*drawn())
    assert found.bias == pytest.approx(PLANTED.bias, abs=0.003)
    assert found.slope == pytest.approx(PLANTED.slope, abs=0.02)
    assert found.factors == pytest.approx(PLANTED.factors, rel=0.05)
    assert found.tails[1] == pytest.approx(PLANTED.tails[1], rel=0.15)
    assert sum(share for share, _ in found.tails) == pytest.approx(1)


def test_corrected_offsets_are_unbiased_and_err_as_told():
    said, stds, truth = drawn(seed=1)
    offsets, told = fit_reliability(*drawn()).corrected(said, stds)
    ratios = (offsets - truth) / told
    for group in (truth.abs().amax(dim=1) < 0.02, truth.abs().amax(dim=1) > 0.1):
        torch.testing.assert_close(
            ratios[group].median(dim=0).values, torch.zeros(4), atol=0.1, rtol=0
        )
        usual = ratios[group].abs().median(dim=0).values / 0.6745
        torch.testing.assert_close(usual, torch.full((4,), 1.1), atol=0.1, rtol=0)


@pytest.mark.parametrize("value", [1e6, math.nan, math.inf])
def test_a_few_wild_draws_change_little(value):
    said, stds, truth = drawn()
    said[:40] = value
    found = fit_reliability(said, stds, truth)
    assert found.bias == pytest.approx(PLANTED.bias, abs=0.003)
    assert found.factors == pytest.approx(PLANTED.factors, rel=0.05)


def test_a_model_that_says_nothing_of_the_truth_has_no_great_weight():
    said, stds, truth = drawn()
    found = fit_reliability(said - 0.9 * truth, stds, truth)
    _, told = found.corrected(said, stds)
    assert (told.mean(dim=0) > 5 * torch.tensor(PLANTED.factors) * stds.mean(dim=0)).any()


def test_too_few_draws_or_none_told_measure_nothing():
    said, stds, truth = drawn(49)
    assert fit_reliability(said, stds, truth) is None
    said, stds, truth = drawn(60)
    assert fit_reliability(said, math.nan * stds, truth) is None
    assert fit_reliability(said, 0 * stds, truth) is None


def test_it_travels_as_plain_numbers():
    plain = json.loads(json.dumps(PLANTED.plain()))
    assert Reliability.from_plain(plain) == PLANTED
    del plain["common"]  # as checkpoints were before
    assert Reliability.from_plain(plain).common == ()


STD = 0.05


def off_alike(truth):
    """Return the error that a made-up model makes of all boxes that are off by as much."""
    waves = np.sin(5 * truth + np.arange(truth.shape[1])) * np.cos(3 * truth[:, ::-1])
    return 0.8 * STD * waves


def said_by(random, truth):
    """Return what it says of boxes: each has an error of its own beside the common one."""
    said = truth + off_alike(truth) + STD * random.normal(size=truth.shape)
    return torch.from_numpy(said).float()


@pytest.mark.parametrize("num_targets", [2, 4])
def test_what_errors_have_in_common_is_found(num_targets):
    random = np.random.default_rng(3)
    truth = random.uniform(-0.5, 0.5, (4000, num_targets))
    said, told = said_by(random, truth), torch.full(truth.shape, STD)
    planted = np.sqrt(np.square(off_alike(truth) / STD).mean(axis=0))
    exact = torch.from_numpy(truth).float()
    found = common_errors(said, told, exact)
    assert found == pytest.approx(planted, abs=0.07)  # a cubic isn't all of it
    said[:40] = math.nan
    assert common_errors(said, told, exact) == pytest.approx(found, abs=0.02)
    alone = exact + STD * torch.from_numpy(random.normal(size=truth.shape)).float()
    assert max(common_errors(alone, told, exact)) < 0.08
    assert max(common_errors(alone, told, 0 * exact + alone)) < 1e-6
    assert common_errors(said[:49], told[:49], exact[:49]) == ()


def test_intervals_hold_where_all_boxes_of_a_set_are_off_alike():
    random = np.random.default_rng(4)
    wide = random.uniform(-0.5, 0.5, (2000, 4))
    exact, told = torch.from_numpy(wide).float(), torch.full(wide.shape, STD)
    said = said_by(random, wide)
    plain = fit_reliability(said, told, exact)
    whole = Reliability(
        *(plain.bias, plain.slope, plain.factors, plain.tails),
        common_errors(*plain.corrected(said, told), exact),
    )
    geometry, count = CropGeometry(), 100
    limits = torch.full((count, 2), 1e4)
    held = {plain: [], whole: []}
    for _ in range(12):
        centers = torch.from_numpy(random.uniform(1000, 9000, (count, 2))).float()
        rough = boxes_around(centers, torch.full((count, 2), 100.0))
        truth = np.tile(random.uniform(-0.4, 0.4, (1, 4)), (count, 1))
        boxes = decode_deltas(said_by(random, truth), rough)
        stds = torch.full((count, 4), STD)
        stds[:, :2] *= 100 / geometry.px(rough)
        heard = said_of(boxes, stds, rough, geometry, plain)
        moved = learn_law(heard, rough, limits, torch.arange(count)).move(*heard)
        for model, found in held.items():
            boxes, stds, *_ = placed(moved, heard, rough, geometry, model)
            errors = encode_deltas(boxes, rough).numpy() - truth
            stds[:, :2] *= geometry.px(rough) / 100
            found.append((np.abs(errors) < 1.645 * stds.numpy()).mean())
    assert np.mean(held[plain]) < 0.75
    assert 0.85 < np.mean(held[whole]) < 0.96


@pytest.mark.parametrize(
    "change",
    [
        {"slope": (0.9, 0.0)},
        {"factors": (1.0, math.nan)},
        {"bias": (0.0, 0.0, 0.0)},
        {"tails": ((0.5, 1.0),)},
        {"tails": ((1.5, 1.0), (-0.5, 2.0))},
        {"common": (0.1,)},
        {"common": (0.1, -0.1)},
        {"common": (0.1, math.inf)},
    ],
)
def test_numbers_of_no_model_are_refused(change):
    good = {"bias": (0.0, 0.0), "slope": (1.0, 1.0), "factors": (1.0, 1.0), "tails": NORMAL}
    with pytest.raises(BadInput, match="can't be a model's"):
        Reliability(**good | change)
