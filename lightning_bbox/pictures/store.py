"""The image store: every picture decoded once, kept as uint8 on the device, whatever its size."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import FULL_SCALE, White
from lightning_bbox.pictures.decode import (
    DECODERS,
    Decoded,
    LargePicture,
    are_large,
    decode_sized,
    whole,
)
from lightning_bbox.pictures.packing import Unpacked, pack_levels
from lightning_bbox.pictures.pyramid import levels_for, num_pixels

_PACKED_AT_ONCE = 1 << 18  # pixels, so that packing takes no memory to speak of
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which Python's mmap doesn't name: nothing is set aside


class ImageStore:
    """Pictures of any size, with their halves, in one flat tensor of packed pixels.

    Of some pictures only what crops are cut from is packed, when they are: what nobody touches
    takes no memory, and the rest lies where it would in a whole picture, so that crops are the same
    to the bit.

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
        self._unpacked: dict[int, Unpacked] = {}
        self._lock = Lock()  # crops are cut in several threads

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
    def from_pictures(cls, pictures: Sequence[Decoded], at_once: bool = True) -> Self:
        """Store pictures of any sizes that are decoded already.

        Args:
            pictures: The pictures.
            at_once: Pack all of them now; else what crops are cut from is packed when they are.
        """
        sizes = torch.tensor([picture.shape[:2] for picture in pictures]).long().reshape(-1, 2)
        store = cls(_untouched(int(num_pixels(sizes).sum())), sizes)
        for at, picture in enumerate(pictures):
            store._put(at, picture, at_once)
        return store

    def _put(self, index: int, picture: Decoded, at_once: bool) -> None:
        """Pack a picture, or keep it until crops are cut, as all large ones are kept."""
        if at_once and not isinstance(picture, LargePicture):
            pack_levels(picture, self.packed(index).numpy())
        else:
            self._unpacked[index] = Unpacked(picture)
        self.on_host |= isinstance(picture, LargePicture)

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
        """Decode files in parallel; of large ones only what crops are cut from, when they are.

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
        count = int(num_pixels(sizes).sum())
        store = cls(_untouched(count) if are_large(sizes).any() else torch.empty(count), sizes)

        def load(index: int) -> None:
            store._put(index, decode_sized(paths[index], sizes[index], white_level, part), True)

        _all_of(load, len(paths), threads, progress)
        return store

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.heights)

    def parts(self, image_index: Int64[Tensor, " b"]) -> Iterator[tuple[Self, Int64[Tensor, " b"]]]:
        """Yield all that is asked for at once: every picture is here."""
        yield self, image_index

    def expect(self, image_index: Int64[Tensor, " b"], crop_boxes: Boxes, size: int) -> None:
        """Make ready for crops that will be cut next: pack what hasn't been.

        Args:
            image_index: Picture of each crop.
            crop_boxes: Where it is cut; nothing is made ready where that isn't finite.
            size: Side of the crops.
        """
        if not self._unpacked:
            return
        sides = self.heights[image_index], self.widths[image_index]
        levels = levels_for(crop_boxes, size, *sides).numpy()
        boxes, pictures = crop_boxes.double().numpy(), image_index.numpy()
        finite = np.isfinite(boxes).all(axis=1)
        with self._lock:
            for index in self._unpacked.keys() & set(pictures.tolist()):
                rows = finite & (pictures == index)
                self._unpacked[index].pack(self.packed(index).numpy(), boxes[rows], levels[rows])

    @property
    def has_large(self) -> bool:
        """Whether parts of a picture are decoded when crops are cut."""
        return any(isinstance(each.picture, LargePicture) for each in self._unpacked.values())

    @property
    def num_held(self) -> int:
        """How many pixels take memory, but for those of the pictures that are kept unpacked."""
        some = self._unpacked.items()
        left = sum(len(self.packed(index)) - picture.taken for index, picture in some)
        return len(self.pixels) - left

    def contents(self) -> list[Tensor | str]:
        """Return what tells these pictures from others: pixels, or a file that they are read from.

        Of pictures that wait unpacked only large ones have a file.
        """
        if not self._unpacked:
            return [self.pixels]
        waiting = {index: unpacked.picture for index, unpacked in self._unpacked.items()}
        stamps = {at: each.stamp for at, each in waiting.items() if isinstance(each, LargePicture)}
        return [stamps.get(index, self.packed(index)) for index in range(len(self))]

    def to(self, device: torch.device) -> Self:
        """Move the store, once; one that is there already, or stays on the host, is returned.

        What isn't packed yet is left behind.
        """
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
        """Return one picture as RGB.

        Raises:
            BadInput: It is a large one, of which only parts are decoded.
        """
        if index in self._unpacked:
            return whole(self._unpacked[index].picture)
        height, width = int(self.heights[index]), int(self.widths[index])
        packed = self.packed(index)[: height * width].int().cpu().numpy()
        return packed.view(np.uint8).reshape(height, width, 4)[..., :3].copy()


def _untouched(count: int) -> Float32[Tensor, " p"]:
    """Return zeros that take memory only where something is written to.

    By torch or NumPy all of it might be written to, be set aside, or be taken by huge pages.

    Raises:
        BadInput: There are more than there are addresses for.
    """
    if not count or not hasattr(mmap, "MADV_NOHUGEPAGE"):  # not Linux
        return torch.from_numpy(np.zeros(count, dtype=np.float32))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        mapped = mmap.mmap(-1, 4 * count, flags=flags)
    except (OSError, OverflowError) as error:
        msg = f"{count} pixels can't be laid out in memory ({error}); leave out the largest picture"
        raise BadInput(msg) from error
    mapped.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.float32)


def _all_of(load: Callable[[int], None], count: int, threads: int, progress: bool) -> None:
    """Call what loads each of several pictures, in parallel.

    Raises:
        BadInput: Some can't be loaded; all of them are counted.
    """

    def problem_of(index: int) -> BadInput | None:
        try:
            load(index)
        except BadInput as problem:
            return problem
        return None

    with ThreadPoolExecutor(threads) as pool:
        loaded = pool.map(problem_of, range(count))
        hidden = None if progress else True
        done = [*tqdm(loaded, "pictures", count, leave=False, disable=hidden)]
    if problems := [problem for problem in done if problem]:
        raise BadInput.all_of(problems)


class PictureFiles:
    """Pictures that are decoded when they are asked for, so that any number of them will do.

    Those of the last samples are kept, so that each is decoded once where its samples follow one
    another, and only what crops are cut from is packed. They stay in the memory of the host: crops
    are cut there, ahead of their use.

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
        self._kept: tuple[dict[int, Decoded], ImageStore] = {}, ImageStore.from_pictures([])

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
            store, numbers = self._store_of(set(pictures))
            places = {at: place for place, at in enumerate(numbers)}
            yield store, torch.tensor([places[at] for at in pictures]).long()

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

    def _store_of(self, wanted: set[int]) -> tuple[ImageStore, list[int]]:
        """Return a store that holds these pictures, and the number of each that it holds.

        A large picture's grows with the crops that are cut from it, until there are too many.
        """
        kept, store = self._kept
        missing = sorted(wanted - kept.keys())
        if not missing and (store.num_held <= self.most_pixels or not store.has_large):
            return store, list(kept)
        fresh: dict[int, Decoded] = {}

        def load(place: int) -> None:
            at, (white, part) = missing[place], (self.white_level, self.part)
            fresh[at] = decode_sized(Path(self.paths[at]), self.sizes[at], white, part)

        _all_of(load, len(missing), DECODERS, progress=False)
        kept = {at: each for at, each in kept.items() if at in wanted} | fresh
        self._kept = kept, ImageStore.from_pictures(list(kept.values()), at_once=False)
        return self._kept[1], list(kept)
