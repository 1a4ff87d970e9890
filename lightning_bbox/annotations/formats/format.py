"""What an annotation format is, what its files state, and what their numbers mean.

A record keeps the four numbers of its file, and the format's `Convention` turns them into `xyxy`
edges, once, when the size of the picture is known.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal, NamedTuple

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_bbox.annotations.splits import Split
from lightning_bbox.core.errors import shortened

CORNERS = ("xmin", "ymin", "xmax", "ymax")
NO_BOX = (math.nan, math.nan, math.nan, math.nan)
"""The numbers of what has none."""
DIFFICULT = "is marked difficult"
IGNORED = "is marked to be ignored"
"""How annotators mark boxes that a model isn't to learn from, in words that follow "the box"."""
Span = tuple[int, int]
Units = Literal["pixels", "fraction"]
"""What numbers are stated in: pixels, or fractions of the picture."""
Along = Literal["xmin", "ymin", "xmax", "ymax", "area"]


class Record(NamedTuple):
    """One box as its file states it.

    Args:
        place: Where it stands, such as `Annotations/x.xml: object 3`.
        values: Its four numbers, in the file's convention; an int is written as a whole number.
        label: Name of its class.
        file: The file it stands in, relative to the root.
        number: Which of that file's boxes it is, from 0.
        fault: Why it is invalid whatever its numbers are, in words that follow "the box"; or
            nothing.
        score: A detector's score, NaN where the file states none.
        outline: What it is the box around, such as "a polygon", where the file holds no box: it
            trains, but isn't written.
        mark: How its annotator marked it, `DIFFICULT` or `IGNORED`; or nothing.
    """

    place: str
    values: tuple[float, float, float, float]
    label: str
    file: str
    number: int
    fault: str = ""
    score: float = math.nan
    outline: str = ""
    mark: str = ""


class Spots(NamedTuple):
    """Where the numbers of one box stand in a text.

    Args:
        numbers: The spans of its four numbers; none where the file holds no box, and more where
            some are in pieces.
        along: Numbers that follow from these and so move along, each with what it is.
    """

    numbers: Sequence[Span]
    along: Sequence[tuple[Span, Along]] = ()


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
        from_root: Whether its name is a path relative to the root of the data set.
    """

    file: str
    place: str
    name: str = ""
    size: tuple[float, float] | None = None
    split: str = ""
    group: str = ""
    records: list[Record] = field(default_factory=list)
    from_root: bool = False

    @property
    def stated(self) -> str:
        """Its name as stated, or the stem of its file, of bearable length."""
        return shortened(self.name or PurePosixPath(self.file).stem)


class Listing(NamedTuple):
    """All that the files of one format say, and what a person should know of it.

    Args:
        pictures: What they say of each picture, in their order.
        classes: Names of the classes in their order; those met, by name, where there are none.
        note: What may not be meant.
        splits: Folders and lists of pictures, relative to the root, by the split that they are.
        convention: What the numbers mean, where the files themselves say so.
    """

    pictures: list[Picture]
    classes: tuple[str, ...] = ()
    note: str = ""
    splits: Mapping[Split, Sequence[str]] = MappingProxyType({})
    convention: "Convention | None" = None


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
        others: What people write instead by mistake: names of the numbers, and how they become
            edges.
        remedy: What to do about that.
    """

    text: str
    fields: tuple[str, str, str, str]
    to_xyxy: Callable[[Float[Tensor, "n 4"]], Float[Tensor, "n 4"]]
    from_xyxy: Callable[[Float[Tensor, "n 4"]], Float[Tensor, "n 4"]]
    fractions: bool = False
    inclusive: bool = False
    others: tuple[tuple[str, Callable[[Float[Tensor, "n 4"]], Float[Tensor, "n 4"]]], ...] = ()
    remedy: str = ""

    def in_units(self, units: Units) -> "Convention":
        """Return the same with numbers in pixels, or as fractions of the picture.

        Args:
            units: Which of the two.
        """
        if self.fractions == (units == "fraction"):
            return self
        text = f"{self.text}, read in units of a {units.removesuffix('s')}"
        return replace(self, fractions=not self.fractions, text=text)

    def edges(
        self, values: Float64[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn the numbers of boxes into `xyxy` edges in pixels.

        Args:
            values: The numbers as the file has them.
            sizes: Height and width of each box's picture.
        """
        return self.to_xyxy(values * sizes.flip(-1).repeat(1, 2) if self.fractions else values)

    def numbers(
        self, edges: Float64[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn `xyxy` edges into the numbers that a file has: the inverse of `edges`.

        Args:
            edges: Boxes, `xyxy` in pixels.
            sizes: Height and width of each box's picture.
        """
        values = self.from_xyxy(edges)
        return values / sizes.flip(-1).repeat(1, 2) if self.fractions else values


def shifted(
    values: Float64[Tensor, "n 4"], by: Sequence[float] = (0, 0, 0, 0)
) -> Float64[Tensor, "n 4"]:
    """Shift each of the four numbers of boxes: what corners are in terms of edges, and back.

    No lambda, nor are others here: tables hold their format, and go to other processes.
    """
    return values + values.new_tensor(by)


def turned_by(degrees: float) -> str:
    """Say what is wrong with a box that is turned; a whole turn or none is fine.

    Examples:
        >>> turned_by(40.0), turned_by(360)
        ('is turned by 40 degrees', '')
    """
    return f"is turned by {degrees:.6g} degrees" if degrees % 360 else ""


def _none(_: Sequence[str]) -> list[str]:
    return []


def _utf_8(_: bytes) -> str:
    return "utf-8"


@dataclass(frozen=True)
class Format:
    """How the files of a format are recognised, read, and written with other boxes.

    Args:
        name: What users call it.
        suffixes: Suffixes of its files, in lower case.
        convention: What the four numbers of a box mean.
        read: Reads files, named relative to the root that is given first. Only their form is judged
            there: whether a box is valid is judged for all formats alike.
        spots: Finds in a file's text where the numbers of each box stand, in file order.
        looks_like: Tells by a glance whether a file that has the suffix is of this format.
        folder: Name of the folder where its files usually lie, one a picture and of its name;
            nothing where one file speaks of many pictures.
        content: What makes such a file recognised, in words.
        aside: Which of the files that look like this format are not to be read.
        encoding: The encoding of a file.
        together: Whether several of its files are one data set, though each speaks of many
            pictures, as with sequences.
    """

    name: str
    suffixes: tuple[str, ...]
    convention: Convention
    read: Callable[[Path, Sequence[str]], Listing]
    spots: Callable[[str], Iterable[Spots]]
    looks_like: Callable[[Path], bool]
    folder: str = ""
    content: str = ""
    aside: Callable[[Sequence[str]], list[str]] = _none
    encoding: Callable[[bytes], str] = _utf_8
    together: bool = False

    @property
    def by_stem(self) -> bool:
        """Whether a picture has a file of its own, which bears its name."""
        return bool(self.folder)
