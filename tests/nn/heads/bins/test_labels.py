import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox import GaussianLabels, OneHotLabels, SmoothedLabels, TwoHotLabels
from lightning_bbox.nn.heads.bins.labels import lay_grid

LABELS = [OneHotLabels(), SmoothedLabels(0.2), GaussianLabels(), TwoHotLabels()]
every_label = pytest.mark.parametrize("labels", LABELS, ids=repr)


def grid_for(labels, grids=1):
    return lay_grid([5.0, 5.0, 0.2, 0.2], [0.5, 0.5, 0.05, 0.05], labels.padding, grids)


@every_label
@pytest.mark.parametrize("grids", [1, 3])
@given(place=st.floats(-2, 2))
def test_labels_are_distributions_within_each_row(labels, grids, place):
    grid = grid_for(labels, grids)
    offsets = place * torch.tensor([[5.0, 5.0, 0.2, 0.2]]).repeat(1, grids)
    probs = labels(offsets, grid)
    assert (probs >= 0).all()
    assert (probs[:, ~grid.inside] == 0).all()
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones_like(offsets))


@pytest.mark.parametrize("labels", [GaussianLabels(), GaussianLabels(2.0), TwoHotLabels()])
@given(place=st.floats(-1, 1))
def test_the_expectation_of_soft_labels_is_the_offset(labels, place):
    grid = grid_for(labels)
    bounds = torch.tensor([5.0, 5.0, 0.2, 0.2])
    means = (labels(place * bounds[None], grid) * grid.centers).sum(dim=-1)
    assert ((means - place * bounds).abs() <= torch.tensor([1e-3, 1e-3, 1e-4, 1e-4])).all()


def test_two_hot_weights_are_those_of_a_plain_loop():
    grid = grid_for(TwoHotLabels())
    offsets = torch.linspace(-5, 5, 173)
    probs = TwoHotLabels()(offsets[:, None].repeat(1, 4), grid)[:, 0]
    for offset, row in zip(offsets.double().numpy(), probs.numpy(), strict=True):
        place = (offset + 5) / 0.5
        left = min(math.floor(place), 19)
        expected = np.zeros(21)
        expected[left], expected[left + 1] = left + 1 - place, place - left
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_smoothing_gives_eps_to_the_other_bins_alike(eps):
    labels = SmoothedLabels(eps)
    grid = grid_for(labels)
    probs = labels(torch.tensor([[0.1, -4.9, 0.01, 0.2]]), grid)[0]
    for row, (true, bins) in enumerate([(10, 21), (0, 21), (10, 9), (14, 9)]):
        inside = grid.inside[row]
        expected = torch.full((21,), eps / (bins - 1)) * inside
        expected[true] = 1 - eps
        torch.testing.assert_close(probs[row], expected)


@pytest.mark.parametrize("labels", LABELS[:1] + LABELS[2:], ids=repr)
def test_labels_add_the_variance_they_say(labels):
    """Offsets of a smooth law over many bins: the votes' variance is theirs and the blur."""
    grid = lay_grid([20.0], [0.5], labels.padding)
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    offsets = torch.tensor(scipy.stats.norm.ppf(quantiles, scale=2)).float()[:, None]
    votes = labels(offsets, grid).mean(dim=0)[0].double().numpy()
    centers = grid.centers[0].double().numpy()
    variance = (votes * centers**2).sum() - (votes * centers).sum() ** 2
    added = (variance - offsets.double().var(correction=0).item()) / 0.5**2
    assert added == pytest.approx(labels.blur(grid).item(), abs=2e-2)


def test_smoothing_adds_the_variance_it_says_over_the_whole_range():
    labels = SmoothedLabels(0.3)
    grid = lay_grid([5.0], [0.5], 0)
    centers = grid.centers[0]
    votes = labels(centers[:, None], grid)[:, 0]
    about = (votes * (centers - (votes * centers).sum(dim=-1, keepdim=True)).square()).sum(dim=-1)
    assert labels.blur(grid).item() == pytest.approx((about / 0.25).mean().item() + 1 / 12, 1e-4)


def test_shifted_grids_alternate_and_stay_symmetric():
    grid = lay_grid([2.0, 0.2], [1.0, 0.1], padding=0, grids=4)
    together = grid.centers[::2].T.flatten()
    torch.testing.assert_close(together.diff(), torch.full((len(together) - 1,), 0.25))
    torch.testing.assert_close(together, -together.flip(0))
    for row, (width, bound) in enumerate([(1.0, 2.0), (0.1, 0.2)] * 4):
        centers = grid.centers[row][grid.inside[row]]
        assert centers[0] <= -bound
        assert centers[-1] >= bound
        assert grid.widths[row] == width


@given(offset=st.floats(-20, 20), grids=st.integers(1, 3))
def test_the_true_bin_is_the_nearest_of_its_row(offset, grids):
    grid = lay_grid([5.0, 0.2], [0.5, 0.05], 1.5, grids)
    offsets = torch.tensor([[offset, offset / 10]]).repeat(1, grids)
    for row, index in enumerate(grid.true_bins(offsets)[0].tolist()):
        distances = (grid.centers[row] - offsets[0, row]).abs().masked_fill(~grid.inside[row], 1e9)
        assert distances[index] <= distances.min() + 1e-5


def test_the_prior_is_uniform_within_the_bounds_and_nowhere_zero():
    grid = lay_grid([5.0, 0.2], [0.5, 0.05], 3.0)
    prior = grid.prior(torch.tensor([5.0, 0.2]))
    torch.testing.assert_close(prior.sum(dim=-1), torch.ones(2))
    assert torch.equal(prior > 0, grid.inside)
    assert prior[0, 13].item() == pytest.approx(0.99 / 20 + 0.01 / 27)
    assert prior[0, 0].item() == pytest.approx(0.01 / 27)
