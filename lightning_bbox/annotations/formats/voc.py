"""VOC XML: one file a picture, corners that are pixels of the box."""

import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element  # the type only: parsing goes through defusedxml

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    DIFFICULT,
    NO_BOX,
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
from lightning_bbox.annotations.formats.texts import argument, is_set, parse_number
from lightning_bbox.annotations.formats.xml import parse_xml, walk_xml, xml_encoding
from lightning_bbox.core.errors import BadInput

VocBase = Literal[0, 1, "edges"]
"""Coordinate of the first pixel, where corners are pixels of the box; or else edges."""

_HEAD = 4096  # bytes of a file in which its root stands
_CORNERS = tuple(("annotation", "object", "bndbox", name) for name in CORNERS)


@cache
def voc_format(base: VocBase) -> Format:
    """Return VOC as counted from 1, by definition, or from 0, by some tools; or as edges.

    Counted corners are pixels that belong to the box: the right edge of xmax is the box's own.
    Others (CVAT) write edges, so that xmax is xmin and the width.

    Args:
        base: Coordinate of the first pixel, or `edges`.
    """
    shifts = (0, 0, 0, 0) if base == "edges" else (base, base, base - 1, base - 1)
    corners = "corners as pixel edges" if base == "edges" else f"{base}-based inclusive corners"
    convention = Convention(
        f"VOC XML, {corners}",
        CORNERS,
        to_xyxy=partial(shifted, by=[-shift for shift in shifts]),
        from_xyxy=partial(shifted, by=shifts),
        inclusive=base != "edges",
    )
    return Format(
        "voc",
        (".xml",),
        convention,
        read=partial(_read, base=base),
        spots=_spots,
        looks_like=_looks_like,
        folder="Annotations",
        encoding=xml_encoding,
    )


def _looks_like(path: Path) -> bool:
    return not is_cvat(path)


def is_cvat(path: Path) -> bool:
    """Tell by its root, near the beginning, whether an XML file is CVAT's and not VOC."""
    with path.open("rb") as stream:
        return b"<annotations" in stream.read(_HEAD).replace(b"\0", b"")  # as UTF-16 has them


def _read(root: Path, files: Sequence[str], base: VocBase) -> Listing:
    pictures = [_picture(root, file) for file in files]
    notes = [] if base == "edges" else [_doubts(pictures, base)]
    if unknown := sum(picture.size is not None and 0 in picture.size for picture in pictures):
        notes.append(f"{unknown} of {len(files)} files state a size of 0, taken as unknown")
    return Listing(pictures, note="; ".join(filter(None, notes)))


def _doubts(pictures: Sequence[Picture], base: Literal[0, 1]) -> str:
    """Say what tells that pixels aren't counted from there: a corner 0, or one at the far edge."""
    zero = far = ""
    for picture in pictures:
        height, width = picture.size or (math.inf, math.inf)
        for place, (xmin, ymin, xmax, ymax), *_ in picture.records:
            if 0 <= min(xmin, ymin) < 1:
                zero = zero or place
            if 0 < width == xmax or 0 < height == ymax:
                far = far or place
    if zero and far:
        problem = f"a corner is 0 at {zero} and one at the picture's far edge at {far}"
        return f"{problem}: set {argument('voc_base', 'edges')} if xmax is xmin and the width"
    if zero and base == 1:
        return f"a corner is 0 at {zero}: set {argument('voc_base', 0)} if pixels count from 0"
    if far and base == 0:
        problem = f"a corner is at the picture's far edge at {far}"
        return f"{problem}: set {argument('voc_base', 1)} if pixels count from 1"
    return ""


def _picture(root: Path, file: str) -> Picture:
    tree = parse_xml(root, file)
    if tree.tag != "annotation":
        problem = f"has the root <{tree.tag}>, VOC has <annotation>"
        raise BadInput.at(file, problem, "move it elsewhere")
    picture = Picture(file, file, tree.findtext("filename", "").strip(), _size(tree, file))
    for number, node in enumerate(tree.findall("object")):
        place = f"{file}: object {number + 1}"
        label, fault, values = _text(node, "name", place), _fault(node, place), NO_BOX
        if (box := node.find("bndbox")) is not None:
            xmin, ymin, xmax, ymax = (_number(box, tag, place) for tag in CORNERS)
            values = xmin, ymin, xmax, ymax
        mark = DIFFICULT if is_set(node.findtext("difficult")) else ""
        picture.records.append(Record(place, values, label, file, number, fault, mark=mark))
    return picture


def _fault(node: Element, place: str) -> str:
    """Say why an object is no upright box, as those of roLabelImg and CVAT may be; or nothing."""
    if node.find("bndbox") is None:
        turned = node.find("robndbox") is not None
        return "is turned (<robndbox>)" if turned else "has no <bndbox>"
    for attribute in node.iterfind("attributes/attribute"):
        if attribute.findtext("name", "").strip() == "rotation":
            return turned_by(parse_number(_text(attribute, "value", place), "rotation", place))
    return ""


def _size(tree: Element, file: str) -> tuple[float, float] | None:
    if (node := tree.find("size")) is None or not len(node):
        return None
    return _number(node, "height", file), _number(node, "width", file)


def _child(node: Element, tag: str, place: str) -> Element:
    if (child := node.find(tag)) is None:
        raise BadInput.at(place, f"has no <{tag}>", f"add it or remove the <{node.tag}>")
    return child


def _text(node: Element, tag: str, place: str) -> str:
    text = (_child(node, tag, place).text or "").strip()
    if not text:
        raise BadInput.at(place, f"has an empty <{tag}>", f"fill it or remove the <{node.tag}>")
    return text


def _number(node: Element, tag: str, place: str) -> float:
    return parse_number(_text(node, tag, place), tag, place)


def _spots(text: str) -> list[Spots]:
    """Find each object's corners; one that is in pieces, around a comment, has several spans."""
    path: list[str] = []
    done: set[tuple[str, ...]] = set()  # of an object's elements only the first of a name counts
    objects: list[dict[str, list[Span]]] = []

    def start(name: str, *_: object) -> None:
        path.append(name)
        if path == ["annotation", "object"]:
            objects.append({name: [] for name in CORNERS})
            done.clear()

    def data(word: str, begin: int) -> None:
        place = tuple(path[:5])  # files may nest by the thousand
        if place in _CORNERS and word.strip() and done.isdisjoint((place, place[:-1])):
            begin += len(word) - len(word.lstrip())
            objects[-1][path[-1]].append((begin, begin + len(word.strip())))

    def end(_: str) -> None:
        done.add(tuple(path[:5]))
        path.pop()

    walk_xml(text, start, data, end)
    return [Spots([span for name in CORNERS for span in spans[name]]) for spans in objects]
