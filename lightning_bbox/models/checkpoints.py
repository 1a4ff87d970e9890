"""Checkpoints: read safely or refused, written whole, the best and the last of a run.

A model that is shared is a folder of weights in safetensors and a recipe in JSON; it is read as a
checkpoint is.
"""

import hashlib
import json
import os
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import make_folder, write_atomically
from lightning_bbox.core.recipes import Plain, class_path_of, flatten, with_public_paths
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.codecs import FULL_SCALE, OffsetSpec
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.trained_range import TrainedRange
from lightning_bbox.models.training.stopping import RunStopped

CHECKPOINT_KEY = "lightning_bbox"
"""Where a checkpoint keeps what its model must know of the data."""

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The files of a shared model."""

_OF_A_RUN = ("run", "training_set", "sums")
"""What a checkpoint says of its run alone."""
_PARTS = ("preprocess", "backbone", "head", "codec")
_RECIPE = {"class_path", "init_args"}
_UNSAID = {"head.per_class": False, "backbone.two_scales": False}
"""What parts were made with whose checkpoint doesn't say, as it is older than the option."""
_STATE = (
    *("loops", "callbacks", "optimizer_states", "lr_schedulers"),
    *("global_step", "pytorch-lightning_version"),
)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Load a checkpoint of ours, or a shared model, without running any code of its own.

    Raises:
        BadInput: There is no such file, or it isn't one of our checkpoints.
    """
    shared = Path(path).suffix == ".safetensors"
    checkpoint = _read_shared(Path(path)) if shared else _read_zip(path, map_location)
    ours: dict[str, Any] = checkpoint if isinstance(checkpoint, dict) else {}
    read_spec(ours, str(path))
    _refuse_incomplete(ours, str(path))
    return ours


def _read_zip(path: str | os.PathLike[str], map_location: str | torch.device) -> object:
    try:
        with ZipFile(path) as file:
            # torch 2.13 writes the checksums but doesn't compare them.
            damaged = file.testzip()
        checkpoint = torch.load(path, map_location, weights_only=True)
    except FileNotFoundError as error:
        msg = f"{path}: no such checkpoint; check its path"
        raise BadInput(msg) from error
    # A file that is none, was cut short, or holds code, makes torch raise any of many errors.
    except Exception as error:
        msg = f"{path}: can't be read as a checkpoint of lightning_bbox; give one that a run wrote"
        raise BadInput(msg) from error
    if damaged is not None:
        msg = f"{path}: is damaged (the checksum of {damaged} is wrong); give another checkpoint"
        raise BadInput(msg)
    return checkpoint


def _read_shared(path: Path) -> object:
    """Read a shared model's two files as the checkpoint they were made of."""
    config, remedy = path.with_name(CONFIG), "take both of its files from where it is shared"
    for each in (path, config):
        if not each.is_file():
            raise BadInput.at(str(each), "there is no such file of a shared model", remedy)
    try:
        told, content = json.loads(config.read_bytes()), path.read_bytes()
        digest = told["sha256"]
    except OSError as error:
        raise BadInput.unreadable(str(path.parent), error) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = "isn't what lightning_bbox wrote beside a model's weights"
        raise BadInput.at(str(config), problem, remedy) from error
    if hashlib.sha256(content).hexdigest() != digest:
        problem = f"isn't the file that {config} is of, or is damaged (its sha256 is another)"
        raise BadInput.at(str(path), problem, remedy)
    try:
        weights = safetensors.torch.load(content)
    except SafetensorError as error:
        raise BadInput.at(str(path), f"can't be read ({error})", remedy) from error
    return {CHECKPOINT_KEY: told.get(CHECKPOINT_KEY), "state_dict": weights}


def write_shared(checkpoint: dict[str, Any], folder: Path, option: str = "folder") -> None:
    """Write a checkpoint's model as a folder that holds no code and nothing of its run.

    Args:
        checkpoint: The checkpoint.
        folder: Where to write; it need not be there.
        option: What names the folder, for errors.

    Raises:
        BadInput: Such files are there already or can't be written, or the model holds something
            that isn't a tensor.
    """
    for name in (WEIGHTS, CONFIG):
        if (folder / name).exists():
            problem = f"holds a {name} already"
            raise BadInput.at(str(folder), problem, f"move it, or name another folder by {option}")
    weights = checkpoint["state_dict"]
    if others := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        msg = f"the model's {listed(others)} can't be shared; keep such a state in a tensor"
        raise BadInput(msg)
    # Each in memory of its own, as the format wants it, whatever layout it has here.
    alone = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
    content = safetensors.torch.save(alone, {"format": "pt"})
    told = checkpoint[CHECKPOINT_KEY].items()
    config = {
        "library_name": "lightning_bbox",
        "version": version("lightning_bbox"),
        "sha256": hashlib.sha256(content).hexdigest(),
        CHECKPOINT_KEY: {name: each for name, each in told if name not in _OF_A_RUN},
    }
    make_folder(folder, option)
    write_atomically(folder / WEIGHTS, content, option)
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode(), option)


