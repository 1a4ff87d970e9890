"""VOC XML: one file a picture, corners that are pixels of the box."""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element  # the type only: parsing goes through defusedxml
from xml.parsers import expat  # only for content that defusedxml has passed already

from defusedxml import DefusedXmlException, ElementTree

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
    shifted,
)
from lightning_bbox.annotations.formats.texts import argument, parse_number, read_bytes
from lightning_bbox.core.errors import BadInput

VocBase = Literal[0, 1, "edges"]
"""Coordinate of the first pixel, where corners are pixels of the box; or else edges."""

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
        spans=_spans,
        looks_like=_is_xml,
        folder="Annotations",
        encoding=_encoding,
    )


def _is_xml(_: Path) -> bool:
    return True  # its suffix says so


def _read(root: Path, files: Sequence[str], base: VocBase) -> Listing:
    pictures = [_picture(root, file) for file in files]
    return Listing(pictures, note="" if base == "edges" else _doubts(pictures, base))


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
    tree = _parse(root, file)
    picture = Picture(file, file, tree.findtext("filename", "").strip(), _size(tree, file))
    for number, node in enumerate(tree.findall("object")):
        place = f"{file}: object {number + 1}"
        box = _child(node, "bndbox", place)
        xmin, ymin, xmax, ymax = (_number(box, tag, place) for tag in CORNERS)
        label = _text(node, "name", place)
        picture.records.append(Record(place, (xmin, ymin, xmax, ymax), label, file, number))
    return picture


def _parse(root: Path, file: str) -> Element:
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
        problem = f"has the root <{tree.tag}>, VOC has <annotation>"
        raise BadInput.at(file, problem, "move it elsewhere")
    return tree


def _size(tree: Element, file: str) -> tuple[float, float] | None:
    if (node := tree.find("size")) is None:
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


def _encoding(content: bytes) -> str:
    """Tell in which encoding the digits of an XML file are."""
    if content[:2] == b"\xff\xfe" or content[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if content[:2] == b"\xfe\xff" or content[:1] == b"\0" else "latin-1"


def _spans(text: str) -> list[list[Span]]:
    """Find each object's corners; one that is in pieces, around a comment, has several spans."""
    content = text.encode("latin-1")
    width = len("0".encode(_encoding(content)))
    path: list[str] = []
    done: set[tuple[str, ...]] = set()  # of an object's elements only the first of a name counts
    objects: list[dict[str, list[Span]]] = []
    parser = expat.ParserCreate(namespace_separator="}")

    def start(name: str, _: Mapping[str, str]) -> None:
        path.append(name)
        if path == ["annotation", "object"]:
            objects.append({name: [] for name in CORNERS})
            done.clear()

    def data(word: str) -> None:
        place = tuple(path[:5])  # files may nest by the thousand
        if place in _CORNERS and word.strip() and done.isdisjoint((place, place[:-1])):
            begin = parser.CurrentByteIndex + width * (len(word) - len(word.lstrip()))
            objects[-1][path[-1]].append((begin, begin + width * len(word.strip())))

    def end(_: str) -> None:
        done.add(tuple(path[:5]))
        path.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error
    return [[span for name in CORNERS for span in spans[name]] for spans in objects]
