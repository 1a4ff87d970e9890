"""Write moved boxes back into their own annotation files.

Only the four numbers of a box are exchanged; every other byte stays: ids, labels, scores, further
fields, their order, comments and line ends.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from lightning_bbox.annotations.formats.texts import read_bytes
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder, write_atomically
from lightning_bbox.geometry.boxes import Boxes

DECIMALS = 3
"""A thousandth of a pixel is written: far below what a picture can tell, and short to read."""


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


def _numbers(table: BoxTable, boxes: Boxes) -> list[list[str]]:
    """Write down the numbers that a file is to have for boxes, such as a centre and a size.

    Edges are rounded first, so that a size and the corner it ends at agree.
    """
    edges = boxes.double().round(decimals=DECIMALS) + 0.0  # -0.0 becomes 0
    numbers = table.numbers(edges, table.image_index)
    # A fraction of a picture 100,000 pixels wide still tells a thousandth of a pixel.
    digits = DECIMALS + 6 if table.format.convention.fractions else DECIMALS
    return [
        [np.format_float_positional(number, digits, trim="-") for number in row]
        for row in numbers.numpy()
    ]


def _below(file: str) -> PurePosixPath:
    """Return a file's place in the output; one outside the root has its own folder there."""
    return PurePosixPath(*("outside" if part == ".." else part for part in file.split("/")))


def _exchanged(
    content: bytes, file: str, table: BoxTable, texts: Mapping[int, Sequence[str]]
) -> bytes:
    """Put new numbers, by index of the box in the table, in the place of the old ones."""
    inner = table.format.encoding(content)
    # Where bytes are counted, whatever they encode, Latin-1 is one character a byte.
    outer = "utf-8" if inner == "utf-8" else "latin-1"
    try:
        text = content.decode(outer)
        found = list(table.format.spans(text))
        spans = {at: found[table.entries[at][1]] for at in texts}
    except (LookupError, ValueError, RecursionError) as error:
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
    found = table.edges(values, table.image_index[index])
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
