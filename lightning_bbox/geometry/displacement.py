"""Displacement laws: how the boxes at hand are off, learned from what a model says of them all.

A model is trained on boxes that are off by its own jitter law, and moves whatever it is given by
what that law makes likely. The boxes at hand have a law of their own: a part of them is right
already, the others are off by something in common and something at random. It is found without any
label, and says how far each box should follow the picture.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import write_atomically
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.geometry.boxes import paired_iou
from lightning_bbox.geometry.codecs import decode_deltas
from lightning_bbox.geometry.reliability import NORMAL, Tails

_DRAWS = 48  # and as many mirrored ones, for the expected IoU
_CHUNK = 64  # boxes whose expected IoUs are in memory at once

Offsets = Float[Tensor, "n t"]


class Moved(NamedTuple):
    """Where boxes go under a law.

    Attributes:
        offsets: From each box, as shares of its sides and changes of log size.
        stds: Root mean square of how far the truth is from there, in the same units.
        gain: Rise of the expected IoU with the truth over that of the box as it is.
        wrong: Probability that the box isn't right as it is.
    """

    offsets: Offsets
    stds: Offsets
    gain: Float[Tensor, " n"]
    wrong: Float[Tensor, " n"]


_MOST = 100.0  # sides that a box may be off, or by which its size may differ in log


@dataclass(frozen=True)
class DisplacementLaw:
    """A mixture of boxes that are right and of normal laws of how the others are off.

    Offsets are what moves a box to the truth: (dx, dy) as shares of the box's sides, and (dw, dh)
    as changes of log size where there are four coordinates.

    Args:
        right: Share of the boxes that are right as they are.
        shares: Share of the boxes that each normal law has.
        means: Its mean offset.
        stds: Its standard deviation in each coordinate.
        within: Standard deviation, in each coordinate, of how far off boxes that count as right may
            be, as the pictures don't tell it; none by default.

    Raises:
        BadInput: Shares don't add up to 1, or the numbers aren't a law's.

    References:
        Efron and Morris, Stein's estimation rule and its competitors (1973): the law of all helps
        to estimate each. The mixture with boxes that are right and the choice by expected IoU are
        ours.

    Examples:
        >>> law = DisplacementLaw(0.5, (0.5,), ((0.1, 0.0),), ((0.02, 0.02),))
        >>> said, off_by = torch.tensor([[0.01, 0.0], [0.12, 0.01]]), torch.full((2, 2), 0.02)
        >>> law.move(said, off_by).offsets
        tensor([[0.0000, 0.0000],
                [0.1100, 0.0050]])
    """

    right: float
    shares: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    stds: tuple[tuple[float, ...], ...]
    within: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers."""
        rows = [*self.means, *self.stds]
        numbers = [self.right, *self.shares, *(number for row in rows for number in row)]
        numbers += self.within
        is_law = (
            all(abs(number) <= _MOST for number in numbers)
            and len(self.shares) == len(self.means) == len(self.stds) > 0
            and {len(row) for row in rows} in ({2}, {4})
            and min(self.right, *self.shares, *(min(row) for row in self.stds)) >= 0
            and len(self.within) in (0, len(self.means[0]))
            and min(self.within, default=0) >= 0
            and abs(self.right + sum(self.shares) - 1) < 1e-3
        )
        if not is_law:
            msg = (
                f"{self} is no law: shares must add up to 1, each with 2 or 4 means and standard "
                f"deviations"
            )
            raise BadInput(msg)

    @property
    def num_targets(self) -> int:
        """How many coordinates it is about."""
        return len(self.means[0])

    def move(self, said: Offsets, stds: Offsets, tails: Tails = NORMAL) -> Moved:
        """Weigh what the picture says of each box against the law, and say where the box goes.

        That is the place of the greatest expected IoU with the truth: where the box is, the mean
        under one of the law's parts, or the mean of all. A box stays unless another place is
        better.

        Args:
            said: How a model says that each box is off.
            stds: Its standard deviations, in the same units.
            tails: How its errors are spread about these (see `Reliability`).
        """
        empty = said.new_empty(len(said))
        found = Moved(torch.empty_like(said), torch.empty_like(said), empty, empty.clone())
        table, draws = self.table(), law_draws(self.num_targets)
        for start in range(0, len(said), _CHUNK):
            rows = slice(start, start + _CHUNK)
            moved = move_by(table, said[rows], stds[rows], tails, draws)
            for column, part in zip(found, moved, strict=True):
                column[rows] = part
        return found

    def short_of(
        self, overlap: float, said: Offsets, stds: Offsets, tails: Tails = NORMAL
    ) -> Float64[Tensor, " n"]:
        """Return the probability that each box, as it is, overlaps the truth by less.

        Args:
            overlap: An IoU. Boxes that are right, as far as the pictures tell, have one of 1.
            said: How a model says that each box is off.
            stds: Its standard deviations, in the same units.
            tails: How its errors are spread about these.

        Examples:
            >>> law = DisplacementLaw(0.5, (0.5,), ((0.1, 0.0),), ((0.02, 0.02),))
            >>> said, off_by = torch.tensor([[0.01, 0.0], [0.12, 0.01]]), torch.full((2, 2), 0.02)
            >>> law.short_of(0.9, said, off_by).round(decimals=2)
            tensor([0., 1.], dtype=torch.float64)
        """
        law, draws, short = self.parts(), law_draws(self.num_targets), []
        for start in range(0, len(said), _CHUNK):
            rows = slice(start, start + _CHUNK)
            given = said[rows].double(), stds[rows].double()
            chances, where, off, _ = posterior(*law, *given, tails)
            truths = _unit_boxes(where[:, :, None] + off.sqrt()[:, :, None] * draws)
            overlaps = paired_iou(_unit_boxes(torch.zeros_like(given[0])), truths)
            short.append((chances * (overlaps < overlap).double().mean(dim=2)).sum(dim=(0, 1)))
        return torch.cat(short)

    def log_likelihoods(
        self, said: Offsets, stds: Offsets, tails: Tails = NORMAL
    ) -> Float64[Tensor, " n"]:
        """Return the logarithm of the density of what a model says of each box, in nats.

        Args:
            said: How it says that each box is off.
            stds: Its standard deviations, in the same units.
            tails: How its errors are spread about these.

        Examples:
            >>> law = DisplacementLaw(1.0, (0.0,), ((0.0, 0.0),), ((1.0, 1.0),))
            >>> law.log_likelihoods(torch.zeros(1, 2), torch.ones(1, 2))  # -ln 2 pi
            tensor([-1.8379], dtype=torch.float64)
        """
        return posterior(*self.parts(), said.double(), stds.double(), tails)[-1]

    def parts(
        self,
    ) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "k t"], Float64[Tensor, "k t"]]:
        """Return share, mean and variance of each part as `posterior` takes them.

        The first is that of the boxes that are right: at zero, and of no width.

        Examples:
            >>> law = DisplacementLaw(0.5, (0.5,), ((1.0, 0.0),), ((2.0, 2.0),))
            >>> [part.tolist() for part in law.parts()]
            [[0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [4.0, 4.0]]]
        """
        widths = [1, self.num_targets, self.num_targets]
        shares, means, spreads = torch.split(self.table(), widths, dim=1)
        return shares[:, 0], means, torch.cat([0 * spreads[:1], spreads[1:].square()])

    def table(self) -> Float64[Tensor, "k m"]:
        """Return the law as numbers, a row for each of its parts: share, means, and deviations.

        The first row is that of the boxes that are right, with no means, and `within`.

        Examples:
            >>> DisplacementLaw(0.5, (0.5,), ((0.1, 0.0),), ((0.02, 0.02),)).table()
            tensor([[0.5000, 0.0000, 0.0000, 0.0000, 0.0000],
                    [0.5000, 0.1000, 0.0000, 0.0200, 0.0200]], dtype=torch.float64)
        """
        none = (0.0,) * self.num_targets
        rows = [(self.right, *none, *(self.within or none))]
        rows += [
            (share, *mean, *std)
            for share, mean, std in zip(self.shares, self.means, self.stds, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def words(self) -> str:
        """Say in a sentence how the boxes are off."""
        told = []
        if self.right >= 0.005:
            right = _percent(self.right)
            told.append(f"{right} of the boxes are right as far as the pictures tell")
        for share, mean, std in sorted(zip(self.shares, self.means, self.stds, strict=True))[::-1]:
            if share < 0.005:
                continue
            on_average = [
                f"{_percent(abs(part))} {word if part > 0 else other}"
                for part, (word, other) in zip(_of_truth(mean), _DIRECTIONS, strict=False)
                if abs(part) >= 0.005
            ]
            common = f"{', '.join(on_average)} on average, and " if on_average else ""
            at_random = math.sqrt(sum(part**2 for part in std) / len(std))
            these = _percent(share) if told else f"{_percent(share)} of the boxes"
            told.append(f"{these} are {common}off by {_percent(at_random)} at random")
        return "; ".join(told)

    def save(self, path: Path) -> None:
        """Write the law as JSON, whole or not at all.

        Raises:
            BadInput: It can't be written there.
        """
        write_atomically(path, (json.dumps(self.plain(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a law that `save` wrote.

        Raises:
            BadInput: The file can't be read, or holds no law.
        """
        try:
            return cls.from_plain(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise BadInput.unreadable(str(path), error) from error
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            remedy = "give the law.json of a prediction"
            raise BadInput.at(str(path), "holds no displacement law", remedy) from error

    def plain(self) -> dict[str, Any]:
        """Return it as numbers and lists, for files and checkpoints."""
        rows = {name: [list(row) for row in getattr(self, name)] for name in ("means", "stds")}
        numbers = {"shares": list(self.shares), "within": list(self.within)}
        return {"right": self.right, **numbers, **rows}

    @classmethod
    def from_plain(cls, told: dict[str, Any]) -> Self:
        """Make it of what `plain` returned.

        Raises:
            ValueError, TypeError, KeyError: It isn't a law.
        """
        rows = {name: tuple(map(tuple, told[name])) for name in ("means", "stds")}
        within = tuple(told.get("within", ()))  # older ones have none
        return cls(told["right"], tuple(told["shares"]), **rows, within=within)


_DIRECTIONS = (
    ("too far left", "too far right"),
    ("too high up", "too far down"),
    ("too narrow", "too wide"),
    ("too short", "too tall"),
)


def law_draws(num_targets: int) -> Float64[Tensor, "d 1 t"]:
    """Return the normal draws that expected overlaps are averaged over, always the same.

    Args:
        num_targets: How many coordinates they are of.
    """
    shape = _DRAWS, 1, num_targets
    draws = torch.randn(shape, generator=keyed_generator("displacement"))
    return torch.cat([draws, -draws]).double()


def move_by(
    table: Float64[Tensor, "k m"],
    said: Offsets,
    stds: Offsets,
    tails: Tails,
    draws: Float64[Tensor, "d 1 t"],
) -> Moved:
    """Do what `DisplacementLaw.move` does, of tensors alone, as exported graphs need it.

    Args:
        table: The law (see `DisplacementLaw.table`).
        said: How a model says that each box is off.
        stds: Its standard deviations, in the same units.
        tails: How its errors are spread about these.
        draws: Those of `law_draws`.

    Returns:
        Where the boxes go, in fp64.
    """
    count = said.shape[1]
    shares, means, spreads = table[:, 0], table[:, 1 : 1 + count], table[:, 1 + count :].square()
    variances = torch.cat([torch.zeros_like(spreads[:1]), spreads[1:]])
    told = said.double(), stds.double(), tails
    chances, means, variances, _ = posterior(shares, means, variances, *told)
    # Exported graphs may hold the bound in fp32, where a smaller one would be 0.
    each = chances.sum(dim=1, keepdim=True).clamp(min=1e-30)
    own = ((chances / each)[..., None] * means).sum(dim=1)
    mixed = (chances[..., None] * means).sum(dim=(0, 1))
    places = torch.cat([own, mixed[None]])  # the first is where the box is
    # Boxes that are right aren't spread: one draw does.
    parts = [(slice(0, 1), draws[:1] * 0), (slice(1, None), draws)]
    laws = [(chances[at], means[at], variances[at], spread) for at, spread in parts]
    expected = torch.stack([_expected_iou(places, *one) for one in laws]).sum(dim=0)
    best = expected.argmax(dim=0, keepdim=True)
    chosen = places.gather(0, best[..., None].expand(-1, -1, count)).squeeze(0)
    off = (chances[..., None] * (variances + (means - chosen).square())).sum(dim=(0, 1))
    right = chances[0].sum(dim=0)
    off = off + right[:, None] * spreads[0]
    gain = expected.amax(dim=0) - expected[0]
    return Moved(chosen, off.sqrt(), gain, 1 - right)


def posterior(
    shares: Float64[Tensor, " k"],
    means: Float64[Tensor, "k t"],
    variances: Float64[Tensor, "k t"],
    said: Float64[Tensor, "n t"],
    stds: Float64[Tensor, "n t"],
    tails: Tails,
) -> tuple[
    Float64[Tensor, "k j n"],
    Float64[Tensor, "k j n t"],
    Float64[Tensor, "k j n t"],
    Float64[Tensor, " n"],
]:
    """Return each part's probability for each box, where the truth is under it, and its variance.

    Parts are those of the law, by those of the model's errors. Last are the log likelihoods.

    Args:
        shares: How large each of the law's parts is.
        means: Its mean.
        variances: Its variances.
        said: How a model says that each box is off.
        stds: Its standard deviations, in the same units.
        tails: How its errors are spread about these.
    """
    chance, factor = said.new_tensor(tails).T
    told = (factor[:, None, None] * stds).square()
    means, variances = means[:, None, None], variances[:, None, None]
    total = variances + told
    densities = -0.5 * ((said - means).square() / total + (2 * math.pi * total).log()).sum(dim=-1)
    joint = shares.log()[:, None, None] + chance.log()[:, None] + densities
    evidence = joint.logsumexp(dim=(0, 1))
    where = (variances * said + told * means) / total
    return (joint - evidence).exp(), where, variances * told / total, evidence


def _expected_iou(
    places: Float64[Tensor, "q n t"],
    chances: Float64[Tensor, "k j n"],
    means: Float64[Tensor, "k j n t"],
    variances: Float64[Tensor, "k j n t"],
    draws: Float64[Tensor, "d 1 t"],
) -> Float64[Tensor, "q n"]:
    """Return what parts of a law add to the expected IoU of each box with the truth, at places."""
    spread = variances.sqrt()[:, :, None] * draws
    truths = _unit_boxes(means[:, :, None] + spread)
    overlaps = paired_iou(_unit_boxes(places)[:, None, None, None], truths).mean(dim=3)
    return (chances * overlaps).sum(dim=(1, 2))


def _unit_boxes(offsets: Float64[Tensor, "*b t"]) -> Float64[Tensor, "*b 4"]:
    """Return where offsets take a box of side 1."""
    return decode_deltas(offsets, offsets.new_tensor([0.0, 0.0, 1.0, 1.0]))


def _of_truth(mean: tuple[float, ...]) -> list[float]:
    """Turn changes of log size into how much of the true side is missing."""
    return [*mean[:2], *(-math.expm1(-part) for part in mean[2:])]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
