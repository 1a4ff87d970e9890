"""Small data sets in every format, to be damaged: twelve pictures of three rectangles each."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import yolo_folder


def _boxes(folder: Path) -> dict[str, list[list[int]]]:
    """Return the corners of each picture's boxes, and remove the CSV."""
    lines = (folder / "boxes.csv").read_text().splitlines()[1:]
    (folder / "boxes.csv").unlink()
    boxes: dict[str, list[list[int]]] = {}
    for line in lines:
        name, *corners, _ = line.split(",")
        boxes.setdefault(name, []).append([int(corner) for corner in corners])
    return boxes


def _coco(folder: Path) -> None:
    boxes = _boxes(folder)
    images = [{"id": i, "file_name": n, "width": 120, "height": 80} for i, n in enumerate(boxes)]
    annotations = [
        {"id": 3 * i + j, "image_id": i, "category_id": 1, "bbox": [x, y, right - x, low - y]}
        for i, name in enumerate(boxes)
        for j, (x, y, right, low) in enumerate(boxes[name])
    ]
    categories = [{"id": 1, "name": "part"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content, indent=1))


def _voc(folder: Path) -> None:
    for name, boxes in _boxes(folder).items():
        objects = "".join(
            "<object><name>part</name><bndbox>"
            f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax><ymax>{low}</ymax>"
            "</bndbox></object>\n"
            for x, y, right, low in boxes
        )
        size = "<size><width>120</width><height>80</height><depth>3</depth></size>\n"
        text = f"<annotation><filename>{name}</filename>\n{size}{objects}</annotation>\n"
        (folder / name).with_suffix(".xml").write_text(text)


def _cvat(folder: Path) -> None:
    images = "".join(
        f'<image id="{n}" name="{name}" width="120" height="80">\n'
        + "".join(
            f'<box label="part" xtl="{x}" ytl="{y}" xbr="{right}" ybr="{low}" rotation="0"/>\n'
            for x, y, right, low in boxes
        )
        + '<polygon label="part" points="1,1;9,1;5,9"/></image>\n'
        for n, (name, boxes) in enumerate(_boxes(folder).items())
    )
    text = f"<annotations><version>1.1</version>\n{images}</annotations>\n"
    (folder / "annotations.xml").write_text(text)


def _labelme(folder: Path) -> None:
    for name, boxes in _boxes(folder).items():
        shapes = [
            {"label": "part", "shape_type": "rectangle", "points": [[right, y], [x, low]]}
            for x, y, right, low in boxes
        ]
        content = {"shapes": shapes, "imagePath": name, "imageWidth": 120, "imageHeight": 80}
        (folder / name).with_suffix(".json").write_text(json.dumps(content, indent=1))


def _labelstudio(folder: Path) -> None:
    tasks = []
    for n, (name, boxes) in enumerate(_boxes(folder).items()):
        results = [
            {
                "original_width": 120,
                "original_height": 80,
                "type": "rectanglelabels",
                "value": {
                    "x": x / 1.2,
                    "y": y / 0.8,
                    "width": (right - x) / 1.2,
                    "height": (low - y) / 0.8,
                    "rotation": 0,
                    "rectanglelabels": ["part"],
                },
            }
            for x, y, right, low in boxes
        ]
        data = {"image": f"/data/upload/1/0123abcd-{name}"}
        tasks.append({"id": n, "annotations": [{"result": results}], "data": data})
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1))


def _sequences(folder: Path, pictures: str) -> Iterator[tuple[Path, list[list[list[int]]]]]:
    """Move pictures into four sequences, and yield each with the boxes of its pictures."""
    boxes = [*_boxes(folder).items()]
    for s in range(4):
        sequence = folder / f"s{s}"
        (sequence / pictures).mkdir(parents=True)
        for n, (name, _) in enumerate(boxes[s::4], 1):
            (folder / name).rename(sequence / pictures / f"{n:06}.png")
        yield sequence, [each for _, each in boxes[s::4]]


def _mot(folder: Path) -> None:
    for sequence, pictures in _sequences(folder, "img1"):
        lines = [
            f"{n},{k},{x},{y},{right - x},{low - y},1,1,1\n"
            for n, boxes in enumerate(pictures, 1)
            for k, (x, y, right, low) in enumerate(boxes)
        ]
        (sequence / "gt").mkdir()
        (sequence / "gt/gt.txt").write_text("".join(lines))


