"""COCO JSON: one file of many pictures, corner and size in pixels; also a detector's results."""

import math
import posixpath
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_bbox.annotations.formats.format import (
    DIFFICULT,
    IGNORED,
    NO_BOX,
    Along,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
    Spots,
    shifted,
    turned_by,
)
from lightning_bbox.annotations.formats.json import (
    as_float,
    as_object,
    document_start,
    is_number,
    members,
    number_spans,
    parse_json,
    skip,
    spans_of,
    take,
)
from lightning_bbox.annotations.formats.texts import argument, is_set, whole_text
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_NEAR = 1.0  # pixels between a box and the rectangle that is drawn for it, where tools round
_SAME = 0.01
_AREA = 0.001  # the share by which a box's stated area may differ from its own


class _Labels(NamedTuple):
    """The classes of a file, which annotations name by id; none where it has no categories."""

    names: dict[int | str, str]

    def of(self, entry: Mapping[str, Any]) -> tuple[str, str]:
        """Return an annotation's class, and what is wrong with it, if anything is."""
        stated = entry.get("category_id")
        identity = _identity(stated)
        if not self.names:
            return ("object" if identity is None else str(identity)), ""
        name = self.names.get(_known(self.names, identity))
        if name is not None:
            return name, ""
        if "category_id" not in entry:
            return "", "has no category_id"
        shown = reprlib.repr(stated)
        return "", f"has the category_id {shown}, none of the {len(self.names)} of its file"


def _looks_like(path: Path) -> bool:
    """Tell by its words whether a file may be COCO with pictures, without parsing it."""
    content = path.read_bytes()
    is_object = content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and b'"images"' in content and b'"annotations"' in content


def is_results(path: Path) -> bool:
    """Tell by its words whether a file is a list of results, which names no pictures itself.

    Args:
        path: A file of any format.
    """
    if path.suffix.casefold() != ".json" or not path.is_file():
        return False
    content = path.read_bytes()
    is_list = content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return is_list and (b'"image_id"' in content or not content.strip(b"\xef\xbb\xbf \t\r\n[]"))


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
    notes = [f"boxes of {listed([*with_pictures])} left aside for the results"] * bool(results)
    notes += [listing.note for listing in listings if listing.note]
    return Listing(
        [picture for listing in listings for picture in listing.pictures],
        tuple(dict.fromkeys(name for listing in listings for name in listing.classes)),
        "; ".join(notes),
    )


def _parse(root: Path, file: str) -> dict[str, Any] | list[Any]:
    document = parse_json(root, file)
    if not isinstance(document, dict | list):
        problem = f"holds a {type(document).__name__}"
        raise BadInput.at(file, problem, "COCO is an object with images in it")
    return document


def _listing(file: str, document: Mapping[str, Any], results: Mapping[str, list[Any]]) -> Listing:
    pictures = {
        number: Picture(file, place, take(entry, "file_name", str, place), _size(entry, place))
        for number, place, entry in _entries(document, "images", file)
    }
    labels = _Labels(
        {
            number: whole_text(take(entry, "name", str, place), place)
            for number, place, entry in _entries(document, "categories", file)
        }
        if document.get("categories")
        else {}
    )
    notes = [] if labels.names else [f"{file} has no categories: classes are their numbers"]
    polygons = 0
    if results:
        for name, entries in results.items():
            found = [as_object(entry, f"{name}: result {n}") for n, entry in enumerate(entries, 1)]
            owner, how = _owner_of_results(found, pictures, name)
            notes += [how] * bool(how)
            for number, entry in enumerate(found):
                place = f"{name}: result {number + 1}"
                record, has_polygon = _record(entry, place, name, number, labels)
                polygons += has_polygon
                owner(entry, place).records.append(record)
    else:
        owner = partial(_by_id, pictures)
        for number, (_, place, entry) in enumerate(_entries(document, "annotations", file)):
            record, has_polygon = _record(entry, place, file, number, labels)
            polygons += has_polygon
            owner(entry, place).records.append(record)
    if polygons:
        notes.append(f"segmentations of {polygons} boxes are neither read nor moved")
    return Listing(list(pictures.values()), tuple(labels.names.values()), "; ".join(notes))


