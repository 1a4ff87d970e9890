"""The table of pictures and boxes that every format becomes, with the operations on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from lightning_bbox.annotations.formats.format import Format
from lightning_bbox.annotations.turns import sensor_boxes, stored_sizes, upright_boxes
from lightning_bbox.core.errors import BadInput, listed
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
        deep: Paths of the pictures of 16 bits a band.
        turns: EXIF orientation of the pictures, by path, whose boxes are drawn before EXIF turns
            them.
        scores: A detector's score of each box, NaN where the files state none.
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

    def _boxes_at(self, order: Int64[Tensor, "kept"]) -> "BoxTable":
        return replace(
            self,
            image_index=self.image_index[order],
            boxes=self.boxes[order],
            labels=self.labels[order],
            scores=None if self.scores is None else self.scores[order],
            ids=tuple(self.ids[at] for at in order.tolist()),
            entries=tuple(self.entries[at] for at in order.tolist()),
        )
