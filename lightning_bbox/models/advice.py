"""Advice on how parts go together: refusals of what can't work, warnings of what hardly does."""

from collections.abc import Iterable, Mapping

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.codecs import OffsetSpec
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.backbones.extractor import FeatureExtractor
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.losses import L2Loss
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.nn.schedules import Plateau, Schedule
from lightning_bbox.nn.stochastic import DropConnect, stochastic_layers

_MISFITS: Mapping[type[Callback], str] = {
    StochasticWeightAveraging: (
        "puts a schedule of its own in place of the model's; choose WeightAveraging or "
        "EMAWeightAveraging"
    ),
    LearningRateFinder: (
        "trains through a schedule of its own, and the model's optimizer says the learning rate; "
        "leave it out, and set optimizer.lr"
    ),
    BatchSizeFinder: (
        "finds the largest batch that fits, after the run's size was noted; leave it out, and set "
        "data.batch_size: auto"
    ),
    GradientAccumulationScheduler: (
        "changes how many steps the run has, which the schedule of the learning rate must know; "
        "leave it out, and set trainer.accumulate_grad_batches"
    ),
    ModelPruning: (
        "takes weights for vectors, and the convolutions' are laid out channels last; leave it "
        "out, and prune a trained model.net by torch.nn.utils.prune"
    ),
}
"""Callbacks of Lightning that can't work with a model of ours: why, and what does."""


