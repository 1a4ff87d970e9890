"""Read annotations in VOC, COCO, YOLO or CSV into one checked table of pictures and boxes.

What can't be meant is refused in one sentence that says where. Invalid boxes are left out and
listed. Nothing is clipped, rounded or dropped without a word.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image

from lightning_bbox.annotations.find import Source, find_annotations
from lightning_bbox.annotations.formats.format import (
    NO_BOX,
    Format,
    Listing,
    Picture,
    Record,
    Units,
)
from lightning_bbox.annotations.formats.known import FormatName, known_formats
from lightning_bbox.annotations.formats.tables.sheet import Asked
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.formats.voc import VocBase
from lightning_bbox.annotations.groups import group_pictures, groups_note
from lightning_bbox.annotations.headers import Exif, Header, read_headers
from lightning_bbox.annotations.pictures import PictureFinder
from lightning_bbox.annotations.split_files import pictures_named, with_stated_splits
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.validity import (
    LEFT_OUT,
    box_faults,
    refuse_fractions,
    refuse_other_meaning,
    without_invalid,
)
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import box_sizes

_LONG_TO_READ = 50_000_000  # bytes of text: some 200,000 boxes, or 10 s
_MANY_HEADERS = 50_000


def read_annotations(
    root: str | Path,
    *,
    format: FormatName = "auto",  # noqa: A002 - users' word
    annotations: str | Sequence[str] | None = None,
    images: str | Sequence[str] | None = None,
    split_file: str | None = None,
    group_pattern: str | None = None,
    voc_base: VocBase = 1,
    on_bad: Literal["skip", "error"] = "skip",
    on_missing: Literal["error", "skip"] = "error",
    exif: Exif = "auto",
    units: Units | None = None,
    columns: Mapping[str, str | int] | None = None,
    delimiter: str | None = None,
    allow_outside: bool = False,
    max_pixels: int | None = None,
    page: int = 0,
    bands: Sequence[int] | None = None,
    rough: bool = False,
) -> BoxTable:
    """Read the annotations of a data set.

    Without further arguments the format is recognised by the usual names of files and folders, and
    so are the splits: by a COCO or CSV file's name, such as `instances_train2017.json`, by what
    YOLO's `data.yaml` names, or else by folders named train, valid, val2017, Test or the like.

    Args:
        root: Folder of the data set.
        format: Format of the annotations.
        annotations: Annotation files, or folders of them, relative to the root.
        images: Folder of the pictures, or several, relative to the root.
        split_file: Text file of the pictures to take, one path, name or stem a line, relative to
            the root; its own name is their split where they have no other.
        group_pattern: Regular expression; what its first group finds in a picture's path is the
            picture's group.
        voc_base: Coordinate of the first pixel in VOC files: 1 by definition, 0 from some tools;
            `edges` where corners are edges, xmax being xmin and the width (CVAT).
        on_bad: What to do with a box that is not finite, has no positive width or height, reaches
            outside its picture by more than a pixel, or is a crowd.
        on_missing: What to do with pictures that aren't there: refuse them, or leave them out with
            their boxes.
        exif: What boxes are drawn on: `apply` says on pictures as EXIF turns them, `ignore` on
            pictures as they are stored; `auto` goes by the sizes that are stated.
        units: What the numbers are stated in, `pixels` or `fraction` (of the picture), where it is
            not what the format says.
        columns: Names of a table's columns by what they mean: image, xmin, ymin, xmax, ymax, or x,
            y, w, h, or cx, cy, w, h, or bbox (x, y, width and height in a cell) or corners; label,
            split, group, score, difficult, ignore. Numbers of columns, from 0, where there is no
            header.
        delimiter: What stands between the cells of a table: by default comma, semicolon or tab.
        allow_outside: Whether files may lie outside the root.
        max_pixels: The most pixels a picture may have, from now on and in the whole process, as
            Pillow has one limit; by default that one, 89,478,485. TIFFs with more are read in
            parts, by the extra `tiff`.
        page: Which page of TIFFs is read, from 0.
        bands: The three bands of TIFFs that are shown as red, green and blue, or one as grey, from
            0; the colours by default.
        rough: Whether the boxes are to be refined: they may then reach outside their picture, as
            long as some of them lies inside, and polygons, which aren't boxes, are left out.

    Raises:
        BadInput: If something is missing, malformed, ambiguous or contradictory.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("L", (60, 50)).save(folder / "a.png")
        >>> rows = ["image,x1,y1,x2,y2", "a.png,5,6,20.5,30"]
        >>> _ = (folder / "boxes.csv").write_text(chr(10).join(rows))
        >>> table = read_annotations(folder)
        >>> table.boxes, table.ids
        (tensor([[ 5.0000,  6.0000, 20.5000, 30.0000]]), ('boxes.csv:2',))
        >>> table.note
        'CSV, corners as pixel edges, read from boxes.csv'
    """
    _check_choice("format", format, get_args(FormatName))
    _check_choice("voc_base", voc_base, get_args(VocBase))
    _check_choice("on_bad", on_bad, ("skip", "error"))
    _check_choice("on_missing", on_missing, ("error", "skip"))
    _check_choice("exif", exif, get_args(Exif))
    _check_choice("units", units, (None, *get_args(Units)))
    _allow_pixels(max_pixels)
    asked, part = _of_tables(columns, delimiter), TiffPart(page, bands)
    base = expanded(root)
    if not base.is_dir():
        raise BadInput.at(str(base), "is no folder", f"correct {argument('root')}")
    formats = known_formats(voc_base, asked)
    sources = find_annotations(base, formats, format, annotations, allow_outside)
    kind, files = sources[0].format, sources[0].files
    _tell_if_long(sum(_size(base / file) for file in files), _LONG_TO_READ, "bytes of annotations")
    listing = kind.read(base, files)
    convention = listing.convention or kind.convention
    kind = replace(kind, convention=convention.in_units(units) if units else convention)
    finder = PictureFinder(base, images, kind.by_stem, allow_outside)
    found = finder.find(listing.pictures)
    said = _note(kind, sources, listing, finder.unlabelled(found))
    note = "; ".join([said, *finder.notes()])
    if listing.splits:
        found, doubts = with_stated_splits(found, base, listing.splits)
        note += "".join(f"; {doubt}" for doubt in doubts)
    if split_file is not None:
        names, stem = pictures_named(found, base, split_file, allow_outside), Path(split_file).stem
        found = {path: replace(found[path], split=found[path].split or stem) for path in names}
    if not (found or finder.missing):
        remedy = f"name other files with {argument('annotations')}"
        raise BadInput.at(listed(files), "no picture is listed", remedy)
    _tell_if_long(len(found), _MANY_HEADERS, "headers of pictures")
    headers = _headers(base, found, finder, on_missing, exif, part)
    groups = group_pictures(found, group_pattern)
    if copies := groups_note(found, groups):
        note += f"; {copies}"
    records = [record for picture in found.values() for record in picture.records]
    refuse_fractions(kind, records)
    classes = listing.classes or _met(listing.pictures)
    table = _table(base, found, headers, kind, classes, on_bad, rough)
    note += table.note + (f"; {part.words()}" if part.words() else "")
    if repeated := _repeated(table):
        note += f"; boxes that are there twice are used twice: {listed(repeated)}"
    missing = tuple(sentence for each in finder.missing for sentence in _missing(each))
    return replace(table, groups=groups, note=note, files=tuple(files), missing=missing, part=part)


def _headers(
    root: Path,
    found: Mapping[str, Picture],
    finder: PictureFinder,
    on_missing: str,
    exif: Exif,
    part: TiffPart,
) -> list[Header]:
    """Read all headers, and refuse all pictures at once that are missing or broken."""
    read = read_headers(root, found, exif, part)
    problems = [header for header in read.values() if isinstance(header, BadInput)]
    if finder.missing and (on_missing == "error" or not found):
        problems.insert(0, finder.refusal(found))
    if problems:
        raise BadInput.all_of(problems)
    return [header for header in read.values() if isinstance(header, Header)]


def _missing(picture: Picture) -> list[str]:
    """Say that each box of a missing picture is left out, or that the picture is."""
    name = picture.stated
    if not picture.records:
        return [f"{picture.place}: the picture {name!r} isn't there{LEFT_OUT}"]
    return [
        f"{record.place}: the box is in {name!r}, which isn't there{LEFT_OUT}"
        for record in picture.records
    ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tell_if_long(count: int, usual: int, what: str) -> None:
    """Say what is about to be read where that takes tens of seconds."""
    if count > usual:
        from lightning_bbox.core.messages import say  # by way of Lightning, which takes seconds

        say(f"reading {count:,} {what}")


def _allow_pixels(most: int | None) -> None:
    if most is None:
        return
    if most < 1:
        msg = f"max_pixels is {most}; expected 1 or more"
        raise BadInput(msg)
    Image.MAX_IMAGE_PIXELS = most


def _of_tables(columns: Mapping[str, str | int] | None, delimiter: str | None) -> Asked:
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        msg = f"delimiter is {delimiter!r}; expected one character, such as ',' or '|'"
        raise BadInput(msg)
    return Asked(tuple((columns or {}).items()), delimiter)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        msg = f"{name} is {value!r}; choose from {', '.join(map(repr, choices))}"
        raise BadInput(msg)


def _note(
    kind: Format, sources: Sequence[Source], listing: Listing, unlabelled: Sequence[str]
) -> str:
    files = sources[0].files
    many = kind.by_stem and len(files) > 1
    note = f"{kind.convention.text}, read from {f'{len(files)} files' if many else listed(files)}"
    if others := [file for source in sources for file in source.files if file not in files]:
        note += f"; there but not read: {listed(others)}"
    if listing.note:
        note += f"; {listing.note}"
    if kind.by_stem and unlabelled:
        note += f"; left out, as they have no annotation file: {listed(unlabelled)}"
    return note


def _met(pictures: Iterable[Picture]) -> tuple[str, ...]:
    """Return the classes that are met, by number where they are numbers, and else by name."""
    met = {record.label for picture in pictures for record in picture.records} - {""}
    numbers = all(name.isascii() and name.isdecimal() for name in met)
    return tuple(sorted(met, key=lambda name: (len(name.lstrip("0")), name) if numbers else name))


def _table(
    root: Path,
    found: Mapping[str, Picture],
    headers: Sequence[Header],
    kind: Format,
    classes: tuple[str, ...],
    on_bad: Literal["skip", "error"],
    rough: bool,
) -> BoxTable:
    by_path = dict(zip(found, headers, strict=True))
    table = BoxTable.of_pictures(root, found, by_path, kind, classes)
    records = [record for picture in found.values() for record in picture.records]
    table = replace(table, note=_left_out(found, headers), whole=_whole(kind, records))
    values = torch.tensor([record.values for record in records], dtype=torch.float64).reshape(-1, 4)
    sides, sizes = box_sizes(values), table.sizes[table.image_index]
    inclusive = kind.convention.inclusive
    faults = box_faults(table.boxes, sizes, sides if inclusive else None, partly_outside=rough)
    turned = torch.tensor([header.turn != 1 for header in headers])[table.image_index]
    refuse_other_meaning(kind, records, values, sizes, turned)
    faults |= {at: record.fault for at, record in enumerate(records) if record.fault}
    if rough:
        around = {at: record.outline for at, record in enumerate(records) if record.outline}
        faults = {at: f"is only around {what}" for at, what in around.items()} | faults
    return without_invalid(table, faults, records, kind.convention.fields, on_bad)


def _whole(kind: Format, records: Iterable[Record]) -> frozenset[str]:
    """Return the files that hold whole numbers only; one a picture, they are judged together."""
    files: dict[str, bool] = {}
    for record in records:
        if record.values != NO_BOX and not record.outline:
            plain = all(type(number) is int for number in record.values)
            files[record.file] = plain and files.get(record.file, True)
    many = kind.by_stem or kind.together
    if kind.convention.fractions or (many and not all(files.values())):
        return frozenset()
    return frozenset(file for file, plain in files.items() if plain)


def _left_out(found: Iterable[str], headers: Sequence[Header]) -> str:
    """Say what of the pictures isn't read, and what the boxes of those are drawn on that turn."""
    left_out: dict[str, list[str]] = {}
    turned: dict[str, list[str]] = {}
    for path, header in zip(found, headers, strict=True):
        if header.left_out:
            left_out.setdefault(header.left_out, []).append(path)
        if header.exif != 1:
            drawn = "as they are stored" if header.turn != 1 else "as EXIF turns them"
            if header.doubted and header.turn == 1:
                drawn += f", unless {argument('exif', 'ignore')}"
            turned.setdefault(drawn, []).append(path)
    notes = [f"{what} aren't read: {listed(paths)}" for what, paths in left_out.items()]
    notes += [
        f"pictures that EXIF turns, with boxes drawn on them {drawn}, {len(paths)}: {listed(paths)}"
        for drawn, paths in turned.items()
    ]
    return "".join(f"; {note}" for note in notes)


def _repeated(table: BoxTable) -> list[str]:
    """Name the boxes that repeat one before: the same edges and class in the same picture."""
    places, labels = table.image_index.tolist(), table.labels.tolist()
    seen = set[tuple[object, ...]]()
    repeated = []
    for name, *box in zip(table.ids, places, labels, *table.boxes.T.tolist(), strict=True):
        if tuple(box) in seen:
            repeated.append(name)
        seen.add(tuple(box))
    return repeated
