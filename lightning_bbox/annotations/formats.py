"""What an annotation file states: pictures with records, and the convention of their numbers.

A record keeps the four numbers of its file, and the file's `Convention` turns them into `xyxy`
edges, once, when the size of the picture is known.
"""

import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import (
    box_sizes,
    cxcywh_to_xyxy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

_REACH = 1.0  # pixels that a box may reach outside its picture: people and tools differ by one
CORNERS = ("xmin", "ymin", "xmax", "ymax")

# Narrower than float(), which also takes 1_000 and the digits of every script. No two parts of it
# take the same digits: trying all their divisions would take hours for a megabyte of them.
_NUMBER = re.compile(
    r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE
)


class Record(NamedTuple):
    """One box as its file states it.

    Args:
        place: Where it stands, such as `Annotations/x.xml: object 3`.
        values: Its four numbers, in the file's convention.
        label: Name of its class.
        file: The file it stands in, relative to the root.
        number: Which of that file's boxes it is, from 0.
        fault: Why it is unfit whatever its numbers are, or nothing.
    """

    place: str
    values: tuple[float, float, float, float]
    label: str
    file: str
    number: int
    fault: str = ""


@dataclass
class Picture:
    """One picture as its annotation file states it.

    Args:
        file: The annotation file, relative to the root.
        place: Where the picture is spoken of: the file, with the line or id.
        name: The picture's name as stated, empty in YOLO.
        size: Height and width as stated, if they are.
        split: As stated, or empty.
        group: As stated, or empty.
        records: Its boxes, in file order.
    """

    file: str
    place: str
    name: str = ""
    size: tuple[float, float] | None = None
    split: str = ""
    group: str = ""
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Convention:
    """Say what the four numbers of a format mean.

    Args:
        text: The format and its convention in words.
        fields: Names of the four numbers.
        to_xyxy: Turns them into `xyxy` edges.
        from_xyxy: Turns `xyxy` edges into them.
        fractions: Whether they are fractions of the picture's width and height.
        inclusive: Whether the corners are pixels that belong to the box; equal ones are then a mere
            click, not a box one pixel wide.
        by_stem: Whether a picture's file of boxes bears its name.
    """

    text: str
    fields: tuple[str, str, str, str]
    to_xyxy: Callable[[Float[Tensor, "n 4"]], Float[Tensor, "n 4"]]
    from_xyxy: Callable[[Float[Tensor, "n 4"]], Float[Tensor, "n 4"]]
    fractions: bool = False
    inclusive: bool = False
    by_stem: bool = False

    def edges(
        self, values: Float64[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn the numbers of boxes into `xyxy` edges in pixels.

        Args:
            values: The numbers as the file has them.
            sizes: Height and width of each box's picture.

        Examples:
            >>> numbers = torch.tensor([[0.5, 0.5, 0.2, 0.4]], dtype=torch.float64)
            >>> YOLO.edges(numbers, torch.tensor([[100, 200]]))
            tensor([[ 80.,  30., 120.,  70.]], dtype=torch.float64)
        """
        return self.to_xyxy(values * sizes.flip(-1).repeat(1, 2) if self.fractions else values)

    def numbers(
        self, edges: Float64[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn `xyxy` edges into the numbers that a file has: the inverse of `edges`.

        Args:
            edges: Boxes, `xyxy` in pixels.
            sizes: Height and width of each box's picture.

        Examples:
            >>> box = torch.tensor([[80.0, 30, 120, 70]], dtype=torch.float64)
            >>> YOLO.numbers(box, torch.tensor([[100, 200]]))
            tensor([[0.5000, 0.5000, 0.2000, 0.4000]], dtype=torch.float64)
        """
        numbers = self.from_xyxy(edges)
        return numbers / sizes.flip(-1).repeat(1, 2) if self.fractions else numbers


class Listing(NamedTuple):
    """All that the files of one format say, and what a person should know of it."""

    pictures: list[Picture]
    classes: tuple[str, ...]
    convention: Convention
    note: str = ""


def _voc(base: Literal[0, 1]) -> Convention:
    """Pixels that belong to the box, the first being 0 or 1; xmax's own right edge is the box's."""

    def shift(values: Tensor) -> Tensor:
        return values.new_tensor([base, base, base - 1, base - 1])

    return Convention(
        f"VOC XML, {base}-based inclusive corners",
        CORNERS,
        to_xyxy=lambda values: values - shift(values),
        from_xyxy=lambda edges: edges + shift(edges),
        inclusive=True,
        by_stem=True,
    )


VOC = {0: _voc(0), 1: _voc(1)}
COCO = Convention(
    "COCO JSON, left top corner and size in pixels",
    ("x", "y", "width", "height"),
    xywh_to_xyxy,
    xyxy_to_xywh,
)
YOLO = Convention(
    "YOLO text, centre and size as fractions of the picture",
    ("cx", "cy", "w", "h"),
    cxcywh_to_xyxy,
    xyxy_to_cxcywh,
    fractions=True,
    by_stem=True,
)
CSV = Convention(
    "CSV, corners as pixel edges",
    CORNERS,
    to_xyxy=lambda edges: edges,
    from_xyxy=lambda edges: edges,
)


def box_faults(
    boxes: Float32[Tensor, "n 4"],
    values: Float64[Tensor, "n 4"],
    sizes: Int64[Tensor, "n 2"],
    convention: Convention,
) -> dict[int, str]:
    """Say by index what is wrong with the boxes that are none, in words that follow "the box".

    Args:
        boxes: The boxes, `xyxy` in pixels.
        values: Their numbers as the file has them.
        sizes: Height and width of each box's picture.
        convention: What the numbers mean.

    Examples:
        >>> box = torch.tensor([[10.0, 10.0, 10.0, 20.0]])
        >>> box_faults(box, box.double(), torch.tensor([[50, 60]]), CSV)
        {0: 'has no positive width'}
    """
    limits = sizes.flip(-1)
    finite = boxes.isfinite().all(dim=1)
    flat = box_sizes(boxes) <= 0
    if convention.inclusive:
        flat |= box_sizes(values) <= 0
    reach = torch.cat([-boxes[:, :2], boxes[:, 2:] - limits], dim=1).amax(dim=1)
    faults = {}
    for at in (~finite | flat.any(dim=1) | (reach > _REACH)).nonzero().flatten().tolist():
        if not finite[at]:
            faults[at] = "is not finite"
        elif flat[at].any():
            sides = compress(("width", "height"), flat[at].tolist())
            faults[at] = f"has no positive {' and '.join(sides)}"
        else:
            width, height = limits[at].tolist()
            faults[at] = f"reaches {reach[at]:.6g} px outside the {width} x {height} picture"
    return faults


def labels_met(
    pictures: Iterable[Picture], key: Callable[[str], Any] | None = None
) -> tuple[str, ...]:
    """Name the classes of all records once, sorted.

    Args:
        pictures: Pictures with their records.
        key: What to sort the names by instead of the names themselves.

    Examples:
        >>> labels_met([Picture("a", "a", records=[Record("a:1", (0, 0, 1, 1), "cell", "a", 0)])])
        ('cell',)
    """
    return tuple(sorted({r.label for picture in pictures for r in picture.records}, key=key))


def parse_number(text: str, name: str, place: str) -> float:
    """Parse a number written in a file; `nan` and `inf` are numbers too, to be judged as boxes.

    Args:
        text: What is written.
        name: What it is the value of.
        place: Where it stands.

    Raises:
        BadInput: If it is not a number.

    Examples:
        >>> parse_number("12.5", "xmin", "boxes.csv:2")
        12.5
    """
    if not _NUMBER.fullmatch(text):
        raise BadInput.at(place, f"{name} is {reprlib.repr(text)}, not a number", "correct it")
    return float(text)


def whole_text(text: str, place: str) -> str:
    r"""Return a text that files can hold; the escapes of JSON and YAML can name what none can.

    Args:
        text: The name of a class.
        place: Where it stands.

    Raises:
        BadInput: If it has half of a character.

    Examples:
        >>> whole_text("\ud83d", "data.yaml")
        Traceback (most recent call last):
        lightning_bbox.BadInput: data.yaml: '\ud83d' has half of a character; write it whole
    """
    if re.search("[\ud800-\udfff]", text):
        problem = f"{reprlib.repr(text)} has half of a character"
        raise BadInput.at(place, problem, "write it whole")
    return text


def read_lines(root: Path, file: str) -> list[tuple[int, str]]:
    r"""Read the lines of a text file that are not blank, stripped, each with its number.

    Args:
        root: Folder that the file is relative to.
        file: The file.

    Raises:
        BadInput: If it can't be read as UTF-8.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.txt").write_text("a.png\n\n  b.png  \n")
        ...     read_lines(Path(folder), "train.txt")
        [(1, 'a.png'), (3, 'b.png')]
    """
    lines = enumerate(read_text(root, file).split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_text(root: Path, file: str) -> str:
    r"""Read a UTF-8 text file, with or without byte order mark, all line ends made newlines.

    Args:
        root: Folder that the file is relative to.
        file: The file.

    Raises:
        BadInput: If it can't be read as UTF-8.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_bytes(b"\xef\xbb\xbfcell\r\nplate\r")
        ...     read_text(Path(folder), "a.txt")
        'cell\nplate\n'
    """
    try:
        text = read_bytes(root, file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput.at(file, f"is not UTF-8 text ({error})", "save it as UTF-8") from error
    return plain_text(text)


def plain_text(text: str) -> str:
    r"""Take off a byte order mark, and make all line ends newlines.

    Examples:
        >>> plain_text("\ufeffcell\r\nplate\r")
        'cell\nplate\n'
    """
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(root: Path, file: str) -> bytes:
    """Read a file.

    Args:
        root: Folder that the file is relative to.
        file: The file.

    Raises:
        BadInput: If it can't be read.

    Examples:
        >>> read_bytes(Path("nowhere"), "boxes.json")
        Traceback (most recent call last):
        lightning_bbox.BadInput: boxes.json: can't be read ...
    """
    try:
        return (root / file).read_bytes()
    except OSError as error:
        raise BadInput.unreadable(file, error) from error
