"""What is odd but has a meaning: boxes left out and listed, files read as they are, and notes."""

import json
import os
import re
from pathlib import Path

import pytest

from lightning_bbox.annotations import read as read_module
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from tests.annotation_files import (
    CELLS,
    DOCUMENT,
    NINE,
    RESULTS,
    ROW,
    ROWS,
    XML,
    A,
    changed,
    coco,
    csv_of,
    voc,
    write,
)
from tests.runs import TINY

TURNED = "<object><name>cell</name><robndbox><cx>30</cx></robndbox></object>"
ROTATION = (
    "<attributes><attribute><name>rotation</name><value>-7.5</value></attribute></attributes>"
)

# In line 3 of a CSV of pixel edges, in a picture of 64 x 48.
INVALID = {
    "nan,2,3,4": "is not finite",
    "1,2,inf,4": "is not finite",
    "1,2,1e+300,4": "is not finite",  # in single precision
    "5,2,5,9": "has no positive width",
    "5,9,6,9": "has no positive height",
    "9,9,2,2": "has no positive width and height",
    "1,2,65.5,9": "reaches 1.5 px outside the 64 x 48 picture",
    "-1.25,2,5,9": "reaches 1.25 px outside the 64 x 48 picture",
    "100,100,120,120": "reaches 72 px outside the 64 x 48 picture",
}
SKIPPED = {
    f"b.csv:3: the box xmin={x1}, ymin={y1}, xmax={x2}, ymax={y2} in a.png {fault}": {
        "b.csv": csv_of(ROW, f"a.png,{x1},{y1},{x2},{y2}")
    }
    for (x1, y1, x2, y2), fault in ((box.split(","), fault) for box, fault in INVALID.items())
} | {
    "b.json: annotation 0: the box x=nan, y=1, width=5, height=5 in a.png is not finite": {
        "b.json": coco(("a.png", (64, 48), [("cell", (float("nan"), 1, 5, 5)), *CELLS]))
    },
    "b.json: annotation 0: the box x=1, y=1, width=inf, height=5 in a.png is not finite": {
        "b.json": coco(("a.png", (64, 48), [("cell", (1, 1, 10**400, 5)), *CELLS]))
    },
    "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png "
    "is a crowd (iscrowd=1), not one object": {"b.json": changed("annotations", iscrowd=1)},
    "b.json: annotation 0: the object in a.png has no bbox, and no polygon either": {
        "b.json": changed("annotations", bbox=None)
    },
    "b.json: annotation 0: the object in a.png has the bbox [1, 2, 3, '4'], not four numbers": {
        "b.json": changed("annotations", bbox=[1, 2, 3, "4"])
    },
    "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png is turned by 40 degrees": {
        "b.json": changed("annotations", attributes={"rotation": 40.0})
    },
    "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png is turned by 5.5 degrees": {
        "b.json": changed("annotations", attributes={"rotation": "5.5"})
    },
    "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png is turned by 90 degrees": {
        "b.json": changed("annotations", rotation=90)
    },
    "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png "
    "has the category_id 0, none of the 2 of its file": {
        "b.json": changed("annotations", category_id=0)
    },
    "a.xml: object 1: the object in a.png is turned (<robndbox>)": {
        "a.xml": XML.replace("<object>", f"{TURNED}<object>")
    },
    "a.xml: object 1: the box xmin=1, ymin=1, xmax=9, ymax=9 in a.png is turned by -7.5 degrees": {
        "a.xml": XML.replace("</bndbox>", f"</bndbox>{ROTATION}", 1)
    },
    # A click: xmin = xmax where corners belong to the box.
    "a.xml: object 1: the box xmin=5, ymin=4, xmax=5, ymax=9 in a.png has no positive width": {
        "a.xml": voc("a.png", (64, 48), ("cell", (5, 4, 5, 9)), ("cell", (5, 4, 6, 9)))
    },
    "a.txt:2: the box cx=1.5, cy=0.5, w=0.25, h=0.1 in a.png "
    "reaches 40 px outside the 64 x 48 picture": {"a.txt": "0 .5 .5 .1 .1\n0 1.5 .5 .25 .1"},
}


