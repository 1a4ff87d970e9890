"""Ready patches as training data: the original question's form, or a torch dataset's."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_bbox.annotations.splits import hold_out_groups
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.data.draws import how_off
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.options import Shares
from lightning_bbox.data.patch_files import read_patches
from lightning_bbox.data.roles import share_note
from lightning_bbox.data.samples import Items, Source
from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter, UniformJitter
from lightning_bbox.pictures.store import ImageStore


class PatchDataModule(CropDataModule):
    """Ready patches with the object in the middle and a margin to shift in, or already shifted.

    The file is an `npy` array or an `npz` with the keys `patches` (uint8, N x H x W x C or N x C x
    H x W, 1 or 3 channels), optionally `groups` (N) and optionally `offsets` (N x 2; x, y in px):
    where the object lies from the patch's centre, for patches that are shifted already and are used
    as they are.

    Args:
        file: The patches.
        crop_size: Side of the crops; by default 10 less than the patches' where shifts are cut from
            the margin, the patches' own where they are shifted already.
        splits: Which groups train, validate and test.
        jitter: Law of the shifts; whole px up to the margin by default, so that nothing is
            resampled.
        common: What all data modules take (see `CropDataModule`), but for `crop` and `num_targets`.
            There is no `disk` to keep pixels on: the file is read whole.

    Raises:
        BadInput: The file isn't such an array, or the margin is too small for the shifts.
    """

    def __init__(
        self,
        file: str,
        *,
        crop_size: int | None = None,
        splits: Shares = Shares(),
        jitter: Jitter | None = None,
        **common: Any,  # noqa: ANN401 (typed there)
    ) -> None:
        self.file = file
        self.patches, self.groups, self.offsets = read_patches(expanded(file))
        side = min(self.patches.shape[1:3])
        default = side if self.offsets is not None else side - 10
        size = crop_size or default
        if size > side or size < 8:
            msg = f"{file}: crops of {size} px don't fit patches of {side} px; set crop_size"
            raise BadInput(msg)
        margin = (side - size) // 2
        if self.offsets is None and any((length - size) % 2 for length in self.patches.shape[1:3]):
            msg = (
                f"{file}: crops of {size} px leave an odd margin in patches of "
                f"{self.patches.shape[1]} x {self.patches.shape[2]}, so that their middle lies "
                f"between pixels; change crop_size by one"
            )
            raise BadInput(msg)
        if self.offsets is not None and jitter is not None:
            msg = f"{file}: its patches are shifted already (it has offsets); leave jitter out"
            raise BadInput(msg)
        if self.offsets is None:
            jitter = jitter or UniformJitter(shift=float(max(margin, 1)), integer=True)
        geometry = CropGeometry(size=size, context=1.0, reference_size=float(size))
        super().__init__(crop=geometry, jitter=jitter, num_targets=2, **common)
        largest = self.jitter.bounds(geometry)[0]
        if self.offsets is None and largest > margin:
            msg = (
                f"{file}: shifts of {largest:g} px around crops of {size} need patches of "
                f"{size + 2 * math.ceil(largest)} px, but these have {side}; lower the shift or "
                f"crop_size"
            )
            raise BadInput(msg)
        self.splits = splits

    def read(self) -> Source:
        """Lay the true boxes in the middle (or where the offsets say), and split by group."""
        count, height, width, _ = self.patches.shape
        size = self.geometry.size
        left, top = (width - size) / 2, (height - size) / 2
        middle = torch.tensor([left, top, left + size, top + size]).expand(count, 4)
        offsets = self.offsets
        boxes = middle if offsets is None else shift_boxes(middle, torch.from_numpy(offsets))
        names, groups = np.unique([str(group) for group in self.groups], return_inverse=True)
        asked = self.splits
        tested = asked.test_fraction, asked.seed, asked.test_fold
        held = {"test": hold_out_groups(set(names), *tested)}
        rest = set(names) - held["test"]
        held["val"] = hold_out_groups(rest, asked.val_fraction, asked.seed, asked.fold)
        held["train"] = rest - held["val"]
        splits = {}
        for name, chosen in held.items():
            index = torch.from_numpy(np.flatnonzero(np.isin(names, list(chosen))[groups]))
            splits[name] = Items(
                image_index=index,
                boxes=boxes[index].contiguous(),
                labels=torch.zeros_like(index),
                clusters=torch.from_numpy(groups)[index].long(),
                proposals=None if offsets is None else middle[index].contiguous(),
            )
        what = "patches" if len(names) == count else "groups"
        why = "because files of patches name no splits"
        roles = (
            "train: all other patches",
            f"val: {share_note('val', asked, f'training {what}')}, {why}",
            f"test: {share_note('test', asked, what)}, {why}",
        )
        note = f"{count} patches of {height} x {width}, " + (
            "shifts cut from the margin" if offsets is None else "already shifted"
        )
        store = ImageStore.from_array(self.patches)
        place = self.placement.place_of(4 * len(store.pixels), self.trainer)
        store.on_host = place == "pinned"
        return Source(store, splits, ("patch",), (note, *roles))


class TorchDataModule(CropDataModule):
    """Crops, proposals and true boxes of torch datasets or loaders of your own, in Python.

    Each yields `(crop, proposal, gt_box)`: a crop of 1 or 3 channels (C x H x W), uint8 or in
    [0, 1], and two boxes, `xyxy` in its pixels; a `DataLoader` batches of these. Each is walked
    through once, and kept as 8 bits; training then cuts around the proposals as `crop` says and
    mirrors, so leave random augmentation to `augment`. What lies beyond a crop repeats its border.

    Args:
        train: What to train on.
        val: What to validate on. That no picture is on both sides is yours to see to.
        test: What to test on.
        common: What all data modules take (see `CropDataModule`), but for `jitter`: proposals are
            given.

    Raises:
        BadInput: An item isn't of this form, or its boxes have no size.

    Examples:
        >>> box = torch.tensor([7.5, 7.5, 37.5, 37.5])
        >>> items = [(torch.rand(3, 45, 45), box, box + shift) for shift in (-2, 0, 3)]
        >>> data = TorchDataModule(items, items[:1], items[:1])
        >>> data.samples("train", draws=6).gt_boxes.shape
        torch.Size([6, 4])
    """

    def __init__(
        self,
        train: Any,  # noqa: ANN401 - the command line would ask for its fields, here and below
        val: Any,  # noqa: ANN401
        test: Any,  # noqa: ANN401
        **common: Any,  # noqa: ANN401 (typed there)
    ) -> None:
        super().__init__(**common)
        if common.get("jitter"):
            msg = "data.jitter draws no proposals where the dataset gives them; leave it out"
            raise BadInput(msg)
        self.datasets = {"train": train, "val": val, "test": test}

    def read(self) -> Source:
        """Walk through what each role has."""
        pictures: list[UInt8[np.ndarray, "h w 3"]] = []
        splits = {}
        for role, dataset in self.datasets.items():
            start, boxes = len(pictures), []
            for at, item in enumerate(_items_of(dataset)):
                picture, pair = _checked(item, f"item {at} of {role}")
                pictures.append(picture)
                boxes.append(pair)
            index = torch.arange(start, len(pictures))
            proposals, gt_boxes = torch.stack(boxes, dim=1) if boxes else torch.zeros(2, 0, 4)
            zeros = torch.zeros_like(index)
            splits[role] = Items(index, gt_boxes, zeros, index, proposals=proposals)
        law, told = how_off(splits["train"])
        store = ImageStore.from_pictures(pictures)
        store.on_host = self.placement.place_of(4 * len(store.pixels), self.trainer) == "pinned"
        note = f"{len(pictures)} crops of datasets, with proposals of their own"
        return Source(store, splits, ("object",), (note, *told), law)


def _items_of(dataset: Any) -> Iterator[Any]:  # noqa: ANN401 - a user's own
    """Walk through a dataset, or a loader's batches, item by item."""
    if isinstance(dataset, DataLoader):
        for batch in dataset:
            yield from zip(*batch, strict=True)
    elif hasattr(dataset, "__iter__"):
        yield from dataset
    else:
        yield from (dataset[at] for at in range(len(dataset)))


