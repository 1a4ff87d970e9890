"""`lightning-bbox compare`: side by side, over divergence, and on from where it stopped."""

import json
import signal
import subprocess
import time
import warnings

import pytest
import torch
import yaml

from lightning_bbox import BoxRegressor
from lightning_bbox.cli.main import main
from lightning_bbox.cli.run import rehearse
from lightning_bbox.core.messages import plain_warnings
from lightning_bbox.studies.results import read_result
from lightning_bbox.studies.study import Arm, Run
from lightning_bbox.studies.study_file import read_study
from tests.conftest import ROOT
from tests.runs import CONFIGS, PYTHON, files_of

pytestmark = pytest.mark.slow  # fits and campaigns in processes of their own

SMOKE = CONFIGS / "compare" / "smoke.yaml"


def write_study(folder, **parts):
    """Write the smoke test's study with other parts, and return its path."""
    path = folder / "mine.yaml"
    base = {"base": "preset:quickstart", "seeds": [0], "axes": {}}
    path.write_text(yaml.safe_dump(yaml.safe_load(SMOKE.read_text()) | base | parts))
    return path


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    runs = tmp_path_factory.mktemp("compare")
    assert main(["compare", "-c", str(SMOKE), f"--runs={runs}", "--jobs=2"]) == 0
    return runs / "smoke"


def results_of(folder):
    return {run.name: read_result(run, folder / run.name) for run in read_study(SMOKE).runs()}


def test_every_run_arrives_or_says_where_it_diverged(smoke):
    results = results_of(smoke)
    assert len(results) == 6
    for name, result in results.items():
        if name.startswith("rate-huge"):
            assert (result.status, result.metrics) == ("diverged", {})
            assert result.step is not None
            assert 0 < result.step < 24
            assert "not finite" in result.detail
        else:
            assert result.status == "done"
            assert result.metrics["train_steps"] == 24
            assert [step for step, _ in result.curve] == [4, 8, 12, 16, 20, 24]
            assert len(result.errors) == len(result.pictures) == 100


def test_every_arm_of_a_seed_sees_the_same_draws(smoke):
    results = results_of(smoke)
    arms = [results[f"{arm}-seed1"] for arm in ("base", "head-L2")]
    assert torch.equal(arms[0].pictures, arms[1].pictures)
    means = [arm.metrics["test/mae_px_predict_mean"] for arm in arms]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    other = results["base-seed0"].metrics["test/mae_px_predict_mean"]
    assert abs(other - means[0]) > 1e-4


def test_the_error_of_each_draw_is_what_the_metrics_sum_up(smoke):
    for result in results_of(smoke).values():
        if result.status == "done":
            assert float(result.errors.mean()) == pytest.approx(result.metrics["test/mae_px"])


def test_what_is_there_is_not_run_again_and_what_is_not_is(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("*/metrics.json")}
    gone = smoke / "base-seed1"
    for path in (gone / "metrics.json", *gone.glob("checkpoints/*")):
        path.unlink()
    assert main(["compare", "-c", str(SMOKE), f"--runs={smoke.parent}"]) == 0
    after = {path: path.stat().st_mtime_ns for path in smoke.glob("*/metrics.json")}
    assert {path for path in after if after[path] != before.get(path)} == {gone / "metrics.json"}
    assert "1 runs to make" in capsys.readouterr().out


def test_other_settings_do_not_mix_with_what_is_there(smoke, capsys):
    assert main(["compare", "-c", str(SMOKE), f"--runs={smoke.parent}", "--steps=5"]) == 2
    error = capsys.readouterr().err
    assert "was run with other settings (trainer.max_steps 24, now 5); give the study" in error


def test_what_diverged_is_no_result_of_other_settings(tmp_path, capsys):
    """Nor is what keeps no checkpoint: results say themselves by what they were made."""
    options = yaml.safe_load(SMOKE.read_text())["options"]
    options["trainer.enable_checkpointing"] = False
    large = {"model.optimizer": "AdamW", "model.optimizer.lr": 1e20}

    def command(steps):
        arms = {"large": large}
        study = write_study(tmp_path, options=options, arms=arms, steps=steps)
        return ["compare", "-c", str(study), f"--runs={tmp_path}", "--jobs=2"]

    assert main(command(steps=4)) == 0
    before = files_of(tmp_path / "mine")
    assert json.loads(before["large-seed0/outcome.json"])["status"] == "diverged"
    large["model.optimizer.lr"] = 0.01
    assert main(command(steps=4)) == 2
    sentence = "large-seed0: was run with other settings (model.optimizer.lr 1e+20, now 0.01)"
    assert sentence in capsys.readouterr().err
    large["model.optimizer.lr"] = 1e20
    assert main(command(steps=8)) == 2
    assert "was run with other settings (trainer.max_steps 4, now 8)" in capsys.readouterr().err
    assert files_of(tmp_path / "mine") == before
    assert main(command(steps=4)) == 0
    assert "0 runs to make, 2 at once; 2 are there already" in capsys.readouterr().out


