"""Write moved boxes back into their own annotation files.

Only the numbers of a box are exchanged; every other byte stays: ids, labels, scores, further
fields, their order, comments and line ends.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
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
_JOINED = 10_000  # pieces of a file that are put together at once


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
    changes = _Changes.of(table, rounded, indices, places)
    new: dict[str, dict[int, int]] = {file: {} for file in table.files}
    for row, at in enumerate(indices.tolist()):
        file, number = table.entries[at]
        new[file][number] = row
    written = []
    for file, rows in new.items():
        content = read_bytes(table.root, file)
        path = folder / _below(file)
        make_folder(path.parent)
        write_atomically(path, _exchanged(content, file, table, changes, rows) if rows else content)
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
    return written_or_flat(table, boxes, decimals)[0]


def written_or_flat(
    table: BoxTable, boxes: Boxes, decimals: Decimals = "auto"
) -> tuple[Boxes, Bool[Tensor, " n"]]:
    """Return what `as_written` does, and which boxes stay as they would round to nothing.

    Args:
        table: What was read.
        boxes: The new box of each of the table's boxes, `xyxy` in pixels.
        decimals: How many decimals of a pixel to write.
    """
    places = decimals_of(table, decimals)
    new, old = (
        _rounded(table, found.double(), table.image_index, places) for found in (boxes, table.boxes)
    )
    least = 1.0 if table.format.convention.inclusive else 0.0
    flat = (box_sizes(new) <= least).any(dim=1)
    stays = (new == old).all(dim=1) | flat | (boxes == table.boxes).all(dim=1)
    return torch.where(stays[:, None], table.boxes, new.float()), flat


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


def _rounded(
    table: BoxTable,
    edges: Float64[Tensor, "n 4"],
    images: Int64[Tensor, " n"],
    places: Int64[Tensor, " n"],
) -> Float64[Tensor, "n 4"]:
    """Return where boxes are once their numbers are rounded; -0.0 becomes 0.

    Edges are rounded, so that a size and the corner it ends at agree; of centres, which may lie
    between two such edges, the file's own numbers are.
    """
    scale = 10.0 ** places[:, None].double()
    if _has_centers(table):
        return table.edges((table.numbers(edges, images) * scale).round() / scale, images) + 0.0
    return (edges * scale).round() / scale + 0.0


def _has_centers(table: BoxTable) -> bool:
    """Tell whether files hold centres in pixels: a box of side one then has halves."""
    convention = table.format.convention
    halves = convention.from_xyxy(torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64)) % 1
    return not convention.fractions and bool(halves.any())


class _Changes(NamedTuple):
    """What files say of boxes that change, and what they will say, both rounded.

    Attributes:
        indices: Which of the table's boxes change.
        numbers: Their four numbers, before and after.
        corners: Their corners in the file's unit, likewise.
        digits: How many decimals are written of each.
    """

    indices: Int64[Tensor, " n"]
    numbers: Float64[np.ndarray, "n 2 4"]
    corners: Float64[np.ndarray, "n 2 4"]
    digits: list[int]

    @classmethod
    def of(
        cls,
        table: BoxTable,
        boxes: Boxes,
        indices: Int64[Tensor, " n"],
        places: Int64[Tensor, " n"],
    ) -> "_Changes":
        """Return those of a table, by its new boxes and how many decimals of a pixel they have."""
        convention, images = table.format.convention, table.image_index[indices]
        numbers = [
            table.numbers(_rounded(table, found[indices].double(), images, places), images)
            for found in (table.boxes, boxes)
        ]
        corners = torch.stack([convention.to_xyxy(each) for each in numbers], dim=1)
        # A fraction of a picture 100,000 pixels wide still tells a thousandth of a pixel.
        digits = places + (6 if convention.fractions else 0)
        return cls(indices, torch.stack(numbers, dim=1).numpy(), corners.numpy(), digits.tolist())

    def exchanges(self, row: int, spots: Spots) -> list[tuple[Span, str]]:
        """Return what becomes of the spans of a box whose numbers change, in their order."""
        digits, found = self.digits[row], list[tuple[Span, str]]()
        pairs = [*zip(spots.numbers, *self.numbers[row].tolist(), strict=True)]
        before, after = self.corners[row].tolist()
        pairs += [(span, _side(before, what), _side(after, what)) for span, what in spots.along]
        for span, old, new in pairs:
            word = _text(new, digits)
            if word != _text(old, digits):
                found.append((span, word))
        return sorted(found)


def _side(corners: Sequence[float], what: Along) -> float:
    """Return a number that follows from a box's corners."""
    left, top, right, bottom = corners
    return (right - left) * (bottom - top) if what == "area" else corners[CORNERS.index(what)]


def _text(number: float, digits: int) -> str:
    """Write a number without an exponent or needless zeros.

    Examples:
        >>> _text(12.5, 3), _text(-0.0001, 3), _text(200.0, 0)
        ('12.5', '0', '200')
    """
    word = f"{number:.{digits}f}"
    if "." in word:
        word = word.rstrip("0").rstrip(".")
    return "0" if word == "-0" else word


def _below(file: str) -> PurePosixPath:
    """Return a file's place in the output; one outside the root has its own folder there."""
    return PurePosixPath(*("outside" if part == ".." else part for part in file.split("/")))


def _exchanged(
    content: bytes, file: str, table: BoxTable, changes: _Changes, rows: Mapping[int, int]
) -> bytes:
    """Put new numbers in the place of the old ones, by the number of each box in its file."""
    encoding = table.format.encoding(content)
    # Of a million boxes: numbers without an object for each, and pieces joined now and then.
    stated, order = array("d"), array("q")
    whole, pieces, position = list[str](), list[str](), 0
    try:
        text = content.decode(encoding)
        for number, spots in enumerate(table.format.spots(text)):
            if (row := rows.get(number)) is None:
                continue
            order.append(row)
            stated.extend(_values([text[start:end] for start, end in spots.numbers]))
            if len(spots.numbers) != len(CORNERS):  # in pieces, and refused below
                continue
            for (start, end), word in changes.exchanges(row, spots):
                if start < position:
                    raise _changed(file)
                pieces += [text[position:start], word]
                position = end
            if len(pieces) > _JOINED:
                whole.append("".join(pieces))
                pieces.clear()
    except (LookupError, ValueError, RecursionError) as error:
        raise _changed(file) from error
    if len(order) < len(rows):
        raise _changed(file)
    _check_old(table, changes.indices[np.array(order)], np.array(stated))
    if text.encode(encoding) != content:
        problem = f"its text doesn't become the same bytes again in {encoding}"
        raise BadInput.at(file, problem, "save it as UTF-8 and read it again")
    return "".join([*whole, *pieces, text[position:]]).encode(encoding)


def _changed(file: str) -> BadInput:
    return BadInput.at(file, "has changed since it was read", "read it again")


def _check_old(
    table: BoxTable, indices: Int64[Tensor, " n"], stated: Float64[np.ndarray, " k"]
) -> None:
    """Refuse boxes whose old numbers, as they were found in the file, don't make them up."""
    values = torch.from_numpy(stated).reshape(-1, 4)
    found = table.edges(values, table.image_index[indices])
    if len(other := (found.float() != table.boxes[indices]).any(dim=1).nonzero()):
        problem = "its numbers are not found where they were read"
        remedy = "read it again if it has changed, or write plain digits"
        raise BadInput.at(table.ids[int(indices[other[0]])], problem, remedy)


def _values(texts: Sequence[str]) -> list[float]:
    try:
        first, second, third, fourth = map(float, texts)
    except ValueError:
        return [math.nan] * 4
    return [first, second, third, fourth]
