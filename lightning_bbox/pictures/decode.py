"""Decoding: any picture that Pillow reads becomes 8-bit RGB, upright, or is refused."""

import math
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ExifTags, Image
from torch import Tensor

from lightning_bbox.annotations.headers import (
    FAULTS,
    fault_words,
    is_deep,
    open_part,
    refuse_bomb,
    remedy_for,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPage, TiffPart
from lightning_bbox.geometry.codecs import FULL_SCALE, White

DECODERS = 8
"""How many pictures are decoded at once; Pillow does so outside the interpreter's lock."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each EXIF orientation asks for; TIFFs are turned by Pillow, which then says 1."""


def decode_image(
    path: str | PathLike[str],
    white_level: White | None = FULL_SCALE,
    part: TiffPart = TiffPart(),
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture to 8-bit RGB, upright.

    EXIF orientation is applied, grey pictures are repeated, alpha is dropped, and of an animation
    the first frame is taken. Of 16-bit colours the upper bytes are read.

    Args:
        path: The file.
        white_level: The value that is white in a grey picture of 16 bits, where 0 is black; or what
            is black and what is white in one of more than 8 bits, such as of floats. What is beyond
            is black or white too. None refuses such pictures.
        part: Which page and bands of a TIFF.

    Raises:
        BadInput: The file is missing, truncated, not a picture, or a decompression bomb.
    """
    with _opened(path, part) as image:
        refuse_bomb(image)
        return rgb_of(image, white_level)


def are_large(sizes: Int64[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
    """Tell of which pictures only what crops are cut from is decoded.

    Args:
        sizes: Height and width of each.

    Examples:
        >>> import torch
        >>> are_large(torch.tensor([[480, 640], [20_000, 20_000]]))
        tensor([False,  True])
    """
    return sizes.prod(dim=1) > (Image.MAX_IMAGE_PIXELS or math.inf)


class LargePicture:
    """A TIFF of more pixels than are decoded at once: parts of it are, when they are asked for.

    `picture[rows, columns]` is what it would be of the decoded picture, for two slices.

    Args:
        path: The file; open as long as this lives.
        white_level: As `decode_image` takes it.
        part: Which page and bands.

    Attributes:
        shape: As of the decoded picture.
        stamp: What tells the file from others, and from what it may be later.

    Raises:
        BadInput: The file isn't read in parts.
    """

    def __init__(
        self, path: str | PathLike[str], white_level: White | None, part: TiffPart
    ) -> None:
        self._path, self._white_level, self._lock = path, white_level, Lock()
        with _faults(path):
            file = Path(path).open("rb")  # noqa: SIM115 (closed with this)
            weakref.finalize(self, file.close)
            self._page = TiffPage(file, part)
            refuse_bomb(self._page, in_parts=True)
            if self._page.is_deep:
                _check_level(self._page, white_level)
            stat = Path(path).stat()
        self.shape = (self._page.height, self._page.width, 3)
        self.stamp = f"{Path(path).absolute()} {stat.st_size} {stat.st_mtime_ns} {part}"

    def too_large(self) -> BadInput:
        """Return what refuses to decode all of it."""
        height, width, _ = self.shape
        problem = f"has {width} x {height} pixels, more than are decoded at once"
        remedy = "cut it into tiles, or set data.reading.max_pixels to their number"
        return BadInput.at(str(self._path), problem, remedy)

    def __getitem__(self, place: tuple[slice, slice]) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a part, by the tiles or strips that it lies in."""
        with self._lock, _faults(self._path):  # of two threads one would move the other's place
            return _rgb_of_page(self._page, self._white_level, *place)


Decoded = UInt8[np.ndarray, "h w 3"] | LargePicture
"""A decoded picture, or one of which parts are decoded."""


def whole(picture: Decoded) -> UInt8[np.ndarray, "h w 3"]:
    """Return a decoded picture, and refuse a large one.

    Args:
        picture: The picture.

    Raises:
        BadInput: It is a large one.
    """
    if isinstance(picture, LargePicture):
        raise picture.too_large()
    return picture


def open_image(
    path: str | PathLike[str],
    white_level: White | None = FULL_SCALE,
    part: TiffPart = TiffPart(),
) -> Decoded:
    """Decode a picture as `decode_image` does, or open one that has too many pixels for it.

    Args:
        path: The file.
        white_level: As `decode_image` takes it.
        part: Likewise.

    Raises:
        BadInput: As `decode_image` says, of what isn't read in parts.
    """
    with _opened(path, part) as image:
        if not isinstance(image, TiffPage) or not image.is_large:
            refuse_bomb(image)
            return rgb_of(image, white_level)
    return LargePicture(path, white_level, part)


def rgb_of(image: Image.Image | TiffPage, white_level: White | None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture that is open, as `decode_image` does.

    Args:
        image: The picture.
        white_level: As `decode_image` takes it.

    Raises:
        BadInput: It has more than 8 bits, and the white level doesn't say what is black or white.
    """
    if isinstance(image, TiffPage):
        if image.is_deep:
            _check_level(image, white_level)
        return _rgb_of_page(image, white_level)
    if is_deep(image):
        _check_level(image, white_level)
    return to_rgb(upright(image), white_level)


def _rgb_of_page(
    page: TiffPage,
    white_level: White | None,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> UInt8[np.ndarray, "h w 3"]:
    values = page.read(rows, columns)
    if page.is_deep:
        assert white_level is not None
        values = _eight_bits(values, page.mode, white_level, whole=not page.is_large)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def decode_sized(
    path: str | PathLike[str],
    size: Int64[Tensor, "2"],
    white_level: White | None = FULL_SCALE,
    part: TiffPart = TiffPart(),
) -> Decoded:
    """Decode a picture whose size was read before, or open it, as `open_image` does.

    Args:
        path: The file.
        size: Height and width, as its header says.
        white_level: As `decode_image` takes it.
        part: Likewise.

    Raises:
        BadInput: The file can't be decoded, or its size isn't the stated one.
    """
    picture = open_image(path, white_level, part)
    if list(picture.shape[:2]) != size.tolist():
        msg = (
            f"{path}: decodes to {picture.shape[:2]} (height, width), but {tuple(size.tolist())} "
            f"was expected; its header is wrong"
        )
        raise BadInput(msg)
    return picture


class Found(NamedTuple):
    """What is white, or black and white, in pictures of more than 8 bits.

    Attributes:
        white: That.
        why: What in the pictures says so, in words.
    """

    white: White
    why: str


def find_levels(paths: Sequence[str | PathLike[str]], part: TiffPart = TiffPart()) -> Found:
    """Find what is white, or black and white, in pictures of more than 8 bits a band.

    In whole numbers of 16 bits, 0 is black, and white is the smallest 2^k - 1 that holds the
    largest of them, from 255 on: 4095 for a camera of 12 bits. In floats, and in whole numbers
    beyond 16 bits, black and white are such that of each picture no more than a thousandth of the
    finite values is darker than black, and no more than that brighter than white.

    Args:
        paths: The pictures.
        part: Which page and bands of TIFFs.

    Raises:
        BadInput: A picture can't be decoded, or there are floats in some and not in others.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        found = dict(zip(paths, pool.map(partial(_range_of, part=part), paths), strict=True))
    floats = {each.floats: path for path, each in found.items()}
    if len(floats) > 1:
        problem = f"there are floats in {floats[True]}, and none in {floats[False]}"
        remedy = "say what is black and white in all of them with data.white_level=[BLACK, WHITE]"
        msg = f"{problem}; {remedy}"
        raise BadInput(msg)
    least, largest = min(one.least for one in found.values()), max(o.most for o in found.values())
    if not floats.get(True) and least >= 0 and largest <= FULL_SCALE:
        return Found(
            _level_for(int(largest)), f"the largest value of {len(paths)} is {int(largest)}"
        )
    low, high = min(one.low for one in found.values()), max(one.high for one in found.values())
    if not low < high:
        problem = f"all values of {len(paths)} pictures, such as {paths[0]}, are {low:.6g}"
        msg = f"{problem}; say what is black and white with data.white_level=[BLACK, WHITE]"
        raise BadInput(msg)
    why = f"all but a thousandth at either end, of values from {least:.6g} to {largest:.6g}"
    return Found((low, high), f"{why} in {len(paths)}")


class _Range(NamedTuple):
    """The finite values of a picture: the extremes, and all but a thousandth at either end."""

    floats: bool
    least: float
    low: float
    high: float
    most: float


def _range_of(path: str | PathLike[str], part: TiffPart) -> _Range:
    with _opened(path, part) as image:
        floats = image.mode == "F"
        if not isinstance(image, TiffPage):
            refuse_bomb(image)
        values = image.overview() if isinstance(image, TiffPage) else np.asarray(image)
        if not image.mode.startswith(("I", "F")):
            values = values.astype(np.uint16) * 257  # of colours Pillow keeps the upper byte alone
        values = values[np.isfinite(values)] if floats else values.reshape(-1)
        if not values.size:
            msg = "none of its values is finite"
            raise ValueError(msg)
        at = [0, values.size // 1000, values.size - 1 - values.size // 1000, values.size - 1]
        return _Range(floats, *(float(each) for each in np.partition(values, at)[at]))


@contextmanager
def _opened(path: str | PathLike[str], part: TiffPart) -> Iterator[Image.Image | TiffPage]:
    """Open a picture, and say of whatever goes wrong with it which one it was."""
    # A file, not its path: what Pillow maps by its path it doesn't turn (grey TIFFs).
    with _faults(path), Path(path).open("rb") as file, open_part(file, part) as image:
        yield image


@contextmanager
def _faults(path: str | PathLike[str]) -> Iterator[None]:
    """Say of whatever goes wrong with a picture which one it was."""
    try:
        yield
    except FileNotFoundError as error:
        msg = f"{path}: no such picture; check the root folder and the annotations' file names"
        raise BadInput(msg) from error
    except FAULTS as error:
        problem = f"the picture can't be decoded ({fault_words(error, path)})"
        remedy = remedy_for(error, "replace or remove it")
        raise BadInput.at(str(path), problem, remedy) from error


def _check_level(image: Image.Image | TiffPage, white_level: White | None) -> None:
    """Refuse more than 8 bits a band that would not become 8 as they should."""
    if white_level is None:
        bits = (
            f"its mode {image.mode!r} has 32 bits a pixel"
            if image.mode == "F"
            else "it has 16 bits"
        )
        example = "[0.0, 1.0]" if image.mode == "F" else FULL_SCALE
        msg = (
            f"{bits} and the model was trained on pictures of 8, so nothing says which value is "
            f"white; give a white_level, such as {example}"
        )
        raise BadInput(msg)
    if image.mode.startswith(("I", "F")) or white_level in (FULL_SCALE, (0, FULL_SCALE)):
        return
    msg = (
        f"each of its colours has 16 bits, of which only the upper 8 can be read, but the white "
        f"level is {_shown(white_level)}; save it with 8 bits a colour, or set white_level to "
        f"{FULL_SCALE} if its colours use all 16"
    )
    raise BadInput(msg)


def _shown(white_level: White) -> str:
    return str(list(white_level) if isinstance(white_level, tuple) else white_level)


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as EXIF says; only its pixels, for other EXIF entries may be broken.

    Args:
        image: The picture.
    """
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def to_rgb(
    image: Image.Image, white_level: White | None = FULL_SCALE
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a Pillow image as 8-bit RGB: grey is repeated, alpha dropped.

    Args:
        image: The image.
        white_level: As `decode_image` takes it.

    Raises:
        BadInput: It has more than 8 bits and there is no white level, or it has floats or values
            beyond 16 bits and nothing says what is black.
    """
    if image.mode.startswith(("I", "F")):
        _check_level(image, white_level)
        assert white_level is not None
        return np.repeat(
            _eight_bits(np.asarray(image), image.mode, white_level)[..., None], 3, axis=2
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _eight_bits(
    values: np.ndarray, mode: str, white_level: White, whole: bool = True
) -> UInt8[np.ndarray, "..."]:
    """Scale grey values so that black becomes 0 and white 255, rounded down.

    What isn't finite becomes black, but for what is infinitely bright. A whole picture that is all
    black or white is warned of.
    """
    pair = isinstance(white_level, tuple)
    if not values.size:
        return values.astype(np.uint8)
    least, largest = (each.reduce(values, axis=None) for each in (np.fmin, np.fmax))  # but for NaN
    wide = mode == "F" or not 0 <= least <= largest <= FULL_SCALE
    if wide and not pair:
        ends = [f"{end:.6g}" if mode == "F" else str(end) for end in (least, largest)]
        problem = f"its mode {mode!r} has 32 bits a pixel, and values from {' to '.join(ends)}"
        said = f"or say what is black and white with white_level=[{', '.join(ends)}]"
        msg = f"{problem}; save it with 8 or 16, {said}"
        raise BadInput(msg)
    black, white = white_level if isinstance(white_level, tuple) else (0, white_level)
    if largest > white and not pair:
        # Without the picture's name, so that it is said once, not for each of them.
        rank_zero_warn(
            f"pictures of 16 bits have values above their white level {white}, and are white "
            f"there; training with data.white_level={_level_for(int(largest))} tells these values "
            f"apart"
        )
    if wide:
        eight = _scaled(values.astype(np.float64), black, white)
    else:  # a table of all values that there may be is quicker
        eight = _scaled(np.arange(FULL_SCALE + 1.0), black, white)[values.astype(np.uint16)]
    if whole and eight.min() == eight.max() and least < largest:
        rank_zero_warn(
            f"there are pictures of more than 8 bits that are all black or white, as "
            f"white_level={_shown(white_level)} has it: set other values"
        )
    return eight


def _scaled(values: np.ndarray, black: float, white: float) -> UInt8[np.ndarray, "..."]:
    within = np.nan_to_num(np.clip(values, black, white), nan=black)
    eight: UInt8[np.ndarray, "..."] = ((within - black) * 255 / (white - black)).astype(np.uint8)
    return eight


def _level_for(largest: int) -> int:
    return int(2 ** max(largest.bit_length(), 8) - 1)
