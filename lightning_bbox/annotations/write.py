"""Write moved boxes back into their own annotation files.

Only the numbers of a box are exchanged; every other byte stays: ids, labels, scores, further
fields, their order, comments and line ends.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lightning_bbox.annotations.formats.format import CORNERS, Along, Span, Spots
from lightning_bbox.annotations.formats.texts import read_bytes
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder, write_atomically
from lightning_bbox.geometry.boxes import Boxes, box_sizes

DECIMALS = 3
"""A thousandth of a pixel is written: far below what a picture can tell, and short to read."""

Decimals = int | Literal["auto"]
"""Of a pixel: `auto` is none in files that hold only whole numbers, and otherwise three."""

_MOST_DECIMALS = 6


def write_boxes(
    table: BoxTable, boxes: Boxes, folder: Path, decimals: Decimals = "auto"
) -> list[Path]:
    r"""Write a copy of a table's annotation files with the boxes exchanged.

    A box that did not change keeps its digits, and so does one that rounds to where it was.

    Args:
        table: What was read.
        boxes: The new box of each of the table's boxes, `xyxy` in pixels.
        folder: Where to write, laid out as below the table's root.
        decimals: How many decimals of a pixel to write.

    Returns:
        The files written.

    Raises:
        BadInput: If a new box is not finite, a file has changed since it was read, or its numbers
            are written in a way that can't be exchanged, such as with XML's character references.
    """
    moved = (boxes != table.boxes).any(dim=1)
    if len(lost := (moved & ~boxes.isfinite().all(dim=1)).nonzero()):
        place = table.ids[int(lost[0])]
        raise BadInput.at(place, "its new box is not finite", "leave it where it was")
    rounded = as_written(table, boxes, decimals)
    indices = (rounded != table.boxes).any(dim=1).nonzero().flatten()
    places = decimals_of(table, decimals)[indices]
    old, changed = (
        _Numbers.of(table, found[indices], indices, places) for found in (table.boxes, rounded)
    )
    new: dict[str, dict[int, _Change]] = {file: {} for file in table.files}
    for at, before, after in zip(indices.tolist(), old, changed, strict=True):
        new[table.entries[at][0]][at] = _Change(before, after)
    written = []
    for file, texts in new.items():
        content = read_bytes(table.root, file)
        path = folder / _below(file)
        make_folder(path.parent)
        write_atomically(path, _exchanged(content, file, table, texts) if texts else content)
        written.append(path)
    return written


def as_written(table: BoxTable, boxes: Boxes, decimals: Decimals = "auto") -> Boxes:
    """Return boxes as the files will hold them: rounded, or where they were.

    One that rounds to where it was stays there, and so does one that would round to nothing.

    Args:
        table: What was read.
        boxes: The new box of each of the table's boxes, `xyxy` in pixels.
        decimals: How many decimals of a pixel to write.

    Raises:
        BadInput: If so many decimals can't be written.
    """
    places = decimals_of(table, decimals)
    new, old = (_rounded(found.double(), places) for found in (boxes, table.boxes))
    least = 1.0 if table.format.convention.inclusive else 0.0
    stays = (new == old).all(dim=1) | (box_sizes(new) <= least).any(dim=1)
    stays |= (boxes == table.boxes).all(dim=1)
    return torch.where(stays[:, None], table.boxes, new.float())


def decimals_of(table: BoxTable, decimals: Decimals) -> Int64[Tensor, "boxes"]:
    """Return how many decimals of a pixel are written of each box.

    Raises:
        BadInput: If so many can't be.
    """
    if decimals == "auto":
        whole = [file in table.whole for file, _ in table.entries]
        return torch.where(torch.tensor(whole, dtype=torch.bool), 0, DECIMALS)
    refuse_decimals(decimals)
    return torch.full((len(table.boxes),), decimals)


def refuse_decimals(decimals: Decimals) -> None:
    """Refuse a number of decimals that can't be written.

    Raises:
        BadInput: If it can't.
    """
    if decimals != "auto" and not 0 <= decimals <= _MOST_DECIMALS:
        msg = f"decimals is {decimals}; expected auto, or 0 to {_MOST_DECIMALS}"
        raise BadInput(msg)


def _rounded(edges: Float64[Tensor, "n 4"], places: Int64[Tensor, " n"]) -> Float64[Tensor, "n 4"]:
    """Round edges, so that a size and the corner it ends at agree; -0.0 becomes 0."""
    scale = 10.0 ** places[:, None].double()
    return (edges * scale).round() / scale + 0.0


class _Numbers(NamedTuple):
    """What a file may say of a box.

    Attributes:
        numbers: Its four numbers.
        corners: Its corners in the file's unit.
        digits: How many decimals are written.
    """

    numbers: list[float]
    corners: list[float]
    digits: int

    @classmethod
    def of(
        cls,
        table: BoxTable,
        boxes: Boxes,
        indices: Int64[Tensor, " n"],
        places: Int64[Tensor, " n"],
    ) -> "list[_Numbers]":
        convention = table.format.convention
        numbers = table.numbers(_rounded(boxes.double(), places), table.image_index[indices])
        # A fraction of a picture 100,000 pixels wide still tells a thousandth of a pixel.
        digits = places + (6 if convention.fractions else 0)
        corners = convention.to_xyxy(numbers)
        return [*map(cls, numbers.tolist(), corners.tolist(), digits.tolist())]

    def four(self) -> list[str]:
        """Write down the four numbers."""
        return [_text(number, self.digits) for number in self.numbers]

    def along(self, what: Along) -> str:
        """Write down a number that follows from the four."""
        left, top, right, bottom = self.corners
        if what == "area":
            return _text((right - left) * (bottom - top), self.digits)
        return _text(self.corners[CORNERS.index(what)], self.digits)


class _Change(NamedTuple):
    """A box as its file has it and as it will have it, both rounded."""

    before: _Numbers
    after: _Numbers

    def exchanges(self, spots: Spots) -> Iterator[tuple[Span, str]]:
        """Yield what becomes of the spans whose numbers change."""
        old, new = self.before.four(), self.after.four()
        yield from (
            (span, word)
            for span, was, word in zip(spots.numbers, old, new, strict=True)
            if was != word
        )
        for span, what in spots.along:
            word = self.after.along(what)
            if word != self.before.along(what):
                yield span, word


def _text(number: float, digits: int) -> str:
    return np.format_float_positional(number + 0.0, digits, trim="-")


def _below(file: str) -> PurePosixPath:
    """Return a file's place in the output; one outside the root has its own folder there."""
    return PurePosixPath(*("outside" if part == ".." else part for part in file.split("/")))


def _exchanged(content: bytes, file: str, table: BoxTable, new: Mapping[int, _Change]) -> bytes:
    """Put new numbers, by index of the box in the table, in the place of the old ones."""
    encoding = table.format.encoding(content)
    try:
        text = content.decode(encoding)
        in_order = list(table.format.spots(text))
        spots = {at: in_order[table.entries[at][1]] for at in new}
    except (LookupError, ValueError, RecursionError) as error:
        raise BadInput.at(file, "has changed since it was read", "read it again") from error
    _check_old(table, [*new], [[text[slice(*span)] for span in s.numbers] for s in spots.values()])
    pieces, position = [], 0
    exchanges = (pair for at, found in spots.items() for pair in new[at].exchanges(found))
    for (start, end), word in sorted(exchanges):
        pieces += [text[position:start], word]
        position = end
    if text.encode(encoding) != content:
        problem = f"its text doesn't become the same bytes again in {encoding}"
        raise BadInput.at(file, problem, "save it as UTF-8 and read it again")
    return "".join([*pieces, text[position:]]).encode(encoding)


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
