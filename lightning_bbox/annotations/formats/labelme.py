"""LabelMe JSON: one file a picture, which it names, corners as points; X-AnyLabeling's too."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    DIFFICULT,
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
)
from lightning_bbox.annotations.formats.json import (
    as_float,
    as_object,
    is_number,
    parse_json,
    span_of,
    spotted_json,
    take,
)
from lightning_bbox.annotations.formats.texts import is_set, whole_text

_SAME = 0.01  # pixels between two coordinates that are meant to be one


class _Shape(NamedTuple):
    """A shape: its corners as they are written, what else repeats them, or why it is no box."""

    corners: tuple[float, float, float, float]
    fault: str = ""
    outline: str = ""
    again: Sequence[tuple[float, Along]] = ()


def _looks_like(path: Path) -> bool:
    content = path.read_bytes()
    return b'"shapes"' in content and b'"imagePath"' in content


def _read(root: Path, files: Sequence[str]) -> Listing:
    return Listing([_picture(root, file) for file in files])


def _picture(root: Path, file: str) -> Picture:
    document = as_object(parse_json(root, file), file)
    name = take(document, "imagePath", str, file).replace("\\", "/")  # as Windows writes paths
    picture = Picture(file, file, name, _size(document))
    for number, entry in enumerate(take(document, "shapes", list, file)):
        place = f"{file}: shape {number + 1}"
        label = whole_text(take(as_object(entry, place), "label", str, place).strip(), place)
        corners, fault, outline, _ = _shape(entry)
        mark = DIFFICULT if is_set(entry.get("difficult")) else ""  # X-AnyLabeling's
        record = Record(place, corners, label, file, number, fault, outline=outline, mark=mark)
        picture.records.append(record)
    return picture


def _size(document: Mapping[str, Any]) -> tuple[float, float] | None:
    height, width = document.get("imageHeight"), document.get("imageWidth")
    if not (is_number(height) and is_number(width)):
        return None
    return as_float(height or 0), as_float(width or 0)


def _shape(entry: Mapping[str, Any]) -> _Shape:
    kind, points = entry.get("shape_type", "polygon"), entry.get("points")
    pairs = points if isinstance(points, list) else []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        pairs = []
    numbers = [*chain.from_iterable(pairs)]
    if not numbers or not all(map(is_number, numbers)):
        return _Shape(NO_BOX, f"has the points {reprlib.repr(points)}, not pairs of numbers")
    numbers = [*map(as_float, numbers)]
    xs, ys = numbers[::2], numbers[1::2]
    around = (min(xs), min(ys), max(xs), max(ys))
    if kind == "rectangle" and len(pairs) == 2:
        return _Shape(around)
    if kind in ("rectangle", "rotation"):
        again = _again(xs, ys, around)
        return _Shape(around, "" if again else "is turned", again=again)
    if kind == "circle" and len(pairs) == 2:
        radius = ((xs[1] - xs[0]) ** 2 + (ys[1] - ys[0]) ** 2) ** 0.5
        left, top, right, bottom = xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
        return _Shape((left, top, right, bottom), outline="a circle")
    if kind == "mask" and len(pairs) == 2:
        return _Shape(around, outline="a mask")
    if kind in ("polygon", None) and len(pairs) > 2:
        return _Shape(around, outline="a polygon")
    return _Shape(NO_BOX, f"is a {reprlib.repr(kind)} of {len(pairs)} points, which is no box")


def _again(
    xs: Sequence[float], ys: Sequence[float], around: Sequence[float]
) -> list[tuple[float, Along]]:
    """Name the side that each coordinate of four corners is; nothing where they aren't upright."""
    if len(xs) != 4:
        return []
    left, top, right, bottom = around
    sides: list[tuple[float, Along]] = []
    for x, y in zip(xs, ys, strict=True):
        if min(x - left, right - x) > _SAME or min(y - top, bottom - y) > _SAME:
            return []
        sides.append((x, "xmin" if x - left <= _SAME else "xmax"))
        sides.append((y, "ymin" if y - top <= _SAME else "ymax"))
    names = [name for _, name in sides]
    return sides if len({*zip(names[::2], names[1::2], strict=True)}) == 4 else []


def _spots(text: str) -> Iterator[Spots]:
    for entry in spotted_json(text)["shapes"]:
        corners, fault, outline, again = _shape(entry)
        if fault or outline:
            yield Spots([])
            continue
        spans = [span_of(number) for number in corners]
        along: list[tuple[Span, Along]] = [
            (span_of(number), name) for number, name in again if span_of(number) not in spans
        ]
        yield Spots(spans, along)


LABELME = Format(
    "labelme",
    (".json",),
    Convention("LabelMe JSON, corners as pixel edges", CORNERS, shifted, shifted),
    _read,
    _spots,
    _looks_like,
    content="of LabelMe",
    together=True,
)
