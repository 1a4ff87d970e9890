"""Where pictures lie: the one that an annotation speaks of, and its split."""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.formats.texts import argument
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
        remedy = f"move it inside or set {argument('allow_outside', True)}"
        raise BadInput.at(place, problem, remedy)
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
        self._looked_in: dict[str, list[str]] = {}  # where they may be, by the same
        self._names: dict[str, dict[str, list[str]]] = {}  # of pictures, by folder and stem

    def find(self, pictures: Iterable[Picture]) -> dict[str, Picture]:
        """Find every picture, and fill in the splits that the names of files and folders tell.

        Args:
            pictures: What the annotations say of them.

        Returns:
            The pictures by their paths relative to the root, in the same order.

        Raises:
            BadInput: If pictures can't be found, one may be any of several, lies outside the root
                or is listed twice.
        """
        found: dict[str, Picture] = {}
        missing: list[Picture] = []
        for picture in pictures:
            path = self._path(picture)
            if path is None:
                missing.append(picture)
                continue
            if path in found:
                problem = f"{path} is listed at {found[path].place} too"
                raise BadInput.at(picture.place, problem, "keep one of the two")
            named = None if self._by_stem else split_in_name(picture.file)
            split = picture.split or named or split_of(picture.file, path)
            found[path] = replace(picture, split=split)
        if missing:
            raise self._missing(missing, len(missing) + len(found))
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

    def _path(self, picture: Picture) -> str | None:
        folder = self._folder(picture)
        names = [] if folder is None else self._matches(folder, picture)
        if folder is None or not names:
            return None
        if len(names) > 1:
            problem = f"its picture may be any of {listed(names)} in {folder or '.'}"
            raise BadInput.at(picture.place, problem, "keep one of them")
        path = posixpath.join(folder, names[0])
        return inside(self._root, path, picture.place, self._allow_outside)

    def _folder(self, picture: Picture) -> str | None:
        """Return the folder of an annotation file's pictures, once one of them is found."""
        key = self._key(picture)
        if key not in self._folders:
            folders = self._candidates(picture)
            having = next((name for name in folders if self._matches(name, picture)), None)
            if having is None:
                return None
            self._folders[key] = having
        return self._folders[key]

    def _key(self, picture: Picture) -> str:
        return posixpath.dirname(picture.file) if self._by_stem else picture.file

    def _candidates(self, picture: Picture) -> list[str]:
        """List the folders where the pictures of an annotation file may lie, best first."""
        key = self._key(picture)
        if key not in self._looked_in:
            folders = _picture_folders(posixpath.dirname(picture.file), self._images)
            if not self._by_stem:
                folders = [*_split_folders(self._root, folders, picture.file), *folders]
            self._looked_in[key] = folders
        return self._looked_in[key]

    def _missing(self, pictures: Sequence[Picture], among: int) -> BadInput:
        """Name the pictures that can't be found, the first few of them, and where they aren't."""
        looked_in = dict[str, None]()
        for picture in pictures:
            folder = self._folder(picture)
            looked_in |= dict.fromkeys(self._candidates(picture) if folder is None else [folder])
        names = [picture.name or PurePosixPath(picture.file).stem for picture in pictures]
        where = f"in {listed([folder or '.' for folder in looked_in])}"
        problem, entry = f"there is no picture {names[0]!r} {where}", "it, correct the entry"
        if len(names) > 1:
            missing, entry = listed([repr(name) for name in names]), "them, correct the entries"
            problem = f"{len(names)} of {among} pictures are not {where}: {missing}"
        named = "correct" if self._images else "name the folder of pictures with"
        remedy = f"add {entry}, or {named} {argument('images')}"
        return BadInput.at(pictures[0].place, problem, remedy)

    def _matches(self, folder: str, picture: Picture) -> list[str]:
        if not self._by_stem:
            names = dict.fromkeys((picture.name, picture.name.replace("\\", "/")))
            there = (name for name in names if os.path.isfile(self._root / folder / name))  # noqa: PTH113 - never raises
            return [*islice(there, 1)]
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
