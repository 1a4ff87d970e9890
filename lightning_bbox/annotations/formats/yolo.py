"""YOLO text: one file a picture, one box a line, in fractions of the picture.

A line is a class and four numbers, and may have a score, the number of a track, or keypoints where
`kpt_shape` says how many. Where it is a class and a polygon, its box is the one around that.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lightning_bbox.annotations.formats.format import (
    NO_BOX,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.names import Beside, holds_names, is_list
from lightning_bbox.annotations.formats.texts import parse_number, read_lines
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh

_FIELDS = ("cx", "cy", "w", "h")
_STRAIGHT = 1e-4  # of the picture: how far two coordinates may differ that are meant to be one
_FORMS = "class, cx, cy, w, h and perhaps a score, or class and a polygon x, y, x, y, ..."


class _Line(NamedTuple):
    place: str
    cells: list[str]

    @property
    def is_box(self) -> bool:
        """Whether it is a box with a score and the number of a track, if anything."""
        return len(self.cells) in (5, 6)

    @property
    def may_be_track(self) -> bool:
        """Whether its seven cells may be a box, a score and the number of a track."""
        return len(self.cells) == 7 and self.cells[6].isdecimal()


def _looks_like(path: Path) -> bool:
    if holds_names(path.name) or path.name.casefold().startswith("readme"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = (line.strip() for line in stream)
        return not is_list(next((line for line in lines if _is_content(line)), ""))


def _is_content(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def _read(root: Path, files: Sequence[str]) -> Listing:
    """Read text files.

    The class names come from the file that is nearest on the way from a file's folder up to the
    root; where there is none the names are the numbers met.
    """
    beside = Beside(root)
    lines = {
        file: [
            _Line(f"{file}:{n}", line.split())
            for n, line in read_lines(root, file)
            if _is_content(line)
        ]
        for file in files
    }
    keypoints = {
        folder: beside.keypoints(folder)
        for folder in dict.fromkeys(PurePosixPath(file).parent for file in files)
    }
    # What a line of seven or nine cells is, is told by all of them.
    others = [
        line
        for file in files
        if not keypoints[PurePosixPath(file).parent]
        for line in lines[file]
        if not line.is_box
    ]
    drawn = any(
        len(line.cells) % 2 and len(line.cells) != 9 and not line.may_be_track for line in others
    )
    pictures, classes, sources = [], dict[str, None](), dict[str, str]()
    for file in files:
        folder = PurePosixPath(file).parent
        source, names = beside.names(folder)
        classes |= dict.fromkeys(names.values())
        sources[source] = file
        records = []
        for number, (place, cells) in enumerate(lines[file]):
            label = _label(cells[0], place, source, names)
            values, fault, score, outline = _box(cells, place, keypoints[folder], drawn)
            records.append(Record(place, values, label, file, number, fault, score, outline))
        pictures.append(Picture(file, file, records=records))
    if "" in sources and len(sources) > 1:
        problem = f"has no class names, while {max(sources)} names those of other files"
        raise BadInput.at(sources[""], problem, "put data.yaml or classes.txt into the root")
    splits = beside.splits([*keypoints])
    return Listing(pictures, tuple(classes), "; ".join(beside.notes), splits)


def _label(cell: str, place: str, source: str, names: dict[int, str]) -> str:
    """Return the name of a class, whose number may be written as 0.0e+00."""
    if not re.fullmatch(r"\d{1,9}", cell, re.ASCII):
        number = parse_number(cell, "class", place) if cell[:1] in "0123456789+." else math.nan
        if not (math.isfinite(number) and number == int(number) and 0 <= number < 10**9):
            raise BadInput.at(place, f"class is {cell!r}, not a whole number", "correct it")
        cell = str(int(number))
    label = int(cell)
    if source and label not in names:
        problem = f"class {label} is not among the {len(names)} names of {source}"
        raise BadInput.at(place, problem, "correct it or add the name there")
    return names.get(label, str(label))


def _box(
    cells: Sequence[str], place: str, keypoints: int, drawn: bool
) -> tuple[tuple[float, float, float, float], str, float, str]:
    """Return a line's four numbers, fault, score and outline.

    Args:
        cells: The line's words.
        place: Where it stands.
        keypoints: How many numbers of keypoints follow each box.
        drawn: Whether other lines are polygons for sure.
    """
    count = len(cells)
    if keypoints:
        if count not in range(5 + keypoints, 8 + keypoints):
            problem = f"{reprlib.repr(' '.join(cells))} has {count} numbers"
            remedy = f"write {5 + keypoints}, as kpt_shape says, or correct that"
            raise BadInput.at(place, problem, remedy)
        score = cells[5 + keypoints] if count > 5 + keypoints else ""
        return _four(cells, place), "", _score(score, place), ""
    if count in (5, 6) or (count == 7 and cells[6].isdecimal() and not drawn):
        return _four(cells, place), "", _score(cells[5] if count > 5 else "", place), ""
    if count < 7 or count % 2 == 0:
        problem = f"{reprlib.repr(' '.join(cells))} isn't {_FORMS}"
        remedy = "write one of these, separated by spaces, or say kpt_shape in data.yaml"
        raise BadInput.at(place, problem, remedy)
    numbers = [parse_number(cell, "a coordinate", place) for cell in cells[1:]]
    xs, ys = numbers[::2], numbers[1::2]
    if count == 9 and not drawn and not _is_upright(xs, ys):
        return NO_BOX, "is turned: four corners that are no upright box", math.nan, ""
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    around = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return around, "", math.nan, "a polygon"


def _is_upright(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Tell whether four corners are those of an upright box, in their order."""
    corners = [*zip(xs, ys, strict=True)]
    sides = [*pairwise([*corners, corners[0]])]
    level = [abs(a[1] - b[1]) <= _STRAIGHT for a, b in sides]
    steep = [abs(a[0] - b[0]) <= _STRAIGHT for a, b in sides]
    return all(one != other for one, other in zip(level, steep, strict=True)) and all(
        one != other for one, other in pairwise(level)
    )


def _four(cells: Sequence[str], place: str) -> tuple[float, float, float, float]:
    pairs = zip(cells[1:5], _FIELDS, strict=True)
    cx, cy, w, h = (parse_number(cell, name, place) for cell, name in pairs)
    return cx, cy, w, h


def _score(cell: str, place: str) -> float:
    return parse_number(cell, "score", place) if cell else math.nan


def _spots(text: str) -> Iterator[Spots]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        words = [word.span() for word in re.finditer(r"\S+", line[0])]
        if words and _is_content(line[0].strip()):
            yield Spots([(line.start() + start, line.start() + end) for start, end in words[1:5]])


YOLO = Format(
    "yolo",
    (".txt",),
    Convention(
        "YOLO text, centre and size as fractions of the picture",
        _FIELDS,
        cxcywh_to_xyxy,
        xyxy_to_cxcywh,
        fractions=True,
        others=(("xmin, ymin, xmax, ymax", shifted), ("xmin, ymin, w, h", xywh_to_xyxy)),
    ),
    _read,
    _spots,
    _looks_like,
    folder="labels",
)
