"""The image store: every picture decoded once, kept as uint8 on the device, whatever its size."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.decode import DECODERS, FULL_SCALE, decode_sized

_PACKED_AT_ONCE = 1 << 20  # pixels, so that packing takes no memory to speak of
_TILE = 128  # side of what is packed or left out where only some boxes will be cut


def pack_rgb(pixels: UInt8[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
    """Pack RGB into one whole number a pixel, red lowest, so that a cut loads a pixel at once.

    As float32, which holds 24 bits exactly: with AVX2, compiled code loads a vector of them in one
    instruction, and one of int32 by way of the stack, which takes 2.5 times as long.
    """
    padded = np.zeros((*pixels.shape[:-1], 4), dtype=np.uint8)
    padded[..., :3] = pixels
    packed: Float32[np.ndarray, "*n"] = padded.view("<i4")[..., 0].astype(np.float32)
    return packed


class ImageStore:
    """Pictures of any size in one flat tensor of packed pixels.

    Args:
        pixels: Packed pixels (see `pack_rgb`) of all pictures, row by row, one picture after
            another.
        sizes: Height and width of each picture.

    Attributes:
        offsets: Where each picture begins in `pixels`.
        heights: Rows of each picture.
        widths: Columns of each picture.
        on_host: Whether it stays in the memory of the host, so that crops are cut there.
    """

    def __init__(self, pixels: Float32[Tensor, " p"], sizes: Int64[Tensor, "n 2"]) -> None:
        areas = sizes.prod(dim=1)
        if len(pixels) != int(areas.sum()):
            msg = f"{len(pixels)} pixels don't fill pictures of {int(areas.sum())} pixels in all"
            raise BadInput(msg)
        self.pixels = pixels
        self.offsets: Int64[Tensor, " n"] = areas.cumsum(dim=0) - areas
        self.device = pixels.device
        self.heights: Int32[Tensor, " n"] = sizes[:, 0].int()
        self.widths: Int32[Tensor, " n"] = sizes[:, 1].int()
        self.on_host = False

    @classmethod
    def from_array(cls, pictures: UInt8[np.ndarray, "n h w 3"]) -> Self:
        """Store pictures of one size."""
        n, height, width, _ = pictures.shape
        sizes = torch.tensor([height, width]).expand(n, 2)
        packed = np.empty((n, height * width), dtype=np.float32)
        step = max(1, _PACKED_AT_ONCE // max(1, height * width))
        for start in range(0, n, step):
            some = pictures[start : start + step]
            packed[start : start + step] = pack_rgb(some).reshape(len(some), -1)
        return cls(torch.from_numpy(packed.reshape(-1)), sizes)

    @classmethod
    def from_pictures(
        cls,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
        crop_boxes: Sequence[Boxes] | None = None,
    ) -> Self:
        """Store pictures of any sizes that are decoded already.

        Args:
            pictures: The pictures.
            crop_boxes: Finite boxes in each, if nothing else will be cut: the rest is left black,
                unpacked.
        """
        sizes = torch.tensor([picture.shape[:2] for picture in pictures]).long().reshape(-1, 2)
        # Not by torch, which would write to all of it: what nobody touches takes no memory.
        flat = np.zeros(int(sizes.prod(dim=1).sum()), dtype=np.float32)
        store = cls(torch.from_numpy(flat), sizes)
        for at, (picture, start) in enumerate(zip(pictures, store.offsets.tolist(), strict=True)):
            height, width = picture.shape[:2]
            packed = flat[start : start + height * width].reshape(height, width)
            whole = torch.tensor([[0.0, 0.0, width, height]])
            for place in _tiles(height, width, whole if crop_boxes is None else crop_boxes[at]):
                packed[place] = pack_rgb(picture[place])
        return store

    @classmethod
    def from_files(
        cls,
        paths: Sequence[PathLike[str]],
        sizes: Int64[Tensor, "n 2"],
        threads: int = DECODERS,
        progress: bool = True,
        white_level: int | None = FULL_SCALE,
    ) -> Self:
        """Decode files in parallel.

        Args:
            paths: The files.
            sizes: Height and width of each, as its header says.
            threads: How many files are decoded at once.
            progress: Show a bar, on a terminal.
            white_level: The value that is white in pictures of 16 bits.

        Raises:
            BadInput: Files can't be decoded, or have other sizes than the stated ones; all of them
                are counted.
        """
        store = cls(torch.zeros(int(sizes.prod(dim=1).sum())), sizes)
        flat, starts = store.pixels.numpy(), store.offsets.tolist()

        def load(index: int) -> BadInput | None:
            try:
                picture = decode_sized(paths[index], sizes[index], white_level)
            except BadInput as problem:
                return problem
            packed = pack_rgb(picture).reshape(-1)
            flat[starts[index] : starts[index] + len(packed)] = packed
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

    def expect(self, image_index: Int64[Tensor, " b"], crop_boxes: Boxes) -> None:
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
        """Return the packed pixels of one picture."""
        start, height, width = (int(t[index]) for t in (self.offsets, self.heights, self.widths))
        return self.pixels[start : start + height * width]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return one picture as RGB."""
        height, width = int(self.heights[index]), int(self.widths[index])
        packed = self.packed(index).int().cpu().numpy()
        return packed.view(np.uint8).reshape(height, width, 4)[..., :3].copy()


