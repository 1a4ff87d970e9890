"""Replay the step at which a run diverged, and name where the first value that isn't finite arises.

The run has kept its weights and batch in `bad_step.pt`, before anything was spoilt.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import encoded, make_folder, write_atomically
from lightning_bbox.core.messages import quietly
from lightning_bbox.data.samples import Batch
from lightning_bbox.insight.diagnosis.case import TALKERS
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.regressor import BoxRegressor
from lightning_bbox.models.training.divergence import BAD_STEP, BAD_STEP_KEY
from lightning_bbox.nn.regularizers import Regularization
from lightning_bbox.reports.tables import format_markdown

_HUGE = 1e4
"""Size that weights of a training that learns never come to."""
_BLOWN_UP = "the steps before blew the weights up: lower the learning rate, or clip gradients"
_IN_FORMULA = "add a small number under the root, logarithm or division"


@dataclass
class Layer:
    """What went through a module of the network that has no modules of its own.

    Attributes:
        name: Its place and class.
        inputs: The largest magnitude that it was given.
        outputs: The largest that it returned; infinite where one of them isn't finite.
        weights: The largest of its own weights; 0 where it has none.
        gradient: The largest of the loss's gradient by what it returned; None where there is none.
    """

    name: str
    inputs: float
    outputs: float
    weights: float
    gradient: float | None = None


class Spot(NamedTuple):
    """Where something isn't finite.

    Attributes:
        where: The layer, loss or gradient; empty where all are finite.
        words: What it is, with the scale of what it came from.
        cure: What to do.
    """

    where: str
    words: str
    cure: str


class Replay(NamedTuple):
    """What a replayed step came to.

    Attributes:
        step: Its number.
        rate: Its learning rate.
        spot: Where the first value that isn't finite arises.
        layers: What went through the network, in order.
        samples: The batch's samples that were kept, by name.
        left_out: How many of the batch were not.
    """

    step: int
    rate: float
    spot: Spot
    layers: tuple[Layer, ...]
    samples: tuple[str, ...]
    left_out: int

    @property
    def sentence(self) -> str:
        """What was found, and what to do."""
        short = f" (without {self.left_out} samples that were not kept)" * bool(self.left_out)
        return f"step {self.step}{short}: {self.spot.words}; {self.spot.cure}"


def replay(path: Path, model: OffsetModel | None = None) -> Replay:
    """Run a step again on the CPU, forward and backward, as far as all is finite.

    Args:
        path: A `bad_step.pt`.
        model: What its run trained, as its configuration makes it. By default that of the file
            itself, which knows nothing of penalties for the weights.

    Raises:
        BadInput: The file isn't one, or its model can't be had.
    """
    kept = read_checkpoint(path).get(BAD_STEP_KEY)
    if model is None:
        model = BoxRegressor.load_from_checkpoint(path)
    else:
        model.restore(path)
    if not isinstance(kept, dict) or not isinstance(model, BoxRegressor):
        msg = f"{path}: holds no step to replay; give the {BAD_STEP} of a run that diverged"
        raise BadInput(msg)
    try:
        batch, names = Batch(**kept["batch"]), tuple(map(str, kept["names"]))
        step, rate, count = int(kept["step"]), float(kept["rate"]), int(kept["samples"])
        random, precision = kept["random"], str(kept["precision"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: lacks a part of its step ({error}); give it as a run wrote it"
        raise BadInput(msg) from error
    plugin = _precision(precision)
    plugin.convert_module(model.net)
    model.net.train()
    layers: list[Layer] = []
    with torch.random.fork_rng(devices=[]), plugin.train_step_context(), torch.enable_grad():
        torch.set_rng_state(random)
        spot = _given(model, batch, names) or _descended(model, batch, names, layers, rate)
    if layers and (size := _weights(model)) > _HUGE:
        words = f"{spot.words} (the network's weights are up to {size:.3g})"
        spot = spot._replace(words=words, cure=_BLOWN_UP)
    return Replay(step, rate, spot, tuple(layers), names, count - len(names))


def _precision(name: str) -> pl.plugins.Precision:
    """Return what computes in a precision on the CPU; in 32 bit what this can't."""
    arguments: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}
    arguments |= dict.fromkeys(("enable_checkpointing", "enable_model_summary"), False)
    with quietly(*TALKERS):
        try:
            trainer = pl.Trainer(**arguments | {"precision": name})
        except (ValueError, MisconfigurationException):
            trainer = pl.Trainer(**arguments, precision="32-true")
    return trainer.precision_plugin


