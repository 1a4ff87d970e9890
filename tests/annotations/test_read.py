import inspect
import math
import os
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lightning_bbox.annotations.formats.known import FormatName, known_formats
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import held_out, split_in_name, usual_split
from lightning_bbox.annotations.validity import box_faults
from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.boxes import BoxDataModule
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
    assert inspect.signature(BoxDataModule).parameters["format"].annotation is FormatName


@pytest.mark.parametrize("writer", [write_voc, write_coco, write_yolo, write_csv])
def test_every_format_gives_the_same_table(tmp_path, writer):
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
    assert set(table.splits) == {""}
    assert table.skipped == ()


@pytest.mark.parametrize(
    ("writer", "ids", "note"),
    [
        (
            write_voc,
            "Annotations/a.xml: object 2",
            "VOC XML, 1-based inclusive corners, read from 3",
        ),
        (write_coco, "_annotations.coco.json: annotation 1", "COCO JSON, left top corner and size"),
        (write_yolo, "labels/a.txt:2", "YOLO text, centre and size as fractions"),
        (write_csv, "boxes.csv:3", "CSV, corners as pixel edges, read from boxes.csv"),
    ],
)
def test_ids_say_where_a_box_stands_and_the_note_what_was_read(tmp_path, writer, ids, note):
    writer(tmp_path)
    table = read_annotations(tmp_path)
    assert table.ids[1] == ids
    assert table.note.startswith(note)


def test_voc_base_0_is_said_and_moves_the_boxes(tmp_path):
    write_voc(tmp_path, base=0)
    table = read_annotations(tmp_path, voc_base=0)
    assert table.boxes[0].tolist() == [5.0, 6.0, 20.5, 30.25]
    assert "0-based" in table.note
    shifted = read_annotations(tmp_path, voc_base=1)
    assert shifted.boxes[0].tolist() == [4.0, 5.0, 19.5, 29.25]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "pascal"}, "format is 'pascal'; choose from 'auto', 'voc', 'coco', 'yolo', "),
        ({"voc_base": 2}, "voc_base is 2; choose from 0, 1"),
        ({"on_bad": "clip"}, "on_bad is 'clip'; choose from 'skip', 'error'"),
    ],
)
def test_arguments_that_are_no_choice_are_refused(tmp_path, arguments, sentence):
    with pytest.raises(BadInput, match=f"^{sentence}"):
        read_annotations(tmp_path, **arguments)


VOC, COCO, YOLO, CSV = (kind.convention for kind in known_formats())
VOC_FROM_0 = known_formats(voc_base=0)[0].convention
finite = st.floats(-1e4, 1e4, width=32)
sides = st.integers(1, 5000)


@given(st.tuples(finite, finite, finite, finite), sides, sides)
def test_conversions_equal_hand_arithmetic(numbers, height, width):
    a, b, c, d = numbers
    values = torch.tensor([numbers], dtype=torch.float64)
    sizes = torch.tensor([[height, width]])
    expected = {
        VOC: (a - 1, b - 1, c, d),
        VOC_FROM_0: (a, b, c + 1, d + 1),
        COCO: (a, b, a + c, b + d),
        YOLO: tuple(
            side * centre + sign * side * extent / 2
            for sign in (-1, 1)
            for side, centre, extent in ((width, a, c), (height, b, d))
        ),
        CSV: numbers,
    }
    for convention, edges in expected.items():
        found = convention.edges(values, sizes)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.tensor([edges], dtype=torch.float64))


@given(
    st.integers(0, 90).flatmap(lambda x1: st.tuples(st.just(x1), st.integers(x1 + 1, 100))),
    st.integers(0, 70).flatmap(lambda y1: st.tuples(st.just(y1), st.integers(y1 + 1, 80))),
)
def test_yolo_returns_whole_pixels_to_float32(xs, ys):
    (x1, x2), (y1, y2) = xs, ys
    values = [(x1 + x2) / 200, (y1 + y2) / 160, (x2 - x1) / 100, (y2 - y1) / 80]
    edges = YOLO.edges(torch.tensor([values], dtype=torch.float64), torch.tensor([[80, 100]]))
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


YOLO_LINE = "0 .5 .5 .25 .5"


def test_roboflow_folders_are_read_as_splits(tmp_path):
    for split in ("train", "valid", "test"):
        document = coco((f"{split}.rf.1.png", (64, 48), [("cell", (1, 1, 5, 5))]))
        file = f"{split}/_annotations.coco.json"
        write(tmp_path, {file: document, f"{split}/{split}.rf.1.png": (64, 48)})
    table = read_annotations(tmp_path, group_pattern=r"([^/]+)\.rf\.")
    assert table.images == ("test/test.rf.1.png", "train/train.rf.1.png", "valid/valid.rf.1.png")
    assert table.splits == table.groups == ("test", "train", "valid")
    files = ["valid/_annotations.coco.json", "test/_annotations.coco.json"]
    assert read_annotations(tmp_path, annotations=files).splits == ("valid", "test")