def refuse_misfits(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks of Lightning that can't work with a model of ours.

    Raises:
        BadInput: There is one.
    """
    for callback in callbacks:
        for kind, why in _MISFITS.items():
            if isinstance(callback, kind):
                msg = f"trainer.callbacks: {type(callback).__name__} {why}"
                raise BadInput(msg)


def refuse_frozen_finetuning(callbacks: Iterable[Callback], backbone: Backbone) -> None:
    """Refuse to unfreeze, by Lightning's callback, a backbone that is frozen for good.

    Raises:
        BadInput: It is to be.
    """
    if backbone.frozen and any(isinstance(each, BackboneFinetuning) for each in callbacks):
        msg = (
            "trainer.callbacks: BackboneFinetuning unfreezes the backbone at its epoch, but "
            "backbone.frozen keeps it frozen for good; set that to false"
        )
        raise BadInput(msg)


def advice(net: OffsetNet) -> list[str]:
    """Warn of combinations that are known to learn offsets badly, a sentence with a remedy each.

    Args:
        net: Built, and about to learn.

    References:
        CS231n notes, Loss functions: the squared error is fragile, and dropout in the network,
        above all right before it, is not a great idea.
    """
    found = []
    if _squares(net) and not net.backbone.frozen:
        layers = _layers(net.backbone)
        if any(isinstance(layer, _DropoutNd | DropConnect) and layer.p > 0 for layer in layers):
            found.append(
                "dropout before a squared error: what it drops moves each prediction, and the "
                "square makes much of that; use a BinHead or loss: SmoothL1Loss, or leave dropout "
                "out"
            )
        if isinstance(next(filter(_changes, reversed(layers)), None), _BatchNorm):
            found.append(
                "batch norm right before a squared error: each prediction depends on the rest of "
                "its batch, and the square makes much of that; use a BinHead or loss: "
                "SmoothL1Loss, or end the backbone with another layer"
            )
    if isinstance(net.backbone, ShallowConvNet) and _forgets_places(net.backbone):
        found.append(
            "global pooling averages away where things are, and that is what offsets need; set "
            "backbone.global_pool: false, or backbone.coordinates: true"
        )
    return found


def stopping_advice(callbacks: Iterable[Callback], schedule: Schedule) -> list[str]:
    """Warn of early stopping that keeps the learning rate from coming down.

    Args:
        callbacks: The trainer's.
        schedule: Of the learning rate.
    """
    name, found = type(schedule).__name__, []
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping):
            continue
        if schedule.ends_low:
            found.append(
                f"EarlyStopping may end the run before {name} brings the learning rate down, and "
                f"with it the error, which it does by the run's end; use schedule: Plateau, or "
                f"leave EarlyStopping out and lower trainer.max_epochs"
            )
        elif isinstance(schedule, Plateau) and callback.patience <= schedule.patience:
            found.append(
                f"EarlyStopping has a patience of {callback.patience}, and {name} one of "
                f"{schedule.patience}: the run ends before the rate falls; raise the former"
            )
    return found


def refuse_unseen_plateau(schedule: Schedule, validates: bool) -> None:
    """Refuse to wait for errors of a validation that there won't be.

    Raises:
        BadInput: The schedule waits for them.
    """
    if isinstance(schedule, Plateau) and not validates:
        msg = "schedule Plateau goes by validation, and the run has none; use Constant or OneCycle"
        raise BadInput(msg)


def range_advice(head: Head, spec: OffsetSpec) -> str | None:
    """Warn of offsets that a head can't say, however long it learns.

    Args:
        head: Built, perhaps for other data.
        spec: Of the data it is about to be used on.
    """
    asked = (spec.max_shift, spec.max_log_size if spec.num_targets > 2 else 0.0)
    for what, unit, most, held in zip(
        ("shifts", "changes of size"), (" px", " in log size"), asked, head.reach or asked,
        strict=True,
    ):  # fmt: skip
        if most > held * (1 + 1e-4):  # a range that was measured again is never quite the same
            return (
                f"{what} reach {most:.3g}{unit}, and the {type(head).__name__} was made for "
                f"{held:.3g}: what lies beyond is never found; train a new model (a BinHead's "
                f"max_shift as large, or left out), or lower the jitter"
            )
    return None


def refuse_lonely_samples(net: OffsetNet, batch_size: int, world_size: int) -> None:
    """Refuse batch norm where a process has but one sample in a batch: it would be all zero.

    Args:
        net: Built, and about to learn.
        batch_size: Samples of the global batch.
        world_size: Processes that share it.

    Raises:
        BadInput: There is such a process, and batch norm over vectors.
    """
    norms = any(isinstance(module, nn.BatchNorm1d) for module in net.modules())
    if norms and not net.backbone.frozen and batch_size // world_size < 2:
        msg = (
            f"batch norm needs two samples or more in each process's batch, but data.batch_size is "
            f"{batch_size} for {world_size} processes; raise it, or set backbone.batch_norm: false"
        )
        raise BadInput(msg)


def refuse_equal_passes(net: OffsetNet, passes: int) -> None:
    """Refuse to average passes of a net in which nothing draws at random.

    Raises:
        BadInput: All passes would be equal.
    """
    if passes and not stochastic_layers(net):
        msg = (
            f"model.passes is {passes}, but nothing in the model draws at random, so that all "
            f"passes are equal; give the backbone dropout, or leave passes out"
        )
        raise BadInput(msg)


def refuse_idle_dropout(backbone: Backbone) -> None:
    """Refuse dropout that was asked for where features are computed once, without any draw.

    Raises:
        BadInput: The backbone has dropout; a published net's own is left alone.
    """
    if isinstance(backbone, ShallowConvNet) and any(backbone.shares.values()):
        asked = ", ".join(f"{name} {share}" for name, share in backbone.shares.items() if share)
        msg = (
            f"RidgeRegressor computes features without draws, so the backbone's {asked} does "
            f"nothing; leave it out, and set lam instead"
        )
        raise BadInput(msg)


def _squares(net: OffsetNet) -> bool:
    return isinstance(net.head, LinearHead) and isinstance(net.head.criterion, L2Loss)


def _layers(backbone: Backbone) -> list[nn.Module]:
    """Return the layers that features go through, in the order in which they are named."""
    named = [(name, layer) for name, layer in backbone.named_modules() if not any(layer.children())]
    if isinstance(backbone, FeatureExtractor):
        read = tuple(f"net.{layer}.".replace("..", ".") for layer in backbone.layers)  # "": all
        last = max(at for at, (name, _) in enumerate(named) if f"{name}.".startswith(read))
        named = [*named[: last + 1], *(one for one in named if one[0].startswith("neck."))]
    return [layer for _, layer in named]


def _changes(layer: nn.Module) -> bool:
    """Tell whether a layer does anything in evaluation."""
    return not isinstance(layer, nn.Identity | nn.Flatten | nn.Sequential | _DropoutNd)


def _forgets_places(backbone: ShallowConvNet) -> bool:
    return backbone.global_pool and not (backbone.coordinates or backbone.frozen)
