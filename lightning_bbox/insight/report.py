"""What a probe leaves behind: its figures, the table and verdict, and a chart of the layers."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from PIL import Image

from lightning_bbox.core.files import save_picture, write_atomically
from lightning_bbox.insight.readings import (
    READABLE,
    Estimate,
    LayerReading,
    Reading,
    Readings,
    verdict,
)
from lightning_bbox.reports.charts import LEGEND_BESIDE, PREDICT_MEAN, new_chart, render
from lightning_bbox.reports.loggers import log_picture, log_text
from lightning_bbox.reports.tables import format_markdown

_CURVES = (
    ("shuffled", "shuffled targets", "tab:gray"),
    ("random", "random weights", "tab:orange"),
    ("net", "the network", "tab:blue"),
)


def save_readings(readings: Readings, folder: Path, loggers: Sequence[Logger]) -> str:
    """Write what a probe has read: `probe.json`, `probe.md` and `probe.png`, and for loggers.

    Args:
        readings: What was read.
        folder: The run's folder.
        loggers: Those of the run.

    Returns:
        The table and the verdict.
    """
    table, chart = format_readings(readings), draw_readings(readings)
    write_atomically(folder / "probe.json", json.dumps(_figures(readings), indent=2).encode())
    write_atomically(folder / "probe.md", f"{table}\n".encode())
    save_picture(folder / "probe.png", chart)
    for logger in loggers:
        log_picture(logger, "probe/layers", chart, 0)
        log_text(logger, "probe/table", table, 0)
        for index, layer in enumerate(readings.layers):
            for name, reading in layer.readings.items():
                figures = {f"probe/r2/{name}": reading.r2.value}
                figures[f"probe/mae_px/{name}"] = reading.mae_px.value
                logger.log_metrics(figures, index)
        logger.save()
    return table


def format_readings(readings: Readings) -> str:
    """Format the table of a probe, which is Markdown too, and the verdict.

    Args:
        readings: What was read.
    """
    names = ["layer", "size", "width", "R2", "error, px", "random weights", "shuffled", "lambda"]
    table = format_markdown([names, *(_cells(layer) for layer in readings.layers)])
    draws = ", ".join(f"{count} {split}" for split, count in readings.draws.items())
    by = {"val": "the validation draws", "gcv": "cross-validation (GCV)"}[readings.lambda_by]
    lines = [
        table,
        "",
        f"predict the mean: {readings.predict_mean_px} px; draws: {draws}; lambda by {by}",
        "R2 is against the training mean, with its 95 % interval over pictures or groups",
        f"readable is what lies, interval and all, above {READABLE} and above shuffled targets",
        "",
        f"Verdict: {verdict(readings.layers, readings.trained)}.",
    ]
    return "\n".join(lines)


def _cells(layer: LayerReading) -> list[str]:
    r2 = layer.net.r2
    return [
        layer.layer,
        str(layer.size),
        str(layer.width),
        f"{r2} ({r2.interval})",
        str(layer.net.mae_px),
        "-" if layer.random is None else str(layer.random.r2),
        str(layer.shuffled.r2),
        f"{layer.net.lam:.1e}",
    ]


def _figures(readings: Readings) -> dict[str, Any]:
    """Return every figure as plain data, with the verdict."""
    return {
        "verdict": verdict(readings.layers, readings.trained),
        "trained": readings.trained,
        "draws": readings.draws,
        "lambda_by": readings.lambda_by,
        "readable_above": READABLE,
        "predict_mean_px": readings.predict_mean_px._asdict(),
        "layers": [
            {"layer": layer.layer, "size": layer.size, "width": layer.width}
            | {
                name: {
                    "r2": reading.r2._asdict(),
                    "mae_px": reading.mae_px._asdict(),
                    "lambda": reading.lam,
                }
                for name, reading in layer.readings.items()
            }
            for layer in readings.layers
        ],
    }


def draw_readings(readings: Readings) -> Image.Image:
    """Draw R2 and the error in px by layer, with the controls and intervals, under the verdict.

    Args:
        readings: What was read.
    """
    layers = readings.layers
    width = max(8.0, 1.5 + 0.42 * len(layers))
    figure = new_chart(width, 7.5)
    words = verdict(layers, readings.trained)
    figure.suptitle(textwrap.fill(words, int(13 * width)), fontsize=10)
    above, below = figure.subplots(2, 1, sharex=True)
    for key, name, colour in _CURVES:
        found = {
            at: layer.readings[key] for at, layer in enumerate(layers) if key in layer.readings
        }
        _draw_band(above, name, colour, {at: reading.r2 for at, reading in found.items()})
        _draw_band(below, name, colour, {at: reading.mae_px for at, reading in found.items()})
    above.axhline(READABLE, color="black", linewidth=0.8, linestyle=":", label="readable above")
    mean = readings.predict_mean_px.value
    below.axhline(mean, **PREDICT_MEAN)
    above.set(ylabel="R2", ylim=(max(-0.5, min(-0.05, above.get_ylim()[0])), 1.02))
    below.set(ylabel="error of the centre, px", ylim=(0, min(1.5 * mean, below.get_ylim()[1])))
    below.set_xticks(range(len(layers)), [layer.layer for layer in layers], rotation=60, ha="right")
    for axes in (above, below):
        axes.set_xlim(-0.5, max(len(layers) - 0.5, 0.5))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(**LEGEND_BESIDE)
    return render(figure)


def _draw_band(axes: Axes, name: str, colour: str, found: dict[int, Estimate]) -> None:
    """Draw a line through what there is, and its interval."""
    at = list(found)
    values, lows, highs = zip(*found.values(), strict=True) if found else ((), (), ())
    axes.plot(at, values, "o-", color=colour, label=name, markersize=4)
    axes.fill_between(at, lows, highs, color=colour, alpha=0.2, linewidth=0)


def _of_one_layer() -> Readings:
    """Return what chance reads in pixels, for the examples."""
    chance = Reading(Estimate(0.0, 0.0, 0.0), Estimate(2.5, 2.5, 2.5), lam=1.0)
    pixels = LayerReading("pixels", 6075, 2048, chance, chance, None)
    draws = {"train": 5000, "val": 2000, "test": 2000}
    return Readings((pixels,), True, draws, predict_mean_px=chance.mae_px, lambda_by="val")
