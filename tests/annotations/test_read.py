import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lightning_bbox import Reading
from lightning_bbox.annotations import read
from lightning_bbox.annotations.formats.coco import COCO
from lightning_bbox.annotations.formats.known import FormatName, known_formats
from lightning_bbox.annotations.formats.tables.csv import CSV
from lightning_bbox.annotations.formats.voc import voc_format
from lightning_bbox.annotations.formats.yolo import YOLO
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import usual_split
from lightning_bbox.annotations.validity import box_faults
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.decode import decode_image
from tests.annotation_files import (
    SCENE,
    coco,
    csv_of,
    voc,
    write,
    write_coco,
    write_csv,
    write_voc,
    write_yolo,
)


def test_users_may_ask_for_every_format():
    assert get_args(FormatName) == ("auto", *(kind.name for kind in known_formats()))
    assert inspect.signature(Reading).parameters["format"].annotation is FormatName


FORMATS = {
    write_voc: ("Annotations/a.xml: object 2", "VOC XML, 1-based inclusive corners, read from 3"),
    write_coco: ("_annotations.coco.json: annotation 1", "COCO JSON, left top corner and size in"),
    write_yolo: ("labels/a.txt:2", "YOLO text, centre and size as fractions"),
    write_csv: ("boxes.csv:3", "CSV, corners as pixel edges, read from boxes.csv"),
}


def has_columns(path):
    return "x1" in path.read_text()


def test_a_new_format_is_read_and_written_once_it_is_known(tmp_path, monkeypatch):
    toy = replace(CSV, name="toy", suffixes=(".json",), looks_like=has_columns)
    monkeypatch.setattr(read, "known_formats", lambda *asked: (*known_formats(*asked), toy))
    text = "image,x1,y1,x2,y2\na.png,1,1,5,5"
    write(tmp_path, {"a.png": (64, 48), "boxes.json": text, "settings.json": "{}"})
    for arguments in ({}, {"annotations": "boxes.json"}):
        table = read_annotations(tmp_path, **arguments)
        assert (table.format, table.files, table.ids) == (toy, ("boxes.json",), ("boxes.json:2",))
    (path,) = write_boxes(table, table.boxes + 1, tmp_path / "out")
    assert path.read_text() == text.replace("1,1,5,5", "2,2,6,6")


@pytest.mark.parametrize(("writer", "words"), FORMATS.items())
def test_every_format_gives_the_same_table(tmp_path, writer, words):
    writer(tmp_path)
    table = read_annotations(tmp_path)
    stems = ["a", "b"] if writer is write_csv else list(SCENE)
    assert [Path(image).stem for image in table.images] == stems
    assert table.sizes.tolist() == [[SCENE[stem][1], SCENE[stem][0]] for stem in stems]
    expected = [(stem, *box) for stem in stems for box in SCENE[stem][2]]
    assert [Path(table.images[at]).stem for at in table.image_index] == [e[0] for e in expected]
    assert [table.classes[label] for label in table.labels] == [e[1] for e in expected]
    assert table.boxes.dtype == torch.float32
    torch.testing.assert_close(table.boxes, torch.tensor([e[2] for e in expected]))
    assert table.classes == ("cell", "plate")
    assert table.groups == table.images
    assert (set(table.splits), table.skipped) == ({""}, ())
    assert table.ids[1] == words[0]
    assert table.note.startswith(words[1])


def test_voc_base_0_is_said_and_moves_the_boxes(tmp_path):
    write_voc(tmp_path, base=0)
    table = read_annotations(tmp_path, voc_base=0)
    assert table.boxes[0].tolist() == [5.0, 6.0, 20.5, 30.25]
    assert "0-based" in table.note
    shifted = read_annotations(tmp_path, voc_base=1)
    assert shifted.boxes[0].tolist() == [4.0, 5.0, 19.5, 29.25]


def test_edges_are_written_into_voc_by_some_tools(tmp_path):
    """Datumaro writes CVAT's boxes with xmax = xmin + width."""
    write(
        tmp_path, {"a.xml": voc("a.png", (64, 48), ("cell", (10, 11, 20, 48))), "a.png": (64, 48)}
    )
    table = read_annotations(tmp_path, voc_base="edges")
    assert table.boxes.tolist() == [[10.0, 11.0, 20.0, 48.0]]
    assert table.note == "VOC XML, corners as pixel edges, read from a.xml"
    (path,) = write_boxes(table, table.boxes - 1.5, tmp_path / "out", decimals=3)
    text = path.read_text()
    assert "<xmin>8.5</xmin><ymin>9.5</ymin><xmax>18.5</xmax><ymax>46.5</ymax>" in text
    assert read_annotations(tmp_path, voc_base="edges", on_bad="error").skipped == ()


