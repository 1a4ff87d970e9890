"""What lies beside YOLO's files: names of classes, keypoints, and the splits of the pictures."""

import json
import os
import posixpath
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

from lightning_bbox.annotations.formats.texts import read_lines, read_text, whole_text
from lightning_bbox.annotations.splits import Split, usual_split
from lightning_bbox.core.errors import BadInput, listed

_YAMLS = ("data.yaml", "data.yml")
_LINES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
_NOTES = "notes.json"  # Label Studio's
_DARKNET = "obj.data"
_LISTS = ("train.txt", "valid.txt", "val.txt", "test.txt")
_PICTURE = re.compile(r"\.(avif|bmp|gif|jfif|jpe?g|jp2|png|pgm|ppm|tiff?|webp)$", re.IGNORECASE)


def is_list(line: str) -> bool:
    """Tell by its first line whether a text file lists pictures."""
    return _PICTURE.search(line) is not None


def holds_names(name: str) -> bool:
    """Tell by its name whether a text file holds names of classes."""
    return name.casefold() in _LINES


@dataclass
class Beside:
    """What files beside annotations say, the nearest on the way up to the root.

    Args:
        root: Folder of the data set.
        notes: What a person should know of them.
    """

    root: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read each file and look into each folder once."""
        self.document = cache(self._document)
        self.names = cache(self._names)
        self.described = cache(self._described)

    def _nearest(self, folder: PurePosixPath, names: Sequence[str]) -> str | None:
        files = ((above / name).as_posix() for above in (folder, *folder.parents) for name in names)
        return next((file for file in files if (self.root / file).is_file()), None)

    def _described(self, folder: PurePosixPath) -> str | None:
        """Return the nearest file that describes a whole data set, if there is one."""
        return self._nearest(folder, (*_YAMLS, _DARKNET))

    def _names(self, folder: PurePosixPath) -> tuple[str, dict[int, str]]:
        """Return the nearest file that names classes, with the names by number; or nothing."""
        for above in (folder, *folder.parents):
            here = [above / name for name in (*_YAMLS, *_LINES, _NOTES)]
            for path in (*here, *self._others(above)):
                file = path.as_posix()
                if (self.root / file).is_file() and (names := self._names_in(file)):
                    return file, names
        return "", {}

    def _others(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Return other files in a folder that name classes; several must agree."""
        there = sorted((self.root / folder).glob("*")) if (self.root / folder).is_dir() else []
        files = [
            folder / path.name
            for path in there
            if path.suffix.casefold() in (".yaml", ".yml", ".names") and path.name not in _YAMLS
        ]
        found = {file: self._names_in(file.as_posix(), strict=False) for file in files}
        named = [file for file, names in found.items() if names]
        if len({tuple(found[file].items()) for file in named}) > 1:
            names = listed([file.as_posix() for file in named])
            problem = "each of these names other classes"
            raise BadInput.at(names, problem, "keep one, or name the right one data.yaml")
        return named[:1]

    def _names_in(self, file: str, strict: bool = True) -> dict[int, str]:
        if file.endswith((".yaml", ".yml")):
            return self._names_of_yaml(file, strict)
        if file.endswith(_NOTES):
            return self._names_of_notes(file)
        return {n - 1: line for n, line in read_lines(self.root, file)}

    def _names_of_yaml(self, file: str, strict: bool) -> dict[int, str]:
        try:
            document = self.document(file)
        except BadInput:
            if strict:
                raise
            return {}
        names = document.get("names") if isinstance(document, dict) else None
        if names is None or (not strict and not isinstance(names, list | dict)):
            note = f"{file} names no classes"
            self.notes += [note] * (strict and note not in self.notes)
            return {}
        numbered = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(numbered, dict) or not all(
            re.fullmatch(r"\d{1,9}", str(number), re.ASCII) and name and isinstance(name, str)
            for number, name in numbered.items()
        ):
            if not strict:
                return {}
            problem = f"'names' is {reprlib.repr(names)}, no list or numbered map of texts"
            raise BadInput.at(file, problem, "write names: ['first', 'second']")
        return {int(number): whole_text(name, file) for number, name in numbered.items()}

    def _names_of_notes(self, file: str) -> dict[int, str]:
        """Read Label Studio's list of categories; any other file of this name says nothing."""
        try:
            document = json.loads(read_text(self.root, file))
            entries = [(entry["id"], entry["name"]) for entry in document["categories"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            return {}
        plain = all(isinstance(n, int) and isinstance(name, str) for n, name in entries)
        return {n: whole_text(name, file) for n, name in entries} if plain else {}

    def _document(self, file: str) -> object:
        text = read_text(self.root, file)
        if file.endswith(_DARKNET):
            lines = (line.partition("=") for line in text.split("\n"))
            return {key.strip(): value.strip() for key, mark, value in lines if mark}
        try:
            # All scalars stay texts: `no` is a name, and tags such as !!int can't fail.
            return yaml.load(text, yaml.BaseLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{file}:{mark.line + 1}" if mark else file
            problem = f"is not well-formed YAML ({getattr(error, 'problem', error)})"
            raise BadInput.at(place, problem, "repair it") from error

    def keypoints(self, folder: PurePosixPath) -> int:
        """Return how many numbers of keypoints follow each box, as `kpt_shape` says."""
        file = self.described(folder)
        document = self.document(file) if file else None
        shape = document.get("kpt_shape") if isinstance(document, dict) else None
        if shape is None:
            return 0
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(re.fullmatch(r"\d{1,4}", str(side), re.ASCII) for side in shape)
        ):
            problem = f"'kpt_shape' is {reprlib.repr(shape)}, no pair of whole numbers"
            raise BadInput.at(str(file), problem, "write kpt_shape: [17, 3]")
        return int(shape[0]) * int(shape[1])

    def splits(self, folders: Sequence[PurePosixPath]) -> dict[Split, list[str]]:
        """Return the folders and lists of pictures of each split, as files beside these say."""
        splits = dict[Split, list[str]]()
        described = dict.fromkeys(filter(None, map(self.described, folders)))
        for file in described:
            self.notes += self._add_splits(splits, file)
        for folder in folders if not described else ():
            for name in _LISTS:
                file, role = (folder / name).as_posix(), usual_split(PurePosixPath(name).stem)
                lines = read_lines(self.root, file) if (self.root / file).is_file() else []
                if role and lines and is_list(lines[0][1]):
                    splits.setdefault(role, []).append(file)
                    self.notes.append(f"{role} as in {file}")
        return splits

    def _add_splits(self, splits: dict[Split, list[str]], file: str) -> Iterator[str]:
        """Add the folders and lists that a file names, and say which are amiss."""
        document = self.document(file)
        if not isinstance(document, dict):
            return
        base, folder = document.get("path"), posixpath.dirname(file)
        stated = False
        for key, places in document.items():
            role = usual_split(key) if isinstance(key, str) else None
            if role is None or not places:
                continue
            for place in [places] if isinstance(places, str) else places:
                if not isinstance(place, str) or isinstance(places, dict):
                    problem = f"{key!r} is {reprlib.repr(places)}, no path or list of paths"
                    raise BadInput.at(file, problem, f"write {key}: images/{key}")
                found = self._located(folder, base if isinstance(base, str) else "", place)
                if found is None:
                    yield f"{key} of {file} ({place}) isn't there"
                else:
                    splits.setdefault(role, []).append(found)
                    stated = True
        if stated:
            yield f"splits as in {file}"

    def _located(self, folder: str, base: str, place: str) -> str | None:
        """Find a folder or list below the root as a file means it, or as its end is found here.

        Such files come with paths of other machines, and with `../` where none belongs.
        """
        plain = place.replace("\\", "/")
        parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
        ends = ("/".join(parts[start:]) for start in range(max(len(parts) - 1, 1)))
        whole = Path(os.path.normpath(self.root.absolute()))
        last = [parts[-1]] if parts and parts[-1].endswith(".txt") else []
        for name in (posixpath.join(base, plain), plain, *ends, *last):
            path = Path(os.path.normpath(whole / folder / name))
            if path.is_relative_to(whole) and os.path.exists(path):  # noqa: PTH110 - never raises
                return path.relative_to(whole).as_posix()
        return None
