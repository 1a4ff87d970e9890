"""Ridge regression against scikit-learn and dense NumPy, whichever way the samples come in."""

import math
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from lightning_bbox import BadInput
from lightning_bbox.solvers.least_squares import (
    CHUNK,
    LEAF,
    Rows,
    add_lower_product,
    first_invalid,
    score_lambdas,
)
from lightning_bbox.solvers.sums import RidgeRows, RidgeSums, gather, ridge
from tests import runs
from tests.reference import dense_gcv

LAMBDAS = (1e-3, 1.0, 1e3)
shapes = pytest.mark.parametrize(("count", "features"), [(300, 40), (40, 300), (80, 80)])


def problem(count, features, seed=0, noise=0.5):
    """Return correlated features off centre, and four targets that depend on them."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(features, features)) / features**0.5
    x = rng.normal(size=(count, features)) @ mixing * rng.uniform(0.1, 4, features) + 3
    y = x @ rng.normal(size=(features, 4)) / features**0.5
    y = y + noise * rng.normal(size=y.shape) - 2
    return x, y


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@shapes
@pytest.mark.parametrize("lam", LAMBDAS)
def test_weights_equal_scikit_learn(count, features, lam):
    x, y = problem(count, features)
    expected = Ridge(alpha=lam, solver="svd").fit(x, y)
    found = ridge(*tensors(x, y), lam)
    assert relative(found.weight, expected.coef_) < 1e-8
    assert relative(found.bias, expected.intercept_) < 1e-8


@shapes
@pytest.mark.parametrize("lam", LAMBDAS)
def test_standardized_features_equal_scikit_learn(count, features, lam):
    x, y = problem(count, features)
    scaler = StandardScaler().fit(x)
    scaler.scale_ = np.maximum(scaler.scale_, 0.1 * np.sqrt((scaler.scale_**2).mean()))
    expected = Ridge(alpha=lam, solver="svd").fit(scaler.transform(x), y)
    found = ridge(*tensors(x, y), lam, "standard")
    assert relative(found.weight, expected.coef_ / scaler.scale_) < 1e-8
    assert (
        relative(
            x @ found.weight.T.numpy() + found.bias.numpy(), expected.predict(scaler.transform(x))
        )
        < 1e-8
    )


@shapes
def test_norm20_scales_the_mean_norm_to_20(count, features):
    x, y = problem(count, features)
    factor = 20 / np.linalg.norm(x, axis=1).mean()
    expected = Ridge(alpha=1000, solver="svd").fit(x * factor, y)
    found = ridge(*tensors(x, y), 1000, "norm20")
    assert relative(found.weight, expected.coef_ * factor) < 1e-8


@shapes
@pytest.mark.parametrize("scaling", ["standard", "norm20", "none"])
def test_every_lambda_of_a_spectrum_equals_its_own_solution(count, features, scaling):
    x, y = tensors(*problem(count, features))
    spectrum = gather(x, y).spectrum(scaling)
    for lam in LAMBDAS:
        alone = gather(x, y).solve(lam, scaling)
        assert relative(spectrum.solution(lam).weight, alone.weight.numpy()) < 1e-8


@pytest.mark.parametrize("scaling", ["standard", "norm20", "none"])
@pytest.mark.parametrize("lam", [0.0, *LAMBDAS])
@shapes
def test_dual_equals_primal(count, features, lam, scaling):
    x, y = tensors(*problem(count, features))
    sums = RidgeSums(features, 4)
    sums.update(x, y)
    primal, dual = sums.compute().solve(lam, scaling), Rows(x, y).solve(lam, scaling)
    limit = 1e-6 if lam == 0 else 1e-8
    assert relative(dual.weight, primal.weight.numpy()) < limit


@shapes
def test_lambda_zero_is_the_solution_of_minimum_norm(count, features):
    x, y = problem(count, features)
    centred = x - x.mean(axis=0)
    expected = np.linalg.lstsq(centred, y - y.mean(axis=0), rcond=1e-7)[0].T
    assert relative(ridge(*tensors(x, y), 0.0).weight, expected) < 1e-6


def test_features_that_depend_on_each_other_share_their_weight():
    x, y = problem(200, 5)
    twice = np.concatenate([x, x], axis=1)
    alone, both = (ridge(*tensors(one, y), 0.0).weight for one in (x, twice))
    assert relative(both[:, :5], alone.numpy() / 2) < 1e-6
    assert relative(both[:, 5:], alone.numpy() / 2) < 1e-6


@pytest.mark.parametrize("scaling", ["standard", "norm20", "none"])
@shapes
def test_constant_features_get_no_weight(count, features, scaling):
    x, y = problem(count, features)
    x[:, 3] = 7.1
    found = ridge(*tensors(x, y), 1.0, scaling)
    assert found.weight.isfinite().all()
    assert found.weight[:, 3].abs().max() < 1e-9
    rest = np.delete(x, 3, axis=1)
    if scaling != "norm20":
        others = ridge(*tensors(rest, y), 1.0, scaling)
        assert relative(np.delete(found.weight.numpy(), 3, axis=1), others.weight.numpy()) < 1e-8


def test_features_far_off_centre_lose_few_digits():
    x, y = problem(300, 40)
    near, far = (ridge(*tensors(x + offset, y), 1.0, "standard") for offset in (0, 100))
    assert relative(far.weight, near.weight.numpy()) < 1e-8


@pytest.mark.parametrize("batch", [1, 7, 128, 300, 5000])
def test_any_batch_size_gives_the_same_solution(batch):
    x, y = tensors(*problem(300, 40))
    sums = RidgeSums(40, 4)
    for start in range(0, 300, batch):
        sums.update(x[start : start + batch], y[start : start + batch])
    whole = ridge(x, y, 1.0, "standard")
    assert relative(sums.compute().solve(1.0, "standard").weight, whole.weight.numpy()) < 1e-11


def test_rows_in_batches_equal_rows_at_once():
    x, y = tensors(*problem(40, 300))
    rows = RidgeRows()
    for start in range(0, 40, 7):
        rows.update(x[start : start + 7], y[start : start + 7])
    assert torch.equal(rows.compute().solve(1.0, "none").weight, ridge(x, y, 1.0).weight)


def test_float32_features_are_summed_in_float64():
    x, y = (tensor.float() for tensor in tensors(*problem(5000, 20)))
    assert (
        relative(ridge(x, y, 1.0).weight, ridge(x.double(), y.double(), 1.0).weight.numpy()) < 1e-12
    )


@shapes
@pytest.mark.parametrize("scaling", ["standard", "none"])
def test_gcv_equals_a_dense_computation(count, features, scaling):
    x, y = problem(count, features)
    deviations = np.maximum(x.std(axis=0), 0.1 * np.sqrt(x.var(axis=0).mean()))
    scaled = x / deviations if scaling == "standard" else x
    lambdas = (1.0, 30.0, 1e3)  # below, the dense computation itself lacks the digits
    expected = [dense_gcv(scaled, y, lam) for lam in lambdas]
    found = gather(*tensors(x, y)).spectrum(scaling).gcv(torch.tensor(lambdas).double())
    assert relative(found, np.array(expected)) < 1e-8


def test_gcv_is_infinite_where_nothing_is_left_over():
    x, y = tensors(*problem(20, 50))
    assert gather(x, y).spectrum("none").gcv(torch.zeros(1).double()).isinf().all()


@shapes
@pytest.mark.parametrize("other_count", [30, 500])
def test_error_on_other_samples_needs_their_moments_only(count, features, other_count):
    x, y = problem(count, features)
    other_x, other_y = problem(other_count, features, seed=1)
    solution = ridge(*tensors(x, y), 10.0)
    predicted = other_x @ solution.weight.T.numpy() + solution.bias.numpy()
    expected = ((predicted - other_y) ** 2).sum()
    twice = solution._replace(weight=2 * solution.weight)
    found = gather(*tensors(other_x, other_y)).squared_errors([twice, solution])
    assert float(found[1]) == pytest.approx(expected, rel=1e-9)


@shapes
@pytest.mark.parametrize("lam", LAMBDAS)
def test_condition_number_is_near_the_true_one(count, features, lam):
    x, y = problem(count, features)
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred if count >= features else centred @ centred.T
    if count < features:  # the direction of the mean plays no part
        gram += np.trace(gram) / count**2
    true = np.linalg.cond(gram + lam * np.eye(len(gram)))
    found = ridge(*tensors(x, y), lam).condition
    assert true / 5 < found < true * 1.001
    if count > features:
        exact = gather(*tensors(x, y)).spectrum("none").solution(lam).condition
        assert exact == pytest.approx(true, rel=1e-6)


def test_lambda_grid_spans_ten_decades_about_the_mean_eigenvalue():
    x, y = problem(300, 40)
    spectrum = gather(*tensors(x / x.std(axis=0), y)).spectrum("standard")
    assert float(spectrum.values.mean()) == pytest.approx(300, rel=1e-6)
    grid, _ = score_lambdas([spectrum])
    assert float(grid[0]) == pytest.approx(3e-4, rel=1e-6)
    assert float(grid[-1]) == pytest.approx(3e6, rel=1e-6)


@pytest.mark.parametrize("size", [1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF + 5])
def test_lower_product_equals_the_whole_product(size):
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(size, 9)))
    product = torch.ones(size, size, dtype=torch.float64)
    add_lower_product(product, rows)
    assert torch.allclose(product.tril(), (1 + rows @ rows.T).tril(), rtol=1e-12)


def test_no_samples_are_refused():
    with pytest.raises(BadInput, match="needs samples"):
        ridge(torch.ones(0, 2), torch.ones(0, 1), 1.0)


@pytest.mark.parametrize("gathered", [RidgeSums(3, 2), RidgeRows()])
def test_no_samples_gather_nothing(gathered):
    gathered.update(torch.ones(0, 3), torch.ones(0, 2))
    assert gathered.compute() is None


def test_negative_lambda_is_refused():
    with pytest.raises(BadInput, match="lambda is -1"):
        ridge(torch.ones(3, 2), torch.ones(3, 1), -1)


@pytest.mark.parametrize("lam", [math.nan, math.inf])
def test_lambda_that_is_no_number_is_refused(lam):
    with pytest.raises(BadInput, match=f"lambda is {lam}"):
        ridge(torch.ones(3, 2), torch.ones(3, 1), lam)


@shapes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_sample_that_is_not_finite_is_named(count, features, value):
    x, y = tensors(*problem(count, features))
    x[17, 5], x[23, 2], x[31, 0] = value, value, math.nan
    with pytest.raises(BadInput, match=rf"^sample 17: feature 5 is {value}; "):
        ridge(x, y, 1.0)
    x, y = tensors(*problem(count, features))
    y[30, 3] = value
    with pytest.raises(BadInput, match=rf"^sample 30: target 3 is {value}; "):
        gather(x, y)


def test_an_invalid_sample_is_named_in_any_chunk():
    features = torch.zeros(CHUNK + 10, 2)
    features[CHUNK + 3, 1] = math.nan
    assert first_invalid(features) == (CHUNK + 3, "feature 1 is nan")
    assert first_invalid(features[:CHUNK]) is None


@pytest.mark.parametrize("scaling", ["none", "standard"])
@pytest.mark.parametrize("far", [1e6, 1e7])
def test_features_very_far_off_centre_equal_scikit_learn(far, scaling):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(5000, 8)), rng.normal(size=(8, 2))
    y = x @ weights + 0.1 * rng.normal(size=(5000, 2))
    x += far
    scale = x.std(axis=0) if scaling == "standard" else 1
    expected = Ridge(alpha=1.0, solver="svd").fit(x / scale, y)
    sums = RidgeSums(8, 2)
    for start in range(0, 5000, 64):
        sums.update(*tensors(x[start : start + 64], y[start : start + 64]))
    for found in (ridge(*tensors(x, y), 1.0, scaling), sums.compute().solve(1.0, scaling)):
        assert relative(found.weight, expected.coef_ / scale) < 1e-7
        predicted = x @ found.weight.T.numpy() + found.bias.numpy()
        assert relative(predicted, expected.predict(x / scale)) < 1e-6


def test_sums_about_another_point_have_the_same_solution():
    x, y = tensors(*problem(300, 40))
    sums = RidgeSums(40, 4)
    sums.update(x, y)
    before = sums.compute()
    sums._move(sums.shift + 5, sums.target_shift - 3)
    sums._computed = None
    after = sums.compute()
    for name in ("mean", "target_mean", "cross", "target_squares"):
        assert relative(getattr(after, name), getattr(before, name).numpy()) < 1e-10
    assert relative(after.gram.tril(), before.gram.tril().numpy()) < 1e-10
    assert not torch.equal(after.gram.tril(), before.gram.tril())


def test_sums_of_version_0_1_go_on():
    x, y = tensors(*problem(300, 40))
    old = {"count": torch.tensor(100.0).double(), "feature_sum": x[:100].sum(dim=0)}
    old |= {"target_sum": y[:100].sum(dim=0), "gram": x[:100].T @ x[:100]}
    old |= {"cross": x[:100].T @ y[:100], "target_squares": y[:100].square().sum(dim=0)}
    sums = RidgeSums(40, 4)
    sums.restore(old | {"norms": x[:100].norm(dim=1).sum()})
    sums.update(x[100:], y[100:])
    whole = ridge(x, y, 1.0, "standard")
    assert relative(sums.compute().solve(1.0, "standard").weight, whole.weight.numpy()) < 1e-9


@pytest.mark.slow
def test_sums_of_two_processes_are_those_of_one_and_none_is_gathered(tmp_path):
    script = f"""
import sys, torch
from torch import distributed
from lightning_bbox.solvers.sums import RidgeSums
rank = int(sys.argv[1])
generator = torch.Generator().manual_seed(0)
x, y = (100 + torch.randn(40, size, generator=generator) for size in (3, 2))
own, whole = RidgeSums(3, 2), RidgeSums(3, 2)
own.update(x[rank::2], y[rank::2])
whole.update(x, y)
expected = whole.compute()
distributed.init_process_group("gloo", "file://{tmp_path / "meet"}", rank=rank, world_size=2)
distributed.all_gather = None
state, found = own.state(), own.compute()
for name, value in vars(expected).items():
    torch.testing.assert_close(getattr(found, name), value, rtol=1e-9, atol=1e-9)
assert state["count"] == 40 and own.count == 20
"""
    commands = [[sys.executable, "-c", script, str(rank)] for rank in range(2)]
    for finished in [
        runs.ended(process) for process in [runs.start(command) for command in commands]
    ]:
        assert finished.code == 0, finished.err[-2000:]
