"""Runs that many tests make: commands with small options, models trained in Python, processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch

from benchmarks.protocol import read_curve
from lightning_bbox import BoxRegressor, CropGeometry, SceneDataModule, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.models.checkpoints import read_checkpoint
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
PYTHON = [sys.executable, "-m", "lightning_bbox"]
TINY = [
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.precision=32-true",
    "--data.batch_size=16",
    "--data.draws_per_epoch=64",
    "--data.eval_draws=40",
    "--data.compile=false",
    "--model.backbone=ShallowConvNet",
    "--model.backbone.channels=[4,8]",
    "--model.backbone.convs_per_scale=1",
    "--model.backbone.fc=[16]",
]
SCENES = ["fit", "-c", str(CONFIGS / "quickstart.yaml"), "--data.num_scenes=60", *TINY]
# Three epochs at a high rate.
HASTY = [
    *SCENES,
    "--trainer.max_epochs=3",
    "--model.backbone.dropout=0.5",
    "--model.optimizer=AdamW",
    "--model.optimizer.lr=0.1",
]
# Batches of 18: on four processes 5, 5, 4 and 4. Four steps an epoch, two epochs.
DOUBLE = [
    *SCENES,
    "--data.batch_size=18",
    "--data.draws_per_epoch=72",
    "--data.eval_draws=41",
    "--trainer.precision=64-true",
    "--trainer.log_every_n_steps=2",
    "--model.backbone.batch_norm=false",
]


def fit(runs: Path, name: str, *options: str, base: list[str] = SCENES) -> Path:
    """Run a tiny fit and return its folder."""
    assert main([*base, f"--runs={runs}", f"--name={name}", *options]) == 0
    return runs / name


def resume(folder: Path, *options: str) -> int:
    return main(["fit", f"--resume={folder}", *options])


def predict_with(run: Path, data: Path) -> list[str]:
    """Return the command that refines a data set with a run's best model, beside that set."""
    return [
        *("predict", "--model=BoxRegressor", "--data=BoxDataModule", f"--data.root={data}"),
        *(f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", f"--runs={data.parent}"),
        *("--data.compile=false", "--trainer.precision=32-true"),
    ]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def same(first: object, second: object) -> bool:
    """Tell whether two trees of tensors and plain values are equal to the bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        alike = first.dtype == second.dtype and first.shape == second.shape
        return alike and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def end_of(folder: Path) -> dict[str, object]:
    """Return what a finished run must have in common with one that was not hit."""
    end: dict[str, object] = {}
    for name in ("last", "best"):
        checkpoint = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            end[f"{name}.{key}"] = checkpoint[key]
    metrics = json.loads((folder / "metrics.json").read_text())
    own = ("train_seconds", "settings")  # those of a run that is hit say so
    return end | {"metrics": {key: metrics[key] for key in metrics if key not in own}}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of each file, by its path below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def file_names(folder: Path) -> list[str]:
    """Return the files of a run, events without time and process."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted("events" if "tfevents" in path.name else path.as_posix() for path in paths)


def equal(folder: Path, whole: Path) -> bool:
    return same(end_of(folder), end_of(whole))


def metrics(folder: Path) -> dict[str, float]:
    """Return the numbers of a run's test, without the time it took."""
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, int | float)} | {
        "train_seconds": 0.0
    }


def assert_equal_runs(folder: Path, whole: Path, atol: float) -> None:
    """See that two runs end with the same parameters and metrics."""
    expected, found = weights(whole), weights(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)
    assert metrics(folder) == pytest.approx(metrics(whole), rel=atol, abs=atol)


def assert_equal_curves(folder: Path, whole: Path, atol: float) -> None:
    """See that two runs logged the same."""
    for tag in ("train/loss", "train/lr", "val/mae_px", "train/mae_px"):
        steps, values = read_curve(whole, tag)
        assert read_curve(folder, tag) == (steps, pytest.approx(values, abs=atol))


# In Python.


class FrozenConvNet(ShallowConvNet):
    """A convnet that stays as it was initialised."""

    frozen = True

    def build(self, crop_size):
        super().build(crop_size)
        return self.requires_grad_(False)

    def train(self, mode=True):
        return super().train(False)


def scenes(**arguments):
    small = {"num_scenes": 30, "crop": CropGeometry(size=24), "batch_size": 16}
    small |= {"draws_per_epoch": 64, "eval_draws": 40, "compile": False}
    return SceneDataModule(**{**small, **arguments})


def frozen(**arguments):
    small = {"backbone": FrozenConvNet(channels=(4, 8), fc=(16,)), "compile": False}
    return BoxRegressor(**{**small, **arguments})


