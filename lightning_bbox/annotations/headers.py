"""What the header of a picture says: its size once it is upright, or what is wrong."""

import json
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import PIL
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from tqdm.auto import tqdm

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.turns import SIDEWAYS
from lightning_bbox.core.cache_file import CacheFile, usual_folder
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder
from lightning_bbox.core.tiff import (
    BIG_ENDIAN_BIG_TIFF,
    PartError,
    TiffPage,
    TiffPart,
    has_tifffile,
    no_such_page,
    tiff_mark,
)

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

Exif = Literal["auto", "apply", "ignore"]
"""What boxes are drawn on: pictures as EXIF turns them, or as they are stored."""

_AT_ONCE = 8
_PIECE = 64  # headers that a thread reads before it takes others
_MANY = 2_000  # headers that are kept for the next time: reading them takes a second
_DECODERS = (
    "AVIF", "BMP", "DDS", "DIB", "FITS", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TIFF", "WEBP", "XBM", "TGA",
)  # fmt: skip
_PNG_TEXTS = (b"iTXt", b"zTXt", b"tEXt")
_PNG_TURNS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keys of those that may turn it
_TURN = ExifTags.Base.Orientation


class Unread(NamedTuple):
    """Why a picture's header can't be read.

    Attributes:
        why: What is wrong, in words.
        remedy: What can be done.
    """

    why: str
    remedy: str


class Facts(NamedTuple):
    """What the header of a picture says, whatever annotations say of it.

    Attributes:
        width: Columns as they are stored.
        height: Rows, likewise.
        turn: The EXIF orientation.
        kind: What Pillow calls its format, such as JPEG.
        mode: What Pillow calls its mode, such as RGB.
        is_deep: Whether it has more than 8 bits a band (see `is_deep`).
        left_out: What is there but not read, or nothing.
    """

    width: int
    height: int
    turn: int
    kind: str
    mode: str
    is_deep: bool
    left_out: str

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once EXIF has turned it."""
        stored = (self.height, self.width)
        return (self.width, self.height) if self.turn in SIDEWAYS else stored


class Header(NamedTuple):
    """What the header of a picture says, in view of its annotations.

    Attributes:
        height: Rows, once EXIF has turned it.
        width: Columns, likewise.
        is_deep: Whether it has more than 8 bits a band (see `is_deep`).
        left_out: What is there but not read, or nothing.
        turn: The EXIF orientation, where its boxes are drawn before EXIF turned it; else 1.
        exif: The EXIF orientation.
        doubted: Whether only other pictures, or the user, can tell what its boxes are drawn on.
    """

    height: int
    width: int
    is_deep: bool
    left_out: str
    turn: int = 1
    exif: int = 1
    doubted: bool = False


def read_headers(
    root: Path,
    found: Mapping[str, Picture],
    exif: Exif = "auto",
    part: TiffPart = TiffPart(),
) -> dict[str, Header | BadInput]:
    """Read the headers of pictures, several at once, and tell what their boxes are drawn on.

    Where the size that is stated is the one before EXIF turned a picture, that is what its boxes
    are drawn on. Where no size can tell, as for a square, it is what those of the others are.

    Args:
        root: Folder of the data set.
        found: What the annotations say of each picture, by its path.
        exif: What boxes are drawn on: `apply` says on pictures as EXIF turns them, `ignore` on
            pictures as they are stored.
        part: Which page and bands of TIFFs are read.

    Returns:
        What each header says, or what is wrong with it, in the same order.
    """
    headers: dict[str, Header | BadInput] = {}
    for path, facts in read_facts(root, list(found), part).items():
        try:
            headers[path] = _header(facts, path, found[path], exif)
        except BadInput as problem:
            headers[path] = problem
    told = [h for h in headers.values() if isinstance(h, Header) and h.exif != 1 and not h.doubted]
    if exif == "auto" and told and all(header.turn != 1 for header in told):
        for path, header in headers.items():
            if isinstance(header, Header) and header.doubted:
                headers[path] = header._replace(turn=header.exif)
    return headers


def read_header(root: Path, path: str, picture: Picture, exif: Exif = "auto") -> Header:
    """Read what a picture's header says, and compare its size with what the annotations state.

    Args:
        root: Folder of the data set.
        path: Path of the picture.
        picture: What the annotations say of it.
        exif: As `read_headers` takes it.

    Raises:
        BadInput: If the header can't be read, or the sizes differ.
    """
    return _header(_facts(root, path, TiffPart()), path, picture, exif)


def read_facts(
    root: Path, paths: Sequence[str], part: TiffPart = TiffPart()
) -> dict[str, Facts | Unread]:
    """Read what the headers of pictures say, several at once.

    Those of many pictures are kept in the user's cache folder, and read anew where a picture's
    size in bytes or time of change differs.

    Args:
        root: Folder of the data set.
        paths: Paths of the pictures.
        part: Which page and bands of TIFFs are read.

    Returns:
        What each header says, or why it can't be read, in the same order.
    """
    _decoders()  # made ready before there are several threads
    cache = _cache(root, part) if len(paths) >= _MANY else None
    known = _known(cache) if cache else {}
    read: dict[str, tuple[list[int], Facts | Unread]] = {}

    def read_some(some: Sequence[str]) -> list[tuple[list[int], Facts | Unread]]:
        return [_facts_or_known(root, path, part, known.get(path)) for path in some]

    pieces = [paths[start : start + _PIECE] for start in range(0, len(paths), _PIECE)]
    with ThreadPoolExecutor(_AT_ONCE) as pool, _bar(len(paths)) as bar:
        for piece, found in zip(pieces, pool.map(read_some, pieces), strict=True):
            read |= zip(piece, found, strict=True)
            bar.update(len(piece))
    facts = {path: found for path, (_, found) in read.items()}
    if cache and any(known.get(path, (0, 0))[0] != stamp for path, (stamp, _) in read.items()):
        whole = {path: each for path, each in read.items() if isinstance(each[1], Facts)}
        content = json.dumps(whole).encode()
        try:
            make_folder(cache.path.parent)
            with cache.making():
                cache.write(len(content), [content])
        except BadInput as problem:
            warnings.warn(f"headers are read anew the next time: {problem}", stacklevel=2)
    return facts


def _bar(total: int) -> "tqdm[None]":
    return tqdm(desc="headers", total=total, leave=False, disable=None, delay=2)


def _cache(root: Path, part: TiffPart) -> CacheFile:
    key = {"headers": "2", "Pillow": PIL.__version__}
    if part.words():
        key["part"] = part.words()
    return CacheFile(usual_folder(root) / "headers.json", key, "XDG_CACHE_HOME")


def _known(cache: CacheFile) -> dict[str, tuple[list[int], list[Any]]]:
    found = cache.open()
    if isinstance(found, str):
        return {}
    with found.file as file:
        known: dict[str, tuple[list[int], list[Any]]] = json.load(file)
        return known


def _facts_or_known(
    root: Path, path: str, part: TiffPart, known: tuple[list[int], list[Any]] | None
) -> tuple[list[int], Facts | Unread]:
    """Return what was read before of a file that hasn't changed since, or else read it."""
    try:
        stat = (root / path).stat()
    except OSError:
        return [], _facts(root, path, part)
    stamp, most = [stat.st_size, stat.st_mtime_ns], Image.MAX_IMAGE_PIXELS
    if known and known[0] == stamp:
        facts = Facts(*known[1])
        if not most or facts.width * facts.height <= most:
            return stamp, facts
    return stamp, _facts(root, path, part)


