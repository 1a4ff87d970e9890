"""Short runs of the campaigns, and that they find what they look for."""

import json

import pytest

from tests.campaign import fuzz, judge
from tests.campaign.cases import KINDS, Case, case_of
from tests.campaign.judge import judged
from tests.conftest import DATA

pytestmark = pytest.mark.slow  # fits and campaigns in processes of their own

REAL = DATA if DATA.is_dir() else None


def test_nothing_but_a_table_or_a_sentence_comes_of_four_hundred_cases(capsys):
    assert fuzz.main(["--cases", "400", "--seed", "11"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{kind}: 80 cases" in printed for kind in KINDS)
    assert printed.endswith("findings: 0\n")


@pytest.mark.parametrize("data", [None, REAL])
def test_cases_are_a_function_of_seed_and_number(data):
    for number in range(60):
        assert case_of(3, number, data) == case_of(3, number, data)
        assert case_of(3, number, data).kind == KINDS[number % len(KINDS)]
    assert case_of(3, 7, data) != case_of(4, 7, data)


@pytest.mark.filterwarnings("ignore")  # Pillow's own words about the damage
def test_cases_reach_every_outcome(tmp_path):
    outcomes = {judged(case_of(0, number, None), tmp_path / "case")[:2] for number in range(300)}
    kinds = ("voc", "coco", "yolo", "csv")
    expected = {(kind, outcome) for kind in kinds for outcome in ("refused", "written")}
    assert outcomes >= expected | {("picture", "refused"), ("picture", "read")}


GOOD = Case("csv", {"a.csv": b"image,x1,y1,x2,y2\na.png,1,1,9,9", "a.png": b""})


def raising(error):
    def read(*_, **__):
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (KeyError("xmin"), "KeyError: 'xmin'"),
        (MemoryError(), "MemoryError: "),
        (RecursionError("deep"), "RecursionError: deep"),
        (judge.BadInput(" "), "AssertionError: an empty sentence"),
    ],
)
def test_whatever_else_comes_out_is_a_finding(tmp_path, monkeypatch, error, finding):
    assert judged(GOOD, tmp_path / "case").outcome == "refused"
    monkeypatch.setattr(judge, "read_annotations", raising(error))
    verdict = judged(GOOD, tmp_path / "case")
    assert (verdict.outcome, verdict.finding) == ("failed", finding)
    assert not (tmp_path / "case").exists()


def test_long_and_large_cases_are_findings(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "MOST_MEMORY", -1)
    assert "memory grew by" in judged(GOOD, tmp_path / "case").finding
    monkeypatch.setattr(judge, "LONGEST", 0.0)
    assert "took 0." in judged(GOOD, tmp_path / "case").finding


PROGRAM = """
import resource, sys, tests.campaign.fuzz as fuzz, tests.campaign.judge as judge
run, limit = judge._run, resource.setrlimit
def hurt(case, root):
    if case.kind == "coco":
        {harm}
    return run(case, root)
def limit_and_arm(*args):  # from the first case of the campaign on
    judge._run = hurt
    limit(*args)
resource.setrlimit = limit_and_arm
sys.exit(fuzz.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        ("import time; time.sleep(60)", "hangs for more than 1 s"),
        ("import os; os.kill(os.getpid(), 11)", "the process died with -11"),
        ("bytearray(3 << 30)", "MemoryError"),
    ],
)
def test_hangs_and_deaths_are_found_and_the_campaign_goes_on(
    tmp_path, monkeypatch, capsys, harm, finding
):
    (tmp_path / "hurt.py").write_text(PROGRAM.format(harm=harm))
    monkeypatch.setattr(fuzz, "COMMAND", (str(tmp_path / "hurt.py"),))
    monkeypatch.setattr(fuzz, "PATIENCE", 1.0)
    keep = tmp_path / "keep"
    assert fuzz.main(["--cases", "3", "--made-up", "--keep", str(keep)]) == 1
    printed = capsys.readouterr().out
    assert f"finding in coco: {finding}" in printed
    assert "repeat: python -m tests.campaign.fuzz --seed 0 --case 1 --made-up" in printed
    assert "coco: 1 cases: 1 failed\nyolo: 1 cases: 1" in printed
    assert printed.endswith("findings: 1\n")
    assert finding in (keep / "0-1/finding.txt").read_text()
    assert json.loads((keep / "0-1/options.json").read_text())["kind"] == "coco"
