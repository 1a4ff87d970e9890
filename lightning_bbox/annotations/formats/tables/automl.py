"""AutoML and Vertex AI CSV: split, path, label and the corners of a box as fractions, by place."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Along,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.tables.sheet import (
    Asked,
    Row,
    cell_spans,
    first_row,
    label_of,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.texts import parse_number
from lightning_bbox.annotations.splits import usual_split
from lightning_bbox.core.errors import BadInput

_SETS = ("train", "training", "validation", "validate", "test", "unassigned", "")
# The corners in their order: left top, right top, right bottom, left bottom.
_PLACES = ("xmin", "ymin", "xmax 2", "ymin 2", "xmax", "ymax", "xmin 2", "ymax 2")
_ROLES = {role: at for at, role in enumerate(("split", "image", "label", *_PLACES))}
_AGAIN: tuple[tuple[str, Along], ...] = (
    *(("xmin 2", "xmin"), ("ymin 2", "ymin"), ("xmax 2", "xmax"), ("ymax 2", "ymax")),
)
# Cells are found by their place, with a header or without: the header is but a line to leave out.
_ASKED = Asked(columns=tuple(_ROLES.items()), delimiter=",")


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    if len(header) != len(_ROLES):
        raise missing_column(header, place, "xmax", ("set,path,label,x_min,y_min,,,x_max,y_max,,",))
    return _ROLES


def _is_header(cells: Sequence[str]) -> bool:
    return cells[3].strip().casefold() in ("x_min", "xmin", "x1")


def _looks_like(path: Path) -> bool:
    cells = first_row(path, _ASKED)
    if len(cells) != len(_ROLES):
        return False
    plain = [cell.strip().casefold() for cell in cells]
    if _is_header(cells):
        return plain[0] in ("set", "ml_use", "split") or not any(plain[at] for at in (5, 6, 9, 10))
    return plain[0] in _SETS and "/" in plain[1]


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures: list[Picture] = []
    for file in files:
        own: dict[str, Picture] = {}
        for row in table_rows(root, file, _columns, _ASKED):
            cells = row.cells
            if row.number == 0 and _is_header([*cells.values()]):
                continue
            stated = cells["split"].casefold()
            if stated not in _SETS:
                problem = f"the set is {cells['split']!r}"
                raise BadInput.at(row.place, problem, "write TRAIN, VALIDATION, TEST or UNASSIGNED")
            split = usual_split("val" if stated.startswith("validat") else stated) or ""
            picture = picture_of(own, row._replace(cells={**cells, "split": ""}), file, split)
            if any(cells[name] for name in _PLACES):
                picture.records.append(_record(row, file))
        pictures += own.values()
    return Listing(pictures)


def _record(row: Row, file: str) -> Record:
    xmin, ymin, xmax, ymax = (parse_number(row.cells[name], name, row.place) for name in CORNERS)
    again = [
        parse_number(row.cells[place], what, row.place) == parse_number(row.cells[what], what, "")
        for place, what in _AGAIN
        if row.cells[place]
    ]
    fault = "" if all(again) else "is turned: four corners that are no upright box"
    return Record(row.place, (xmin, ymin, xmax, ymax), label_of(row), file, row.number, fault)


def _spots(text: str) -> Iterator[Spots]:
    for spans in cell_spans(text, _columns, _ASKED):
        along: list[tuple[Span, Along]] = [
            (spans[place], what) for place, what in _AGAIN if spans[place][0] < spans[place][1]
        ]
        yield Spots([spans[name] for name in CORNERS], along)


AUTOML = Format(
    "automl",
    (".csv",),
    Convention(
        "AutoML CSV, corners as fractions of the picture",
        CORNERS,
        to_xyxy=shifted,
        from_xyxy=shifted,
        fractions=True,
    ),
    _read,
    _spots,
    _looks_like,
    content="of AutoML",
)
