"""Decoding: any picture that Pillow reads becomes 8-bit RGB, upright, or is refused."""

from os import PathLike

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from lightning_bbox.annotations.headers import FAULTS, fault_words, refuse_bomb
from lightning_bbox.core.errors import BadInput

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


def decode_image(path: str | PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture to 8-bit RGB, upright.

    EXIF orientation is applied, 16-bit pictures are divided by 257, grey ones repeated, alpha
    dropped, and of an animation the first frame is taken.

    Raises:
        BadInput: The file is missing, truncated, not a picture, or a decompression bomb.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(_upright(image))
    except FileNotFoundError as error:
        msg = f"{path}: no such picture; check the root folder and the annotations' file names"
        raise BadInput(msg) from error
    except FAULTS as error:
        msg = f"{path}: the picture can't be decoded ({fault_words(error)}); replace or remove it"
        raise BadInput(msg) from error


def decode_sized(path: str | PathLike[str], size: Int64[Tensor, "2"]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture whose size was read before.

    Args:
        path: The file.
        size: Height and width, as its header says.

    Raises:
        BadInput: The file can't be decoded, or its size isn't the stated one.
    """
    picture = decode_image(path)
    if list(picture.shape[:2]) != size.tolist():
        msg = (
            f"{path}: decodes to {picture.shape[:2]} (height, width), but {tuple(size.tolist())} "
            f"was expected; its header is wrong"
        )
        raise BadInput(msg)
    return picture


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as EXIF says; only its pixels, for other EXIF entries may be broken."""
    refuse_bomb(image)
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return a Pillow image as 8-bit RGB.

    Pictures of 16 bits are divided by 257, grey ones repeated, alpha dropped.

    Raises:
        BadInput: It has 32 bits a pixel, whose range nobody knows.
    """
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image, dtype=np.uint32) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        msg = f"its mode {image.mode!r} has 32 bits a pixel; save it with 8 or 16"
        raise BadInput(msg)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
