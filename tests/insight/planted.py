"""Planted faults: recipes that train well, each with one thing made wrong, and what it's called.

They were made before the instrument that is to find them, and apart from it. Its thresholds are
tuned on the half "tune" alone. The runner writes each as a config, has it diagnosed, and tells at
which rank the planted cause is named:

    python -m tests.insight.planted --base scenes --half tune
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from lightning_bbox.cli.main import main as command
from tests.insight.planted_data import (
    BCCD,
    READ,
    SHARED,
    Base,
    Boxes,
    Patches,
    add_label_noise,
    cut_patches,
    exchange_axes,
    exchange_offsets,
    exchange_pictures,
    fewer,
    invert_training_pictures,
    label_again,
    leak_training_pictures,
    mirror_boxes,
    move_offsets,
    of_smaller_pictures,
    only,
    propose_nearer_in_training,
    propose_the_truth,
    shuffle_offsets,
    turn_by_exif,
    turn_sign,
    with_proposals,
    write_boxes,
    write_patches,
)

Kind = Literal["labels", "crops", "targets_head", "network", "optimisation"]
Half = Literal["tune", "held_out"]
Form = Literal["usual", "files", "proposals", "patches"]
"""What the data are: scenes or BCCD as always; a table of boxes; with proposals; ready patches."""
Options = Mapping[str, Any]
"""Values by their dotted keys; None takes a key away."""
Config = dict[str, Any]

KINDS: tuple[Kind, ...] = ("labels", "crops", "targets_head", "network", "optimisation")


@dataclass(frozen=True)
class Planted:
    """One thing made wrong in a healthy recipe.

    Attributes:
        name: Its own.
        kind: Where it is.
        half: Whether thresholds may be tuned on it.
        cause: What is wrong, in words.
        accepted: What the instrument may call it.
        options: What it sets, in the place of the healthy values.
        healthy: What the recipe it is planted in has beside the usual, and keeps.
        form: Of the data.
        alter: What it does to the data; a `Boxes` or, where the form is patches, a `Patches`.
        train_pictures: How many training pictures the recipe has; all by default.
    """

    name: str
    kind: Kind
    half: Half
    cause: str
    accepted: tuple[str, ...]
    options: Options = field(default_factory=dict)
    healthy: Options = field(default_factory=dict)
    form: Form = "usual"
    alter: Callable[[Any, np.random.Generator], Any] | None = None
    train_pictures: int | None = None


class Case(NamedTuple):
    """A fault in a recipe, ready to run.

    Attributes:
        config: As it is.
        healthy: As it should be.
        cure: The options that make the former the latter.
    """

    config: Config
    healthy: Config
    cure: Options


def part(path: str, **arguments: Any) -> Config:
    """Write a part of a recipe: a name of ours, or a path."""
    full = path if "." in path else f"lightning_bbox.{path}"
    return {"class_path": full, **({"init_args": arguments} if arguments else {})}


def mine(name: str, **arguments: Any) -> Config:
    return part(f"tests.insight.planted_parts.{name}", **arguments)


def changed(config: Config, options: Options) -> Config:
    """Return a config with some values set, by their dotted keys as on the command line."""
    config = deepcopy(config)
    for key, value in options.items():
        _set(config, key.split("."), value)
    return config


def _set(at: Config, way: Sequence[str], value: Any) -> None:
    """Set a value or take it away, and what is empty without it."""
    name, *rest = way
    within = at if name == "class_path" else _inside(at)
    if rest:
        _set(within.setdefault(name, {}), rest, value)
        value = within[name] or None
    if value is None:
        within.pop(name, None)
    else:
        within[name] = deepcopy(value)


def value_in(config: Config, key: str) -> Any:
    """Return what a config says of a dotted key, None where it says nothing."""
    *way, last = key.split(".")
    at = config
    for name in way:
        at = _inside(at).get(name, {})
    return deepcopy((at if last == "class_path" else _inside(at)).get(last))


def _inside(at: Config) -> Config:
    return at.setdefault("init_args", {}) if "class_path" in at else at


def usual_recipe(base: Base, form: Form, data: Path) -> Config:
    """Return a recipe that trains well within a minute, on data of a form."""
    arguments: Config = {"draws_per_epoch": 12_800, "eval_draws": 1_000}
    if form == "patches":
        source = part("PatchDataModule", file=str(data / "patches.npz"), **arguments)
    elif form == "usual" and base == "scenes":
        source = part("SceneDataModule", num_scenes=1_000, **arguments)
    else:
        source = part("BoxDataModule", **arguments)
        own: Config = {"root": str(data), "reading": {"allow_outside": True}}
        if form == "usual":
            splits = {"train": "ImageSets/Main/trainval.txt", "test": "ImageSets/Main/test.txt"}
            own = {"root": str(BCCD), "classes": ["RBC"], "min_size": 20, "splits": splits}
        if form == "proposals":
            own |= {"proposals": "proposals.csv", "matching": {"several": True, "min_iou": 0.1}}
            own["reading"] = {"allow_outside": True, "annotations": "boxes.csv"}
        source["init_args"] |= own
    backbone = part("ShallowConvNet", channels=[8, 16, 32], fc=[64])
    return {
        "model": part("BoxRegressor", backbone=backbone),
        "data": source,
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1},
    }


def plant(faults: Sequence[Planted], base: Base, folder: Path) -> Case:
    """Return the recipe that some faults are planted in together.

    Args:
        faults: One, or several.
        base: What the pictures are.
        folder: Where `write_data` puts the data, healthy and altered.
    """
    form = _form_of(faults)
    healthy, planted = (usual_recipe(base, form, folder / name) for name in ("healthy", "planted"))
    for fault in faults:
        healthy = changed(healthy, fault.healthy)
    for fault in faults:
        planted = changed(changed(planted, fault.healthy), _of_base(fault.options, base))
    keys = [key for fault in faults for key in fault.options]
    keys += ["data.file" if form == "patches" else "data.root"] * (form != "usual")
    return Case(planted, healthy, {key: value_in(healthy, key) for key in keys})


def _form_of(faults: Sequence[Planted]) -> Form:
    forms = {fault.form for fault in faults} - {"usual"}
    assert len(forms) <= 1, "these faults need data of different forms"
    return forms.pop() if forms else "usual"


def _of_base(options: Options, base: Base) -> Options:
    return {
        key: value[base] if isinstance(value, dict) and base in value else value
        for key, value in options.items()
    }


def write_data(faults: Sequence[Planted], base: Base, folder: Path) -> None:
    """Write data of their own that some faults need, below `healthy` and `planted`.

    Args:
        faults: Those that are planted together.
        base: What the pictures are.
        folder: A new one.
    """
    if (form := _form_of(faults)) == "usual":
        return
    boxes = READ[base]()
    for few in {fault.train_pictures for fault in faults if fault.train_pictures}:
        boxes = fewer(boxes, few)
    if form == "proposals":
        boxes = with_proposals(boxes)
    write_boxes(boxes, folder / "healthy")
    data: Boxes | Patches = boxes
    if form == "patches":
        data = cut_patches(folder / "healthy")
        write_patches(data, folder / "healthy")
    for number, fault in enumerate(faults):
        if fault.alter:
            data = fault.alter(data, np.random.default_rng(number))
    if isinstance(data, Patches):
        write_patches(data, folder / "planted")
    else:
        write_boxes(data, folder / "planted")


LINEAR = {"model.head": part("LinearHead")}
SQUARED = {"model.head": part("LinearHead", loss=part("L2Loss"))}
PLAIN = {"model.backbone.batch_norm": False}


def adamw(lr: float = 3e-3, weight_decay: float = 0.1) -> Config:
    return part("torch.optim.AdamW", lr=lr, weight_decay=weight_decay)


def sgd(lr: float, weight_decay: float = 0.0) -> Config:
    return part("torch.optim.SGD", lr=lr, momentum=0.9, weight_decay=weight_decay)


FAULTS = (
    # Labels.
    Planted(
        "boxes-xy-exchanged", "labels", "tune",
        "x and y are exchanged in the boxes",
        ("axes_exchanged",), form="files", alter=exchange_axes,
    ),
    Planted(
        "offsets-xy-exchanged", "labels", "held_out",
        "x and y are exchanged in the offsets of patches",
        ("axes_exchanged",), form="patches", alter=exchange_offsets,
    ),
    Planted(
        "offsets-from-object-to-patch", "labels", "tune",
        "the sign of all offsets is wrong",
        ("sign_wrong",), form="patches", alter=turn_sign(1.0),
    ),
    Planted(
        "boxes-mirrored", "labels", "held_out",
        "all boxes are mirrored, the pictures are not",
        ("sign_wrong",), form="files", alter=mirror_boxes(1.0),
    ),
    Planted(
        "boxes-mirrored-in-part", "labels", "tune",
        "the boxes of 30 % of the pictures are mirrored",
        ("flipped_part",), form="files", alter=mirror_boxes(0.3),
    ),
    Planted(
        "offsets-signs-in-part", "labels", "held_out",
        "the sign of the offsets is wrong in 30 % of the pictures",
        ("flipped_part",), form="patches", alter=turn_sign(0.3),
    ),
    Planted(
        "boxes-of-other-pictures", "labels", "tune",
        "the annotations are shuffled among the pictures",
        ("labels_shuffled",), form="files", alter=exchange_pictures,
    ),
    Planted(
        "offsets-shuffled", "labels", "held_out",
        "the offsets are shuffled",
        ("labels_shuffled",), form="patches", alter=shuffle_offsets,
    ),
    Planted(
        "offsets-one-based", "labels", "tune",
        "offsets are counted from 1",
        ("labels_off_by_constant",), form="patches", alter=move_offsets(1.0),
    ),
    Planted(
        "offsets-half-a-pixel", "labels", "held_out",
        "offsets are off by half a pixel of a picture that was enlarged three times",
        ("labels_off_by_constant",), form="patches", alter=move_offsets(-1.5),
    ),
    Planted(
        "boxes-of-smaller-pictures", "labels", "held_out",
        "the annotations are those of pictures of three quarters of the size",
        ("other_picture_size",), form="files", alter=of_smaller_pictures,
    ),
    Planted(
        "patches-labelled-twice", "labels", "held_out",
        "identical pictures have different labels",
        ("contradicting_labels",), form="patches", alter=label_again,
    ),
    Planted(
        "proposals-are-the-truth", "labels", "tune",
        "targets are constant: the proposals are the annotations",
        ("constant_targets",), form="proposals", alter=propose_the_truth,
    ),
    Planted(
        "offsets-noisy", "labels", "tune",
        "labels have a noise of 4 px",
        ("label_noise",), form="patches", alter=add_label_noise,
    ),
    # Crops.
    Planted(
        "context-cut-away", "crops", "tune",
        "the context is so small that the object is cut away",
        ("context_too_small",),
        {"data.crop.context": 1.0, "data.jitter": part("UniformJitter", shift=27.0)},
        {"data.crop.context": 2.7, "data.jitter": part("UniformJitter", shift=10.0)},
    ),
    Planted(
        "object-of-four-pixels", "crops", "tune",
        "the context is so wide that the object is a few pixels wide",
        ("object_too_small",),
        {"data.crop.context": 10.0, "data.jitter": part("UniformJitter", shift=0.75)},
        {"data.crop.context": 1.5, "data.jitter": part("UniformJitter", shift=5.0)},
    ),
    Planted(
        "crops-of-eight-pixels", "crops", "held_out",
        "crops are of 8 pixels, the object is 5 pixels wide",
        ("object_too_small",), {"data.crop.size": 8}, {"model.backbone.channels": [16, 32]},
    ),
    Planted(
        "pictures-turned-by-exif", "crops", "tune",
        "crops come from the wrong place: EXIF turns the pictures, not the boxes",
        ("crops_from_elsewhere",), form="files", alter=turn_by_exif,
    ),
    Planted(
        "cut-with-xy-exchanged", "crops", "held_out",
        "crops come from the wrong place: the cut takes x for y",
        ("crops_from_elsewhere",),
        {"data.class_path": {
            "scenes": mine("ScenesElsewhere")["class_path"],
            "bccd": mine("BoxesElsewhere")["class_path"],
        }},
    ),
    Planted(
        "crops-mirrored-alone", "crops", "tune",
        "augmentation mirrors crops without their labels",
        ("augmentation_moves_labels",), {"model.preprocess": mine("MirroredCrops")},
    ),
    Planted(
        "crops-shaken", "crops", "held_out",
        "augmentation moves crops by up to 6 px without their labels",
        ("augmentation_moves_labels",),
        {"data.class_path": {
            "scenes": mine("ShakenScenes")["class_path"],
            "bccd": mine("ShakenBoxes")["class_path"],
        }},
    ),
    Planted(
        "crops-drowned-in-noise", "crops", "tune",
        "augmentation destroys the object by noise",
        ("augmentation_destroys",), {"data.augment.noise": 3.0},
    ),
    Planted(
        "crops-erased", "crops", "held_out",
        "augmentation erases the object",
        ("augmentation_destroys",), {"model.preprocess": mine("ErasedCrops")},
    ),
    Planted(
        "normalised-twice", "crops", "held_out",
        "crops are divided by 255 twice",
        ("wrong_normalisation",), {"model.preprocess": mine("TwiceNormalised")},
    ),
    Planted(
        "statistics-of-bytes", "crops", "tune",
        "crops are centred and scaled by another set's statistics",
        ("wrong_normalisation",), {"model.preprocess": mine("OtherStatistics")},
    ),
    Planted(
        "proposals-nearer-in-training", "crops", "tune",
        "training proposals are off by 1 px, those of validation and test by 5 px",
        ("train_val_differ",), form="proposals", alter=propose_nearer_in_training,
    ),
    Planted(
        "training-pictures-inverted", "crops", "held_out",
        "training and validation differ in domain: the training pictures are inverted",
        ("train_val_differ",), form="files", alter=invert_training_pictures,
    ),
    Planted(
        "test-of-training-pictures", "crops", "held_out",
        "a leak: the test pictures are those of the training",
        ("leak",), form="files", alter=leak_training_pictures, train_pictures=20,
    ),
    # Targets and head.
    Planted(
        "targets-unscaled", "targets_head", "tune",
        "targets are unscaled, beside weight decay",
        ("unscaled_targets",), {"model.codec": part("DeltaCodec")},
        SQUARED | {"model.optimizer": sgd(0.01, 0.01)},
    ),
    Planted(
        "targets-unscaled-adam", "targets_head", "held_out",
        "targets are unscaled, beside a penalty of the weights",
        ("unscaled_targets",), {"model.codec": part("DeltaCodec")},
        SQUARED | {"model.regularizers": [part("L2Penalty", strength=0.03)]},
    ),
    Planted(
        "output-rectified", "targets_head", "tune",
        "the output is rectified",
        ("bounded_output",), {"model.head.activation": "relu"}, LINEAR,
    ),
    Planted(
        "output-bounded", "targets_head", "held_out",
        "the output is bounded by 1, targets reach 5",
        ("bounded_output",), {"model.head": mine("BoundedHead")},
        LINEAR | {"model.codec": part("PixelCodec")},
    ),
    Planted(
        "bins-too-narrow", "targets_head", "tune",
        "the bins reach 1 px, the shifts 5 px",
        ("bins_too_narrow",), {"model.head": part("BinHead", max_shift=1.0)},
    ),
    Planted(
        "bins-too-coarse", "targets_head", "held_out",
        "the bins are 6 px wide",
        ("bins_too_coarse",),
        {"model.head": part("BinHead", bin_width=6.0, labels=part("OneHotLabels"))},
    ),
    Planted(
        "decoder-forgets-the-scale", "targets_head", "tune",
        "the codec decodes by another scale than it encodes by",
        ("wrong_decoder",), {"model.codec": mine("ForgetfulCodec")},
    ),
    Planted(
        "decoder-forgets-the-margin", "targets_head", "held_out",
        "the decoder takes the first bin for another offset than the labels do",
        ("wrong_decoder",), {"model.head": part("BinHead", decoder=mine("ForgetfulDecoder"))},
    ),
    # Network.
    Planted(
        "pooled-over-the-crop", "network", "tune",
        "global pooling loses the position",
        ("position_lost",), {"model.backbone.global_pool": True},
        {"model.backbone.channels": [16], "model.backbone.kernel": 5},
    ),
    Planted(
        "a-stride-too-much", "network", "held_out",
        "strides and pooling lose the position",
        ("position_lost",),
        {"model.backbone.channels": [8, 16, 32, 4, 4], "model.backbone.downsample": "max"},
    ),
    Planted(
        "kernels-of-one-pixel", "network", "held_out",
        "the receptive field is smaller than the object",
        ("receptive_field_small",), {"model.backbone.kernel": 1},
        {
            "model.backbone.fc": [],
            "model.backbone.downsample": ["stride", "stride", "none"],
            "model.head": part("SoftArgmaxHead"),
        },
    ),
    Planted(
        "one-convolution", "network", "tune",
        "the receptive field is smaller than the object",
        ("receptive_field_small",),
        {"model.backbone.channels": [16], "model.backbone.downsample": "stride"},
        {
            "model.backbone.fc": [],
            "model.backbone.downsample": ["stride", "stride", "none"],
            "model.head": part("SoftArgmaxHead"),
        },
    ),
    Planted(
        "frozen-at-random", "network", "tune",
        "the backbone is frozen at random",
        ("frozen_weights",),
        {"model.backbone.class_path": mine("FrozenConvNet")["class_path"]},
    ),
    Planted(
        "begun-at-zero", "network", "held_out",
        "all weights begin at zero",
        ("bad_init", "dead_units"), {"model.backbone.init": part("ZeroInit")}, PLAIN,
    ),
    Planted(
        "units-dead", "network", "tune",
        "the units are dead: their biases begin far below zero",
        ("dead_units",), {"model.backbone.init": part("HeInit", bias=-10.0)}, PLAIN,
    ),
    Planted(
        "begun-too-small", "network", "held_out",
        "the initialisation kills the signal",
        ("bad_init",), {"model.backbone.init": part("NormalInit", std=0.001)}, PLAIN,
    ),
    Planted(
        "batches-of-two", "network", "tune",
        "batch norm sees batches of two",
        ("tiny_batch_norm",), {"data.batch_size": 2, "data.draws_per_epoch": 2_560},
    ),
    Planted(
        "dropout-before-the-output", "network", "held_out",
        "dropout stands before a squared error",
        ("dropout_before_output",), {"model.backbone.dropout": 0.97},
        SQUARED | {"model.backbone.fc": []},
    ),
    # Optimisation.
    Planted(
        "rate-too-large", "optimisation", "tune",
        "the learning rate is far beyond the limit of stability",
        ("lr_too_large",), {"model.optimizer": adamw(lr=1.0)},
    ),
    Planted(
        "rate-too-small", "optimisation", "tune",
        "the learning rate is a thousand times too small",
        ("lr_too_small",), {"model.optimizer": adamw(lr=3e-6)},
    ),
    Planted(
        "rate-too-small-sgd", "optimisation", "held_out",
        "the learning rate is a thousand times too small",
        ("lr_too_small",), {"model.optimizer": sgd(1e-5)},
        LINEAR | {"model.optimizer": sgd(0.01)},
    ),
    Planted(
        "decay-too-strong", "optimisation", "tune",
        "weight decay outweighs the gradient of the data",
        ("decay_too_strong",), {"model.optimizer": adamw(weight_decay=100.0)},
    ),
    Planted(
        "penalty-too-strong", "optimisation", "held_out",
        "the penalty of the weights outweighs the gradient of the data",
        ("decay_too_strong",), {"model.regularizers": [part("L2Penalty", strength=3.0)]},
    ),
    Planted(
        "schedule-ends-at-once", "optimisation", "tune",
        "the schedule ends before the run begins",
        ("schedule_ends_early",), {"model.schedule": mine("EndsEarly")},
    ),
    Planted(
        "schedule-of-epochs-by-steps", "optimisation", "held_out",
        "the schedule ends early: it decays at every step",
        ("schedule_ends_early",), {"model.schedule": mine("DecaysEachStep")},
    ),
    Planted(
        "fifteen-steps", "optimisation", "held_out",
        "there are too few steps",
        ("too_few_steps",), {"data.draws_per_epoch": 1_920, "trainer.max_epochs": 1},
    ),
)  # fmt: skip

PAIRS = (
    ("boxes-xy-exchanged", "schedule-ends-at-once"),
    ("offsets-from-object-to-patch", "output-rectified"),
    ("boxes-mirrored-in-part", "rate-too-small"),
    ("offsets-signs-in-part", "bins-too-narrow"),
    ("offsets-one-based", "pooled-over-the-crop"),
    ("pictures-turned-by-exif", "rate-too-large"),
    ("crops-mirrored-alone", "decay-too-strong"),
    ("object-of-four-pixels", "units-dead"),
    ("frozen-at-random", "bins-too-coarse"),
    ("targets-unscaled", "dropout-before-the-output"),
)
"""Faults that are planted two at a time."""


class Healthy(NamedTuple):
    """A recipe with nothing wrong.

    Attributes:
        name: Its own.
        arguments: Of the command; `{shared}` is where real data lie, `{folder}` the data it has
            written.
        write: Writes these.
    """

    name: str
    arguments: tuple[str, ...]
    write: Callable[[Path], None] | None = None


def _write_shifted(folder: Path) -> None:
    write_boxes(READ["scenes"](), folder)
    write_patches(cut_patches(folder), folder)


def _write_margins(folder: Path) -> None:
    write_boxes(READ["scenes"](), folder)
    write_patches(cut_patches(folder, margin=5), folder, shifted=False)


def _write_200(folder: Path) -> None:
    write_boxes(only(READ["bccd"](), 200), folder)


_PATCHES = ("--model=BoxRegressor", "--data=PatchDataModule", "--data.file={folder}/patches.npz")
_SCENES = ("-c", "preset:quickstart")

HEALTHY = (
    Healthy("bccd", ("-c", "preset:bccd", "--data.root={shared}/data/bccd")),
    Healthy("rbc", ("-c", "preset:rbc", "--data.root={shared}/data/rbc")),
    Healthy("deeppcb", ("-c", "preset:deeppcb", "--data.root={shared}/data/deeppcb")),
    Healthy("scenes-bright", _SCENES),
    Healthy("scenes-polar", (*_SCENES, "--data.kind=polar")),
    Healthy("scenes-texture", (*_SCENES, "--data.kind=texture")),
    Healthy("patches-shifted", _PATCHES, _write_shifted),
    Healthy("patches-with-margin", _PATCHES, _write_margins),
    Healthy("ridge", ("--model=RidgeRegressor", "--data=SceneDataModule")),
    Healthy("scaled-l1", (*_SCENES, "--model.head=LinearHead", "--model.head.loss=L1Loss")),
    Healthy("four-targets", (*_SCENES, "--data.num_targets=4")),
    Healthy(
        "200-boxes",
        (
            "--model=BoxRegressor",
            "--data=BoxDataModule",
            "--data.root={folder}",
            "--data.reading.allow_outside=true",
        ),
        _write_200,
    ),
    Healthy(
        "alexnet",
        (
            *("-c", "preset:alexnet_fc6_ridge", "--data.root={shared}/data/deeppcb"),
            *("--data.splits.test_groups=[group77000,group90100,group92000]",),
            *("--data.draws_per_epoch=4000", "--data.eval_draws=500"),
        ),
    ),
)
"""In none of them is a fault to be named."""


class Answer(NamedTuple):
    """What the instrument said of a recipe.

    Attributes:
        names: The planted faults; none for a healthy recipe.
        base: What the pictures are; the recipe's name where it is healthy.
        half: Of the first fault.
        ranks: Where each planted cause stands among those named, from 1; None where it isn't.
        causes: What was named, the most probable first.
        code: Of the command.
        seconds: How long it took.
    """

    names: tuple[str, ...]
    base: str
    half: str
    ranks: tuple[int | None, ...]
    causes: tuple[str, ...]
    code: int
    seconds: float


class Said(NamedTuple):
    """What one diagnosis said: its causes by probability, the exit code, and how long it took."""

    causes: tuple[str, ...]
    code: int
    seconds: float


def rank_of(accepted: Sequence[str], causes: Sequence[str]) -> int | None:
    """Return at which place a cause is named first, from 1; None where it isn't."""
    return next((at for at, name in enumerate(causes, 1) if name in accepted), None)


