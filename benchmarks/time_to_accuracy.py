"""How many seconds of training it takes until validation reaches an error.

`fit` runs as a user calls it, with one callback more, and ends once the last error is reached.
Three figures: the whole time from the first preparation on, the time of the training steps alone,
and by how much the first step exceeds the others, which is warm-up and compilation.

The data is `bccd` where the setting has real data and the size is full; else built-in scenes.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.rows import Row, Timing
from benchmarks.runner import Setting, run_facts, spread, synchronize
from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.core.memory import keep_freed_memory

TARGETS = (1.0, 0.85)
"""Errors in px."""


class AccuracyClock(pl.Callback):
    """Write down when validation reached what, and stop once it reached the least of all.

    Args:
        file: Where to.
        targets: Errors of validation, px.
    """

    def __init__(self, file: str, targets: tuple[float, ...] = TARGETS) -> None:
        self.file, self.targets = Path(file), targets
        self.began = self.step_began = time.perf_counter()
        self.steps: list[float] = []
        self.curve: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the first step, whose batch is still to come."""
        synchronize(pl_module.device)
        self.step_began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note how long the step took; only the first and the last of an epoch wait for a GPU."""
        if not self.steps or trainer.is_last_batch:
            synchronize(pl_module.device)
        now = time.perf_counter()
        self.steps.append(now - self.step_began)
        self.step_began = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the error."""
        synchronize(pl_module.device)
        now = time.perf_counter()
        error = float(trainer.callback_metrics["val/mae_px"])
        late = max(0.0, self.steps[0] - spread(self.steps).median)
        self.curve.append(
            {
                "error": error,
                "step": len(self.steps),
                "all": now - self.began,
                "steps": sum(self.steps),
                "steady": sum(self.steps) - late,
                "first step's excess": late,
            }
        )
        self.file.write_text(json.dumps(self.curve))
        self.step_began = now  # validation is no part of the next step
        if error <= min(self.targets):
            trainer.should_stop = True


def rows(setting: Setting) -> Iterator[Row]:
    """Train each seed, and yield a row for each error."""
    if setting.size != "smallest":  # as the command line's own process does, for good
        keep_freed_memory()
    run, (name, options) = run_facts(setting, torch.get_num_threads()), job(setting)
    curves = [train(seed, options, setting) for seed in setting.seeds]
    for target in TARGETS:
        reached = [point for curve in curves if (point := first_below(curve, target))]
        arms = [
            Timing(arm, spread([point[key] for point in reached]), excess(reached), None, note)
            for arm, key, note in ARMS
            if reached
        ]
        best = min(point["error"] for curve in curves for point in curve)
        runs = f"{len(curves) - len(reached)} of {len(curves)} runs"
        missed = {"not reached": f"in {runs}, best {best:.3f} px"}
        yield Row(
            question="time_to_accuracy",
            case=f"{name} to {target:g} px",
            size=setting.size,
            run=run,
            unit="steps",
            items=round(spread([point["step"] for point in reached]).median) if reached else 0,
            arms=arms,
            skipped=missed if len(reached) < len(curves) else {},
        )


ARMS = (
    ("training steps", "steps", "warm-up and compilation in, validation out"),
    ("training steps, the first like the others", "steady", "warm-up and compilation out"),
    ("everything", "all", "with preparations and validation"),
)


def excess(reached: list[dict[str, float]]) -> float:
    """Return by how much the first step exceeded the median one."""
    return spread([point["first step's excess"] for point in reached]).median


def first_below(curve: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """Return where a curve first reached an error."""
    return next((point for point in curve if point["error"] <= target), None)


def job(setting: Setting) -> tuple[str, list[str]]:
    """Return what is trained, and the command's options."""
    if setting.size == "full" and setting.data is not None:
        name = setting.config or "bccd_fast"
        config = name if name.endswith(".yaml") else f"preset:{name}"
        return Path(name).stem, ["-c", config, f"--data.root={setting.data / 'bccd'}"]
    options = ["-c", "preset:quickstart", "--trainer.max_epochs=12", "--data.draws_per_epoch=1024"]
    options += ["--data.eval_draws=500"]
    if setting.size == "smallest":
        options += ["--data.num_scenes=40", "--data.draws_per_epoch=128", "--data.batch_size=64"]
        options += ["--data.eval_draws=32", "--trainer.max_epochs=2"]
    return "scenes, reduced", options


def train(seed: int, options: list[str], setting: Setting) -> list[dict[str, float]]:
    """Run `fit`, and return its curve."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "curve.json"
        clock = {
            "class_path": f"{__name__}.AccuracyClock",
            "init_args": {"file": str(file), "targets": list(TARGETS)},
        }
        command = ["fit", *options, f"--seed_everything={seed}", f"--runs={folder}", "--name=run"]
        command += [f"--trainer.callbacks={json.dumps([clock])}", "--trainer.devices=1"]
        command += [f"--trainer.accelerator={'gpu' if setting.on_cuda else 'cpu'}"]
        if code := lightning_bbox(command):
            msg = f"{' '.join(command)} ended with {code}"
            raise RuntimeError(msg)
        curve: list[dict[str, float]] = json.loads(file.read_text())
        return curve
