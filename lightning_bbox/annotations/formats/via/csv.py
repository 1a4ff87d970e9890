"""VIA's CSV: a region a line, its shape as JSON in a cell."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_bbox.annotations.formats.format import Picture, Spots
from lightning_bbox.annotations.formats.tables.sheet import (
    Asked,
    Row,
    cell_spans,
    found_columns,
    has_columns,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.via.regions import FIELDS, record_of
from lightning_bbox.core.errors import BadInput

_NAMES = {
    "image": ("filename", "#filename"),
    "shape": ("region_shape_attributes",),
    "attributes": ("region_attributes",),
}
_MEMBER = r"""["]{{1,2}}{}["]{{1,2}}\s*:\s*(?P<quote>"{{0,2}})([^\s,}}"]+)(?P=quote)"""
_SPOTS = [re.compile(_MEMBER.format(name)) for name in FIELDS]
_COMMA = Asked(delimiter=",")


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    columns = found_columns(header, place, _NAMES, {}, _COMMA)
    for role, names in _NAMES.items():
        if role not in columns:
            raise missing_column(header, place, role, names)
    return columns


def read_csv(root: Path, files: Sequence[str], named: str | int | None) -> list[Picture]:
    """Read what CSV files say of pictures.

    Args:
        root: Folder of the data set.
        files: The files, relative to the root.
        named: The attribute that is the class, where the user says it.

    Raises:
        BadInput: A file isn't well-formed.
    """
    pictures: list[Picture] = []
    for file in files:
        own: dict[str, Picture] = {}
        for row in table_rows(root, file, _columns, _COMMA):
            picture = picture_of(own, row, file)
            if shape := _cell(row, "shape"):
                place = row.place, file, row.number
                picture.records.append(record_of(shape, _cell(row, "attributes"), *place, named))
        pictures += own.values()
    return pictures


def _cell(row: Row, role: str) -> Mapping[str, Any]:
    text = row.cells[role]
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        problem = f"the cell {reprlib.repr(text)} is not well-formed JSON"
        raise BadInput.at(row.place, problem, "repair it") from error
    if not isinstance(found, dict):
        raise BadInput.at(row.place, f"the cell {reprlib.repr(text)} is no object", "repair it")
    return found


def looks_like_csv(path: Path) -> bool:
    """Tell by its header whether a file is VIA's."""
    return has_columns(path, _columns, _COMMA)


def csv_spots(text: str) -> Iterator[Spots]:
    """Find where the numbers of each region stand."""
    for spans in cell_spans(text, _columns, _COMMA):
        begin, end = spans["shape"]
        cell = text[begin:end]
        found = [pattern.search(cell) for pattern in _SPOTS]
        is_rectangle = re.search(r'"name"+\s*:\s*"+rect"', cell)
        numbers = [match.span(2) for match in found if match] if is_rectangle else []
        yield Spots([(begin + start, begin + stop) for start, stop in numbers])
