import warnings

import numpy as np
import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.decode import decode_image
from lightning_bbox.pictures.store import ImageStore, PictureFiles, pack_rgb
from tests.crops import made_up_picture, saved_pictures

RGB = made_up_picture(2, 3)


def test_a_decoded_picture_can_be_packed_and_unpacked():
    store = ImageStore.from_array(RGB[None])
    assert pack_rgb(RGB).tolist() == (RGB.astype(int) @ [1, 256, 65536]).tolist()
    np.testing.assert_array_equal(store.picture(0), RGB)


@pytest.mark.parametrize("threads", [1, 8])
def test_a_store_holds_what_decode_image_reads(tmp_path, threads):
    shapes = [(5, 7), (1, 1), (8, 3), (1, 500), (64, 48)]
    paths = saved_pictures(tmp_path, shapes)
    store = ImageStore.from_files(paths, torch.tensor(shapes), threads)
    assert len(store) == len(shapes)
    assert list(zip(store.heights.tolist(), store.widths.tolist(), strict=True)) == shapes
    for number, path in enumerate(paths):
        np.testing.assert_array_equal(store.picture(number), decode_image(path))


def test_a_store_of_files_equals_one_of_arrays(tmp_path):
    paths = saved_pictures(tmp_path, [(6, 9)] * 4)
    arrays = ImageStore.from_array(np.stack([decode_image(path) for path in paths]))
    files = ImageStore.from_files(paths, torch.tensor([[6, 9]] * 4))
    for name in ("pixels", "offsets", "heights", "widths"):
        assert torch.equal(getattr(files, name), getattr(arrays, name))


def test_a_picture_of_another_size_is_refused(tmp_path):
    paths = saved_pictures(tmp_path, [(5, 7), (6, 7), (5, 7)])
    with pytest.raises(BadInput, match=r"1\.png: decodes to .*6.*7.* but .*5.*7.* was expected"):
        ImageStore.from_files(paths, torch.tensor([[5, 7]] * 3))


def test_a_store_names_the_file_that_it_cannot_decode(tmp_path):
    paths = saved_pictures(tmp_path, [(5, 7)] * 3)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(BadInput, match=r"1\.png: the picture can't be decoded"):
        ImageStore.from_files(paths, torch.tensor([[5, 7]] * 3))
    paths[1].unlink()
    with pytest.raises(BadInput, match=r"1\.png: no such picture"):
        ImageStore.from_files(paths, torch.tensor([[5, 7]] * 3))


def test_decoding_in_threads_leaves_the_warnings_filters_alone(tmp_path):
    paths = saved_pictures(tmp_path, [(48, 48)] * 4, suffix="jpg") * 60
    before = list(warnings.filters)
    ImageStore.from_files(paths, torch.full((len(paths), 2), 48))
    assert warnings.filters == before


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(BadInput, match=r"10 pixels .* 12"):
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
    for most_pixels, groups in ((1, 5), (24, 3), (42, 1), (1 << 20, 1)):
        parts = list(PictureFiles(paths, sizes, most_pixels).parts(wanted))
        assert len(parts) == groups
        assert sum(len(index) for _, index in parts) == len(wanted)
        assert all(len(store.pixels) <= max(most_pixels, 20) for store, _ in parts)
        found = [store.picture(at) for store, index in parts for at in index.tolist()]
        for picture, at in zip(found, wanted.tolist(), strict=True):
            assert np.array_equal(picture, whole.picture(at))


def test_a_picture_that_breaks_late_is_refused_by_its_path(tmp_path):
    files = PictureFiles([tmp_path / "a.png"], torch.tensor([[4, 5]]))
    with pytest.raises(BadInput, match=r"a\.png: no such picture"):
        next(files.parts(torch.tensor([0])))
