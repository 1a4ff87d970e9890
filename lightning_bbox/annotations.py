"""One table of pictures and boxes from VOC, COCO, YOLO or CSV, checked, and split without leaks.

What can't be meant is refused in one sentence that says where. Boxes that are none are left out and
listed. Nothing is clipped, rounded or dropped without a word.
"""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lightning_bbox.boxes import box_sizes
from lightning_bbox.errors import BadInput, listed
from lightning_bbox.layouts import Source, find_annotations
from lightning_bbox.line_formats import read_csv, read_yolo
from lightning_bbox.nested_formats import read_coco, read_voc
from lightning_bbox.pictures import (
    PictureFinder,
    checked_size,
    find_pictures,
    group_pictures,
    inside,
    select_pictures,
)
from lightning_bbox.records import Convention, Listing, Picture, Record, box_faults


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
        skipped: One sentence for each box left out.
        note: Format and convention read, in one sentence.
        skipped_index: The picture of each box left out.

    Examples:
        >>> table = BoxTable(
        ...     root=Path("data"), images=("a.png", "b.png"), groups=("a", "b"), splits=("", ""),
        ...     sizes=torch.tensor([[50, 60], [50, 60]]), image_index=torch.tensor([0, 1, 1]),
        ...     boxes=torch.tensor([[0., 0, 9, 9], [5, 5, 30, 20], [1, 1, 4, 4]]),
        ...     labels=torch.tensor([0, 1, 0]), classes=("cell", "plate"),
        ...     ids=("a:1", "b:1", "b:2"), skipped=(), note="",
        ... )
        >>> table.pictures([1]).of_classes(["cell"]).ids
        ('b:2',)
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
    skipped: tuple[str, ...]
    note: str
    skipped_index: tuple[int, ...] = ()

    def pictures(self, keep: Sequence[int]) -> "BoxTable":
        """Keep these pictures with their boxes and skipped sentences, in this order.

        Args:
            keep: Indices of the pictures, each once.

        Raises:
            BadInput: If an index is there twice.
        """
        chosen = torch.as_tensor(keep, dtype=torch.int64).reshape(-1)
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
        """Keep these boxes; pictures left without any stay.

        Args:
            keep: Whether to keep each box.
        """
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
        """Keep the boxes that are large enough.

        Args:
            pixels: Least width and height.
        """
        return self.boxes_where((box_sizes(self.boxes) >= pixels).all(dim=1))

    def _boxes_at(self, order: Int64[Tensor, "kept"]) -> "BoxTable":
        return replace(
            self,
            image_index=self.image_index[order],
            boxes=self.boxes[order],
            labels=self.labels[order],
            ids=tuple(self.ids[at] for at in order.tolist()),
        )


def read_annotations(
    root: str | Path,
    *,
    format: Literal["auto", "voc", "coco", "yolo", "csv"] = "auto",  # noqa: A002 - users' word
    annotations: str | Sequence[str] | None = None,
    images: str | None = None,
    split_file: str | None = None,
    group_pattern: str | None = None,
    voc_base: Literal[0, 1] = 1,
    on_bad: Literal["skip", "error"] = "skip",
    allow_outside: bool = False,
) -> BoxTable:
    """Read the annotations of a data set.

    Without further arguments the format is recognised by the usual names of files and folders, and
    pictures in folders named train, valid, val or test get that split.

    Args:
        root: Folder of the data set.
        format: Format of the annotations.
        annotations: Annotation files, or folders of them, relative to the root.
        images: Folder of the pictures, relative to the root.
        split_file: Text file of the pictures to take, one path, name or stem a line, relative to
            the root; its own name is their split where they have no other.
        group_pattern: Regular expression; what its first group finds in a picture's path is the
            picture's group.
        voc_base: Coordinate of the first pixel in VOC files: 1 by definition, 0 from some tools.
        on_bad: What to do with a box that is not finite, has no positive width or height, reaches
            outside its picture by more than a pixel, or is a crowd.
        allow_outside: Whether files may lie outside the root.

    Raises:
        BadInput: If something is missing, malformed, ambiguous or contradictory.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(folder / "a.png")
        >>> rows = ["image,x1,y1,x2,y2", "a.png,5,6,20.5,30"]
        >>> _ = (folder / "boxes.csv").write_text(chr(10).join(rows))
        >>> table = read_annotations(folder)
        >>> table.boxes, table.ids
        (tensor([[ 5.0000,  6.0000, 20.5000, 30.0000]]), ('boxes.csv:2',))
        >>> table.note
        'CSV, corners as pixel edges, read from boxes.csv'
    """
    _check_choice("format", format, ("auto", "voc", "coco", "yolo", "csv"))
    _check_choice("voc_base", voc_base, (0, 1))
    _check_choice("on_bad", on_bad, ("skip", "error"))
    base = Path(root).expanduser()
    if not base.is_dir():
        raise BadInput.at(str(base), "is no folder", "correct root=")
    sources = find_annotations(base, format, annotations, allow_outside)
    listing = _read(base, sources[0], voc_base)
    finder = PictureFinder(base, images, listing.convention.by_stem, allow_outside)
    found = find_pictures(listing.pictures, finder)
    note = _note(sources, listing.convention, finder.unlabelled(found))
    if split_file is not None:
        found = select_pictures(found, base, inside(base, split_file, "split_file", allow_outside))
    groups = group_pictures(found, group_pattern)
    return replace(_table(base, found, listing, on_bad), groups=groups, note=note)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        msg = f"{name} is {value!r}; choose from {', '.join(map(repr, choices))}"
        raise BadInput(msg)