QUICKLY = ("--minutes=0", "--steps=150")
"""The checks and one short training alone."""


def diagnose(arguments: Sequence[str], folder: Path) -> Said:
    """Have a recipe diagnosed, without training its cure."""
    runs, began = folder / "runs", time.monotonic()
    code = command(["diagnose", *arguments, f"--runs={runs}", "--name=run", *QUICKLY])
    found = runs / "run" / "diagnosis.json"
    causes = json.loads(found.read_text())["causes"] if found.exists() else []
    names = tuple(cause["name"] for cause in causes)
    return Said(names, code, round(time.monotonic() - began, 1))


def answer_to(faults: Sequence[Planted], base: Base, folder: Path) -> Answer:
    """Plant faults together, and have the recipe diagnosed."""
    folder.mkdir(parents=True)
    write_data(faults, base, folder)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(plant(faults, base, folder).config, sort_keys=False))
    said = diagnose(["-c", str(config)], folder)
    ranks = tuple(rank_of(fault.accepted, said.causes) for fault in faults)
    return Answer(tuple(fault.name for fault in faults), base, faults[0].half, ranks, *said)


def answer_to_healthy(recipe: Healthy, folder: Path) -> Answer:
    """Have a healthy recipe diagnosed."""
    folder.mkdir(parents=True)
    if recipe.write:
        recipe.write(folder)
    words = [word.format(shared=SHARED, folder=folder) for word in recipe.arguments]
    return Answer((), recipe.name, "", (), *diagnose(words, folder))


