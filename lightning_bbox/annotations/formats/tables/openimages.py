"""Open Images CSV: a box a line, corners as fractions, pictures named without a suffix.

Classes are ids such as /m/011k07; a list beside the file may say their names.
"""

import csv
import math
import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.tables.sheet import (
    Asked,
    cell_spans,
    found_columns,
    has_columns,
    label_of,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.texts import parse_number, read_text
from lightning_bbox.core.errors import BadInput, listed

_NAMES = {
    "image": ("imageid",),
    "label": ("labelname",),
    "group_of": ("isgroupof",),
    **{name: (name,) for name in CORNERS},
}
_NEEDED = ("image", "label", *CORNERS)
_ASKED = Asked(delimiter=",")
_HEADER = ("labelname", "displayname")  # of some lists of names


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    columns = found_columns(header, place, _NAMES, {}, _ASKED)
    for role in _NEEDED:
        if role not in columns:
            raise missing_column(header, place, role, _NAMES[role])
    return columns


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures: list[Picture] = []
    lists = _lists_of_names(root, files)
    names = _class_names(root, lists)
    for file in files:
        own: dict[str, Picture] = {}
        for row in table_rows(root, file, _columns, _ASKED):
            xmin, ymin, xmax, ymax = (
                parse_number(row.cells[name], name, row.place) for name in CORNERS
            )
            group = row.cells.get("group_of") == "1"
            fault = "is around a group (IsGroupOf=1), not one object" if group else ""
            values = xmin, ymin, xmax, ymax
            label = label_of(row)
            label = names.get(label, label)
            record = Record(row.place, values, label, file, row.number, fault, math.nan)
            picture_of(own, row, file).records.append(record)
        pictures += own.values()
    met = {record.label for picture in pictures for record in picture.records}
    note = f"class names of {listed(lists)}" if lists else ""
    if lists and (nameless := sorted(met - {*names.values()})):
        note += f", which has none for {listed(nameless)}"
    return Listing(pictures, note=note)


def _lists_of_names(root: Path, files: Sequence[str]) -> list[str]:
    """Find lists of the classes' names: beside the files, in the root, or as FiftyOne has them."""
    folders = dict.fromkeys(
        posixpath.normpath(posixpath.join(folder, inner))
        for folder in (*map(posixpath.dirname, files), "")
        for inner in ("", "metadata", "../metadata")
    )
    there = [
        posixpath.normpath(posixpath.join(folder, path.name))
        for folder in folders
        if not folder.startswith("..")
        for path in sorted((root / folder).glob("*.csv"))
    ]
    named = [file for file in there if "class-descriptions" in posixpath.basename(file)]
    return named or [file for file in there if file.endswith("metadata/classes.csv")]


def _class_names(root: Path, files: Sequence[str]) -> dict[str, str]:
    """Read lists of classes: an id and its name a line."""
    names: dict[str, str] = {}
    for file in files:
        reader = csv.reader(read_text(root, file).split("\n"))
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except csv.Error as error:
            place = f"{file}:{reader.line_num}"
            raise BadInput.at(place, f"is not well-formed CSV ({error})", "correct it") from error
        for line, cells in rows:
            if tuple(map(str.casefold, cells)) == _HEADER:
                continue
            place = f"{file}:{line}"
            if len(cells) != 2 or not all(cells):
                problem = f"has {len(cells)} cells, not a class id and its name"
                raise BadInput.at(place, problem, "correct the line")
            if names.setdefault(cells[0], cells[1]) != cells[1]:
                problem = f"{cells[0]} is {cells[1]!r}, and {names[cells[0]]!r} before"
                raise BadInput.at(place, problem, "keep one of the two")
    return names


def _spots(text: str) -> Iterator[Spots]:
    for spans in cell_spans(text, _columns, _ASKED):
        yield Spots([spans[name] for name in CORNERS])


OPEN_IMAGES = Format(
    "openimages",
    (".csv",),
    Convention(
        "Open Images CSV, corners as fractions of the picture",
        CORNERS,
        to_xyxy=shifted,
        from_xyxy=shifted,
        fractions=True,
    ),
    _read,
    _spots,
    partial(has_columns, columns=_columns, asked=_ASKED),
    content="of Open Images",
)
