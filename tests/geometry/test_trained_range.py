"""Boxes beyond the trained range are told from those inside, hardly any of which are marked."""

import json
import math

import numpy as np
import pytest
import torch

from lightning_bbox import BadInput
from lightning_bbox.geometry.trained_range import TrainedRange, fit_range, traits_of

BOUNDS = (10.0, 10.0, 0.5, 0.5)


def drawn(count=4000, seed=0, reach=2.0):
    """Return the traits of what is said by a model that is lost beyond, and which boxes are not."""
    random = np.random.default_rng(seed)
    ends = np.array(BOUNDS)
    truth = reach * ends * random.uniform(-1, 1, (count, 4))
    lost = (np.abs(truth) > ends).any(axis=1, keepdims=True)
    stds = 0.03 * ends * np.exp(0.4 * random.normal(size=(count, 4)) + 2 * lost)
    said = np.where(lost, 0.7 * np.clip(truth, -ends, ends), truth)
    said = said + stds * random.normal(size=(count, 4))
    traits = traits_of(torch.from_numpy(said), torch.from_numpy(stds), BOUNDS)
    return traits, torch.from_numpy(~lost[:, 0])


def test_traits_are_of_the_largest_coordinate():
    random = np.random.default_rng(0)
    said, stds = random.normal(size=(50, 4)), np.exp(random.normal(size=(50, 4)))
    found = traits_of(torch.from_numpy(said), torch.from_numpy(stds), BOUNDS)
    for row, (offsets, deviations) in enumerate(zip(said, stds, strict=True)):
        largest = max(abs(part) / end for part, end in zip(offsets, BOUNDS, strict=True))
        widest = max(part / end for part, end in zip(deviations, BOUNDS, strict=True))
        assert found[row].tolist() == pytest.approx([largest, math.log(widest)])


def test_coordinates_that_never_were_off_do_not_count():
    said, stds = torch.tensor([[5.0, 2.0, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    found = traits_of(said, stds, (10.0, 10.0, 0.0, 0.0))
    assert found.tolist() == [pytest.approx([0.5, math.log(0.1)])]


def test_most_beyond_are_marked_and_hardly_any_inside():
    traits, inside = drawn()
    trained = fit_range(traits, inside, inside)
    for seed in (1, 2, 3):
        traits, inside = drawn(20_000, seed)
        marked = trained.is_left(traits).float()
        assert float(marked[inside].mean()) < 0.03
        assert float(marked[~inside].mean()) > 0.9


def test_of_usual_boxes_as_many_are_marked_as_the_rank_of_the_limit_says():
    shares, expected = [], []
    for seed in range(60):
        (new, _), (traits, inside) = drawn(8000, 1000 + seed, reach=1.0), drawn(800, seed, 1.2)
        shares.append(float(fit_range(traits, inside, inside).is_left(new).float().mean()))
        count = int(inside.sum())
        expected.append(1 - math.ceil(0.99 * (count + 1)) / (count + 1))
    error = np.std(shares) / math.sqrt(len(shares))
    assert error < 0.002
    assert np.mean(shares) == pytest.approx(np.mean(expected), abs=3 * error)
    assert 0.005 < np.mean(expected) <= 0.01


def test_weights_are_those_of_the_linear_discriminant():
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    traits, inside = drawn()
    trained = fit_range(traits, inside, inside)
    # Both groups' scatters count alike here, so as many of each are given to the oracle.
    count = int(min(inside.sum(), (~inside).sum()))
    rows = torch.cat([group.nonzero()[:count, 0] for group in (inside, ~inside)])
    oracle = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr")
    direction = oracle.fit(traits[rows].numpy(), ~inside[rows].numpy()).coef_[0]
    found = np.array(trained.weights)
    cosine = found @ direction / np.linalg.norm(found) / np.linalg.norm(direction)
    assert cosine > 0.99


def test_what_is_not_told_is_not_marked():
    traits, inside = drawn()
    trained = fit_range(traits, inside, inside)
    assert not bool(trained.is_left(traits * math.nan).any())
    assert bool(trained.is_left(traits + torch.tensor([0.0, 20.0])).all())
    assert not bool(trained.is_left(torch.tensor([[0.5, -math.inf]])).any())


def test_too_few_boxes_tell_nothing():
    traits, inside = drawn()
    none = torch.zeros_like(inside)
    assert fit_range(traits, ~none, inside) is None
    assert fit_range(traits, inside, none) is None
    assert fit_range(traits * math.nan, inside, inside) is None


def test_it_travels_as_plain_numbers():
    trained = TrainedRange((1.0, 2.0), -0.5)
    assert TrainedRange.from_plain(json.loads(json.dumps(trained.plain()))) == trained


@pytest.mark.parametrize(("weights", "limit"), [((math.nan, 1.0), 0.0), ((1.0, 1.0), math.inf)])
def test_numbers_that_can_not_be_are_refused(weights, limit):
    with pytest.raises(BadInput, match="can't be a model's"):
        TrainedRange(weights, limit)
