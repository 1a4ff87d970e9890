"""The three data modules: annotated pictures, ready patches, synthetic scenes."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_bbox.annotations import (
    BoxTable,
    concat_tables,
    held_out,
    read_annotations,
    split_pictures,
)
from lightning_bbox.augment import Augment
from lightning_bbox.boxes import shift_boxes
from lightning_bbox.compiling import Compile
from lightning_bbox.crops import CropGeometry
from lightning_bbox.data import CropDataModule, Items, Samples, Source, Split
from lightning_bbox.errors import BadInput, listed
from lightning_bbox.images import ImageStore
from lightning_bbox.jitter import Jitter, UniformJitter
from lightning_bbox.plan import stream_seed
from lightning_bbox.scenes import SceneKind, SceneStyle, cramer_rao_std, make_scenes


ROLES = ("train", "val", "test")


class BoxDataModule(CropDataModule):
    """Annotated pictures: VOC XML, COCO JSON, YOLO txt or CSV, recognised or named.

    Without any split named, `ImageSets/Main` files and folders called train, valid and test are used where they are
    there and share no group; otherwise pictures are split by group, seeded. The validation split is carved from the
    training pictures where none is named.

    Args:
        root: Folder of the data set.
        format: Format of the annotations.
        annotations: Annotation files or folders, relative to the root, where the usual places don't hold them.
        images: Folder of the pictures, relative to the root.
        classes: Classes to keep; all by default.
        min_size: Least width and height in pixels of the boxes to keep.
        train_split: Split names, or split files relative to the root; all that isn't named otherwise by default.
        val_split: The same for validation.
        test_split: The same for the test.
        test_groups: Groups to test on, instead of `test_split`.
        val_fraction: Share of the training groups to validate on, where no validation split is there.
        test_fraction: Share of the groups to test on, where no test split is there.
        split_seed: Seed of these shares; not the seed of the run, so that runs stay comparable.
        group_pattern: Regular expression whose first group, found in a picture's path, names its group.
        voc_base: Coordinate of the first pixel in VOC files.
        on_bad: Leave bad boxes out and list them, or refuse the first.
        crop: How proposals become crops.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh).
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes.
        draws_per_epoch: Training samples in an epoch; boxes are used evenly.
        eval_draws: Samples of each evaluation.
        seed: Seed of order, proposals and augmentation.
        compile: Compile the cut; `auto` does where there is a compiler.
    """

    def __init__(
        self,
        root: str,
        format: Literal["auto", "voc", "coco", "yolo", "csv"] = "auto",  # noqa: A002 (users' word)
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
        crop: CropGeometry = CropGeometry(),
        jitter: Jitter | None = None,
        num_targets: Literal[2, 4] = 2,
        augment: Augment | None = None,
        batch_size: int = 128,
        draws_per_epoch: int = 20_000,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
    ) -> None:
        super().__init__(
            crop, jitter, num_targets, augment, batch_size, draws_per_epoch, eval_draws, seed, compile
        )
        if test_split and test_groups:
            raise BadInput("data test_split and test_groups are both set; name the test one way")
        self.root = Path(root)
        self.classes, self.min_size = classes, min_size
        self.splits = SplitNames(*(_as_list(names) for names in (train_split, val_split, test_split)))
        self.test_groups = test_groups or []
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.read_table = partial(
            read_annotations,
            root,
            format=format,
            annotations=annotations,
            images=images,
            group_pattern=group_pattern,
            voc_base=voc_base,
            on_bad=on_bad,
        )

    def read(self) -> Source:
        """Read the annotations, split the pictures, and decode those that have a box left."""
        table, roles, notes = self._split_table()
        before = len(table.boxes)
        table = table.of_min_size(self.min_size)
        table = table.of_classes(self.classes) if self.classes else table
        if len(table.boxes) < before:
            notes.append(f"{len(table.boxes)} of {before} boxes kept by classes and least size")
        used = table.image_index.unique().tolist()
        place = torch.full((len(table.images),), -1)
        place[used] = torch.arange(len(used))
        store = ImageStore.from_files([table.root / table.images[at] for at in used], table.sizes[used])
        splits = {}
        for role in ROLES:
            chosen = torch.tensor([role == name for name in roles])
            mine = chosen[table.image_index]
            index = place[table.image_index[mine]]
            at_hand = zip(table.skipped, table.skipped_index, strict=True)
            skipped = tuple(sentence for sentence, at in at_hand if roles[at] == role)
            splits[role] = Items(index, table.boxes[mine], table.labels[mine], index, skipped=skipped)
        return Source(store, splits, table.classes, (table.note, *notes))

    def _split_table(self) -> tuple[BoxTable, list[str], list[str]]:
        """Read the table and give each picture a role; return notes on how."""
        names, notes = self.splits, list[str]()
        usual = not (names.any() or self.test_groups)
        if usual:
            names = _image_sets(self.root)
        if names.files():
            table, origins = self._read_split_files(names)
        else:
            table = self.read_table()
            origins = list(table.splits)
        if usual and not names.any():
            names = _usual_names(set(origins))
            if names.any() and (shared := _shared_groups(table, names.roles(origins))):
                notes.append(f"the files' own splits share groups ({listed(shared)}), so pictures are split by group")
                names = SplitNames([], [], [])
        roles = names.roles(origins)
        self._carve(table, roles, names)
        if shared := _shared_groups(table, roles):
            raise BadInput(f"groups {listed(shared)} lie in more than one split; split by group, or set group_pattern")
        if left := roles.count(""):
            notes.append(f"{left} pictures are in none of the named splits")
        return table, roles, notes

    def _read_split_files(self, names: "SplitNames") -> tuple[BoxTable, list[str]]:
        files = names.files()
        if len(files) != len(names.all()):
            raise BadInput(f"splits {listed(names.all())} mix files and names; use .txt files for all, or names for all")
        tables = [self.read_table(split_file=file) for file in files]
        origins = [file for file, table in zip(files, tables, strict=True) for _ in table.images]
        return concat_tables(tables), origins

    def _carve(self, table: BoxTable, roles: list[str], names: "SplitNames") -> None:
        """Fill in the test and validation roles that nobody named, from the training pictures."""
        if self.test_groups:
            for at in held_out(table, self.test_groups)[1]:
                roles[at] = "test"
        for role, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if role in roles:
                continue
            train = [at for at, name in enumerate(roles) if name == "train"]
            for at in split_pictures(table.pictures(train), fraction, self.split_seed)[1]:
                roles[train[at]] = role


class PatchDataModule(CropDataModule):
    """Ready patches with the object in the middle and a margin to shift in, or already shifted.

    The file is an `npy` array or an `npz` with the keys `patches` (uint8, N x H x W x C or N x C x H x W, 1 or 3
    channels), optionally `groups` (N) and optionally `offsets` (N x 2; x, y in px): where the object lies from the
    patch's centre, for patches that are shifted already and are used as they are.

    Args:
        file: The patches.
        crop_size: Side of the crops; by default 10 less than the patches' where shifts are cut from the margin, the
            patches' own where they are shifted already.
        val_fraction: Share of the groups that validate.
        test_fraction: Share of the groups that test.
        split_seed: Seed of the split.
        jitter: Law of the shifts; whole px up to the margin by default, so that nothing is resampled.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes.
        draws_per_epoch: Training samples in an epoch.
        eval_draws: Samples of each evaluation.
        seed: Seed of order, shifts and augmentation.
        compile: Compile the cut; `auto` does where there is a compiler.

    Raises:
        BadInput: The file isn't such an array, or the margin is too small for the shifts.
    """

    def __init__(
        self,
        file: str,
        crop_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        jitter: Jitter | None = None,
        augment: Augment | None = None,
        batch_size: int = 128,
        draws_per_epoch: int = 20_000,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
    ) -> None:
        self.file = file
        self.patches, self.groups, self.offsets = _load_patches(Path(file))
        side = min(self.patches.shape[1:3])
        default = side if self.offsets is not None else side - 10
        size = crop_size or default
        if size > side or size < 8:
            raise BadInput(f"{file}: crops of {size} px don't fit patches of {side} px; set crop_size to 8..{side}")
        margin = (side - size) // 2
        if self.offsets is None:
            jitter = jitter or UniformJitter(shift=float(max(margin, 1)), integer=True)
        geometry = CropGeometry(size=size, context=1.0, reference_size=float(size), supersample=1)
        super().__init__(
            geometry, jitter, 2, augment, batch_size, draws_per_epoch, eval_draws, seed, compile
        )
        largest = self.jitter.bounds(geometry)[0]
        if self.offsets is None and largest > margin:
            raise BadInput(
                f"{file}: shifts of {largest:g} px need patches of {size + 2 * math.ceil(largest)} px around crops of "
                f"{size}, but these have {side}; lower jitter.shift or crop_size"
            )
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed

    def read(self) -> Source:
        """Lay the true boxes in the middle (or where the offsets say), and split by group."""
        count, height, width, _ = self.patches.shape
        size = self.geometry.size
        left, top = (width - size) / 2, (height - size) / 2
        middle = torch.tensor([left, top, left + size, top + size]).expand(count, 4)
        offsets = self.offsets
        boxes = middle if offsets is None else shift_boxes(middle, torch.from_numpy(offsets))
        names, groups = np.unique(self.groups, return_inverse=True)
        sides = _split_names([str(name) for name in names], self.val_fraction, self.test_fraction, self.split_seed)
        splits = {}
        for name, chosen in sides.items():
            index = torch.from_numpy(np.flatnonzero(np.isin(groups, chosen)))
            splits[name] = Items(
                image_index=index,
                boxes=boxes[index].contiguous(),
                labels=torch.zeros_like(index),
                clusters=torch.from_numpy(groups)[index].long(),
                proposals=None if offsets is None else middle[index].contiguous(),
            )
        note = f"{count} patches of {height} x {width}, " + (
            "shifts cut from the margin" if offsets is None else "already shifted"
        )
        return Source(ImageStore.from_array(self.patches), splits, ("patch",), (note,))


class SceneDataModule(CropDataModule):
    """Built-in synthetic scenes with exact boxes: no files needed.

    Noise is added after the cut, at a known level, so that the Cramer-Rao bound of the test scenes is known.

    Args:
        kind: What sets the object apart: always `bright`, `polar` (randomly brighter or darker), or `texture` alone.
        plain: Discs on a flat background without clutter, the textbook case.
        num_scenes: Training scenes; validation and test have a tenth and a fifth of it more.
        noise: Standard deviation of the noise, as a fraction of the range.
        crop: How proposals become crops.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh).
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes.
        draws_per_epoch: Training samples in an epoch.
        eval_draws: Samples of each evaluation.
        seed: Seed of order, proposals and augmentation; the scenes don't depend on it.
        compile: Compile the cut; `auto` does where there is a compiler.

    Examples:
        >>> data = SceneDataModule(num_scenes=100, compile=False)
        >>> data.setup("fit")
        >>> len(data.source.store)
        130
    """

    def __init__(
        self,
        kind: SceneKind = "bright",
        plain: bool = False,
        num_scenes: int = 4_000,
        noise: float = 0.05,
        crop: CropGeometry = CropGeometry(),
        jitter: Jitter | None = None,
        num_targets: Literal[2, 4] = 2,
        augment: Augment | None = None,
        batch_size: int = 128,
        draws_per_epoch: int = 20_000,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
    ) -> None:
        if num_scenes < 10:
            raise BadInput(f"data num_scenes is {num_scenes}; expected at least 10, so that every split has some")
        if noise <= 0:
            raise BadInput(f"data noise is {noise}; expected above 0, so that the Cramer-Rao bound exists")
        super().__init__(
            crop, jitter, num_targets, augment, batch_size, draws_per_epoch, eval_draws, seed, compile, noise
        )
        self.style = SceneStyle(kind, plain)
        self.num_scenes = num_scenes

    def read(self) -> Source:
        """Draw the scenes of each split from a seed of its own."""
        counts = {"train": self.num_scenes, "val": self.num_scenes // 10, "test": self.num_scenes // 5}
        pictures, splits, start = [], {}, 0
        for name, count in counts.items():
            drawn, boxes = make_scenes(count, self.style, stream_seed("scenes", name))
            index = torch.arange(start, start + count)
            splits[name] = Items(index, boxes, torch.zeros_like(index), index)
            pictures.append(drawn.numpy())
            start += count
        note = f"{self.style.kind} scenes{', plain' if self.style.plain else ''}, noise {self.sensor_noise:g} of the range"
        return Source(ImageStore.from_array(np.concatenate(pictures)), splits, ("object",), (note,))

    def bounds(self, split: Split) -> dict[str, float]:
        """Return the mean absolute error of an unbiased Gaussian estimate at the Cramer-Rao bound."""
        samples = self.samples(split).to(self.source.store.pixels.device)
        stds = torch.cat([self._cramer_rao(samples.take(rows)) for rows in torch.arange(len(samples.items)).split(256)])
        return {"cramer_rao_mae_px": float(stds.mean()) * math.sqrt(2 / math.pi)}

    def _cramer_rao(self, samples: Samples, step_px: float = 0.25) -> Tensor:
        """Bound each sample's shift, from central differences of the noise-free crop."""
        px = self.geometry.px(samples.anchors)
        derivatives = []
        for axis in (0, 1):
            step = torch.zeros_like(px)
            step[:, axis] = step_px * px[:, axis]
            ahead, behind = (
                self.cut(samples._replace(anchors=shift_boxes(samples.anchors, sign * step))) for sign in (1, -1)
            )
            derivatives.append((ahead - behind) / (2 * step_px))
        return cramer_rao_std(derivatives[0], derivatives[1], self.sensor_noise)


