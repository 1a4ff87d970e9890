"""A second look: a model of its own, trained on the errors that the first one leaves.

It is a run like any other, in the folder `second` of the first one's: of the same model on the same
data, but for narrower proposals and crops of their own. Then both go into the first one's best
checkpoint.
"""

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.patches import PatchDataModule
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.checkpoints import (
    CHECKPOINT_KEY,
    AtomicCheckpointIO,
    read_checkpoint,
)
from lightning_bbox.models.training.stopping import RunStopped

_FOLDER = "second"
_LEVEL = 0.9  # share of the first look's errors that counts for how far the second one reaches
_MOST = 0.5  # of the first one's range: where that fails, it fails by any distance
_STOPPED = 128  # and the number of the signal: the exit code of a run that was stopped


@dataclass(frozen=True)
class SecondLook:
    """Have a second stage look again where the first one says that a box is.

    It learns from proposals that are off uniformly, some times as far as the first stage errs on
    validation pictures, which that has not seen; at most by half of what that was trained on.

    Args:
        context: Side of its crop boxes over the side of a box.
        widen: How many times as far it reaches as 90 % of the first stage's errors, so that what it
            expects is flat where these lie.
        max_epochs: Epochs of its training; as many as those of the first one by default.

    Raises:
        BadInput: It wouldn't reach beyond the errors.
    """

    context: float = 1.5
    widen: float = 2.5
    max_epochs: int | None = None

    def __post_init__(self) -> None:
        """Check the factor; the context is checked where crops are."""
        if not 1 <= self.widen <= 10:
            msg = f"second.widen is {self.widen}; choose one in 1..10, 2 to 3 are usual"
            raise BadInput(msg)

    def crop(self, first: CropGeometry) -> CropGeometry:
        """Return how its crops are cut: as those of the first stage, but for their context.

        Raises:
            BadInput: The context isn't one.
        """
        return replace(first, context=self.context)

    def reach(
        self, errors: Float[Tensor, "n t"], bounds: Float[Tensor, " t"]
    ) -> Float[Tensor, " t"]:
        """Return how far off its proposals are to be, at most.

        Args:
            errors: Magnitudes of the first stage's errors, in px and log size.
            bounds: How far off the proposals of the first stage were at most.
        """
        return torch.minimum(self.widen * torch.quantile(errors, _LEVEL, dim=0), _MOST * bounds)


def train_second(
    asked: SecondLook,
    model: OffsetModel,
    best: Path,
    folder: Path,
    config: dict[str, Any],
    run: Callable[[list[str]], int],
) -> None:
    """Train a second stage, and put it into a first one's checkpoint.

    Args:
        asked: What it is to be.
        model: The first stage, as its trainer left it.
        best: Its best checkpoint.
        folder: Its run's folder.
        config: Its run's configuration.
        run: Carries out a command, and returns its exit code.

    Raises:
        RunStopped: The training was stopped by a signal.
        BadInput: The training was refused, or failed.
    """
    model.restore(best)
    model.second = None  # that of an earlier time, where the run goes on
    own = folder / _FOLDER
    if (own / "config.yaml").is_file():
        code = run(["fit", f"--resume={own}"])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "second.yaml"
            content = _config_of(asked, model, config)
            write_atomically(file, encoded(yaml.safe_dump(content, sort_keys=False)))
            code = run(["fit", f"--config={file}", f"--runs={folder}", f"--name={_FOLDER}"])
    if code > _STOPPED:
        raise RunStopped(code - _STOPPED)
    if code:
        raise BadInput.at(str(own), "the second look wasn't trained", "see what was said above")
    model.look_twice(OffsetModel.load_from_checkpoint(own))
    _put_into(best, model)
    say(f"the second look is in {best} beside the first")


def refuse_second(asked: SecondLook, trainer: pl.Trainer, data: CropDataModule, kept: bool) -> None:
    """Refuse a second look where it can't be trained.

    Args:
        asked: What it is to be.
        trainer: Of the first one.
        data: What it trains on.
        kept: Whether its best checkpoint is kept.

    Raises:
        BadInput: There are several processes, no checkpoint, or crops are given as they are; or its
            own crops can't be.
    """
    asked.crop(data.geometry)
    if trainer.world_size > 1:
        msg = "second: is trained by one process; set trainer.devices to 1"
        raise BadInput(msg)
    if not kept:
        msg = "second: goes into the best checkpoint; leave trainer.enable_checkpointing true"
        raise BadInput(msg)
    if isinstance(data, PatchDataModule):
        msg = "second: needs whole pictures to cut again; patches are cut already, so leave it out"
        raise BadInput(msg)


def _config_of(asked: SecondLook, model: OffsetModel, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the second stage's run."""
    data = model.data
    assert model.spec is not None
    errors = model.validation_errors().abs()
    reach = asked.reach(errors, torch.tensor(model.spec.bounds))
    crop = asked.crop(data.geometry)
    shift = float(reach[:2].max()) * data.geometry.context / crop.context
    law = {"shift": round(shift, 3)}
    told = f"{shift:.2f} px of its own crops"
    if data.num_targets == 4:
        law["log_scale"] = round(float(reach[2:].max()), 4)
        told += f" and {law['log_scale']:.2f} in log size"
    say(
        f"a second look is trained on boxes off by up to {told}: {asked.widen:g} times as far as "
        f"90 % of the first look's errors on validation pictures, or half of its range"
    )
    kept = ("seed_everything", "trainer", "model", "data")
    content = {name: deepcopy(config[name]) for name in kept if name in config}
    content["trainer"]["max_epochs"] = asked.max_epochs or content["trainer"]["max_epochs"]
    options = content["data"]["init_args"]
    options["jitter"] = {"class_path": "lightning_bbox.UniformJitter", "init_args": law}
    options["crop"] = asdict(crop)
    if options.get("proposals"):
        options["proposals"] = None
    return content


def _put_into(best: Path, model: OffsetModel) -> None:
    """Write a checkpoint anew, with both stages and their calibration."""
    checkpoint = read_checkpoint(best)
    told: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(told)
    checkpoint[CHECKPOINT_KEY] |= told[CHECKPOINT_KEY]
    checkpoint["state_dict"] = told["state_dict"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, best)
