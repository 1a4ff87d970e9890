"""What a user has that can't be meant, and what the command says to it, word for word.

A row is named by what is wrong. Behind that come the files, the command, and the two halves of the
sentence: where the problem is and which, and what to do. `{root}` is the folder of the files. The
exit code is 2, and the sentence stands behind `lightning-bbox: `.
"""

import io
import os
import shlex
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.arguments import COMMANDS
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

CSV, COCO, YOLO, VOC = (
    f"fit -c preset:{name} --data.root={{root}}" for name in ("csv", "coco", "yolo", "voc")
)
PAIR = {
    "p/a.png": (64, 48),
    "q/a.png": (64, 48),
    "b.csv": csv_of("p/a.png,1,1,9,9", "q/a.png,1,1,9,9"),
}
UNREADABLE = Path("/proc/self/mem")  # even for root


def truncated_png():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


def png_that_claims(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    begun = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + begun + b"\0\0\0\0IDAT"


# Laid out as a table: what is there, the command, the problem, the remedy.
# fmt: off
NOT_THERE = {
    "no folder": ({}, f"{CSV}/nowhere",
        "{root}/nowhere: is no folder",
        "correct root="),
    "a file for a folder": ({"b.csv": csv_of(ROW)}, f"{CSV}/b.csv",
        "{root}/b.csv: is no folder",
        "correct root="),
    "nothing in the folder": (A, f"{CSV} --data.reading.format=auto",
        ("{root}: no annotations found, looked for *.xml in Annotations, *.json with images "
         "and annotations, *.txt in labels, *.csv with columns for image and corners, *.xml "
         "beside pictures, *.txt beside pictures"),
        "name them with annotations="),
    "no annotation file": (A, f"{CSV} --data.reading.annotations=b.csv",
        "b.csv: is no file or folder in {root}",
        "correct annotations="),
    "an annotation file of no known suffix": ({"b.dat": ""},
        f"{CSV} --data.reading.format=auto --data.reading.annotations=b.dat",
        "b.dat: has the suffix of no known format",
        "name it with format="),
    "a folder for an annotation file": (
        {"b.csv/readme": ""}, f"{CSV} --data.reading.annotations=b.csv",
        "{root}: no annotations found, looked for csv in b.csv",
        "name them with annotations="),
    "no picture": ({"b.csv": csv_of(ROW)}, CSV,
        "b.csv:2: there is no picture 'a.png' in ., JPEGImages, images",
        "add it, correct the entry, or name the folder of pictures with images="),
    "one picture missing": (A | {"b.csv": csv_of(ROW, "c.png,1,1,20,20")}, CSV,
        "b.csv:3: there is no picture 'c.png' in .",
        "add it, correct the entry, or name the folder of pictures with images="),
    "no folder of pictures": ({"Annotations/a.xml": XML}, f"{VOC} --data.reading.images=pics",
        "Annotations/a.xml: there is no picture 'a.png' in pics/Annotations, pics",
        "add it, correct the entry, or name the folder of pictures with images="),
    "a folder for a picture": ({"b.csv": csv_of(ROW), "a.png/readme": ""}, CSV,
        "b.csv:2: there is no picture 'a.png' in ., JPEGImages, images",
        "add it, correct the entry, or name the folder of pictures with images="),
    "a name too long for any file": ({"b.csv": csv_of("a" * 999 + ",1,1,2,2")}, CSV,
        f"b.csv:2: there is no picture '{'a' * 999}' in ., JPEGImages, images",
        "add it, correct the entry, or name the folder of pictures with images="),
    "no split file": (A | {"b.csv": csv_of(ROW)}, f"{CSV} --data.splits.test=s.txt",
        "s.txt: can't be read (No such file or directory)",
        "check its name and permissions"),
    "a folder for a split file": (A | {"b.csv": csv_of(ROW), "s.txt/readme": ""},
        f"{CSV} --data.splits.test=s.txt",
        "s.txt: can't be read (Is a directory)",
        "check its name and permissions"),
    "an annotation file that may not be read": (A | {"b.csv": UNREADABLE},
        f"{CSV} --data.reading.allow_outside=true",
        "b.csv: can't be read (Input/output error)",
        "check its name and permissions"),
    "a picture that may not be read": ({"a.png": UNREADABLE, "b.csv": csv_of(ROW)},
        f"{CSV} --data.reading.allow_outside=true",
        "b.csv:2: a.png can't be read as a picture (Input/output error)",
        "replace it"),
    "a link to nowhere": (A | {"a.xml": Path("gone.xml")}, VOC,
        "a.xml: can't be read (No such file or directory)",
        "check its name and permissions"),
    "two files that may be the one": (A | {"b.csv": csv_of(ROW), "c.csv": csv_of(ROW)}, CSV,
        "b.csv, c.csv: any of these may hold the annotations",
        "name the one to read, or several, with annotations="),
    "two COCO files of one split": (
        {f"annotations/instances_train{year}.json": DOCUMENT for year in (2014, 2017)} | A, COCO,
        ("annotations/instances_train2014.json, annotations/instances_train2017.json: "
         "any of these may hold the annotations"),
        "name the one to read, or several, with annotations="),
}

PICTURES = {
    "an empty picture": ({"a.png": "", "b.csv": csv_of(ROW)}, CSV,
        "b.csv:2: a.png can't be read as a picture (it is empty or of no known format)",
        "replace it"),
    "a text named like a picture": ({"a.png": "hello", "b.csv": csv_of(ROW)}, CSV,
        "b.csv:2: a.png can't be read as a picture (it is empty or of no known format)",
        "replace it"),
    "a picture of too many pixels": (
        {"a.png": png_that_claims(10_000, 10_000), "b.csv": csv_of(ROW)}, CSV,
        ("b.csv:2: a.png can't be read as a picture "
         "(100000000 pixels, more than the 89478485 allowed)"),
        "replace it"),
    "a decompression bomb": (
        {"a.png": png_that_claims(30_000, 30_000), "b.csv": csv_of(ROW)}, CSV,
        ("b.csv:2: a.png can't be read as a picture (Image size (900000000 pixels) exceeds limit "
         "of 178956970 pixels, could be decompression bomb DOS attack)"),
        "replace it"),
    "a truncated picture": (NINE | {"8.png": truncated_png(), "b.csv": csv_of(*ROWS)}, CSV,
        "{root}/8.png: the picture can't be decoded (image file is truncated)",
        "replace or remove it"),
    "two pictures of one stem": (
        {"labels/a.txt": "0 .5 .5 .1 .1", "images/a.png": (64, 48), "images/a.jpg": (64, 48)},
        YOLO,
        "labels/a.txt: its picture may be any of a.jpg, a.png in images",
        "keep one of them"),
    "a picture of another name": (
        {"Annotations/b.xml": XML, "images/a.png": (64, 48), "images/b.png": (64, 48)},
        VOC,
        "Annotations/b.xml: names the picture 'a.png', but 'b.png' bears its own name",
        "correct its filename"),
    "a picture listed under two names": (A | {"b.csv": csv_of(ROW, "./a.png,1,1,2,2")}, CSV,
        "b.csv:3: a.png is listed at b.csv:2 too",
        "keep one of the two"),
    "another size than the picture's": ({"Annotations/a.xml": XML, "images/a.png": (64, 40)}, VOC,
        "Annotations/a.xml: states 64 x 48 pixels, but images/a.png has 64 x 40",
        "correct that size or replace the picture"),
    "a size of nothing": (A | {"b.json": changed("images", width=0, height=0)}, COCO,
        "b.json: image 0: states 0 x 0 pixels, but a.png has 64 x 48",
        "correct that size or replace the picture"),
    "a size beyond all bounds": (A | {"b.json": changed("images", width=10**400)}, COCO,
        "b.json: image 0: states inf x 48 pixels, but a.png has 64 x 48",
        "correct that size or replace the picture"),
    "half a size": (A | {"a.xml": XML.replace("<width>64</width>", "")}, VOC,
        "a.xml: has no <width>",
        "add it or remove the <size>"),
}

OUTSIDE = {
    "a picture outside the root": (A | {"in/b.csv": csv_of("../a.png,1,1,2,2")}, f"{CSV}/in",
        "b.csv:2: '../a.png' leads out of {root}/in",
        "move it inside or set allow_outside"),
    "an absolute path": ({"b.csv": csv_of("/dev/null,1,1,2,2")}, CSV,
        "b.csv:2: there is no picture '/dev/null' in ., JPEGImages, images",
        "add it, correct the entry, or name the folder of pictures with images="),
    "annotations outside the root": (A, f"{CSV} --data.reading.annotations=../b.csv",
        "annotations: '../b.csv' leads out of {root}",
        "move it inside or set allow_outside"),
    "a split file outside the root": (
        A | {"in/b.csv": csv_of(ROW), "in/a.png": (64, 48), "s.txt": "a"},
        f"{CSV}/in --data.splits.test=../s.txt",
        "split_file: '../s.txt' leads out of {root}/in",
        "move it inside or set allow_outside"),
    "a picture linked from outside": (A | {"in/b.csv": csv_of(ROW), "in/a.png": Path("../a.png")},
        f"{CSV}/in",
        "b.csv:2: 'a.png' leads out of {root}/in",
        "move it inside or set allow_outside"),
    "annotations linked from outside": (
        {"b.csv": csv_of(ROW), "in/a.png": (64, 48), "in/b.csv": Path("../b.csv")},
        f"{CSV}/in",
        "annotations: 'b.csv' leads out of {root}/in",
        "move it inside or set allow_outside"),
    "a folder of annotations linked from outside": (
        {"far/a.xml": XML, "in/images/a.png": (64, 48), "in/Annotations": Path("../far")},
        f"{VOC}/in",
        "annotations: 'Annotations' leads out of {root}/in",
        "move it inside or set allow_outside"),
}

MALFORMED = {
    "an empty XML": (A | {"a.xml": ""}, VOC,
        "a.xml: is not well-formed XML (no element found: line 1, column 0)",
        "repair it"),
    "half an XML": (A | {"a.xml": "<annotation>\n<object>"}, VOC,
        "a.xml: is not well-formed XML (no element found: line 2, column 8)",
        "repair it"),
    "an entity bomb": (A | {"a.xml": '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>' + XML},
        VOC,
        "a.xml: declares entities, as files do that blow up or read others",
        "remove its <!DOCTYPE ...>"),
    "an entity that reads a file": (
        A | {"a.xml": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + XML},
        VOC,
        "a.xml: declares entities, as files do that blow up or read others",
        "remove its <!DOCTYPE ...>"),
    "another XML": (A | {"a.xml": "<pom/>"}, VOC,
        "a.xml: has the root <pom>, VOC has <annotation>",
        "move it elsewhere"),
    "an object without name": (A | {"a.xml": XML.replace("<name>cell</name>", "")}, VOC,
        "a.xml: object 1: has no <name>",
        "add it or remove the <object>"),
    "an empty name": (A | {"a.xml": XML.replace("cell", " ")}, VOC,
        "a.xml: object 1: has an empty <name>",
        "fill it or remove the <object>"),
    "an object without ymax": (A | {"a.xml": XML.replace("<ymax>9</ymax>", "")}, VOC,
        "a.xml: object 1: has no <ymax>",
        "add it or remove the <bndbox>"),
    "a comma in an XML's number": (A | {"a.xml": XML.replace("<xmax>9<", "<xmax>9,5<")}, VOC,
        "a.xml: object 1: xmax is '9,5', not a number",
        "correct it"),
    "an empty JSON": (A | {"b.json": ""}, COCO,
        "b.json: is not well-formed JSON (Expecting value: line 1 column 1 (char 0))",
        "repair it"),
    "half a JSON": (A | {"b.json": '{"images": [], "annotations": ['}, COCO,
        "b.json: is not well-formed JSON (Expecting value: line 1 column 32 (char 31))",
        "repair it"),
    "results without their pictures": (A | {"r.json": RESULTS}, COCO,
        "r.json: is a list of results, read with 0 files of pictures",
        "name both, such as annotations=[pictures.json, results.json]"),
    "a text for a JSON": ({"b.json": '"images"'}, COCO,
        "b.json: holds a str",
        "COCO is an object with images in it"),
    "no annotations": (
        {"b.json": {name: DOCUMENT[name] for name in ("images", "categories")}}, COCO,
        "b.json: 'annotations' is missing, expected list",
        "correct it"),
    "no categories": ({"b.json": {"images": [], "annotations": []}}, COCO,
        "b.json: 'categories' is missing, expected list",
        "correct it"),
    "a number for an image": ({"b.json": coco() | {"images": [7]}}, COCO,
        "b.json: image number 1: is 7, no JSON object",
        "correct it"),
    "an annotation without id": (A | {"b.json": changed("annotations", id=None)}, COCO,
        "b.json: annotation number 1: 'id' is missing, expected int or str",
        "correct it"),
    "an image id twice": (A | {"b.json": DOCUMENT | {"images": DOCUMENT["images"] * 2}}, COCO,
        "b.json: image 0: this id is there twice",
        "give each image an id of its own"),
    "an annotation id twice": (
        A | {"b.json": DOCUMENT | {"annotations": DOCUMENT["annotations"] * 2}},
        COCO,
        "b.json: annotation 0: this id is there twice",
        "give each annotation an id of its own"),
    "half of a character in JSON": (
        A | {"b.json": changed("categories", name="cell\ud83d")}, COCO,
        r"b.json: category 5: 'cell\ud83d' has half of a character",
        "write it whole"),
    "a category id twice": (A | {"b.json": DOCUMENT | {"categories": DOCUMENT["categories"] * 2}},
        COCO,
        "b.json: category 5: this id is there twice",
        "give each category an id of its own"),
    "an unknown image": (A | {"b.json": changed("annotations", image_id=9)}, COCO,
        "b.json: annotation 0: image_id 9 is not among the 1 of the file",
        "correct it or remove the annotation"),
    "an unknown category": (A | {"b.json": changed("annotations", category_id="x")}, COCO,
        "b.json: annotation 0: category_id 'x' is not among the 2 of the file",
        "correct it or remove the annotation"),
    "polygons only": (
        A | {"b.json": changed("annotations", bbox=None, segmentation=[[1, 1, 9, 1, 9, 9]])},
        COCO,
        "b.json: annotation 0: has no bbox",
        "add the box around its polygons, which aren't read, or remove the annotation"),
    "an empty bbox": (A | {"b.json": changed("annotations", bbox=[])}, COCO,
        "b.json: annotation 0: bbox is [], not four numbers",
        "correct it or remove the annotation"),
    "a text in a bbox": (A | {"b.json": changed("annotations", bbox=[1, 2, 3, "4"])}, COCO,
        "b.json: annotation 0: bbox is [1, 2, 3, '4'], not four numbers",
        "correct it or remove the annotation"),
    "true in a bbox": (A | {"b.json": changed("annotations", bbox=[1, 2, 3, True])}, COCO,
        "b.json: annotation 0: bbox is [1, 2, 3, True], not four numbers",
        "correct it or remove the annotation"),
    "four columns": (A | {"a.txt": "0 .5 .5 .1 .1\n\n0 .5 .5 .1"}, YOLO,
        "a.txt:3: '0 .5 .5 .1' isn't class, cx, cy, w, h and perhaps a score",
        "write these, separated by spaces, without polygons"),
    "a polygon": (A | {"a.txt": "0 .1 .1 .2 .1 .2 .2"}, YOLO,
        "a.txt:1: '0 .1 .1 .2 .1 .2 .2' isn't class, cx, cy, w, h and perhaps a score",
        "write these, separated by spaces, without polygons"),
    "commas between the numbers": (A | {"a.txt": "0,.5,.5,.1,.1"}, YOLO,
        "a.txt:1: '0,.5,.5,.1,.1' isn't class, cx, cy, w, h and perhaps a score",
        "write these, separated by spaces, without polygons"),
    "commas in the numbers": (A | {"a.txt": "0 0,5 0,5 0,1 0,1"}, YOLO,
        "a.txt:1: cx is '0,5', not a number",
        "correct it"),
    "a class name for its number": (A | {"a.txt": "cell .5 .5 .1 .1"}, YOLO,
        "a.txt:1: class is 'cell', not a whole number",
        "correct it"),
    "two hundred thousand digits and a letter": (
        A | {"a.txt": f"0 .5 .5 .1 {'1' * 200_000}x"}, YOLO,
        "a.txt:1: h is '111111111111...111111111111x', not a number",
        "correct it"),
    "a number as Python writes it": (A | {"a.txt": "0 .5 .5 1_0 .1"}, YOLO,
        "a.txt:1: w is '1_0', not a number",
        "correct it"),
    "a class without name": (A | {"a.txt": "2 .5 .5 .1 .1", "classes.txt": "cell\nplate\n"}, YOLO,
        "a.txt:1: class 2 is not among the 2 names of classes.txt",
        "correct it or add the name there"),
    "class names in one folder of two": (
        {"p/a.txt": "", "p/a.png": (9, 9), "p/classes.txt": "x", "q/b.txt": "", "q/b.png": (9, 9)},
        YOLO,
        "q/b.txt: has no class names, while p/classes.txt names those of other files",
        "put data.yaml or classes.txt into the root"),
    "broken YAML": (A | {"a.txt": "", "data.yaml": "names:\n- [a"}, YOLO,
        "data.yaml:2: is not well-formed YAML (expected ',' or ']', but got '<stream end>')",
        "repair it"),
    "half of a character in YAML": (A | {"a.txt": "", "data.yaml": 'names: ["\\ud83d"]'}, YOLO,
        r"data.yaml: '\ud83d' has half of a character",
        "write it whole"),
    "a list for a class name": (A | {"a.txt": "", "data.yaml": "names: [a, [b]]"}, YOLO,
        "data.yaml: 'names' is ['a', ['b']], no list or numbered map of texts",
        "write names: ['first', 'second']"),
    "an empty class name": (A | {"a.txt": "", "data.yaml": "names: {0: a, 1: }"}, YOLO,
        "data.yaml: 'names' is {'0': 'a', '1': ''}, no list or numbered map of texts",
        "write names: ['first', 'second']"),
    "a word for a class number": (A | {"a.txt": "", "data.yaml": "names: {one: a}"}, YOLO,
        "data.yaml: 'names' is {'one': 'a'}, no list or numbered map of texts",
        "write names: ['first', 'second']"),
    "an empty CSV": (A | {"b.csv": ""}, CSV,
        "b.csv:1: the header '' is no list of columns",
        "write image,xmin,ymin,xmax,ymax, separated by comma, semicolon or tab"),
    "another delimiter": (A | {"b.csv": csv_of(ROW).replace(",", "|")}, CSV,
        "b.csv:1: the header 'image|xmin|ymin|xmax|ymax' is no list of columns",
        "write image,xmin,ymin,xmax,ymax, separated by comma, semicolon or tab"),
    "other headers": (A | {"b.csv": csv_of(ROW, header="name,left,top,right,bottom")}, CSV,
        "b.csv:1: the header 'name,left,top,right,bottom' has no column image",
        "name one image or filename or file or path"),
    "no header": (A | {"b.csv": ROW}, CSV,
        "b.csv:1: the header 'a.png,1,1,20,20' has no column image",
        "name one image or filename or file or path"),
    "a corner missing": ({"b.csv": "image,xmin,xmax,ymin\n"}, CSV,
        "b.csv:1: the header 'image,xmin,xmax,ymin' has no column ymax",
        "name one ymax or y2"),
    "two columns of one meaning": ({"b.csv": csv_of(header="image,path,x1,y1,x2,y2")}, CSV,
        "b.csv:1: columns image, path all mean image",
        "keep one of them"),
    "a cell too many": (A | {"b.csv": csv_of(ROW + ",3")}, CSV,
        "b.csv:2: has 6 cells, the header 5",
        "correct the line"),
    "a text for a number": (A | {"b.csv": csv_of("a.png,one,1,2,2")}, CSV,
        "b.csv:2: xmin is 'one', not a number",
        "correct it"),
    "nothing for a number": (A | {"b.csv": csv_of("a.png,1,1,,2")}, CSV,
        "b.csv:2: xmax is '', not a number",
        "correct it"),
    "a formula for a number": (A | {"b.csv": csv_of("a.png,=1+1,1,2,2")}, CSV,
        "b.csv:2: xmin is '=1+1', not a number",
        "correct it"),
    "commas in numbers behind semicolons": (
        A | {"b.csv": "image;xmin;ymin;xmax;ymax\na.png;1,5;1;2;2"},
        CSV,
        "b.csv:2: xmin is '1,5', not a number",
        "correct it"),
    "no picture named": (A | {"b.csv": csv_of(",1,1,2,2")}, CSV,
        "b.csv:2: the image is empty",
        "fill it or remove the line"),
    "no label": (A | {"b.csv": csv_of(ROW + ",", header="image,xmin,ymin,xmax,ymax,label")}, CSV,
        "b.csv:2: the label is empty",
        "fill it or remove the line"),
    "a field too large": (A | {"b.csv": csv_of("a" * 200_000)}, CSV,
        "b.csv:2: is not well-formed CSV (field larger than field limit (131072))",
        "correct it"),
    "Excel's Unicode text": (A | {"b.csv": csv_of(ROW).encode("utf-16")}, CSV,
        ("b.csv: is not UTF-8 text ('utf-8' codec can't decode byte 0xff in position 0: "
         "invalid start byte)"),
        "save it as UTF-8"),
}

SPLITS = {
    "nothing listed": ({"b.csv": csv_of()}, CSV,
        "b.csv: no picture is listed",
        "name other files"),
    "no boxes": (A | {"b.json": coco(("a.png", (64, 48), []))}, COCO,
        "b.json: has no boxes",
        "annotate some or name other files"),
    "bad boxes only": (A | {"a.txt": "0 32 24 10 10"}, YOLO,
        ("a.txt: none of the 1 boxes can be used, read as YOLO text, centre and size as "
         "fractions of the picture"),
        ("correct them, such as a.txt:1: the box cx=32, cy=24, w=10, h=10 in a.png reaches "
         "2304 px outside the 64 x 48 picture")),
    "a bad box, to be refused": (A | {"b.csv": csv_of(ROW, "a.png,nan,1,2,2")},
        f"{CSV} --data.reading.on_bad=error",
        "b.csv:3: the box xmin=nan, ymin=1, xmax=2, ymax=2 in a.png is not finite",
        "correct it, or leave such boxes out with on_bad='skip'"),
    "one picture": (A | {"b.csv": csv_of(ROW)}, CSV,
        "there are too few groups to hold one out (a.png)",
        "give three at least, to train, validate and test on"),
    "two pictures": (A | {"b.csv": csv_of(ROW, "b.png,1,1,9,9"), "b.png": (64, 48)}, CSV,
        "there are too few groups to hold one out (a.png)",
        "give three at least, to train, validate and test on"),
    "no box left by min_size": (NINE | {"b.csv": csv_of(*ROWS)}, f"{CSV} --data.min_size=30",
        ("the train split has no boxes left in its 6 pictures (0 were bad, 6 not kept by "
         "classes and min_size)"),
        "change these or the splits"),
    "an unknown class": (NINE | {"b.csv": csv_of(*ROWS)}, f"{CSV} --data.classes=[cat]",
        "there is no class cat",
        "choose from object (9)"),
    "a fraction of nothing": (
        NINE | {"b.csv": csv_of(*ROWS)}, f"{CSV} --data.splits.val_fraction=0",
        "the val split has no pictures",
        "name some or give it a fraction above 0"),
    "a picture in two split files": (
        {f"JPEGImages/{n}.png": (64, 48) for n in range(4)}
        | {f"Annotations/{n}.xml": voc(f"{n}.png", (64, 48), *CELLS) for n in range(4)}
        | {"ImageSets/Main/trainval.txt": "0\n1\n2", "ImageSets/Main/test.txt": "2\n3"},
        VOC,
        "ImageSets/Main/test.txt: JPEGImages/2.png is named in ImageSets/Main/trainval.txt too",
        "put each picture into one split"),
    "a picture in two splits of a CSV": (
        A | {"b.csv": csv_of(ROW + ",train", ROW + ",test", header="image,x1,y1,x2,y2,split")},
        CSV,
        "b.csv:3: split 'test' and group '' of a.png contradict 'train' and '' at b.csv:2",
        "give a picture one split and one group"),
    "a picture in two COCO files": (
        {f"annotations/instances_{name}.json": DOCUMENT for name in ("train", "val")}
        | {"images/a.png": (64, 48)},
        COCO,
        ("annotations/instances_val.json: image 0: images/a.png is listed at "
         "annotations/instances_train.json: image 0 too"),
        "keep one of the two"),
    "a picture without annotation in a split file": (PAIR | {"s.txt": "p/a.png\n\nc\n"},
        f"{CSV} --data.splits.test=s.txt",
        "s.txt:3: no annotation is there for 'c'",
        "add its annotation file or remove the line"),
    "a name for two pictures in a split file": (PAIR | {"s.txt": "a"},
        f"{CSV} --data.splits.test=s.txt",
        "s.txt:1: 'a' may be any of p/a.png, q/a.png",
        "write the path relative to the root"),
    "a picture twice in a split file": (PAIR | {"s.txt": "p/a\np/a.png"},
        f"{CSV} --data.splits.test=s.txt",
        "s.txt: p/a.png is named twice",
        "remove line 2"),
    "a split file by class": (PAIR | {"s.txt": "p/a -1\nq/a 1"}, f"{CSV} --data.splits.test=s.txt",
        "s.txt:1: 'p/a -1' has a second column, as VOC's lists by class have",
        "give a list of pictures alone, such as train.txt"),
    "an empty split file": (PAIR | {"s.txt": "\n"}, f"{CSV} --data.splits.test=s.txt",
        "s.txt: no picture is named",
        "write one a line"),
    "an unknown split": (PAIR, f"{CSV} --data.splits.test=tset",
        "there is no split tset",
        "the files have none"),
    "an open bracket in a pattern": (PAIR, f"{CSV} --data.splits.group_pattern=(a",
        ("group_pattern '(a' is no regular expression (missing ), unterminated subpattern at "
         "position 0)"),
        "correct it"),
    "a pattern without group": (PAIR, f"{CSV} --data.splits.group_pattern=a",
        "group_pattern 'a' has no group",
        "put what names one in parentheses"),
    "a pattern that doesn't fit": (PAIR, f"{CSV} --data.splits.group_pattern=^(p)",
        "q/a.png: group_pattern '^(p)' finds no group in this path",
        "write a pattern that fits every picture"),
    "a batch larger than an epoch": (PAIR, f"{CSV} --data.batch_size=50000",
        "data draws_per_epoch 20000 is below batch_size 50000, so no batch is full",
        "lower batch_size"),
}

SCENES = "fit -c preset:quickstart"
OPTIONS = {
    "no command": ({}, "",
        "command: none is given",
        "choose from {commands}"),
    "a misspelt command": ({}, "fti",
        "command: 'fti' is none",
        "choose from {commands}"),
    "no options": ({}, "fit",
        "model, data: missing",
        "add it to the command line or a config"),
    "no root": ({}, "fit -c preset:csv",
        "data: the following arguments are required: root",
        "`lightning-bbox fit --help` lists the options"),
    "an option without value": ({}, "fit -c preset:csv --data.root --trainer.max_epochs=3",
        "data.root: has no value",
        "write one behind it"),
    "a misspelt option": ({}, f"{SCENES} --data.num_scense=9",
        "data.num_scense: there is no such option",
        "did you mean num_scenes?"),
    "an abbreviated option": ({}, f"{SCENES} --trainer.max_ep=9",
        "trainer.max_ep: there is no such option",
        "did you mean trainer.max_epochs?"),
    "an option of no group": ({}, f"{SCENES} --epochs=9",
        "epochs: there is no such option",
        "`lightning-bbox fit --help` lists the options"),
    "a misspelt option of a part": ({}, f"{SCENES} --data.crop.contxt=2",
        "data.crop.contxt: there is no such option",
        "did you mean context?"),
    "an option of another class": ({}, f"{SCENES} --model.optimizer=SGD --model.optimizer.betas=1",
        "model.optimizer.betas: there is no such option",
        ("choose from lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, "
         "differentiable, fused, or name the class that has it first")),
    "an option before its class": ({}, f"{SCENES} --model.head.loss=L1Loss",
        "model.head.loss: there is no such option",
        "name the class that has it first"),
    "a text for a whole number": ({}, f"{SCENES} --trainer.max_epochs=many",
        "trainer.max_epochs: is 'many'",
        "expected a whole number"),
    "a text for a number": ({}, f"{SCENES} --model.optimizer=SGD --model.optimizer.lr=fast",
        "model.optimizer.lr: is 'fast'",
        "expected a number"),
    "a pixel to begin at that none begins at": ({}, f"{VOC} --data.reading.voc_base=2",
        "data.reading.voc_base: is '2'",
        "expected 0, 1"),
    "a text for a list": ({}, f"{CSV} --data.classes=cell",
        "data.classes: is 'cell'",
        "expected a list"),
    "an unknown choice": ({}, f"{SCENES} --data.kind=blue",
        "data.kind: is 'blue'",
        "expected 'bright', 'polar', 'texture', 'template'"),
    "neither choice nor switch": ({}, f"{SCENES} --data.compile=maybe",
        "data.compile: is 'maybe'",
        "expected 'auto', true or false, 'triton'"),
    "an unknown format": ({}, f"{CSV} --data.reading.format=pascal",
        "data.reading.format: is 'pascal'",
        "expected 'auto', 'voc', 'coco', 'yolo', 'csv'"),
    "an unknown class": ({}, f"{SCENES} --model.head=NoHead",
        "model.head: is 'NoHead'",
        "expected BinHead, LikelihoodHead, LinearHead, SoftArgmaxHead"),
    "a misspelt class of many": ({}, f"{SCENES} --model.optimizer=adamw",
        "model.optimizer: is 'adamw'",
        "did you mean AdamW?"),
    "crops that a layer does not take": ({}, f"{SCENES} --model.backbone=AlexNet",
        "data.crop.size is 45, and fc6 of AlexNet in torchvision's layout takes at least 63 px",
        "set it so, or read an earlier layer"),
    "weights of the other layout": ({},
        f"{SCENES} --model.backbone=AlexNet --model.backbone.weights=caffe",
        "AlexNet weights 'caffe' don't fit layout 'torchvision'",
        "set layout to 'caffe'"),
    "a class for another part": ({}, f"{SCENES} --model.head=SceneDataModule",
        "model.head: is 'SceneDataModule'",
        "expected BinHead, LikelihoodHead, LinearHead, SoftArgmaxHead"),
    "a number out of range": ({}, f"{SCENES} --data.crop.context=0.5",
        "crop context 0.5 is outside 1..10",
        "1 cuts the proposal itself"),
    "no such preset": ({}, "fit -c preset:cvs",
        "there is no preset 'cvs'",
        ("choose one of alexnet_fc6_ridge, alexnet_fc6_sgd, bccd, bccd_fast, coco, csv, deeppcb, "
        "naive, patches, quickstart, rbc, rcnn_pool5, voc, yolo")),
    "no such config": ({}, "fit -c {root}/c.yaml",
        "{root}/c.yaml: can't be read (No such file or directory)",
        "check its name and permissions"),
    "a folder for a config": ({}, "fit -c {root}",
        "{root}: can't be read (Is a directory)",
        "check its name and permissions"),
    "an empty config": ({"c.yaml": ""}, "fit -c {root}/c.yaml",
        "{root}/c.yaml: holds nothing, no settings",
        "write options as in trainer: {max_epochs: 9}"),
    "a text for a config": ({"c.yaml": "some words"}, "fit -c {root}/c.yaml",
        "{root}/c.yaml: holds 'some words', no settings",
        "write options as in trainer: {max_epochs: 9}"),
    "a picture for a config": ({"c.yaml": b"\x89PNG\r\n\x1a\n"}, "fit -c {root}/c.yaml",
        ("{root}/c.yaml: is not UTF-8 text ('utf-8' codec can't decode byte 0x89 in position "
         "0: invalid start byte)"),
        "give a file in YAML"),
    "a broken config": ({"c.yaml": "trainer: {max_epochs: 9\n"}, "fit -c {root}/c.yaml",
        ("{root}/c.yaml:2: is not well-formed YAML "
         "(expected ',' or '}', but got '<stream end>')"),
        "repair it"),
    "a misspelt option in a config": (
        {"c.yaml": "data: {class_path: SceneDataModule, init_args: {knd: bright}}"},
        f"{SCENES} -c {{root}}/c.yaml",
        "{root}/c.yaml: data.knd: there is no such option",
        "did you mean kind?"),
    "a misspelt trainer option in a config": ({"c.yaml": "trainer: {max_epoch: 9}"},
        f"{SCENES} -c {{root}}/c.yaml",
        "trainer.max_epoch: there is no such option",
        "did you mean trainer.max_epochs?"),
    "a wrong type in a config": (
        {"c.yaml": "data: {class_path: SceneDataModule, init_args: {num_scenes: many}}"},
        f"{SCENES} -c {{root}}/c.yaml",
        "{root}/c.yaml: data.num_scenes: is 'many'",
        "expected a whole number"),
    "a wrong class in a config": ({"c.yaml": "data: {class_path: lightning_bbox.ScenesDataModule}"},
        f"{SCENES} -c {{root}}/c.yaml",
        "{root}/c.yaml: data: is 'lightning_bbox.ScenesDataModule'",
        "expected BoxDataModule, PatchDataModule, SceneDataModule"),
    "a class of torch for a head": (
        {"c.yaml": "model: {class_path: BoxRegressor, init_args: {head: torch.nn.Linear}}"},
        f"{SCENES} -c {{root}}/c.yaml",
        "{root}/c.yaml: model.head: is 'torch.nn.Linear'",
        "expected BinHead, LikelihoodHead, LinearHead, SoftArgmaxHead"),
}

CPU = f"{SCENES} --trainer.accelerator=cpu"
MACHINE = {
    "a precision that a CPU hasn't": ({}, f"{CPU} --trainer.precision=16-mixed",
        "trainer.precision: is '16-mixed', which a CPU can't do",
        "choose bf16-mixed or 32-true"),
    "no devices": ({}, f"{CPU} --trainer.devices=0",
        "trainer: `Trainer(devices='0')` value is not a valid input using cpu accelerator",
        "correct its accelerator, devices, strategy or precision"),
    "a text for the number of devices": ({}, f"{CPU} --trainer.devices=all",
        "trainer: `devices` selected with `CPUAccelerator` should be an int > 0",
        "correct its accelerator, devices, strategy or precision"),
    "a misspelt accelerator": ({}, f"{SCENES} --trainer.accelerator=gpuu",
        "trainer: You selected an invalid accelerator name: `accelerator='gpuu'`",
        "correct its accelerator, devices, strategy or precision"),
    "a misspelt strategy": ({}, f"{CPU} --trainer.strategy=dpp",
        "trainer: You selected an invalid strategy name: `strategy='dpp'`",
        "correct its accelerator, devices, strategy or precision"),
}
GPUS = {
    "a GPU where there is none": ({}, f"{SCENES} --trainer.accelerator=gpu",
        "trainer: No supported gpu backend found",
        "correct its accelerator, devices, strategy or precision"),
    "more GPUs than there are": ({}, f"{SCENES} --trainer.accelerator=gpu --trainer.devices=8",
        "trainer: No supported gpu backend found",
        "correct its accelerator, devices, strategy or precision"),
}
# fmt: on
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
TABLES = (NOT_THERE, PICTURES, OUTSIDE, MALFORMED, SPLITS, OPTIONS, MACHINE)
CASES = [pytest.param(*case, id=name) for table in TABLES for name, case in table.items()]
CASES += [pytest.param(*case, id=name, marks=no_gpu) for name, case in GPUS.items()]


def words_of(command, root):
    """Split a command into words, and fill in the root."""
    return [word.replace("{root}", str(root)) for word in shlex.split(command)]


@pytest.mark.parametrize(("files", "command", "problem", "remedy"), CASES)
def test_the_command_says_in_one_sentence(
    tmp_path, monkeypatch, capsys, files, command, problem, remedy
):
    root = tmp_path / "data"
    root.mkdir()
    write(root, files)
    monkeypatch.chdir(tmp_path)
    assert main(words_of(command, root)) == 2
    sentence = f"{problem}; {remedy}".replace("{root}", str(root))
    sentence = sentence.replace("{commands}", ", ".join(COMMANDS))
    assert capsys.readouterr().err == f"lightning-bbox: {sentence}\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028"])
