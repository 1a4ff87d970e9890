"""How fast crops are cut, mirrored, changed in colour, and normalised."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)
from torch import Tensor

from benchmarks.crops import cut_case, in_turn
from benchmarks.inputs import (
    CROP,
    JITTERED,
    ONE_SAMPLE,
    PATCH,
    RandomPictures,
    bank_of,
    batches_of,
    crop_boxes,
    patch_data,
)
from benchmarks.peers import (
    PatchDataset,
    PillowDataset,
    adjust,
    flip,
    kornia_resize,
    loader,
    slice_loop,
    torchvision_transform,
)
from benchmarks.runner import NOT_INSTALLED, Arm, Case, Setting
from lightning_bbox import ChannelNorm
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples

INTEGER = "whole pixels, 61 to 45, flips, photometry, normalised"
SUBPIXEL = "between pixels, 45, flips, photometry, normalised"
OWN_DRAWS = "draws its own numbers"
PER_SAMPLE = "per-sample transforms"


def cases(setting: Setting) -> Iterator[Case]:
    """Yield the whole way from the store to what the network sees."""
    batch = 16_384 if setting.on_cuda else setting.pick(64, 256, 256)
    sets = setting.rotations(batch * PATCH * PATCH * 4)
    patches = 32_768 if setting.on_cuda else setting.pick(512, 4096, 4096)
    with tempfile.TemporaryDirectory() as folder:
        data = patch_data(Path(folder), patches, batch, batch * sets, JITTERED)
        yield integer(setting, data)
    pictures = RandomPictures(
        patches, PATCH, PATCH, patches, (28, 34), ONE_SAMPLE, batch, batch * sets, JITTERED
    )
    yield resampled(setting, pictures)


def integer(setting: Setting, data: CropDataModule) -> Case:
    """Cut by whole pixels, beside kornia's pipeline and a DataLoader with per-sample transforms."""
    batch, norm = data.batch_size, fitted(data, setting)
    batches, bank = batches_of(data, batch, setting), bank_of(data, setting.device)
    index = [samples.image_index for samples in batches]
    corners = [crop_boxes(data, samples)[:, :2].round().long() for samples in batches]
    sliced = [
        partial(slice_loop, bank, i.tolist(), [(x, y) for x, y in c.tolist()], CROP)
        for i, c in zip(index, corners, strict=True)
    ]
    plain = [
        partial(changed, cut, adjust, samples, norm)
        for cut, samples in zip(sliced, batches, strict=True)
    ]
    pipeline = kornia_pipeline(norm)
    arms = [
        Arm("ours", in_turn(own(data, norm, setting))),
        Arm("slice loop, then torch on the batch", in_turn(plain), 1e-4),
        Arm(
            "kornia AugmentationSequential",
            in_turn([partial(piped, pipeline, partial(whole, bank, i)) for i in index]),
            None,
            OWN_DRAWS,
        ),
    ]
    skipped = {}
    samples, places = batches[0].to(torch.device("cpu")), corners[0].cpu()
    drawn = bank.cpu(), samples, places, CROP, norm.mean.cpu(), norm.std.cpu()
    dataset = PatchDataset(*drawn)
    arms += [per_sample(dataset, batch, workers, PER_SAMPLE, 1e-4) for workers in (0, 2)]
    arms.append(per_sample(PillowDataset(*drawn), batch, 0, "Pillow", 0.1))
    transform = torchvision_transform(norm.mean, norm.std)
    if transform is None:
        skipped["torchvision v2 per sample"] = NOT_INSTALLED
    else:
        arms.append(per_sample(PatchDataset(*drawn, transform), batch, 0, "torchvision v2", None))
    return cut_case(INTEGER, batch, CROP, arms, skipped)


def resampled(setting: Setting, data: CropDataModule) -> Case:
    """Cut between pixels, beside kornia's functions given our draws, and its own pipeline."""
    norm = fitted(data, setting)
    batches, bank = batches_of(data, data.batch_size, setting), bank_of(data, setting.device)
    boxes = [crop_boxes(data, samples) for samples in batches]
    cuts = [
        partial(kornia_resize, bank, samples.image_index, box, CROP)
        for samples, box in zip(batches, boxes, strict=True)
    ]
    functions = [
        partial(changed, cut, data.augment.photometry, samples, norm)
        for cut, samples in zip(cuts, batches, strict=True)
    ]
    pipeline = kornia_pipeline(norm, crop=False)
    arms = [
        Arm("ours", in_turn(own(data, norm, setting))),
        Arm("kornia crop_and_resize and enhance", in_turn(functions), 1e-3),
        Arm(
            "kornia crop_and_resize, AugmentationSequential",
            in_turn([partial(piped, pipeline, cut) for cut in cuts]),
            None,
            OWN_DRAWS,
        ),
    ]
    return cut_case(SUBPIXEL, data.batch_size, CROP, arms)


def fitted(data: CropDataModule, setting: Setting) -> ChannelNorm:
    """Return the normalisation that training would begin with."""
    norm = ChannelNorm()
    norm.fit(data.cut(data.samples("train_eval").to(setting.device)))
    return norm.to(setting.device)


def own(data: CropDataModule, norm: ChannelNorm, setting: Setting) -> list[Callable[[], Tensor]]:
    """Return our way from the store to the network, batch by batch."""
    batches = batches_of(data, data.batch_size, setting)
    cuts = [partial(data.crops_of, samples, augment=True) for samples in batches]
    return [partial(piped, norm, cut) for cut in cuts]


def piped(then: Callable[[Tensor], Tensor], cut: Callable[[], Tensor]) -> Tensor:
    """Cut, and go on."""
    return then(cut())


def whole(bank: Tensor, index: Tensor) -> Tensor:
    """Return whole patches in [0, 1]."""
    return bank[index].float() / 255


def changed(
    cut: Callable[[], Tensor],
    photometry: Callable[[Tensor, Tensor], Tensor],
    samples: Samples,
    norm: ChannelNorm,
) -> Tensor:
    """Cut, mirror, change and normalise as was drawn."""
    crops: Tensor = norm(photometry(flip(cut(), samples.flips), samples.factors))
    return crops


def kornia_pipeline(norm: ChannelNorm, crop: bool = True) -> Callable[[Tensor], Tensor]:
    """Return kornia's own pipeline."""
    steps = [RandomHorizontalFlip(), RandomVerticalFlip(), ColorJitter(0.2, 0.2, 0.2, 0.0)]
    first = [RandomCrop((CROP, CROP))] if crop else []
    last = Normalize(norm.mean.tolist(), norm.std.tolist())
    pipeline: Callable[[Tensor], Tensor] = AugmentationSequential(*first, *steps, last)
    return pipeline


def per_sample(
    dataset: PatchDataset, batch: int, workers: int, what: str, tolerance: float | None
) -> Arm:
    """Return a DataLoader's way; it ends on the CPU."""
    batches = loader(dataset, batch, workers)
    name = f"DataLoader, {what}, {workers} workers"
    note = OWN_DRAWS if tolerance is None else "on the CPU"
    return Arm(name, partial(only_batch, batches), tolerance, note)


def only_batch(batches: Iterable[Tensor], _: int) -> Tensor:
    """Return the one batch of an epoch."""
    (crops,) = batches
    return crops
