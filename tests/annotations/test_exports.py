"""Annotations as tools really export them: read as they are meant, or refused in a sentence.

The cases lie in ../shared/exports, outside the project. Here are the right outcomes: for training,
and where it differs for boxes to be refined.
"""

import importlib.util
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.decode import decode_image, find_levels
from lightning_bbox.pictures.disk import open_disk_store
from lightning_bbox.pictures.store import ImageStore

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
FRACTIONS = [[6.4, 9.6, 32, 28.8]]
SMALL = [[25.6, 14.4, 38.4, 33.6]]
EIGHT = [[8, 9, 28, 29]]
ONE = [[1, 1, 20, 20]]
PLATE = Outcome([[25.6, 19.2, 38.4, 28.8]], classes=("cell", "plate"))
FORMATS = {
    "CVAT COCO rotated": Outcome(skipped="annotation 1: ... is turned by 40 degrees"),
    "CSV corners as fractions": Outcome(refusal="lie between 0 and 1 ... units='fraction'"),
    "COCO bbox is xyxy": Outcome(refusal="2 of 3 boxes ... as xmin, ymin, xmax, ymax; write x, y"),
    "obj.names (CVAT YOLO 1.1)": PLATE,
    "_darknet.labels (Roboflow)": PLATE,
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
    "YOLO polygon": Outcome([[12.8, 9.6, 32, 28.8]], rough=[], skipped="around a polygon"),
    "YOLO OBB": Outcome(skipped="is turned"),
    "YOLO class as float": Outcome(SMALL, classes=("0",)),
    "YOLO comment": Outcome(SMALL),
    "YOLO train.txt beside": Outcome(SMALL, "train as in train.txt", classes=("cell",)),
    "YOLO data.yaml without names": Outcome(SMALL, "names no classes", classes=("0",)),
    "DeepForest": Outcome(ONE, classes=("Tree",)),
    "Kaggle bbox": Outcome(EIGHT),
    "Open Images": Outcome(FRACTIONS),
    "VIA": Outcome(EIGHT, classes=("cell",)),
    "TF csv": Outcome(ONE),
    "MOT": Outcome(TEN),
    "detection overhangs by 3 px": Outcome(skipped="reaches 3 px outside", rough=[[-3, 1, 20, 20]]),
    "AutoML csv": Outcome(FRACTIONS, classes=("cell",)),
    "annotation beside CVAT images 1.1": Outcome(TEN),
    "VOC ints and a detector's floats": Outcome([[9, 9, 40.7, 20.2]]),
    "two images entries of one file": Outcome(refusal="a.png is listed at b.json: image 1 too"),
    "VOC ImageSets default": Outcome(NINE),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    check(tmp_path, name, FORMATS[name])


PICTURES = {
    "YOLO EXIF": Outcome(
        [[18, 16, 30, 48]], "drawn on them as EXIF turns them, ... 1: images/a.jpg"
    ),
    "VOC sizes exchanged, EXIF": Outcome(
        [[28, 9, 39, 40]], "boxes drawn on them as they are stored, 1: JPEGImages/a.jpg"
    ),
    "multi-page TIFF": Outcome([[1, 1, 20, 20]], "pages beyond the first aren't read: a.tif"),
    "12 bits in 16": Outcome([[1, 1, 20, 20]]),
    "roboflow copies": Outcome(TEN * 2, "2 pictures are copies of 1, by what stands before .rf."),
    "FiftyOne COCO layout data/": Outcome(TEN),
    "CVAT COCO images/default": Outcome(TEN),
    "CVAT COCO images/Train/Data": Outcome(TEN),
    "LS COCO backslash": Outcome(TEN, "1 picture found with slashes for backslashes"),
    "LS COCO images/1/": Outcome(TEN, "1 picture found by its bare name, such as images/a.png"),
    "COCO absolute path of another machine": Outcome(TEN, "1 picture found by the end of its path"),
    "COCO NFC in JSON, NFD on disk": Outcome(TEN, "1 picture found in another Unicode form"),
    "a missing picture of two": Outcome(
        refusal="1 of 2 pictures ... 'b.png' ... on_missing='skip'"
    ),
    "jfif": Outcome([[25.6, 14.4, 38.4, 33.6]]),
    "huge": Outcome(refusal="108000000 pixels ... data.reading.max_pixels"),
    "truncated JPEG": Outcome([[1, 1, 20, 20]]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(tmp_path, name):
    check(tmp_path, name, PICTURES[name])


def test_copies_are_one_group(tmp_path):
    exports().write(tmp_path, exports().CASES["roboflow copies"][0])
    assert read_annotations(tmp_path).groups == ("a_jpg", "a_jpg")


def test_a_picture_that_is_missing_is_left_out_if_asked_for(tmp_path):
    exports().write(tmp_path, exports().CASES["a missing picture of two"][0])
    table = read_annotations(tmp_path, on_missing="skip")
    assert table.boxes.tolist() == TEN
    assert "missing and left out: 1 picture and 1 box in 'b.png'" in table.note


def test_a_huge_picture_is_read_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    exports().write(tmp_path, exports().CASES["huge"][0])
    assert read_annotations(tmp_path, max_pixels=108_000_000).sizes.tolist() == [[9000, 12000]]


def test_12_bits_in_16_keep_256_levels(tmp_path):
    exports().write(tmp_path, exports().CASES["12 bits in 16"][0])
    assert find_levels([tmp_path / "a.tif"]).white == 4095
    assert len(np.unique(decode_image(tmp_path / "a.tif", 4095))) == 256


def test_truncated_pictures_are_refused_and_all_of_them_named(tmp_path):
    module = exports()
    paths = [tmp_path / f"{n}.jpg" for n in range(3)]
    for path in paths:
        module.truncated(path)
    sizes = torch.tensor([[48, 64]]).repeat(3, 1)
    named = r"^3 problems: .*0\.jpg: .*1\.jpg: .*2\.jpg: the picture can"
    for decode in (ImageStore.from_files, partial(open_disk_store, tmp_path / "pixels")):
        with pytest.raises(BadInput, match=named):
            decode(paths, sizes)


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
    table, rough = read_annotations(root, **options), read_annotations(root, **options, rough=True)
    has_boxes(table, outcome.boxes)
    has_boxes(rough, outcome.boxes if outcome.rough is None else outcome.rough)
    has_words(table.note, outcome.note)
    if outcome.classes:
        assert table.classes == outcome.classes
    has_words(" ".join(table.skipped or rough.skipped), outcome.skipped)
    assert bool(table.skipped or rough.skipped) == bool(outcome.skipped)


def has_boxes(table, boxes):
    assert len(table.boxes) == len(boxes)
    for found, box in zip(table.boxes.tolist(), boxes, strict=True):
        assert found == pytest.approx(box, abs=1e-4)


def test_fractions_are_read_as_the_remedy_says(tmp_path):
    module = exports()
    module.write(tmp_path, module.CASES["CSV corners as fractions"][0])
    has_boxes(read_annotations(tmp_path, units="fraction"), FRACTIONS)


def test_gb2312_is_written_back_in_its_encoding(tmp_path):
    module = exports()
    files = module.CASES["VOC GB2312"][0]
    module.write(tmp_path, files)
    table = read_annotations(tmp_path)
    (path,) = write_boxes(table, table.boxes + 1, tmp_path / "out")
    before = files["Annotations/a.xml"].decode("gb2312")
    for old, new in (("xmin>10<", "xmin>11<"), ("ymin>10<", "ymin>11<"), ("xmax>40<", "xmax>41<")):
        before = before.replace(old, new)
    assert path.read_bytes().decode("gb2312") == before.replace("ymax>20<", "ymax>21<")


def test_a_sequence_is_a_group(tmp_path):
    module = exports()
    module.write(tmp_path / "MOT17-02", module.CASES["MOT"][0])
    table = read_annotations(tmp_path / "MOT17-02")
    assert (table.images, table.groups) == (("img1/000001.jpg",), ("MOT17-02",))


def has_words(text, words):
    position = 0
    for part in words.split(" ... "):
        assert part in text[position:], text
        position = text.index(part, position) + len(part)
