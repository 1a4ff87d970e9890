"""How what a model says errs: what was planted is found, and taken off again."""

import json
import math

import numpy as np
import pytest
import torch

from lightning_bbox import BadInput
from lightning_bbox.geometry.reliability import NORMAL, Reliability, fit_reliability

PLANTED = Reliability(
    bias=(0.01, -0.02, 0.03, 0.0),
    slope=(0.9, 0.95, 0.8, 1.0),
    factors=(0.7, 1.0, 1.5, 1.2),
    tails=((0.85, 1.0), (0.15, 3.0)),
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
    assert Reliability.from_plain(json.loads(json.dumps(PLANTED.plain()))) == PLANTED


@pytest.mark.parametrize(
    "change",
    [
        {"slope": (0.9, 0.0)},
        {"factors": (1.0, math.nan)},
        {"bias": (0.0, 0.0, 0.0)},
        {"tails": ((0.5, 1.0),)},
        {"tails": ((1.5, 1.0), (-0.5, 2.0))},
    ],
)
def test_numbers_of_no_model_are_refused(change):
    good = {"bias": (0.0, 0.0), "slope": (1.0, 1.0), "factors": (1.0, 1.0), "tails": NORMAL}
    with pytest.raises(BadInput, match="can't be a model's"):
        Reliability(**good | change)
