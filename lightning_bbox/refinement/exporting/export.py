"""A trained model written as a graph, kept only where its results are the checkpoint's."""

import json
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import cannot_write, make_folder, write_atomically
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.refinement.exported import SUFFIXES, GraphFormat
from lightning_bbox.refinement.exporting.formats import facts_of, write_graph
from lightning_bbox.refinement.exporting.graph import RefinementGraph
from lightning_bbox.refinement.exporting.parity import (
    TOLERANCE,
    Case,
    compare,
    odd_cases,
    refuse_unequal,
    report_of,
)
from lightning_bbox.refinement.outcomes import refuse_max_shift
from lightning_bbox.refinement.refiner import Refiner

REPORT = ".parity.json"
"""What the name of a report ends in, behind that of the model."""


def export(
    checkpoint: str | PathLike[str] | OffsetModel,
    output: str | PathLike[str],
    kind: GraphFormat = "onnx",
    *,
    law: DisplacementLaw | Literal["own", "trained"] = "own",
    max_shift: float | None = None,
    licence: str = "not stated",
    trust: Sequence[str] = (),
    cases: Mapping[str, Iterable[Case]] | None = None,
) -> dict[str, Any]:
    """Write a trained model as one graph, from a picture and boxes to refined boxes.

    It is compared with the checkpoint, and kept only where the results are the same. Beside it lies
    the report, NAME.parity.json.

    Args:
        checkpoint: A checkpoint, a run's folder, or a trained model.
        output: The file to write: `.onnx`, or `.pt2` for the others.
        kind: What to write.
        law: How boxes are off, where a caller says nothing else (see `Refiner`).
        max_shift: Largest shift of an edge to believe, in px.
        licence: Under which terms the model may be used; it stands in the file.
        trust: Modules or packages of your own that may be imported for the checkpoint.
        cases: Pictures and boxes to compare on, by what they are called; `odd_cases` by default.

    Returns:
        The report.

    Raises:
        BadInput: The file is there already or can't be written, the model can't be exported, or
            the results are others.
    """
    path = Path(output)
    report_path = path.with_name(path.name + REPORT)
    refuse_max_shift(max_shift)
    _refuse_place(path, report_path, kind)
    refiner = Refiner(checkpoint, max_shift=max_shift, trust=trust, law=law)
    graph = RefinementGraph(refiner.model, refiner.law, max_shift).eval()
    facts = facts_of(graph, kind, licence)
    make_folder(path.parent, "--output")
    try:
        # In a folder of its own: nothing that wasn't compared ever has the name asked for.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            write_graph(graph, facts, made)
            exported = Refiner(made, max_shift=max_shift)
            per_class = refiner.spec.classes if facts.per_class else ()
            cases = {"odd cases": odd_cases(per_class)} if cases is None else cases
            found = {
                name: [compare(case, refiner, exported) for case in some]
                for name, some in cases.items()
            }
            refuse_unequal(path, [each for some in found.values() for each in some])
            report = facts.plain() | {
                "tolerance": TOLERANCE,
                "parity": {name: report_of(some) for name, some in found.items()},
                "bytes": made.stat().st_size,
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            text = json.dumps(report, indent=2) + "\n"
            write_atomically(report_path, text.encode(), "--output")
            made.replace(path)
    except OSError as error:
        raise cannot_write(path, error, "--output") from error
    return report


def _refuse_place(path: Path, report: Path, kind: GraphFormat) -> None:
    """Refuse a place that is taken, or whose suffix says something else.

    Raises:
        BadInput: It is that.
    """
    if kind not in SUFFIXES.get(path.suffix, ()):
        wanted = next(suffix for suffix, kinds in SUFFIXES.items() if kind in kinds)
        msg = f"{path}: a model of format {kind} is a {wanted} file; name one with --output"
        raise BadInput(msg)
    for each in (path, report):
        if each.exists():
            msg = f"{each}: is there already; move it, or name another file with --output"
            raise BadInput(msg)
