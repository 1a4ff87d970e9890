"""How well the heads know their errors, on held-out scenes with known noise.

    python -m benchmarks.calibration [--seeds 0 1] [--only Gaussian RLE] [--runs runs/calibration]

Each head trains on the quickstart's scenes, on the same crops, for a minute or two on one CPU core;
a run whose `metrics.json` is there is not run again. What the test found goes to
`benchmarks/results/calibration.json` and, as a table, to stdout and `calibration.md`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.ranks import machine
from lightning_bbox.cli.main import main as run
from lightning_bbox.models.checkpoints import checkpoint_of, read_checkpoint

RESULTS = Path(__file__).parent / "results"
LIKELIHOOD = "--model.head=LikelihoodHead"
ARMS = {
    "Gaussian": [LIKELIHOOD],
    "Laplace": [LIKELIHOOD, "--model.head.likelihood=LaplaceLikelihood"],
    "beta-NLL": [
        LIKELIHOOD,
        "--model.head.likelihood=GaussianLikelihood",
        "--model.head.likelihood.beta=0.5",
    ],
    "RLE": [LIKELIHOOD, "--model.head.likelihood=FlowLikelihood"],
    "HL-Gauss": ["--model.head=BinHead"],
}
"""Heads by name, and their options."""
BUDGET = ["--data.draws_per_epoch=10000", "--trainer.max_epochs=5"]
COLUMNS = {
    "test/mae_px": "error, px",
    "test/std_px": "predicted std, px",
    "test/coverage_50": "50 % interval holds",
    "test/coverage_90": "90 % interval holds",
    "test/coverage_95": "95 % interval holds",
    "test/nll": "NLL per px",
    "temperature": "temperature",
}
"""Names in the results, and in the table."""


def main(args: list[str] | None = None) -> int:
    """Run what isn't there yet, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"))
    options = parser.parse_args(args)
    for name in options.only:
        for seed in options.seeds:
            train(name, seed, options.runs)
    found = {name: read(name, options.runs) for name in ARMS}
    found = {name: outcomes for name, outcomes in found.items() if outcomes}
    text = as_markdown(found)
    (RESULTS / "calibration.md").write_text(text)
    results = json.dumps({"machine": machine(), "heads": found}, indent=1)
    (RESULTS / "calibration.json").write_text(results + "\n")
    print(text)
    return 0


def train(name: str, seed: int, runs: Path) -> None:
    """Train a head once, and test it."""
    folder = f"{name}-{seed}"
    if not (runs / folder / "metrics.json").exists():
        command = ["fit", "-c", "preset:quickstart", f"--seed_everything={seed}", *BUDGET]
        assert run([*command, *ARMS[name], f"--runs={runs}", f"--name={folder}"]) == 0, folder


def read(name: str, runs: Path) -> list[dict[str, Any]]:
    """Return what the tests of a head's runs found, and the factor of its standard deviations."""
    found = []
    for file in sorted(runs.glob(f"{name}-*/metrics.json")):
        metrics = json.loads(file.read_text())
        weights = read_checkpoint(checkpoint_of(file.parent))["state_dict"]
        metrics["temperature"] = float(weights["net.calibration.temperature"])
        found.append({key: metrics[key] for key in COLUMNS if key in metrics})
    return found


def as_markdown(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table: the mean over seeds, and from where to where they lie."""
    lines = [f"| head | seeds | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * 8}"]
    for name, outcomes in found.items():
        cells = [cell([each[key] for each in outcomes if key in each]) for key in COLUMNS]
        lines.append(f"| {name} | {len(outcomes)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(values: list[float]) -> str:
    """Return a mean with its range, or a dash where nothing was told."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
