"""The feature cache: what a frozen backbone makes of fixed draws, computed once.

Tables are kept in fp32, which holds exactly what half precisions compute, or in fp64 where the
network runs in it, so that training on them gives the numbers that crops would.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.cache_file import CacheFile, Content, digest_of
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded, make_folder
from lightning_bbox.core.messages import say
from lightning_bbox.core.recipes import Part
from lightning_bbox.data.loader import PlanLoader, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.models.fitting import refuse_invalid_features
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.pictures.augment import Augment
from lightning_bbox.pictures.store import ImageStore


def compute_features(data: CropDataModule, split: Split, net: OffsetNet) -> Float[Tensor, "n f"]:
    """Compute the features of all draws of epoch 0 of a split, each process its share of them.

    Args:
        data: Where the crops come from, of a trainer that is about to train.
        split: Which draws.
        net: What makes the features, in the trainer's precision.

    Raises:
        BadInput: A feature isn't finite.
    """
    trainer, (rank, world_size) = data.trainer, data.ranks()
    assert trainer is not None
    device, table = trainer.strategy.root_device, None
    counts = data.num_draws(split), data.batch_size, rank, world_size
    for rows in PlanLoader(split, *counts, prefetch=data.prefetch_crops):
        batch = data.make_batch(rows.to(device))
        with net.evaluating(), trainer.precision_plugin.forward_context():
            features = net.fast_features(batch.crops)
        if table is None:
            dtype = torch.promote_types(features.dtype, torch.float32)
            shape = data.num_draws(split), features.shape[1]
            table = torch.zeros(shape, dtype=dtype, device=device)
        own = rows.valid.to(device)
        table[batch.rows[own]] = features[own].to(table.dtype)
    assert table is not None
    reduced: Tensor = trainer.strategy.reduce(table, reduce_op="sum")
    refuse_invalid_features(reduced, data, split, data.samples(split))
    return reduced


def fill_cache(place: str, data: CropDataModule, splits: Iterable[Split], net: OffsetNet) -> None:
    """Fix the training draws, and have batches of some splits hold features instead of crops.

    Args:
        place: `memory`, which is that of the device, or a folder of files. On the CPU those are
            mapped, not read, so that they may exceed the memory.
        data: The data module of a trainer that is about to train.
        splits: Which draws to know the features of.
        net: What makes them, its weights final.

    Raises:
        BadInput: Features would not stay what they are, or the folder can't be written to.
    """
    refuse_learning(net.backbone)
    _refuse_changing(data.augment)
    trainer, folder = data.trainer, None if place == "memory" else expanded(place)
    assert trainer is not None
    data.fix_draws()
    key = {}
    if folder is not None:
        make_folder(folder, option="--model.cache")
        key = _feature_key(data, net, str(trainer.precision))
    for split in splits:
        if folder is None:
            data.features[split] = _computed(data, split, net, "memory")
            continue
        file = _file_of(folder, split, key | _draws_key(data, split))
        found: Content | str | None = _known(file, split, trainer)
        if found is None:
            features = _computed(data, split, net, str(file.path))
            if trainer.local_rank == 0:
                _keep(file, features)
            trainer.strategy.barrier("features")
            found = file.open()
        assert isinstance(found, Content)
        data.features[split] = _mapped(found).to(trainer.strategy.root_device)


def _computed(
    data: CropDataModule, split: Split, net: OffsetNet, where: str
) -> Float[Tensor, "n f"]:
    since = time.perf_counter()
    features = compute_features(data, split, net)
    rows, columns = features.shape
    seconds = time.perf_counter() - since
    say(f"features of {split}: {rows} x {columns} computed in {seconds:.1f} s, kept in {where}")
    return features


def refuse_learning(backbone: Backbone) -> None:
    """Refuse to keep the features of a backbone that learns.

    Raises:
        BadInput: It isn't frozen.
    """
    if not backbone.frozen:
        msg = (
            f"model.cache keeps features, but the backbone {type(backbone).__name__} learns and "
            f"they change; use one that is frozen (AlexNet is by default) or leave model.cache out"
        )
        raise BadInput(msg)


def _refuse_changing(augment: Augment) -> None:
    if augment.extra:
        names = ", ".join(type(module).__name__ for module in augment.extra)
        msg = (
            f"augment.extra holds {names}, which changes crops anew at each step, but model.cache "
            f"computes their features once; leave one of the two out"
        )
        raise BadInput(msg)


def _file_of(folder: Path, split: Split, key: dict[str, str]) -> CacheFile:
    """Return the file of these features, other than that of any other run's."""
    return CacheFile(folder / f"{split}-{digest_of(key)}.features", key, "--model.cache")


def _known(file: CacheFile, split: Split, trainer: pl.Trainer) -> Content | None:
    """Open the features if every process finds them on its disk; say what the first one did."""
    found = file.open()
    if isinstance(found, str) and found:
        rank_zero_warn(f"features of {split} in {file.path.parent} are {found}: computed anew")
    known = trainer.strategy.reduce_boolean_decision(isinstance(found, Content))
    if isinstance(found, str):
        return None
    if not known:
        found.file.close()
        return None
    say(f"features of {split}: read from {file.path}")
    return found


def _mapped(content: Content) -> Float[Tensor, "n f"]:
    """Map features; pages are read when they are used."""
    with content.file:
        # Not "r": torch warns of arrays that can't be written to. Nothing writes to the file.
        array = np.memmap(
            content.file,
            dtype=content.facts["dtype"],
            mode="c",
            offset=content.start,
            shape=tuple(content.facts["shape"]),
        )
    return torch.from_numpy(array)


def _keep(file: CacheFile, features: Float[Tensor, "n f"]) -> None:
    array: np.ndarray[Any, Any] = np.ascontiguousarray(features.cpu().numpy())
    with file.making():
        facts = {"shape": list(array.shape), "dtype": array.dtype.str}
        file.write(array.nbytes, [array.data.cast("B")], facts)


def _feature_key(data: CropDataModule, net: OffsetNet, precision: str) -> dict[str, str]:
    """Return what the features of all splits depend on, by name."""
    store = data.source.store
    assert isinstance(store, ImageStore)  # files are decoded one by one to predict only
    boxes = [items.digest() for _, items in sorted(data.source.splits.items())]
    return {
        "pictures": _digest_of(*store.contents(), store.heights, store.widths, *boxes),
        "preprocess": _digest_of(_recipe(net.preprocess), *_state(net.preprocess)),
        "backbone": _recipe(net.backbone),
        "weights": _digest_of(*_state(net.backbone)),
        "precision": precision,
        "versions": f"lightning_bbox {version('lightning_bbox')}, torch {torch.__version__}",
    }


def _draws_key(data: CropDataModule, split: Split) -> dict[str, str]:
    """Return what the crops of a split's draws depend on, beside the pictures, by name.

    It is the draws themselves, as the seed, the law of the proposals and augmentation made them.
    """
    samples = data.samples(split)
    noise = data.noise_level(augment=split == "train")
    drawn = samples.image_index, samples.proposals, samples.flips, samples.factors, samples.noise
    return {"draws": _digest_of(split, repr(data.geometry), repr(noise), *drawn)}


def _digest_of(*parts: Tensor | str) -> str:
    """Return a fingerprint of tensors and text."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashed.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().data)
        else:
            hashed.update(f"{len(part)} {part}".encode())
    return hashed.hexdigest()


def _recipe(part: Part) -> str:
    return json.dumps(part.recipe(), sort_keys=True)


def _state(part: Part) -> list[Tensor | str]:
    return [item for named in sorted(part.state_dict().items()) for item in named]
