"""Displacement laws by class, where classes are off in different ways."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import write_atomically
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.displacement import DisplacementLaw, Moved
from lightning_bbox.geometry.law_fitting import FEWEST_BOXES, with_shares_of
from lightning_bbox.geometry.weighing import (
    MOST_LEARNED_FROM,
    Limits,
    Said,
    a_sample,
    at_border,
    learn_law,
)


@dataclass(frozen=True)
class ClassLaws:
    """How boxes are off: all of them, and those of classes that are off in a way of their own.

    Args:
        every: How all boxes are off.
        by_class: How those of some classes are, by name; others are off as all are.

    Examples:
        >>> every = DisplacementLaw(0.0, (1.0,), ((0.0, 0.0),), ((0.1, 0.1),))
        >>> cells = DisplacementLaw(0.0, (1.0,), ((0.2, 0.0),), ((0.1, 0.1),))
        >>> ClassLaws(every, {"cell": cells}).words()
        'cell: 100 % of the boxes are 20 % too far left on average, and off by 10 % at random'
    """

    every: DisplacementLaw
    by_class: Mapping[str, DisplacementLaw] = field(default_factory=dict)

    def groups(self, names: Sequence[str]) -> Iterator[tuple[DisplacementLaw, Int64[Tensor, " k"]]]:
        """Yield each law with the rows that it is for, where there are any.

        Args:
            names: The class of each box.
        """
        rows: dict[str | None, list[int]] = {}
        for at, name in enumerate(names):
            rows.setdefault(name if name in self.by_class else None, []).append(at)
        for its, own in rows.items():
            yield self.every if its is None else self.by_class[its], torch.tensor(own)

    def move(self, said: Said, names: Sequence[str]) -> Moved:
        """Weigh what the picture says of each box against its law, as `DisplacementLaw.move` does.

        Args:
            said: What a model says.
            names: The class of each box.
        """
        empty = said.offsets.new_empty(len(names))
        found = Moved(
            torch.empty_like(said.offsets), torch.empty_like(said.stds), empty, empty.clone()
        )
        for law, rows in self.groups(names):
            for column, part in zip(found, law.move(*said.take(rows)), strict=True):
                column[rows] = part
        return found

    def short_of(self, overlap: float, said: Said, names: Sequence[str]) -> Float64[Tensor, " n"]:
        """Return the probability that each box overlaps the truth by less (see `DisplacementLaw`).

        Args:
            overlap: An IoU.
            said: What a model says.
            names: The class of each box.
        """
        found = torch.empty(len(names), dtype=torch.float64)
        for law, rows in self.groups(names):
            found[rows] = law.short_of(overlap, *said.take(rows))
        return found

    def words(self) -> str:
        """Say how the boxes are off, class by class where they differ."""
        told: dict[str, list[str]] = {}
        for name, law in self.by_class.items():
            told.setdefault(law.words(), []).append(name)
        return "\n".join(f"{', '.join(names)}: {how}" for how, names in told.items()) or (
            self.every.words()
        )

    def save(self, path: Path) -> None:
        """Write the laws as JSON, whole or not at all; `DisplacementLaw.load` reads that of all.

        Raises:
            BadInput: It can't be written there.
        """
        told = self.every.plain()
        if self.by_class:
            told["by_class"] = {name: law.plain() for name, law in self.by_class.items()}
        write_atomically(path, (json.dumps(told, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read laws that `save` wrote, or a single one.

        Raises:
            BadInput: The file can't be read, or holds no law.
        """
        every = DisplacementLaw.load(path)
        try:
            told: dict[str, Any] = json.loads(Path(path).read_bytes()).get("by_class", {})
            laws = {name: DisplacementLaw.from_plain(law) for name, law in told.items()}
        except (AttributeError, ValueError, TypeError, KeyError) as error:
            raise BadInput.at(str(path), "by_class holds no laws", "remove that key") from error
        if any(law.num_targets != every.num_targets for law in laws.values()):
            problem = f"by_class has laws of other than {every.num_targets} coordinates"
            raise BadInput.at(str(path), problem, "give the law.json of a prediction")
        return cls(every, laws)


