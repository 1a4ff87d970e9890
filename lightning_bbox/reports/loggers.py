"""What loggers are given beside scalars, each by its own means: pictures, texts and tables."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lightning_bbox.core.files import encoded, make_folder, save_picture, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.reports.charts import draw_offsets
from lightning_bbox.reports.sheets import (
    COLUMNS,
    draw_preprocess,
    draw_results,
    draw_rows,
    draw_sheet,
)
from lightning_bbox.reports.tables import format_harm, format_markdown, format_metrics

Table = Sequence[Sequence[str | float]]
"""The cells of each row, those of the head first."""

_SHOWING = (TensorBoardLogger, WandbLogger, MLFlowLogger, CometLogger, CSVLogger)
_COMET_IS_OFF = (
    "CometLogger logs nothing where online is false, as Lightning then disables it; leave that "
    "out, set COMET_START_ONLINE=0 in the environment, and name an offline_directory"
)
_HPARAM_METRICS = ("mae_px", "mae_px_predict_mean", "p95_px", "iou_before", "iou_after")


def shows(logger: Logger) -> bool:
    """Tell whether a logger is known to take more than scalars and settings.

    Args:
        logger: Lightning's own, but for `LitLogger`, are.
    """
    return isinstance(logger, _SHOWING)


def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Give a picture to a logger; those of `CSVLogger` lie as files beside its table.

    Args:
        logger: One that `shows` is true of; others are left alone.
        name: Such as `val/crops`.
        picture: The picture.
        step: The step that it belongs to.
    """
    match logger:
        case TensorBoardLogger():
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        case WandbLogger():
            logger.log_image(name, [picture], step)
        case MLFlowLogger():
            logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}-{step}.png")
        case CometLogger():
            logger.experiment.log_image(picture, name=name, step=step)
        case CSVLogger():
            save_picture(_file_of(logger, f"{name}-{step}.png"), picture)


def log_text(logger: Logger, name: str, text: str, step: int) -> None:
    """Give a text to a logger; those of `CSVLogger` lie as files beside its table.

    Args:
        logger: One that `shows` is true of; others are left alone.
        name: Such as `test/report`.
        text: Several lines.
        step: The step that it belongs to.
    """
    match logger:
        case TensorBoardLogger():
            logger.experiment.add_text(name, text, step)
        case WandbLogger():
            logger.log_text(name, ["text"], [[text]], step=step)
        case MLFlowLogger():
            logger.experiment.log_text(logger.run_id, text, f"{name}.txt")
        case CometLogger():
            logger.experiment.log_text(text, step=step, metadata={"name": name})
        case CSVLogger():
            write_atomically(_file_of(logger, f"{name}.txt"), encoded(text))


def log_table(logger: Logger, name: str, table: Table, step: int) -> None:
    """Give a table to a logger, to be looked at as one.

    Args:
        logger: One that `shows` is true of; others are left alone.
        name: Such as `test/parts`.
        table: Its rows.
        step: The step that it belongs to.
    """
    head, *rows = [list(row) for row in table]
    match logger:
        case TensorBoardLogger():
            cells = [[str(cell) for cell in row] for row in table]
            logger.experiment.add_text(name, format_markdown(cells), step)
        case WandbLogger():
            logger.log_table(name, [str(cell) for cell in head], rows, step=step)
        case MLFlowLogger():
            logger.experiment.log_text(logger.run_id, _written(table), f"{name}.csv")
        case CometLogger():
            logger.experiment.log_table(f"{name}.csv", tabular_data=rows, headers=head)
        case CSVLogger():
            write_atomically(_file_of(logger, f"{name}.csv"), encoded(_written(table)))


def _file_of(logger: CSVLogger, name: str) -> Path:
    path = Path(logger.log_dir, name)
    make_folder(path.parent)
    return path


def _written(table: Table) -> str:
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


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


