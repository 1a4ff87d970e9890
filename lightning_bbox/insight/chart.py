"""Charts, drawn without a display. Only what draws one imports this: matplotlib takes its time."""

import textwrap
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lightning_bbox.insight.readings import READABLE, Estimate, Readings, verdict

CURVES = (
    ("shuffled", "shuffled targets", "tab:gray"),
    ("random", "random weights", "tab:orange"),
    ("net", "the network", "tab:blue"),
)


def draw_readings(readings: Readings) -> Image.Image:
    """Draw R2 and the error in px by layer, with the controls and intervals, under the verdict.

    Args:
        readings: What was read.

    Examples:
        >>> from lightning_bbox.insight.readings import LayerReading, Reading
        >>> chance = Reading(Estimate(0.0, 0.0, 0.0), Estimate(2.5, 2.5, 2.5), lam=1.0)
        >>> layers = (LayerReading("pixels", 6075, 2048, chance, chance, None),)
        >>> draws = {"train": 5000, "val": 2000, "test": 2000}
        >>> draw_readings(Readings(layers, True, draws, chance.mae_px, "val")).mode
        'RGB'
    """
    layers = readings.layers
    width = max(8.0, 1.5 + 0.42 * len(layers))
    figure = Figure(figsize=(width, 7.5), dpi=110, layout="constrained")
    words = verdict(layers, readings.trained)
    figure.suptitle(textwrap.fill(words, int(13 * width)), fontsize=10)
    above, below = figure.subplots(2, 1, sharex=True)
    for key, name, colour in CURVES:
        found = {
            at: layer.readings[key] for at, layer in enumerate(layers) if key in layer.readings
        }
        _draw_band(above, name, colour, {at: reading.r2 for at, reading in found.items()})
        _draw_band(below, name, colour, {at: reading.mae_px for at, reading in found.items()})
    above.axhline(READABLE, color="black", linewidth=0.8, linestyle=":", label="readable above")
    mean = readings.predict_mean_px.value
    below.axhline(mean, color="black", linewidth=0.8, linestyle="--", label="predict the mean")
    above.set(ylabel="R2", ylim=(max(-0.5, min(-0.05, above.get_ylim()[0])), 1.02))
    below.set(ylabel="error of the centre, px", ylim=(0, min(1.5 * mean, below.get_ylim()[1])))
    below.set_xticks(range(len(layers)), [layer.layer for layer in layers], rotation=60, ha="right")
    for axes in (above, below):
        axes.set_xlim(-0.5, max(len(layers) - 0.5, 0.5))
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _draw_band(axes: Axes, name: str, colour: str, found: dict[int, Estimate]) -> None:
    """Draw a line through what there is, and its interval."""
    at = list(found)
    values, lows, highs = zip(*found.values(), strict=True) if found else ((), (), ())
    axes.plot(at, values, "o-", color=colour, label=name, markersize=4)
    axes.fill_between(at, lows, highs, color=colour, alpha=0.2, linewidth=0)