def test_a_refusal_is_one_line_whatever_it_quotes(end):
    assert str(BadInput.at(f"a{end}b", "is none", "go")) == "a b: is none; go"


def test_a_refusal_can_be_read_whatever_it_quotes():
    sentence = str(BadInput.at("a.txt:1", "1" * 1_000_000, "correct it"))
    assert len(sentence) < 2000
    assert sentence.startswith("a.txt:1: 1")
    assert " ... " in sentence
    assert sentence.endswith("1; correct it")


def test_without_a_compiler_compiling_is_refused(tmp_path, monkeypatch, capsys):
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(words_of(f"{CSV} --data.compile=true --trainer.accelerator=cpu", tmp_path)) == 2
    sentence = "compile is true, but no C++ compiler was found; install g++, set CXX, or use auto"
    assert capsys.readouterr().err == f"lightning-bbox: {sentence}\n"


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    """Simulated, for root may read any."""
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    write(tmp_path, A | {"b.csv": csv_of(ROW), "train/c.csv": ""})
    monkeypatch.setattr(os, "scandir", denied)
    sentence = (
        f"{tmp_path}/train: can't be read (Permission denied); check its name and permissions"
    )
    with pytest.raises(BadInput) as refusal:
        read_annotations(tmp_path)
    assert str(refusal.value) == sentence
