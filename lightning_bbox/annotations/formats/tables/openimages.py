"""Open Images CSV: a box a line, corners as fractions, pictures named without a suffix."""

import math
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
from lightning_bbox.annotations.formats.texts import parse_number

_NAMES = {
    "image": ("imageid",),
    "label": ("labelname",),
    "group_of": ("isgroupof",),
    **{name: (name,) for name in CORNERS},
}
_NEEDED = ("image", "label", *CORNERS)
_ASKED = Asked(delimiter=",")


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    columns = found_columns(header, place, _NAMES, {}, _ASKED)
    for role in _NEEDED:
        if role not in columns:
            raise missing_column(header, place, role, _NAMES[role])
    return columns


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures: list[Picture] = []
    for file in files:
        own: dict[str, Picture] = {}
        for row in table_rows(root, file, _columns, _ASKED):
            xmin, ymin, xmax, ymax = (
                parse_number(row.cells[name], name, row.place) for name in CORNERS
            )
            group = row.cells.get("group_of") == "1"
            fault = "is around a group (IsGroupOf=1), not one object" if group else ""
            values = xmin, ymin, xmax, ymax
            record = Record(row.place, values, label_of(row), file, row.number, fault, math.nan)
            picture_of(own, row, file).records.append(record)
        pictures += own.values()
    return Listing(pictures)


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
