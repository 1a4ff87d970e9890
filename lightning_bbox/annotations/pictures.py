"""Where pictures lie: the one that an annotation speaks of, and its split."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lightning_bbox.annotations.folders import ANNOTATION_FOLDERS, files_below, inside, is_picture
from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.splits import split_in_name, usual_split
from lightning_bbox.core.errors import BadInput, listed

_PICTURE_FOLDERS = ("JPEGImages", "images", "data")
_EXACT = "as it is named"
_TAIL, _NAME = "by the end of its path", "by its bare name"
_UPLOADED = "by its name without what Label Studio puts before it"
_SUFFIX = "with another suffix"
_STATED = "as their annotation files state, whose own names are others"
_OWN = "by the name of their annotation files, which state another"
_SAME_SUFFIXES = ({".jpeg", ".jpg", ".jpe", ".jfif"}, {".tiff", ".tif"})
_OF_LABEL_STUDIO = re.compile(r"^[0-9a-f]{8}-")


def split_of(*files: str) -> str:
    """Name the split that files lie in: their nearest folder that bears the usual name of one.

    Args:
        files: Files relative to the root; the first in such a folder decides.

    Returns:
        The folder's name as it is, or nothing.
    """
    folders = (part for file in files for part in reversed(PurePosixPath(file).parts[:-1]))
    return next((part for part in folders if usual_split(part)), "")


class PictureFinder:
    """Find the picture that an annotation speaks of.

    Pictures are looked for in the folders `images`. Where none is given, they are looked for in the
    folders JPEGImages, images and data beside a folder Annotations or labels, and around it;
    otherwise where the annotations are, and in such folders there. Where the annotation file's own
    name tells a split or ends in a folder's name, as those of `instances_train2017.json` and
    `instances_default.json` do, the folders of that name in these come first. The first that holds
    the first picture is taken for all.

    What isn't there is looked for on a ladder, each rung of which is told once with a count: in the
    other of these folders; with slashes for backslashes; without percent-encoding; in another
    Unicode form; in other letter case; with another suffix of the same format, such as jpg for
    jpeg; by the longest common end of its path, anywhere in the root or in `images`; by its bare
    name. Two candidates on a rung are refused. So are a picture that bears an annotation file's own
    name and another one that it states, unless that other one has a file of its own.

    Args:
        root: Folder of the data set.
        images: Folders of the pictures, relative to the root.
        by_stem: Whether a picture is found by the stem of its annotation file, not by its name.
        allow_outside: Whether pictures may lie outside the root.

    Attributes:
        missing: What the annotations say of pictures that aren't there.
    """

    def __init__(
        self, root: Path, images: str | Sequence[str] | None, by_stem: bool, allow_outside: bool
    ) -> None:
        names = [images] if isinstance(images, str) else images
        self._root = root
        self._images = names and [inside(root, name, "images", allow_outside) for name in names]
        self._by_stem = by_stem
        self._allow_outside = allow_outside
        self._folders: dict[str, str] = {}  # of the pictures, by annotation file or its folder
        self._looked_in: dict[str, list[str]] = {}  # where they may be, by the same
        self._names: dict[str, dict[str, list[str]]] = {}  # of pictures, by folder and stem
        self._below: _Index | None = None
        self._known: dict[str, str] = {}  # folders of pictures, tidied, that are inside
        self._rungs: dict[str, list[str]] = {}  # what was found on which
        self._files: Set[str] = set()  # annotation files that are one a picture, without suffix
        self.missing: list[Picture] = []

    def find(self, pictures: Iterable[Picture]) -> dict[str, Picture]:
        """Find every picture, and fill in the splits that the names of files and folders tell.

        Args:
            pictures: What the annotations say of them.

        Returns:
            The pictures by their paths relative to the root, in the same order, but for those that
            are `missing`.

        Raises:
            BadInput: If a picture may be any of several, lies outside the root or is listed twice.
        """
        found: dict[str, Picture] = {}
        pictures = [*pictures]
        self._files = {posixpath.splitext(picture.file)[0] for picture in pictures if self._by_stem}
        for picture in pictures:
            path, rung = self._path(picture)
            if path is None:
                self.missing.append(picture)
                continue
            if path in found:
                problem = f"{path} is listed at {found[path].place} too"
                if rung != _EXACT:
                    problem = f"is {path} ({rung}), and so is {found[path].place}"
                raise BadInput.at(picture.place, problem, "keep one of the two")
            if rung != _EXACT:
                self._rungs.setdefault(rung, []).append(f"{path} for {picture.stated!r}")
            named = None if self._by_stem else split_in_name(picture.file)
            split = picture.split or named or split_of(picture.file, path)
            found[path] = replace(picture, split=split)
        return found

    def notes(self) -> list[str]:
        """Say how many pictures were found otherwise than as they are named, and are missing."""
        notes = [
            f"{_counted(len(paths), 'picture')} found {rung}, such as {paths[0]}"
            for rung, paths in self._rungs.items()
        ]
        if self.missing:
            boxes = sum(len(picture.records) for picture in self.missing)
            names = listed([repr(picture.stated) for picture in self.missing])
            lost = f"{_counted(len(self.missing), 'picture')} and {_counted(boxes, 'box')}"
            notes.append(f"missing and left out: {lost} in {names}")
        return notes

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

    def refusal(self, found: Mapping[str, Picture]) -> BadInput:
        """Name the pictures that are missing, the first of them, and where they were looked for.

        Args:
            found: Those that are there.
        """
        looked_in = dict[str, None]()
        for picture in self.missing:
            folder = self._folder(picture)
            looked_in |= dict.fromkeys(self._candidates(picture) if folder is None else [folder])
        names = [picture.stated for picture in self.missing]
        where = f"in {listed([folder or '.' for folder in looked_in])}"
        problem, entry = f"there is no picture {names[0]!r} {where}", "it, correct the entry"
        if (among := len(names) + len(found)) > 1:
            missing = listed([repr(name) for name in names])
            problem = f"{len(names)} of {among} pictures are not {where}: {missing}"
        if len(names) > 1:
            entry = "them, correct the entries"
        named = "correct" if self._images else "name the folder of pictures with"
        skip = argument("on_missing", "skip")
        remedy = f"add {entry}, or {named} {argument('images')}; {skip} leaves such pictures out"
        return BadInput.at(self.missing[0].place, problem, remedy)

    def _path(self, picture: Picture) -> tuple[str | None, str]:
        """Return a picture's path, if there is any, and the rung it was found on."""
        folder = self._folder(picture)
        names = [] if folder is None else self._matches(folder, picture)
        paths, rung = [posixpath.join(folder or "", name) for name in names], _EXACT
        if not paths:
            paths, rung = self._climb(picture)
        elif self._by_stem and picture.name:
            rung = _rung_by_stem(picture, names[0])
        if not paths:
            return None, rung
        if len(paths) > 1:
            shown, where = listed(paths), ""
            if rung == _EXACT:
                shown, where = listed(names), f" in {folder or '.'}"
            problem = f"its picture may be any of {shown}{where}"
            remedy = "keep one of them"
            if rung != _EXACT:
                problem = f"{picture.stated!r} may be any of {shown} ({rung})"
                remedy = f"{remedy}, write its path, or name the folder with {argument('images')}"
            raise BadInput.at(picture.place, problem, remedy)
        return self._inside(paths[0], picture.place), rung

    def _inside(self, path: str, place: str) -> str:
        """Do as `inside` does, which asks the system for every folder above, once a folder."""
        folder, name = posixpath.split(path)
        whole = name in ("", ".", "..") or os.path.islink(self._root / path)  # noqa: PTH114 - quick
        if not whole and folder in self._known:
            return posixpath.join(self._known[folder], name)
        tidy = inside(self._root, path, place, self._allow_outside)
        if not whole:
            self._known[folder] = posixpath.dirname(tidy)
        return tidy

    def _climb(self, picture: Picture) -> tuple[list[str], str]:
        """Look for a picture rung by rung, and return what is on the first that holds any."""
        folders = self._candidates(picture)
        others = [folder for folder in folders if folder != self._folder(picture)]
        there = [(folder, name) for folder in others for name in self._matches(folder, picture)]
        if there:
            unique = dict.fromkeys(posixpath.normpath(posixpath.join(*pair)) for pair in there)
            return [*unique], f"in {there[0][0] or '.'}, not where the others are"
        if self._below is None:
            self._below = _Index(self._root, self._images or [""])
        own = posixpath.splitext(picture.file)[0]
        names = [picture.name] * bool(picture.name) + [posixpath.basename(own)] * self._by_stem
        for name in names:
            for rung, form, fold in _rungs(name):
                paths = [posixpath.join(folder, form) for folder in folders]
                if not _climbs_out(form) and (hits := self._below.equal(paths, fold)):
                    return hits, rung
        for name in [*names[: len(names) - self._by_stem], *([own] * self._by_stem)]:
            *_, (_, form, _) = _rungs(name)
            if not _climbs_out(form) and (found := self._by_tail(form, folders)):
                return found
        return [], _EXACT

    def _by_tail(self, form: str, folders: Sequence[str]) -> tuple[list[str], str] | None:
        """Find the pictures that share the longest end of a path, or its bare name at least.

        Where the very folder that is stated is there, only what lies in it counts; nor does what
        lies in a folder of another split.
        """
        assert self._below is not None
        *above, name = _parts(form)
        stated = () if self._by_stem else self._below.stated_folders(above, folders)
        split = usual_split(split_of(form))
        uploaded = _OF_LABEL_STUDIO.sub("", name)
        for own, rung in ((name, _NAME), (uploaded, _UPLOADED), (_suffixed(name), _SUFFIX)):
            hits: dict[str, int] = {}
            for path in self._below.named(own):
                here = usual_split(split_of(path))
                if not (split and here and split != here) and path.startswith(stated or ""):
                    hits[path] = _common_end(above, path.split("/")[:-1])
            if hits:
                most = max(hits.values())
                best = [path for path, shared in hits.items() if shared == most]
                return best, _TAIL if most and rung == _NAME else rung
        return None

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
            if picture.from_root:
                folders = [""]
            elif not self._by_stem:
                folders = [*_inner_folders(self._root, folders, picture.file), *folders]
            self._looked_in[key] = [*dict.fromkeys(folders)]
        return self._looked_in[key]

    def _matches(self, folder: str, picture: Picture) -> list[str]:
        """List the names in a folder that an annotation speaks of, exactly as they are."""
        if not self._by_stem:
            there = os.path.isfile(self._root / folder / picture.name)  # noqa: PTH113 - never raises
            return [picture.name] * there
        stems = self._stems(folder)
        own = stems.get(PurePosixPath(picture.file).stem, [])
        stated = PurePosixPath(picture.name.replace("\\", "/"))
        named = [name for name in stems.get(stated.stem, []) if name == stated.name]
        if own and not set(named) <= set(own):
            if posixpath.join(posixpath.dirname(picture.file), stated.stem) in self._files:
                return own  # the other one is spoken of by a file of its own
            problem = f"names the picture {stated.name!r}, but {own[0]!r} bears its own name"
            raise BadInput.at(picture.place, problem, "correct its filename")
        return named or own

    def _stems(self, folder: str) -> dict[str, list[str]]:
        """Return the names of the pictures in a folder by their stems, and by themselves."""
        if folder not in self._names:
            self._names[folder] = {}
            for name in filter(is_picture, _names_in(self._root, folder)):
                for key in (PurePosixPath(name).stem, name):
                    self._names[folder].setdefault(key, []).append(name)
        return self._names[folder]


