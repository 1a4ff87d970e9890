"""The LightningModule that learns box offsets by gradient descent."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_bbox.core.compiling import Compile
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import say
from lightning_bbox.core.recipes import from_plain, to_plain
from lightning_bbox.data.draws import ClassWeights, class_weights, refuse_weights
from lightning_bbox.data.loader import Rows
from lightning_bbox.data.samples import Batch
from lightning_bbox.geometry.codecs import DeltaCodec, refuse_other_crops
from lightning_bbox.models.advice import (
    advice,
    refuse_equal_passes,
    refuse_frozen_finetuning,
    refuse_lonely_samples,
    refuse_unseen_plateau,
    stopping_advice,
)
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import (
    checkpoint_of,
    read_checkpoint,
    read_spec,
    recipe_in,
    refuse_other_parts,
    take_weights,
)
from lightning_bbox.models.feature_cache import compute_features, refuse_learning
from lightning_bbox.models.fitting import fit_head
from lightning_bbox.models.refining import Parts
from lightning_bbox.models.training.divergence import (
    BAD_STEP_KEY,
    DivergedError,
    FirstBadStep,
    LossWatch,
    divergence_message,
    kept_rows,
)
from lightning_bbox.models.training.several_steps import SeveralSteps
from lightning_bbox.models.training.stability import excess_message, largest_stable_rate
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.heads.bins.labels import refuse_other_bins
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.nn.regularizers import Regularization, Regularizer
from lightning_bbox.nn.schedules import OneCycle, RunSchedule, Schedule, run_progress
from lightning_bbox.nn.weight_groups import Grouping, WeightGroups, relearn


class BoxRegressor(OffsetModel):
    """Learn by gradient descent how far the true box lies from a proposal.

    What depends on the data (sizes, statistics, bins) is built when training begins and travels in
    the checkpoint.

    Args:
        backbone: Crops to features; a `ShallowConvNet` by default.
        head: Features to targets, with its loss; a `BinHead` by default.
        codec: Boxes to targets and back; a `MeanStdCodec` by default.
        preprocess: Fitted on training crops; what the backbone's weights expect by default, else a
            `ChannelNorm`.
        optimizer: AdamW with a learning rate of 3e-3 and a weight decay of 0.1 by default.
        schedule: Of the learning rate; `OneCycle` by default.
        average_flips: At evaluation, average the boxes found on the crop and its three mirror
            images; as its checkpoint says by default, else not.
        weights: A checkpoint (or a run's folder) whose weights training starts from (fine-tuning),
            with its preprocessing, codec and range of offsets: the model begins by saying what that
            one says. Its crops and bins must be those asked for.
        compile: Compile the network; `auto` does on CUDA.
        cache: Where the features of a frozen backbone are kept: `memory`, or a folder of files that
            later runs use again. The training set is then that of the first epoch, in a fresh order
            in each. By default they are computed in every step.
        groups: Who of the weights learns slower, without decay or from a later epoch on; all alike
            by default.
        class_weights: How much the loss of a box of each class counts: `balanced` has all classes
            count alike, `{WBC: 4}` a box of that one four times as much as others; all boxes alike
            by default. They are 1 on average over the training draws.
        regularizers: What the loss gains for the size of the weights, or what is done to them after
            each step; nothing by default. The optimizer's own weight decay acts beside them.
        passes: At evaluation, average the boxes of so many passes in which dropout and its kin draw
            as in training; as its checkpoint says by default, else 0, one pass without draws. Their
            spread is part of the standard deviations.
        steps_per_call: Steps of the optimizer in one Lightning batch. Several spare the time that
            Lightning takes for each, which tells where a step takes less than a few milliseconds;
            callbacks see one batch for all of them.
        cuda_graph: Record a whole step (cut, augmentation, network, update) as one CUDA graph, and
            replay it: the host launches once a step. For one GPU, with `steps_per_call`; callbacks
            within a step aren't called. Never run on a GPU yet.

    Raises:
        BadInput: An argument is out of range.

    References:
        Gal and Ghahramani, Dropout as a Bayesian approximation (2016), for the passes.

    Examples:
        >>> from lightning_bbox import CropGeometry, OffsetSpec, ShallowConvNet
        >>> model = BoxRegressor(backbone=ShallowConvNet(channels=(8, 16, 16)))
        >>> spec = OffsetSpec(CropGeometry(), num_targets=2, max_shift=5.0, max_log_size=0.0)
        >>> model.build(spec, seed=0)
        >>> model.eval()(torch.zeros(1, 3, 45, 45), torch.tensor([[10.0, 10.0, 40.0, 40.0]])).shape
        torch.Size([1, 4])
    """

    default_epochs = 22  # under four minutes on two CPU cores, with 20,000 draws an epoch

    def __init__(
        self,
        backbone: Backbone | None = None,
        head: Head | None = None,
        codec: DeltaCodec | None = None,
        preprocess: Preprocess | None = None,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        average_flips: bool | None = None,
        weights: str | None = None,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
        cache: str | None = None,
        groups: WeightGroups = WeightGroups(),
        class_weights: ClassWeights | None = None,
        regularizers: list[Regularizer] | None = None,
        passes: int | None = None,
        steps_per_call: int = 1,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(
            Parts(preprocess, backbone, head, codec),
            average_flips=average_flips,
            compile=compile,
            cache=cache,
        )
        if passes is not None and passes < 0:
            msg = f"BoxRegressor passes is {passes}; expected 0 (one pass without draws) or more"
            raise BadInput(msg)
        if steps_per_call < 1:
            msg = f"BoxRegressor steps_per_call is {steps_per_call}; expected 1 or more"
            raise BadInput(msg)
        if cache is not None:  # before any data is read; a checkpoint's parts are seen to later
            refuse_learning(self.net.backbone)
        self.passes, self.regularizers, self.weights = passes, regularizers or [], weights
        self.optimizer, self.schedule = optimizer, schedule or OneCycle()
        self.groups = groups
        refuse_weights(class_weights, "model.class_weights")
        self.class_weights = class_weights
        self._class_weights: Tensor | None = None  # by the labels of batches
        self.steps_per_call = steps_per_call
        self._refusal: BadInput | None = None  # of the weights to start from
        several = steps_per_call > 1 or cuda_graph
        self._several = SeveralSteps(self, steps_per_call, cuda_graph) if several else None
        self.automatic_optimization = not several

    @property
    def backbone(self) -> Backbone:
        """The backbone, where Lightning's `BackboneFinetuning` looks for it."""
        return self.net.backbone

    @property
    def _callbacks(self) -> list[pl.Callback]:
        return self.trainer.callbacks  # type: ignore[attr-defined,no-any-return] # Lightning sets it

    def prepare_data(self) -> None:
        """Refuse what can't work before any data is read."""
        if self._several:
            self._several.begin()

    def setup(self, stage: str) -> None:
        """Build the model for the data, and begin to watch."""
        self.data.steps_per_call = self.steps_per_call
        super().setup(stage)
        self._watch = LossWatch(torch.device("cpu"))

    def _build_for_the_data(self) -> None:
        """Build the model for the data, or for the weights that it is to start from."""
        is_new = self.spec is None and self.trainer.state.fn != "predict"
        if is_new and self.weights is not None:
            path = checkpoint_of(self.weights)
            try:
                self._build_for_weights(path)
            except BadInput as refusal:
                said = str(refusal).removeprefix(f"{path}: ")
                self._refusal = BadInput(f"{path}: {said}")
                if self.trainer.state.fn != "fit":
                    raise self._refusal from refusal
        super()._build_for_the_data()

    def _build_for_weights(self, path: Path) -> None:
        """Build what a checkpoint's weights mean: its targets and bins, on its preprocessing.

        Raises:
            BadInput: Its crops are others, or parts that were asked for.
        """
        checkpoint, spec = read_checkpoint(path), self.data.spec()
        then, recipe = read_spec(checkpoint), recipe_in(checkpoint)
        refuse_other_crops(then, spec.geometry, spec.num_targets)
        asked = {name: self.asked[name] for name in ("preprocess", "codec")}
        refuse_other_parts(recipe, asked)
        theirs = {name: from_plain(recipe[name]) for name in (*asked, "head")}
        head, backbone = self.net.head, self.net.backbone
        self._take_parts(theirs["preprocess"], backbone, head, theirs["codec"])
        spec = replace(spec, max_shift=then.max_shift, max_log_size=then.max_log_size)
        # Its regressors are of its classes, in their order.
        self.build(replace(spec, classes=then.classes) if head.per_class else spec, self.data.seed)
        if isinstance(head, BinHead) and isinstance(theirs["head"], BinHead):
            refuse_other_bins(theirs["head"].lay(then), head.grid)
        take_weights(self.net, "net.", checkpoint)
        if isinstance(head, BinHead):  # a checkpoint of 0.1.0 may hold others than its recipe says
            refuse_other_bins(head.grid, head.lay(spec))
        take_weights(self.codec, "codec.", checkpoint)
        samples = self.data.samples("train", epoch=0)
        self.codec.fit(samples.gt_boxes, samples.proposals, rescale=False)
        head.refit(self.codec.space())

    def _refuse_weights(self) -> None:
        """Say what was wrong with the weights, unless the run goes on from its own checkpoint."""
        if self.weights is not None and self._resumed_run is not None:
            rank_zero_warn("model.weights is not loaded: the run goes on from its own checkpoint")
        elif self._refusal is not None:
            raise self._refusal

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and a schedule over the whole run, once the weights are there."""
        self._refuse_weights()  # only now is it known whether the run goes on from a checkpoint
        self._regularization = Regularization(self.regularizers, self.net)
        self._class_weights = self._weigh_classes()
        self._try_batch_sizes()
        self._look_over()
        optimizer = self._make_optimizer()
        if self._several:
            self._several.begin(optimizer)
        self.keep_to_the_run(
            {
                "the optimizer": type(optimizer).__name__,
                "model.regularizers": str(self._regularization) or None,
                "model.groups": str(self._grouping) or None,
                "model.class_weights": to_plain(self.class_weights, "model.class_weights"),
                "model.steps_per_call": self.steps_per_call,
            }
        )
        self._asked_groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        steps: float = self.trainer.estimated_stepping_batches
        progress = run_progress(
            self.trainer, self._several.planned_steps(steps) if self._several else steps
        )
        scheduler = RunSchedule(optimizer, self.schedule, progress)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _make_optimizer(self) -> Optimizer:
        self._grouping = Grouping(self.groups, self.net)
        optimizer = self._grouping.optimized_by(self.optimizer or self._adamw)
        if isinstance(optimizer, torch.optim.LBFGS):
            if self._several or self.data.finds_batch_size:
                msg = (
                    "LBFGS tries a step several times, which model.steps_per_call, "
                    "model.cuda_graph and data.batch_size: auto can't; leave them out"
                )
                raise BadInput(msg)
            # It takes gradients for vectors, and those are laid out as the weights are.
            self.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # torch's stub lags
        return optimizer

    def _adamw(self, parameters: list[nn.Parameter]) -> Optimizer:
        # Lightning 2.6.6 refuses to clip the gradients of a fused optimizer in mixed precision.
        fused = not self.trainer.gradient_clip_val and self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1, fused=fused)

    def _try_batch_sizes(self) -> None:
        """Choose the batch size by training a copy of the network."""
        if not self.data.finds_batch_size:
            return
        own = self.net
        self.net = deepcopy(own).train()
        if own._compiled_call_impl is not None:
            self.net.compile(fullgraph=True)
        try:
            optimizer = self._make_optimizer()

            def step(batch: Batch) -> None:
                with self.trainer.precision_plugin.train_step_context():
                    loss = self._learnable_losses(batch).mean()
                torch.autograd.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

            self.choose_batch_size(step)
        finally:
            self.net = own

    def _look_over(self) -> None:
        """Refuse combinations that can't work, and warn of those that hardly do, before step 1."""
        refuse_frozen_finetuning(self._callbacks, self.net.backbone)
        refuse_lonely_samples(self.net, self.data.batch_size, self.trainer.world_size)
        refuse_equal_passes(self.net, self.passes or 0)
        refuse_unseen_plateau(self.schedule, self.trainer.enable_validation)
        if self._resumed_run is None:
            for sentence in stopping_advice(self._callbacks, self.schedule):
                rank_zero_warn(sentence)
            for sentence in advice(self.net) + self.groups.advice(self.trainer.max_epochs):
                rank_zero_warn(sentence)

    def on_train_start(self) -> None:
        """Train, whatever mode the model came in, and reset what is gathered between two logs."""
        super().on_train_start()
        self._watch = LossWatch(self.device)
        features = self.data.features.get("train")
        if features is not None and self._is_new and self._resumed_run is None:
            # All there are, now known.
            fit_head(self.net, self.codec, features, self.data.samples("train"))
        if self._resumed_run is not None:
            say(f"going on after step {self.trainer.global_step}")
        self._is_new = False
        self.train()
        self._go_on_unfrozen()
        self.on_train_epoch_start()  # Lightning calls it at the beginning of an epoch alone
        self._set_what_was_asked()
        self._say_largest_stable_rate()

    def _go_on_unfrozen(self) -> None:
        if self._resumed_run and any(isinstance(each, BaseFinetuning) for each in self._callbacks):
            relearn(self.net, self.trainer.optimizers[0])

    def on_train_epoch_start(self) -> None:
        """Have the weights learn that are to from this epoch on."""
        self._grouping.begin(self.trainer.current_epoch, self.trainer.world_size == 1)
        self._watch.follow([own for own in self.net.parameters() if own.requires_grad])

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave out weights that stay."""
        self._grouping.drop_gradients()

    def _set_what_was_asked(self) -> None:
        """Let the configuration's optimizer win over what a checkpoint restored, and say so."""
        (optimizer,), (config,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        schedule = config.scheduler
        assert isinstance(schedule, RunSchedule)
        # Callbacks may have added groups, which come last.
        for index, (group, asked) in enumerate(zip(optimizer.param_groups, self._asked_groups)):  # noqa: B905
            for name, value in asked.items():
                old = group["initial_lr" if name == "lr" else name]
                if old != value:
                    rank_zero_warn(f"the optimizer's {name} was {old} so far and is {value} now")
            schedule.base_lrs[index] = asked["lr"]
            rate = asked["lr"] * schedule.lr_lambdas[index](schedule.last_epoch) * schedule.fall
            group.update(asked | {"initial_lr": asked["lr"], "lr": rate})

    def _say_largest_stable_rate(self) -> None:
        """Say and log how fast SGD can go on a linear head, where the features stay the same."""
        head, optimizer = self.net.head, self.trainer.optimizers[0]
        if not (isinstance(head, LinearHead) and type(optimizer) is torch.optim.SGD):
            return
        if head.per_class or not self.net.backbone.frozen:
            return
        if (features := self.data.features.get("train")) is None:
            features = compute_features(self.data, "train_eval", self.net)
        group = optimizer.param_groups[0]
        if (largest := largest_stable_rate(head, features, group)) is None:
            return
        say(f"largest stable learning rate of SGD on these features: {largest:.3g}")
        for logger in self.loggers:
            logger.log_metrics({"train/largest_stable_lr": largest}, self.trainer.global_step)
        if (message := excess_message(group["initial_lr"], largest, head.standardize)) is not None:
            rank_zero_warn(message)

    def training_step(self, batch: Batch | Rows, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or make a step for each row of rows."""
        if self._several:
            assert isinstance(batch, Rows)
            self._several.make(batch)
            return None
        assert isinstance(batch, Batch)
        total, penalty = self.objective(batch)
        self.note_step(self.trainer.global_step, batch.rows, penalty)
        return total

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return what a batch is to minimise, and the penalty for the weights in it, if any.

        The losses are weighted so that the ranks' gradients average to the global batch's, which
        takes in the penalty whole: it is the same on all of them.
        """
        losses = self._learnable_losses(batch)
        loss = losses.sum() * (self.trainer.world_size / self.data.batch_size)
        self._watch.take(loss.detach(), losses.detach(), batch.rows)
        if not self._regularization:
            return loss, None
        penalty = self._regularization.penalty()
        return loss + penalty, penalty.detach()

    def _learnable_losses(self, batch: Batch) -> Tensor:
        losses = self._losses(self._outputs(batch.crops, batch.labels, batch.features), batch)
        if not losses.requires_grad:
            head = type(self.net.head).__name__
            msg = f"the loss of {head} has no gradient, so nothing can learn by it; choose another"
            raise BadInput(msg)
        if self._class_weights is not None:
            losses = losses * self._class_weights[batch.labels]
        return losses

    def _weigh_classes(self) -> Tensor | None:
        """Return the weight of each label in the loss, 1 on average over the training draws."""
        if self.class_weights is None:
            return None
        data = self.data
        items, classes = data.items_of("train"), data.source.classes
        own = class_weights(self.class_weights, items, classes, "model.class_weights").float()
        numbers = data.label_numbers
        known = numbers >= 0
        weights = torch.ones(int(numbers.max()) + 1)
        weights[numbers[known]] = own[known]
        drawn = weights[data.samples("train").labels]
        return (weights / drawn.mean()).to(self.device)

    def note_step(self, step: int, rows: Tensor, penalty: Tensor | None) -> None:
        """Remember on the host what a step was, and log where it is time to.

        Args:
            step: Its number.
            rows: The row of each sample in the epoch.
            penalty: For the weights, if any.
        """
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self._watch.note(step, self.data.epoch, rate, rows)
        if not self.logs_after(step + 1):
            return
        self.refuse_divergence()
        self.log_scalar("train/loss", self._watch.mean(), step, reduce=True)
        self.log_scalar("train/lr", rate, step)
        if penalty is not None:
            self.log_scalar("train/penalty", penalty.clone(), step)

    def log_scalar(self, name: str, value: Tensor | float, step: int, reduce: bool = False) -> None:
        """Log a number of training at its step; see `OffsetModel`."""
        if self._several:
            self._several.log(name, value, step, reduce)
        else:
            super().log_scalar(name, value, step, reduce)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Make a step, and see to the weights after it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.project_weights()

    def project_weights(self) -> None:
        """Do to the weights what regularizers want after a step."""
        self._regularization.project(self._grouping.staying)

    def on_train_end(self) -> None:
        """Give back what was for the steps alone."""
        super().on_train_end()
        if self._several:
            self._several.end()

    def on_validation_epoch_start(self) -> None:
        """Begin empty tables, unless there is nothing to validate any more."""
        if self.trainer.state.fn == "fit":
            self.refuse_divergence(self.parameters())
            if not self.trainer.log_every_n_steps:  # type: ignore[attr-defined] # Lightning sets it
                self._watch.mean()  # nothing else makes it forget
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation, unless the boxes are invalid."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit":
            found = self.evaluations["val"]
            self.refuse_divergence([found.refined.boxes], "refined boxes are")
            if not self.trainer.sanity_checking:
                scheduler = self.trainer.lr_scheduler_configs[0].scheduler
                assert isinstance(scheduler, RunSchedule)
                scheduler.see(found.metrics["mae_px"], self.schedule)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save nothing that diverged.

        Raises:
            DivergedError: A loss or the weights are not finite: nothing is saved.
        """
        super().on_save_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.refuse_divergence(self.parameters())

    def refuse_divergence(self, values: Iterable[Tensor] = (), what: str = "weights are") -> None:
        """Stop the run where a loss was not finite.

        Args:
            values: What must be finite too.
            what: What that is.

        Raises:
            DivergedError: Says at which step, with what learning rate and which samples.
        """
        if (bad := self._watch.first_bad(values, what)) is not None:
            items = self.data.samples("train", bad.epoch).items[bad.rows].tolist()
            train = self.data.source.splits["train"]
            names = [train.name(item) for item in items]
            kept = self._bad_step(bad) if bad.rank == self.trainer.global_rank else None
            raise DivergedError(divergence_message(bad, names), bad.step, kept)

    def _bad_step(self, bad: FirstBadStep) -> dict[str, Any] | None:
        """Return a checkpoint of the weights before the step that went wrong, with its batch."""
        if (sound := self._watch.last_sound()) is None:
            return None
        with torch.random.fork_rng(devices=[]):
            self.data.seed_step(sound.step)
            rows = Rows("train", sound.epoch, sound.rows, sound.rows >= 0)
            batch = self.data.make_batch(rows)
            random = torch.get_rng_state()
        seen = batch.crops if batch.features is None else batch.features
        chosen = kept_rows(sound.rows, bad.rows, seen[0].nbytes)
        learning = [name for name, own in self.net.named_parameters() if own.requires_grad]
        followed = zip(learning, sound.weights, strict=True)
        state = self.state_dict() | {f"net.{name}": weights for name, weights in followed}
        checkpoint: dict[str, Any] = {"state_dict": state}
        OffsetModel.on_save_checkpoint(self, checkpoint)
        train = self.data.source.splits["train"]
        items = self.data.samples("train", sound.epoch).items[sound.rows[chosen]].tolist()
        checkpoint[BAD_STEP_KEY] = {
            "step": sound.step,
            "epoch": sound.epoch,
            "rate": sound.rate,
            "what": bad.what,
            "precision": str(self.trainer.precision),
            "samples": len(sound.rows),
            "names": [train.name(item) for item in items],
            "random": random,
            "batch": {
                name: column[chosen].cpu()
                for name, column in batch._asdict().items()
                if column is not None
            },
        }
        return checkpoint
