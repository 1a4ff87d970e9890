"""Checks that raise: which part of the user's own did it, told in the check's place."""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Concatenate, NamedTuple, ParamSpec

import lightning.pytorch as pl
from torch import nn

from lightning_bbox.core.errors import listed
from lightning_bbox.core.memory import lacks_memory
from lightning_bbox.core.recipes import Recipe, class_path_of
from lightning_bbox.insight.diagnosis.case import Case, Made
from lightning_bbox.insight.diagnosis.findings import Finding
from lightning_bbox.pictures.augment import Augment

_NOBODYS = ("lightning_bbox", "torch", "lightning")
"""Packages whose classes are no part of the user's own."""
_PARTS = (Recipe, Augment, nn.Module, pl.LightningDataModule)
_DEEPEST = 12  # frames of a traceback, the innermost

P = ParamSpec("P")


class Blame(NamedTuple):
    """Who raised an error.

    Attributes:
        sentence: The part, the error, and the line it was raised in.
        trace: Its traceback.
    """

    sentence: str
    trace: str


def attempt(
    check: str,
    look: Callable[Concatenate[Case, P], Finding],
    case: Case,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Finding:
    """Make a check; where a part of the user's own raises in it, say that in its place.

    Args:
        check: Its name.
        look: Makes it.
        case: What is looked at.
        args: What else it takes.
        kwargs: Likewise, by name.

    Raises:
        Exception: An error in which no such part had a hand: it is ours.
    """
    try:
        return look(case, *args, **kwargs)
    except Exception as error:  # noqa: BLE001 (a user's part may raise anything)
        return failed(check, error, case.made)


def failed(check: str, error: Exception, made: Made) -> Finding:
    """Return what is said of a check that raised.

    Args:
        check: Its name.
        error: What it raised.
        made: The training.

    Raises:
        Exception: The error itself, where it is ours.
    """
    if (found := blame(error, made)) is None:
        raise error
    return Finding(check, because=found.sentence, trace=found.trace)


def blame(error: Exception, made: Made) -> Blame | None:
    """Say which part of the user's own an error comes from; None where the training has none.

    It is the one in whose code it was raised, or else, where ours stumbled over what a part
    returned, any of them.

    Args:
        error: What was raised.
        made: The training.
    """
    parts = own_parts(made)
    if not parts or lacks_memory(error):
        return None
    said = _said(error)
    trace = "".join(traceback.format_exception(error, limit=-_DEEPEST))
    roots = {path.partition(".")[0] for path in parts}
    frames = [
        (frame, line) for frame, line in _frames(error) if _module(frame).partition(".")[0] in roots
    ]
    if frames:
        return Blame(_told(error, *frames[-1]), trace)
    frame, line = [*_frames(error)][-1]
    return Blame(f"with {listed(parts)}, {_place(frame, line)} raises {said}", trace)


def blame_unmade(error: BaseException) -> str:
    """Say which part of the user's own raised as it was made; nothing where none did.

    Args:
        error: What making the training ended with, which may be made of others.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    *_, (frame, line) = walk_tb(error.__traceback__)
    root = _module(frame).partition(".")[0]
    if root in (*_NOBODYS, "jsonargparse", *sys.stdlib_module_names) or lacks_memory(error):
        return ""
    return _told(error, frame, line)


def own_parts(made: Made) -> list[str]:
    """Return the paths of a training's parts that are neither ours nor torch's or Lightning's.

    Args:
        made: The training.
    """
    paths = {class_path_of(each) for each in _classes([made.model, made.data], set())}
    return sorted(path for path in paths if path.partition(".")[0] not in _NOBODYS)


def _classes(values: Iterable[object], seen: set[int]) -> Iterator[type]:
    """Yield the classes of the parts among some values, and of those that they are made of."""
    for value in values:
        if isinstance(value, dict):
            yield from _classes(value.values(), seen)
        elif isinstance(value, list | tuple):
            yield from _classes(value, seen)
        elif isinstance(value, partial):  # an optimizer, before it has weights
            yield from (each for each in value.args if isinstance(each, type))
        elif isinstance(value, _PARTS) and id(value) not in seen:
            seen.add(id(value))
            yield type(value)
            yield from _classes(vars(value).values(), seen)


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of an error and of those it was made of, the innermost last."""
    for each in (error.__cause__ or error.__context__, error):
        if each is not None:
            yield from walk_tb(each.__traceback__)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a word'}"


def _told(error: BaseException, frame: FrameType, line: int) -> str:
    name = f"{_module(frame)}.{frame.f_code.co_qualname}"
    return f"{name} raises {_said(error)} ({_place(frame, line)})"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _place(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line}"
