"""Data sets that planted faults are altered copies of: scenes, and the red cells of BCCD.

A set is written in one of three forms: pictures with boxes, the same with several proposals a box,
or ready patches with offsets, where what is labelled is apart from what is cut.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from lightning_bbox import Augment, BoxDataModule, CropGeometry, Reading, read_annotations
from lightning_bbox.data.drawing import SceneStyle, make_scenes
from tests.conftest import ROOT

Base = Literal["scenes", "bccd"]

SHARED = ROOT.parent / "shared"
BCCD = SHARED / "data" / "bccd"
PATCHES = 4_000
PER_BOX = 4  # proposals
_COUNTS = {"train": 1_000, "val": 100, "test": 200}  # scenes
_NOISE = 0.05


@dataclass(frozen=True)
class Boxes:
    """Pictures with boxes, before they are written.

    Attributes:
        names: File name of each picture.
        pictures: Where each lies, or its pixels.
        splits: Of each picture.
        index: The picture of each box.
        boxes: `xyxy` in pixels, edges.
        proposals: `PER_BOX` proposals of each box, where there are any.
        orientation: EXIF orientation of all pictures, where they have one.
    """

    names: tuple[str, ...]
    pictures: Sequence[Path | np.ndarray]
    splits: tuple[str, ...]
    index: np.ndarray
    boxes: np.ndarray
    proposals: np.ndarray | None = None
    orientation: int | None = None

    def sizes(self) -> np.ndarray:
        """Return width and height of the picture of each box."""
        return np.array([self.pixels(at).shape[1::-1] for at in range(len(self.names))])[self.index]

    def pixels(self, at: int) -> np.ndarray:
        picture = self.pictures[at]
        return np.asarray(Image.open(picture)) if isinstance(picture, Path) else picture

    def of(self, chosen: Sequence[int]) -> "Boxes":
        """Return some pictures with their boxes, in another order; several times where asked."""
        rows = [np.flatnonzero(self.index == at) for at in chosen]
        index = np.repeat(np.arange(len(chosen)), [len(own) for own in rows])
        boxes = np.concatenate(rows)
        return replace(
            self,
            names=tuple(f"{new}_{self.names[at]}" for new, at in enumerate(chosen)),
            pictures=[self.pictures[at] for at in chosen],
            splits=tuple(self.splits[at] for at in chosen),
            index=index,
            boxes=self.boxes[boxes],
            proposals=None if self.proposals is None else self.proposals[boxes],
        )


@dataclass(frozen=True)
class Patches:
    """Patches cut around proposals, and where their objects lie.

    Attributes:
        patches: uint8.
        offsets: x and y of the object from the patch's centre, in px.
        groups: The picture of each.
    """

    patches: np.ndarray
    offsets: np.ndarray
    groups: np.ndarray


def draw_scenes() -> Boxes:
    """Draw scenes as files would hold them: noise and all."""
    pictures, boxes, splits = [], [], []
    for seed, (split, count) in enumerate(_COUNTS.items()):
        drawn, theirs = make_scenes(count, SceneStyle("bright"), seed)
        noise = np.random.default_rng(seed).normal(0, 255 * _NOISE, drawn.shape)
        pictures += [*(drawn.numpy() + noise).round().clip(0, 255).astype(np.uint8)]
        boxes.append(theirs.numpy())
        splits += [split] * count
    names = tuple(f"{at:04}.png" for at in range(len(pictures)))
    return Boxes(names, pictures, tuple(splits), np.arange(len(names)), np.concatenate(boxes))


def read_bccd() -> Boxes:
    """Read the red cells of 20 px and more, with the splits of the results table."""
    table = read_annotations(BCCD).of_min_size(20).of_classes(["RBC"])
    roles = {
        stem: role
        for role in ("train", "val", "test")
        for stem in (BCCD / "ImageSets" / "Main" / f"{role}.txt").read_text().split()
    }
    used = sorted(set(table.image_index.tolist()))
    place = np.full(len(table.images), -1)
    place[used] = np.arange(len(used))
    return Boxes(
        tuple(Path(table.images[at]).name for at in used),
        [BCCD / table.images[at] for at in used],
        tuple(roles[Path(table.images[at]).stem] for at in used),
        place[table.image_index.numpy()],
        table.boxes.numpy().astype(np.float64),
    )


def fewer(boxes: Boxes, train: int) -> Boxes:
    """Keep the first training pictures, and those of the test."""
    kept = [at for at, split in enumerate(boxes.splits) if split == "train"][:train]
    return boxes.of([*kept, *(at for at, split in enumerate(boxes.splits) if split == "test")])


def only(boxes: Boxes, count: int) -> Boxes:
    """Keep the first boxes, and the pictures they are in."""
    kept = boxes.of(range(int(boxes.index[count - 1]) + 1))
    return replace(kept, index=kept.index[:count], boxes=kept.boxes[:count])


READ: dict[Base, Callable[[], Boxes]] = {"scenes": draw_scenes, "bccd": read_bccd}


def with_proposals(boxes: Boxes, shift: float = 5.0) -> Boxes:
    """Add proposals that are off by up to some px of a crop of context 1.5, in x and in y."""
    drawn = np.random.default_rng(7).uniform(-shift, shift, (len(boxes.boxes), PER_BOX, 2)) / 30
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    proposals = boxes.boxes[:, None] + np.tile(drawn * sides[:, None], 2)
    return replace(boxes, proposals=proposals)


def write_boxes(boxes: Boxes, folder: Path) -> None:
    """Write a table of the boxes, and link to the pictures or write them."""
    (folder / "pictures").mkdir(parents=True)
    for name, picture in zip(boxes.names, boxes.pictures, strict=True):
        path = folder / "pictures" / name
        if isinstance(picture, Path) and boxes.orientation is None:
            path.symlink_to(picture)
            continue
        whole = Image.open(picture) if isinstance(picture, Path) else Image.fromarray(picture)
        exif = Image.Exif()
        if boxes.orientation is not None:
            exif[0x0112] = boxes.orientation
        kept = {"quality": "keep"} if whole.format == "JPEG" else {}
        whole.save(path, "JPEG" if path.suffix == ".jpg" else "PNG", exif=exif, **kept)
    rows = [
        [f"pictures/{boxes.names[at]}", *box, "object", boxes.splits[at], boxes.names[at]]
        for at, box in zip(boxes.index.tolist(), boxes.boxes.tolist(), strict=True)
    ]
    _write_table(folder / "boxes.csv", [*_HEADER, "split", "group"], rows)
    if boxes.proposals is not None:
        rows = [
            [f"pictures/{boxes.names[at]}", *box, "object"]
            for at, own in zip(boxes.index.tolist(), boxes.proposals.tolist(), strict=True)
            for box in own
        ]
        _write_table(folder / "proposals.csv", _HEADER, rows)


_HEADER = ["image", "xmin", "ymin", "xmax", "ymax", "label"]


def _write_table(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def cut_patches(folder: Path, margin: int = 0) -> Patches:
    """Cut patches of 45 px from written pictures, each around a box moved by up to 5 px.

    Args:
        folder: What `write_boxes` wrote; its training boxes are taken.
        margin: Px on each side beyond the 45, around boxes that aren't moved.
    """
    side = 45 + 2 * margin
    data = BoxDataModule(
        str(folder),
        crop=CropGeometry(size=side, context=side / 30, reference_size=side),
        reading=Reading(allow_outside=True),
        augment=Augment(flip_x=False, flip_y=False),
        draws_per_epoch=PATCHES,
        compile=False,
    )
    samples = data.samples("train")
    if margin:
        samples = samples._replace(proposals=samples.gt_boxes)
        samples = samples.cut_at(data.geometry, samples.gt_boxes, samples.flips)
    crops = torch.cat([data.cut(samples.take(rows)) for rows in torch.arange(PATCHES).split(500)])
    sides = samples.proposals[:, 2:] - samples.proposals[:, :2]
    offsets = 30 * (samples.gt_boxes - samples.proposals)[:, :2] / sides
    groups = data.source.splits["train"].image_index[samples.items]
    patches = (255 * crops).round().byte().permute(0, 2, 3, 1).numpy()
    return Patches(patches, offsets.numpy(), groups.numpy())


def write_patches(patches: Patches, folder: Path, shifted: bool = True) -> None:
    """Write a file of patches, with the offsets where they are shifted."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = {"offsets": patches.offsets.astype(np.float32)} if shifted else {}
    np.savez(folder / "patches.npz", patches=patches.patches, groups=patches.groups, **offsets)


