"""What a run of a study has left in its folder: its results, and the settings that made them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import read_yaml
from lightning_bbox.models.training.divergence import OUTCOME
from lightning_bbox.reports.callbacks import CONFIG, Settings, settings_of
from lightning_bbox.studies.study import Result, Run, Status

METRICS = "metrics.json"
"""The file of what a run's test measured."""

_REMEDY = "remove its folder, so that the run is made again"


def read_result(run: Run, folder: Path) -> Result:
    """Read what a run left in its folder.

    Args:
        run: Which one.
        folder: Its folder, there or not.

    Raises:
        BadInput: What it left is damaged.
    """
    for name, read in ((OUTCOME, _read_outcome), (METRICS, _read_metrics)):
        if (folder / name).is_file():
            return read(run, folder)
    return Result(run, "missing", settings=_stopped_settings(folder))


@contextmanager
def _written_by_a_run(file: Path) -> Iterator[Path]:
    """Read a file, and refuse it in one sentence where no run wrote it so."""
    try:
        yield file
    # What is damaged makes JSON, NumPy and torch raise any of many errors.
    except Exception as error:
        problem = f"can't be read ({type(error).__name__}: {error})"
        raise BadInput.at(str(file), problem, _REMEDY) from error


def refuse_other_settings(result: Result, folder: Path, now: Settings) -> None:
    """Refuse what was made, or begun, by other settings than a run would have now.

    Args:
        result: What is there.
        folder: Its folder.
        now: The settings of the run.

    Raises:
        BadInput: They differ.
    """
    then = result.settings
    if then is None or then == now:
        return
    differ = [
        f"{name} {then.get(name, 'unset')}, now {now.get(name, 'unset')}"
        for name in {**now, **then}
        if then.get(name) != now.get(name)
    ]
    problem = f"was run with other settings ({listed(differ)})"
    if not then:
        problem = "holds results that don't say by which settings they were made"
    raise BadInput.at(str(folder), problem, "give the study another --name, or remove its runs")


def _read_outcome(run: Run, folder: Path) -> Result:
    with _written_by_a_run(folder / OUTCOME) as file:
        outcome = json.loads(file.read_text(encoding="utf-8"))
        status, detail, step = (outcome[name] for name in ("status", "detail", "step"))
        if status not in get_args(Status) or not isinstance(detail, str):
            msg = f"its status is {status!r}, its detail {detail!r}"
            raise ValueError(msg)
        step = None if step is None else int(step)
        settings: Settings | None = dict(outcome.get("settings", {}))
    if status != "diverged":  # it is tried again, or goes on
        settings = _stopped_settings(folder)
    return Result(run, status, detail=detail, step=step, settings=settings)


def _read_metrics(run: Run, folder: Path) -> Result:
    with _written_by_a_run(folder / METRICS) as file:
        found = json.loads(file.read_text(encoding="utf-8"))
        numbers = {name: float(x) for name, x in found.items() if isinstance(x, int | float)}
        curve = [(int(step), float(error)) for step, error in found["val/curve"]]
        shares = [(int(step), float(share)) for step, share in found.get("val/fraction_curve", [])]
        settings = dict(found.get("settings", {}))
    with (
        _written_by_a_run(folder / "test_errors.npz") as file,
        file.open("rb") as stream,
        np.load(stream) as arrays,
    ):
        pictures = torch.from_numpy(arrays["picture"])
        errors, fractions = (
            _means(arrays[name], len(pictures)) if name in arrays else torch.zeros(0)
            for name in ("error_px", "error_fraction")
        )
    return Result(
        run,
        "done",
        metrics=numbers,
        curve=curve,
        fraction_curve=shares,
        errors=errors,
        fractions=fractions,
        pictures=pictures,
        settings=settings,
    )


def _means(errors: np.ndarray, draws: int) -> Float[Tensor, " n"]:
    if errors.shape != (draws, 2):
        msg = f"errors of shape {errors.shape} for {draws} draws"
        raise ValueError(msg)
    return torch.from_numpy(errors).abs().mean(dim=1)


def _stopped_settings(folder: Path) -> Settings | None:
    """Return the settings that a run goes on by which was stopped; None where there is none."""
    if not any(folder.glob("checkpoints/*.ckpt")):
        return None
    return settings_of(read_yaml(folder / CONFIG, _REMEDY))
