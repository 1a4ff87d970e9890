"""The annotation formats of one box a line: YOLO text and CSV.

Only the form of a file is judged here, not the boxes in it.
"""

import csv
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

from lightning_bbox.annotations.formats import (
    CORNERS,
    CSV,
    YOLO,
    Listing,
    Picture,
    Record,
    labels_met,
    parse_number,
    read_lines,
    read_text,
    whole_text,
)
from lightning_bbox.core.errors import BadInput

ONLY_CLASS = "object"  # the class of a CSV without a label column

_CSV_COLUMNS = {
    "image": ("image", "filename", "file", "path"),
    "xmin": ("xmin", "x1"),
    "ymin": ("ymin", "y1"),
    "xmax": ("xmax", "x2"),
    "ymax": ("ymax", "y2"),
    "label": ("label", "class", "cell_type"),
    "split": ("split",),
    "group": ("group",),
}
_CSV_NEEDED = ("image", *CORNERS)
_YOLO_NAMES = ("data.yaml", "data.yml", "classes.txt")


def read_yolo(root: Path, files: Sequence[str]) -> Listing:
    """Read YOLO text files, one a picture; a sixth column is a detector's score.

    The class names come from `data.yaml` or `classes.txt`, whichever is nearest on the way from a
    file's folder up to the root; where there is none the names are the numbers met.

    Args:
        root: Folder that everything is relative to.
        files: The text files.

    Raises:
        BadInput: If a line is not a class and four numbers, or its class has no name.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "classes.txt").write_text("cell")
        ...     _ = (Path(folder) / "a.txt").write_text("0 0.5 0.5 0.2 0.4")
        ...     read_yolo(Path(folder), ["a.txt"]).pictures[0].records
        [Record(place='a.txt:1', values=(0.5, 0.5, 0.2, 0.4), label='cell', file='a.txt', ...)]
    """
    find_names = cache(lambda folder: _yolo_names(root, folder))
    pictures, classes, sources = [], dict[str, None](), dict[str, str]()
    for file in files:
        source, names = find_names(PurePosixPath(file).parent)
        classes |= dict.fromkeys(names.values())
        sources[source] = file
        records = [
            _yolo_record(line, file, n, number, source, names)
            for number, (n, line) in enumerate(read_lines(root, file))
        ]
        pictures.append(Picture(file, file, records=records))
    if "" in sources and len(sources) > 1:
        problem = f"has no class names, while {max(sources)} names those of other files"
        raise BadInput.at(sources[""], problem, "put data.yaml or classes.txt into the root")
    return Listing(pictures, tuple(classes) or labels_met(pictures, key=int), YOLO)


def _yolo_record(
    line: str, file: str, line_number: int, number: int, source: str, names: Mapping[int, str]
) -> Record:
    place = f"{file}:{line_number}"
    cells = line.split()
    if len(cells) not in (5, 6):
        problem = f"{reprlib.repr(line)} isn't class, cx, cy, w, h and perhaps a score"
        raise BadInput.at(place, problem, "write these, separated by spaces, without polygons")
    if not re.fullmatch(r"\d{1,9}", cells[0], re.ASCII):
        raise BadInput.at(place, f"class is {cells[0]!r}, not a whole number", "correct it")
    label = int(cells[0])
    if source and label not in names:
        problem = f"class {label} is not among the {len(names)} names of {source}"
        raise BadInput.at(place, problem, "correct it or add the name there")
    cx, cy, w, h, *_ = (
        parse_number(cell, name, place)
        for cell, name in zip(cells[1:], (*YOLO.fields, "score"), strict=False)
    )
    return Record(place, (cx, cy, w, h), names.get(label, str(label)), file, number)


def _yolo_names(root: Path, folder: PurePosixPath) -> tuple[str, dict[int, str]]:
    """Find the file of class names, and return it with the names by number."""
    for above in (folder, *folder.parents):
        for name in _YOLO_NAMES:
            file = (above / name).as_posix()
            if not (root / file).is_file():
                continue
            if name == "classes.txt":
                return file, {n - 1: line for n, line in read_lines(root, file)}
            return file, _yaml_names(root, file)
    return "", {}


def _yaml_names(root: Path, file: str) -> dict[int, str]:
    text = read_text(root, file)
    try:
        # All scalars stay texts: `no` is a name, and tags such as !!int can't fail.
        document = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        problem = f"is not well-formed YAML ({getattr(error, 'problem', error)})"
        raise BadInput.at(place, problem, "repair it") from error
    names = document.get("names") if isinstance(document, dict) else None
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(
        re.fullmatch(r"\d{1,9}", str(number), re.ASCII) and name and isinstance(name, str)
        for number, name in numbered.items()
    ):
        problem = f"'names' is {reprlib.repr(names)}, no list or numbered map of texts"
        raise BadInput.at(file, problem, "write names: ['first', 'second']")
    return {int(number): whole_text(name, file) for number, name in numbered.items()}