CHOICES = {
    "format": ("pascal", "format is 'pascal'; choose from 'auto', 'voc', 'cvat', 'coco', "),
    "voc_base": (2, "voc_base is 2; choose from 0, 1, 'edges'"),
    "on_bad": ("clip", "on_bad is 'clip'; choose from 'skip', 'error'"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_arguments_that_are_no_choice_are_refused(tmp_path, name):
    value, sentence = CHOICES[name]
    with pytest.raises(BadInput, match=f"^{sentence}"):
        read_annotations(tmp_path, **{name: value})


finite = st.floats(-1e4, 1e4, width=32)
sides = st.integers(1, 5000)


@given(st.tuples(finite, finite, finite, finite), sides, sides)
def test_conversions_equal_hand_arithmetic_and_are_inverted(numbers, height, width):
    a, b, c, d = numbers
    values = torch.tensor([numbers], dtype=torch.float64)
    sizes = torch.tensor([[height, width]])
    expected = {
        voc_format(1): (a - 1, b - 1, c, d),
        voc_format(0): (a, b, c + 1, d + 1),
        voc_format("edges"): numbers,
        COCO: (a, b, a + c, b + d),
        YOLO: tuple(
            side * centre + sign * side * extent / 2
            for sign in (-1, 1)
            for side, centre, extent in ((width, a, c), (height, b, d))
        ),
        CSV: numbers,
    }
    for kind, edges in expected.items():
        found = kind.convention.edges(values, sizes)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.tensor([edges], dtype=torch.float64))
        back = kind.convention.numbers(found, sizes)
        torch.testing.assert_close(back, values, rtol=0, atol=1e-7)


@given(
    st.integers(0, 90).flatmap(lambda x1: st.tuples(st.just(x1), st.integers(x1 + 1, 100))),
    st.integers(0, 70).flatmap(lambda y1: st.tuples(st.just(y1), st.integers(y1 + 1, 80))),
)
def test_yolo_returns_whole_pixels_to_float32(xs, ys):
    (x1, x2), (y1, y2) = xs, ys
    values = [(x1 + x2) / 200, (y1 + y2) / 160, (x2 - x1) / 100, (y2 - y1) / 80]
    edges = YOLO.convention.edges(
        torch.tensor([values], dtype=torch.float64), torch.tensor([[80, 100]])
    )
    torch.testing.assert_close(edges.float(), torch.tensor([[x1, y1, x2, y2]]).float())


def test_faults_name_what_is_wrong_first():
    boxes = torch.tensor([[math.inf, 0, 1, 1], [0, 5, 9, 5], [-9, 0, 0, 9], [-8, 0, 9, 9]])
    sizes = torch.full((4, 2), 20)
    faults = {0: "is not finite", 1: "has no positive height", 2: "lies outside the picture"}
    assert box_faults(boxes, sizes, partly_outside=True) == faults
    outside = {at: f"reaches {n} px outside the 20 x 20 picture" for at, n in ((2, 9), (3, 8))}
    assert box_faults(boxes, sizes) == faults | outside
    assert box_faults(boxes[:0], sizes[:0]) == {}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_turned_picture(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    write(tmp_path, {"b.csv": csv_of(f"a.{suffix},1,1,2,2")})
    assert read_annotations(tmp_path).sizes.tolist() == [[height, width]]
    assert (height > width) == (orientation > 4)


@pytest.mark.parametrize("writer", ["voc", "coco"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_before_exif_turned_a_picture_turn_with_it(tmp_path, writer, orientation):
    """The box is bright in the picture, so decoding tells where it lies."""
    root = tmp_path / "set"
    root.mkdir()
    pixels = np.zeros((48, 64), dtype=np.uint8)
    pixels[5:15, 20:50] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root / "a.png", exif=exif)
    Image.new("L", (64, 48)).save(root / "b.png")
    if writer == "voc":
        write(root, {"a.xml": voc("a.png", (64, 48), ("cell", (21, 6, 50, 15)))})
        write(root, {"b.xml": voc("b.png", (64, 48), ("cell", (21, 6, 50, 15)))})
    else:
        boxes = [("cell", (20, 5, 30, 10))]
        document = coco(("a.png", (64, 48), boxes), ("b.png", (64, 48), boxes))
        write(root, {"b.json": document})
    table = read_annotations(root)
    bright = decode_image(root / "a.png")[:, :, 0] == 255
    (top, *_, low), (left, *_, right) = (np.flatnonzero(bright.any(axis=side)) for side in (1, 0))
    assert table.sizes.tolist() == [[64, 48], [48, 64]]
    expected = [[left, top, right + 1, low + 1], [20, 5, 50, 15]]
    assert table.boxes.tolist() == expected
    said = "; pictures that EXIF turns, with boxes drawn on them as they are stored, 1: a.png"
    assert table.note.endswith(said)
    kept = write_boxes(table, table.boxes, tmp_path / "kept")
    assert [path.read_bytes() for path in kept] == [
        (root / file).read_bytes() for file in table.files
    ]
    moved = table.boxes + torch.tensor([1.25, -2.0, 1.25, -2.0])
    for path in write_boxes(table, moved, tmp_path / "moved", decimals=3):
        path.replace(root / path.name)
    again = read_annotations(root)
    assert torch.equal(again.boxes, moved)
    other = again.pictures([1, 0])
    numbers = other.numbers(other.boxes.double(), other.image_index)
    assert torch.equal(other.edges(numbers, other.image_index).float(), moved.flip(0))


YOLO_LINE = "0 .5 .5 .25 .5"
BOX = [("cell", (1, 1, 5, 5))]
ONE = coco(("1.png", (64, 48), BOX))
LAYOUTS = [  # an annotation file, its picture, and the splits that stand for {}
    ("labels/{}/a.txt", "images/{}/a.png", "train"),
    ("{}/labels/a.txt", "{}/images/a.png", "train"),
    ("{}/a.txt", "{}/a.png", "train"),
    ("{}/train_1.txt", "{}/train_1.png", "Test Valid"),  # the file of one picture says nothing
    ("Annotations/a.xml", "JPEGImages/a.png", ""),
    ("Annotations/a.xml", "images/a.png", ""),
    ("Annotations/a.xml", "a.png", ""),
    ("a.xml", "a.png", ""),
    ("{}/_annotations.coco.json", "{}/1.png", "test train valid"),
    ("annotations/instances_{}2017.json", "{}2017/1.png", "train val"),
    ("annotations/instances_{}.json", "images/{}/1.png", "train val"),
    ("annotations/my_{}-v2.json", "{}/1.png", "Train dev"),
    ("annotations/instances_{}.json", "images/{}.png", "test train val"),
    ("{}_labels.csv", "images/{}/1.png", "test train"),
]


@pytest.mark.parametrize(("file", "image", "splits"), LAYOUTS)
def test_usual_layouts_are_read_by_their_root_alone(tmp_path, file, image, splits):
    files = {file.format(split): image.format(split) for split in splits.split(" ")}
    for file, image in files.items():
        name = Path(image).name
        contents = {
            ".txt": YOLO_LINE,
            ".xml": voc(name, (64, 48), *BOX),
            ".json": coco((name, (64, 48), BOX)),
            ".csv": csv_of(f"{name},1,1,5,5"),
        }
        write(tmp_path, {file: contents[Path(file).suffix], image: (64, 48), "README.txt": "hello"})
    table = read_annotations(tmp_path)
    assert table.images == table.groups == tuple(files.values())
    assert table.files == tuple(files)
    assert all(place.startswith(file) for place, file in zip(table.ids, files, strict=True))
    assert list(map(usual_split, table.splits)) == list(map(usual_split, splits.split(" ")))


def test_annotation_files_are_read_in_the_order_they_are_named(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path, {f"{split}/a.json": ONE, f"{split}/1.png": (64, 48)})
    files = ["valid/a.json", "test/a.json"]
    assert read_annotations(tmp_path, annotations=files).splits == ("valid", "test")


ELEVEN = tuple(f"c{n}" for n in range(11))


NAMES = {
    "none": ({}, ("0", "2", "10")),
    "lines": ({"classes.txt": "\n".join(ELEVEN)}, ELEVEN),
    "map": ({"data.yaml": "names:\n  0: c0\n  10: c10\n  2: c2\n"}, ("c0", "c10", "c2")),
}


@pytest.mark.parametrize(("files", "classes"), NAMES.values(), ids=NAMES)
def test_yolo_class_names(tmp_path, files, classes):
    lines = [YOLO_LINE, YOLO_LINE.replace("0 ", "10 "), YOLO_LINE.replace("0 ", "2 ")]
    write(tmp_path, {"a.txt": "\n".join(lines), "a.png": (64, 48)} | files)
    table = read_annotations(tmp_path)
    assert table.classes == classes
    assert [table.classes[label].removeprefix("c") for label in table.labels] == ["0", "10", "2"]


IDENTITIES = {
    "cell 7": "cell 7",
    "细胞": "细胞",
    "1f0c5e0a-7a51-4c5e-9d2b-0d2f3f6d8f11": "1f0c5e0a-7a51-4c5e-9d2b-0d2f3f6d8f11",
    "a\nb": r"'a\nb'",
    "\ud83d": r"'\ud83d'",
    "7" * 100_000: "'777777777777...7777777777777'",
}


@pytest.mark.parametrize(("identity", "shown"), IDENTITIES.items(), ids=IDENTITIES.values())
def test_ids_of_coco_fit_into_a_line(tmp_path, identity, shown):
    document = coco(("a.png", (64, 48), [("cell", (1, 1, 5, 5))]))
    document["annotations"][0]["id"] = identity
    write(tmp_path, {"a.png": (64, 48), "boxes.json": document})
    assert read_annotations(tmp_path).ids == (f"boxes.json: annotation {shown}",)


def test_class_names_of_yaml_are_read_as_written(tmp_path):
    names = "names: [no, 007, 1.0, 2001-99-99, !!int x, !!bool y, !!timestamp z, =, ~]"
    write(tmp_path, {"a.png": (64, 48), "a.txt": "", "data.yaml": names})
    expected = ("no", "007", "1.0", "2001-99-99", "x", "y", "z", "=", "~")
    assert read_annotations(tmp_path).classes == expected


@pytest.mark.parametrize(
    ("image", "filename"), [("a.png", "C:\\pictures\\a.png"), ("a.png", "a"), ("b.png", "b.png")]
)
def test_voc_finds_a_picture_by_its_own_name_or_the_stated_one(tmp_path, image, filename):
    write(tmp_path, {"a.xml": voc(filename, (64, 48), *BOX), image: (64, 48)})
    table = read_annotations(tmp_path, annotations=".")
    assert (table.images, table.ids) == ((image,), ("a.xml: object 1",))


def test_coco_may_name_folders_beside_its_own(tmp_path):
    document = coco(("train/a.png", (64, 48), BOX))
    write(tmp_path, {"annotations/instances.json": document, "images/train/a.png": (64, 48)})
    for images in (None, "images"):
        table = read_annotations(tmp_path, images=images)
        assert (table.images, table.splits) == (("images/train/a.png",), ("train",))


@pytest.mark.parametrize("arguments", [{}, {"annotations": "annotations"}, {"format": "coco"}])
def test_instances_go_before_captions_and_keypoints(tmp_path, arguments):
    names = ("captions_test2017", "captions_train2017", "person_keypoints_train2017")
    others = [f"annotations/{name}.json" for name in names]
    files = [f"annotations/instances_{split}2017.json" for split in ("test-dev", "train")]
    write(tmp_path, dict.fromkeys([*others, *files], ONE))
    write(tmp_path, {"train2014/1.png": (9, 9), "train2017/1.png": (64, 48)})
    write(tmp_path, {"test2017/1.png": (64, 48)})
    table = read_annotations(tmp_path, **arguments)
    assert table.images == ("test2017/1.png", "train2017/1.png")
    assert table.splits == ("test", "train")
    words = f"read from {', '.join(files)}; there but not read: {', '.join(others)}"
    assert table.note.endswith(words)
    named = read_annotations(tmp_path, annotations=["annotations/captions_train2017.json"])
    assert named.images == ("train2017/1.png",)


def test_the_clearest_format_is_read_and_the_others_named(tmp_path):
    write_voc(tmp_path)
    write_csv(tmp_path)
    write(tmp_path, {"results.csv": "epoch,loss\n", "config.json": "{}"})
    assert read_annotations(tmp_path).note.endswith("3 files; there but not read: boxes.csv")
    assert read_annotations(tmp_path, format="csv").ids[0] == "boxes.csv:2"
    assert read_annotations(tmp_path, annotations="boxes.csv").ids[0] == "boxes.csv:2"


def test_pictures_without_annotation_file_are_named(tmp_path):
    write_yolo(tmp_path)
    write(tmp_path, {"images/new.png": (9, 9), "images/._new.png": (9, 9)})
    expected = "; left out, as they have no annotation file: images/new.png"
    assert read_annotations(tmp_path).note.endswith(expected)
    assert read_annotations(tmp_path, images="images").note.endswith(expected)


def test_interleaved_csv_lines_are_ordered_by_picture(tmp_path):
    rows = ["a.png,1,1,2,2,x,s", "b.png,2,2,3,3,y,s", "a.png,3,3,4,4,x,s"]
    text = csv_of(*rows, header="image,xmin,ymin,xmax,ymax,group,split")
    write(tmp_path, {"a.png": (64, 48), "b.png": (64, 48), "boxes.tsv": text})
    table = read_annotations(tmp_path)
    assert table.ids == ("boxes.tsv:2", "boxes.tsv:4", "boxes.tsv:3")
    assert table.image_index.tolist() == [0, 0, 1]
    assert (table.groups, table.splits) == (("x", "y"), ("s", "s"))
    assert read_annotations(tmp_path, group_pattern="(.)[.]png").groups == ("a", "b")


def test_a_split_file_selects_in_its_order(tmp_path):
    write_voc(tmp_path)
    write(tmp_path, {"ImageSets/Main/val.txt": b"\xef\xbb\xbfempty\r\n./JPEGImages/b.png\r\n\r\n"})
    table = read_annotations(tmp_path, split_file="ImageSets/Main/val.txt")
    assert table.images == ("JPEGImages/empty.png", "JPEGImages/b.png")
    assert table.image_index.tolist() == [1]
    assert table.splits == ("val", "val")
    assert table.classes == ("cell", "plate")  # of the whole data set: the same for every split


def test_bccd_names_its_two_zero_size_boxes(real_data):
    table = read_annotations(real_data / "bccd")
    assert (len(table.images), len(table.boxes)) == (364, 4888 - 2)
    assert table.classes == ("Platelets", "RBC", "WBC")
    assert set(table.sizes.unique().tolist()) == {480, 640}
    assert "1-based" in table.note
    assert "test.csv" in table.note
    for stem, sentence in zip(("00338", "00343"), table.skipped, strict=True):
        assert f"BloodImage_{stem}.xml" in sentence
        assert "has no positive width and height" in sentence
    with pytest.raises(BadInput, match=r"BloodImage_00338\.xml: object 13: the box xmin=504"):
        read_annotations(real_data / "bccd", on_bad="error")


def test_bccd_csv_says_the_same_as_its_xml(real_data):
    xml = read_annotations(real_data / "bccd")
    table = read_annotations(real_data / "bccd", annotations="test.csv", images="JPEGImages")
    assert table.images == xml.images
    assert len(table.skipped) == 2
    edges = table.boxes - torch.tensor([1.0, 1, 0, 0])  # the CSV copies VOC's inclusive corners
    boxes = sorted(zip(table.image_index.tolist(), edges.tolist(), strict=True))
    assert boxes == sorted(zip(xml.image_index.tolist(), xml.boxes.tolist(), strict=True))


def test_rbc_has_three_copies_of_its_training_pictures(real_data):
    table = read_annotations(real_data / "rbc", group_pattern=r"([^/]+)\.rf\.")
    assert (len(table.images), len(table.boxes), table.skipped) == (240, 5638, ())
    assert [table.splits.count(name) for name in ("train", "valid", "test")] == [210, 20, 10]
    assert len(set(table.groups)) == 100
    assert (table.boxes % 1 != 0).any()  # corners at fractions of a pixel are kept


def test_deeppcb_has_eleven_boards(real_data):
    table = read_annotations(real_data / "deeppcb")
    assert (len(table.images), len(table.boxes), len(set(table.groups))) == (1500, 10013, 11)


def test_another_format_than_the_one_named_is_recognised_by_what_the_refusal_says(tmp_path):
    """As where the boxes to refine are written otherwise than those of the training."""
    write_voc(tmp_path)
    with pytest.raises(BadInput, match=r"no annotations .*--data\.reading\.format=auto"):
        read_annotations(tmp_path, format="csv")
    assert read_annotations(tmp_path, format="auto").format.name == "voc"
