"""The command `apply`: what a person decided of boxes, written into copies of annotation files."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from jsonargparse import ArgumentError, ArgumentParser

from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import (
    DECIMALS,
    Decimals,
    as_written,
    refuse_decimals,
    write_boxes,
)
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import alone_in, encoded, expanded, make_folder, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.options import Reading
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.refinement.reviewing.decisions import (
    WORDS,
    Decision,
    Decisions,
    decided_boxes,
    read_decisions,
)

APPLIED = "applied.csv"
"""What became of each box that was reviewed."""


def apply(arguments: list[str]) -> None:
    """Run the command `apply`: write annotation files that hold what was decided.

    Args:
        arguments: The command line after `apply`.

    Raises:
        BadInput: The decisions can't be read, aren't on these annotations, or give a box that
            can't be; or the folder holds something already.
    """
    own = apply_parser().parse_args(arguments)
    decisions = read_decisions(expanded(own.decisions))
    decimals = decisions.decimals if own.decimals is None else own.decimals
    refuse_decimals(decimals)
    table = _table(decisions, own.root, own.decisions)
    name = own.name or f"apply-{table.root.resolve().name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = expanded(own.runs) / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder}: holds something already; choose another --name"
        raise BadInput(msg)
    boxes, rows = decided_boxes(table, decisions.boxes, own.undecided)
    written = as_written(table, boxes, decimals)
    make_folder(folder)
    with alone_in(folder):
        write_boxes(table, boxes, folder / "refined", decimals)
        lines = _as_csv(table, decisions.boxes, rows, written)
        write_atomically(folder / APPLIED, encoded(lines))
    say(_in_words(table, decisions.boxes, rows, boxes, written, own.undecided))
    say(
        f"annotations             {folder / 'refined'} (the originals are untouched)\n"
        f"what became of each     {folder / APPLIED}"
    )


def apply_parser() -> CommandParser:
    """Return what reads the options of `apply`."""
    parser = CommandParser(
        "apply",
        "Write copies of the annotation files that were reviewed, in which accepted "
        "boxes are the new ones, edited ones as they were drawn, and all other bytes the same. "
        "The annotations are read as they were for the page.",
        name="apply-ROOT-TIME",
    )
    parser.add_argument("decisions", help="the decisions.json that review.html saved")
    parser.add_argument(
        "--data.root",
        dest="root",
        help="folder of the data set, where it isn't where it was when it was reviewed",
    )
    parser.add_argument(
        "--undecided",
        choices=("keep", "accept"),
        default="keep",
        help="keep boxes that nobody decided on as they are, or accept those on the page",
    )
    parser.add_argument(
        "--decimals",
        type=_decimals,
        help="decimals of a pixel that are written, as for predict; those of the page by default",
    )
    return parser


def _decimals(word: str) -> Decimals:
    return "auto" if word == "auto" else int(word)


def _table(decisions: Decisions, root: str | None, path: str) -> BoxTable:
    """Read the annotations as they were read for the page."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Reading, "reading")
    try:
        read = parser.parse_object({"reading": decisions.reading})
    except (ArgumentError, TypeError, ValueError) as error:
        problem = f"its options of reading can't be meant ({' '.join(str(error).split())})"
        raise BadInput.at(path, problem, "save it from review.html again") from error
    where = decisions.root if root is None else root
    reading = Reading(**vars(read.reading))
    data = BoxDataModule(where, reading=reading, proposals=decisions.proposals)
    return data.rough_table()


def _as_csv(
    table: BoxTable, decisions: Sequence[Decision], rows: Sequence[int], written: Boxes
) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    corners = ("xmin", "ymin", "xmax", "ymax")
    names = ("id", "image", "label", *corners, *(f"new_{name}" for name in corners), "decision")
    writer.writerow(names)
    for one, at in zip(decisions, rows, strict=True):
        image, label = table.images[table.image_index[at]], table.classes[table.labels[at]]
        edges = [*table.boxes[at].double().tolist(), *written[at].double().tolist()]
        shown = [f"{round(edge, DECIMALS):g}" for edge in edges]
        writer.writerow([one.id, image, label, *shown, WORDS[one.word]])
    return stream.getvalue()


def _in_words(
    table: BoxTable,
    decisions: Sequence[Decision],
    rows: Sequence[int],
    boxes: Boxes,
    written: Boxes,
    undecided: str,
) -> str:
    counts = Counter(one.word for one in decisions)
    told = ", ".join(f"{counts[word]} {said}" for word, said in WORDS.items())
    fate = "accepted, as asked" if undecided == "accept" else "as they were"
    moved = int((written != table.boxes).any(dim=1).sum())
    lines = [
        f"of {len(decisions)} boxes reviewed {told} ({fate}); {moved} of {len(table.boxes)} change"
    ]
    asked, stays = (boxes != table.boxes).any(dim=1), (written == table.boxes).all(dim=1)
    if back := [table.ids[at] for at in rows if asked[at] and stays[at]]:
        lines.append(f"{len(back)} stay, as they round to where they were: {listed(back)}")
    return "\n".join(lines)
