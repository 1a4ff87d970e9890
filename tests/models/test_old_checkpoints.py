"""Checkpoints and configs of version 0.1 go on in this one."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_bbox import BoxRegressor, Refiner
from lightning_bbox.cli.main import main

OLD = Path(__file__).parents[1] / "fixtures" / "v0.1"
EXPECTED = json.loads((OLD / "expected.json").read_text())
every_kind = pytest.mark.parametrize("kind", ["bins", "flow", "ridge", "alexnet"])
# One warning tells all new names of the options in a config.
pytestmark = pytest.mark.filterwarnings("ignore:data.format is data.reading.format now")

# Kinds of CPU sum in another order, so that fp32 differs in its last bits: whole runs of SSE4, AVX2
# and AVX-512 end within 1.2e-5 px of each other, one with AMX within 7e-3. Bits are compared where
# one machine makes both.
PREDICTED_PX, TRAINED_PX = 1e-4, 2e-2


class Count(pl.Callback):
    """Count the batches that a run trains on."""

    batches = 0

    def on_train_batch_end(self, *_: object) -> None:
        Count.batches += 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old runs and their data, as the working folder: a config says `root: data`."""
    copy = Path(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.chdir(copy)
    Count.batches = 0
    return copy


LABELS = ["bolt", "nut", "bolt"]  # of the rough boxes


def refined(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the boxes and their standard deviations, on a picture of the fixtures."""
    rough = torch.tensor(EXPECTED["rough"])
    found = Refiner(checkpoint, law="trained").refine_with_std(
        OLD / "data" / "0.png", rough, LABELS
    )
    return found.boxes, found.stds


def assert_predicts(checkpoint: Path, kind: str, px: float) -> None:
    old = (torch.tensor(EXPECTED[kind][name]) for name in ("boxes", "stds"))
    for new, then in zip(refined(checkpoint), old, strict=True):
        torch.testing.assert_close(new, then, atol=px, rtol=0, equal_nan=True)


def assert_ends_as_then(run: Path, kind: str) -> None:
    """Compare a run's end, its weights by what they predict, with that of the old code's run."""
    then, now = EXPECTED[kind]["metrics"], json.loads((run / "metrics.json").read_text())
    assert now["train_steps"] == then["train_steps"]
    assert [step for step, _ in now["val/curve"]] == [step for step, _ in then["val/curve"]]
    for new, old in zip(now["val/curve"], then["val/curve"], strict=True):
        assert new[1] == pytest.approx(old[1], abs=TRAINED_PX)
    for name in ("test/mae_px", "test/iou_after"):
        assert now[name] == pytest.approx(then[name], abs=TRAINED_PX)
    last = run / "checkpoints" / "last.ckpt"
    assert_predicts(last, kind, TRAINED_PX)
    whole = torch.load(OLD / "runs" / kind / "whole.ckpt", weights_only=True)
    assert torch.load(last, weights_only=True)["global_step"] == whole["global_step"]


def class_paths(checkpoint: dict[str, Any]) -> list[str]:
    parts = checkpoint["lightning_bbox"]["model"].values()
    return [part["class_path"] for part in parts if isinstance(part, dict)]


def with_public_paths(tree: Any) -> Any:
    """Return a checkpoint whose recipes say `lightning_bbox.BinHead`, not where that class lay."""
    if isinstance(tree, dict):
        return {key: with_public_paths(value) for key, value in tree.items()}
    if isinstance(tree, str) and tree.startswith("lightning_bbox."):
        return f"lightning_bbox.{tree.rpartition('.')[2]}"
    return tree


@every_kind
def test_an_old_checkpoint_holds_the_same_weights_and_predicts_as_then(kind: str) -> None:
    path = OLD / "runs" / kind / "whole.ckpt"
    model = BoxRegressor.load_from_checkpoint(path)
    state, stored = model.state_dict(), torch.load(path, weights_only=True)["state_dict"]
    assert all(state[name].equal(stored[name]) for name in state)
    # What follows from the recipe was stored too; it is made anew.
    made = dict(model.named_buffers())
    for name in stored.keys() - state.keys():
        torch.testing.assert_close(made[name].to(stored[name].dtype), stored[name])
    assert_predicts(path, kind, PREDICTED_PX)


@every_kind
def test_old_paths_and_public_ones_give_the_same_bits(kind: str, tmp_path: Path) -> None:
    path = OLD / "runs" / kind / "whole.ckpt"
    old = torch.load(path, weights_only=True)
    public = with_public_paths(old)
    assert not {*class_paths(old)} & {*class_paths(public)}
    torch.save(public, tmp_path / "public.ckpt")
    for first, second in zip(refined(path), refined(tmp_path / "public.ckpt"), strict=True):
        assert first.numpy().tobytes() == second.numpy().tobytes()


@every_kind
def test_an_old_run_goes_on_from_its_step_and_ends_as_it_did(kind: str, folder: Path) -> None:
    counted = f"--trainer.callbacks+={__name__}.Count"
    assert main(["fit", f"--resume=runs/{kind}", counted]) == 0
    assert Count.batches == (5 if kind == "ridge" else 15)
    assert_ends_as_then(folder / "runs" / kind, kind)
    # What is saved now says public paths only.
    last = folder / "runs" / kind / "checkpoints" / "last.ckpt"
    assert all(path.count(".") == 1 for path in class_paths(torch.load(last, weights_only=True)))


@pytest.mark.slow
@every_kind
def test_an_old_config_trains_as_it_did(kind: str, folder: Path) -> None:
    assert main(["fit", "-c", f"runs/{kind}/config.yaml", "--runs=new", "--name=run"]) == 0
    assert_ends_as_then(folder / "new" / "run", kind)


@every_kind
def test_an_old_checkpoint_is_tested_by_its_old_config(kind: str, folder: Path) -> None:
    config, name = f"runs/{kind}/config.yaml", f"--name={kind}-test"
    assert main(["test", "-c", config, f"--ckpt_path=runs/{kind}/whole.ckpt", name]) == 0
    metrics = json.loads((folder / "runs" / f"{kind}-test" / "metrics.json").read_text())
    then = EXPECTED[kind]["metrics"]["test/mae_px"]
    assert metrics["test/mae_px"] == pytest.approx(then, abs=PREDICTED_PX)
