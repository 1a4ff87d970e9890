"""CSV as Kaggle has it: a cell holds four numbers, or several boxes of a picture."""

import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Span,
    Spots,
    shifted,
)
from lightning_bbox.annotations.formats.tables.csv import CSV
from lightning_bbox.annotations.formats.tables.sheet import (
    SYNONYMS,
    WEAK,
    Asked,
    cell_spans,
    found_columns,
    has_columns,
    label_of,
    missing_column,
    picture_of,
    table_rows,
)
from lightning_bbox.annotations.formats.texts import argument, parse_number
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import xywh_to_xyxy, xyxy_to_xywh

_BOX, _CORNERS = "bbox", "corners"
_STRONG = SYNONYMS | {_BOX: ("bbox", "box", "bounding_box", "boundingbox")}
_WEAK = WEAK | {_BOX: ("boxes", "bboxes", "annotations"), "image": ("image_id", *WEAK["image"])}
_SIZES = ("x", "y", "width", "height")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf")
_NAMED = re.compile(r"""["']{1,2}(x|y|width|height|w|h)["']{1,2}\s*:\s*([^\s,}]+)""")
_PLAIN = re.compile(r"[\[\](),;\s]*")


def _columns(header: Sequence[str], place: str, asked: Asked) -> dict[str, int]:
    columns = found_columns(header, place, _STRONG, _WEAK, asked)
    if _CORNERS in columns:
        columns[_BOX] = columns[_CORNERS]
    for role in ("image", _BOX):
        if role not in columns:
            raise missing_column(header, place, role, _STRONG[role][:2])
    return columns


def _boxes(cell: str) -> list[list[Span]] | None:
    """Find the numbers of each box in a cell; None where they aren't fours."""
    if "{" in cell:
        named = [(match[1][:1], match.span(2)) for match in _NAMED.finditer(cell)]
        fours = [dict(named[start : start + 4]) for start in range(0, len(named), 4)]
        if any(four.keys() != {*"xywh"} for four in fours) or cell.count("{") != len(fours):
            return None
        return [[four[name] for name in "xywh"] for four in fours]
    spans = [match.span() for match in _NUMBER.finditer(cell)]
    if not _PLAIN.fullmatch(_NUMBER.sub(" ", cell)) or len(spans) % 4:
        return None
    if len(spans) > 4 and cell.count("[") + cell.count("(") < len(spans) // 4:
        return None
    return [spans[start : start + 4] for start in range(0, len(spans), 4)]


def _read(root: Path, files: Sequence[str], asked: Asked) -> Listing:
    pictures: list[Picture] = []
    for file in files:
        own: dict[str, Picture] = {}
        number = 0
        for row in table_rows(root, file, partial(_columns, asked=asked), asked):
            picture, cell = picture_of(own, row, file), row.cells[_BOX]
            fours = _boxes(cell)
            if fours is None:
                problem = f"the box is {reprlib.repr(cell)}, not four numbers or several fours"
                raise BadInput.at(row.place, problem, "write it as [x, y, width, height]")
            stated = row.cells.get("score")
            score = parse_number(stated, "score", row.place) if stated else math.nan
            for count, four in enumerate(fours, 1):
                place = row.place if len(fours) == 1 else f"{row.place}: box {count}"
                x, y, w, h = (parse_number(cell[slice(*span)], "a number", place) for span in four)
                label = label_of(row)
                record = Record(place, (x, y, w, h), label, file, number, score=score)
                picture.records.append(record)
                number += 1
        pictures += own.values()
    of_corners = any(role == _CORNERS for role, _ in asked.columns)
    return Listing(pictures, convention=_OF_CORNERS if of_corners else None)


def _spots(text: str, asked: Asked) -> Iterator[Spots]:
    for spans in cell_spans(text, partial(_columns, asked=asked), asked):
        begin, end = spans[_BOX]
        for four in _boxes(text[begin:end]) or []:
            yield Spots([(begin + start, begin + stop) for start, stop in four])


def _looks_like(path: Path, asked: Asked) -> bool:
    return has_columns(path, partial(_columns, asked=asked), asked) and not CSV.looks_like(path)


_OF_CORNERS = Convention(
    "CSV with a cell of corners as pixel edges",
    CORNERS,
    shifted,
    shifted,
    others=(("x, y, width, height", xywh_to_xyxy),),
)


@cache
def kaggle_format(asked: Asked) -> Format:
    """Return CSV with a cell of boxes, whose columns and delimiter a user may name.

    Args:
        asked: What the user says; a column in the role `corners` holds xmin, ymin, xmax, ymax.
    """
    convention = Convention(
        "CSV with a cell of left top corner and size in pixels",
        _SIZES,
        xywh_to_xyxy,
        xyxy_to_xywh,
        others=(("xmin, ymin, xmax, ymax", shifted),),
        remedy=f"if they are corners, say {argument('columns', {'corners': 'bbox'})}",
    )
    return Format(
        "kaggle",
        (".csv",),
        convention,
        partial(_read, asked=asked),
        partial(_spots, asked=asked),
        partial(_looks_like, asked=asked),
        content="with columns image and bbox",
    )
