"""How fast crops are cut: by whole pixels, between pixels, large, and from boxes of any size."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import (
    CROP,
    ONE_SAMPLE,
    PATCH,
    RandomPictures,
    bank_of,
    batches_of,
    crop_boxes,
    patch_data,
)
from benchmarks.peers import (
    batch_crop,
    grid_sample,
    kornia_indices,
    kornia_random_crop,
    kornia_resize,
    roi_align,
    slice_loop,
)
from benchmarks.runner import NOT_INSTALLED, Arm, Case, Setting, compile_errors
from lightning_bbox import CropGeometry
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples
from lightning_bbox.pictures.augment import Augment

INTEGER = "whole pixels, 61 to 45"
SUBPIXEL = "between pixels, 45"
BY_SIZE = "boxes of several sizes, 45"
SIZES = (30, 90, 300, 600)
"""Sides of boxes in picture pixels: a crop box is 1.5 times as wide."""
LARGE = "between pixels, 227 from pictures"
PLAIN = Augment(flip_x=False, flip_y=False)


def cases(setting: Setting) -> Iterator[Case]:
    """Yield the cuts of the targets, and one of boxes of several sizes."""
    batch = 16_384 if setting.on_cuda else setting.pick(64, 256, 256)
    sets = setting.rotations(batch * PATCH * PATCH * 4)
    with tempfile.TemporaryDirectory() as folder:
        yield integer(setting, Path(folder), batch, sets)
    patches = 32_768 if setting.on_cuda else 4096
    data = RandomPictures(
        setting.pick(256, patches, patches), PATCH, PATCH, setting.pick(256, patches, patches),
        (28, 34), ONE_SAMPLE, batch, batch * sets, PLAIN,
    )  # fmt: skip
    yield resampled(
        SUBPIXEL, data, setting, compiled_peers=setting.compile_peers and setting.size != "smallest"
    )
    batch = 1024 if setting.on_cuda else setting.pick(2, 16, 32)
    height, width = setting.pick((300, 320), (480, 640), (480, 640))
    pictures = 512 if setting.on_cuda else setting.pick(4, 48, 96)
    boxes = setting.pick(16, 2048, 2048)
    data = RandomPictures(
        pictures, height, width, boxes, (90, 160), CropGeometry(227), batch, 2 * batch, PLAIN
    )
    yield resampled(LARGE, data, setting)
    yield by_size(setting)


def by_size(setting: Setting) -> Case:
    """Cut boxes of several sizes from the same pictures."""
    batch = 16_384 if setting.on_cuda else setting.pick(16, 128, 128)
    side = setting.pick(950, 1600, 1600)
    arms = []
    for sides in SIZES:
        data = RandomPictures(
            setting.pick(1, 8, 8), side, side, 4 * batch, (sides, sides), ONE_SAMPLE, batch,
            2 * batch, PLAIN,
        )  # fmt: skip
        batches = batches_of(data, batch, setting)
        cuts = [partial(data.crops_of, samples) for samples in batches]
        arms.append(Arm(f"boxes of {sides} px", in_turn(cuts), None, "other crops"))
    return cut_case(BY_SIZE, batch, CROP, arms)


def integer(setting: Setting, folder: Path, batch: int, sets: int) -> Case:
    """Cut patches with a margin by whole pixels."""
    count = 32_768 if setting.on_cuda else setting.pick(512, 4096, 4096)
    data = patch_data(folder, count, batch, batch * sets, PLAIN)
    batches, bank = batches_of(data, batch, setting), bank_of(data, setting.device)
    index = [samples.image_index for samples in batches]
    corners = [crop_boxes(data, samples)[:, :2].round().long() for samples in batches]
    sliced = [
        partial(slice_loop, bank, i.tolist(), [(x, y) for x, y in c.tolist()], CROP)
        for i, c in zip(index, corners, strict=True)
    ]
    by_indices = [kornia_indices(bank, i, c, CROP) for i, c in zip(index, corners, strict=True)]
    random = [kornia_random_crop(bank, i, CROP) for i in index]
    boxes = [crop_boxes(data, samples) for samples in batches]
    arms = [
        *own(data, batches, setting),
        Arm("slice loop", in_turn(sliced), EXACT),
        Arm("kornia crop_by_indices", in_turn(by_indices), EXACT),
        Arm("kornia RandomCrop", in_turn(random), None, "draws its own shifts"),
        resampling("kornia crop_and_resize", kornia_resize, bank, index, boxes, CROP),
        resampling("grid_sample", grid_sample, bank, index, boxes, CROP),
        Arm(
            "airbench-style batch crop",
            in_turn(
                [partial(batch_crop, bank, i, c, CROP) for i, c in zip(index, corners, strict=True)]
            ),
            EXACT,
        ),
    ]
    return cut_case(INTEGER, batch, CROP, arms)


def resampled(
    name: str, data: CropDataModule, setting: Setting, compiled_peers: bool = False
) -> Case:
    """Cut crops that lie between pixels and are scaled."""
    size = data.geometry.size
    batches, bank = batches_of(data, data.batch_size, setting), bank_of(data, setting.device)
    index = [samples.image_index for samples in batches]
    boxes = [crop_boxes(data, samples) for samples in batches]
    ways: dict[str, Callable[..., Tensor]] = {
        "kornia crop_and_resize": kornia_resize,
        "grid_sample": grid_sample,
    }
    if (aligned := roi_align()) is not None:
        ways["torchvision roi_align"] = aligned
    arms = own(data, batches, setting)
    for peer, way in ways.items():
        arms.append(resampling(peer, way, bank, index, boxes, size))
        if compiled_peers:
            fast = torch.compile(way)
            arms.append(resampling(f"{peer}, compiled", fast, bank, index, boxes, size))
    skipped = {} if aligned else {"torchvision roi_align": NOT_INSTALLED}
    return cut_case(name, data.batch_size, size, arms, skipped)


def own(data: CropDataModule, batches: list[Samples], setting: Setting) -> list[Arm]:
    """Return our cut, and on CUDA that of our Triton kernel beside it."""
    ways = {"ours": data}
    if setting.on_cuda:
        data.store_on(setting.device)
        ways["ours, by Triton"] = triton = copy.copy(data)
        triton.compile = "triton"
    return [
        Arm(name, in_turn([partial(way.crops_of, samples) for samples in batches]), 1e-4)
        for name, way in ways.items()
    ]


EXACT = 1e-6
"""Equal but for the last bit of a division by 255."""


def resampling(
    name: str,
    way: Callable[..., Tensor],
    bank: Tensor,
    index: list[Tensor],
    boxes: list[Tensor],
    size: int,
) -> Arm:
    """Return an arm that resamples, equal to 1e-4 of the range.

    Noise differs by the whole range from pixel to pixel, and a place far from the corner is known
    to some millionths of the picture's side only, several times over in kornia's homography.
    """
    tolerance = 1e-4 + 1e-6 * max(bank.shape[2:])
    calls = [partial(way, bank, i, b, size) for i, b in zip(index, boxes, strict=True)]
    return Arm(name, in_turn(calls), tolerance, refusals=compile_errors())


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[int], Any]:
    """Call one after another, as the runner counts."""
    return lambda turn: calls[turn % len(calls)]()


def cut_case(
    name: str, batch: int, size: int, arms: list[Arm], skipped: dict[str, str] | None = None
) -> Case:
    """Return a case whose useful bytes are a byte read and a float written for each value."""
    useful = batch * 3 * size**2 * (1 + 4)
    return Case(f"{name}, batch {batch}", "crops", batch, arms, useful, skipped=skipped or {})
