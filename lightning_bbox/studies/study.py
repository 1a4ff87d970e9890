"""A study: one base configuration, what is changed in it, its runs, and what became of them."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.recipes import Plain
from lightning_bbox.reports.callbacks import Settings

Levels = dict[str, str]
"""The level of each axis, by their labels."""
Options = dict[str, Plain]
"""Options of `fit`, by dotted name."""

Status = Literal["done", "diverged", "refused", "failed", "missing"]


@dataclass(frozen=True)
class Arm:
    """One configuration of a study.

    Attributes:
        name: What tables and plots call it.
        levels: Where it stands on the axes; empty for an arm beside them.
        options: What it changes in the base configuration.
    """

    name: str
    levels: Levels = field(default_factory=dict)
    options: Options = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return re.sub(r"[^\w.+-]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class Run:
    """One arm with one seed, and with one fold where the study has some."""

    arm: Arm
    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.arm.folder}-seed{self.seed}{fold}"


@dataclass(frozen=True)
class Study:
    """What is compared: arms, the base first, each with every seed.

    Attributes:
        name: The study's name, that of its folder.
        arms: The arms, the base first.
        configs: The base configuration: files, or presets.
        options: What every arm changes in it.
        axes: Labels of the levels of each axis, the base's first.
        seeds: Each arm is run with each.
        folds: Over how many tenths of the training pictures validation goes, where it is a
            cross-validation.
        steps: Optimiser steps of a run; as the configuration says by default.
        seconds: Seconds of training of a run, instead of steps.
        reach_px: The validation error whose first step is told, in px.
    """

    name: str
    arms: tuple[Arm, ...]
    configs: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int | None = None
    steps: int | None = None
    seconds: float | None = None
    reach_px: float = 1.0

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that a study that is stopped has whole rounds."""
        folds = [None] if self.folds is None else range(self.folds)
        replicates = itertools.product(self.seeds, folds)
        return [Run(arm, seed, fold) for seed, fold in replicates for arm in self.arms]

    def arguments(self, run: Run, given: Sequence[str] = ()) -> list[str]:
        """Return the arguments of `fit` that make a run, but for where it is kept.

        Args:
            run: Which one.
            given: Options for all runs; they win over the study's, and the arm's win over them.
        """
        options: Options = dict(self.options)
        if self.steps is not None:
            options |= {"trainer.max_steps": self.steps, "trainer.max_epochs": -1}
        if self.seconds is not None:
            options |= {"trainer.max_time": _clock(self.seconds), "trainer.max_epochs": -1}
        if run.fold is not None:
            options |= {"data.splits.fold": run.fold}
        seed = f"--seed_everything={run.seed}"
        configs = [f"--config={config}" for config in self.configs]
        return [*configs, seed, *_written(options), *given, *_written(run.arm.options)]


@dataclass(frozen=True)
class Result:
    """What became of one run.

    Attributes:
        run: Which one.
        status: Whether it arrived, diverged, was refused for its settings, failed, or isn't there.
        detail: Why it did not arrive.
        step: The step at which it diverged.
        metrics: Numbers of the test, and `train_seconds` and `train_steps`.
        curve: (step, error on the validation draws in px), in order.
        fraction_curve: The same with the error as a fraction of the true box's side.
        errors: Absolute error of each test draw in px, the mean of x and y.
        fractions: The same as a fraction of the true box's side.
        pictures: Which picture, or group, each test draw is of.
        settings: What made the run what it is; None where there is nothing of it yet.
    """

    run: Run
    status: Status
    detail: str = ""
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    fraction_curve: list[tuple[int, float]] = field(default_factory=list)
    errors: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    fractions: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    pictures: Int64[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    settings: Settings | None = None


def _written(options: Options) -> list[str]:
    """Write options as the command line takes them."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]


def _clock(seconds: float) -> str:
    """Return a time as Lightning reads it: days, hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02d}:{hours:02d}:{minutes:02d}:{seconds:02d}"
