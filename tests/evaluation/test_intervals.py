"""Intervals beside SciPy's, matrices and simulations of how often they hold the truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_bbox.evaluation.intervals import (
    clustered_interval,
    crossed_interval,
    t_interval,
    t_quantile,
)
from tests import reference

SIZES = {
    "equal": lambda count, _: np.full(count, 15),
    "1 to 20": lambda count, rng: rng.integers(1, 21, count),
    "geometric": lambda count, rng: rng.geometric(0.1, count),
}


def clustered_values(num_clusters=30, seed=0, sizes="1 to 20"):
    """Values around 2 whose clusters differ as wholes, as boards or patients do."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(num_clusters), SIZES[sizes](num_clusters, rng))
    of_cluster, of_sample = rng.normal(0, 0.5, num_clusters), rng.normal(0, 0.5, len(clusters))
    return torch.from_numpy(2 + of_cluster[clusters] + of_sample), torch.from_numpy(clusters)


def coverage(truth, intervals):
    """Return how often intervals hold the truth."""
    return np.mean([mean.low <= truth <= mean.high for mean in intervals])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [5, 10, 20, 50])
def test_95_percent_intervals_hold_the_truth_under_effects_of_groups(count, sizes):
    samples = [clustered_values(count, seed, sizes) for seed in range(2000)]
    held = coverage(2, [clustered_interval(*sample) for sample in samples])
    # Few groups of very unequal sizes hold somewhat more; 2000 repetitions err by 0.005.
    assert 0.93 <= held <= (0.985 if sizes == "geometric" else 0.975)


@pytest.mark.parametrize("count", [5, 10, 20, 50])
def test_95_percent_intervals_of_errors_hold_the_truth_under_groups_of_their_own_scale(count):
    def errors(seed):
        rng = np.random.default_rng(seed)
        clusters = np.arange(count).repeat(15)
        scale = np.exp(rng.normal(0, 0.3, count))[clusters]
        return torch.from_numpy(np.abs(scale * rng.normal(size=len(clusters)))), clusters

    truth = math.exp(0.3**2 / 2) * math.sqrt(2 / math.pi)
    intervals = [
        clustered_interval(values, torch.from_numpy(clusters), positive=True)
        for values, clusters in map(errors, range(2000))
    ]
    assert 0.93 <= coverage(truth, intervals) <= 0.97
    assert min(mean.low for mean in intervals) > 0


def test_over_samples_as_if_they_were_alone_the_interval_holds_too_little():
    samples = [clustered_values(10, seed, "equal") for seed in range(300)]
    alone = [clustered_interval(values, torch.arange(len(values))) for values, _ in samples]
    assert coverage(2, alone) < 0.6


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_too_few_clusters_have_no_interval(count):
    values, clusters = clustered_values(count)
    mean = clustered_interval(values, clusters)
    assert mean.value == pytest.approx(float(values.mean()))
    assert math.isnan(mean.low)
    assert math.isnan(mean.high)
    assert mean.n == count
    assert math.isnan(clustered_interval(values, clusters, positive=True).low)
    assert math.isnan(crossed_interval([values, values + 1], [clusters] * 2).low)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_with_equal_clusters_the_interval_is_the_t_interval_of_their_means(level):
    values, clusters = clustered_values(8, sizes="equal")
    found = clustered_interval(values, clusters, level=level)
    means = values.view(8, 15).mean(dim=1).numpy()
    expected = stats.t.interval(level, 7, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n == 8


def test_the_variance_is_that_of_bias_reduced_linearisation():
    values, clusters = clustered_values(9, sizes="geometric")
    found = clustered_interval(values, clusters)
    value, variance, freedom = reference.bias_reduced(values.numpy(), clusters.numpy())
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert found.value == pytest.approx(value)
    # The quantile between two whole degrees of freedom is interpolated.
    assert found.high - found.value == pytest.approx(half, rel=0.03)


def test_the_interval_on_the_logarithm_has_the_same_width_at_first_order():
    values, clusters = clustered_values(200)
    plain = clustered_interval(values, clusters)
    log = clustered_interval(values, clusters, positive=True)
    assert math.log(log.high / log.value) == pytest.approx(math.log(log.value / log.low))
    assert log.high - log.low == pytest.approx(plain.high - plain.low, rel=0.01)


def test_repeating_the_samples_of_a_picture_narrows_nothing():
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = clustered_interval(values, torch.arange(40))
    assert clustered_interval(values.repeat(8), torch.arange(40).repeat(8)) == pytest.approx(once)
    taken_alone = clustered_interval(values.repeat(8), torch.arange(320))
    assert taken_alone.high - taken_alone.low < 0.5 * (once.high - once.low)


def test_the_interval_of_a_ratio_is_that_of_sums_over_sums():
    values, clusters = clustered_values()
    weights = torch.rand(len(values), generator=torch.Generator().manual_seed(0)).double() + 0.5
    plain = clustered_interval(values, clusters)
    assert clustered_interval(values, clusters, torch.ones_like(values)) == plain
    halved = clustered_interval(values, clusters, torch.full_like(values, 2.0))
    assert halved[:3] == pytest.approx([bound / 2 for bound in plain[:3]])
    exact = clustered_interval(3 * weights, clusters, weights)
    assert exact[:3] == pytest.approx((3, 3, 3))
    ratio = clustered_interval(values, clusters, weights)
    assert ratio.low < float(values.sum() / weights.sum()) < ratio.high


def test_the_interval_ignores_the_order_and_the_names_of_clusters():
    values, clusters = clustered_values()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    expected = clustered_interval(values, clusters)
    assert clustered_interval(values[order], 7 * clusters[order] - 100) == pytest.approx(expected)


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


@pytest.mark.parametrize("probability", [0.75, 0.975])
@given(dof=st.floats(1, 60))
def test_t_quantile_between_whole_degrees_of_freedom_is_scipys_within_3_percent(probability, dof):
    assert t_quantile(probability, dof) == pytest.approx(stats.t.ppf(probability, dof), rel=0.03)


@pytest.mark.parametrize("of_run", [0.0, 0.1, 0.4])
@pytest.mark.parametrize(("runs", "count"), [(2, 5), (3, 5), (2, 40), (5, 10)])
def test_intervals_over_runs_and_groups_hold_the_truth(runs, count, of_run):
    def interval(seed):
        rng = np.random.default_rng(seed)
        clusters = np.arange(count).repeat(5)
        shared = 0.2 + rng.normal(0, 0.4, count)[clusters]
        own = rng.normal(0, of_run, (runs, 1)) + rng.normal(0, 0.4, (runs, len(clusters)))
        values = [torch.from_numpy(run) for run in shared + own]
        return crossed_interval(values, [torch.from_numpy(clusters)] * runs)

    # Half-intervals that add up as squares hold somewhat more where two parts weigh alike.
    assert coverage(0.2, map(interval, range(500))) >= 0.93


def test_of_one_run_the_interval_is_the_one_over_groups():
    values, clusters = clustered_values()
    assert crossed_interval([values], [clusters])[:3] == clustered_interval(values, clusters)[:3]


def test_runs_on_pictures_of_their_own_have_the_t_interval_of_their_means():
    runs = [clustered_values(20, seed, "equal")[0] for seed in range(4)]
    pictures = [torch.arange(300).div(15).long() + 20 * run for run in range(4)]
    found, expected = crossed_interval(runs, pictures), t_interval([float(r.mean()) for r in runs])
    assert found.n == 4
    # Pictures add what their spread exceeds the part that runs share, which is next to nothing.
    assert found[:3] == pytest.approx(expected[:3], rel=0.01)
