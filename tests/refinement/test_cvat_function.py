"""CVAT's function: the boxes of an export, refined on the frames that CVAT sends."""

import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.refinement.serving import cvat_function
from tests import annotation_files
from tests.refinement.test_refiner import built_model, picture

sdk = pytest.importorskip("cvat_sdk.auto_annotation", reason="no cvat-sdk; see extra test")

SCENE = {
    "a": (90, 70, [("cell", (10.0, 10.0, 40.0, 44.0)), ("plate", (50.0, 5.0, 80.0, 30.0))]),
    "b": (90, 70, []),
}


class Frame(sdk.DetectionFunctionContext):
    """What CVAT says of a frame."""

    frame_name = ""
    conf_threshold = None
    conv_mask_to_poly = False

    def __init__(self, name):
        self.frame_name = name


@pytest.fixture
def function(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_files, "SCENE", SCENE)
    annotation_files.write_voc(tmp_path)
    model = built_model(num_targets=4)
    monkeypatch.setattr(cvat_function, "Refiner", lambda _: Refiner(model))
    return cvat_function.create("run", str(tmp_path))


@pytest.mark.parametrize("name", ["a.png", "JPEGImages/a.png", "elsewhere/a.png"])
def test_boxes_of_the_export_come_back_refined(function, name, tmp_path):
    image = Image.fromarray(picture())
    found = function.detect(Frame(name), image)
    table = read_annotations(tmp_path)
    rows = table.image_index == table.images.index("JPEGImages/a.png")
    expected = function.refiner.refine_with_std(image, table.boxes[rows]).boxes
    points = torch.tensor([shape["points"] for shape in found])
    torch.testing.assert_close(points, expected)
    assert not torch.equal(points, table.boxes[rows])
    names = {label.id: label.name for label in function.spec.labels}
    assert [names[shape["label_id"]] for shape in found] == ["cell", "plate"]
    assert {str(shape["type"]) for shape in found} == {"rectangle"}


def test_frames_without_boxes_and_unknown_ones(function):
    assert function.detect(Frame("b.png"), Image.fromarray(picture())) == []
    with pytest.raises(BadInput, match=r"c\.png: is the name of 0 pictures"):
        function.detect(Frame("c.png"), Image.fromarray(picture()))
