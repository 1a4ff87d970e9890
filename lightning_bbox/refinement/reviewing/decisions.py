"""What a person decided on the page, read and fitted to the annotations at hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import Decimals, refuse_decimals
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes

Word = Literal["accept", "reject", "edit", "undecided"]
WORDS: dict[Word, str] = {
    "accept": "accepted",
    "reject": "rejected",
    "edit": "edited",
    "undecided": "undecided",
}
"""What can be decided of a box, and how that is told."""

_REMEDY = "save it from review.html again"


class Decision(NamedTuple):
    """What was decided of a box.

    Attributes:
        id: Where the box stands, such as `boxes.csv:12`.
        old: The box as it stood there, `xyxy` in pixels.
        new: The box that was offered.
        word: What was decided.
        given: The box that a person drew, where it was edited.
    """

    id: str
    old: list[float]
    new: list[float]
    word: Word
    given: list[float] | None

    def outcome(self, undecided: Literal["keep", "accept"]) -> list[float]:
        """Return the box that is to stand there.

        Args:
            undecided: What becomes of boxes that nobody decided on.
        """
        if self.given is not None:
            return self.given
        accepted = self.word == "accept" or (self.word == "undecided" and undecided == "accept")
        return self.new if accepted else self.old


class Decisions(NamedTuple):
    """What a file of decisions holds.

    Attributes:
        root: Folder of the data set that was reviewed.
        reading: How its annotations were read, as options of `Reading`.
        proposals: Files of proposals, where such were reviewed.
        decimals: How many decimals of a pixel the boxes offered have.
        boxes: What was decided of each box.
    """

    root: str
    reading: dict[str, object]
    proposals: list[str] | None
    decimals: Decimals
    boxes: list[Decision]


def read_decisions(path: Path) -> Decisions:
    """Read what `review.html` saved.

    Args:
        path: The file.

    Raises:
        BadInput: It can't be read, or isn't what the page saves.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput.unreadable(str(path), error) from error
    except (ValueError, RecursionError) as error:
        raise BadInput.at(str(path), f"is no JSON ({error})", _REMEDY) from error
    if not isinstance(content, dict) or content.get("lightning_bbox") != "decisions":
        raise BadInput.at(str(path), "holds no decisions", f"{_REMEDY} by Save decisions")
    if content.get("version") != 1:
        problem = f"is of version {content.get('version')!r}, and 1 is known"
        raise BadInput.at(str(path), problem, "update lightning_bbox")
    root, reading, boxes = (content.get(name) for name in ("root", "reading", "boxes"))
    proposals = content.get("proposals")
    are_names = isinstance(proposals, list) and all(isinstance(each, str) for each in proposals)
    if not isinstance(root, str) or not isinstance(reading, dict) or not isinstance(boxes, list):
        raise BadInput.at(str(path), "lacks its root, reading or boxes", _REMEDY)
    if not (proposals is None or are_names):
        raise BadInput.at(str(path), f"proposals is {proposals!r}, no list of files", _REMEDY)
    decimals = content.get("decimals")
    if not (decimals == "auto" or type(decimals) is int):
        raise BadInput.at(str(path), f"decimals is {decimals!r}, no number", _REMEDY)
    refuse_decimals(decimals)
    each = [_decision(one, f"{path}: box {at + 1}") for at, one in enumerate(boxes)]
    return Decisions(root, reading, proposals, decimals, each)


def _decision(found: object, place: str) -> Decision:
    one = found if isinstance(found, dict) else {}
    name, word = one.get("id"), one.get("decision")
    if not isinstance(name, str) or word not in [*WORDS]:
        problem = (
            f"its id is {name!r} and its decision {word!r}; expected one of {', '.join(WORDS)}"
        )
        raise BadInput.at(place, problem, _REMEDY)
    given = _edges(one, "box", place) if word == "edit" else None
    return Decision(name, _edges(one, "old", place), _edges(one, "new", place), word, given)


def _edges(one: dict[str, object], name: str, place: str) -> list[float]:
    found = one.get(name)
    numbers = found if isinstance(found, list) else []
    edges = [float(each) for each in numbers if isinstance(each, int | float)]
    if not len(edges) == len(numbers) == 4 or not all(map(math.isfinite, edges)):
        raise BadInput.at(place, f"{name} is {found!r}, not four numbers", _REMEDY)
    return edges


def decided_boxes(
    table: BoxTable, decisions: Sequence[Decision], undecided: Literal["keep", "accept"] = "keep"
) -> tuple[Boxes, list[int]]:
    """Return the boxes that a table's files are to hold, and which of them each decision is on.

    Args:
        table: The annotations, read as those that were reviewed.
        decisions: What was decided.
        undecided: What becomes of boxes that nobody decided on.

    Raises:
        BadInput: A decision is on no box of the table, or gives a box that its picture can't have.
    """
    standing: dict[tuple[object, ...], list[int]] = {}
    for at, (name, edges) in enumerate(zip(table.ids, table.boxes.tolist(), strict=True)):
        standing.setdefault((name, *edges), []).append(at)
    named = dict(zip(table.ids, table.boxes.tolist(), strict=True))
    boxes, rows = table.boxes.clone(), list[int]()
    for one in decisions:
        # As the page had them: what was float32 comes back to the bit.
        place = (one.id, *torch.tensor(one.old).tolist())
        if not standing.get(place):
            raise _unfitting(one, named, table, is_decided=place in standing)
        at = standing[place].pop(0)
        outcome = one.outcome(undecided)
        if outcome != one.old:
            _refuse_outside(one.id, outcome, table.sizes[table.image_index[at]].tolist())
            boxes[at] = torch.tensor(outcome)
        rows.append(at)
    return boxes, rows


def _unfitting(
    one: Decision, named: dict[str, list[float]], table: BoxTable, is_decided: bool
) -> BadInput:
    if is_decided:
        return BadInput.at(one.id, "is decided on twice", _REMEDY)
    remedy = "name the annotations that were reviewed (--data.root), or review these"
    if one.id not in named:
        problem = f"was reviewed, but the annotations of {table.root} have no such box"
        return BadInput.at(one.id, problem, remedy)
    now, then = (", ".join(f"{edge:g}" for edge in each) for each in (named[one.id], one.old))
    return BadInput.at(one.id, f"was {then} when it was reviewed, and is {now}", remedy)


def _refuse_outside(name: str, box: list[float], size: list[int]) -> None:
    left, top, right, bottom = box
    height, width = size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        problem = (
            f"its new box {', '.join(f'{edge:g}' for edge in box)} has no area or isn't inside its "
            f"picture of {width} x {height}"
        )
        raise BadInput.at(name, problem, "edit or reject it on review.html")