@pytest.mark.parametrize(("problem", "files"), SKIPPED.items())
def test_an_invalid_box_is_left_out_and_listed_or_refused(tmp_path, problem, files):
    write(tmp_path, A | files)
    table = read_annotations(tmp_path)
    assert (table.skipped, table.skipped_index) == ((f"{problem}; left out",), (0,))
    with pytest.raises(BadInput) as refusal:
        read_annotations(tmp_path, on_bad="error")
    remedy = "correct it, or leave such boxes out with on_bad='skip' (--data.reading.on_bad=skip)"
    assert str(refusal.value) == f"{problem}; {remedy}"


def from_windows(text):
    """Return a text as editors on Windows save it."""
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


NAMES = "names: [no, 2001-99-99, !!int x, 1.0]"
SPREAD = csv_of('"a.png", 1 ,1,2e1,20', "", " ")
LABELLED = csv_of(ROW + ",=1+1", header="image,x1,y1,x2,y2,label")  # a formula is but a text
LINKS = {"store/a.png": (64, 48), "a.png": Path("store/a.png"), "again": Path("store")}
LINKS |= {"up": Path(), "b.csv": csv_of(ROW)}
YOLO_FROM_WINDOWS = {"a.txt": from_windows("0 .5 .5 .5 .5\n\n")}
YOLO_FROM_WINDOWS |= {"data.yaml": from_windows("names:\n- cell\n")}
BOX = [1.0, 1.0, 20.0, 20.0]
CELL = [1.0, 1.0, 6.0, 6.0]
HALF = [16.0, 12.0, 48.0, 36.0]
NINTH = [0.0, 0.0, 9.0, 9.0]
READ = {
    "smaller than a pixel": (
        A | {"b.csv": csv_of("a.png,1.25,1.25,1.5,1.75")},
        [1.25, 1.25, 1.5, 1.75],
    ),
    "a pixel outside": (A | {"b.csv": csv_of("a.png,-1,-0.5,65,49")}, [-1.0, -0.5, 65.0, 49.0]),
    "CSV from Windows": (A | {"b.csv": from_windows(SPREAD)}, BOX),
    "semicolons": (A | {"b.csv": from_windows(SPREAD.replace(",", ";"))}, BOX),
    "tabs": (A | {"b.csv": from_windows(SPREAD.replace(",", "\t"))}, BOX),
    "YOLO from Windows": (A | YOLO_FROM_WINDOWS, HALF),
    "COCO from Windows": (A | {"b.json": from_windows(json.dumps(DOCUMENT, indent=1))}, CELL),
    "VOC from Windows": (A | {"a.xml": from_windows(XML.replace("<obj", "\n<obj"))}, NINTH),
    "a comma in a name": ({"a, b.png": (64, 48), "b.csv": csv_of('"a, b.png",1,1,20,20')}, BOX),
    "a formula for a label": (A | {"b.csv": LABELLED}, BOX),
    "any script": ({"細胞/Ä b.png": (64, 48), "b.csv": csv_of("細胞/Ä b.png,1,1,20,20")}, BOX),
    "backslashes in COCO": (
        {"images/a.png": (64, 48), "b.json": coco(("images\\a.png", (64, 48), CELLS))},
        CELL,
    ),
    "backslashes in CSV": ({"p/a.png": (64, 48), "b.csv": csv_of(r"p\a.png,1,1,20,20")}, BOX),
    "a backslash that belongs to a name": (
        {r"p\a.png": (64, 48), "p/a.png": (9, 9), "b.csv": csv_of(r"p\a.png,1,1,20,20")},
        BOX,
    ),
    "capitals": ({"images/a.PNG": (64, 48), "labels/a.TXT": "0 .5 .5 .5 .5"}, HALF),
    "links within the root": (LINKS, BOX),
    "VOC of size 0": (A | {"a.xml": voc("a.png", (0, 0), ("cell", (1, 1, 9, 9)))}, NINTH),
    "COCO of size 0": (A | {"b.json": changed("images", width=0, height=0)}, CELL),
    "VOC without size": (A | {"a.xml": XML.replace("size>", "sighs>")}, NINTH),
    "COCO without size": (A | {"b.json": changed("images", width=None)}, CELL),
    "other values of YAML": (A | {"a.txt": "3 .5 .5 .5 .5", "data.yaml": NAMES}, HALF),
    "numbered names": (A | {"a.txt": "7 .5 .5 .5 .5", "data.yaml": "names: {7: cell}"}, HALF),
}


