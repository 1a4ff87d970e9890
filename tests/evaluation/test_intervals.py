"""Intervals beside SciPy's, slow ones and the theory: bootstraps over clusters and runs, t."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_bbox.evaluation.intervals import (
    bootstrap_interval,
    crossed_bootstrap,
    t_interval,
    t_quantile,
)
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


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 12, 59, 300])
@pytest.mark.parametrize("probability", [0.6, 0.975, 0.9995])
def test_t_quantile_is_scipys(dof, probability):
    assert t_quantile(probability, dof) == pytest.approx(stats.t.ppf(probability, dof), rel=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8))
def test_t_interval_is_scipys_and_one_run_has_none(values):
    mean = t_interval(values)
    assert mean.value == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) == 1:
        assert np.isnan([mean.low, mean.high]).all()
    elif stats.sem(values) > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (mean.low, mean.high) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_bootstrap_over_runs_and_pictures_is_the_plain_loops():
    generator = np.random.default_rng(0)
    pictures = np.repeat(np.arange(15), generator.integers(1, 9, 15))
    shared = generator.normal(0, 0.5, 15)[pictures]
    runs = [0.3 * seed + shared + generator.normal(0, 1, len(pictures)) for seed in range(4)]
    factor = math.sqrt(4 / 3) * stats.t.ppf(0.975, 3) / stats.norm.ppf(0.975)
    centre = np.mean([run.mean() for run in runs])
    widened = [run + (factor - 1) * (run.mean() - centre) for run in runs]
    means = []
    for _ in range(3000):
        drawn = generator.integers(0, 15, 15)
        rows = np.concatenate([np.flatnonzero(pictures == picture) for picture in drawn])
        means.append(np.mean([widened[seed][rows].mean() for seed in generator.integers(0, 4, 4)]))
    found = crossed_bootstrap([torch.tensor(run) for run in runs], [torch.tensor(pictures)] * 4)
    width = np.diff(np.quantile(means, [0.025, 0.975]))[0]
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=0.05 * width
    )


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_bootstrap_covers_the_truth_under_effects_of_seeds_and_pictures(seeds):
    generator = torch.Generator().manual_seed(seeds)

    def covers():
        picture = 0.4 * torch.randn(40, generator=generator)[torch.arange(40).repeat_interleave(5)]
        seed = 0.1 * torch.randn(seeds, 1, generator=generator)
        values = 0.2 + seed + picture + 0.4 * torch.randn(seeds, 200, generator=generator)
        pictures = [torch.arange(40).repeat_interleave(5)] * seeds
        mean = crossed_bootstrap([*values], pictures, resamples=400)
        return mean.low <= 0.2 <= mean.high

    assert sum(covers() for _ in range(300)) / 300 >= 0.92


def test_bootstrap_of_one_run_is_the_one_over_pictures():
    values, pictures = clustered_values()
    mean = crossed_bootstrap([values], [pictures])
    low, high = bootstrap_interval(values, pictures, resamples=2000)
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.05 * (high - low))
