import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from lightning_bbox import (
    CumulativeLink,
    IndependentLink,
    OneHotLabels,
    SoftmaxLink,
    TreeLink,
)
from lightning_bbox.nn.heads.bins.labels import lay_grid

LINKS = [SoftmaxLink, IndependentLink, CumulativeLink, TreeLink, lambda: TreeLink(3)]
GRID = lay_grid([5.0, 3.3, 0.2], [0.5, 0.5, 0.05], 3.0)
BOUNDS = torch.tensor([5.0, 3.3, 0.2])


def built(link, grid=GRID, bounds=BOUNDS):
    torch.manual_seed(0)
    return link.build(8, grid.inside, grid.prior(bounds))


def some_logits(link, scale=3.0, grid=GRID, bounds=BOUNDS):
    """Return logits as training might leave them."""
    link = built(link, grid, bounds)
    for weight in link.parameters():
        weight.data.add_(torch.randn(weight.shape) * scale / 3)
    return link, link(scale * torch.randn(64, 8)).detach()


@pytest.mark.parametrize("make", LINKS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_probabilities_of_each_row_sum_to_1_and_none_lies_outside(make, scale):
    link, logits = some_logits(make(), scale)
    probs = link.probs(logits)
    assert (probs >= 0).all()
    assert (probs[:, ~GRID.inside] == 0).all()
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(64, 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(link.log_probs(logits).exp(), probs)


@pytest.mark.parametrize("children", [2, 3, 5, 40])
@pytest.mark.parametrize("bins", [2, 3, 8, 9, 21, 27])
def test_leaf_probabilities_of_a_tree_are_products_along_the_path(children, bins):
    inside = torch.ones(1, bins, dtype=torch.bool)
    link = TreeLink(children).build(4, inside, inside / bins)
    logits = 2 * torch.randn(5, 1, link.outputs())
    probs = link.probs(logits)[:, 0].double().numpy()
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-5)
    depth = max(1, math.ceil(math.log(bins, children) - 1e-9))
    for leaf in range(bins):
        expected, start = np.ones(5), 0
        for level in range(depth):
            below = children ** (depth - level - 1)
            node = leaf // (below * children)
            alive = [c for c in range(children) if (node * children + c) * below < bins]
            values = np.exp(logits[:, 0].double().numpy()[:, start + node * children :])
            expected *= values[:, (leaf // below) % children] / values[:, alive].sum(axis=1)
            start += children ** (level + 1)
        np.testing.assert_allclose(probs[:, leaf], expected, rtol=1e-4, atol=1e-7)


def test_the_expectation_of_ordinal_bins_is_the_sum_of_the_sigmoids():
    """c_0 + w sum sigmoid(z_j), with c_0 the first bin's centre."""
    link, logits = some_logits(CumulativeLink())
    means = (link.probs(logits) * GRID.centers).sum(dim=-1)
    for row in range(3):
        centers = GRID.centers[row][GRID.inside[row]].double().numpy()
        first = int(GRID.inside[row].int().argmax())
        z = logits[:, row, first : first + len(centers) - 1].double().numpy()
        expected = centers[0] + (centers[1] - centers[0]) * expit(z).sum(axis=-1)
        np.testing.assert_allclose(means[:, row], expected, rtol=1e-4, atol=1e-4)


def test_thresholds_descend_whatever_the_weights():
    link = built(CumulativeLink())
    for scale in (1.0, 10.0):
        link.bias.data.copy_(scale * torch.randn(link.bias.shape))
        assert (link.thresholds().diff(dim=-1) <= 0).all()
        probs = link.probs(link(torch.randn(16, 8)))
        assert (probs >= 0).all()
        assert probs.isfinite().all()


def test_ordinal_bins_begin_at_the_prior():
    link = built(CumulativeLink())
    probs = link.probs(link(torch.zeros(1, 8)))[0]
    torch.testing.assert_close(probs, GRID.prior(BOUNDS), rtol=1e-2, atol=1e-4)


def test_independent_probabilities_are_sigmoids_over_their_sum():
    link, logits = some_logits(IndependentLink())
    sigmoids = expit(logits.double().numpy()) * GRID.inside.numpy()
    expected = sigmoids / sigmoids.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(link.probs(logits), expected, rtol=1e-4, atol=1e-7)


def test_what_an_ordinal_link_is_asked_is_whether_the_offset_lies_beyond():
    grid = lay_grid([5.0], [0.5], 0)
    link = built(CumulativeLink(), grid, torch.tensor([5.0]))
    offsets = torch.linspace(-5, 5, 57)[:, None] + 0.003
    asked = link.attributes(OneHotLabels()(offsets, grid))[:, 0]
    thresholds = np.arange(-4.75, 5, 0.5)
    np.testing.assert_array_equal(asked, offsets.numpy() > thresholds)
