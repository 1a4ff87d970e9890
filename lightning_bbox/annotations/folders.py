"""What lies in the folder of a data set: which files are looked at, which are pictures."""

import os
import posixpath
from pathlib import Path, PurePosixPath
from typing import NoReturn

from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN

ANNOTATION_FOLDERS = (
    "annotations", "annotation", "labels", "label", "annots", "anns", "ann", "xmls", "xml",
)  # fmt: skip
"""Names of folders, in lower case, that hold a file of annotations for each picture."""

_SUFFIXES = {
    ".apng", ".avif", ".avifs", ".bmp", ".bw", ".dds", ".dib", ".fit", ".fits", ".gif", ".ico",
    ".icb", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx",
    ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".rgb",
    ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm",
}  # fmt: skip
_OF_OTHERS = {"detect", "segment", "classify", "pose", "obb", "track"}
"""What Ultralytics calls the folders in its `runs`, whose labels are a model's."""


def is_picture(file: str) -> bool:
    """Tell by its suffix whether a file is a picture, and not a hidden one.

    Args:
        file: A path or name.

    Examples:
        >>> [is_picture(name) for name in ("a.JPG", "a.jfif", "a.txt", ".a.png")]
        [True, True, False, False]
    """
    name = PurePosixPath(file)
    return name.suffix.casefold() in _SUFFIXES and not name.name.startswith(".")


def inside(root: Path, name: str, place: str, allow_outside: bool) -> str:
    """Return a path relative to the root, tidied, and refuse one that leads out of it.

    Args:
        root: Folder of the data set.
        name: Path relative to the root, or absolute.
        place: Where the name stands.
        allow_outside: Whether it may lead out of the root, by `..` or by a link.

    Raises:
        BadInput: If it leads out and may not.
    """
    path = os.path.normpath(root / name)
    real = Path(os.path.realpath(path))
    if not allow_outside and not real.is_relative_to(os.path.realpath(root)):
        problem = f"{name!r} leads out of {root}"
        remedy = f"move it inside or set {argument('allow_outside', True)}"
        raise BadInput.at(place, problem, remedy)
    return Path(os.path.relpath(path, root)).as_posix()


def files_below(root: Path, folder: Path) -> list[str]:
    """List the files at any depth that are not hidden, relative to the root, sorted by folder.

    Folders of runs are not entered: a set that is fitted within its own folder stays what it is.
    Links that lead back are not entered: to another folder in the root, or to one around them.

    Args:
        root: Folder of the data set.
        folder: Where to look; it is entered whatever it is.

    Raises:
        BadInput: A folder can't be read.
    """
    found: list[str] = []
    real = os.path.realpath(root)
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or _leads_back(real, path := Path(parent, name)))
            and not _is_run(path)
        )
        base = Path(os.path.relpath(parent, root)).as_posix()
        found += (
            posixpath.normpath(posixpath.join(base, name))
            for name in sorted(files)
            if not name.startswith(".")
        )
    return found


def _is_run(folder: Path) -> bool:
    """Tell whether a folder is what a run left, ours or a detector's: no data, but made of it."""
    if folder.parent.name == "runs" and folder.name in _OF_OTHERS:
        return True
    if (folder / OWN).exists():
        return True
    try:
        config = folder / "config.yaml"
        if config.is_file() and b"lightning_bbox" in config.read_bytes():
            left = ("checkpoints", "data.png", "metrics.json", "crops.png")
            return any((folder / name).exists() for name in left)
    except OSError:
        return False
    predicted = (folder / "refined").is_dir() and (folder / "unchanged.txt").is_file()
    ours = ("probe.json", "test_errors.npz", "comparison.html", "check.html")
    return predicted or any((folder / name).is_file() for name in ours)


def _leads_back(root: str, path: Path) -> bool:
    if not path.is_symlink():
        return False
    target = path.resolve()
    return target.is_relative_to(root) or path.parent.resolve().is_relative_to(target)


def _refuse(error: OSError) -> NoReturn:
    raise BadInput.unreadable(str(error.filename), error) from error
