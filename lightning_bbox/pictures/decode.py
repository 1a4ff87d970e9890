"""Decoding: any picture that Pillow reads becomes 8-bit RGB, upright, or is refused."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8, UInt16
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ExifTags, Image
from torch import Tensor

from lightning_bbox.annotations.headers import (
    FAULTS,
    fault_words,
    is_deep,
    open_picture,
    refuse_bomb,
    remedy_for,
)
from lightning_bbox.core.errors import BadInput

FULL_SCALE = 65_535
"""White in a picture that uses all of its 16 bits."""
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
    path: str | PathLike[str], white_level: int | None = FULL_SCALE
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture to 8-bit RGB, upright.

    EXIF orientation is applied, grey pictures are repeated, alpha is dropped, and of an animation
    the first frame is taken. Of 16-bit colours the upper bytes are read.

    Args:
        path: The file.
        white_level: The value that is white in a grey picture of 16 bits; higher ones are white
            too. None refuses pictures of 16 bits.

    Raises:
        BadInput: The file is missing, truncated, not a picture, or a decompression bomb.
    """
    with _opened(path) as image:
        if is_deep(image):
            _check_level(image, white_level)
        return to_rgb(upright(image), white_level)


def decode_sized(
    path: str | PathLike[str], size: Int64[Tensor, "2"], white_level: int | None = FULL_SCALE
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture whose size was read before.

    Args:
        path: The file.
        size: Height and width, as its header says.
        white_level: As `decode_image` takes it.

    Raises:
        BadInput: The file can't be decoded, or its size isn't the stated one.
    """
    picture = decode_image(path, white_level)
    if list(picture.shape[:2]) != size.tolist():
        msg = (
            f"{path}: decodes to {picture.shape[:2]} (height, width), but {tuple(size.tolist())} "
            f"was expected; its header is wrong"
        )
        raise BadInput(msg)
    return picture


def find_white_level(paths: Sequence[str | PathLike[str]]) -> tuple[int, int]:
    """Find the value that is white in pictures of 16 bits, such as 4095 for a camera of 12 bits.

    Args:
        paths: The pictures, all of 16 bits a band.

    Returns:
        The smallest 2^k - 1 that holds their largest value, from 255 on, and that value.

    Raises:
        BadInput: A picture can't be decoded.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        largest = max(pool.map(_largest_value, paths))
    return _level_for(largest), largest


def _level_for(largest: int) -> int:
    return int(2 ** max(largest.bit_length(), 8) - 1)


def _largest_value(path: str | PathLike[str]) -> int:
    with _opened(path) as image:
        if image.mode.startswith("I"):
            return int(_sixteen_bits(image).max())
        return int(np.asarray(image).max()) * 257  # of colours Pillow keeps the upper byte alone


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Open a picture, and say of whatever goes wrong with it which one it was."""
    try:
        # A file, not its path: what Pillow maps by its path it doesn't turn (grey TIFFs).
        with Path(path).open("rb") as file, open_picture(file) as image:
            refuse_bomb(image)
            yield image
    except FileNotFoundError as error:
        msg = f"{path}: no such picture; check the root folder and the annotations' file names"
        raise BadInput(msg) from error
    except FAULTS as error:
        problem = f"the picture can't be decoded ({fault_words(error, path)})"
        remedy = remedy_for(error, "replace or remove it")
        raise BadInput.at(str(path), problem, remedy) from error


def _check_level(image: Image.Image, white_level: int | None) -> None:
    """Refuse 16 bits a band that would not become 8 as they should."""
    if white_level is None:
        msg = (
            "it has 16 bits and the model was trained on pictures of 8, so nothing says which "
            f"value is white; give a white_level, such as {FULL_SCALE}"
        )
        raise BadInput(msg)
    if not image.mode.startswith("I") and white_level != FULL_SCALE:
        msg = (
            f"each of its colours has 16 bits, of which only the upper 8 can be read, but the "
            f"white level is {white_level}; save it with 8 bits a colour, or set white_level to "
            f"{FULL_SCALE} if its colours use all 16"
        )
        raise BadInput(msg)


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as EXIF says; only its pixels, for other EXIF entries may be broken.

    Args:
        image: The picture.
    """
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, white_level: int | None = FULL_SCALE) -> UInt8[np.ndarray, "h w 3"]:
    """Return a Pillow image as 8-bit RGB: grey is repeated, alpha dropped.

    Args:
        image: The image.
        white_level: As `decode_image` takes it.

    Raises:
        BadInput: It has 16 bits and there is no white level, or 32 bits a pixel and uses more than
            16 of them.
    """
    if image.mode.startswith("I"):
        _check_level(image, white_level)
        values = _sixteen_bits(image)
        return np.repeat(_eight_bits(values, white_level or 0)[..., None], 3, axis=2)
    if image.mode == "F":
        msg = f"its mode {image.mode!r} has 32 bits a pixel; save it with 8 or 16"
        raise BadInput(msg)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _sixteen_bits(image: Image.Image) -> UInt16[np.ndarray, "h w"]:
    """Return the grey values of a picture of 16 bits, or of one of 32 that uses no more."""
    values = np.asarray(image)
    if image.mode == "I" and values.size and not 0 <= values.min() <= values.max() <= FULL_SCALE:
        problem = f"its mode 'I' has 32 bits a pixel, and values from {values.min()} to"
        msg = f"{problem} {values.max()}; save it with 8 or 16"
        raise BadInput(msg)
    return values.astype(np.uint16)


def _eight_bits(values: UInt16[np.ndarray, "h w"], white_level: int) -> UInt8[np.ndarray, "h w"]:
    """Scale grey values so that the white level becomes 255, rounded down."""
    if (largest := int(values.max())) > white_level:
        # Without the picture's name, so that it is said once, not for each of them.
        rank_zero_warn(
            f"pictures of 16 bits have values above their white level {white_level}, and are white "
            f"there; training with data.white_level={_level_for(largest)} tells these values apart"
        )
    levels = np.minimum(np.arange(FULL_SCALE + 1), white_level) * 255 // white_level
    eight: UInt8[np.ndarray, "h w"] = levels.astype(np.uint8)[values]
    return eight
