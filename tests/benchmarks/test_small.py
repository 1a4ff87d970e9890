"""Which pictures a study of few boxes sees, and what it tells of its runs."""

import argparse
import json
from pathlib import PurePath

import numpy as np
import pytest

from benchmarks import small

CASE = small.Case("bccd", "200", "development")


@pytest.fixture(scope="module")
def few(real_data):
    """Return the pictures of each role, for two seeds on development, one on the test."""
    root = real_data / "bccd"
    cases = {"first": (CASE, 0), "second": (CASE, 1), "test": (CASE._replace(on="test"), 0)}
    return {name: small.pictures_of(*case, root) for name, case in cases.items()}


def test_roles_share_no_picture_and_the_test_is_the_data_sets_own(few, real_data):
    listed = (real_data / "bccd" / "ImageSets" / "Main" / "test.txt").read_text().split()
    assert {PurePath(path).stem for path in few["test"]["test"]} == set(listed)
    development = set(few["first"]["test"])
    for roles in few.values():
        every = [image for images in roles.values() for image in images]
        assert len(every) == len(set(every))
        assert not development & {*roles["train"], *roles["val"]}
    assert not development & set(few["test"]["test"])


def test_each_seed_has_pictures_of_its_own_that_hold_as_many_boxes(few, real_data):
    assert few["first"]["train"] == few["test"]["train"] != few["second"]["train"]
    assert few["first"]["test"] == few["second"]["test"]
    table, _ = small.counted("bccd", real_data / "bccd")
    counts = table.image_index.bincount(minlength=len(table.images)).tolist()
    many = dict(zip(table.images, counts, strict=True))
    for roles in few.values():
        assert 200 <= sum(many[image] for image in roles["train"]) < 230
        assert 20 <= sum(many[image] for image in roles["val"]) < 50


def test_of_copies_of_a_picture_one_trains(real_data):
    roles = small.pictures_of(small.Case("rbc", "50", "test"), 0, real_data / "rbc")
    names = [image.partition(".rf.")[0] for image in roles["train"]]
    assert len(names) == len(set(names))


def test_tables_tell_the_arms_of_which_there_are_runs_beside_other_studies(tmp_path, monkeypatch):
    folder = tmp_path / "bccd-200-development"
    errors = {"base-seed0": 1.0, "base-seed1": 2.0, "all-of-it-seed0": 0.5}
    for name, error in errors.items():
        (folder / name).mkdir(parents=True)
        found = {"test/mae_px": error, "test/mae_px_predict_mean": 2.5, "val/curve": [[1, error]]}
        (folder / name / "metrics.json").write_text(json.dumps(found))
        values = np.full((40, 2), error)
        arrays = {"picture": np.arange(40) % 8, "error_px": values, "error_fraction": values / 30}
        np.savez(folder / name / "test_errors.npz", **arrays)
    (case,) = small.cases_in(tmp_path)
    assert case == CASE
    study, results = small.results_of(case, tmp_path)
    assert [arm.name for arm in study.arms] == ["base", "all of it"]
    figures = small.figures_of(study, results)
    assert figures["all of it"]["difference"]["value"] == -0.5
    assert figures["base"]["errors"] == {0: 1.0, 1: 2.0}
    assert json.loads(json.dumps(figures))
    monkeypatch.setattr(small, "RESULTS", tmp_path / "results")
    other = small.Case("rbc", "50", "test")
    small.write({other: (study, results)})
    small.write({case: (study, results)})
    told = json.loads((tmp_path / "results" / "small.json").read_text())
    assert set(told["studies"]) == {case.title, other.title}
    text = (tmp_path / "results" / "small.md").read_text()
    sections = small.sections_of(text)
    assert list(sections) == [other.title, case.title]
    assert text.count("## bccd, 200 training boxes, on development pictures\n") == 1
    assert "all of it | 1 of 2" in " ".join(sections[case.title].split())
    small.write({})
    assert (tmp_path / "results" / "small.md").read_text() == text


def test_scenes_are_drawn_and_so_have_no_pictures_to_choose(tmp_path):
    options = argparse.Namespace(data=tmp_path, runs=tmp_path)
    assert small.data_options(small.Case("scenes", "all", "test"), 0, options) == []
    assert (
        small.study_of(small.Case("scenes", "all", "test"), tmp_path)
        .configs[0]
        .endswith("quickstart.yaml")
    )
    with pytest.raises(SystemExit, match="give --boxes all --on test"):
        small.data_options(small.Case("scenes", "50", "test"), 0, options)
