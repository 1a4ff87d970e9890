"""The formats of many tools: each is read, and written so that only the moved boxes differ.

What was written is read again by plain code of this file, which knows nothing of the package.
"""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest
import torch

from lightning_bbox.annotations.formats.coco import is_results
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.core.errors import BadInput
from tests.annotation_files import coco, csv_of, pattern_of, voc, write

A = {"a.png": (64, 48)}
AB = A | {"b.png": (64, 48)}
SIZE = {"imageHeight": 48, "imageWidth": 64}


def cvat(*shapes, head="", name="a.png"):
    image = f'<image id="0" name="{name}" width="64" height="48">'
    return (
        f"<annotations><version>1.1</version>{head}{image}{''.join(shapes)}</image></annotations>"
    )


def cvat_box(x1, y1, x2, y2, more=""):
    return f'<box label="cell" {more} xtl="{x1}" ytl="{y1}" xbr = \'{x2}\' ybr="{y2}" z_order="0"/>'


def labelme(*shapes, name="a.png"):
    entries = [{"label": "cell", "points": p, "shape_type": kind} for kind, p in shapes]
    return SIZE | {"version": "5.0", "shapes": entries, "imagePath": name, "imageData": None}


def region(x, y, w, h, kind="rectanglelabels", **more):
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, kind: ["cell"]}
    size = {"original_width": 64, "original_height": 48, "image_rotation": 0}
    return size | {"id": "r", "type": kind, "value": value | more}


def task(*results, number=1, key="annotations", image="/data/upload/1/0a1b2c3d-a.png"):
    return {"id": number, key: [{"id": 5, "result": list(results)}], "data": {"image": image}}


MINIMAL = [
    {"image": "a.png", "id": 1, "label": [
        {"x": 25, "y": 25.0, "width": 50, "height": 50, "rotation": 0,
         "rectanglelabels": ["cell"], "original_width": 64, "original_height": 48}]}
]  # fmt: skip
VIA = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attr"
)
VIA += "ibutes\n"
OPEN = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
AUTOML = "set,path,label,x_min,y_min,,,x_max,y_max,,\n"


def with_flags(*flags):
    """Compose COCO of a box for each set of flags."""
    content = coco(("a.png", (64, 48), [("cell", (1, 1, 8, 8)) for _ in flags]))
    entries = [entry | more for entry, more in zip(content["annotations"], flags, strict=True)]
    return content | {"annotations": entries}


def via_row(shape, attributes='{"label":"cell"}', name="a.png"):
    cells = [name, 200, "{}", 1, 0, json.dumps(shape), attributes]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


RECT = {"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20}


def via_json(*shapes, name="a.png"):
    regions = [{"shape_attributes": s, "region_attributes": {"label": "cell"}} for s in shapes]
    entry = {"filename": name, "size": 9, "regions": regions, "file_attributes": {}}
    return {f"{name}9": entry}


def via_project(*shapes, **parts):
    """Compose a project of VIA 3, a region a shape; its class is chosen of options."""
    regions = {
        f"1_{at}": {"vid": "1", "flg": 0, "z": [], "xy": list(shape), "av": {"1": "7"}}
        for at, shape in enumerate(shapes)
    }
    options = {"0": "other", "7": "cell"}
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "data_format_version": "3.1.1", "vid_list": ["1"]},
        "config": {},
        "attribute": {"1": {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "options": options}},
        "file": {"1": {"fid": 1, "fname": "a.png", "type": 2, "loc": 1, "src": ""}},
        "metadata": {"-": {"vid": "1", "z": [], "xy": [], "av": {"2": "dark"}}} | regions,
        "view": {"1": {"fid_list": [1]}},
    } | parts