def _facts(root: Path, path: str, part: TiffPart) -> Facts | Unread:
    try:
        with (root / path).open("rb") as file, open_part(file, part) as image:
            refuse_bomb(image, in_parts=True)
            if isinstance(image, TiffPage):
                size, deep, others = (image.width, image.height), image.is_deep, image.left_out
                return Facts(*size, image.turn, image.format, image.mode, deep, others)
            width, height = image.size
            turn = _orientation(image, root / path)
            if image.format == "TIFF" and turn in SIDEWAYS:  # Pillow has turned its size already
                width, height = height, width
            kind, deep, left_out = str(image.format), is_deep(image), _left_out(image, part)
            return Facts(width, height, turn, kind, image.mode, deep, left_out)
    except FAULTS as error:
        return Unread(fault_words(error, root / path), remedy_for(error, "replace it"))


def _header(facts: Facts | Unread, path: str, picture: Picture, exif: Exif) -> Header:
    if isinstance(facts, Unread):
        problem = f"{path} can't be read as a picture ({facts.why})"
        raise BadInput.at(picture.place, problem, facts.remedy)
    upright, stored = facts.upright, (facts.height, facts.width)
    header = Header(*upright, facts.is_deep, facts.left_out, exif=facts.turn)
    size = picture.size
    known = size is not None and 0 not in size  # exporters write 0 if they don't know
    if known and size not in (upright, stored):
        return _refuse_size(facts, path, picture)
    if exif == "ignore":
        return header._replace(turn=facts.turn)
    if exif == "apply" or facts.turn == 1:
        return header
    if not known or upright == stored:
        return header._replace(doubted=True)
    return header._replace(turn=facts.turn) if size == stored else header


def _refuse_size(facts: Facts, path: str, picture: Picture) -> NoReturn:
    assert picture.size is not None
    height, width = facts.upright
    turned = " once EXIF has turned it" if facts.turn in SIDEWAYS else ""
    stated = f"states {picture.size[1]:.10g} x {picture.size[0]:.10g} pixels"
    problem = f"{stated}, but {path} has {width} x {height}{turned}"
    raise BadInput.at(picture.place, problem, "correct that size or replace the picture")


