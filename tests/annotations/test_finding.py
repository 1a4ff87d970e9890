"""The picture that an annotation speaks of is found, told how, or refused; never another."""

import unicodedata

import pytest
from PIL import Image

from lightning_bbox import BadInput, read_annotations
from lightning_bbox.annotations.folders import _SUFFIXES
from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.pictures import PictureFinder
from tests.annotation_files import ROW, XML, coco, csv_of, voc, write

CELL = [("cell", (10, 10, 20, 20))]
P = (64, 48)


def found(root, files, **options):
    write(root, files)
    return read_annotations(root, **options)


def coco_of(*names):
    return coco(*((name, P, CELL) for name in names))


NFC, NFD = (unicodedata.normalize(form, "Größe.png") for form in ("NFC", "NFD"))
# What is named, the pictures there are, which it is, and what is said.
LADDER = {
    "backslashes": ("pics\\a.png", ["pics/a.png"], "pics/a.png", "with slashes for backslashes"),
    "percent": ("my%20cell.png", ["my cell.png"], "my cell.png", "without percent-encoding"),
    "composed": (NFC, [NFD], NFD, "in another Unicode form"),
    "decomposed": (NFD, [NFC], NFC, "in another Unicode form"),
    "letter case": ("Pics/A.PNG", ["pics/a.png"], "pics/a.png", "in other letter case"),
    "no suffix": ("a", ["images/a.png"], "images/a.png", "by its name without a suffix"),
    "a dot in the name": ("a.1", ["a.1.png", "a.2.png"], "a.1.png", "without a suffix"),
    "another machine": (
        "/content/set/left/a.png", ["left/a.png", "right/a.png"], "left/a.png",
        "by the end of its path"),
    "a drive": ("D:\\set\\left\\a.png", ["in/left/a.png", "a/b.png"], "in/left/a.png",
        "by the end of its path"),
    "the web": ("https://x.org/d/a%20b.png?token=1", ["sub/a b.png"], "sub/a b.png",
        "by its bare name"),
    "a server of files": ("/data/local-files/?d=set/a.png", ["in/set/a.png"], "in/set/a.png",
        "by the end of its path"),
    "a bucket": ("gs://bucket/a.png", ["sub/a.png"], "sub/a.png", "by its bare name"),
    "an upload": ("/data/upload/1/0a1b2c3d-a.png", ["sub/a.png"], "sub/a.png",
        "without what Label Studio puts before it"),
    "deeper": ("a.png", ["some/where/a.png"], "some/where/a.png", "by its bare name"),
    "jpg for jpeg": ("a/b.jpeg", ["a/b.jpg", "c/b.jpg"], "a/b.jpg", "with another suffix"),
    "jpeg for JPG": ("a/b.JPG", ["a/b.jpeg"], "a/b.jpeg", "with another suffix"),
    "tiff for tif, deeper": ("b.tif", ["c/b.tiff"], "c/b.tiff", "with another suffix"),
}  # fmt: skip


@pytest.mark.parametrize("name", LADDER)
def test_a_picture_is_found_on_the_first_rung_that_holds_it(tmp_path, name):
    stated, there, path, rung = LADDER[name]
    files = dict.fromkeys(there, P) | {"b.json": coco_of(stated)}
    table = found(tmp_path, files, annotations="b.json")
    assert table.images == (path,)
    assert f"1 picture found {rung}" in table.note or rung in table.note
    assert f"such as {path} for {stated!r}" in table.note


def test_each_rung_is_told_once_with_its_count(tmp_path):
    names = [f"pics\\{n}.png" for n in range(3)] + ["4.PNG", "5.png"]
    there = [f"pics/{n}.png" for n in range(3)] + ["4.png", "5.png"]
    table = found(tmp_path, dict.fromkeys(there, P) | {"b.json": coco_of(*names)})
    assert table.images == tuple(there)
    assert table.note.count(" found ") == 2
    assert "; 3 pictures found with slashes for backslashes, such as pics/0.png for" in table.note
    assert "; 1 picture found in other letter case, such as 4.png for '4.PNG'" in table.note


