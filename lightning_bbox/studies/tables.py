"""A comparison as tables: aligned Markdown, text for a terminal, and a CSV of every run."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_bbox.evaluation.intervals import TOO_FEW, Mean
from lightning_bbox.reports.tables import format_markdown, format_spaced
from lightning_bbox.studies.comparison import (
    FIGURES,
    IN_PERCENT,
    IN_PX,
    ArmSummary,
    Comparison,
    compare,
    figures_of,
)
from lightning_bbox.studies.study import Arm, Run, Study


class Cell(NamedTuple):
    """A table's cell: what it shows, and the number that it is sorted by; nan comes last."""

    text: str
    number: float


class Table(NamedTuple):
    """A table with the names of its columns, the first of which are words."""

    names: list[str]
    rows: list[list[Cell]]
    words: int

    def texts(self, columns: Sequence[int] | None = None) -> list[list[str]]:
        """Return what some or all columns show, their names first."""
        every = [self.names, *([cell.text for cell in row] for row in self.rows)]
        chosen = range(len(self.names)) if columns is None else columns
        return [[row[column] for column in chosen] for row in every]


def arms_table(comparison: Comparison) -> Table:
    """Return the table of all arms in their order, the base marked."""
    study = comparison.study
    hidden = {*(IN_PERCENT if comparison.in_px else IN_PX)}
    if study.folds is None:
        hidden |= {"val_mae_px", "val_error_percent"}
    shown = [figure for figure in FIGURES if figure not in hidden]
    heads = _heads(study.reach_px)
    names = ["arm", "runs", *(heads[figure] for figure in shown)]
    names.append(f"difference from base, {comparison.unit}")
    rows = []
    for arm in comparison.arms:
        is_base = arm.arm is comparison.base
        name = f"{arm.arm.name} (base)" if is_base and arm.arm.name != "base" else arm.arm.name
        cells = [_words(name), Cell(arm.status, len(arm.done) or math.nan)]
        cells += [_figure_cell(arm, figure) for figure in shown]
        rows.append([*cells, Cell("-", 0.0) if is_base else _difference_cell(arm)])
    return Table(names, rows, words=2)


def further_tables(comparison: Comparison) -> dict[str, Table]:
    """Return the tables of main effects and of what didn't arrive, by title, where there is any."""
    tables = {
        "Main effects": _effects_table(comparison),
        "What did not arrive": _stopped_table(comparison),
    }
    return {title: table for title, table in tables.items() if table.rows}


def _effects_table(comparison: Comparison) -> Table:
    """Return the table of main effects: each level against the base's of its axis."""
    names = ["axis", "level", "against", "error times", "95 % interval", "diverged"]
    rows = []
    for effect in comparison.effects:
        ratio = effect.ratio or Mean(math.nan, math.nan, math.nan, 0)
        told = effect.ratio is not None
        cells = [effect.axis, effect.level, comparison.base.levels[effect.axis]]
        rows.append(
            [
                *map(_words, cells),
                Cell(f"{ratio.value:.3f}" if told else "not told", ratio.value),
                Cell(f"{ratio.low:.3f} to {ratio.high:.3f}" if told else "-", ratio.low),
                Cell(f"{effect.diverged} of {effect.runs}", effect.diverged),
            ]
        )
    return Table(names, rows, words=3)


def _stopped_table(comparison: Comparison) -> Table:
    """Return the table of the runs that didn't arrive, but for those that aren't there yet."""
    rows = []
    for arm in comparison.arms:
        stopped = [r for r in arm.results if r.status not in ("done", "missing")]
        kinds = dict.fromkeys((result.status, result.detail) for result in stopped)
        for status, detail in kinds:
            alike = [r for r in stopped if (r.status, r.detail) == (status, detail)]
            steps = ", ".join(str(r.step) for r in alike if r.step is not None)
            seeds = ", ".join(_replicate(r.run) for r in alike)
            rows.append([*map(_words, (arm.arm.name, status, seeds, steps or "-", detail or "-"))])
    return Table(["arm", "what became of it", "seeds", "step", "why"], rows, words=5)


def notes(comparison: Comparison) -> list[str]:
    """Say what the tables' figures are."""
    study = comparison.study
    seeds = f"{len(study.seeds)} seed" + "s" * (len(study.seeds) > 1)
    over = seeds if study.folds is None else f"{seeds} and {study.folds} folds"
    error = "test" if study.folds is None else "lowest validation"
    lines = [f"Ranked by the {error} error: absolute, mean of x and y, mean over {over}."]
    if not comparison.in_px:
        lines.append(
            "Arms don't agree what a px is (data.crop), so errors are told in percent of the true"
            " box's side; a jitter of as many px moves boxes farther where a px is larger."
        )
    if any(arm.diverged and arm.done for arm in comparison.arms):
        lines.append("Arms of which a run diverged come last: their mean is of the others only.")
    if len(study.seeds) * (study.folds or 1) > 1:
        lines.append("± is the 95 % t-interval over runs; without it one run is all there is.")
    else:
        lines.append("One run an arm: nothing tells how much another seed would change.")
    if study.folds is not None:
        lines.append("Folds share training pictures: intervals over them are too narrow.")
    if not math.isnan(comparison.predict_mean):
        mean = f"{comparison.predict_mean:.3f} {comparison.unit}"
        lines.append(f"Predict-mean, moving every box by the training mean, errs by {mean}.")
    lines.append(
        "Difference from base: on the same draws, 95 % interval over runs and pictures or groups of"
        " them, for each arm by itself."
    )
    if comparison.effects:
        lines.append(
            "Main effects: least squares on the log error of the arms that arrived; interactions"
            " count as noise."
        )
    return lines


