"""Where pictures lie: the one that an annotation speaks of, and its split."""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.formats.texts import read_lines
from lightning_bbox.annotations.splits import split_in_name, usual_split
from lightning_bbox.core.errors import BadInput, listed

_PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_PICTURE_FOLDERS = ("JPEGImages", "images")
_ANNOTATION_FOLDERS = ("annotations", "labels")


def is_picture(file: str) -> bool:
    """Tell by its suffix whether a file is a picture, and not a hidden one."""
    name = PurePosixPath(file)
    return name.suffix.casefold() in _PICTURE_SUFFIXES and not name.name.startswith(".")


def split_of(*files: str) -> str:
    """Name the split that files lie in: their nearest folder that bears the usual name of one.

    Args:
        files: Files relative to the root; the first in such a folder decides.

    Returns:
        The folder's name as it is, or nothing.
    """
    folders = (part for file in files for part in reversed(PurePosixPath(file).parts[:-1]))
    return next((part for part in folders if usual_split(part)), "")


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
        raise BadInput.at(place, problem, "move it inside or set allow_outside")
    return Path(os.path.relpath(path, root)).as_posix()


class PictureFinder:
    """Find the picture that an annotation speaks of.

    Pictures are looked for in the folder `images`. Where none is given, they are looked for in the
    folders JPEGImages and images beside a folder Annotations or labels, and around it; otherwise
    where the annotations are, and in JPEGImages and images there. Where the annotation file's own
    name tells a split, as `instances_train2017.json` does, the folders of that split in these come
    first. The first that holds the first picture is taken for all.

    Args:
        root: Folder of the data set.
        images: Folder of the pictures, relative to the root.
        by_stem: Whether a picture is found by the stem of its annotation file, not by its name.
        allow_outside: Whether pictures may lie outside the root.
    """

    def __init__(self, root: Path, images: str | None, by_stem: bool, allow_outside: bool) -> None:
        self._root = root
        self._images = images and inside(root, images, "images", allow_outside)
        self._by_stem = by_stem
        self._allow_outside = allow_outside
        self._folders: dict[str, str] = {}  # of the pictures, by annotation file or its folder
        self._names: dict[str, dict[str, list[str]]] = {}  # of pictures, by folder and stem

    def find(self, pictures: Iterable[Picture]) -> dict[str, Picture]:
        """Find every picture, and fill in the splits that the names of files and folders tell.

        Args:
            pictures: What the annotations say of them.

        Returns:
            The pictures by their paths relative to the root, in the same order.

        Raises:
            BadInput: If a picture can't be found, may be any of several, lies outside the root or
                is listed twice.
        """
        found: dict[str, Picture] = {}
        for picture in pictures:
            path = self._path(picture)
            if path in found:
                problem = f"{path} is listed at {found[path].place} too"
                raise BadInput.at(picture.place, problem, "keep one of the two")
            named = None if self._by_stem else split_in_name(picture.file)
            split = picture.split or named or split_of(picture.file, path)
            found[path] = replace(picture, split=split)
        return found

    def unlabelled(self, found: Iterable[str]) -> list[str]:
        """List the pictures that lie beside those found but have no annotation file."""
        folders = set(self._folders.values())
        there = {
            posixpath.normpath(posixpath.join(folder, name))
            for folder in folders
            for names in self._stems(folder).values()
            for name in names
        }
        return sorted(there - set(found))

    def _path(self, picture: Picture) -> str:
        folder = self._folder(picture)
        names = self._matches(folder, picture)
        if not names:
            raise _missing(picture, [folder])
        if len(names) > 1:
            problem = f"its picture may be any of {listed(names)} in {folder or '.'}"
            raise BadInput.at(picture.place, problem, "keep one of them")
        path = posixpath.join(folder, names[0])
        return inside(self._root, path, picture.place, self._allow_outside)

    def _folder(self, picture: Picture) -> str:
        own = posixpath.dirname(picture.file)
        key = own if self._by_stem else picture.file
        if key not in self._folders:
            folders = _picture_folders(own, self._images)
            if not self._by_stem:
                folders = [*_split_folders(self._root, folders, picture.file), *folders]
            having = [folder for folder in folders if self._matches(folder, picture)]
            if not having:
                raise _missing(picture, folders)
            self._folders[key] = having[0]
        return self._folders[key]

    def _matches(self, folder: str, picture: Picture) -> list[str]:
        if not self._by_stem:
            there = os.path.isfile(self._root / folder / picture.name)  # noqa: PTH113 - never raises
            return [picture.name] if there else []
        stems = self._stems(folder)
        own = stems.get(PurePosixPath(picture.file).stem, [])
        stated = PurePosixPath(picture.name.replace("\\", "/"))
        named = [name for name in stems.get(stated.stem, []) if name == stated.name]
        if own and not set(named) <= set(own):
            problem = f"names the picture {stated.name!r}, but {own[0]!r} bears its own name"
            raise BadInput.at(picture.place, problem, "correct its filename")
        return named or own

    def _stems(self, folder: str) -> dict[str, list[str]]:
        """Return the names of the pictures in a folder by their stems."""
        if folder not in self._names:
            self._names[folder] = {}
            for name in filter(is_picture, _names_in(self._root, folder)):
                self._names[folder].setdefault(PurePosixPath(name).stem, []).append(name)
        return self._names[folder]


