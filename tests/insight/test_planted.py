"""The planted faults themselves: that they are whole, apart, and say what they do."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_bbox.cli.run import rehearse
from lightning_bbox.evaluation.intervals import Mean
from tests.insight.planted import (
    FAULTS,
    HEALTHY,
    KINDS,
    PAIRS,
    changed,
    plant,
    rank_of,
    value_in,
)
from tests.insight.planted_cures import Cured, as_table
from tests.insight.planted_data import PER_BOX, Boxes, Patches, write_patches

BY_NAME = {fault.name: fault for fault in FAULTS}


def small_boxes():
    draws = np.random.default_rng(0)
    corners = draws.uniform(0, 40, (12, 2))
    boxes = np.hstack([corners, corners + draws.uniform(8, 20, (12, 2))])
    return Boxes(
        names=("a.png", "b.png", "c.png", "d.png"),
        pictures=[draws.integers(0, 255, (64, 80, 3), dtype=np.uint8) for _ in range(4)],
        splits=("train", "train", "val", "test"),
        index=np.repeat(np.arange(4), 3),
        boxes=boxes,
        proposals=boxes[:, None] + draws.normal(0, 1, (12, PER_BOX, 4)),
    )


def small_patches():
    draws = np.random.default_rng(0)
    patches = draws.integers(0, 255, (40, 45, 45, 3), dtype=np.uint8)
    return Patches(patches, draws.uniform(-5, 5, (40, 2)), np.arange(40) // 2)


@pytest.fixture
def folder(tmp_path):
    for name in ("healthy", "planted"):
        write_patches(small_patches(), tmp_path / name)
    return tmp_path


BASES = [
    *(pytest.param(fault, "scenes", id=fault.name) for fault in FAULTS),
    *(pytest.param(fault, "bccd", id=f"{fault.name}-bccd") for fault in FAULTS[::8]),
]


@pytest.mark.filterwarnings("ignore:LinearHead activation 'relu'")  # that one is planted
@pytest.mark.parametrize(("fault", "base"), BASES)
def test_the_command_line_takes_each_fault_and_its_cure(fault, base, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-bbox"])
    case = plant([fault], base, folder)
    assert case.config != case.healthy
    assert changed(case.config, case.cure) == case.healthy
    (folder / "config.yaml").write_text(yaml.safe_dump(case.config))
    assert rehearse(["fit", "-c", str(folder / "config.yaml"), f"--runs={folder}"])


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.alter], ids=lambda fault: fault.name)
def test_what_alters_data_changes_a_copy(fault):
    make = small_patches if fault.form == "patches" else small_boxes
    data, same = make(), make()
    altered = fault.alter(data, np.random.default_rng(0))
    changed_fields = 0
    for name, value in vars(same).items():
        np.testing.assert_equal(getattr(data, name), value)
        changed_fields += repr(getattr(altered, name)) != repr(value)
    assert changed_fields


def test_halves_are_balanced_within_each_kind():
    counts = Counter((fault.kind, fault.half) for fault in FAULTS)
    assert {kind for kind, _ in counts} == {*KINDS}
    assert all(counts[kind, "tune"] == counts[kind, "held_out"] for kind in KINDS)


def test_names_are_unique_and_there_are_enough():
    assert len(BY_NAME) == len(FAULTS) >= 24
    assert len({recipe.name for recipe in HEALTHY}) == len(HEALTHY) >= 12


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_both_faults_of_a_pair_are_in_its_recipe(pair, folder):
    faults = [BY_NAME[name] for name in pair]
    case = plant(faults, "scenes", folder)
    for fault in faults:
        alone = plant([fault], "scenes", folder).config
        for key in fault.options:
            assert value_in(case.config, key) == value_in(alone, key) != value_in(case.healthy, key)
    assert changed(case.config, case.cure) == case.healthy


def test_a_rank_is_that_of_the_first_accepted_name():
    assert rank_of(("b", "c"), ["a", "c", "b"]) == 2
    assert rank_of(("d",), ["a", "c", "b"]) is None


@pytest.mark.parametrize(
    ("cure", "tried", "error", "verdict"),
    [
        ("--a=1", True, 0.43, "healthy"),
        ("--a=1", True, 0.45, "not healthy"),
        ("mend the files", False, math.nan, "can't be tried"),
        ("", False, math.nan, "nothing named"),
    ],
)
def test_a_cure_is_healthy_within_a_tenth(cure, tried, error, verdict):
    assert Cured(cure, tried, 0.4, 0.9, error).verdict == verdict


def test_what_a_cure_brings_is_a_row():
    found = Cured("--a=1", True, 0.4, 0.9, 0.41, 1, Mean(0.49, 0.4, 0.58, 9), 12.34)
    told = json.loads(json.dumps(found.figures()))
    assert told["seconds"] == 12.3
    row = as_table({"rate-too-large": told}).splitlines()[-1].split("|")
    words = [cell.strip() for cell in row[2:-1]]
    assert words == ["1.", "0.40", "0.90", "0.41", "0.49 (0.40 to 0.58)", "healthy"]
    unknown = Cured("mend the files", False, 0.4, math.nan, math.nan).figures()
    row = as_table({"rate-too-large": unknown}).splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[2:-1]] == ["-", "0.40", "-", "-", "-", "can't be tried"]


def test_the_docs_tell_what_was_measured():
    root = Path(__file__).parents[2]
    kept = json.loads((root / "benchmarks/results/diagnosis-cures.json").read_text())
    assert as_table(kept["bccd"]) in (root / "docs/how-to/diagnose.md").read_text()
