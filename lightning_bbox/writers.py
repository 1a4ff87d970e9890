"""Write moved boxes back into their own annotation files.

Only the four numbers of a box are exchanged; every other byte stays: ids, labels, scores, further
fields, their order, comments and line ends.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import AnyStr
from xml.parsers import expat  # only for content that defusedxml has passed already

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from lightning_bbox.boxes import Boxes
from lightning_bbox.files import write_atomically
from lightning_bbox.line_formats import csv_dialect
from lightning_bbox.records import COCO, CORNERS, CSV, YOLO, Convention, plain_text, read_bytes
from lightning_bbox.tables import BoxTable

Span = tuple[int, int]

DECIMALS = 3
"""A thousandth of a pixel is written: far below what a picture can tell, and short to read."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[^\s,\[\]]+")
_DECODER = json.JSONDecoder()
_UTF_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


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

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from lightning_bbox.annotations import read_annotations
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(root / "a.png")
        >>> _ = (root / "boxes.csv").write_text("image,x1,y1,x2,y2,remark\na.png,5,6,20.5,30,dark")
        >>> table = read_annotations(root)
        >>> (path,) = write_boxes(table, table.boxes + 1, root / "moved")
        >>> path.read_text().splitlines()[1]
        'a.png,6,7,21.5,31,dark'
    """
    assert table.convention is not None
    numbers = _numbers(table, boxes)
    moved = (boxes != table.boxes).any(dim=1).tolist()
    new: dict[str, dict[int, list[str]]] = {file: {} for file in table.files}
    for (file, number), texts, has_moved in zip(table.entries, numbers, moved, strict=True):
        if has_moved:
            new[file][number] = texts
    written = []
    for file, by_number in new.items():
        content = _exchanged(read_bytes(table.root, file), by_number, table.convention)
        path = folder / _below(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
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
        >>> from lightning_bbox.annotations import read_annotations
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(root / "a.png")
        >>> _ = (root / "a.txt").write_text("0 0.5 0.5 0.1 0.2")
        >>> table = read_annotations(root)
        >>> written_boxes(table, table.boxes)
        tensor([[0.5000, 0.5000, 0.1000, 0.2000]], dtype=torch.float64)
    """
    assert table.convention is not None
    edges = boxes.double().round(decimals=DECIMALS)
    return table.convention.numbers(edges, table.sizes[table.image_index])


def _numbers(table: BoxTable, boxes: Boxes) -> list[list[str]]:
    assert table.convention is not None
    # A fraction of a picture 100,000 pixels wide still tells a thousandth of a pixel.
    digits = DECIMALS + 6 if table.convention.fractions else DECIMALS
    return [
        [np.format_float_positional(number, digits, trim="-") for number in row]
        for row in written_boxes(table, boxes).numpy()
    ]


def _below(file: str) -> PurePosixPath:
    """Return a file's place in the output; one outside the root has its own folder there."""
    return PurePosixPath(*("outside" if part == ".." else part for part in file.split("/")))


def _exchanged(content: bytes, texts: Mapping[int, Sequence[str]], convention: Convention) -> bytes:
    """Put new numbers in the place of old ones, by the number of their box in the file."""
    if not texts:
        return content
    if convention.inclusive:
        encoding = _UTF_16.get(content[:2], "ascii")
        new = {number: [text.encode(encoding) for text in four] for number, four in texts.items()}
        return _spliced(content, _voc_spans(content), new)
    find = {COCO: _coco_spans, YOLO: _yolo_spans, CSV: _csv_spans}[convention]
    text = content.decode()
    return _spliced(text, list(find(text)), texts).encode()


def _spliced(
    content: AnyStr, spans: Sequence[Sequence[Span]], texts: Mapping[int, Sequence[AnyStr]]
) -> AnyStr:
    pieces: list[AnyStr] = []
    position = 0
    for number in sorted(texts):
        for (start, end), new in sorted(zip(spans[number], texts[number], strict=True)):
            pieces += [content[position:start], new]
            position = end
    pieces.append(content[position:])
    return content[:0].join(pieces)


def _voc_spans(content: bytes) -> list[list[Span]]:
    """Find the byte spans of each object's corners, in the order xmin, ymin, xmax, ymax."""
    path: list[str] = []
    objects: list[dict[str, Span]] = []
    box_seen = False
    begin = -1
    parser = expat.ParserCreate()

    def start(name: str, _: Mapping[str, str]) -> None:
        nonlocal box_seen
        path.append(name)
        if path == ["annotation", "object"]:
            objects.append({})
            box_seen = False

    def text(_: str = "") -> None:
        nonlocal begin
        inside = len(path) == 4 and path[:3] == ["annotation", "object", "bndbox"]
        if inside and not box_seen and begin < 0:
            begin = parser.CurrentByteIndex

    def end(name: str) -> None:
        nonlocal box_seen, begin
        if begin >= 0 and name in CORNERS:
            objects[-1].setdefault(name, (begin, parser.CurrentByteIndex))
        begin = -1
        if path == ["annotation", "object", "bndbox"]:
            box_seen = True
        path.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartCdataSectionHandler = text, text
    parser.Parse(content, True)
    return [[spans[name] for name in CORNERS] for spans in objects]


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
    cell = re.compile(rf'"((?:[^"]|"")*)(?:"{rest}|\Z)|({rest})')
    position, header = 1 if text.startswith("\ufeff") else 0, True
    while position < len(text):
        cells: list[Span] = []
        while True:
            match = cell.match(text, position)
            assert match is not None
            cells.append(match.span(1 if match[1] is not None else 2))
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
