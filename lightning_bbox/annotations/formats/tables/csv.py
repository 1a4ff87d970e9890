"""CSV: one file of many pictures, one box a line, whose columns are found by their names."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    DIFFICULT,
    IGNORED,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.tables.sheet import (
    SYNONYMS,
    WEAK,
    Asked,
    Row,
    cell_spans,
    found_columns,
    has_columns,
    label_of,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.texts import argument, is_set, parse_number
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import (
    cxcywh_to_xyxy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

_STRONG = SYNONYMS | {
    "xmin": ("xmin", "x1", "x_min", "left", "minx", "min_x", "bbox_xmin", "bbox_x1", "x_left"),
    "ymin": ("ymin", "y1", "y_min", "top", "miny", "min_y", "bbox_ymin", "bbox_y1", "y_top"),
    "xmax": ("xmax", "x2", "x_max", "right", "maxx", "max_x", "bbox_xmax", "bbox_x2", "x_right"),
    "ymax": ("ymax", "y2", "y_max", "bottom", "maxy", "max_y", "bbox_ymax", "bbox_y2", "y_bottom"),
    "w": ("w", "bbox_w", "bbox_width", "box_w", "box_width", "bb_width"),
    "h": ("h", "bbox_h", "bbox_height", "box_h", "box_height", "bb_height"),
    "x": ("x", "bbox_x", "box_x", "bb_left"),
    "y": ("y", "bbox_y", "box_y", "bb_top"),
    "cx": ("cx", "x_center", "xcenter", "center_x", "centerx", "x_centre", "centre_x"),
    "cy": ("cy", "y_center", "ycenter", "center_y", "centery", "y_centre", "centre_y"),
    "difficult": ("difficult", "is_difficult"),
    "ignore": ("ignore", "ignored", "is_ignored"),
    "image_width": ("image_width", "img_width", "imagewidth"),
    "image_height": ("image_height", "img_height", "imageheight"),
}
_BOTH = {"width": ("w", "image_width"), "height": ("h", "image_height")}
_KINDS = {
    CORNERS: Convention(
        "CSV, corners as pixel edges",
        CORNERS,
        to_xyxy=shifted,
        from_xyxy=shifted,
        others=(("xmin, ymin, width, height", xywh_to_xyxy),),
    ),
    ("x", "y", "w", "h"): Convention(
        "CSV, left top corner and size in pixels",
        ("x", "y", "w", "h"),
        xywh_to_xyxy,
        xyxy_to_xywh,
        others=(("xmin, ymin, xmax, ymax", shifted), ("centre and size", cxcywh_to_xyxy)),
    ),
    ("cx", "cy", "w", "h"): Convention(
        "CSV, centre and size in pixels",
        ("cx", "cy", "w", "h"),
        cxcywh_to_xyxy,
        xyxy_to_cxcywh,
        others=(("left, top, width, height", xywh_to_xyxy),),
    ),
}
_ROLES = frozenset({*_STRONG, "bbox", "corners"})


def _columns(header: Sequence[str], place: str, asked: Asked) -> dict[str, int]:
    """Find the columns, those of the four numbers first, whose names tell their kind."""
    if wrong := [role for role, _ in asked.columns if role not in _ROLES]:
        msg = f"columns has {wrong[0]!r}; choose from {', '.join(sorted(_ROLES))}"
        raise BadInput(msg)
    columns = found_columns(header, place, _STRONG, WEAK, asked)
    names = [cell.strip().casefold() for cell in header]
    has_corners = {*CORNERS} <= columns.keys()
    for name, roles in _BOTH.items():  # the box's where it has no corners
        role = roles[has_corners]
        if not asked.headerless and role not in columns and names.count(name) == 1:
            columns[role] = names.index(name)
    if not has_corners:
        for role, other in (("x", "xmin"), ("y", "ymin")):
            if role not in columns and other in columns:
                columns[role] = columns[other]
    kind = next((kind for kind in _KINDS if {*kind} <= columns.keys()), None)
    for role in ("image", *(kind or CORNERS)):
        if role not in columns:
            raise missing_column(header, place, role, _STRONG[role][:2])
    return columns


def _fields(columns: Mapping[str, object]) -> tuple[str, str, str, str]:
    return next(kind for kind in _KINDS if {*kind} <= columns.keys())


def _read(root: Path, files: Sequence[str], asked: Asked) -> Listing:
    pictures: list[Picture] = []
    kinds: dict[tuple[str, str, str, str], str] = {}
    for file in files:
        own: dict[str, Picture] = {}
        sides: dict[str, set[tuple[str, str]]] = {}
        for row in table_rows(root, file, partial(_columns, asked=asked), asked):
            fields = _fields(row.cells)
            kinds.setdefault(fields, file)
            picture = picture_of(own, row, file)
            if any(row.cells[name] for name in fields):  # or else a picture without boxes
                picture.records.append(_record(row, file, fields))
            if stated := _stated_size(row.cells):
                sides.setdefault(picture.name, set()).add(stated)
        if not _are_of_boxes(own, sides):
            for name, found in sides.items():
                if len(found) == 1:
                    own[name].size = _size(next(iter(found)), own[name].place)
        pictures += own.values()
    if len(kinds) > 1:
        (first, one), (second, other) = [*kinds.items()][:2]
        problem = f"has {', '.join(second)}, and {one} has {', '.join(first)}"
        raise BadInput.at(other, problem, f"read one of them, with {argument('annotations')}")
    return Listing(pictures, convention=_KINDS[next(iter(kinds))] if kinds else None)


def _record(row: Row, file: str, fields: Sequence[str]) -> Record:
    first, second, third, fourth = (
        parse_number(row.cells[name], name, row.place) for name in fields
    )
    stated = row.cells.get("score")
    score = parse_number(stated, "score", row.place) if stated else math.nan
    values = first, second, third, fourth
    mark = IGNORED if is_set(row.cells.get("ignore")) else ""
    mark = DIFFICULT if is_set(row.cells.get("difficult")) else mark
    return Record(row.place, values, label_of(row), file, row.number, score=score, mark=mark)


def _stated_size(cells: Mapping[str, str]) -> tuple[str, str] | None:
    height, width = cells.get("image_height"), cells.get("image_width")
    return (height, width) if height and width else None


def _are_of_boxes(
    pictures: Mapping[str, Picture], sides: Mapping[str, set[tuple[str, str]]]
) -> bool:
    """Tell whether columns width and height are the boxes' own, beside their corners."""
    boxes = {
        (round(ymax - ymin), round(xmax - xmin))
        for name in sides
        for _, (xmin, ymin, xmax, ymax), *_ in pictures[name].records
        if all(map(math.isfinite, (xmin, ymin, xmax, ymax)))
    }
    try:
        stated = {(round(float(h)), round(float(w))) for each in sides.values() for h, w in each}
    except (ValueError, OverflowError):
        return True  # no sizes at all
    return stated <= {(h + more, w + more) for h, w in boxes for more in (0, 1)}


def _size(stated: tuple[str, str], place: str) -> tuple[float, float]:
    height, width = (
        parse_number(cell, name, place)
        for cell, name in zip(stated, ("height", "width"), strict=True)
    )
    return height, width


def _spots(text: str, asked: Asked) -> Iterator[Spots]:
    for spans in cell_spans(text, partial(_columns, asked=asked), asked):
        yield Spots([spans[name] for name in _fields(spans)])


def _looks_like(path: Path, asked: Asked) -> bool:
    return has_columns(path, partial(_columns, asked=asked), asked)


@cache
def csv_format(asked: Asked) -> Format:
    """Return CSV, whose columns and delimiter a user may name.

    Args:
        asked: What the user says.
    """
    return Format(
        "csv",
        (".csv", ".tsv") if asked == Asked() else (".csv", ".tsv", ".txt"),
        _KINDS[CORNERS],
        partial(_read, asked=asked),
        partial(_spots, asked=asked),
        partial(_looks_like, asked=asked),
        content="with columns image, xmin, ...",
    )


CSV = csv_format(Asked())
