"""OTB text, as many trackers' benchmarks have it: a file a sequence, a box a picture in order."""

import posixpath
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from lightning_bbox.annotations.formats.texts import parse_number, read_lines
from lightning_bbox.annotations.formats.tracks.sequences import frames_in
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_FIELDS = ("x", "y", "width", "height")
_PICTURES = ("img", "imgs", "color", "images", "frames", "")
_WORD = re.compile(r"[^\s,;]+")


def _looks_like(path: Path) -> bool:
    if not path.name.casefold().startswith("groundtruth"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return len(_WORD.findall(stream.readline(999))) in (4, 8)


def _read(root: Path, files: Sequence[str]) -> Listing:
    """Read files; several of one folder are of several objects in its pictures."""
    pictures: dict[str, Picture] = {}
    for file in files:
        sequence, lines = posixpath.dirname(file), read_lines(root, file)
        folder, names = frames_in(root, [posixpath.join(sequence, name) for name in _PICTURES])
        if len(names) != len(lines):
            problem = f"has {len(lines)} lines, and {folder or '.'} has {len(names)} pictures"
            remedy = "keep the pictures of its lines there, in their order"
            raise BadInput.at(file, problem, remedy)
        for number, (name, (line, text)) in enumerate(zip(names, lines, strict=True)):
            place, path = f"{file}:{line}", posixpath.join(folder, name)
            group = sequence or root.resolve().name
            new = Picture(file, place, path, group=group, from_root=True)
            pictures.setdefault(path, new).records.append(_record(text, place, file, number))
    return Listing([*pictures.values()])


def _record(text: str, place: str, file: str, number: int) -> Record:
    words = _WORD.findall(text)
    if len(words) == 8:
        return Record(place, NO_BOX, "object", file, number, "is turned: it has four corners")
    if len(words) != 4:
        problem = f"{reprlib.repr(text)} is no line of x, y, width, height"
        raise BadInput.at(place, problem, "write these, separated by commas or spaces")
    x, y, width, height = (
        parse_number(word, name, place) for word, name in zip(words, _FIELDS, strict=True)
    )
    return Record(place, (x, y, width, height), "object", file, number)


def _spots(text: str) -> Iterator[Spots]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        if line[0].strip():
            words = [word.span() for word in _WORD.finditer(line[0])]
            spans = [(line.start() + start, line.start() + end) for start, end in words]
            yield Spots(spans if len(spans) == 4 else [])


OTB = Format(
    "otb",
    (".txt",),
    Convention(
        "OTB text, left top corner and size in pixels",
        _FIELDS,
        xywh_to_xyxy,
        xyxy_to_xywh,
        others=(("left, top, right, bottom", shifted),),
    ),
    _read,
    _spots,
    _looks_like,
    content="of OTB",
    together=True,
)
