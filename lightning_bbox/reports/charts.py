"""The frame that all charts have, drawn without a display."""

import textwrap
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

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


def draw_offsets(true: Float[Tensor, "n 2"], predicted: Float[Tensor, "n 2"]) -> Image.Image:
    """Draw how often which offset is true and is predicted, in x and in y.

    Args:
        true: Offsets of the true boxes from the proposals, in px.
        predicted: Those of the predicted ones.
    """
    figure = new_chart(8.0, 3.0)
    limit = float(true.abs().max().clamp(min=1.0)) * 1.2
    bins = np.linspace(-limit, limit, 41)
    for axis, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        for offsets, name in ((true, "true"), (predicted, "predicted")):
            values = offsets[:, axis].clamp(-limit, limit).nan_to_num().cpu().numpy()
            axes.hist(values, bins=bins, histtype="step", label=name)
        axes.set_xlabel(f"offset in {'xy'[axis]}, px")
    figure.axes[0].set_ylabel("draws")
    figure.axes[1].legend(**LEGEND_BESIDE)
    return render(figure)
