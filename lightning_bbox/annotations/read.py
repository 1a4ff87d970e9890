"""Read annotations in VOC, COCO, YOLO or CSV into one checked table of pictures and boxes.

What can't be meant is refused in one sentence that says where. Invalid boxes are left out and
listed. Nothing is clipped, rounded or dropped without a word.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image

from lightning_bbox.annotations.find import Source, find_annotations
from lightning_bbox.annotations.formats.format import Format, Listing, Picture, Record
from lightning_bbox.annotations.formats.known import FormatName, known_formats
from lightning_bbox.annotations.formats.texts import argument
from lightning_bbox.annotations.formats.voc import VocBase
from lightning_bbox.annotations.groups import group_pictures, groups_note
from lightning_bbox.annotations.headers import Exif, Header, read_headers
from lightning_bbox.annotations.pictures import PictureFinder
from lightning_bbox.annotations.split_files import pictures_named, with_stated_splits
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.validity import box_faults, without_invalid
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.files import expanded
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
    allow_outside: bool = False,
    max_pixels: int | None = None,
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
        allow_outside: Whether files may lie outside the root.
        max_pixels: The most pixels a picture may have, from now on and in the whole process, as
            Pillow has one limit; by default that one, 89,478,485.

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
    if max_pixels is not None:
        if max_pixels < 1:
            msg = f"max_pixels is {max_pixels}; expected 1 or more"
            raise BadInput(msg)
        Image.MAX_IMAGE_PIXELS = max_pixels
    base = expanded(root)
    if not base.is_dir():
        raise BadInput.at(str(base), "is no folder", f"correct {argument('root')}")
    formats = known_formats(voc_base)
    sources = find_annotations(base, formats, format, annotations, allow_outside)
    kind, files = sources[0].format, sources[0].files
    _tell_if_long(sum(_size(base / file) for file in files), _LONG_TO_READ, "bytes of annotations")
    listing = kind.read(base, files)
    finder = PictureFinder(base, images, kind.by_stem, allow_outside)
    found = finder.find(listing.pictures)
    note = "; ".join([_note(sources, listing, finder.unlabelled(found)), *finder.notes()])
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
    headers = _headers(base, found, finder, on_missing, exif)
    groups = group_pictures(found, group_pattern)
    if copies := groups_note(found, groups):
        note += f"; {copies}"
    _refuse_fractions(kind, [record for picture in found.values() for record in picture.records])
    met = {record.label for picture in listing.pictures for record in picture.records}
    table = _table(base, found, headers, kind, listing.classes or tuple(sorted(met)), on_bad)
    note += table.note
    if repeated := _repeated(table):
        note += f"; boxes that are there twice are used twice: {listed(repeated)}"
    return replace(table, groups=groups, note=note, files=tuple(files))


def _headers(
    root: Path, found: Mapping[str, Picture], finder: PictureFinder, on_missing: str, exif: Exif
) -> list[Header]:
    """Read all headers, and refuse all pictures at once that are missing or broken."""
    read = read_headers(root, found, exif)
    problems = [header for header in read.values() if isinstance(header, BadInput)]
    if finder.missing and (on_missing == "error" or not found):
        problems.insert(0, finder.refusal(found))
    if problems:
        raise BadInput.all_of(problems)
    return [header for header in read.values() if isinstance(header, Header)]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tell_if_long(count: int, usual: int, what: str) -> None:
    """Say what is about to be read where that takes tens of seconds."""
    if count > usual:
        from lightning_bbox.core.messages import say  # by way of Lightning, which takes seconds

        say(f"reading {count:,} {what}")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        msg = f"{name} is {value!r}; choose from {', '.join(map(repr, choices))}"
        raise BadInput(msg)


def _note(sources: Sequence[Source], listing: Listing, unlabelled: Sequence[str]) -> str:
    kind, files = sources[0].format, sources[0].files
    many = kind.by_stem and len(files) > 1
    note = f"{kind.convention.text}, read from {f'{len(files)} files' if many else listed(files)}"
    if others := [file for source in sources for file in source.files if file not in files]:
        note += f"; there but not read: {listed(others)}"
    if listing.note:
        note += f"; {listing.note}"
    if kind.by_stem and unlabelled:
        note += f"; left out, as they have no annotation file: {listed(unlabelled)}"
    return note


def _refuse_fractions(kind: Format, records: Sequence[Record]) -> None:
    """Refuse numbers that all lie within the picture's first pixel: they are meant otherwise."""
    finite = [record for record in records if all(map(math.isfinite, record.values))]
    numbers = [number for record in finite for number in record.values]
    if kind.convention.fractions or not numbers or not (min(numbers) >= 0 < max(numbers) <= 1):
        return
    pairs = zip(kind.convention.fields, finite[0].values, strict=True)
    stated = ", ".join(f"{name}={value:.10g}" for name, value in pairs)
    problem = f"{stated} and all other boxes lie between 0 and 1, as fractions of a picture do"
    remedy = "multiply them by the width and height of their pictures"
    raise BadInput.at(finite[0].place, problem, remedy)


def _table(
    root: Path,
    found: Mapping[str, Picture],
    headers: Sequence[Header],
    kind: Format,
    classes: tuple[str, ...],
    on_bad: Literal["skip", "error"],
) -> BoxTable:
    records = [record for picture in found.values() for record in picture.records]
    counts = [len(picture.records) for picture in found.values()]
    image_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sizes = torch.tensor([[header.height, header.width] for header in headers])
    values = torch.tensor([record.values for record in records], dtype=torch.float64).reshape(-1, 4)
    numbers = {name: number for number, name in enumerate(classes)}
    table = BoxTable(
        root=root,
        images=tuple(found),
        groups=tuple(found),
        splits=tuple(picture.split for picture in found.values()),
        sizes=sizes,
        image_index=image_index,
        boxes=values.float(),
        labels=torch.tensor([numbers[record.label] for record in records], dtype=torch.int64),
        scores=torch.tensor([record.score for record in records], dtype=torch.float64),
        classes=classes,
        ids=tuple(record.place for record in records),
        entries=tuple((record.file, record.number) for record in records),
        format=kind,
        note=_left_out(found, headers),
        deep=frozenset(path for path, header in zip(found, headers, strict=True) if header.is_deep),
        turns={path: h.turn for path, h in zip(found, headers, strict=True) if h.turn != 1},
    )
    table = replace(table, boxes=table.edges(values, image_index).float())
    sides = box_sizes(values) if kind.convention.inclusive else None
    faults = box_faults(table.boxes, sizes[image_index], sides)
    faults |= {at: record.fault for at, record in enumerate(records) if record.fault}
    return without_invalid(table, faults, records, kind.convention.fields, on_bad)


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