def read_csv(root: Path, files: Sequence[str]) -> Listing:
    r"""Read CSV files by header name; the classes are those met, by name.

    Args:
        root: Folder that everything is relative to.
        files: The CSV files, separated by comma, semicolon or tab.

    Raises:
        BadInput: If a column is missing or there twice, a line has another number of cells than the
            header, or the lines of a picture contradict each other.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = "File;x1;y1;x2;y2;Class\na.png;5;6;20.5;30;cell"
        ...     _ = (Path(folder) / "boxes.csv").write_text(rows)
        ...     read_csv(Path(folder), ["boxes.csv"]).pictures[0].records
        [Record(place='boxes.csv:2', values=(5.0, 6.0, 20.5, 30.0), label='cell', ...)]
    """
    pictures = [picture for file in files for picture in _csv_pictures(root, file)]
    return Listing(pictures, labels_met(pictures), CSV)


def _csv_pictures(root: Path, file: str) -> Iterable[Picture]:
    rows = _csv_rows(read_text(root, file), file)
    first, header = next(rows, (1, []))
    columns = _csv_columns(header, f"{file}:{first}")
    pictures: dict[str, Picture] = {}
    for number, (line, cells) in enumerate(rows):
        place = f"{file}:{line}"
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, the header {len(header)}"
            raise BadInput.at(place, problem, "correct the line")
        row = {role: cells[column].strip() for role, column in columns.items()}
        record = _csv_record(row, place, file, number)
        _csv_picture(pictures, row, file, place).records.append(record)
    return pictures.values()


def csv_dialect(text: str) -> tuple[str, list[int]]:
    r"""Tell a CSV's delimiter, and which columns hold xmin, ymin, xmax and ymax.

    Args:
        text: What the file holds, its lines ended by newlines.

    Examples:
        >>> csv_dialect("file;x1;x2;y1;y2\na.png;1;2;3;4")
        (';', [1, 3, 2, 4])
    """
    _, header = next(_csv_rows(text, ""), (1, []))
    columns = _csv_columns(header, "")
    return _delimiter(text), [columns[name] for name in CORNERS]


def _csv_rows(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of every line that is not blank."""
    reader = csv.reader(text.split("\n"), delimiter=_delimiter(text))
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield reader.line_num, cells
    except csv.Error as error:
        place = f"{file}:{reader.line_num}"
        raise BadInput.at(place, f"is not well-formed CSV ({error})", "correct it") from error


def _delimiter(text: str) -> str:
    header = next((line for line in text.split("\n") if line.strip()), "")
    return max(",;\t", key=header.count)


def _csv_columns(header: Sequence[str], place: str) -> dict[str, int]:
    if len(header) < 2:
        problem = f"the header {reprlib.repr(''.join(header))} is no list of columns"
        remedy = "write image,xmin,ymin,xmax,ymax, separated by comma, semicolon or tab"
        raise BadInput.at(place, problem, remedy)
    names = [cell.strip().casefold() for cell in header]
    columns: dict[str, int] = {}
    for role, synonyms in _CSV_COLUMNS.items():
        found = [column for column, name in enumerate(names) if name in synonyms]
        if len(found) > 1:
            problem = f"columns {', '.join(header[column] for column in found)} all mean {role}"
            raise BadInput.at(place, problem, "keep one of them")
        if found:
            columns[role] = found[0]
        elif role in _CSV_NEEDED:
            problem = f"the header {reprlib.repr(','.join(header))} has no column {role}"
            raise BadInput.at(place, problem, f"name one {' or '.join(synonyms)}")
    return columns


def _csv_picture(
    pictures: dict[str, Picture], row: Mapping[str, str], file: str, place: str
) -> Picture:
    stated = Picture(file, place, row["image"], None, row.get("split", ""), row.get("group", ""))
    picture = pictures.setdefault(row["image"], stated)
    if (picture.split, picture.group) != (stated.split, stated.group):
        problem = (
            f"split {stated.split!r} and group {stated.group!r} of {stated.name} contradict "
            f"{picture.split!r} and {picture.group!r} at {picture.place}"
        )
        raise BadInput.at(place, problem, "give a picture one split and one group")
    return picture


def _csv_record(row: Mapping[str, str], place: str, file: str, number: int) -> Record:
    label = row.get("label", ONLY_CLASS)
    if not label or not row["image"]:
        missing = "label" if row["image"] else "image"
        raise BadInput.at(place, f"the {missing} is empty", "fill it or remove the line")
    xmin, ymin, xmax, ymax = (parse_number(row[name], name, place) for name in CORNERS)
    return Record(place, (xmin, ymin, xmax, ymax), label, file, number)


def looks_like_csv(path: Path) -> bool:
    """Tell by its header whether a CSV file lists boxes.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "boxes.csv").write_text("image,x1,y1,x2,y2")
        ...     _ = (Path(folder) / "scores.csv").write_text("image,score")
        ...     [looks_like_csv(Path(folder) / name) for name in ("boxes.csv", "scores.csv")]
        [True, False]
    """
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline()
    try:
        return bool(_csv_columns(next(csv.reader([header], delimiter=_delimiter(header)), []), ""))
    except (BadInput, csv.Error):
        return False
