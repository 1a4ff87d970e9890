import io
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox.errors import BadInput
from lightning_bbox.images import ImageStore, PictureFiles, decode_image, pack_rgb

RGB = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]],
    dtype=np.uint8,
)
GREY = np.array([[0, 1, 100], [128, 254, 255]], dtype=np.uint8)
WIDE = np.array([[0, 256, 514], [25700, 65280, 65535]], dtype=np.uint16)
# How EXIF's orientation asks the stored pixels to be turned.
ORIENTATIONS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def made_up_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def grey_of(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


def decodes_to(path, expected):
    found = decode_image(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    return True


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(*entries):
    """A block of EXIF; entries are (tag, type, count, value in four bytes)."""
    rows = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + rows + struct.pack("<I", 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_rgb_is_read_as_it_is(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    assert decodes_to(save(tmp_path / f"a.{suffix}", RGB, **options), RGB)


def test_a_path_may_be_a_string(tmp_path):
    assert decodes_to(str(save(tmp_path / "a.png", RGB)), RGB)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_is_repeated(tmp_path, suffix):
    assert decodes_to(save(tmp_path / f"a.{suffix}", GREY), grey_of(GREY))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    bits = GREY > 100
    assert decodes_to(save(tmp_path / f"a.{suffix}", bits), grey_of(255 * bits))


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), mode="P")
    image.putpalette([9, 8, 7, 100, 0, 200, 255, 254, 253])
    colours = np.array([[9, 8, 7], [100, 0, 200], [255, 254, 253]], dtype=np.uint8)
    assert decodes_to(save(tmp_path / "a.png", image), colours[[[0, 1, 2], [2, 1, 0]]])


@pytest.mark.parametrize("transparency", [1, bytes([0, 128, 255])], ids=["one colour", "each"])
def test_a_palette_with_transparency_is_looked_up(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([9, 8, 7, 100, 0, 200, 255, 254, 253])
    path = save(tmp_path / "a.png", image, transparency=transparency)
    assert decodes_to(path, [[[9, 8, 7], [100, 0, 200], [255, 254, 253]]])


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped_and_the_colours_stay(tmp_path, alpha):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], alpha, dtype=np.uint8)])
    assert decodes_to(save(tmp_path / "a.png", rgba), RGB)
    grey = np.dstack([GREY, np.full(GREY.shape, alpha, dtype=np.uint8)])
    assert decodes_to(save(tmp_path / "b.png", grey), grey_of(GREY))


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.concatenate([np.zeros((1, 4)), 255 * np.eye(4)]).astype(np.uint8)
    image = Image.frombytes("CMYK", (5, 1), inks.tobytes())
    colours = [[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]
    assert decodes_to(save(tmp_path / "a.tif", image), [colours])


def test_a_cmyk_jpeg_is_not_inverted(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode_image(save(tmp_path / "a.jpg", image, quality=95)).astype(int)
    assert np.abs(found - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_divided_by_257(tmp_path, suffix, order):
    path = save(tmp_path / f"a.{suffix}", WIDE.astype(f"{order}u2"))
    assert decodes_to(path, grey_of(WIDE // 257))


def test_jpegs_come_close(tmp_path):
    columns, rows = np.arange(64), np.arange(48)[:, None]
    smooth = np.stack(np.broadcast_arrays(4 * columns, 5 * rows, 2 * (columns + rows)), axis=2)
    path = save(tmp_path / "a.jpg", smooth.astype(np.uint8), quality=95, subsampling=0)
    assert np.abs(decode_image(path).astype(int) - smooth).max() <= 8


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["rgb", "grey", "wide"])
def test_pictures_are_turned_upright(tmp_path, orientation, kind):
    pixels = {"rgb": RGB, "grey": GREY, "wide": WIDE}[kind]
    expected = {"rgb": RGB, "grey": grey_of(GREY), "wide": grey_of(WIDE // 257)}[kind]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decodes_to(
        save(tmp_path / "a.png", pixels, exif=exif), ORIENTATIONS[orientation](expected)
    )


def test_an_orientation_that_does_not_exist_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    assert decodes_to(save(tmp_path / "a.png", RGB, exif=exif), RGB)


@pytest.mark.filterwarnings("ignore:Tag data larger than file:UserWarning")
@pytest.mark.parametrize(
    "entry",
    [(0x0128, 2, 2, b"2"), (0x010F, 2, 99, struct.pack("<I", 9999))],
    ids=["a unit in letters", "a maker beyond the end"],
)
def test_a_faulty_tag_beside_the_orientation_does_no_harm(tmp_path, entry):
    exif = exif_of((0x0112, 3, 1, struct.pack("<H", 6)), entry)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, "PNG", exif=exif))
    assert decodes_to(path, ORIENTATIONS[6](RGB))


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert decodes_to(path, np.full((3, 4, 3), (255, 0, 0)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_pictures_one_pixel_high_or_wide_are_read(tmp_path, shape):
    picture = made_up_picture(*shape)
    assert decodes_to(save(tmp_path / "a.png", picture), picture)


def test_a_decoded_picture_can_be_packed_and_unpacked():
    store = ImageStore.from_array(RGB[None])
    assert pack_rgb(RGB).tolist() == (RGB.astype(int) @ [1, 256, 65536]).tolist()
    np.testing.assert_array_equal(store.picture(0), RGB)


def refused(path, *parts):
    with pytest.raises(BadInput) as caught:
        decode_image(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    return True


def test_a_missing_file_is_refused(tmp_path):
    assert refused(tmp_path / "a.png", "no such picture; check the root folder")


@pytest.mark.parametrize(
    "content", [b"", b"x1,y1,x2,y2\n1,2,3,4\n", b"\x89PNG\r\n\x1a\n", bytes(999)]
)
def test_a_file_that_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert refused(path, "can't be decoded", "replace or remove it")


def test_a_folder_is_refused(tmp_path):
    assert refused(tmp_path, "can't be decoded")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(tmp_path, kind, share):
    content, path = encoded(made_up_picture(64, 64), kind), tmp_path / "a"
    path.write_bytes(content[: int(share * len(content))])
    assert refused(path, "can't be decoded")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "DDS"])
def test_damaged_files_are_decoded_or_refused(tmp_path, kind):
    rng = np.random.default_rng(0)
    exif = {} if kind in ("GIF", "BMP", "DDS") else {"exif": exif_of((0x0112, 3, 1, b"\6"))}
    whole, path = encoded(made_up_picture(24, 31), kind, **exif), tmp_path / "a"
    refusals = 0
    for _ in range(120):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 300), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own words about the damage
            try:
                assert decode_image(path).dtype == np.uint8
            except BadInput:
                refusals += 1
    assert refusals > 0


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 20, 100])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, side):
    """Pillow itself only warns up to twice the limit."""
    path = save(tmp_path / "a.png", made_up_picture(side, 10))
    assert decode_image(path).shape == (side, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refused(path, "can't be decoded", f"{side * 10} pixels", "bomb")


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 70000, -5]], dtype=np.int32), np.array([[0.0, 0.5, 1e9]], dtype=np.float32)],
    ids=["32-bit integers", "floats"],
)
def test_grey_levels_beyond_sixteen_bits_are_refused(tmp_path, values):
    """Nothing is silently clipped: there is no telling what white is."""
    assert refused(save(tmp_path / "a.tif", values))


def saved_pictures(folder, shapes, suffix="png"):
    paths = [folder / f"{number}.{suffix}" for number in range(len(shapes))]
    for number, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
        save(path, made_up_picture(*shape, seed=number))
    return paths


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
        ImageStore(torch.zeros(10, dtype=torch.int32), torch.tensor([[3, 4]]))


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
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    random = np.random.default_rng(0)
    for path, (height, width) in zip(paths, sizes.tolist(), strict=True):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
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
