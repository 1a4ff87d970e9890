"""The bootstrap over clusters, beside a slow one and the theory."""

import math

import numpy as np
import pytest
import torch

from lightning_bbox.evaluation.intervals import bootstrap_interval
from tests import reference


def clustered_values(num_clusters=30):
    """Clusters of one to eight samples that resemble each other."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, num_clusters)
    clusters = np.repeat(np.arange(num_clusters), sizes)
    values = rng.normal(2.0, 1.0, num_clusters)[clusters] + rng.normal(0, 0.3, len(clusters))
    return torch.from_numpy(values), torch.from_numpy(clusters)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_equals_a_slow_cluster_bootstrap(level):
    values, clusters = clustered_values()
    found = bootstrap_interval(values, clusters, resamples=20_000, level=level)
    rng = np.random.default_rng(1)
    expected = reference.cluster_bootstrap(values.numpy(), clusters.numpy(), 4000, level, rng)
    # A quantile of 4000 draws has a standard error of 0.04 (0.95) or 0.02 (0.8) of theirs.
    spread = (expected[1] - expected[0]) / 4
    assert found == pytest.approx(expected, abs=0.2 * spread)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_single_samples_is_the_normal_theorys(level):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(values, torch.arange(500), resamples=20_000, level=level)
    error = float(values.std()) / math.sqrt(500)
    z = float(torch.distributions.Normal(0, 1).icdf(torch.tensor((1 + level) / 2)))
    assert low == pytest.approx(float(values.mean()) - z * error, abs=0.1 * error)
    assert high == pytest.approx(float(values.mean()) + z * error, abs=0.1 * error)


def test_repeating_the_samples_of_a_picture_narrows_nothing():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = bootstrap_interval(values, torch.arange(40))
    repeated = bootstrap_interval(values.repeat(8), torch.arange(40).repeat(8))
    assert repeated == pytest.approx(once)
    low, high = bootstrap_interval(values.repeat(8), torch.arange(320))
    assert high - low < 0.5 * (once[1] - once[0])


def test_the_interval_of_a_ratio_is_that_of_sums_over_sums():
    values, clusters = clustered_values()
    weights = torch.rand(len(values), generator=torch.Generator().manual_seed(0)).double() + 0.5
    plain = bootstrap_interval(values, clusters)
    assert bootstrap_interval(values, clusters, weights=torch.ones_like(values)) == plain
    halved = bootstrap_interval(values, clusters, weights=torch.full_like(values, 2.0))
    assert halved == pytest.approx([bound / 2 for bound in plain])
    low, high = bootstrap_interval(3 * weights, clusters, weights=weights)
    assert (low, high) == pytest.approx((3, 3))
    low, high = bootstrap_interval(values, clusters, weights=weights)
    assert low < float(values.sum() / weights.sum()) < high


def test_the_interval_ignores_the_order_and_the_names_of_clusters():
    values, clusters = clustered_values()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    expected = bootstrap_interval(values, clusters)
    assert bootstrap_interval(values[order], 7 * clusters[order] - 100) == pytest.approx(expected)


def test_the_interval_is_the_same_every_time_and_widens_with_its_level():
    values, clusters = clustered_values()
    narrow, wide = (bootstrap_interval(values, clusters, level=level) for level in (0.5, 0.95))
    assert bootstrap_interval(values, clusters, level=0.95) == wide
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_single_cluster_has_an_interval_of_no_width():
    values = torch.arange(4.0)
    assert bootstrap_interval(values, torch.zeros(4, dtype=torch.int64)) == (1.5, 1.5)
