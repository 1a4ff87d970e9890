"""Charts of a comparison, drawn without a display: curves, errors, main effects, a heat map."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from lightning_bbox.evaluation.intervals import Mean
from lightning_bbox.reports.charts import (
    LEGEND_BESIDE,
    PREDICT_MEAN,
    new_chart,
    render,
    wrap_label,
)
from lightning_bbox.studies.comparison import Comparison, figures_of

CHARTS = ("errors", "curves", "effects", "heat")
"""The names of the charts, in the order of the page."""
BEST = 6
"""How many of the best arms have a colour of their own among the curves."""
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_GREY = "0.75"


def draw_comparison(comparison: Comparison) -> dict[str, Image.Image | None]:
    """Draw all charts, in the order of the page; None where there is nothing to show in one.

    Args:
        comparison: What a study has found.
    """
    ranked = any(comparison.ranked_by in arm.figures for arm in comparison.arms)
    has_curves = any(comparison.curve(result) for arm in comparison.arms for result in arm.results)
    has_effects = any(effect.ratio for effect in comparison.effects)
    return {
        name: render(draw(comparison)) if ranked and has_something else None
        for name, (draw, has_something) in zip(
            CHARTS,
            (
                (_draw_errors, True),
                (_draw_curves, has_curves),
                (_draw_effects, has_effects),
                (_draw_heat, _crosses_two_axes(comparison)),
            ),
            strict=True,
        )
    }


def mean_curve(
    curves: Sequence[Sequence[tuple[int, float]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps that all curves cover, and every curve's error at them.

    Args:
        curves: (step, error) in order, at least one point each; linear in between.
    """
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = np.array(sorted({step for curve in curves for step, _ in curve}), dtype=np.float64)
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, *np.array(curve).T) for curve in curves])


