"""Train with one process and with two: are they one model, and which is faster on two cores?

    python -m benchmarks.ranks [--steps 60] [--rounds 3]

First the default model without batch norm learns built-in scenes in 64-true for one epoch, with one
process and with two: printed is the largest difference of their parameters, which must be rounding.
Then one process with one thread, one with two threads and two with one thread each train the
default model on the same global batches, in turns, the order reversed in every other round. The
crops a second between two logs are the run's own; those before the first log are warm-up. All is
written to `benchmarks/results/ranks.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch

from benchmarks.protocol import read_curve
from lightning_bbox.core.compiling import default_precision
from lightning_bbox.models.checkpoints import read_checkpoint

RESULTS = Path(__file__).parent / "results"
MOST = 1e-8
"""Largest difference that is rounding in 64-true."""


class Arm(NamedTuple):
    """How many processes, and threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


ARMS = (Arm(1, 1), Arm(1, 2), Arm(2, 1))


def main(args: list[str] | None = None) -> int:
    """Compare the parameters, then the speeds, and write both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--window", type=int, default=12, help="steps between two logs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=128, help="over all processes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    results: dict[str, Any] = {"machine": machine(), "settings": {**vars(options)}}
    del results["settings"]["results"]
    base = [f"--trainer.log_every_n_steps={options.window}", "--data.eval_draws=128"]
    base += [f"--data.batch_size={options.batch_size}", "--trainer.max_epochs=1"]
    base += [f"--data.draws_per_epoch={options.steps * options.batch_size}"]
    with tempfile.TemporaryDirectory() as folder:
        results["largest difference of parameters"] = difference(base, Path(folder))
        print(json.dumps(results, indent=2), flush=True)
        if results["largest difference of parameters"] > MOST:
            return 1
        rates: dict[str, list[float]] = {str(arm): [] for arm in ARMS}
        for turn in range(options.rounds):
            for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
                found = train(arm, base, Path(folder) / f"{arm.processes}-{arm.threads}-{turn}")
                rates[str(arm)] += read_curve(found, "perf/crops_per_s")[1][1:]
                print(f"{arm} processes x threads: {rates[str(arm)][-1]:.0f} crops/s", flush=True)
    results["crops a second, processes x threads"] = {
        name: summary(values) for name, values in rates.items()
    }
    results["machine"]["load after"] = os.getloadavg()
    options.results.mkdir(exist_ok=True)
    (options.results / "ranks.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


def difference(base: list[str], folder: Path) -> float:
    """Return the largest difference of any parameter between one process and two."""
    exact = [*base, "--trainer.precision=64-true", "--model.backbone=ShallowConvNet"]
    exact.append("--model.backbone.batch_norm=false")
    one, two = (
        read_checkpoint(train(arm, exact, folder / str(arm)) / "checkpoints" / "last.ckpt")
        for arm in (Arm(1, 1), Arm(2, 1))
    )
    return max(
        float((value.double() - two["state_dict"][name].double()).abs().max())
        for name, value in one["state_dict"].items()
    )


def train(arm: Arm, options: list[str], folder: Path) -> Path:
    """Train scenes in processes of their own, and return the run's folder."""
    command = [sys.executable, "-m", "lightning_bbox", "fit", "-c", "preset:quickstart", *options]
    command += [f"--runs={folder.parent}", f"--name={folder.name}", "--trainer.accelerator=cpu"]
    command += [f"--trainer.devices={arm.processes}"]
    command += ["--trainer.strategy=ddp"] if arm.processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(arm.threads)}
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        finished.check_returncode()
    return folder


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of what was measured, and all of it."""
    low, median, high = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": median, "quartiles": [low, high], "all": values}


def machine() -> dict[str, Any]:
    """Return what a figure of speed depends on."""
    cpuinfo, git = Path("/proc/cpuinfo"), ["git", "rev-parse", "--short", "HEAD"]
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    commit = subprocess.run(git, check=False, capture_output=True, text=True, cwd=RESULTS.parent)
    return {
        "commit": commit.stdout.strip(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "precision": default_precision(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
