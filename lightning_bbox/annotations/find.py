"""Where the annotations of a data set lie, and which format they are in."""

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lightning_bbox.annotations.folders import ANNOTATION_FOLDERS, files_below, inside, is_picture
from lightning_bbox.annotations.formats.format import Format
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.pictures import split_of
from lightning_bbox.annotations.splits import split_in_name
from lightning_bbox.core.errors import BadInput, listed


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
    formats: Sequence[Format],
    wanted: str,
    annotations: str | Sequence[str] | None,
    allow_outside: bool,
) -> list[Source]:
    """Find the annotation files of a data set, the ones to read first.

    Where no files are named, each format is looked for in its usual folder or, where one file
    speaks of many pictures, anywhere; after all of them, beside the pictures, and at last wherever
    files are named as pictures are, first in folders that are named as annotations.

    Args:
        root: Folder of the data set.
        formats: Formats to look for, the clearest first.
        wanted: The name of one of them, or `auto` to recognise it.
        annotations: Files, or folders to look in, relative to the root.
        allow_outside: Whether they may lie outside the root.

    Returns:
        What to read, followed by what else is there.

    Raises:
        BadInput: If nothing is recognised, or there are several candidates.
    """
    names = [annotations] if isinstance(annotations, str) else list(annotations or ())
    if names:
        sources = _named_sources(root, formats, wanted, names, allow_outside)
    else:
        sources = _usual_sources(root, formats, wanted)
    sources = [source for source in sources if wanted in ("auto", source.format.name)]
    found = [source for source in _each_file_once(sources) if source.files]
    if not found:
        looked_for = ", ".join(source.looked_for for source in sources)
        problem = f"no annotations found, looked for {looked_for}"
        remedy = f"name them with {argument('annotations')}"
        if wanted != "auto":
            remedy += f", or have their format recognised: {argument('format', 'auto')}"
        if names:
            remedy = f"correct {argument('annotations')} or {argument('format')}"
        raise BadInput.at(str(root), problem, remedy)
    _refuse_rivals(found[0], len(names))
    _check_links(root, found[0].files, allow_outside)
    return found


def _each_file_once(sources: Iterable[Source]) -> Iterator[Source]:
    """Leave out of each source what the same format was found by before, in a better place."""
    seen = set[tuple[str, str]]()
    for source in sources:
        fresh = [file for file in source.files if (source.format.name, file) not in seen]
        seen |= {(source.format.name, file) for file in fresh}
        yield source._replace(files=fresh)


def _usual_sources(root: Path, formats: Sequence[Format], wanted: str) -> list[Source]:
    below = files_below(root, root)
    files, others = _by_format(root, formats, wanted, below)
    pictures = [file for file in below if is_picture(file)]
    stems = {name for file in pictures for name in (file, posixpath.splitext(file)[0])}
    bare = {posixpath.basename(stem) for stem in stems}
    usual, beside, elsewhere = [], [], []
    for kind in formats:
        mine, pattern = files[kind.name], " and ".join(f"*{suffix}" for suffix in kind.suffixes)
        if kind.by_stem:
            inner = _within({kind.folder.casefold()}, mine)
            usual.append(Source(kind, f"{pattern} in {kind.folder}", inner))
            beside.append(Source(kind, f"{pattern} beside pictures", _beside(stems, mine)))
            named = [file for file in mine if PurePosixPath(file).stem in bare]
            inner = _within(ANNOTATION_FOLDERS, named)
            elsewhere.append(Source(kind, f"{pattern} named as pictures", inner or named))
        else:
            usual.append(Source(kind, f"{pattern} {kind.content}", mine))
    return [*usual, *beside, *elsewhere, *others]