def _given(model: BoxRegressor, batch: Batch, names: tuple[str, ...]) -> Spot | None:
    """Is what the network is given finite?"""
    columns = {
        "crops": batch.crops if batch.features is None else batch.features,
        "true boxes": batch.gt_boxes,
        "proposals": batch.proposals,
    }
    for what, values in columns.items():
        if bad := _bad_rows(values, names):
            return Spot(f"the {what}", f"the {what} of {bad} aren't finite", "mend the data")
    targets = model.codec.encode(batch.gt_boxes, batch.proposals)
    if bad := _bad_rows(targets, names):
        codec = type(model.codec).__name__
        return Spot(f"the codec ({codec})", f"{codec} encodes {bad} as what isn't finite",
                    "mend the codec")  # fmt: skip
    return None


def _descended(
    model: BoxRegressor, batch: Batch, names: tuple[str, ...], layers: list[Layer], rate: float
) -> Spot:
    """Go forward and backward; layers are noted on the way."""
    results: list[Tensor] = []
    with _watched(model.net, layers, results) as spoilt:
        outputs = model._outputs(batch.crops, batch.labels, batch.features)
    if spoilt:
        return spoilt[0]
    losses = model._losses(outputs, batch)
    targets = model.codec.encode(batch.gt_boxes, batch.proposals)
    scales = f"outputs of up to {_most(outputs):.3g} and targets of up to {_most(targets):.3g}"
    head = model.net.head
    name = f"the loss ({type(getattr(head, 'criterion', head)).__name__})"
    if bad := _bad_rows(losses, names):
        words = f"{name} is the first that isn't finite, from {scales}, of {bad}"
        blown_up = _most(outputs) > _HUGE
        return Spot(
            name, words, _BLOWN_UP if blown_up else "keep to where its functions are defined"
        )
    total = losses.mean()
    if not bool(total.isfinite()):
        words = f"{name} is finite for each sample and overflows in their sum, from {scales}"
        return Spot(name, words, "scale it down")
    if model.regularizers:
        penalty = Regularization(model.regularizers, model.net).penalty()
        if not bool(penalty.isfinite()):
            words = f"the penalty of the weights isn't finite; they are up to {_weights(model):.3g}"
            return Spot("the penalty", words, "lower its strength")
        total = total + penalty
    outputs.retain_grad()
    torch.autograd.backward(total)
    for layer, result in zip(layers, results, strict=True):
        layer.gradient = None if result.grad is None else _most(result.grad)
    if _most(outputs.grad) == math.inf:
        words = f"the gradient of {name} is the first that isn't finite, at {scales}"
        return Spot(f"the gradient of {name}", words, _IN_FORMULA)
    return _spoilt_gradient(model, layers) or _spoilt_weights(model, losses, rate)


def _spoilt_gradient(model: BoxRegressor, layers: list[Layer]) -> Spot | None:
    """Find the last layer whose gradient isn't finite: gradients come from behind."""
    own = {
        name.rpartition(".")[0]: _most(weights.grad)
        for name, weights in model.net.named_parameters()
    }
    for layer, following in zip(reversed(layers), [None, *reversed(layers)], strict=False):
        if layer.gradient == math.inf and following is not None:
            words = (
                f"{following.name} is the first whose gradient isn't finite, by inputs of up to "
                f"{following.inputs:.3g}"
            )
            return Spot(f"the gradient of {following.name}", words, _IN_FORMULA)
        if own.get(layer.name.partition(" ")[0]) == math.inf:
            words = (
                f"{layer.name} is the first whose gradient isn't finite, by weights of up to "
                f"{layer.weights:.3g}"
            )
            return Spot(f"the gradient of {layer.name}", words, _IN_FORMULA)
    return None