@pytest.mark.parametrize(("files", "box"), READ.values(), ids=READ)
def test_unusual_input_is_read_as_it_is_meant(tmp_path, files, box):
    write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert (table.boxes.tolist(), table.skipped) == ([box], ())


def test_with_leave_files_lie_out_of_the_root(tmp_path):
    far = {"far/a.xml": XML, "a.png": (64, 48), "in/Annotations": Path("../far")}
    far |= {"in/images/a.png": Path("../../a.png"), "far/back": Path("../far")}
    write(tmp_path, far | {"other/b.csv": csv_of(ROW)})
    assert read_annotations(tmp_path / "in", allow_outside=True).boxes.tolist() == [NINTH]
    table = read_annotations(tmp_path / "other", images="..", allow_outside=True)
    assert (table.images, table.boxes.tolist()) == (("../a.png",), [BOX])


def test_a_split_file_may_come_from_windows(tmp_path):
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS), "s.txt": from_windows("3\n")})
    assert read_annotations(tmp_path, split_file="s.txt").images == ("3.png",)


def test_a_split_file_may_have_backslashes(tmp_path):
    write(tmp_path, {"p/a.png": (64, 48), "q/a.png": (64, 48), "s.txt": ".\\q\\a.png\n"})
    write(tmp_path, {"b.csv": csv_of("p/a.png,1,1,9,9", "q/a.png,1,1,9,9")})
    assert read_annotations(tmp_path, split_file="s.txt").images == ("q/a.png",)


def test_results_are_read_with_their_pictures(tmp_path):
    write(tmp_path, A | {"b.json": DOCUMENT, "r.json": RESULTS})
    table = read_annotations(tmp_path, annotations=["b.json", "r.json"])
    assert (table.boxes.tolist(), table.ids) == ([CELL], ("r.json: result 1",))
    assert table.note.endswith("; boxes of b.json left aside for the results")


def test_boxes_that_are_there_twice_are_noted(tmp_path):
    write(tmp_path, A | {"b.csv": csv_of(ROW, "a.png,2,2,20,20", ROW, ROW)})
    table = read_annotations(tmp_path)
    assert len(table.boxes) == 4
    assert table.note.endswith("; boxes that are there twice are used twice: b.csv:4, b.csv:5")


ZERO, FAR = ("cell", (0, 1, 9, 9)), ("cell", (5, 1, 64, 9))
AT_ZERO, AT_FAR = "a corner is 0 at a.xml: object 1", "at the picture's far edge at a.xml: object"
EDGES = f"{AT_ZERO} and one {AT_FAR} 2: set voc_base='edges' (--data.reading.voc_base=edges) if xm"
DOUBTS = {
    "zero": (1, [ZERO], f"{AT_ZERO}: set voc_base=0 (--data.reading.voc_base=0) if pixels count"),
    "far": (0, [FAR], f"a corner is {AT_FAR} 1: set voc_base=1 (--data.reading.voc_base=1) if"),
    "both": (1, [ZERO, FAR], EDGES),
    "both, from 0": (0, [ZERO, FAR], EDGES),
    "far, from 1": (1, [FAR], None),
    "zero, from 0": (0, [ZERO], None),
    "edges": ("edges", [ZERO, FAR], None),
}


@pytest.mark.parametrize(("base", "boxes", "note"), DOUBTS.values(), ids=DOUBTS)
def test_corners_that_doubt_where_pixels_count_from_are_noted(tmp_path, base, boxes, note):
    write(tmp_path, A | {"a.xml": voc("a.png", (64, 48), *boxes)})
    said = read_annotations(tmp_path, voc_base=base).note.partition("read from a.xml")[2]
    assert said.startswith(f"; {note}") if note else not said


def test_names_that_nobody_can_read_are_shortened_in_what_is_said(tmp_path):
    long = "n" * 50_000
    shape = '<box label="cell" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    image = f'<image id="{long}" name="a.png">{shape}</image><image id="1" name="{long}"/>'
    write(tmp_path, A | {"a.xml": f"<annotations>{image}</annotations>"})
    table = read_annotations(tmp_path, on_missing="skip")
    assert table.images == ("a.png",)
    for sentence in (*table.ids, *table.missing, table.note):
        assert "nnn ... nnn" in sentence
        assert len(sentence) < 1000


