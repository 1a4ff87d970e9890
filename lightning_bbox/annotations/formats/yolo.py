"""YOLO text: one file a picture, one box a line, in fractions of the picture."""

import math
import os
import posixpath
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath

import yaml

from lightning_bbox.annotations.formats.format import (
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
)
from lightning_bbox.annotations.formats.texts import (
    parse_number,
    read_lines,
    read_text,
    whole_text,
)
from lightning_bbox.annotations.splits import Split, usual_split
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

_YAMLS, _LINES = ("data.yaml", "data.yml"), "classes.txt"


def _looks_like(path: Path) -> bool:
    return path.name != "classes.txt" and not path.name.casefold().startswith("readme")


def _read(root: Path, files: Sequence[str]) -> Listing:
    """Read text files; a sixth column is a detector's score.

    The class names come from `data.yaml` or `classes.txt`, whichever is nearest on the way from a
    file's folder up to the root; where there is none the names are the numbers met.
    """
    read_yaml = cache(lambda file: _parsed(root, file))
    find_names = cache(lambda folder: _class_names(root, folder, read_yaml))
    find_yaml = cache(lambda folder: _nearest(root, folder, _YAMLS))
    pictures, classes, sources = [], dict[str, None](), dict[str, str]()
    described = dict[str, None]()
    for file in files:
        folder = PurePosixPath(file).parent
        source, names = find_names(folder)
        described |= dict.fromkeys(find_yaml(folder))
        classes |= dict.fromkeys(names.values())
        sources[source] = file
        records = [
            _record(line, file, n, number, source, names)
            for number, (n, line) in enumerate(read_lines(root, file))
        ]
        pictures.append(Picture(file, file, records=records))
    if "" in sources and len(sources) > 1:
        problem = f"has no class names, while {max(sources)} names those of other files"
        raise BadInput.at(sources[""], problem, "put data.yaml or classes.txt into the root")
    met = {record.label for picture in pictures for record in picture.records}
    splits = dict[Split, list[str]]()
    notes = [
        note for file in described for note in _add_splits(splits, root, file, read_yaml(file))
    ]
    return Listing(
        pictures, tuple(classes) or tuple(sorted(met, key=int)), "; ".join(notes), splits
    )


def _record(
    line: str, file: str, line_number: int, number: int, source: str, names: Mapping[int, str]
) -> Record:
    place = f"{file}:{line_number}"
    cells = line.split()
    if len(cells) not in (5, 6):
        problem = f"{reprlib.repr(line)} isn't class, cx, cy, w, h and perhaps a score"
        raise BadInput.at(place, problem, "write these, separated by spaces, without polygons")
    if not re.fullmatch(r"\d{1,9}", cells[0], re.ASCII):
        raise BadInput.at(place, f"class is {cells[0]!r}, not a whole number", "correct it")
    label = int(cells[0])
    if source and label not in names:
        problem = f"class {label} is not among the {len(names)} names of {source}"
        raise BadInput.at(place, problem, "correct it or add the name there")
    cx, cy, w, h, *score = (
        parse_number(cell, name, place)
        for cell, name in zip(cells[1:], (*YOLO.convention.fields, "score"), strict=False)
    )
    name = names.get(label, str(label))
    return Record(place, (cx, cy, w, h), name, file, number, score=score[0] if score else math.nan)


def _nearest(root: Path, folder: PurePosixPath, names: Sequence[str]) -> list[str]:
    """Find the file of one of these names that is nearest on the way up to the root, if any is."""
    files = ((above / name).as_posix() for above in (folder, *folder.parents) for name in names)
    return [*islice((file for file in files if (root / file).is_file()), 1)]


def _class_names(
    root: Path, folder: PurePosixPath, read_yaml: Callable[[str], object]
) -> tuple[str, dict[int, str]]:
    """Find the file of class names, and return it with the names by number."""
    for file in _nearest(root, folder, (*_YAMLS, _LINES)):
        if file.endswith(_LINES):
            return file, {n - 1: line for n, line in read_lines(root, file)}
        return file, _yaml_names(file, read_yaml(file))
    return "", {}


def _parsed(root: Path, file: str) -> object:
    text = read_text(root, file)
    try:
        # All scalars stay texts: `no` is a name, and tags such as !!int can't fail.
        return yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        problem = f"is not well-formed YAML ({getattr(error, 'problem', error)})"
        raise BadInput.at(place, problem, "repair it") from error


def _yaml_names(file: str, document: object) -> dict[int, str]:
    names = document.get("names") if isinstance(document, dict) else None
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(
        re.fullmatch(r"\d{1,9}", str(number), re.ASCII) and name and isinstance(name, str)
        for number, name in numbered.items()
    ):
        problem = f"'names' is {reprlib.repr(names)}, no list or numbered map of texts"
        raise BadInput.at(file, problem, "write names: ['first', 'second']")
    return {int(number): whole_text(name, file) for number, name in numbered.items()}


def _add_splits(
    splits: dict[Split, list[str]], root: Path, file: str, document: object
) -> Iterator[str]:
    """Add the folders and lists of pictures that a `data.yaml` names, and say which are amiss."""
    if not isinstance(document, dict):
        return
    base, folder = document.get("path"), posixpath.dirname(file)
    stated = False
    for key, places in document.items():
        role = usual_split(key) if isinstance(key, str) else None
        if role is None or not places:
            continue
        for place in [places] if isinstance(places, str) else places:
            if not isinstance(place, str) or isinstance(places, dict):
                problem = f"{key!r} is {reprlib.repr(places)}, no path or list of paths"
                raise BadInput.at(file, problem, f"write {key}: images/{key}")
            found = _located(root, folder, base if isinstance(base, str) else "", place)
            if found is None:
                yield f"{key} of {file} ({place}) isn't there"
            else:
                splits.setdefault(role, []).append(found)
                stated = True
    if stated:
        yield f"splits as in {file}"


def _located(root: Path, folder: str, base: str, place: str) -> str | None:
    """Find a folder or list below the root as `data.yaml` means it, or as its end is found here.

    Such files come with paths of other machines, and with `../` where none belongs.
    """
    plain = place.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    ends = ("/".join(parts[start:]) for start in range(max(len(parts) - 1, 1)))
    whole = Path(os.path.normpath(root.absolute()))
    for name in (posixpath.join(base, plain), plain, *ends):
        path = Path(os.path.normpath(whole / folder / name))
        if path.is_relative_to(whole) and os.path.exists(path):  # noqa: PTH110 - never raises
            return path.relative_to(whole).as_posix()
    return None


def _spots(text: str) -> Iterator[Spots]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        words = [word.span() for word in re.finditer(r"\S+", line[0])]
        if words:
            yield Spots([(line.start() + start, line.start() + end) for start, end in words[1:5]])


YOLO = Format(
    "yolo",
    (".txt",),
    Convention(
        "YOLO text, centre and size as fractions of the picture",
        ("cx", "cy", "w", "h"),
        cxcywh_to_xyxy,
        xyxy_to_cxcywh,
        fractions=True,
    ),
    _read,
    _spots,
    _looks_like,
    folder="labels",
)