def _rung_by_stem(picture: Picture, name: str) -> str:
    """Say how a picture was found by its annotation file's own name, or by the one that states."""
    own, there = _folded(PurePosixPath(picture.file).stem), PurePosixPath(_folded(name))
    stated = PurePosixPath(_folded(picture.name.replace("\\", "/")))
    if own not in (there.stem, there.name):
        return _STATED
    if own not in (stated.stem, stated.name):
        return _OWN
    return _SUFFIX if is_picture(stated.name) and stated.name != there.name else _EXACT


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun == 'box' else 's'}"


def _same(text: str) -> str:
    return text


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(_composed(text).casefold())


def _suffixed(text: str) -> str:
    """Fold a path, and put one suffix in the place of all that mean the same format."""
    stem, suffix = posixpath.splitext(_folded(text))
    return next(
        (f"{stem}.*{min(same)}" for same in _SAME_SUFFIXES if suffix in same), stem + suffix
    )


def _rungs(name: str) -> Iterator[tuple[str, str, Callable[[str], str]]]:
    """Yield what each rung of a name is called, the name there, and how names are compared."""
    slashed = name.replace("\\", "/")
    decoded = unquote(slashed)
    yield "by its name without a suffix", name, _same  # slashes come next: nothing else is new here
    yield "with slashes for backslashes", slashed, _same
    yield "without percent-encoding", decoded, _same
    yield "in another Unicode form", decoded, _composed
    yield "in other letter case", decoded, _folded
    yield _SUFFIX, decoded, _suffixed


