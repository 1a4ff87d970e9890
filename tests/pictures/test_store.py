import os
import warnings

import numpy as np
import pytest
import torch

import lightning_bbox.pictures.store as store_module
from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.decode import decode_image
from lightning_bbox.pictures.packing import pack_levels, pack_rgb
from lightning_bbox.pictures.pyramid import halved_picture
from lightning_bbox.pictures.store import ImageStore, PictureFiles
from tests.crops import made_up_picture, save_picture, saved_pictures

RGB = made_up_picture(2, 3)


def test_a_decoded_picture_can_be_packed_and_unpacked():
    store = ImageStore.from_array(RGB[None])
    assert pack_rgb(RGB).tolist() == (RGB.astype(int) @ [1, 256, 65536]).tolist()
    np.testing.assert_array_equal(store.picture(0), RGB)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (6, 9), (33, 20), (128, 64)])
def test_a_picture_is_packed_with_its_halves(shape):
    """As `halved_picture` makes them, which tells what a half is."""
    pictures = np.stack([made_up_picture(*shape, seed) for seed in (1, 2)])
    for packed, picture in zip(pack_levels(pictures), pictures, strict=True):
        level, expected = torch.from_numpy(picture), []
        while True:
            expected.append(pack_rgb(level.numpy()).ravel())
            if max(level.shape[:2]) == 1:
                break
            level = halved_picture(level)
        np.testing.assert_array_equal(packed, np.concatenate(expected))
        np.testing.assert_array_equal(packed, pack_levels(picture))


@pytest.mark.parametrize("threads", [1, 8])
def test_a_store_holds_what_decode_image_reads(tmp_path, threads):
    shapes = [(5, 7), (1, 1), (8, 3), (1, 500), (64, 48)]
    paths = saved_pictures(tmp_path, shapes)
    store = ImageStore.from_files(paths, torch.tensor(shapes), threads)
    assert len(store) == len(shapes)
    assert list(zip(store.heights.tolist(), store.widths.tolist(), strict=True)) == shapes
    for number, path in enumerate(paths):
        np.testing.assert_array_equal(store.picture(number), decode_image(path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: save_picture(path, made_up_picture(6, 7)), "decodes to .*6.*7.* but .*5.*7"),
        (lambda path: os.truncate(path, 60), "the picture can't be decoded"),
        (lambda path: path.unlink(), "no such picture"),
    ],
    ids=["of another size", "truncated", "gone"],
)
def test_a_picture_that_has_changed_is_refused_by_its_path(tmp_path, spoil, message):
    paths, sizes = saved_pictures(tmp_path, [(5, 7)] * 3), torch.tensor([[5, 7]] * 3)
    spoil(paths[1])
    late = PictureFiles(paths, sizes).parts(torch.tensor([0, 1]))
    for read in (lambda: ImageStore.from_files(paths, sizes), lambda: list(late)):
        with pytest.raises(BadInput, match=rf"1\.png: {message}"):
            read()


def test_decoding_in_threads_leaves_the_warnings_filters_alone(tmp_path):
    paths = saved_pictures(tmp_path, [(48, 48)] * 4, suffix="jpg") * 60
    before = list(warnings.filters)
    ImageStore.from_files(paths, torch.full((len(paths), 2), 48))
    assert warnings.filters == before


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(BadInput, match=r"10 pixels .* 17"):
        ImageStore(torch.zeros(10), torch.tensor([[3, 4]]))


def test_a_store_of_no_pictures_is_empty():
    store = ImageStore.from_files([], torch.zeros(0, 2, dtype=torch.int64))
    assert len(store) == len(store.pixels) == 0


