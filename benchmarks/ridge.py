"""Ridge regression beside scikit-learn's: equal weights, then time and memory.

    python -m benchmarks.ridge [--samples 4000] [--features 4096] [--size small]

Both solve the same float64 problem. `21 lambdas` chooses among them by generalised or leave-one-out
cross-validation. Then the memory of a solution for 20,000 x 4,096 float32 features, beyond these,
each in a process of its own. All is written to `benchmarks/results/ridge.json`; within
`python -m benchmarks` it is one question among others, and on a GPU ours solves there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV

from benchmarks.rows import RESULTS
from benchmarks.runner import Arm, Case, Setting, forget_peak, measure, status_kilobytes
from lightning_bbox.solvers.least_squares import score_lambdas
from lightning_bbox.solvers.sums import RidgeSums, gather, ridge

LAMBDA = 10.0
ONE = "one lambda"


def main(args: list[str] | None = None) -> int:
    """Measure time and memory, and write both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ridge", description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--size", choices=("smallest", "small", "full"), default="small")
    parser.add_argument("--memory_of", choices=sorted(MEMORY), help="measure this alone")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    if options.memory_of:
        print(memory_beyond_features(MEMORY[options.memory_of]))
        return 0
    setting = Setting(torch.device("cpu"), options.size)
    shape = options.samples, options.features
    results: dict[str, Any] = {
        case.name: asdict(measure("ridge", case, setting)) for case in problems(setting, *shape)
    }
    results["memory beyond the features, MB"] = {name: in_own_process(name) for name in MEMORY}
    options.results.mkdir(exist_ok=True)
    (options.results / "ridge.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


def cases(setting: Setting) -> Iterator[Case]:
    """Yield problems of the device's size; on CUDA the fc6 features of a whole data set."""
    shape = (
        (20_000, 4096) if setting.on_cuda else setting.pick((60, 80), (2000, 1024), (4000, 4096))
    )
    few, many = problems(setting, *shape), problems(setting, shape[0] // 2, shape[1] // 2)
    yield next(few)
    yield [*many][-1]


def problems(setting: Setting, samples: int, features: int) -> Iterator[Case]:
    """Yield one lambda, and the choice among many."""
    x, y = problem(samples, features)
    small, large = sorted((samples, features))
    flop = small * (small + 1) * large + small**3 // 3
    shown, fp64 = f"{samples} x {features}", torch.float64
    arms = one_lambda(x, y, setting.device)
    yield Case(f"{ONE}, {shown}", "solutions", 1, arms, flop=flop, dtype=fp64)
    yield Case(f"21 lambdas, {shown}", "solutions", 1, grid(x, y, setting.device))


def problem(samples: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of different spread off centre, and four targets that depend on them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, features)) * np.linspace(0.5, 2, features) + 3
    y = x[:, :4] * 2 + random.standard_normal((samples, 4))
    return torch.from_numpy(x), torch.from_numpy(y)


def one_lambda(x: torch.Tensor, y: torch.Tensor, device: torch.device) -> list[Arm]:
    """Return our solver and scikit-learn's for one lambda."""
    solver, ours = Ridge(alpha=LAMBDA), (x.to(device), y.to(device))
    return [
        Arm("ours", lambda _: ridge(*ours, LAMBDA).weight.cpu()),
        Arm("scikit-learn", lambda _: solver.fit(x.numpy(), y.numpy()).coef_, 1e-8, "on the CPU"),
    ]


def grid(x: torch.Tensor, y: torch.Tensor, device: torch.device) -> list[Arm]:
    """Return both ways to choose among 21 lambdas: GCV, and scikit-learn's leave-one-out."""
    own = x.to(device), y.to(device)

    def ours(_: int) -> torch.Tensor:
        spectrum = gather(*own).spectrum("none")
        lambdas, scores = score_lambdas([spectrum])
        return spectrum.solution(float(lambdas[scores.argmin()])).weight.cpu()

    def theirs(_: int) -> np.ndarray[Any, Any]:
        lambdas = np.logspace(-2, 8, 21)
        return np.asarray(RidgeCV(alphas=lambdas).fit(x.numpy(), y.numpy()).coef_)

    return [Arm("ours", ours), Arm("scikit-learn", theirs, None, "may choose another lambda")]


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
    forget_peak()  # it begins at what is held now
    before = status_kilobytes("VmHWM")
    solve(x, y)
    return (status_kilobytes("VmHWM") - before) / 1e3


def in_own_process(name: str) -> float:
    """Measure the memory of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ridge", "--memory_of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    raise SystemExit(main())
