"""VIA CSV (VGG Image Annotator 1 and 2): a region a line, its shape as JSON in a cell."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from lightning_bbox.annotations.formats.format import (
    NO_BOX,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
)
from lightning_bbox.annotations.formats.json import as_float, is_number
from lightning_bbox.annotations.formats.tables.sheet import (
    ONLY_CLASS,
    Asked,
    Row,
    cell_spans,
    found_columns,
    has_columns,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.texts import argument, whole_text
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_NAMES = {
    "image": ("filename", "#filename"),
    "shape": ("region_shape_attributes",),
    "attributes": ("region_attributes",),
}
_FIELDS = ("x", "y", "width", "height")
_LABELS = ("label", "class", "name", "type", "category", "object", "label_name", "class_name")
_MEMBER = r"""["]{{1,2}}{}["]{{1,2}}\s*:\s*(?P<quote>"{{0,2}})([^\s,}}"]+)(?P=quote)"""
_SPOTS = [re.compile(_MEMBER.format(name)) for name in _FIELDS]
_COMMA = Asked(delimiter=",")


def _columns(header: Sequence[str], place: str) -> dict[str, int]:
    columns = found_columns(header, place, _NAMES, {}, _COMMA)
    for role, names in _NAMES.items():
        if role not in columns:
            raise missing_column(header, place, role, names)
    return columns


def _read(root: Path, files: Sequence[str], asked: Asked) -> Listing:
    named = dict(asked.columns).get("label")
    pictures: list[Picture] = []
    for file in files:
        own: dict[str, Picture] = {}
        for row in table_rows(root, file, _columns, _COMMA):
            picture = picture_of(own, row, file)
            if shape := _cell(row, "shape"):
                values, fault, outline = _box(shape)
                label = _label(_cell(row, "attributes"), row.place, named)
                record = Record(row.place, values, label, file, row.number, fault, outline=outline)
                picture.records.append(record)
        pictures += own.values()
    return Listing(pictures)


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


def _box(shape: Mapping[str, Any]) -> tuple[tuple[float, float, float, float], str, str]:
    """Return the four numbers of a shape, why it is none, and what they are only around."""
    name = shape.get("name")
    needed = {
        "rect": _FIELDS,
        "circle": ("cx", "cy", "r"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }.get(str(name), ())
    numbers = [as_float(shape[key]) for key in needed if is_number(shape.get(key))]
    if needed and len(numbers) == len(needed):
        if name == "rect":
            x, y, width, height = numbers
            return (x, y, width, height), "", ""
        if not shape.get("theta"):
            cx, cy, rx, ry = [*numbers, numbers[-1]][:4]
            return (cx - rx, cy - ry, 2 * rx, 2 * ry), "", f"a {name}".replace("a e", "an e")
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if (
        name == "polygon"
        and isinstance(xs, list)
        and isinstance(ys, list)
        and min(len(xs), len(ys)) > 2
        and all(map(is_number, (*xs, *ys)))
    ):
        left, top = as_float(min(xs)), as_float(min(ys))
        return (left, top, as_float(max(xs)) - left, as_float(max(ys)) - top), "", "a polygon"
    return NO_BOX, f"is the shape {reprlib.repr(name)}, which is no box", ""


def _label(attributes: Mapping[str, Any], place: str, named: str | int | None) -> str:
    """Return the class of a region: its attribute of a usual name, or the only one."""
    texts = {}
    for key, stated in attributes.items():
        value = stated
        if isinstance(stated, dict):  # a check box
            value = next((name for name, chosen in stated.items() if chosen), "")
        if isinstance(value, str | int | float) and str(value).strip():
            texts[key] = whole_text(str(value).strip(), place)
    if named is not None:
        if named not in texts:
            problem = f"has no attribute {named!r}"
            raise BadInput.at(place, problem, f"fill it, or correct {argument('columns')}")
        return texts[str(named)]
    usual = [key for name in _LABELS for key in texts if key.casefold() == name]
    if usual or len(texts) == 1:
        return texts[usual[0] if usual else next(iter(texts))]
    if texts:
        problem = f"the class may be any of the attributes {listed([*texts])}"
        raise BadInput.at(place, problem, f"say which with {argument('columns', {'label': '...'})}")
    return ONLY_CLASS


def _spots(text: str) -> Iterator[Spots]:
    for spans in cell_spans(text, _columns, _COMMA):
        begin, end = spans["shape"]
        cell = text[begin:end]
        found = [pattern.search(cell) for pattern in _SPOTS]
        is_rectangle = re.search(r'"name"+\s*:\s*"+rect"', cell)
        numbers = [match.span(2) for match in found if match] if is_rectangle else []
        yield Spots([(begin + start, begin + stop) for start, stop in numbers])


@cache
def via_format(asked: Asked) -> Format:
    """Return VIA's CSV.

    Args:
        asked: Which attribute is the class, as the column of `label`.
    """
    return Format(
        "via",
        (".csv",),
        Convention(
            "VIA CSV, left top corner and size in pixels", _FIELDS, xywh_to_xyxy, xyxy_to_xywh
        ),
        partial(_read, asked=asked),
        _spots,
        partial(has_columns, columns=_columns, asked=_COMMA),
        content="of VIA",
    )