def _refuse_incomplete(checkpoint: dict[str, Any], path: str) -> None:
    """Refuse a checkpoint without what rebuilds its model."""
    recipe, weights = checkpoint[CHECKPOINT_KEY].get("model"), checkpoint.get("state_dict")
    parts = [recipe.get(name) for name in _PARTS] if isinstance(recipe, dict) else [None]
    whole = all(isinstance(part, dict) and part.keys() == _RECIPE for part in parts)
    if not whole or not isinstance(weights, dict):
        msg = f"{path}: lacks what rebuilds its model; give a checkpoint as a run wrote it"
        raise BadInput(msg)


def read_spec(checkpoint: dict[str, Any], path: str = "the checkpoint") -> OffsetSpec:
    """Return what a checkpoint's model knows of its data.

    Raises:
        BadInput: The checkpoint, which goes by its path in the error, isn't one of ours.
    """
    try:
        plain = dict(checkpoint[CHECKPOINT_KEY]["spec"])
        classes = tuple(plain.pop("classes", ()))  # checkpoints of 0.1.0 have none
        plain.setdefault("white_level", FULL_SCALE)  # nor this: 16 bits were read so
        part = TiffPart(**plain.pop("part", {}))  # nor this: the first page was
        crop = dict(plain.pop("geometry"))
        crop.pop("supersample", None)  # of 0.2 and before; how crops are sampled is no option now
        geometry = CropGeometry(**crop)
        return OffsetSpec(geometry=geometry, classes=classes, part=part, **plain)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: wasn't written by lightning_bbox; give a checkpoint that a run of it wrote"
        raise BadInput(msg) from error


def recipe_in(checkpoint: dict[str, Any]) -> dict[str, Plain]:
    """Return what a checkpoint's model was made of, its classes by their public paths."""
    recipe = with_public_paths(checkpoint[CHECKPOINT_KEY]["model"])
    assert isinstance(recipe, dict)
    return recipe