def trained_quietly(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train on the CPU without files or a word, and return the trainer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(**quiet | options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


class Watch(pl.Callback):
    """Keep what a run computed, and what its batches were."""

    def __init__(self):
        self.losses, self.rows, self.crops, self.evaluated = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.rows.append(batch.rows)
        self.crops.append(batch.crops.shape)

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        self.evaluated.append((float(metrics["val/loss"]), float(metrics["train/mae_px"])))


def trained(model, data=None, *callbacks, epochs=2, **options):
    """Train as `trained_quietly` does, and return what the run did."""
    watch = Watch()
    options = {"num_sanity_val_steps": 0, "log_every_n_steps": 1} | options
    options |= {"max_epochs": epochs, "callbacks": [watch, *callbacks]}
    trained_quietly(model, data or scenes(), **options)
    return watch


OURS = ("features", "the learning rate")


def told(*arguments, **options):
    """Train, and return what the run did, and our own warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = trained(*arguments, **options)
    said = [str(warning.message) for warning in caught]
    return watch, [sentence for sentence in said if sentence.startswith(OURS)]


# In processes of their own.


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def ranks(count: int) -> list[str]:
    return ["--trainer.accelerator=cpu", f"--trainer.devices={count}", "--trainer.strategy=ddp"]


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with nothing of this process's run."""
    ours = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], timeout: float = 900) -> Ended:
    """Wait until a command and all processes it began have ended: until then its pipes are open."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Ended(process.returncode, out, err)


def run(command: Sequence[str], **environment: str) -> Ended:
    return ended(start(command, **environment))


def run_well(command: Sequence[str], **environment: str) -> Ended:
    finished = run(command, **environment)
    assert finished.code == 0, finished.err[-3000:]
    return finished


# Hit in their midst.


def strike(signum: int, whom: str, step: int = 3, rank: int = 1) -> list[str]:
    """Return the options that have one process strike."""
    arguments = {"signum": signum, "whom": whom, "step": step, "rank": rank}
    options = [f"--trainer.callbacks.{name}={value}" for name, value in arguments.items()]
    return ["--trainer.callbacks+=tests.runs.Strike", *options]


class Strike(pl.Callback):
    """Send a signal, or fail where it is 0, after a step, or in the validation after step 0."""

    def __init__(self, signum: int, whom: str, step: int, rank: int) -> None:
        self.signum, self.whom, self.step, self.rank = signum, whom, step, rank
        self.main = os.getppid()  # once that one is gone, another's

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            self._strike(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if not self.step:
            self._strike(trainer)

    def on_test_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if self.step < 0:
            self._strike(trainer)

    def _strike(self, trainer: pl.Trainer) -> None:
        if trainer.global_rank != self.rank or os.getppid() != self.main:
            return
        (Path(trainer.default_root_dir) / "struck").touch()
        if not self.signum:
            msg = "one process fails"
            raise RuntimeError(msg)
        whom = {"itself": os.getpid(), "main": self.main, "group": 0}[self.whom]
        (os.killpg if self.whom == "group" else os.kill)(whom, self.signum)


class Interfere(pl.Callback):
    """Send signals to this process at a moment of a run, once; or do what else is asked.

    Args:
        moment: Hook to act in.
        step: Steps done by then.
        action: Number of a signal, or name of a method here.
        times: How often.
    """

    done = False

    def __init__(self, moment: str, step: int, action: int | str, times: int = 1) -> None:
        self.moment, self.step, self.action, self.times = moment, step, action, times

    def _act(self, moment: str, trainer: pl.Trainer, batch: object = None) -> None:
        if Interfere.done or moment != self.moment or trainer.global_step != self.step:
            return
        Interfere.done = True
        for _ in range(self.times):
            if isinstance(self.action, str):
                getattr(self, self.action)(trainer, batch)
            else:
                os.kill(os.getpid(), self.action)

    def crash(self, *_: object) -> None:
        msg = "crash"
        raise RuntimeError(msg)

    def fill_disk(self, *_: object) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    def spoil_crop(self, _: object, batch: object) -> None:
        batch.crops[3] = torch.nan  # type: ignore[attr-defined]

    def spoil_gradient(self, trainer: pl.Trainer, _: object) -> None:
        next(trainer.lightning_module.parameters()).grad[0] = torch.inf  # type: ignore[index]

    def on_fit_start(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("start", trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, _: object, batch: object, *__: int) -> None:
        self._act("batch start", trainer, batch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("optimizer step", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("training", trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("validation", trainer)

    def on_test_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("test", trainer)

    def on_test_end(self, trainer: pl.Trainer, *_: object) -> None:
        self._act("test end", trainer)


def interfered(moment: str, step: int, action: int | str, times: int = 1) -> list[str]:
    """Return the options of a run that is interfered with, once."""
    Interfere.done = False
    arguments = {"moment": moment, "step": step, "action": action, "times": times}
    options = [f"--trainer.callbacks.{name}={value}" for name, value in arguments.items()]
    return ["--trainer.callbacks+=tests.runs.Interfere", *options]
