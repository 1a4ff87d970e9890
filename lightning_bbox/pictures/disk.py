"""Pixels on disk: pictures decoded once into a file that is mapped, by this run and later ones."""

import hashlib
import mmap
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.cache_file import CacheFile, Content, digest_of
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder
from lightning_bbox.core.messages import say
from lightning_bbox.core.prefetch import ahead
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import FULL_SCALE, White
from lightning_bbox.pictures.decode import DECODERS, LargePicture, decode_sized
from lightning_bbox.pictures.packing import pack_levels
from lightning_bbox.pictures.places import told
from lightning_bbox.pictures.pyramid import num_pixels, regions
from lightning_bbox.pictures.store import ImageStore

_OPTION = "--data.store.folder"
_PACKING = "r + 256 g + 65536 b, float32, little-endian, each picture before its halves"


class DiskStore(ImageStore):
    """Pictures whose packed pixels are mapped from a file; pages are read when they are used.

    Args:
        content: Packed pixels of all pictures, as `ImageStore` has them; closed with the store.
        sizes: Height and width of each picture.
    """

    def __init__(self, content: Content, sizes: Int64[Tensor, "n 2"]) -> None:
        self._file, self._start = content.file.fileno(), content.start
        weakref.finalize(self, content.file.close)
        # Not read-only: torch warns of memory that can't be written to. Nothing writes to it.
        mapped = mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_RANDOM"):
            # `expect` knows better what to read: a fault alone would take megabytes around it
            # (2.4 MB a crop from pictures of 1024 x 768, instead of 0.3).
            mapped.madvise(mmap.MADV_RANDOM)
        pixels = torch.frombuffer(mapped, dtype=torch.float32, offset=self._start)
        super().__init__(pixels, sizes)
        self.on_host = True

    def expect(self, image_index: Int64[Tensor, " b"], crop_boxes: Boxes, size: int) -> None:
        """Have the disk read the rows of crops that will be cut next, all at once.

        A cut alone would wait for one page after the other.
        """
        if not hasattr(os, "posix_fadvise"):  # not Linux: the cut waits, as it does without
            return
        places = self.offsets[image_index], self.heights[image_index], self.widths[image_index]
        offsets, heights, widths, boxes, _ = regions(*places, crop_boxes, size)
        highest, lowest = boxes[:, 1::2].aminmax(dim=1)  # mirrored ones have swapped corners
        top, low = highest.floor().long() - 2, lowest.ceil().long() + 2
        top = top.clamp(min=0).minimum(heights - 1)
        low = low.minimum(heights).maximum(top + 1)
        starts = self._start + 4 * (offsets + top * widths)
        lengths = 4 * (low - top) * widths
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            os.posix_fadvise(self._file, start, length, os.POSIX_FADV_WILLNEED)


def open_disk_store(
    folder: Path,
    paths: Sequence[Path],
    sizes: Int64[Tensor, "n 2"],
    white_level: White | None = FULL_SCALE,
    part: TiffPart = TiffPart(),
) -> DiskStore:
    """Map the file that holds these pictures, which they are decoded into where it isn't there yet.

    Other pictures have a file of another name, so that several selections lie side by side.

    Args:
        folder: Of the file.
        paths: The pictures.
        sizes: Height and width of each, as its header says.
        white_level: What is white, or black and white, beyond 8 bits.
        part: Which page and bands of TIFFs.

    Raises:
        BadInput: A picture can't be decoded, or the folder can't be written to.
    """
    make_folder(folder, _OPTION)
    which, contents = _keys(paths, sizes, white_level, part)
    path = folder / f"pictures-{digest_of(which)}.rgbx"
    file = CacheFile(path, which | contents, _OPTION)
    found = file.open()
    if isinstance(found, Content):
        say(f"store: {len(paths)} pictures read from {path}")
        return DiskStore(found, sizes)
    if found:
        rank_zero_warn(f"the pictures in {folder} are {found}: decoded anew")
    with file.making():
        found = file.open()
        if isinstance(found, str):  # nobody did it while this one waited
            size = 4 * int(num_pixels(sizes).sum())
            _refuse_full_disk(folder, size)
            file.write(size, _packed(paths, sizes, white_level, part))
            say(f"store: {len(paths)} pictures decoded into {path}")
            found = file.open()
    assert isinstance(found, Content)
    return DiskStore(found, sizes)


def _packed(
    paths: Sequence[Path], sizes: Int64[Tensor, "n 2"], white_level: White | None, part: TiffPart
) -> Iterator[memoryview]:
    """Yield the packed pixels of one picture after another, a few decoded ahead.

    Where pictures can't be decoded, the others are tried too, so that all are named at once.
    """

    def load(index: int) -> memoryview | BadInput:
        try:
            picture = decode_sized(paths[index], sizes[index], white_level, part)
            if isinstance(picture, LargePicture):
                height, width, _ = picture.shape
                raise BadInput.at(
                    str(paths[index]),
                    f"has {width} x {height} pixels, of which only parts are read, into memory",
                    "set data.store.place=pinned, or data.reading.max_pixels to their number",
                )
            packed = pack_levels(picture)
        except BadInput as problem:
            return problem
        return packed.data.cast("B")

    problems = []
    for _, packed in ahead(range(len(paths)), load, depth=2 * DECODERS, threads=DECODERS):
        if isinstance(packed, BadInput):
            problems.append(packed)
        elif not problems:
            yield packed
    if problems:
        raise BadInput.all_of(problems)


def _keys(
    paths: Sequence[Path], sizes: Int64[Tensor, "n 2"], white_level: White | None, part: TiffPart
) -> tuple[dict[str, str], dict[str, str]]:
    """Return which pictures these are, and what is in them, which is told as `make` tells it."""
    names, contents = hashlib.sha256(), hashlib.sha256()
    for path, size in zip(paths, sizes.tolist(), strict=True):
        names.update(os.fsencode(path.absolute()) + f" {size}\n".encode())
        try:
            stat = path.stat()
        except OSError as error:
            raise BadInput.unreadable(str(path), error) from error
        contents.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    which = {"pictures": names.hexdigest(), "packing": _PACKING}
    if white_level not in (None, FULL_SCALE):
        which["white level"] = str(white_level)
    if part.words():
        which["part"] = part.words()
    return which, {"contents": contents.hexdigest()}


def _refuse_full_disk(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        problem = f"{told(needed)} of pixels don't fit into the {told(free)} that are free"
        raise BadInput.at(str(folder), problem, f"make room, or name another with {_OPTION}")