STUDIES = sorted(SMOKE.parent.glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_no_arm_of_the_studies_here_is_refused(path):
    study = read_study(path)
    runs = [run for run in study.runs() if run.seed == study.seeds[0] and not run.fold]
    with plain_warnings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some arms are there to show what a warning is about
        words = path.read_text().replace("#", "").split()
        given = ["--data.root=pictures"] * ("Give --data.root" in " ".join(words))
        settings = [rehearse(["fit", *study.arguments(run, given)]) for run in runs]
    assert [found["seed_everything"] for found in settings] == [run.seed for run in runs]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.kind=none"], "smoke.yaml: arm 'base': data.kind: is 'none'"),
        (["--data.num_scenes=1"], "scenes"),  # known only once the data is there
    ],
)
def test_a_study_whose_base_is_refused_is_refused(tmp_path, capsys, options, sentence):
    assert main(["compare", "-c", str(SMOKE), f"--runs={tmp_path}", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model.head": "BinHead", "model.head.bin_width": -1.0}, "BinHead's bin_width -1.0"),
        ({"model.head": "SoftArgmaxHead"}, "SoftArgmaxHead needs a backbone whose features are"),
        ({"model.passes": 10}, "model.passes is 10, but nothing in the model draws at random"),
        (
            {"model.head": "LinearHead", "model.head.loss": "nosuch.Loss"},
            "model.head.loss: nosuch.Loss can't be imported (No module named 'nosuch')",
        ),
    ],
)
def test_an_arm_that_is_refused_is_named_before_anything_runs(tmp_path, capsys, options, sentence):
    study = write_study(tmp_path, arms={"mine": options})
    assert main(["compare", "-c", str(study), f"--runs={tmp_path}"]) == 2
    assert f"mine.yaml: arm 'mine': {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([f"-c={SMOKE}", "--jobs=0"], "--jobs is 0"),
        ([f"-c={SMOKE}", "--steps=0"], "--steps is 0"),
        (
            ["-c", "preset:compare/inti"],
            "choose one of compare/bins, compare/classes, compare/init",
        ),
    ],
)
def test_what_can_not_be_run_is_said_at_once(arguments, sentence, capsys):
    assert main(["compare", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_stopped_study_leaves_no_process_and_goes_on(tmp_path):
    """Runs of a study are as exact as any: gone on with, they end as if never stopped."""
    options = yaml.safe_load(SMOKE.read_text())["options"] | {"data.draws_per_epoch": 2048}
    arms = {"wide": {"model.backbone.fc": [64]}}
    path = write_study(tmp_path, name="stopped", options=options, arms=arms, steps=128)
    command = [*PYTHON, "compare", f"-c={path}", f"--runs={tmp_path}", "--jobs=2"]
    folder = tmp_path / "stopped"
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len([*folder.glob("*/checkpoints/last.ckpt")]) == 2)
    study.send_signal(signal.SIGINT)
    assert "the same command goes on" in study.communicate(timeout=900)[1]
    assert study.returncode == 130
    assert not [*folder.glob("*/metrics.json")]
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in ("base", "wide"):
        metrics = json.loads((folder / f"{name}-seed0" / "metrics.json").read_text())
        assert metrics["train_steps"] == 128
        steps = [step for step, _ in metrics["val/curve"]]
        assert steps == list(range(32, 129, 32))


def wait_for(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_study_with_a_run_that_fails_says_so_at_its_end(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_recipe.py").write_text(
        "from lightning_bbox.nn.losses import Loss\n\n\n"
        "class BrokenLoss(Loss):\n    def penalty(self, error, std):\n        return no_such\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = {"model.head": "LinearHead", "model.head.loss": "broken_recipe.BrokenLoss"}
    study = write_study(tmp_path, arms={"broken": broken}, steps=6)
    assert main(["compare", "-c", str(study), f"--runs={tmp_path}"]) == 2
    output = capsys.readouterr()
    assert "1 of 2 runs were refused or failed, the first broken-seed0 (NameError" in output.err
    assert (tmp_path / "mine" / "comparison.html").is_file()
    # Its budget ends within an epoch of four steps: what is told is what was trained to its end.
    result = read_result(Run(Arm("base"), 0), tmp_path / "mine" / "base-seed0")
    assert [step for step, _ in result.curve] == [4, 6]
    assert result.metrics["train_steps"] == 6


def test_the_readmes_own_recipe_trains_and_is_found_again(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    code = readme.partition("# mine.py\n")[2].partition("```")[0]
    assert 5 < len(code.splitlines()) < 20
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    study = read_study(SMOKE)
    options = ["--model.head=LinearHead", "--model.head.loss=mine.CauchyLoss"]
    arguments = study.arguments(study.runs()[0], [*options, "--trainer.log_every_n_steps=1"])
    assert main(["fit", *arguments, f"--runs={tmp_path}", "--name=run"]) == 0
    model = BoxRegressor.load_from_checkpoint(tmp_path / "run")
    assert type(model.net.head.criterion).__name__ == "CauchyLoss"


def test_a_system_that_can_not_run_studies_is_told_so(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    said = refused(["compare", "-c", str(tmp_path / "study.yaml"), f"--runs={tmp_path}"])
    assert said == (
        "compare needs a server of processes, which Windows hasn't; run it on Linux or macOS"
    )
    assert files_of(tmp_path) == {}