def _climbs_out(form: str) -> bool:
    return ".." in PurePosixPath(form).parts


def _parts(form: str) -> list[str]:
    """Split a path, of another machine perhaps or of the web, into its folders and its name."""
    address, _, query = form.partition("?")
    if query.startswith("d="):  # so Label Studio names files of its disk
        address = query.removeprefix("d=").partition("&")[0]
    parts = re.sub(r"^([a-z][\w+.-]*://|[a-z]:)", "", address, flags=re.IGNORECASE).split("/")
    return [part for part in parts if part not in ("", ".")] or [form]


def _common_end(folders: Sequence[str], others: Sequence[str]) -> int:
    """Count the folders at the end of two paths that are the same but for letter case and form."""
    pairs = zip(map(_folded, reversed(folders)), map(_folded, reversed(others)), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Index:
    """All pictures below some folders, by their paths, folders and names in every form."""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        there = (root / folder for folder in folders if (root / folder).is_dir())
        below = (path for folder in there for path in files_below(root, folder))
        self._paths = [path for path in dict.fromkeys(below) if is_picture(path)]
        self._folders = {
            str(above) for path in self._paths for above in PurePosixPath(path).parents
        }
        self._equal: dict[Callable[[str], str], dict[str, list[str]]] = {}
        self._named: dict[str, list[str]] = {}
        for path in self._paths:
            name = PurePosixPath(path)
            for key in {_folded(name.name), _folded(name.stem), _suffixed(name.name)}:
                self._named.setdefault(key, []).append(path)

    def equal(self, paths: Iterable[str], fold: Callable[[str], str]) -> list[str]:
        """List the pictures whose paths, or these without their suffix, are such once folded."""
        if fold not in self._equal:
            self._equal[fold] = {}
            for path in self._paths:
                for key in {fold(path), fold(posixpath.splitext(path)[0])}:
                    self._equal[fold].setdefault(key, []).append(path)
        keys = dict.fromkeys(fold(posixpath.normpath(path)) for path in paths)
        hits = (self._equal[fold].get(key, []) for key in keys)
        return [*dict.fromkeys(hit for some in hits for hit in some)]

    def stated_folders(self, above: Sequence[str], folders: Sequence[str]) -> tuple[str, ...]:
        """List the folders, as starts of paths, that the longest end of a stated one means."""
        for start in range(len(above)):
            end = "/".join(above[start:])
            there = {posixpath.normpath(posixpath.join(each, end)) for each in ("", *folders)}
            if found := sorted(there & self._folders):
                return tuple(f"{folder}/" for folder in found)
        return ()

    def named(self, name: str) -> list[str]:
        """List the pictures of a name, with its suffix or without."""
        return self._named.get(_folded(name), [])


def _picture_folders(own: str, images: Sequence[str] | None) -> list[str]:
    """List the folders where the pictures of a folder of annotations may lie, best first."""
    parts = PurePosixPath(own).parts
    if images is not None:
        starts = range(len(parts) + 1)
        return [posixpath.join(each, *parts[start:]) for each in images for start in starts]
    marks = [at for at, part in enumerate(parts) if part.casefold() in ANNOTATION_FOLDERS]
    if not marks:
        return [posixpath.join(own, folder) for folder in ("", *_PICTURE_FOLDERS)]
    before, after = parts[: marks[-1]], parts[marks[-1] + 1 :]
    twins = [posixpath.join(*before, folder, *after) for folder in (*_PICTURE_FOLDERS, "")]
    return [*twins, own]


def _inner_folders(root: Path, folders: Iterable[str], file: str) -> list[str]:
    """List the folders in these that a file is named by or is of the split of, most alike first."""
    split, stem = split_in_name(file), PurePosixPath(file).stem.casefold()
    found = []
    for folder in folders:
        names = [
            name
            for name in _names_in(root, folder)
            if (split and usual_split(name) == split) or stem.endswith(f"_{name.casefold()}")
        ]
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
