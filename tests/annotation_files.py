"""Data sets that the tests of the readers write."""

import json
import re
from pathlib import Path

from PIL import Image

# Pictures by stem: width, height, and boxes by class as xyxy edges.
SCENE = {
    "a": (64, 48, [("cell", (5.0, 6.0, 20.5, 30.25)), ("plate", (0.0, 0.0, 64.0, 48.0))]),
    "b": (32, 40, [("cell", (1.0, 2.0, 3.0, 4.0))]),
    "empty": (16, 16, []),
}


def write(root, files):
    """Write texts by path; a (width, height) becomes a picture, a path a link to there."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("L", content).save(path)
        elif isinstance(content, Path):
            path.symlink_to(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def voc(name, size, *boxes):
    """Compose VOC XML; boxes are (class, (xmin, ymin, xmax, ymax)) as they are to be written."""
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in boxes
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def coco(*images, classes=("cell", "plate")):
    """Compose COCO; images are (file name, size, boxes as (class, (x, y, w, h)))."""
    annotations = [
        {"image_id": n, "category_id": classes.index(label) + 5, "bbox": list(box), "iscrowd": 0}
        for n, (_, _, boxes) in enumerate(images)
        for label, box in boxes
    ]
    return {
        "images": [
            {"id": n, "file_name": name, "width": size[0], "height": size[1]}
            for n, (name, size, _) in enumerate(images)
        ],
        "annotations": [entry | {"id": n} for n, entry in enumerate(annotations)],
        "categories": [{"id": n + 5, "name": name} for n, name in enumerate(classes)],
    }


def write_voc(root, base=1):
    for stem, (width, height, boxes) in SCENE.items():
        written = [
            (label, (x1 + base, y1 + base, x2 + base - 1, y2 + base - 1))
            for label, (x1, y1, x2, y2) in boxes
        ]
        size = (width, height)
        xml = voc(f"{stem}.png", size, *written)
        write(root, {f"Annotations/{stem}.xml": xml, f"JPEGImages/{stem}.png": size})


def write_coco(root):
    images = []
    for stem, (width, height, boxes) in SCENE.items():
        moved = [(label, (x1, y1, x2 - x1, y2 - y1)) for label, (x1, y1, x2, y2) in boxes]
        images.append((f"{stem}.png", (width, height), moved))
        write(root, {f"{stem}.png": (width, height)})
    write(root, {"_annotations.coco.json": coco(*images)})


def write_yolo(root):
    for stem, (width, height, boxes) in SCENE.items():
        lines = [
            f"{('cell', 'plate').index(label)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
            f"{(x2 - x1) / width} {(y2 - y1) / height}\n"
            for label, (x1, y1, x2, y2) in boxes
        ]
        write(root, {f"labels/{stem}.txt": "".join(lines), f"images/{stem}.png": (width, height)})
    write(root, {"data.yaml": "names: [cell, plate]\n"})


def write_csv(root):
    lines = ["class;x2;x1;y1;y2;file;remark"]
    for stem, (width, height, boxes) in SCENE.items():
        write(root, {f"{stem}.png": (width, height)})
        lines += [f"{label};{x2};{x1};{y1};{y2};{stem}.png;" for label, (x1, y1, x2, y2) in boxes]
    write(root, {"boxes.csv": "\n".join(lines)})


def csv_of(*rows, header="image,xmin,ymin,xmax,ymax"):
    return "\n".join([header, *rows])


# One picture and box in every format, and nine of them in CSV.
A = {"a.png": (64, 48)}
ROW = "a.png,1,1,20,20"
NINE = {f"{n}.png": (64, 48) for n in range(9)}
ROWS = [f"{n}.png,1,1,20,20" for n in range(9)]
CELLS = [("cell", (1, 1, 5, 5))]
XML = voc("a.png", (64, 48), ("cell", (1, 1, 9, 9)))
DOCUMENT = coco(("a.png", (64, 48), CELLS))
RESULTS = [{"image_id": 0, "category_id": 5, "bbox": [1, 1, 5, 5], "score": 0.5}]


def changed(key, **changes):
    """Change the first entry of a list of the COCO document; None takes a key out."""
    document = json.loads(json.dumps(DOCUMENT))
    entry = document[key][0] | changes
    document[key][0] = {name: value for name, value in entry.items() if value is not None}
    return document


def pattern_of(sentence, **words):
    """Return what a sentence matches where `...` stands for any words, and more may follow."""
    for name, word in words.items():
        sentence = sentence.replace(f"{{{name}}}", str(word))
    return "^" + ".*".join(map(re.escape, sentence.split("...")))
