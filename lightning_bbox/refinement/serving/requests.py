"""What may be asked of the service: pictures and boxes of bearable size, or a sentence."""

import base64
import binascii
import io
import math
from pathlib import Path
from typing import NamedTuple, TypeGuard
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_bbox.annotations.headers import FAULTS, open_part
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.codecs import White
from lightning_bbox.pictures.decode import rgb_of

_IMAGE = "image"
_BOXES = "boxes"
_LABELS = "labels"
_PICTURE = "the task's picture"


class Limits(NamedTuple):
    """How large a request may be.

    Attributes:
        megabytes: Of its body.
        megapixels: Of its picture.
        boxes: How many boxes.
    """

    megabytes: float = 50.0
    megapixels: float = 50.0
    boxes: int = 2000


class TooLargeError(BadInput):
    """A request is larger than it may be."""


def decode_picture(
    content: bytes, limits: Limits, white_level: White | None, part: TiffPart = TiffPart()
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture's file to RGB, upright, once its header says that it isn't too large.

    Args:
        content: The file.
        limits: How large it may be.
        white_level: What is white, or black and white, beyond 8 bits.
        part: Which page and bands of a TIFF.

    Raises:
        BadInput: It can't be decoded.
        TooLargeError: It has too many pixels.
    """
    try:
        with open_part(io.BytesIO(content), part) as picture:
            if picture.width * picture.height > limits.megapixels * 1e6:
                problem = f"has {picture.width} x {picture.height} pixels, more than "
                problem += f"{limits.megapixels:g} million"
                raise TooLargeError.at(_IMAGE, problem, "send a part of it, or a smaller one")
            return rgb_of(picture, white_level)
    except BadInput:
        raise
    except FAULTS as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        problem = f"can't be decoded ({said.partition(': <')[0].partition(' <_io')[0]})"
        raise BadInput.at(_IMAGE, problem, "send a PNG or JPEG file, whole") from error


def picture_in(text: object) -> bytes:
    """Return the file that a text in base64 holds; a data URL is taken, no other.

    Args:
        text: What was sent.

    Raises:
        BadInput: It is something else.
    """
    if not isinstance(text, str) or not text:
        problem = "is missing" if text is None else f"is {str(text)[:40]!r}, no text"
        raise BadInput.at(_IMAGE, problem, "send its file, in base64 or in a form")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:20]:
        problem = f"is the address {text[:60]!r}, and this service fetches none"
        raise BadInput.at(_IMAGE, problem, "send the picture's file in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput.at(_IMAGE, f"is no base64 ({error})", "encode its file") from error


def boxes_in(found: object, limits: Limits) -> Float[Tensor, "n 4"]:
    """Return the boxes that were sent.

    Args:
        found: What was sent.
        limits: How many there may be.

    Raises:
        BadInput: They aren't lists of four numbers.
        TooLargeError: There are too many.
    """
    remedy = "send a list of [xmin, ymin, xmax, ymax] in pixels"
    if not isinstance(found, list):
        problem = "are missing" if found is None else f"are {str(found)[:40]!r}"
        raise BadInput.at(_BOXES, problem, remedy)
    if len(found) > limits.boxes:
        raise TooLargeError.at(_BOXES, f"are {len(found)}, more than {limits.boxes}", "send fewer")
    for at, box in enumerate(found):
        numbers = box if isinstance(box, list) else []
        if len(numbers) != 4 or not all(is_number(each) for each in numbers):
            place = f"box {at}"
            raise BadInput.at(place, f"is {str(box)[:60]!r}, not four numbers", remedy)
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value of JSON is a number that a coordinate may be.

    Examples:
        >>> is_number(12), is_number(True), is_number(10**400)
        (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


def labels_in(found: object, count: int) -> list[str] | None:
    """Return the labels that were sent, one a box, or none at all.

    Args:
        found: What was sent.
        count: How many boxes there are.

    Raises:
        BadInput: They are something else.
    """
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadInput.at(_LABELS, f"are {str(found)[:40]!r}", "send a list of texts")
    if len(found) != count:
        raise BadInput.at(_LABELS, f"are {len(found)} of {count} boxes", "send one a box, or none")
    return found


def local_picture(address: object, folder: Path | None) -> bytes:
    """Read the picture of a labelling task from a folder; nothing is fetched.

    Args:
        address: The task's picture, such as `/data/upload/1/a.jpg`, `/data/local-files/?d=a.jpg`,
            or the end of an address of its server that says the same.
        folder: Where such files lie; None where there is none.

    Raises:
        BadInput: It is no file in the folder.
    """
    if not isinstance(address, str) or not address:
        raise BadInput.at(_PICTURE, f"is {str(address)[:40]!r}", "give it an image")
    parts = urlsplit(address)
    named = parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)
    name = named.strip("/").removeprefix("data/")
    if folder is None:
        problem = "is no file in base64, and this service fetches no address"
        raise BadInput.at(address[:200], problem, "start it with --pictures FOLDER, where it lies")
    path = (folder / name.replace("\0", "")).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        problem = f"is no file in the folder of --pictures ({name[:200]!r})"
        raise BadInput.at(address[:200], problem, "name the folder that holds it")
    return path.read_bytes()
