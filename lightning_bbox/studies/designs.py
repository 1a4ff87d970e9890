"""Designs: how axes are crossed, and which few arms tell the main effects of many axes apart."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_bbox.core.errors import BadInput
from lightning_bbox.studies.study import Levels, Options

Axes = dict[str, dict[str, Options]]
"""For each axis its levels, the base's first, and what they set."""

DESIGNS = "one_at_a_time, full, or fraction: N"
"""What there is to choose from."""


def cross_axes(file: str, axes: Axes, design: object, excluded: Sequence[Levels]) -> list[Levels]:
    """Return the levels of the crossed arms, the base's first.

    Args:
        file: The study's file, for a refusal.
        axes: What is crossed.
        design: One of `DESIGNS`.
        excluded: Levels that don't go together.

    Raises:
        BadInput: There is no such design, or it has no room for the base or for all effects.
    """
    base = {axis: next(iter(levels)) for axis, levels in axes.items()}
    if design == "one_at_a_time":
        changed = [{axis: label} for axis, levels in axes.items() for label in [*levels][1:]]
        return [base, *(base | change for change in changed)]
    every = [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())]
    allowed = [c for c in every if not any(partial.items() <= c.items() for partial in excluded)]
    if base not in allowed:
        raise BadInput.at(file, "exclude rules the base out", "put another level first")
    if design == "full":
        return allowed
    if isinstance(design, dict) and design.keys() == {"fraction"}:
        count, needed = design["fraction"], 1 + sum(len(levels) - 1 for levels in axes.values())
        if type(count) is not int or not needed <= count <= len(allowed):
            problem = f"design fraction is {count!r}"
            raise BadInput.at(file, problem, f"give {needed} to {len(allowed)} arms")
        return [allowed[row] for row in fractional_design(allowed, count)]
    raise BadInput.at(file, f"design is {design!r}", f"give {DESIGNS}")


def main_effects_matrix(cells: Sequence[Mapping[str, str]]) -> NDArray[np.float64]:
    """Return the design matrix of main effects: a constant, then a column for each other level.

    The first cell's levels are the reference: a column is 1 where a cell has its level.

    Args:
        cells: The level of each axis, for each arm.
    """
    columns = [np.ones(len(cells))]
    columns += [
        np.array([cell[axis] == label for cell in cells], dtype=np.float64)
        for axis, label in effects_of(cells)
    ]
    return np.stack(columns, axis=1)


def effects_of(cells: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return (axis, level) of each column but the first of `main_effects_matrix`."""
    return [
        (axis, label)
        for axis in cells[0]
        for label in dict.fromkeys(cell[axis] for cell in cells)
        if label != cells[0][axis]
    ]


def fractional_design(cells: Sequence[Mapping[str, str]], count: int) -> list[int]:
    """Choose arms from a full crossing so that main effects are told apart best: D-optimally.

    The first cell, the base, is always among them. Starting from rows that add most one by one,
    single rows are exchanged while that increases the determinant of the information matrix.

    Args:
        cells: All arms that are possible.
        count: How many to choose, at least one more than there are effects.

    Returns:
        The indices of those chosen, in order.

    References:
        Fedorov, Theory of optimal experiments (1972): the exchange; Mitchell (1974) for its start.
    """
    rows = main_effects_matrix(cells)
    chosen = [0]
    while len(chosen) < count:
        chosen.append(_best_addition(rows, chosen))
    improved = True
    while improved:
        improved = False
        for index in range(1, count):
            rest = chosen[:index] + chosen[index + 1 :]
            candidate = _best_addition(rows, rest)
            if _gain(rows, rest)[candidate] > _gain(rows, rest)[chosen[index]] * (1 + 1e-9):
                chosen[index], improved = candidate, True
    return sorted(chosen)


def _gain(rows: NDArray[np.float64], chosen: list[int]) -> NDArray[np.float64]:
    """Return by how much each row would multiply the determinant; 0 for those already there."""
    part = rows[chosen]
    information = part.T @ part + 1e-6 * np.eye(rows.shape[1])
    gain: NDArray[np.float64] = 1 + ((rows @ np.linalg.inv(information)) * rows).sum(axis=1)
    gain[chosen] = 0
    return gain


def _best_addition(rows: NDArray[np.float64], chosen: list[int]) -> int:
    # Rounded, so that ties go to the first row on every machine.
    return int(np.argmax(np.round(_gain(rows, chosen), 6)))
