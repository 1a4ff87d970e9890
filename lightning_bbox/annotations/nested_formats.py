"""The annotation formats that nest: VOC XML and COCO JSON.

Only the form of a file is judged here, not the boxes in it.
"""

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from xml.etree.ElementTree import Element  # the type only: parsing goes through defusedxml

from defusedxml import DefusedXmlException, ElementTree

from lightning_bbox.annotations.formats import (
    COCO,
    CORNERS,
    VOC,
    Listing,
    Picture,
    Record,
    labels_met,
    parse_number,
    read_bytes,
    read_text,
    whole_text,
)
from lightning_bbox.core.errors import BadInput, listed

T = TypeVar("T")


def read_voc(root: Path, files: Sequence[str], base: Literal[0, 1]) -> Listing:
    """Read VOC XML files, one a picture; the classes are those met, by name.

    Args:
        root: Folder that everything is relative to.
        files: The XML files.
        base: Coordinate of the first pixel.

    Raises:
        BadInput: If a file is not a well-formed VOC annotation.

    Examples:
        >>> import tempfile
        >>> corners = "".join(f"<{name}>{value}</{name}>" for value, name in enumerate(CORNERS, 1))
        >>> box = f"<object><name>cell</name><bndbox>{corners}</bndbox></object>"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.xml").write_text(f"<annotation>{box}</annotation>")
        ...     read_voc(Path(folder), ["a.xml"], base=1).pictures[0].records
        [Record(place='a.xml: object 1', values=(1.0, 2.0, 3.0, 4.0), label='cell', ...)]
    """
    pictures = [_voc_picture(root, file) for file in files]
    records = (record for picture in pictures for record in picture.records)
    zero = next((record.place for record in records if 0 <= min(record.values) < base), None)
    note = f"a corner is 0 at {zero}: set voc_base=0 if pixels are counted from 0" if zero else ""
    return Listing(pictures, labels_met(pictures), VOC[base], note)


def _voc_picture(root: Path, file: str) -> Picture:
    tree = _parse_xml(root, file)
    picture = Picture(file, file, tree.findtext("filename", "").strip(), _voc_size(tree, file))
    for number, node in enumerate(tree.findall("object")):
        place = f"{file}: object {number + 1}"
        box = _voc_child(node, "bndbox", place)
        xmin, ymin, xmax, ymax = (_voc_number(box, tag, place) for tag in CORNERS)
        picture.records.append(
            Record(place, (xmin, ymin, xmax, ymax), _voc_text(node, "name", place), file, number)
        )
    return picture


def _parse_xml(root: Path, file: str) -> Element:
    content = read_bytes(root, file)
    try:
        tree: Element = ElementTree.fromstring(content)
    except DefusedXmlException as error:
        problem = "declares entities, as files do that blow up or read others"
        raise BadInput.at(file, problem, "remove its <!DOCTYPE ...>") from error
    # ParseError is a SyntaxError; ValueError: bytes after a text's end; LookupError: encodings.
    except (SyntaxError, ValueError, LookupError) as error:
        raise BadInput.at(file, f"is not well-formed XML ({error})", "repair it") from error
    if tree.tag != "annotation":
        raise BadInput.at(
            file, f"has the root <{tree.tag}>, VOC has <annotation>", "move it elsewhere"
        )
    return tree


def _voc_size(tree: Element, file: str) -> tuple[float, float] | None:
    if (node := tree.find("size")) is None:
        return None
    return _voc_number(node, "height", file), _voc_number(node, "width", file)


def _voc_child(node: Element, tag: str, place: str) -> Element:
    if (child := node.find(tag)) is None:
        raise BadInput.at(place, f"has no <{tag}>", f"add it or remove the <{node.tag}>")
    return child


def _voc_text(node: Element, tag: str, place: str) -> str:
    text = (_voc_child(node, tag, place).text or "").strip()
    if not text:
        raise BadInput.at(place, f"has an empty <{tag}>", f"fill it or remove the <{node.tag}>")
    return text


def _voc_number(node: Element, tag: str, place: str) -> float:
    return parse_number(_voc_text(node, tag, place), tag, place)


