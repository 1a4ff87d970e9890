"""What is odd but has a meaning: boxes left out and listed, files read as they are, and notes."""

import json
import re
from pathlib import Path

import pytest

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
from tests.cli.test_bad_input import CSV, words_of
from tests.runs import TINY


def with_good(bad):
    """Lay a bad box beside a good one, in CSV."""
    return A | {"b.csv": csv_of(ROW, f"a.png,{bad}")}


SKIPPED = {
    "not a number": (
        with_good("nan,2,3,4"),
        "b.csv:3: the box xmin=nan, ymin=2, xmax=3, ymax=4 in a.png",
        "is not finite",
    ),
    "not a number in JSON": (
        A | {"b.json": coco(("a.png", (64, 48), [("cell", (float("nan"), 1, 5, 5)), *CELLS]))},
        "b.json: annotation 0: the box x=nan, y=1, width=5, height=5 in a.png",
        "is not finite",
    ),
    "infinite": (
        with_good("1,2,inf,4"),
        "b.csv:3: the box xmin=1, ymin=2, xmax=inf, ymax=4 in a.png",
        "is not finite",
    ),
    "infinite in single precision": (
        with_good("1,2,1e300,4"),
        "b.csv:3: the box xmin=1, ymin=2, xmax=1e+300, ymax=4 in a.png",
        "is not finite",
    ),
    "a whole number beyond all bounds": (
        A | {"b.json": coco(("a.png", (64, 48), [("cell", (1, 1, 10**400, 5)), *CELLS]))},
        "b.json: annotation 0: the box x=1, y=1, width=inf, height=5 in a.png",
        "is not finite",
    ),
    "no width": (
        with_good("5,2,5,9"),
        "b.csv:3: the box xmin=5, ymin=2, xmax=5, ymax=9 in a.png",
        "has no positive width",
    ),
    "no height": (
        with_good("5,9,6,9"),
        "b.csv:3: the box xmin=5, ymin=9, xmax=6, ymax=9 in a.png",
        "has no positive height",
    ),
    "inverted": (
        with_good("9,9,2,2"),
        "b.csv:3: the box xmin=9, ymin=9, xmax=2, ymax=2 in a.png",
        "has no positive width and height",
    ),
    "a click: xmin = xmax where corners belong to the box": (
        {"a.xml": voc("a.png", (64, 48), ("cell", (5, 4, 5, 9)), ("cell", (5, 4, 6, 9)))} | A,
        "a.xml: object 1: the box xmin=5, ymin=4, xmax=5, ymax=9 in a.png",
        "has no positive width",
    ),
    "partly outside on the right": (
        with_good("1,2,65.5,9"),
        "b.csv:3: the box xmin=1, ymin=2, xmax=65.5, ymax=9 in a.png",
        "reaches 1.5 px outside the 64 x 48 picture",
    ),
    "partly outside on the left": (
        with_good("-1.25,2,5,9"),
        "b.csv:3: the box xmin=-1.25, ymin=2, xmax=5, ymax=9 in a.png",
        "reaches 1.25 px outside the 64 x 48 picture",
    ),
    "wholly outside": (
        with_good("100,100,120,120"),
        "b.csv:3: the box xmin=100, ymin=100, xmax=120, ymax=120 in a.png",
        "reaches 72 px outside the 64 x 48 picture",
    ),
    "a YOLO centre above 1": (
        A | {"a.txt": "0 .5 .5 .1 .1\n0 1.5 .5 .25 .1"},
        "a.txt:2: the box cx=1.5, cy=0.5, w=0.25, h=0.1 in a.png",
        "reaches 40 px outside the 64 x 48 picture",
    ),
    "a crowd": (
        A | {"b.json": changed("annotations", iscrowd=1)},
        "b.json: annotation 0: the box x=1, y=1, width=5, height=5 in a.png",
        "is a crowd (iscrowd=1), not one object",
    ),
}


@pytest.mark.parametrize(("files", "box", "fault"), SKIPPED.values(), ids=SKIPPED)
def test_a_bad_box_is_left_out_and_listed_or_refused(tmp_path, files, box, fault):
    write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert table.skipped == (f"{box} {fault}; left out",)
    assert table.skipped_index == (0,)
    with pytest.raises(BadInput) as refusal:
        read_annotations(tmp_path, on_bad="error")
    remedy = "correct it, or leave such boxes out with on_bad='skip'"
    assert str(refusal.value) == f"{box} {fault}; {remedy}"


