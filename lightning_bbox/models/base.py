"""The base of all models: how they are built for data, applied, measured and kept in checkpoints.

How they learn is said by subclasses.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any, ClassVar, Literal, Self

import lightning.pytorch as pl
import torch
from jaxtyping import Bool, Float, Int64
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.compiling import Compile, should_compile
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.core.recipes import (
    Plain,
    class_path_of,
    find_class,
    from_plain,
    to_plain,
    trusting,
)
from lightning_bbox.core.tiff import refuse_other_part
from lightning_bbox.data.loader import Rows, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Batch, Samples
from lightning_bbox.evaluation.evaluation import Evaluation, evaluate
from lightning_bbox.evaluation.metrics import Refined, RefinedBoxes, coordinate_errors
from lightning_bbox.evaluation.widths import (
    AtWidths,
    harm_rows,
    measure_range,
    measure_reliability,
)
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, mirror_boxes
from lightning_bbox.geometry.codecs import (
    DeltaCodec,
    MeanStdCodec,
    OffsetSpec,
    refuse_other_crops,
    refuse_other_white,
)
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.trained_range import TrainedRange, traits_of
from lightning_bbox.models.advice import range_advice, refuse_equal_passes, refuse_misfits
from lightning_bbox.models.checkpoints import (
    CHECKPOINT_KEY,
    checkpoint_of,
    class_path_in,
    drop_second,
    keep_average,
    read_checkpoint,
    read_measured,
    read_spec,
    recipe_in,
    refuse_other_class,
    refuse_other_parts,
    refuse_other_run,
    refuse_weights_alone,
    second_in,
)
from lightning_bbox.models.feature_cache import fill_cache
from lightning_bbox.models.fitting import fit_parts
from lightning_bbox.models.tuning import find_batch_size
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.calibration import can_tell
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.nn.stochastic import sampling

Cut = Callable[[CropGeometry, Boxes], Tensor]
"""Cuts crops of a geometry around boxes, each in its own picture."""

_FIXED_DRAWS = "training on fixed draws (model.cache)"
_UNSAID: dict[str, Plain] = {_FIXED_DRAWS: False, "model.steps_per_call": 1}
"""What a run did whose checkpoint doesn't say, as it is older than the option."""