class LoggedReport(pl.Callback):
    """Give every logger the settings, crops with their boxes, charts and the final tables.

    TensorBoard shows the offsets as histograms, and the settings with the test's metrics in its
    hparams view; others are given a chart of the offsets, and the settings when training begins.

    Args:
        settings: What the run is, by dotted name.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the settings and, once, what the preprocessing learnt: statistics stay."""
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings)
            if isinstance(logger, CometLogger) and logger._online is False:
                say(_COMET_IS_OFF)
            if not shows(logger):
                name = type(logger).__name__
                say(f"{name} is given scalars and settings; pictures are in the run's folder")
        if trainer.global_step or not _showing(trainer):
            return
        model = _model(pl_module)
        samples = model.data.samples("train_eval")
        shown = samples.take(torch.arange(min(COLUMNS, len(samples.items))))
        crops = model.data.crops_of(shown.to(model.device))
        if (sheet := draw_preprocess(model.net.preprocess, crops)) is not None:
            _log_picture(trainer, "train/preprocess", sheet, 0)

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the first validation draws, and how predicted offsets compare with true ones."""
        if not _showing(trainer) or trainer.sanity_checking:
            return
        model = _model(pl_module)
        evaluation = model.evaluations["val"]
        panels = draw_rows(model.data, evaluation, range(min(16, len(evaluation.samples.items))))
        sheet = draw_sheet([("first validation draws", panels)])
        _log_picture(trainer, "val/crops", sheet, trainer.global_step)
        self._log_offsets(trainer, model, evaluation)

    def _log_offsets(self, trainer: pl.Trainer, model: OffsetModel, evaluation: Evaluation) -> None:
        samples, step = evaluation.samples, trainer.global_step
        px = model.data.geometry.px(samples.proposals)
        kinds = {"true": samples.gt_boxes, "predicted": evaluation.refined.boxes}
        offsets = {kind: error_px(boxes, samples.proposals, px) for kind, boxes in kinds.items()}
        error = error_px(evaluation.refined.boxes, samples.gt_boxes, px)
        chart = None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for kind, values in offsets.items():
                    for axis, letter in enumerate("xy"):
                        name = f"val/offset_{letter}_px/{kind}"
                        logger.experiment.add_histogram(name, values[:, axis], step)
                logger.experiment.add_histogram("val/error_px", error, step)
            elif shows(logger):
                chart = chart or draw_offsets(offsets["true"], offsets["predicted"])
                log_picture(logger, "val/offsets", chart, step)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the table of the test, its parts and harm, and the worst and random crops."""
        if not _showing(trainer):
            return
        model = _model(pl_module)
        evaluation = model.evaluations["test"]
        report = format_metrics(evaluation.metrics, evaluation.rows)
        report = f"{report}\n\n{format_harm(evaluation.harm)}"
        metrics: Table = [("metric", "value"), *evaluation.metrics.items()]
        parts: Table = [("kind", "name", "draws", "mae_px"), *evaluation.rows]
        sheet = draw_results(model.data, evaluation)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                final = {f"test/{name}": evaluation.metrics[name] for name in _HPARAM_METRICS}
                logger.log_hyperparams(self.settings, final)
                log_text(logger, "test/report", f"```\n{report}\n```", 0)
            else:
                log_text(logger, "test/report", report, 0)
                log_table(logger, "test/metrics", metrics, 0)
            log_table(logger, "test/parts", parts, 0)
            log_picture(logger, "test/crops", sheet, 0)
            logger.save()


def _showing(trainer: pl.Trainer) -> bool:
    return any(map(shows, trainer.loggers))


def _log_picture(trainer: pl.Trainer, name: str, picture: Image.Image, step: int) -> None:
    for logger in trainer.loggers:
        log_picture(logger, name, picture, step)


def _model(pl_module: pl.LightningModule) -> OffsetModel:
    assert isinstance(pl_module, OffsetModel)
    return pl_module