BOM = b"\xef\xbb\xbf"
BOX = [1.0, 1.0, 20.0, 20.0]
CELL = [1.0, 1.0, 6.0, 6.0]
HALF = [16.0, 12.0, 48.0, 36.0]
READ = {
    "a box smaller than a pixel": (
        A | {"b.csv": csv_of("a.png,1.25,1.25,1.5,1.75")},
        {},
        [[1.25, 1.25, 1.5, 1.75]],
    ),
    "a box that reaches a pixel outside": (
        A | {"b.csv": csv_of("a.png,-1,-0.5,65,49")},
        {},
        [[-1.0, -0.5, 65.0, 49.0]],
    ),
    **{
        f"CSV from Windows, delimited by {name}": (
            A
            | {
                "b.csv": BOM
                + csv_of('"a.png", 1 ,1,2e1,20', "", " ")
                .replace(",", sign)
                .replace("\n", "\r\n")
                .encode()
            },
            {},
            [BOX],
        )
        for name, sign in (("comma", ","), ("semicolon", ";"), ("tab", "\t"))
    },
    "YOLO from Windows": (
        A | {"a.txt": BOM + b"0 .5 .5 .5 .5\r\n\r\n", "data.yaml": BOM + b"names:\r\n- cell\r\n"},
        {},
        [HALF],
    ),
    "COCO from Windows": (
        A | {"b.json": BOM + json.dumps(DOCUMENT, indent=1).replace("\n", "\r\n").encode()},
        {},
        [CELL],
    ),
    "VOC from Windows": (
        A | {"a.xml": BOM + XML.replace("<object>", "\r\n<object>").encode()},
        {},
        [[0.0, 0.0, 9.0, 9.0]],
    ),
    "a split file from Windows": (
        A | {"b.csv": csv_of(ROW), "s.txt": BOM + b"a\r\n"},
        {"split_file": "s.txt"},
        [BOX],
    ),
    "a comma in a quoted name": (
        {"a, b.png": (64, 48), "b.csv": csv_of('"a, b.png",1,1,20,20')},
        {},
        [BOX],
    ),
    "a formula for a label: it is but a text": (
        A | {"b.csv": csv_of(ROW + ",=1+1", header="image,x1,y1,x2,y2,label")},
        {},
        [BOX],
    ),
    "spaces and letters of any script": (
        {"Zellen 細胞/Ä b.png": (64, 48), "b.csv": csv_of("Zellen 細胞/Ä b.png,1,1,20,20")},
        {},
        [BOX],
    ),
    "suffixes in capitals": (
        {"images/a.PNG": (64, 48), "labels/a.TXT": "0 .5 .5 .5 .5"},
        {},
        [HALF],
    ),
    "links within the root": (
        {"store/a.png": (64, 48), "a.png": Path("store/a.png"), "b.csv": csv_of(ROW)}
        | {"again": Path("store"), "up": Path()},
        {},
        [BOX],
    ),
    "links out of the root, with leave": (
        {"far/a.xml": XML, "a.png": (64, 48), "in/Annotations": Path("../far")}
        | {"in/images/a.png": Path("../../a.png"), "far/back": Path("../far")},
        {"root": "in", "allow_outside": True},
        [[0.0, 0.0, 9.0, 9.0]],
    ),
    "pictures out of the root, with leave": (
        {"far/a.png": (64, 48), "in/b.csv": csv_of(ROW)},
        {"root": "in", "images": "../far", "allow_outside": True},
        [BOX],
    ),
    "VOC without size": (
        A | {"a.xml": XML.replace("size>", "sighs>")},
        {},
        [[0.0, 0.0, 9.0, 9.0]],
    ),
    "COCO without size": (A | {"b.json": changed("images", width=None)}, {}, [CELL]),
    "VOC counted from 0": (A | {"a.xml": XML}, {"voc_base": 0}, [[1.0, 1.0, 10.0, 10.0]]),
    "results with their pictures": (
        A | {"b.json": DOCUMENT, "r.json": RESULTS},
        {"annotations": ["b.json", "r.json"]},
        [CELL],
    ),
    "YAML's other values for class names": (
        A | {"a.txt": "3 .5 .5 .5 .5", "data.yaml": "names: [no, 2001-99-99, !!int x, 1.0]"},
        {},
        [HALF],
    ),
    "another class map than a list": (
        A | {"a.txt": "7 .5 .5 .5 .5", "data.yaml": "names: {7: cell}"},
        {},
        [HALF],
    ),
}


@pytest.mark.parametrize(("files", "arguments", "boxes"), READ.values(), ids=READ)
def test_unusual_input_is_read_as_it_is_meant(tmp_path, files, arguments, boxes):
    write(tmp_path, files)
    table = read_annotations(**{**arguments, "root": tmp_path / arguments.get("root", "")})
    assert table.boxes.tolist() == boxes
    assert table.skipped == ()


NOTED = {
    "identical boxes": (
        A | {"b.csv": csv_of(ROW, "a.png,2,2,20,20", ROW, ROW)},
        4,
        "boxes that are there twice are used twice: b.csv:4, b.csv:5",
    ),
    "a corner at 0 where pixels count from 1": (
        A | {"a.xml": voc("a.png", (64, 48), ("cell", (0, 1, 9, 9)))},
        1,
        "a corner is 0 at a.xml: object 1: set voc_base=0 if pixels are counted from 0",
    ),
}


@pytest.mark.parametrize(("files", "num_boxes", "words"), NOTED.values(), ids=NOTED)
def test_the_note_tells_what_may_not_be_meant(tmp_path, files, num_boxes, words):
    write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert len(table.boxes) == num_boxes
    assert table.note.endswith(f"; {words}")


def test_a_fit_lists_its_bad_boxes_and_draws_batches_larger_than_the_set(
    tmp_path, monkeypatch, capsys
):
    bad = ["3.png,5,5,5,9", "8.png,1,1,99,20"]
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS, *bad, "4.png,3.2,3.2,3.4,3.5", ROWS[5])})
    monkeypatch.chdir(tmp_path)
    assert main([*words_of(f"{CSV} --name=run", tmp_path), *TINY]) == 0
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
