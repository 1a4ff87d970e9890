import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kornia.geometry.transform import crop_and_resize

from lightning_bbox.core import compiling
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import box_sizes, mirror_boxes, shift_boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.pictures import kernels
from lightning_bbox.pictures.cut import PAYS_FROM, cut_crops, is_compiled, kernel_for
from lightning_bbox.pictures.kernels import compiled_bilinear, sample_bilinear
from lightning_bbox.pictures.store import ImageStore
from tests import reference
from tests.crops import (
    ALIGNED,
    INSIDE,
    NOT_FINITE,
    OUTSIDE,
    SHAPES,
    SIZE,
    close,
    made_up_picture,
    mixed_batch,
    planes,
)
from tests.draws import THOROUGH

shifts = st.integers(-6, 6)
# From a few pixels to several times the picture's side, either way round.
edges = st.tuples(*[st.floats(-80, 120, width=32)] * 4)
BOTH = [sample_bilinear, compiled_bilinear]
BOTH_KERNELS = [
    pytest.param(each, id=name) for each, name in zip(BOTH, ["plain", "compiled"], strict=True)
]


def cut_one(picture, *crop_boxes, size=SIZE, **options):
    """Cut all boxes from one picture."""
    index = torch.zeros(len(crop_boxes), dtype=torch.int64)
    return cut_crops(
        ImageStore.from_array(picture[None]),
        index,
        torch.tensor(crop_boxes).float(),
        size,
        **options,
    )


def near_oracle(crops, picture, crop_boxes):
    size = crops.shape[-1]
    expected = [reference.cut(picture, box, size) for box in crop_boxes]
    close(crops, torch.from_numpy(np.stack(expected)).float())


@pytest.mark.parametrize("times", [0.5, 1, 3, 7])
@pytest.mark.parametrize("box", [INSIDE, *OUTSIDE.values()], ids=["inside", *OUTSIDE])
def test_a_cut_equals_the_oracle(box, times):
    picture, box = made_up_picture(31, 43), tuple(times * edge for edge in box)
    near_oracle(cut_one(picture, box), picture, [box])


