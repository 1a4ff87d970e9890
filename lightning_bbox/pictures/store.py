"""The image store: every picture decoded once, kept as uint8 on the device, whatever its size."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8, UInt32
from torch import Tensor
from tqdm.auto import tqdm

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import FULL_SCALE, White
from lightning_bbox.pictures.decode import DECODERS, decode_sized
from lightning_bbox.pictures.pyramid import level_sides, level_starts, levels_for, num_pixels

_PACKED_AT_ONCE = 1 << 18  # pixels, so that packing takes no memory to speak of
_TILE = 128  # side of what is packed or left out where only some boxes will be cut, on level 0
_LEAST_TILE = 16  # the same on high levels
_RED_AND_BLUE, _ONES = np.uint32(0xFF00FF), np.uint32(0x010001)  # of one pixel's number


def pack_rgb(pixels: UInt8[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
    """Pack RGB into one whole number a pixel, red lowest, so that a cut loads a pixel at once.

    As float32, which holds 24 bits exactly: with AVX2, compiled code loads a vector of them in one
    instruction, and one of int32 by way of the stack, which takes 2.5 times as long.
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


class ImageStore:
    """Pictures of any size, with their halves, in one flat tensor of packed pixels.

    Args:
        pixels: Packed pixels (see `pack_rgb`) of all pictures, level by level and row by row (see
            `pack_levels`), one picture after another.
        sizes: Height and width of each picture.

    Attributes:
        offsets: Where each picture begins in `pixels`.
        heights: Rows of each picture.
        widths: Columns of each picture.
        on_host: Whether it stays in the memory of the host, so that crops are cut there.
    """

    def __init__(self, pixels: Float32[Tensor, " p"], sizes: Int64[Tensor, "n 2"]) -> None:
        lengths = num_pixels(sizes)
        if len(pixels) != (whole := int(lengths.sum())):
            msg = f"{len(pixels)} pixels don't fill pictures of {whole} pixels with their halves"
            raise BadInput(msg)
        self.pixels = pixels
        self.offsets: Int64[Tensor, " n"] = lengths.cumsum(dim=0) - lengths
        self.device = pixels.device
        self.heights: Int32[Tensor, " n"] = sizes[:, 0].int()
        self.widths: Int32[Tensor, " n"] = sizes[:, 1].int()
        self.on_host = False

    @classmethod
    def from_array(cls, pictures: UInt8[np.ndarray, "n h w 3"]) -> Self:
        """Store pictures of one size."""
        n, height, width, _ = pictures.shape
        sizes = torch.tensor([[height, width]])
        packed = np.empty((n, int(num_pixels(sizes))), dtype=np.float32)
        step = max(1, _PACKED_AT_ONCE // max(1, height * width))
        for start in range(0, n, step):
            pack_levels(pictures[start : start + step], packed[start : start + step])
        return cls(torch.from_numpy(packed.reshape(-1)), sizes.expand(n, 2))

    @classmethod
    def from_pictures(
        cls,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
        crop_boxes: Sequence[Boxes] | None = None,
        size: int = 0,
    ) -> Self:
        """Store pictures of any sizes that are decoded already.

        Args:
            pictures: The pictures.
            crop_boxes: Finite boxes in each, if nothing else will be cut: the rest is left black,
                unpacked.
            size: Side of these crops.
        """
        sizes = torch.tensor([picture.shape[:2] for picture in pictures]).long().reshape(-1, 2)
        # Not by torch, which would write to all of it: what nobody touches takes no memory.
        flat = np.zeros(int(num_pixels(sizes).sum()), dtype=np.float32)
        store = cls(torch.from_numpy(flat), sizes)
        for at, (picture, start) in enumerate(zip(pictures, store.offsets.tolist(), strict=True)):
            if crop_boxes is None:
                pack_levels(picture, store.packed(at).numpy())
            else:
                _pack_places(picture, flat[start:], crop_boxes[at], size)
        return store

    @classmethod
    def from_files(
        cls,
        paths: Sequence[PathLike[str]],
        sizes: Int64[Tensor, "n 2"],
        threads: int = DECODERS,
        progress: bool = True,
        white_level: White | None = FULL_SCALE,
        part: TiffPart = TiffPart(),
    ) -> Self:
        """Decode files in parallel.

        Args:
            paths: The files.
            sizes: Height and width of each, as its header says.
            threads: How many files are decoded at once.
            progress: Show a bar, on a terminal.
            white_level: What is white, or black and white, beyond 8 bits.
            part: Which page and bands of TIFFs.

        Raises:
            BadInput: Files can't be decoded, or have other sizes than the stated ones; all of them
                are counted.
        """
        store = cls(torch.zeros(int(num_pixels(sizes).sum())), sizes)

        def load(index: int) -> BadInput | None:
            try:
                picture = decode_sized(paths[index], sizes[index], white_level, part)
            except BadInput as problem:
                return problem
            pack_levels(picture, store.packed(index).numpy())
            return None

        with ThreadPoolExecutor(threads) as pool:
            loaded = pool.map(load, range(len(paths)))
            hidden = None if progress else True
            done = [*tqdm(loaded, "pictures", len(paths), leave=False, disable=hidden)]
        if problems := [problem for problem in done if problem]:
            raise BadInput.all_of(problems)
        return store

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.heights)

    def parts(self, image_index: Int64[Tensor, " b"]) -> Iterator[tuple[Self, Int64[Tensor, " b"]]]:
        """Yield all that is asked for at once: every picture is here."""
        yield self, image_index

    def expect(self, image_index: Int64[Tensor, " b"], crop_boxes: Boxes, size: int) -> None:
        """Make ready for crops that will be cut next; here they are."""

    def to(self, device: torch.device) -> Self:
        """Move the store, once; one that is there already, or stays on the host, is returned."""
        if self.on_host or self.pixels.device == device:
            return self
        sizes = torch.stack([self.heights, self.widths], dim=1).long().cpu()
        moved = type(self)(self.pixels.to(device), sizes)
        moved.offsets, moved.heights, moved.widths = (
            tensor.to(device) for tensor in (moved.offsets, moved.heights, moved.widths)
        )
        return moved

    def packed(self, index: int) -> Float32[Tensor, " p"]:
        """Return the packed pixels of one picture and its halves."""
        end = len(self.pixels) if index == len(self) - 1 else int(self.offsets[index + 1])
        return self.pixels[int(self.offsets[index]) : end]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return one picture as RGB."""
        height, width = int(self.heights[index]), int(self.widths[index])
        packed = self.packed(index)[: height * width].int().cpu().numpy()
        return packed.view(np.uint8).reshape(height, width, 4)[..., :3].copy()


def _pack_places(
    picture: UInt8[np.ndarray, "h w 3"],
    flat: Float32[np.ndarray, " p"],
    boxes: Boxes,
    size: int,
) -> None:
    """Pack what crops are cut from, each from its level, into a picture's stretch of a store."""
    height, width = (torch.tensor([side]) for side in picture.shape[:2])
    levels = levels_for(boxes, size, height.expand(len(boxes)), width.expand(len(boxes)))
    starts = level_starts(height, width)[0].tolist()
    sides = torch.cat([level_sides(height), level_sides(width)]).T.tolist()
    for level in sorted(set(levels.tolist())):
        rows, columns = sides[level]
        packed = flat[starts[level] : starts[level] + rows * columns].reshape(rows, columns)
        here, tile = boxes[levels == level] / 2**level, max(_TILE >> level, _LEAST_TILE)
        for down, across in _tiles(rows, columns, here, tile):
            source = [slice(each.start << level, each.stop << level) for each in (down, across)]
            some = _numbers(picture[source[0], source[1]])
            for _ in range(level):
                some = _halved(some)
            packed[down, across] = some