def learn_laws(
    said: Said, rough: Boxes, limits: Limits, clusters: Int64[Tensor, " n"], names: Sequence[str]
) -> ClassLaws:
    """Learn how boxes are off, by class where the Bayesian information criterion wants it.

    A class of fifty boxes or more has a law of its own where that makes what the model says of its
    boxes likelier than the law of all does, by more than its numbers cost: the more the boxes of
    a picture go together, the more. The other classes then have one law together; of fewer boxes it
    is the shares of its parts that may be a class's own.

    Args:
        said: What a model says of each box.
        rough: The boxes, `xyxy` in picture pixels.
        limits: Width and height of each one's picture.
        clusters: Its picture or group.
        names: Its class.

    Raises:
        BadInput: There are too few boxes, or the model tells no standard deviations.

    References:
        Schwarz, Estimating the dimension of a model (1978), with the design effect of Kish, Survey
        sampling (1965), as boxes come by pictures.
    """
    if len(names) > MOST_LEARNED_FROM:
        some = a_sample(len(names))
        told = said.take(some), rough[some], limits[some], clusters[some]
        return learn_laws(*told, [names[at] for at in some.tolist()])

    def learned(rows: Int64[Tensor, " k"]) -> DisplacementLaw:
        return learn_law(said.take(rows), rough[rows], limits[rows], clusters[rows])

    every, by_class = learn_law(said, rough, limits, clusters), {}
    whole = ~at_border(rough, limits).any(dim=1)
    rows_of = {name: _where(names, {name}) for name in dict.fromkeys(names)}
    for name, all_rows in rows_of.items() if len(rows_of) > 1 else ():
        rows = all_rows[whole[all_rows]]
        if len(rows) >= FEWEST_BOXES:
            own, part = learned(all_rows), said.take(rows)
            gained = own.log_likelihoods(*part) - every.log_likelihoods(*part)
            if _is_worth(gained, clusters[rows], len(own.shares) * (1 + 2 * own.num_targets)):
                by_class[name] = own
    others = [name for name in rows_of if name not in by_class]
    rows = _where(names, set(others))
    rest = learned(rows) if by_class and len(rows) >= FEWEST_BOXES else every
    for name in others if len(rows_of) > 1 else ():
        few = rows_of[name][whole[rows_of[name]]]
        if (adapted := _with_own_shares(rest, said.take(few), clusters[few])) is not None:
            by_class[name] = adapted
    if by_class:
        by_class |= {name: rest for name in others if name not in by_class}
    return ClassLaws(every, by_class)


def _with_own_shares(
    law: DisplacementLaw, said: Said, clusters: Int64[Tensor, " k"]
) -> DisplacementLaw | None:
    """Return a law with the shares that its parts have in a small class, where that is worth it."""
    if not 0 < len(clusters) < FEWEST_BOXES:
        return None
    own = with_shares_of(law, *said)
    gained = own.log_likelihoods(*said) - law.log_likelihoods(*said)
    return own if _is_worth(gained, clusters, len(own.shares)) else None


def _is_worth(gained: Float64[Tensor, " n"], clusters: Int64[Tensor, " n"], numbers: int) -> bool:
    """Tell whether boxes have got likelier by more than so many numbers of a law cost.

    How much boxes of a picture go together is measured by what they gained.
    """
    _, own = torch.unique(clusters, return_inverse=True)
    apart = gained - gained.mean()
    together = torch.zeros(int(own.max()) + 1, dtype=apart.dtype).index_add_(0, own, apart)
    effect = float(together.square().sum() / apart.square().sum().clamp(min=1e-12))
    cost = 0.5 * math.log(max(len(gained), FEWEST_BOXES)) * numbers
    return float(gained.sum()) > cost * max(effect, 1.0)


def _where(names: Sequence[str], chosen: set[str]) -> Int64[Tensor, " k"]:
    return torch.tensor([at for at, name in enumerate(names) if name in chosen], dtype=torch.int64)