def read_coco(root: Path, files: Sequence[str]) -> Listing:
    """Read COCO JSON files; the classes are their categories in file order, united by name.

    Lists of results, as detectors write them, name no pictures: they are read with the one file
    that does, whose own boxes are then left aside.

    Args:
        root: Folder that everything is relative to.
        files: The JSON files.

    Raises:
        BadInput: If a file is not COCO, or an id in it is unknown or there twice.

    Examples:
        >>> import tempfile
        >>> box = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [4, 5, 2, 6]}
        >>> image, category = {"id": 1, "file_name": "a.png"}, {"id": 3, "name": "cell"}
        >>> document = {"images": [image], "categories": [category], "annotations": [box]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.json").write_text(json.dumps(document))
        ...     read_coco(Path(folder), ["a.json"]).pictures[0].records
        [Record(place='a.json: annotation 7', values=(4.0, 5.0, 2.0, 6.0), label='cell', ...)]
    """
    documents = {file: _parse_json(root, file) for file in files}
    results = {file: found for file, found in documents.items() if isinstance(found, list)}
    with_pictures = {file: found for file, found in documents.items() if isinstance(found, dict)}
    if results and len(with_pictures) != 1:
        problem = f"is a list of results, read with {len(with_pictures)} files of pictures"
        remedy = "name both, such as annotations=[pictures.json, results.json]"
        raise BadInput.at(next(iter(results)), problem, remedy)
    listings = [_coco_listing(file, found, results) for file, found in with_pictures.items()]
    return Listing(
        [picture for listing in listings for picture in listing.pictures],
        tuple(dict.fromkeys(name for listing in listings for name in listing.classes)),
        COCO,
        f"boxes of {listed([*with_pictures])} left aside for the results" if results else "",
    )


def _coco_listing(
    file: str, document: Mapping[str, Any], results: Mapping[str, list[Any]]
) -> Listing:
    pictures = {
        number: Picture(
            file, place, _take(entry, "file_name", str, place), _coco_size(entry, place)
        )
        for number, place, entry in _coco_entries(document, "images", file)
    }
    names = {
        number: whole_text(_take(entry, "name", str, place), place)
        for number, place, entry in _coco_entries(document, "categories", file)
    }
    for source, number, place, entry in _coco_boxes(document, file, results):
        label = _referred(names, entry, "category_id", place)
        fault = "is a crowd (iscrowd=1), not one object" if entry.get("iscrowd") == 1 else ""
        record = Record(place, _coco_box(entry, place), label, source, number, fault)
        _referred(pictures, entry, "image_id", place).records.append(record)
    return Listing(list(pictures.values()), tuple(names.values()), COCO)


def _coco_boxes(
    document: Mapping[str, Any], file: str, results: Mapping[str, list[Any]]
) -> Iterator[tuple[str, int, str, Mapping[str, Any]]]:
    """Yield file, number, place and entry of each box: of the results, or else the document."""
    if not results:
        for number, (_, place, entry) in enumerate(_coco_entries(document, "annotations", file)):
            yield file, number, place, entry
    for name, entries in results.items():
        for number, entry in enumerate(entries):
            place = f"{name}: result {number + 1}"
            yield name, number, place, _object(entry, place)


def _parse_json(root: Path, file: str) -> dict[str, Any] | list[Any]:
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


def _coco_entries(
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


def _coco_size(entry: Mapping[str, Any], place: str) -> tuple[float, float] | None:
    if entry.get("height") is None or entry.get("width") is None:
        return None
    height, width = (_take(entry, key, (int, float), place) for key in ("height", "width"))
    return _float(height), _float(width)


def _coco_box(entry: Mapping[str, Any], place: str) -> tuple[float, float, float, float]:
    if "bbox" not in entry:
        remedy = "add the box around its polygons, which aren't read, or remove the annotation"
        raise BadInput.at(place, "has no bbox", remedy)
    numbers = _take(entry, "bbox", list, place)
    if len(numbers) != 4 or any(type(number) not in (int, float) for number in numbers):
        problem = f"bbox is {reprlib.repr(numbers)}, not four numbers"
        raise BadInput.at(place, problem, "correct it or remove the annotation")
    x, y, width, height = map(_float, numbers)
    return x, y, width, height


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


def looks_like_coco(path: Path) -> bool:
    """Tell by its words whether a JSON file may be COCO with pictures, without parsing it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.json").write_text('{"images": [], "annotations": []}')
        ...     _ = (Path(folder) / "settings.json").write_text('{"images": "photos"}')
        ...     [looks_like_coco(Path(folder) / name) for name in ("a.json", "settings.json")]
        [True, False]
    """
    content = path.read_bytes()
    is_object = content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and b'"images"' in content and b'"annotations"' in content
