"""How others cut and change crops, each written as its users would, from the same bank of pictures.

All take uint8 pictures (n, 3, h, w), the picture of each crop, and where to cut, and return float
crops in [0, 1]. Those that copy whole pictures convert as late as they can.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from kornia.augmentation import RandomCrop
from kornia.geometry.bbox import bbox_generator
from kornia.geometry.transform import crop_and_resize, crop_by_indices
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.runner import as_any, optional
from lightning_bbox.data.samples import Samples

Bank = UInt8[Tensor, "n 3 h w"]
Crops = Float[Tensor, "b 3 s s"]


def slice_loop(bank: Bank, index: list[int], corners: list[tuple[int, int]], size: int) -> Crops:
    """Slice each crop, and stack them."""
    cut = [
        bank[at, :, y : y + size, x : x + size] for at, (x, y) in zip(index, corners, strict=True)
    ]
    return torch.stack(cut).float() / 255


def kornia_indices(
    bank: Bank, index: Int64[Tensor, " b"], corners: Int64[Tensor, "b 2"], size: int
) -> Callable[[], Crops]:
    """Return kornia's `crop_by_indices` on the pictures of a batch."""
    side = torch.full_like(corners[:, 0], size)
    quads = bbox_generator(corners[:, 0], corners[:, 1], side, side)
    return lambda: crop_by_indices(bank[index], quads).float() / 255


def kornia_random_crop(bank: Bank, index: Int64[Tensor, " b"], size: int) -> Callable[[], Crops]:
    """Return kornia's `RandomCrop`, which draws its own shifts."""
    crop = RandomCrop((size, size))
    return lambda: as_any(crop(bank[index].float() / 255))


def kornia_resize(
    bank: Bank, index: Tensor, boxes: Float[Tensor, "b 4"], size: int
) -> Float[Tensor, "b 3 s s"]:
    """Cut and resample by kornia's `crop_and_resize`, whose corners are centres of pixels."""
    half = (boxes[:, 2:] - boxes[:, :2]) / (2 * size)
    x1, y1 = (boxes[:, :2] + half - 0.5).unbind(dim=1)
    x2, y2 = (boxes[:, 2:] - half - 0.5).unbind(dim=1)
    quads = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).view(-1, 4, 2)
    crops = crop_and_resize(bank[index].float(), quads, (size, size), padding_mode="border")
    return crops / 255


def grid_sample(
    bank: Bank, index: Tensor, boxes: Float[Tensor, "b 4"], size: int
) -> Float[Tensor, "b 3 s s"]:
    """Cut and resample by torch's `grid_sample`."""
    extent = boxes.new_tensor([bank.shape[3], bank.shape[2]])
    steps = (torch.arange(size, device=boxes.device) + 0.5) / size
    sides = boxes[:, 2:] - boxes[:, :2]
    points = boxes[:, None, :2] + steps[:, None] * sides[:, None]
    x, y = (2 * points / extent - 1).unbind(dim=2)
    shape = len(x), size, size
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    pictures = bank[index].float()
    crops = F.grid_sample(pictures, grid, "bilinear", "border", align_corners=False)
    return crops / 255


def batch_crop(bank: Bank, index: Tensor, corners: Tensor, size: int) -> Crops:
    """Cut all crops of one row shift at once, then of one column shift, as airbench does.

    References:
        Jordan, 94% on CIFAR-10 in 3.29 seconds (2024): the idea of `batch_crop`.
    """
    pictures = bank[index]
    rows = pictures.new_empty(len(index), 3, size, pictures.shape[3])
    for shift in range(pictures.shape[2] - size + 1):
        chosen = corners[:, 1] == shift
        rows[chosen] = pictures[chosen, :, shift : shift + size]
    crops = rows.new_empty(len(index), 3, size, size)
    for shift in range(pictures.shape[3] - size + 1):
        chosen = corners[:, 0] == shift
        crops[chosen] = rows[chosen, :, :, shift : shift + size]
    return crops.float() / 255