def _record(
    entry: Mapping[str, Any], place: str, file: str, number: int, labels: _Labels
) -> tuple[Record, bool]:
    """Read a box; tell too whether it has a polygon that is more than the box itself."""
    label, fault = labels.of(entry)
    outlines = entry.get("segmentation")
    values, outline, problem = NO_BOX, "", ""
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
        x, y, width, height = map(as_float, box)
        values = x, y, width, height
    elif box:
        problem = f"has the bbox {reprlib.repr(box)}, not four numbers"
    elif points := _polygon_points(outlines):
        values, outline = _around(points), "a polygon"
    else:
        problem = "has no bbox, and no polygon either"
    problem = problem or turned_by(_turn(entry))
    if entry.get("iscrowd") in (1, True):
        problem = problem or "is a crowd (iscrowd=1), not one object"
    told = entry.get("attributes")
    flags = [entry, told if isinstance(told, dict) else {}]  # CVAT and Datumaro have the latter
    ignored = any(is_set(each.get("ignore")) for each in flags)
    mark = IGNORED if ignored else ""
    mark = DIFFICULT if any(is_set(each.get("difficult")) for each in flags) else mark
    has_polygon = bool(outlines) and not outline and not _sides(outlines, values)
    problem, score = problem or fault, _score(entry, place)
    record = Record(place, values, label, file, number, problem, score, outline, mark)
    return record, has_polygon


def _turn(entry: Mapping[str, Any]) -> float:
    """Return by how many degrees a box is turned, as a number or its text; 0 where none is told."""
    attributes = entry.get("attributes")
    told = attributes if isinstance(attributes, dict) and "rotation" in attributes else entry
    try:
        turn = float(told.get("rotation") or 0)
    except (TypeError, ValueError, OverflowError):  # what somebody uses otherwise
        return 0.0
    return turn if math.isfinite(turn) else 0.0


def _score(entry: Mapping[str, Any], place: str) -> float:
    if entry.get("score") is None:
        return math.nan
    return as_float(take(entry, "score", (int, float), place))


def _polygon_points(outlines: object) -> list[float]:
    """Return the coordinates x, y, ... of all polygons; none where they aren't well-formed."""
    if not isinstance(outlines, list):
        return []
    points = []
    for outline in outlines:
        if not isinstance(outline, list) or len(outline) < 6 or len(outline) % 2:
            return []
        if not all(map(is_number, outline)):
            return []
        points += [float(as_float(number)) for number in outline]
    return points


def _around(points: Sequence[float]) -> tuple[float, float, float, float]:
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _sides(outlines: object, box: Sequence[float]) -> list[Along]:
    """Name the side that each coordinate of a polygon is, where it is but the box once more."""
    if not isinstance(outlines, list) or len(outlines) != 1:
        return []
    points = _polygon_points(outlines)
    if len(points) not in (8, 10):
        return []
    drawn = _around(points)
    left, top, right, bottom = drawn[0], drawn[1], drawn[0] + drawn[2], drawn[1] + drawn[3]
    stated = box[0], box[1], box[0] + box[2], box[1] + box[3]
    pairs = zip((left, top, right, bottom), stated, strict=True)
    if not all(abs(one - other) <= _NEAR for one, other in pairs) or min(drawn[2:]) <= 2 * _SAME:
        return []
    sides: list[Along] = []
    for at, number in enumerate(points):
        names: tuple[Along, Along] = ("ymin", "ymax") if at % 2 else ("xmin", "xmax")
        low, high = (top, bottom) if at % 2 else (left, right)
        if min(abs(number - low), abs(number - high)) > _SAME:
            return []
        sides.append(names[0] if abs(number - low) <= _SAME else names[1])
    corners = [*zip(sides[::2], sides[1::2], strict=True)]
    corners += [] if len(corners) == 5 else corners[:1]
    steps = all((a[0] == b[0]) != (a[1] == b[1]) for a, b in pairwise(corners))
    return sides if steps and corners[0] == corners[-1] and len(set(corners)) == 4 else []


def _owner_of_results(
    entries: Sequence[Mapping[str, Any]], pictures: Mapping[int | str, Picture], file: str
) -> tuple[Callable[[Mapping[str, Any], str], Picture], str]:
    """Find how results name their pictures, all of them in the same way: by id, name or stem.

    Ultralytics writes the stem of a picture's name, as a number where it is one.
    """
    names = _pictures_by_name(pictures)
    for key in ("file_name", "image_id"):
        stated = [_identity(entry.get(key)) for entry in entries]
        if not entries or not all(name is not None and names.get(name) for name in stated):
            continue
        ids = [_known(pictures, _identity(entry.get("image_id"))) for entry in entries]
        by_id = [pictures.get(identity) for identity in ids]
        by_name = [names[name] for name in stated if name is not None]
        if key == "file_name" or None in by_id:
            return partial(_by_name, names, key), f"results of {file} name pictures by {key}"
        if any(one is not other for one, other in zip(by_id, by_name, strict=True)):
            problem = "each image_id is the id of one picture and the name of another"
            raise BadInput.at(file, problem, "add its file_name to each result")
    return partial(_by_id, pictures), ""


