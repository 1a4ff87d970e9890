"""Checkpoints: read safely or refused, written whole, the best and the last of a run."""

import os
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_bbox.codecs import OffsetSpec
from lightning_bbox.crops import CropGeometry
from lightning_bbox.errors import BadInput
from lightning_bbox.files import write_atomically

CHECKPOINT_KEY = "lightning_bbox"
"""Where a checkpoint keeps what its model must know of the data."""


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Load a checkpoint of ours, without running any code of its own.

    Raises:
        BadInput: There is no such file, or it isn't one of our checkpoints.

    Examples:
        >>> read_checkpoint("nowhere.ckpt")
        Traceback (most recent call last):
        lightning_bbox.errors.BadInput: nowhere.ckpt: no such checkpoint; check its path
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location, weights_only=True)
    except FileNotFoundError as error:
        msg = f"{path}: no such checkpoint; check its path"
        raise BadInput(msg) from error
    except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError) as error:
        msg = f"{path}: can't be read as a checkpoint of lightning_bbox; give one that a run wrote"
        raise BadInput(msg) from error
    read_spec(checkpoint)
    return checkpoint


def read_spec(checkpoint: dict[str, Any]) -> OffsetSpec:
    """Return what a checkpoint's model knows of its data.

    Raises:
        BadInput: The checkpoint isn't one of ours.

    Examples:
        >>> spec = OffsetSpec(CropGeometry(), num_targets=2, max_shift=5.0, max_log_size=0.0)
        >>> from dataclasses import asdict
        >>> read_spec({"lightning_bbox": {"spec": asdict(spec)}}) == spec
        True
    """
    try:
        plain = dict(checkpoint[CHECKPOINT_KEY]["spec"])
        return OffsetSpec(**{**plain, "geometry": CropGeometry(**plain["geometry"])})
    except (KeyError, TypeError) as error:
        msg = f"this checkpoint wasn't written by lightning_bbox (no valid {error} in it)"
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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())


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

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save where the run stands, as last only: Lightning would overwrite the best one."""
        if self._should_save_on_exception(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