def as_markdown(comparison: Comparison) -> str:
    """Write a comparison as Markdown whose tables are aligned, so that they read as text too."""
    study = comparison.study
    arms = arms_table(comparison)
    parts = [f"# {study.name}: {len(study.arms)} arms", format_markdown(arms.texts(), arms.words)]
    parts.append("\n".join(notes(comparison)))
    for title, table in further_tables(comparison).items():
        parts += [f"## {title}", format_markdown(table.texts(), table.words)]
    return "\n\n".join(parts) + "\n"


def as_text(comparison: Comparison) -> str:
    """Write the ranking for a terminal: names come last, so that long ones do no harm."""
    arms, effects = arms_table(comparison), _effects_table(comparison)
    error = arms.names.index(_heads(comparison.study.reach_px)[comparison.ranked_by])
    parts = [format_spaced(arms.texts([error, len(arms.names) - 1, 1, 0])), ""]
    if effects.rows:
        parts += [format_spaced(effects.texts([3, 4, 5, 0, 1])), ""]
    return "\n".join([*parts, *notes(comparison)])


def as_csv(comparison: Comparison) -> str:
    """Write every run as a line: its arm, status and figures, and all that its test measured."""
    study, results = comparison.study, [r for arm in comparison.arms for r in arm.results]
    measured = sorted({name for result in results for name in result.metrics} - {*FIGURES})
    levels = {f"axis:{axis}": axis for axis in study.axes}
    first = ["rank", "arm", "base", "seed", "fold", "status", "step", "detail"]
    file = io.StringIO()
    header = [*first, *FIGURES, "options", *levels, *measured]
    writer = csv.DictWriter(file, header, lineterminator="\n")
    writer.writeheader()
    for rank, arm in enumerate(comparison.arms, start=1):
        for result in arm.results:
            run = result.run
            what = [rank, run.arm.name, run.arm is comparison.base, run.seed, run.fold]
            row = dict(zip(first, [*what, result.status, result.step, result.detail], strict=True))
            row |= figures_of(result, study.reach_px) | {"options": json.dumps(run.arm.options)}
            row |= {name: run.arm.levels.get(axis) for name, axis in levels.items()}
            writer.writerow(row | result.metrics)
    return file.getvalue()


def _heads(reach_px: float) -> dict[str, str]:
    heads = (
        *("validation error, px", "test error, px", "validation error, %", "test error, %"),
        "95th percentile, px",
        *("% of predict-mean", f"steps to {reach_px:g} px", "seconds"),
    )
    return dict(zip(FIGURES, heads, strict=True))


def _figure_cell(arm: ArmSummary, figure: str) -> Cell:
    """Write a mean and half its interval in the digits of its figure."""
    mean, runs = arm.figures.get(figure), len(arm.done)
    reaching = figure == "steps_to_reach"
    if mean is None:
        return _words("not reached" if reaching and runs else "-")
    scale, digits = 1.0, 3
    if figure == "share_of_predict_mean":
        scale, digits = 100.0, 1
    elif reaching or figure == "train_seconds":
        digits = 0 if mean.value >= 10 else 1
    text = f"{scale * mean.value:.{digits}f}"
    if not math.isnan(mean.low):
        text += f" ± {scale * (mean.high - mean.value):.{digits}f}"
    return Cell(text + f" ({mean.n} of {runs})" * (mean.n < runs), mean.value)


def _difference_cell(arm: ArmSummary) -> Cell:
    mean = arm.difference
    if mean is None:
        return _words("no common draws" if arm.done else "-")
    told = TOO_FEW if math.isnan(mean.low) else f"{mean.low:+.3f} to {mean.high:+.3f}"
    text = f"{mean.value:+.3f} ({told})"
    return Cell(text, mean.value)


def _words(text: str) -> Cell:
    return Cell(" ".join(text.split()), math.nan)


def _replicate(run: Run) -> str:
    return str(run.seed) if run.fold is None else f"{run.seed} fold {run.fold}"


def _without_runs() -> Comparison:
    """Return a comparison of two arms before anything has run, for the examples."""
    return compare(Study("few", (Arm("base"), Arm("L1")), seeds=(0,)), [])