def trained(config: Config, folder: Path, name: str, judge: Config | None = None) -> float | None:
    """Train a recipe, and return its error on the test as a fraction of the box.

    Args:
        config: The recipe.
        folder: Where the run goes.
        name: Of the run.
        judge: The data to test on, where those of the recipe aren't to be trusted.

    Returns:
        None where the command doesn't end well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    runs = f"--runs={folder / 'runs'}"
    if command(["fit", "-c", str(written), runs, f"--name={name}"]):
        return None
    if judge is not None:
        written.write_text(yaml.safe_dump({"data": judge, "trainer": config["trainer"]}))
        run, name = folder / "runs" / name, f"{name}-judged"
        words = ["-c", str(written), f"--ckpt_path={run}", runs, f"--name={name}"]
        if command(["test", *words]):
            return None
    metrics = json.loads((folder / "runs" / name / "metrics.json").read_text())
    return float(metrics["test/error_fraction"])


def harm_of(fault: Planted, base: Base, folder: Path) -> tuple[float | None, float | None]:
    """Return the error of a recipe as it should be, and with the fault, both on healthy data."""
    write_data([fault], base, folder)
    case = plant([fault], base, folder)
    judge = case.healthy["data"] if fault.form != "usual" else None
    cured = trained(changed(case.config, case.cure), folder, "cured")
    return cured, trained(case.config, folder, "planted", judge)


def main(args: Sequence[str] | None = None) -> int:
    """Plant the faults that are asked for, and tell at which rank each is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", choices=list(READ), help="pictures; all by default")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults, or healthy recipes")
    parser.add_argument("--half", choices=["tune", "held_out"], help="both by default")
    parser.add_argument("--pairs", action="store_true", help="ten pairs instead of single faults")
    parser.add_argument("--healthy", action="store_true", help="recipes with nothing wrong instead")
    parser.add_argument(
        "--train", action="store_true", help="train each, cured and planted, instead of a diagnosis"
    )
    parser.add_argument(
        "--cures", action="store_true", help="apply the first cure proposed for each, by itself"
    )
    parser.add_argument("--out", type=Path, help="JSON file of all answers")
    asked = parser.parse_args(args)
    bases = [asked.base] if asked.base else list(READ)
    chosen = [
        fault
        for fault in FAULTS
        if fault.name in (asked.only or [fault.name]) and fault.half == (asked.half or fault.half)
    ]
    if asked.cures:
        from tests.insight.planted_cures import tell_cures

        tell_cures(chosen, bases, asked.out)
        return 0
    if asked.train:
        _tell_harm(chosen, bases)
        return 0
    by_name = {fault.name: fault for fault in FAULTS}
    together = [[by_name[name] for name in pair] for pair in PAIRS]
    answers = []
    if asked.healthy:
        for recipe in HEALTHY:
            if recipe.name in (asked.only or [recipe.name]):
                with tempfile.TemporaryDirectory() as folder:
                    answers.append(answer_to_healthy(recipe, Path(folder) / "case"))
                _tell(answers[-1])
    else:
        for base in bases:
            for faults in together if asked.pairs else [[fault] for fault in chosen]:
                with tempfile.TemporaryDirectory() as folder:
                    answers.append(answer_to(faults, base, Path(folder) / "case"))
                _tell(answers[-1])
    _sum_up(answers)
    if asked.out:
        asked.out.write_text(json.dumps([answer._asdict() for answer in answers], indent=1))
    return 0


