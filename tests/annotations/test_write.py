import json
import pickle
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_bbox.annotations.formats.yolo import YOLO
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.write import as_written, write_boxes, written_or_flat
from lightning_bbox.core.errors import BadInput
from tests.annotation_drafts import DRAFTS, good_boxes, is_good
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


@pytest.mark.parametrize("examples", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("drafts", DRAFTS.values(), ids=DRAFTS)
def test_only_the_numbers_of_moved_boxes_change(drafts, examples):
    @given(drafts, st.data())
    @settings(max_examples=examples)
    def check(draft, data):
        moved = {box: data.draw(good_boxes) for box in draft.boxes if data.draw(st.booleans())}
        moved = {box: new for box, new in moved.items() if is_good(box)}
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write(root, draft.files())
            try:
                table = read_annotations(root, **draft.options)
            except BadInput as refusal:  # chance may draw what reads like another order of numbers
                assume("all of them do as" not in str(refusal))
                raise
            assert len(table.boxes) == sum(map(is_good, draft.boxes))
            assert len(table.skipped) == len(draft.boxes) - len(table.boxes)
            new = [moved.get(tuple(box), box) for box in table.boxes.tolist()]
            written = write_boxes(table, torch.tensor(new).reshape(-1, 4), root / "out", 3)
            assert written == [root / "out" / file for file in table.files]
            for path in written:
                expected = draft.content(moved) if path.name == draft.file else None
                assert path.read_bytes() == (expected or (root / path.name).read_bytes())

    check()


FORMATS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo, "csv": write_csv}


