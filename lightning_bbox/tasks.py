"""The LightningModule that learns box offsets by gradient descent."""

from dataclasses import asdict
from os import PathLike
from typing import Any, Self

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_bbox.backbones import Backbone, ShallowConvNet
from lightning_bbox.boxes import Boxes, box_centers, mirror_boxes
from lightning_bbox.checkpoints import CHECKPOINT_KEY, read_checkpoint, read_spec
from lightning_bbox.codecs import DeltaCodec, MeanStdCodec, OffsetSpec, refuse_other_crops
from lightning_bbox.compiling import Compile, should_compile
from lightning_bbox.data import CropDataModule
from lightning_bbox.errors import BadInput
from lightning_bbox.evaluation import Evaluation, evaluate
from lightning_bbox.heads import BinHead, Head
from lightning_bbox.loader import Split
from lightning_bbox.metrics import (
    Refined,
    RefinedBoxes,
)
from lightning_bbox.parts import Plain, from_plain, to_plain
from lightning_bbox.plan import stream_seed
from lightning_bbox.preprocess import ChannelNorm, Preprocess
from lightning_bbox.samples import Batch, Samples
from lightning_bbox.schedules import OneCycle, Schedule


class DivergedError(RuntimeError):
    """Training produced a loss that is not finite."""