def read_measured(
    checkpoint: dict[str, Any], path: str = "the checkpoint"
) -> tuple[Reliability | None, DisplacementLaw | None, TrainedRange | None]:
    """Return how a checkpoint's model errs, its law for few boxes, and the range it was trained on.

    Older ones have none of these, or not all.

    Raises:
        BadInput: What the checkpoint, which goes by its path in the error, says of them is neither.
    """
    ours = checkpoint[CHECKPOINT_KEY]
    reliability, law, trained = (ours.get(name) for name in ("reliability", "law", "range"))
    try:
        return (
            None if reliability is None else Reliability.from_plain(reliability),
            None if law is None else DisplacementLaw.from_plain(law),
            None if trained is None else TrainedRange.from_plain(trained),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: doesn't say how its model errs; give a checkpoint as a run wrote it"
        raise BadInput(msg) from error


def class_path_in(checkpoint: dict[str, Any]) -> str:
    """Return the path of the class that a checkpoint's model was of."""
    return str(checkpoint[CHECKPOINT_KEY].get("class", "lightning_bbox.BoxRegressor"))


def second_in(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a checkpoint says of its model's second stage, as of a model; None without one.

    Raises:
        BadInput: It lacks what rebuilds it.
    """
    ours = checkpoint[CHECKPOINT_KEY].get("second")
    if ours is None:
        return None
    second = {CHECKPOINT_KEY: ours, "state_dict": checkpoint.get("state_dict")}
    read_spec(second, "the checkpoint's second stage")
    _refuse_incomplete(second, "the checkpoint's second stage")
    return second


def drop_second(checkpoint: dict[str, Any]) -> None:
    """Leave a second stage out of a checkpoint whose first one is to be trained on."""
    checkpoint[CHECKPOINT_KEY].pop("second", None)
    state = checkpoint["state_dict"]
    for name in [name for name in state if name.startswith("second.")]:
        del state[name]


def refuse_other_class(checkpoint: dict[str, Any], kind: type) -> None:
    """Refuse to become a model of somebody's own class where its code would be left out.

    Raises:
        BadInput: The kind is neither the checkpoint's class nor derived from it.
    """
    named, own = class_path_in(checkpoint), {class_path_of(base) for base in kind.__mro__}
    if named not in own and not named.startswith("lightning_bbox."):
        msg = (
            f"the checkpoint's model is a {named}, and {kind.__name__} lacks what that does of its "
            f"own; set model to it, or load it by OffsetModel.load_from_checkpoint"
        )
        raise BadInput(msg)


def refuse_other_parts(recipe: dict[str, Plain], asked: dict[str, Plain]) -> None:
    """Refuse parts of a model that were asked for, where the checkpoint has others.

    Args:
        recipe: The checkpoint's model.
        asked: What was asked for by name; nothing is None.

    Raises:
        BadInput: They differ.
    """
    for name, part in asked.items():
        if part is None:
            continue
        here = flatten({name: part})
        unsaid = {key: value for key, value in _UNSAID.items() if key in here}
        trained = unsaid | flatten({name: recipe[name]})
        for key in [*here, *trained]:
            if trained.get(key) != here.get(key):
                msg = (
                    f"model.{key} is {trained.get(key)} in the checkpoint and {here.get(key)} in "
                    f"the configuration; leave model.{name} out, make them equal or train anew"
                )
                raise BadInput(msg)


def refuse_other_run(then: dict[str, Plain], now: dict[str, Plain]) -> None:
    """Refuse to go on where the order of samples, or the optimizer, would not be as then.

    Raises:
        BadInput: What the checkpoint says of its run isn't what this one is now.
    """
    for name, value in now.items():
        if then.get(name) != value:
            msg = (
                f"{name} is {then.get(name)} in the checkpoint and {value} now, so this run can't "
                f"go on; keep it, or begin a new run from its weights with --model.weights"
            )
            raise BadInput(msg)


def refuse_weights_alone(checkpoint: dict[str, Any], path: str = "the checkpoint") -> None:
    """Refuse to go on from a checkpoint that has no more than a model.

    Args:
        checkpoint: The checkpoint.
        path: How it goes in the error.

    Raises:
        BadInput: It doesn't say where its run stood.
    """
    if lacking := [name for name in _STATE if name not in checkpoint]:
        msg = (
            f"{path}: has no {listed(lacking)}, so a run can't go on from it; begin a new run from "
            f"its weights with --model.weights"
        )
        raise BadInput(msg)


def keep_average(checkpoint: dict[str, Any]) -> None:
    """Have a checkpoint of averaged weights say that the last step's are no other.

    Lightning's callback puts those in the place of the average wherever it reads a checkpoint, as a
    run that goes on needs; a test that follows training would measure them.

    Args:
        checkpoint: The checkpoint.
    """
    if "current_model_state" in checkpoint:
        checkpoint["current_model_state"] = checkpoint["state_dict"]


def take_weights(module: nn.Module, prefix: str, checkpoint: dict[str, Any]) -> None:
    """Take over the weights and buffers of a part of a checkpoint's model.

    Args:
        module: What takes them.
        prefix: Their names begin by it.
        checkpoint: The checkpoint.

    Raises:
        BadInput: They don't fit.
    """
    state = checkpoint["state_dict"]
    try:
        module.load_state_dict(
            {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        msg = f"its weights don't fit the configured model ({reason})"
        raise BadInput(msg) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place and rename them.

    Lightning's own way goes through the temporary folder, and a move between file systems can be
    cut short. Ours never leaves a broken file in place of the last good one.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: object = None,
    ) -> None:
        """Write a checkpoint whole or not at all."""
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        make_folder(Path(path).parent)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: object = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint of ours, without running any code of its own."""
        return read_checkpoint(path)


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint that a path means: a file is itself, a run's folder its best one.

    Where a run has none, as it was never validated, it is the last one. The folder of a shared
    model is its weights.
    """
    if not Path(path).is_dir():
        return Path(path)
    if (shared := Path(path) / WEIGHTS).is_file():
        return shared
    best, last = (Path(path) / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    return last if last.exists() and not best.exists() else best


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint that stands furthest in training, among those that can be read.

    Args:
        folder: The checkpoints of a run.

    Returns:
        Its path, the last one's where several stand equally far, or None where there is none; and
        why others could not be read.

    Raises:
        BadInput: There are checkpoints, but none can be read.
    """
    found, unread = [], []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            checkpoint = read_checkpoint(path)
            refuse_weights_alone(checkpoint, str(path))
            found.append((int(checkpoint["global_step"]), path.stem == "last", path))
        except BadInput as error:
            unread.append(str(error))
    if unread and not found:
        raise BadInput("; ".join(unread))
    return (max(found)[2] if found else None), unread


class RunCheckpoint(ModelCheckpoint):
    """Keep the best and the last checkpoint of a run, also of one that is stopped.

    Args:
        folder: Where `best.ckpt` and `last.ckpt` go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val/mae_px",
            save_last=True,
            save_on_exception=True,
            enable_version_counter=False,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the checkpoint that a run of this folder goes on from its last."""
        begun_from, last = trainer.ckpt_path, Path(str(self.dirpath)) / "last.ckpt"
        if begun_from is None or not trainer.is_global_zero:
            return
        own = Path(begun_from).resolve()
        if own.parent == last.parent.resolve() and own.name != last.name:
            write_atomically(last, own.read_bytes())

    def state_dict(self) -> dict[str, Any]:
        """Keep how good the best checkpoint is; where it lies is known."""
        return {"best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best checkpoint so far, if it lies here and can be read."""
        score = state_dict["best_model_score"]
        if score is None:
            return
        path = self.format_checkpoint_name({})
        try:
            read_checkpoint(path)
        except BadInput as error:
            rank_zero_warn(f"{error}; the best of the epochs to come takes its place")
            return
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = score
        self.best_k_models = {path: score}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best where it is better, and the last in any case."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last where nothing was saved, unless nothing is to be."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined] # Lightning sets it
            super().on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save where a run stands that was stopped between two steps, as last only.

        After any other exception weights may be half updated, and the last good checkpoint stays;
        Lightning would overwrite the best one too.
        """
        if isinstance(exception, RunStopped) and self._should_save_on_exception(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
