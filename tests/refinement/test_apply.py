"""What a person decided becomes annotation files: these boxes, and no other byte."""

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from lightning_bbox.core.files import OWN
from lightning_bbox.data.options import Reading
from lightning_bbox.refinement.reviewing.decisions import Decision, decided_boxes, read_decisions
from lightning_bbox.refinement.reviewing.review_page import seen
from tests import annotation_files
from tests.reviews import decisions_of, held_by, reviewed
from tests.runs import files_of

SCENE = {
    "a": (80, 64, [("cell", (5.0, 6.0, 30.5, 30.25)), ("plate", (10.0, 20.0, 70.0, 60.0))]),
    "b": (50, 60, [("cell", (11.0, 12.0, 33.0, 44.0)), ("plate", (1.0, 2.0, 14.0, 15.0))]),
}


@pytest.fixture
def write_set(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_files, "SCENE", SCENE)

    def written(name, folder="data"):
        getattr(annotation_files, f"write_{name}")(tmp_path / folder)
        return tmp_path / folder

    return written


def save(tmp_path, decisions):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(decisions))
    return path


def apply(path, *options):
    return main(["apply", str(path), f"--runs={path.parent}", "--name=out", *options])


def without_numbers(content):
    return re.sub(rb"-?\d+(\.\d+)?", b"#", content)


DRAWN = {2: [9.0, 10.5, 31.0, 40.0]}
DECIDED = {0: "accept", 1: "reject", 2: "edit"}


