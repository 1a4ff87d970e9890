"""Callbacks: the files of a run, what TensorBoard shows, and one plain line an epoch."""

import json
import time
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
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.models.divergence import OUTCOME, DivergedError
from lightning_bbox.reports.sheets import (
    COLUMNS,
    draw_data,
    draw_preprocess,
    draw_results,
    draw_rows,
    draw_sheet,
)
from lightning_bbox.reports.tables import format_metrics

_HPARAM_METRICS = ("mae_px", "mae_px_predict_mean", "p95_px", "iou_before", "iou_after")


class RunReport(pl.Callback):
    """Write what a run leaves behind, and print the table at its end.

    `data.png` and the list of skipped boxes before training; `crops.png`, `metrics.json` and the
    error of each draw (`test_errors.npz`) after the test; `outcome.json` where a run diverges.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, Any] = {}
        self._seconds = 0.0
        self._since = 0.0
        self._said = False
        self._curve: list[tuple[int, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Keep time and curve so far, so that a resumed run has all of them."""
        return {"seconds": self._seconds + time.monotonic() - self._since, "curve": self._curve[:]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds = state_dict["seconds"]
        self._curve = list(state_dict.get("curve", []))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the model is going to see."""
        data = _offset_model(pl_module).data
        if trainer.is_global_zero:
            lines = self._say_what_is_there(data)
            device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
            say(f"training on {device} in {trainer.precision}")
            (self.folder / OUTCOME).unlink(missing_ok=True)
            save_picture(self.folder / "data.png", draw_data(data, "\n".join(lines)))
            say(f"what the model sees: {self.folder / 'data.png'}")
        # Lightning comes next, with its own answer to SIGTERM until training begins: a process that
        # waits for the others would go out of step with them. So none waits there for long.
        trainer.strategy.barrier("data.png")
        self._since = time.monotonic()

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
        else:
            say("\n" + format_metrics(metrics, [], title="validation"))

    def _say_what_is_there(self, data: CropDataModule) -> list[str]:
        """Describe the data, and list the boxes that were skipped."""
        self._said = True
        make_folder(self.folder)
        lines = [*data.source.notes, *data.describe()]
        say("\n".join(lines))
        skipped = [sentence for items in data.source.splits.values() for sentence in items.skipped]
        if skipped:
            write_atomically(self.folder / "skipped.txt", encoded("\n".join(skipped) + "\n"))
            say(f"skipped boxes are listed in {self.folder / 'skipped.txt'}")
        return lines

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long training took, also where it had only to be tested."""
        seconds = self.state_dict()["seconds"]
        self.metrics |= {"train_seconds": seconds, "train_steps": trainer.global_step}
        self.metrics["val/curve"] = self._curve

    @rank_zero_only
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note where a run diverged."""
        if isinstance(exception, DivergedError):
            outcome = {"status": "diverged", "step": exception.step, "detail": str(exception)}
            write_atomically(self.folder / OUTCOME, json.dumps(outcome).encode())

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results and show them."""
        model = _offset_model(pl_module)
        evaluation = model.evaluations["test"]
        make_folder(self.folder)
        self.metrics |= {f"test/{name}": value for name, value in evaluation.metrics.items()}
        self.metrics["test/rows"] = [
            {"kind": kind, "name": name, "draws": count, "mae_px": mae}
            for kind, name, count, mae in evaluation.rows
        ]
        write_atomically(self.folder / "test_errors.npz", _errors_file(model.data, evaluation))
        write_atomically(self.folder / "metrics.json", json.dumps(self.metrics, indent=2).encode())
        save_picture(self.folder / "crops.png", draw_results(model.data, evaluation))
        say(
            f"\n{format_metrics(evaluation.metrics, evaluation.rows)}\n\n"
            f"worst and random crops  {self.folder / 'crops.png'}\n"
            f"run folder              {self.folder}\n"
            f"curves and pictures     tensorboard --logdir {self.folder.parent}\n"
        )


def _errors_file(data: CropDataModule, evaluation: Evaluation) -> bytes:
    """Return a NumPy archive: `error_px` (n, 2) of each draw, and the number of its `picture`."""
    samples = evaluation.samples
    px = data.geometry.px(samples.proposals)
    error = error_px(evaluation.refined.boxes, samples.gt_boxes, px)
    pictures = data.source.splits["test"].clusters[samples.items]
    file = BytesIO()
    np.savez(file, error_px=error.float().numpy(), picture=pictures.numpy())
    return file.getvalue()


class EventLog(TensorBoardLogger):
    """Write TensorBoard's events only, to one file: the settings are in `config.yaml`."""

    def save(self) -> None:
        """Write the events so far."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Leave the file open for the test that follows training."""

    def close(self) -> None:
        """Close the file, where there is one."""
        if self._experiment is not None:
            self._experiment.close()


class TensorBoardPictures(pl.Callback):
    """Show what preprocessing learnt, crops with their boxes, and the offsets' histograms.

    At the end the settings join the test's metrics in the hparams view.

    Args:
        settings: What the hparams view lists, by dotted name.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the preprocessing learnt, once: statistics stay what they are."""
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.global_step:
            return
        model = _offset_model(pl_module)
        samples = model.data.samples("train_eval")
        shown = samples.take(torch.arange(min(COLUMNS, len(samples.items))))
        crops = model.data.crops_of(shown.to(model.device))
        if (sheet := draw_preprocess(model.net.preprocess, crops)) is not None:
            writer = trainer.logger.experiment
            writer.add_image("train/preprocess", np.asarray(sheet), 0, dataformats="HWC")

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the first validation draws, and how predicted offsets compare with true ones."""
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.sanity_checking:
            return
        model = _offset_model(pl_module)
        evaluation = model.evaluations["val"]
        writer, step = trainer.logger.experiment, trainer.global_step
        panels = draw_rows(model.data, evaluation, range(min(16, len(evaluation.samples.items))))
        sheet = draw_sheet([("first validation draws", panels)])
        writer.add_image("val/crops", np.asarray(sheet), step, dataformats="HWC")
        samples = evaluation.samples
        px = model.data.geometry.px(samples.proposals)
        for name, boxes in (("true", samples.gt_boxes), ("predicted", evaluation.refined.boxes)):
            for axis, letter in enumerate("xy"):
                offsets = error_px(boxes, samples.proposals, px)[:, axis]
                writer.add_histogram(f"val/offset_{letter}_px/{name}", offsets, step)
        residual = error_px(evaluation.refined.boxes, samples.gt_boxes, px)
        writer.add_histogram("val/error_px", residual, step)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the settings with the final metrics, and the sheet of worst and random crops."""
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        model = _offset_model(pl_module)
        evaluation = model.evaluations["test"]
        metrics = {f"test/{name}": evaluation.metrics[name] for name in _HPARAM_METRICS}
        trainer.logger.log_hyperparams(self.settings, metrics)
        sheet = draw_results(model.data, evaluation)
        trainer.logger.experiment.add_image("test/crops", np.asarray(sheet), 0, dataformats="HWC")
        trainer.logger.save()


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
    """Save the configuration without what belongs to this run only, so that it can be run again."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        config = config.clone()
        config.name = config.ckpt_path = None
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it into the run's folder, whole or not at all."""
        text = self.parser.dump(self.config, skip_none=False)
        write_atomically(Path(trainer.default_root_dir) / "config.yaml", encoded(text))


def _offset_model(pl_module: pl.LightningModule) -> OffsetModel:
    assert isinstance(pl_module, OffsetModel)
    return pl_module
