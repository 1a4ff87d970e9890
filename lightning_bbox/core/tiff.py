"""TIFFs that Pillow doesn't read, by tifffile: one page, and one band or three of it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lightning_bbox.core.errors import BadInput

BIG_ENDIAN_BIG_TIFF = b"MM\0+"
"""What BigTIFFs begin with that Pillow 13 takes for another kind of file."""

_MARKS = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIG_TIFF)
_MOST_BYTES = 16  # of a tile or strip, for each pixel that a picture may have
_NO_LIMIT = 1 << 32
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

    Only the bands that are read are held, and one tile or strip at a time beside them.

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

    @property
    def is_deep(self) -> bool:
        """Whether it has more than 8 bits a band."""
        return self.mode not in ("L", "RGB")

    def read(self) -> np.ndarray:
        """Decode the bands to (h, w), or (h, w, 3), upright.

        Raises:
            ValueError, RuntimeError: The file is damaged.
        """
        page, most = self._page, Image.MAX_IMAGE_PIXELS or _NO_LIMIT
        end = page.parent.filehandle.size
        places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if len({len(page.dataoffsets), len(page.databytecounts), int(np.prod(page.chunked))}) > 1:
            msg = f"it has {len(places)} tiles or strips where there should be others"
            raise ValueError(msg)
        if any(start + length > end for start, length in places):
            msg = "it is truncated: some of its pixels lie behind its end"
            raise ValueError(msg)
        if int(np.prod([float(n) for n in page.chunks])) * page.dtype.itemsize > most * _MOST_BYTES:
            msg = f"a tile or strip of it has {page.chunks} values, more than memory is kept for"
            raise PartError(msg, "save it in tiles, or with fewer bands")
        values = np.zeros((self.height, self.width, len(self.bands)), page.dtype)
        for decoded, (separate, _, top, left, _), shape in page.segments(maxworkers=1):
            if decoded is None:  # GDAL leaves out tiles that are zero
                continue
            rows, columns = (
                min(shape[axis], size - start)
                for axis, size, start in ((1, self.height, top), (2, self.width, left))
            )
            place = np.s_[top : top + rows, left : left + columns]
            pixels = decoded[0, :rows, :columns]
            for at, band in enumerate(self.bands):
                if page.planarconfig != _SEPARATE:
                    values[place][..., at] = pixels[..., band]
                elif band == separate:
                    values[place][..., at] = pixels[..., 0]
        if page.photometric == _WHITE_IS_ZERO:
            values = values.dtype.type(2**page.bitspersample - 1) - values
        turned = _TURNS[self.turn](values) if self.turn != 1 else values
        return turned[..., 0] if len(self.bands) == 1 else turned


_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations
_SEPARATE = 2  # each band lies by itself


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
    if kind == _RGB and count - len(page.extrasamples) == 3:
        return (0, 1, 2)
    bits = page.bitspersample
    problem = f"a TIFF of {count} bands of {bits} bits isn't read without saying which"
    raise PartError(problem, "choose three, or one, such as data.reading.bands=[0]")


def _mode_of(page: Any, bands: int) -> str:  # noqa: ANN401 - tifffile's types
    dtype, kind = page.dtype, page.photometric
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
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
