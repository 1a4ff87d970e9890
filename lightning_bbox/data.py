"""The base of all data modules: from items to batches of crops on the device.

A loader yields row numbers only. The rows' boxes, proposals and random numbers are laid out for a
whole epoch by the plan, moved to the device once, and the crops are cut there.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.augment import (
    Augment,
    NoiseBank,
    adjust_photometry,
    compiled_photometry,
)
from lightning_bbox.boxes import box_centers, box_sizes, mirror_boxes, swap_corners
from lightning_bbox.codecs import OffsetSpec, encode_deltas, refuse_other_crops
from lightning_bbox.compiling import Compile, should_compile
from lightning_bbox.crops import CropGeometry, cut_crops
from lightning_bbox.errors import BadInput, listed
from lightning_bbox.images import ImageStore, PictureFiles
from lightning_bbox.jitter import Jitter, UniformJitter
from lightning_bbox.kernels import compiled_bilinear, sample_bilinear
from lightning_bbox.loader import PlanLoader, Rows, Split
from lightning_bbox.plan import EpochPlan, keyed_generator, stream_seed
from lightning_bbox.samples import Batch, Items, Samples, Source


class CropDataModule(pl.LightningDataModule):
    """Cut shifted crops on the device, in an order and with random numbers fixed by the seed.

    Subclasses read the pictures and boxes in `read`.

    Args:
        crop: How proposals become crops; a trained model knows how, others take `CropGeometry()`.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh); a trained model
            knows how many, others learn 2.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes.
        draws_per_epoch: Training samples in an epoch; boxes are used evenly.
        eval_draws: Samples of each evaluation, the same for every model and epoch.
        seed: Seed of order, proposals and augmentation; validation and test don't depend on it.
        compile: Compile the cut; `auto` does where there is a compiler.
        sensor_noise: Standard deviation of the noise added to every crop, as a fraction of the
            range.

    Attributes:
        features: What a backbone makes of a split's crops, a row for each draw of epoch 0, on the
            device of the batches: those hold it instead of crops. Training needs fixed draws.
    """

    def __init__(
        self,
        crop: CropGeometry | None,
        jitter: Jitter | None,
        num_targets: Literal[2, 4] | None,
        augment: Augment,
        batch_size: int,
        draws_per_epoch: int,
        eval_draws: int,
        seed: int,
        compile: Compile,  # noqa: A002 (the name of the option everywhere)
        sensor_noise: float = 0.0,
    ) -> None:
        super().__init__()
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
        self._crop, self._num_targets = crop, num_targets
        self.geometry = crop or CropGeometry()
        self.jitter = jitter or UniformJitter()
        self.num_targets: int = num_targets or 2
        self.augment = augment
        self.batch_size, self.draws_per_epoch, self.eval_draws = (
            batch_size,
            draws_per_epoch,
            eval_draws,
        )
        self.seed, self.compile, self.sensor_noise = seed, compile, sensor_noise
        self.noise = NoiseBank(("noise",), window=3 * self.geometry.size**2)
        self.failed_draws: dict[str, int] = {}
        self._source: Source | None = None
        self._rough = False
        self._laid_out: dict[Split, tuple[int, Samples, Tensor]] = {}
        self._fixed = False
        self.features: dict[Split, Tensor] = {}
        self._known_classes: tuple[str, ...] | None = None

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
            if self.geometry.supersample is None and "train" in source.splits:
                self.geometry = replace(
                    self.geometry, supersample=self._median_shrink(source.splits["train"])
                )
        return self._source

    def setup(self, stage: str) -> None:
        """Read the data, on every process: for `predict` the boxes to refine, else the splits."""
        self.teardown(stage)  # what a run before left that was stopped
        if self._rough != (stage == "predict"):
            self._rough, self._source = stage == "predict", None
        _ = self.source

    def teardown(self, stage: str) -> None:
        """Forget features, which were of one model, and draw anew in every epoch again."""
        self.features, self._fixed = {}, False
        self._laid_out.clear()

    def fix_draws(self) -> None:
        """Train on the draws of epoch 0 in every epoch, in a fresh order each."""
        self._fixed = True
        self._laid_out.clear()

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
        if geometry.supersample is None:
            geometry = replace(geometry, supersample=spec.geometry.supersample)
        self.geometry, self.num_targets = geometry, num_targets
        self.noise = NoiseBank(("noise",), window=3 * geometry.size**2)
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
        train = self.source.splits["train"]
        max_shift, max_log_size = self.jitter.bounds(self.geometry)
        if train.proposals is not None:
            shifts = encode_deltas(train.boxes, self.geometry.anchors(train.proposals))[:, :2]
            max_shift = float(shifts.abs().max()) * self.geometry.px_per_delta
        if self.geometry.square:
            width, height = box_sizes(train.boxes).unbind(dim=1)
            max_log_size += float((width / height).log().abs().max())
        classes = tuple(self.source.classes)
        return OffsetSpec(self.geometry, self.num_targets, max_shift, max_log_size, classes)

    def num_draws(self, split: Split) -> int:
        """Return how many samples an epoch of a split has; the training probe is a quarter."""
        if split == "train":
            return self.draws_per_epoch
        if split == "predict":
            return len(self.source.splits[split])
        return -(-self.eval_draws // 4) if split == "train_eval" else self.eval_draws

    def samples(self, split: Split, epoch: int = 0, draws: int | None = None) -> Samples:
        """Lay out all samples of an epoch: a pure function of the seed, on the CPU.

        Args:
            split: Of which split.
            epoch: Of which epoch of training.
            draws: How many; as many as the split's epochs have by default.
        """
        items = self.source.splits["train" if split.startswith("train") else split]
        training = split == "train"
        if training and self._fixed and epoch:
            return self.samples("train").take(self._draws(split, epoch))
        seed, epoch = (self.seed, epoch) if training else (stream_seed("evaluation", split), 0)
        plan = EpochPlan(seed, epoch, len(items), draws or self.num_draws(split))
        order = torch.arange(len(items)) if split == "predict" else plan.order
        gt_boxes = items.boxes[order]
        if items.proposals is None:
            uniforms = plan.uniform("jitter", self.jitter.columns * self.jitter.tries)
            jittered = self.jitter.propose(
                gt_boxes, uniforms, self.geometry, resize=self.num_targets == 4
            )
            proposals = jittered.proposals
            self.failed_draws[split] = int(jittered.failed.sum())
        else:
            proposals = items.proposals[order]
        flips = self.augment.flips(plan) if training else torch.zeros(len(order), 2)
        factors = self.augment.factors(plan) if training else None
        return Samples(
            items=order,
            labels=self.label_numbers[items.labels[order]],
            image_index=items.image_index[order],
            gt_boxes=mirror_boxes(gt_boxes, box_centers(proposals), flips),
            proposals=proposals,
            flips=flips,
            factors=torch.zeros(len(order), 0) if factors is None else factors,
            noise=self.noise.offsets(plan),
        )

    def store_on(self, device: torch.device) -> ImageStore | PictureFiles:
        """Return the pictures, moved to a device once."""
        source = self.source
        if source.store.device != device:
            self._source = source = replace(source, store=source.store.to(device))
        return source.store

    def compiles_on(self, device: torch.device) -> bool:
        """Tell whether the kernels that cut and augment are compiled on a device."""
        return should_compile(self.compile, device, pays_on_cpu=True)

    def cut(self, samples: Samples) -> Float[Tensor, "b 3 s s"]:
        """Cut the crops of samples, mirrored where flipped, without noise or photometry."""
        device = samples.proposals.device
        crop_boxes = self.geometry.crop_boxes(samples.proposals)
        boxes = swap_corners(crop_boxes, *(samples.flips > 0).unbind(dim=1))
        kernel = compiled_bilinear if self.compiles_on(device) else sample_bilinear
        size, supersample = self.geometry.size, self.geometry.supersample or 1
        crops, start = list[Tensor](), 0
        for store, index in self.store_on(device).parts(samples.image_index):
            rows = slice(start, start + len(index))
            crops.append(cut_crops(store, index, boxes[rows], size, supersample, kernel))
            start += len(index)
        return torch.cat(crops) if len(crops) > 1 else crops[0]

    @torch.no_grad()
    def make_batch(self, rows: Rows) -> Batch:
        """Cut and augment the crops of some rows, on the rows' device, or take their features."""
        samples, draws = self._on_device(rows)
        samples, features = samples.take(rows.rows), None
        if rows.split in self.features:
            features = self.features[rows.split][draws[rows.rows]]
            crops = samples.proposals.new_zeros(len(rows.rows), 3, 0, 0)
        else:
            crops = self.crops_of(samples, augment=rows.split == "train")
        boxes = samples.gt_boxes, samples.proposals
        return Batch(crops, *boxes, rows.rows, rows.valid, samples.labels, features)

    def batches(self, split: Split, epoch: int, device: torch.device) -> Iterator[Batch]:
        """Walk through an epoch outside of the trainer's own loops: this process's share of it."""
        loader = self._loader(split, lambda: (epoch, 0))
        for index, (_, _, rows, valid) in enumerate(loader):
            if split == "train":
                self._seed_step(epoch * len(loader) + index)
            yield self.make_batch(Rows(split, epoch, rows.to(device), valid.to(device)))

    def _loader(
        self, split: Split, position: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> PlanLoader:
        counts = self.num_draws(split), self.batch_size
        return PlanLoader(split, *counts, *self.ranks(), position, full=split == "train")

    def _seed_step(self, step: int) -> None:
        """Seed what can't be keyed by sample."""
        torch.manual_seed(stream_seed("step", self.seed, step, self.ranks()[0]))

    @torch.no_grad()
    def crops_of(self, samples: Samples, augment: bool = False) -> Float[Tensor, "b 3 s s"]:
        """Cut the crops of samples as a model sees them."""
        crops = self.cut(samples)
        if augment:
            factors = samples.factors if samples.factors.shape[1] else None
            fast = self.compiles_on(crops.device)
            adjust = compiled_photometry if fast else adjust_photometry
            crops = self.augment.photometry(crops, factors, adjust)
        if noise := self.noise_level(augment):
            crops = crops + noise * self.noise.windows(samples.noise).view_as(crops)
        return crops

    def noise_level(self, augment: bool) -> float:
        """Return the standard deviation of the noise added to crops."""
        level: float = (self.sensor_noise**2 + (self.augment.noise**2 if augment else 0)) ** 0.5
        return level

    def on_after_batch_transfer(self, batch: Rows, dataloader_idx: int) -> Batch:
        """Turn rows into crops, after seeding what can't be keyed by sample with the step."""
        if batch.split == "train" and self.trainer is not None:
            self._seed_step(self.trainer.global_step)
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
        return self._loader("train", self._position)

    def val_dataloader(self) -> list[PlanLoader]:
        """Walk through the validation draws, then the fixed training draws."""
        return [self._loader("val"), self._loader("train_eval")]

    def test_dataloader(self) -> PlanLoader:
        """Walk through the test draws."""
        return self._loader("test")

    def predict_dataloader(self) -> PlanLoader:
        """Walk through the boxes to refine."""
        return self._loader("predict")

    def error_floor(self, samples: Samples) -> dict[str, float]:
        """Return what is known of the least possible error, to stand beside the metrics."""
        return {}

    def ranks(self) -> tuple[int, int]:
        """Return the number of this process, and of all."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready

    def _draws(self, split: Split, epoch: int) -> Int64[Tensor, " n"]:
        """Return which draw of epoch 0 each row of an epoch is, where draws are fixed."""
        if split != "train" or not epoch:
            return torch.arange(self.num_draws(split))
        generator = keyed_generator("fixed draws", self.seed, epoch)
        return torch.randperm(self.draws_per_epoch, generator=generator)

    def _on_device(self, rows: Rows) -> tuple[Samples, Int64[Tensor, " n"]]:
        """Return an epoch's samples, and their draws, on the device of some rows."""
        device, known = rows.rows.device, self._laid_out.get(rows.split)
        if known is None or known[0] != rows.epoch or known[2].device != device:
            samples = self.samples(rows.split, rows.epoch).to(device)
            draws = self._draws(rows.split, rows.epoch).to(device)
            self._laid_out[rows.split] = known = (rows.epoch, samples, draws)
        return known[1], known[2]

    def _median_shrink(self, train: Items) -> int:
        boxes = train.boxes if train.proposals is None else train.proposals
        sides = box_sizes(self.geometry.crop_boxes(boxes))
        return max(1, round(float(sides.median()) / self.geometry.size))
