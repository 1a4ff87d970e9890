"""The base of all data modules: from items to batches of crops on the device.

A loader yields row numbers only. The samples of an epoch are moved to the device once, and the
crops are cut there, or on the host, ahead of the steps, where the pictures stay there.
"""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.messages import say
from lightning_bbox.core.randomness import EpochPlan, keyed_generator, stream_seed
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.data.draws import (
    ClassWeights,
    class_weights,
    draw_samples,
    offset_spec,
    refuse_weights,
    widths_of,
)
from lightning_bbox.data.loader import PlanLoader, Rows, Split, Walk
from lightning_bbox.data.prefetch import CropPrefetch, HostCutter
from lightning_bbox.data.samples import Batch, Items, Samples, Source
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import OffsetSpec, White, encode_deltas, refuse_other_crops
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter, UniformJitter
from lightning_bbox.pictures.augment import (
    Augment,
    NoiseBank,
    adjust_photometry,
    compiled_photometry,
)
from lightning_bbox.pictures.cut import cut_crops, is_compiled, kernel_for
from lightning_bbox.pictures.places import Place, Placement, Storage, device_of
from lightning_bbox.pictures.store import ImageStore, PictureFiles

BatchSize = int | Literal["auto"]
USUAL_BATCH = 128
"""Of evaluations, and before training begins, where `auto` is to find the size."""

_CPU = torch.device("cpu")