@pytest.mark.parametrize(
    ("labels", "image"),
    [
        ("labels/train/a.txt", "images/train/a.png"),
        ("train/labels/a.txt", "train/images/a.png"),
        ("train/a.txt", "train/a.png"),
    ],
)
def test_yolo_folders(tmp_path, labels, image):
    names = {"data.yaml": "names:\n  0: cell\n  1: plate\n", "README.roboflow.txt": "hello"}
    write(tmp_path, {labels: YOLO_LINE, image: (64, 48)} | names)
    table = read_annotations(tmp_path)
    assert (table.images, table.splits, table.ids) == ((image,), ("train",), (f"{labels}:1",))
    assert table.classes == ("cell", "plate")
    assert table.boxes.tolist() == [[24.0, 12.0, 40.0, 36.0]]


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({}, ("0", "2", "10")),
        ({"classes.txt": "".join(f"c{n}\n" for n in range(11))}, tuple(f"c{n}" for n in range(11))),
    ],
)
def test_yolo_class_names(tmp_path, files, classes):
    lines = [YOLO_LINE, YOLO_LINE.replace("0 ", "10 "), YOLO_LINE.replace("0 ", "2 ")]
    write(tmp_path, {"a.txt": "\n".join(lines), "a.png": (64, 48)} | files)
    table = read_annotations(tmp_path)
    assert table.classes == classes
    assert [table.classes[label].removeprefix("c") for label in table.labels] == ["0", "10", "2"]


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        ("cell 7", "cell 7"),
        ("细胞", "细胞"),
        ("1f0c5e0a-7a51-4c5e-9d2b-0d2f3f6d8f11", "1f0c5e0a-7a51-4c5e-9d2b-0d2f3f6d8f11"),
        ("a\nb", r"'a\nb'"),
        ("\ud83d", r"'\ud83d'"),
        ("7" * 100_000, "'777777777777...7777777777777'"),
    ],
)
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
    ("xml", "image", "filename"),
    [
        ("Annotations/a.xml", "JPEGImages/a.png", "a.png"),
        ("Annotations/a.xml", "images/a.png", "C:\\pictures\\a.png"),
        ("Annotations/a.xml", "a.png", "a"),
        ("a.xml", "a.png", "a.png"),
        ("train/a.xml", "train/b.png", "b.png"),
    ],
)
def test_voc_folders(tmp_path, xml, image, filename):
    files = {xml: voc(filename, (64, 48), ("cell", (1, 1, 9, 9))), image: (64, 48)}
    write(tmp_path, files)
    table = read_annotations(tmp_path, format="voc", annotations=str(Path(xml).parent))
    assert (table.images, table.ids) == ((image,), (f"{xml}: object 1",))


def test_coco_beside_images(tmp_path):
    document = coco(("train/a.png", (64, 48), [("cell", (1, 1, 5, 5))]))
    write(tmp_path, {"annotations/instances.json": document, "images/train/a.png": (64, 48)})
    table = read_annotations(tmp_path)
    assert (table.images, table.splits) == (("images/train/a.png",), ("train",))


BOX = [("cell", (1, 1, 5, 5))]
ONE = coco(("1.png", (64, 48), BOX))


@pytest.mark.parametrize(
    ("train", "val", "folders"),
    [
        ("instances_train2017", "instances_val2017", ("train2017", "val2017")),
        ("instances_train2017", "instances_val2017", ("images/train2017", "images/val2017")),
        ("instances_train", "instances_val", ("images/train", "images/val")),
        ("my_Train-v2", "my_valid", ("Training", "val")),
    ],
)
def test_official_coco_is_read_by_its_root_alone(tmp_path, train, val, folders):
    files = [f"annotations/{name}.json" for name in (train, val)]
    images = tuple(f"{folder}/1.png" for folder in folders)
    write(tmp_path, dict.fromkeys(files, ONE) | dict.fromkeys(images, (64, 48)))
    table = read_annotations(tmp_path)
    assert table.splits == ("train", "val")
    assert (table.images, table.groups) == (images, images)
    assert table.ids == tuple(f"{file}: annotation 0" for file in files)
    assert table.note.endswith(f"read from {files[0]}, {files[1]}")


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
    assert table.note.endswith(f"; there but not read: {', '.join(others)}")
    named = read_annotations(tmp_path, annotations=["annotations/captions_train2017.json"])
    assert named.images == ("train2017/1.png",)