def _checked(item: Any, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], Tensor]:  # noqa: ANN401
    """Return an item's crop as 8 bits, and its proposal and true box, (2, 4)."""
    if not isinstance(item, tuple | list) or len(item) != 3:
        msg = f"{name} is no (crop, proposal, gt_box); have the dataset yield these three"
        raise BadInput(msg)
    crop, *boxes = (torch.as_tensor(part) for part in item)
    if crop.dim() != 3 or crop.shape[0] not in (1, 3):
        msg = f"{name} has a crop of shape {list(crop.shape)}; expected 1 or 3 x height x width"
        raise BadInput(msg)
    if crop.is_floating_point():
        if not bool(((crop >= 0) & (crop <= 1)).all()):
            msg = (
                f"{name} has a crop of {crop.min():g} to {crop.max():g}; expected 0 to 1, or uint8"
            )
            raise BadInput(msg)
        crop = (255 * crop).round().to(torch.uint8)
    if crop.dtype != torch.uint8:
        msg = f"{name} has a crop of {crop.dtype}; expected uint8, or a float in [0, 1]"
        raise BadInput(msg)
    for what, box in zip(("proposal", "true box"), boxes, strict=True):
        if box.shape != (4,) or not bool(box.isfinite().all() and (box[2:] > box[:2]).all()):
            msg = f"{name} has the {what} {box.tolist()}; expected x1, y1, x2, y2 of some size"
            raise BadInput(msg)
    picture = crop.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    return picture, torch.stack([box.float().cpu() for box in boxes])
