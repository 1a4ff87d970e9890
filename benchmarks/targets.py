"""The targets: which figure of which question must reach what.

A gate is the least that is wanted, a goal what we are after; the report tells for each whether it
was reached, with its spread, and no test asks for a time. Those of the CPU are ratios of times
taken in turns; those of the H200 are shares of a limit measured in the same run, or rates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks import augment, crops, ridge
from benchmarks.rows import Row

Kind = Literal["ratio", "growth", "share", "rate", "seconds"]


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    `kind` says what is meant: the ratio of a peer's time to ours (growth where the peer is ours
    too, and less is better), our share of the floor, items a second, or seconds (less is better).
    """

    what: str
    device: Literal["cpu", "H200"]
    question: str
    case: str
    kind: Kind
    gate: float
    goal: float
    peer: str = ""

    def row(self, rows: Iterable[Row]) -> Row | None:
        """Return the row that it is read from, the latest; None where it wasn't measured."""
        mine = [row for row in rows if (row.run.device == "cpu") == (self.device == "cpu")]
        mine = [row for row in mine if self.device == "cpu" or self.device in row.run.device]
        found = (r for r in mine if r.question == self.question and r.case.startswith(self.case))
        return max(found, key=lambda row: row.run.date, default=None)

    def figure(self, row: Row) -> tuple[float, float] | None:
        """Return what was measured and its cautious quartile, None where the peer isn't there."""
        ours = row.arms[0].seconds
        if self.kind == "ratio":
            ratio = row.ratios.get(self.peer)
            return None if ratio is None else (ratio.median, ratio.low)
        if self.kind == "growth":
            ratio = row.ratios.get(self.peer)
            return None if ratio is None else (ratio.median, ratio.high)
        if self.kind == "share":
            floor = row.floor_seconds or 0.0
            return floor / ours.median, floor / ours.high
        if self.kind == "rate":
            return row.items / ours.median, row.items / ours.high
        return ours.median, ours.high

    def meets(self, value: float, bound: float) -> bool:
        """Tell whether a figure reaches a bound."""
        return value <= bound if self.kind in ("seconds", "growth") else value >= bound


def cpu(what: str, question: str, case: str, peer: str, gate: float, goal: float) -> Target:
    """Return a target of the CPU: how many times as long a peer takes."""
    return Target(what, "cpu", question, case, "ratio", gate, goal, peer)


def h200(what: str, question: str, case: str, kind: Kind, gate: float, goal: float) -> Target:
    """Return a target of the H200."""
    return Target(what, "H200", question, case, kind, gate, goal)


LOADER = "DataLoader, per-sample transforms, 0 workers"
TARGETS = (
    cpu("integer cut", "crops", crops.INTEGER, "kornia crop_by_indices", 2, 4),
    cpu("integer cut", "crops", crops.INTEGER, "kornia RandomCrop", 4, 8),
    cpu("integer cut", "crops", crops.INTEGER, "kornia crop_and_resize", 5, 10),
    cpu("sub-pixel cut, 45 px", "crops", crops.SUBPIXEL, "kornia crop_and_resize", 5, 8),
    cpu("sub-pixel cut, 45 px", "crops", crops.SUBPIXEL, "torchvision roi_align", 5, 8),
    cpu("227 px from pictures", "crops", crops.LARGE, "kornia crop_and_resize", 10, 16),
    *(
        Target(
            "cut by box size, beside 30 px", "cpu", "crops", crops.BY_SIZE, "growth", 2, 1.3, arm
        )
        for arm in (f"boxes of {side} px" for side in crops.SIZES[1:])
    ),
    cpu(
        "cut, augment, normalise",
        "augment",
        augment.INTEGER,
        "kornia AugmentationSequential",
        8,
        15,
    ),
    cpu("cut, augment, normalise", "augment", augment.INTEGER, LOADER, 10, 20),
    cpu("fit", "fit", "fit with TensorBoard", "the bare loop", 0.85, 0.97),
    h200(
        "integer cut, share of copying", "crops", f"{crops.INTEGER}, batch 16384", "share", 0.3, 0.5
    ),
    h200("sub-pixel cut, 45 px", "crops", f"{crops.SUBPIXEL}, batch 16384", "share", 0.3, 0.5),
    h200("227 px from pictures", "crops", crops.LARGE, "share", 0.5, 0.7),
    h200("training step, share of the floor", "train_step", "training step", "share", 0.25, 0.45),
    h200("AlexNet fc6, crops/s", "features", "AlexNet fc6", "rate", 150_000, 250_000),
    h200("ridge 20,000 x 4,096, seconds", "ridge", ridge.ONE, "seconds", 0.03, 0.015),
    Target("ridge", "H200", "ridge", ridge.ONE, "ratio", 2, 3, "scikit-learn"),
    Target("fit", "H200", "fit", "fit with TensorBoard", "ratio", 0.85, 0.97, "the bare loop"),
)
