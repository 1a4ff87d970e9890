"""COCO JSON: one file of many pictures, corner and size in pixels; also a detector's results."""

import json
import math
import posixpath
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_bbox.annotations.formats.format import (
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
)
from lightning_bbox.annotations.formats.texts import argument, read_text, whole_text
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

T = TypeVar("T")

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[^\s,\[\]]+")
_DECODER = json.JSONDecoder()


def _looks_like(path: Path) -> bool:
    """Tell by its words whether a file may be COCO with pictures, without parsing it."""
    content = path.read_bytes()
    is_object = content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and b'"images"' in content and b'"annotations"' in content


def is_results(path: Path) -> bool:
    """Tell whether a file is a list of results, which names no pictures itself.

    Args:
        path: A file of any format.
    """
    if path.suffix.casefold() != ".json" or not path.is_file():
        return False
    return path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _aside(files: Sequence[str]) -> list[str]:
    """Name what lies beside instances_*.json, such as captions of the same pictures."""
    folders = {posixpath.dirname(file) for file in files if _holds_instances(file)}
    beside = (file for file in files if posixpath.dirname(file) in folders)
    return [file for file in beside if not _holds_instances(file)]


def _holds_instances(file: str) -> bool:
    return posixpath.basename(file).casefold().startswith("instances")


def _read(root: Path, files: Sequence[str]) -> Listing:
    """Read JSON files; the classes are their categories in file order, united by name.

    Lists of results, as detectors write them, name no pictures: they are read with the one file
    that does, whose own boxes are then left aside.
    """
    documents = {file: _parse(root, file) for file in files}
    results = {file: found for file, found in documents.items() if isinstance(found, list)}
    with_pictures = {file: found for file, found in documents.items() if isinstance(found, dict)}
    if results and len(with_pictures) != 1:
        problem = f"is a list of results, read with {len(with_pictures)} files of pictures"
        both = argument("annotations", ["pictures.json", "results.json"])
        remedy = f"name both, as in {both}"
        raise BadInput.at(next(iter(results)), problem, remedy)
    listings = [_listing(file, found, results) for file, found in with_pictures.items()]
    return Listing(
        [picture for listing in listings for picture in listing.pictures],
        tuple(dict.fromkeys(name for listing in listings for name in listing.classes)),
        f"boxes of {listed([*with_pictures])} left aside for the results" if results else "",
    )


def _listing(file: str, document: Mapping[str, Any], results: Mapping[str, list[Any]]) -> Listing:
    pictures = {
        number: Picture(file, place, _take(entry, "file_name", str, place), _size(entry, place))
        for number, place, entry in _entries(document, "images", file)
    }
    names = {
        number: whole_text(_take(entry, "name", str, place), place)
        for number, place, entry in _entries(document, "categories", file)
    }
    for source, number, place, entry in _boxes(document, file, results):
        label = _referred(names, entry, "category_id", place)
        fault = "is a crowd (iscrowd=1), not one object" if entry.get("iscrowd") == 1 else ""
        box, score = _box(entry, place), _score(entry, place)
        record = Record(place, box, label, source, number, fault, score)
        _referred(pictures, entry, "image_id", place).records.append(record)
    return Listing(list(pictures.values()), tuple(names.values()))


def _boxes(
    document: Mapping[str, Any], file: str, results: Mapping[str, list[Any]]
) -> Iterator[tuple[str, int, str, Mapping[str, Any]]]:
    """Yield file, number, place and entry of each box: of the results, or else the document."""
    if not results:
        for number, (_, place, entry) in enumerate(_entries(document, "annotations", file)):
            yield file, number, place, entry
    for name, entries in results.items():
        for number, entry in enumerate(entries):
            place = f"{name}: result {number + 1}"
            yield name, number, place, _object(entry, place)


def _parse(root: Path, file: str) -> dict[str, Any] | list[Any]:
    text = read_text(root, file)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput.at(file, f"is not well-formed JSON ({error})", "repair it") from error
    if not isinstance(document, dict | list):
        raise BadInput.at(
            file, f"holds a {type(document).__name__}", "COCO is an object with images in it"
        )
    return document


