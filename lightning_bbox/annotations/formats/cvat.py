"""CVAT XML 1.1: one file of many pictures or frames, corners as pixel edges in attributes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element  # the type only: parsing goes through defusedxml

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    DIFFICULT,
    IGNORED,
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
from lightning_bbox.annotations.formats.texts import is_set, parse_number
from lightning_bbox.annotations.formats.voc import is_cvat
from lightning_bbox.annotations.formats.xml import nodes_below, parse_xml, walk_xml, xml_encoding
from lightning_bbox.core.errors import BadInput, shortened

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_SHAPES = ("box", "polygon", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")
_ATTRIBUTE = re.compile(r"""\s+([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def _read(root: Path, files: Sequence[str]) -> Listing:
    pictures, classes = list[Picture](), dict[str, None]()
    for file in files:
        tree = parse_xml(root, file)
        if tree.tag != "annotations":
            problem = f"has the root <{tree.tag}>, CVAT has <annotations>"
            raise BadInput.at(file, problem, "move it elsewhere")
        pictures += _pictures(tree, file)
        for node in nodes_below(tree):
            labels = node.iterfind("label/name") if node.tag == "labels" else ()
            classes |= dict.fromkeys((label.text or "").strip() for label in labels)
    met = {record.label for picture in pictures for record in picture.records}
    return Listing(pictures, tuple(name for name in classes if name) if met <= {*classes} else ())


def _pictures(tree: Element, file: str) -> list[Picture]:
    """Read the pictures and the frames of tracks, and number the shapes in document order."""
    pictures: dict[str, Picture] = {}
    own = Picture(file, file)
    number = -1
    for node in tree:
        if node.tag not in ("image", "track"):
            continue
        place = f"{file}: {node.tag} {shortened(node.get('id', ''))}"
        if node.tag == "image" and (key := _attribute(node, "name", place)) in pictures:
            raise BadInput.at(place, f"{key!r} is there twice", "keep one of them")
        if node.tag == "image":
            subset = node.get("subset", "")
            split = "" if subset.casefold() == "default" else subset
            own = Picture(file, place, _attribute(node, "name", place), _size(node, place), split)
            pictures[own.name] = own
        for shape in _shapes(node):
            number += 1
            if shape.get("outside") == "1":  # where a track's object isn't seen
                continue
            if node.tag == "track":
                frame = _attribute(shape, "frame", place)
                own = pictures.setdefault(f"/{frame}", _frame(tree, frame, file))
            where = f"{own.place}: {shape.tag} {len(own.records) + 1}"
            label = (shape.get("label") or node.get("label") or "").strip()
            if not label:
                raise BadInput.at(where, "has no label", "give it one")
            values, fault, outline = _box(shape, where)
            mark = _mark(shape)
            record = Record(where, values, label, file, number, fault, outline=outline, mark=mark)
            own.records.append(record)
    return [*pictures.values()]


def _shapes(node: Element) -> Iterator[Element]:
    """Yield the shapes below a node in the file's order; a skeleton is one, its points are not."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each.tag in _SHAPES:
            yield each
        if each.tag != "skeleton":
            waiting += reversed(each)


def _frame(tree: Element, frame: str, file: str) -> Picture:
    """Return the picture of a frame of a video, which CVAT exports as frame_000017.PNG."""
    place, size = f"{file}: frame {shortened(frame)}", tree.find("meta/task/original_size")
    stated = None if size is None else _inner_size(size, place)
    name = f"frame_{frame.zfill(6)}"
    return Picture(file, place, name, stated, group=file)


def _inner_size(node: Element, place: str) -> tuple[float, float]:
    height, width = (
        parse_number((node.findtext(side) or "").strip(), side, place)
        for side in ("height", "width")
    )
    return height, width


def _size(node: Element, place: str) -> tuple[float, float] | None:
    if node.get("height") is None or node.get("width") is None:
        return None
    return _number(node, "height", place), _number(node, "width", place)


def _attribute(node: Element, name: str, place: str) -> str:
    if not (text := (node.get(name) or "").strip()):
        raise BadInput.at(place, f"its <{node.tag}> has no {name}", "add it")
    return text


def _number(node: Element, name: str, place: str) -> float:
    return parse_number(_attribute(node, name, place), name, place)


def _box(shape: Element, place: str) -> tuple[tuple[float, float, float, float], str, str]:
    """Return the corners of a shape, why it is no box, and what they are only around."""
    turned = turned_by(_number(shape, "rotation", place)) if shape.get("rotation") else ""
    if shape.tag == "box":
        xmin, ymin, xmax, ymax = (_number(shape, name, place) for name in _SIDES)
        return (xmin, ymin, xmax, ymax), turned, ""
    if shape.tag == "ellipse" and not turned:
        cx, cy, rx, ry = (_number(shape, name, place) for name in ("cx", "cy", "rx", "ry"))
        return (cx - rx, cy - ry, cx + rx, cy + ry), "", "an ellipse"
    if shape.tag == "mask":
        names = ("left", "top", "width", "height")
        left, top, width, height = (_number(shape, name, place) for name in names)
        return (left, top, left + width, top + height), "", "a mask"
    if shape.tag == "polygon":
        points = re.split("[;,]", _attribute(shape, "points", place))
        numbers = [parse_number(word.strip(), "a coordinate", place) for word in points]
        if len(numbers) >= 6 and len(numbers) % 2 == 0:
            xs, ys = numbers[::2], numbers[1::2]
            return (min(xs), min(ys), max(xs), max(ys)), "", "a polygon"
    what = f"is a <{shape.tag}>, which is no box"
    if shape.tag == "skeleton":
        what = f"is a skeleton of {len(shape.findall('points'))} points, which is no box"
    return NO_BOX, turned or what, ""


def _mark(shape: Element) -> str:
    """Return how an attribute marks a shape, as those that CVAT makes of VOC's."""
    flags = {each.get("name"): each.text for each in shape.iterfind("attribute")}
    if is_set(flags.get("difficult")):
        return DIFFICULT
    return IGNORED if is_set(flags.get("ignore")) else ""


def _spots(text: str) -> list[Spots]:
    found: list[Spots] = []
    depth = skeletons = 0
    inside = False

    def start(name: str, _: Mapping[str, str], begin: int) -> None:
        nonlocal depth, inside, skeletons
        depth += 1
        if depth == 2:
            inside = name in ("image", "track")
        elif depth > 2 and inside and not skeletons and name in _SHAPES:
            spans = dict(_attributes(text, begin)) if name == "box" else {}
            found.append(Spots([spans[side] for side in _SIDES if side in spans]))
        skeletons += name == "skeleton"

    def end(name: str) -> None:
        nonlocal depth, skeletons
        depth -= 1
        skeletons -= name == "skeleton"

    walk_xml(text, start, end=end)
    return found


def _attributes(text: str, begin: int) -> Iterator[tuple[str, Span]]:
    """Yield the names of a tag's attributes, with where their values stand."""
    position = begin + 1
    while not text[position].isspace() and text[position] not in "/>":
        position += 1
    while match := _ATTRIBUTE.match(text, position):
        inner = match.span(2 if match[2] is not None else 3)
        word = text[slice(*inner)]
        left = inner[0] + len(word) - len(word.lstrip())
        yield match[1], (left, left + len(word.strip()))
        position = match.end()


def _looks_like(path: Path) -> bool:
    return is_cvat(path)


CVAT = Format(
    "cvat",
    (".xml",),
    Convention("CVAT XML, corners as pixel edges", CORNERS, shifted, shifted),
    _read,
    _spots,
    _looks_like,
    content="of CVAT",
    encoding=xml_encoding,
    together=True,
)
