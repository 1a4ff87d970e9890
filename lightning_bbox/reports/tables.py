"""Tables as text: aligned Markdown, columns between spaces, and what a run has measured."""

import math
import re
from collections.abc import Sequence

from lightning_bbox.evaluation.intervals import TOO_FEW
from lightning_bbox.evaluation.metrics import BESIDE_THE_MEAN
from lightning_bbox.evaluation.widths import HarmRow
from lightning_bbox.nn.calibration import LEVELS

Rows = Sequence[Sequence[str]]
"""The cells of each row, those of the head first."""


def format_markdown(rows: Rows, words: int = 1) -> str:
    r"""Write a table as Markdown that is aligned, so that it reads as text too.

    Args:
        rows: Its cells.
        words: How many columns, the first ones, hold words and stand to the left. The others hold
            numbers and stand to the right.
    """
    rows = [[_escaped(cell) for cell in row] for row in rows]
    widths = _widths(rows)

    def line(cells: Sequence[str]) -> str:
        left = map(str.ljust, cells[:words], widths)
        right = map(str.rjust, cells[words:], widths[words:])
        return "| " + " | ".join([*left, *right]) + " |"

    rule = [":" + "-" * (width + 1) for width in widths[:words]]
    rule += ["-" * (width + 1) + ":" for width in widths[words:]]
    return "\n".join([line(rows[0]), "|" + "|".join(rule) + "|", *map(line, rows[1:])])


def format_spaced(rows: Rows) -> str:
    """Write a table between spaces, for a terminal.

    Args:
        rows: Its cells; the last column may be of any length.
    """
    widths = _widths(rows)
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def format_metrics(
    metrics: dict[str, float], rows: Sequence[tuple[str, str, int, float]], title: str = "test"
) -> str:
    """Write what a run has measured: the model beside predicting the mean, then parts of the set.

    Args:
        metrics: Metrics of a split, by their names without a prefix.
        rows: Parts of the set: (kind, name, draws, mae_px).
        title: What was measured on.
    """
    lines = [(title, "model", "predict the mean")]
    known = {"iou_before": math.nan} | metrics
    for name, words in BESIDE_THE_MEAN.items():
        if name in metrics:
            baseline = metrics.get(f"{name}_predict_mean")
            mean = "-" if baseline is None else f"{baseline:.3f}"
            lines.append((words.format_map(known), f"{metrics[name]:.3f}", mean))
    text = [f"{words:<28}{model:>9}{mean:>19}" for words, model, mean in lines]
    if "groups" in metrics:
        text.append(_interval_line(metrics))
    if "cramer_rao_mae_px" in metrics:
        text.append(f"Cramer-Rao bound             {metrics['cramer_rao_mae_px']:.3f} px")
    if "coverage_90" in metrics:
        text.append(_calibration_line(metrics))
    text += [
        f"  {kind} {name:<20} {count:>6} draws {mae:>9.3f} px" for kind, name, count, mae in rows
    ]
    return "\n".join(text)


def format_harm(rows: Sequence[HarmRow]) -> str:
    """Write what becomes of boxes by how far off they are, so that harm is in sight.

    Args:
        rows: Boxes that are right first.
    """
    lawful = any(row.iou_law is not None for row in rows)
    head = ["boxes that are", "IoU before", "after", "made worse"]
    table = [head + ["by its law", "made worse"] * lawful]
    for row in rows:
        numbers = [row.iou_before, row.iou_after, row.harmed]
        numbers += [number for number in (row.iou_law, row.harmed_law) if number is not None]
        table.append([row.name, *(f"{number:.3f}" for number in numbers)])
    return format_spaced(table)


def _interval_line(metrics: dict[str, float]) -> str:
    count = int(metrics["groups"])
    of = "pictures" if count == metrics["pictures"] else "groups"
    told = TOO_FEW
    if "mae_px_low" in metrics:
        told = f"{metrics['mae_px_low']:.3f} to {metrics['mae_px_high']:.3f} px"
    return f"{f'95 % over {count} {of}':<27}  {told}"


def _calibration_line(metrics: dict[str, float]) -> str:
    held = "/".join(f"{100 * metrics[f'coverage_{100 * level:.0f}']:.0f}" for level in LEVELS)
    density = f", NLL {metrics['nll']:.3f}" if "nll" in metrics else ""
    return f"50/90/95 % intervals hold    {held} %, std {metrics['std_px']:.3f} px{density}"


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _escaped(text: str) -> str:
    """Keep text from being read as Markdown's table or as HTML."""
    return re.sub(r"([|<])", r"\\\1", text)
