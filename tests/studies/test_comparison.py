"""A study's comparison: its statistics against SciPy and plain loops, and what it writes."""

import csv
import io
import itertools
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from lightning_bbox import BadInput
from lightning_bbox.evaluation.intervals import t_interval
from lightning_bbox.studies.charts import draw_comparison, mean_curve
from lightning_bbox.studies.comparison import compare, figures_of
from lightning_bbox.studies.page import write_comparison
from lightning_bbox.studies.study import Arm, Result, Run, Study
from lightning_bbox.studies.study_file import read_study
from lightning_bbox.studies.tables import arms_table, as_csv, as_markdown, as_text, further_tables

AXES = {"loss": ("L2", "L1"), "head": ("linear", "bins", "soft-argmax")}
FACTORS = {"L1": 0.8, "bins": 0.7, "soft-argmax": 1.3}
PICTURES = torch.arange(20).repeat_interleave(5)


def arm_of(**levels):
    changed = [f"{axis}: {label}" for axis, label in levels.items() if label != AXES[axis][0]]
    return Arm(", ".join(changed) or "base", levels, {"model.loss": levels["loss"]})


def crossed_study(seeds=(0, 1, 2), folds=None, beside=()):
    arms = [arm_of(loss=loss, head=head) for loss, head in itertools.product(*AXES.values())]
    arms += [Arm(name) for name in beside]
    configs = ("preset:quickstart",)
    return Study("crossed", tuple(arms), configs, axes=AXES, seeds=seeds, folds=folds)


def finished(run, error=1.0, pictures=PICTURES, noise=0.0):
    """Return a run that arrived with about this mean error."""
    generator = np.random.default_rng([run.seed, run.fold or 0, len(run.arm.name)])
    error *= 1 + noise * generator.normal()
    errors = torch.from_numpy(error * generator.uniform(0.5, 1.5, len(pictures))).float()
    metrics = {"test/mae_px": error, "test/p95_px": 2 * error, "test/mae_px_predict_mean": 2.5}
    curve = [(step, error + 1.5 * 0.5 ** (step / 100)) for step in range(100, 1001, 100)]
    metrics |= {"train_seconds": 10.0, "train_steps": 1000.0}
    return Result(run, "done", metrics=metrics, curve=curve, errors=errors, pictures=pictures)


def planted(run):
    return finished(run, math.prod(FACTORS.get(label, 1.0) for label in run.arm.levels.values()))


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=8), st.floats(0.2, 2.5))
def test_the_step_of_a_threshold_is_where_the_line_first_meets_it(errors, threshold):
    curve = [(100 * place, error) for place, error in enumerate(errors, start=1)]
    result = Result(Run(Arm("base"), 0), "done", curve=curve)
    step = figures_of(result, threshold).get("steps_to_reach")
    if min(errors) > threshold:
        assert step is None
    elif errors[0] <= threshold:
        assert step == 100
    else:
        assert np.interp(step, *np.array(curve).T) == pytest.approx(threshold, abs=1e-6)
        before = [error for at, error in curve if at < step - 1e-6]
        assert min(before) > threshold


def test_figures_of_a_run_are_its_own():
    figures = figures_of(finished(Run(arm_of(loss="L2", head="linear"), 0), 0.5), reach_px=1.0)
    assert figures["share_of_predict_mean"] == 0.2
    assert figures["val_mae_px"] == pytest.approx(0.5, abs=0.01)
    assert figures["steps_to_reach"] == pytest.approx(166, abs=1)


def test_arms_are_ranked_by_the_mean_and_hold_its_interval():
    study = crossed_study()
    results = [finished(run, FACTORS.get(run.arm.levels["loss"], 1.0), noise=0.1)
               for run in study.runs()]  # fmt: skip
    comparison = compare(study, results)
    means = [arm.figures["test_mae_px"].value for arm in comparison.arms]
    assert means == sorted(means)
    values = [result.metrics["test/mae_px"] for result in comparison.arms[0].results]
    assert comparison.arms[0].figures["test_mae_px"] == t_interval(values)