def test_moving_a_store_takes_every_tensor_along():
    store = ImageStore.from_array(RGB[None])
    assert store.to(torch.device("cpu")) is store
    moved = store.to(torch.device("meta"))
    for name in ("pixels", "offsets", "heights", "widths"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(store, name).shape


def test_pictures_decoded_when_asked_for_are_those_of_the_store(tmp_path):
    sizes = torch.tensor([[4, 5], [6, 3], [2, 2]])
    paths = saved_pictures(tmp_path, sizes.tolist())
    whole = ImageStore.from_files(paths, sizes)
    wanted = torch.tensor([2, 0, 0, 1, 0, 2])
    for most_pixels, groups in ((1, 5), (35, 3), (65, 1), (1 << 20, 1)):
        parts = list(PictureFiles(paths, sizes, most_pixels).parts(wanted))
        assert len(parts) == groups
        assert sum(len(index) for _, index in parts) == len(wanted)
        assert all(len(store.pixels) <= max(most_pixels, 29) for store, _ in parts)
        found = [store.picture(at) for store, index in parts for at in index.tolist()]
        for picture, at in zip(found, wanted.tolist(), strict=True):
            assert np.array_equal(picture, whole.picture(at))


def test_a_picture_is_decoded_once_where_its_samples_follow_one_another(tmp_path, monkeypatch):
    sizes = torch.tensor([[4, 5], [6, 3], [2, 2], [3, 3]])
    paths, decoded = saved_pictures(tmp_path, sizes.tolist()), []
    usual = store_module.decode_sized
    monkeypatch.setattr(
        store_module, "decode_sized", lambda *a: decoded.append(paths.index(a[0])) or usual(*a)
    )
    whole, decoded[:] = ImageStore.from_files(paths, sizes), []
    for most_pixels in (1, 35, 1 << 20):
        files, decoded[:] = PictureFiles(paths, sizes, most_pixels), []
        for batch in ([0, 0, 0], [0, 1], [1, 1, 2, 2], [2, 3], [3, 3]):
            found = [
                store.picture(at)
                for store, index in files.parts(torch.tensor(batch))
                for at in index.tolist()
            ]
            for picture, at in zip(found, batch, strict=True):
                assert np.array_equal(picture, whole.picture(at))
        assert decoded == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("shape", [(1000, 1400), (30, 700), (128, 256), (1, 1)])
def test_crops_of_what_was_packed_for_them_are_those_of_whole_pictures(shape, size):
    random = torch.Generator().manual_seed(3)
    height, width = shape
    centers = torch.rand(60, 2, generator=random) * 1.4 - 0.2
    sides = (torch.rand(60, 1, generator=random) ** 3 * 300 + 2).expand(60, 2).clone()
    sides[::3] *= torch.tensor([-1.0, 1.0])  # mirrored
    centers = centers * torch.tensor([width, height])
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    pictures = [made_up_picture(*shape), made_up_picture(height + 9, width)]
    index = torch.arange(60) % 2
    whole = ImageStore.from_pictures(pictures)
    some = ImageStore.from_pictures(pictures, at_once=False)
    for rows in (slice(0, 20), slice(10, 60)):  # what is packed already stays
        batch = index[rows], boxes[rows], size
        assert torch.equal(cut_crops(some, *batch), cut_crops(whole, *batch))
    for at, picture in enumerate(pictures):
        assert np.array_equal(some.picture(at), picture)
    nowhere = torch.full((3, 4), torch.nan)
    for count in (0, 1):
        few = ImageStore.from_pictures(pictures, at_once=False)
        few.expect(index[: count + 3], torch.cat([nowhere, boxes[:count]]), size)
        assert int((few.pixels > 0).sum()) <= count * (300 + 4 + 2 * 128) ** 2


def test_of_a_decoded_picture_crops_that_are_not_shrunk_have_little_more_packed_than_they_read():
    picture = np.full((1000, 1400, 3), 255, dtype=np.uint8)
    store = ImageStore.from_pictures([picture, picture], at_once=False)
    boxes = torch.tensor([[700.0, 500, 720, 520], [1390, 990, 1410, 1010], [50, 20, 30, 40]])
    index = torch.tensor([0, 1, 1])
    assert store.num_held == 0
    for _ in range(9):  # what is packed again takes no more memory
        cut_crops(store, index, boxes, 20)
    assert 3 * 20**2 - 300 <= int((store.pixels > 0).sum()) <= 3 * 30**2
    assert store.num_held <= 2 * len(store.packed(0))
    few = ImageStore.from_pictures([picture], at_once=False)
    few.expect(index[:1], boxes[:1], 20)
    assert few.num_held <= 30 * 1024
