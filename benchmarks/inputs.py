"""Inputs that all questions share: random pixels, for zeros run faster than pictures do."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from benchmarks.runner import Setting
from lightning_bbox import Augment, CropGeometry, PatchDataModule
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Items, Samples, Source
from lightning_bbox.pictures.store import ImageStore

PATCH, CROP = 61, 45
FLIPS = Augment()
ONE_SAMPLE = CropGeometry(CROP)
JITTERED = Augment(brightness=0.2, contrast=0.2, saturation=0.2)


class RandomPictures(CropDataModule):
    """Pictures of noise with boxes that lie inside; training, validation and test share them.

    Args:
        pictures: How many.
        height: Of each, in pixels.
        width: Of each, in pixels.
        boxes: How many, spread evenly over the pictures.
        sides: Least and largest side of a box, in pixels.
        crop: How boxes are cut.
        batch_size: Samples of a batch.
        draws: Samples of an epoch.
        augment: What happens to training crops.
    """

    def __init__(
        self,
        pictures: int,
        height: int,
        width: int,
        boxes: int,
        sides: tuple[float, float],
        crop: CropGeometry,
        batch_size: int,
        draws: int,
        augment: Augment = FLIPS,
    ) -> None:
        super().__init__(
            crop=crop,
            num_targets=2,
            augment=augment,
            batch_size=batch_size,
            draws_per_epoch=draws,
            eval_draws=64,
        )
        self.pictures, self.height, self.width = pictures, height, width
        self.boxes, self.sides = boxes, sides

    def read(self) -> Source:
        """Draw pixels and boxes."""
        pixels = noise(self.pictures, self.height, self.width)
        low, high = self.sides
        drawn = torch.rand(self.boxes, 3, generator=keyed_generator("boxes"))
        side = low + (high - low) * drawn[:, :1]
        room = torch.tensor([self.width, self.height]) - side
        corner = room * drawn[:, 1:]
        index = torch.arange(self.boxes) * self.pictures // self.boxes
        labels = torch.zeros(self.boxes, dtype=torch.int64)
        items = Items(index, torch.cat([corner, corner + side], dim=1), labels, index)
        names = ("train", "val", "test")
        return Source(ImageStore.from_array(pixels), dict.fromkeys(names, items), ("box",))


def noise(count: int, height: int, width: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Draw random pixels."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def patch_data(
    folder: Path, patches: int, batch: int, draws: int, augment: Augment
) -> PatchDataModule:
    """Write random patches with a margin, and read them as a user would."""
    file = folder / f"patches-{patches}.npy"
    if not file.is_file():
        np.save(file, noise(patches, PATCH, PATCH))
    return PatchDataModule(
        str(file), crop_size=CROP, augment=augment, batch_size=batch, draws_per_epoch=draws
    )


def bank_of(data: CropDataModule, device: torch.device) -> UInt8[Tensor, "n 3 h w"]:
    """Return the pictures of a store, which are of one size, as uint8 NCHW: what peers cut from."""
    store = data.source.store.to(torch.device("cpu"))
    assert isinstance(store, ImageStore)
    pictures = np.stack([store.picture(index) for index in range(len(store))])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)


def batches_of(data: CropDataModule, batch: int, setting: Setting) -> list[Samples]:
    """Return the first batches of the first epoch's samples, on the device."""
    samples = data.samples("train", 0).to(setting.device)
    rows = torch.arange(len(samples.items), device=setting.device)
    return [samples.take(some) for some in rows.unfold(0, batch, batch)]


def crop_boxes(data: CropDataModule, samples: Samples) -> Float[Tensor, "b 4"]:
    """Return where the crops of samples lie."""
    return data.geometry.crop_boxes(samples.proposals)
