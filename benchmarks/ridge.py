"""Ridge regression beside scikit-learn's: equal weights, then time and memory.

    python -m benchmarks.ridge [--samples 4000] [--features 4096] [--rounds 7]

Both solve the same float64 problem on one thread, in turns, the order reversed in every other
round; counted is the thread's own time. The ratio above 1 says how many times faster ours is: its
median and quartiles over the rounds. `grid` is 21 lambdas with generalised or leave-one-out
cross-validation. Then the memory of a solution for 20,000 x 4,096 float32 features, beyond these,
each in a process of its own. All is written to `benchmarks/results/ridge.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV
from threadpoolctl import threadpool_limits

from benchmarks.ranks import machine, summary
from lightning_bbox.least_squares import score_lambdas
from lightning_bbox.ridge_sums import RidgeSums, gather, ridge

RESULTS = Path(__file__).parent / "results"
LAMBDA = 10.0
Solve = Callable[[], np.ndarray[Any, Any]]


def main(args: list[str] | None = None) -> int:
    """Compare the weights, time both, measure the memory, and write it all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ridge", description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory_of", choices=sorted(MEMORY), help="measure this alone")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    if options.memory_of:
        print(memory_beyond_features(MEMORY[options.memory_of]))
        return 0
    results: dict[str, Any] = {"machine": machine(), "settings": vars(options).copy()}
    results["settings"]["results"] = None
    torch.set_num_threads(1)
    x, y = problem(options.samples, options.features)
    with threadpool_limits(1):
        results["one lambda"] = compare(options.rounds, *one_lambda(x, y))
        results["grid"] = compare(max(1, options.rounds // 3), *grid(x, y))
    results["memory beyond the features, MB"] = {name: in_own_process(name) for name in MEMORY}
    results["machine"]["load after"] = os.getloadavg()
    options.results.mkdir(exist_ok=True)
    (options.results / "ridge.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


def problem(samples: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of different spread off centre, and four targets that depend on them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, features)) * np.linspace(0.5, 2, features) + 3
    y = x[:, :4] * 2 + random.standard_normal((samples, 4))
    return torch.from_numpy(x), torch.from_numpy(y)


def one_lambda(x: torch.Tensor, y: torch.Tensor) -> tuple[Solve, Solve]:
    """Return our solver and scikit-learn's for one lambda, after seeing that they agree."""
    solver = Ridge(alpha=LAMBDA)

    def ours() -> np.ndarray[Any, Any]:
        return ridge(x, y, LAMBDA).weight.numpy()

    def theirs() -> np.ndarray[Any, Any]:
        return np.asarray(solver.fit(x.numpy(), y.numpy()).coef_)

    expected = theirs()
    assert np.abs(ours() - expected).max() < 1e-8 * np.abs(expected).max()
    return ours, theirs


def grid(x: torch.Tensor, y: torch.Tensor) -> tuple[Solve, Solve]:
    """Return both ways to choose among 21 lambdas: GCV, and scikit-learn's leave-one-out."""

    def ours() -> np.ndarray[Any, Any]:
        spectrum = gather(x, y).spectrum("none")
        lambdas, scores = score_lambdas([spectrum])
        return spectrum.solution(float(lambdas[scores.argmin()])).weight.numpy()

    def theirs() -> np.ndarray[Any, Any]:
        lambdas = np.logspace(-2, 8, 21)
        return np.asarray(RidgeCV(alphas=lambdas).fit(x.numpy(), y.numpy()).coef_)

    return ours, theirs


def compare(rounds: int, ours: Solve, theirs: Solve) -> dict[str, Any]:
    """Time both in turns, and return the seconds and the ratios of the rounds."""
    seconds: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    for turn in range(rounds):
        arms = [("ours", ours), ("scikit-learn", theirs)]
        for name, solve in arms if turn % 2 == 0 else reversed(arms):
            since = time.thread_time()
            solve()
            seconds[name].append(time.thread_time() - since)
    pairs = zip(seconds["scikit-learn"], seconds["ours"], strict=True)
    told = {name: summary(values) for name, values in seconds.items()}
    return {"seconds": told, "times faster than scikit-learn": summary([a / b for a, b in pairs])}


def at_once(x: torch.Tensor, y: torch.Tensor) -> None:
    """Choose among all lambdas, from features at hand."""
    score_lambdas([gather(x, y).spectrum("standard")])


def streamed(x: torch.Tensor, y: torch.Tensor) -> None:
    """Solve for one lambda, from batches."""
    sums = RidgeSums(x.shape[1], y.shape[1])
    for start in range(0, len(x), 512):
        sums.update(x[start : start + 512], y[start : start + 512])
    moments = sums.compute()
    assert moments is not None
    moments.solve(LAMBDA, "standard")


def scikit_learn(x: torch.Tensor, y: torch.Tensor) -> None:
    """Solve for one lambda in double precision, as ours does."""
    Ridge(alpha=LAMBDA).fit(x.double().numpy(), y.double().numpy())


MEMORY = {"at once": at_once, "streamed": streamed, "scikit-learn": scikit_learn}


def memory_beyond_features(solve: Callable[[torch.Tensor, torch.Tensor], None]) -> float:
    """Return by how many MB the most memory ever held exceeds that with the features."""
    x, y = torch.randn(20_000, 4096), torch.randn(20_000, 4)
    warm = torch.randn(64, 64, dtype=torch.float64)
    torch.linalg.eigh(warm @ warm.T)  # what the libraries take once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    before = peak_kilobytes()
    solve(x, y)
    return (peak_kilobytes() - before) / 1e3


def peak_kilobytes() -> int:
    """Return the most memory that this process held; getrusage's also counts its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_own_process(name: str) -> float:
    """Measure the memory of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ridge", "--memory_of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    raise SystemExit(main())
