"""The base of all data modules: from samples to batches of crops on the device.

A loader yields row numbers only. The samples of an epoch are moved to the device once, and the
crops are cut there, or on the host, ahead of the steps, where the pictures stay there.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import ClassVar, Literal
from weakref import WeakSet

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import say
from lightning_bbox.core.prefetch import ahead
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.data.draws import BatchSize, SampleDataModule
from lightning_bbox.data.loader import HostCrops, PlanLoader, Rows, Split, Walk
from lightning_bbox.data.samples import Batch, Samples
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter
from lightning_bbox.pictures.augment import Augment, adjust_photometry, compiled_photometry
from lightning_bbox.pictures.cut import cut_crops, is_compiled, kernel_for
from lightning_bbox.pictures.places import Place, Store, choose_place, measure_room
from lightning_bbox.pictures.store import ImageStore, PictureFiles

_CPU = torch.device("cpu")


class CropDataModule(SampleDataModule):
    """Cut shifted crops on the device, in an order and with random numbers fixed by the seed.

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
        compile: Compile the cut; `auto` does where there is a compiler, `triton` cuts by a kernel
            written in Triton instead (CUDA; its speed is not measured yet).
        sensor_noise: Standard deviation of the noise added to every crop, as a fraction of the
            range.
        store: Where the pixels are kept.

    Attributes:
        features: What a backbone makes of a split's crops, a row for each draw of epoch 0, on the
            device of the batches: those hold it instead of crops. Training needs fixed draws.
        steps_per_call: How many steps of training the rows are for that its loader yields at once;
            a model says so in its setup, and has the crops cut itself where there are several.
    """

    keeps_on_disk: ClassVar[bool] = False  # whether `auto` may choose so

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
        compile: CutCompile,  # noqa: A002 (the name of the option everywhere)
        sensor_noise: float = 0.0,
        store: Store = "device",
    ) -> None:
        super().__init__(
            crop, jitter, num_targets, augment, batch_size, draws_per_epoch, eval_draws, seed
        )
        self.compile, self.sensor_noise, self.store = compile, sensor_noise, store
        self.features: dict[Split, Tensor] = {}
        self.steps_per_call = 1
        self._place: Place | None = None if store == "auto" else store
        self._placed_for: torch.device | None = None
        self._laid_out: dict[tuple[Split, torch.device], tuple[int, Samples, Tensor]] = {}
        self._walks: WeakSet[Walk] = WeakSet()

    def store_on(self, device: torch.device) -> ImageStore | PictureFiles:
        """Return the pictures, moved to a device once."""
        source = self.source
        if source.store.device != device:
            self._source = source = replace(source, store=source.store.to(device))
        return source.store

    def cut(self, samples: Samples) -> Float[Tensor, "b 3 s s"]:
        """Cut the crops of samples, mirrored where flipped, without noise or photometry."""
        goal, store = samples.proposals.device, self.source.store
        if isinstance(store, ImageStore) and store.stays:
            samples = samples.to(_CPU)
            store.expect(samples.image_index, samples.crop_boxes)
        device, boxes = samples.crop_boxes.device, samples.crop_boxes
        kernel = kernel_for(self.compile, device, on_host=self.stays)
        size, supersample = self.geometry.size, self.geometry.supersample or 1
        crops, start = list[Tensor](), 0
        for store, index in self.store_on(device).parts(samples.image_index):
            rows = slice(start, start + len(index))
            crops.append(cut_crops(store, index, boxes[rows], size, supersample, kernel))
            start += len(index)
        return (torch.cat(crops) if len(crops) > 1 else crops[0]).to(goal)

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
            cut = None if rows.crops is None else rows.crops.tensor
            crops = self.crops_of(samples, augment=rows.split == "train", crops=cut)
        boxes = samples.gt_boxes, samples.proposals
        return Batch(crops, *boxes, rows.rows, rows.valid, samples.labels, features)

    def batches(self, split: Split, epoch: int, device: torch.device) -> Iterator[Batch]:
        """Walk through an epoch outside of the trainer's own loops: this process's share of it."""
        loader = self._loader(split, lambda: (epoch, 0))
        with closing(iter(loader)) as walk:
            for index, rows in enumerate(walk):
                if split == "train":
                    self.seed_step(epoch * len(loader) + index)
                yield self.make_batch(rows.to(device))

    def _loader(
        self,
        split: Split,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        steps: int = 1,
    ) -> PlanLoader:
        counts = self.num_draws(split), self.batch_size
        return PlanLoader(
            split, *counts, *self.ranks(), position, split == "train", self.attach_crops, steps
        )

    def seed_step(self, step: int) -> None:
        """Seed what can't be keyed by sample."""
        torch.manual_seed(stream_seed("step", self.seed, step, self.ranks()[0]))

    @torch.no_grad()
    def crops_of(
        self,
        samples: Samples,
        augment: bool = False,
        crops: Float[Tensor, "b 3 s s"] | None = None,
    ) -> Float[Tensor, "b 3 s s"]:
        """Return the crops of samples as a model sees them.

        Args:
            samples: Which.
            augment: Whether they are training crops.
            crops: What was cut already.
        """
        crops = self.cut(samples) if crops is None else crops
        if augment:
            factors = samples.factors if samples.factors.shape[1] else None
            fast = is_compiled(self.compile, crops.device)
            adjust = compiled_photometry if fast else adjust_photometry
            crops = self.augment.photometry(crops, factors, adjust)
        if noise := self.noise_level(augment):
            crops = crops + noise * self.noise.windows(samples.noise).view_as(crops)
        return crops

    def noise_level(self, augment: bool) -> float:
        """Return the standard deviation of the noise added to crops."""
        level: float = (self.sensor_noise**2 + (self.augment.noise**2 if augment else 0)) ** 0.5
        return level

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
        return self._loader("train", self._position, self.steps_per_call)

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

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, progress.current.ready

    def lay_out(self, rows: Rows) -> tuple[Samples, Int64[Tensor, " n"]]:
        """Return an epoch's samples, and their draws, on the device of some rows."""
        device = rows.rows.device
        known = self._laid_out.get((rows.split, device))
        if known is None or known[0] != rows.epoch:
            samples = self.samples(rows.split, rows.epoch).to(device)
            draws = self._draws(rows.split, rows.epoch).to(device)
            self._laid_out[rows.split, device] = known = (rows.epoch, samples, draws)
        return known[1], known[2]

    @property
    def stays(self) -> bool:
        """Whether the pixels stay in the memory of the host, so that crops are cut there."""
        store = self.source.store
        return isinstance(store, ImageStore) and store.stays

    def attach_crops(self, walk: Walk) -> Walk:
        """Have crops cut ahead where that is done on the host."""
        if not self.stays:
            return walk
        with_crops = self._with_crops(walk)
        self._walks.add(with_crops)
        return with_crops

    def _with_crops(self, walk: Walk) -> Walk:
        first = next(walk, None)
        if first is None or first.split in self.features:
            yield from chain([first] if first else [], walk)
            return
        cut = self._cutter(first)
        if self.trainer and self.trainer.precision in ("64-true", "bf16-true", "16-true"):
            # While such a network steps, torch's default type is another, and what is compiled is
            # compiled anew for it: here, not in the thread (see `ahead`).
            with self.trainer.precision_plugin.train_step_context():
                cut(first)
        # Two at once: while one waits for the disk, the other cuts.
        with closing(ahead(chain([first], walk), cut, depth=2, threads=2)) as pairs:
            for rows, crops in pairs:
                yield rows._replace(crops=crops)

    def _cutter(self, first: Rows) -> Callable[[Rows], HostCrops]:
        """Return what cuts crops of an epoch in another thread: nothing in it changes any more."""
        samples, device = self.lay_out(first)[0], self._device()

        def cut(rows: Rows) -> HostCrops:
            # As compiled kernels know these modes, they have to be the same in all threads.
            with torch.inference_mode(mode=False), torch.no_grad():
                crops = self.cut(samples.take(rows.rows.flatten()))
            crops = crops.view(*rows.rows.shape, *crops.shape[1:])
            if device.type == "cuda":
                with torch.cuda.device(device):  # a thread begins with the first one
                    crops = crops.pin_memory()  # so that they are sent while others train
            return HostCrops(crops)

        return cut

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else _CPU

    def place(self, needed: int) -> Place:
        """Return where so many bytes of pixels are kept; `auto` chooses once for a run."""
        if self._place is None:
            self._place = self._choose_place(needed)
        return self._place

    def _choose_place(self, needed: int) -> Place:
        self._placed_for = self._device()
        processes = self.trainer.num_devices if self.trainer else 1
        room = measure_room(self._placed_for)
        place, why = choose_place(needed, room, processes, disk=self.keeps_on_disk)
        if self.trainer:  # one for all processes
            place, why = self.trainer.strategy.broadcast((place, why))
        if self.trainer or place != "device":
            say(f"store: auto is {place} here ({why})")
        return place

    def _keep_in(self, place: Place) -> None:
        """Keep the pixels elsewhere; what is in memory is not read again for that."""
        before, self._place = self._place, place
        if self._source is None or self._rough or place == before:
            return
        if "disk" in (before, place):
            self._source = None
            return
        store = self._source.store.to(_CPU)
        assert isinstance(store, ImageStore)
        store.stays = place == "pinned"
        self._source = replace(self._source, store=store)

    def setup(self, stage: str) -> None:
        """Read the data where that hasn't been done; for another device `auto` chooses again."""
        store = self._source.store if self._source else None
        if self._placed_for not in (None, self._device()) and isinstance(store, ImageStore):
            self._keep_in(self._choose_place(4 * len(store.pixels)))
        super().setup(stage)

    def fix_draws(self) -> None:
        """Train on the draws of epoch 0 in every epoch, in a fresh order each."""
        super().fix_draws()
        self._laid_out.clear()

    def teardown(self, stage: str) -> None:
        """Forget what one model wanted and made of crops, and end what is done ahead."""
        super().teardown(stage)
        self._stop_walks()
        self.features, self.steps_per_call = {}, 1
        self._laid_out.clear()

    def on_exception(self, exception: BaseException) -> None:
        """End what is done ahead."""
        self._stop_walks()

    def _stop_walks(self) -> None:
        for walk in list(self._walks):
            walk.close()

    def state_dict(self) -> dict[str, Place]:
        """Return where the pixels are kept, so that a run that goes on keeps them there."""
        return {"store": self._place} if self._place else {}

    def load_state_dict(self, state: dict[str, Place]) -> None:
        """Keep the pixels where the run kept them, unless another place is asked for by name."""
        kept, training = state.get("store"), self.trainer and self.trainer.state.fn == "fit"
        if training and self.store == "auto" and kept not in (None, self._place):
            say(f"store: {kept}, as this run began")
            self._keep_in(kept)
