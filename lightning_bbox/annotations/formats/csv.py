"""CSV: one file of many pictures, one box a line, corners found by the header's names."""

import csv
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.texts import parse_number, plain_text, read_text
from lightning_bbox.core.errors import BadInput

_ONLY_CLASS = "object"  # the class of a file without a label column
_COLUMNS = {
    "image": ("image", "filename", "file", "path"),
    "xmin": ("xmin", "x1"),
    "ymin": ("ymin", "y1"),
    "xmax": ("xmax", "x2"),
    "ymax": ("ymax", "y2"),
    "label": ("label", "class", "cell_type"),
    "split": ("split",),
    "group": ("group",),
    "score": ("score", "confidence"),
}
_NEEDED = ("image", *CORNERS)


def _looks_like(path: Path) -> bool:
    """Tell by its header whether a file lists boxes."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
    try:
        return bool(_columns(next(csv.reader([header], delimiter=_delimiter(header)), []), ""))
    except (BadInput, csv.Error):
        return False


def _read(root: Path, files: Sequence[str]) -> Listing:
    return Listing([picture for file in files for picture in _pictures(root, file)])


def _pictures(root: Path, file: str) -> Iterable[Picture]:
    rows = _rows(read_text(root, file), file)
    first, header = next(rows, (1, []))
    columns = _columns(header, f"{file}:{first}")
    pictures: dict[str, Picture] = {}
    for number, (line, cells) in enumerate(rows):
        place = f"{file}:{line}"
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, the header {len(header)}"
            raise BadInput.at(place, problem, "correct the line")
        row = {role: cells[column].strip() for role, column in columns.items()}
        record = _record(row, place, file, number)
        _picture(pictures, row, file, place).records.append(record)
    return pictures.values()


def _rows(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of every line that is not blank."""
    reader = csv.reader(text.split("\n"), delimiter=_delimiter(text))
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield reader.line_num, cells
    except csv.Error as error:
        place = f"{file}:{reader.line_num}"
        raise BadInput.at(place, f"is not well-formed CSV ({error})", "correct it") from error


def _delimiter(text: str) -> str:
    header = next((line for line in text.split("\n") if line.strip()), "")
    return max(",;\t", key=header.count)


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    if len(header) < 2:
        problem = f"the header {reprlib.repr(''.join(header))} is no list of columns"
        remedy = "write image,xmin,ymin,xmax,ymax, separated by comma, semicolon or tab"
        raise BadInput.at(place, problem, remedy)
    names = [cell.strip().casefold() for cell in header]
    columns: dict[str, int] = {}
    for role, synonyms in _COLUMNS.items():
        found = [column for column, name in enumerate(names) if name in synonyms]
        if len(found) > 1:
            problem = f"columns {', '.join(header[column] for column in found)} all mean {role}"
            raise BadInput.at(place, problem, "keep one of them")
        if found:
            columns[role] = found[0]
        elif role in _NEEDED:
            problem = f"the header {reprlib.repr(','.join(header))} has no column {role}"
            raise BadInput.at(place, problem, f"name one {' or '.join(synonyms)}")
    return columns


def _picture(
    pictures: dict[str, Picture], row: Mapping[str, str], file: str, place: str
) -> Picture:
    stated = Picture(file, place, row["image"], None, row.get("split", ""), row.get("group", ""))
    picture = pictures.setdefault(row["image"], stated)
    if (picture.split, picture.group) != (stated.split, stated.group):
        problem = (
            f"split {stated.split!r} and group {stated.group!r} of {stated.name} contradict "
            f"{picture.split!r} and {picture.group!r} at {picture.place}"
        )
        raise BadInput.at(place, problem, "give a picture one split and one group")
    return picture


def _record(row: Mapping[str, str], place: str, file: str, number: int) -> Record:
    label = row.get("label", _ONLY_CLASS)
    if not label or not row["image"]:
        missing = "label" if row["image"] else "image"
        raise BadInput.at(place, f"the {missing} is empty", "fill it or remove the line")
    xmin, ymin, xmax, ymax = (parse_number(row[name], name, place) for name in CORNERS)
    stated = row.get("score")
    score = parse_number(stated, "score", place) if stated else math.nan
    return Record(place, (xmin, ymin, xmax, ymax), label, file, number, score=score)


def _spots(text: str) -> Iterator[Spots]:
    """Find the corners in each row; a quoted cell may hold delimiters, quotes and line ends."""
    plain = plain_text(text)
    delimiter = _delimiter(plain)
    _, header = next(_rows(plain, ""), (1, []))
    columns = _columns(header, "")
    rest = rf"[^{re.escape(delimiter)}\r\n]*"
    cell = re.compile(rf'"((?:[^"]|"")*)(?:"({rest})|\Z)|{rest}')
    position, in_header = 1 if text.startswith("\ufeff") else 0, True
    while position < len(text):
        cells: list[Span] = []
        while True:
            match = cell.match(text, position)
            assert match is not None
            whole = match[1] is None or (match[2] or "").strip()  # text may follow a closing quote
            cells.append(match.span(0 if whole else 1))
            position = match.end()
            if text[position : position + 1] != delimiter:
                break
            position += 1
        position += 1  # the line's end; that of CRLF makes an empty line, which is skipped
        if len(cells) == 1 and not text[slice(*cells[0])].strip():
            continue
        if not in_header:
            yield Spots([_stripped(text, cells[columns[name]]) for name in CORNERS])
        in_header = False


def _stripped(text: str, span: Span) -> Span:
    inner = text[slice(*span)]
    start = span[0] + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


CSV = Format(
    "csv",
    (".csv", ".tsv"),
    Convention(
        "CSV, corners as pixel edges",
        CORNERS,
        to_xyxy=shifted,
        from_xyxy=shifted,
    ),
    _read,
    _spots,
    _looks_like,
    content="with columns for image and corners",
)