def _tiles(height: int, width: int, boxes: Boxes) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of tiles, side by side, that cuts at boxes read from.

    A cut reads the pixels around its samples, and those of the border for what lies outside.
    """
    touched = np.zeros((-(-height // _TILE), -(-width // _TILE)), dtype=bool)
    corners = boxes.double().numpy()
    low = np.floor(np.minimum(corners[:, :2], corners[:, 2:])) - 2
    high = np.ceil(np.maximum(corners[:, :2], corners[:, 2:])) + 2
    last = np.array([width, height]) - 1
    first_tiles, last_tiles = (
        (np.clip(places, 0, last) // _TILE).astype(int) for places in (low, high)
    )
    for (left, top), (right, bottom) in zip(first_tiles, last_tiles, strict=True):
        touched[top : bottom + 1, left : right + 1] = True
    for row, across in enumerate(touched):
        edges = np.flatnonzero(np.diff(across, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2) * _TILE:
            yield slice(row * _TILE, (row + 1) * _TILE), slice(begin, end)


class PictureFiles:
    """Pictures that are decoded when they are asked for, so that any number of them will do.

    Those of the last samples are kept, so that each is decoded once where its samples follow one
    another. They stay in the memory of the host: crops are cut there, ahead of their use.

    Args:
        paths: The files.
        sizes: Height and width of each, as its header says.
        most_pixels: How many pixels are held at once, but for one picture that has more.
        white_level: The value that is white in pictures of 16 bits.
    """

    on_host = True
    device = torch.device("cpu")

    def __init__(
        self,
        paths: Sequence[str | PathLike[str]],
        sizes: Int64[Tensor, "n 2"],
        most_pixels: int = 1 << 27,
        white_level: int | None = FULL_SCALE,
    ) -> None:
        self.paths, self.sizes, self.most_pixels = paths, sizes, most_pixels
        self.white_level = white_level
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
        for picture in wanted:
            area = 0 if picture in held else int(self.sizes[picture].prod())
            if area and group and pixels + area > self.most_pixels:
                yield group
                group, held, pixels, area = [], set(), 0, int(self.sizes[picture].prod())
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
            )
            old = [at for at in numbers if at in wanted]
            parts = [store.packed(numbers.index(at)) for at in old]
            numbers = old + missing
            pixels = torch.cat([*parts, fresh.pixels]) if old else fresh.pixels
            store = ImageStore(pixels, self.sizes[numbers])
            self._kept = numbers, store
        places = {at: place for place, at in enumerate(numbers)}
        return store, torch.tensor([places[at] for at in image_index.tolist()]).long()
