import pytest

from lightning_bbox.annotations import read_annotations
from lightning_bbox.errors import BadInput
from tests.annotation_files import coco, csv_of, voc, write

ROW = "a.png,1,1,2,2"
XML = voc("a.png", (64, 48), ("cell", (1, 1, 9, 9)))
BOMB = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>' + XML
BOX = [("cell", (1, 1, 5, 5))]


def coco_with(key, **changes):
    """A COCO document of one picture and box, its first entry of a list changed."""
    document = coco(("a.png", (64, 48), BOX))
    document[key][0] |= changes
    return document


def coco_twice(key):
    document = coco(("a.png", (64, 48), BOX))
    document[key] *= 2
    return document


A = {"a.png": (64, 48)}
REFUSED = {
    # nothing to read, or too much
    "nothing": ({}, {}, r"no annotations found, looked for \*\.xml in Annotations, \*\.json with"),
    "no_such_file": (A, {"annotations": "b.csv"}, r"b\.csv: is no file or folder in"),
    "unknown_suffix": ({"b.dat": ""}, {"annotations": "b.dat"}, r"b\.dat: has the suffix of no"),
    "two_csv": (
        A | {"b.csv": csv_of(ROW), "c.csv": csv_of(ROW)},
        {},
        r"b\.csv, c\.csv: any of these may .*; name the one to read, or several, with annotations=",
    ),
    "two_json": (
        A | {"b.json": coco_with("images"), "train/c.json": coco_with("images")},
        {},
        r"b\.json, train/c\.json: any of these",
    ),
    "no_picture_listed": ({"b.csv": csv_of()}, {}, r"b\.csv: no picture is listed"),
    "format": (A, {"format": "pascal"}, "format is 'pascal'; choose from 'auto', 'voc'"),
    "voc_base": (A, {"voc_base": 2}, "voc_base is 2"),
    # pictures
    "missing": (
        {"b.csv": csv_of(ROW)},
        {},
        r"b\.csv:2: there is no picture 'a\.png' in \., JPEGImages, images; .* images=",
    ),
    "missing_later": (A | {"b.csv": csv_of(ROW, "c.png,1,1,2,2")}, {}, r"b\.csv:3: there is no"),
    "missing_voc": (
        {"Annotations/a.xml": XML},
        {"images": "pics"},
        r"a\.xml: there is no picture 'a\.png' in pics/Annotations, pics;",
    ),
    "name_too_long": ({"b.csv": csv_of("a" * 999 + ",1,1,2,2")}, {}, r"b\.csv:2: there is no"),
    "same_stem": (
        {"labels/a.txt": "", "images/a.png": (64, 48), "images/a.jpg": (64, 48)},
        {},
        r"labels/a\.txt: its picture may be any of a\.jpg, a\.png in images; keep one of them",
    ),
    "other_name": (
        {"Annotations/b.xml": XML, "images/a.png": (64, 48), "images/b.png": (64, 48)},
        {},
        r"b\.xml: names the picture 'a\.png', but 'b\.png' bears its own name; correct",
    ),
    "listed_twice": (
        A | {"b.csv": csv_of(ROW, "./a.png,1,1,2,2")},
        {},
        r"b\.csv:3: a\.png is listed at b\.csv:2 too; keep one",
    ),
    "outside": (
        {"in/b.csv": csv_of("../a.png,1,1,2,2")} | A,
        {"root": "in"},
        r"b\.csv:2: '\.\./a\.png' leads out of .*; move it inside or set allow_outside",
    ),
    "absolute": ({"b.csv": csv_of("/dev/null,1,1,2,2")}, {}, "there is no picture '/dev/null'"),
    "annotations_outside": (
        A,
        {"annotations": "../b.csv"},
        r"annotations: '\.\./b\.csv' leads out",
    ),
    "unreadable": (
        {"a.png": "no picture", "b.csv": csv_of(ROW)},
        {},
        r"b\.csv:2: the header of a\.png can't be read \(cannot identify .*; replace the picture",
    ),
    "size_voc": (
        {"Annotations/a.xml": XML, "images/a.png": (48, 64)},
        {},
        r"a\.xml: states 64 x 48 pixels, but images/a\.png has 48 x 64 once EXIF .*; correct the",
    ),
    "size_coco": (
        {"a.png": (64, 40), "b.json": coco_with("images")},
        {},
        r"b\.json: image 0: states 64 x 48 pixels, but a\.png has 64 x 40",
    ),
    # VOC
    "xml": (A | {"a.xml": XML[:-9]}, {}, r"a\.xml: is not safe, well-formed XML \(.*line 1.*\);"),
    "bomb": (A | {"a.xml": BOMB}, {}, r"a\.xml: is not safe, well-formed XML \(EntitiesForbidden"),
    "root_tag": (A | {"a.xml": "<pom/>"}, {}, r"a\.xml: has the root <pom>, VOC has <annotation>"),
    "no_name": (
        A | {"a.xml": XML.replace("<name>cell</name>", "")},
        {},
        r"a\.xml: object 1: has no <name>; add it",
    ),
    "empty_name": (A | {"a.xml": XML.replace("cell", " ")}, {}, "object 1: has an empty <name>"),
    "xml_number": (
        A | {"a.xml": XML.replace("<xmax>9<", "<xmax>9,5<")},
        {},
        r"a\.xml: object 1: xmax is '9,5', not a number; correct it",
    ),
    # COCO
    "json": (
        {"b.json": '{"images": [], "annotations": [}'},
        {},
        r"b\.json: is not well-formed JSON \(Expecting value: line 1 column 32.*\); repair it",
    ),
    "json_list": (
        {"b.json": '["images", "annotations"]'},
        {"annotations": "b.json"},
        r"b\.json: is a list of results, read with 0 files of pictures; name both, such as annot",
    ),
    "json_text": (
        {"b.json": '"images"'},
        {"annotations": "b.json"},
        r"b\.json: holds a str; COCO is an object",
    ),
    "size_huge": (
        A | {"b.json": coco_with("images", width=10**400)},
        {},
        r"b\.json: image 0: states inf x 48 pixels",
    ),
    "no_categories": (
        {"b.json": {"images": [], "annotations": []}},
        {},
        r"b\.json: 'categories' is missing, expected list",
    ),
    "json_entry": (
        {"b.json": coco() | {"images": [7]}},
        {},
        r"b\.json: image number 1: is 7, no JSON object",
    ),
    "no_id": (
        A | {"b.json": coco_with("annotations", id=None)},
        {},
        r"annotation number 1: 'id' is None, expected int or str",
    ),
    **{
        f"twice_{key}": (A | {"b.json": coco_twice(key)}, {}, rf"b\.json: {word}: this id is there")
        for key, word in (
            ("images", "image 0"),
            ("annotations", "annotation 0"),
            ("categories", "category 5"),
        )
    },
    "image_id": (
        A | {"b.json": coco_with("annotations", image_id=9)},
        {},
        r"b\.json: annotation 0: image_id 9 is not among the 1 of the file; correct it",
    ),
    "category_id": (
        A | {"b.json": coco_with("annotations", category_id="x")},
        {},
        r"annotation 0: category_id 'x' is not among the 2 of the file",
    ),
    **{
        f"bbox_{n}": (
            A | {"b.json": coco_with("annotations", bbox=bbox)},
            {},
            r"annotation 0: bbox is \[.*\], not four numbers",
        )
        for n, bbox in enumerate(([1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, None], [1, 2, 3, True]))
    },
    # YOLO
    "columns": (
        A | {"a.txt": "0 .5 .5 .1 .1 .9\n\n0 .5 .5 .1 .1 .9 .9"},
        {},
        r"a\.txt:3: has 7 columns, expected class, cx, cy, w, h and perhaps a score; leave",
    ),
    "class": (A | {"a.txt": "cell .5 .5 .1 .1"}, {}, r"a\.txt:1: class is 'cell', not a whole"),
    "yolo_number": (A | {"a.txt": "0 .5 .5 1_0 .1"}, {}, r"a\.txt:1: w is '1_0', not a number"),
    "class_names": (
        A | {"a.txt": "2 .5 .5 .1 .1", "classes.txt": "cell\nplate\n"},
        {},
        r"a\.txt:1: class 2 is not among the 2 names of classes\.txt; correct it or add the name",
    ),
    "no_names_here": (
        {"p/a.txt": "", "p/a.png": (9, 9), "q/b.txt": "", "q/b.png": (9, 9), "p/classes.txt": "x"},
        {},
        r"q/b\.txt: has no class names, while p/classes\.txt names those of other files; put",
    ),
    "yaml": (
        A | {"a.txt": "", "data.yaml": "names: [a"},
        {},
        r"data\.yaml: is not well-formed YAML \(.*line 1.*\); repair it",
    ),
    "yaml_names": (
        A | {"a.txt": "", "data.yaml": "names: [yes, no]"},
        {},
        r"data\.yaml: 'names' is \[True, False\], no list or numbered map of texts; write",
    ),
    # CSV
    "column": (
        {"b.csv": "image,xmin,xmax,ymin\n"},
        {"annotations": "b.csv"},
        r"b\.csv:1: the header 'image,xmin,xmax,ymin' has no column ymax; name a column ymax or y2",
    ),
    "column_twice": (
        {"b.csv": csv_of(header="image,path,x1,y1,x2,y2")},
        {"annotations": "b.csv"},
        r"b\.csv:1: columns image, path all mean image; keep one",
    ),
    "cells": (A | {"b.csv": csv_of(ROW + ",3")}, {}, r"b\.csv:2: has 6 cells, the header 5; corr"),
    "csv_number": (A | {"b.csv": csv_of("a.png,1,1,,2")}, {}, r"b\.csv:2: xmax is '', not a num"),
    "no_image": (A | {"b.csv": csv_of(",1,1,2,2")}, {}, r"b\.csv:2: the image is empty"),
    "no_label": (
        A | {"b.csv": csv_of(ROW + ",", header="image,xmin,ymin,xmax,ymax,label")},
        {},
        r"b\.csv:2: the label is empty",
    ),
    "csv_groups": (
        A | {"b.csv": csv_of(ROW + ",g", ROW + ",h", header="image,xmin,ymin,xmax,ymax,group")},
        {},
        r"b\.csv:3: split '' and group 'h' of a\.png contradict '' and 'g' at b\.csv:2; give",
    ),
    "csv_form": (
        A | {"b.csv": csv_of("a" * 200_000)},
        {},
        r"b\.csv:2: is not well-formed CSV \(field larger than .*\); correct it",
    ),
    "utf8": (A | {"b.csv": csv_of(ROW).encode() + b"\xff"}, {}, r"b\.csv: is not UTF-8 text"),
    # split file and groups
    **{
        f"split_{name}": (
            {f"{folder}/{stem}.png": (64, 48) for folder in "pq" for stem in ("a", folder)}
            | {"b.csv": csv_of(*(f"{file}.png,1,1,2,2" for file in ("p/a", "p/p", "q/a", "q/q")))}
            | {"split.txt": text},
            {"split_file": "split.txt"},
            message,
        )
        for name, text, message in (
            ("unknown", "p\nc\n", r"split\.txt:2: no annotation is there for 'c'; add its annot"),
            (
                "ambiguous",
                "a",
                r"split\.txt:1: 'a' may be any of p/a\.png, q/a\.png; write the path",
            ),
            ("twice", "p\np.png", r"split\.txt: p/p\.png is named twice; remove line 2"),
            ("by_class", "p -1\nq  1", r"split\.txt:1: 'p -1' has a second column, as VOC's lists"),
            ("empty", "\n", r"split\.txt: no picture is named"),
        )
    },
    "split_missing": (
        A | {"b.csv": csv_of(ROW)},
        {"split_file": "s.txt"},
        r"s\.txt: can't be read \(No such file or directory\); check the file",
    ),
    "pattern": (A | {"b.csv": csv_of(ROW)}, {"group_pattern": "(a"}, "is no regular expression"),
    "pattern_group": (A | {"b.csv": csv_of(ROW)}, {"group_pattern": "a"}, "has no group; put"),
    "pattern_match": (
        A | {"b.csv": csv_of(ROW)},
        {"group_pattern": "(b)"},
        r"a\.png: group_pattern '\(b\)' finds no group in this path; write a pattern that fits",
    ),
}


@pytest.mark.parametrize(("files", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_gets_one_sentence(tmp_path, files, arguments, message):
    write(tmp_path, files)
    root = tmp_path / arguments.pop("root", "") if "root" in arguments else tmp_path
    with pytest.raises(BadInput, match=message) as refusal:
        read_annotations(root, **arguments)
    assert "\n" not in str(refusal.value)
    assert ";" in str(refusal.value)


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere: is no folder; correct root="):
        read_annotations(tmp_path / "nowhere")
