"""What the header of a picture says: its size once it is upright, or what is wrong."""

import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from tqdm.auto import tqdm

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.turns import SIDEWAYS
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

_AT_ONCE = 8
_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_PNG_TEXTS = (b"iTXt", b"zTXt", b"tEXt")
_PNG_TURNS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keys of those that may turn it
_TURN = ExifTags.Base.Orientation


class Header(NamedTuple):
    """What the header of a picture says.

    Attributes:
        height: Rows, once EXIF has turned it.
        width: Columns, likewise.
        is_deep: Whether it has 16 bits a band (see `is_deep`).
        left_out: What is there but not read, or nothing.
        turn: The EXIF orientation, where the annotations state the size before EXIF turned it.
    """

    height: int
    width: int
    is_deep: bool
    left_out: str
    turn: int = 1


def read_header(root: Path, path: str, picture: Picture) -> Header:
    """Read what a picture's header says, and compare its size with what the annotations state.

    Args:
        root: Folder of the data set.
        path: Path of the picture.
        picture: What the annotations say of it.

    Raises:
        BadInput: If the header can't be read, or the sizes differ.
    """
    try:
        with (root / path).open("rb") as file, open_picture(file) as image:
            refuse_bomb(image)
            width, height = image.size
            deep, left_out = is_deep(image), _left_out(image)
            turn = _orientation(image, root / path)
            if turn in SIDEWAYS:
                width, height = height, width
    except FAULTS as error:
        problem = f"{path} can't be read as a picture ({fault_words(error, root / path)})"
        raise BadInput.at(picture.place, problem, remedy_for(error, "replace it")) from error
    size = picture.size
    if size is None or 0 in size or size == (height, width):  # exporters write 0 if they don't know
        return Header(height, width, deep, left_out)
    if turn in SIDEWAYS and size == (width, height):
        return Header(height, width, deep, left_out, turn)
    turned = " once EXIF has turned it" if turn in SIDEWAYS else ""
    stated = f"states {size[1]:.10g} x {size[0]:.10g} pixels"
    problem = f"{stated}, but {path} has {width} x {height}{turned}"
    raise BadInput.at(picture.place, problem, "correct that size or replace the picture")


def read_headers(root: Path, found: Mapping[str, Picture]) -> dict[str, Header | BadInput]:
    """Read the headers of pictures, several at once.

    Args:
        root: Folder of the data set.
        found: What the annotations say of each picture, by its path.

    Returns:
        What each header says, or what is wrong with it, in the same order.
    """
    Image.init()  # not by several threads at once

    def read(path: str) -> Header | BadInput:
        try:
            return read_header(root, path, found[path])
        except BadInput as problem:
            return problem

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = tqdm(
            pool.map(read, found), "headers", len(found), leave=False, disable=None, delay=2
        )
        return dict(zip(found, headers, strict=True))


def open_picture(file: str | PathLike[str] | BinaryIO) -> Image.Image:
    """Open a picture by one of the decoders that data sets need.

    Pillow tries all it has otherwise, whatever a file's name, and for EPS it starts Ghostscript.
    """
    return Image.open(file, formats=_DECODERS)


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture just opened has 16 bits a band, and nothing says what white is."""
    if image.mode.startswith("I;16"):
        return True
    tiles: list[Any] = getattr(image, "tile", [])  # of strips there may be thousands, all alike
    # 16 bits of a BMP are three colours.
    return image.format in ("TIFF", "PNG") and bool(tiles) and ";16" in str(tiles[0][3])


def refuse_bomb(image: Image.Image) -> None:
    """Refuse a picture of more pixels than Pillow allows, where it only warns up to twice as many.

    Raises:
        Image.DecompressionBombError: If there are more.
    """
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most and pixels > most:
        msg = f"it has {pixels} pixels, and more than {most} may be a file that fills the memory"
        raise Image.DecompressionBombError(msg)


def fault_words(error: Exception, path: str | PathLike[str]) -> str:
    """Say what is wrong with a file that Pillow refuses, in Pillow's words or better ones."""
    if isinstance(error, UnidentifiedImageError):
        return _unknown(Path(path))
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return (getattr(error, "strerror", "") or str(error)).rstrip(".")


def remedy_for(error: Exception, otherwise: str) -> str:
    """Say what can be done about a file that Pillow refuses."""
    if not isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return otherwise
    return (
        "if so many pixels are meant, set data.reading.max_pixels (in Python also "
        "PIL.Image.MAX_IMAGE_PIXELS) to their number, or cut it into tiles"
    )


def _unknown(path: Path) -> str:
    """Say what a file is that no decoder takes: a TIFF of other bands, or no picture."""
    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
    except FAULTS:
        return "it is empty or of no known format"
    bands, bits = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1), tags.get(258, (1,))[0]
    return (
        f"a TIFF of {bands} bands of {bits} bits isn't read, but one of 1 band of 8 or 16 or of "
        f"3 bands of 8 is"
    )


def _left_out(image: Image.Image) -> str:
    """Say what is in a picture beside the first page's colours."""
    if image.format in ("TIFF", "GIF") and getattr(image, "is_animated", False):
        return "pages beyond the first"
    colours, bands = [band for band in image.getbands() if band != "A"], len(image.getbands())
    if image.format == "TIFF":
        bands = getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLESPERPIXEL, bands)
    return "bands beyond the colours, such as alpha" if bands > len(colours) else ""


def _orientation(image: Image.Image, path: Path) -> int | None:
    """Return the orientation that EXIF or XMP asks for, without decoding the picture."""
    if image.format == "TIFF":  # Pillow has turned its size already
        return None
    if image.format != "PNG":
        return image.getexif().get(_TURN)
    if _has_late_orientation(path):
        image.load()
    return Image.Image.getexif(image).get(_TURN)  # a PNG's own would decode any that has none


def _has_late_orientation(path: Path) -> bool:
    """Tell whether a PNG may hold an orientation behind its pixels, reading heads of chunks only.

    There exiftool writes it. Pillow has read what stands before the pixels.
    """
    behind_pixels = False
    with path.open("rb", buffering=0) as file:  # a buffer would read all of it
        file.seek(len(b"\x89PNG\r\n\x1a\n"))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            end = file.tell() + length + 4
            behind_pixels |= kind == b"IDAT"
            if behind_pixels and (kind == b"eXIf" or _may_hold_one(kind, file)):
                return True
            file.seek(end)
    return False


def _may_hold_one(kind: bytes, file: BinaryIO) -> bool:
    return kind in _PNG_TEXTS and file.read(32).startswith(_PNG_TURNS)
