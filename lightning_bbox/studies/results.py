"""What a run of a study has left in its folder: its results, and the settings that made them."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import read_yaml
from lightning_bbox.models.divergence import OUTCOME
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
        if not (folder / name).is_file():
            continue
        try:
            return read(run, folder)
        # What no run wrote so makes JSON, NumPy and torch raise any of many errors.
        except Exception as error:
            problem = f"can't be read ({type(error).__name__}: {error})"
            raise BadInput.at(str(folder / name), problem, _REMEDY) from error
    return Result(run, "missing", settings=_stopped_settings(folder))


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
    outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    status, detail, step = (outcome[name] for name in ("status", "detail", "step"))
    if status not in get_args(Status) or not isinstance(detail, str):
        msg = f"its status is {status!r}, its detail {detail!r}"
        raise ValueError(msg)
    is_final = status == "diverged"
    settings = dict(outcome.get("settings", {})) if is_final else _stopped_settings(folder)
    step = None if step is None else int(step)
    return Result(run, status, detail=detail, step=step, settings=settings)


def _read_metrics(run: Run, folder: Path) -> Result:
    found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    numbers = {name: float(x) for name, x in found.items() if isinstance(x, int | float)}
    with (folder / "test_errors.npz").open("rb") as stream, np.load(stream) as file:
        pictures = torch.from_numpy(file["picture"])
        errors, fractions = (
            _means(file[name], len(pictures)) if name in file else torch.zeros(0)
            for name in ("error_px", "error_fraction")
        )
    curve = [(int(step), float(error)) for step, error in found["val/curve"]]
    shares = [(int(step), float(share)) for step, share in found.get("val/fraction_curve", [])]
    return Result(
        run,
        "done",
        metrics=numbers,
        curve=curve,
        fraction_curve=shares,
        errors=errors,
        fractions=fractions,
        pictures=pictures,
        settings=dict(found.get("settings", {})),
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