class CropDataModule(pl.LightningDataModule):
    """Cut shifted crops on the device, in an order and with random numbers fixed by the seed.

    Subclasses read the pictures and boxes in `read`.

    Args:
        crop: How proposals become crops; a trained model knows how, others take `CropGeometry()`.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh); a trained model
            knows how many, others learn 2.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes; `auto` takes the smallest within
            5 % of the most crops a second, measured when training begins.
        draws_per_epoch: Training samples in an epoch; items are used evenly.
        class_sampling: How often training draws a box of each class: `balanced` draws all classes
            alike, `{WBC: 4}` a box of that one four times as often as others; all boxes alike by
            default. Evaluations aren't changed.
        eval_draws: Samples of each evaluation, the same for every model and epoch.
        seed: Seed of order, proposals and augmentation; validation and test don't depend on it.
        compile: Compile the cut and augmentation; `auto` does where there is a compiler (on a
            CPU augmentation only from 50,000 crops of 45 x 45 on), `triton` cuts by a kernel
            written in Triton instead (CUDA; its speed is not measured yet).
        store: Where the pixels are kept.

    Attributes:
        features: What a backbone makes of a split's crops, a row for each draw of epoch 0, on the
            device of the batches: those hold it instead of crops. Training needs fixed draws.
        steps_per_call: How many steps of training the rows are for that its loader yields at once;
            a model says so in its setup, and has the crops cut itself where there are several.
        sensor_noise: Standard deviation of the noise added to every crop, as a fraction of the
            range.
        white_level: What is white, or black and white, beyond 8 bits; None where there are none.
        part: Which page and bands of TIFFs are read.
    """

    keeps_on_disk: ClassVar[bool] = False  # whether pixels may be kept there
    sensor_noise = 0.0

    def __init__(
        self,
        *,
        crop: CropGeometry | None = None,
        jitter: Jitter | None = None,
        num_targets: Literal[2, 4] | None = None,
        augment: Augment = Augment(),
        batch_size: BatchSize = 128,
        draws_per_epoch: int = 20_000,
        class_sampling: ClassWeights | None = None,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: CutCompile = "auto",  # noqa: A002 (the name of the option everywhere)
        store: Storage = Storage(),
    ) -> None:
        super().__init__()
        self.finds_batch_size = batch_size == "auto"
        size = max(1, min(USUAL_BATCH, draws_per_epoch)) if batch_size == "auto" else batch_size
        _check_counts(size, draws_per_epoch, eval_draws, num_targets)
        self._crop, self._num_targets = crop, num_targets
        self.geometry = crop or CropGeometry()
        self.jitter = jitter or UniformJitter()
        self.num_targets: int = num_targets or 2
        self.augment, self.seed, self.compile = augment, seed, compile
        self.batch_size, self.draws_per_epoch, self.eval_draws = size, draws_per_epoch, eval_draws
        refuse_weights(class_sampling, "data.class_sampling")
        self.class_sampling = class_sampling
        self.noise = _noise_for(self.geometry)
        self.failed_draws: dict[str, int] = {}
        self.features: dict[Split, Tensor] = {}
        self.steps_per_call = 1
        self.white_level: White | None = None
        self.part = TiffPart()
        self.placement = Placement(store, disk=self.keeps_on_disk)
        self._prefetch = CropPrefetch()
        self._source: Source | None = None
        self._rough = self._fixed = False
        self._known_classes: tuple[str, ...] | None = None
        self._laid_out: dict[tuple[Split, torch.device], tuple[int, Samples, Tensor]] = {}
        self._again: tuple[Source, CropDataModule] | None = None  # cuts for a second look

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer, as Lightning does, and what was read: others read it again."""
        return {**vars(self), "trainer": None, "_source": None, "_laid_out": {}, "_again": None}

    def read(self) -> Source:
        """Read pictures and boxes; called once."""
        raise NotImplementedError

    def read_rough(self) -> Source:
        """Read the boxes to refine, as the only split, `predict`."""
        msg = (
            f"{type(self).__name__} has no rough boxes to refine; give annotated pictures, as with "
            f"--data BoxDataModule --data.root DIR"
        )
        raise BadInput(msg)

    @property
    def source(self) -> Source:
        """The pictures and items, read at the first use."""
        if self._source is None:
            source = self.read_rough() if self._rough else self.read()
            for name, items in source.splits.items():
                if not len(items):
                    msg = (
                        f"the {name} split has no boxes left; check splits, classes and least size"
                    )
                    raise BadInput(msg)
            self._source = source
        return self._source

    def take_source(self, source: Source) -> None:
        """Use pictures and items that are at hand, instead of reading them.

        Args:
            source: What `read` would return, or the same pictures with other boxes.
        """
        self._source, self._again = source, None
        self._laid_out = {}

    @property
    def on_host(self) -> bool:
        """Whether the pixels stay in the memory of the host, so that crops are cut there."""
        return self.source.store.on_host

    def store_on(self, device: torch.device) -> ImageStore | PictureFiles:
        """Return the pictures, moved to a device once."""
        source = self.source
        if source.store.device != device:
            self._source = source = replace(source, store=source.store.to(device))
        return source.store

    def follow(self, spec: OffsetSpec, needs_class: bool = False) -> None:
        """Cut crops as a trained model knows them; what was not asked for is taken from it.

        Args:
            spec: What the model was trained on.
            needs_class: Whether it can only refine the classes it was trained on, and numbers.

        Raises:
            BadInput: Other crops were asked for, or there are other classes.
        """
        geometry, num_targets = self._crop or spec.geometry, self._num_targets or spec.num_targets
        refuse_other_crops(spec, geometry, num_targets)
        self.geometry, self.num_targets, self.noise = geometry, num_targets, _noise_for(geometry)
        self._known_classes = spec.classes if needs_class else None
        splits = self.source.splits.values() if needs_class else ()
        present = {label for items in splits for label in items.labels.tolist()}
        if others := {self.source.classes[label] for label in present} - set(spec.classes):
            msg = (
                f"the model has a regressor for each of {listed(spec.classes)}, but none for "
                f"{listed(sorted(others))}; choose the former by data.classes"
            )
            raise BadInput(msg)

    @property
    def label_numbers(self) -> Int64[Tensor, " c"]:
        """The number that the model knows each class of the data by; -1 where it doesn't."""
        classes = self.source.classes
        known = self._known_classes or classes
        numbers = [known.index(name) if name in known else -1 for name in classes]
        return torch.tensor(numbers, dtype=torch.int64)

    def spec(self) -> OffsetSpec:
        """Return what a model must know of the data."""
        train, classes = self.source.splits["train"], tuple(self.source.classes)
        return offset_spec(
            train,
            geometry=self.geometry,
            jitter=self.jitter,
            num_targets=self.num_targets,
            classes=classes,
            white_level=self.white_level,
            part=self.part,
        )

    def describe(self) -> list[str]:
        """Say what there is, in a line a split: pictures, boxes, skipped, spread of the targets."""
        lines = [f"crops of {self.geometry.size} x {self.geometry.size} pixels"]
        names: tuple[Split, ...] = ("train", "val", "test")
        for name in names:
            items, samples = self.source.splits[name], self.samples(name)
            anchors = self.geometry.anchors(samples.proposals)
            deltas = encode_deltas(samples.gt_boxes, anchors)[:, : self.num_targets]
            units = deltas.new_tensor(self.spec().units)
            spread = [f"{value:.2f}" for value in (deltas.std(dim=0) / units).tolist()]
            sizes = f", {', '.join(spread[2:])} in log size" if spread[2:] else ""
            line = (
                f"{name}: {len(set(items.image_index.tolist()))} pictures, {len(items)} boxes, "
                f"{len(items.skipped)} skipped, target std {', '.join(spread[:2])} px{sizes}"
            )
            failed = self.failed_draws.get(name, 0)
            if name == "train" and self.class_sampling is not None:
                drawn = self.draws_by_class(self._sampling_weights()).tolist()
                pairs = zip(self.source.classes, drawn, strict=True)
                line += f", draws by class: {', '.join(f'{each} {n:,}' for each, n in pairs)}"
            lines.append(
                line + (f", {failed} of {len(deltas)} draws left unjittered" if failed else "")
            )
        return lines

    def error_floor(self, samples: Samples) -> dict[str, float]:
        """Return what is known of the least possible error, to stand beside the metrics."""
        return {}

    def num_draws(self, split: Split) -> int:
        """Return how many samples an epoch of a split has.

        The training probe is a quarter of an evaluation, what is drawn at several widths a half.
        """
        if split == "train":
            return self.draws_per_epoch
        if split == "predict":
            return len(self.source.splits[split])
        if split.endswith("_widths"):
            return -(-self.eval_draws // 2)
        return -(-self.eval_draws // 4) if split == "train_eval" else self.eval_draws

    def item_name(self, split: Split, item: int) -> str:
        """Say where an item of a split comes from."""
        return self.items_of(split).name(item)

    def items_of(self, split: Split) -> Items:
        """Return what a split draws from."""
        return self.source.splits[split.partition("_")[0]]

    def fix_draws(self) -> None:
        """Train on the draws of epoch 0 in every epoch, in a fresh order each."""
        self._fixed = True
        self._laid_out.clear()

    def samples(self, split: Split, epoch: int = 0, draws: int | None = None) -> Samples:
        """Lay out all samples of an epoch: a pure function of the seed, on the CPU.

        Args:
            split: Of which split.
            epoch: Of which epoch of training.
            draws: How many; as many as the split's epochs have by default.
        """
        items = self.items_of(split)
        training = split == "train"
        if training and self._fixed and epoch:
            return self.samples("train").take(self._draws(split, epoch))
        seed, epoch = (self.seed, epoch) if training else (stream_seed("evaluation", split), 0)
        plan = EpochPlan(seed, epoch, len(items), draws or self.num_draws(split))
        samples, self.failed_draws[split] = draw_samples(
            replace(items, labels=self.label_numbers[items.labels]),
            torch.arange(len(items)) if split == "predict" else self._order(plan, split),
            plan,
            geometry=self.geometry,
            jitter=self.jitter,
            resize=self.num_targets == 4,
            augment=self.augment if training else None,
            noise=self.noise,
            widths=widths_of(plan.num_draws, self.jitter) if split.endswith("_widths") else None,
        )
        return samples

    def _order(self, plan: EpochPlan, split: Split) -> Int64[Tensor, " n"]:
        """Return the item of each draw; in training some classes may be drawn more often."""
        if split != "train" or self.class_sampling is None:
            return plan.order
        return plan.order_by(self.items_of(split).labels, self._sampling_weights())

    def _sampling_weights(self) -> Float64[Tensor, " c"]:
        assert self.class_sampling is not None
        items, classes = self.items_of("train"), self.source.classes
        weights = class_weights(self.class_sampling, items, classes, "data.class_sampling")
        drawn = self.draws_by_class(weights)
        present = items.labels.bincount(minlength=len(classes)) > 0
        if bool((present & (drawn == 0)).any()):
            name = classes[int((present & (drawn == 0)).nonzero()[0])]
            msg = (
                f"data.class_sampling is {self.class_sampling!r}, which draws no {name} in an "
                f"epoch of {self.draws_per_epoch}; raise its weight, or data.draws_per_epoch"
            )
            raise BadInput(msg)
        return weights

    def draws_by_class(self, weights: Float64[Tensor, " c"]) -> Int64[Tensor, " c"]:
        """Return how often an epoch of training draws each class, where boxes are weighed so."""
        labels = self.items_of("train").labels
        return EpochPlan(0, 0, len(labels), self.draws_per_epoch).draws_by(labels, weights)

    def widths(self, split: Split) -> Float[Tensor, " n"]:
        """Return how much of the jitter's way each draw of a split goes; given proposals all."""
        count = self.num_draws(split)
        if not split.endswith("_widths") or self.items_of(split).proposals is not None:
            return torch.ones(count)
        return widths_of(count, self.jitter)

    def lay_out(self, rows: Rows) -> tuple[Samples, Int64[Tensor, " n"]]:
        """Return an epoch's samples, and their draws, on the device of some rows."""
        device = rows.rows.device
        known = self._laid_out.get((rows.split, device))
        if known is None or known[0] != rows.epoch:
            samples = self.samples(rows.split, rows.epoch).to(device)
            draws = self._draws(rows.split, rows.epoch).to(device)
            self._laid_out[rows.split, device] = known = (rows.epoch, samples, draws)
        return known[1], known[2]

    def _draws(self, split: Split, epoch: int) -> Int64[Tensor, " n"]:
        """Return which draw of epoch 0 each row of an epoch is, where draws are fixed."""
        if split != "train" or not epoch:
            return torch.arange(self.num_draws(split))
        generator = keyed_generator("fixed draws", self.seed, epoch)
        return torch.randperm(self.draws_per_epoch, generator=generator)

    def cut(self, samples: Samples) -> Float[Tensor, "b 3 s s"]:
        """Cut the crops of samples, mirrored where flipped, without noise or photometry."""
        goal = samples.proposals.device
        device = _CPU if self.on_host else goal
        crops = cut_crops(
            self.store_on(device),
            samples.image_index.to(device),
            samples.crop_boxes.to(device),
            self.geometry.size,
            kernel_for(self.compile, device, self.on_host),
        )
        return crops.to(goal)

    @torch.no_grad()
    def crops_of(
        self,
        samples: Samples,
        augment: bool = False,
        raw: Float[Tensor, "b 3 s s"] | None = None,
    ) -> Float[Tensor, "b 3 s s"]:
        """Return the crops of samples as a model sees them.

        Args:
            samples: Which.
            augment: Whether they are training crops.
            raw: What was cut already.
        """
        crops = self.cut(samples) if raw is None else raw
        if augment:
            factors = samples.factors if samples.factors.shape[1] else None
            fast = is_compiled(self.compile, crops.device, self._pixels_to_cut())
            adjust = compiled_photometry if fast else adjust_photometry
            crops = self.augment.photometry(crops, factors, adjust)
        if noise := self.noise_level(augment):
            crops = crops + noise * self.noise.windows(samples.noise).view_as(crops)
        return crops

    def crops_again(
        self, rows: Rows, geometry: CropGeometry, boxes: Boxes
    ) -> Float[Tensor, "b 3 s s"]:
        """Return crops of another geometry around other boxes than the proposals of some rows.

        Args:
            rows: Rows of an evaluation.
            geometry: How to cut.
            boxes: Where, in the pictures of the rows.
        """
        source, known = self.source, self._again
        if known is None or known[0] is not source or known[1].geometry != geometry:
            other = copy(self)
            other.geometry, other.noise = geometry, _noise_for(geometry)
            # Files that are decoded ahead push out of a store what the second look needs.
            other._source = replace(source, store=copy(source.store))
            self._again = known = source, other
        samples = self.lay_out(rows)[0].take(rows.rows)
        return known[1].crops_of(samples.cut_at(geometry, boxes, samples.flips))

    def noise_level(self, augment: bool) -> float:
        """Return the standard deviation of the noise added to crops."""
        level: float = (self.sensor_noise**2 + (self.augment.noise**2 if augment else 0)) ** 0.5
        return level

    def make_batch(self, rows: Rows) -> Batch:
        """Cut and augment the crops of some rows, on the rows' device, or take their features."""
        return self.batch_of(rows, *self.lay_out(rows))

    @torch.no_grad()
    def batch_of(self, rows: Rows, samples: Samples, draws: Int64[Tensor, " n"]) -> Batch:
        """Do the same, given what `lay_out` returns."""
        samples, features = samples.take(rows.rows), None
        if rows.split in self.features:
            features = self.features[rows.split][draws[rows.rows]]
            crops = samples.proposals.new_zeros(len(rows.rows), 3, 0, 0)
        else:
            raw = None if rows.crops is None else rows.crops.tensor
            crops = self.crops_of(samples, augment=rows.split == "train", raw=raw)
        boxes = samples.gt_boxes, samples.proposals
        return Batch(crops, *boxes, rows.rows, rows.valid, samples.labels, features)

    def batches(
        self, split: Split, epoch: int, device: torch.device
    ) -> Generator[Batch, None, None]:
        """Walk through an epoch outside of the trainer's own loops: this process's share of it."""
        loader = self.loader(split, lambda: (epoch, 0))
        with closing(iter(loader)) as walk:
            for index, rows in enumerate(walk):
                if split == "train":
                    self.seed_step(epoch * len(loader) + index)
                yield self.make_batch(rows.to(device))

    @property
    def epoch(self) -> int:
        """The epoch whose draws are trained on: the first one always, where they are overfitted."""
        trainer = self.trainer
        if trainer is None or trainer.overfit_batches:  # type: ignore[attr-defined] # Lightning sets it
            return 0
        return trainer.current_epoch

    def seed_step(self, step: int) -> None:
        """Seed what can't be keyed by sample; where batches are to be overfitted, as in epoch 0."""
        trainer = self.trainer
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined] # as above
            batches = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            step %= min(batches * self.steps_per_call, self.num_draws("train") // self.batch_size)
        torch.manual_seed(stream_seed("step", self.seed, step, self.ranks()[0]))

    def setup(self, stage: str) -> None:
        """Read the data where that hasn't been done: for `predict` the boxes to refine.

        For another device than before, `auto` chooses anew where the pixels are kept.
        """
        store = self._source.store if self._source else None
        if isinstance(store, ImageStore) and self.placement.was_for_another(self.trainer):
            self._keep_in(self.placement.choose(4 * store.num_held, self.trainer))
        self.teardown(stage)  # what a run before left that was stopped
        if self._rough != (stage == "predict"):
            self._rough, self._source = stage == "predict", None
        _ = self.source
        if self.trainer is not None and self.trainer.lightning_module is not None:
            # Callbacks come next, then the model: they are to find its layers.
            self.trainer.lightning_module.configure_model()

    def teardown(self, stage: str) -> None:
        """Forget what one model wanted and made of crops, and end what is done ahead."""
        self._prefetch.stop()
        self._fixed, self.features, self.steps_per_call = False, {}, 1
        self._laid_out.clear()
        self._again = None

    def on_exception(self, exception: BaseException) -> None:
        """End what is done ahead."""
        self._prefetch.stop()

    def on_after_batch_transfer(self, batch: Rows, dataloader_idx: int) -> Batch | Rows:
        """Turn rows into crops, after seeding what can't be keyed by sample with the step.

        Rows for several steps stay what they are: each step has its own cut.
        """
        if batch.rows.dim() > 1:
            return batch
        if batch.split == "train" and self.trainer is not None:
            self.seed_step(self.trainer.global_step)
        return self.make_batch(batch)

    def train_dataloader(self) -> PlanLoader:
        """Walk through the epochs' full batches.

        Raises:
            BadInput: There are more processes than samples in a batch.
        """
        world_size = self.ranks()[1]
        if self.batch_size < world_size:
            msg = (
                f"data batch_size is {self.batch_size}, but there are {world_size} processes; "
                f"expected at least a sample for each"
            )
            raise BadInput(msg)
        return self.loader("train", self._position, self.steps_per_call)

    def val_dataloader(self) -> list[PlanLoader]:
        """Walk through the validation draws, then the fixed training draws."""
        return [self.loader("val"), self.loader("train_eval")]

    def test_dataloader(self) -> PlanLoader:
        """Walk through the test draws."""
        return self.loader("test")

    def predict_dataloader(self) -> PlanLoader:
        """Walk through the boxes to refine."""
        return self.loader("predict")

    def loader(
        self,
        split: Split,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        steps: int = 1,
    ) -> PlanLoader:
        """Return what walks through a split's rows that this process takes (see `PlanLoader`)."""
        return PlanLoader(
            split,
            self.num_draws(split),
            self.batch_size,
            *self.ranks(),
            position,
            full=split == "train",
            prefetch=self.prefetch_crops,
            steps=steps,
        )

    def ranks(self) -> tuple[int, int]:
        """Return the number of this process, and of all."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, Place]:
        """Return where the pixels are kept, so that a run that goes on keeps them there."""
        return {"store": self.placement.place} if self.placement.place else {}

    def load_state_dict(self, state: dict[str, Place]) -> None:
        """Keep the pixels where the run kept them, unless another place is asked for by name."""
        kept, training = state.get("store"), self.trainer and self.trainer.state.fn == "fit"
        asked, place = self.placement.asked, self.placement.place
        if training and asked == "auto" and kept not in (None, place):
            say(f"store: {kept}, as this run began")
            self._keep_in(kept)

    def prefetch_crops(self, walk: Walk) -> Walk:
        """Have crops cut ahead where that is done on the host."""
        return self._prefetch.start(walk, self._cutter) if self.on_host else walk

    def _cutter(self, first: Rows) -> HostCutter | None:
        if first.split in self.features:
            return None
        return HostCutter(self.cut, self.lay_out(first)[0], device_of(self.trainer))

    def _pixels_to_cut(self) -> float:
        """Return how many pixels of crops the trainer asks for, roughly; any number without one."""
        trainer, pixels = self.trainer, self.geometry.size**2
        if trainer is None:
            return math.inf
        if trainer.state.fn in ("validate", "test", "predict"):
            return pixels * self.num_draws("predict" if self._rough else "test")
        epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
        a_step = self.batch_size * trainer.accumulate_grad_batches
        return pixels * min(epochs * self.draws_per_epoch, steps * a_step)

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.epoch, progress.current.ready

    def _keep_in(self, place: Place) -> None:
        """Keep the pixels elsewhere; what is in memory is not read again for that."""
        before, self.placement.place = self.placement.place, place
        if self._source is None or self._rough or place == before:
            return
        if "disk" in (before, place):
            self._source = None
            return
        store = self._source.store.to(_CPU)
        assert isinstance(store, ImageStore)
        store.on_host = place == "pinned" or store.has_large
        self._source = replace(self._source, store=store)


def _noise_for(geometry: CropGeometry) -> NoiseBank:
    return NoiseBank(("noise",), window=3 * geometry.size**2)


def _check_counts(
    batch_size: int, draws_per_epoch: int, eval_draws: int, num_targets: int | None
) -> None:
    for name, value in (("batch_size", batch_size), ("eval_draws", eval_draws)):
        if value < 1:
            msg = f"data {name} is {value}; expected at least 1"
            raise BadInput(msg)
    if num_targets not in (None, 2, 4):
        msg = f"data num_targets is {num_targets}; expected 2 (dx, dy) or 4 (dx, dy, dw, dh)"
        raise BadInput(msg)
    if draws_per_epoch < batch_size:
        msg = (
            f"data draws_per_epoch {draws_per_epoch} is below batch_size {batch_size}, "
            f"so no batch is full; lower batch_size"
        )
        raise BadInput(msg)
