"""Every kind of picture is read as it is meant, and what is none is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from lightning_bbox import BoxDataModule, Reading
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.decode import decode_image, find_levels
from lightning_bbox.pictures.store import ImageStore
from tests.annotation_files import csv_of, write
from tests.crops import made_up_picture, save_picture

RGB = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]],
    dtype=np.uint8,
)
GREY = np.array([[0, 1, 100], [128, 254, 255]], dtype=np.uint8)
BITS = GREY > 100
WIDE = np.array([[0, 256, 514], [25700, 65280, 65535]], dtype=np.uint16)
LOSSLESS = {"lossless": True}
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
    9: lambda pixels: pixels,  # there is no such orientation
}


def grey_of(values):
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=2)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def with_alpha(pixels, alpha):
    return np.dstack([pixels, np.full(pixels.shape[:2], alpha, dtype=np.uint8)])


def palette(indices):
    image = Image.fromarray(np.array(indices, dtype=np.uint8), mode="P")
    image.putpalette([9, 8, 7, 100, 0, 200, 255, 254, 253])
    return image


COLOURS = np.array([[9, 8, 7], [100, 0, 200], [255, 254, 253]], dtype=np.uint8)
INKS = np.concatenate([np.zeros((1, 4)), 255 * np.eye(4)]).astype(np.uint8)
OF_INKS = [[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]
FRAMES = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
RED = np.full((3, 4, 3), (255, 0, 0))

# By file name: what is saved, Pillow's options, and what it decodes to.
KINDS = {
    **{f"rgb.{suffix}": (RGB, {}, RGB) for suffix in ("png", "bmp", "tif", "ppm")},
    "rgb.webp": (RGB, LOSSLESS, RGB),
    **{f"grey.{suffix}": (GREY, {}, grey_of(GREY)) for suffix in ("png", "bmp", "tif")},
    **{f"bits.{suffix}": (BITS, {}, grey_of(255 * BITS)) for suffix in ("png", "bmp", "tif")},
    "palette.png": (palette([[0, 1, 2], [2, 1, 0]]), {}, COLOURS[[[0, 1, 2], [2, 1, 0]]]),
    "one_transparent.png": (palette([[0, 1, 2]]), {"transparency": 1}, COLOURS[[[0, 1, 2]]]),
    "each_transparent.png": (
        palette([[0, 1, 2]]), {"transparency": bytes([0, 128, 255])}, COLOURS[[[0, 1, 2]]],
    ),
    **{f"alpha_{alpha}.png": (with_alpha(RGB, alpha), {}, RGB) for alpha in (0, 128, 255)},
    "grey_alpha.png": (with_alpha(GREY, 128), {}, grey_of(GREY)),
    "inks.tif": (Image.frombytes("CMYK", (5, 1), INKS.tobytes()), {}, [OF_INKS]),
    **{
        f"sixteen{number}.{suffix}": (WIDE.astype(f"{order}u2"), {}, grey_of(WIDE // 257))
        for number, order in enumerate("<>")
        for suffix in ("png", "tif")
    },
    **{
        f"{kind}_turned_{number}.png": (pixels, turned(number), turn(expected))
        for number, turn in ORIENTATIONS.items()
        for kind, pixels, expected in (
            ("rgb", RGB, RGB), ("grey", GREY, grey_of(GREY)), ("wide", WIDE, grey_of(WIDE // 257)),
        )
    },
    **{
        f"turned_{number}.{suffix}": (RGB, turned(number) | options, turn(RGB))
        for number, turn in ORIENTATIONS.items()
        for suffix, options in (("tif", {}), ("webp", LOSSLESS))
    },
    **{f"animated.{suffix}": (FRAMES[0], ANIMATED, RED) for suffix in ("gif", "png")},
    "animated.webp": (FRAMES[0], ANIMATED | LOSSLESS, RED),
    **{
        f"{height}x{width}.png": (picture := made_up_picture(height, width), {}, picture)
        for height, width in ((1, 1), (1, 5000), (5000, 1), (3, 20_000), (20_000, 3))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_read_as_it_is_meant(tmp_path, name):
    image, options, expected = KINDS[name]
    path = save_picture(tmp_path / name, image, **options)
    if name.startswith("animated"):
        with Image.open(path) as frames:
            assert frames.n_frames == 3
    for spelt in (path, str(path)):
        found = decode_image(spelt)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_a_whole_read_gives_every_kind_upright_and_of_its_size(tmp_path):
    for name, (image, options, _) in KINDS.items():
        save_picture(tmp_path / name, image, **options)
    write(tmp_path, {"b.csv": csv_of(*(f"{name},0,0,2,1" for name in KINDS))})
    table = read_annotations(tmp_path)
    store = ImageStore.from_files([tmp_path / name for name in table.images], table.sizes)
    for number, name in enumerate(table.images):
        np.testing.assert_array_equal(store.picture(number), KINDS[name][2], err_msg=name)


def comes_close(path, expected, tolerance=8):
    found = decode_image(path)
    assert found.shape == np.shape(expected)
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    return True


COLUMNS, ROWS = np.arange(64), np.arange(48)[:, None]
SMOOTH = np.stack(np.broadcast_arrays(4 * COLUMNS, 5 * ROWS, 2 * (COLUMNS + ROWS)), axis=2)
LARGE = np.kron(RGB, np.ones((16, 16, 1), dtype=np.uint8))
JPEGS = {
    "plain": (SMOOTH.astype(np.uint8), {}, SMOOTH),
    "progressive": (SMOOTH.astype(np.uint8), {"progressive": True}, SMOOTH),
    "of inks": (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), {}, RED),
    **{
        f"turned {number}": (LARGE, turned(number), turn(LARGE))
        for number, turn in ORIENTATIONS.items()
    },
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_come_close(tmp_path, name):
    image, options, expected = JPEGS[name]
    path = save_picture(tmp_path / "a.jpg", image, quality=95, subsampling=0, **options)
    assert comes_close(path, expected)


def png_of(wide, colour_type):
    """A PNG of 16 bits a channel, which Pillow reads but doesn't write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    head = struct.pack(">IIBBBBB", wide.shape[1], wide.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_a_colour_lose_their_lower_byte(tmp_path, alpha):
    """Pillow's doing, at most one level off from a division by 257."""
    wide = np.random.default_rng(0).integers(0, 65536, (5, 7, 4 if alpha else 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_of(wide, colour_type=6 if alpha else 2))
    assert comes_close(tmp_path / "a.png", wide[..., :3] // 257, tolerance=1)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(*entries):
    """A block of EXIF; entries are (tag, type, count, value in four bytes)."""
    rows = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + rows + struct.pack("<I", 0)


@pytest.mark.filterwarnings("ignore:Tag data larger than file:UserWarning")
@pytest.mark.parametrize(
    "entry",
    [(0x0128, 2, 2, b"2"), (0x010F, 2, 99, struct.pack("<I", 9999))],
    ids=["a unit in letters", "a maker beyond the end"],
)
def test_a_faulty_tag_beside_the_orientation_does_no_harm(tmp_path, entry):
    exif = exif_of((0x0112, 3, 1, struct.pack("<H", 6)), entry)
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG", exif=exif))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), ORIENTATIONS[6](RGB))


def refused(path, *parts):
    with pytest.raises(BadInput) as caught:
        decode_image(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    return True


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "a.png", "no such picture; check the root folder")
    assert refused(tmp_path, "can't be decoded")


@pytest.mark.parametrize(
    "content", [b"", b"x1,y1,x2,y2\n1,2,3,4\n", b"\x89PNG\r\n\x1a\n", bytes(999)]
)
def test_a_file_that_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert refused(tmp_path / "a.jpg", "can't be decoded", "replace or remove it")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 50\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_named_as_a_picture_is_refused_and_starts_nothing(tmp_path, monkeypatch):
    """Pillow would start Ghostscript on it."""
    (tmp_path / "a.png").write_bytes(EPS)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size) == ("EPS", (60, 50))
    write(tmp_path, {"b.csv": csv_of("a.png,1,1,2,2")})
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was started"))
    assert refused(tmp_path / "a.png", "of no known format")
    with pytest.raises(BadInput, match="of no known format"):
        read_annotations(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(tmp_path, kind, share):
    content = encoded(made_up_picture(64, 64), kind)
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    assert refused(tmp_path / "a", "can't be decoded")


def test_a_tiff_whose_pixels_begin_at_a_fraction_is_refused(tmp_path):
    path = save_picture(tmp_path / "a.tif", GREY)
    offsets, whole, fraction = 273, 4, 11
    tag = struct.pack("<HH", offsets, whole)
    assert tag in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(tag, struct.pack("<HH", offsets, fraction)))
    assert refused(path, "can't be decoded")


def test_pictures_that_claim_all_memory_are_refused(tmp_path, monkeypatch):
    def claim(*_, **__):
        raise MemoryError

    path = save_picture(tmp_path / "a.png", RGB)
    write(tmp_path, {"b.csv": csv_of("a.png,1,1,2,2")})
    monkeypatch.setattr(Image, "open", claim)
    assert refused(path, "can't be decoded (it asks for more memory than there is)")
    with pytest.raises(BadInput, match=r"as a picture \(it asks for more memory than there is\);"):
        read_annotations(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 20, 100])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, side):
    """Pillow itself only warns up to twice the limit."""
    path = save_picture(tmp_path / "a.png", made_up_picture(side, 10))
    assert decode_image(path).shape == (side, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refused(path, "can't be decoded", f"{side * 10} pixels", "set data.reading.max_pixels")


@pytest.mark.filterwarnings("error")
def test_a_picture_of_more_pixels_than_pillow_allows_is_read_where_that_many_are_allowed(
    tmp_path, monkeypatch
):
    picture = made_up_picture(20, 30)
    path = save_picture(tmp_path / "a.png", picture)
    write(tmp_path, {"b.csv": csv_of("a.png,1,1,2,2")})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for limit in (None, 599):
        with pytest.raises(BadInput, match=r"set data\.reading\.max_pixels \(in Python also PIL"):
            read_annotations(tmp_path, max_pixels=limit)
    data = BoxDataModule(str(tmp_path), reading=Reading(max_pixels=600))
    assert data.read_table().sizes.tolist() == [[20, 30]]
    np.testing.assert_array_equal(decode_image(path), picture)
    with pytest.raises(BadInput, match="max_pixels is 0; expected 1 or more"):
        read_annotations(tmp_path, max_pixels=0)


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 70000, -5]], dtype=np.int32), np.array([[0.0, 0.5, 1e9]], dtype=np.float32)],
    ids=["32-bit integers", "floats"],
)
def test_grey_levels_beyond_sixteen_bits_are_refused(tmp_path, values):
    """Nothing is silently clipped: there is no telling what white is."""
    assert refused(save_picture(tmp_path / "a.tif", values))


def test_a_grey_pgm_of_16_bits_is_read_as_a_tiff_is(tmp_path):
    values = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    header = b"P5 64 48 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + values.astype(">u2").tobytes())
    write(tmp_path, {"b.csv": csv_of("a.tif,1,1,9,9", "a.pgm,1,1,9,9")})
    table = read_annotations(tmp_path)
    assert table.deep == {"a.tif", "a.pgm"}
    assert find_levels([tmp_path / "a.pgm"]).white == 4095
    levels = [decode_image(tmp_path / name, 4095) for name in ("a.tif", "a.pgm")]
    assert np.array_equal(*levels)
    assert len(np.unique(levels[0])) == 256
    with pytest.raises(BadInput, match="nothing says which value is white"):
        decode_image(tmp_path / "a.pgm", None)
    Image.fromarray(np.array([[-1, 70_000]], np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(BadInput, match=r"32 bits a pixel, and values from -1 to 70000; save it"):
        decode_image(tmp_path / "wide.tif")
