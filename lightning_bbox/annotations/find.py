"""Where the annotations of a data set lie, and which format they are in."""

import os
import posixpath
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from lightning_bbox.annotations.line_formats import looks_like_csv
from lightning_bbox.annotations.nested_formats import looks_like_coco
from lightning_bbox.annotations.pictures import inside, is_picture, split_of
from lightning_bbox.annotations.splits import split_in_name
from lightning_bbox.core.errors import BadInput, listed

Format = Literal["voc", "coco", "yolo", "csv"]

_FORMATS: dict[str, Format] = {
    ".xml": "voc",
    ".json": "coco",
    ".txt": "yolo",
    ".csv": "csv",
    ".tsv": "csv",
}


class Source(NamedTuple):
    """Annotation files of one format.

    Args:
        format: What they are.
        looked_for: Which files were looked for, in words.
        files: Those found, relative to the root.
    """

    format: Format
    looked_for: str
    files: list[str]


def find_annotations(
    root: Path,
    format: Literal["auto", "voc", "coco", "yolo", "csv"],  # noqa: A002 - the name users write
    annotations: str | Sequence[str] | None,
    allow_outside: bool,
) -> list[Source]:
    """Find the annotation files of a data set, the ones to read first.

    Where nothing is named, that is the first of VOC in `Annotations`, COCO, YOLO in `labels`, CSV,
    VOC beside the pictures, YOLO beside the pictures. COCO's `instances_*.json` are read, and what
    lies beside them, such as captions and keypoints of the same pictures, is not.

    Args:
        root: Folder of the data set.
        format: Their format, or `auto` to recognise it.
        annotations: Files, or folders to look in, relative to the root.
        allow_outside: Whether they may lie outside the root.

    Returns:
        What to read, followed by what else is there.

    Raises:
        BadInput: If nothing is recognised, or there are several candidates.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "labels").mkdir()
        ...     (Path(folder) / "labels/a.txt").touch()
        ...     _ = (Path(folder) / "boxes.csv").write_text("image,x1,y1,x2,y2")
        ...     found = find_annotations(Path(folder), "auto", None, allow_outside=False)
        >>> [(source.format, source.files) for source in found]
        [('yolo', ['labels/a.txt']), ('csv', ['boxes.csv'])]
    """
    names = [annotations] if isinstance(annotations, str) else list(annotations or ())
    if names:
        sources = _named_sources(root, format, names, allow_outside)
    else:
        sources = _usual_sources(root, format)
    sources = [source for source in sources if format in ("auto", source.format)]
    found = [source for source in sources if source.files]
    if not found:
        looked_for = ", ".join(source.looked_for for source in sources)
        problem = f"no annotations found, looked for {looked_for}"
        raise BadInput.at(str(root), problem, "name them with annotations=")
    _refuse_rivals(found[0], len(names))
    _check_links(root, found[0].files, allow_outside)
    return found


def _usual_sources(root: Path, wanted: str) -> list[Source]:
    below = _files_below(root, root)
    files, others = _by_format(root, wanted, below)
    stems = {posixpath.splitext(file)[0] for file in below if is_picture(file)}
    return [
        Source("voc", "*.xml in Annotations", _within("annotations", files["voc"])),
        Source("coco", "*.json with images and annotations", files["coco"]),
        Source("yolo", "*.txt in labels", _within("labels", files["yolo"])),
        Source("csv", "*.csv with columns for image and corners", files["csv"]),
        Source("voc", "*.xml beside pictures", _beside(stems, files["voc"])),
        Source("yolo", "*.txt beside pictures", _beside(stems, files["yolo"])),
        *_others(others),
    ]


def _others(files: Sequence[str]) -> list[Source]:
    return [Source("coco", "*.json beside instances_*.json", list(files))] if files else []


def _named_sources(
    root: Path, wanted: str, names: Sequence[str], allow_outside: bool
) -> list[Source]:
    files: dict[Format, list[str]] = {kind: [] for kind in _LOOKS}
    others: list[str] = []
    for name in names:
        file = inside(root, name, "annotations", allow_outside)
        if (root / file).is_dir():
            by_format, beside = _by_format(root, wanted, _files_below(root, root / file))
            for kind, found in by_format.items():
                files[kind] += found
            others += beside
        elif (root / file).is_file():
            files[_format_of(file, wanted)].append(file)
        else:
            raise BadInput.at(name, f"is no file or folder in {root}", "correct annotations=")
    sources = [Source(kind, f"{kind} in {listed(names)}", found) for kind, found in files.items()]
    return [*sources, *_others(others)]


