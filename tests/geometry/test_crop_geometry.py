import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import box_centers, box_sizes
from lightning_bbox.geometry.crop_geometry import CropGeometry

ANCHORS = torch.tensor([[10.0, 20.0, 40.0, 80.0], [0.5, 0.25, 30.5, 20.25]])


@pytest.mark.parametrize("context", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("square", [False, True])
def test_the_crop_box_is_the_anchor_with_its_context(context, square):
    geometry = CropGeometry(context=context, square=square)
    anchors = geometry.anchors(ANCHORS)
    crop_boxes = geometry.crop_boxes(anchors)
    torch.testing.assert_close(box_centers(crop_boxes), box_centers(ANCHORS))
    torch.testing.assert_close(box_sizes(crop_boxes), box_sizes(anchors) * context)


def test_square_crops_cut_around_the_longer_side():
    anchors = CropGeometry(square=True).anchors(ANCHORS)
    assert box_sizes(anchors).tolist() == [[60.0, 60.0], [30.0, 30.0]]
    assert torch.equal(CropGeometry().anchors(ANCHORS), ANCHORS)


@pytest.mark.parametrize("size", [45, 227])
@pytest.mark.parametrize("square", [False, True])
def test_a_px_is_one_45th_of_the_crop_boxs_side_whatever_the_crops_size(size, square):
    geometry = CropGeometry(size=size, context=1.8, square=square)
    anchors = geometry.anchors(ANCHORS)
    px = geometry.px(anchors)
    torch.testing.assert_close(px * 45, box_sizes(geometry.crop_boxes(anchors)))
    torch.testing.assert_close(px * geometry.px_per_delta, box_sizes(anchors))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 7}, "crop size 7 is too small"),
        ({"context": 0.9}, r"crop context 0\.9 is outside"),
        ({"context": 10.5}, r"crop context 10\.5 is outside"),
        ({"context": float("nan")}, "crop context nan is outside"),
        ({"reference_size": 0.0}, r"reference_size 0\.0 isn't positive"),
        ({"reference_size": -45.0}, "isn't positive"),
        ({"reference_size": float("nan")}, "isn't positive"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(BadInput, match=message):
        CropGeometry(**values)