def seen_in(px_per_side, run, error):
    """Return a run whose error is this share of the true box's side, in its own px."""
    found = finished(run, error * px_per_side)
    own = {"px_per_side": px_per_side, "square": 0.0, "test/error_fraction": error}
    curve = [(step, value / px_per_side) for step, value in found.curve]
    mean = {"test/error_fraction_predict_mean": 0.1}
    return replace(
        found,
        metrics=found.metrics | own | mean,
        fraction_curve=curve,
        fractions=found.errors / px_per_side,
    )


@pytest.mark.parametrize("folds", [None, 2])
def test_arms_of_which_a_px_differs_are_ranked_in_one_unit(folds, tmp_path):
    """A crop with twice the context has px twice as large: fewer of them are no lower error."""
    near, wide = Arm("near"), Arm("wide", options={"data.crop.context": 3.0})
    study = Study("contexts", (near, wide), seeds=(0, 1), folds=folds)
    results = [
        seen_in(30.0, run, 0.04) if run.arm is near else seen_in(15.0, run, 0.06)
        for run in study.runs()
    ]
    comparison = compare(study, results)
    split = "test" if folds is None else "val"
    assert results[1].metrics["test/mae_px"] < results[0].metrics["test/mae_px"]
    assert [arm.arm.name for arm in comparison.arms] == ["near", "wide"]
    assert comparison.ranked_by == f"{split}_error_percent"
    assert comparison.arms[1].figures["test_error_percent"].value == pytest.approx(6.0)
    errors = [100 * float(result.fractions.mean()) for result in results]
    assert comparison.arms[1].difference.value == pytest.approx(
        np.mean(errors[1::2]) - np.mean(errors[::2]), rel=1e-5
    )
    assert comparison.predict_mean == pytest.approx(10.0)
    text = write_comparison(study, results, tmp_path)
    assert "test error, %" in arms_table(comparison).names
    assert not [name for name in arms_table(comparison).names if "px" in name]
    assert "Arms don't agree what a px is (data.crop)" in text
    assert "errs by 10.000 %" in text
    assert (tmp_path / "curves.png").is_file()


def test_arms_with_one_px_are_ranked_in_it():
    study = Study("one", (Arm("base"), Arm("L1")), seeds=(0,))
    comparison = compare(study, [seen_in(30.0, run, 0.04) for run in study.runs()])
    assert comparison.ranked_by == "test_mae_px"
    assert "difference from base, px" in arms_table(comparison).names


def test_an_arm_of_which_a_run_diverged_comes_after_those_that_held():
    """The mean of the survivors is no error of the arm."""
    study = Study("rates", (Arm("base"), Arm("fast")), seeds=(0, 1))
    results = [finished(run, 1.0 if run.arm.name == "base" else 0.5) for run in study.runs()]
    results[3] = Result(results[3].run, "diverged", "the loss is inf", 7)
    comparison = compare(study, results)
    assert [arm.arm.name for arm in comparison.arms] == ["base", "fast"]
    assert comparison.arms[1].figures["test_mae_px"].value == 0.5
    assert "Arms of which a run diverged come last" in as_markdown(comparison)


def test_folds_are_ranked_by_validation():
    study = crossed_study(seeds=(0,), folds=3)
    comparison = compare(study, [planted(run) for run in study.runs()])
    assert comparison.ranked_by == "val_mae_px"
    assert comparison.arms[0].figures["val_mae_px"].n == 3
    assert "validation error, px" in arms_table(comparison).names


def difference(mine, its):
    """Return how far the runs of an arm lie from those of the base."""
    arms = (its[0].run.arm, mine[0].run.arm)
    seeds = tuple(result.run.seed for result in its)
    comparison = compare(Study("two", arms, seeds=seeds), [*its, *mine])
    return next(arm.difference for arm in comparison.arms if arm.arm is arms[1])


