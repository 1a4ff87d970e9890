"""A study's file: YAML that says what is compared, read whole or refused in one sentence."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import parse_yaml
from lightning_bbox.studies.designs import DESIGNS, Axes, cross_axes
from lightning_bbox.studies.study import Arm, Levels, Options, Study

BASE = "base"
"""The name of the arm that all others are compared with."""

_NO_NAMES = ("", ".", "..")
_KEYS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "a name for the study's folder"),
    "base": ((str, list), "a configuration's file, preset:NAME, or a list of them"),
    "options": (dict, "options of fit with their values"),
    "axes": (dict, "levels for each axis"),
    "design": ((str, dict), DESIGNS),
    "exclude": (list, "a list of levels by axis"),
    "arms": (dict, "options for each arm"),
    "seeds": (list, "a list of whole numbers"),
    "folds": (int, "how many tenths to validate on"),
    "steps": (int, "a whole number"),
    "seconds": ((int, float), "a number"),
    "reach_px": ((int, float), "an error in px"),
}


def read_study(path: str | Path) -> Study:
    """Read a study from its YAML file.

    `base` names the base configuration, one or several files relative to this one or `preset:NAME`;
    `options` what every arm changes in it. `axes` holds for each axis its levels, and for each
    level the options it sets, the base's first (`{}` sets none). `design` says how they are
    crossed: `one_at_a_time` (the default), `full`, or `fraction: N`; `exclude` lists what doesn't
    go together, and `arms` adds single ones beside the axes. `seeds`, `folds`, `steps`, `seconds`,
    `reach_px` and `name` are those of `Study`.

    Raises:
        BadInput: The file can't be read, or says what can't be done.
    """
    path = Path(path)
    text = _read(path)
    for problem, remedy in itertools.chain(_misread(text), _out_of_range(text)):
        raise BadInput.at(str(path), problem, remedy)
    axes = {str(axis): _levels(path, str(axis), levels) for axis, levels in text["axes"].items()}
    base = text["base"] if isinstance(text["base"], list) else [text["base"]]
    rest = {key: text[key] for key in ("folds", "steps", "seconds", "reach_px") if key in text}
    return Study(
        name=text.get("name", path.stem),
        configs=tuple(_config(path, name) for name in base),
        options=_options(path, "options", text.get("options", {})),
        arms=_arms(path, axes, text),
        axes={axis: tuple(levels) for axis, levels in axes.items()},
        seeds=tuple(text.get("seeds", Study.seeds)),
        **rest,
    )


def _read(path: Path) -> dict[str, Any]:
    text = parse_yaml(path)
    if not isinstance(text, dict):
        raise BadInput.at(str(path), "isn't a study", "give a mapping with base and axes")
    return {"axes": {}} | {str(key): value for key, value in text.items()}


def _misread(text: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find what no study has: each problem with its remedy."""
    if unknown := sorted(text.keys() - _KEYS.keys()):
        yield f"{listed(unknown)} is no part of a study", f"use {', '.join(_KEYS)}"
    for key, value in text.items():
        kind, what = _KEYS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"{key} is {value!r}", f"give {what}"


