"""Proposals of a detector or of hasty annotators, read in any format."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_bbox.annotations.formats.coco import is_results
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput


def read_proposals(
    read_table: Callable[..., BoxTable], root: Path, files: Sequence[str]
) -> BoxTable:
    """Read proposals in any format.

    A list of results names no pictures; it is read with the files of the true boxes, unless one
    that names them is among the files.

    Args:
        read_table: Reads the true boxes, or other `annotations`.
        root: Folder of the data set.
        files: Files or folders of the proposals, relative to the root.

    Raises:
        BadInput: A file isn't there, or can't be read.
    """
    for name in files:
        if not (root / name).exists():
            problem = f"is no file or folder in {root}"
            raise BadInput.at(name, problem, "correct data.proposals, or set it to null")
    names = list(files)
    if files and all(is_results(root / name) for name in files):
        names += read_table().files
    return read_table(format="auto", annotations=names, group_pattern=None)
