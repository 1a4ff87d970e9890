"""Annotated pictures as training data: read, split without leaks, decoded once."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.proposals.matching import (
    Matching,
    match_proposals,
    sentence_of,
    unmatched,
)
from lightning_bbox.annotations.proposals.reading import read_proposals
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import ROLES
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.validity import LEFT_OUT
from lightning_bbox.core.cache_file import usual_folder
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded
from lightning_bbox.core.tiff import TiffPart, refuse_other_part
from lightning_bbox.data.draws import how_off
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.options import Reading, Splits
from lightning_bbox.data.roles import assign_roles
from lightning_bbox.data.samples import Items, Source
from lightning_bbox.geometry.boxes import Boxes, box_sizes
from lightning_bbox.geometry.codecs import OffsetSpec, White, as_white, refuse_other_white
from lightning_bbox.pictures.decode import are_large, find_levels
from lightning_bbox.pictures.disk import open_disk_store
from lightning_bbox.pictures.pyramid import num_pixels
from lightning_bbox.pictures.store import ImageStore, PictureFiles

_MOST_SEEN = 1 << 27  # pixels, evenly spread, that are looked at for the white level


class BoxDataModule(CropDataModule):
    """Annotated pictures: VOC XML, COCO JSON, YOLO txt or CSV, recognised or named.

    A role that no split is named for is that of the file in `ImageSets/Main`, of the folder or of
    the split that goes by its name (train, valid, test and the like), where these share no group;
    otherwise it is carved from the training pictures by group, seeded. A note says how each role
    came about.

    Where proposals are given, they are what is to be corrected, instead of boxes that a jitter law
    draws: each is matched to a true box, and what finds no partner is left out, counted and listed.
    How they are off is told in words. `predict` then refines them.

    Args:
        root: Folder of the data set; in Python a table may be given instead.
        classes: Classes to keep; all by default.
        min_size: Least width and height in pixels of the boxes to keep.
        use_marked: Whether boxes that are marked difficult or to be ignored are trained and
            evaluated on too; `predict` moves them anyway.
        splits: Which pictures train, validate and test.
        reading: How the annotation files are found and read.
        proposals: Files or folders of proposals, relative to the root, in any format; such as a
            detector's results, or boxes of hasty annotators.
        matching: How proposals find their true boxes.
        white_level: The value that is white in pictures of 16 bits a band, where 0 is black, or
            `[BLACK, WHITE]` in those of more than 8 bits, such as of floats; a trained model knows
            which. Else `auto` takes the smallest 2^k - 1 that holds the largest value of the
            training pictures, and of floats all but a thousandth at either end.
        table: A `BoxTable`, in Python: pictures and boxes that need not be read from files.
        common: What all data modules take (see `CropDataModule`).

    Raises:
        BadInput: Options contradict each other, or neither a root nor a table is given.
    """

    keeps_on_disk = True

    def __init__(
        self,
        root: str | None = None,
        *,
        classes: list[str] | None = None,
        min_size: float = 0.0,
        use_marked: bool = False,
        splits: Splits = Splits(),
        reading: Reading = Reading(),
        proposals: str | list[str] | None = None,
        matching: Matching = Matching(),
        white_level: int | tuple[float, float] | Literal["auto"] = "auto",
        table: Any = None,  # noqa: ANN401 - the command line would ask for each of its fields
        **common: Any,  # noqa: ANN401 (typed there)
    ) -> None:
        super().__init__(**common)
        if proposals and common.get("jitter"):
            msg = "data.proposals are given, so data.jitter draws none; leave one of them out"
            raise BadInput(msg)
        self.proposals = [proposals] if isinstance(proposals, str) else proposals
        self.matching = matching
        self._white_asked: White | None = None if white_level == "auto" else as_white(white_level)
        self._white_trained: White | None = None
        self.table = _checked(table, root, splits)
        self.root = expanded(root or "") if self.table is None else self.table.root
        self.splits, self.reading = splits, reading
        self.rough: RoughBoxes | None = None
        if not 0 <= min_size < math.inf:
            msg = f"data.min_size is {min_size}; expected 0 or more pixels"
            raise BadInput(msg)
        self.classes, self.min_size, self.use_marked = classes, min_size, use_marked
        self.read_table = partial(
            read_annotations, self.root, group_pattern=splits.group_pattern, **vars(reading)
        )

    def read(self) -> Source:
        """Read the annotations, split the pictures, and decode those that have a box left."""
        table = self.read_table() if self.table is None else self.table
        _check_boxes(table)
        self.part = table.part
        table, roles, notes = assign_roles(table, self.splits, self.reading.allow_outside)
        whole = table
        table = table.of_min_size(self.min_size)
        table = table.of_classes(self.classes) if self.classes else table
        if len(table.boxes) < (before := len(whole.boxes)):
            notes.append(f"{len(table.boxes)} of {before} boxes kept by classes and least size")
        table, marked = (table, []) if self.use_marked else table.without_marked()
        role_of = dict(zip(table.images, roles, strict=True))
        notes += _marked_notes(Counter(role_of[image] for image, _ in marked))
        _check_splits(whole, table, roles)
        given = self._given(table)
        image_index = table.image_index[given.truths]
        used = sorted({at for at in image_index.tolist() if roles[at]})
        place = torch.full((len(table.images),), -1)
        place[used] = torch.arange(len(used))
        paths, sizes = [table.root / table.images[at] for at in used], table.sizes[used]
        notes += self._settle_white(table, used, [at for at in used if roles[at] == "train"])
        store = self._open_store(paths, sizes)
        numbers = {group: number for number, group in enumerate(sorted(set(table.groups)))}
        groups = torch.tensor([numbers[group] for group in table.groups])
        splits = {}
        for role in ROLES:
            mine = torch.tensor([role == name for name in roles])[image_index]
            truths, index = given.truths[mine], image_index[mine]
            at_hand = zip(table.skipped, table.skipped_index, strict=True)
            skipped = [sentence for sentence, at in at_hand if roles[at] == role]
            left_out = [*marked, *given.left_out]
            skipped += [each for image, each in left_out if role_of.get(image) == role]
            splits[role] = Items(
                place[index],
                table.boxes[truths],
                table.labels[truths],
                groups[index],
                proposals=None if given.proposals is None else given.proposals[mine],
                skipped=tuple(skipped),
                ids=tuple(table.ids[at] for at in truths.tolist()),
            )
        law, told = how_off(splits["train"])
        said = table.note, *notes, *given.notes, *told
        return Source(store, splits, table.classes, said, law, table.missing)

    def _given(self, table: BoxTable) -> "_Given":
        """Match the proposals that are given to true boxes, or take each of these once."""
        if not self.proposals:
            return _Given(torch.arange(len(table.boxes)))
        others = read_proposals(partial(self.read_table, rough=True), self.root, self.proposals)
        known = [name in table.classes for name in others.classes]
        if self.classes:
            others = others.boxes_where(torch.tensor(known)[others.labels])
        pairs = match_proposals(table, others, self.matching)
        note = sentence_of(table, others, pairs, self.matching)
        lone = unmatched(table, others, pairs)
        return _Given(pairs.truths, others.boxes[pairs.proposals], lone, (note,))

    def _open_store(self, paths: list[Path], sizes: Int64[Tensor, "n 2"]) -> ImageStore:
        """Decode the pictures to where they are kept; on disk they may be already."""
        whole = sizes[~are_large(sizes)]  # the others take memory only where crops are cut
        place = self.placement.place_of(4 * int(num_pixels(whole).sum()), self.trainer)
        if place == "disk":
            asked = self.placement.folder
            folder = expanded(asked) if asked else usual_folder(self.root)
            return open_disk_store(folder, paths, sizes, self.white_level, self.part)
        store = ImageStore.from_files(paths, sizes, white_level=self.white_level, part=self.part)
        store.on_host |= place == "pinned"
        return store

    def rough_table(self) -> BoxTable:
        """Read every box that is to be refined, of whatever split and class."""
        read_table = partial(self.read_table, rough=True)
        if self.proposals:
            return read_proposals(read_table, self.root, self.proposals)
        return read_table(group_pattern=None) if self.table is None else self.table

    def read_rough(self) -> Source:
        """Read every box that is given, of whatever split, as a proposal."""
        table = self.rough_table()
        self.part = table.part
        reasons = self._unasked(table)
        chosen = torch.tensor([not reason for reason in reasons], dtype=torch.bool)
        boxes, index = table.boxes[chosen], table.image_index[chosen]
        items = Items(index, boxes, table.labels[chosen], index, proposals=boxes)
        self.rough = RoughBoxes(table, chosen.nonzero().flatten(), reasons)
        used = sorted(set(index.tolist()))
        notes = self._settle_white(table, used, used)
        paths = [table.root / name for name in table.images]
        pictures = PictureFiles(paths, table.sizes, white_level=self.white_level, part=table.part)
        return Source(pictures, {"predict": items}, table.classes, (table.note, *notes))

    def follow(self, spec: OffsetSpec, needs_class: bool = False) -> None:
        """Cut crops as a trained model knows them, of the same pages, bands and white level."""
        asked = self.read_table.keywords
        if self.table is None and TiffPart(asked["page"], asked["bands"]) == TiffPart():
            page, bands = spec.part.page, spec.part.bands
            self.read_table = partial(self.read_table, page=page, bands=bands)
            if self.part != spec.part:
                self._source = None  # read otherwise
        _ = self.source
        refuse_other_part(spec.part, self.part)
        known = spec.white_level
        if None not in (known, self.white_level) and known != self.white_level:
            if self._white_asked is not None:
                refuse_other_white(spec, self.white_level)
            self._white_trained = self.white_level = known
            self._source = None  # read otherwise
        super().follow(spec, needs_class)

    def _settle_white(
        self, table: BoxTable, used: Sequence[int], training: Sequence[int]
    ) -> list[str]:
        """Settle what is black and white in pictures of more than 8 bits, and say it."""
        deep = [at for at in used if table.images[at] in table.deep]
        if not deep:
            self.white_level = None
            return []
        if self._white_asked is not None:
            self.white_level, why = self._white_asked, "data.white_level"
        elif self._white_trained:
            self.white_level, why = self._white_trained, "as the model was trained"
        else:
            seen = sorted(set(deep).intersection(training)) or deep
            step = -(-int(table.sizes[seen].prod(dim=1).sum()) // _MOST_SEEN)
            paths = [table.root / table.images[at] for at in seen[::step]]
            self.white_level, found = find_levels(paths, table.part)
            why = f"auto: {found}"
        levels = f"{self.white_level} is white"
        if isinstance(self.white_level, tuple):
            black, white = self.white_level
            levels = f"{black:.6g} is black and {white:.6g} is white"
        share = f"{len(deep)} of {len(used)} pictures have more than 8 bits a band"
        return [f"{share}, where {levels} ({why})"]

    def _unasked(self, table: BoxTable) -> list[str]:
        """Say why a box is not to be refined, or nothing, for each of them."""
        asked = set(table.of_classes(self.classes).classes if self.classes else table.classes)
        large = (box_sizes(table.boxes) >= self.min_size).all(dim=1).tolist()
        labels = [table.classes[label] for label in table.labels.tolist()]
        reasons = []
        for label, is_large in zip(labels, large, strict=True):
            reason = "" if is_large else f"has a side below min_size {self.min_size:g}"
            reasons.append(reason if label in asked else f"is of class {label}, not of `classes`")
        return reasons


class _Given(NamedTuple):
    """The true boxes that items are of, with their proposals where these are given.

    What was left out for want of a partner comes with the path of its picture.
    """

    truths: Int64[Tensor, " n"]
    proposals: Boxes | None = None
    left_out: Sequence[tuple[str, str]] = ()
    notes: tuple[str, ...] = ()


class RoughBoxes(NamedTuple):
    """The boxes of the files that are to be refined.

    Attributes:
        table: All that was read.
        chosen: Which of the table's boxes are refined, in the order of the items.
        reasons: Why each box of the table is not refined, or nothing.
    """

    table: BoxTable
    chosen: Int64[Tensor, " n"]
    reasons: list[str]


def _checked(table: object, root: str | None, splits: Splits) -> BoxTable | None:
    """Return the table that is given, if one is instead of a root."""
    if table is None:
        if not root:
            msg = "data.root is not set; name the folder of the data set with --data.root DIR"
            raise BadInput(msg)
        return None
    if not isinstance(table, BoxTable):
        msg = f"data.table is {table!r}, no BoxTable; give one in Python, or set data.root"
        raise BadInput(msg)
    if root or splits.group_pattern:
        other = "data.root" if root else "data.splits.group_pattern"
        msg = f"a table and {other} are both given; leave one of them out"
        raise BadInput(msg)
    return table


def _check_boxes(table: BoxTable) -> None:
    """Refuse a data set without any box, and say why there is none."""
    if len(table.boxes):
        return
    files = listed(table.files)
    if not table.skipped:
        remedy = f"annotate some, or name other files with {argument('annotations')}"
        raise BadInput.at(files, "has no boxes", remedy)
    convention = table.note.partition(", read from")[0]
    problem = f"none of the {len(table.skipped)} boxes can be used, read as {convention}"
    first = table.skipped[0].removesuffix(LEFT_OUT)
    raise BadInput.at(files, problem, f"correct them, such as {first}")


def _marked_notes(counts: Mapping[str, int]) -> list[str]:
    """Say for each role how many of its boxes take no part because of a mark."""
    return [
        f"{role}: {count} {'box is' if count == 1 else 'boxes are'} marked difficult or to be "
        f"ignored, and left out; data.use_marked takes them"
        for role in ROLES
        if (count := counts[role])
    ]


def _check_splits(whole: BoxTable, kept: BoxTable, roles: Sequence[str]) -> None:
    """Refuse a split without any box, and say where they went."""
    for role in ROLES:
        pictures = roles.count(role)
        bad, had, left = (
            sum(roles[at] == role for at in index)
            for index in (
                whole.skipped_index,
                whole.image_index.tolist(),
                kept.image_index.tolist(),
            )
        )
        if not pictures:
            msg = f"the {role} split has no pictures; name some or give it a fraction above 0"
            raise BadInput(msg)
        if not left:
            msg = (
                f"the {role} split has no boxes left in its {pictures} pictures ({bad} were bad, "
                f"{had} not kept by classes, min_size and use_marked); change these or the splits"
            )
            raise BadInput(msg)
