"""VIA's JSON: pictures with their regions, alone or within a project."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_bbox.annotations.formats.format import Picture, Spots
from lightning_bbox.annotations.formats.json import (
    as_object,
    parse_json,
    span_of,
    spotted_json,
    take,
)
from lightning_bbox.annotations.formats.via.project import is_project, project_spots, read_project
from lightning_bbox.annotations.formats.via.regions import box_of, record_of
from lightning_bbox.core.errors import BadInput, shortened

_PROJECT = "_via_img_metadata"


def looks_like_json(path: Path) -> bool:
    """Tell by its words whether a file is VIA's."""
    content = path.read_bytes()
    pictures = b'"filename"' in content and b'"regions"' in content
    of_3 = all(word in content for word in (b'"fname"', b'"metadata"', b'"fid_list"'))
    return of_3 or (pictures and b'"file_attributes"' in content)


def read_json(root: Path, files: Sequence[str], named: str | int | None) -> list[Picture]:
    """Read what JSON files say of pictures.

    Args:
        root: Folder of the data set.
        files: The files, relative to the root.
        named: The attribute that is the class, where the user says it.

    Raises:
        BadInput: A file isn't well-formed.
    """
    pictures: list[Picture] = []
    for file in files:
        document = parse_json(root, file)
        if is_project(document):
            pictures += read_project(document, file, named)
        else:
            pictures += [_picture(file, *each, named) for each in _entries(document, file)]
    return pictures


def _entries(document: object, file: str) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield the pictures of a document by their keys, with how many regions stand before."""
    whole = as_object(document, file)
    entries = as_object(whole[_PROJECT], f"{file}: {_PROJECT}") if _PROJECT in whole else whole
    before = 0
    for key, entry in entries.items():
        picture = as_object(entry, f"{file}: {shortened(key)}")
        yield key, picture, before
        before += len(_regions(picture, f"{file}: {shortened(key)}"))


def _picture(
    file: str, key: str, entry: Mapping[str, Any], before: int, named: str | int | None
) -> Picture:
    place = f"{file}: {shortened(key)}"
    if not (name := take(entry, "filename", str, place).strip()):
        raise BadInput.at(place, "its filename is empty", "fill it or remove the picture")
    picture = Picture(file, place, name)
    for at, region in enumerate(_regions(entry, place)):
        where = f"{place}: region {at + 1}"
        shape = _attributes(region, "shape_attributes", where)
        stated = _attributes(region, "region_attributes", where)
        picture.records.append(record_of(shape, stated, where, file, before + at, named))
    return picture


def _regions(entry: Mapping[str, Any], place: str) -> list[Any]:
    """Return the regions of a picture: a list, or in VIA 1 an object by number."""
    found = take(entry, "regions", (list, dict), place)
    return [*found.values()] if isinstance(found, dict) else found


def _attributes(region: object, key: str, place: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = take(as_object(region, place), key, dict, place)
    return found


def json_spots(text: str) -> Iterator[Spots]:
    """Find where the numbers of each region stand."""
    document = spotted_json(text)
    if is_project(document):
        yield from project_spots(document)
        return
    for _, entry, _ in _entries(document, ""):
        for region in _regions(entry, ""):
            numbers, fault, outline = box_of(region["shape_attributes"])
            yield Spots([] if fault or outline else [span_of(number) for number in numbers])