def _tiles(height: int, width: int, boxes: Boxes, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of tiles, side by side, that cuts at boxes read from.

    A cut reads the pixels around its samples, and those of the border for what lies outside.
    """
    touched = np.zeros((-(-height // tile), -(-width // tile)), dtype=bool)
    corners = boxes.double().numpy()
    low = np.floor(np.minimum(corners[:, :2], corners[:, 2:])) - 3
    high = np.ceil(np.maximum(corners[:, :2], corners[:, 2:])) + 3
    last = np.array([width, height]) - 1
    first_tiles, last_tiles = (
        (np.clip(places, 0, last) // tile).astype(int) for places in (low, high)
    )
    for (left, top), (right, bottom) in zip(first_tiles, last_tiles, strict=True):
        touched[top : bottom + 1, left : right + 1] = True
    for row, across in enumerate(touched):
        edges = np.flatnonzero(np.diff(across, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2) * tile:
            yield slice(row * tile, (row + 1) * tile), slice(begin, end)


class PictureFiles:
    """Pictures that are decoded when they are asked for, so that any number of them will do.

    Those of the last samples are kept, so that each is decoded once where its samples follow one
    another. They stay in the memory of the host: crops are cut there, ahead of their use.

    Args:
        paths: The files.
        sizes: Height and width of each, as its header says.
        most_pixels: How many pixels are held at once, halves among them, but for one picture that
            has more.
        white_level: What is white, or black and white, beyond 8 bits.
        part: Which page and bands of TIFFs.
    """

    on_host = True
    device = torch.device("cpu")

    def __init__(
        self,
        paths: Sequence[str | PathLike[str]],
        sizes: Int64[Tensor, "n 2"],
        most_pixels: int = 1 << 27,
        white_level: White | None = FULL_SCALE,
        part: TiffPart = TiffPart(),
    ) -> None:
        self.paths, self.sizes, self.most_pixels = paths, sizes, most_pixels
        self.white_level, self.part = white_level, part
        self._kept: tuple[list[int], ImageStore] = [], ImageStore(torch.zeros(0), sizes[:0])

    def to(self, device: torch.device) -> Self:
        """Stay on the host."""
        return self

    def parts(
        self, image_index: Int64[Tensor, " b"]
    ) -> Iterator[tuple[ImageStore, Int64[Tensor, " b"]]]:
        """Yield stores of the pictures of consecutive samples, each with the samples' places in it.

        Raises:
            BadInput: A picture can't be decoded, or its size isn't the stated one.
        """
        for pictures in self._groups(image_index.tolist()):
            yield self._decoded(torch.tensor(pictures, dtype=torch.int64))

    def _groups(self, wanted: list[int]) -> Iterator[list[int]]:
        """Cut a list of pictures where those before would hold too many pixels."""
        group, held, pixels = list[int](), set[int](), 0
        lengths = dict(zip(wanted, num_pixels(self.sizes[wanted]).tolist(), strict=True))
        for picture in wanted:
            area = 0 if picture in held else lengths[picture]
            if area and group and pixels + area > self.most_pixels:
                yield group
                group, held, pixels, area = [], set(), 0, lengths[picture]
            group.append(picture)
            held.add(picture)
            pixels += area
        if group or not wanted:
            yield group

    def _decoded(self, image_index: Int64[Tensor, " b"]) -> tuple[ImageStore, Int64[Tensor, " b"]]:
        wanted, (numbers, store) = set(image_index.tolist()), self._kept
        if missing := sorted(wanted - set(numbers)):
            fresh = ImageStore.from_files(
                [Path(self.paths[at]) for at in missing],
                self.sizes[missing],
                progress=False,
                white_level=self.white_level,
                part=self.part,
            )
            old = [at for at in numbers if at in wanted]
            parts = [store.packed(numbers.index(at)) for at in old]
            numbers = old + missing
            pixels = torch.cat([*parts, fresh.pixels]) if old else fresh.pixels
            store = ImageStore(pixels, self.sizes[numbers])
            self._kept = numbers, store
        places = {at: place for place, at in enumerate(numbers)}
        return store, torch.tensor([places[at] for at in image_index.tolist()]).long()
