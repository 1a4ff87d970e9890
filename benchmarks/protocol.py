"""Run the README's table: every data set and recipe, several seeds, one process a run.

    python -m benchmarks.protocol --data FOLDER [--only bccd naive] [--seeds 0 1 2]

FOLDER holds `bccd`, `rbc` and `deeppcb`. A run whose `metrics.json` is there is not run again. At
the end `benchmarks/results/` holds every figure (`protocol.json`), the table (`protocol.md`), test
crops of the first run on BCCD (`crops.png`) and the error of the default and of the naive recipe
against steps (`curves.png`).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib import pyplot as plt

from lightning_bbox import BoxDataModule, BoxRegressor, Splits
from lightning_bbox.core.files import save_picture
from lightning_bbox.evaluation.intervals import TOO_FEW
from lightning_bbox.reports.sheets import COLUMNS, draw_rows, draw_sheet, random_rows

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arm:
    """One row of the table: a config, what it needs, and how to call it."""

    name: str
    config: str
    title: str
    data: str = ""
    patches: tuple[str, ...] | None = None
    options: tuple[str, ...] = field(default=())


FULL = ("--data.num_targets=4",)
ARMS = (
    Arm("bccd", "bccd", "BCCD red cells", "bccd"),
    Arm("naive", "naive", "the same, the question's recipe", "bccd"),
    Arm("rbc", "rbc", "RBC red cells", "rbc"),
    Arm("rbc-full", "rbc", "the same with sizes (dx, dy, dw, dh)", "rbc", options=FULL),
    Arm("deeppcb", "deeppcb", "DeepPCB defects, unseen boards", "deeppcb"),
    Arm("patches", "patches", "DeepPCB patches with a margin", "deeppcb", ()),
    Arm("patches-shifted", "patches", "DeepPCB patches already shifted", "deeppcb", ("--shifted",)),
    Arm("bright", "quickstart", "scenes: bright"),
    Arm("polar", "quickstart", "scenes: polar", options=("--data.kind=polar",)),
    Arm("texture", "quickstart", "scenes: texture", options=("--data.kind=texture",)),
)


def main(args: list[str] | None = None) -> int:
    """Run what is missing, then write the tables and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--only", nargs="*", default=[arm.name for arm in ARMS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args(args)
    options.runs.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        for seed in options.seeds if arm.name in options.only else ():
            run(arm, seed, options.data, options.runs)
    write_results(options.runs)
    draw_crops(options.data, options.runs)
    return 0


def run(arm: Arm, seed: int, data: Path, runs: Path) -> None:
    """Run one arm with one seed, in a process of its own."""
    name = f"{arm.name}-{seed}"
    if (runs / name / "metrics.json").is_file():
        return
    command = [sys.executable, "-m", "lightning_bbox", "fit", "-c", f"preset:{arm.config}"]
    command += [f"--seed_everything={seed}", f"--runs={runs}", f"--name={name}", *arm.options]
    if arm.patches is not None:
        command.append(f"--data.file={patches_file(arm, data, runs)}")
    elif arm.data:
        command.append(f"--data.root={data / arm.data}")
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()
    with (runs / f"{name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def patches_file(arm: Arm, data: Path, runs: Path) -> Path:
    """Return the arm's patches, made where they are missing."""
    path = runs / f"{arm.name}.npz"
    if not path.is_file():
        make = [sys.executable, "-m", "benchmarks.make_patches", str(data / arm.data), str(path)]
        subprocess.run([*make, *(arm.patches or ())], check=True)
    return path


def write_results(runs: Path) -> None:
    """Write the figures of all runs that are there."""
    results = {arm.name: collect(arm, runs) for arm in ARMS}
    results = {name: found for name, found in results.items() if found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "protocol.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "protocol.md").write_text(as_markdown(results))
    draw_curves(runs)


def collect(arm: Arm, runs: Path) -> list[dict[str, Any]]:
    """Return the metrics of an arm's runs."""
    folders = sorted(runs.glob(f"{arm.name}-[0-9]"))
    files = [folder / "metrics.json" for folder in folders]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def as_markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of results."""
    lines = [
        "| data | seeds | predict the mean | error | times below | IoU | Cramer-Rao | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        if found := results.get(arm.name):
            names = "mae_px", "mae_px_predict_mean", "iou_before", "iou_after"
            error, guess, before, after = (average(found, f"test/{name}") for name in names)
            known = "test/cramer_rao_mae_px" in found[0]
            bound = f"{average(found, 'test/cramer_rao_mae_px'):.3f}" if known else ""
            quickest = min(metrics["train_seconds"] for metrics in found)
            lines.append(
                f"| {arm.title} | {len(found)} | {guess:.2f} | {with_spread(found)} | "
                f"{guess / error:.1f} | {before:.3f} to {after:.3f} | "
                f"{bound} | {quickest:.0f} |"
            )
    return "\n".join(lines) + "\n"


def average(found: list[dict[str, Any]], key: str) -> float:
    """Return the mean over seeds."""
    return sum(float(metrics[key]) for metrics in found) / len(found)


def with_spread(found: list[dict[str, Any]]) -> str:
    """Return the mean over seeds with the spread, or for one seed the interval over groups."""
    errors = torch.tensor([metrics["test/mae_px"] for metrics in found])
    if len(found) > 1:
        return f"{errors.mean():.3f} ({errors.min():.3f} to {errors.max():.3f})"
    return error_of(found[0])


def error_of(metrics: dict[str, Any], digits: int = 3) -> str:
    """Return a run's test error with its interval over pictures or groups, where it has one."""
    ends = [metrics.get(f"test/mae_px_{end}") for end in ("low", "high")]
    told = TOO_FEW if None in ends else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
    return f"{metrics['test/mae_px']:.{digits}f} ({told})"


def draw_curves(runs: Path) -> None:
    """Draw error against steps: the default recipe and the naive one, training and validation."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    for arm, name, colour in (("naive", "naive", "tab:red"), ("bccd", "default", "tab:blue")):
        for folder in sorted(runs.glob(f"{arm}-[0-9]")):
            for tag, style in (("train/mae_px", ":"), ("val/mae_px", "-")):
                steps, values = read_curve(folder, tag)
                label = f"{name}: {tag.split('/')[0]}" if folder.name.endswith("-0") else None
                axes.plot(steps, values, style, color=colour, label=label)
    axes.axhline(2.5, color="grey", linewidth=1)
    axes.annotate(
        "predict the mean", (0.99, 2.5), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    axes.set(xlabel="steps", ylabel="mean absolute error, px", ylim=(0, 2.8))
    axes.legend(ncols=2, loc="lower left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / "curves.png", dpi=150)


def draw_crops(data: Path, runs: Path, arm: str = "bccd") -> None:
    """Draw test crops of the first run of an arm: the README's picture."""
    folder = runs / f"{arm}-0"
    if not (folder / "metrics.json").is_file():
        return
    module = BoxDataModule(
        str(data / arm),
        classes=["RBC"],
        min_size=20,
        splits=Splits(train="ImageSets/Main/trainval.txt", test="ImageSets/Main/test.txt"),
    )
    model = BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.test(model, datamodule=module, verbose=False)
    evaluation = model.evaluations["test"]
    panels = draw_rows(module, evaluation, random_rows(evaluation, 2 * COLUMNS))
    save_picture(RESULTS / "crops.png", draw_sheet([("", panels)]))


def read_curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Read one scalar from a run's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = events.Scalars(tag)
    return [scalar.step for scalar in scalars], [scalar.value for scalar in scalars]


if __name__ == "__main__":
    sys.exit(main())