def _read(root: Path, source: Source, voc_base: Literal[0, 1]) -> Listing:
    match source.format:
        case "voc":
            return read_voc(root, source.files, voc_base)
        case "coco":
            return read_coco(root, source.files)
        case "yolo":
            return read_yolo(root, source.files)
        case "csv":
            return read_csv(root, source.files)


def _note(sources: Sequence[Source], convention: Convention, unlabelled: Sequence[str]) -> str:
    files = sources[0].files
    note = f"{convention.text}, read from {files[0] if len(files) == 1 else f'{len(files)} files'}"
    if others := [file for source in sources for file in source.files if file not in files]:
        note += f"; there but not read: {listed(others)}"
    if convention.by_stem and unlabelled:
        note += f"; left out, as they have no annotation file: {listed(unlabelled)}"
    return note


def _table(
    root: Path, found: Mapping[str, Picture], listing: Listing, on_bad: Literal["skip", "error"]
) -> BoxTable:
    records = [record for picture in found.values() for record in picture.records]
    counts = [len(picture.records) for picture in found.values()]
    image_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sizes = torch.tensor([checked_size(root, path, picture) for path, picture in found.items()])
    values = torch.tensor([record.values for record in records], dtype=torch.float64).reshape(-1, 4)
    numbers = {name: number for number, name in enumerate(listing.classes)}
    table = BoxTable(
        root=root,
        images=tuple(found),
        groups=tuple(found),
        splits=tuple(picture.split for picture in found.values()),
        sizes=sizes,
        image_index=image_index,
        boxes=listing.convention.edges(values, sizes[image_index]).float(),
        labels=torch.tensor([numbers[record.label] for record in records], dtype=torch.int64),
        classes=listing.classes,
        ids=tuple(record.place for record in records),
        skipped=(),
        note="",
    )
    faults = box_faults(table.boxes, values, sizes[image_index], listing.convention)
    faults |= {at: record.fault for at, record in enumerate(records) if record.fault}
    return _without_faulty(table, faults, records, listing.convention.fields, on_bad)


def _without_faulty(
    table: BoxTable,
    faults: Mapping[int, str],
    records: Sequence[Record],
    fields: Sequence[str],
    on_bad: Literal["skip", "error"],
) -> BoxTable:
    """Leave the faulty boxes out and say so, or refuse the first of them."""
    skipped = []
    for at in sorted(faults):
        place, values = records[at].place, records[at].values
        stated = ", ".join(
            f"{name}={value:.10g}" for name, value in zip(fields, values, strict=True)
        )
        problem = f"the box {stated} in {table.images[table.image_index[at]]} {faults[at]}"
        if on_bad == "error":
            remedy = "correct it, or leave such boxes out with on_bad='skip'"
            raise BadInput.at(place, problem, remedy)
        skipped.append(f"{place}: {problem}; left out")
    good = torch.tensor([at not in faults for at in range(len(records))], dtype=torch.bool)
    index = table.image_index[~good].tolist()
    return replace(table.boxes_where(good), skipped=tuple(skipped), skipped_index=tuple(index))