def test_a_fit_lists_its_bad_boxes_and_draws_batches_larger_than_the_set(
    tmp_path, monkeypatch, capsys
):
    bad = ["3.png,5,5,5,9", "8.png,1,1,99,20"]
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS, *bad, "4.png,3.2,3.2,3.4,3.5", ROWS[5])})
    monkeypatch.chdir(tmp_path)
    command = ["fit", "-c", "preset:csv", f"--data.root={tmp_path}", "--name=run"]
    assert main([*command, *TINY]) == 0
    assert (tmp_path / "runs/run/skipped.txt").read_text() == (
        "b.csv:11: the box xmin=5, ymin=5, xmax=5, ymax=9 in 3.png "
        "has no positive width; left out\n"
        "b.csv:12: the box xmin=1, ymin=1, xmax=99, ymax=20 in 8.png "
        "reaches 35 px outside the 64 x 48 picture; left out\n"
    )
    printed = capsys.readouterr().out
    assert "skipped boxes are listed in runs/run/skipped.txt" in printed
    assert "boxes that are there twice are used twice: b.csv:14" in printed
    assert sum(int(n) for n in re.findall(r"(\d+) skipped,", printed)) == 2


def test_a_set_is_fitted_and_corrected_within_its_own_folder_whatever_its_names(
    tmp_path, monkeypatch, capsys
):
    """Names of files are bytes; they needn't be UTF-8, and come out as they went in."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        root.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("names of files are UTF-8 here")
    names = [os.fsdecode(b"\xe9%d" % n) for n in range(9)]
    for name in names:
        write(root, {f"images/{name}.png": (64, 48), f"labels/{name}.txt": "0 .5 .5 .5 .5\n"})
    write(root, {f"labels/{names[3]}.txt": "0 .5 .5 .5 .5\n0 .5 .5 0 .1\n"})
    before = read_annotations(root)
    monkeypatch.chdir(root)
    options = ["-c", "preset:yolo", "--data.root=.", *TINY]
    disk = ["--data.store.place=disk", "--data.store.folder=pixels"]
    assert main(["fit", *options, *disk, "--name=run"]) == 0
    assert main(["predict", *options, "--name=moved", "--ckpt_path=runs/run"]) == 0
    said = (
        rb"labels/\xe93.txt:2: the box cx=0.5, cy=0.5, w=0, h=0.1 in images/\xe93.png "
        rb"has no positive width; "
    ).replace(rb"\xe9", b"\xe9")
    assert Path("runs/run/skipped.txt").read_bytes() == said + b"left out\n"
    assert Path("runs/moved/unchanged.txt").read_bytes() == said + b"left as it is\n"
    rows = Path("runs/moved/changes.csv").read_bytes()
    assert b"\nlabels/\xe98.txt:1,images/\xe98.png,0," in rows
    assert "skipped boxes are listed in runs/run/skipped.txt" in capsys.readouterr().out
    after = read_annotations(root)
    assert (after.files, after.ids, after.note) == (before.files, before.ids, before.note)
    Path("runs/moved/changes.csv").unlink()  # as where it was killed
    assert read_annotations(root).files == before.files


def test_only_folders_of_runs_are_left_out(tmp_path):
    write(tmp_path / "mine", A | {"b.csv": csv_of(ROW), "refined/readme": ""})
    write(tmp_path / "mine", {"config.yaml": "a: 1", "checkpoints/c.pt": ""})
    assert read_annotations(tmp_path).files == ("mine/b.csv",)


def test_what_takes_long_to_read_is_said(tmp_path, monkeypatch, capsys):
    text = csv_of(ROW)
    write(tmp_path, A | {"b.csv": text})
    read_annotations(tmp_path)
    assert not capsys.readouterr().out
    monkeypatch.setattr(read_module, "_LONG_TO_READ", 9)
    monkeypatch.setattr(read_module, "_MANY_HEADERS", 0)
    read_annotations(tmp_path)
    said = f"reading {len(text)} bytes of annotations\nreading 1 headers of pictures\n"
    assert capsys.readouterr().out == said