class SplitNames(NamedTuple):
    """Which of the files' splits serve which role; empty lists where nobody said."""

    train: list[str]
    val: list[str]
    test: list[str]

    def all(self) -> list[str]:
        """Return every name."""
        return [*self.train, *self.val, *self.test]

    def any(self) -> bool:
        """Tell whether any is named."""
        return bool(self.all())

    def files(self) -> list[str]:
        """Return the names that are split files."""
        return [name for name in self.all() if name.endswith(".txt")]

    def roles(self, origins: Sequence[str]) -> list[str]:
        """Return each picture's role; what isn't named trains, unless training is named."""
        if unknown := [name for name in self.all() if name not in origins]:
            there = sorted({origin for origin in origins if origin})
            raise BadInput(f"there is no split {listed(unknown)}; the files have {listed(there) or 'none'}")
        role_of = {name: role for role in ROLES for name in getattr(self, role)}
        rest = "" if self.train else "train"
        return [role_of.get(origin, rest) for origin in origins]


def _image_sets(root: Path) -> SplitNames:
    """Return VOC's split files, where training and test ones are there."""
    folder = Path("ImageSets") / "Main"
    there = {path.stem: str(folder / path.name) for path in (root / folder).glob("*.txt")}
    if "test" not in there or not {"trainval", "train"} & there.keys():
        return SplitNames([], [], [])
    if "trainval" in there:
        return SplitNames([there["trainval"]], [], [there["test"]])
    return SplitNames([there["train"]], [there["val"]] if "val" in there else [], [there["test"]])