REFUSED = {
    "two of a name": ("a.png", ["one/a.png", "two/a.png"], "any of one/a.png, two/a.png (by its"),
    "two of a tail": (
        "/x/in/a.png", ["one/in/a.png", "two/in/a.png"], "any of one/in/a.png, two/in/a.png (by"),
    "two letter cases": ("A.PNG", ["a.PNG", "a.png"], "any of a.PNG, a.png (in other letter"),
    "two suffixes of a format": ("a.jpeg", ["a.jpg", "a.jfif"], "any of a.jfif, a.jpg (with ano"),
    "another format": ("a.png", ["a.jpg"], "there is no picture 'a.png'"),
    "two suffixes": ("a", ["a.png", "a.jpg"], "any of a.jpg, a.png (by its name without"),
    "it isn't where it is said to be": (
        "left/a.png", ["left/b.png", "right/a.png"], "there is no picture 'left/a.png'"),
    "nor on another machine": (
        "/x/left/a.png", ["left/b.png", "right/a.png"], "there is no picture '/x/left/a.png'"),
    "another split": ("train/a.png", ["val/a.png"], "there is no picture 'train/a.png'"),
    "up": ("../left/a.png", ["left/a.png"], "there is no picture '../left/a.png'"),
    "up, encoded": ("%2e%2e/left/a.png", ["left/a.png"], "there is no picture '%2e%2e/left/a.png'"),
    "up, backslashed": ("..\\left\\a.png", ["left/a.png"], "there is no picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_another_picture_is_refused(tmp_path, name):
    stated, there, sentence = REFUSED[name]
    with pytest.raises(BadInput) as refusal:
        found(tmp_path, dict.fromkeys(there, P) | {"b.json": coco_of(stated)})
    assert sentence in str(refusal.value)


def test_two_entries_that_find_one_picture_are_refused(tmp_path):
    files = {"b.json": coco_of("one/a.png", "two/a.png"), "in/a.png": P}
    with pytest.raises(BadInput, match=r"is in/a.png \(by its bare name\), and so is b.json: im"):
        found(tmp_path, files)


def test_what_a_run_left_is_neither_picture_nor_annotation(tmp_path):
    run = {"config.yaml": "# of lightning_bbox", "metrics.json": "{}", "a.png": P, "a.txt": "0"}
    theirs = {"runs/detect/predict/labels/a.txt": "0 1 1 1 1", "runs/detect/predict/a.png": P}
    files = {f"runs/one/{name}": content for name, content in run.items()} | theirs
    files |= {"b.json": coco_of("a.png")}
    with pytest.raises(BadInput, match="there is no picture"):
        found(tmp_path, files)
    assert found(tmp_path, {"pics/a.png": P}).images == ("pics/a.png",)


LAYOUTS = {
    "FiftyOne, COCO": {"labels.json": coco_of("a.png"), "data/a.png": P},
    "FiftyOne, VOC": {"labels/a.xml": XML, "data/a.png": P},
    "FiftyOne, YOLO": {"labels/val/a.txt": "0 .5 .5 .5 .5", "images/val/a.png": P},
    "CVAT, COCO": {
        "annotations/instances_default.json": coco_of("a.png"), "images/default/a.png": P},
    "CVAT, a subset": {
        "annotations/instances_Left.json": coco_of("a.png"),
        "images/Left/a.png": P,
        "images/Right/a.png": P,
    },
    "VOC elsewhere": {"xmls/a.xml": XML, "pictures/a.png": P},
    "VOC anywhere": {"mine/a.xml": XML, "pictures/a.png": P},
    "YOLO in annotations": {"annotations/a.txt": "0 .5 .5 .5 .5", "images/a.png": P},
    "a suffix in capitals": {"labels/a.txt": "0 .5 .5 .5 .5", "images/A.PNG": P},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_tools_are_read_by_their_root_alone(tmp_path, name):
    table = found(tmp_path, LAYOUTS[name])
    assert len(table.boxes) == 1


def test_a_list_of_pictures_is_no_annotation_because_it_lies_in_such_a_folder(tmp_path):
    files = {"annotations/notes.txt": "hello", "annotations/b.csv": csv_of(ROW), "images/a.png": P}
    assert found(tmp_path, files).files == ("annotations/b.csv",)


def test_pictures_may_lie_in_several_folders(tmp_path):
    files = {"b.csv": csv_of(ROW, "b.png,1,1,9,9"), "one/a.png": P, "two/b.png": P}
    table = found(tmp_path, files, images=["one", "two"])
    assert table.images == ("one/a.png", "two/b.png")
    assert "1 picture found in two, not where the others are" in table.note
    write(tmp_path, {"two/a.png": P, "one/b.png": P, "three/c.png": P})
    with pytest.raises(BadInput, match="there is no picture"):
        found(tmp_path, {"b.csv": csv_of("c.png,1,1,9,9")}, images=["one", "two"])


def test_missing_and_broken_pictures_are_counted_and_named_at_once(tmp_path):
    rows = [f"{n}.png,1,1,9,9" for n in range(40)]
    files = {f"{n}.png": b"broken" for n in range(12)} | {f"{n}.png": P for n in range(12, 30)}
    with pytest.raises(BadInput) as refusal:
        found(tmp_path, files | {"b.csv": csv_of(*rows)})
    sentence = str(refusal.value)
    assert sentence.startswith("13 problems: b.csv:32: 10 of 40 pictures are not in .: '30.png'")
    assert "'39.png'" in sentence
    assert "on_missing='skip' (--data.reading.on_missing=skip)" in sentence
    assert "b.csv:2: 0.png can't be read as a picture" in sentence
    assert sentence.endswith("and 3 more")


def test_missing_pictures_are_left_out_with_their_boxes_if_asked_for(tmp_path):
    rows = [ROW, "b.png,1,1,9,9", "b.png,2,1,9,9", "c.png,1,1,9,9"]
    table = found(tmp_path, {"b.csv": csv_of(*rows), "a.png": P}, on_missing="skip")
    assert (table.images, table.boxes.tolist()) == (("a.png",), [[1, 1, 20, 20]])
    assert "missing and left out: 2 pictures and 3 boxes in 'b.png', 'c.png'" in table.note
    assert table.missing == (
        "b.csv:3: the box is in 'b.png', which isn't there; left out",
        "b.csv:4: the box is in 'b.png', which isn't there; left out",
        "b.csv:5: the box is in 'c.png', which isn't there; left out",
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadInput, match="3 of 3 pictures are not in"):
        read_annotations(tmp_path, on_missing="skip")


def test_suffixes_are_those_that_pillow_knows():
    Image.init()
    assert set(Image.registered_extensions()) >= _SUFFIXES


def test_vocs_stated_name_is_found_in_other_words(tmp_path):
    files = {"Annotations/x.xml": voc("PICS\\a.PNG", P, ("cell", (1, 1, 9, 9))), "pics/a.png": P}
    assert found(tmp_path, files).images == ("pics/a.png",)


def vocs(**stated):
    return {f"{stem}.xml": voc(name, P, ("cell", (1, 1, 9, 9))) for stem, name in stated.items()}


def test_a_picture_named_otherwise_by_its_annotation_file_is_told(tmp_path):
    """A renamed pair, a file that was copied from another, and one of another name and suffix."""
    files = vocs(a="a.png", b="gone.png", c="a.png", d="d.jpeg", e="other.png", f="f")
    pictures = ["a.png", "b.png", "c.png", "d.png", "other.png", "f.png"]
    table = found(tmp_path, files | dict.fromkeys(pictures, P), annotations=".")
    assert table.images == tuple(pictures)
    own = "2 pictures found by the name of their annotation files, which state another, such as b."
    assert f"{own}png for 'gone.png'" in table.note
    assert "names are others, such as other.png for 'other.png'" in table.note
    assert "1 picture found with another suffix, such as d.png for 'd.jpeg'" in table.note
    assert table.note.count(" found ") == 3


def test_a_picture_that_two_annotation_files_may_mean_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"^b.xml: names the picture 'a.png', but 'b.png' bears"):
        found(tmp_path, vocs(b="a.png") | dict.fromkeys(["a.png", "b.png"], P))


def test_many_pictures_are_found_by_their_ends_in_little_time(tmp_path):
    """No rung walks all the pictures for each of them: a set takes a second, not minutes."""
    for n in range(3000):
        path = tmp_path / f"{n % 7}" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    finder = PictureFinder(tmp_path, None, False, False)
    stated = [Picture("b.json", f"{n}", f"/x/{n % 7}/{n}.png") for n in range(3000)]
    assert list(finder.find(stated)) == [f"{n % 7}/{n}.png" for n in range(3000)]
    assert finder.notes()[0].startswith("3000 pictures found by the end of its path, such as")


def test_what_is_there_but_not_read_is_named_once(tmp_path):
    files = {"Annotations/a.xml": XML, "labels/a.txt": "0 .5 .5 .5 .5", "images/a.png": P}
    assert found(tmp_path, files).note.count("labels/a.txt") == 1