def _otb(folder: Path) -> None:
    for sequence, pictures in _sequences(folder, "img"):
        firsts = (boxes[0] for boxes in pictures)
        lines = [f"{x}\t{y}\t{right - x}\t{low - y}\n" for x, y, right, low in firsts]
        (sequence / "groundtruth_rect.txt").write_text("".join(lines))


def _table(folder: Path, header: str, row: Callable[..., str]) -> None:
    rows = [row(name, *box) for name, boxes in _boxes(folder).items() for box in boxes]
    (folder / "b.csv").write_text("".join([header, *rows]))


def _openimages(folder: Path) -> None:
    def row(name: str, x: int, y: int, right: int, low: int) -> str:
        stem = name.partition(".")[0]
        return f"{stem},x,/m/1,1,{x / 120},{right / 120},{y / 80},{low / 80}\n"

    (folder / "class-descriptions-boxable.csv").write_text("/m/1,Part\n/m/2,Plate\n")
    _table(folder, "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n", row)


def _automl(folder: Path) -> None:
    def row(name: str, x: int, y: int, right: int, low: int) -> str:
        return f"UNASSIGNED,gs://b/{name},part,{x / 120},{y / 80},,,{right / 120},{low / 80},,\n"

    _table(folder, "", row)


def _via(folder: Path) -> None:
    def row(name: str, x: int, y: int, right: int, low: int) -> str:
        numbers = f'""x"":{x},""y"":{y},""width"":{right - x},""height"":{low - y}'
        return f'{name},9,"{{}}",1,0,"{{""name"":""rect"",{numbers}}}","{{""label"":""part""}}"\n'

    head = "filename,file_size,file_attributes,region_count,region_id"
    _table(folder, f"{head},region_shape_attributes,region_attributes\n", row)


def _via_json(folder: Path) -> None:
    entries = {}
    for name, boxes in _boxes(folder).items():
        shapes = [
            {"name": "rect", "x": x, "y": y, "width": right - x, "height": low - y}
            for x, y, right, low in boxes
        ]
        shapes.append({"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [1, 1, 9]})
        attributes = {"label": "part"}
        entries[f"{name}9"] = {
            "filename": name,
            "size": 9,
            "regions": [{"shape_attributes": s, "region_attributes": attributes} for s in shapes],
            "file_attributes": {},
        }
    content = {"_via_settings": {"core": {}}, "_via_img_metadata": entries}
    (folder / "project.json").write_text(json.dumps(content, indent=1))


def _via_project(folder: Path) -> None:
    files, regions, views = {}, {}, {}
    for at, (name, boxes) in enumerate(_boxes(folder).items(), 1):
        files[str(at)] = {"fid": at, "fname": name, "type": 2, "loc": 1, "src": ""}
        views[str(at)] = {"fid_list": [at]}
        shapes = [[2, x, y, right - x, low - y] for x, y, right, low in boxes]
        for number, shape in enumerate([*shapes, [7, 1, 1, 9, 1, 5, 9], []]):
            region = {"vid": str(at), "flg": 0, "z": [], "xy": shape, "av": {"1": "0"}}
            regions[f"{at}_{number}"] = region
    attributes = {"1": {"aname": "label", "options": {"0": "part"}}}
    content = {"project": {"pid": "p"}, "attribute": attributes, "file": files}
    content |= {"metadata": regions, "view": views}
    (folder / "project.json").write_text(json.dumps(content, indent=1))


def _kaggle(folder: Path) -> None:
    def row(name: str, x: int, y: int, right: int, low: int) -> str:
        return f'{name},120,80,"[{x}, {y}, {right - x}, {low - y}]"\n'

    _table(folder, "image_id,width,height,bbox\n", row)


SETS: dict[str, Callable[[Path], object] | None] = {
    "csv": None,
    "yolo": yolo_folder,
    "coco": _coco,
    "voc": _voc,
    "cvat": _cvat,
    "labelme": _labelme,
    "labelstudio": _labelstudio,
    "mot": _mot,
    "otb": _otb,
    "openimages": _openimages,
    "automl": _automl,
    "via": _via,
    "viajson": _via_json,
    "via3": _via_project,
    "kaggle": _kaggle,
}
"""Data sets by their format, and what makes each of the rectangles in CSV."""
SUFFIXES = {"yolo": "txt", "mot": "txt", "otb": "txt", "voc": "xml", "cvat": "xml"}
SUFFIXES |= dict.fromkeys(("coco", "labelme", "labelstudio", "viajson", "via3"), "json")
