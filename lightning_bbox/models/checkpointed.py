"""A model that is built for its data, and rebuilt from its checkpoint."""

import math
from dataclasses import asdict
from os import PathLike
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.compiling import Compile, should_compile
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.core.recipes import Plain, from_plain, to_plain
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples
from lightning_bbox.geometry.codecs import DeltaCodec, MeanStdCodec, OffsetSpec, refuse_other_crops
from lightning_bbox.models.checkpoints import (
    CHECKPOINT_KEY,
    checkpoint_of,
    read_checkpoint,
    read_spec,
    refuse_other_parts,
    refuse_other_run,
)
from lightning_bbox.nn.backbones.convnet import Backbone, ShallowConvNet
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.nn.preprocess import Preprocess

_FIXED_DRAWS = "training on fixed draws (model.cache)"
_BEFORE: dict[str, Plain] = {_FIXED_DRAWS: False, "model.steps_per_call": 1}
"""What a run did whose checkpoint doesn't say, as it is older than the option."""


class CheckpointedModel(pl.LightningModule):
    """Preprocessing, backbone, head and codec, built for the data that training begins with.

    What depends on the data (sizes, statistics, bins) is built when training begins and travels in
    the checkpoint. Subclasses say how the head learns.

    Args:
        backbone: Crops to features; a `ShallowConvNet` by default.
        head: Features to targets, with its loss; a `BinHead` by default.
        codec: Boxes to targets and back; a `MeanStdCodec` by default.
        preprocess: Fitted on training crops; what the backbone's weights expect by default, else a
            `ChannelNorm`.
        average_flips: At evaluation, average the boxes found on the crop and its three mirror
            images; as its checkpoint says by default, else not.
        compile: Compile the network; `auto` does on CUDA.
        cache: Where the features of a frozen backbone are kept: `memory`, or a folder of files that
            later runs use again. The training set is then that of the first epoch, in a fresh order
            in each. By default they are computed in every step.
    """

    default_epochs: ClassVar[int]  # of a run on the command line that doesn't say how many

    def __init__(
        self,
        backbone: Backbone | None,
        head: Head | None,
        codec: DeltaCodec | None,
        preprocess: Preprocess | None,
        average_flips: bool | None,
        compile: Compile,  # noqa: A002 (the name of the option everywhere)
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self._asked = {"preprocess": preprocess, "backbone": backbone, "head": head, "codec": codec}
        backbone = backbone or ShallowConvNet()
        self._take_parts(
            preprocess or backbone.default_preprocess(),
            backbone,
            head or BinHead(),
            codec or MeanStdCodec(),
        )
        self.average_flips, self.compile_choice, self.cache = average_flips, compile, cache
        self.passes: int | None = None
        self.spec: OffsetSpec | None = None
        self._run: dict[str, Plain] = {}
        self._resumed_run: dict[str, Plain] | None = None

    def _take_parts(
        self, preprocess: Preprocess, backbone: Backbone, head: Head, codec: DeltaCodec
    ) -> None:
        self.net, self.codec = OffsetNet(preprocess, backbone, head), codec

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

    def setup(self, stage: str) -> None:
        """Build the model for the data, and fit the statistics on the training split.

        Raises:
            BadInput: The model isn't trained and is to predict, or was trained on other crops.
        """
        if self.spec is not None:
            self.data.follow(self.spec, needs_class=self.net.head.per_class)
        elif stage == "predict":
            msg = "the model isn't trained; load one with BoxRegressor.load_from_checkpoint(path)"
            raise BadInput(msg)
        else:
            self.fit_statistics()

    def fit_statistics(self) -> None:
        """Build the model and fit codec, preprocessing and head on the training split."""
        data = self.data
        self.build(data.spec(), data.seed)
        preprocess, backbone, head = self.net.preprocess, self.net.backbone, self.net.head
        backbone.load_pretrained()
        samples = data.samples("train", epoch=0)
        self.codec.fit(samples.gt_boxes, samples.proposals)
        device = self.trainer.strategy.root_device
        with torch.no_grad():
            preprocess.fit(data.cut(data.samples("train_eval", draws=preprocess.draws).to(device)))
        head.fit(self.codec.space())
        if head.takes_features:
            samples = data.samples("train_eval", draws=head.draws)
            self.fit_head(self._first_features(samples.to(device)), samples)

    def _first_features(self, samples: Samples) -> Float[Tensor, "n f"]:
        """Return features as they are when training begins, batch norm settled as it would."""
        count = len(samples.items)
        rows = torch.arange(count, device=samples.items.device).chunk(
            math.ceil(count / self.data.batch_size)
        )
        self.net.to(samples.items.device)
        self.net.settle_norms(self.data.crops_of(samples.take(some)) for some in rows)
        with self.net.evaluating():
            return torch.cat(
                [self.net.features(self.data.crops_of(samples.take(some))) for some in rows]
            )

    def fit_head(self, features: Float[Tensor, "n f"], samples: Samples) -> None:
        """Fit the head on the features of training draws; nothing else in the network changes."""
        own = self.codec.mean.device
        targets = self.codec.encode(samples.gt_boxes.to(own), samples.proposals.to(own))
        self.net.head.fit_features(
            features, targets.to(features.device), samples.labels.to(features.device)
        )

    def configure_model(self) -> None:
        """Compile the network in place, so that names in the checkpoint don't change."""
        if self.net._compiled_call_impl is None and should_compile(
            self.compile_choice, self.trainer.strategy.root_device, pays_on_cpu=False
        ):
            self.net.compile(fullgraph=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model, and what must not change when a run goes on."""
        assert self.spec is not None
        checkpoint[CHECKPOINT_KEY] = {"model": self.recipe(), "spec": asdict(self.spec)}
        if self._run:
            training_set = self.data.source.splits["train"].digest()
            checkpoint[CHECKPOINT_KEY] |= {"run": self._run, "training_set": training_set}

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
        return {name: to_plain(part, f"BoxRegressor's {name}") for name, part in arguments.items()}

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # one way to load: by path, without code
        cls, checkpoint_path: str | PathLike[str], map_location: str | torch.device = "cpu"
    ) -> Self:
        """Rebuild a trained model from its checkpoint's path alone, ready to predict.

        Args:
            checkpoint_path: A file that a run wrote.
            map_location: The device to load it to.

        Raises:
            BadInput: The file isn't a checkpoint of ours.
        """
        model = cls()  # type: ignore[call-arg] # subclasses have defaults for all arguments
        model.restore(checkpoint_path)
        return model.to(map_location).eval()

    def restore(self, path: str | PathLike[str]) -> None:
        """Become the model of a checkpoint; parts that were asked for by name must be its own.

        Args:
            path: A file that a run wrote, or the run's folder: then its best one.

        Raises:
            BadInput: The file isn't a checkpoint of ours, or has other parts.
        """
        path = checkpoint_of(path)
        checkpoint = read_checkpoint(path)
        self._become(checkpoint)
        try:
            self.load_state_dict(checkpoint["state_dict"])
        except (RuntimeError, KeyError) as error:
            msg = f"{path}: its weights don't fit its own model; give one that a run wrote"
            raise BadInput(msg) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the layers that the checkpoint's weights belong to.

        Raises:
            BadInput: The checkpoint has other crops or parts than were asked for.
        """
        if self.spec is not None:
            refuse_other_crops(read_spec(checkpoint), self.spec.geometry, self.spec.num_targets)
        self._become(checkpoint)
        self.configure_model()
        # Lightning does it later, when the weights of a run in 64-true would be rounded already.
        self.trainer.precision_plugin.convert_module(self.net)
        if self.trainer.state.fn == "fit":
            self._resumed_run = _BEFORE | checkpoint[CHECKPOINT_KEY].get("run", {})
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
            _FIXED_DRAWS: self.cache is not None,
        }
        if self._resumed_run is not None:
            refuse_other_run(self._resumed_run, self._run)

    def _become(self, checkpoint: dict[str, Any]) -> None:
        recipe, spec = checkpoint[CHECKPOINT_KEY]["model"], read_spec(checkpoint)
        asked = {name: to_plain(part, f"model.{name}") for name, part in self._asked.items()}
        refuse_other_parts(recipe, asked)
        if self.average_flips is None:
            self.average_flips = bool(recipe["average_flips"])
        if self.passes is None:
            self.passes = int(recipe.get("passes", 0))
        mine = self.recipe()
        if self.spec != spec or any(mine[name] != recipe[name] for name in asked):
            self._take_parts(**{name: from_plain(recipe[name]) for name in asked})
            self.build(spec, seed=0)
