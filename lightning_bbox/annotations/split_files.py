"""Which pictures a split file names, or the file that describes a whole data set."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lightning_bbox.annotations.folders import inside
from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.formats.texts import read_lines
from lightning_bbox.annotations.splits import Split, usual_split
from lightning_bbox.core.errors import BadInput, listed


def pictures_named(
    images: Iterable[str], root: Path, split_file: str, allow_outside: bool
) -> list[str]:
    r"""Return the pictures that a split file names, in its order.

    Args:
        images: Paths of the pictures there are.
        root: Folder of the data set.
        split_file: Text file relative to the root: a path, name or stem a line.
        allow_outside: Whether it may lie outside the root.

    Raises:
        BadInput: If a line names no picture, more than one, or one named before.
    """
    file = inside(root, split_file, "split_file", allow_outside)
    known: dict[str, list[str]] = {}
    for path in images:
        pure = PurePosixPath(path)
        for name in {path, pure.with_suffix("").as_posix(), pure.name, pure.stem}:
            known.setdefault(name, []).append(path)
    named: dict[str, None] = {}
    unknown: list[tuple[int, str]] = []
    for number, line in read_lines(root, file):
        paths = known.get(line.removeprefix("./")) or known.get(_tidy(line), [])
        if len(paths) > 1:
            place, problem = f"{file}:{number}", f"{line!r} may be any of {listed(paths)}"
            raise BadInput.at(place, problem, "write the path relative to the root")
        if not paths:
            unknown.append((number, line))
        elif paths[0] in named:
            raise BadInput.at(file, f"{paths[0]} is named twice", f"remove line {number}")
        else:
            named[paths[0]] = None
    if unknown:
        raise _unknown(file, unknown)
    if not named:
        raise BadInput.at(file, "no picture is named", "write one a line")
    return list(named)


def _tidy(line: str) -> str:
    """Return a path with slashes, as on all systems but one, and without `./` before it."""
    return line.replace("\\", "/").removeprefix("./")


def _unknown(file: str, lines: Sequence[tuple[int, str]]) -> BadInput:
    number, line = lines[0]
    place = f"{file}:{number}"
    if re.search(r"\s(-1|0|1)$", line):
        problem = f"{line!r} has a second column, as VOC's lists by class have"
        return BadInput.at(place, problem, "give a list of pictures alone, such as train.txt")
    if len(lines) == 1:
        problem = f"no annotation is there for {line!r}"
        return BadInput.at(place, problem, "add its annotation file or remove the line")
    names = listed([repr(name) for _, name in lines])
    problem = f"no annotations are there for {len(lines)} lines: {names}"
    return BadInput.at(place, problem, "add their annotation files or remove the lines")


def with_stated_splits(
    found: Mapping[str, Picture], root: Path, stated: Mapping[Split, Sequence[str]]
) -> tuple[dict[str, Picture], list[str]]:
    """Fill in the splits of pictures that the file of a data set tells.

    A split that the picture's own folder names in another word for the same is kept.

    Args:
        found: The pictures by path.
        root: Folder of the data set.
        stated: Folders and lists (`.txt`) of pictures for each split, relative to the root.

    Returns:
        The pictures, and what a person should know of the splits.
    """
    lines: list[str] = []
    sets = {
        role: {path for place in places for path in _in_place(found, root, place, lines)}
        for role, places in stated.items()
    }
    notes = [f"{len(lines)} lines of lists name no annotated picture: {listed(lines)}"] * any(lines)
    kept: dict[Split, set[str]] = {}
    order: tuple[Split, ...] = ("train", "test", "val")
    for role in (role for role in order if role in sets):
        if not sets[role]:
            notes.append(f"{role} ({listed(stated[role])}) holds no annotated picture")
        elif twin := next((other for other in kept if kept[other] == sets[role]), None):
            notes.append(f"the pictures of {role} are those of {twin}, and left to it")
        else:
            kept[role] = sets[role]
    splits: dict[str, Split] = {}
    for role in ("train", "val", "test"):  # what is in two of them doesn't train
        splits |= dict.fromkeys(kept.get(role, ()), role)
    if twice := sum(map(len, kept.values())) - len(splits):
        notes.append(f"{twice} pictures are in two splits, and don't train")
    pictures = {
        path: replace(picture, split=splits[path])
        if path in splits and usual_split(picture.split) != splits[path]
        else picture
        for path, picture in found.items()
    }
    return pictures, notes


def _in_place(
    found: Mapping[str, Picture], root: Path, place: str, lines: list[str]
) -> Iterator[str]:
    """Yield the pictures in a folder or list, and put those of its lines aside that name none."""
    if not place.endswith(".txt"):
        yield from (path for path in found if place == "." or path.startswith(f"{place}/"))
        return
    for _, line in read_lines(root, place):
        tidy = PurePosixPath(_tidy(line))
        own = posixpath.normpath(posixpath.join(posixpath.dirname(place), tidy))
        # The path may be one of another machine: its end counts.
        ends = (PurePosixPath(*tidy.parts[start:]).as_posix() for start in range(len(tidy.parts)))
        match = next((path for path in (own, *ends) if path in found), None)
        if match is None:
            lines.append(line)
        else:
            yield match
