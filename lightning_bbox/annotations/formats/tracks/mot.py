"""MOT Challenge text: a file a sequence, a box a line, pictures by the number of their frame."""

import configparser
import math
import posixpath
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lightning_bbox.annotations.formats.format import (
    IGNORED,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.texts import parse_number, read_lines, read_text
from lightning_bbox.annotations.formats.tracks.sequences import frame_of, frames_in
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_FIELDS = ("bb_left", "bb_top", "bb_width", "bb_height")
_OWN_FOLDERS = ("gt", "det")
_PICTURES = ("img1", "images", "img", "frames", "")
_LINE = re.compile(r"\s*\d+(\.0*)?\s*,\s*-?\d+(\.0*)?\s*(,[^,]*){4,8},?\s*")
_LABELS = "labels.txt"  # CVAT's


def _looks_like(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return _LINE.fullmatch(stream.readline(999)) is not None


def _aside(files: Sequence[str]) -> list[str]:
    """Name the detections of sequences whose truth is there."""
    true = {posixpath.dirname(posixpath.dirname(file)) for file in files if _is_truth(file)}
    others = [file for file in files if not _is_truth(file)]
    return [file for file in others if posixpath.dirname(posixpath.dirname(file)) in true]


def _is_truth(file: str) -> bool:
    return PurePosixPath(file).parent.name == "gt"


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures, notes = list[Picture](), list[str]()
    for file in files:
        sequence = _sequence(root, file)
        folders = [posixpath.join(sequence, name) for name in _folders(root, sequence)]
        folder, names = frames_in(root, folders)
        by_number = {frame_of(name): name for name in names}
        labels = _labels(root, file)
        frames: dict[int, Picture] = {}
        for number, (line, text) in enumerate(read_lines(root, file)):
            place = f"{file}:{line}"
            record, frame = _record(text, place, file, number, labels)
            if frame not in frames:
                name = posixpath.join(folder, by_number.get(frame, f"{frame:06}"))
                group = sequence or root.resolve().name
                frames[frame] = Picture(file, place, name, group=group, from_root=True)
            frames[frame].records.append(record)
        if 0 in by_number and 0 not in frames:
            notes.append(f"{file} has no frame 0, but {folder} has a picture of that number")
        pictures += frames.values()
    return Listing(pictures, note="; ".join(notes))


def _sequence(root: Path, file: str) -> str:
    """Return the folder of a file's sequence: around gt or det, or that of its own name."""
    path = PurePosixPath(file)
    if path.parent.name in _OWN_FOLDERS:
        return "" if path.parent.parent == PurePosixPath() else path.parent.parent.as_posix()
    named = sorted(each.relative_to(root) for each in root.glob(f"**/{path.stem}/img1"))
    if len(named) == 1:
        return named[0].parent.as_posix()
    return "" if path.parent == PurePosixPath() else path.parent.as_posix()


def _folders(root: Path, sequence: str) -> Sequence[str]:
    """Return the folders where a sequence's pictures may lie, as its seqinfo.ini says first."""
    file = posixpath.join(sequence, "seqinfo.ini")
    if not (root / file).is_file():
        return _PICTURES
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(root, file))
    except configparser.Error as error:
        raise BadInput.at(file, f"is not well-formed ({error})", "repair it") from error
    stated = parser.get("Sequence", "imDir", fallback="img1").strip()
    return (stated, *_PICTURES) if stated and not stated.startswith(("/", "..")) else _PICTURES


def _labels(root: Path, file: str) -> list[str]:
    beside = posixpath.join(posixpath.dirname(file), _LABELS)
    return [name for _, name in read_lines(root, beside)] if (root / beside).is_file() else []


def _record(
    text: str, place: str, file: str, number: int, labels: Sequence[str]
) -> tuple[Record, int]:
    """Read a line: frame, track, box, and perhaps flag or score, class and visibility."""
    cells = [cell.strip() for cell in text.rstrip(",").split(",")]
    if not 6 <= len(cells) <= 10:
        problem = f"{reprlib.repr(text)} is no line of frame, track, x, y, width, height, ..."
        raise BadInput.at(place, problem, "write these, separated by commas")
    frame = parse_number(cells[0], "the frame", place)
    if not 0 <= frame < 10**9 or frame != int(frame):
        raise BadInput.at(place, f"the frame is {cells[0]}, no whole number", "correct it")
    pairs = zip(cells[2:6], _FIELDS, strict=True)
    x, y, width, height = (parse_number(cell, name, place) for cell, name in pairs)
    flag = parse_number(cells[6], "the seventh number", place) if len(cells) > 6 else math.nan
    mark = IGNORED if _is_truth(file) and flag == 0 else ""
    score = math.nan if _is_truth(file) else flag
    label = _label(cells[7] if len(cells) > 7 else "-1", place, labels)
    record = Record(place, (x, y, width, height), label, file, number, score=score, mark=mark)
    return record, int(frame)


def _label(cell: str, place: str, labels: Sequence[str]) -> str:
    number = parse_number(cell, "the class", place)
    if not math.isfinite(number) or number != int(number) or number < 0:
        return "object"  # detections have -1, or the coordinates of a space
    if not labels:
        return str(int(number))
    if not 1 <= number <= len(labels):
        problem = f"class {cell} is not among the {len(labels)} of {_LABELS}, from 1"
        raise BadInput.at(place, problem, "correct it or add the name there")
    return labels[int(number) - 1]


def _spots(text: str) -> Iterator[Spots]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        if line[0].strip():
            cells = [cell.span() for cell in re.finditer(r"[^,]+", line[0])]
            yield Spots([_stripped(text, line.start(), span) for span in cells[2:6]])


def _stripped(text: str, begin: int, span: tuple[int, int]) -> tuple[int, int]:
    start, end = begin + span[0], begin + span[1]
    word = text[start:end]
    start += len(word) - len(word.lstrip())
    return start, start + len(word.strip())


MOT = Format(
    "mot",
    (".txt",),
    Convention(
        "MOT text, left top corner and size in pixels",
        _FIELDS,
        xywh_to_xyxy,
        xyxy_to_xywh,
        others=(("left, top, right, bottom", shifted),),
    ),
    _read,
    _spots,
    _looks_like,
    content="of MOT",
    aside=_aside,
    together=True,
)