@pytest.mark.parametrize("name", ["voc", "coco", "yolo", "csv"])
def test_the_files_hold_what_was_decided_and_no_other_byte_differs(
    name, write_set, tmp_path, capsys
):
    root = write_set(name)
    before = files_of(root)
    page = reviewed(root, tmp_path / "page")
    decisions = decisions_of(page, DECIDED, DRAWN)
    assert apply(save(tmp_path, decisions)) == 0
    said = capsys.readouterr().out
    assert "of 4 boxes reviewed 1 accepted, 1 rejected, 1 edited, 1 undecided" in said
    assert files_of(root) == before
    written = files_of(tmp_path / "out" / "refined")
    assert set(written) <= set(before)
    for file, content in written.items():
        assert without_numbers(content) == without_numbers(before[file])
    shutil.copytree(tmp_path / "out" / "refined", root, dirs_exist_ok=True)
    table = read_annotations(root)
    found = dict(zip(table.ids, table.boxes, strict=True))
    offered = {box["id"]: box for box in decisions["boxes"]}
    rows = csv.DictReader(io.StringIO((tmp_path / "out" / "applied.csv").read_text()))
    told = {row["id"]: row for row in rows}
    assert found.keys() == offered.keys() == told.keys()
    for at, (place, box) in enumerate(offered.items()):
        expected = {0: box["new"], 2: DRAWN[2]}.get(at, box["old"])
        torch.testing.assert_close(found[place], torch.tensor(expected), rtol=0, atol=1e-3)
        corners = [float(told[place][f"new_{side}"]) for side in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == pytest.approx(expected, abs=1e-3)


def test_undecided_boxes_are_accepted_where_that_is_asked(write_set, tmp_path):
    root = write_set("csv")
    page = reviewed(root, tmp_path / "page")
    assert apply(save(tmp_path, decisions_of(page, {1: "reject"})), "--undecided=accept") == 0
    shutil.copy(tmp_path / "out" / "refined" / "boxes.csv", root)
    found = read_annotations(root).boxes
    for at, box in enumerate(held_by(page)["boxes"]):
        expected = torch.tensor(box["old" if at == 1 else "new"])
        torch.testing.assert_close(found[at], expected, rtol=0, atol=1e-3)


def test_nothing_decided_leaves_every_byte(write_set, tmp_path):
    root = write_set("coco")
    page = reviewed(root, tmp_path / "page")
    assert apply(save(tmp_path, decisions_of(page, {}))) == 0
    written = files_of(tmp_path / "out" / "refined")
    assert written == {name: files_of(root)[name] for name in written}


def test_whole_numbers_stay_whole_and_it_is_told_what_rounds_back(tmp_path, capsys):
    root = tmp_path / "data"
    annotation_files.write(
        root,
        annotation_files.A
        | {"boxes.csv": annotation_files.csv_of("a.png,1,1,20,20", "a.png,5,5,30,30")},
    )
    page = reviewed(root, tmp_path / "page")
    assert {box["digits"] for box in held_by(page)["boxes"]} == {0}
    drawn = {0: [1.2, 1.0, 20.0, 20.0], 1: [5.0, 5.6, 30.0, 30.0]}
    decisions = decisions_of(page, {0: "edit", 1: "edit"}, drawn)
    assert apply(save(tmp_path, decisions)) == 0
    said = capsys.readouterr().out
    assert "1 of 2 change" in said
    assert "1 stay, as they round to where they were: boxes.csv:2" in said
    assert "a.png,5,6,30,30" in (tmp_path / "out" / "refined" / "boxes.csv").read_text()


def test_decimals_are_those_of_the_page_unless_others_are_asked_for(tmp_path):
    root = tmp_path / "data"
    rows = annotation_files.csv_of("a.png,1,1,20,20")
    annotation_files.write(root, annotation_files.A | {"boxes.csv": rows})
    page = reviewed(root, tmp_path / "page", decimals=1)
    assert held_by(page)["boxes"][0]["digits"] == 1
    path = save(tmp_path, decisions_of(page, {0: "edit"}, {0: [2.5, 3.25, 21.5, 22.0]}))
    assert apply(path) == 0
    assert "a.png,2.5,3.2,21.5,22" in (tmp_path / "out/refined/boxes.csv").read_text()
    assert apply(path, "--name=other", "--decimals=2") == 0
    assert "a.png,2.5,3.25,21.5,22" in (tmp_path / "other/refined/boxes.csv").read_text()
    assert apply(path, "--name=third", "--decimals=9") == 2


def test_annotations_that_lie_elsewhere_now_are_named(write_set, tmp_path, capsys):
    root = write_set("csv")
    path = save(tmp_path, decisions_of(reviewed(root, tmp_path / "page"), DECIDED, DRAWN))
    root.rename(tmp_path / "moved")
    assert apply(path) == 2
    assert "is no folder" in capsys.readouterr().err
    assert apply(path, f"--data.root={tmp_path / 'moved'}") == 0


def test_options_of_reading_come_with_the_decisions(tmp_path):
    root = tmp_path / "data"
    files = {"odd.csv": "picture|l|t|r|b\na.png|1|1|20|20\n", "other.csv": "nothing"}
    annotation_files.write(root, annotation_files.A | files)
    columns = {"image": "picture", "xmin": "l", "ymin": "t", "xmax": "r", "ymax": "b"}
    reading = Reading(annotations="odd.csv", columns=columns, delimiter="|")
    page = reviewed(root, tmp_path / "page", reading=reading)
    assert apply(save(tmp_path, decisions_of(page, {0: "accept"}))) == 0
    assert "a.png|2|3|22|22\n" in (tmp_path / "out" / "refined" / "odd.csv").read_text()


def test_proposals_are_what_is_reviewed(write_set, tmp_path):
    root = write_set("csv")
    (root / "rough.csv").write_text("image,xmin,ymin,xmax,ymax,label\na.png,4,4,30,30,cell\n")
    page = reviewed(root, tmp_path / "page", proposals="rough.csv")
    assert apply(save(tmp_path, decisions_of(page, {0: "accept"}))) == 0
    assert "a.png,5,6,32,32,cell" in (tmp_path / "out" / "refined" / "rough.csv").read_text()


def test_a_folder_with_something_in_it_is_refused(write_set, tmp_path, capsys):
    path = save(
        tmp_path, decisions_of(reviewed(write_set("csv"), tmp_path / "page"), DECIDED, DRAWN)
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert apply(path) == 2
    assert "holds something already" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine.txt"]


def changed(decisions, at=0, **changes):
    decisions["boxes"][at].update(changes)


UNFIT = {
    "another box": (lambda d: changed(d, old=[1, 2, 3, 4]), "boxes.csv:2: was 1, 2, 3, 4 when it"),
    "no such id": (lambda d: changed(d, id="boxes.csv:99"), "boxes.csv:99: was reviewed, but"),
    "twice": (lambda d: d["boxes"].append(d["boxes"][0]), "boxes.csv:2: is decided on twice"),
    "outside": (
        lambda d: changed(d, decision="edit", box=[1, 1, 81, 9]),
        "boxes.csv:2: its new box 1, 1, 81, 9 has no area or isn't inside its picture of 80 x 64",
    ),
    "flat": (lambda d: changed(d, decision="edit", box=[9, 1, 9, 9]), "has no area"),
    "word": (
        lambda d: changed(d, decision="maybe"),
        "its decision 'maybe'; expected one of accept",
    ),
    "list": (lambda d: changed(d, decision=[1]), "its decision [1]"),
    "no box": (lambda d: changed(d, decision="edit", box=None), "box is None, not four numbers"),
    "nan": (lambda d: changed(d, decision="edit", box=[0, 0, 5, float("nan")]), "not four numbers"),
    "three": (lambda d: changed(d, new=[1, 2, 3]), "new is [1, 2, 3], not four numbers"),
    "version": (lambda d: d.update(version=2), "is of version 2, and 1 is known"),
    "other": (lambda d: d.update(lightning_bbox="x"), "holds no decisions"),
    "boxes": (lambda d: d.update(boxes={}), "lacks its root, reading or boxes"),
    "proposals": (lambda d: d.update(proposals=[3]), "proposals is [3], no list of files"),
    "decimals": (lambda d: d.update(decimals="1"), "decimals is '1', no number"),
    "nine decimals": (lambda d: d.update(decimals=9), "decimals is 9; expected auto, or 0 to 6"),
    "option": (lambda d: d["reading"].update(tea=1), "options of reading can't be meant"),
    "type": (lambda d: d["reading"].update(annotations=7), "options of reading can't be meant"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_decisions_that_do_not_fit_are_refused_in_a_sentence(name, write_set, tmp_path, capsys):
    decisions = decisions_of(reviewed(write_set("csv"), tmp_path / "page"), DECIDED, DRAWN)
    change, sentence = UNFIT[name]
    change(decisions)
    assert apply(save(tmp_path, decisions)) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b"{}", b"7"])
def test_a_file_that_holds_something_else_is_refused(content, tmp_path, capsys):
    path = tmp_path / "decisions.json"
    path.write_bytes(content)
    assert apply(path) == 2
    assert "save it from review.html again" in capsys.readouterr().err
    with pytest.raises(BadInput, match="can't be read"):
        read_decisions(tmp_path / "none.json")


def test_files_that_changed_after_the_review_are_refused(write_set, tmp_path, capsys):
    root = write_set("csv")
    path = save(tmp_path, decisions_of(reviewed(root, tmp_path / "page"), DECIDED, DRAWN))
    text = (root / "boxes.csv").read_text()
    (root / "boxes.csv").write_text(text.replace("30.5", "31.5"))
    assert apply(path) == 2
    assert "boxes.csv:2: was 5, 6, 30.5, 30.25 when it was reviewed, and is 5, 6, 31.5" in (
        capsys.readouterr().err
    )


def test_boxes_of_one_name_are_told_apart_by_where_they_were(write_set):
    table = read_annotations(write_set("csv"))
    table = replace(table, ids=("here",) * 4, boxes=table.boxes[[0, 1, 0, 3]])
    old = [*map(torch.Tensor.tolist, table.boxes)]
    decided = [Decision("here", old[at], [1, 1, 9, 9], "accept", None) for at in (3, 0, 0)]
    boxes, rows = decided_boxes(table, decided)
    assert rows == [3, 0, 2]
    expected = [[1, 1, 9, 9], old[1], [1, 1, 9, 9], [1, 1, 9, 9]]
    assert torch.equal(boxes, torch.tensor(expected))
    with pytest.raises(BadInput, match="here: is decided on twice"):
        decided_boxes(table, [*decided, decided[1]])


def test_the_page_has_its_first_boxes_and_says_how_many_are_left(write_set, tmp_path):
    page = reviewed(write_set("csv"), tmp_path / "page", most=3)
    held = held_by(page)
    assert (len(held["boxes"]), len(held["pictures"]), held["left"]) == (3, 3, 1)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", page.read_text())


def test_a_view_shows_what_the_picture_has_there():
    """Against the pixels one by one, where a pixel of the view is one of the picture."""
    random = np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)
    shown = np.asarray(seen(random, [-10.0, 20.0, 110.0, 140.0]))
    assert shown.shape == (120, 120, 3)
    assert (shown[:, :10] == 128).all()
    assert (shown[:, 10:] == random[20:140, :110]).all()


def test_a_page_holds_a_picture_of_each_box(tmp_path):
    root = tmp_path / "data"
    annotation_files.write(root, {"boxes.csv": annotation_files.csv_of("a.png,20,10,40,30")})
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[10:30, 20:40] = (200, 40, 40)
    Image.fromarray(pixels).save(root / "a.png")
    held = held_by(reviewed(root, tmp_path / "page"))
    picture = Image.open(io.BytesIO(base64.b64decode(held["pictures"][0])))
    left, top, right, _ = held["views"][0]
    scale = picture.width / (right - left)
    inside, outside = (
        picture.getpixel((round((x - left) * scale), round((y - top) * scale)))
        for x, y in ((30, 20), (17, 8))
    )
    assert np.abs(np.subtract(inside, (200, 40, 40))).max() < 12
    assert max(outside) < 12


def test_text_of_the_files_stays_text_on_the_page(tmp_path):
    root = tmp_path / "data"
    header = "image,xmin,ymin,xmax,ymax,label"
    row = 'a.png,1,1,20,20,"</script><!--<script>alert(1)"'
    annotation_files.write(root, annotation_files.A | {"boxes.csv": f"{header}\n{row}"})
    page = reviewed(root, tmp_path / "<b>page")
    assert held_by(page)["boxes"][0]["label"] == "</script><!--<script>alert(1)"
    assert page.read_text().count("<script") == 2


def test_the_runs_lock_is_all_that_is_left_beside(write_set, tmp_path):
    path = save(
        tmp_path, decisions_of(reviewed(write_set("csv"), tmp_path / "page"), DECIDED, DRAWN)
    )
    assert apply(path) == 0
    assert set(files_of(tmp_path / "out")) == {OWN, "applied.csv", "refined/boxes.csv"}