def _spoilt_weights(model: BoxRegressor, losses: Tensor, rate: float) -> Spot:
    """Say that only the update is left, and how large it may be."""
    steepest = max(_most(each.grad) for each in model.net.parameters())
    words = (
        f"loss ({float(losses.detach().mean()):.3g}) and gradients (up to {steepest:.3g}) are "
        f"finite, with weights of up to {_weights(model):.3g}: it is the update that spoils the "
        f"weights, at a learning rate of {rate:.3g}"
    )
    return Spot("", words, "lower the learning rate, or clip gradients (trainer.gradient_clip_val)")


@contextmanager
def _watched(net: nn.Module, layers: list[Layer], results: list[Tensor]) -> Iterator[list[Spot]]:
    """Note what goes through each module, and hand over where it is first not finite."""
    spoilt: list[Spot] = []
    within: list[nn.Module] = []
    names = {
        module: f"{name or 'network'} ({type(module).__name__})"
        for name, module in net.named_modules()
    }

    def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if not spoilt and within and _most(*inputs) == math.inf:
            whole, last = names[within[-1]], layers[-1]
            words = (
                f"what {whole} computes between {last.name} and {names[module]} is the first that "
                f"isn't finite, from values of up to {last.outputs:.3g}"
            )
            spoilt.append(Spot(whole, words, _IN_FORMULA))
        within.append(module)

    def after(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        within.pop()
        if spoilt or not isinstance(output, Tensor):
            return
        own = max((_most(each) for each in module.parameters(recurse=False)), default=0.0)
        layer = Layer(names[module], _most(*inputs), _most(output), own)
        if not any(module.children()):
            layers.append(layer)
            if output.requires_grad:
                output.retain_grad()
            results.append(output)
        if layer.outputs == math.inf:
            spoilt.append(_of_layer(layer))

    handles = []
    for module in net.modules():
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        yield spoilt
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(layer: Layer) -> Spot:
    words = (
        f"{layer.name} is the first whose output isn't finite, from inputs of up to "
        f"{layer.inputs:.3g}" + f" and weights of up to {layer.weights:.3g}" * bool(layer.weights)
    )
    cure = "look at what it computes: a root, logarithm, division, or a half precision's range"
    return Spot(layer.name, words, cure)


def _most(*values: object) -> float:
    """Return the largest magnitude among tensors, infinite where one isn't finite; 0 of none."""
    found = 0.0
    for each in values:
        if isinstance(each, Tensor) and each.is_floating_point() and each.numel():
            if not bool(each.isfinite().all()):
                return math.inf
            found = max(found, float(each.detach().abs().max()))
    return found


def _weights(model: BoxRegressor) -> float:
    return _most(*model.net.parameters())


def _bad_rows(values: Tensor, names: tuple[str, ...]) -> str:
    """Name the samples with a value that isn't finite; nothing where there are none."""
    bad = ~values.detach().reshape(len(values), -1).isfinite().all(dim=1)
    return listed([names[row] for row in bad.nonzero().flatten().tolist()])


def write_replay(found: Replay, folder: Path) -> None:
    """Write `replay.json` and `replay.md`.

    Args:
        found: What the replay came to.
        folder: Where to; it is made.

    Raises:
        BadInput: The folder can't be written to.
    """
    make_folder(folder)
    told = {
        "sentence": found.sentence,
        "where": found.spot.where,
        "step": found.step,
        "rate": found.rate,
        "samples": list(found.samples),
        "left_out": found.left_out,
        "layers": [
            {name: _plain(value) for name, value in vars(layer).items()} for layer in found.layers
        ],
    }
    write_atomically(folder / "replay.json", encoded(json.dumps(told, indent=2)))
    rows = [["layer", "inputs", "weights", "outputs", "gradient"]]
    rows += [
        [layer.name, *map(_said, (layer.inputs, layer.weights, layer.outputs, layer.gradient))]
        for layer in found.layers
    ]
    text = f"# Step {found.step}, replayed\n\n**{found.sentence}.**\n\nLargest magnitudes:\n\n"
    write_atomically(folder / "replay.md", encoded(f"{text}{format_markdown(rows)}\n"))


def _plain(value: str | float | None) -> str | float | None:
    return "not finite" if value == math.inf else value


def _said(value: float | None) -> str:
    return "-" if value is None else "not finite" if value == math.inf else f"{value:.3g}"
