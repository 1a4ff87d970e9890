"""How fast an epoch of crops comes out of the store, beside torch's DataLoader with workers."""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.inputs import CROP, bank_of, crop_boxes, patch_data
from benchmarks.peers import PatchDataset, loader
from benchmarks.runner import Arm, Case, Setting, synchronize
from lightning_bbox import Augment
from lightning_bbox.data import CropDataModule

STORES = "an epoch of 61 px patches, whole pixels, flips"


def cases(setting: Setting) -> Iterator[Case]:
    """Yield an epoch from the store in memory."""
    batch = 1024 if setting.on_cuda else setting.pick(64, 256, 256)
    batches = setting.pick(2, 10, 40)
    with tempfile.TemporaryDirectory() as folder:
        patches = setting.pick(256, 4096, 20_000)
        data = patch_data(Path(folder), patches, batch, batches * batch, Augment())
        data.setup("fit")
        samples = data.samples("train", 0)
        corners = crop_boxes(data, samples)[:, :2].round().long()
        bank = bank_of(data, torch.device("cpu"))
        dataset = PatchDataset(bank, samples, corners, CROP, torch.zeros(3), torch.ones(3))
        arms = [Arm("ours", lambda _: walk(data, setting))]
        for workers in (0, 2):
            crops = loader(dataset, batch, workers)
            arms.append(
                Arm(f"DataLoader, {workers} workers", partial(last_of, crops, setting), 1e-6)
            )
        values = batches * batch * 3 * CROP**2
        yield Case(f"{STORES}, batch {batch}", "crops", batches * batch, arms, values * (1 + 4))


def walk(data: CropDataModule, setting: Setting) -> Tensor:
    """Walk through the first epoch, and return its last crops."""
    crops = torch.empty(0)
    for batch in data.batches("train", 0, setting.device):
        crops = batch.crops
    synchronize(setting.device)
    return crops.cpu()


def last_of(batches: Iterable[Tensor], setting: Setting, _: int) -> Tensor:
    """Walk through a DataLoader, each batch moved to the device, and return its last crops."""
    crops = torch.empty(0)
    for batch in batches:
        crops = batch.to(setting.device)
    synchronize(setting.device)
    return crops.cpu()
