"""Callbacks: the files of a run, what TensorBoard shows, and one plain line an epoch."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from lightning_bbox.boxes import Boxes
from lightning_bbox.data import CropDataModule
from lightning_bbox.evaluation import Evaluation
from lightning_bbox.files import save_picture, write_atomically
from lightning_bbox.loader import Rows
from lightning_bbox.metrics import error_px
from lightning_bbox.plan import keyed_generator
from lightning_bbox.report import (
    GREEN,
    LEGEND,
    PANEL,
    RED,
    as_array,
    boxes_in_crops,
    draw_crop,
    draw_evaluation,
    draw_sheet,
    format_table,
)
from lightning_bbox.tasks import BoxRegressor

_COLUMNS = 8
_HPARAM_METRICS = ("mae_px", "mae_px_predict_mean", "p95_px", "iou_before", "iou_after")


class RunReport(pl.Callback):
    """Write what a run leaves behind, and print the table at its end.

    `data.png` and the list of skipped boxes before training; `crops.png` and `metrics.json` after
    the test.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, Any] = {}
        self._seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, float]:
        """Keep the time spent, so that a resumed run counts all of it."""
        return {"seconds": self._seconds + time.monotonic() - self._since}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on counting."""
        self._seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the model is going to see."""
        data = _regressor(pl_module).data
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [*data.source.notes, *data.describe()]
            device = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
            _say("\n".join([*lines, f"training on {device} in {trainer.precision}"]))
            skipped = [
                sentence for items in data.source.splits.values() for sentence in items.skipped
            ]
            if skipped:
                write_atomically(self.folder / "skipped.txt", ("\n".join(skipped) + "\n").encode())
                _say(f"skipped boxes are listed in {self.folder / 'skipped.txt'}")
            save_picture(self.folder / "data.png", draw_data(data, "\n".join(lines)))
        self._since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long training took."""
        self._seconds = self.state_dict()["seconds"]
        self.metrics |= {"train_seconds": self._seconds, "train_steps": trainer.global_step}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results and show them."""
        if not trainer.is_global_zero:
            return
        model = _regressor(pl_module)
        evaluation = model.evaluations["test"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics |= {f"test/{name}": value for name, value in evaluation.metrics.items()}
        self.metrics["test/rows"] = [
            {"kind": kind, "name": name, "draws": count, "mae_px": mae}
            for kind, name, count, mae in evaluation.rows
        ]
        write_atomically(self.folder / "metrics.json", json.dumps(self.metrics, indent=2).encode())
        save_picture(self.folder / "crops.png", draw_results(model.data, evaluation))
        _say(
            f"\n{format_table(evaluation.metrics, evaluation.rows)}\n\n"
            f"worst and random crops  {self.folder / 'crops.png'}\n"
            f"run folder              {self.folder}\n"
            f"curves and pictures     tensorboard --logdir {self.folder.parent}\n"
        )


class TensorBoardPictures(pl.Callback):
    """Show crops with their boxes, and the offsets' histograms.

    At the end the settings join the test's metrics in the hparams view.

    Args:
        settings: What the hparams view lists, by dotted name.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the first validation draws, and how predicted offsets compare with true ones."""
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.sanity_checking:
            return
        model = _regressor(pl_module)
        evaluation = model.evaluations["val"]
        writer, step = trainer.logger.experiment, trainer.global_step
        panels, _ = _panels(
            model.data, evaluation, list(range(min(16, len(evaluation.samples.items))))
        )
        sheet = draw_sheet([("first validation draws", panels)], LEGEND, _COLUMNS)
        writer.add_image("val/crops", as_array(sheet), step, dataformats="HWC")
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
        model = _regressor(pl_module)
        evaluation = model.evaluations["test"]
        metrics = {f"test/{name}": evaluation.metrics[name] for name in _HPARAM_METRICS}
        trainer.logger.log_hyperparams(self.settings, metrics)
        sheet = draw_results(model.data, evaluation)
        trainer.logger.experiment.add_image("test/crops", as_array(sheet), 0, dataformats="HWC")
        trainer.logger.save()


class Throughput(pl.Callback):
    """Log `perf/crops_per_s` between logs, validation apart."""

    def __init__(self) -> None:
        self._since = 0.0
        self._steps = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._since, self._steps = time.perf_counter(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Count, and log with the other scalars."""
        self._steps += 1
        model = _regressor(pl_module)
        if model.logs_after(trainer.global_step):
            rate = self._steps * model.data.batch_size / (time.perf_counter() - self._since)
            pl_module.log("perf/crops_per_s", rate)
            self._since, self._steps = time.perf_counter(), 0


class PlainProgress(pl.Callback):
    """Print one line an epoch, where there is no terminal for a progress bar."""

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to time."""
        self._since = time.perf_counter()

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
        _say(
            f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {shown}  "
            f"{time.perf_counter() - self._since:.1f} s"
        )


def draw_data(data: CropDataModule, title: str) -> Image.Image:
    """Draw training crops as the model sees them, augmented, and validation crops.

    Examples:
        >>> from lightning_bbox import SceneDataModule
        >>> draw_data(SceneDataModule(num_scenes=20, eval_draws=8, compile=False), "scenes").size
        (1242, 478)
    """
    sections = []
    for split, count, name in (
        ("train", 24, f"{title}\n\ntraining crops"),
        ("val", 16, "validation crops"),
    ):
        device = data.source.store.pixels.device
        rows = torch.arange(min(count, data.eval_draws, data.draws_per_epoch), device=device)
        batch = data.make_batch(Rows(split, 0, rows, torch.ones_like(rows, dtype=torch.bool)))  # type: ignore[arg-type]
        crop_boxes = data.geometry.crop_boxes(batch.proposals)
        layers = [
            (boxes_in_crops(boxes, crop_boxes, PANEL), colour)
            for boxes, colour in ((batch.proposals, RED), (batch.gt_boxes, GREEN))
        ]
        distance = error_px(
            batch.proposals, batch.gt_boxes, data.geometry.px(batch.proposals)
        ).abs()
        panels = [
            draw_crop(
                batch.crops[row],
                [(boxes[row], colour) for boxes, colour in layers],
                f"off by {distance[row, 0]:.1f}, {distance[row, 1]:.1f} px",
            )
            for row in rows.tolist()
        ]
        sections.append((name, panels))
    return draw_sheet(sections, LEGEND[:2], _COLUMNS)


def draw_results(data: CropDataModule, evaluation: Evaluation, count: int = 24) -> Image.Image:
    """Draw the worst crops of an evaluation and as many random ones.

    Examples:
        >>> from lightning_bbox import SceneDataModule
        >>> from lightning_bbox.metrics import Refined
        >>> data = SceneDataModule(num_scenes=20, eval_draws=30, compile=False)
        >>> samples = data.samples("val")
        >>> unrefined = Refined(samples.proposals, torch.zeros(30), torch.ones(30).bool())
        >>> draw_results(data, Evaluation(samples, unrefined, {}, []), count=8).size
        (1242, 438)
    """
    _, errors = _panels(data, evaluation, [])
    worst = errors.argsort(descending=True)[:count].tolist()
    random = torch.randperm(len(errors), generator=keyed_generator("sheet"))[:count].tolist()
    sections = [
        (
            f"the {len(worst)} worst of {len(errors)} draws (error before to after, in px)",
            _panels(data, evaluation, worst)[0],
        ),
        (f"{len(random)} random draws", _panels(data, evaluation, random)[0]),
    ]
    return draw_sheet(sections, LEGEND, _COLUMNS)


def _panels(
    data: CropDataModule, evaluation: Evaluation, rows: list[int]
) -> tuple[list[Image.Image], Tensor]:
    """Draw some rows of an evaluation; return the errors of all of them too."""
    samples = evaluation.samples
    px = data.geometry.px(samples.proposals)
    errors, before = (
        error_px(boxes, samples.gt_boxes, px).norm(dim=1)
        for boxes in (evaluation.refined.boxes, samples.proposals)
    )
    if not rows:
        return [], errors
    device = data.source.store.pixels.device
    crops = data.crops_of(samples.take(torch.tensor(rows)).to(device)).cpu()
    crop_boxes: Boxes = data.geometry.crop_boxes(samples.proposals)
    return draw_evaluation(crops, evaluation, crop_boxes, rows, errors, before), errors


def _regressor(pl_module: pl.LightningModule) -> BoxRegressor:
    assert isinstance(pl_module, BoxRegressor)
    return pl_module


@rank_zero_only
def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
