import csv
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bbox.annotations.formats.known import known_formats
from lightning_bbox.annotations.formats.yolo import YOLO
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.write import write_boxes
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


@pytest.mark.parametrize("drafts", DRAFTS.values(), ids=DRAFTS)
@given(data=st.data())
@settings(max_examples=200)
def test_only_the_numbers_of_moved_boxes_change(drafts, data):
    draft = data.draw(drafts)
    moved = {box: data.draw(good_boxes) for box in draft.boxes if data.draw(st.booleans())}
    moved = {box: new for box, new in moved.items() if is_good(box)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, draft.files())
        table = read_annotations(root, **draft.options)
        assert len(table.boxes) == sum(map(is_good, draft.boxes))
        assert len(table.skipped) == len(draft.boxes) - len(table.boxes)
        new = [moved.get(tuple(box), box) for box in table.boxes.tolist()]
        written = write_boxes(table, torch.tensor(new).reshape(-1, 4), root / "out")
        assert written == [root / "out" / file for file in table.files]
        for path in written:
            expected = draft.content(moved) if path.name == draft.file else None
            assert path.read_bytes() == (expected or (root / path.name).read_bytes())


FORMATS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo, "csv": write_csv}


@pytest.mark.parametrize("writer", FORMATS.values(), ids=FORMATS)
@given(data=st.data())
@settings(max_examples=60)
def test_moved_boxes_read_back_within_a_thousandth_of_a_pixel(writer, data):
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "in", Path(folder) / "out"
        writer(root)
        writer(out)
        table = read_annotations(root)
        new = []
        for index, box in zip(table.image_index.tolist(), table.boxes.tolist(), strict=True):
            height, width = table.sizes[index].tolist()
            sides = [data.draw(st.floats(1.01, side / 2)) for side in (width, height)]
            x, y = (data.draw(st.floats(-0.9, side / 2)) for side in (width, height))
            moved = [x, y, x + sides[0], y + sides[1]]
            new.append(moved if data.draw(st.integers(0, 3)) else box)
        write_boxes(table, torch.tensor(new), out)
        found = read_annotations(out)
        torch.testing.assert_close(found.boxes, torch.tensor(new), rtol=0, atol=0.001)
        for name in ("images", "ids", "classes", "skipped", "entries", "splits", "groups"):
            assert getattr(found, name) == getattr(table, name)
        for name in ("labels", "sizes", "image_index"):
            assert getattr(found, name).equal(getattr(table, name))


@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4), st.integers(1, 20_000), st.integers(1, 20_000))
def test_numbers_and_edges_are_inverses(four, height, width):
    given_, sizes = torch.tensor([four], dtype=torch.float64), torch.tensor([[height, width]])
    for kind in {*known_formats(), *known_formats(voc_base=0)}:
        convention = kind.convention
        back = convention.numbers(convention.edges(given_, sizes), sizes)
        torch.testing.assert_close(back, given_, rtol=0, atol=1e-7)
        there = convention.edges(convention.numbers(given_, sizes), sizes)
        torch.testing.assert_close(there, given_, rtol=0, atol=1e-7)


def shape_of_xml(content):
    """Return an XML document as nested tuples, the numbers of objects' boxes being apart."""
    builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
    root = ElementTree.fromstring(content, ElementTree.XMLParser(target=builder))
    corners = [
        node.find(f"bndbox/{name}")
        for node in root.findall("object")
        for name in ("xmin", "ymin", "xmax", "ymax")
    ]
    numbers = [float(node.text) for node in corners]
    for node in corners:
        node.text = None
    return shape_of_node(root), numbers


def shape_of_node(node):
    children = [shape_of_node(child) for child in node]
    return node.tag, sorted(node.attrib.items()), node.text, node.tail, children


def shape_of_coco(content):
    document = json.loads(content, object_pairs_hook=list)  # keeps order and twice named keys
    numbers = []
    for entry in dict(document)["annotations"]:
        at = [key for key, _ in entry].index("bbox")
        numbers += entry[at][1]
        entry[at] = "bbox"
    return document, numbers


def shape_of_yolo(content):
    words = [line.split(" ") for line in content.decode().split("\n")]
    numbers = [float(word) for line in words for word in line[1:5]]
    return [line[:1] + line[5:] for line in words], numbers


def shape_of_csv(content):
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    columns = [rows[0].index(name) for name in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [float(row[column]) for row in rows[1:] for column in columns]
    return [[c for n, c in enumerate(row) if n not in columns] for row in rows], numbers


DATA = Path(os.environ.get("LIGHTNING_BBOX_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real data is absent: name its folder in LIGHTNING_BBOX_DATA"
)
REAL = {
    "bccd": (shape_of_xml, [1, 2, 1, 2]),
    "rbc": (shape_of_coco, [1, 2, 0, 0]),
    "deeppcb": (shape_of_csv, [1, 2, 1, 2]),
}


@needs_data
@pytest.mark.parametrize(("name", "shape", "shift"), [(k, *v) for k, v in REAL.items()])
def test_real_files_keep_all_but_the_numbers(tmp_path, name, shape, shift):
    table = read_annotations(DATA / name)
    for path in write_boxes(table, table.boxes, tmp_path / "same"):
        original = DATA / name / path.relative_to(tmp_path / "same")
        assert path.read_bytes() == original.read_bytes()
    boxes = table.boxes + torch.tensor([1.0, 2, 1, 2])
    written = write_boxes(table, boxes, tmp_path / "moved")
    assert len(written) == len(table.files)
    changed = 0
    for path in written:
        original = DATA / name / path.relative_to(tmp_path / "moved")
        (old, before), (new, after) = shape(original.read_bytes()), shape(path.read_bytes())
        assert old == new
        moves = torch.tensor(after).reshape(-1, 4) - torch.tensor(before).reshape(-1, 4)
        stays = (moves == 0).all(dim=1)
        assert ((moves - torch.tensor(shift)).abs().amax(dim=1) < 0.001)[~stays].all()
        changed += int((~stays).sum())
    assert changed == len(table.boxes)  # those left out stay


@needs_data
def test_real_boxes_as_yolo_keep_all_but_the_numbers(tmp_path):
    table = read_annotations(DATA / "rbc").pictures(range(8))
    for at, name in enumerate(table.images):
        boxes = table.boxes[table.image_index == at].double()
        numbers = YOLO.convention.numbers(boxes, table.sizes[at].expand(len(boxes), 2))
        texts = ["0 {} {} {} {} 0.5".format(*four) for four in numbers.tolist()]
        write(tmp_path, {f"{Path(name).stem}.txt": "\n".join(texts)})
        shutil.copy(DATA / "rbc" / name, tmp_path)
    read = read_annotations(tmp_path)
    moves = []
    for path in write_boxes(read, read.boxes + 1, tmp_path / "moved"):
        old, before = shape_of_yolo((tmp_path / path.name).read_bytes())
        new, after = shape_of_yolo(path.read_bytes())
        assert old == new
        moves += (torch.tensor(after) - torch.tensor(before)).reshape(-1, 4)
    expected = torch.tensor([1.0, 1, 0, 0]).expand(len(read.boxes), 4)
    torch.testing.assert_close(torch.stack(moves) * 416, expected, rtol=0, atol=1e-3)


ONE = {"a.png": (64, 48)}


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
    "foreign_space": ("a.xml", XML.replace("<ymin>2<", "<ymin>\u00a02<", 1)),
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
