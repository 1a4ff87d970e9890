"""Callbacks: the files of a run, its speed, and one plain line an epoch."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_bbox.core.files import encoded, make_folder, save_picture, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.core.recipes import flatten
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.geometry.boxes import box_sizes
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.training.divergence import BAD_STEP, OUTCOME, DivergedError
from lightning_bbox.reports.sheets import (
    draw_data,
    draw_results,
)
from lightning_bbox.reports.tables import format_harm, format_metrics

CONFIG = "config.yaml"
"""The file of a run that holds its settings."""

Settings = dict[str, bool | int | float | str]
"""What makes a run what it is: options of a command by their dotted names, without None."""

_NO_SETTINGS = (
    "devices",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "logger",
)
"""What of the trainer's options changes where and how a run is seen, but not what it finds."""

_RESULTS = (OUTCOME, BAD_STEP, "metrics.json", "test_errors.npz", "crops.png")
_HEADER = "# lightning.pytorch=="


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return what of a configuration makes a run what it is.

    Args:
        config: Trainer, model, data and seed, as a run's `config.yaml` has them.

    Examples:
        >>> settings_of({"trainer": {"max_steps": 9, "devices": 1}, "seed_everything": 0})
        {'seed_everything': 0, 'trainer.max_steps': 9}
    """
    trainer = config.get("trainer") or {}
    kept = {name: value for name, value in trainer.items() if name not in _NO_SETTINGS}
    own = {key: config.get(key) for key in ("seed_everything", "model", "data", "second")}
    settings = flatten(own | {"trainer": kept})
    settings.pop("data.seed", None)  # that of everything, which a saved file alone doesn't repeat
    return settings


def is_of_a_run(config: Path) -> bool:
    """Tell whether a run wrote a configuration, not a person.

    Args:
        config: The file.
    """
    with config.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER.encode()


def list_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """List the boxes that were skipped in the folder of a run, and say so; nothing where none was.

    Args:
        folder: The folder.
        skipped: A sentence for each.
    """
    if skipped:
        write_atomically(folder / "skipped.txt", encoded("\n".join(skipped) + "\n"))
        say(f"skipped boxes are listed in {folder / 'skipped.txt'}")


class RunReport(pl.Callback):
    """Write what a run leaves behind, and print the table at its end.

    `data.png` and the list of skipped boxes before training; `crops.png`, `metrics.json` and the
    error of each draw (`test_errors.npz`) after the test; `outcome.json` and `bad_step.pt` where a
    run diverges. Results say with which settings they were made.

    Args:
        folder: The run's folder.
        settings: What makes the run what it is (see `settings_of`).
    """

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.folder, self._settings = folder, settings or {}
        self._trained_by = self._settings
        self.metrics: dict[str, Any] = {}
        self._seconds = 0.0
        self._since = 0.0
        self._said = False
        self._curve: list[tuple[int, float]] = []
        self._fraction_curve: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Keep time and curve so far, so that a resumed run has all of them."""
        return {
            "seconds": self._seconds + time.monotonic() - self._since,
            "curve": self._curve[:],
            "fraction_curve": self._fraction_curve[:],
            "settings": self._trained_by,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds = state_dict["seconds"]
        self._curve = list(state_dict.get("curve", []))
        self._fraction_curve = list(state_dict.get("fraction_curve", []))
        self._trained_by = state_dict.get("settings", {})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the model is going to see."""
        data = _offset_model(pl_module).data
        if trainer.is_global_zero:
            lines = self._say_what_is_there(data)
            device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
            say(f"training on {device} in {trainer.precision}")
            save_picture(self.folder / "data.png", draw_data(data, "\n".join(lines)))
            say(f"what the model sees: {self.folder / 'data.png'}")
        # Lightning comes next, with its own answer to SIGTERM until training begins: a process that
        # waits for the others would go out of step with them. So none waits there for long.
        trainer.strategy.barrier("data.png")
        self._since = time.monotonic()

    @rank_zero_only
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove results of other steps or settings than those that are coming."""
        self._trained_by = self._settings
        for name in _RESULTS:
            (self.folder / name).unlink(missing_ok=True)

    @rank_zero_only
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what a trained model is measured on; after a fit it has been said."""
        if not self._said:
            self._say_what_is_there(_offset_model(pl_module).data)

    on_test_start = on_validation_start

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the results where validation is all that was asked for."""
        metrics = _offset_model(pl_module).evaluations["val"].metrics
        if trainer.state.fn == "fit":
            self._curve.append((trainer.global_step, metrics["mae_px"]))
            self._fraction_curve.append((trainer.global_step, metrics["error_fraction"]))
        else:
            say("\n" + format_metrics(metrics, [], title="validation"))

    def _say_what_is_there(self, data: CropDataModule) -> list[str]:
        """Describe the data, and list the boxes that were skipped."""
        self._said = True
        make_folder(self.folder)
        lines = [*data.source.notes, *data.describe()]
        say("\n".join(lines))
        if data.source.law is not None:
            data.source.law.save(self.folder / "law.json")
            say(f"the law of the proposals: {self.folder / 'law.json'}")
        list_skipped(self.folder, data.source.skipped)
        return lines

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long training took, also where it had only to be tested."""
        seconds = self.state_dict()["seconds"]
        self.metrics |= {"train_seconds": seconds, "train_steps": trainer.global_step}
        self.metrics |= {"val/curve": self._curve, "val/fraction_curve": self._fraction_curve}
        geometry = _offset_model(pl_module).data.geometry
        self.metrics |= {"px_per_side": geometry.px_per_delta, "square": geometry.square}

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note where a run diverged, and keep the step; the process whose step it was does."""
        if not isinstance(exception, DivergedError):
            return
        if exception.kept is not None:
            file = BytesIO()
            torch.save(exception.kept, file)
            write_atomically(self.folder / BAD_STEP, file.getvalue())
            say(
                f"its weights and crops are kept: `lightning-bbox diagnose --replay "
                f"{self.folder / BAD_STEP}` says where the first value that isn't finite arises"
            )
        if trainer.is_global_zero:
            outcome = {"status": "diverged", "step": exception.step, "detail": str(exception)}
            outcome |= {"settings": self._trained_by}
            write_atomically(self.folder / OUTCOME, json.dumps(outcome).encode())

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results and show them."""
        model = _offset_model(pl_module)
        evaluation = model.evaluations["test"]
        make_folder(self.folder)
        self.metrics |= {f"test/{name}": value for name, value in evaluation.metrics.items()}
        self.metrics["settings"] = self._trained_by
        self.metrics["test/rows"] = [
            {"kind": kind, "name": name, "draws": count, "mae_px": mae}
            for kind, name, count, mae in evaluation.rows
        ]
        self.metrics["test/harm"] = [row._asdict() for row in evaluation.harm]
        self.metrics["data"] = _facts_of(model.data)
        write_atomically(self.folder / "test_errors.npz", _errors_file(model.data, evaluation))
        write_atomically(self.folder / "metrics.json", json.dumps(self.metrics, indent=2).encode())
        (self.folder / OUTCOME).unlink(missing_ok=True)
        save_picture(self.folder / "crops.png", draw_results(model.data, evaluation))
        shown = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        curves = f"curves and pictures     tensorboard --logdir {self.folder.parent}\n" * shown
        say(
            f"\n{format_metrics(evaluation.metrics, evaluation.rows)}\n"
            f"\n{format_harm(evaluation.harm)}\n\n"
            f"worst and random crops  {self.folder / 'crops.png'}\n"
            f"run folder              {self.folder}\n{curves}"
        )


def _facts_of(data: CropDataModule) -> dict[str, Any]:
    """Return how many pictures and boxes each split has, and how the proposals are off."""
    source = data.source
    facts: dict[str, Any] = {
        role: {
            "pictures": len(set(items.image_index.tolist())),
            "groups": len(set(items.clusters.tolist())),
            "boxes": len(items),
            "skipped": len(items.skipped),
            "classes": dict(Counter(source.classes[label] for label in items.labels.tolist())),
        }
        for role, items in source.splits.items()
    }
    given = any(items.proposals is not None for items in source.splits.values())
    law = source.law.words() if source.law else "too few to tell how they are off"
    told = {name: each for name, each in vars(data.jitter).items() if isinstance(each, int | float)}
    drawn = ", ".join(f"{name}={each}" for name, each in told.items() if name[0] != "_")
    jitter = f"{type(data.jitter).__name__}({drawn})"
    return facts | {"proposals": f"given: {law}" if given else jitter}


def _errors_file(data: CropDataModule, evaluation: Evaluation) -> bytes:
    """Return a NumPy archive of each draw: `error_px` (n, 2), `error_fraction`, its `picture`.

    The fraction is of the true box's side, the picture is told by its number.
    """
    samples = evaluation.samples
    px = data.geometry.px(samples.proposals)
    error = error_px(evaluation.refined.boxes, samples.gt_boxes, px)
    pictures = data.source.splits["test"].clusters[samples.items]
    file = BytesIO()
    fraction = error * px / box_sizes(samples.gt_boxes)
    np.savez(
        file,
        error_px=error.float().numpy(),
        error_fraction=fraction.float().numpy(),
        picture=pictures.numpy(),
    )
    return file.getvalue()


class Throughput(pl.Callback):
    """Log `perf/crops_per_s` between logs, validation apart."""

    def __init__(self) -> None:
        self._since, self._logged, self._seen = time.perf_counter(), 0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._since = time.perf_counter()
        self._logged = self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Log with the other scalars."""
        model, step = _offset_model(pl_module), trainer.global_step
        if model.logs_after(step, begun=self._seen):
            steps, now = step - self._logged, time.perf_counter()
            rate = steps * model.data.batch_size / (now - self._since)
            model.log_scalar("perf/crops_per_s", rate, step - 1)
            self._since, self._logged = now, step
        self._seen = step


class PlainProgress(pl.Callback):
    """Print one line an epoch, where there is no terminal for a progress bar."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to time; an epoch that is resumed doesn't start again."""
        self._since = time.perf_counter()

    on_train_epoch_start = on_train_start

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print where the run stands."""
        if trainer.sanity_checking or (not trainer.training and trainer.state.fn != "fit"):
            return
        metrics = trainer.callback_metrics
        shown = "  ".join(
            f"{name} {float(metrics[name]):.3f}"
            for name in ("train/loss", "train/mae_px", "val/mae_px", "val/mae_px_predict_mean")
            if name in metrics
        )
        say(
            f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {shown}  "
            f"{time.perf_counter() - self._since:.1f} s"
        )


class ReusableConfig(SaveConfigCallback):
    """Save the configuration without what belongs to this run only, so that it can be run again.

    One that is there stays until the run goes on by this one: before, it may be refused.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        config = config.clone()
        config.name = config.ckpt_path = None
        super().__init__(parser, config, save_to_log_dir=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save it where there is none."""
        if not (Path(trainer.default_root_dir) / CONFIG).exists():
            self.save_config(trainer, pl_module, stage)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save it in place of what an earlier part of the run began with."""
        if not self.already_saved:
            self.save_config(trainer, pl_module, "fit")
            self.already_saved = True

    @rank_zero_only
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it into the run's folder, whole or not at all."""
        text = self.parser.dump(self.config, skip_none=False)
        write_atomically(Path(trainer.default_root_dir) / CONFIG, encoded(text))


def _offset_model(pl_module: pl.LightningModule) -> OffsetModel:
    assert isinstance(pl_module, OffsetModel)
    return pl_module
