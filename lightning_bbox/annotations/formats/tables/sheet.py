"""Rows and cells of a table, its columns by role, and where each cell stands."""

import csv
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning_bbox.annotations.formats.format import Picture, Span
from lightning_bbox.annotations.formats.texts import argument, plain_text, read_text
from lightning_bbox.core.errors import BadInput, listed

ONLY_CLASS = "object"
"""The class of a table without a column of classes."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "filename", "file", "path", "image_path", "img", "img_path", "image_name"),
        *("file_name", "imagepath", "image_file", "image_filename", "filepath", "file_path"),
    ),
    "label": (
        *("label", "class", "cell_type", "class_name", "classname", "label_name", "labelname"),
        *("category", "category_name"),
    ),
    "split": ("split", "subset"),
    "group": ("group",),
    "score": ("score", "confidence"),
}
"""Names of columns that every table may have, in lower case."""
WEAK: dict[str, tuple[str, ...]] = {
    "image": ("image_id", "imageid", "img_id", "id", "name"),
    "label": ("name", "type", "species", "class_id", "category_id", "classid", "label_id"),
    "split": ("set",),
}
"""Names that mean the same where none of the others is there."""


@dataclass(frozen=True)
class Asked:
    """What a user says of tables.

    Args:
        columns: Pairs of a role, such as xmin, and the name of its column; or its number from 0
            where the table has no header.
        delimiter: What stands between cells; comma, semicolon or tab where nothing is said.
    """

    columns: tuple[tuple[str, str | int], ...] = ()
    delimiter: str | None = None

    @property
    def headerless(self) -> bool:
        """Whether columns are numbers, as they are named where there is no header."""
        return any(isinstance(column, int) for _, column in self.columns)


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        place: Where it stands.
        number: Which of the file's lines with cells it is, from 0, without the header.
        cells: Its cells by role.
    """

    place: str
    number: int
    cells: Mapping[str, str]


Columns = Callable[[Sequence[str], str], dict[str, int]]
"""Finds the columns by role in a header, or refuses it as of a place."""


def table_rows(root: Path, file: str, columns: Columns, asked: Asked) -> Iterator[Row]:
    """Read the lines of a table.

    Args:
        root: Folder of the data set.
        file: The file, relative to the root.
        columns: Finds the columns by role.
        asked: What the user says.

    Raises:
        BadInput: If it isn't well-formed.
    """
    rows = _rows(read_text(root, file), file, asked)
    header: Sequence[str] | None = None
    roles: dict[str, int] = {}
    number = 0
    for line, cells in rows:
        place = f"{file}:{line}"
        if header is None:
            header, roles = cells, columns(cells, place)
            if not asked.headerless:
                continue
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, the header {len(header)}"
            raise BadInput.at(place, problem, "correct the line")
        yield Row(place, number, {role: cells[at].strip() for role, at in roles.items()})
        number += 1
    if header is None:
        columns([], f"{file}:1")


