"""Where in a network the offset can be read: an exact ridge on the output of every layer."""

import time
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.plugins import Precision
from torch import Tensor
from tqdm.auto import tqdm

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import say
from lightning_bbox.core.randomness import keyed_generator, stream_seed
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.data.loader import PlanLoader, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples
from lightning_bbox.evaluation.intervals import clustered_interval
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.geometry.codecs import DeltaCodec
from lightning_bbox.insight.layers import Projection, layer_hooks, layer_order
from lightning_bbox.insight.readings import Estimate, LayerReading, Reading, Readings
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.solvers.least_squares import Rows, Spectrum, score_lambdas
from lightning_bbox.solvers.sums import RidgeSums

PIXELS = "pixels"
LambdaBy = Literal["val", "gcv"]
_SPLITS: dict[str, Split] = {"train": "train_eval", "val": "val", "test": "test"}


class LayerRows(NamedTuple):
    """What is kept of a layer: sums of the training draws, rows of the others."""

    projection: Projection
    sums: RidgeSums
    val: list[Tensor]
    test: list[Tensor]


class LayerReader:
    """Read the offset off the layers of networks, all on the same fixed draws.

    Args:
        data: Where the draws come from; they are neither mirrored nor altered.
        codec: Says what is read: its targets.
        draws: How many training draws.
        width: Numbers that larger layers are projected to.
        lambda_by: What lambda is chosen by.
        precision: What the networks run in.
        device: Where they run.
    """

    def __init__(
        self,
        data: CropDataModule,
        codec: DeltaCodec,
        draws: int,
        width: int,
        lambda_by: LambdaBy,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.data, self.codec, self.width, self.lambda_by = data, codec, width, lambda_by
        self.precision, self.device = precision, device
        self.samples: dict[str, Samples] = {}
        self.targets: dict[str, Tensor] = {}  # true ones, and beside them those of other samples
        for name, split in _SPLITS.items():
            samples = data.samples(split, draws=draws if name == "train" else None).to(device)
            true = codec.encode(samples.gt_boxes, samples.proposals)
            order = torch.randperm(len(true), generator=keyed_generator("shuffled", name))
            self.samples[name] = samples
            self.targets[name] = torch.cat([true, true[order.to(device)]], dim=1)
        self.num_targets = data.num_targets
        self.mean = self.targets["train"][:, : self.num_targets].double().mean(dim=0)

    def read(self, net: OffsetNet, title: str) -> dict[str, tuple[Projection, Reading, Reading]]:
        """Read every layer: its own targets, and shuffled ones."""
        since = time.perf_counter()
        layers = self.gather(net, title)
        counts = ", ".join(f"{len(samples.items)} {name}" for name, samples in self.samples.items())
        seconds = time.perf_counter() - since
        say(f"{title}: {len(layers)} layers of {counts} draws read in {seconds:.1f} s, now solving")
        readings = {}
        for name in tqdm(list(layers), f"solving {title}", disable=None, leave=False):
            rows = layers.pop(name)
            readings[name] = (rows.projection, *self.solve(name, rows))
        return readings

    def gather(self, net: OffsetNet, title: str) -> dict[str, LayerRows]:
        """Apply a network to all draws, and keep what the ridge needs of each layer."""
        layers: dict[str, LayerRows] = {}
        first = self.data.crops_of(self.samples["test"].take(torch.zeros(1, dtype=torch.int64)))
        names = [PIXELS, *layer_order(net.backbone, lambda: self._forward(net, first))]
        for split in _SPLITS:
            samples, targets = self.samples[split], self.targets[split]
            loader = PlanLoader(_SPLITS[split], len(targets), self.data.batch_size, 0, 1)
            for batch in tqdm(loader, f"{title}: {split} draws", disable=None, leave=False):
                count = int(batch.valid.sum())
                rows = batch.rows.to(self.device)
                truth = targets[rows[:count]]

                def take(name: str, output: Tensor, truth: Tensor = truth, to: str = split) -> None:
                    if name not in names:
                        return
                    features = output[: len(truth)].flatten(1).float()
                    if name not in layers:
                        layers[name] = self._empty(name, features, truth)
                    kept = layers[name]
                    narrow = kept.projection(features)
                    if to == "train":
                        kept.sums.update(narrow, truth)
                    else:  # what comes after may work in place
                        (kept.val if to == "val" else kept.test).append(narrow.clone())

                crops = self.data.crops_of(samples.take(rows))
                take(PIXELS, crops)
                with layer_hooks(net.backbone, take):
                    self._forward(net, crops)
        return layers

    def _forward(self, net: OffsetNet, crops: Tensor) -> None:
        with self.precision.forward_context():
            net.features(crops)

    def _empty(self, name: str, features: Tensor, targets: Tensor) -> LayerRows:
        projection = Projection(name, features.shape[1], self.width, features.device)
        sums = RidgeSums(projection.width, targets.shape[1]).to(features.device)
        return LayerRows(projection, sums, [], [])

    def solve(self, name: str, rows: LayerRows) -> tuple[Reading, Reading]:
        """Fit a layer's own targets and the shuffled ones; measure both on the true test boxes."""
        moments = rows.sums.compute()
        assert moments is not None
        val_rows, test_rows = torch.cat(rows.val), torch.cat(rows.test).double()
        finite = [moments.is_finite(), *(bool(r.isfinite().all()) for r in (val_rows, test_rows))]
        if not all(finite):
            msg = f"the output of {name} isn't finite; probe another checkpoint, or in 32-true"
            raise BadInput(msg)
        spectrum = moments.spectrum("standard")
        readings = []
        for columns in (slice(0, self.num_targets), slice(self.num_targets, None)):
            own = _of_targets(spectrum, columns)
            held = [Rows(val_rows, self.targets["val"][:, columns])]
            grid, scores = score_lambdas([own], held if self.lambda_by == "val" else None)
            solution = own.solution(float(grid[scores.argmin()]))
            predicted = test_rows @ solution.weight.T + solution.bias
            readings.append(self.measure(predicted, solution.lam))
        return readings[0], readings[1]

    def measure(self, predicted: Float[Tensor, "n t"], lam: float) -> Reading:
        """Measure predicted targets of the test draws, with intervals over pictures or groups."""
        samples = self.samples["test"]
        clusters = self.data.source.splits["test"].clusters[samples.items.cpu()]
        truth = self.codec.encode(samples.gt_boxes, samples.proposals).double()
        error, spread = (predicted - truth).square(), (self.mean - truth).square()
        of_each = spread.mean(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        left, all_there = ((part / of_each).mean(dim=1).cpu() for part in (error, spread))
        unread = clustered_interval(left, clusters, all_there, positive=True)
        r2 = Estimate(1 - unread.value, 1 - unread.high, 1 - unread.low)
        boxes = self.codec.decode(predicted.float(), samples.proposals)
        px = self.data.geometry.px(samples.proposals)
        off = error_px(boxes, samples.gt_boxes, px).abs().mean(dim=1).double().cpu()
        mae_px = clustered_interval(off, clusters, positive=True)
        return Reading(r2, Estimate(mae_px.value, mae_px.low, mae_px.high), lam)


def _of_targets(spectrum: Spectrum, columns: slice) -> Spectrum:
    return replace(
        spectrum,
        target_mean=spectrum.target_mean[columns],
        target_squares=spectrum.target_squares[columns],
        cross=spectrum.cross[:, columns],
    )


class ProbingTrainer(pl.Trainer):
    """Lightning's Trainer, which can probe as well."""

    def probe(
        self,
        model: OffsetModel,
        datamodule: CropDataModule,
        draws: int = 5000,
        width: int = 2048,
        lambda_by: LambdaBy = "val",
    ) -> Readings:
        """Read the offset off every layer of a network by an exact ridge, beside two controls.

        Args:
            model: Trained, or to be built for the data as a fit builds it.
            datamodule: Its test draws measure, its validation draws choose lambda.
            draws: training draws that the ridge is fitted on
            width: numbers that the output of a larger layer is projected to, at random
            lambda_by: choose lambda by the validation draws, or by generalised cross-validation

        Raises:
            BadInput: There are several processes, or an argument is out of range.
        """
        if self.world_size > 1:
            msg = f"probe runs in one process, not {self.world_size}; set trainer.devices to 1"
            raise BadInput(msg)
        for name, value, least in (("draws", draws, 10), ("width", width, 1)):
            if value < least:
                msg = f"probe {name} is {value}; expected at least {least}"
                raise BadInput(msg)
        if lambda_by not in get_args(LambdaBy):
            msg = f"probe lambda_by is {lambda_by!r}; expected 'val' or 'gcv'"
            raise BadInput(msg)
        trained = self._make_ready(model, datamodule)
        say("\n".join([*datamodule.source.notes, *datamodule.describe()]))
        reader = LayerReader(
            datamodule,
            model.codec,
            draws=draws,
            width=width,
            lambda_by=lambda_by,
            precision=self.precision_plugin,
            device=model.device,
        )
        with torch.no_grad():
            found = reader.read(model.net, "the network")
            random = reader.read(self._control(model.net, datamodule), "random weights")
            baseline = reader.measure(reader.mean.expand(len(reader.samples["test"].items), -1), 0)
        layers = tuple(
            LayerReading(
                name, projection.size, projection.width, net, shuffled,
                None if name == PIXELS else random[name][1],
            )
            for name, (projection, net, shuffled) in found.items()
        )  # fmt: skip
        counts = {split: len(samples.items) for split, samples in reader.samples.items()}
        return Readings(layers, trained, counts, baseline.mae_px, lambda_by)

    def _make_ready(self, model: OffsetModel, datamodule: CropDataModule) -> bool:
        """Build the model where it isn't, take it to the device, and tell whether it is trained."""
        self.datamodule, datamodule.trainer, model.trainer = datamodule, self, self
        datamodule.setup("test")
        model.setup("test")
        backbone = model.net.backbone
        new = untrained(backbone, datamodule.geometry.size, "init", datamodule.seed).state_dict()
        own = backbone.state_dict()
        self.precision_plugin.convert_module(model.net)
        model.to(self.strategy.root_device).eval()
        return any(not torch.equal(own[name].cpu(), values) for name, values in new.items())

    def _control(self, net: OffsetNet, data: CropDataModule) -> OffsetNet:
        """Return the same network with random weights."""
        backbone = untrained(net.backbone, data.geometry.size, "probe", data.seed)
        control = OffsetNet(net.preprocess, backbone, net.head)
        self.precision_plugin.convert_module(control)
        return control.to(self.strategy.root_device).eval()


def untrained(backbone: Backbone, crop_size: int, key: str, seed: int) -> Backbone:
    """Build a backbone anew by its recipe, with the random weights of a key and a seed.

    Args:
        backbone: Which to build again.
        crop_size: Side of its crops, in pixels.
        key: `init` for the weights that a fit with this seed begins with.
        seed: The seed.
    """
    built: Backbone = from_plain(backbone.recipe())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(key, seed))
        return built.build(crop_size)
