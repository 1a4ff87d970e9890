"""Calibration on synthetic errors whose law is known."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibration import ARMS
from lightning_bbox import (
    BinHead,
    BoxRegressor,
    ChannelNorm,
    CropGeometry,
    Refiner,
    SceneDataModule,
    ShallowConvNet,
)
from lightning_bbox.evaluation.evaluation import evaluate
from lightning_bbox.evaluation.metrics import Refined, calibration_metrics, coordinate_errors
from lightning_bbox.nn.calibration import (
    LEVELS,
    Calibration,
    can_tell,
    conformal_factor,
    coverage,
    half_width,
)
from lightning_bbox.nn.network import OffsetNet
from tests.parts import boxes_at, draw_offsets, two_or_four
from tests.runs import CONFIGS, fit

LAWS = {"gaussian": scipy.stats.norm, "laplace": scipy.stats.laplace}
laws = pytest.mark.parametrize("law", LAWS)


def drawn_errors(law, count=20_000, seed=0):
    """Return errors of two coordinates, and their true standard deviations."""
    random = np.random.default_rng(seed)
    stds = np.exp(random.normal(-1, 0.7, (count, 2)))
    errors = LAWS[law].rvs(size=(count, 2), random_state=random) / LAWS[law].std() * stds
    return torch.from_numpy(errors).float(), torch.from_numpy(stds).float()


def calibrated(errors, stds, law="gaussian"):
    calibration = Calibration()
    calibration.fit(errors, stds, law)
    return calibration


@laws
@pytest.mark.parametrize("level", [0.1, *LEVELS, 0.999])
def test_half_widths_are_scipys(law, level):
    expected = LAWS[law].interval(level)[1] / LAWS[law].std()
    assert half_width(law, level) == pytest.approx(expected)


@laws
def test_true_stds_cover_what_they_should_and_need_no_factor(law):
    errors, stds = drawn_errors(law)
    for level in LEVELS:
        assert coverage(errors, stds, law, level) == pytest.approx(level, abs=0.01)
    assert conformal_factor(errors, stds, law) == pytest.approx(1, abs=0.02)


@laws
@pytest.mark.parametrize("wrong", [0.2, 3.0])
def test_stds_wrong_by_a_factor_are_mended_on_errors_that_were_not_fitted(law, wrong):
    errors, stds = drawn_errors(law)
    calibration = calibrated(errors[:4_000], wrong * stds[:4_000], law)
    assert float(calibration.temperature) == pytest.approx(1 / wrong, rel=0.05)
    mended = calibration(wrong * stds[4_000:])
    for level in LEVELS:
        assert coverage(errors[4_000:], mended, law, level) == pytest.approx(level, abs=0.02)


def test_under_another_law_the_90_percent_interval_is_right_all_the_same():
    errors, stds = drawn_errors("laplace")
    factor = conformal_factor(errors[:4_000], stds[:4_000], "gaussian")
    mended = factor * stds[4_000:]
    assert coverage(errors[4_000:], mended, "gaussian", 0.9) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("count", [1, 5, 9, 10, 200])
def test_the_factor_is_the_conformal_rank_of_those_needed(count):
    errors, stds = (each[:count, :1] for each in drawn_errors("gaussian", 200))
    needed = sorted(
        abs(e) / s / scipy.stats.norm.ppf(0.95) for e, s in zip(errors, stds, strict=True)
    )
    expected = needed[min(count, math.ceil(0.9 * (count + 1))) - 1]
    assert conformal_factor(errors, stds, "gaussian") == pytest.approx(float(expected), rel=1e-5)


def test_the_factor_makes_a_new_error_fall_inside_with_at_least_90_percent():
    held = []
    for seed in range(400):
        errors, stds = drawn_errors("gaussian", 30, seed)
        factor = conformal_factor(errors[:10], stds[:10], "gaussian")
        held.append(coverage(errors[10:], factor * stds[10:], "gaussian", 0.9))
    assert 0.895 < np.mean(held) < 0.96


@given(st.floats(0.1, 10), st.permutations(range(40)))
def test_the_factor_goes_with_the_errors_and_ignores_their_order(scale, order):
    errors, stds = drawn_errors("gaussian", 20)
    expected = scale * conformal_factor(errors, stds, "gaussian")
    mixed = [each.flatten()[order].view(20, 2) for each in (scale * errors, stds)]
    assert conformal_factor(*mixed, "gaussian") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [1e9, math.inf, math.nan])
def test_a_few_wild_errors_and_stds_of_0_change_the_factor_little(value):
    errors, stds = drawn_errors("gaussian")
    before = conformal_factor(errors, stds, "gaussian")
    errors[:100], stds[200:300] = value, 0.0
    assert before < conformal_factor(errors, stds, "gaussian") < 1.1 * before


def test_the_factor_is_finite_whatever_there_is():
    zeros, ones = torch.zeros(20, 2), torch.ones(20, 2)
    assert conformal_factor(ones, zeros, "gaussian") == 100
    assert conformal_factor(zeros, zeros, "gaussian") == 0.01
    assert conformal_factor(math.nan * ones, ones, "gaussian") == 100


@laws
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_stds_of_0_do_not_spoil_the_others(law, share):
    errors, stds = drawn_errors(law)
    stds = stds.where(torch.rand(stds.shape, generator=torch.manual_seed(0)) > share, 0.0)
    calibration = calibrated(errors[:4_000], stds[:4_000], law)
    mended = calibration(stds[4_000:])
    assert coverage(errors[4_000:], mended, law, 0.9) == pytest.approx(0.9, abs=0.02)
    assert mended.min() > 0
    assert float(calibration.temperature) < 10


def test_no_std_is_below_a_tenth_of_its_own_coordinates_errors():
    errors, stds = drawn_errors("gaussian")
    units = torch.tensor([1.0, 0.01])
    calibration = calibrated(errors * units, stds * units)
    middle = np.median(errors.abs().numpy(), axis=0) / scipy.stats.norm.ppf(0.75) * units.numpy()
    found = calibration(torch.zeros(1, 2)) / calibration.temperature
    np.testing.assert_allclose(found[0], 0.1 * middle, rtol=1e-3)
    assert calibration(torch.full((1, 2), math.nan)).isnan().all()


def test_a_head_that_can_not_tell_leaves_the_factor_alone():
    calibration = calibrated(torch.ones(20, 2), torch.full((20, 2), math.nan))
    calibration.fit(torch.ones(0, 2), torch.ones(0, 2), "gaussian")
    assert float(calibration.temperature) == 1
    assert not can_tell(torch.full((2, 2), math.nan))


@laws
def test_what_is_told_of_some_coordinates_is_calibrated_by_these(law):
    errors, stds = drawn_errors(law)
    partly = torch.cat([0.2 * stds, torch.full_like(stds, math.nan)], dim=1)
    wide = torch.cat([errors, 50 * errors], dim=1)  # of sizes of which nothing is told
    calibration = calibrated(wide[:4_000], partly[:4_000], law)
    assert float(calibration.temperature) == pytest.approx(5, rel=0.05)
    mended = calibration(partly[4_000:])
    assert mended[:, 2:].isnan().all()
    for level in LEVELS:
        assert coverage(wide[4_000:], mended, law, level) == pytest.approx(level, abs=0.02)
    found = calibration_metrics(wide[4_000:], mended, partly[4_000:], law)
    held = coverage(errors[4_000:], mended[:, :2], law, 0.9)
    assert found["coverage_90"] == held
    assert found["std_px"] == pytest.approx(float(stds[4_000:].mean()), rel=0.05)


def test_a_few_stds_that_are_not_told_do_not_freeze_the_factor():
    errors, stds = drawn_errors("gaussian", 4_000)
    stds[7, 0] = stds[9, 1] = math.nan
    calibration = calibrated(errors, 0.2 * stds)
    assert float(calibration.temperature) == pytest.approx(5, rel=0.05)
    others = calibrated(errors[10:], 0.2 * stds[10:])
    assert float(calibration.temperature) == pytest.approx(float(others.temperature), rel=0.01)


def test_a_checkpoint_without_a_factor_loads_as_uncalibrated():
    net = OffsetNet(ChannelNorm(), ShallowConvNet().build(45), BinHead())
    state = net.state_dict()
    del state["calibration.temperature"], state["calibration.least"]
    net.calibration.temperature.fill_(3.0)
    net.calibration.least.fill_(0.1)
    net.load_state_dict(state)
    assert float(net.calibration.temperature) == 1
    assert not net.calibration.least.any()
    net.calibration.temperature.fill_(1.2345)
    assert float(net.bfloat16().calibration.temperature) == pytest.approx(1.2345)


@two_or_four
def test_coordinate_errors_are_the_offsets_in_px_and_log_size(num_targets):
    offsets = draw_offsets()[:, :num_targets]
    boxes, anchors = boxes_at(offsets)
    found = coordinate_errors(boxes, anchors, CropGeometry().px(anchors), num_targets)
    torch.testing.assert_close(found.double(), offsets, rtol=0, atol=1e-4)


@laws
def test_calibration_metrics_equal_a_plain_count(law):
    errors, stds = drawn_errors(law, 500)
    errors, stds = errors.view(250, 4), stds.view(250, 4)
    scales = stds.numpy() / LAWS[law].std()
    nll = torch.from_numpy(-LAWS[law].logpdf(errors.numpy(), scale=scales))
    expected = {"std_px": stds[:, :2].mean().item(), "nll": nll[:, :2].mean().item()}
    for level in LEVELS:
        low, high = LAWS[law].interval(level, scale=scales)
        inside = (errors.numpy() >= low) & (errors.numpy() <= high)
        expected[f"coverage_{100 * level:.0f}"] = inside.mean()
    assert calibration_metrics(errors, stds, nll, law) == pytest.approx(expected, abs=1e-6)


def test_only_what_a_head_can_tell_is_measured():
    ones, untold = torch.ones(3, 2), torch.full((3, 2), math.nan)
    assert calibration_metrics(ones, untold, untold, "gaussian") == {}
    assert calibration_metrics(ones, untold, ones, "gaussian").keys() == {"nll"}
    assert "nll" not in calibration_metrics(ones, ones, untold, "gaussian")


def test_an_evaluation_measures_by_the_law_it_is_told():
    data = SceneDataModule(num_scenes=20, eval_draws=30, compile=False)
    samples = data.samples("val")
    zeros, ones = torch.zeros(30), torch.ones(30, 2)
    refined = Refined(samples.proposals, zeros, ones, ones, ones, zeros == 0)
    errors = coordinate_errors(
        samples.proposals, samples.gt_boxes, data.geometry.px(samples.proposals), 2
    )
    found = [evaluate(data, "val", samples, refined, samples.proposals, law) for law in LAWS]
    for law, evaluation in zip(LAWS, found, strict=True):
        assert evaluation.metrics["coverage_50"] == coverage(errors, ones, law, 0.5)
    assert found[0].metrics["coverage_50"] > found[1].metrics["coverage_50"]


def test_the_factor_is_on_every_std_that_a_model_gives():
    torch.manual_seed(0)
    data = SceneDataModule(num_scenes=20, eval_draws=8, compile=False)
    data.setup("test")
    model = BoxRegressor(backbone=ShallowConvNet(channels=(4,)))
    model.build(data.spec(), seed=0)
    model.eval()
    samples = data.samples("test")
    crops, picture = data.cut(samples), np.zeros((60, 60, 3), np.uint8)
    box = np.array([[10.0, 10, 40, 40]])
    boxes, stds = model.refine(crops, samples.proposals)
    alone = Refiner(model).refine_with_std(picture, box).stds
    model.net.calibration.temperature.fill_(2.0)
    again, doubled = model.refine(crops, samples.proposals)
    assert torch.equal(again, boxes)
    torch.testing.assert_close(doubled, 2 * stds)
    torch.testing.assert_close(Refiner(model).refine_with_std(picture, box).stds, 2 * alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "HL-Gauss"])
def test_90_percent_intervals_hold_85_to_95_percent_on_held_out_scenes(name, tmp_path):
    base = ["fit", "-c", str(CONFIGS / "quickstart.yaml"), "--data.num_scenes=1000", *ARMS[name]]
    options = ["--data.draws_per_epoch=6400", "--trainer.max_epochs=2", "--data.eval_draws=1000"]
    options += ["--model.backbone=ShallowConvNet", "--model.backbone.channels=[16, 32, 64]"]
    folder = fit(tmp_path, "run", *options, base=base)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["test/mae_px"] < 0.5 * found["test/mae_px_predict_mean"]
    assert 0.85 < found["test/coverage_90"] < 0.95
