"""What the runs of a study left behind, read from their folders."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.models.divergence import OUTCOME
from lightning_bbox.studies.study import Run

Status = Literal["done", "diverged", "refused", "failed", "missing"]


@dataclass(frozen=True)
class Result:
    """What became of one run.

    Attributes:
        run: Which one.
        status: Whether it arrived, diverged, was refused for its settings, failed, or isn't there.
        detail: Why it did not arrive.
        step: The step at which it diverged.
        metrics: Numbers of the test, and `train_seconds` and `train_steps`.
        curve: (step, error on the validation draws in px), in order.
        errors: Absolute error of each test draw in px, the mean of x and y.
        pictures: Which picture, or group, each test draw is of.
    """

    run: Run
    status: Status
    detail: str = ""
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    errors: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    pictures: Int64[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def read_result(run: Run, folder: Path) -> Result:
    """Read what a run left in its folder.

    Args:
        run: Which one.
        folder: Its folder, there or not.

    Examples:
        >>> from lightning_bbox.studies.study import Arm
        >>> read_result(Run(Arm("base", {}, {}), seed=0), Path("runs/none")).status
        'missing'
    """
    if (folder / OUTCOME).is_file():
        outcome = json.loads((folder / OUTCOME).read_text())
        return Result(run, outcome["status"], outcome["detail"], outcome["step"])
    if not (folder / "metrics.json").is_file():
        return Result(run, "missing")
    found = json.loads((folder / "metrics.json").read_text())
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    with np.load(folder / "test_errors.npz") as file:
        errors = torch.from_numpy(file["error_px"]).abs().mean(dim=1)
        pictures = torch.from_numpy(file["picture"])
    curve = [(int(step), float(error)) for step, error in found["val/curve"]]
    return Result(run, "done", "", None, numbers, curve, errors, pictures)