def test_every_crop_comes_from_its_own_picture_of_its_own_size():
    pictures = [made_up_picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    index = torch.tensor([4, 0, 3, 1, 2, 0, 4])
    boxes = torch.tensor([INSIDE, *list(OUTSIDE.values())[:6]])
    crops = cut_crops(ImageStore.from_pictures(pictures), index, boxes, SIZE)
    for crop, number, box in zip(crops, index.tolist(), boxes, strict=True):
        near_oracle(crop[None], pictures[number], [box])


def test_no_boxes_give_no_crops():
    index, boxes = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    crops = cut_crops(ImageStore.from_array(made_up_picture(8, 8)[None]), index, boxes, SIZE)
    assert crops.shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("size", [8, 9, 45])
@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_whole_pixel_cuts_are_bit_equal_to_slices(kernel, size):
    picture = made_up_picture(31, 43)
    boxes = [(x, y, x + size, y + size) for x, y in ALIGNED]
    crops = cut_one(picture, *boxes, size=size, kernel=kernel)
    for crop, (x, y) in zip(crops, ALIGNED, strict=True):
        rows = np.arange(y, y + size).clip(0, 30)
        columns = np.arange(x, x + size).clip(0, 42)
        assert torch.equal(crop, planes(picture[rows][:, columns]))


@given(edges)
@THOROUGH
def test_a_crop_of_a_constant_picture_is_constant(box):
    picture = np.full((20, 30, 3), (7, 130, 255), dtype=np.uint8)
    (crop,) = cut_one(picture, box)
    expected = torch.tensor([7, 130, 255])[:, None, None].expand(3, SIZE, SIZE) / 255
    close(crop, expected, atol=1e-6)


@given(edges)
@THOROUGH
def test_crops_stay_within_the_pictures_range(box):
    picture = made_up_picture(20, 30) // 2 + 64
    (crop,) = cut_one(picture, box)
    assert float(crop.min()) >= 64 / 255 - 1e-5
    assert float(crop.max()) <= 191 / 255 + 1e-5


def test_a_ramp_shows_where_each_crop_pixel_lies():
    picture = np.zeros((40, 100, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = 2 * np.arange(100), 2 * np.arange(40)[:, None]
    for size in (12, 20, 45):  # shrunk by 5 and 2, 3 and 1.4, and not
        x1, y1, x2, y2 = box = (12.3, 6.6, 71.8, 31.1)
        (crop,) = cut_one(picture, box, size=size) * 255
        places = (torch.arange(size) + 0.5) / size
        close(crop[0], 2 * (x1 + places * (x2 - x1) - 0.5).expand(size, size), atol=1e-3)
        close(crop[1], 2 * (y1 + places * (y2 - y1) - 0.5)[:, None].expand(size, size), atol=1e-3)


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_boxes_of_crop_size_are_cut_the_same_among_others_as_alone(kernel):
    """They take one bilinear sample, as if there were no halves: to the bit."""
    picture = made_up_picture(90, 97)
    small = [(5.3, 7.1, 14.3, 16.1), (20.0, 3, 30, 13.2), (41.7, 30.9, 32.0, 21.3), (60, 9, 69, 18)]
    large = [(3.0, 5, 50, 61), (10, 10, 21, 35)]
    alone = cut_one(picture, *small, kernel=kernel)
    assert torch.equal(cut_one(picture, *small, *large, kernel=kernel)[:4], alone)
    assert torch.equal(cut_one(picture, *large, *small[:2], kernel=kernel)[2:], alone[:2])
    assert torch.equal(cut_one(picture, *small, large[0], kernel=kernel)[:4], alone)
    near_oracle(cut_one(picture, small[0], *large, kernel=kernel), picture, [small[0], *large])


@given(edges)
@THOROUGH
def test_swapped_corners_mirror_the_crop(box):
    x1, y1, x2, y2 = box
    picture = made_up_picture(20, 30)
    plain, across, down, both = cut_one(
        picture,
        box,
        (x2, y1, x1, y2),
        (x1, y2, x2, y1),
        (x2, y2, x1, y1),
    )
    close(across, plain.flip(2))
    close(down, plain.flip(1))
    close(both, plain.flip(1, 2))


@given(edges)
@THOROUGH
def test_flipping_pixels_and_boxes_together_flips_the_crop(box):
    # Sides that can be halved down to one: the halves of others begin at the left and upper edge.
    picture, centers = made_up_picture(16, 32), torch.tensor([[16.0, 8.0]])
    for across, down in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        axes = [axis for axis, flip in ((0, down), (1, across)) if flip]
        flipped = np.ascontiguousarray(np.flip(picture, axes))
        mirrored = mirror_boxes(torch.tensor([box]), centers, torch.tensor([[across, down]]))
        (crop,) = cut_one(picture, box)
        (other,) = cut_one(flipped, mirrored[0].tolist())
        close(other, crop.flip([axis + 1 for axis in axes]))


@given(shifts, shifts)
@THOROUGH
def test_shifting_the_crop_box_by_k_px_moves_the_content_by_minus_k(x, y):
    picture, geometry = made_up_picture(90, 90), CropGeometry(size=15, reference_size=15.0)
    anchors = torch.tensor([[30.0, 35.0, 60.0, 57.5]])
    moved = shift_boxes(anchors, torch.tensor([[x, y]]) * geometry.px(anchors))
    plain, other = (
        cut_one(picture, *geometry.crop_boxes(boxes).tolist(), size=15)[0]
        for boxes in (anchors, moved)
    )
    kept = plain[:, max(y, 0) : 15 + min(y, 0), max(x, 0) : 15 + min(x, 0)]
    close(other[:, max(-y, 0) : 15 - max(y, 0), max(-x, 0) : 15 - max(x, 0)], kept)


def inner_boxes(count, margin=1.0):
    """Crop boxes inside a picture of 43 x 31."""
    low = torch.from_numpy(np.random.default_rng(3).uniform(margin, 14, (count, 2)))
    span = torch.from_numpy(np.random.default_rng(4).uniform(2, 9 - margin, (count, 2)))
    return torch.cat([low, low + span], dim=1).float()


@pytest.mark.parametrize("size", [8, 16, 33])
def test_inside_the_picture_a_cut_equals_kornias(size):
    """kornia's corners are the centres of the outermost pixels."""
    picture, boxes = made_up_picture(31, 43), inner_boxes(20)
    half = box_sizes(boxes) / size / 2
    (x1, y1), (x2, y2) = (boxes[:, :2] + half - 0.5).T, (boxes[:, 2:] - half - 0.5).T
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=1).view(-1, 4, 2)
    batch = planes(picture).expand(20, -1, -1, -1)
    close(
        cut_one(picture, *boxes.tolist(), size=size), crop_and_resize(batch, corners, (size,) * 2)
    )


@pytest.mark.parametrize("box", [INSIDE, *OUTSIDE.values()], ids=["inside", *OUTSIDE])
def test_a_cut_of_one_sample_equals_grid_sample_beyond_the_border_too(box):
    picture, SIZE = made_up_picture(31, 43), 70  # noqa: N806
    x1, y1, x2, y2 = box
    places = (torch.arange(SIZE) + 0.5) / SIZE
    x = (x1 + places * (x2 - x1)) / 43 * 2 - 1
    y = (y1 + places * (y2 - y1)) / 31 * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    expected = F.grid_sample(
        planes(picture)[None], grid, padding_mode="border", align_corners=False
    )
    close(cut_one(picture, box, size=SIZE), expected)


@pytest.mark.parametrize("kernel", BOTH_KERNELS)
def test_boxes_that_are_not_finite_leave_the_other_crops_alone(kernel):
    picture = made_up_picture(31, 43)
    crops = cut_one(picture, INSIDE, *NOT_FINITE, INSIDE, kernel=kernel)
    assert crops.shape == (len(NOT_FINITE) + 2, 3, SIZE, SIZE)
    near_oracle(crops[[0, -1]], picture, [INSIDE, INSIDE])


def test_the_cut_leaves_store_and_boxes_as_they_were():
    store, boxes = ImageStore.from_array(made_up_picture(31, 43)[None]), torch.tensor([INSIDE])
    pixels = store.pixels.clone()
    cut_crops(store, torch.tensor([0]), boxes, SIZE)
    assert torch.equal(store.pixels, pixels)
    assert torch.equal(boxes, torch.tensor([INSIDE]))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_the_compiled_twin_equals_the_plain_one(count):
    batch = mixed_batch(count)
    close(cut_crops(*batch, SIZE, compiled_bilinear), cut_crops(*batch, SIZE))


@given(st.lists(edges, min_size=1, max_size=3), st.integers(1, 70), st.integers(1, 60))
@THOROUGH
def test_the_compiled_twin_equals_the_plain_one_at_any_size(boxes, side, height):
    picture = made_up_picture(height, 41)
    plain, fast = (cut_one(picture, *boxes, size=side, kernel=each) for each in BOTH)
    close(fast, plain, atol=2e-6)


def test_crops_are_the_same_to_the_bit_whichever_they_are_cut_with(monkeypatch):
    store, index, boxes = mixed_batch(600)
    many = cut_crops(store, index, boxes, 45, compiled_bilinear)
    some = cut_crops(store, index[::60], boxes[::60], 45, compiled_bilinear)
    assert torch.equal(many[::60], some)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(cut_crops(store, index, boxes, 45, compiled_bilinear), many)


@pytest.mark.compile
def test_one_graph_of_inductor_serves_every_batch_size_and_store():
    elsewhere = kernels._spread_elsewhere
    cut_crops(*mixed_batch(6), SIZE, elsewhere)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in (5, 64):
            crops = cut_crops(*mixed_batch(count), SIZE, elsewhere)
            close(crops, cut_crops(*mixed_batch(count), SIZE))
        cut_one(made_up_picture(31, 43), INSIDE, INSIDE, kernel=elsewhere)


def test_kernels_are_compiled_by_themselves_where_that_pays(monkeypatch):
    monkeypatch.setattr(compiling, "has_cxx_compiler", lambda: True)
    cpu, most = torch.device("cpu"), PAYS_FROM
    assert [is_compiled("auto", cpu, pixels) for pixels in (most - 1, most)] == [False, True]
    assert is_compiled(True, cpu, 1.0)
    assert not is_compiled(False, cpu, most)
    assert is_compiled("auto", torch.device("cuda"), 1.0)
    assert kernel_for("auto", cpu) is compiled_bilinear
    assert kernel_for(False, cpu) is sample_bilinear


def test_a_compiler_that_fails_is_told_once_and_crops_are_cut_all_the_same(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho calls: >> $0.log\necho no space left >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(kernels, "_made", functools.cache(kernels._made.__wrapped__))
    told = "can't make kernels.cpp .no space left.; set CXX, or compile to false"
    with pytest.warns(UserWarning, match=f"crops are cut uncompiled, which is slower: .*{told}"):
        assert kernel_for("auto", torch.device("cpu")) is sample_bilinear
    with pytest.raises(BadInput, match=told):
        kernel_for(True, torch.device("cpu"))
    assert (tmp_path / "broken.log").read_text().count("calls") == 2  # with the CPU's name, without