def _pictures_by_name(pictures: Mapping[int | str, Picture]) -> dict[int | str, Picture | None]:
    """Return pictures by name, last part and stem, which may be a number; None for several."""
    names: dict[int | str, Picture | None] = {}
    for picture in pictures.values():
        path = PurePosixPath(picture.name.replace("\\", "/"))
        own: set[int | str] = {picture.name, path.name, path.stem}
        own |= {int(path.stem)} if re.fullmatch(r"\d{1,18}", path.stem, re.ASCII) else set()
        for name in own:
            names[name] = picture if name not in names else None
    return names


def _by_name(
    names: Mapping[int | str, Picture | None], key: str, entry: Mapping[str, Any], _: str
) -> Picture:
    picture = names[_identity(entry.get(key)) or 0]
    assert picture is not None  # `_owner_of_results` has looked
    return picture


def _by_id(pictures: Mapping[int | str, Picture], entry: Mapping[str, Any], place: str) -> Picture:
    identity = _identity(take(entry, "image_id", (int, str, float), place))
    known = _known(pictures, identity)
    if known not in pictures:
        problem = f"image_id {identity!r} is not among the {len(pictures)} of the file"
        raise BadInput.at(place, problem, "correct it or remove the annotation")
    return pictures[known]


def _identity(value: object) -> int | str | None:
    """Return an id: a text, or a whole number, which some tools write as 1.0."""
    if type(value) is int:  # nearly all are
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _known(table: Mapping[int | str, object], identity: int | str | None) -> int | str:
    """Return the id of a table that is meant: 7 by "7", and "7" by 7, where only one is there."""
    if identity in table or identity is None:
        return "" if identity is None else identity
    if isinstance(identity, int):
        return str(identity)
    return int(identity) if re.fullmatch(r"\d{1,18}", identity, re.ASCII) else identity


def _entries(
    document: Mapping[str, Any], key: str, file: str
) -> Iterator[tuple[int | str, str, Mapping[str, Any]]]:
    """Yield the id, the place and the entry for each entry of a list.

    An annotation needs no id, and is then named by its number.
    """
    seen: set[int | str] = set()
    word = {"images": "image", "annotations": "annotation", "categories": "category"}[key]
    for number, entry in enumerate(take(document, key, list, file), 1):
        place = f"{file}: {word} number {number}"
        if word == "annotation" and as_object(entry, place).get("id") is None:
            yield "", place, entry
            continue
        stated = take(as_object(entry, place), "id", (int, str, float), place)
        identity = _identity(stated)
        if identity is None:
            raise BadInput.at(place, f"its id is {stated}, no whole number", "correct it")
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
    height, width = (take(entry, key, (int, float), place) for key in ("height", "width"))
    return as_float(height), as_float(width)


def _spots(text: str) -> Iterator[Spots]:
    """Find the numbers of each box: of the annotations, or of a list of results."""
    position = document_start(text)
    if text[position] != "[":
        position = spans_of(text, position, "annotations")[-1][0]
    position = skip(text, position + 1)
    while text[position] != "]":
        found: dict[str, tuple[Any, Span]] = {}
        end = position
        for key, value, span in members(text, position):
            end = span[1]
            if key in ("bbox", "area", "segmentation"):
                found[key] = value, span
        yield _spots_of(text, found)
        position = skip(text, text.index("}", end) + 1)
        if text[position] == ",":
            position = skip(text, position + 1)


def _spots_of(text: str, found: Mapping[str, tuple[Any, Span]]) -> Spots:
    box, span = found.get("bbox", ([], (0, 0)))
    numbers = number_spans(text, span)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return Spots(numbers)
    values = [*map(as_float, box)]
    along: list[tuple[Span, Along]] = []
    area, area_span = found.get("area", (None, (0, 0)))
    own = values[2] * values[3]
    if is_number(area) and abs(as_float(area) - own) <= _AREA * abs(own):
        along.append((area_span, "area"))
    outlines, outline_span = found.get("segmentation", ([], (0, 0)))
    if sides := _sides(outlines, values):
        along += zip(number_spans(text, outline_span), sides, strict=True)
    return Spots(numbers, along)


COCO = Format(
    "coco",
    (".json",),
    Convention(
        "COCO JSON, left top corner and size in pixels",
        ("x", "y", "width", "height"),
        xywh_to_xyxy,
        xyxy_to_xywh,
        others=(("xmin, ymin, xmax, ymax", shifted),),
    ),
    _read,
    _spots,
    _looks_like,
    content="of COCO",
    aside=_aside,
)
