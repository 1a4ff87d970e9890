"""Write moved boxes back into their own annotation files.

Only the four numbers of a box are exchanged; every other byte stays: ids, labels, scores, further
fields, their order, comments and line ends.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from xml.parsers import expat  # only for content that defusedxml has passed already

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_bbox.annotations.formats import (
    COCO,
    CORNERS,
    CSV,
    VOC,
    YOLO,
    Convention,
    plain_text,
    read_bytes,
)
from lightning_bbox.annotations.line_formats import csv_dialect
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder, write_atomically
from lightning_bbox.geometry.boxes import Boxes

Span = tuple[int, int]

DECIMALS = 3
"""A thousandth of a pixel is written: far below what a picture can tell, and short to read."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[^\s,\[\]]+")
_DECODER = json.JSONDecoder()
_VOC_CORNERS = tuple(("annotation", "object", "bndbox", name) for name in CORNERS)


def write_boxes(table: BoxTable, boxes: Boxes, folder: Path) -> list[Path]:
    r"""Write a copy of a table's annotation files with the boxes exchanged.

    A box that did not change keeps its digits; one that did is written to the thousandth of a
    pixel.

    Args:
        table: What was read.
        boxes: The new box of each of the table's boxes, `xyxy` in pixels.
        folder: Where to write, laid out as below the table's root.

    Returns:
        The files written.

    Raises:
        BadInput: If a new box is not finite, a file has changed since it was read, or its numbers
            are written in a way that can't be exchanged, such as with XML's character references.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from lightning_bbox.annotations.read import read_annotations
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(root / "a.png")
        >>> _ = (root / "boxes.csv").write_text("image,x1,y1,x2,y2,remark\na.png,5,6,20.5,30,dark")
        >>> table = read_annotations(root)
        >>> (path,) = write_boxes(table, table.boxes + 1, root / "moved")
        >>> path.read_text().splitlines()[1]
        'a.png,6,7,21.5,31,dark'
    """
    numbers = _numbers(table, boxes)
    moved = (boxes != table.boxes).any(dim=1)
    if len(lost := (moved & ~boxes.isfinite().all(dim=1)).nonzero()):
        place = table.ids[int(lost[0])]
        raise BadInput.at(place, "its new box is not finite", "leave it where it was")
    new: dict[str, dict[int, list[str]]] = {file: {} for file in table.files}
    for at in moved.nonzero().flatten().tolist():
        new[table.entries[at][0]][at] = numbers[at]
    written = []
    for file, texts in new.items():
        content = read_bytes(table.root, file)
        path = folder / _below(file)
        make_folder(path.parent)
        write_atomically(path, _exchanged(content, file, table, texts) if texts else content)
        written.append(path)
    return written


def written_boxes(table: BoxTable, boxes: Boxes) -> Float64[Tensor, "n 4"]:
    """Return the numbers that a file is to have for boxes, such as a centre and a size.

    Edges are rounded to the thousandth of a pixel first, so that a size and the corner it ends at
    agree.

    Args:
        table: What was read.
        boxes: A box for each of the table's, `xyxy` in pixels.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from lightning_bbox.annotations.read import read_annotations
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(root / "a.png")
        >>> _ = (root / "a.txt").write_text("0 0.5 0.5 0.1 0.2")
        >>> table = read_annotations(root)
        >>> written_boxes(table, table.boxes)
        tensor([[0.5000, 0.5000, 0.1000, 0.2000]], dtype=torch.float64)
    """
    edges = boxes.double().round(decimals=DECIMALS) + 0.0  # -0.0 becomes 0
    return _convention(table).numbers(edges, table.sizes[table.image_index])


def _convention(table: BoxTable) -> Convention:
    if table.convention is None:
        msg = "the table is not of one format; write the boxes of each format's table"
        raise BadInput(msg)
    return table.convention


def _numbers(table: BoxTable, boxes: Boxes) -> list[list[str]]:
    # A fraction of a picture 100,000 pixels wide still tells a thousandth of a pixel.
    digits = DECIMALS + 6 if _convention(table).fractions else DECIMALS
    return [
        [np.format_float_positional(number, digits, trim="-") for number in row]
        for row in written_boxes(table, boxes).numpy()
    ]


def _below(file: str) -> PurePosixPath:
    """Return a file's place in the output; one outside the root has its own folder there."""
    return PurePosixPath(*("outside" if part == ".." else part for part in file.split("/")))


