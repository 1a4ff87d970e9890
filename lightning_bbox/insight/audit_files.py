"""What an audit leaves behind: a table of all boxes, a sheet of the worst, and words."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_bbox.annotations.validity import LEFT_OUT
from lightning_bbox.annotations.write import as_written, write_boxes
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, make_folder, save_picture, write_atomically
from lightning_bbox.data.boxes import BoxDataModule, RoughBoxes
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.insight.audit import LIKELY, Audit, edge_errors, reasons_of, words_of
from lightning_bbox.refinement.predictions import short_number
from lightning_bbox.refinement.reviewing.review_page import MOST_REVIEWED, Moved, write_review
from lightning_bbox.reports.sheets import draw_moves
from lightning_bbox.reports.tables import format_markdown

RECORD = "audit.json"
"""What says that a folder holds an audit, and of which annotations; it is written first."""

_WRITTEN = ("audit.csv", "audit.md", "audit.png", "law.json", "refined", "review.html")
_STAYS = "best left where it is"
_MOST_DRAWN = 48
_MOST_TOLD = 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = (
    *("image", "id", "label", *_CORNERS, *(f"new_{name}" for name in _CORNERS)),
    *("wrong", "apart", "gain", "off_percent", "fold", "reason"),
)


class Audited(NamedTuple):
    """An audit of what annotation files hold.

    Attributes:
        rough: What the files hold, and which of it was judged.
        audit: What is thought of the boxes judged, in their order.
        folds: Which fold's model judged each of them.
        clusters_are: What intervals are over: pictures or groups.
    """

    rough: RoughBoxes
    audit: Audit
    folds: list[int]
    clusters_are: str


def refuse_foreign(folder: Path) -> None:
    """Refuse to write over files that no audit wrote.

    Args:
        folder: Where an audit is to be written.

    Raises:
        BadInput: There is such a file.
    """
    if (folder / RECORD).is_file():
        return
    for name in _WRITTEN:
        if (folder / name).exists():
            problem = "wasn't written by an audit, and this one would write over it"
            remedy = "choose another --name, or rename the file"
            raise BadInput.at(str(folder / name), problem, remedy)


def write_audit(
    found: Audited,
    data: BoxDataModule,
    folder: Path,
    record: dict[str, object],
    apply: bool,
    review: int = MOST_REVIEWED,
) -> str:
    """Write an audit's files, and return what to say.

    `audit.csv` has a line for each box, the worst first; `audit.png` shows these, `audit.md` says
    it in words, `audit.json` in numbers, and `law.json` is how boxes are off. On `review.html` a
    person decides on each. With `apply` copies
    of the annotation files lie in `refined/`, where the boxes that are likelier wrong than right
    have moved.

    Args:
        found: What was found.
        data: A data module that has read the boxes.
        folder: Where to.
        record: What `audit.json` holds beside the figures.
        apply: Whether to write refined files; where there are some, they are written anew.
        review: How many boxes `review.html` may have; 0 writes none.

    Raises:
        BadInput: The folder can't be written to.
    """
    table, audit = found.rough.table, found.audit
    order = audit.worst_first()
    chosen = found.rough.chosen.tolist()
    boxes = table.boxes.clone()
    boxes[found.rough.chosen] = audit.boxes
    make_folder(folder)
    rows = audit_rows(found)
    write_atomically(folder / "audit.csv", encoded(_as_csv(rows)))
    shown = order[:_MOST_DRAWN]
    captions = [
        f"{100 * float(audit.wrong[at]):.0f} % wrong, line {row + 2 + len(table.skipped)}"
        for row, at in enumerate(shown)
    ]
    title = f"the {len(shown)} worst of {len(order)} boxes, and their lines in audit.csv"
    names = ("annotated box", "where it should be")
    drawn = draw_moves(data, boxes, [chosen[at] for at in shown], captions, title, names)
    save_picture(folder / "audit.png", drawn)
    audit.law.save(folder / "law.json")
    text = _in_words(found)
    write_atomically(folder / "audit.md", encoded(_as_markdown(found, rows, text)))
    told = f"{text}\n\neach box, the worst first   {folder / 'audit.csv'}\n"
    told += f"the worst                   {folder / 'audit.png'}\n"
    told += f"to decide on each           {_write_page(found, data, folder, boxes, review)}"
    if apply or (folder / "refined").exists():  # what an audit before has written is to agree
        moves = torch.zeros(len(boxes), dtype=torch.bool)
        moves[found.rough.chosen] = audit.wrong >= LIKELY
        moved = torch.where(moves[:, None], boxes, table.boxes)
        write_boxes(table, moved, folder / "refined")
        count = int((as_written(table, moved) != table.boxes).any(dim=1).sum())
        kept = int(moves.sum()) - count
        left = f"; {kept} of those likelier wrong are best left where they are" if kept else ""
        label = f"annotations, {count} moved"
        told += f"\n{label:<27} {folder / 'refined'} (yours are untouched{left})"
    numbers = {"share": audit.share._asdict(), "boxes": len(order), "invalid": len(table.skipped)}
    numbers |= {"overlap": audit.overlap, "likely_wrong": int((audit.wrong >= LIKELY).sum())}
    write_atomically(folder / RECORD, json.dumps(record | numbers, indent=2).encode())
    return told


def _write_page(
    found: Audited, data: BoxDataModule, folder: Path, boxes: Boxes, review: int
) -> str:
    """Write the page to review what would move, the worst first, and say where it is."""
    table, chosen = found.rough.table, found.rough.chosen
    written = as_written(table, boxes)
    moves = (written != table.boxes).any(dim=1)
    order = [at for at in chosen[found.audit.worst_first()].tolist() if moves[at]]
    wrong, gain = torch.full((2, len(boxes)), math.nan)
    wrong[chosen], gain[chosen] = found.audit.wrong, found.audit.gain
    return write_review(folder, data, Moved(written, order, wrong, gain), review)


def audit_rows(found: Audited) -> list[list[str]]:
    """Return the cells of each box: invalid ones, then the worst first, then those not judged.

    Args:
        found: What was found.
    """
    table, audit, chosen = found.rough.table, found.audit, found.rough.chosen.tolist()
    blank = [""] * 4
    rows = []
    for sentence, picture in zip(table.skipped, table.skipped_index, strict=True):
        place, _, problem = sentence.removesuffix(LEFT_OUT).partition(": ")
        row = [table.images[picture], place, "", *blank, *blank, "1", "", "", "", ""]
        rows.append([*row, f"invalid: {problem}"])

    def of_table(at: int) -> list[str]:
        image, label = table.images[table.image_index[at]], table.classes[table.labels[at]]
        return [image, table.ids[at], label, *map(short_number, table.boxes[at].tolist())]

    annotated = table.boxes[found.rough.chosen]
    off = 100 * edge_errors(annotated, audit.boxes).abs().amax(dim=1)
    reasons = reasons_of(annotated, audit.boxes)
    for at in audit.worst_first():
        figures = [float(each[at]) for each in (audit.wrong, audit.apart, audit.gain, off)]
        cells = [*map(short_number, [*audit.boxes[at].tolist(), *figures]), str(found.folds[at])]
        rows.append([*of_table(chosen[at]), *cells, reasons[at] or _STAYS])
    for at, reason in enumerate(found.rough.reasons):
        if reason:
            rows.append([*of_table(at), *blank, *blank, "", f"not judged: {reason}"])
    return rows


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_COLUMNS, *rows])
    return stream.getvalue()


def _in_words(found: Audited) -> str:
    lines = words_of(found.audit, found.clusters_are)
    if invalid := len(found.rough.table.skipped):
        lines.append(f"{invalid} boxes are invalid, and stand first in the table")
    if unjudged := sum(map(bool, found.rough.reasons)):
        lines.append(f"{unjudged} boxes were not judged, as classes and min_size leave them out")
    return "\n".join(lines)


def _as_markdown(found: Audited, rows: Sequence[Sequence[str]], text: str) -> str:
    names = ("image", "id", "label", "wrong", "apart", "gain", "reason")
    at = [_COLUMNS.index(name) for name in names]
    told = [[row[column] for column in at] for row in rows[:_MOST_TOLD]]
    table, audit, chosen = found.rough.table, found.audit, found.rough.chosen
    likely = audit.wrong >= LIKELY
    labels = [table.classes[label] for label in table.labels[chosen].tolist()]
    every, wrong = (
        Counter(labels),
        Counter(label for label, is_wrong in zip(labels, likely.tolist(), strict=True) if is_wrong),
    )
    classes = [["class", "boxes", "likelier wrong than right"]]
    classes += [[name, str(every[name]), str(wrong[name])] for name in sorted(every)]
    lines = ["# Audit", "", *(f"- {line}" for line in text.splitlines()), ""]
    lines += [format_markdown(classes), "", "The first lines of `audit.csv`:", ""]
    lines += [format_markdown([list(names), *told], words=3), ""]
    return "\n".join(lines)