def _tell_harm(faults: Sequence[Planted], bases: Sequence[Base]) -> None:
    for base in bases:
        for fault in faults:
            with tempfile.TemporaryDirectory() as folder:
                cured, planted = harm_of(fault, base, Path(folder))
            errors = [
                "no end" if error is None else f"{100 * error:.2f} %" for error in (cured, planted)
            ]
            words = f"cured {errors[0]}, as it is {errors[1]}"
            _say(f"{base:6} {fault.name:28} error as a share of the box: {words}")


def _tell(answer: Answer) -> None:
    what = " + ".join(answer.names) or "healthy"
    ranks = ", ".join("-" if rank is None else str(rank) for rank in answer.ranks)
    named = ", ".join(answer.causes[:3]) or "nothing"
    place = f"{answer.base:12} {answer.half:8} {what:32}"
    _say(f"{place} rank {ranks or '-'}  code {answer.code}  {answer.seconds:g} s  {named}")


def _sum_up(answers: Sequence[Answer]) -> None:
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        group = (answer.base, answer.half) if answer.names else ("healthy", "")
        groups.setdefault(group, []).append(answer)
    for (base, half), own in groups.items():
        first = sum(1 in answer.ranks for answer in own)
        near = sum(all(rank and rank <= 3 for rank in answer.ranks) for answer in own)
        quiet = sum(not answer.causes for answer in own)
        told = f"first in {first}, all among the first three in {near}, nothing named in {quiet}"
        _say(f"{base} {half}: {told} of {len(own)}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
