"""Files that can't be meant: what is said, where it stands, and what to do.

A row is named by what is wrong. Behind that come the files, the sentence (`...` stands for any
words, and more may follow), and what the reader is asked for. `{root}` is the folder of the files.
`cli/test_bad_input` has more of them, whole sentences that the command line says.
"""

import os
import struct
import zlib
from pathlib import Path

import pytest

from lightning_bbox import BadInput, BoxDataModule
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core.errors import shortened
from lightning_bbox.data.options import Splits
from tests.annotation_files import (
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
    pattern_of,
    write,
)

UNREADABLE = Path("/proc/self/mem")  # even for root
LONG = "a" * 999
NEITHER_FOLDER = (
    "there is no picture 'a.png' in ., JPEGImages, images, data; add it, correct the entry"
)
NO_PICTURE = "a.png can't be read as a picture"
NOT_FIVE = "isn't class, cx, cy, w, h ...; write one of these, separated by spaces, or say kpt"
NO_NAMES = "no list or numbered map of texts; write names: ['first', 'second']"
NO_COLUMNS = "is no list of columns; write image,xmin,ymin,xmax,ymax, separated by comma, semi"


def png_that_claims(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    begun = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + begun + b"\0\0\0\0IDAT"


# Laid out as tables: what is there, what is said, what is asked for.
# fmt: off
AUTO = {
    "nothing in the folder": (A,
        ("{root}: no annotations found, looked for *.xml in Annotations, ... *.txt named as "
         "pictures; name them with annotations= (--data.reading.annotations)")),
    "no known suffix": (
        {"b.dat": ""}, "b.dat: has the suffix of no known format; name it with format= (--data",
        {"annotations": "b.dat"}),
}
VOC = {
    "a link to nowhere": (A | {"a.xml": Path("gone.xml")},
        "a.xml: can't be read (No such file or directory); check its name and permissions"),
    "another picture's name": (
        {"Annotations/b.xml": XML, "images/a.png": (64, 48), "images/b.png": (64, 48)},
        "Annotations/b.xml: names the picture 'a.png', but 'b.png' ... own name; correct its file"),
    "another size than the picture's": ({"Annotations/a.xml": XML, "images/a.png": (64, 40)},
        "Annotations/a.xml: states 64 x 48 pixels, but images/a.png has 64 x 40; correct"),
    "half a size": (A | {"a.xml": XML.replace("<width>64</width>", "")},
        "a.xml: has no <width>; add it or remove the <size>"),
    "half": (A | {"a.xml": "<annotation>\n<object>"},
        "a.xml: is not well-formed XML (no element found: line 2, column 8); repair"),
    "an entity bomb": (
        A | {"a.xml": '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>' + XML},
        "a.xml: declares entities, ...; remove its <!DOCTYPE"),
    "an entity that reads a file": (
        A | {"a.xml": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + XML},
        "a.xml: declares entities, ...; remove its <!DOCTYPE"),
    "another XML": (A | {"a.xml": "<pom/>"},
        "a.xml: has the root <pom>, VOC has <annotation>; move it"),
    "an object without name": (A | {"a.xml": XML.replace("<name>cell</name>", "")},
        "a.xml: object 1: has no <name>; add it or remove the <object>"),
    "an empty name": (A | {"a.xml": XML.replace("cell", " ")},
        "a.xml: object 1: has an empty <name>; fill it or remove the <object>"),
    "a comma in a number": (A | {"a.xml": XML.replace("<xmax>9<", "<xmax>9,5<")},
        "a.xml: object 1: xmax is '9,5', not a number; correct"),
}
COCO = {
    "two files of one split": (
        {f"annotations/instances_train{year}.json": DOCUMENT for year in (2014, 2017)} | A,
        ("annotations/instances_train2014.json, annotations/instances_train2017.json: any of these "
         "may hold the annotations; name the one to read, or several, with annotations= (--data")),
    "a picture in two files": (
        {f"annotations/instances_{name}.json": DOCUMENT for name in ("train", "val")}
        | {"images/a.png": (64, 48)},
        ("annotations/instances_val.json: image 0: images/a.png is listed at "
         "annotations/instances_train.json: image 0 too; keep one")),
    "a size beyond all bounds": (A | {"b.json": changed("images", width=10**400)},
        "b.json: image 0: states inf x 48 pixels, but a.png has 64 x 48; correct that size"),
    "fractions of the picture": (
        A | {"b.json": changed("annotations", bbox=[0.1, 0.2, 0.5, 0.6])},
        "b.json: annotation 0: x=0.1, y=0.2, width=0.5, height=0.6 and all other boxes lie betwe"),
    "half": (A | {"b.json": '{"images": [], "annotations": ['},
        "b.json: is not well-formed JSON (Expecting value: line 1 column 32 (char 31)); repair"),
    "results without their pictures": (A | {"r.json": RESULTS},
        ("r.json: is a list of results, read with 0 files of pictures; name both, as in "
         "annotations=['pictures.json', 'results.json'] (--data.reading.annotations=[pict")),
    "a text": ({"b.json": '"images"'},
        "b.json: holds a str; COCO is an object with images"),
    "no annotations": ({"b.json": {name: DOCUMENT[name] for name in ("images", "categories")}},
        "b.json: 'annotations' is missing, expected list; correct"),
    "a number for an image": ({"b.json": coco() | {"images": [7]}},
        "b.json: image number 1: is 7, no JSON object; correct"),
    "an image id twice": (A | {"b.json": DOCUMENT | {"images": DOCUMENT["images"] * 2}},
        "b.json: image 0: this id is there twice; give each image an id of its own"),
    "an annotation id twice": (
        A | {"b.json": DOCUMENT | {"annotations": DOCUMENT["annotations"] * 2}},
        "b.json: annotation 0: this id is there twice; give each annotation an id of its own"),
    "a category id twice": (A | {"b.json": DOCUMENT | {"categories": DOCUMENT["categories"] * 2}},
        "b.json: category 5: this id is there twice; give each category an id of its own"),
    "half of a character": (A | {"b.json": changed("categories", name="cell\ud83d")},
        r"b.json: category 5: 'cell\ud83d' has half of a character; write it whole"),
    "an unknown image": (A | {"b.json": changed("annotations", image_id=9)},
        "b.json: annotation 0: image_id 9 is not among the 1 of the file; correct it or remove"),
}
YOLO = {
    "two pictures of one stem": (
        {"labels/a.txt": "0 .5 .5 .1 .1", "images/a.png": (64, 48), "images/a.jpg": (64, 48)},
        "labels/a.txt: its picture may be any of a.jpg, a.png in images; keep one"),
    "four columns": (A | {"a.txt": "0 .5 .5 .1 .1\n\n0 .5 .5 .1"},
        f"a.txt:3: '0 .5 .5 .1' {NOT_FIVE}"),
    "a class name for its number": (A | {"a.txt": "cell .5 .5 .1 .1"},
        "a.txt:1: class is 'cell', not a whole number; correct"),
    "two hundred thousand digits and a letter": (A | {"a.txt": f"0 .5 .5 .1 {'1' * 200_000}x"},
        "a.txt:1: h is '111111111111...111111111111x', not a number; correct"),
    "a number as Python writes it": (A | {"a.txt": "0 .5 .5 1_0 .1"},
        "a.txt:1: w is '1_0', not a number; correct"),
    "a class without name": (A | {"a.txt": "2 .5 .5 .1 .1", "classes.txt": "cell\nplate\n"},
        "a.txt:1: class 2 is not among the 2 names of classes.txt; correct it or add the name"),
    "class names in one folder of two": (
        {"p/a.txt": "", "p/a.png": (9, 9), "p/classes.txt": "x", "q/b.txt": "", "q/b.png": (9, 9)},
        "q/b.txt: has no class names, while p/classes.txt names those ...; put data.yaml or class"),
    "broken YAML": (A | {"a.txt": "", "data.yaml": "names:\n- [a"},
        "data.yaml:2: is not well-formed YAML (expected ',' or ']'...); repair"),
    "half of a character in YAML": (A | {"a.txt": "", "data.yaml": 'names: ["\\ud83d"]'},
        r"data.yaml: '\ud83d' has half of a character; write it whole"),
    "a list for a class name": (A | {"a.txt": "", "data.yaml": "names: [a, [b]]"},
        f"data.yaml: 'names' is ['a', ['b']], {NO_NAMES}"),
    "an empty class name": (A | {"a.txt": "", "data.yaml": "names: {0: a, 1: }"},
        f"data.yaml: 'names' is {{'0': 'a', '1': ''}}, {NO_NAMES}"),
    "a word for a class number": (A | {"a.txt": "", "data.yaml": "names: {one: a}"},
        f"data.yaml: 'names' is {{'one': 'a'}}, {NO_NAMES}"),
}
CSV = {
    "a folder for the annotation file": ({"b.csv/readme": ""},
        ("{root}: no annotations found, looked for csv in b.csv; correct annotations= "
         "(--data.reading.annotations) or format= (--data.reading.format)"),
        {"annotations": "b.csv"}),
    "two files in a folder that is named": (
        A | {"s/b.csv": csv_of(ROW), "s/c.csv": csv_of(ROW)},
        "s/b.csv, s/c.csv: any of these may hold the annotations; name the files themselves with",
        {"annotations": "s"}),
    "an annotation file that may not be read": (A | {"b.csv": UNREADABLE},
        "b.csv: can't be read (Input/output error); check its name and permissions",
        {"allow_outside": True}),
    "two files that may be the one": (A | {"b.csv": csv_of(ROW), "c.csv": csv_of(ROW)},
        "b.csv, c.csv: any of these may hold the annotations; name the one to read, or several"),
    "no picture": ({"b.csv": csv_of(ROW)}, f"b.csv:2: {NEITHER_FOLDER}"),
    "one picture missing": (A | {"b.csv": csv_of(ROW, "c.png,1,1,20,20")},
        "b.csv:3: 1 of 2 pictures are not in .: 'c.png'; add it, correct the entry"),
    "twenty pictures missing": (
        A | {"b.csv": csv_of(ROW, *(f"{n}.png,1,1,20,20" for n in range(20)))},
        ("b.csv:3: 20 of 21 pictures are not in .: '0.png', '1.png', ... '11.png' and 8 more; "
         "add them, correct the entries, or name the folder of pictures with images= (--data")),
    "all pictures missing": (
        {"b.csv": csv_of("a.png,1,1,2,2", "b.png,1,1,2,2")},
        "b.csv:2: 2 of 2 pictures are not in ., JPEGImages, images, data: 'a.png', 'b.png'; add"),
    "a folder for a picture": ({"b.csv": csv_of(ROW), "a.png/readme": ""},
        f"b.csv:2: {NEITHER_FOLDER}"),
    "a name too long for any file": ({"b.csv": csv_of(f"{LONG},1,1,2,2")},
        f"b.csv:2: there is no picture '{shortened(LONG)}' in ., JPEGImages, images, data; add it"),
    "an absolute path": ({"b.csv": csv_of("/dev/null,1,1,2,2")},
        "b.csv:2: there is no picture '/dev/null' in ., JPEGImages, images, data; add it, correct"),
    "a text named like a picture": ({"a.png": "hello", "b.csv": csv_of(ROW)},
        f"b.csv:2: {NO_PICTURE} (it is empty or of no known format); replace it"),
    "a picture that may not be read": ({"a.png": UNREADABLE, "b.csv": csv_of(ROW)},
        f"b.csv:2: {NO_PICTURE} (Input/output error); replace it",
        {"allow_outside": True}),
    "a picture of too many pixels": (
        {"a.png": png_that_claims(10_000, 10_000), "b.csv": csv_of(ROW)},
        (f"b.csv:2: {NO_PICTURE} (it has 100000000 pixels, and more than 89478485 may ..."
        "); if so many pixels are meant, set data.reading.max_pixels")),
    "a decompression bomb": ({"a.png": png_that_claims(30_000, 30_000), "b.csv": csv_of(ROW)},
        f"b.csv:2: {NO_PICTURE} (... could be decompression bomb DOS attack); if so many pixels"),
    "a picture under two names": (A | {"b.csv": csv_of(ROW, "./a.png,1,1,2,2")},
        "b.csv:3: a.png is listed at b.csv:2 too; keep one"),
    "empty": (A | {"b.csv": ""}, f"b.csv:1: the header '' {NO_COLUMNS}"),
    "another delimiter": (A | {"b.csv": csv_of(ROW).replace(",", "|")},
        f"b.csv:1: the header 'image|xmin|ymin|xmax|ymax' {NO_COLUMNS}"),
    "no header": (A | {"b.csv": ROW},
        "b.csv:1: the header 'a.png,1,1,20,20' has no column image; name one image or filename"),
    "a corner missing": ({"b.csv": "image,xmin,xmax,ymin\n"},
        "b.csv:1: the header 'image,xmin,xmax,ymin' has no column ymax; name one ymax or y2"),
    "two columns of one meaning": ({"b.csv": csv_of(header="image,path,x1,y1,x2,y2")},
        "b.csv:1: columns image, path all mean image; keep one"),
    "a cell too many": (A | {"b.csv": csv_of(ROW + ",3")},
        "b.csv:2: has 6 cells, the header 5; correct"),
    "a formula for a number": (A | {"b.csv": csv_of("a.png,=1+1,1,2,2")},
        "b.csv:2: xmin is '=1+1', not a number; correct"),
    "commas in numbers behind semicolons": (
        A | {"b.csv": "image;xmin;ymin;xmax;ymax\na.png;1,5;1;2;2"},
        "b.csv:2: xmin is '1,5', not a number; correct"),
    "fractions of the picture": (
        A | {"b.csv": csv_of("a.png,nan,0,1,1", "a.png,0.1,0.2,0.6,1", "a.png,0,0,1,1")},
        ("b.csv:3: xmin=0.1, ymin=0.2, xmax=0.6, ymax=1 and all other boxes lie between 0 and 1, "
         "as fractions of a picture do; if they are, say units='fraction'")),
    "no picture named": (A | {"b.csv": csv_of(",1,1,2,2")},
        "b.csv:2: the image is empty; fill it or remove"),
    "no label": (A | {"b.csv": csv_of(ROW + ",", header="image,xmin,ymin,xmax,ymax,label")},
        "b.csv:2: the label is empty; fill it or remove"),
    "a field too large": (A | {"b.csv": csv_of("a" * 200_000)},
        "b.csv:2: is not well-formed CSV (field larger than field limit (131072)); correct"),
    "Excel's Unicode text": (A | {"b.csv": csv_of(ROW).encode("utf-16")},
        "b.csv: is not UTF-8 text (... byte 0xff in position 0...); save it as UTF-8"),
    "nothing listed": ({"b.csv": csv_of()},
        "b.csv: no picture is listed; name other files with annotations= (--data.reading.annot"),
    "a picture in two splits": (
        A | {"b.csv": csv_of(ROW + ",train", ROW + ",test", header="image,x1,y1,x2,y2,split")},
        "b.csv:3: split 'test' and group '' of a.png contradict 'train' and '' at b.csv:2; give"),
    "an open bracket in a pattern": (A | {"b.csv": csv_of(ROW)},
        "group_pattern '(a' is no regular expression (missing ), ...); correct",
        {"group_pattern": "(a"}),
    "a pattern without group": (A | {"b.csv": csv_of(ROW)},
        "group_pattern 'a' has no group; put what names one in parentheses",
        {"group_pattern": "a"}),
}
OUTSIDE = {
    "a picture": ({"in/b.csv": csv_of("../a.png,1,1,2,2")}, "b.csv:2: '../a.png'"),
    "a picture linked": (
        A | {"in/b.csv": csv_of(ROW), "in/a.png": Path("../a.png")}, "b.csv:2: 'a.png'"),
    "annotations linked": (
        {"b.csv": csv_of(ROW), "in/a.png": (64, 48), "in/b.csv": Path("../b.csv")},
        "annotations: 'b.csv'"),
    "a folder of annotations linked": (
        {"far/a.xml": XML, "in/images/a.png": (64, 48), "in/Annotations": Path("../far")},
        "annotations: 'Annotations'"),
    "a split file": (
        {"in/b.csv": csv_of(ROW), "in/a.png": (64, 48), "s.txt": "a"}, "split_file: '../s.txt'",
        {"split_file": "../s.txt"}),
}

PAIR = {
    "p/a.png": (64, 48),
    "q/a.png": (64, 48),
    "b.csv": csv_of("p/a.png,1,1,9,9", "q/a.png,1,1,9,9"),
}
LISTED = {"splits": Splits(test="s.txt")}
SPLITS = {
    "no split file": (A | {"b.csv": csv_of(ROW)},
        "s.txt: can't be read (No such file or directory); check its name",
        LISTED),
    "a picture without annotation": (PAIR | {"s.txt": "p/a.png\n\nc\n"},
        "s.txt:3: no annotation is there for 'c'; add its annotation file or remove the line",
        LISTED),
    "pictures without annotation": (PAIR | {"s.txt": "p/a.png\n\nc\nd\n"},
        ("s.txt:3: no annotations are there for 2 lines: 'c', 'd'; "
         "add their annotation files or remove the lines"),
        LISTED),
    "a name for two pictures": (PAIR | {"s.txt": "a"},
        "s.txt:1: 'a' may be any of p/a.png, q/a.png; write the path relative to the root",
        LISTED),
    "a picture twice": (PAIR | {"s.txt": "p/a\np/a.png"},
        "s.txt: p/a.png is named twice; remove line 2",
        LISTED),
    "a list by class": (PAIR | {"s.txt": "p/a -1\nq/a 1"},
        "s.txt:1: 'p/a -1' has a second column, as VOC's ...; give a list of pictures alone",
        LISTED),
    "an empty split file": (PAIR | {"s.txt": "\n"},
        "s.txt: no picture is named; write one a line",
        LISTED),
    "an unknown split": (PAIR,
        "there is no split tset; the files have none",
        {"splits": Splits(test="tset")}),
    "no boxes": (A | {"b.json": coco(("a.png", (64, 48), []))},
        "b.json: has no boxes; annotate some, or name other files with annotations= (--data.read"),
    "bad boxes only": (A | {"a.txt": "0 .5 .5 0 .1"},
        ("a.txt: none of the 1 boxes can be used, read as YOLO text, ... fractions of the picture; "
         "correct them, such as a.txt:1: the box cx=0.5, cy=0.5, w=0, h=0.1 in a.png has no pos")),
    "two pictures": (A | {"b.csv": csv_of(ROW, "b.png,1,1,9,9"), "b.png": (64, 48)},
        "there are too few groups to hold one out (a.png); give three at least"),
    "an unknown class": (NINE | {"b.csv": csv_of(*ROWS)},
        "there is no class cat; choose from object (9)",
        {"classes": ["cat"]}),
    "a fraction of nothing": (NINE | {"b.csv": csv_of(*ROWS)},
        "the val split has no pictures; name some or give it a fraction above 0",
        {"splits": Splits(val_fraction=0)}),
    "a batch larger than an epoch": (PAIR,
        "data draws_per_epoch 20000 is below batch_size 50000...; lower batch_size",
        {"batch_size": 50_000}),
}
# fmt: on


def rows(table, **options):
    """Return the rows of a table as parameters, with options that all of them have."""
    return [
        pytest.param(*row[:2], options | dict(*row[2:]), id=" ".join([*options.values(), name]))
        for name, row in table.items()
    ]


FORMATS = {"auto": AUTO, "voc": VOC, "coco": COCO, "yolo": YOLO, "csv": CSV}
FILES = [row for name, table in FORMATS.items() for row in rows(table, format=name)]
COLUMNS = ("files", "sentence", "options")


@pytest.mark.parametrize(COLUMNS, FILES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as commands do
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, files, sentence, options):
    write(tmp_path, files)
    with pytest.raises(BadInput, match=pattern_of(sentence, root=tmp_path)):
        read_annotations(tmp_path, **options)


@pytest.mark.parametrize(COLUMNS, rows(OUTSIDE))
def test_a_file_outside_the_root_is_refused(tmp_path, files, sentence, options):
    write(tmp_path, A | files)
    expected = f"{sentence} leads out of {tmp_path}/in; move it inside or set allow_outside=True"
    with pytest.raises(BadInput, match=pattern_of(expected)):
        read_annotations(tmp_path / "in", **options)


@pytest.mark.parametrize(COLUMNS, rows(SPLITS))
def test_pictures_that_cannot_be_split_are_refused(tmp_path, files, sentence, options):
    write(tmp_path, files)
    with pytest.raises(BadInput, match=pattern_of(sentence)):
        BoxDataModule(tmp_path, **options).read()


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    """Simulated, for root may read any."""
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    write(tmp_path, A | {"b.csv": csv_of(ROW), "train/c.csv": ""})
    monkeypatch.setattr(os, "scandir", denied)
    expected = "{root}/train: can't be read (Permission denied); check its name and permissions"
    with pytest.raises(BadInput, match=pattern_of(expected, root=tmp_path)):
        read_annotations(tmp_path)
