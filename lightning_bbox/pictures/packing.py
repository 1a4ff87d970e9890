"""Pixels as a store holds them: a number each, a picture's halves behind it, all of it or parts."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8, UInt32

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.decode import Decoded
from lightning_bbox.pictures.pyramid import level_sides, level_starts, levels_for, num_pixels

_TILE = 128  # side of what is packed or left out where only some boxes are cut, on level 0
_LEAST_TILE = 16  # the same on high levels
_LARGEST_SOURCE = 2048  # and in the picture's own pixels, which are all decoded for it
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

    def pack(self, flat: Float32[np.ndarray, " p"], boxes: Boxes, size: int) -> None:
        """Pack what crops are cut from into the picture's stretch of a store.

        Args:
            flat: That stretch.
            boxes: Where they are cut; finite.
            size: Their side.
        """
        height, width = (torch.tensor([side]) for side in self.picture.shape[:2])
        levels = levels_for(boxes, size, height.expand(len(boxes)), width.expand(len(boxes)))
        starts = level_starts(height, width)[0].tolist()
        sides = torch.cat([level_sides(height), level_sides(width)]).T.tolist()
        for level in sorted(set(levels.tolist())):
            rows, columns = sides[level]
            packed = flat[starts[level] : starts[level] + rows * columns].reshape(rows, columns)
            for down, across in self._fresh(level, rows, columns, boxes[levels == level]):
                source = [slice(each.start << level, each.stop << level) for each in (down, across)]
                some = _numbers(self.picture[source[0], source[1]])
                for _ in range(level):
                    some = _halved(some)
                packed[down, across] = some
                self.taken += len(some) * max(some.shape[1], _PAGE)

    def _fresh(
        self, level: int, rows: int, columns: int, boxes: Boxes
    ) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of tiles that cuts at boxes read from and aren't packed yet.

        They are those of a level. Tiles side by side are one, as long as that isn't large.
        """
        tile = min(max(_TILE >> level, _LEAST_TILE), max(1, _LARGEST_SOURCE >> level))
        touched = _touched(-(-rows // tile), -(-columns // tile), boxes / (tile << level), tile)
        packed = self._packed.setdefault(level, np.zeros_like(touched))
        most = max(1, (_LARGEST_SOURCE**2 // (tile << level) ** 2))
        for row, across in enumerate(touched & ~packed):
            edges = np.flatnonzero(np.diff(across, prepend=False, append=False))
            for begin, end in edges.reshape(-1, 2):
                for first in range(begin, end, most):
                    columns_of = slice(first * tile, min(first + most, end) * tile)
                    yield slice(row * tile, (row + 1) * tile), columns_of
        packed |= touched


def _touched(rows: int, columns: int, boxes: Boxes, tile: int) -> Bool[np.ndarray, "rows columns"]:
    """Tell which tiles cuts at boxes read from.

    A cut reads the pixels around its samples, and those of the border for what lies outside.

    Args:
        rows: How many tiles there are, down.
        columns: The same, across.
        boxes: The boxes, as multiples of a tile's side.
        tile: That side, in pixels.
    """
    touched = np.zeros((rows, columns), dtype=bool)
    corners, around = boxes.double().numpy(), 4 / tile
    low = np.minimum(corners[:, :2], corners[:, 2:]) - around
    high = np.maximum(corners[:, :2], corners[:, 2:]) + around
    last = np.array([columns, rows]) - 1
    first_tiles, last_tiles = (np.clip(np.floor(each), 0, last).astype(int) for each in (low, high))
    for (left, top), (right, bottom) in zip(first_tiles, last_tiles, strict=True):
        touched[top : bottom + 1, left : right + 1] = True
    return touched