def _exchanged(
    content: bytes, file: str, table: BoxTable, texts: Mapping[int, Sequence[str]]
) -> bytes:
    """Put new numbers, by index of the box in the table, in the place of the old ones."""
    convention = _convention(table)
    # Of XML the bytes are counted, whatever they encode, and Latin-1 is one character a byte.
    xml = convention.inclusive
    outer, inner = ("latin-1", _xml_encoding(content)) if xml else ("utf-8", "utf-8")
    try:
        text = content.decode(outer)
        found = list(_SPANS[convention](text))
        spans = {at: found[table.entries[at][1]] for at in texts}
    except (LookupError, ValueError, RecursionError, expat.ExpatError) as error:
        raise BadInput.at(file, "has changed since it was read", "read it again") from error
    old = [[text[start:end].encode(outer) for start, end in four] for four in spans.values()]
    _check_old(table, [*texts], [[word.decode(inner, "replace") for word in four] for four in old])
    pieces, position = [], 0
    exchanges = (pair for at, four in spans.items() for pair in zip(four, texts[at], strict=True))
    for (start, end), new in sorted(exchanges):
        pieces += [text[position:start], new.encode(inner).decode(outer)]
        position = end
    return "".join([*pieces, text[position:]]).encode(outer)


def _check_old(table: BoxTable, indices: Sequence[int], texts: Sequence[Sequence[str]]) -> None:
    """Refuse boxes whose old numbers, as they were found in the file, don't make them up."""
    values = torch.tensor([_values(four) for four in texts], dtype=torch.float64)
    index = torch.tensor(indices)
    found = _convention(table).edges(values, table.sizes[table.image_index[index]])
    if len(other := (found.float() != table.boxes[index]).any(dim=1).nonzero()):
        problem = "its numbers are not found where they were read"
        remedy = "read it again if it has changed, or write plain digits"
        raise BadInput.at(table.ids[indices[int(other[0])]], problem, remedy)


def _values(texts: Sequence[str]) -> list[float]:
    try:
        first, second, third, fourth = map(float, texts)
    except ValueError:
        return [math.nan] * 4
    return [first, second, third, fourth]


def _xml_encoding(content: bytes) -> str:
    """Tell in which encoding the digits of an XML file are."""
    if content[:2] == b"\xff\xfe" or content[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if content[:2] == b"\xfe\xff" or content[:1] == b"\0" else "latin-1"


def _voc_spans(text: str) -> list[list[Span]]:
    """Find each object's corners; one that is in pieces, around a comment, has several spans."""
    content = text.encode("latin-1")
    width = len("0".encode(_xml_encoding(content)))
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
        if place in _VOC_CORNERS and word.strip() and done.isdisjoint((place, place[:-1])):
            begin = parser.CurrentByteIndex + width * (len(word) - len(word.lstrip()))
            objects[-1][path[-1]].append((begin, begin + width * len(word.strip())))

    def end(_: str) -> None:
        done.add(tuple(path[:5]))
        path.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = data
    parser.Parse(content, True)
    return [[span for name in CORNERS for span in spans[name]] for spans in objects]


def _coco_spans(text: str) -> Iterator[list[Span]]:
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


def _yolo_spans(text: str) -> Iterator[list[Span]]:
    for line in re.finditer(r"[^\r\n\ufeff]+", text):
        words = [word.span() for word in re.finditer(r"\S+", line[0])]
        if words:
            yield [(line.start() + start, line.start() + end) for start, end in words[1:5]]


def _csv_spans(text: str) -> Iterator[list[Span]]:
    """Find the corners in each row; a quoted cell may hold delimiters, quotes and line ends."""
    delimiter, columns = csv_dialect(plain_text(text))
    rest = rf"[^{re.escape(delimiter)}\r\n]*"
    cell = re.compile(rf'"((?:[^"]|"")*)(?:"({rest})|\Z)|{rest}')
    position, header = 1 if text.startswith("\ufeff") else 0, True
    while position < len(text):
        cells: list[Span] = []
        while True:
            match = cell.match(text, position)
            assert match is not None
            plain = match[1] is None or (match[2] or "").strip()  # text may follow a closing quote
            cells.append(match.span(0 if plain else 1))
            position = match.end()
            if text[position : position + 1] != delimiter:
                break
            position += 1
        position += 1  # the line's end; that of CRLF makes an empty line, which is skipped
        if len(cells) == 1 and not text[slice(*cells[0])].strip():
            continue
        if not header:
            yield [_stripped(text, cells[column]) for column in columns]
        header = False


def _stripped(text: str, span: Span) -> Span:
    inner = text[slice(*span)]
    start = span[0] + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


_SPANS = {
    VOC[0]: _voc_spans,
    VOC[1]: _voc_spans,
    COCO: _coco_spans,
    YOLO: _yolo_spans,
    CSV: _csv_spans,
}
