"""Annotations as tools really export them: read as they are meant, or refused in a sentence.

The cases lie in ../shared/exports, outside the project. Here are the right outcomes: for training,
and where it differs for boxes to be refined.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core.errors import BadInput

FILE = Path(__file__).resolve().parents[3] / "shared" / "exports" / "exports.py"


def exports():
    if not FILE.is_file():
        pytest.skip("there are no exports beside the checkout")
    spec = importlib.util.spec_from_file_location("exports", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Outcome(NamedTuple):
    """What a case is to end in: boxes, or a refusal that has these words."""

    boxes: list = ()
    note: str = ""
    skipped: str = ""
    refusal: str = ""
    classes: tuple = ()
    rough: list | None = None
    options: dict | None = None


TEN = [[10, 10, 30, 30]]
NINE = [[9, 9, 40, 20]]
FORMATS = {
    "CVAT COCO rotated": Outcome(skipped="annotation 1: ... is turned by 40 degrees"),
    "COCO bbox is xyxy": Outcome(refusal="2 of 3 boxes ... as xmin, ymin, xmax, ymax; write x, y"),
    "VOC size 0": Outcome(NINE, "1 of 1 files state a size of 0"),
    "roLabelImg robndbox": Outcome(NINE, skipped="object 2: the object ... is turned"),
    "VOC GB2312": Outcome(NINE, classes=("细胞",)),
    "VOC namespace": Outcome(NINE),
    "VOC UTF-16": Outcome(NINE),
    "VOC layout parts": Outcome([[9, 9, 40, 40]], classes=("person",)),
    "one VOC object without bndbox of two": Outcome(NINE, skipped="object 2: ... no <bndbox>"),
    "COCO float ids": Outcome(TEN),
    "COCO annotation without id": Outcome(TEN),
    "COCO RLE without bbox": Outcome(TEN, skipped="annotation 1: ... no bbox, and no polygon"),
    "COCO empty bbox, one of two": Outcome(TEN, skipped="annotation 1: ... no bbox"),
    "COCO category 0 missing": Outcome(TEN, skipped="annotation 1: ... category_id 0, none of"),
    "COCO iscrowd missing, segmentation []": Outcome(TEN),
    "ultralytics predictions.json": Outcome(
        [[11.5, 9, 31.5, 29]], "results of p.json name pictures by file_name"
    ),
    "TF csv": Outcome([[1, 1, 20, 20]]),
    "detection overhangs by 3 px": Outcome(skipped="reaches 3 px outside", rough=[[-3, 1, 20, 20]]),
    "VOC ints and a detector's floats": Outcome([[9, 9, 40.7, 20.2]]),
    "two images entries of one file": Outcome(refusal="a.png is listed at b.json: image 1 too"),
    "VOC ImageSets default": Outcome(NINE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    check(tmp_path, name, FORMATS[name])


def check(root, name, outcome):
    module = exports()
    files, options, _ = module.CASES[name]
    module.write(root, files)
    options = options | (outcome.options or {})
    if outcome.refusal:
        with pytest.raises(BadInput) as refusal:
            read_annotations(root, **options)
        has_words(str(refusal.value), outcome.refusal)
        return
    rough = outcome.boxes if outcome.rough is None else outcome.rough
    for boxes, table in (
        (outcome.boxes, read_annotations(root, **options)),
        (rough, read_annotations(root, **options, rough=True)),
    ):
        assert len(table.boxes) == len(boxes)
        for found, box in zip(table.boxes.tolist(), boxes, strict=True):
            assert found == pytest.approx(box, abs=1e-4)
        has_words(table.note, outcome.note)
        if outcome.classes:
            assert table.classes == outcome.classes
        if not (outcome.skipped and boxes):
            assert len(table.skipped) == bool(outcome.skipped) or boxes
    has_words("".join(read_annotations(root, **options).skipped), outcome.skipped)


def has_words(text, words):
    position = 0
    for part in words.split(" ... "):
        assert part in text[position:], text
        position = text.index(part, position) + len(part)
