"""The table of pictures and boxes that every format becomes, with the operations on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from lightning_bbox.annotations.formats.format import (
    CORNERS,
    Convention,
    Format,
    Listing,
    Picture,
    Record,
    Spots,
    shifted,
)
from lightning_bbox.annotations.headers import Header, read_headers
from lightning_bbox.annotations.turns import sensor_boxes, stored_sizes, upright_boxes
from lightning_bbox.annotations.validity import LEFT_OUT, box_faults, without_invalid
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import box_sizes


@dataclass(frozen=True, eq=False)
class BoxTable:
    """Pictures and the boxes in them, ordered by picture.

    Args:
        root: Folder that the pictures' paths are relative to.
        images: Paths of the pictures.
        groups: What each picture was taken of, such as a track, a board or a patient; its own path
            where the files say nothing.
        splits: The split that the files put each picture in, or nothing.
        sizes: Height and width of each picture in pixels, once EXIF has turned it.
        image_index: The picture of each box.
        boxes: The boxes, `xyxy` in pixels, edges.
        labels: The class of each box.
        classes: Names of the classes.
        ids: Where each box stands, such as `boxes.csv:12`.
        entries: The file of each box, and which of that file's boxes it is, from 0.
        format: Format of the files.
        files: The annotation files, relative to the root.
        note: Format and convention read, in one sentence.
        skipped: One sentence for each box left out.
        skipped_index: The picture of each box left out.
        whole: Those of the files that hold whole numbers only.
        deep: Paths of the pictures of more than 8 bits a band.
        turns: EXIF orientation of the pictures, by path, whose boxes are drawn before EXIF turns
            them.
        scores: A detector's score of each box, NaN where the files state none.
        marks: How each box is marked, such as "is marked difficult", or nothing; none at all where
            the boxes don't come from files.
        missing: One sentence for each box whose picture isn't there, and for each such picture
            without boxes.
        part: Which page and bands of TIFFs are read.
    """

    root: Path
    images: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    sizes: Int64[Tensor, "images 2"]
    image_index: Int64[Tensor, "boxes"]
    boxes: Float32[Tensor, "boxes 4"]
    labels: Int64[Tensor, "boxes"]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    entries: tuple[tuple[str, int], ...]
    format: Format
    files: tuple[str, ...] = ()
    note: str = ""
    skipped: tuple[str, ...] = ()
    skipped_index: tuple[int, ...] = ()
    whole: frozenset[str] = frozenset()
    deep: frozenset[str] = frozenset()
    turns: Mapping[str, int] = field(default_factory=dict)
    scores: Float64[Tensor, "boxes"] | None = None
    marks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    part: TiffPart = TiffPart()

    @property
    def not_read(self) -> tuple[str, ...]:
        """One sentence for each box left out, whether it is invalid or its picture missing."""
        return (*self.skipped, *self.missing)

    @classmethod
    def from_arrays(
        cls,
        paths: Sequence[str | Path],
        boxes: Sequence[ArrayLike],
        *,
        labels: Sequence[Sequence[str]] | None = None,
        groups: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        root: str | Path = ".",
        rough: bool = False,
        on_bad: Literal["skip", "error"] = "skip",
        page: int = 0,
        bands: Sequence[int] | None = None,
    ) -> "BoxTable":
        """Make a table of boxes at hand, for `BoxDataModule(table=...)`.

        Args:
            paths: Paths of the pictures, relative to the root, or absolute.
            boxes: The boxes of each picture, n x 4, `xyxy` in pixels of the upright picture, edges.
            labels: The class of each box of each picture; one class for all by default.
            groups: What each picture was taken of, such as a track, a board or a patient; what has
                one group is never parted by a split.
            splits: The split of each picture, such as train, or nothing.
            root: Folder that the paths are relative to.
            rough: Whether the boxes are to be refined, and so may overhang their pictures.
            on_bad: Leave invalid boxes out and list them, or refuse the first.
            page: Page of TIFFs, from 0.
            bands: Three bands of TIFFs, or one, from 0.

        Raises:
            BadInput: A picture can't be read, or the arguments don't fit together.

        Examples:
            >>> import tempfile
            >>> from PIL import Image
            >>> folder = Path(tempfile.mkdtemp())
            >>> Image.new("L", (60, 50)).save(folder / "a.png")
            >>> table = BoxTable.from_arrays(["a.png"], [[[5, 6, 20.5, 30]]], root=folder)
            >>> table.boxes, table.classes
            (tensor([[ 5.0000,  6.0000, 20.5000, 30.0000]]), ('object',))

            Detections of supervision, one for each of `paths`:

            >>> def of_detections(paths, found):
            ...     labels = [one.data["class_name"].tolist() for one in found]
            ...     return BoxTable.from_arrays(paths, [one.xyxy for one in found], labels=labels)

            A frame of pandas, a box a row:

            >>> def of_frame(frame):
            ...     paths, parts = zip(*frame.groupby("image"))
            ...     boxes = [part[["xmin", "ymin", "xmax", "ymax"]].to_numpy() for part in parts]
            ...     return BoxTable.from_arrays(paths, boxes, labels=[p["label"] for p in parts])

            A view of FiftyOne, whose boxes are fractions of x, y, width and height:

            >>> def of_view(view, field="ground_truth"):
            ...     size = lambda s: np.array([s.metadata.width, s.metadata.height] * 2)
            ...     found = [(s, s[field].detections if s[field] else []) for s in view]
            ...     boxes = [[size(s) * (*b[:2], b[0] + b[2], b[1] + b[3])
            ...               for b in (one.bounding_box for one in each)] for s, each in found]
            ...     labels = [[one.label for one in each] for _, each in found]
            ...     return BoxTable.from_arrays([s.filepath for s in view], boxes, labels=labels)
        """
        pictures = _pictures_of(paths, boxes, labels, groups, splits)
        headers = read_headers(expanded(root), pictures, "apply", part := TiffPart(page, bands))
        if problems := [each for each in headers.values() if isinstance(each, BadInput)]:
            raise BadInput.all_of(problems)
        read = {path: each for path, each in headers.items() if isinstance(each, Header)}
        classes = tuple(sorted({r.label for each in pictures.values() for r in each.records}))
        table = cls.of_pictures(expanded(root), pictures, read, _ARRAYS, classes)
        table = replace(table, note=_ARRAYS.convention.text, part=part)
        records = [record for each in pictures.values() for record in each.records]
        faults = box_faults(table.boxes, table.sizes[table.image_index], partly_outside=rough)
        return without_invalid(table, faults, records, CORNERS, on_bad)

    @classmethod
    def of_pictures(
        cls,
        root: Path,
        pictures: Mapping[str, Picture],
        headers: Mapping[str, Header],
        kind: Format,
        classes: tuple[str, ...],
    ) -> "BoxTable":
        """Make a table of all boxes of pictures, invalid ones too.

        Args:
            root: Folder that the pictures' paths are relative to.
            pictures: What is stated of each picture, by its path.
            headers: What each one's header says.
            kind: Format of the files.
            classes: Names of the classes.
        """
        records = [record for picture in pictures.values() for record in picture.records]
        counts = torch.tensor([len(picture.records) for picture in pictures.values()])
        stated = [record.values for record in records]
        values = torch.tensor(stated, dtype=torch.float64).reshape(-1, 4)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers.get(record.label, 0) for record in records]  # what is left out has none
        sizes = [[header.height, header.width] for header in headers.values()]
        table = cls(
            root=root,
            images=tuple(pictures),
            groups=tuple(picture.group or path for path, picture in pictures.items()),
            splits=tuple(picture.split for picture in pictures.values()),
            sizes=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            image_index=torch.arange(len(counts)).repeat_interleave(counts),
            boxes=values.float(),
            labels=torch.tensor(labels, dtype=torch.int64),
            scores=torch.tensor([record.score for record in records], dtype=torch.float64),
            classes=classes,
            ids=tuple(record.place for record in records),
            entries=tuple((record.file, record.number) for record in records),
            marks=tuple(record.mark for record in records),
            format=kind,
            deep=frozenset(path for path, header in headers.items() if header.is_deep),
            turns={path: header.turn for path, header in headers.items() if header.turn != 1},
        )
        return replace(table, boxes=table.edges(values, table.image_index).float())

    def edges(
        self, values: Float64[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn the numbers of boxes into `xyxy` edges in the pixels of upright pictures.

        Args:
            values: The numbers as the files have them.
            image_index: The picture of each box.
        """
        sizes = self.sizes[image_index]
        if not self.turns:
            return self.format.convention.edges(values, sizes)
        turns = self._turns()[image_index]
        edges = self.format.convention.edges(values, stored_sizes(sizes, turns))
        return upright_boxes(edges, sizes, turns)

    def numbers(
        self, edges: Float64[Tensor, "n 4"], image_index: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "n 4"]:
        """Turn edges into the numbers that the files have: the inverse of `edges`.

        Args:
            edges: Boxes, `xyxy` in pixels.
            image_index: The picture of each box.
        """
        sizes = self.sizes[image_index]
        if self.turns:
            turns = self._turns()[image_index]
            edges = sensor_boxes(edges, sizes, turns)
            sizes = stored_sizes(sizes, turns)
        return self.format.convention.numbers(edges, sizes)

    def _turns(self) -> Int64[Tensor, "images"]:
        return torch.tensor([self.turns.get(path, 1) for path in self.images])

    def pictures(self, keep: Sequence[int]) -> "BoxTable":
        """Keep these pictures with their boxes and skipped sentences, in this order.

        Args:
            keep: Indices of the pictures, each once.

        Raises:
            BadInput: If an index is there twice.
        """
        chosen = torch.tensor(keep, dtype=torch.int64)
        position = torch.full((len(self.images),), -1)
        position[chosen] = torch.arange(len(chosen))
        if int((position >= 0).sum()) < len(chosen):
            msg = "a picture is to be kept twice; name each once"
            raise BadInput(msg)
        moved = position[self.image_index]
        order = moved.argsort(stable=True)
        order = order[moved[order] >= 0]
        skipped = sorted(
            (place, at)
            for at, place in enumerate(position[list(self.skipped_index)].tolist())
            if place >= 0
        )
        return replace(
            self._boxes_at(order),
            images=tuple(self.images[at] for at in keep),
            groups=tuple(self.groups[at] for at in keep),
            splits=tuple(self.splits[at] for at in keep),
            sizes=self.sizes[chosen],
            image_index=moved[order],
            skipped=tuple(self.skipped[at] for _, at in skipped),
            skipped_index=tuple(place for place, _ in skipped),
        )

    def boxes_where(self, keep: Bool[Tensor, "boxes"]) -> "BoxTable":
        """Keep the boxes where it is true; pictures left without any stay."""
        return self._boxes_at(keep.nonzero().flatten())

    def of_classes(self, names: Sequence[str]) -> "BoxTable":
        """Keep the boxes of these classes, which become the table's classes in this order.

        Args:
            names: Names of classes of the table.

        Raises:
            BadInput: If the table has no such class.
        """
        if unknown := [name for name in names if name not in self.classes]:
            counts = self.labels.bincount(minlength=len(self.classes)).tolist()
            there = [f"{name} ({n})" for name, n in zip(self.classes, counts, strict=True)]
            msg = f"there is no class {listed(unknown)}; choose from {listed(there)}"
            raise BadInput(msg)
        classes = tuple(dict.fromkeys(names))
        numbers = torch.full((len(self.classes),), -1)
        numbers[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))
        table = self.boxes_where(numbers[self.labels] >= 0)
        return replace(table, labels=numbers[table.labels], classes=classes)

    def of_min_size(self, pixels: float) -> "BoxTable":
        """Keep the boxes whose width and height are these pixels at least."""
        return self.boxes_where((box_sizes(self.boxes) >= pixels).all(dim=1))

    def without_marked(self) -> tuple["BoxTable", list[tuple[str, str]]]:
        """Leave out the boxes that their annotators marked difficult or to be ignored.

        Returns:
            The table of the others, and a sentence for each one left out, with the path of its
            picture.
        """
        marked = torch.tensor([bool(mark) for mark in self.marks], dtype=torch.bool)
        if not marked.any():
            return self, []
        told = []
        for at in marked.nonzero().flatten().tolist():
            image = self.images[self.image_index[at]]
            told.append((image, f"{self.ids[at]}: the box in {image} {self.marks[at]}{LEFT_OUT}"))
        return self.boxes_where(~marked), told

    def _boxes_at(self, order: Int64[Tensor, "kept"]) -> "BoxTable":
        return replace(
            self,
            image_index=self.image_index[order],
            boxes=self.boxes[order],
            labels=self.labels[order],
            scores=None if self.scores is None else self.scores[order],
            ids=tuple(self.ids[at] for at in order.tolist()),
            entries=tuple(self.entries[at] for at in order.tolist()),
            marks=tuple(self.marks[at] for at in order.tolist()) if self.marks else (),
        )