def test_difference_is_taken_draw_by_draw_over_the_runs_that_both_have():
    base, other = Arm("base"), Arm("L1")
    its = [finished(Run(base, seed)) for seed in range(3)]
    mine = [finished(Run(other, seed), 0.8) for seed in range(3)]
    its[0] = Result(its[0].run, "diverged", "the loss is nan", 12)
    mine[2] = Result(mine[2].run, "missing")
    found = difference(mine, its)
    assert found.n == 1
    assert found.value == pytest.approx(float((mine[1].errors - its[1].errors).mean()))


def test_other_draws_are_not_paired():
    other = finished(Run(Arm("L1"), 0), pictures=PICTURES + 1)
    assert difference([other], [finished(Run(Arm("base"), 0))]) is None


def effects_of(study, results):
    return {effect.level: effect for effect in compare(study, results).effects}


@pytest.mark.parametrize("gone", ["nothing", "base"])
def test_planted_main_effects_are_found_also_where_the_base_diverged(gone):
    study = crossed_study()
    results = [planted(run) for run in study.runs() if run.arm.name != gone]
    found = {level: effect.ratio.value for level, effect in effects_of(study, results).items()}
    assert found == pytest.approx(FACTORS)


def test_main_effects_are_least_squares_on_the_log_error():
    study = crossed_study(beside=("AlexNet",))
    results = [finished(run, planted(run).metrics["test/mae_px"], noise=0.1)
               for run in study.runs()]  # fmt: skip
    comparison = compare(study, results)
    means = {arm.arm.name: arm.figures["test_mae_px"].value for arm in comparison.arms}
    arms = [arm for arm in study.arms if arm.levels]
    columns = (("loss", "L1"), ("head", "bins"), ("head", "soft-argmax"))
    rows = [[1, *(arm.levels[axis] == level for axis, level in columns)] for arm in arms]
    matrix, logs = np.array(rows, float), np.log([means[arm.name] for arm in arms])
    solution, residual, _, _ = np.linalg.lstsq(matrix, logs)
    variance = residual[0] / 2 * np.linalg.inv(matrix.T @ matrix)
    half = stats.t.ppf(0.975, 2) * np.sqrt(np.diag(variance))
    for column, effect in enumerate(comparison.effects, start=1):
        bounds = np.exp([solution[column] + sign * half[column] for sign in (0, -1, 1)])
        assert tuple(effect.ratio[:3]) == pytest.approx(tuple(bounds))


def test_arms_that_diverged_are_counted_and_left_out_of_the_effects():
    study = crossed_study()
    gone = arm_of(loss="L1", head="bins")
    results = [
        Result(run, "diverged", "the loss is inf", 7) if run.arm == gone else planted(run)
        for run in study.runs()
    ]
    effects = effects_of(study, results)
    assert effects["L1"].ratio.value == pytest.approx(0.8)
    assert (effects["L1"].diverged, effects["L1"].runs) == (3, 9)
    assert (effects["soft-argmax"].diverged, effects["soft-argmax"].runs) == (0, 6)


def test_a_level_of_which_nothing_arrived_is_not_told():
    study = crossed_study()
    results = [planted(run) for run in study.runs() if run.arm.levels["head"] != "bins"]
    effects = effects_of(study, results)
    assert effects["bins"].ratio is None
    assert effects["L1"].ratio.value == pytest.approx(0.8)


def test_one_at_a_time_has_no_main_effects():
    arms = [arm_of(loss="L2", head="linear"), arm_of(loss="L1", head="linear")]
    arms.append(arm_of(loss="L2", head="bins"))
    study = Study("single", tuple(arms), axes=AXES)
    assert compare(study, [planted(run) for run in study.runs()]).effects == ()


def eventful():
    """Return a study in which everything happens that can, with names that need care."""
    study = crossed_study(
        beside=("<b>a & b</b> | c $x$", "refused, with a name that is " + "long " * 30)
    )
    ends = {study.arms[3].name: "diverged", study.arms[-1].name: "refused"}
    results = [
        Result(run, ends[run.arm.name], "why <i>not</i>", 40 + run.seed)
        if run.arm.name in ends
        else planted(run)
        for run in study.runs()
    ]
    return study, results[:-3]


