"""What was measured, as JSON: one file a machine, which is read back only if it fits these classes.

A row is one case of one question. It keeps what its figures depend on, so that rows of different
days and commits can stand in one file.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Timing:
    """How long one way took.

    `first_seconds` is the wall time of the first call: warm-up, and compilation where there is
    any. `peak_mb` is what a later call held at most beyond what was held before it.
    """

    name: str
    seconds: Spread
    first_seconds: float
    peak_mb: float | None
    note: str


@dataclass(frozen=True)
class Run:
    """What a figure of speed depends on."""

    commit: str
    date: str
    device: str
    processor: str
    cores: int
    threads: int
    load: list[float]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case of one question.

    The first arm is ours; `ratios` are the other arms' times over ours, by the rounds. The floor is
    the time that the useful bytes or the FLOP take at the rates measured in the same run.
    """

    question: str
    case: str
    size: str
    run: Run
    unit: str
    items: int
    useful_bytes: int = 0
    flop: int = 0
    floor_seconds: float | None = None
    floor_share: float | None = None
    arms: list[Timing]
    ratios: dict[str, Spread] = field(default_factory=dict)
    differences: dict[str, float | None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """All rows of one machine."""

    name: str
    rows: list[Row]


def results_file(run: Run, folder: Path = RESULTS) -> Path:
    """Return where the rows of a machine are kept: by its device, and on a CPU by its model."""
    name = run.processor if run.device == "cpu" else run.device
    return folder / f"speed-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def read(path: Path) -> Machine:
    """Read a machine's rows; a file of another form is refused."""
    machine = parse(Machine, json.loads(path.read_text()), path.name)
    assert isinstance(machine, Machine)
    return machine


def keep(rows: Iterable[Row], folder: Path = RESULTS) -> Path:
    """Put rows into their machine's file, in the place of older ones of the same case."""
    fresh = {(row.question, row.case): row for row in rows}
    run = next(iter(fresh.values())).run
    path = results_file(run, folder)
    old = read(path).rows if path.is_file() else []
    kept = {(row.question, row.case): row for row in old} | fresh
    machine = asdict(Machine(path.stem.removeprefix("speed-"), list(kept.values())))
    parse(Machine, machine, path.name)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine, indent=1) + "\n")
    return path


def parse(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type it must have; anything else is a ValueError that says where.

    NaN and infinity are no figures, and a whole number stands for a float.
    """
    if is_dataclass(kind) and isinstance(value, dict):
        names, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
        if odd := names ^ value.keys():
            msg = f"{where}: missing or unknown: {', '.join(sorted(odd))}"
            raise ValueError(msg)
        parts = {name: parse(hints[name], value[name], f"{where}.{name}") for name in names}
        return kind(**parts)  # type: ignore[operator] # a class, whatever it is
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list):
        return [parse(arguments[0], one, f"{where}[{at}]") for at, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            str(name): parse(arguments[1], one, f"{where}.{name}") for name, one in value.items()
        }
    if origin is UnionType:
        (present,) = set(arguments) - {NoneType}
        return None if value is None else parse(present, value, where)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    msg = f"{where}: {value!r} is not {getattr(kind, '__name__', kind)}"
    raise ValueError(msg)