@pytest.mark.parametrize("writer", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_moved_boxes_read_back_within_a_thousandth_of_a_pixel(tmp_path, writer, seed):
    for folder in ("in", "out"):
        writer(tmp_path / folder)
    table = read_annotations(tmp_path / "in")
    draw = torch.Generator().manual_seed(seed)
    limits = table.sizes[table.image_index].flip(-1)
    corners, sides = (torch.rand(*limits.shape, generator=draw) * limits / 2 for _ in "xy")
    new = torch.cat([corners - 0.9, corners + sides + 0.2], dim=1)  # up to a pixel outside
    new[seed % len(new)] = table.boxes[seed % len(new)]
    write_boxes(table, new, tmp_path / "out")
    found = read_annotations(tmp_path / "out")
    torch.testing.assert_close(found.boxes, new, rtol=0, atol=0.001)
    for name in ("images", "ids", "classes", "skipped", "entries", "splits", "groups"):
        assert getattr(found, name) == getattr(table, name)
    for name in ("labels", "sizes", "image_index"):
        assert getattr(found, name).equal(getattr(table, name))


def numbers_apart(content):
    """Part a file's bytes into what lies between numbers, and the numbers."""
    pieces = re.split(rb"(-?\d+(?:\.\d+)?(?:e-?\d+)?)", content)
    return pieces[::2], [float(piece) for piece in pieces[1::2]]


def moves_of(before, after):
    """Return by how much numbers changed that did; all else in two files must be the same."""
    (old, numbers), (new, moved) = numbers_apart(before), numbers_apart(after)
    assert old == new
    return [there - here for here, there in zip(numbers, moved, strict=True) if there != here]


REAL = {"bccd": [1, 2, 1, 2], "rbc": [1, 2], "deeppcb": [1, 2, 1, 2]}


@pytest.mark.parametrize(("name", "shift"), REAL.items())
def test_real_files_keep_all_but_the_numbers(tmp_path, real_data, name, shift):
    table = read_annotations(real_data / name)
    same = write_boxes(table, table.boxes, tmp_path / "same")
    moved = write_boxes(table, table.boxes + torch.tensor([1.0, 2, 1, 2]), tmp_path / "moved")
    moves = []
    for file, copy, path in zip(table.files, same, moved, strict=True):
        original = (real_data / name / file).read_bytes()
        assert copy.read_bytes() == original
        moves += moves_of(original, path.read_bytes())
    expected = torch.tensor(shift).repeat(len(table.boxes)).float()  # those left out stay
    torch.testing.assert_close(torch.tensor(moves), expected, rtol=0, atol=0.001)


def test_real_boxes_as_yolo_keep_all_but_the_numbers(tmp_path, real_data):
    table = read_annotations(real_data / "rbc").pictures(range(8))
    for at, name in enumerate(table.images):
        boxes = table.boxes[table.image_index == at].double()
        numbers = YOLO.convention.numbers(boxes, table.sizes[at].expand(len(boxes), 2))
        texts = ["0 {} {} {} {} 0.5".format(*four) for four in numbers.tolist()]
        write(tmp_path, {f"{Path(name).stem}.txt": "\n".join(texts)})
        shutil.copy(real_data / "rbc" / name, tmp_path)
    read = read_annotations(tmp_path)
    moves = []
    for path in write_boxes(read, read.boxes + 1, tmp_path / "moved"):
        old, before = numbers_apart((tmp_path / path.name).read_bytes())
        new, after = numbers_apart(path.read_bytes())
        assert old == new
        moves += (torch.tensor(after) - torch.tensor(before)).reshape(-1, 6)
    expected = torch.tensor([0.0, 1, 1, 0, 0, 0]).expand(len(read.boxes), 6)
    torch.testing.assert_close(torch.stack(moves) * 416, expected, rtol=0, atol=1e-3)


ONE = {"a.png": (64, 48)}


def test_files_of_whole_numbers_get_whole_numbers(tmp_path):
    lines = csv_of("a.png,1,1,20,20", "a.png,4, 5,+9,9", "a.png,7,7,8,9")
    write(tmp_path, ONE | {"b.csv": lines})
    table = read_annotations(tmp_path)
    moved = table.boxes + torch.tensor(
        [[1.4, 1.6, 0.7, -3.2], [0.4, -0.3, 0.2, 0.1], [0.4, 0, -0.4, 0]]
    )
    (path,) = write_boxes(table, moved, tmp_path / "out")
    assert path.read_text() == lines.replace("1,1,20,20", "2,3,21,17")
    expected = torch.tensor([[2.0, 3, 21, 17], [4, 5, 9, 9], [7, 7, 8, 9]])
    assert torch.equal(as_written(table, moved), expected)
    (path,) = write_boxes(table, moved, tmp_path / "fine", decimals=1)
    assert path.read_text().split("\n")[1:] == [
        "a.png,2.4,2.6,20.7,16.8",
        "a.png,4.4, 4.7,9.2,9.1",
        "a.png,7.4,7,7.6,9",
    ]
    nothing = torch.tensor([[0.0, 0, 0, 0], [0, 0, -4.7, 0], [0, 0, 0, 0]])
    written, flat = written_or_flat(table, table.boxes + nothing)
    assert torch.equal(written, table.boxes)
    assert flat.tolist() == [False, True, False]
    with pytest.raises(BadInput, match="decimals is 9; expected auto, or 0 to 6"):
        write_boxes(table, moved, tmp_path / "out", decimals=9)


def test_one_number_with_a_point_makes_a_file_take_others(tmp_path):
    """10.0 is a number of a tool that writes such."""
    rows = [
        voc(f"{name}.png", (64, 48), ("cell", box))
        for name, box in (("a", (5, 5, 9, 9)), ("b", (5, 5, "9.0", 9)))
    ]
    write(tmp_path, ONE | {"b.png": (64, 48), "a.xml": rows[0], "b.xml": rows[1]})
    table = read_annotations(tmp_path)
    for path in write_boxes(table, table.boxes + 0.25, tmp_path / "out"):
        assert "<xmin>5.25</xmin>" in path.read_text()
    write(tmp_path / "other", ONE | {"a.xml": rows[0]})
    table = read_annotations(tmp_path / "other")
    (path,) = write_boxes(table, table.boxes + 0.75, tmp_path / "other/out")
    assert "<xmin>6</xmin>" in path.read_text()


def test_what_follows_from_a_coco_box_moves_along_and_a_polygon_stays(tmp_path):
    rectangle, polygon = [10, 10, 30, 10, 30, 30, 10, 30], [10, 10, 30, 10, 30, 30]
    entries = [
        {"bbox": [10, 10, 20, 20], "area": 400, "segmentation": [rectangle]},
        {"bbox": [10, 10, 20, 20], "area": 200.0, "segmentation": [polygon]},
        {"bbox": [9.5, 10.5, 20, 20], "area": 400.0, "segmentation": [[*rectangle, 10, 10]]},
        {"bbox": [5, 5, 2, 2], "area": 4.0, "segmentation": {"counts": [1], "size": [48, 64]}},
    ]
    document = coco(("a.png", (64, 48), [("cell", entry["bbox"]) for entry in entries]))
    pairs = zip(document["annotations"], entries, strict=True)
    document["annotations"] = [annotation | entry for annotation, entry in pairs]
    write(tmp_path, ONE | {"b.json": document})
    table = read_annotations(tmp_path)
    assert "; segmentations of 2 boxes are neither read nor moved" in table.note
    (path,) = write_boxes(table, table.boxes + torch.tensor([1.0, 2, 3, 4.5]), tmp_path / "out")
    found = json.loads(path.read_text())["annotations"]
    assert found[0]["bbox"] == [11, 12, 22, 22.5]
    assert found[0]["area"] == 22 * 22.5
    assert found[0]["segmentation"] == [[11, 12, 33, 12, 33, 34.5, 11, 34.5]]
    assert (found[1]["area"], found[1]["segmentation"]) == (200.0, [polygon])
    assert found[2]["bbox"] == [10.5, 12.5, 22, 22.5]
    assert found[2]["segmentation"] == [[10.5, 12.5, 32.5, 12.5, 32.5, 35, 10.5, 35, 10.5, 12.5]]
    assert found[3]["segmentation"] == entries[3]["segmentation"]
    for old, new in zip(document["annotations"], found, strict=True):
        moving = ("bbox", "area", "segmentation")
        assert {k: v for k, v in old.items() if k not in moving} == {
            k: v for k, v in new.items() if k not in moving
        }


def test_a_tables_part_moves_its_own_boxes_alone(tmp_path):
    rows = ["a.png,1,1,9,9,cell", "b.png,2,2,9,9,cell", "a.png,3,3,9,9,plate"]
    text = csv_of(*rows, header="image,xmin,ymin,xmax,ymax,label")
    write(tmp_path, ONE | {"b.png": (64, 48), "boxes.csv": text})
    table = read_annotations(tmp_path).pictures([1, 0]).of_classes(["cell"])
    (path,) = write_boxes(table, table.boxes + 4, tmp_path / "moved")
    assert path.read_text().split() == [
        "image,xmin,ymin,xmax,ymax,label",
        "a.png,5,5,13,13,cell",
        "b.png,6,6,13,13,cell",
        "a.png,3,3,9,9,plate",
    ]


def test_files_are_laid_out_as_below_the_root(tmp_path):
    write(tmp_path / "in", {f"{split}/{split}.png": (64, 48) for split in ("train", "val")})
    for split in ("train", "val"):
        document = coco((f"{split}.png", (64, 48), [("cell", (1, 1, 5, 5))]))
        write(tmp_path, {f"in/{split}/boxes.json": document})
    table = read_annotations(tmp_path / "in")
    written = write_boxes(table, table.boxes, tmp_path / "out")
    assert written == [tmp_path / "out" / split / "boxes.json" for split in ("train", "val")]
    options = {"annotations": "../val/boxes.json", "images": "../val", "allow_outside": True}
    table = read_annotations(tmp_path / "in/train", **options)
    (path,) = write_boxes(table, table.boxes + 1, tmp_path / "out")
    assert path == tmp_path / "out/outside/val/boxes.json"
    assert json.loads(path.read_text())["annotations"][0]["bbox"] == [2, 2, 5, 5]


def test_files_may_be_written_over_themselves(tmp_path):
    write(tmp_path, ONE | {"b.csv": csv_of("a.png,1,1,9,9")})
    table = read_annotations(tmp_path)
    write_boxes(table, table.boxes + 1, tmp_path)
    assert read_annotations(tmp_path).boxes.tolist() == [[2.0, 2.0, 10.0, 10.0]]


def test_a_number_just_below_zero_is_written_as_zero(tmp_path):
    write(tmp_path, ONE | {"b.csv": csv_of("a.png,1,1,9,9")})
    table = read_annotations(tmp_path)
    boxes = torch.tensor([[-1e-5, -0.0, 8.00049, 7.9996]])
    (path,) = write_boxes(table, boxes, tmp_path / "out")
    assert path.read_text().endswith("a.png,0,0,8,8")


XML = voc("a.png", (64, 48), ("cell", (2, 2, 9, 9)), ("cell", (12, 2, 19, 9)))
CANNOT_BE_EXCHANGED = {
    "character_reference": ("a.xml", XML.replace("<ymin>2<", "<ymin>&#50;<", 1)),
    "half_a_reference": ("a.xml", XML.replace("<xmax>9<", "<xmax>9&#46;5<", 1)),
    "round_a_comment": ("a.xml", XML.replace("<xmax>9<", "<xmax>9<!-- exactly -->.5<", 1)),
    "round_a_child": ("a.xml", XML.replace("<xmax>9<", "<xmax>9<unit/>px<", 1)),
    "after_a_quote": ("b.csv", csv_of('a.png,1,1,"9."0,9', "a.png,2,2,9,9")),
    "over_two_lines": ("b.csv", csv_of('a.png,1,1,"1\n9",9', "a.png,2,2,9,9")),
}


@pytest.mark.parametrize(("file", "text"), CANNOT_BE_EXCHANGED.values(), ids=CANNOT_BE_EXCHANGED)
def test_numbers_in_pieces_are_refused_unless_they_stay(tmp_path, file, text):
    write(tmp_path, ONE | {file: text})
    table = read_annotations(tmp_path)
    assert len(table.boxes) == 2
    with pytest.raises(BadInput, match=r"its numbers are not found where they were .*; read"):
        write_boxes(table, table.boxes + 1, tmp_path / "out")
    last = table.boxes + torch.tensor([[0.0], [1.0]])
    (path,) = write_boxes(table, last, tmp_path / "out")
    first = text[: text.rindex("<object>" if file == "a.xml" else "a.png")]
    assert path.read_text().startswith(first)
    write(tmp_path / "out", ONE)
    torch.testing.assert_close(read_annotations(tmp_path / "out").boxes, last)


def test_deep_nesting_beside_the_boxes_stays(tmp_path):
    nest = "<a>x" * 50_000 + "</a>" * 50_000
    write(tmp_path, ONE | {"a.xml": XML.replace("<object>", f"{nest}<object>", 1)})
    table = read_annotations(tmp_path)
    (path,) = write_boxes(table, table.boxes + 1, tmp_path / "out")
    moved = XML.replace(">2<", ">3<").replace(">9<", ">10<").replace(">12<", ">13<")
    expected = moved.replace(">19<", ">20<").replace("<object>", f"{nest}<object>", 1)
    assert path.read_text() == expected


CHANGED = {
    "shorter": (write_csv, lambda text: text[:60]),
    "empty": (write_csv, lambda _: ""),
    "other_numbers": (write_csv, lambda text: text.replace("20.5", "21.5")),
    "other_columns": (write_csv, lambda text: text.replace("x1;y1", "y1;x1")),
    "no_xml": (write_voc, lambda text: text[:-20]),
    "fewer_objects": (write_voc, lambda text: text.replace("object", "subject")),
    "no_json": (write_coco, lambda text: text[:-1].replace("]", "")),
    "no_annotations": (write_coco, lambda text: text.replace("annotations", "remarks")),
    "other_json": (write_coco, lambda _: "7"),
    "deep_json": (write_coco, lambda _: '{"a":' + "[" * 100_000),
    "fewer_lines": (write_yolo, lambda text: text.split("\n")[1]),
    "fewer_columns": (write_yolo, lambda text: text[:9]),
    "no_text": (write_yolo, lambda _: b"\xff\xff"),
}


@pytest.mark.parametrize(("writer", "change"), CHANGED.values(), ids=CHANGED)
def test_a_file_that_has_changed_is_refused(tmp_path, writer, change):
    writer(tmp_path)
    table = read_annotations(tmp_path)
    file = table.files[0]
    write(tmp_path, {file: change((tmp_path / file).read_text())})
    with pytest.raises(BadInput, match="read it again") as refusal:
        write_boxes(table, table.boxes + 1, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / file).exists()


def test_a_file_that_is_gone_is_refused(tmp_path):
    write_csv(tmp_path)
    table = read_annotations(tmp_path)
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(BadInput, match=r"boxes\.csv: can't be read"):
        write_boxes(table, table.boxes, tmp_path / "out")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_new_boxes_are_finite(tmp_path, number):
    write_csv(tmp_path)
    table = read_annotations(tmp_path)
    boxes = table.boxes.clone()
    boxes[1, 2] = number
    with pytest.raises(BadInput, match=r"boxes\.csv:3: its new box is not finite; leave it"):
        write_boxes(table, boxes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scene_without_boxes_is_copied(tmp_path):
    write_yolo(tmp_path)
    table = read_annotations(tmp_path).pictures([list(SCENE).index("empty")])
    written = write_boxes(table, table.boxes, tmp_path / "out")
    for path in written:
        assert path.read_bytes() == (tmp_path / "labels" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("write_set", "options"),
    [
        (write_voc, {}),
        (lambda root: write_voc(root, base=0), {"voc_base": 0}),
        (write_voc, {"voc_base": "edges"}),
        (write_coco, {}),
        (write_yolo, {}),
        (write_csv, {}),
    ],
    ids=["voc", "voc from 0", "voc edges", "coco", "yolo", "csv"],
)
def test_a_table_that_was_pickled_is_written_as_the_one_that_was_read(write_set, options, tmp_path):
    write_set(tmp_path)
    table = read_annotations(tmp_path, **options)
    again = pickle.loads(pickle.dumps(table))
    assert torch.equal(again.boxes, table.boxes)
    assert (again.ids, again.entries, again.note) == (table.ids, table.entries, table.note)
    moved = table.boxes + torch.tensor([0.25, 0.5, 0.25, 0.5])
    for first, second in zip(
        write_boxes(table, moved, tmp_path / "a"),
        write_boxes(again, moved, tmp_path / "b"),
        strict=True,
    ):
        assert first.read_bytes() == second.read_bytes()
    assert len(table.boxes) > 1


def test_whole_numbers_of_centres_are_rounded_as_the_file_has_them(tmp_path):
    """A box of odd width about a whole centre ends between two pixels."""
    lines = "image,x_center,y_center,width,height,label\n"
    rows = ["a.png,30,20,15,15,cell", "a.png,31,20,15,17,cell"]
    write(tmp_path, ONE | {"boxes.csv": lines + "\n".join(rows) + "\n"})
    table = read_annotations(tmp_path)
    assert torch.equal(as_written(table, table.boxes + 0.1), table.boxes)
    (path,) = write_boxes(table, table.boxes + 0.1, tmp_path / "out")
    assert path.read_bytes() == (tmp_path / "boxes.csv").read_bytes()
    moved = table.boxes + torch.tensor([0.8, 0.0, 1.6, 0.0])
    (path,) = write_boxes(table, moved, tmp_path / "out")
    again = lines + "a.png,31,20,16,15,cell\na.png,32,20,16,17,cell\n"
    assert path.read_text() == again
    write(tmp_path / "again", ONE | {"boxes.csv": again})
    assert torch.equal(as_written(table, moved), read_annotations(tmp_path / "again").boxes)