def test_no_arm_is_dropped_from_the_tables():
    study, results = eventful()
    comparison = compare(study, results)
    rows = {row[0].text: row[1].text for row in arms_table(comparison).rows}
    assert rows.keys() == {" ".join(arm.name.split()) for arm in study.arms}
    assert rows[study.arms[3].name] == "0 of 3, 3 diverged (step 40, 41, 42)"
    stopped = further_tables(comparison)["What did not arrive"]
    assert {row[1].text for row in stopped.rows} == {"diverged", "refused"}
    for text in (as_markdown(comparison), as_text(comparison)):
        assert "3 diverged (step 40, 41, 42)" in text


def test_markdown_has_as_many_cells_in_each_row():
    table = as_markdown(compare(*eventful())).split("\n\n")[1].splitlines()
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert len({len(line) for line in table}) == 1


def test_csv_has_every_run():
    study, results = eventful()
    rows = [*csv.DictReader(io.StringIO(as_csv(compare(study, results))))]
    assert len(rows) == len(study.runs())
    base = next(row for row in rows if row["base"] == "True" and row["seed"] == "1")
    assert float(base["test/mae_px"]) == float(base["test_mae_px"]) == 1.0
    assert base["axis:head"] == "linear"
    assert {row["status"] for row in rows} == {"done", "diverged", "refused", "missing"}


class Page(HTMLParser):
    """What a page holds: open tags, their attributes, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_is_whole_escaped_and_needs_nothing_else(tmp_path):
    study, results = eventful()
    text = write_comparison(study, results, tmp_path)
    assert "test error, px" in text
    page = Page((tmp_path / "comparison.html").read_text())
    assert page.open == []
    assert not {"b", "i", "link"} & {tag for tag, _ in page.tags}
    sources = [value for _, found in page.tags for name, value in found.items()
               if name in ("src", "href")]  # fmt: skip
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for arm in study.arms:
        assert page.words.count(" ".join(arm.name.split())) >= 2
    for name in ("errors", "curves", "effects", "heat"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 600


def test_a_chart_without_anything_to_show_does_not_stay(tmp_path):
    study = crossed_study()
    write_comparison(study, [planted(run) for run in study.runs()], tmp_path)
    write_comparison(study, [], tmp_path)
    assert not [*tmp_path.glob("*.png")]


@pytest.mark.parametrize("name", ["curves.png", "comparison.md", "comparison.html"])
def test_files_that_no_study_wrote_are_neither_written_over_nor_removed(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInput, match=f"{name}: wasn't written by a study"):
        write_comparison(crossed_study(), [], tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_there_is_no_heat_map_where_axes_are_not_crossed():
    arms = (arm_of(loss="L2", head="linear"), arm_of(loss="L1", head="linear"))
    study = Study("single", arms, axes=AXES, seeds=(0,))
    charts = draw_comparison(compare(study, [planted(run) for run in study.runs()]))
    drawn = [name for name, chart in charts.items() if chart is not None]
    assert drawn == ["errors", "curves"]


def test_curves_are_averaged_over_the_steps_that_all_have():
    steps, errors = mean_curve([[(10, 2.0), (20, 1.0), (30, 0.5)], [(10, 1.0), (20, 1.0)]])
    assert steps.tolist() == [10, 20]
    assert errors.mean(axis=0).tolist() == [1.5, 1.0]


def test_a_study_says_which_error_is_to_be_reached(tmp_path):
    (tmp_path / "s.yaml").write_text("{base: preset:rbc, arms: {a: {model: 1}}, reach_px: 0.5}")
    study = read_study(tmp_path / "s.yaml")
    comparison = compare(study, [finished(run, 0.4) for run in study.runs()])
    assert "steps to 0.5 px" in arms_table(comparison).names
    assert comparison.arms[0].figures["steps_to_reach"].value > 100
    (tmp_path / "s.yaml").write_text("{base: preset:rbc, arms: {a: {model: 1}}, reach_px: 0}")
    with pytest.raises(BadInput, match=r"reach_px is 0; give an error above 0"):
        read_study(tmp_path / "s.yaml")
