"""Which samples there are: the items of a data set, and what an epoch draws from them.

The rows' boxes, proposals and random numbers are laid out for a whole epoch by the plan.
"""

from dataclasses import replace
from typing import Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.randomness import EpochPlan, keyed_generator, stream_seed
from lightning_bbox.data.loader import Split
from lightning_bbox.data.samples import Items, Samples, Source
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, mirror_boxes, swap_corners
from lightning_bbox.geometry.codecs import OffsetSpec, encode_deltas, refuse_other_crops
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter, UniformJitter
from lightning_bbox.pictures.augment import Augment, NoiseBank

BatchSize = int | Literal["auto"]
USUAL_BATCH = 128
"""Of evaluations, and before training begins, where `auto` is to find the size."""


class SampleDataModule(pl.LightningDataModule):
    """Draw samples in an order and with random numbers fixed by the seed.

    Subclasses read the pictures and boxes in `read`.

    Args:
        crop: How proposals become crops; a trained model knows how, others take `CropGeometry()`.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh); a trained model
            knows how many, others learn 2.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes; `auto` finds it when training
            begins.
        draws_per_epoch: Training samples in an epoch; boxes are used evenly.
        eval_draws: Samples of each evaluation, the same for every model and epoch.
        seed: Seed of order, proposals and augmentation; validation and test don't depend on it.
    """

    def __init__(
        self,
        crop: CropGeometry | None,
        jitter: Jitter | None,
        num_targets: Literal[2, 4] | None,
        augment: Augment,
        batch_size: BatchSize,
        draws_per_epoch: int,
        eval_draws: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.finds_batch_size = batch_size == "auto"
        size = max(1, min(USUAL_BATCH, draws_per_epoch)) if batch_size == "auto" else batch_size
        for name, value in (("batch_size", size), ("eval_draws", eval_draws)):
            if value < 1:
                msg = f"data {name} is {value}; expected at least 1"
                raise BadInput(msg)
        if num_targets not in (None, 2, 4):
            msg = f"data num_targets is {num_targets}; expected 2 (dx, dy) or 4 (dx, dy, dw, dh)"
            raise BadInput(msg)
        if draws_per_epoch < size:
            msg = (
                f"data draws_per_epoch {draws_per_epoch} is below batch_size {size}, "
                f"so no batch is full; lower batch_size"
            )
            raise BadInput(msg)
        self._crop, self._num_targets = crop, num_targets
        self.geometry = crop or CropGeometry()
        self.jitter = jitter or UniformJitter()
        self.num_targets: int = num_targets or 2
        self.augment = augment
        self.batch_size, self.draws_per_epoch, self.eval_draws = size, draws_per_epoch, eval_draws
        self.seed = seed
        self.noise = NoiseBank(("noise",), window=3 * self.geometry.size**2)
        self.failed_draws: dict[str, int] = {}
        self._source: Source | None = None
        self._rough = False
        self._fixed = False
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
        """Draw anew in every epoch again."""
        self._fixed = False

    def fix_draws(self) -> None:
        """Train on the draws of epoch 0 in every epoch, in a fresh order each."""
        self._fixed = True

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
            crop_boxes=self.crop_boxes(proposals, flips),
        )

    def crop_boxes(self, proposals: Boxes, flips: Float[Tensor, "n 2"]) -> Boxes:
        """Return where crops are cut, with swapped corners where they are mirrored."""
        return swap_corners(self.geometry.crop_boxes(proposals), *(flips > 0).T)

    def ranks(self) -> tuple[int, int]:
        """Return the number of this process, and of all."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _draws(self, split: Split, epoch: int) -> Int64[Tensor, " n"]:
        """Return which draw of epoch 0 each row of an epoch is, where draws are fixed."""
        if split != "train" or not epoch:
            return torch.arange(self.num_draws(split))
        generator = keyed_generator("fixed draws", self.seed, epoch)
        return torch.randperm(self.draws_per_epoch, generator=generator)

    def _median_shrink(self, train: Items) -> int:
        boxes = train.boxes if train.proposals is None else train.proposals
        sides = box_sizes(self.geometry.crop_boxes(boxes))
        return max(1, round(float(sides.median()) / self.geometry.size))
