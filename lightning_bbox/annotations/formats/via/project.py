"""VIA 3: a project, in which files, views, attributes and regions have lists of their own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_bbox.annotations.formats.format import Picture, Spots
from lightning_bbox.annotations.formats.json import as_object, span_of, take
from lightning_bbox.annotations.formats.via.regions import FIELDS, box_of, record_of
from lightning_bbox.core.errors import BadInput, shortened

_SHAPES: dict[float, tuple[str, Sequence[str]]] = {
    1: ("point", ("cx", "cy")),
    2: ("rect", FIELDS),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    5: ("line", ()),
    6: ("polyline", ()),
    7: ("polygon", ()),
}
"""What the first number of a region says, in VIA 2's words, and what the others are."""
_IMAGE = 2  # a kind of file


def is_project(document: object) -> bool:
    """Tell whether a JSON document is a project of VIA 3.

    Examples:
        >>> is_project({"project": {}, "file": {}, "metadata": {}}), is_project({"metadata": {}})
        (True, False)
    """
    return isinstance(document, dict) and {"project", "file", "metadata"} <= document.keys()


def read_project(
    document: Mapping[str, Any], file: str, named: str | int | None
) -> Iterator[Picture]:
    """Yield what a project says of its pictures.

    Args:
        document: The project.
        file: Its file, relative to the root.
        named: The attribute that is the class, where the user says it.

    Raises:
        BadInput: It isn't well-formed, or is about videos or sounds.
    """
    pictures = {key: _picture(entry, key, file) for key, entry in _all(document, "file", file)}
    shown = {
        key: [str(each) for each in take(entry, "fid_list", list, f"{file}: view {key}")]
        for key, entry in _all(document, "view", file)
    }
    attributes = dict(_all(document, "attribute", file))
    for number, (key, entry) in enumerate(_regions(document, file)):
        place = f"{file}: region {shortened(key)}"
        view = str(entry.get("vid"))
        if len(fids := shown.get(view, [])) != 1 or fids[0] not in pictures:
            problem = f"its view is {shortened(view)!r}, which shows no one file"
            raise BadInput.at(place, problem, "correct its vid")
        stated = _stated(entry, attributes, place)
        record = record_of(_shape(entry), stated, place, file, number, named)
        pictures[fids[0]].records.append(record)
    yield from pictures.values()


def project_spots(document: Mapping[str, Any]) -> Iterator[Spots]:
    """Find where the numbers of each region stand.

    Args:
        document: The project, of `Spotted` numbers.
    """
    for _, entry in _regions(document, ""):
        numbers, fault, outline = box_of(_shape(entry))
        yield Spots([] if fault or outline else [span_of(number) for number in numbers])


def _all(document: Mapping[str, Any], key: str, file: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of one of a project's lists."""
    for name, entry in as_object(document.get(key, {}), f"{file}: {key}").items():
        yield name, as_object(entry, f"{file}: {key} {shortened(name)}")


def _regions(document: Mapping[str, Any], file: str) -> Iterator[tuple[str, Any]]:
    """Yield what has a shape; what else there is says something of a whole picture."""
    for key, entry in _all(document, "metadata", file):
        if take(entry, "xy", list, f"{file}: metadata {shortened(key)}"):
            yield key, entry


def _picture(entry: Mapping[str, Any], key: str, file: str) -> Picture:
    place = f"{file}: file {shortened(key)}"
    name = take(entry, "fname", str, place).strip()
    if entry.get("type", _IMAGE) != _IMAGE:
        problem = f"{shortened(name)!r} is a video or a sound"
        raise BadInput.at(place, problem, "save its frames as pictures, and annotate these")
    if not name:
        raise BadInput.at(place, "its fname is empty", "fill it or remove the file")
    source = entry.get("src")
    is_path = isinstance(source, str) and source and "://" not in source[:9]
    return Picture(file, place, str(source) if is_path else name)


def _shape(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shape as VIA 2 writes it."""
    kind, *numbers = entry["xy"]
    name, fields = _SHAPES.get(kind, (str(kind), ())) if isinstance(kind, float | int) else ("", ())
    if name == "polygon":
        return {"name": name, "all_points_x": numbers[::2], "all_points_y": numbers[1::2]}
    matches = len(fields) == len(numbers)
    return {"name": name, **(dict(zip(fields, numbers, strict=True)) if matches else {})}


def _stated(
    entry: Mapping[str, Any], attributes: Mapping[str, Any], place: str
) -> dict[str, object]:
    """Return the attributes of a region by name, as words."""
    stated: dict[str, object] = {}
    for key, value in as_object(entry.get("av", {}), place).items():
        attribute = attributes.get(key, {})
        options = attribute.get("options")
        word = options.get(str(value), value) if isinstance(options, dict) else value
        stated[str(attribute.get("aname", key))] = word
    return stated