class OffsetNet(nn.Module):
    """Preprocessing, backbone and head in one module, so that they compile to one graph."""

    def __init__(self, preprocess: Preprocess, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.preprocess, self.backbone, self.head = preprocess, backbone, head

    def forward(self, crops: Float[Tensor, "b 3 s s"]) -> Tensor:
        """Return the head's outputs for raw crops in [0, 1]."""
        normal = self.preprocess(crops.contiguous(memory_format=torch.channels_last))
        outputs: Tensor = self.head(self.backbone(normal.to(next(self.parameters()).dtype)))
        return outputs


class BoxRegressor(pl.LightningModule):
    """Learn how far the true box lies from a proposal, from the crop around it.

    What depends on the data (sizes, statistics, bins) is built when training begins and travels in
    the checkpoint.

    Args:
        backbone: Crops to features; a `ShallowConvNet` by default.
        head: Features to targets, with its loss; a `BinHead` by default.
        codec: Boxes to targets and back; a `MeanStdCodec` by default.
        preprocess: Fitted on training crops; a `ChannelNorm` by default.
        optimizer: AdamW with a learning rate of 3e-3 and a weight decay of 0.1 by default.
        schedule: Of the learning rate; `OneCycle` by default.
        average_flips: At evaluation, average the boxes found on the crop and its three mirror
            images.
        weights: A checkpoint whose weights training starts from (fine-tuning), with its
            preprocessing; the targets' statistics are fitted anew.
        compile: Compile the network; `auto` does on CUDA.

    Examples:
        >>> from lightning_bbox import CropGeometry
        >>> model = BoxRegressor(backbone=ShallowConvNet(channels=(8, 16, 16)))
        >>> spec = OffsetSpec(CropGeometry(), num_targets=2, max_shift=5.0, max_log_size=0.0)
        >>> model.build(spec, seed=0)
        >>> model.eval()(torch.zeros(1, 3, 45, 45), torch.tensor([[10.0, 10.0, 40.0, 40.0]])).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        head: Head | None = None,
        codec: DeltaCodec | None = None,
        preprocess: Preprocess | None = None,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        average_flips: bool = False,
        weights: str | None = None,
        compile: Compile = "auto",  # noqa: A002 (the name of the option everywhere)
    ) -> None:
        super().__init__()
        self.net = OffsetNet(
            preprocess or ChannelNorm(), backbone or ShallowConvNet(), head or BinHead()
        )
        self.codec = codec or MeanStdCodec()
        self.optimizer = optimizer
        self.schedule = schedule or OneCycle()
        self.average_flips, self.weights, self.compile_choice = average_flips, weights, compile
        self.spec: OffsetSpec | None = None
        self.evaluations: dict[Split, Evaluation] = {}
        self._tables: dict[Split, RefinedBoxes] = {}

    @property
    def data(self) -> CropDataModule:
        """The data module of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CropDataModule):
            msg = f"BoxRegressor needs a data module of lightning_bbox; got {type(data).__name__}"
            raise BadInput(msg)
        return data

    def build(self, spec: OffsetSpec, seed: int) -> None:
        """Make the layers and buffers, initialised by the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed("init", seed))
            self.net.backbone.build(spec.geometry.size)
            self.net.head.build(self.net.backbone.out_features, spec.bounds)
        self.codec.build(spec)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lags
        self.spec = spec

    def setup(self, stage: str) -> None:
        """Build the model for the data, and fit the statistics on the training split."""
        data = self.data
        if self.spec is not None:
            data.follow(self.spec)
            return
        self.build(data.spec(), data.seed)
        samples = data.samples("train", epoch=0)
        self.codec.fit(samples.gt_boxes, samples.proposals)
        with torch.no_grad():
            crops = data.cut(data.samples("train_eval").to(self.trainer.strategy.root_device))
        self.net.preprocess.fit(crops)
        if self.weights is not None and stage == "fit":
            self._load_weights(self.weights)
        self.net.head.fit(self.codec.space())

    def configure_model(self) -> None:
        """Compile the network in place, so that names in the checkpoint don't change."""
        if self.net._compiled_call_impl is None and should_compile(
            self.compile_choice, self.trainer.strategy.root_device, pays_on_cpu=False
        ):
            self.net.compile(fullgraph=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and a schedule over the whole run."""
        parameters = list(self.parameters())
        optimizer = (self.optimizer or self._adamw)(parameters)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            msg = "the run has no end to plan the learning rate for; set trainer.max_epochs"
            raise BadInput(msg)
        last = max(1, int(total) - 1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule.factor(step / last)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _adamw(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        # Lightning 2.6.6 refuses to clip the gradients of a fused optimizer in mixed precision.
        fused = not self.trainer.gradient_clip_val and self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1, fused=fused)

    def forward(self, crops: Float[Tensor, "b 3 s s"], proposals: Boxes) -> Boxes:
        """Return refined boxes, in fp32 and in the proposals' frame.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.
        """
        return self._decode(self.net(crops), proposals)

    def _decode(self, outputs: Tensor, proposals: Boxes) -> Boxes:
        return self.codec.decode(self.net.head.decode(outputs), proposals)

    def on_train_start(self) -> None:
        """Train, whatever mode the model came in, and reset what is gathered between two logs."""
        self.train()
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_steps = 0
        self._first_bad_step = torch.full((), -1, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, weighted so that the ranks' gradients average to the global batch's."""
        losses = self._losses(self.net(batch.crops), batch)
        loss = losses.sum() * (self.trainer.world_size / self.data.batch_size)
        detached = loss.detach()
        step = self.trainer.global_step
        bad = ~torch.isfinite(detached) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, step, self._first_bad_step)
        self._loss_sum = self._loss_sum + detached
        self._loss_steps += 1
        if self.logs_after(step + 1):
            self.refuse_divergence()
            self.log("train/loss", self._loss_sum / self._loss_steps, sync_dist=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._loss_sum, self._loss_steps = torch.zeros_like(self._loss_sum), 0
        return loss

    def logs_after(self, steps: int) -> bool:
        """Tell whether scalars are logged once this many steps are done."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] # Lightning sets it
        return steps % every == 0

    def refuse_divergence(self) -> None:
        """Stop the run where a loss was not finite.

        Raises:
            DivergedError: Says at which step.
        """
        first = self.trainer.strategy.reduce(self._first_bad_step.float(), reduce_op="max")
        step = int(first)
        if step >= 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            msg = (
                f"the loss is not finite since step {step} (learning rate now {rate:.3g}); lower "
                f"the learning rate, clip gradients (trainer.gradient_clip_val) or use a 32-bit "
                f"precision"
            )
            raise DivergedError(msg)

    def _losses(self, outputs: Tensor, batch: Batch) -> Float[Tensor, " b"]:
        return self.net.head.loss(outputs, self.codec.encode(batch.gt_boxes, batch.proposals))

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

    def on_test_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Refine a batch of the test draws."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        for name, value in self._finish("test").metrics.items():
            self.log(f"test/{name}", value, sync_dist=True)

    def _begin(self, *splits: Split) -> None:
        for split in splits:
            table = RefinedBoxes(self.data.num_draws(split), self.data.num_targets)
            self._tables[split] = table.to(self.device)

    def on_predict_epoch_start(self) -> None:
        """Begin an empty table."""
        self._begin("predict")

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Refine a batch of rough boxes."""
        boxes, stds = self.refine(batch.crops, batch.proposals)
        nothing = torch.zeros(len(boxes), device=boxes.device)
        self._tables["predict"].update(batch.rows, batch.valid, boxes, nothing, stds)

    def on_predict_epoch_end(self) -> None:
        """Put the refined boxes together, over all processes."""
        self.predictions = self._tables["predict"].compute()

    @torch.no_grad()
    def refine(
        self, crops: Float[Tensor, "b 3 s s"], proposals: Boxes
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return refined boxes, and how far off the model deems them, averaged over flips if set.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.

        Returns:
            The boxes in the proposals' frame, and their standard deviations in px and log size, NaN
            where the head can't tell.
        """
        return self._refined(self.net(crops), crops, proposals)

    def _evaluate(self, batch: Batch, split: Split) -> None:
        outputs = self.net(batch.crops)
        boxes, stds = self._refined(outputs, batch.crops, batch.proposals)
        losses = self._losses(outputs, batch)
        self._tables[split].update(batch.rows, batch.valid, boxes, losses, stds)

    def _refined(self, outputs: Tensor, crops: Tensor, proposals: Boxes) -> tuple[Boxes, Tensor]:
        boxes, stds = [self._decode(outputs, proposals)], [self.net.head.stds(outputs)]
        centers = box_centers(proposals)
        for flips in ((1, 0), (0, 1), (1, 1)) if self.average_flips else ():
            axes = [dim for dim, flip in zip((3, 2), flips, strict=True) if flip]
            outputs = self.net(crops.flip(axes))
            mirrored = self._decode(outputs, proposals)
            axes_flipped = centers.new_tensor(flips).expand_as(centers)
            boxes.append(mirror_boxes(mirrored, centers, axes_flipped))
            stds.append(self.net.head.stds(outputs))
        return torch.stack(boxes).mean(dim=0), torch.stack(stds).mean(dim=0)

    def _finish(self, split: Split) -> Evaluation:
        refined = self._tables[split].compute()
        seen = refined.seen
        samples = self.data.samples(split).take(seen)
        refined = Refined(*(tensor[seen] for tensor in refined))
        evaluation = evaluate(self.data, split, samples, refined, self._predict_mean(samples))
        self.evaluations[split] = evaluation
        return evaluation

    def _predict_mean(self, samples: Samples) -> Boxes:
        """Return the boxes of the training targets' mean: the baseline of every evaluation."""
        proposals = samples.proposals.to(self.device)
        return self.codec.decode(self.codec.mean.expand(len(proposals), -1), proposals).cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe of the model and the spec of its data, as plain data."""
        if self.trainer.training:
            self.refuse_divergence()
        assert self.spec is not None
        checkpoint[CHECKPOINT_KEY] = {"model": self.recipe(), "spec": asdict(self.spec)}

    def recipe(self) -> dict[str, Plain]:
        """Return the arguments that rebuild this model, as plain data (without the optimizer)."""
        arguments = {
            "preprocess": self.net.preprocess,
            "backbone": self.net.backbone,
            "head": self.net.head,
            "codec": self.codec,
            "schedule": self.schedule,
            "average_flips": self.average_flips,
            "compile": self.compile_choice,
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
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        recipe = checkpoint[CHECKPOINT_KEY]["model"]
        model = cls(**{name: from_plain(value) for name, value in recipe.items()})
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(map_location).eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the layers that the checkpoint's weights belong to."""
        spec = read_spec(checkpoint)
        if self.spec is not None:
            refuse_other_crops(spec, self.spec.geometry, self.spec.num_targets)
        if self.spec != spec:
            self.build(spec, seed=0)

    def _load_weights(self, path: str) -> None:
        checkpoint = read_checkpoint(path)
        prefix = "net."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            msg = f"{path}: its weights don't fit the configured model ({reason})"
            raise BadInput(msg) from error
