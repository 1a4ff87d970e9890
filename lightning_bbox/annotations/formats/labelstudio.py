"""Label Studio JSON, full or minimal: one file of many pictures, boxes in percent of them."""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from lightning_bbox.annotations.formats.format import (
    NO_BOX,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    turned_by,
)
from lightning_bbox.annotations.formats.json import (
    as_float,
    as_object,
    is_number,
    parse_json,
    span_of,
    spotted_json,
)
from lightning_bbox.annotations.formats.texts import whole_text
from lightning_bbox.core.errors import BadInput, listed, shortened
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_FIELDS = ("x", "y", "width", "height")
_PICTURE = re.compile(
    r"\.(jpe?g|jfif|png|bmp|gif|tiff?|webp|ppm|pgm|avif|jp2)($|[?#])", re.IGNORECASE
)
_ONLY_CLASS = "object"


class _Region(NamedTuple):
    """A region of a task: what it is stated as, with the size of its picture and its score."""

    value: Mapping[str, Any]
    result: Mapping[str, Any]
    score: object = None


def _looks_like(path: Path) -> bool:
    content = path.read_bytes()
    is_list = content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return is_list and b'"original_width"' in content


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures = []
    for file in files:
        number = 0
        tasks = parse_json(root, file)
        if not isinstance(tasks, list):
            raise BadInput.at(file, "holds no list of tasks", "export it as JSON")
        for at, (task, regions) in enumerate(_tasks(tasks, file), 1):
            place = f"{file}: task {shortened(str(task.get('id', at)))}"
            picture = Picture(file, place, _name(task, place))
            for region in regions:
                record = _record(region, f"{place}: region {len(picture.records) + 1}", file)
                picture.records.append(record._replace(number=number))
                picture.size = picture.size or _size(region.result)
                number += 1
            pictures.append(picture)
    return Listing(pictures)


def _tasks(tasks: Sequence[Any], file: str) -> Iterator[tuple[Mapping[str, Any], list[_Region]]]:
    """Yield each task with its regions: of its annotation, or where none has any its prediction."""
    entries = [as_object(task, f"{file}: task {at}") for at, task in enumerate(tasks, 1)]
    has_annotations = any(_results(task, "annotations", file) for task in entries)
    for task in entries:
        if isinstance(task.get("data"), dict):
            key = "annotations" if has_annotations else "predictions"
            yield task, _results(task, key, file)
        else:
            yield task, _minimal(task)


def _results(task: Mapping[str, Any], key: str, file: str) -> list[_Region]:
    found = task.get(key)
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    kept = [one for one in entries if not one.get("was_cancelled") and one.get("result")]
    if len(kept) > 1:
        problem = f"has {len(kept)} {key}"
        remedy = "keep one a task, such as the ground truth"
        place = f"{file}: task {shortened(str(task.get('id', '')))}"
        raise BadInput.at(place, problem, remedy)
    results = kept[0]["result"] if kept and isinstance(kept[0]["result"], list) else []
    stated = [result for result in results if isinstance(result, dict)]
    return [
        _Region(result["value"], result, result.get("score", kept[0].get("score")))
        for result in stated
        if isinstance(result.get("value"), dict) and _is_region(result["value"])
    ]


def _minimal(task: Mapping[str, Any]) -> list[_Region]:
    lists = (value for value in task.values() if isinstance(value, list))
    entries = [entry for entry in chain.from_iterable(lists) if isinstance(entry, dict)]
    return [_Region(entry, entry) for entry in entries if _is_region(entry)]


def _is_region(value: Mapping[str, Any]) -> bool:
    return "points" in value or "rle" in value or {"x", "y"} <= value.keys()


def _name(task: Mapping[str, Any], place: str) -> str:
    data = task.get("data")
    stated = data if isinstance(data, dict) else task
    texts = {key: value for key, value in stated.items() if isinstance(value, str)}
    found = [key for key, text in texts.items() if _PICTURE.search(text)]
    for key in ("image", "img"):
        if key in texts:
            return texts[key]
    if len(found) != 1:
        problem = f"its picture may be any of {listed(found)}" if found else "names no picture"
        raise BadInput.at(place, problem, "call the one that is meant `image`")
    return texts[found[0]]


def _size(result: Mapping[str, Any]) -> tuple[float, float] | None:
    height, width = result.get("original_height"), result.get("original_width")
    if not (is_number(height) and is_number(width)):
        return None
    return as_float(height or 0), as_float(width or 0)


def _record(region: _Region, place: str, file: str) -> Record:
    numbers, fault, outline = _box(region)
    labels = [
        name
        for key, names in region.value.items()
        if key.endswith("labels") and isinstance(names, list)
        for name in names
        if isinstance(name, str)
    ]
    if len(labels) > 1:
        fault = fault or f"has several classes ({listed(labels)})"
    label = whole_text(labels[0] if labels else _ONLY_CLASS, place)
    score = as_float(region.score) if isinstance(region.score, int | float) else math.nan
    return Record(place, numbers, label, file, 0, fault, score, outline)


def _box(region: _Region) -> tuple[tuple[float, float, float, float], str, str]:
    """Return a region's numbers, why it is no box, and what they are only around."""
    value, points = region.value, region.value.get("points")
    turn, picture_turn = value.get("rotation"), region.result.get("image_rotation")
    fault = turned_by(as_float(turn)) if is_number(turn) and turn else ""
    if is_number(picture_turn) and picture_turn:
        fault = f"was drawn on the picture turned by {reprlib.repr(picture_turn)} degrees"
    numbers = [as_float(value[key]) for key in _FIELDS if is_number(value.get(key))]
    if "rectanglelabels" in value or region.result.get("type") in (None, "rectanglelabels"):
        if len(numbers) == 4 and points is None:
            x, y, width, height = numbers
            return (x, y, width, height), fault, ""
    elif len(numbers) == 4 and points is None and "rle" not in value:
        x, y, width, height = numbers
        return (x, y, width, height), fault, "a region whose class stands elsewhere"
    radii = [as_float(value[key]) for key in ("radiusX", "radiusY") if is_number(value.get(key))]
    if len(radii) == 2 and not fault and is_number(value["x"]) and is_number(value["y"]):
        x, y = as_float(value["x"]), as_float(value["y"])
        return (x - radii[0], y - radii[1], 2 * radii[0], 2 * radii[1]), "", "an ellipse"
    pairs = points if isinstance(points, list) else []
    if len(pairs) > 2 and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs
    ):
        xs, ys = ([as_float(pair[axis]) for pair in pairs] for axis in (0, 1))
        around = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        return around, fault, "a polygon"
    return NO_BOX, fault or "is a region that is no box", ""


def _spots(text: str) -> Iterator[Spots]:
    for _, regions in _tasks(spotted_json(text), ""):
        for region in regions:
            numbers, fault, outline = _box(region)
            yield Spots([] if fault or outline else [span_of(number) for number in numbers])


def _to_xyxy(values: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    return xywh_to_xyxy(values / 100)


def _from_xyxy(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    return xyxy_to_xywh(boxes) * 100


LABEL_STUDIO = Format(
    "labelstudio",
    (".json",),
    Convention(
        "Label Studio JSON, left top corner and size in percent of the picture",
        _FIELDS,
        _to_xyxy,
        _from_xyxy,
        fractions=True,
    ),
    _read,
    _spots,
    _looks_like,
    content="of Label Studio",
)
