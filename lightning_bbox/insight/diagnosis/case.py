"""The training that is diagnosed: model, data and settings, and crops as the checks want them."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.messages import quietly
from lightning_bbox.core.randomness import EpochPlan, keyed_generator, stream_seed
from lightning_bbox.data.draws import draw_samples
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Items, Samples
from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.geometry.codecs import encode_deltas
from lightning_bbox.insight.diagnosis.findings import Alter, Frame, between
from lightning_bbox.insight.diagnosis.reader import Offsets, Reader, features_of
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.regressor import BoxRegressor
from lightning_bbox.pictures.store import PictureFiles

TALKERS = "lightning.pytorch", "lightning.fabric"
"""Loggers of a training: the checks tell what is wrong with it."""

TRAIN, HELD = 1500, 700
"""Draws that the fixed reader learns from, and that it is measured on."""


class Made(NamedTuple):
    """A training as the command line makes it.

    Attributes:
        model: Not built yet.
        data: Not read yet.
        trainer: Arguments of its trainer by name.
        asked: What its configuration says, by dotted name.
    """

    model: OffsetModel
    data: CropDataModule
    trainer: dict[str, Any]
    asked: dict[str, Any]


Make = Callable[[Sequence[str]], Made]
"""Makes the training anew, with options added to it."""

_KEPT_ARGUMENTS = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "deterministic",
)
_DRAWN_ANEW = (
    "crop",
    "jitter",
    "num_targets",
    "augment",
    "batch_size",
    "draws_per_epoch",
    "eval_draws",
    "seed",
    "compile",
)


def trainer_for(made: Made, **arguments: Any) -> pl.Trainer:  # noqa: ANN401 (Lightning's)
    """Return a trainer that computes as the training's own, on one device, and leaves nothing.

    Args:
        made: The training.
        arguments: Of the trainer, beside its own.
    """
    kept = {name: made.trainer[name] for name in _KEPT_ARGUMENTS if made.trainer.get(name)}
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    fixed = {"devices": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    return pl.Trainer(**(kept | quiet | fixed | arguments))


class Case:
    """A training that is looked at: built as a fit builds it, or as a run left it.

    Args:
        made: The training.
        checkpoint: A trained model's, whose weights it has then.
        shared: A case whose pictures and boxes are read already, where they are the same.
    """

    def __init__(
        self, made: Made, checkpoint: str | None = None, shared: "Case | None" = None
    ) -> None:
        self.made, self.model, self.data = made, made.model, made.data
        self.is_trained = checkpoint is not None
        if shared is not None and _reads_alike(made, shared.made):
            self.data.take_source(shared.data.source)
        if checkpoint is not None:
            self.model.restore(checkpoint)
        with quietly(*TALKERS):
            self._build(made)

    def _build(self, made: Made) -> None:
        trainer = trainer_for(made)
        trainer.datamodule = self.data  # type: ignore[attr-defined] # Lightning sets it
        self.data.trainer = trainer
        self.model.trainer = trainer
        self.data.setup("fit")
        self.model.setup("fit")
        trainer.precision_plugin.convert_module(self.model.net)
        self.model.eval()

    @property
    def given(self) -> bool:
        """Whether proposals are given with the boxes, and not drawn."""
        return self.data.items_of("train").proposals is not None

    @property
    def descends(self) -> bool:
        """Whether the model learns by gradient descent, not exactly."""
        return isinstance(self.model, BoxRegressor)

    @property
    def planned_steps(self) -> int:
        """How many steps of the optimizer the run is to make."""
        trainer, data = self.made.trainer, self.data
        a_step = data.batch_size * int(trainer.get("accumulate_grad_batches") or 1)
        batches = trainer.get("limit_train_batches")
        in_epoch = max(1, data.draws_per_epoch // a_step)
        if isinstance(batches, int) and batches > 0:
            in_epoch = min(in_epoch, batches)
        epochs, most = trainer.get("max_epochs"), trainer.get("max_steps")
        steps = [in_epoch * epochs] if epochs and epochs > 0 else []
        steps += [most] if most and most > 0 else []
        return min(steps, default=10**9)

    @cached_property
    def sizes(self) -> Float[Tensor, "p 2"]:
        """Width and height of every picture."""
        store = self.data.source.store
        if isinstance(store, PictureFiles):
            return store.sizes.flip(1).float()
        return torch.stack([store.widths, store.heights], dim=1).float()

    def frame(self, items: Items) -> Frame:
        """Return what the boxes of some items lie in."""
        return Frame(self.sizes[items.image_index], items.proposals)

    def altered(self, items: Items, alter: Alter) -> Items:
        """Return items with other true boxes."""
        return replace(items, boxes=alter(items.boxes, self.frame(items)))

    def draw(self, items: Items, draws: int, key: str) -> Samples:
        """Draw samples of some items by the data's own law, neither mirrored nor altered.

        Args:
            items: What to draw from, evenly.
            draws: How many.
            key: Of the random numbers.
        """
        plan = EpochPlan(stream_seed("diagnose", key), 0, len(items), draws)
        return self._drawn(items, plan, plan.order)

    def each(self, items: Items, key: str) -> Samples:
        """Draw a sample of each item, in their order."""
        plan = EpochPlan(stream_seed("diagnose", key), 0, len(items), len(items))
        return self._drawn(items, plan, torch.arange(len(items)))

    def _drawn(self, items: Items, plan: EpochPlan, order: Int64[Tensor, " n"]) -> Samples:
        data = self.data
        return draw_samples(
            replace(items, labels=data.label_numbers[items.labels]),
            order,
            plan,
            geometry=data.geometry,
            jitter=data.jitter,
            resize=data.num_targets == 4,
            augment=None,
            noise=data.noise,
        )[0]

    def offsets(self, samples: Samples) -> Float[Tensor, "n t"]:
        """Return where the true boxes of samples lie, in px and log size."""
        anchors = self.data.geometry.anchors(samples.proposals)
        deltas = encode_deltas(samples.gt_boxes, anchors)[:, : self.data.num_targets]
        return deltas / deltas.new_tensor(self.data.spec().units)

    def recut(self, samples: Samples, shifts: Float[Tensor, "n 2"]) -> Samples:
        """Return the samples with proposals, and so crops, shifted by so many px."""
        by = shifts * self.data.geometry.px(samples.proposals)
        moved = shift_boxes(samples.proposals, by)
        return samples._replace(proposals=moved).cut_at(self.data.geometry, moved, samples.flips)

    def crops(self, samples: Samples, augment: bool = False) -> Float[Tensor, "n 3 s s"]:
        """Return the crops of samples as a model sees them."""
        rows = torch.split(torch.arange(len(samples.items)), 256)
        some = [self.data.crops_of(samples.take(each), augment=augment) for each in rows]
        return torch.cat(some)

    def seen(self, samples: Samples, augment: bool = False) -> Offsets:
        """Return the samples as the fixed reader sees them."""
        features = features_of(self.crops(samples, augment))
        return Offsets(features, self.offsets(samples), samples.image_index)

    @cached_property
    def train(self) -> Samples:
        """Training samples, neither mirrored nor augmented."""
        return self.draw(self.data.items_of("train"), TRAIN, "train")

    @cached_property
    def val(self) -> Samples:
        """Validation samples."""
        return self.draw(self.data.items_of("val"), HELD, "val")

    @cached_property
    def telling(self) -> float:
        """How much it says that a reader of so few boxes fails on others, from 0 to 1."""
        return between(len(self.data.items_of("train")), 200, 600)

    @cached_property
    def misplaced(self) -> float:
        """How far crops differ from a plain cut of their boxes, as a share of the contrast."""
        samples = first(self.train, 64)
        own, plain = self.data.cut(samples), CropDataModule.cut(self.data, samples)
        return float((own - plain).abs().mean()) / max(float(plain.std()), 1e-6)

    @cached_property
    def train_seen(self) -> Offsets:
        """What the reader sees of the training samples."""
        return self.seen(self.train)

    @cached_property
    def val_seen(self) -> Offsets:
        """What the reader sees of the validation samples."""
        return self.seen(self.val)

    @cached_property
    def reader(self) -> Reader:
        """The fixed reader of this training's labels."""
        return Reader(self.train_seen)

    made_shift = 4.0
    """Largest shift that is made to be read, in px."""

    @cached_property
    def label_free(self) -> tuple[Reader, float]:
        """A reader of shifts that are made here, whatever the labels say, and its R2.

        What it reads goes with where the object lies, up to a factor.
        """
        generator = keyed_generator("diagnose", "label-free")
        seen = []
        for samples in (self.train, self.val):
            uniform = torch.rand(len(samples.items), 2, generator=generator) * 2 - 1
            shifts = uniform * self.made_shift
            seen.append(self.seen(self.recut(samples, shifts))._replace(targets=-shifts))
        reader = Reader(seen[0])
        return reader, float(reader.r2(seen[1]).mean())

    @cached_property
    def readable(self) -> float:
        """The share of the offsets' variance that the fixed reader finds in validation crops."""
        return float(self.reader.r2(self.val_seen)[:2].mean())

    def clusters(self, samples: Samples) -> Int64[Tensor, " n"]:
        """Return the picture, or group, of each validation sample."""
        return self.data.items_of("val").clusters[samples.items]

    def shifted(self, alter: Alter) -> CropDataModule:
        """Return the data with all true boxes altered, in memory."""
        source = self.data.source
        splits = {name: self.altered(items, alter) for name, items in source.splits.items()}
        other = copy(self.data)
        other.take_source(replace(source, splits=splits))
        return other


def _reads_alike(made: Made, other: Made) -> bool:
    """Tell whether two trainings read the same pictures and boxes."""

    def of_reading(each: Made) -> dict[str, Any]:
        return {
            name: value
            for name, value in each.asked.items()
            if name.startswith("data.")
            and name.removeprefix("data.").partition(".")[0] not in _DRAWN_ANEW
        }

    return of_reading(made) == of_reading(other)


def first(samples: Samples, count: int) -> Samples:
    """Return the first samples, as many as there are of them."""
    return samples.take(torch.arange(min(count, len(samples.items))))
