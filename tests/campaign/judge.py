"""What is asked of every case: a table or one sentence, and boxes that return as written."""

import json
import resource
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.headers import checked_size
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import box_sizes, scale_boxes
from lightning_bbox.pictures.store import decode_image
from tests.campaign.cases import Case

LONGEST = 5.0  # seconds of computing
MOST_MEMORY = 1024  # MiB that the process may grow by for a case
# The largest picture that is read has 89 million pixels, and Pillow takes 24 bytes for one of WebP.
MOST_FOR_PICTURES = 2048
_LONGEST_SENTENCE = 2000  # characters
_LEAST_SIDE = 2.0  # pixels: a VOC box that has shrunk to one pixel is a click


class Verdict(NamedTuple):
    """What became of a case: `finding` is empty where all is well."""

    kind: str
    outcome: str
    finding: str
    seconds: float
    megabytes: float


def judged(case: Case, root: Path) -> Verdict:
    """Run a case in a folder of its own, and say whether anything but the promised came out.

    Args:
        case: The case.
        root: A folder for it, which is removed again.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now
    before, begin, finding = _peak_memory(), time.process_time(), ""
    try:
        outcome = _run(case, root)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the campaign looks for
        outcome, finding = "failed", f"{type(error).__name__}: {error}"
    seconds, grown = time.process_time() - begin, _peak_memory() - before
    shutil.rmtree(root, ignore_errors=True)  # not there where it could not even be written
    if not finding and seconds > LONGEST:
        finding = f"took {seconds:.1f} s"
    if not finding and grown > (MOST_FOR_PICTURES if case.kind == "picture" else MOST_MEMORY):
        finding = f"memory grew by {grown:.0f} MiB"
    return Verdict(case.kind, outcome, finding, seconds, grown)


def _peak_memory() -> float:
    """Return the most memory this process has held since the peak was set back, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def store(case: Case, folder: Path) -> None:
    """Write a case's files and options into a folder."""
    _write(case, folder)
    (folder / "options.json").write_text(json.dumps({"kind": case.kind} | case.options))


def _write(case: Case, root: Path) -> None:
    for name, content in case.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _run(case: Case, root: Path) -> str:
    _write(case, root / "in")
    try:
        if case.kind == "picture":
            return _look(root / "in", *case.files)
        table = read_annotations(root / "in", **case.options)
    except BadInput as refusal:
        _check_sentence(str(refusal))
        return "refused"
    _check_table(table)
    _write(case, root / "out")
    return _put_and_reread(case, table, root / "out")


def _look(root: Path, name: str) -> str:
    refusals = []
    try:
        height, width = checked_size(root, name, Picture("b.csv", "b.csv:2"))
        assert min(height, width) > 0, f"size {height} x {width}"
    except BadInput as refusal:
        refusals.append(refusal)
    try:
        pixels = decode_image(root / name)
        assert pixels.ndim == 3, pixels.shape
        assert pixels.shape[2] == 3, pixels.shape
        assert pixels.dtype.name == "uint8", pixels.dtype
    except BadInput as refusal:
        refusals.append(refusal)
    for refusal in refusals:
        _check_sentence(str(refusal))
    return "refused" if refusals else "read"


def _check_sentence(sentence: str) -> None:
    assert sentence.strip(), "an empty sentence"
    assert len(sentence.splitlines()) == 1, f"a sentence of several lines: {sentence!r}"
    assert len(sentence) <= _LONGEST_SENTENCE, f"a sentence that is {len(sentence)} characters long"
    sentence.encode()


def _check_table(table: BoxTable) -> None:
    assert table.boxes.isfinite().all()
    assert (box_sizes(table.boxes) > 0).all()
    assert len(table.boxes) == len(table.labels) == len(table.ids) == len(table.entries)
    assert not len(table.labels) or int(table.labels.max()) < len(table.classes)
    for sentence in (*table.skipped, *table.ids, table.note):
        _check_sentence(sentence)
    for name in table.classes:
        name.encode()


def _put_and_reread(case: Case, table: BoxTable, out: Path) -> str:
    """Move every other box, write, read again, and compare."""
    moved = scale_boxes(table.boxes, 0.875) + 0.0625 * box_sizes(table.boxes).repeat(1, 2)
    moves = (box_sizes(moved) >= _LEAST_SIDE).all(dim=1) & (torch.arange(len(moved)) % 2 == 0)
    boxes = torch.where(moves[:, None], moved, table.boxes)
    try:
        write_boxes(table, boxes, out)
    except BadInput as refusal:
        _check_sentence(str(refusal))
        return "not written"
    found = read_annotations(out, **case.options)
    far = (found.boxes - boxes).abs().amax(dim=1)
    assert not len(far) or float(far.max()) <= 0.001, f"moved boxes return {far.max()} px away"
    assert found.boxes[~moves].equal(table.boxes[~moves]), "boxes that should stay have moved"
    for name in ("images", "ids", "classes", "groups", "splits", "entries", "files"):
        assert getattr(found, name) == getattr(table, name), f"{name} have changed"
    assert len(found.skipped) == len(table.skipped), "other boxes are skipped"
    for name in ("labels", "sizes", "image_index"):
        assert getattr(found, name).equal(getattr(table, name)), f"{name} have changed"
    return "written"
