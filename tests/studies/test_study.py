"""Studies are read whole, crossed as asked, and refused in one sentence."""

import itertools

import numpy as np
import pytest
import yaml

from lightning_bbox.core.errors import BadInput
from lightning_bbox.studies.designs import effects_of, fractional_design, main_effects_matrix
from lightning_bbox.studies.study import Arm, Run, Study
from lightning_bbox.studies.study_file import read_study

AXES = {
    "loss": {"L2": {}, "L1": {"model.head.loss": "L1Loss"}, "bins": {"model.head": "BinHead"}},
    "norm": {"none": {}, "batch": {"model.backbone.batch_norm": True}},
}


def study_of(tmp_path, **text):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "preset:quickstart", **text}, sort_keys=False))
    return read_study(path)


def test_one_at_a_time_changes_one_axis_of_the_base_in_each_arm(tmp_path):
    study = study_of(tmp_path, axes=AXES)
    assert study.name == "mine"
    names = [arm.name for arm in study.arms]
    assert names == ["base", "loss: L1", "loss: bins", "norm: batch"]
    assert study.arms[0].options == {}
    assert study.arms[2].options == {"model.head": "BinHead"}
    assert study.arms[3].levels == {"loss": "L2", "norm": "batch"}
    assert study.axes == {"loss": ("L2", "L1", "bins"), "norm": ("none", "batch")}


def test_a_full_design_crosses_all_but_what_is_excluded(tmp_path):
    study = study_of(
        tmp_path, axes=AXES, design="full", exclude=[{"loss": "bins", "norm": "batch"}]
    )
    levels = [tuple(arm.levels.values()) for arm in study.arms]
    every = set(itertools.product(("L2", "L1", "bins"), ("none", "batch")))
    assert set(levels) == every - {("bins", "batch")}
    assert len(levels) == 5
    both = next(arm for arm in study.arms if arm.name == "loss: L1, norm: batch")
    assert both.options == {"model.head.loss": "L1Loss", "model.backbone.batch_norm": True}


def test_arms_beside_the_axes_are_run_as_they_are(tmp_path):
    study = study_of(tmp_path, arms={"exact": {"model": "RidgeRegressor"}}, axes=AXES)
    assert study.arms[-1] == Arm("exact", {}, {"model": "RidgeRegressor"})


def test_every_arm_runs_with_every_seed_and_fold_round_by_round(tmp_path):
    study = study_of(tmp_path, axes=AXES, seeds=[3, 5], folds=2)
    runs = study.runs()
    assert len(runs) == 4 * 2 * 2
    assert [run.name for run in runs[:2]] == ["base-seed3-fold0", "loss-L1-seed3-fold0"]
    assert len({run.name for run in runs}) == len(runs)
    assert "--data.splits.fold=1" in study.arguments(runs[4])


def test_an_arms_options_win_over_given_ones_and_these_over_the_studys(tmp_path):
    study = study_of(tmp_path, axes=AXES, options={"data.batch_size": 64}, steps=30)
    run = Run(study.arms[1], seed=4)
    assert study.arguments(run, ["--data.batch_size=8"]) == [
        "--config=preset:quickstart",
        "--seed_everything=4",
        "--data.batch_size=64",
        "--trainer.max_steps=30",
        "--trainer.max_epochs=-1",
        "--data.batch_size=8",
        "--model.head.loss=L1Loss",
    ]


def test_a_budget_of_seconds_is_lightnings_clock(tmp_path):
    study = study_of(tmp_path, axes=AXES, seconds=90)
    assert "--trainer.max_time=00:00:01:30" in study.arguments(study.runs()[0])
    study = study_of(tmp_path, axes=AXES, seconds=2 * 86400 + 3 * 3600 + 4 * 60 + 5.4)
    assert "--trainer.max_time=02:03:04:05" in study.arguments(study.runs()[0])


def test_a_base_is_found_beside_the_study(tmp_path):
    (tmp_path / "base.yaml").write_text("{}")
    study = study_of(tmp_path, base=["base.yaml", "preset:bccd"], axes=AXES)
    assert study.configs == (str(tmp_path / "base.yaml"), "preset:bccd")


