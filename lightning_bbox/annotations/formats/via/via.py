"""VIA as a format: CSV or JSON, by the suffix of its files."""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path

from lightning_bbox.annotations.formats.format import Format, Listing, Spots
from lightning_bbox.annotations.formats.tables.sheet import Asked
from lightning_bbox.annotations.formats.via.csv import csv_spots, looks_like_csv, read_csv
from lightning_bbox.annotations.formats.via.json import json_spots, looks_like_json, read_json
from lightning_bbox.annotations.formats.via.regions import CONVENTION


@cache
def via_format(asked: Asked) -> Format:
    """Return VIA 1, 2 and 3.

    Args:
        asked: Which attribute is the class, as the column of `label`.
    """
    read = partial(_read, named=dict(asked.columns).get("label"))
    suffixes = (".csv", ".json")
    return Format("via", suffixes, CONVENTION, read, _spots, _looks_like, content="of VIA")


def _read(root: Path, files: Sequence[str], named: str | int | None) -> Listing:
    texts = [file for file in files if not _is_json(file)]
    others = [file for file in files if _is_json(file)]
    return Listing([*read_csv(root, texts, named), *read_json(root, others, named)])


def _looks_like(path: Path) -> bool:
    return looks_like_json(path) if _is_json(path.name) else looks_like_csv(path)


def _is_json(file: str) -> bool:
    return file.casefold().endswith(".json")


def _spots(text: str) -> Iterable[Spots]:
    return json_spots(text) if text.lstrip("\ufeff \t\r\n").startswith("{") else csv_spots(text)