def concat_tables(tables: Sequence[BoxTable]) -> BoxTable:
    """Join tables of one root, one after the other; classes are united by name.

    Args:
        tables: Tables that share no picture.

    Raises:
        BadInput: If there is no table, the roots differ or a picture is in two tables.
    """
    if not tables:
        msg = "there are no tables to join; give one at least"
        raise BadInput(msg)
    return reduce(_join, tables)


def _join(first: BoxTable, second: BoxTable) -> BoxTable:
    if first.root.resolve() != second.root.resolve():
        problem = f"can't be joined with a table of {second.root}"
        raise BadInput.at(str(first.root), problem, "read both from one root")
    if twice := sorted(set(first.images) & set(second.images)):
        raise BadInput.at(listed(twice), "in two tables to join", "take each picture once")
    start = len(first.images)
    classes = tuple(dict.fromkeys(first.classes + second.classes))
    numbers = torch.tensor([classes.index(name) for name in second.classes], dtype=torch.int64)
    return BoxTable(
        root=first.root,
        images=first.images + second.images,
        groups=first.groups + second.groups,
        splits=first.splits + second.splits,
        sizes=torch.cat([first.sizes, second.sizes]),
        image_index=torch.cat([first.image_index, second.image_index + start]),
        boxes=torch.cat([first.boxes, second.boxes]),
        labels=torch.cat([first.labels, numbers[second.labels]]),
        classes=classes,
        ids=first.ids + second.ids,
        skipped=first.skipped + second.skipped,
        note="; ".join(dict.fromkeys([first.note, second.note])),
        skipped_index=first.skipped_index + tuple(at + start for at in second.skipped_index),
    )


def split_pictures(table: BoxTable, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the pictures by group, the same way whatever their order.

    The groups are ordered by a hash of seed and name, so that a group keeps its place when others are
    added.

    Args:
        table: Table of the pictures.
        fraction: Fraction of the groups to hold out, rounded, but one group at least where it is
            positive, and never all.
        seed: Other seeds hold out other groups.

    Returns:
        Indices of the pictures kept, and of those held out.

    Raises:
        BadInput: If the fraction is not in [0, 1), or there is only one group to split.

    Examples:
        >>> table = BoxTable(
        ...     root=Path(), images=("a", "b", "c"), groups=("left", "left", "right"), splits=("",) * 3,
        ...     sizes=torch.ones(3, 2).long(), image_index=torch.zeros(0).long(),
        ...     boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), classes=(), ids=(),
        ...     skipped=(), note="",
        ... )
        >>> split_pictures(table, 0.1, seed=0)
        ([0, 1], [2])
    """
    if not 0 <= fraction < 1:
        msg = f"the fraction to hold out is {fraction}; choose one in [0, 1)"
        raise BadInput(msg)
    if fraction == 0:
        return _parted(table, set())
    groups = sorted(set(table.groups), key=lambda group: _digest(f"{seed}:{group}"))
    if len(groups) < 2:
        msg = f"all pictures are of one group, {listed(groups)}; give more groups or hold out none"
        raise BadInput(msg)
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    return _parted(table, set(groups[:count]))


def held_out(table: BoxTable, groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Split the pictures by the names of groups.

    Args:
        table: Table of the pictures.
        groups: Groups to hold out.

    Returns:
        Indices of the pictures kept, and of those held out.

    Raises:
        BadInput: If the table has no such group.
    """
    if unknown := [group for group in groups if group not in table.groups]:
        there = sorted(set(table.groups))
        msg = f"there is no group {listed(unknown)}; choose from {listed(there)}"
        raise BadInput(msg)
    return _parted(table, set(groups))


def _parted(table: BoxTable, groups: Set[str]) -> tuple[list[int], list[int]]:
    held = [group in groups for group in table.groups]
    places = range(len(held))
    return [at for at in places if not held[at]], [at for at in places if held[at]]


def _digest(text: str) -> bytes:
    # surrogateescape: names of files need not be UTF-8
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