def open_picture(file: str | PathLike[str] | BinaryIO) -> Image.Image:
    """Open a picture by one of the decoders that data sets need.

    Pillow tries all it has otherwise, whatever a file's name, and for EPS it starts Ghostscript.
    """
    return Image.open(file, formats=_decoders())


@contextmanager
def open_part(file: BinaryIO, part: TiffPart = TiffPart()) -> Iterator[Image.Image | TiffPage]:
    """Open a picture as `open_picture` does, and of a TIFF the page and bands that are chosen.

    What Pillow doesn't read of a TIFF, tifffile does, and TIFFs of more pixels than Pillow allows.

    Args:
        file: The file, at its beginning.
        part: Which page and bands of a TIFF.

    Raises:
        PartError: There is no such page or band.
    """
    mark = tiff_mark(file)
    unknown = mark == BIG_ENDIAN_BIG_TIFF or (mark and part.bands)
    image = None if unknown else _by_pillow(file, bool(mark), part.page)
    if image is not None:
        with image:
            yield image
        return
    file.seek(0)
    yield TiffPage(file, part)


def _by_pillow(file: BinaryIO, tiff: bool, page: int) -> Image.Image | None:
    """Open a picture, or return None if it is a TIFF that only tifffile knows to read."""
    if not tiff:
        return open_picture(file)
    try:
        image = open_picture(file)
        pages = getattr(image, "n_frames", 1) if page else 1
        if page < pages:
            image.seek(page)
            refuse_bomb(image)
    except (UnidentifiedImageError, LookupError, SyntaxError, Image.DecompressionBombError):
        if not has_tifffile():
            raise
        return None
    if page >= pages:
        raise no_such_page(pages, page)
    return image


@cache
def _decoders() -> list[str]:
    """List the decoders that this Pillow was built with; TGA, which has no mark, is the last."""
    Image.init()
    return [name for name in _DECODERS if name in Image.OPEN]


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture just opened has 16 or 32 bits a band: nothing says what white is."""
    if image.mode.startswith(("I", "F")):  # as "I", of 32 bits, Pillow reads PGMs of 16 too
        return True
    tiles: list[Any] = getattr(image, "tile", [])  # of strips there may be thousands, all alike
    # 16 bits of a BMP are three colours.
    return image.format in ("TIFF", "PNG") and bool(tiles) and ";16" in str(tiles[0][3])


def refuse_bomb(image: Image.Image | TiffPage, in_parts: bool = False) -> None:
    """Refuse a picture of more pixels than Pillow allows, where it only warns up to twice as many.

    Args:
        image: The picture.
        in_parts: Whether it will do to decode parts of it.

    Raises:
        Image.DecompressionBombError: If there are more.
        PartError: No parts can be decoded.
    """
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if not most or pixels <= most:
        return
    if in_parts and isinstance(image, TiffPage):
        image.refuse_parts()
        return
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
    if isinstance(error, PartError):
        return error.remedy
    if not isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return otherwise
    remedy = (
        "if so many pixels are meant, set data.reading.max_pixels (in Python also "
        "PIL.Image.MAX_IMAGE_PIXELS) to their number, or cut it into tiles"
    )
    return remedy if has_tifffile() else f"{remedy}; of TIFFs the extra `tiff` reads parts alone"


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
        f"a TIFF of {bands} bands of {bits} bits isn't read without the extra `tiff`: pip install "
        f"'lightning_bbox[tiff]'"
    )


def _left_out(image: Image.Image, part: TiffPart) -> str:
    """Say what is in a picture beside the colours of the page that is read."""
    others = []
    if image.format in ("TIFF", "GIF") and getattr(image, "is_animated", False):
        chosen = image.format == "TIFF" and part.page
        others = ["other pages" if chosen else "pages beyond the first"]
    colours, bands = [band for band in image.getbands() if band != "A"], len(image.getbands())
    if image.format == "TIFF":
        bands = getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLESPERPIXEL, bands)
    others += ["bands beyond the colours, such as alpha"] if bands > len(colours) else []
    return ", and ".join(others)


def _orientation(image: Image.Image, path: Path) -> int:
    """Return the orientation that EXIF or XMP asks for, without decoding the picture."""
    if image.format == "TIFF":
        asked = getattr(image, "tag_v2", {}).get(_TURN)
    elif image.format != "PNG":
        asked = image.getexif().get(_TURN)
    else:
        if _has_late_orientation(path):
            image.load()
        asked = Image.Image.getexif(image).get(_TURN)  # its own would decode any that has none
    return asked if isinstance(asked, int) and 1 <= asked <= 8 else 1


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
