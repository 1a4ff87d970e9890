"""Files that are written are read by the parsers of others: the moved boxes, and nothing else."""

import warnings

import numpy as np
import pytest
import torch

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.write import write_boxes
from tests import annotation_files

MOVE = np.array([1.5, -2.25, 2.0, -1.25])


@pytest.fixture
def supervision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses OpenCV, and says so
        return pytest.importorskip("supervision", reason="no supervision; see extra test")


def written(root, kind):
    """Write a data set, and a second one in which the first box of picture `a` has moved."""
    for name in ("before", "after"):
        getattr(annotation_files, f"write_{kind}")(root / name)
    table = read_annotations(root / "before")
    boxes = table.boxes.clone()
    (first, *_) = (table.image_index == [image[-5] for image in table.images].index("a")).nonzero()
    boxes[first] += torch.from_numpy(MOVE).float()
    write_boxes(table, boxes, root / "after")
    return len(boxes)


def read_by_supervision(supervision, root, kind):
    """Return boxes and class names of each picture, by its stem."""
    dataset = supervision.DetectionDataset
    if kind == "voc":
        found = dataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    elif kind == "yolo":
        found = dataset.from_yolo(
            str(root / "images"), str(root / "labels"), str(root / "data.yaml")
        )
    else:
        found = dataset.from_coco(str(root), str(root / "_annotations.coco.json"))
    return {
        path[-5]: (each.xyxy, [found.classes[number] for number in each.class_id])
        for path, each in found.annotations.items()
        if len(each)
    }


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco"])
@pytest.mark.filterwarnings("ignore")  # of its own ways
def test_supervision_sees_one_box_moved(supervision, tmp_path, kind):
    count = written(tmp_path, kind)
    was, now = (
        read_by_supervision(supervision, tmp_path / name, kind) for name in ("before", "after")
    )
    assert was.keys() == now.keys()
    assert sum(len(boxes) for boxes, _ in was.values()) == count
    for picture, (boxes, names) in was.items():
        moved, same = now[picture]
        expected = np.zeros_like(boxes)
        expected[0] = MOVE * (picture == "a")
        np.testing.assert_allclose(moved - boxes, expected, atol=2e-3)
        assert same == names


def test_pycocotools_sees_one_box_moved(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="no pycocotools; see extra test")
    written(tmp_path, "coco")
    file = "_annotations.coco.json"
    was, now = (coco.COCO(str(tmp_path / name / file)) for name in ("before", "after"))
    assert was.imgs == now.imgs
    assert was.cats == now.cats
    moved = [at for at in was.anns if was.anns[at] != now.anns[at]]
    assert was.anns.keys() == now.anns.keys()
    assert len(moved) == 1
    old, new = was.anns[moved[0]], now.anns[moved[0]]
    left, top, right, bottom = MOVE
    np.testing.assert_allclose(
        np.subtract(new.pop("bbox"), old.pop("bbox")), [left, top, right - left, bottom - top]
    )
    assert old == new