SPACED = re.sub(r"<(/?)(\w)", r"<\1v:\2", voc("a.png", (64, 48), ("cell", (11, 11, 30, 30))))
SPACED = SPACED.replace("<v:annotation>", "<v:annotation xmlns:v='urn:v'>")
HALF = [[16.0, 12.0, 48.0, 36.0]]
TEN = [[10.0, 10.0, 30.0, 30.0]]
READ = {  # files, boxes to train on, and what stays in predict or is invalid
    "VOC with namespaces": (A | {"a.xml": SPACED}, TEN, ""),
    "CVAT": (A | {"annotations.xml": cvat(cvat_box(10, 10.0, 30, 30))}, TEN, ""),
    "CVAT turned": (
        A | {"x.xml": cvat(cvat_box(1, 1, 9, 9, 'rotation="12.5"'), cvat_box(10, 10, 30, 30))},
        TEN, "box 1: ... is turned by 12.5 degrees"),
    "CVAT polygon": (
        A | {"x.xml": cvat('<polygon label="cell" points="10,10;30,12;20,30"/>')},
        TEN, "is only around a polygon"),
    "CVAT polyline": (
        A | {"x.xml": cvat('<polyline label="cell" points="1,1;3,12"/>', cvat_box(10, 10, 30, 30))},
        TEN, "is a <polyline>, which is no box"),
    "CVAT skeleton": (
        A | {"x.xml": cvat(
            '<skeleton label="person"><points label="1" points="3,4"/><box xtl="1" ytl="1" '
            'xbr="2" ybr="2"/><points label="2" points="9,9" outside="1"/></skeleton>',
            cvat_box(10, 10, 30, 30))},
        TEN, "skeleton 1: ... is a skeleton of 2 points, which is no box"),
    "CVAT video": (
        {"images/frame_000007.png": (64, 48), "annotations.xml": (
            "<annotations><meta><task><original_size><width>64</width><height>48</height>"
            "</original_size></task></meta><track id='0' label='cell'>"
            + cvat_box(10, 10, 30, 30, "frame='7' outside='0'")
            + cvat_box(11, 11, 30, 30, "frame='8' outside='1'") + "</track></annotations>")},
        TEN, ""),
    "LabelMe": (A | {"a.json": labelme(("rectangle", [[30, 10.0], [10, 30]]))}, TEN, ""),
    "X-AnyLabeling": (
        A | {"a.json": labelme(("rectangle", [[10, 10], [30, 10], [30, 30], [10, 30]]))}, TEN, ""),
    "LabelMe elsewhere": (
        {"labels/a.json": labelme(("rectangle", [[10, 10], [30, 30]]), name="..\\pics\\a.png"),
         "pics/a.png": (64, 48)}, TEN, ""),
    "LabelMe polygon": (
        A | {"a.json": labelme(("polygon", [[10, 10], [30, 12], [20, 30]]))},
        TEN, "is only around a polygon"),
    "LabelMe circle": (
        A | {"a.json": labelme(("circle", [[20, 20], [20, 30]]))}, TEN, "is only around a circle"),
    "LabelMe point": (
        A | {"a.json": labelme(("point", [[20, 20]]), ("rectangle", [[10, 10], [30, 30]]))},
        TEN, "shape 1: ... is a 'point' of 1 points, which is no box"),
    "Label Studio": (A | {"p.json": [task(region(25, 25.0, 50, 50))]}, HALF, ""),
    "Label Studio predictions": (
        A | {"p.json": [task(region(25, 25, 50, 50), key="predictions")]}, HALF, ""),
    "Label Studio, minimal": (A | {"p.json": MINIMAL}, HALF, ""),
    "Label Studio turned": (
        A | {"p.json": [task(region(1, 1, 9, 9, rotation=30), region(25, 25, 50, 50))]},
        HALF, "region 1: ... is turned by 30 degrees"),
    "Label Studio polygon": (
        A | {"p.json": [task({"original_width": 64, "original_height": 48, "type": "polygonlabels",
            "value": {"points": [[25, 25], [75, 25], [50, 75]], "polygonlabels": ["cell"]}})]},
        HALF, "is only around a polygon"),
    "MOT of two sequences": (
        {f"{name}/img1/{n:06}.jpg": (64, 48) for name in "st" for n in (1, 2)}
        | {"s/gt/gt.txt": "2,1,10,10,20,20,1,1,1\n", "t/gt/gt.txt": "",
           "s/det/det.txt": "1,-1,1,1,20,20,0.5\n"},
        TEN, ""),
    "a tracker's MOT": (
        {"s/img1/000001.jpg": (64, 48), "out/s.txt": "1,3,10,10,20.0,20,0.9,-1,-1,-1\n"}, TEN, ""),
    "OTB": (
        {"s/img/0001.jpg": (64, 48), "s/img/0002.jpg": (64, 48),
         "s/groundtruth_rect.txt": "10\t10\t20\t20\n0,0,0,0\n"}, TEN,
        "s/groundtruth_rect.txt:2: ... has no positive width and height"),
    "OTB of four corners": (
        {"s/1.jpg": (64, 48), "s/2.jpg": (64, 48),
         "s/groundtruth.txt": "10,10,20,20\n1,1,5,2,4,9,1,8\n"}, TEN, "is turned"),
    "Open Images": (
        A | {"b.csv": f"{OPEN}a,xclick,/m/01,1,0.25,0.75,0.25,0.75,0,0\n"
                      "a,xclick,/m/02,1,0,1,0,1,0,1\n"},
        HALF, "is around a group (IsGroupOf=1)"),
    "VIA": (A | {"b.csv": VIA + via_row({"name": "rect", "x": 10, "y": 10, "width": 20,
                                         "height": 20}) + via_row({}, "{}")}, TEN, ""),
    "VIA circle": (
        A | {"b.csv": VIA + via_row({"name": "circle", "cx": 20, "cy": 20, "r": 10})},
        TEN, "is only around a circle"),
    "VIA point": (
        A | {"b.csv": VIA + via_row({"name": "point", "cx": 20, "cy": 20}) + via_row(
            {"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20})},
        TEN, "is the shape 'point', which is no box"),
    "VIA JSON": (A | {"p.json": via_json(RECT)}, TEN, ""),
    "VIA JSON in a project": (
        A | {"p.json": {"_via_settings": {}, "_via_img_metadata": via_json(RECT)}}, TEN, ""),
    "VIA JSON of version 1": (
        A | {"p.json": {"a.png9": via_json(RECT)["a.png9"] | {"regions": {"0": {
            "shape_attributes": RECT, "region_attributes": {}}}}}}, TEN, ""),
    "VIA 3": (
        A | {"p.json": via_project((2, 10, 10, 20, 20), (5, 1, 1, 2, 2), (2, 1, 2))}, TEN,
        "region 1_1: ... is the shape 'line', which is no box"),
    "VIA 3 polygon": (
        A | {"p.json": via_project((7, 10, 10, 30, 12, 20, 30))}, TEN, "is only around a polygon"),
    "VIA 3 of a path": (
        {"s/a.png": (64, 48), "p.json": via_project((2, 10, 10, 20, 20), file={
            "1": {"fname": "a.png", "type": 2, "src": "s/a.png"}})}, TEN, ""),
    "VIA JSON polygon": (
        A | {"p.json": via_json({"name": "polygon", "all_points_x": [10, 30, 20],
                                 "all_points_y": [10, 12, 30]})},
        TEN, "is only around a polygon"),
    "VIA JSON polyline": (
        A | {"p.json": via_json({"name": "polyline"}, RECT)},
        TEN, "region 1: ... is the shape 'polyline', which is no box"),
    "AutoML": (
        A | {"b.csv": f"{AUTOML}TRAIN,gs://x/a.png,cell,0.25,0.25,,,0.75,0.75,,\n"}, HALF, ""),
    "AutoML without header, all corners": (
        A | {"b.csv": "TEST,gs://x/a.png,cell,.25,.25,.75,.25,.75,.75,.25,.75\n"}, HALF, ""),
    "Kaggle": (
        A | {"b.csv": 'image_id,width,height,bbox\na,64,48,"[10, 10.0, 20, 20]"\n'}, TEN, ""),
    "Kaggle, several in a cell": (
        A | {"b.csv": "image_id,annotations\na,\"[{'x': 10, 'y': 10, 'width': 20, 'height': 20}, "
                      "{'x': 1, 'y': 2, 'width': 3, 'height': 4}]\"\n"},
        [*TEN, [1, 2, 4, 6]], ""),
    "CSV of sizes": (A | {"b.csv": csv_of("a.png,10,10,20,20", header="image,x,y,w,h")}, TEN, ""),
    "CSV of left and top": (
        A | {"b.csv": csv_of("a.png,10,10,20,20", header="image,left,top,width,height")}, TEN, ""),
    "CSV of centres": (
        A | {"b.csv": csv_of("a.png,20,20,20,20", header="image,cx,cy,width,height")}, TEN, ""),
    "CSV with an empty picture": (
        AB | {"b.csv": csv_of("a.png,10,10,30,30", "b.png,,,,")}, TEN, ""),
    "YOLO seen by a tracker": (A | {"a.txt": "0 .5 .5 .5 .5 0.875 7"}, HALF, ""),
    "YOLO polygons, one a triangle": (
        A | {"a.txt": "0 .25 .25 .75 .25 .5 .75\n"}, HALF, "is only around a polygon"),
    "YOLO keypoints": (
        A | {"a.txt": "0 .5 .5 .5 .5 .1 .1 2 .2 .2 1",
             "data.yaml": "names: [cell]\nkpt_shape: [2, 3]"}, HALF, ""),
    "YOLO class as a float": (A | {"a.txt": "0.0e+00 .5 .5 .5 .5\n"}, HALF, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_tools_files_are_read_as_it_means_them(tmp_path, name):
    files, boxes, told = READ[name]
    write(tmp_path, files)
    table, rough = read_annotations(tmp_path), read_annotations(tmp_path, rough=True)
    torch.testing.assert_close(table.boxes, torch.tensor(boxes, dtype=torch.float32))
    sentences = table.skipped or rough.skipped
    assert bool(told) == bool(sentences)
    if told:
        assert re.search(".*".join(map(re.escape, told.split(" ... "))), sentences[0])
    if "only around" in told:
        assert (len(rough.boxes), len(rough.skipped)) == (0, len(boxes))
    else:
        assert torch.equal(rough.boxes, table.boxes)


def numbers_of(text, suffix):
    """Return everything in a file that a box may change, by its own plain parser."""
    if suffix == ".xml":
        found = {}
        for at, node in enumerate(ElementTree.fromstring(text).iter()):
            found |= {(at, key): value for key, value in node.attrib.items()}
            found[at, "text"] = (node.text or "").strip()
        return found
    if suffix == ".json":
        return dict(leaves(json.loads(text), ()))
    if suffix == ".csv":
        rows = [*csv.reader(io.StringIO(text))]
        return {
            (at, column, n): word
            for at, row in enumerate(rows)
            for column, cell in enumerate(row)
            for n, word in enumerate(re.split(r"([-+]?[\d.]+)", cell))
        }
    lines = text.splitlines()
    return {
        (at, n): word for at, line in enumerate(lines) for n, word in enumerate(line.split(","))
    }


def leaves(tree, path):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


MOVE = torch.tensor([1.0, 2.0, -3.0, 1.0])
TWO = {  # a file with two boxes (10, 10, 30, 30) and (16, 12, 48, 36), and how it states the first
    "cvat": ("a.xml", cvat(cvat_box(10, 10, 30, 30), '<polyline label="c" points="1,1;2,2"/>',
                           cvat_box("16.0", 12, 48, 36)), (10, 10, 30, 30), (11, 12, 27, 31)),
    "labelme": ("a.json", labelme(("rectangle", [[30, 10], [10, 30.0]]),
                                  ("rectangle", [[16, 12], [48, 36]])),
                (30, 10, 10, 30), (27, 12, 11, 31)),
    "x-anylabeling": ("a.json", labelme(("rectangle", [[10, 10], [30, 10.0], [30, 30], [10, 30]]),
                                        ("rectangle", [[16, 12], [48, 36]])),
                      (10, 10, 30, 10, 30, 30, 10, 30), (11, 12, 27, 12, 27, 31, 11, 31)),
    "labelstudio": ("p.json", [task(region(15.625, 100 * 10 / 48, 31.25, 100 * 20 / 48),
                                    region(25, 25, 50, 50))],
                    (15.625, 1000 / 48, 31.25, 2000 / 48),
                    (1100 / 64, 25, 1600 / 64, 1900 / 48)),
    "openimages": ("b.csv", (f"{OPEN}a,x,/m/01,1,0.15625,0.46875,{10 / 48},0.625,0,0\n"
                             "a,x,/m/02,1,0.25,0.75,0.25,0.75,0,0\n"),
                   (0.15625, 0.46875, 10 / 48, 0.625), (11 / 64, 27 / 64, 0.25, 31 / 48)),
    "via": ("b.csv", VIA + via_row({"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20})
            + via_row({"name": "rect", "x": 16, "y": 12, "width": 32, "height": 24}),
            (10, 10, 20, 20), (11, 12, 16, 19)),
    "via json": ("p.json", via_json(RECT, RECT | {"x": 16, "y": 12.0, "width": 32, "height": 24}),
                 (10, 10, 20, 20), (11, 12, 16, 19)),
    "via 3": ("p.json", via_project((2, 10, 10, 20, 20.0), (1, 3, 4), (2, 16, 12, 32, 24)),
              (10, 10, 20, 20), (11, 12, 16, 19)),
    "cvat beside a skeleton": (
        "a.xml", cvat('<skeleton label="p"><points points="1,2"/><box xtl="1" ytl="1" xbr="9" '
                      'ybr="9"/></skeleton>', cvat_box(10, 10, 30, 30), cvat_box(16, 12, 48, 36)),
        (10, 10, 30, 30), (11, 12, 27, 31)),
    "kaggle": ("b.csv", 'image_id,bbox\na,"[10, 10, 20, 20]"\na,"[16, 12, 32, 24]"\n',
               (10, 10, 20, 20), (11, 12, 16, 19)),
    "automl": ("b.csv", (f"TRAIN,a/a.png,c,0.15625,{10 / 48},0.46875,{10 / 48},0.46875,0.625,"
                         "0.15625,0.625\nTRAIN,a/a.png,c,.25,.25,,,.75,.75,,\n"),
               (0.15625, 10 / 48, 0.46875, 10 / 48, 0.46875, 0.625, 0.15625, 0.625),
               (11 / 64, 0.25, 27 / 64, 0.25, 27 / 64, 31 / 48, 11 / 64, 31 / 48)),
    "sizes": ("b.csv", csv_of("a.png,10,10,20,20", "a.png,16,12,32,24", header="image,x,y,w,h"),
              (10, 10, 20, 20), (11, 12, 16, 19)),
    "mot": ("gt/gt.txt", "1,1,10,10,20,20,1,1,1\n1,2,16,12,32,24,1,1,1\n",
            (10, 10, 20, 20), (11, 12, 16, 19)),
    "otb": ("groundtruth_rect.txt", "10,10,20,20\n16,12,32,24\n",
            (10, 10, 20, 20), (11, 12, 16, 19)),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_only_the_moved_box_differs_when_it_is_read_by_others(tmp_path, name):
    file, content, old, new = TWO[name]
    pictures = A | {"img1/000001.jpg": (64, 48)} if name == "mot" else A
    if name == "otb":
        pictures = {"img/1.jpg": (64, 48), "img/2.jpg": (64, 48)}
    write(tmp_path, pictures | {file: content})
    before = (tmp_path / file).read_text()
    table = read_annotations(tmp_path)
    expected = torch.tensor([[10.0, 10, 30, 30], [16, 12, 48, 36]])
    torch.testing.assert_close(table.boxes, expected)
    (path,) = write_boxes(table, table.boxes, tmp_path / "same")
    assert path.read_text() == before
    moved = table.boxes + torch.stack([MOVE, torch.zeros(4)])
    (path,) = write_boxes(table, moved, tmp_path / "out")
    suffix = path.suffix
    was, now = numbers_of(before, suffix), numbers_of(path.read_text(), suffix)
    assert was.keys() == now.keys()
    places = [place for place in was if was[place] != now[place]]
    stated = [n for n, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    assert len(places) == len(stated)
    for place, at in zip(places, stated, strict=True):
        assert float(was[place]) == pytest.approx(old[at], abs=1e-5)
        assert float(now[place]) == pytest.approx(new[at], abs=1e-5)
    write(tmp_path / "out", pictures)
    torch.testing.assert_close(read_annotations(tmp_path / "out").boxes, moved, rtol=0, atol=1e-3)


DIFFICULT, IGNORED = "is marked difficult", "is marked to be ignored"
MARKED = {  # files of two boxes, and how the first is marked; the second isn't
    "VOC": (
        {"a.xml": voc("a.png", (64, 48), ("cell", (1, 1, 9, 9)), ("cell", (11, 11, 30, 30)))
         .replace("<bndbox>", "<difficult> 1 </difficult><bndbox>", 1)
         .replace("</bndbox></object></ann", "</bndbox><difficult>Unspecified</difficult>"
                  "</object></ann")}, DIFFICULT),
    "COCO ignore": (
        {"b.json": with_flags({"ignore": 1}, {"ignore": 0, "attributes": {"ignore": False}})},
        IGNORED),
    "COCO of CVAT": (
        {"b.json": with_flags({"attributes": {"difficult": True}}, {"attributes": None})},
        DIFFICULT),
    "CVAT": (
        {"a.xml": cvat(
            '<box label="cell" xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="difficult">true'
            "</attribute></box>",
            '<box label="cell" xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="difficult">false'
            "</attribute></box>")}, DIFFICULT),
    "CVAT ignore": (
        {"a.xml": cvat(
            '<box label="cell" xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="ignore">1'
            "</attribute></box>", cvat_box(1, 1, 9, 9))}, IGNORED),
    "X-AnyLabeling": (
        {"a.json": labelme(*[("rectangle", [[1, 1], [9, 9]])] * 2) | {"shapes": [
            {"label": "c", "points": [[1, 1], [9, 9]], "shape_type": "rectangle", "difficult": d}
            for d in (True, False)]}}, DIFFICULT),
    "MOT": (
        {"s/img1/000001.jpg": (64, 48),
         "s/gt/gt.txt": "1,1,1,1,9,9,0,1,1\n1,2,1,1,9,9,1,1,1\n"}, IGNORED),
    "CSV": (
        {"b.csv": csv_of("a.png,1,1,9,9,1", "a.png,1,1,9,9,0",
                         header="image,xmin,ymin,xmax,ymax,difficult")}, DIFFICULT),
    "CSV ignored": (
        {"b.csv": csv_of("a.png,1,1,9,9,true", "a.png,1,1,9,9,",
                         header="image,xmin,ymin,xmax,ymax,ignore")}, IGNORED),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
def test_how_a_box_is_marked_is_read_and_kept_apart(tmp_path, name):
    files, mark = MARKED[name]
    write(tmp_path, ({} if name == "MOT" else A) | files)
    table = read_annotations(tmp_path)
    assert (table.marks, table.skipped) == ((mark, ""), ())
    others, told = table.without_marked()
    assert (others.ids, others.marks) == ((table.ids[1],), ("",))
    image = table.images[0]
    assert told == [(image, f"{table.ids[0]}: the box in {image} {mark}; left out")]
    assert read_annotations(tmp_path, rough=True).marks == (mark, "")


REFUSED = {  # files, options, sentence
    "COCO of corners": (
        A | {"b.csv": csv_of("a.png,10,10,20,20", "a.png,40,30,20,15", "a.png,50,9,9,9")}, {},
        ("b.csv:3: 2 of 3 boxes don't lie in their pictures as xmin, ymin, xmax, ymax, and all of "
         "them do as xmin, ymin, width, height; write")),
    "YOLO of corners": (
        A | {"a.txt": "0 .8 .7 1 .9\n0 .6 .2 .9 .8\n0 .1 .1 .2 .2\n"}, {},
        "a.txt:1: 2 of 3 boxes ... cx, cy, w, h, and all of them do as xmin, ymin, xmax, ymax"),
    "Kaggle of corners": (
        A | {"b.csv": 'image,bbox\na,"[10,10,62,46]"\na,"[30 20 60 45]"\n'}, {},
        "b.csv:2: 2 of 2 ... if they are corners, say columns={'corners': 'bbox'}"),
    "YOLO in pixels": (
        A | {"a.txt": "0 32 24 10 10\n"}, {},
        ("a.txt:1: 32, 24, 10, 10 and all other boxes lie far beyond 1, as pixels do; if they are, "
         "say units='pixels' (--data.reading.units=pixels)")),
    "keypoints without kpt_shape": (
        A | {"a.txt": "0 .5 .5 .5 .5 .1 .1 2 .2 .2 1 1"}, {},
        "a.txt:1: ... isn't class, cx, cy, w, h ... or say kpt_shape in data.yaml"),
    "another number of keypoints": (
        A | {"a.txt": "0 .5 .5 .5 .5 .1", "data.yaml": "kpt_shape: [2, 3]"}, {},
        "a.txt:1: ... has 6 numbers; write 11, as kpt_shape says, or correct that"),
    "classes by two YAMLs": (
        A | {"a.txt": "", "x.yaml": "names: [a]", "y.yaml": "names: [b]"}, {},
        "x.yaml, y.yaml: each of these names other classes; keep one, or name the right one data"),
    "frames and lines": (
        {"groundtruth.txt": "1,1,2,2\n", "img/1.jpg": (9, 9), "img/2.jpg": (9, 9)}, {},
        "groundtruth.txt: has 1 lines, and img has 2 pictures; keep the pictures of its lines"),
    "two annotations of a task": (
        A | {"p.json": [task(region(1, 1, 9, 9)) | {"annotations": 2 * [
            {"result": [region(1, 1, 9, 9)]}]}]}, {},
        "p.json: task 1: has 2 annotations; keep one a task"),
    "attributes of VIA": (
        A | {"b.csv": VIA + via_row({"name": "rect", "x": 1, "y": 1, "width": 2, "height": 2},
                                    '{"kind": "a", "age": "b"}')}, {},
        "b.csv:2: the class may be any of the attributes kind, age; say which with columns={'lab"),
    "attributes of VIA's JSON": (
        A | {"p.json": {"a": via_json(RECT)["a.png9"] | {"regions": [
            {"shape_attributes": RECT, "region_attributes": {"kind": "a", "age": "b"}}]}}}, {},
        "p.json: a: region 1: the class may be any of the attributes kind, age; say which"),
    "a video of VIA 3": (
        A | {"p.json": via_project(file={"1": {"fname": "a.mp4", "type": 4}})}, {},
        "p.json: file 1: 'a.mp4' is a video or a sound; save its frames as pictures"),
    "a file of no name of VIA 3": (
        A | {"p.json": via_project(file={"1": {"fname": " ", "type": 2}})}, {},
        "p.json: file 1: its fname is empty"),
    "a view of VIA 3": (
        A | {"p.json": via_project((2, 1, 1, 2, 2), view={"1": {"fid_list": [1, 2]}})}, {},
        "p.json: region 1_0: its view is '1', which shows no one file; correct its vid"),
    "no shapes in VIA 3": (
        A | {"p.json": via_project(metadata={"1": {"vid": "1", "xy": 3}})}, {},
        "p.json: metadata 1: 'xy' is 3, expected list"),
    "no regions in VIA's JSON": (
        A | {"p.json": '{"a": {"filename": "a.png", "regions": 3, "file_attributes": {}}}'}, {},
        "p.json: a: 'regions' is 3, expected list or dict; correct it"),
    "two names of a class": (
        A | {"b.csv": f"{OPEN}a,x,/m/1,1,0,1,0,1,0,0\n",
             "class-descriptions-boxable.csv": "/m/1,Cell\n/m/1,Plate\n"}, {},
        "class-descriptions-boxable.csv:2: /m/1 is 'Plate', and 'Cell' before; keep one"),
    "a class without a name": (
        A | {"b.csv": f"{OPEN}a,x,/m/1,1,0,1,0,1,0,0\n", "class-descriptions-boxable.csv": "/m/1"},
        {}, "class-descriptions-boxable.csv:1: has 1 cells, not a class id and its name"),
    "a column that isn't there": (
        A | {"b.csv": csv_of("a.png,1,1,9,9")}, {"columns": {"xmin": "Roi.X1"}, "format": "csv"},
        "b.csv:1: there is no column 'Roi.X1' in the header, which has image, xmin, ymin, xmax, "),
    "a role that isn't there": (
        A | {"b.csv": csv_of("a.png,1,1,9,9")}, {"columns": {"left": "xmin"}, "format": "csv"},
        "columns has 'left'; choose from bbox, corners, cx, cy, difficult, group"),
    "a delimiter of two": (A, {"delimiter": "||"}, "delimiter is '||'; expected one character"),
    "no units": (A, {"units": "percent"}, "units is 'percent'; choose from None, 'pixels', 'fra"),
    "an image of CVAT twice": (
        A | {"b.xml": cvat().replace("</annotations>", '<image name="a.png"/></annotations>')}, {},
        "b.xml: image : 'a.png' is there twice; keep one of them"),
    "another size": (
        A | {"b.csv": "image,width,height,xmin,ymin,xmax,ymax\na.png,128,96,1,1,9,9\n"}, {},
        "b.csv:2: states 128 x 96 pixels, but a.png has 64 x 48"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_meant_otherwise_is_refused_with_its_remedy(tmp_path, name):
    files, options, sentence = REFUSED[name]
    write(tmp_path, files)
    with pytest.raises(BadInput, match=pattern_of(sentence)):
        read_annotations(tmp_path, **options)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("class-descriptions-boxable.csv", "labels/detections.csv"),
        ("labels/oidv7-class-descriptions-boxable.csv", "labels/detections.csv"),
        ("metadata/classes.csv", "labels/detections.csv"),
        ("metadata/classes.csv", "b.csv"),
    ],
)
def test_classes_of_open_images_go_by_the_names_beside_them(tmp_path, names, labels):
    rows = "".join(f"a,x,/m/0{n},1,0.25,0.75,0.25,0.75,0,0\n" for n in (1, 2, 3))
    header = "LabelName,DisplayName\n" if "oidv7" in names else ""
    listed = f'{header}/m/01,Cell\n/m/02,"Plate, round"\n/m/09,Other\n'
    write(tmp_path, {"data/a.png": (64, 48), labels: OPEN + rows, names: listed})
    table = read_annotations(tmp_path)
    assert [table.classes[at] for at in table.labels] == ["Cell", "Plate, round", "/m/03"]
    assert f"; class names of {names}, which has none for /m/03" in table.note
    (path,) = write_boxes(table, table.boxes, tmp_path / "out")
    assert path.read_bytes() == (tmp_path / labels).read_bytes()


GTSRB = "Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId;Path\n64;48;10;10;30;30;20;a.png\n"
ROI = {"xmin": "Roi.X1", "ymin": "Roi.Y1", "xmax": "roi.x2", "ymax": "Roi.Y2"}
ASKED = {  # files, options, boxes, classes
    "columns by name": ({"b.csv": GTSRB}, {"columns": ROI}, TEN, ("20",)),
    "columns by number": (
        {"b.csv": "a.png|x|10|10|30|30|cell\n"},
        {"columns": {"image": 0, "xmin": 2, "ymin": 3, "xmax": 4, "ymax": 5, "label": 6},
         "delimiter": "|"}, TEN, ("cell",)),
    "fractions": (
        {"b.csv": csv_of("a.png,.25,.25,.75,.75")}, {"units": "fraction"}, HALF, ("object",)),
    "pixels": ({"a.txt": "0 32 24 32 24\n"}, {"units": "pixels"}, HALF, ("0",)),
    "corners in a cell": (
        {"b.csv": 'image,bbox\na.png,"10 10 30 30"\n'}, {"columns": {"corners": "bbox"}}, TEN,
        ("object",)),
    "an attribute of VIA": (
        {"b.csv": VIA + via_row({"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20},
                                '{"kind": "a", "age": "b"}')},
        {"columns": {"label": "age"}}, TEN, ("b",)),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_a_user_says_of_numbers_and_columns_is_taken(tmp_path, name):
    files, options, boxes, classes = ASKED[name]
    write(tmp_path, A | files)
    table = read_annotations(tmp_path, **options)
    assert (table.boxes.tolist(), table.classes) == (boxes, classes)
    move = torch.tensor([1.0, 2, 1, 2])
    (path,) = write_boxes(table, table.boxes + move, tmp_path / "out")
    write(tmp_path / "out", A)
    again = read_annotations(path.parent, **options)
    torch.testing.assert_close(again.boxes, table.boxes + move, rtol=0, atol=1e-3)


NAMES = {
    "data.yaml": "names: [cell, plate]\n",
    "coco8.yaml": "names:\n  0: cell\n  1: plate\n",
    "obj.names": "cell\nplate\n",
    "voc.names": "cell\nplate\n",
    "_darknet.labels": "cell\nplate",
    "classes.txt": "cell\nplate\n",
    "labels.txt": "cell\nplate\n",
    "notes.json": '{"categories": [{"id": 1, "name": "plate"}, {"id": 0, "name": "cell"}]}',
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "labels/"])
def test_yolo_finds_the_names_of_classes(tmp_path, name, folder):
    files = {"labels/a.txt": "1 .5 .5 .5 .5\n", "images/a.png": (64, 48)}
    write(tmp_path, files | {f"{folder}{name}": NAMES[name], "settings.yaml": "depth: 3\n[}"})
    table = read_annotations(tmp_path)
    assert table.classes[int(table.labels)] == "plate"


def test_a_yaml_without_names_is_told(tmp_path):
    write(tmp_path, A | {"a.txt": "3 .5 .5 .5 .5\n", "data.yaml": "nc: 1\n"})
    table = read_annotations(tmp_path)
    assert table.classes == ("3",)
    assert table.note.endswith("; data.yaml names no classes")


def test_lists_beside_pictures_are_their_splits(tmp_path):
    files = AB | {"a.txt": "0 .5 .5 .5 .5\n", "b.txt": "# by hand\n0 .5 .5 .5 .5\n"}
    write(tmp_path, files | {"train.txt": "a.png\n", "valid.txt": "./b.png\n"})
    table = read_annotations(tmp_path)
    assert (table.splits, table.files) == (("train", "val"), ("a.txt", "b.txt"))


def test_results_name_their_pictures_in_one_way(tmp_path):
    images = [{"id": 2, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}]
    document = {"images": images, "categories": [{"id": 1, "name": "cell"}], "annotations": []}
    pictures = {"1.png": (64, 48), "2.png": (64, 48)}
    box = {"category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}
    write(tmp_path, pictures | {"b.json": document})
    options = {"annotations": ["b.json", "r.json"]}

    def read(*results):
        write(tmp_path, {"r.json": [box | result for result in results]})
        table = read_annotations(tmp_path, **options)
        return [table.images[at] for at in table.image_index]

    assert read({"image_id": "1", "file_name": "1.png"}) == ["1.png"]
    assert read({"image_id": "1.png"}, {"image_id": "2.png"}) == ["1.png", "2.png"]
    with pytest.raises(
        BadInput, match=r"r\.json: each image_id is the id of one picture and the n"
    ):
        read({"image_id": 1}, {"image_id": 2})
    with pytest.raises(BadInput, match=r"r\.json: result 2: image_id 7 is not among the 2"):
        read({"image_id": 1}, {"image_id": 7})


def test_mot_names_classes_and_groups(tmp_path):
    files = {"s/img/000001.jpg": (64, 48), "s/seqinfo.ini": "[Sequence]\nimDir=img\n"}
    files |= {"s/gt/gt.txt": "1,1,10,10,20,20,1,2,1\n", "s/gt/labels.txt": "car\ncell\n"}
    write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert (table.classes, table.groups, table.images) == (("cell",), ("s",), ("s/img/000001.jpg",))


@pytest.mark.parametrize("space", ["", " xmlns='urn:x'"])
def test_deep_nesting_in_cvat_stays(tmp_path, space):
    nest = "<a>" * 20_000 + "</a>" * 20_000
    text = cvat(cvat_box(10, 10, 30, 30), nest).replace("<annotations>", f"<annotations{space}>")
    write(tmp_path, A | {"b.xml": text})
    table = read_annotations(tmp_path)
    (path,) = write_boxes(table, table.boxes + 1, tmp_path / "out")
    moved = cvat(cvat_box(11, 11, 31, 31), nest).replace("<annotations>", f"<annotations{space}>")
    assert path.read_text() == moved


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.5}]', True),
        (" []", True),
        ('[{"id": 1, "annotations": [], "data": {"image": "a.png"}}]', False),
        ('{"image_id": 1}', False),
    ],
)
def test_results_are_told_from_label_studios_lists(content, told, tmp_path):
    (tmp_path / "p.json").write_text(content)
    assert is_results(tmp_path / "p.json") is told
