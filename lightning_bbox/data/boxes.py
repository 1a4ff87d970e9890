"""Annotated pictures as training data: read, split without leaks, decoded once."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_bbox.annotations.formats.known import FormatName
from lightning_bbox.annotations.pictures import pictures_named
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import (
    NO_NAMES,
    ROLES,
    SplitNames,
    all_names,
    check_names,
    held_out,
    image_sets,
    roles_of,
    shared_groups,
    split_files,
    split_pictures,
    usual_names,
)
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.compiling import CutCompile
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.data.draws import BatchSize
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Items, Source
from lightning_bbox.geometry.boxes import box_sizes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter
from lightning_bbox.pictures.augment import Augment
from lightning_bbox.pictures.places import Store, open_store, usual_folder
from lightning_bbox.pictures.store import PictureFiles


class BoxDataModule(CropDataModule):
    """Annotated pictures: VOC XML, COCO JSON, YOLO txt or CSV, recognised or named.

    Without any split named, `ImageSets/Main` files and folders called train, valid and test are
    used where they are there and share no group; otherwise pictures are split by group, seeded. The
    validation split is carved from the training pictures where none is named.

    Args:
        root: Folder of the data set.
        format: Format of the annotations.
        annotations: Annotation files or folders, relative to the root, where the usual places don't
            hold them.
        images: Folder of the pictures, relative to the root.
        classes: Classes to keep; all by default.
        min_size: Least width and height in pixels of the boxes to keep.
        train_split: Split names, or split files relative to the root; all that isn't named
            otherwise by default.
        val_split: The same for validation.
        test_split: The same for the test.
        test_groups: Groups to test on, instead of `test_split`.
        val_fraction: Share of the training groups to validate on, where no validation split is
            there.
        test_fraction: Share of the groups to test on, where no test split is there.
        split_seed: Seed of these shares; not the seed of the run, so that runs stay comparable.
        group_pattern: Regular expression whose first group, found in a picture's path, names its
            group.
        voc_base: Coordinate of the first pixel in VOC files.
        on_bad: Leave bad boxes out (`predict`: as they are) and list them, or refuse the first.
        allow_outside: Whether files may lie outside the root, as links do.
        crop: How proposals become crops; a trained model knows, others take `CropGeometry()`.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh); a trained model
            knows, others learn 2.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes; `auto` takes the smallest within
            5 % of the most crops a second, measured when training begins.
        draws_per_epoch: Training samples in an epoch; boxes are used evenly.
        eval_draws: Samples of each evaluation.
        seed: Seed of order, proposals and augmentation.
        compile: Compile the cut; `auto` does where there is a compiler, `triton` cuts by a kernel
            written in Triton instead (CUDA; its speed is not measured yet).
        val_fold: Which share of the training groups validates, from 0, for cross-validation: the
            folds share no group, and together they are all.
        store: Where the pixels are kept: on the `device`; in the memory of the host (`pinned`),
            where crops are cut ahead and sent over; in a file on `disk` that is mapped, for sets
            that exceed the memory; `auto` takes the first of these that has room.
        store_folder: Folder of that file, which later runs use again; one for this root in the
            user's cache folder by default.
    """

    keeps_on_disk = True

    def __init__(
        self,
        root: str,
        format: FormatName = "auto",  # noqa: A002 (users' word)
        annotations: str | list[str] | None = None,
        images: str | None = None,
        classes: list[str] | None = None,
        min_size: float = 0.0,
        train_split: str | list[str] | None = None,
        val_split: str | list[str] | None = None,
        test_split: str | list[str] | None = None,
        test_groups: list[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        group_pattern: str | None = None,
        voc_base: Literal[0, 1] = 1,
        on_bad: Literal["skip", "error"] = "skip",
        allow_outside: bool = False,
        crop: CropGeometry | None = None,
        jitter: Jitter | None = None,
        num_targets: Literal[2, 4] | None = None,
        augment: Augment = Augment(),
        batch_size: BatchSize = 128,
        draws_per_epoch: int = 20_000,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: CutCompile = "auto",  # noqa: A002 (the name of the option everywhere)
        val_fold: int = 0,
        store: Store = "auto",
        store_folder: str | None = None,
    ) -> None:
        super().__init__(
            crop,
            jitter,
            num_targets,
            augment,
            batch_size,
            draws_per_epoch,
            eval_draws,
            seed,
            compile,
            store=store,
        )
        if test_split and test_groups:
            msg = "data test_split and test_groups are both set; name the test one way"
            raise BadInput(msg)
        self.root, self.allow_outside = Path(root), allow_outside
        self.store_folder = Path(store_folder) if store_folder else usual_folder(self.root)
        self.rough: RoughBoxes | None = None
        self.classes, self.min_size = classes, min_size
        self.splits = SplitNames(
            *(_as_list(names) for names in (train_split, val_split, test_split))
        )
        check_names(self.splits)
        self.test_groups = test_groups or []
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed, self.val_fold = split_seed, val_fold
        self.read_table = partial(
            read_annotations,
            root,
            format=format,
            annotations=annotations,
            images=images,
            group_pattern=group_pattern,
            voc_base=voc_base,
            on_bad=on_bad,
            allow_outside=allow_outside,
        )

    def read(self) -> Source:
        """Read the annotations, split the pictures, and decode those that have a box left."""
        table, roles, notes = self._split_table()
        whole = table
        table = table.of_min_size(self.min_size)
        table = table.of_classes(self.classes) if self.classes else table
        if len(table.boxes) < (before := len(whole.boxes)):
            notes.append(f"{len(table.boxes)} of {before} boxes kept by classes and least size")
        _check_splits(whole, table, roles)
        used = sorted({at for at in table.image_index.tolist() if roles[at]})
        place = torch.full((len(table.images),), -1)
        place[used] = torch.arange(len(used))
        paths, sizes = [table.root / table.images[at] for at in used], table.sizes[used]
        home = self.place(needed=4 * int(sizes.prod(dim=1).sum()))
        store = open_store(home, self.store_folder, paths, sizes)
        splits = {}
        for role in ROLES:
            chosen = torch.tensor([role == name for name in roles])
            mine = chosen[table.image_index]
            index = place[table.image_index[mine]]
            at_hand = zip(table.skipped, table.skipped_index, strict=True)
            skipped = tuple(sentence for sentence, at in at_hand if roles[at] == role)
            ids = tuple(compress(table.ids, mine.tolist()))
            splits[role] = Items(
                index, table.boxes[mine], table.labels[mine], index, skipped=skipped, ids=ids
            )
        return Source(store, splits, table.classes, (table.note, *notes))

    def read_rough(self) -> Source:
        """Read every box that the annotation files hold, of whatever split, as a proposal."""
        table = self.read_table(group_pattern=None)
        reasons = self._unasked(table)
        chosen = torch.tensor([not reason for reason in reasons], dtype=torch.bool)
        boxes, index = table.boxes[chosen], table.image_index[chosen]
        items = Items(index, boxes, table.labels[chosen], index, proposals=boxes)
        self.rough = RoughBoxes(table, chosen.nonzero().flatten(), reasons)
        pictures = PictureFiles([table.root / name for name in table.images], table.sizes)
        return Source(pictures, {"predict": items}, table.classes, (table.note,))

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

    def _split_table(self) -> tuple[BoxTable, list[str], list[str]]:
        """Read the table and give each picture a role; return notes on how."""
        names, notes = self.splits, list[str]()
        usual = not (all_names(names) or self.test_groups)
        if usual:
            names = image_sets(self.root)
        if split_files(names):
            table, origins = self._read_split_files(names)
        else:
            table = self.read_table()
            origins = list(table.splits)
        _check_boxes(table)
        if usual and not all_names(names):
            names = usual_names(set(origins))
            if shared := shared_groups(table.groups, roles_of(origins, names)):
                notes.append(
                    f"the files' own splits share groups ({listed(shared)}), "
                    f"so pictures are split by group"
                )
                names = NO_NAMES
        roles = roles_of(origins, names)
        self._carve(table, roles)
        if shared := shared_groups(table.groups, roles):
            msg = f"groups {listed(shared)} lie in more than one split; name other splits or groups"
            raise BadInput(msg)
        if left := roles.count(""):
            notes.append(f"{left} pictures are in none of the named splits")
        return table, roles, notes

    def _read_split_files(self, names: SplitNames) -> tuple[BoxTable, list[str]]:
        """Read all pictures, those first that split files name, and tell which file names each."""
        table, named = self.read_table(), dict[str, str]()
        for file in split_files(names):
            images = pictures_named(table.images, table.root, file, self.allow_outside)
            if twice := [image for image in images if image in named]:
                problem = f"{twice[0]} is named in {named[twice[0]]} too"
                raise BadInput.at(file, problem, "put each picture into one split")
            named |= dict.fromkeys(images, file)
        places = {image: at for at, image in enumerate(table.images)}
        order = [*named, *(image for image in table.images if image not in named)]
        origins = [named.get(image, "") for image in order]
        return table.pictures([places[image] for image in order]), origins

    def _carve(self, table: BoxTable, roles: list[str]) -> None:
        """Fill in the test and validation roles that nobody named, from the training pictures."""
        if self.test_groups:
            for at in held_out(table.groups, self.test_groups)[1]:
                roles[at] = "test"
        carved = ("test", self.test_fraction, 0), ("val", self.val_fraction, self.val_fold)
        for role, fraction, fold in carved:
            if role in roles:
                if fold:
                    msg = f"data.val_fold is {fold}, but the {role} split is there; leave one out"
                    raise BadInput(msg)
                continue
            train = [at for at, name in enumerate(roles) if name == "train"]
            for at in split_pictures(
                [table.groups[at] for at in train], fraction, self.split_seed, fold
            )[1]:
                roles[train[at]] = role


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


def _check_boxes(table: BoxTable) -> None:
    """Refuse a data set without any box, and say why there is none."""
    if len(table.boxes):
        return
    files = listed(table.files)
    if not table.skipped:
        raise BadInput.at(files, "has no boxes", "annotate some or name other files")
    convention = table.note.partition(", read from")[0]
    problem = f"none of the {len(table.skipped)} boxes can be used, read as {convention}"
    first = table.skipped[0].removesuffix("; left out")
    raise BadInput.at(files, problem, f"correct them, such as {first}")


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
                f"{had} not kept by classes and min_size); change these or the splits"
            )
            raise BadInput(msg)


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