def _usual_names(there: set[str]) -> SplitNames:
    """Return the splits that go by the usual names."""
    usual = (("train", "trainval", "training"), ("val", "valid", "validation", "dev"), ("test", "testing"))
    return SplitNames(*([name for name in names if name in there] for names in usual))


def _shared_groups(table: BoxTable, roles: Sequence[str]) -> list[str]:
    """Return the groups that lie in more than one role."""
    seen: dict[str, set[str]] = {}
    for group, role in zip(table.groups, roles, strict=True):
        seen.setdefault(group, set()).add(role)
    return sorted(group for group, found in seen.items() if len(found - {""}) > 1)


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _split_names(names: Sequence[str], val: float, test: float, seed: int) -> dict[str, list[int]]:
    """Split groups by the hash of their names: test first, validation from the rest."""
    order = sorted(range(len(names)), key=lambda index: stream_seed("split", seed, names[index]))
    num_test, num_val = (max(1, round(fraction * len(names))) for fraction in (test, val))
    if num_test + num_val >= len(names):
        raise BadInput(f"{len(names)} groups can't be split into training, validation and test; give more groups")
    return {
        "test": order[:num_test],
        "val": order[num_test : num_test + num_val],
        "train": order[num_test + num_val :],
    }


def _load_patches(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read and check the arrays: RGB patches (N, H, W, 3), groups (N,), offsets (N, 2) or None."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; set data.file to an npy or npz of patches") from error
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: can't be read as npy or npz ({error})") from error
    arrays = {"patches": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    if "patches" not in arrays:
        raise BadInput(f"{path}: has no key 'patches', only {listed(sorted(arrays))}")
    patches = arrays["patches"]
    if patches.ndim != 4 or patches.dtype != np.uint8:
        raise BadInput(
            f"{path}: patches are {patches.dtype} of shape {patches.shape}; expected uint8, N x H x W x C or N x C x H x W"
        )
    if patches.shape[-1] not in (1, 3) and patches.shape[1] in (1, 3):
        patches = patches.transpose(0, 2, 3, 1)
    if patches.shape[-1] not in (1, 3):
        raise BadInput(f"{path}: patches of shape {patches.shape} have neither 1 nor 3 channels")
    patches = np.ascontiguousarray(np.broadcast_to(patches, (*patches.shape[:3], 3)))
    groups = arrays.get("groups", np.arange(len(patches)))
    if groups.shape != (len(patches),):
        raise BadInput(f"{path}: groups have shape {groups.shape}; expected ({len(patches)},), one a patch")
    offsets = arrays.get("offsets")
    if offsets is None:
        return patches, groups, None
    if offsets.shape != (len(patches), 2) or not np.isfinite(offsets).all():
        raise BadInput(
            f"{path}: offsets have shape {offsets.shape}; expected ({len(patches)}, 2), finite, x and y in px"
        )
    return patches, groups, offsets.astype(np.float32)
