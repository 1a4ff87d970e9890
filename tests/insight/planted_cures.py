"""What the first cure that is proposed for a planted fault brings by itself.

python -m tests.insight.planted --base bccd --cures
"""

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

import lightning_bbox
from lightning_bbox.cli.run import make
from lightning_bbox.insight.diagnosis.case import Case, Make
from lightning_bbox.insight.diagnosis.diagnose import diagnose
from lightning_bbox.insight.diagnosis.findings import Cure
from lightning_bbox.insight.diagnosis.trials import Trials
from tests.insight.planted import Config, Planted, plant, write_data
from tests.insight.planted_data import Base

STEPS = 150
"""Of each short training."""


class Cured(NamedTuple):
    """What a cure brings.

    Attributes:
        cure: The first that is proposed; empty where nothing is named.
        tried: Whether a short training can try it.
        healthy: Error of the healthy recipe, a share of predict-mean's.
        planted: That of the recipe with the fault.
        cured: That with the cure alone; NaN where it can't be tried.
    """

    cure: str
    tried: bool
    healthy: float
    planted: float
    cured: float

    @property
    def verdict(self) -> str:
        """Whether the error comes to within a tenth of the healthy recipe's."""
        if not self.tried:
            return "can't be tried" if self.cure else "nothing named"
        return "healthy" if self.cured <= 1.1 * self.healthy else "not healthy"


def cured(fault: Planted, base: Base, folder: Path, known: dict[str, float]) -> Cured:
    """Plant a fault, and apply the first cure that is proposed, by itself.

    Args:
        fault: What is planted.
        base: What the pictures are.
        folder: A new one.
        known: Errors of healthy recipes that were trained before; this one's is added.
    """
    write_data([fault], base, folder)
    case = plant([fault], base, folder)
    planted = _maker(case.config, folder / "planted.yaml")
    found = diagnose(planted, fault.name, minutes=0, steps=STEPS)
    recipe = yaml.safe_dump(case.healthy).replace(str(folder), "")
    if recipe not in known:
        known[recipe] = _error(_maker(case.healthy, folder / "healthy.yaml"), Cure())
    errors = known[recipe], found.trials[0].error if found.trials else math.nan
    if not found.named:
        return Cured("", False, *errors, math.nan)
    cure = found.named[0].finding.cure
    error = _error(planted, cure) if cure.can_be_tried else math.nan
    return Cured(str(cure) or "none is known", cure.can_be_tried, *errors, error)


def _maker(config: Config, file: Path) -> Make:
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return lambda added: make([f"--config={file}", *added])


def _error(made: Make, cure: Cure) -> float:
    trials = Trials(made, Case(made([])), STEPS, minutes=0)
    alters = [] if cure.alter is None else [cure.alter]
    return trials.run("a short training", cure.options, alters)[0].error


def tell_cures(faults: Sequence[Planted], bases: Sequence[Base]) -> None:
    """Tell for each fault what its cure brings, and how many come to the healthy error.

    Args:
        faults: What is planted, one at a time.
        bases: What the pictures are.
    """
    for name in lightning_bbox.__all__:  # a part goes by its name alone once it is imported
        getattr(lightning_bbox, name)
    sys.argv = sys.argv[:1]  # jsonargparse would warn of what stands there
    for base in bases:
        known: dict[str, float] = {}
        told = []
        for fault in faults:
            with tempfile.TemporaryDirectory() as folder:
                found = cured(fault, base, Path(folder), known)
            told.append(found)
            errors = f"{found.healthy:.2f}, {found.planted:.2f}, {found.cured:.2f}"
            _say(f"{base:6} {fault.name:28} healthy, planted, cured {errors}: {found.verdict}; "
                 f"{found.cure}")  # fmt: skip
        tried = [found for found in told if found.tried]
        well = sum(found.verdict == "healthy" for found in tried)
        _say(f"{base}: {well} of {len(tried)} that can be tried come to the healthy error")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
