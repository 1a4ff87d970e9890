"""Regions of VIA: their shapes, in words and four numbers, and their classes."""

import reprlib
from collections.abc import Mapping
from typing import Any

from lightning_bbox.annotations.formats.format import NO_BOX, Convention, Record
from lightning_bbox.annotations.formats.json import as_float, is_number
from lightning_bbox.annotations.formats.texts import argument, whole_text
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

FIELDS = ("x", "y", "width", "height")
"""What the numbers of a rectangle are called."""
CONVENTION = Convention(
    "VIA, left top corner and size in pixels", FIELDS, xywh_to_xyxy, xyxy_to_xywh
)
"""What they mean."""
_ONLY_CLASS = "object"
_LABELS = ("label", "class", "name", "type", "category", "object", "label_name", "class_name")


def box_of(shape: Mapping[str, Any]) -> tuple[tuple[float, float, float, float], str, str]:
    """Return the four numbers of a shape, why it is none, and what they are only around.

    Args:
        shape: Its `shape_attributes`.
    """
    name = shape.get("name")
    needed = {
        "rect": FIELDS,
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


def record_of(
    shape: Mapping[str, Any],
    attributes: Mapping[str, Any],
    place: str,
    file: str,
    number: int,
    named: str | int | None,
) -> Record:
    """Return a region as a record.

    Args:
        shape: Its `shape_attributes`.
        attributes: Its `region_attributes`.
        place: Where it stands.
        file: In which file.
        number: Which of that file's regions it is, from 0.
        named: The attribute that the user says is the class.

    Raises:
        BadInput: The class can't be told.
    """
    values, fault, outline = box_of(shape)
    label = label_of(attributes, place, named)
    return Record(place, values, label, file, number, fault, outline=outline)


def label_of(attributes: Mapping[str, Any], place: str, named: str | int | None) -> str:
    """Return the class of a region: its attribute of a usual name, or the only one.

    Args:
        attributes: Its `region_attributes`.
        place: Where it stands.
        named: The attribute that the user says is the class.

    Raises:
        BadInput: It has not that attribute, or several that may be meant.
    """
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
    return _ONLY_CLASS