def _missing(picture: Picture, folders: Sequence[str]) -> BadInput:
    name = picture.name or PurePosixPath(picture.file).stem
    problem = f"there is no picture {name!r} in {listed([folder or '.' for folder in folders])}"
    remedy = "add it, correct the entry, or name the folder of pictures with images="
    return BadInput.at(picture.place, problem, remedy)


def _picture_folders(own: str, images: str | None) -> list[str]:
    """List the folders where the pictures of a folder of annotations may lie, best first."""
    parts = PurePosixPath(own).parts
    if images is not None:
        return [posixpath.join(images, *parts[start:]) for start in range(len(parts) + 1)]
    marks = [at for at, part in enumerate(parts) if part.casefold() in _ANNOTATION_FOLDERS]
    if not marks:
        return [posixpath.join(own, folder) for folder in ("", *_PICTURE_FOLDERS)]
    before, after = parts[: marks[-1]], parts[marks[-1] + 1 :]
    twins = [posixpath.join(*before, folder, *after) for folder in (*_PICTURE_FOLDERS, "")]
    return [*twins, own]


def _split_folders(root: Path, folders: Iterable[str], file: str) -> list[str]:
    """List the folders in these that are of the split a file is named by, most alike first."""
    split = split_in_name(file)
    if split is None:
        return []
    found = []
    for folder in folders:
        names = [name for name in _names_in(root, folder) if usual_split(name) == split]
        # train2017 before train and train2014 for instances_train2017.json
        names.sort(key=lambda name: (name.casefold() not in file.casefold(), -len(name), name))
        inner = [posixpath.join(folder, name) for name in names]
        found += [name for name in inner if (root / name).is_dir()]
    return found


def _names_in(root: Path, folder: str) -> list[str]:
    """List what is in a folder, if it is one."""
    try:
        return sorted(path.name for path in (root / folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInput.unreadable(folder, error) from error


def pictures_named(
    images: Iterable[str], root: Path, split_file: str, allow_outside: bool
) -> list[str]:
    r"""Return the pictures that a split file names, in its order.

    Args:
        images: Paths of the pictures there are.
        root: Folder of the data set.
        split_file: Text file relative to the root: a path, name or stem a line.
        allow_outside: Whether it may lie outside the root.

    Raises:
        BadInput: If a line names no picture, more than one, or one named before.
    """
    file = inside(root, split_file, "split_file", allow_outside)
    known: dict[str, list[str]] = {}
    for path in images:
        pure = PurePosixPath(path)
        for name in {path, pure.with_suffix("").as_posix(), pure.name, pure.stem}:
            known.setdefault(name, []).append(path)
    named: dict[str, None] = {}
    for number, line in read_lines(root, file):
        path = _named(known, line, f"{file}:{number}")
        if path in named:
            raise BadInput.at(file, f"{path} is named twice", f"remove line {number}")
        named[path] = None
    if not named:
        raise BadInput.at(file, "no picture is named", "write one a line")
    return list(named)


def _named(known: Mapping[str, list[str]], line: str, place: str) -> str:
    paths = known.get(line.removeprefix("./"), [])
    if len(paths) == 1:
        return paths[0]
    if paths:
        problem = f"{line!r} may be any of {listed(paths)}"
        raise BadInput.at(place, problem, "write the path relative to the root")
    if re.search(r"\s(-1|0|1)$", line):
        problem = f"{line!r} has a second column, as VOC's lists by class have"
        raise BadInput.at(place, problem, "give a list of pictures alone, such as train.txt")
    problem = f"no annotation is there for {line!r}"
    raise BadInput.at(place, problem, "add its annotation file or remove the line")


def group_pictures(found: Mapping[str, Picture], pattern: str | None) -> tuple[str, ...]:
    """Name the group of each picture: as the pattern or else the file says, or else its own path.

    Args:
        found: The pictures by path.
        pattern: Regular expression to search in a path, whose first group is the picture's group.

    Raises:
        BadInput: If the pattern is no regular expression with a group, or doesn't fit a path.
    """
    if pattern is None:
        return tuple(picture.group or path for path, picture in found.items())
    expression = _compiled(pattern)
    groups = []
    for path in found:
        match = expression.search(path)
        if match is None or not match[1]:
            problem = f"group_pattern {pattern!r} finds no group in this path"
            raise BadInput.at(path, problem, "write a pattern that fits every picture")
        groups.append(match[1])
    return tuple(groups)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        msg = f"group_pattern {pattern!r} is no regular expression ({error}); correct it"
        raise BadInput(msg) from error
    if not expression.groups:
        msg = f"group_pattern {pattern!r} has no group; put what names one in parentheses"
        raise BadInput(msg)
    return expression
