"""TIFFs of more pixels than are decoded at once: crops are those of the whole, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, BoxDataModule, Refiner, Storage
from lightning_bbox.annotations import headers
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core import tiff
from lightning_bbox.core.tiff import TiffPage, TiffPart, has_tifffile
from lightning_bbox.data.options import Splits
from lightning_bbox.insight.check import check_data
from lightning_bbox.models.feature_cache import _feature_key
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.decode import LargePicture, decode_image, find_levels, open_image
from lightning_bbox.pictures.store import ImageStore, PictureFiles
from lightning_bbox.pictures.thumbnails import read_thumbnails
from tests.annotation_files import csv_of, write
from tests.pictures.test_tiff import by_hand
from tests.refinement.test_refiner import built_model
from tests.reviews import held_by, reviewed

pytestmark = pytest.mark.skipif(not has_tifffile(), reason="the extra `tiff` is missing")
HEIGHT, WIDTH = 1200, 1900
FEW = 100_000  # pixels, so that pictures of the tests are large ones


def smooth(bands=3, dtype=np.uint8, scale=1, shape=(HEIGHT, WIDTH)):
    random, (height, width) = np.random.default_rng(5), shape
    coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), bands), dtype=np.uint8)
    return (np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]).astype(dtype) * scale


def written(path, values, **options):
    from tifffile import imwrite

    imwrite(path, values, **options)
    return path


TILED = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb"}
WHITE = {"white_level": 4080, "part": TiffPart(0, (2, 1, 0))}
KINDS = {
    "tiles": (smooth(), TILED, {}),
    "BigTIFF": (smooth(), TILED | {"bigtiff": True, "byteorder": ">"}, {}),
    "strips": (smooth(), {"rowsperstrip": 7, "photometric": "rgb"}, {}),
    "one strip": (smooth(3, np.uint16, 16), {"photometric": "rgb", "byteorder": ">"}, WHITE),
    "JPEG": (smooth(), TILED | {"compression": "jpeg"}, {}),
    "grey": (smooth(1)[..., 0], {"tile": (64, 96), "photometric": "minisblack"}, {}),
    "deep": (
        smooth(1, np.uint16, 16)[..., 0],
        {"tile": (128, 128), "compression": "lzw", "photometric": "minisblack"},
        {"white_level": 4080},
    ),
    "planes": (
        np.moveaxis(smooth(5, np.uint16, 16), -1, 0),
        {"tile": (128, 128), "photometric": "minisblack", "planarconfig": "separate"},
        {"white_level": 4080, "part": TiffPart(0, (4, 0, 2))},
    ),
}


def places(count=60, largest=1500.0):
    """Boxes of all sizes, inside and outside, some of them mirrored."""
    random = torch.Generator().manual_seed(2)
    centers = (torch.rand(count, 2, generator=random) * 1.3 - 0.15) * torch.tensor([WIDTH, HEIGHT])
    sides = (torch.rand(count, 1, generator=random) ** 3 * largest + 2).expand(count, 2).clone()
    sides[::3] *= torch.tensor([-1.0, 1.0])
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_crops_of_a_large_picture_are_those_of_the_whole_to_the_bit(tmp_path, kind, monkeypatch):
    values, options, reading = KINDS[kind]
    paths, sizes = [written(tmp_path / "a.tif", values, **options)], torch.tensor([[HEIGHT, WIDTH]])
    boxes, index = places(), torch.zeros(60, dtype=torch.int64)
    whole = ImageStore.from_files(paths, sizes, **reading)
    assert not whole.has_large
    expected = cut_crops(whole, index, boxes, 24)
    assert expected.std() > 0.1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    for store in (
        ImageStore.from_files(paths, sizes, **reading),
        PictureFiles(paths, sizes, **reading),
    ):
        for start in range(0, 60, 20):
            rows = slice(start, start + 20)
            assert torch.equal(cut_crops(store, index[rows], boxes[rows], 24), expected[rows])


def test_only_the_tiles_that_crops_lie_in_are_decoded_and_each_once(tmp_path, monkeypatch):
    path = written(tmp_path / "a.tif", smooth(), **TILED)
    decoded, usual = [], tiff._decoded
    monkeypatch.setattr(tiff, "_decoded", lambda page, at: decoded.append(at) or usual(page, at))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    store = ImageStore.from_files([path], torch.tensor([[HEIGHT, WIDTH]]))
    assert decoded == []
    index = torch.zeros(3, dtype=torch.int64)
    boxes = torch.tensor([[300.0, 300, 345, 345], [500, 300, 545, 345], [900, 800, 1100, 1000]])
    store.expect(index, boxes, 45)
    # Tiles of 256 pixels, eight in a row: (1, 1) and (1, 2), and (3, 3) and (3, 4).
    assert sorted(decoded) == [9, 10, 27, 28]
    cut_crops(store, index, boxes, 45)
    assert len(decoded) == 4
    assert store.num_held < 12 * 128 * 1024


def test_a_picture_of_billions_of_pixels_takes_little_memory(tmp_path):
    """More than 2^31 pixels, which wouldn't fit into memory with their halves."""
    from tifffile import TiffFile

    side, tile = 64_000, 256
    across = -(-side // tile)
    path = tmp_path / "a.tif"
    content = smooth(shape=(2 * tile, 2 * tile))
    corner = side - 3 * tile  # of what isn't black, aligned with the tiles
    first = corner // tile

    def tiles():
        yield np.zeros((tile, tile, 3), np.uint8)  # what isn't black follows, others aren't stored
        for row in range(across):
            for column in range(1 - (row > 0), across):
                y, x = row - first, column - first
                inside = 0 <= y < 2 and 0 <= x < 2
                yield content[y * tile :, x * tile :][:tile, :tile] if inside else None

    written(
        path, tiles(), shape=(side, side, 3), dtype=np.uint8, photometric="rgb", tile=(tile, tile),
        compression="deflate",
    )  # fmt: skip
    with TiffFile(path) as file:
        assert file.pages[0].shape == (side, side, 3)
    write(
        tmp_path,
        {"b.csv": csv_of(f"a.tif,{corner + 100},{corner + 90},{corner + 300},{corner + 310}")},
    )
    table = read_annotations(tmp_path)
    assert table.sizes.tolist() == [[side, side]]
    store = ImageStore.from_files([path], table.sizes)
    index, near = (
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([[100.0, 90, 300, 310], [20, 30, 65, 75]]),
    )
    crops = cut_crops(store, index, near + corner, 45)
    small = ImageStore.from_pictures([content])
    torch.testing.assert_close(crops, cut_crops(small, index, near, 45), rtol=0, atol=0.02)
    assert len(store.pixels) > 2**32
    assert store.num_held < 1 << 20
    found = Refiner(built_model()).refine(path, table.boxes)
    alike = Refiner(built_model()).refine(content, table.boxes - corner) + corner
    torch.testing.assert_close(found, alike, rtol=0, atol=0.05)


def test_a_store_begins_anew_where_too_much_of_a_large_picture_is_held(tmp_path, monkeypatch):
    path = written(tmp_path / "a.tif", smooth(), **TILED)
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    expected = ImageStore.from_files([path], sizes)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    files, boxes = PictureFiles([path], sizes, most_pixels=1 << 18), places(40, 200.0)
    stores = set()
    for start in range(0, 40, 2):
        index, rows = torch.zeros(2, dtype=torch.int64), boxes[start : start + 2]
        assert torch.equal(cut_crops(files, index, rows, 24), cut_crops(expected, index, rows, 24))
        stores.add(id(files._kept[1]))
        assert files._kept[1].num_held < (1 << 18) + 2 * 9 * 128 * 1024
    assert len(stores) > 2


def data_set(tmp_path):
    names = [f"{role}{at}" for role in ("train", "val", "test") for at in range(2)]
    for at, name in enumerate(names):
        values = np.roll(smooth(), 37 * at, axis=1) if at < 4 else smooth(shape=(200, 300))
        written(tmp_path / f"{name}.tif", values, **TILED)
    rows = [f"{name}.tif,40,50,90,95,{name[:-1]}" for name in names]
    write(tmp_path, {"b.csv": csv_of(*rows, header="image,x1,y1,x2,y2,split")})


def data_of(root, **options):
    splits = Splits(train="train", val="val", test="test")
    common = {"compile": False, "draws_per_epoch": 128, "eval_draws": 8}
    return BoxDataModule(str(root), splits=splits, **common, **options)


def test_training_on_large_pictures_sees_the_crops_of_whole_ones(tmp_path, monkeypatch):
    data_set(tmp_path)
    whole = data_of(tmp_path)
    expected = {split: whole.crops_of(whole.samples(split)) for split in ("train", "val", "test")}
    assert not whole.on_host
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    data = data_of(tmp_path)
    for split, crops in expected.items():
        assert torch.equal(data.crops_of(data.samples(split)), crops)
    store = data.source.store
    assert data.on_host
    assert store.to(torch.device("meta")) is store
    assert store.num_held < sum(HEIGHT * WIDTH for _ in range(4)) / 4
    with pytest.raises(
        BadInput, match=r"of which only parts are read, into memory; set data.store"
    ):
        _ = data_of(tmp_path, store=Storage("disk", str(tmp_path / "kept"))).source
    net = built_model().net
    keys = [_feature_key(each, net, "32")["pictures"] for each in (data, data_of(tmp_path))]
    assert keys[0] == keys[1]
    (tmp_path / "train0.tif").touch()
    assert _feature_key(data_of(tmp_path), net, "32")["pictures"] != keys[0]


def test_check_and_levels_look_at_small_squares_of_a_large_picture(tmp_path, monkeypatch):
    data_set(tmp_path)
    deep = written(tmp_path / "deep.tif", smooth(1, np.uint16, 16)[..., 0], tile=(64, 64))
    expected = read_thumbnails([tmp_path / "train0.tif"])[0]
    assert find_levels([deep]).white == 4095
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    thumbnails, faults = read_thumbnails([tmp_path / "train0.tif"])
    assert not faults
    alike = torch.corrcoef(torch.stack([thumbnails.flatten(), expected.flatten()]).float())
    assert alike[0, 1] > 0.2
    assert find_levels([deep]).white == 4095
    assert not check_data(data_of(tmp_path)).refusal


def test_what_is_not_read_in_parts_is_refused_in_one_sentence(tmp_path, monkeypatch):
    path = written(tmp_path / "a.tif", smooth(), **TILED)
    turned = tmp_path / "turned.tif"
    turned.write_bytes(by_hand(smooth(5)[:400, :600], tile=64, turn=6))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    with pytest.raises(BadInput, match=r"too many to be turned as it asks for.*; save it upright"):
        open_image(turned, None, TiffPart(0, (0,)))
    for read in (
        lambda: decode_image(path),
        lambda: ImageStore.from_files([path], torch.tensor([[HEIGHT, WIDTH]])).picture(0),
    ):
        with pytest.raises(BadInput, match="max_pixels"):
            read()
    with path.open("rb") as file:
        page = TiffPage(file, TiffPart())
        assert page.is_large
        np.testing.assert_array_equal(
            page.read(slice(250, 270), slice(1000, 1030)), smooth()[250:270, 1000:1030]
        )
        assert page.overview().shape == (24 * 16, 24 * 16, 3)
    content = bytearray(path.read_bytes())
    (tmp_path / "short.tif").write_bytes(content[: len(content) // 2])
    damaged = tmp_path / "damaged.tif"
    start = bytes(content).find(b"\x78")  # where the first tile begins, as zlib has it
    content[start + 40 : start + 4000] = bytes(3960)
    damaged.write_bytes(content)
    large = open_image(damaged)
    assert isinstance(large, LargePicture)
    with pytest.raises(BadInput, match=r"damaged\.tif: the picture can't be decoded") as refused:
        large[0:10, 0:10]
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=r"short\.tif: .*it is truncated"):
        open_image(tmp_path / "short.tif")
    monkeypatch.setattr(headers, "has_tifffile", lambda: False)
    with pytest.raises(BadInput, match=r"; of TIFFs the extra `tiff` reads parts alone"):
        open_image(path)


def test_a_page_of_a_large_file_is_chosen(tmp_path, monkeypatch):
    from tifffile import TiffWriter

    second = smooth()[::-1].copy()
    with TiffWriter(tmp_path / "a.tif") as writer:
        for page in (smooth(), second):
            writer.write(page, **TILED)
        writer.write(smooth()[::4, ::4].copy(), **TILED)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    there = np.s_[100:180, 70:200]
    for number, page in enumerate((smooth(), second)):
        picture = open_image(tmp_path / "a.tif", part=TiffPart(number))
        np.testing.assert_array_equal(picture[there], page[there])
    with pytest.raises(BadInput, match=r"it has 3 pages, and no page 3"):
        open_image(tmp_path / "a.tif", part=TiffPart(3))


def test_a_pyramid_is_read_at_its_full_resolution(tmp_path, monkeypatch):
    from tifffile import TiffWriter

    with TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(smooth(), subifds=2, **TILED)
        for step in (2, 4):
            writer.write(smooth()[::step, ::step].copy(), subfiletype=1, **TILED)
    expected = decode_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(expected, smooth())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    there = np.s_[100:180, 70:200]
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif")[there], expected[there])


def test_a_model_knows_the_levels_a_large_picture_is_read_by(tmp_path, monkeypatch):
    deep = written(tmp_path / "deep.tif", smooth(1, np.uint16, 16)[..., 0], tile=(64, 64))
    model = built_model()
    model.spec = replace(model.spec, white_level=4080)
    boxes = np.array([[300.0, 400, 340, 450], [1800, 1000, 1890, 1190]])
    expected = Refiner(model).refine(deep, boxes)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    np.testing.assert_array_equal(Refiner(model).refine(deep, boxes), expected)
    with pytest.raises(BadInput, match="it has 16 bits and the model was trained on pictures of 8"):
        Refiner(built_model()).refine(deep, boxes)


def test_a_review_shows_of_a_large_picture_what_it_shows_of_the_whole(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "a.tif", smooth(), **TILED)
    write(tmp_path / "data", {"b.csv": csv_of("a.tif,40,50,90,95", "a.tif,1850,1100,1890,1190")})
    expected = held_by(reviewed(tmp_path / "data", tmp_path / "whole"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW)
    held = held_by(reviewed(tmp_path / "data", tmp_path / "parts"))
    assert held["pictures"] == expected["pictures"]
    assert len(held["pictures"]) == 2