def _pictures_of(
    paths: Sequence[str | Path],
    boxes: Sequence[ArrayLike],
    labels: Sequence[Sequence[str]] | None,
    groups: Sequence[str] | None,
    splits: Sequence[str] | None,
) -> dict[str, Picture]:
    """Return what arrays say of each picture, by its path.

    Raises:
        BadInput: If they don't fit together.
    """
    given = {"boxes": boxes, "labels": labels, "groups": groups, "splits": splits}
    for name, each in given.items():
        if each is not None and len(each) != len(paths):
            msg = f"{name} are of {len(each)} pictures, and paths of {len(paths)}; give one of each"
            raise BadInput(msg)
    pictures: dict[str, Picture] = {}
    for at, path in enumerate(map(str, paths)):
        own = np.asarray(boxes[at], dtype=np.float64)
        if own.size and (own.ndim != 2 or own.shape[1] != 4):
            raise BadInput.at(path, f"its boxes have the shape {own.shape}", "give n x 4 numbers")
        fours = own.reshape(-1, 4).tolist()
        names = ["object"] * len(fours) if labels is None else [*map(str, labels[at])]
        if len(names) != len(fours):
            problem = f"has {len(names)} labels and {len(fours)} boxes"
            raise BadInput.at(path, problem, "give a label for each box")
        if path in pictures:
            raise BadInput.at(path, "is there twice", "give all boxes of a picture at once")
        records = [
            Record(f"{path}: box {n + 1}", (x1, y1, x2, y2), name, "", n)
            for n, ((x1, y1, x2, y2), name) in enumerate(zip(fours, names, strict=True))
        ]
        group, split = (str(each[at]) if each is not None else "" for each in (groups, splits))
        pictures[path] = Picture("", path, path, None, split, group, records, from_root=True)
    if not pictures:
        msg = "there are no paths; give one picture at least"
        raise BadInput(msg)
    return pictures


def _read_nothing(_: Path, __: Sequence[str]) -> Listing:
    return Listing([])


def _no_spots(_: str) -> list[Spots]:
    return []


def _never(_: Path) -> bool:
    return False


_ARRAYS = Format(
    "arrays",
    (),
    Convention("arrays, corners as pixel edges", CORNERS, shifted, shifted),
    _read_nothing,
    _no_spots,
    _never,
)