def _format_of(file: str, wanted: str) -> Format:
    by_suffix = _FORMATS.get(posixpath.splitext(file)[1].casefold())
    kind = next((kind for kind in _LOOKS if kind == wanted), by_suffix)
    if kind is None:
        raise BadInput.at(file, "has the suffix of no known format", "name it with format=")
    return kind


def _by_format(
    root: Path, wanted: str, files: Iterable[str]
) -> tuple[dict[Format, list[str]], list[str]]:
    """Sort out the files that look like annotations, by suffix and a glance at the content.

    Where none looks like the format wanted, all with its suffix are taken: their reader says what
    is wrong with them.

    Returns:
        The files by format, and those of COCO that lie beside instances_*.json but are none.
    """
    found: dict[Format, list[str]] = {kind: [] for kind in _LOOKS}
    unlike: dict[Format, list[str]] = {kind: [] for kind in _LOOKS}
    for file in files:
        kind = _FORMATS.get(posixpath.splitext(file)[1].casefold())
        path = root / file
        if kind is not None and (path.is_file() or path.is_symlink()):
            (found if _looks_like(kind, root, file) else unlike)[kind].append(file)
    for kind in found:
        if kind == wanted and not found[kind]:
            found[kind] = unlike[kind]
    folders = {posixpath.dirname(file) for file in found["coco"] if _holds_instances(file)}
    beside = [file for file in found["coco"] if posixpath.dirname(file) in folders]
    others = [file for file in beside if not _holds_instances(file)]
    found["coco"] = [file for file in found["coco"] if file not in others]
    return found, others


def _looks_like(kind: Format, root: Path, file: str) -> bool:
    try:
        return _LOOKS[kind](root / file)
    except OSError as error:
        raise BadInput.unreadable(file, error) from error


def _holds_instances(file: str) -> bool:
    return posixpath.basename(file).casefold().startswith("instances")


def _looks_like_yolo(path: Path) -> bool:
    return path.name != "classes.txt" and not path.name.casefold().startswith("readme")


_LOOKS: dict[Format, Callable[[Path], bool]] = {
    "voc": lambda _: True,
    "coco": looks_like_coco,
    "yolo": _looks_like_yolo,
    "csv": looks_like_csv,
}


def _within(folder: str, files: Iterable[str]) -> list[str]:
    """Keep the files in a folder of that name, at any depth."""
    return [file for file in files if folder in file.casefold().split("/")[:-1]]


def _beside(stems: Set[str], files: Sequence[str]) -> list[str]:
    """Keep the files of the folders where one of them lies beside its picture."""
    with_picture = (file for file in files if posixpath.splitext(file)[0] in stems)
    folders = {posixpath.dirname(file) for file in with_picture}
    return [file for file in files if posixpath.dirname(file) in folders]


def _refuse_rivals(source: Source, named: int) -> None:
    """Refuse files that may each hold the whole data set, unless named, or one a split."""
    splits = [split_in_name(file) or split_of(file) for file in source.files]
    one_each = "" not in splits and len(set(splits)) == len(splits)
    if source.format in ("coco", "csv") and len(splits) > max(named, 1) and not one_each:
        remedy = "name the one to read, or several, with annotations="
        raise BadInput.at(listed(source.files), "any of these may hold the annotations", remedy)


def _check_links(root: Path, files: Sequence[str], allow_outside: bool) -> None:
    """Refuse files found where links lead out of the root and may not."""
    links = [file for file in files if (root / file).is_symlink()]
    for name in dict.fromkeys([*map(posixpath.dirname, files), *links]):
        inside(root, name, "annotations", allow_outside)


def _files_below(root: Path, folder: Path) -> list[str]:
    """List the files at any depth that are not hidden, relative to the root, sorted by folder.

    Links that lead back are not entered: to another folder in the root, or to one around them.
    """
    found: list[str] = []
    real = os.path.realpath(root)
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(real, Path(parent, name))
        )
        base = Path(os.path.relpath(parent, root)).as_posix()
        found += (
            posixpath.normpath(posixpath.join(base, name))
            for name in sorted(files)
            if not name.startswith(".")
        )
    return found


def _leads_back(root: str, path: Path) -> bool:
    if not path.is_symlink():
        return False
    target = path.resolve()
    return target.is_relative_to(root) or path.parent.resolve().is_relative_to(target)


def _refuse(error: OSError) -> NoReturn:
    raise BadInput.unreadable(str(error.filename), error) from error