# What is done to annotations.


def exchange_axes(boxes: Boxes, _: np.random.Generator) -> Boxes:
    return replace(boxes, boxes=boxes.boxes[:, [1, 0, 3, 2]])


def mirror_boxes(share: float) -> Callable[[Boxes, np.random.Generator], Boxes]:
    """Mirror the boxes of a share of the pictures, and not the pictures."""

    def alter(boxes: Boxes, draws: np.random.Generator) -> Boxes:
        hit = (draws.random(len(boxes.names)) < share)[boxes.index]
        width = boxes.sizes()[:, :1]
        x1, y1, x2, y2 = np.split(boxes.boxes, 4, axis=1)
        mirrored = np.hstack([width - x2, y1, width - x1, y2])
        return replace(boxes, boxes=np.where(hit[:, None], mirrored, boxes.boxes))

    return alter


def exchange_pictures(boxes: Boxes, draws: np.random.Generator) -> Boxes:
    """Give each picture the annotations of another."""
    return replace(boxes, index=draws.permutation(len(boxes.names))[boxes.index])


def of_smaller_pictures(boxes: Boxes, _: np.random.Generator) -> Boxes:
    return replace(boxes, boxes=boxes.boxes * 0.75)


def turn_by_exif(boxes: Boxes, _: np.random.Generator) -> Boxes:
    """Have viewers turn the pictures upside down; boxes are those of the stored pixels."""
    return replace(boxes, orientation=3)


