"""The base of all models: how they are built for data, applied, measured and kept in checkpoints.

How they learn is said by subclasses.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bbox.core.compiling import Compile, should_compile
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.recipes import (
    Plain,
    class_path_of,
    find_class,
    from_plain,
    to_plain,
    trusting,
)
from lightning_bbox.core.tiff import refuse_other_part
from lightning_bbox.data.loader import Split
from lightning_bbox.data.samples import Batch
from lightning_bbox.geometry.codecs import (
    refuse_other_crops,
    refuse_other_white,
)
from lightning_bbox.models.advice import range_advice, refuse_misfits
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
from lightning_bbox.models.measuring import MeasuredModel
from lightning_bbox.models.refining import Parts
from lightning_bbox.models.training.tuning import find_batch_size
from lightning_bbox.nn.heads.base import Head

_FIXED_DRAWS = "training on fixed draws (model.cache)"
_UNSAID: dict[str, Plain] = {_FIXED_DRAWS: False, "model.steps_per_call": 1}
"""What a run did whose checkpoint doesn't say, as it is older than the option."""


class OffsetModel(MeasuredModel):
    """Say how far the true box lies from a proposal, from the crop around it.

    What depends on the data (sizes, statistics, bins) is built when training begins and travels in
    the checkpoint. Subclasses say how the head learns; each has defaults for all its arguments,
    and says what these here mean.
    """

    default_epochs: ClassVar[int]  # of a run on the command line that doesn't say how many

    def __init__(
        self,
        parts: Parts,
        *,
        average_flips: bool | None,
        compile: Compile,  # noqa: A002 (the name of the option everywhere)
        cache: str | None,
    ) -> None:
        super().__init__(parts, average_flips)
        self.compile_choice, self.cache = compile, cache
        self._is_new = False  # built for this run, and not trained since
        self._run: dict[str, Plain] = {}
        self._resumed_run: dict[str, Plain] | None = None
        # Of a trainer at its end: epochs from validation to validation, and the least there are.
        self._rhythm: tuple[int | None, int | None] | None = None

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
            second = kind()  # type: ignore[call-arg] # with defaults
            second._become(then, trust)
            self.second = second