def first_row(path: Path, asked: Asked) -> list[str]:
    """Return the cells of a file's first line; none where it isn't well-formed."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        line = next((line for line in stream if line.strip()), "")
    try:
        delimiter = asked.delimiter or delimiter_of(line)
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def has_columns(path: Path, columns: Columns, asked: Asked) -> bool:
    """Tell by its header whether a file is such a table."""
    try:
        return bool(columns(first_row(path, asked), ""))
    except BadInput:
        return False


def found_columns(
    header: Sequence[str],
    place: str,
    strong: Mapping[str, Sequence[str]],
    weak: Mapping[str, Sequence[str]],
    asked: Asked,
) -> dict[str, int]:
    """Find the columns by role: as the user says, or by the usual names.

    Args:
        header: The cells of the first line.
        place: Where it stands.
        strong: Names of each role, in lower case; two columns of one role are refused.
        weak: Names that mean a role where no other is there, the first of them.
        asked: What the user says.

    Raises:
        BadInput: If there is no such column, or there are two.
    """
    names = [cell.strip().casefold() for cell in header]
    columns = {role: _asked_column(header, place, role, column) for role, column in asked.columns}
    if asked.headerless:
        return columns
    taken = {*columns.values()}
    for role, synonyms in strong.items():
        found = [at for at, name in enumerate(names) if name in synonyms and at not in taken]
        if role in columns or not found:
            continue
        if len(found) > 1:
            problem = f"columns {', '.join(header[at] for at in found)} all mean {role}"
            raise BadInput.at(place, problem, f"keep one of them, or say which with {_say(role)}")
        columns[role] = found[0]
    taken = {*columns.values()}
    for role, synonyms in weak.items():
        there = (names.index(name) for name in synonyms if name in names)
        at = next((at for at in there if at not in taken), None)
        if role not in columns and at is not None:
            columns[role] = at
            taken.add(at)
    return columns


def _say(role: str) -> str:
    return argument("columns", {role: "..."})


def _asked_column(header: Sequence[str], place: str, role: str, column: str | int) -> int:
    if isinstance(column, int):
        if not 0 <= column < len(header):
            problem = f"columns says {role} is column {column} of {len(header)}, from 0"
            raise BadInput.at(place, problem, f"correct {argument('columns')}")
        return column
    names = [cell.strip() for cell in header]
    for same in (str, str.casefold):
        found = [at for at, name in enumerate(names) if same(name) == same(column)]
        if len(found) == 1:
            return found[0]
    problem = f"there is no column {column!r} in the header, which has {listed(names)}"
    raise BadInput.at(place, problem, f"correct {argument('columns')}")


def missing_column(header: Sequence[str], place: str, role: str, names: Sequence[str]) -> BadInput:
    """Say that a header lacks a column."""
    if len(header) < 2:
        problem = f"the header {reprlib.repr(''.join(header))} is no list of columns"
        remedy = "write image,xmin,ymin,xmax,ymax, separated by comma, semicolon or tab"
        return BadInput.at(place, problem, f"{remedy}, or say {argument('delimiter')}")
    problem = f"the header {reprlib.repr(','.join(header))} has no column {role}"
    remedy = f"name one {' or '.join(names)}, or say which it is with {_say(role)}"
    return BadInput.at(place, problem, remedy)


def picture_of(pictures: dict[str, Picture], row: Row, file: str, split: str = "") -> Picture:
    """Return the picture of a row, a new one where it is the first of that name.

    Raises:
        BadInput: If it has no name, or another split or group than before.
    """
    if not (name := row.cells["image"]):
        raise BadInput.at(row.place, "the image is empty", "fill it or remove the line")
    group = row.cells.get("group", "")
    stated = Picture(file, row.place, name, None, split or row.cells.get("split", ""), group)
    picture = pictures.setdefault(name, stated)
    if (picture.split, picture.group) != (stated.split, stated.group):
        problem = (
            f"split {stated.split!r} and group {stated.group!r} of {stated.name} contradict "
            f"{picture.split!r} and {picture.group!r} at {picture.place}"
        )
        raise BadInput.at(row.place, problem, "give a picture one split and one group")
    return picture


def label_of(row: Row) -> str:
    """Return the class of a row's box.

    Raises:
        BadInput: If it is empty.
    """
    if not (label := row.cells.get("label", ONLY_CLASS)):
        raise BadInput.at(row.place, "the label is empty", "fill it or remove the line")
    return label


def _rows(text: str, file: str, asked: Asked) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of every line that is not blank."""
    reader = csv.reader(text.split("\n"), delimiter=asked.delimiter or delimiter_of(text))
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield reader.line_num, cells
    except csv.Error as error:
        place = f"{file}:{reader.line_num}"
        raise BadInput.at(place, f"is not well-formed CSV ({error})", "correct it") from error


def delimiter_of(text: str) -> str:
    """Tell what stands between cells: comma, semicolon or tab, whichever the header has most of."""
    header = next((line for line in text.split("\n") if line.strip()), "")
    return max(",;\t", key=header.count)


def cell_spans(text: str, columns: Columns, asked: Asked) -> Iterator[dict[str, Span]]:
    """Find where the cells of each line stand, by role.

    A quoted cell may hold delimiters, quotes and line ends.

    Args:
        text: The file's text.
        columns: Finds the columns by role.
        asked: What the user says.
    """
    plain = plain_text(text)
    delimiter = asked.delimiter or delimiter_of(plain)
    _, header = next(_rows(plain, "", asked), (1, list[str]()))
    roles = columns(header, "")
    rest = rf"[^{re.escape(delimiter)}\r\n]*"
    cell = re.compile(rf'"((?:[^"]|"")*)(?:"({rest})|\Z)|{rest}')
    position, in_header = 1 if text.startswith("\ufeff") else 0, not asked.headerless
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
            yield {role: _stripped(text, cells[at]) for role, at in roles.items()}
        in_header = False


def _stripped(text: str, span: Span) -> Span:
    inner = text[slice(*span)]
    start = span[0] + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())
