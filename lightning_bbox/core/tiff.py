"""TIFFs that Pillow doesn't read, by tifffile: one page, and one band or three of it."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from itertools import product
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lightning_bbox.core.errors import BadInput

BIG_ENDIAN_BIG_TIFF = b"MM\0+"
"""What BigTIFFs begin with that Pillow 13 takes for another kind of file."""

_MARKS = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIG_TIFF)
_MOST_BYTES = 16  # of a tile or strip, for each pixel that a picture may have
_NO_LIMIT = 1 << 32
_KEPT_BYTES = 1 << 26  # of decoded tiles or strips, where parts are read that may share them
_PATCHES, _PATCH = 24, 16  # along each side of an overview, and their own side
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=3),
    7: lambda values: np.swapaxes(np.rot90(values, k=2), 0, 1),
    8: partial(np.rot90, k=1),
}
"""What each orientation asks for."""


@dataclass(frozen=True)
class TiffPart:
    """Which part of a TIFF is read; it travels in the checkpoint.

    Args:
        page: Which page, from 0.
        bands: The three bands that are shown as red, green and blue, or one as grey, from 0; by
            default the colours, or the only band.

    Raises:
        BadInput: There can't be such a page or band.

    Examples:
        >>> TiffPart(1, [3, 2, 1]).words()
        'page 1 and bands 3, 2, 1 of TIFFs are read, counted from 0'
    """

    page: int = 0
    bands: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if type(self.page) is not int or self.page < 0:
            msg = f"page is {self.page!r}; expected 0, for the first page of TIFFs, or more"
            raise BadInput(msg)
        if self.bands is None:
            return
        bands = tuple(self.bands)
        if len(bands) not in (1, 3) or any(type(band) is not int or band < 0 for band in bands):
            msg = f"bands are {list(bands)}; expected three, such as [3, 2, 1], or one, from 0 on"
            raise BadInput(msg)
        object.__setattr__(self, "bands", bands)

    def words(self) -> str:
        """Say what is read; nothing of what is read anyway."""
        if self == TiffPart():
            return ""
        word = "band" if len(self.bands or ()) == 1 else "bands"
        bands = f" and {word} {', '.join(map(str, self.bands))}" if self.bands else ""
        return f"page {self.page}{bands} of TIFFs {'are' if bands else 'is'} read, counted from 0"


def refuse_other_part(trained: TiffPart, part: TiffPart) -> None:
    """Refuse to go on with other pages or bands than a model was trained on.

    Args:
        trained: What it was trained on.
        part: What is read now.

    Raises:
        BadInput: They differ.

    Examples:
        >>> refuse_other_part(TiffPart(), TiffPart())
    """
    for name in ("page", "bands"):
        then, now = (
            list(each) if isinstance(each, tuple) else each
            for each in (getattr(trained, name), getattr(part, name))
        )
        if then != now:
            msg = (
                f"the model was trained with {name} {then} of TIFFs, and {now} is read now; set "
                f"data.reading.{name}={'null' if then is None else then}"
            )
            raise BadInput(msg)


class PartError(ValueError):
    """A part of a TIFF can't be read.

    Args:
        problem: Why, in words.
        remedy: What can be done.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def tiff_mark(file: BinaryIO) -> bytes:
    """Return the first four bytes of a TIFF, or none of another file, which stays at its beginning.

    Examples:
        >>> from io import BytesIO
        >>> tiff_mark(BytesIO(b"II*..")), tiff_mark(BytesIO(b"GIF89a"))
        (b'', b'')
    """
    mark = file.read(4)
    file.seek(0)
    return mark if mark in _MARKS else b""


@cache
def has_tifffile() -> bool:
    """Tell whether the extra `tiff` is installed."""
    return all(find_spec(name) for name in ("tifffile", "imagecodecs"))


