"""How many seconds of training it takes until validation reaches an error.

`fit` runs as a user calls it, with one callback more, and ends once the last error is reached.
Its figures: the whole time from the first preparation on, by the clock and of the processor, the
time of the training steps alone, and by how much the first step exceeds the others, which is
warm-up and compilation.

The data is `bccd` where the setting has real data and the size is full; else built-in scenes.
Several configs take turns, seed by seed, in reversed order for every other seed, and are then put
side by side: how many times as long as the first the others take, seed by seed.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
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

Point = dict[str, float]
"""What is known at a validation: the error, the step, and seconds until then."""
Curve = list[Point]


class AccuracyClock(pl.Callback):
    """Write down when validation reached what, and stop once it reached the least of all.

    Args:
        file: Where to.
        targets: Errors of validation, px.
    """

    def __init__(self, file: str, targets: tuple[float, ...] = TARGETS) -> None:
        self.file, self.targets = Path(file), targets
        self.began = self.step_began = time.perf_counter()
        self.processor_began = time.process_time()
        self.steps: list[float] = []
        self.curve: Curve = []

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
                "processor": time.process_time() - self.processor_began,
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
    """Train each config by each seed, and yield a row for each error, then those side by side."""
    if setting.size != "smallest":  # as the command line's own process does, for good
        keep_freed_memory()
    run = run_facts(setting, torch.get_num_threads())
    jobs = [job(setting, config) for config in setting.configs or ("bccd_fast",)]
    curves: list[list[Curve]] = [[] for _ in jobs]
    for turn, seed in enumerate(setting.seeds):
        for at in range(len(jobs))[:: -1 if turn % 2 else 1]:
            curves[at].append(train(seed, jobs[at][1], setting))
    found = [(name, own) for (name, _), own in zip(jobs, curves, strict=True)]
    row = partial(Row, question="time_to_accuracy", size=setting.size, run=run, unit="steps")
    for target in TARGETS:
        for name, own in found:
            yield row(**by_itself(name, own, target))
        for other in found[1:]:
            yield from (row(**each) for each in side_by_side(found[0], other, target))


def by_itself(name: str, curves: list[Curve], target: float) -> dict[str, Any]:
    """Return what a row says of one config."""
    reached = [point for curve in curves if (point := first_below(curve, target))]
    best = min(point["error"] for curve in curves for point in curve)
    missed = f"in {len(curves) - len(reached)} of {len(curves)} runs, best {best:.3f} px"
    return {
        "case": f"{name} to {target:g} px",
        "items": median_step(reached) if reached else 0,
        "arms": [timing(arm, key, reached, note) for arm, key, note in ARMS if reached],
        "skipped": {"not reached": missed} if len(reached) < len(curves) else {},
    }


def side_by_side(
    one: tuple[str, list[Curve]], other: tuple[str, list[Curve]], target: float
) -> Iterator[dict[str, Any]]:
    """Yield what rows say of two configs, by the seeds that reached the error with both."""
    both = [
        [first_below(curve, target) for curve in pair]
        for pair in zip(one[1], other[1], strict=True)
    ]
    whole = [(first, second) for first, second in both if first and second]
    missed = f"in {len(both) - len(whole)} of {len(both)} seeds"
    for arm, key, note in ARMS if whole else ():
        times = zip((one[0], other[0]), zip(*whole, strict=True), strict=True)
        yield {
            "case": f"{other[0]} beside {one[0]} to {target:g} px, {arm}",
            "items": median_step([first for first, _ in whole]),
            "arms": [timing(name, key, list(reached), note) for name, reached in times],
            "ratios": {other[0]: spread([second[key] / first[key] for first, second in whole])},
            "skipped": {"not reached by both": missed} if len(whole) < len(both) else {},
        }


ARMS = (
    ("training steps", "steps", "warm-up and compilation in, validation out"),
    ("training steps, the first like the others", "steady", "warm-up and compilation out"),
    ("everything", "all", "with preparations and validation"),
    ("everything, processor time", "processor", "of all threads; hardly depends on neighbours"),
)


def timing(name: str, key: str, reached: list[Point], note: str) -> Timing:
    """Return how long it took, and by how much the first step exceeded the median one."""
    late = spread([point["first step's excess"] for point in reached]).median
    return Timing(name, spread([point[key] for point in reached]), late, None, note)


def median_step(reached: list[Point]) -> int:
    """Return after how many steps it was reached."""
    return round(spread([point["step"] for point in reached]).median)


def first_below(curve: Curve, target: float) -> Point | None:
    """Return where a curve first reached an error."""
    return next((point for point in curve if point["error"] <= target), None)


def job(setting: Setting, name: str) -> tuple[str, list[str]]:
    """Return what is trained, and the command's options."""
    if setting.size == "full" and setting.data is not None:
        config = name if name.endswith(".yaml") else f"preset:{name}"
        return Path(name).stem, ["-c", config, f"--data.root={setting.data / 'bccd'}"]
    options = ["-c", "preset:quickstart", "--trainer.max_epochs=12", "--data.draws_per_epoch=1024"]
    options += ["--data.eval_draws=500"]
    if setting.size == "smallest":
        options += ["--data.num_scenes=40", "--data.draws_per_epoch=128", "--data.batch_size=64"]
        options += ["--data.eval_draws=32", "--trainer.max_epochs=2"]
    return "scenes, reduced", options


def train(seed: int, options: list[str], setting: Setting) -> Curve:
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
        curve: Curve = json.loads(file.read_text())
        return curve
