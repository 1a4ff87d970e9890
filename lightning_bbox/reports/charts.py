"""The frame that all charts have, drawn without a display."""

import textwrap
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

PREDICT_MEAN: dict[str, Any] = {
    "color": "black", "linewidth": 0.8, "linestyle": "--", "label": "predict the mean",
}  # fmt: skip
"""How a line of the error of predicting the mean looks."""

LEGEND_BESIDE: dict[str, Any] = {
    "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False,
}  # fmt: skip
"""Puts a legend to the right of what is drawn, so that it hides nothing."""


def new_chart(width: float, height: float) -> Figure:
    """Begin a chart of a size in inches, 110 pixels each."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def wrap_label(text: str, width: int, most: int = 2) -> str:
    r"""Break a name into lines, of which the first are shown; a dollar sign isn't mathematics.

    Args:
        text: The name.
        width: Characters of a line.
        most: How many lines are shown.
    """
    lines = textwrap.wrap(text, width, max_lines=most, placeholder=" …")
    return "\n".join(lines).replace("$", r"\$")


def render(figure: Figure) -> Image.Image:
    """Render a chart, without a frame above it and to its right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer, formats=["PNG"]).convert("RGB")
