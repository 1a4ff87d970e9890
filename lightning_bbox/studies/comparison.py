"""What a study has found: each arm's figures over its runs, against the base, and main effects."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.evaluation.intervals import Mean, crossed_interval, t_interval, t_quantile
from lightning_bbox.studies.designs import effects_of, main_effects_matrix
from lightning_bbox.studies.study import Arm, Result, Study

IN_PX = ("val_mae_px", "test_mae_px", "test_p95_px", "steps_to_reach")
"""Figures that tell nothing between arms of which a px is not the same."""
IN_PERCENT = ("val_error_percent", "test_error_percent")
"""What stands in their place: errors in percent of the true box's side."""
FIGURES = (
    *("val_mae_px", "test_mae_px", *IN_PERCENT, "test_p95_px", "share_of_predict_mean"),
    *("steps_to_reach", "train_seconds"),
)
"""Names of a run's figures, in the order of the tables."""


@dataclass(frozen=True)
class ArmSummary:
    """One arm over all its runs.

    Attributes:
        arm: Which one.
        results: What became of each of its runs, in the order of the study.
        figures: Means over the runs that have them, by the names of `FIGURES`.
        difference: Of the absolute test error from the base's, draw by draw, over the runs that
            both have, in px or percent, as arms are ranked; None for the base, and where
            there are no common draws.
    """

    arm: Arm
    results: tuple[Result, ...]
    figures: dict[str, Mean]
    difference: Mean | None

    @property
    def done(self) -> list[Result]:
        """The runs that arrived."""
        return [result for result in self.results if result.status == "done"]

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(result.status == "diverged" for result in self.results)

    @property
    def status(self) -> str:
        """How many runs arrived, and what became of the others."""
        stopped = [result for result in self.results if result.status != "done"]
        told = [f"{len(self.done)} of {len(self.results)}"]
        for status, count in Counter(result.status for result in stopped).items():
            steps = [r.step for r in stopped if r.status == status and r.step is not None]
            at = f" (step {', '.join(map(str, steps))})" if steps else ""
            told.append(f"{count} {status}{at}")
        return ", ".join(told)


@dataclass(frozen=True)
class Effect:
    """How a level changes the error against the base's level, all other axes averaged over.

    Attributes:
        axis: The axis.
        level: The level, by its label.
        ratio: Of the error to the base level's, with its 95 % interval, interactions as noise, and
            how many arms of this level it was fitted on; None where nothing that arrived tells it.
        runs: How many runs there are with this level.
        diverged: How many of them diverged.
    """

    axis: str
    level: str
    ratio: Mean | None
    runs: int
    diverged: int


@dataclass(frozen=True)
class Comparison:
    """All that a study has found.

    Attributes:
        study: The study.
        ranked_by: The figure that the arms are in the order of: in px, or where arms don't agree
            what a px is (`data.crop`), in percent of the true box's side.
        arms: From the lowest error up; then those of which a run diverged, and those without any
            error last.
        effects: Main effects, where the design tells them apart from noise; base levels aren't
            among them.
        predict_mean: Test error of predicting the training mean, in the unit of the ranking; nan
            where no run knows.
    """

    study: Study
    ranked_by: str
    arms: tuple[ArmSummary, ...]
    effects: tuple[Effect, ...]
    predict_mean: float

    @property
    def in_px(self) -> bool:
        """Whether errors are told in px, not in percent of the true box's side."""
        return self.ranked_by in IN_PX

    @property
    def unit(self) -> str:
        """The unit that errors are told in."""
        return "px" if self.in_px else "%"

    def curve(self, result: Result) -> list[tuple[int, float]]:
        """Return a run's validation errors by step, in this unit.

        Args:
            result: What became of the run.
        """
        if self.in_px:
            return result.curve
        return [(step, 100 * error) for step, error in result.fraction_curve]

    @property
    def base(self) -> Arm:
        """The arm that all others are compared with."""
        return self.study.arms[0]


def compare(study: Study, results: Sequence[Result]) -> Comparison:
    """Compare a study's arms; whatever is missing among the results is said to be.

    Args:
        study: What was to be run.
        results: What became of the runs, in any order.
    """
    found = {result.run.name: result for result in results}
    by_arm: dict[str, list[Result]] = {arm.name: [] for arm in study.arms}
    for run in study.runs():
        by_arm[run.arm.name].append(found.get(run.name, Result(run, "missing")))
    base = by_arm[study.arms[0].name]
    in_px = len({_px_of(result) for result in results if result.status == "done"}) < 2
    summaries = [_summary(arm, by_arm[arm.name], base, study.reach_px, in_px) for arm in study.arms]
    split, unit = "test" if study.folds is None else "val", "mae_px" if in_px else "error_percent"
    ranked_by = f"{split}_{unit}"
    guess = "mae_px" if in_px else "error_fraction"
    known = [result.metrics.get(f"test/{guess}_predict_mean") for result in results]
    means = [value * (1 if in_px else 100) for value in known if value is not None]
    return Comparison(
        study=study,
        ranked_by=ranked_by,
        arms=tuple(sorted(summaries, key=lambda arm: _place(arm, ranked_by))),
        effects=tuple(_main_effects(summaries, ranked_by)),
        predict_mean=math.fsum(means) / len(means) if means else math.nan,
    )


