"""Every format there is: a new one is a file beside this one, and a line here."""

from typing import Literal

from lightning_bbox.annotations.formats.coco import COCO
from lightning_bbox.annotations.formats.cvat import CVAT
from lightning_bbox.annotations.formats.format import Format
from lightning_bbox.annotations.formats.labelme import LABELME
from lightning_bbox.annotations.formats.labelstudio import LABEL_STUDIO
from lightning_bbox.annotations.formats.tables.automl import AUTOML
from lightning_bbox.annotations.formats.tables.csv import csv_format
from lightning_bbox.annotations.formats.tables.kaggle import kaggle_format
from lightning_bbox.annotations.formats.tables.openimages import OPEN_IMAGES
from lightning_bbox.annotations.formats.tables.sheet import Asked
from lightning_bbox.annotations.formats.tracks.mot import MOT
from lightning_bbox.annotations.formats.tracks.otb import OTB
from lightning_bbox.annotations.formats.via.via import via_format
from lightning_bbox.annotations.formats.voc import VocBase, voc_format
from lightning_bbox.annotations.formats.yolo import YOLO

FormatName = Literal[
    "auto",
    "voc",
    "cvat",
    "coco",
    "labelme",
    "labelstudio",
    "mot",
    "otb",
    "yolo",
    "openimages",
    "via",
    "automl",
    "csv",
    "kaggle",
]
"""What users may ask for."""


def known_formats(voc_base: VocBase = 1, asked: Asked | None = None) -> tuple[Format, ...]:
    """Return every format, in the order in which they are looked for.

    Of those that share a suffix the first that a file looks like is taken.

    Args:
        voc_base: Coordinate of the first pixel in VOC files, or `edges`.
        asked: What the user says of tables.
    """
    tables = asked or Asked()
    return (
        voc_format(voc_base),
        CVAT,
        COCO,
        LABELME,
        LABEL_STUDIO,
        MOT,
        OTB,
        YOLO,
        OPEN_IMAGES,
        via_format(tables),
        AUTOML,
        csv_format(tables),
        kaggle_format(tables),
    )