def roi_align() -> Callable[[Bank, Tensor, Tensor, int], Tensor] | None:
    """Return torchvision's `roi_align` on the whole bank, or None where it isn't installed."""
    ops = optional("torchvision.ops")
    if ops is None:
        return None

    def cut(bank: Bank, index: Tensor, boxes: Tensor, size: int) -> Tensor:
        rois = torch.cat([torch.arange(len(index), device=boxes.device)[:, None], boxes], dim=1)
        pictures = bank[index].float()
        crops: Tensor = ops.roi_align(pictures, rois, size, sampling_ratio=1, aligned=True)
        return crops / 255

    return cut


def adjust(crops: Crops, factors: Float[Tensor, "b 3"]) -> Crops:
    """Multiply brightness, contrast and saturation, clipped after each, in plain torch."""
    weights = crops.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(dim=1)
    crops = (crops * brightness).clamp(0, 1)
    mean = (crops * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    crops = (mean + (crops - mean) * contrast).clamp(0, 1)
    grey = (crops * weights).sum(dim=1, keepdim=True)
    return (grey + (crops - grey) * saturation).clamp(0, 1)


def flip(crops: Crops, flips: Float[Tensor, "b 2"]) -> Crops:
    """Mirror the crops that are to be, left-right and up-down."""
    left_right, up_down = (flips.bool()[:, axis, None, None, None] for axis in (0, 1))
    crops = torch.where(left_right, crops.flip(3), crops)
    return torch.where(up_down, crops.flip(2), crops)


class PatchDataset(Dataset[Tensor]):
    """Cut, mirror, change and normalise one sample at a time, with draws made before.

    Args:
        bank: The patches.
        samples: What was drawn for each sample.
        corners: Where each crop begins, (x, y).
        size: Side of the crops.
        mean: Of each channel.
        std: Of each channel.
        transform: What is done to a uint8 crop instead of our own flips and photometry.
    """

    def __init__(
        self,
        bank: Bank,
        samples: Samples,
        corners: Int64[Tensor, "n 2"],
        size: int,
        mean: Tensor,
        std: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.bank, self.samples, self.size, self.transform = bank, samples, size, transform
        self.corners = corners.tolist()
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.corners)

    def __getitem__(self, row: int) -> Tensor:
        """Return a crop, normalised."""
        x, y = self.corners[row]
        crop = self.bank[self.samples.image_index[row], :, y : y + self.size, x : x + self.size]
        if self.transform is not None:
            return self.transform(crop)
        crop = crop.float() / 255
        flip_x, flip_y = self.samples.flips[row].tolist()
        crop = crop.flip(2) if flip_x else crop
        crop = crop.flip(1) if flip_y else crop
        if self.samples.factors.shape[1]:
            crop = adjust(crop[None], self.samples.factors[row : row + 1])[0]
        return (crop - self.mean) / self.std


class PillowDataset(PatchDataset):
    """The same by Pillow, which rounds to 8 bits at each step."""

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The patches as Pillow has them."""
        return [Image.fromarray(one) for one in self.bank.permute(0, 2, 3, 1).numpy()]

    def __getitem__(self, row: int) -> Tensor:
        """Return a crop, normalised."""
        x, y = self.corners[row]
        picture = self.pictures[self.samples.image_index[row]]
        picture = picture.crop((x, y, x + self.size, y + self.size))
        turns = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
        for turn, wanted in zip(turns, self.samples.flips[row].tolist(), strict=True):
            picture = picture.transpose(turn) if wanted else picture
        enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
        for enhancer, factor in zip(enhancers, self.samples.factors[row].tolist(), strict=True):
            picture = enhancer(picture).enhance(factor)
        crop = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return (crop - self.mean) / self.std


def loader(dataset: Dataset[Tensor], batch: int, workers: int) -> DataLoader[Tensor]:
    """Return torch's DataLoader, in order, whose workers live on."""
    return DataLoader(dataset, batch, num_workers=workers, persistent_workers=workers > 0)


def torchvision_transform(mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return torchvision v2's own flips, jitter and normalisation, None where not installed."""
    v2: Any = optional("torchvision.transforms.v2")
    if v2 is None:
        return None
    steps = [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.Normalize(mean.tolist(), std.tolist()),
    ]
    transform: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return transform
