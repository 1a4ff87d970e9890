"""YOLO text: one file a picture, one box a line, in fractions of the picture."""

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

from lightning_bbox.annotations.formats.format import (
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
)
from lightning_bbox.annotations.formats.texts import (
    parse_number,
    read_lines,
    read_text,
    whole_text,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

_NAMES = ("data.yaml", "data.yml", "classes.txt")


def _looks_like(path: Path) -> bool:
    return path.name != "classes.txt" and not path.name.casefold().startswith("readme")


def _read(root: Path, files: Sequence[str]) -> Listing:
    """Read text files; a sixth column is a detector's score.

    The class names come from `data.yaml` or `classes.txt`, whichever is nearest on the way from a
    file's folder up to the root; where there is none the names are the numbers met.
    """
    find_names = cache(lambda folder: _class_names(root, folder))
    pictures, classes, sources = [], dict[str, None](), dict[str, str]()
    for file in files:
        source, names = find_names(PurePosixPath(file).parent)
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
    return Listing(pictures, tuple(classes) or tuple(sorted(met, key=int)))


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
    cx, cy, w, h, *_ = (
        parse_number(cell, name, place)
        for cell, name in zip(cells[1:], (*YOLO.convention.fields, "score"), strict=False)
    )
    return Record(place, (cx, cy, w, h), names.get(label, str(label)), file, number)


def _class_names(root: Path, folder: PurePosixPath) -> tuple[str, dict[int, str]]:
    """Find the file of class names, and return it with the names by number."""
    for above in (folder, *folder.parents):
        for name in _NAMES:
            file = (above / name).as_posix()
            if not (root / file).is_file():
                continue
            if name == "classes.txt":
                return file, {n - 1: line for n, line in read_lines(root, file)}
            return file, _yaml_names(root, file)
    return "", {}


def _yaml_names(root: Path, file: str) -> dict[int, str]:
    text = read_text(root, file)
    try:
        # All scalars stay texts: `no` is a name, and tags such as !!int can't fail.
        document = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        problem = f"is not well-formed YAML ({getattr(error, 'problem', error)})"
        raise BadInput.at(place, problem, "repair it") from error
    names = document.get("names") if isinstance(document, dict) else None
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(
        re.fullmatch(r"\d{1,9}", str(number), re.ASCII) and name and isinstance(name, str)
        for number, name in numbered.items()
    ):
        problem = f"'names' is {reprlib.repr(names)}, no list or numbered map of texts"
        raise BadInput.at(file, problem, "write names: ['first', 'second']")
    return {int(number): whole_text(name, file) for number, name in numbered.items()}


def _spans(text: str) -> Iterator[list[Span]]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        words = [word.span() for word in re.finditer(r"\S+", line[0])]
        if words:
            yield [(line.start() + start, line.start() + end) for start, end in words[1:5]]


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
    _spans,
    _looks_like,
    folder="labels",
)