def _out_of_range(text: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find what is missing, and values that can't be: each problem with its remedy."""
    if "base" not in text:
        yield "has no base", "name the configuration that arms change"
    if (name := text.get("name", "a")) in _NO_NAMES or "/" in name or "\\" in name:
        yield f"name is {text['name']!r}", "give one of a folder"
    seeds = text.get("seeds", [0])
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        yield f"seeds is {seeds!r}", "give a list of whole numbers"
    if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
        yield f"seeds names {listed(twice)} more than once", "give each seed once"
    if "steps" in text and "seconds" in text:
        yield "has a budget of both steps and seconds", "give one of them"
    if not all(0 < text.get(budget, 1) < math.inf for budget in ("steps", "seconds")):
        yield "has no budget to train with", "give steps or seconds above 0"
    if not 0 < text.get("reach_px", 1) < math.inf:
        yield f"reach_px is {text['reach_px']}", "give an error above 0"
    if not 2 <= text.get("folds", 2) <= 10:
        yield f"folds is {text['folds']}", "give 2 to 10 tenths"


def _config(path: Path, name: object) -> str:
    """Return a configuration's path, which is relative to the study's file."""
    if str(name).startswith("preset:"):
        return str(name)
    config = path.parent / str(name)
    if not config.is_file():
        raise BadInput.at(str(path), f"base {name} is missing", "name a file, or preset:NAME")
    return str(config)


def _levels(path: Path, axis: str, levels: object) -> dict[str, Options]:
    if not isinstance(levels, dict) or len(levels) < 2:
        problem = f"axis {axis!r} has no two levels"
        raise BadInput.at(str(path), problem, "give options for each of two different labels")
    return {
        _label(path, label): _options(path, f"{axis}: {label}", o) for label, o in levels.items()
    }


def _label(path: Path, label: object) -> str:
    if isinstance(label, bool) or label is None:
        problem = f"a label reads as {label!r}"
        raise BadInput.at(str(path), problem, "quote it: YAML takes no, yes, on and off for others")
    return str(label)


def _options(path: Path, name: str, options: object) -> Options:
    if not isinstance(options, dict):
        problem = f"{name!r} has {options!r} for options"
        raise BadInput.at(str(path), problem, "give a mapping, {} where nothing changes")
    if nothing := [str(option) for option, value in options.items() if value is None]:
        problem = f"{name!r} sets {listed(nothing)} to nothing"
        raise BadInput.at(str(path), problem, "write a value behind it")
    return {str(option): value for option, value in options.items()}


def _arms(path: Path, axes: Axes, text: dict[str, Any]) -> tuple[Arm, ...]:
    """Cross the axes as the design says, and add the single arms."""
    excluded = [_known_levels(path, axes, partial) for partial in text.get("exclude", [])]
    cells = cross_axes(str(path), axes, text.get("design", "one_at_a_time"), excluded)
    arms = [_crossed(axes, cell) for cell in cells]
    beside = text.get("arms", {})
    arms += [
        Arm(_label(path, name), {}, _options(path, str(name), beside[name])) for name in beside
    ]
    if len(arms) < 2:
        raise BadInput.at(str(path), "compares nothing", "give axes or arms")
    folders = [arm.folder for arm in arms]
    alike = [name.casefold() for name in folders]  # one folder where case doesn't count
    if twice := [name for name, same in zip(folders, alike, strict=True) if alike.count(same) > 1]:
        raise BadInput.at(str(path), f"{listed(twice)} names two arms", "give them other labels")
    for first, second in itertools.combinations(arms, 2):
        if first.options == second.options:
            problem = f"{first.name!r} and {second.name!r} are the same"
            raise BadInput.at(str(path), problem, "leave one out, or set what differs")
    return tuple(arms)


def _known_levels(path: Path, axes: Axes, partial: object) -> Levels:
    given = partial if isinstance(partial, dict) else {}
    levels = {str(axis): str(label) for axis, label in given.items()}
    if levels and all(label in axes.get(axis, {}) for axis, label in levels.items()):
        return levels
    problem = f"exclude has {partial!r}"
    known = "; ".join(f"{axis}: {listed([*levels])}" for axis, levels in axes.items())
    raise BadInput.at(str(path), problem, f"give labels of levels by axis ({known})")


def _crossed(axes: Axes, cell: Levels) -> Arm:
    """Return the arm of some levels, named after those that aren't the base's."""
    base = {axis: next(iter(levels)) for axis, levels in axes.items()}
    changed = [f"{axis}: {label}" for axis, label in cell.items() if label != base[axis]]
    options: Options = {}
    for axis, label in cell.items():
        options |= axes[axis][label]
    return Arm(", ".join(changed) or BASE, cell, options)