class TiffPage:
    """A page of a TIFF whose header has been read, as Pillow's images are when just opened.

    Only the bands that are read are held, and one tile or strip at a time beside them; where parts
    of a large page are read, some tiles or strips are kept for the next part.

    Args:
        file: The file, at its beginning.
        part: Which page and bands.

    Attributes:
        width: Columns as they are stored.
        height: Rows, likewise.
        turn: The orientation.
        mode: What Pillow calls values of this kind: RGB, L, I;16, I or F, with one band or three.
        left_out: What is there but not read, or nothing.

    Raises:
        PartError: There is no such page or band, or tifffile isn't there.
        ValueError: The file is damaged, or its values are of another kind.
    """

    format = "TIFF"

    def __init__(self, file: BinaryIO, part: TiffPart) -> None:
        if not has_tifffile():
            msg = "bands of a TIFF, and BigTIFFs of this kind, aren't read without the extra `tiff`"
            raise PartError(msg, "pip install 'lightning_bbox[tiff]'")
        from tifffile import TiffFile, logger

        if not logger().handlers:  # else what is damaged would be printed; we say it in a sentence
            logger().addHandler(logging.NullHandler())
        tiff: Any = TiffFile(file, name="a TIFF")  # its types aren't installed everywhere
        self._page: Any = _page_of(tiff, part.page)
        page = self._page
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        if page.imagedepth != 1 or not self.width or not self.height:
            msg = f"it has {self.width} x {self.height} x {page.imagedepth} pixels"
            raise ValueError(msg)
        turn = page.tags.valueof(274, 1)
        self.turn = turn if turn in _TURNS else 1
        self.bands = _bands_of(page, part)
        self.mode = _mode_of(page, len(self.bands))
        other_pages = part.page > 0 or _has_page(tiff, 1)
        others = ["other pages"] if other_pages else []
        others += ["other bands"] if len(set(self.bands)) < page.samplesperpixel else []
        self.left_out = " and ".join(others)
        kept = _KEPT_BYTES // _chunk_bytes(page) if self.is_large else 0
        self._is_refused = True  # until it was looked at
        self._decoded = lru_cache(max(kept, int(self.is_large)))(partial(_decoded, page))

    @property
    def is_deep(self) -> bool:
        """Whether it has more than 8 bits a band."""
        return self.mode not in ("L", "RGB")

    @property
    def is_large(self) -> bool:
        """Whether it has more pixels than are decoded at once, so that parts of it are read."""
        return self.width * self.height > (Image.MAX_IMAGE_PIXELS or np.inf)

    def refuse_parts(self) -> None:
        """Refuse what no parts are decoded of: tiles that fill the memory, large pages on a side.

        Raises:
            PartError: It is that.
            ValueError: There are more or fewer tiles or strips than make the page, or it is
                truncated.
        """
        page = self._page
        most = (Image.MAX_IMAGE_PIXELS or _NO_LIMIT) * _MOST_BYTES
        if _chunk_bytes(page) > most and not _is_mapped(page):
            msg = f"a tile or strip of it has {page.chunks} values, more than memory is kept for"
            raise PartError(msg, "save it in tiles, or with fewer bands")
        if self.is_large and self.turn != 1:
            msg = f"it has {self.width * self.height} pixels, too many to be turned as it asks for"
            raise PartError(msg, "save it upright, or set data.reading.max_pixels to their number")
        expected = math.prod(self._grid) * (page.samplesperpixel if self._is_separate else 1)
        if {len(page.dataoffsets), len(page.databytecounts)} != {expected}:
            msg = f"it has {len(page.dataoffsets)} tiles or strips where there should be others"
            raise ValueError(msg)
        places = zip(page.dataoffsets, page.databytecounts, strict=True)
        if max(start + length for start, length in places) > page.parent.filehandle.size:
            msg = "it is truncated: some of its pixels lie behind its end"
            raise ValueError(msg)
        self._is_refused = False

    @property
    def _is_separate(self) -> bool:
        """Whether each band lies by itself."""
        return bool(self._page.planarconfig == _SEPARATE)

    @property
    def _grid(self) -> tuple[int, int]:
        """How many tiles or strips there are, down and across."""
        high, wide = _chunk_sides(self._page)
        return -(-self.height // high), -(-self.width // wide)

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Decode the bands to (h, w), or (h, w, 3), upright.

        Args:
            rows: Which of the rows, as they are stored; no tile or strip of others is decoded.
            columns: Which of the columns.

        Raises:
            PartError: As `refuse_parts` says.
            ValueError, RuntimeError: The file is damaged.
        """
        if self._is_refused:
            self.refuse_parts()
        page, (high, wide), (down, across) = self._page, _chunk_sides(self._page), self._grid
        is_separate = self._is_separate
        top, bottom, _ = rows.indices(self.height)
        left, right, _ = columns.indices(self.width)
        values = np.zeros((bottom - top, right - left, len(self.bands)), page.dtype)
        for plane, row, column in product(
            sorted(set(self.bands)) if is_separate else [0],
            range(top // high, -(-bottom // high)),
            range(left // wide, -(-right // wide)),
        ):
            pixels = self._decoded((plane * down + row) * across + column)
            if pixels is None:  # GDAL leaves out tiles that are zero
                continue
            y, x = row * high, column * wide
            first, last = (max(y, top), max(x, left)), (min(y + high, bottom), min(x + wide, right))
            read = pixels[first[0] - y : last[0] - y, first[1] - x : last[1] - x]
            into = values[first[0] - top : last[0] - top, first[1] - left : last[1] - left]
            for at, band in enumerate(self.bands):
                if not is_separate:
                    into[..., at] = read[..., band]
                elif band == plane:
                    into[..., at] = read[..., 0]
        if page.photometric == _WHITE_IS_ZERO:
            values = values.dtype.type(2**page.bitspersample - 1) - values
        turned = _TURNS[self.turn](values) if self.turn != 1 else values
        return turned[..., 0] if len(self.bands) == 1 else turned

    def overview(self) -> np.ndarray:
        """Decode all of it, or of a large page small squares that are evenly spread over it."""
        if not self.is_large:
            return self.read()
        tops, lefts = (
            np.linspace(0, max(0, side - _PATCH), _PATCHES).astype(int).tolist()
            for side in (self.height, self.width)
        )
        rows = [
            np.hstack(
                [self.read(*(slice(at, at + _PATCH) for at in (top, left))) for left in lefts]
            )
            for top in tops
        ]
        return np.vstack(rows)


_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations
_YCBCR = 6  # which tifffile decodes to RGB where it is compressed as JPEG:
_JPEGS = (6, 7, 34892, 33007)
_SEPARATE = 2  # each band lies by itself


def _chunk_sides(page: Any) -> tuple[int, int]:  # noqa: ANN401 - tifffile's types
    """Return rows and columns of the tiles or strips."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _chunk_bytes(page: Any) -> int:  # noqa: ANN401 - tifffile's types
    bands = 1 if page.planarconfig == _SEPARATE else int(page.samplesperpixel)
    return math.prod(_chunk_sides(page)) * bands * int(page.dtype.itemsize)


def _is_mapped(page: Any) -> bool:  # noqa: ANN401 - tifffile's types
    """Tell whether tiles or strips are in the file as they are in memory."""
    return bool(page.is_final and page.parent.filehandle.is_file)


def _decoded(page: Any, number: int) -> np.ndarray | None:  # noqa: ANN401 - tifffile's types
    """Decode a tile or strip to (rows, columns, bands); None where nothing is stored of it."""
    start, length = page.dataoffsets[number], page.databytecounts[number]
    file = page.parent.filehandle
    if _is_mapped(page):
        high, wide = _chunk_sides(page)
        across, down = -(-page.imagewidth // wide), -(-page.imagelength // high)
        rows = (
            high if page.is_tiled else min(high, page.imagelength - number // across % down * high)
        )
        bands = 1 if page.planarconfig == _SEPARATE else page.samplesperpixel
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        shape = (rows, wide, bands)
        if length < math.prod(shape) * dtype.itemsize:
            msg = "a tile or strip of it is shorter than its pixels"
            raise ValueError(msg)
        mapped: np.ndarray = file.memmap_array(dtype, shape, start)
        return mapped
    options = {"_fullsize": page.is_tiled}
    if page.compression in _JPEGS:
        options |= {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    file.seek(start)
    content = file.read(length) if start and length else None
    decoded: np.ndarray | None = page.decode(content, number, **options)[0]
    return None if decoded is None else decoded[0]


def _page_of(tiff: Any, number: int) -> Any:  # noqa: ANN401 - tifffile's types
    if _has_page(tiff, number):
        return tiff.pages[number].aspage()
    count = len(tiff.pages)
    raise no_such_page(count, number)


def no_such_page(count: int, number: int) -> PartError:
    """Return the error that says that a TIFF has fewer pages.

    Args:
        count: How many it has.
        number: The page that was asked for, from 0.
    """
    have = f"it has {count} {'page' if count == 1 else 'pages'}"
    return PartError(f"{have}, and no page {number}, from 0", "correct data.reading.page")


def _has_page(tiff: Any, number: int) -> bool:  # noqa: ANN401 - tifffile's types
    try:
        tiff.pages[number]
    except IndexError:
        return False
    return True


def _bands_of(page: Any, part: TiffPart) -> tuple[int, ...]:  # noqa: ANN401 - tifffile's types
    count, kind = int(page.samplesperpixel), page.photometric
    if part.bands:
        if max(part.bands) >= count:
            bands = f"it has {count} {'band' if count == 1 else 'bands'}"
            problem = f"{bands}, and no band {max(part.bands)}, from 0"
            raise PartError(problem, "correct data.reading.bands")
        return tuple(part.bands)
    if count == 1:
        return (0,)
    if kind in (_RGB, _YCBCR) and count - len(page.extrasamples) == 3:
        return (0, 1, 2)
    bits = page.bitspersample
    problem = f"a TIFF of {count} bands of {bits} bits isn't read without saying which"
    raise PartError(problem, "choose three, or one, such as data.reading.bands=[0]")


def _mode_of(page: Any, bands: int) -> str:  # noqa: ANN401 - tifffile's types
    dtype, kind = page.dtype, page.photometric
    becomes_rgb = kind == _YCBCR and page.compression in _JPEGS and not page.extrasamples
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and not becomes_rgb:
        msg = f"its colours are stored as {getattr(kind, 'name', kind)}, of which no bands are read"
        raise PartError(msg, "save it as RGB or grey")
    if dtype is None or dtype.kind not in "uif" or page.bitspersample < 8:
        msg = f"values of {page.bitspersample} bits of this kind aren't read"
        raise PartError(msg, "save it with 8 or 16 bits a band")
    if kind == _WHITE_IS_ZERO and dtype.kind != "u":
        msg = f"its white is zero, in values of kind {dtype}"
        raise PartError(msg, "save it with black as zero")
    if dtype == np.uint8:
        return "L" if bands == 1 else "RGB"
    if dtype.kind == "f":
        return "F"
    return "I;16" if dtype == np.uint16 else "I"