def _object(entry: object, place: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise BadInput.at(place, f"is {reprlib.repr(entry)}, no JSON object", "correct it")
    return entry


def _entries(
    document: Mapping[str, Any], key: str, file: str
) -> Iterator[tuple[int | str, str, Mapping[str, Any]]]:
    """Yield the id, the place and the entry for each entry of a list."""
    seen: set[int | str] = set()
    word = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for number, entry in enumerate(_take(document, key, list, file), 1):
        place = f"{file}: {word} number {number}"
        identity = _take(_object(entry, place), "id", (int, str), place)
        place = f"{file}: {word} {_shown(identity)}"
        if identity in seen:
            raise BadInput.at(place, "this id is there twice", f"give each {word} an id of its own")
        seen.add(identity)
        yield identity, place, entry


def _shown(identity: int | str) -> str:
    """Return an id as it is, unless it doesn't fit into a line."""
    text = str(identity)
    return text if text.isprintable() and len(text) < 100 else reprlib.repr(identity)


def _size(entry: Mapping[str, Any], place: str) -> tuple[float, float] | None:
    if entry.get("height") is None or entry.get("width") is None:
        return None
    height, width = (_take(entry, key, (int, float), place) for key in ("height", "width"))
    return _float(height), _float(width)


def _box(entry: Mapping[str, Any], place: str) -> tuple[float, float, float, float]:
    if "bbox" not in entry:
        remedy = "add the box around its polygons, which aren't read, or remove the annotation"
        raise BadInput.at(place, "has no bbox", remedy)
    numbers = _take(entry, "bbox", list, place)
    if len(numbers) != 4 or any(type(number) not in (int, float) for number in numbers):
        problem = f"bbox is {reprlib.repr(numbers)}, not four numbers"
        raise BadInput.at(place, problem, "correct it or remove the annotation")
    x, y, width, height = map(_float, numbers)
    return x, y, width, height


def _score(entry: Mapping[str, Any], place: str) -> float:
    if entry.get("score") is None:
        return math.nan
    return _float(_take(entry, "score", (int, float), place))


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond 1e308, for a box as bad as an infinite one
        return math.inf


def _take(entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str) -> Any:  # noqa: ANN401 - JSON
    """Take the value of a key, which must be of the kind (and a bool is not an int)."""
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(kind.__name__ for kind in kinds)
        found = reprlib.repr(value) if key in entry else "missing"
        raise BadInput.at(place, f"{key!r} is {found}, expected {expected}", "correct it")
    return value


def _referred(table: Mapping[int | str, T], entry: Mapping[str, Any], key: str, place: str) -> T:
    identity = _take(entry, key, (int, str), place)
    if identity not in table:
        problem = f"{key} {identity!r} is not among the {len(table)} of the file"
        raise BadInput.at(place, problem, "correct it or remove the annotation")
    return table[identity]


def _spans(text: str) -> Iterator[list[Span]]:
    """Find the four numbers of each box: of the annotations, or of a list of results."""
    position = _skip(text, 1 if text.startswith("\ufeff") else 0)
    if text[position] == "[":
        yield from _boxes_of_list(text, position)
        return
    lists = [start for key, start, _ in _members(text, position) if key == "annotations"]
    yield from _boxes_of_list(text, lists[-1])


def _boxes_of_list(text: str, position: int) -> Iterator[list[Span]]:
    """Walk through a JSON list of objects, and yield the spans of the numbers in their bbox."""
    position = _skip(text, position + 1)
    while text[position] != "]":
        end, box = position, (0, 0)
        for key, value, after in _members(text, position):
            end = after
            if key == "bbox":
                box = (value, after)
        yield [match.span() for match in _NUMBER.finditer(text, *box)]
        position = _skip(text, text.index("}", end) + 1)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _members(text: str, position: int) -> Iterator[tuple[str, int, int]]:
    """Walk through a JSON object, and yield each key with the span of its value."""
    position = _skip(text, position + 1)
    while text[position] == '"':
        key, position = _DECODER.raw_decode(text, position)
        value = _skip(text, _skip(text, position) + 1)
        _, position = _DECODER.raw_decode(text, value)
        yield key, value, position
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """Skip JSON's white space."""
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


COCO = Format(
    "coco",
    (".json",),
    Convention(
        "COCO JSON, left top corner and size in pixels",
        ("x", "y", "width", "height"),
        xywh_to_xyxy,
        xyxy_to_xywh,
    ),
    _read,
    _spans,
    _looks_like,
    content="with images and annotations",
    aside=_aside,
)
