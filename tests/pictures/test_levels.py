"""Pictures of 16 bits keep the levels of their camera, and what isn't read of a file is said."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, BoxDataModule, OffsetSpec, Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.data.options import Splits
from lightning_bbox.geometry.codecs import as_white, refuse_other_white
from lightning_bbox.models.checkpoints import read_checkpoint, read_spec
from lightning_bbox.pictures.decode import decode_image, find_levels, to_rgb
from lightning_bbox.pictures.disk import open_disk_store
from lightning_bbox.pictures.places import Storage
from lightning_bbox.pictures.store import ImageStore, PictureFiles
from tests.annotation_files import csv_of, write
from tests.crops import save_picture
from tests.pictures.test_decode import png_of
from tests.refinement.test_refiner import built_model, saved

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
"""All the levels of a camera of 12 bits."""

OTHER_BANDS = "bands beyond the colours, such as alpha aren't read: a.tif"


def levels_of(pixels):
    return len(np.unique(pixels))


def scaled(values, white):
    """The oracle: what 8 bits make of grey values, rounded down."""
    return np.floor(np.minimum(values.astype(np.float64), white) * 255 / white)


def write_set(root, largest, suffix="png"):
    """A data set whose pictures are ramps up to these values, one for each split."""
    for name, top in largest.items():
        values = np.linspace(0, top, 64 * 64).round().reshape(64, 64).astype(np.uint16)
        save_picture(root / f"{name}.{suffix}", values)
    rows = [f"{name}.{suffix},4,5,40,50,{name}" for name in largest]
    write(root, {"b.csv": csv_of(*rows, header="image,x1,y1,x2,y2,split")})
    return root


def data_of(root, **options):
    options = {"store": Storage("device"), "compile": False} | options
    return BoxDataModule(str(root), splits=Splits(train="train", val="val", test="test"), **options)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_all_256_levels_that_8_bits_hold_arrive_from_a_camera_of_12(tmp_path, suffix):
    path = save_picture(tmp_path / f"a.{suffix}", RAMP)
    assert find_levels([path]) == (4095, "the largest value of 1 is 4095")
    found = decode_image(path, 4095)
    assert levels_of(found) == 256
    np.testing.assert_array_equal(found, np.repeat(scaled(RAMP, 4095)[..., None], 3, axis=2))
    assert levels_of(decode_image(path)) == 16, "what a division by 257 would leave of them"


def test_dim_cells_of_such_a_camera_keep_their_levels(tmp_path):
    path = save_picture(tmp_path / "a.png", RAMP[3:15].clip(200, 900))
    level, why = find_levels([path])
    assert (level, why) == (1023, "the largest value of 1 is 900")
    assert levels_of(decode_image(path, level)) == 900 * 255 // 1023 - 200 * 255 // 1023 + 1 == 176


@pytest.mark.parametrize(
    ("largest", "level"),
    [(0, 255), (200, 255), (255, 255), (256, 511), (4095, 4095), (4096, 8191), (65535, 65535)],
)
def test_white_is_the_smallest_2k_minus_1_that_holds_the_largest_value(tmp_path, largest, level):
    paths = [
        save_picture(tmp_path / f"{top}.png", np.full((2, 2), top, dtype=np.uint16))
        for top in {0, largest // 2, largest}
    ]
    assert find_levels(paths) == (level, f"the largest value of {len(paths)} is {largest}")


def test_values_above_white_are_white_and_that_is_said_with_the_level_that_would_do(tmp_path):
    path = save_picture(tmp_path / "a.png", RAMP)
    with pytest.warns(UserWarning, match=r"white level 1023, .* data\.white_level=4095 tells"):
        found = decode_image(path, 1023)
    np.testing.assert_array_equal(found[..., 0], scaled(RAMP, 1023))


def test_auto_looks_at_the_training_pictures_alone_and_says_what_it_found(tmp_path):
    data = data_of(write_set(tmp_path, {"train": 900, "val": 1000, "test": 60_000}))
    with pytest.warns(UserWarning, match="above their white level 1023"):
        notes = data.source.notes
    said = "3 of 3 pictures have more than 8 bits a band, where 1023 is white (auto: the largest"
    assert f"{said} value of 1 is 900)" in notes
    assert data.spec().white_level == data.white_level == 1023
    assert levels_of(data.source.store.picture(0)) == 900 * 255 // 1023 + 1


def test_a_level_that_is_given_holds_everywhere(tmp_path):
    root = write_set(tmp_path, {"train": 900, "val": 1000, "test": 4000})
    data = data_of(root, white_level=4095)
    assert (
        "3 of 3 pictures have more than 8 bits a band, where 4095 is white (data.white_level)"
        in (data.source.notes)
    )
    assert data.spec().white_level == 4095
    sizes, paths = torch.tensor([[64, 64]] * 3), [root / f"{name}.png" for name in data_names()]
    expected = [decode_image(path, 4095) for path in paths]
    disk = open_disk_store(tmp_path / "store", paths, sizes, white_level=4095)
    late = PictureFiles(paths, sizes, white_level=4095).parts(torch.arange(3))
    memory = ImageStore.from_files(paths, sizes, white_level=4095)
    for store in (data.source.store, disk, memory, next(late)[0]):
        assert sorted(store.picture(at).sum() for at in range(3)) == [p.sum() for p in expected]


def data_names():
    return ("train", "val", "test")


@pytest.mark.filterwarnings("ignore:the pictures in .* are stale")
def test_a_store_on_disk_is_made_anew_for_another_level_and_kept_for_the_same(tmp_path):
    path, sizes = save_picture(tmp_path / "a.png", RAMP), torch.tensor([[64, 64]])
    for level, levels in ((65_535, 16), (4095, 256), (4095, 256), (65_535, 16)):
        store = open_disk_store(tmp_path / "s", [path], sizes, white_level=level)
        assert levels_of(store.picture(0)) == levels


@pytest.mark.parametrize("level", [0, -1, 65_536])
def test_levels_that_16_bits_do_not_hold_are_refused(tmp_path, level):
    with pytest.raises(BadInput, match=f"white_level is {level}; expected auto, or 1 to"):
        BoxDataModule(str(tmp_path), white_level=level)


def test_a_set_of_8_bits_has_no_level_and_its_pictures_stay_what_they_are(tmp_path):
    root = write_set(tmp_path, {"train": 90, "val": 90, "test": 90})
    for path in root.glob("*.png"):
        save_picture(path, np.asarray(Image.open(path)).astype(np.uint8))
    for level in ("auto", 100):
        data = data_of(root, white_level=level)
        assert (data.spec().white_level, levels_of(data.source.store.picture(0))) == (None, 91)
        assert not any("8 bits" in note for note in data.source.notes)


def model_with(level):
    model = built_model()
    model.spec = model.spec.__class__(**vars(model.spec) | {"white_level": level})
    return model


def test_a_trained_model_has_its_own_white_in_the_pictures_it_is_tested_on(tmp_path):
    data = data_of(write_set(tmp_path, {"train": 900, "val": 900, "test": 900}))
    assert levels_of(data.source.store.picture(0)) == 225
    assert data.white_level == 1023
    spec = model_with(4095).spec
    data.follow(type(spec)(data.geometry, 2, 5.0, 0.0, white_level=4095))
    assert data.white_level == 4095
    assert levels_of(data.source.store.picture(0)) == 900 * 255 // 4095 + 1
    assert any("4095 is white (as the model was trained)" in note for note in data.source.notes)
    asked = data_of(tmp_path, white_level=1023)
    with pytest.raises(BadInput, match=r"trained with white_level 4095, .* 1023; set data\.white"):
        asked.follow(type(spec)(data.geometry, 2, 5.0, 0.0, white_level=4095))


def test_rough_boxes_are_refined_on_pictures_read_as_in_training(tmp_path):
    data = data_of(write_set(tmp_path, {"train": 900, "val": 900, "test": 900}))
    data._rough = True
    for known, level in ((None, 1023), (4095, 4095)):
        data.follow(OffsetSpec(data.geometry, 2, 5.0, 0.0, white_level=known))
        (store, _), *_ = data.source.store.parts(torch.tensor([0]))
        assert levels_of(store.picture(0)) == 900 * 255 // level + 1


def test_a_refiner_reads_16_bits_as_in_training_or_asks(tmp_path):
    path = save_picture(tmp_path / "a.png", RAMP)
    box = np.array([[10.0, 10, 40, 44]])
    eight = scaled(RAMP, 4095).astype(np.uint8)
    expected = Refiner(model_with(None)).refine(eight, box)
    for image in (path, Image.open(path)):
        for refiner in (Refiner(model_with(4095)), Refiner(model_with(None), white_level=4095)):
            assert refiner.refine(image, box).tolist() == expected.tolist()
        with pytest.raises(BadInput, match=r"it has 16 bits and the model was .* a white_level"):
            Refiner(model_with(None)).refine(image, box)


def test_the_level_travels_in_the_checkpoint_and_older_ones_had_the_full_scale(tmp_path):
    assert Refiner(saved(model_with(4095), tmp_path / "a.ckpt")).white_level == 4095
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    del checkpoint["lightning_bbox"]["spec"]["white_level"]
    assert read_spec(checkpoint).white_level == 65_535


def test_a_run_does_not_go_on_with_another_white():
    spec = model_with(4095).spec
    for level in (4095, None):
        refuse_other_white(spec, level)
    with pytest.raises(BadInput, match=r"set data\.white_level=4095"):
        refuse_other_white(spec, 1023)


def test_colours_of_16_bits_are_read_by_their_upper_bytes_only_where_these_are_in_use(tmp_path):
    wide = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 68
    path = tmp_path / "a.png"
    path.write_bytes(png_of(wide, colour_type=2))
    assert find_levels([path]).white == 4095
    with pytest.raises(BadInput, match=r"a\.png: .* only the upper 8 .* white level is 4095; save"):
        decode_image(path, 4095)
    path.write_bytes(png_of(wide * 16, colour_type=2))
    assert find_levels([path]).white == 65_535
    np.testing.assert_array_equal(decode_image(path), wide * 16 // 256)


def tiff_of(bands, bits, extra=(), pages=1):
    """A TIFF of any number of bands, which Pillow doesn't write."""
    height, width = 4, 5
    pixels = bytes(height * width * bands * bits // 8)
    each = struct.pack(f"<{bands}H", *[bits] * bands)
    rest = struct.pack(f"<{len(extra)}H", *extra)
    head, size = 8, 2 + 12 * (9 + bool(extra)) + 4
    content = b"II*\0" + struct.pack("<I", head)
    for page in range(pages):
        start = len(content)
        blob = start + size
        place = blob + 2 * bands + 2 * len(extra)
        entries = [
            (256, 3, 1, struct.pack("<I", width)),
            (257, 3, 1, struct.pack("<I", height)),
            (258, 3, bands, each.ljust(4, b"\0") if bands < 3 else struct.pack("<I", blob)),
            (259, 3, 1, struct.pack("<I", 1)),
            (262, 3, 1, struct.pack("<I", 2 if bands > 2 else 1)),
            (273, 4, 1, struct.pack("<I", place)),
            (277, 3, 1, struct.pack("<I", bands)),
            (278, 3, 1, struct.pack("<I", height)),
            (279, 4, 1, struct.pack("<I", len(pixels))),
        ]
        if extra:
            entries.append((338, 3, len(extra), rest.ljust(4, b"\0")))
        rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
        end = place + len(pixels)
        content += struct.pack("<H", len(entries)) + rows
        content += struct.pack("<I", end if page + 1 < pages else 0) + each + rest + pixels
    return content


@pytest.mark.parametrize(("bands", "bits"), [(2, 8), (2, 16), (5, 8), (5, 16), (6, 16)])
def test_tiffs_of_other_bands_are_refused_by_their_number_and_bits(tmp_path, bands, bits):
    (tmp_path / "a.tif").write_bytes(tiff_of(bands, bits))
    write(tmp_path, {"b.csv": csv_of("a.tif,1,1,3,3")})
    for read in (lambda: decode_image(tmp_path / "a.tif"), lambda: read_annotations(tmp_path)):
        with pytest.raises(BadInput, match=rf"a TIFF of {bands} bands of {bits} bits isn't read"):
            read()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (tiff_of(3, 8), None),
        (tiff_of(1, 16), None),
        (tiff_of(1, 8, pages=3), "pages beyond the first aren't read: a.tif"),
        (tiff_of(4, 8, extra=(0,)), OTHER_BANDS),
        (tiff_of(5, 8, extra=(0, 0)), OTHER_BANDS),
        (tiff_of(4, 8, extra=(2,)), OTHER_BANDS),
        (tiff_of(4, 8, extra=(2,), pages=2), f"pages beyond the first, and {OTHER_BANDS}"),
    ],
)
def test_pages_and_bands_that_are_not_read_are_noted(tmp_path, content, note):
    (tmp_path / "a.tif").write_bytes(content)
    write(tmp_path, {"b.csv": csv_of("a.tif,1,1,3,3")})
    said = read_annotations(tmp_path).note
    assert said == "CSV, corners as pixel edges, read from b.csv" + (f"; {note}" if note else "")