def _named_sources(
    root: Path, formats: Sequence[Format], wanted: str, names: Sequence[str], allow_outside: bool
) -> list[Source]:
    files: dict[str, list[str]] = {kind.name: [] for kind in formats}
    others: list[Source] = []
    for name in names:
        file = inside(root, name, "annotations", allow_outside)
        if (root / file).is_dir():
            found, aside = _by_format(root, formats, wanted, files_below(root, root / file))
            for kind, inner in found.items():
                files[kind] += inner
            others += aside
        elif (root / file).is_file():
            files[_format_of(root, file, formats, wanted).name].append(file)
        else:
            problem = f"is no file or folder in {root}"
            raise BadInput.at(name, problem, f"correct {argument('annotations')}")
    return [
        *(Source(kind, f"{kind.name} in {listed(names)}", files[kind.name]) for kind in formats),
        *others,
    ]


def _format_of(root: Path, file: str, formats: Sequence[Format], wanted: str) -> Format:
    """Tell the format of a file by the word of its user or by its suffix."""
    candidates = [kind for kind in formats if kind.name == wanted] or _of_suffix(formats, file)
    if not candidates:
        remedy = f"name it with {argument('format')}"
        raise BadInput.at(file, "has the suffix of no known format", remedy)
    alike = (kind for kind in candidates if _looks_like(kind, root, file))
    return next(alike, candidates[0])


def _by_format(
    root: Path, formats: Sequence[Format], wanted: str, files: Iterable[str]
) -> tuple[dict[str, list[str]], list[Source]]:
    """Sort out the files that look like annotations, by suffix and a glance at the content.

    Where none looks like the format wanted, all with its suffix are taken: their reader says what
    is wrong with them.

    Returns:
        The files to read by the name of their format, and those that lie there beside them.
    """
    found: dict[str, list[str]] = {kind.name: [] for kind in formats}
    unlike: list[str] = []
    for file in files:
        candidates, path = _of_suffix(formats, file), root / file
        if candidates and (path.is_file() or path.is_symlink()):
            alike = next((kind for kind in candidates if _looks_like(kind, root, file)), None)
            (found[alike.name] if alike else unlike).append(file)
    others = []
    for kind in formats:
        if kind.name == wanted and not found[wanted]:
            found[wanted] = [file for file in unlike if kind in _of_suffix(formats, file)]
        if aside := kind.aside(found[kind.name]):
            others.append(Source(kind, "", aside))
            found[kind.name] = [file for file in found[kind.name] if file not in aside]
    return found, others


def _of_suffix(formats: Sequence[Format], file: str) -> list[Format]:
    suffix = posixpath.splitext(file)[1].casefold()
    return [kind for kind in formats if suffix in kind.suffixes]


def _looks_like(kind: Format, root: Path, file: str) -> bool:
    try:
        return kind.looks_like(root / file)
    except OSError as error:
        raise BadInput.unreadable(file, error) from error


def _within(folders: Collection[str], files: Iterable[str]) -> list[str]:
    """Keep the files in a folder of one of these names, at any depth."""
    return [file for file in files if {*folders} & {*file.casefold().split("/")[:-1]}]


def _beside(stems: Set[str], files: Sequence[str]) -> list[str]:
    """Keep the files of the folders where one of them lies beside its picture."""
    with_picture = (file for file in files if posixpath.splitext(file)[0] in stems)
    folders = {posixpath.dirname(file) for file in with_picture}
    return [file for file in files if posixpath.dirname(file) in folders]


def _refuse_rivals(source: Source, named: int) -> None:
    """Refuse files that may each hold the whole data set, unless named, or one a split."""
    splits = [split_in_name(file) or split_of(file) for file in source.files]
    one_each = "" not in splits and len(set(splits)) == len(splits)
    many = source.format.by_stem or source.format.together
    if not many and len(splits) > max(named, 1) and not one_each:
        which = "the files themselves" if named else "the one to read, or several,"
        remedy = f"name {which} with {argument('annotations')}"
        raise BadInput.at(listed(source.files), "any of these may hold the annotations", remedy)


def _check_links(root: Path, files: Sequence[str], allow_outside: bool) -> None:
    """Refuse files found where links lead out of the root and may not."""
    links = [file for file in files if (root / file).is_symlink()]
    for name in dict.fromkeys([*map(posixpath.dirname, files), *links]):
        inside(root, name, "annotations", allow_outside)
