"""What the first cure that is proposed for a planted fault brings by itself.

python -m tests.insight.planted --base bccd --cures --out FILE
python -m tests.insight.planted_cures FILE
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import lightning_bbox
from lightning_bbox.cli.run import make
from lightning_bbox.evaluation.intervals import Mean
from lightning_bbox.insight.diagnosis.case import Case, Make
from lightning_bbox.insight.diagnosis.diagnose import diagnose
from lightning_bbox.insight.diagnosis.findings import Cure
from lightning_bbox.insight.diagnosis.trials import Trial, Trials, gain
from lightning_bbox.reports.tables import format_markdown
from tests.insight.planted import FAULTS, Config, Planted, plant, rank_of, write_data
from tests.insight.planted_data import Base

STEPS = 150
"""Of each short training."""
_NOT_TRIED = Mean(math.nan, math.nan, math.nan, 0)


class Cured(NamedTuple):
    """What a cure brings.

    Attributes:
        cure: The first that is proposed; empty where nothing is named.
        tried: Whether a short training can try it.
        healthy: Error of the healthy recipe, a share of predict-mean's.
        planted: That of the recipe with the fault.
        cured: That with the cure alone; NaN where it can't be tried.
        rank: Where the planted cause stands among those named, from 1; None where it isn't.
        gain: By how much of predict-mean's error the cure is better, with its interval.
        seconds: How long the diagnosis took.
    """

    cure: str
    tried: bool
    healthy: float
    planted: float
    cured: float
    rank: int | None = None
    gain: Mean = _NOT_TRIED
    seconds: float = math.nan

    @property
    def verdict(self) -> str:
        """Whether the error comes to within a tenth of the healthy recipe's."""
        if not self.tried:
            return "can't be tried" if self.cure else "nothing named"
        return "healthy" if self.cured <= 1.1 * self.healthy else "not healthy"

    def figures(self) -> dict[str, Any]:
        """Return it as plain data."""
        errors = {"healthy": self.healthy, "planted": self.planted, "cured": self.cured}
        gained = {"gain": self.gain.value, "low": self.gain.low, "high": self.gain.high}
        return {
            "rank": self.rank,
            "cure": self.cure,
            "verdict": self.verdict,
            **{name: _plain(value, 4) for name, value in (errors | gained).items()},
            "seconds": _plain(self.seconds, 1),
        }


def _plain(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


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
    since = time.monotonic()
    found = diagnose(planted, fault.name, minutes=0, steps=STEPS)
    seconds = time.monotonic() - since
    recipe = yaml.safe_dump(case.healthy).replace(str(folder), "")
    if recipe not in known:
        known[recipe] = _trial(_maker(case.healthy, folder / "healthy.yaml"), Cure()).error
    before = found.trials[0] if found.trials else None
    errors = known[recipe], math.nan if before is None else before.error
    rank = rank_of(fault.accepted, [each.name for each in found.named])
    if not found.named:
        return Cured("", False, *errors, math.nan, seconds=seconds)
    cure = found.named[0].finding.cure
    words = str(cure) or "none is known"
    if not cure.can_be_tried:
        return Cured(words, False, *errors, math.nan, rank, seconds=seconds)
    after = _trial(planted, cure)
    brought = _NOT_TRIED if before is None else gain(before, after)
    return Cured(words, True, *errors, after.error, rank, brought, seconds)


def _maker(config: Config, file: Path) -> Make:
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return lambda added: make([f"--config={file}", *added])


def _trial(made: Make, cure: Cure) -> Trial:
    trials = Trials(made, Case(made([])), STEPS, minutes=0)
    alters = [] if cure.alter is None else [cure.alter]
    return trials.run("a short training", cure.options, alters)[0]


def tell_cures(faults: Sequence[Planted], bases: Sequence[Base], out: Path | None = None) -> None:
    """Tell for each fault what its cure brings, and how many come to the healthy error.

    Args:
        faults: What is planted, one at a time.
        bases: What the pictures are.
        out: A JSON file; what it says of these faults is said anew, fault by fault.
    """
    for name in lightning_bbox.__all__:  # a part goes by its name alone once it is imported
        getattr(lightning_bbox, name)
    sys.argv = sys.argv[:1]  # jsonargparse would warn of what stands there
    kept = json.loads(out.read_text()) if out is not None and out.exists() else {}
    for base in bases:
        known: dict[str, float] = {}
        told = []
        for fault in faults:
            with tempfile.TemporaryDirectory() as folder:
                found = cured(fault, base, Path(folder), known)
            told.append(found)
            kept.setdefault(base, {})[fault.name] = found.figures()
            if out is not None:
                out.write_text(json.dumps(kept, indent=1) + "\n")
            errors = f"{found.healthy:.2f}, {found.planted:.2f}, {found.cured:.2f}"
            _say(f"{base:6} {fault.name:28} rank {found.rank} in {found.seconds:.0f} s; healthy, "
                 f"planted, cured {errors}: {found.verdict}; {found.cure}")  # fmt: skip
        tried = [found for found in told if found.tried]
        well = sum(found.verdict == "healthy" for found in tried)
        _say(f"{base}: {well} of {len(tried)} that can be tried come to the healthy error")


def as_table(kept: dict[str, Any]) -> str:
    """Return what cures brought as Markdown, a row a fault in the order of `FAULTS`.

    Args:
        kept: Of one base, what `tell_cures` wrote.
    """
    rows = [["planted", "named", "healthy", "planted", "cured", "the cure takes off", "verdict"]]
    for fault in FAULTS:
        if (found := kept.get(fault.name)) is None:
            continue
        errors = [_told(found[name]) for name in ("healthy", "planted", "cured")]
        named = "-" if found["rank"] is None else f"{found['rank']}."
        brought = _told(found["gain"])
        if found["low"] is not None:
            brought += f" ({found['low']:.2f} to {found['high']:.2f})"
        rows.append([fault.cause, named, *errors, brought, found["verdict"]])
    return format_markdown(rows, words=2)


def _told(error: float | None) -> str:
    return "-" if error is None else f"{error:.2f}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for name, found in json.loads(Path(sys.argv[1]).read_text()).items():
        _say(f"{name}\n\n{as_table(found)}\n")