def test_pictures_of_all_splits_may_lie_in_one_folder(tmp_path):
    for n, split in enumerate(("train", "val", "test")):
        document = coco((f"{n}.png", (64, 48), BOX))
        files = {f"annotations/instances_{split}.json": document, f"images/{n}.png": (64, 48)}
        write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert table.images == ("images/2.png", "images/0.png", "images/1.png")
    assert table.splits == ("test", "train", "val")
    assert read_annotations(tmp_path, images="images").images == table.images


def test_csv_files_may_be_named_by_their_splits_too(tmp_path):
    write(tmp_path, {f"{split}_labels.csv": csv_of("1.png,1,1,2,2") for split in ("train", "test")})
    write(tmp_path, {"images/train/1.png": (64, 48), "images/test/1.png": (64, 48)})
    table = read_annotations(tmp_path)
    assert table.images == ("images/test/1.png", "images/train/1.png")
    assert table.splits == ("test", "train")


def test_a_split_in_the_name_of_one_pictures_file_says_nothing(tmp_path):
    write(tmp_path, {"Train/val_1.txt": YOLO_LINE, "Train/val_1.png": (64, 48)})
    write(tmp_path, {"Test/train.txt": YOLO_LINE, "Test/train.png": (64, 48)})
    assert read_annotations(tmp_path).splits == ("Test", "Train")


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train2017", "TRAINVAL", "training", "train_val", "train-1"]),
        ("val", ["val", "valid", "Validation", "dev", "val_2014"]),
        ("test", ["test", "testing", "test-dev2017", "Test 2"]),
        (None, ["", "2017", "trains", "minival", "trainvaltest", "contest", "all"]),
    ],
)
def test_usual_names_of_splits(split, names):
    assert {usual_split(name) for name in names} == {split}
    assert {split_in_name(f"test/{name}.json") for name in names} == {split}
    assert {split_in_name(f"a_{name}_b.v1.json") for name in names} == {split}


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


DATA = Path(os.environ.get("LIGHTNING_BBOX_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real data is absent: name its folder in LIGHTNING_BBOX_DATA"
)
ZERO_SIZED = ("BloodImage_00338", "BloodImage_00343")


@needs_data
def test_bccd_names_its_two_zero_size_boxes():
    table = read_annotations(DATA / "bccd")
    assert (len(table.images), len(table.boxes)) == (364, 4888 - 2)
    assert table.classes == ("Platelets", "RBC", "WBC")
    assert set(table.sizes.unique().tolist()) == {480, 640}
    assert "1-based" in table.note
    assert "test.csv" in table.note
    for stem, sentence in zip(ZERO_SIZED, table.skipped, strict=True):
        assert stem in sentence
        assert "has no positive width and height" in sentence
    with pytest.raises(BadInput, match=r"BloodImage_00338\.xml: object 13: the box xmin=504"):
        read_annotations(DATA / "bccd", on_bad="error")


@needs_data
def test_bccd_splits():
    tables = [
        read_annotations(DATA / "bccd", split_file=f"ImageSets/Main/{name}.txt")
        for name in ("trainval", "test")
    ]
    assert [len(table.images) for table in tables] == [292, 72]
    assert sum(len(table.boxes) for table in tables) == 4886


@needs_data
def test_bccd_csv_says_the_same_as_its_xml():
    xml = read_annotations(DATA / "bccd")
    table = read_annotations(DATA / "bccd", annotations="test.csv", images="JPEGImages")
    assert table.images == xml.images
    assert len(table.skipped) == 2
    moved = table.boxes - torch.tensor(
        [1.0, 1.0, 0.0, 0.0]
    )  # the CSV copies VOC's inclusive corners
    boxes = sorted(zip(table.image_index.tolist(), moved.tolist(), strict=True))
    assert boxes == sorted(zip(xml.image_index.tolist(), xml.boxes.tolist(), strict=True))


@needs_data
def test_rbc_has_three_copies_of_its_training_pictures():
    table = read_annotations(DATA / "rbc", group_pattern=r"([^/]+)\.rf\.")
    assert (len(table.images), len(table.boxes), table.skipped) == (240, 5638, ())
    assert {name: table.splits.count(name) for name in ("train", "valid", "test")} == {
        "train": 210,
        "valid": 20,
        "test": 10,
    }
    assert len(set(table.groups)) == 100
    assert (table.boxes % 1 != 0).any()  # corners at fractions of a pixel are kept


@needs_data
def test_deeppcb_groups_hold_out_boards():
    table = read_annotations(DATA / "deeppcb")
    assert (len(table.images), len(table.boxes), len(set(table.groups))) == (1500, 10013, 11)
    kept, held = held_out(table.groups, ["group77000", "group90100", "group92000"])
    assert len(kept) + len(held) == 1500
    assert not {table.groups[at] for at in kept} & {table.groups[at] for at in held}