def figures_of(result: Result, reach_px: float) -> dict[str, float]:
    """Return a run's figures by the names of `FIGURES`, those that it has.

    Args:
        result: What became of the run.
        reach_px: The validation error whose first step is told, in px.
    """
    metrics, errors = result.metrics, [error for _, error in result.curve]
    shares, share = [e for _, e in result.fraction_curve], metrics.get("test/error_fraction")
    error, mean = metrics.get("test/mae_px"), metrics.get("test/mae_px_predict_mean")
    figures = {
        "val_mae_px": min(errors, default=None),
        "test_mae_px": error,
        "val_error_percent": 100 * min(shares) if shares else None,
        "test_error_percent": None if share is None else 100 * share,
        "test_p95_px": metrics.get("test/p95_px"),
        "share_of_predict_mean": error / mean if error is not None and mean else None,
        "steps_to_reach": _steps_to_reach(result.curve, reach_px),
        "train_seconds": metrics.get("train_seconds"),
    }
    return {name: x for name, x in figures.items() if x is not None and math.isfinite(x)}


def _steps_to_reach(curve: Sequence[tuple[int, float]], threshold: float) -> float | None:
    """Return when a curve is first at or below a threshold, linear between its points."""
    for index, (step, error) in enumerate(curve):
        if error <= threshold:
            before, above = curve[index - 1] if index else (step, math.inf)
            if not math.isfinite(above):
                return float(step)
            return before + (step - before) * (above - threshold) / (above - error)
    return None


def _px_of(result: Result) -> tuple[float | None, ...]:
    """Return what a px is in a run: the same in two runs where this is equal."""
    return tuple(result.metrics.get(name) for name in ("px_per_side", "square"))


def _paired_difference(arm: Sequence[Result], base: Sequence[Result], in_px: bool) -> Mean | None:
    """Return how much an arm's error lies above the base's, over runs of the same seed and fold.

    In px or percent; None where no two runs have the same draws. Both have their runs in the
    same order.
    """

    def error(result: Result) -> Float[Tensor, " n"]:
        return result.errors.double() if in_px else 100 * result.fractions.double()

    both = [
        (mine, its)
        for mine, its in zip(arm, base, strict=True)
        if mine.status == its.status == "done" and len(error(mine)) == len(error(its)) > 0
        if mine.pictures.equal(its.pictures)
    ]
    if not both:
        return None
    differences = [error(mine) - error(its) for mine, its in both]
    return crossed_interval(differences, [mine.pictures for mine, _ in both])


def _main_effects(arms: Sequence[ArmSummary], figure: str) -> list[Effect]:
    """Return the main effects of the axes on an error, by least squares on its logarithm.

    Arms beside the axes, and those without the figure, are left out of the fit; the first has the
    base's levels. A design that leaves no residual degrees of freedom has none.

    References:
        Box, Hunter and Hunter, Statistics for experimenters (2005), chapters 5 and 6.
    """
    crossed = [arm for arm in arms if arm.arm.levels]
    if not crossed:
        return []
    cells = [arm.arm.levels for arm in crossed]
    fitted = [index for index, arm in enumerate(crossed) if math.isfinite(_value(arm, figure))]
    matrix = main_effects_matrix(cells)[fitted]
    freedom = len(fitted) - int(np.linalg.matrix_rank(matrix)) if fitted else 0
    if freedom < 1:
        return []
    logs = np.log([max(_value(crossed[index], figure), 1e-12) for index in fitted])
    inverse = np.linalg.pinv(matrix)
    solution = inverse @ logs
    noise = float(((logs - matrix @ solution) ** 2).sum()) / freedom
    halves = t_quantile(0.975, freedom) * np.sqrt(noise * (inverse**2).sum(axis=1))
    # Arms that diverged leave gaps: an effect whose column mixes the others is not estimable.
    estimable = np.abs(inverse @ matrix - np.eye(matrix.shape[1])).max(axis=1) < 1e-6
    effects = []
    for column, (axis, level) in enumerate(effects_of(cells), start=1):
        having = [arm for arm in crossed if arm.arm.levels[axis] == level]
        ends = [result.status for arm in having for result in arm.results]
        value, half = float(solution[column]), float(halves[column])
        bounds = (math.exp(value), math.exp(value - half), math.exp(value + half))
        ratio = Mean(*bounds, int(matrix[:, column].sum())) if estimable[column] else None
        effects.append(Effect(axis, level, ratio, len(ends), ends.count("diverged")))
    return effects


def _summary(
    arm: Arm, results: list[Result], base: list[Result], reach_px: float, in_px: bool
) -> ArmSummary:
    rows = [figures_of(result, reach_px) for result in results if result.status == "done"]
    columns = {name: [row[name] for row in rows if name in row] for name in FIGURES}
    figures = {name: t_interval(values) for name, values in columns.items() if values}
    difference = None if results is base else _paired_difference(results, base, in_px)
    return ArmSummary(arm, tuple(results), figures, difference)


def _place(arm: ArmSummary, figure: str) -> tuple[bool, float]:
    """Return what puts an arm in order: the mean of the runs that didn't diverge flatters one."""
    return arm.diverged > 0, _value(arm, figure)


def _value(arm: ArmSummary, figure: str) -> float:
    return arm.figures[figure].value if figure in arm.figures else math.inf