def propose_the_truth(boxes: Boxes, draws: np.random.Generator) -> Boxes:
    """Propose the annotations themselves, written by another tool to two digits."""
    assert boxes.proposals is not None
    slips = draws.uniform(-0.02, 0.02, boxes.proposals.shape)
    return replace(boxes, proposals=boxes.boxes[:, None] + slips)


def propose_nearer_in_training(boxes: Boxes, _: np.random.Generator) -> Boxes:
    assert boxes.proposals is not None
    tests = np.array(boxes.splits)[boxes.index] != "train"
    near = boxes.boxes[:, None] + (boxes.proposals - boxes.boxes[:, None]) / 5
    return replace(boxes, proposals=np.where(tests[:, None, None], boxes.proposals, near))


def invert_training_pictures(boxes: Boxes, _: np.random.Generator) -> Boxes:
    """Invert the training pictures, as those of another camera."""
    pictures = [
        255 - boxes.pixels(at) if split == "train" else boxes.pictures[at]
        for at, split in enumerate(boxes.splits)
    ]
    names = tuple(f"{Path(name).stem}.png" for name in boxes.names)
    return replace(boxes, names=names, pictures=pictures)


def leak_training_pictures(boxes: Boxes, _: np.random.Generator) -> Boxes:
    """Test on copies of the training pictures, under other names."""
    train = [at for at, split in enumerate(boxes.splits) if split == "train"]
    both = boxes.of([*train, *train])
    return replace(both, splits=("train",) * len(train) + ("test",) * len(train))


# What is done to the offsets of patches.


def exchange_offsets(patches: Patches, _: np.random.Generator) -> Patches:
    return replace(patches, offsets=patches.offsets[:, ::-1])


def turn_sign(share: float) -> Callable[[Patches, np.random.Generator], Patches]:
    """Turn the sign of x and y of a share of the pictures' patches."""

    def alter(patches: Patches, draws: np.random.Generator) -> Patches:
        hit = (draws.random(patches.groups.max() + 1) < share)[patches.groups]
        return replace(patches, offsets=np.where(hit[:, None], -1, 1) * patches.offsets)

    return alter


def shuffle_offsets(patches: Patches, draws: np.random.Generator) -> Patches:
    return replace(patches, offsets=draws.permutation(patches.offsets))


def move_offsets(by: float) -> Callable[[Patches, np.random.Generator], Patches]:
    def alter(patches: Patches, _: np.random.Generator) -> Patches:
        return replace(patches, offsets=patches.offsets + by)

    return alter


def add_label_noise(patches: Patches, draws: np.random.Generator) -> Patches:
    return replace(patches, offsets=patches.offsets + draws.normal(0, 4, patches.offsets.shape))


def label_again(patches: Patches, draws: np.random.Generator) -> Patches:
    """Put every patch in twice, once with an offset of its own and once with any other."""
    other = draws.uniform(-5, 5, patches.offsets.shape)
    return Patches(
        np.concatenate([patches.patches] * 2),
        np.concatenate([patches.offsets, other]),
        np.concatenate([patches.groups] * 2),
    )
