"""Pixels as a store holds them: a number each, a picture's halves behind it, all of it or parts."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8, UInt32

from lightning_bbox.pictures.decode import Decoded
from lightning_bbox.pictures.pyramid import num_pixels

_TILE = 128  # side of what is packed or left out where only some boxes are cut, on level 0
_LEAST_TILE = 16  # the same on high levels
_LARGEST_SOURCE = 2048  # and in the picture's own pixels, which are all decoded for it
_AROUND = 4  # pixels of its level that a cut may read beyond its box
_PAGE = 1024  # pixels of a page of memory, which is the least that is taken
_RED_AND_BLUE, _ONES = np.uint32(0xFF00FF), np.uint32(0x010001)  # of one pixel's number


def pack_rgb(pixels: UInt8[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
    """Pack RGB into one whole number a pixel, red lowest, so that a cut loads a pixel at once.

    As float32, which holds 24 bits exactly.
    """
    return _numbers(pixels).astype(np.float32)


def pack_levels(
    picture: UInt8[np.ndarray, "*n h w 3"], into: Float32[np.ndarray, "*n p"] | None = None
) -> Float32[np.ndarray, "*n p"]:
    """Pack a picture, or several of one size, with its halves, one after another.

    `halved_picture` says how pictures are halved.

    Args:
        picture: Or pictures.
        into: Where to; a new array by default.
    """
    if into is None:
        size = torch.tensor([picture.shape[-3:-1]])
        into = np.empty((*picture.shape[:-3], int(num_pixels(size))), dtype=np.float32)
    level, start = _numbers(picture), 0
    while True:
        end = start + level.shape[-2] * level.shape[-1]
        into[..., start:end] = level.reshape(*level.shape[:-2], -1)
        if end == into.shape[-1]:
            return into
        level, start = _halved(level), end


def _numbers(pixels: UInt8[np.ndarray, "*n 3"]) -> UInt32[np.ndarray, "*n"]:
    """Write each pixel as one whole number."""
    numbers = pixels[..., 2].astype(np.uint32)
    for channel in (1, 0):
        numbers <<= np.uint32(8)
        numbers |= pixels[..., channel]
    return numbers


def _halved(level: UInt32[np.ndarray, "*n h w"]) -> UInt32[np.ndarray, "*n h2 w2"]:
    """Do as `halved_picture` does: red and blue in one sum, with room for their tenth bits."""
    halves = []
    for shift in np.array([0, 8], dtype=np.uint32):
        rows = _summed(level, -2, shift)
        four = _summed(rows, -1)
        odd = four >> np.uint32(2)
        odd &= _ONES
        four += _ONES
        four += odd
        four >>= np.uint32(2)
        four &= _RED_AND_BLUE
        four <<= shift
        halves.append(four)
    halves[0] |= halves[1]
    return halves[0]


def _summed(
    numbers: UInt32[np.ndarray, "*n h w"], axis: int, shift: np.uint32 | None = None
) -> UInt32[np.ndarray, "*n h2 w2"]:
    """Add neighbours along an axis, the last one to itself where it has none.

    Args:
        numbers: What to add.
        axis: Along which.
        shift: By how many bits those of two channels lie too high in whole pixels, if these are.
    """
    along = np.moveaxis(numbers, axis, 0)
    first, second = along[::2], along[1::2]
    if shift is None:
        total = first.copy(order="K")
        total[: len(second)] += second
    else:
        total = first >> shift
        total &= _RED_AND_BLUE
        other = second >> shift
        other &= _RED_AND_BLUE
        total[: len(second)] += other
    if len(second) < len(first):
        total[-1] *= np.uint32(2)
    return np.moveaxis(total, 0, axis)


class Unpacked:
    """A picture of which only what crops are cut from is packed, each from its level.

    Args:
        picture: The picture.

    Attributes:
        taken: How many pixels of memory what is packed takes.
    """

    def __init__(self, picture: Decoded) -> None:
        self.picture, self.taken = picture, 0
        self._packed: dict[int, Bool[np.ndarray, "rows columns"]] = {}  # tiles of each level

    def pack(
        self,
        flat: Float32[np.ndarray, " p"],
        boxes: Float64[np.ndarray, "b 4"],
        levels: Int64[np.ndarray, " b"],
    ) -> None:
        """Pack what crops are cut from into the picture's stretch of a store.

        Args:
            flat: That stretch.
            boxes: Where they are cut; finite.
            levels: The level that each is cut from.
        """
        start, (rows, columns) = 0, self.picture.shape[:2]
        for level in range(int(levels.max(initial=-1)) + 1):
            packed = flat[start : start + rows * columns].reshape(rows, columns)
            reads = _reads(rows, columns, boxes[levels == level] / 2**level)
            for down, across in self._fresh(level, rows, columns, reads):
                source = [slice(each.start << level, each.stop << level) for each in (down, across)]
                some = _numbers(self.picture[source[0], source[1]])
                for _ in range(level):
                    some = _halved(some)
                packed[down, across] = some
                self.taken = min(len(flat), self.taken + len(some) * max(some.shape[1], _PAGE))
            start += rows * columns
            rows, columns = (rows + 1) // 2, (columns + 1) // 2

    def _fresh(
        self, level: int, rows: int, columns: int, reads: Int64[np.ndarray, "b 4"]
    ) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of a level that cuts read from and aren't packed yet.

        Of a decoded picture itself they are those of each cut: to pack some twice takes less time
        than to know them. What is halved, or has to be decoded, is packed once, by tiles. Tiles
        side by side are one, as long as that isn't large.
        """
        if level == 0 and isinstance(self.picture, np.ndarray):
            for left, top, right, bottom in reads.tolist():
                yield slice(top, bottom), slice(left, right)
            return
        tile = min(max(_TILE >> level, _LEAST_TILE), max(1, _LARGEST_SOURCE >> level))
        touched = np.zeros((-(-rows // tile), -(-columns // tile)), dtype=bool)
        for left, top, right, bottom in reads.tolist():
            touched[top // tile : -(-bottom // tile), left // tile : -(-right // tile)] = True
        packed = self._packed.setdefault(level, np.zeros_like(touched))
        most = max(1, (_LARGEST_SOURCE**2 // (tile << level) ** 2))
        for row, across in enumerate(touched & ~packed):
            edges = np.flatnonzero(np.diff(across, prepend=False, append=False))
            for begin, end in edges.reshape(-1, 2):
                for first in range(begin, end, most):
                    columns_of = slice(first * tile, min(first + most, end) * tile)
                    yield slice(row * tile, (row + 1) * tile), columns_of
        packed |= touched


def _reads(rows: int, columns: int, boxes: Float64[np.ndarray, "b 4"]) -> Int64[np.ndarray, "b 4"]:
    """Return the first columns and rows that cuts at boxes read, and the ends of both.

    A cut reads the pixels around its samples, and those of the border for what lies outside.

    Args:
        rows: How many rows there are.
        columns: How many columns.
        boxes: The boxes, in pixels.
    """
    low = np.minimum(boxes[:, :2], boxes[:, 2:]) - _AROUND
    high = np.maximum(boxes[:, :2], boxes[:, 2:]) + _AROUND
    last = np.array([columns, rows]) - 1
    first, end = (np.clip(np.floor(each), 0, last) for each in (low, high))
    return np.concatenate([first, end + 1], axis=1).astype(np.int64)