def test_frames_of_a_gif_and_transparency_are_noted_and_inks_are_not(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    save_picture(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    save_picture(tmp_path / "one.gif", frames[0])
    save_picture(tmp_path / "alpha.png", Image.new("RGBA", (4, 3)))
    save_picture(tmp_path / "grey_alpha.png", Image.new("LA", (4, 3)))
    save_picture(tmp_path / "inks.tif", Image.new("CMYK", (4, 3)))
    save_picture(tmp_path / "inks.jpg", Image.new("CMYK", (4, 3)))
    names = sorted(path.name for path in tmp_path.iterdir())
    write(tmp_path, {"b.csv": csv_of(*(f"{name},1,1,3,3" for name in names))})
    assert read_annotations(tmp_path).note.split("; ")[1:] == [
        "bands beyond the colours, such as alpha aren't read: alpha.png, grey_alpha.png",
        "pages beyond the first aren't read: moving.gif",
    ]


FLOATS = np.linspace(-0.5, 1.5, 64 * 64, dtype=np.float32).reshape(64, 64)


def windowed(values, black, white):
    """The oracle: what 8 bits make of values between black and white, rounded down."""
    shares = (np.clip(values.astype(np.float64), black, white) - black) / (white - black)
    return np.floor(shares * 255 + 1e-9)


def save_floats(path, values):
    """Save floats as TIFF, or as PFM, which Pillow reads only."""
    if path.suffix == ".pfm":
        height, width = values.shape
        head = f"Pf\n{width} {height}\n-1.0\n".encode()
        path.write_bytes(head + values[::-1].astype("<f4").tobytes())
        return path
    return save_picture(path, values)


@pytest.mark.parametrize("suffix", ["tif", "pfm"])
def test_floats_are_read_between_black_and_white(tmp_path, suffix):
    path = save_floats(tmp_path / f"a.{suffix}", FLOATS)
    found = decode_image(path, (0.0, 1.0))
    assert levels_of(found) == 256
    np.testing.assert_allclose(found[..., 1], windowed(FLOATS, 0, 1), atol=1)
    assert (found[FLOATS <= 0] == 0).all()
    assert (found[FLOATS >= 1] == 255).all()
    np.testing.assert_array_equal(to_rgb(Image.fromarray(FLOATS), (0.0, 1.0)), found)


def test_whole_numbers_may_have_a_black_level_too(tmp_path):
    path = save_picture(tmp_path / "a.png", RAMP)
    found = decode_image(path, (1000.0, 1200.0))
    np.testing.assert_array_equal(found[..., 0], windowed(RAMP, 1000, 1200))
    wide = (RAMP.astype(np.int32) - 100) * 100
    path = save_picture(tmp_path / "b.tif", wide)
    with pytest.raises(BadInput, match=r"black and white with white_level=\[-10000, 399500\]"):
        decode_image(path)
    found = decode_image(path, (-10_000.0, 399_500.0))
    np.testing.assert_array_equal(found[..., 0], windowed(wide, -10_000, 399_500))
    assert find_levels([path]).white == (-9600.0, 399_100.0)


def test_what_is_not_finite_is_black_and_counts_for_nothing(tmp_path):
    values = FLOATS.copy()
    values[0], values[1] = np.nan, np.inf
    path = save_picture(tmp_path / "a.tif", values)
    found = decode_image(path, (-0.5, 1.5))
    assert (found[0] == 0).all()
    assert (found[1] == 255).all()
    (black, white), why = find_levels([path])
    rest = np.sort(values[2:].ravel())
    assert (black, white) == (rest[len(rest) // 1000], rest[-1 - len(rest) // 1000])
    assert f"of values from {rest[0]:.6g} to 1.5 in 1" in why
    save_picture(path, np.full((4, 4), np.nan, dtype=np.float32))
    with pytest.raises(BadInput, match=r"a\.tif: .* \(none of its values is finite"):
        find_levels([path])


def test_a_hot_pixel_does_not_make_the_rest_black(tmp_path):
    hot = FLOATS.copy()
    hot[5, 5] = 1e6
    paths = [save_picture(tmp_path / f"{n}.tif", each) for n, each in enumerate((hot, FLOATS / 2))]
    white, _ = find_levels(paths)
    assert white == pytest.approx((-0.5, 1.5), abs=0.003)
    assert levels_of(decode_image(paths[0], white)) > 250


def test_levels_that_lose_a_picture_are_warned_of(tmp_path):
    path = save_picture(tmp_path / "a.tif", FLOATS.clip(0.1, 0.9))
    with pytest.warns(UserWarning, match=r"all black or white, as white_level=\[0.0, 255.0\] has"):
        assert levels_of(decode_image(path, (0.0, 255.0))) == 1
    with pytest.raises(BadInput, match=r"32 bits a pixel, and values from 0\.1 to 0\.9; save it"):
        decode_image(path)


def test_floats_beside_whole_numbers_need_a_word(tmp_path):
    paths = [save_picture(tmp_path / "a.tif", FLOATS), save_picture(tmp_path / "b.tif", RAMP)]
    with pytest.raises(BadInput, match=r"floats in .*a\.tif, and none in .*b\.tif; say what is"):
        find_levels(paths)


def test_a_set_of_floats_tells_its_levels_which_travel_to_a_refiner(tmp_path):
    for name in data_names():
        save_picture(tmp_path / f"{name}.tif", FLOATS)
    rows = [f"{name}.tif,4,5,40,50,{name}" for name in data_names()]
    write(tmp_path, {"b.csv": csv_of(*rows, header="image,x1,y1,x2,y2,split")})
    data = data_of(tmp_path)
    (said,) = (note for note in data.source.notes if "8 bits" in note)
    assert said.startswith("3 of 3 pictures have more than 8 bits a band, where -0.498046 is black")
    assert "1.49805 is white (auto: all but a thousandth at either end, of values from -0.5" in said
    white = data.spec().white_level
    assert levels_of(data.source.store.picture(0)) == 256
    path = saved(model_with(white), tmp_path / "a.ckpt")
    refiner = Refiner(path)
    assert refiner.white_level == white
    box = np.array([[10.0, 10, 40, 44]])
    eight = windowed(FLOATS, *white).astype(np.uint8)
    expected = Refiner(model_with(None)).refine(eight, box)
    for image in (tmp_path / "test.tif", Image.open(tmp_path / "test.tif")):
        np.testing.assert_allclose(refiner.refine(image, box), expected, atol=0.1)
    given = data_of(tmp_path, white_level=[0, 1])
    assert given.spec().white_level == (0.0, 1.0)
    with pytest.raises(BadInput, match=r"white_level \[-0\.49.*\]"):
        given.follow(OffsetSpec(given.geometry, 2, 5.0, 0.0, white_level=white))


@pytest.mark.parametrize(
    "given", [[1, 1], [2, 1], [0], "x", [0, "a"], [0, float("inf")], True, 1.5]
)
def test_levels_that_can_not_be_are_refused(given):
    with pytest.raises(BadInput, match=r"expected auto, or 1 to 65535, or \[BLACK, WHITE\]"):
        as_white(given)


def test_an_image_of_16_bits_at_hand_is_scaled_too():
    image = Image.fromarray(RAMP)
    np.testing.assert_array_equal(to_rgb(image, 4095)[..., 2], scaled(RAMP, 4095))
    assert levels_of(to_rgb(image)) == 16
