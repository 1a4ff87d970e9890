"""What the header of a picture says: its size once it is upright, or what is wrong."""

import struct
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.core.errors import BadInput

FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    MemoryError,  # a chunk of a broken PNG may claim gigabytes
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises, for one broken file or another."""

_PNG_TEXTS = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # the chunks that may hold an orientation
_TURN = ExifTags.Base.Orientation
_SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations that exchange width and height


def checked_size(root: Path, path: str, picture: Picture) -> tuple[int, int]:
    """Read a picture's height and width, and compare them with what the annotations state.

    Args:
        root: Folder of the data set.
        path: Path of the picture.
        picture: What the annotations say of it.

    Raises:
        BadInput: If the header can't be read, or the sizes differ.
    """
    try:
        with (root / path).open("rb") as file, Image.open(file) as image:
            refuse_bomb(image)
            width, height, turned = *image.size, ""
            if _may_be_turned(image, root / path) and image.getexif().get(_TURN) in _SIDEWAYS:
                width, height, turned = height, width, " once EXIF has turned it"
    except FAULTS as error:
        problem = f"{path} can't be read as a picture ({fault_words(error)})"
        raise BadInput.at(picture.place, problem, "replace it") from error
    if picture.size is not None and picture.size != (height, width):
        stated = f"states {picture.size[1]:.10g} x {picture.size[0]:.10g} pixels"
        problem = f"{stated}, but {path} has {width} x {height}{turned}"
        raise BadInput.at(picture.place, problem, "correct that size or replace the picture")
    return height, width


def refuse_bomb(image: Image.Image) -> None:
    """Refuse a picture of more pixels than Pillow allows, where it only warns up to twice as many.

    Raises:
        ValueError: If there are more.
    """
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most and pixels > most:
        msg = f"{pixels} pixels, more than the {most} allowed"
        raise ValueError(msg)


def fault_words(error: Exception) -> str:
    """Say what is wrong with a file that Pillow refuses, in Pillow's words or better ones."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty or of no known format"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return (getattr(error, "strerror", "") or str(error)).rstrip(".")


def _may_be_turned(image: Image.Image, path: Path) -> bool:
    """Tell whether EXIF may yet turn the size: Pillow has turned a TIFF's, few PNGs have any."""
    if image.format == "PNG":  # asking for EXIF would decode all of it
        content = path.read_bytes()
        return any(text in content for text in _PNG_TEXTS)
    return image.format != "TIFF"
