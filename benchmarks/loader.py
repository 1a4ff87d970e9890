"""How fast an epoch of crops comes out of the store, wherever it is, beside torch's DataLoader."""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor

from benchmarks.inputs import (
    CROP,
    FLIPS,
    ONE_SAMPLE,
    RandomPictures,
    bank_of,
    crop_boxes,
    noise,
    patch_data,
)
from benchmarks.peers import PatchDataset, loader
from benchmarks.runner import Arm, Case, Setting, Timed, process_clock
from lightning_bbox import BoxDataModule, Storage
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.pictures.places import Place

PATCHES = "an epoch of 61 px patches, whole pixels, flips"
PLACES = "an epoch from pictures, by where they are kept"


def cases(setting: Setting) -> Iterator[Case]:
    """Yield an epoch from the store in memory, then one from each place it may be in."""
    batch = 1024 if setting.on_cuda else setting.pick(64, 256, 256)
    batches = setting.pick(2, 10, 40)
    with tempfile.TemporaryDirectory() as folder:
        yield patches(setting, Path(folder), batch, batches)
    with tempfile.TemporaryDirectory() as folder:
        yield places(setting, Path(folder), batch, batches)


def patches(setting: Setting, folder: Path, batch: int, batches: int) -> Case:
    """Walk through patches beside a DataLoader that cuts one at a time."""
    count = setting.pick(256, 4096, 20_000)
    data = patch_data(folder, count, batch, batches * batch, FLIPS)
    data.setup("fit")
    samples = data.samples("train", 0)
    corners = crop_boxes(data, samples)[:, :2].round().long()
    bank = bank_of(data, torch.device("cpu"))
    dataset = PatchDataset(bank, samples, corners, CROP, torch.zeros(3), torch.ones(3))
    arms = [Arm("ours", partial(walk, data, setting))]
    for workers in (0, 2):
        crops = loader(dataset, batch, workers)
        name, call = f"DataLoader, {workers} workers", partial(last_of, crops, setting)
        arms.append(Arm(name, call, 1e-6))
    return epoch_case(f"{PATCHES}, batch {batch}", batch * batches, arms)


def places(setting: Setting, folder: Path, batch: int, batches: int) -> Case:
    """Walk through the same pictures on the device, in the host's memory, and on disk."""
    pictures, boxes = setting.pick(10, 40, 200), setting.pick(60, 2000, 10_000)
    drawn = RandomPictures(pictures, 480, 640, boxes, (30, 90), ONE_SAMPLE, 1, 1)
    write_pictures(folder, drawn)
    arms = []
    for place in get_args(Place):
        data = BoxDataModule(
            str(folder),
            crop=ONE_SAMPLE,
            batch_size=batch,
            draws_per_epoch=batch * batches,
            store=Storage(place, str(folder / "store")),
        )
        arms.append(Arm(f"store: {place}", partial(walk, data, setting), 1e-6))
    return epoch_case(f"{PLACES}, batch {batch}", batch * batches, arms)


def write_pictures(folder: Path, drawn: RandomPictures) -> None:
    """Write random pictures and their boxes as files."""
    for index, pixels in enumerate(noise(drawn.pictures, drawn.height, drawn.width)):
        Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=0)
    items = drawn.source.splits["train"]
    lines = ["image,xmin,ymin,xmax,ymax,label"]
    for index, box in zip(items.image_index.tolist(), items.boxes.tolist(), strict=True):
        lines.append(f"{index}.png,{','.join(f'{edge:.3f}' for edge in box)},box")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


def epoch_case(name: str, crops: int, arms: list[Arm]) -> Case:
    """Return a case whose useful bytes are a byte read and a float written for each value."""
    return Case(name, "crops", crops, arms, useful_bytes=crops * 3 * CROP**2 * (1 + 4))


def walk(data: CropDataModule, setting: Setting, _: int) -> Timed:
    """Walk through the first epoch: its last crops, and the time with that of cutting ahead."""
    if setting.on_cuda and data.trainer is None:  # pages are locked for a trainer's device
        data.trainer = pl.Trainer(accelerator="gpu", devices=1, logger=False)
    since, crops = process_clock(setting.device), torch.empty(0)
    for batch in data.batches("train", 0, setting.device):
        crops = batch.crops
    return Timed(process_clock(setting.device) - since, crops.cpu())


def last_of(batches: Iterable[Tensor], setting: Setting, _: int) -> Tensor:
    """Walk through a DataLoader, each batch moved to the device, and return its last crops."""
    crops = torch.empty(0)
    for batch in batches:
        crops = batch.to(setting.device)
    return crops.cpu()