class OffsetModel(pl.LightningModule):
    """Say how far the true box lies from a proposal, from the crop around it.

    What depends on the data (sizes, statistics, bins) is built when training begins and travels in
    the checkpoint. Subclasses say how the head learns; each has defaults for all its arguments,
    and says what these here mean.
    """

    default_epochs: ClassVar[int]  # of a run on the command line that doesn't say how many

    def __init__(
        self,
        *,
        backbone: Backbone | None,
        head: Head | None,
        codec: DeltaCodec | None,
        preprocess: Preprocess | None,
        average_flips: bool | None,
        compile: Compile,  # noqa: A002 (the name of the option everywhere)
        cache: str | None,
    ) -> None:
        super().__init__()
        self._asked = {"preprocess": preprocess, "backbone": backbone, "head": head, "codec": codec}
        backbone = backbone or ShallowConvNet()
        preprocess = preprocess or backbone.default_preprocess()
        self._take_parts(preprocess, backbone, head or BinHead(), codec or MeanStdCodec())
        self.average_flips, self.compile_choice, self.cache = average_flips, compile, cache
        self.passes: int | None = None
        self.spec: OffsetSpec | None = None
        self.evaluations: dict[Split, Evaluation] = {}  # what was measured last
        self._tables: dict[Split, RefinedBoxes] = {}
        self._is_new = False  # built for this run, and not trained since
        self._run: dict[str, Plain] = {}
        self._resumed_run: dict[str, Plain] | None = None
        self._calibrated: dict[str, Tensor] | None = None  # by the last validation
        self.reliability: Reliability | None = None  # how it errs, as the last validation found
        self.law: DisplacementLaw | None = None  # of boxes too few to tell how they are off
        self.range: TrainedRange | None = None  # which it was trained on
        self.second: OffsetModel | None = None  # looks again where this one says
        # Of a trainer at its end: epochs from validation to validation, and the least there are.
        self._rhythm: tuple[int | None, int | None] | None = None

    def _take_parts(
        self, preprocess: Preprocess, backbone: Backbone, head: Head, codec: DeltaCodec
    ) -> None:
        self.net, self.codec = OffsetNet(preprocess, backbone, head), codec

    @property
    def asked(self) -> dict[str, Plain]:
        """The recipes of the parts that were asked for by name, None where one wasn't."""
        return {name: to_plain(part, f"model.{name}") for name, part in self._asked.items()}

    @property
    def data(self) -> CropDataModule:
        """The data module of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CropDataModule):
            ours, theirs = type(self).__name__, type(data).__name__
            msg = f"{ours} needs a data module of lightning_bbox; got {theirs}"
            raise BadInput(msg)
        return data

    def build(self, spec: OffsetSpec, seed: int) -> None:
        """Make the layers and buffers, initialised by the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed("init", seed))
            self.net.preprocess.build(spec.geometry.size)
            self.net.backbone.build(spec.geometry.size)
            backbone = self.net.backbone
            self.net.head.build(backbone.out_features, spec, backbone.map_shape)
        self.codec.build(spec)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lags
        self.spec = spec

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add none, but refuse those of the trainer's that can't work with the model.

        Raises:
            BadInput: There is one.
        """
        refuse_misfits(self.trainer.callbacks)  # type: ignore[attr-defined] # Lightning sets it
        return []

    def setup(self, stage: str) -> None:
        """Have the data cut crops as the model knows them, which is built where it wasn't.

        Raises:
            BadInput: The model isn't trained and is to predict, or was trained on other crops.
        """
        self._build_for_the_data()
        assert self.spec is not None
        self.data.follow(self.spec, needs_class=self.net.head.per_class)
        if "train" in self.data.source.splits:
            sentence = range_advice(self.net.head, self.data.spec())
            if sentence is not None:
                rank_zero_warn(sentence)

    def configure_model(self) -> None:
        """Build the model where it isn't, and compile the network in place.

        Names in the checkpoint don't change by that. Data modules call it before callbacks are set
        up, which may copy, freeze or prune what there is; to call it again changes nothing.
        """
        self._build_for_the_data()
        if self.net._compiled_call_impl is None and should_compile(
            self.compile_choice, self.trainer.strategy.root_device, pays_on_cpu=False
        ):
            self.net.compile(fullgraph=True)

    def _build_for_the_data(self) -> None:
        """Build the model for the data, and fit its parts on the training split, if it isn't."""
        data = self.data
        if self.spec is not None:
            return
        if self.trainer.state.fn == "predict":
            msg = "the model isn't trained; load one with BoxRegressor.load_from_checkpoint(path)"
            raise BadInput(msg)
        self.build(data.spec(), data.seed)
        self.net.backbone.load_pretrained()
        fit_parts(self.net, self.codec, data, self.trainer.strategy.root_device)
        self._is_new = True

    def on_train_start(self) -> None:
        """Have batches hold features, where they are cached: only now are the weights final."""
        if self.cache is not None:
            # Averages over flips and passes need crops.
            averages = self.average_flips or self.passes
            evaluated: tuple[Split, ...] = () if averages else ("train_eval", "val")
            if evaluated and type(self.net.head).stds is not Head.stds:
                evaluated += ("val_widths",)
            fill_cache(self.cache, self.data, ("train", *evaluated), self.net)

    def choose_batch_size(self, step: Callable[[Batch], object]) -> None:
        """Find the batch size where it is `auto`; a run that goes on keeps its own.

        Args:
            step: Trains on a batch, and leaves no trace in the model.
        """
        data = self.data
        if not data.finds_batch_size:
            return
        if self._resumed_run is not None:
            data.batch_size = int(str(self._resumed_run["data.batch_size"]))
            return
        if self.cache is not None:  # steps take features, which are not known yet
            shape = data.num_draws("train"), self.net.backbone.out_features
            data.features["train"] = torch.zeros(shape, device=self.device)
        try:
            find_batch_size(data, step)
        finally:
            data.features.pop("train", None)

    def forward(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
    ) -> Boxes:
        """Return refined boxes, in fp32 and in the proposals' frame, by one look.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.
            labels: Their classes, for a head that has a regressor for each.
        """
        return self._decode(self._outputs(crops, labels), proposals)

    @torch.no_grad()
    def refine(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
        cut: Cut | None = None,
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return refined boxes, and how far off the model deems them, averaged if asked to.

        Args:
            crops: As `forward` takes them, and so are the others.
            proposals: The boxes to refine.
            labels: Their classes.
            cut: Cuts crops of another geometry around other boxes in the same pictures; a model of
                two looks needs it.

        Returns:
            The boxes in the proposals' frame, and their calibrated standard deviations in px and
            log size, which hold the spread between flips and passes too. NaN where the head can't
            tell: that spread alone lacks the error which all of them share.

        Raises:
            BadInput: The model looks twice, and nothing cuts the second crops.
        """
        boxes, stds, _ = self._look(crops, proposals, labels, cut)
        return boxes, stds

    @torch.no_grad()
    def refine_and_mark(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
        cut: Cut | None = None,
    ) -> tuple[Boxes, Float[Tensor, "b n"], Bool[Tensor, " b"]]:
        """Return what `refine` does, and who lies beyond the trained range, where it is known.

        Args:
            crops: As `forward` takes them, and so are the others.
            proposals: The boxes to refine.
            labels: Their classes.
            cut: As `refine` takes it.
        """
        boxes, stds, traits = self._look(crops, proposals, labels, cut)
        return boxes, stds, self.are_beyond(traits)

    def are_beyond(self, traits: Float[Tensor, "b 2"]) -> Bool[Tensor, " b"]:
        """Tell which boxes lie farther off than those of the training; none where that isn't known.

        Args:
            traits: By what they are known (see `traits_of`).
        """
        if self.range is None:
            return torch.zeros_like(traits[:, 0], dtype=torch.bool)
        return self.range.is_left(traits)

    def _look(
        self, crops: Tensor, proposals: Boxes, labels: Tensor | None, cut: Cut | None
    ) -> tuple[Boxes, Tensor, Tensor]:
        """Return refined boxes, their calibrated deviations, and the traits of the first look."""
        found = self._refined(self._outputs(crops, labels), crops, proposals, labels)
        boxes, stds = self._look_again(*found, proposals, labels, cut)
        return boxes, self.net.calibration(stds), self._traits(*found, proposals)

    def _traits(
        self, boxes: Boxes, stds: Float[Tensor, "b n"], proposals: Boxes
    ) -> Float[Tensor, "b 2"]:
        """Return by what boxes beyond the trained range are known."""
        assert self.spec is not None
        px = self.spec.geometry.px(proposals)
        said = coordinate_errors(boxes, proposals, px, stds.shape[1])
        return traits_of(said, stds, self.spec.bounds)

    def _look_again(
        self,
        boxes: Boxes,
        stds: Float[Tensor, "b n"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None,
        cut: Cut | None,
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return what the second stage says, where there is one, in the place of the first one's.

        It sees crops around the boxes that the first says. Deviations stay in px of the proposals.
        """
        second = self.second
        if second is None:
            return boxes, stds
        if cut is None:
            msg = "the model looks twice, and crops of the first look are not enough; use a Refiner"
            raise BadInput(msg)
        assert self.spec is not None
        assert second.spec is not None
        geometry = second.spec.geometry
        there = (boxes.isfinite().all(dim=1) & (box_sizes(boxes) > 0).all(dim=1))[:, None]
        places = torch.where(there, boxes, proposals)
        crops = cut(geometry, places)
        outputs = second._outputs(crops, labels)
        again, spread = second._refined(outputs, crops, places, labels)
        spread[:, :2] *= geometry.px(places) / self.spec.geometry.px(proposals)
        return torch.where(there, again, boxes), torch.where(there, spread, stds)

    def _outputs(
        self, crops: Tensor, labels: Tensor | None, features: Tensor | None = None
    ) -> Tensor:
        if features is None:
            outputs: Tensor = self.net(crops)
        else:
            outputs = self.net.head(features.to(self.net.dtype))
        if labels is not None:
            return self.net.head.select(outputs, labels)
        if self.net.head.per_class:
            msg = "the model has a regressor for each class; say the boxes' labels"
            raise BadInput(msg)
        return outputs

    def _decode(self, outputs: Tensor, proposals: Boxes) -> Boxes:
        return self.codec.decode(self.net.head.decode(outputs), proposals)

    def _losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        targets = self.codec.encode(batch.gt_boxes, batch.proposals)
        return self.net.head.loss(
            outputs, targets, partial(self.codec.decode, proposals=batch.proposals)
        )

    def _refined(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> tuple[Boxes, Tensor]:
        """Return boxes, averaged over flips and passes that draw at random, and their stds."""
        if not self.passes:
            views = self._over_flips(outputs, crops, proposals, labels)
        else:
            with sampling(self.net, crops.device):
                drawn = [
                    self._over_flips(self._outputs(crops, labels), crops, proposals, labels)
                    for _ in range(self.passes)
                ]
            views = [view for each in drawn for view in each]
        if len(views) == 1:
            return views[0]
        assert self.spec is not None
        boxes, stds = (torch.stack(each) for each in zip(*views, strict=True))
        px = self.spec.geometry.px(proposals)
        offsets = [coordinate_errors(view, proposals, px, stds.shape[2]) for view in boxes]
        # The law of total variance: what each view is unsure of, and how far apart they are.
        variances = stds.square().mean(dim=0) + torch.stack(offsets).var(dim=0, correction=0)
        return boxes.mean(dim=0), variances.sqrt()

    def _over_flips(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> list[tuple[Boxes, Tensor]]:
        """Return the boxes and the standard deviations of the crops, and of their mirror images."""
        views = [(self._decode(outputs, proposals), self.net.head.stds(outputs))]
        centers = box_centers(proposals)
        for flips in ((1, 0), (0, 1), (1, 1)) if self.average_flips else ():
            axes = [dim for dim, flip in zip((3, 2), flips, strict=True) if flip]
            outputs = self._outputs(crops.flip(axes), labels)
            mirrored = self._decode(outputs, proposals)
            axes_flipped = centers.new_tensor(flips).expand_as(centers)
            boxes = mirror_boxes(mirrored, centers, axes_flipped)
            views.append((boxes, self.net.head.stds(outputs)))
        return views

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Have a run validated where it ends, wherever in an epoch or between validations that is.

        Lightning wouldn't: the best checkpoint would be one of the schedule's midst, or none.
        """
        trainer = self.trainer
        last_epoch = 0 <= (trainer.max_epochs or -1) <= trainer.current_epoch + 1
        if 0 <= trainer.max_steps <= trainer.global_step or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
            if self._rhythm is None:
                self._rhythm = trainer.check_val_every_n_epoch, trainer.fit_loop.min_epochs
                trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch and 1
                trainer.fit_loop.min_epochs = 0  # it ends however many there are

    def on_train_end(self) -> None:
        """Leave the trainer as it was, and the calibration, whatever callbacks did to buffers."""
        if self._calibrated is not None:
            self.net.calibration.load_state_dict(self._calibrated)
        if self._rhythm is not None:
            trainer = self.trainer
            trainer.check_val_every_n_epoch, trainer.fit_loop.min_epochs = self._rhythm
            self._rhythm = None

    def on_validation_epoch_start(self) -> None:
        """Begin empty tables."""
        self._begin("val", "train_eval")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refine a batch of the validation or the fixed training draws."""
        self._evaluate(batch, "val" if dataloader_idx == 0 else "train_eval")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation, and the error on the fixed training draws."""
        for name, value in self._finish("val").metrics.items():
            self.log(f"val/{name}", value, sync_dist=True)
        error = self._finish("train_eval").metrics["mae_px"]
        self.log("train/mae_px", error, sync_dist=True)
        if can_tell(self.evaluations["val"].refined.stds) and not self.trainer.sanity_checking:
            self._measure_reliability()

    def on_test_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Refine a batch of the test draws."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test, and see what becomes of boxes off by little and by much."""
        for name, value in self._finish("test").metrics.items():
            self.log(f"test/{name}", value, sync_dist=True)
        drawn = self._at_widths("test_widths", self.trainer.num_test_batches)
        harm = harm_rows(drawn, self.data.geometry, self.reliability, self.law)
        self.evaluations["test"] = replace(self.evaluations["test"], harm=harm)

    def on_predict_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("predict")

    def predict_step(self, batch: Batch, batch_idx: int) -> Boxes:
        """Refine a batch of rough boxes, and return this process's own of them."""
        cut = self._cut_again("predict", batch)
        with torch.no_grad():
            boxes, stds, traits = self._look(batch.crops, batch.proposals, batch.labels, cut)
        nothing = torch.zeros(len(boxes), device=boxes.device)
        told = boxes, nothing, stds, torch.full_like(stds, torch.nan), traits
        self._tables["predict"].update(batch.rows, batch.valid, *told)
        return boxes[batch.valid]

    def on_predict_epoch_end(self) -> None:
        """Put the refined boxes together, over all processes."""
        self.predictions = self._tables["predict"].refined()

    def _begin(self, *splits: Split) -> None:
        refuse_equal_passes(self.net, self.passes or 0)
        for split in splits:
            table = RefinedBoxes(self.data.num_draws(split), self.data.num_targets)
            self._tables[split] = table.to(self.device)

    def _evaluate(self, batch: Batch, split: Split) -> None:
        outputs = self._outputs(batch.crops, batch.labels, batch.features)
        found = self._refined(outputs, batch.crops, batch.proposals, batch.labels)
        cut = self._cut_again(split, batch)
        boxes, stds = self._look_again(*found, batch.proposals, batch.labels, cut)
        losses = self._losses(outputs, batch)
        nll = self.net.head.nll(outputs, self.codec.encode(batch.gt_boxes, batch.proposals))
        if self.second is not None:  # the density told is that of the first look
            nll = torch.full_like(nll, torch.nan)
        told = boxes, losses, stds, nll, self._traits(*found, batch.proposals)
        self._tables[split].update(batch.rows, batch.valid, *told)

    def _cut_again(self, split: Split, batch: Batch) -> Cut:
        return partial(self.data.crops_again, Rows(split, 0, batch.rows, batch.valid))

    @torch.no_grad()
    def validation_errors(self) -> Float[Tensor, "n t"]:
        """Return the errors on the validation's draws, in px and log size, after training."""
        self.to(self.trainer.strategy.root_device).eval()
        samples, refined, _ = self._walk("val")
        px = self.data.geometry.px(samples.proposals)
        return coordinate_errors(refined.boxes, samples.gt_boxes, px, self.data.num_targets)

    @torch.no_grad()
    def look_twice(self, second: "OffsetModel") -> None:
        """Have a second stage look again, and measure anew how both err, after training.

        Args:
            second: The stage.
        """
        self.second = second
        self.to(self.trainer.strategy.root_device).eval()
        samples, refined, _ = self._walk("val")
        self._calibrate(samples, refined)
        if can_tell(refined.stds):
            self._measure_reliability()

    def _finish(self, split: Split) -> Evaluation:
        samples, refined, _ = self._seen(split)
        told = refined._replace(stds=self.net.calibration(refined.stds))
        mean, law = self._predict_mean(samples), self.net.head.error_law
        evaluation = evaluate(self.data, split, samples, told, mean, law)
        fits = self.trainer.state.fn == "fit"
        if split == "val" and fits and not self.trainer.sanity_checking:
            # Only now: intervals are measured with a factor that wasn't fitted on these errors.
            self._calibrate(samples, refined)
        elif split == "val" and not fits:  # it was, so that what they hold says nothing
            measured = evaluation.metrics.items()
            metrics = {name: value for name, value in measured if not name.startswith("coverage")}
            evaluation = replace(evaluation, metrics=metrics)
        self.evaluations[split] = evaluation
        return evaluation

    def _calibrate(self, samples: Samples, refined: Refined) -> None:
        """Fit the factor of the standard deviations on what validation found, on every rank."""
        px, count = self.data.geometry.px(samples.proposals), self.data.num_targets
        errors = coordinate_errors(refined.boxes, samples.gt_boxes, px, count)
        self.net.calibration.fit(errors, refined.stds, self.net.head.error_law)
        state = self.net.calibration.state_dict()
        self._calibrated = {name: value.clone() for name, value in state.items()}

    def _measure_reliability(self) -> None:
        """See how what the model says errs, on validation boxes off by little and by much."""
        assert self.spec is not None
        drawn = self._at_widths("val_widths", self.trainer.num_val_batches)
        usual = self._told("val", *self._seen("val"))
        geometry, bounds = self.data.geometry, tuple(self.spec.bounds)
        self.reliability, self.law = measure_reliability(drawn, geometry)
        self.range = measure_range(drawn, usual, geometry, bounds)

    def _at_widths(
        self, split: Literal["val_widths", "test_widths"], batches: Sequence[int | float]
    ) -> AtWidths:
        """Refine boxes drawn at several widths, outside of the trainer's loops.

        Args:
            split: Whose boxes.
            batches: How many batches the trainer's own loops had, of each loader, if they ran.
        """
        return self._told(split, *self._walk(split, batches[0] if batches else math.inf))

    def _told(
        self, split: Split, samples: Samples, refined: Refined, seen: Bool[Tensor, " n"]
    ) -> AtWidths:
        """Return what was found with the standard deviations that are told."""
        told = refined._replace(stds=self.net.calibration(refined.stds))
        return AtWidths(samples, told, self.data.widths(split)[seen])

    def _walk(
        self, split: Split, most: float = math.inf
    ) -> tuple[Samples, Refined, Bool[Tensor, " n"]]:
        """Refine an evaluation's draws outside of the trainer's loops, in so many batches at most.

        Returns what `_seen` does; standard deviations are without their factor.
        """
        self._begin(split)
        with closing(self.data.batches(split, 0, self.device)) as batches:
            for batch in islice(batches, None if most == math.inf else int(most)):
                with self.trainer.precision_plugin.val_step_context():
                    self._evaluate(batch, split)
        return self._seen(split)

    def _seen(self, split: Split) -> tuple[Samples, Refined, Bool[Tensor, " n"]]:
        """Return the samples of a split that were evaluated, what was found, and which they are."""
        refined = self._tables[split].refined()
        seen = refined.seen
        samples = self.data.samples(split).take(seen)
        return samples, Refined(*(tensor[seen] for tensor in refined)), seen

    def _predict_mean(self, samples: Samples) -> Boxes:
        """Return the boxes of the training targets' mean: the baseline of every evaluation."""
        proposals = samples.proposals.to(self.device)
        return self.codec.decode(self.codec.mean.expand(len(proposals), -1), proposals).cpu()

    def logs_after(self, steps: int, begun: int | None = None) -> bool:
        """Tell whether scalars are logged once this many steps are done.

        Args:
            steps: How many.
            begun: Tell whether they are logged at any step since so many; the last by default.
        """
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it
        if not every:  # Lightning's word for never
            return False
        return steps // every > (steps - 1 if begun is None else begun) // every

    def log_scalar(self, name: str, value: Tensor | float, step: int, reduce: bool = False) -> None:
        """Log a number of training.

        Args:
            name: What it is.
            value: The number.
            step: The step it belongs to, counted from 0.
            reduce: Average it over the processes.
        """
        self.log(name, value, sync_dist=reduce)

    def recipe(self) -> dict[str, Plain]:
        """Return the arguments that rebuild this model, as plain data (without the optimizer)."""
        arguments = {
            "preprocess": self.net.preprocess,
            "backbone": self.net.backbone,
            "head": self.net.head,
            "codec": self.codec,
            "average_flips": bool(self.average_flips),
            "passes": self.passes or 0,
        }
        return {name: to_plain(part, f"model.{name}") for name, part in arguments.items()}

    def identity(self) -> dict[str, Any]:
        """Return what rebuilds the trained model beside its weights, as plain data."""
        assert self.spec is not None
        ours = {
            "class": class_path_of(type(self)),
            "model": self.recipe(),
            "spec": asdict(self.spec),
        }
        if self.reliability is not None and self.law is not None:
            ours |= {"reliability": self.reliability.plain(), "law": self.law.plain()}
        if self.range is not None:
            ours["range"] = self.range.plain()
        if self.second is not None:
            assert self.second.spec is not None
            ours["second"] = {
                "class": class_path_of(type(self.second)),
                "model": self.second.recipe(),
                "spec": asdict(self.second.spec),
            }
        return ours

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model, and what must not change when a run goes on."""
        ours = self.identity()
        if self._run:
            training_set = self.data.source.splits["train"].digest()
            ours |= {"run": self._run, "training_set": training_set}
        checkpoint[CHECKPOINT_KEY] = ours
        # Found by validation, as weights aren't: a callback that averages those has none.
        found = self.net.calibration.state_dict(prefix="net.calibration.")
        checkpoint["state_dict"] |= found

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # one way to load: by path, without code
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: str | torch.device | None = None,
        trust: Sequence[str] = (),
        *,
        strict: bool | None = True,
        weights_only: bool | None = True,  # noqa: ARG003 (Lightning's, and true in any case)
        **changes: object,
    ) -> Self:
        """Rebuild a trained model from its checkpoint's path alone, ready to predict.

        It is of the class it was, where that is this one or derived from it.

        Args:
            checkpoint_path: A file that a run wrote, or the run's folder: then its best one.
            map_location: The device to load it to; the CPU by default.
            trust: Modules or packages of your own that may be imported for it.
            strict: Whether all of its weights must be there and fit, as in Lightning.
            weights_only: Lightning's; a checkpoint of ours is never read otherwise.
            **changes: None: a model is what it was trained as.

        Raises:
            BadInput: The file isn't a checkpoint of ours, or needs code that isn't trusted, or
                something is to be changed.
        """
        if changes:
            msg = (
                f"load_from_checkpoint can't change {listed(sorted(changes))}: a checkpoint says "
                f"what its model is; leave it out, and set what can change on the loaded model"
            )
            raise BadInput(msg)
        path = checkpoint_of(checkpoint_path)
        checkpoint = read_checkpoint(path)
        with trusting(trust):
            kind = find_class(class_path_in(checkpoint), OffsetModel, "the checkpoint")
        model = (kind if issubclass(kind, cls) else cls)()  # type: ignore[call-arg] # with defaults
        model._restore(checkpoint, path, trust, strict is not False)
        return model.to(map_location or "cpu").eval()

    def restore(self, path: str | PathLike[str], trust: Sequence[str] = ()) -> None:
        """Become the model of a checkpoint; parts that were asked for by name must be its own.

        Args:
            path: A file that a run wrote, or the run's folder: then its best one.
            trust: Modules or packages of your own that may be imported for it.

        Raises:
            BadInput: The file isn't a checkpoint of ours, or has other parts.
        """
        path = checkpoint_of(path)
        self._restore(read_checkpoint(path), path, trust)

    def _restore(
        self,
        checkpoint: dict[str, Any],
        path: str | PathLike[str],
        trust: Sequence[str],
        strict: bool = True,
    ) -> None:
        self._become(checkpoint, trust)
        try:
            self.load_state_dict(checkpoint["state_dict"], strict=strict)
        except (RuntimeError, KeyError) as error:
            msg = f"{path}: its weights don't fit its own model; give one that a run wrote"
            raise BadInput(msg) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the layers that the checkpoint's weights belong to.

        Raises:
            BadInput: The checkpoint has other crops or parts than were asked for.
        """
        if self.spec is not None:
            then = read_spec(checkpoint)
            refuse_other_crops(then, self.spec.geometry, self.spec.num_targets)
            refuse_other_white(then, self.spec.white_level)
            refuse_other_part(then.part, self.spec.part)
        if self.trainer.state.fn == "fit":
            refuse_weights_alone(checkpoint)
            drop_second(checkpoint)
        else:
            keep_average(checkpoint)
        self._become(checkpoint)
        self.configure_model()
        # Lightning does it later, when the weights of a run in 64-true would be rounded already.
        self.trainer.precision_plugin.convert_module(self.net)
        if self.trainer.state.fn == "fit":
            self._resumed_run = _UNSAID | checkpoint[CHECKPOINT_KEY].get("run", {})
            training_set = self.data.source.splits["train"].digest()
            if checkpoint[CHECKPOINT_KEY].get("training_set") != training_set:
                rank_zero_warn("the training boxes are not those this run began with")

    def keep_to_the_run(self, run: dict[str, Plain]) -> None:
        """Remember what must not change when a run goes on, and refuse what did.

        Args:
            run: Settings of the subclass.

        Raises:
            BadInput: The checkpoint's run was another.
        """
        spec = self.data.spec()
        self._run = run | {
            "data.seed": self.data.seed,
            "data.batch_size": self.data.batch_size,
            "data.draws_per_epoch": self.data.draws_per_epoch,
            "data.jitter's largest shift": spec.max_shift,
            "data.class_sampling": to_plain(self.data.class_sampling, "data.class_sampling"),
            _FIXED_DRAWS: self.cache is not None,
        }
        if self._resumed_run is not None:
            refuse_other_run(self._resumed_run, self._run)

    def _become(self, checkpoint: dict[str, Any], trust: Sequence[str] = ()) -> None:
        refuse_other_class(checkpoint, type(self))
        spec = read_spec(checkpoint)
        self.reliability, self.law, self.range = read_measured(checkpoint)
        recipe, asked = recipe_in(checkpoint), self.asked
        refuse_other_parts(recipe, asked)
        if self.average_flips is None:
            self.average_flips = bool(recipe.get("average_flips"))
        if self.passes is None:
            self.passes = int(str(recipe.get("passes", 0)))
        mine = self.recipe()
        if self.spec != spec or any(mine[name] != recipe[name] for name in asked):
            self._take_parts(**{name: from_plain(recipe[name], trust) for name in asked})
            self.build(spec, seed=0)
        self.second = None
        if (then := second_in(checkpoint)) is not None:
            with trusting(trust):
                kind = find_class(class_path_in(then), OffsetModel, "the checkpoint")
            self.second = kind()  # type: ignore[call-arg] # with defaults
            self.second._become(then, trust)