REFUSALS = {
    "unknown key": ({"axis": {}}, "axis is no part of a study"),
    "one level": ({"axes": {"loss": {"L2": {}}}}, "axis 'loss' has no two levels"),
    "options that are none": ({"arms": {"a": 1}}, "'a' has 1 for options"),
    "nothing to compare": ({}, "compares nothing"),
    "two budgets": ({"axes": AXES, "steps": 1, "seconds": 1}, "both steps and seconds"),
    "no budget": ({"axes": AXES, "steps": 0}, "no budget to train with"),
    "seeds": ({"axes": AXES, "seeds": ["a"]}, "seeds is ['a']"),
    "a seed that is no list": ({"axes": AXES, "seeds": 3}, "seeds is 3; give a list"),
    "a seed twice": ({"axes": AXES, "seeds": [0, 1, 0]}, "seeds names 0 more than once"),
    "no end": ({"axes": AXES, "seconds": float("inf")}, "no budget to train with"),
    "no number": ({"axes": AXES, "seconds": float("nan")}, "no budget to train with"),
    "no error": ({"axes": AXES, "reach_px": float("nan")}, "reach_px is nan"),
    "folds": ({"axes": AXES, "folds": 11}, "folds is 11; give 2 to 10"),
    "a design": ({"axes": AXES, "design": "half"}, "design is 'half'; give one_at_a_time"),
    "too small a fraction": (
        {"axes": AXES, "design": {"fraction": 3}},
        "design fraction is 3; give 4 to 6 arms",
    ),
    "an unknown level": (
        {"axes": AXES, "design": "full", "exclude": [{"loss": "L3"}]},
        "exclude has {'loss': 'L3'}; give labels of levels by axis (loss: L2, L1, bins; norm: none",
    ),
    "a base that is excluded": (
        {"axes": AXES, "design": "full", "exclude": [{"norm": "none"}]},
        "exclude rules the base out",
    ),
    "a missing base": ({"axes": AXES, "base": "no.yaml"}, "base no.yaml is missing"),
    "an option without a value": (
        {"arms": {"L1": {"model.head": None}}},
        "sets model.head to nothing",
    ),
    "a label that YAML takes for false": (
        {"axes": {"norm": {False: {}, "batch": {"a": 1}}}},
        "a label reads as False; quote it",
    ),
    "two equal arms": (
        {"arms": {"a": {"x": 1}, "b": {"x": 1}}},
        "'a' and 'b' are the same; leave one out",
    ),
    "a name that is a path": ({"axes": AXES, "name": "a/b"}, "name is 'a/b'"),
    "a name that is above": ({"axes": AXES, "name": ".."}, "name is '..'"),
    "names that differ by case alone": (
        {"arms": {"a Y": {"x": 1}, "a y": {"x": 2}}},
        "a-Y, a-y names two arms",
    ),
    "names that collide": ({"arms": {"a b": {"x": 1}, "a-b": {"x": 2}}}, "a-b, a-b names two arms"),
}


@pytest.mark.parametrize(("text", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_a_study_that_makes_no_sense_is_refused(tmp_path, text, sentence):
    with pytest.raises(BadInput, match=r"mine\.yaml: ") as refusal:
        study_of(tmp_path, **text)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("a: [", "isn't a study"), ("- 1", "isn't a study"), ("axes: {}", "has no base")],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, content, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    expected = "mine.yaml:" if content == "a: [" else sentence
    with pytest.raises(BadInput, match=expected):
        read_study(path)
    with pytest.raises(BadInput, match="can't be read"):
        read_study(tmp_path / "none.yaml")


def test_a_folders_name_holds_nothing_but_what_a_file_system_takes():
    arm = Arm("loss: smooth L1, beta 1/9 (a b)")
    assert arm.folder == "loss-smooth-L1-beta-1-9-a-b"
    assert Study("s", (arm,)).runs()[0].name.endswith("-seed0")


def crossed(*levels):
    axes = {f"axis {place}": [str(n) for n in range(count)] for place, count in enumerate(levels)}
    return [dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values())]


def test_a_half_of_two_level_axes_is_as_good_as_an_orthogonal_one():
    """A 2^(4-1) fraction with orthogonal columns is D-optimal; Hadamard's bound is its value."""
    cells = crossed(2, 2, 2, 2)
    chosen = fractional_design(cells, 8)
    signs = 2 * main_effects_matrix([cells[row] for row in chosen])[:, 1:] - 1
    matrix = np.column_stack([np.ones(8), signs])
    assert np.linalg.det(matrix.T @ matrix) == pytest.approx(8.0**5)


def test_a_fraction_holds_the_base_and_tells_all_effects_apart():
    cells = crossed(4, 3, 3, 2, 2, 2, 2, 2)
    chosen = fractional_design(cells, 18)
    assert chosen[0] == 0
    assert len(set(chosen)) == 18
    rows = main_effects_matrix([cells[row] for row in chosen])
    assert np.linalg.matrix_rank(rows) == 1 + 3 + 2 + 2 + 5
    random = [np.random.default_rng(seed).choice(len(cells), 18, False) for seed in range(50)]
    full = main_effects_matrix(cells)
    best = max(np.linalg.det(full[rows].T @ full[rows]) for rows in random)
    assert np.linalg.det(rows.T @ rows) > 2 * best
    assert len(effects_of(cells)) == rows.shape[1] - 1