def _draw_curves(comparison: Comparison) -> Figure:
    """Draw the mean over runs by step; the base and the best arms with the range of their runs."""
    figure = new_chart(11.0, 5.5)
    axes = figure.subplots()
    drawn = [arm for arm in comparison.arms if any(map(comparison.curve, arm.results))]
    others = [arm for arm in drawn if arm.arm is not comparison.base]
    colours = dict(zip([arm.arm.name for arm in others], _COLOURS[:BEST], strict=False))
    colours[comparison.base.name] = "black"
    for arm in drawn:
        curves = [curve for curve in map(comparison.curve, arm.results) if curve]
        steps, errors = mean_curve(curves)
        colour = colours.get(arm.arm.name)
        label = wrap_label(arm.arm.name, 44) if colour else "_"
        (line,) = axes.plot(steps, errors.mean(axis=0), color=colour or _GREY, label=label)
        line.set(linewidth=1.8 if colour else 0.8, zorder=3 if colour else 1)
        if colour and len(curves) > 1:
            band = (errors.min(axis=0), errors.max(axis=0))
            axes.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0, zorder=2)
    if len(drawn) > len(colours):
        axes.plot([], [], color=_GREY, label=f"{len(drawn) - len(colours)} other arms")
    reach = comparison.study.reach_px
    if comparison.in_px:
        axes.axhline(reach, color="black", linewidth=0.6, linestyle=":", label=f"{reach:g} px")
    if not math.isnan(comparison.predict_mean):
        axes.axhline(comparison.predict_mean, **PREDICT_MEAN)
    axes.set(xlabel="step", ylabel=f"validation error, {comparison.unit}", xlim=(0, None))
    axes.set_yscale("log")
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * _limit(comparison)))
    _tick_log(axes.yaxis)
    if any(len(arm.done) > 1 for arm in drawn):
        axes.set_title("mean over runs; bands from the lowest to the highest", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(**LEGEND_BESIDE)
    return figure


def _draw_errors(comparison: Comparison) -> Figure:
    """Draw every arm's error with its interval and single runs, the best on top."""
    arms, ranked_by = comparison.arms, comparison.ranked_by
    figure = new_chart(11.0, 1.4 + 0.42 * len(arms))
    axes = figure.subplots()
    limit = _limit(comparison)
    for row, arm in enumerate(arms):
        mean, whole = arm.figures.get(ranked_by), len(arm.done) == len(arm.results)
        told = "" if mean is None else f"{mean.value:.3f}   "
        _note(axes, row, told + arm.status, "0.3" if whole else "tab:red")
        if mean is None:
            continue
        colour = "black" if arm.arm is comparison.base else "tab:blue"
        _draw_mean(axes, row, mean, colour)
        if mean.value > limit:
            axes.plot(0.99 * limit, row, ">", color=colour, markersize=6)
        runs = [figures_of(run, comparison.study.reach_px).get(ranked_by) for run in arm.done]
        values = [value for value in runs if value is not None]
        axes.plot(values, [row] * len(values), ".", color="0.5", markersize=4, zorder=1)
    if not math.isnan(comparison.predict_mean):
        axes.axvline(comparison.predict_mean, **PREDICT_MEAN)
    names = [wrap_label(arm.arm.name, 60, most=3) for arm in arms]
    axes.set_yticks(range(len(arms)), names, fontsize=8)
    for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
        label.set_fontweight("bold" if arm.arm is comparison.base else "normal")
    split = "test" if comparison.study.folds is None else "lowest validation"
    axes.set(
        xlabel=f"{split} error, {comparison.unit}", xlim=(0, limit), ylim=(len(arms) - 0.5, -0.5)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left", framealpha=1.0)
    return figure


def _draw_mean(axes: Axes, row: int, mean: Mean, colour: str) -> None:
    if not math.isnan(mean.low):
        axes.plot([mean.low, mean.high], [row] * 2, color=colour, linewidth=1.5)
    axes.plot(mean.value, row, "o", color=colour, markersize=6)


def _note(axes: Axes, row: int, text: str, colour: str) -> None:
    """Write to the right of a chart's row."""
    to_the_right = axes.get_yaxis_transform()
    axes.text(1.01, row, text, color=colour, fontsize=8, va="center", transform=to_the_right)


def _draw_effects(comparison: Comparison) -> Figure:
    """Draw the ratio of each level's error to its base level's, axis by axis."""
    effects = comparison.effects
    base = comparison.base.levels
    axis_names = list(dict.fromkeys(effect.axis for effect in effects))
    rows = len(effects) + len(axis_names)
    figure = new_chart(11.0, 1.2 + 0.34 * rows)
    axes = figure.subplots()
    names: list[str] = []
    for axis in axis_names:
        axes.axhline(len(names) - 0.5, color="0.85", linewidth=0.8)
        axes.plot(1.0, len(names), "o", color="black", markerfacecolor="white", zorder=3)
        names.append(wrap_label(f"{axis}: {base[axis]}", 50))
        for effect in (effect for effect in effects if effect.axis == axis):
            if effect.ratio is not None:
                _draw_mean(axes, len(names), effect.ratio, _verdict_colour(effect.ratio))
            told = f"{effect.ratio.value:.3f}" if effect.ratio else "not told"
            lost = f"   {effect.diverged} of {effect.runs} diverged" * (effect.diverged > 0)
            _note(axes, len(names), told + lost, "tab:red" if lost else "0.3")
            names.append(wrap_label(effect.level, 50))
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    low, high = axes.get_xlim()
    axes.set_xscale("log")
    axes.set_xlim(max(low, 0.1), min(high, 10))
    _tick_log(axes.xaxis)
    axes.set_xlabel("error relative to the base's level (circle); 95 %, interactions as noise")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _verdict_colour(ratio: Mean) -> str:
    """Return green for a level that lowers the error, red for one that raises it, or grey."""
    return "tab:green" if ratio.high < 1 else "tab:red" if ratio.low > 1 else "0.5"


def _crosses_two_axes(comparison: Comparison) -> bool:
    """Tell whether there are two axes, and arms that change both."""
    base = comparison.base.levels
    changed = [
        sum(label != base[axis] for axis, label in arm.arm.levels.items())
        for arm in comparison.arms
    ]
    return len(base) == 2 and max(changed) == 2


def _draw_heat(comparison: Comparison) -> Figure:
    """Draw the mean error of each pair of levels, with its number."""
    (first, rows), (second, columns) = comparison.study.axes.items()
    cells = {tuple(arm.arm.levels.values()): arm for arm in comparison.arms if arm.arm.levels}
    means = np.full((len(rows), len(columns)), np.nan)
    for (row, column), arm in cells.items():
        mean = arm.figures.get(comparison.ranked_by)
        means[rows.index(row), columns.index(column)] = mean.value if mean else np.nan
    size = (4.0 + 1.5 * len(columns), 2.2 + 0.7 * len(rows))
    figure = new_chart(*size)
    axes = figure.subplots()
    low, high = float(np.nanmin(means)), min(float(np.nanmax(means)), _limit(comparison))
    picture = axes.imshow(means, cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
    figure.colorbar(picture, label=f"error, {comparison.unit}")
    axes.set_facecolor("0.93")
    for (row, column), mean in np.ndenumerate(means):
        cell = cells.get((rows[row], columns[column]))
        status = "-" if cell is None else cell.status
        text = f"{mean:.3f}" if math.isfinite(mean) else wrap_label(status, 16)
        colour = "white" if mean > (low + high) / 2 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), [wrap_label(label, 18) for label in columns], fontsize=8)
    axes.set_yticks(range(len(rows)), [wrap_label(label, 24) for label in rows], fontsize=8)
    axes.set(xlabel=second, ylabel=first)
    return figure


def _limit(comparison: Comparison) -> float:
    """Return where an axis of errors ends: an arm that is far worse doesn't squeeze the others."""
    by = comparison.ranked_by
    values = [arm.figures[by].value for arm in comparison.arms if by in arm.figures]
    usual = [value for value in values if value <= 3 * sorted(values)[len(values) // 2]]
    return 1.05 * float(np.nanmax([*usual, comparison.predict_mean]))


def _tick_log(axis: Axis) -> None:
    """Give a logarithmic axis ticks in plain numbers, however far it reaches."""
    low, high = axis.get_view_interval()
    decades = [m * 10.0**e for e in range(-4, 4) for m in (1, 1.5, 2, 3, 5, 7)]
    axis.set_major_locator(MaxNLocator(8) if high < 4 * low else FixedLocator(decades))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
