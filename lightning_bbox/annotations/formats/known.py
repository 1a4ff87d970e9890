"""Every format there is: a new one is a file beside this one, and a line here."""

from typing import Literal

from lightning_bbox.annotations.formats.coco import COCO
from lightning_bbox.annotations.formats.csv import CSV
from lightning_bbox.annotations.formats.format import Format
from lightning_bbox.annotations.formats.voc import VocBase, voc_format
from lightning_bbox.annotations.formats.yolo import YOLO

FormatName = Literal["auto", "voc", "coco", "yolo", "csv"]
"""What users may ask for."""


def known_formats(voc_base: VocBase = 1) -> tuple[Format, ...]:
    """Return every format, in the order in which they are looked for.

    Of those that share a suffix the first that a file looks like is taken.

    Args:
        voc_base: Coordinate of the first pixel in VOC files, or `edges`.
    """
    return (
        voc_format(voc_base),
        COCO,
        YOLO,
        CSV,
    )
