"""Numbers that are none: no part takes them for a number within its range."""

import inspect
import math
import typing
from pathlib import Path

import pytest

import lightning_bbox
from lightning_bbox import (
    BadInput,
    BoxRegressor,
    CropGeometry,
    OffsetSpec,
    Refiner,
)
from lightning_bbox.refinement.predictions import PredictionFiles


def takes_a_number(hint: object) -> bool:
    return hint is float or any(map(takes_a_number, typing.get_args(hint)))


def numbers_of(kind: type) -> list[str]:
    """Return the arguments of a class that are numbers, or may be."""
    hints = typing.get_type_hints(kind.__init__)
    return [
        name for name in inspect.signature(kind).parameters if takes_a_number(hints.get(name, None))
    ]


def required(kind: type) -> dict[str, object]:
    """Return arguments that a class can't be made without."""
    spec = {"geometry": CropGeometry(), "num_targets": 2, "max_shift": 5.0, "max_log_size": 0.0}
    model = BoxRegressor()
    model.build(OffsetSpec(**spec), seed=0)
    law = {"right": 0.5, "shares": (0.5,), "means": ((0.1, 0.0),), "stds": ((0.02, 0.02),)}
    law |= {"within": (0.01, 0.01)}
    known = {"OffsetSpec": spec, "BoxDataModule": {"root": "."}, "Refiner": {"checkpoint": model}}
    known |= {"DisplacementLaw": law, "WeightRule": {"pattern": "bias"}}
    return known.get(kind.__name__, {})


def without_numbers(value: object) -> object:
    """Return the like of a value, each number of which is none."""
    return tuple(map(without_numbers, value)) if isinstance(value, tuple) else math.nan


PUBLIC = [getattr(lightning_bbox, name) for name in lightning_bbox.__all__]
ARGUMENTS = [(kind, name) for kind in PUBLIC if inspect.isclass(kind) for name in numbers_of(kind)]


def test_the_numbers_of_all_parts_are_found() -> None:
    assert len(ARGUMENTS) > 50
    assert (OffsetSpec, "max_shift") in ARGUMENTS
    assert (Refiner, "max_shift") in ARGUMENTS


@pytest.mark.parametrize(
    ("kind", "name"), ARGUMENTS, ids=[f"{kind.__name__} {name}" for kind, name in ARGUMENTS]
)
def test_a_number_that_is_none_is_refused(kind: type, name: str) -> None:
    arguments = required(kind)
    usual = arguments.get(name, inspect.signature(kind).parameters[name].default)
    with pytest.raises(BadInput, match="nan"):
        kind(**arguments | {name: without_numbers(usual)})


def test_a_largest_shift_to_write_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="max_shift is nan; expected 0 or more px"):
        PredictionFiles(tmp_path, max_shift=math.nan)
