"""Pages and bands of TIFFs, and kinds that Pillow refuses: chosen, told, and read alike later."""

import struct
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lightning_bbox import BadInput, BoxDataModule, BoxTable, Refiner
from lightning_bbox.annotations import headers
from lightning_bbox.annotations.headers import open_part, read_facts
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.core import tiff
from lightning_bbox.core.tiff import (
    PartError,
    TiffPage,
    TiffPart,
    has_tifffile,
    no_such_page,
    refuse_other_part,
    tiff_mark,
)
from lightning_bbox.data.options import Reading, Splits
from lightning_bbox.insight.check import check_data
from lightning_bbox.models.checkpoints import read_checkpoint, read_spec
from lightning_bbox.pictures.decode import decode_image, find_levels, rgb_of
from lightning_bbox.pictures.disk import open_disk_store
from lightning_bbox.pictures.store import ImageStore, PictureFiles
from lightning_bbox.pictures.thumbnails import read_thumbnails
from lightning_bbox.refinement.exported import GraphFacts
from lightning_bbox.refinement.serving.requests import Limits, decode_picture
from tests.annotation_files import csv_of, write
from tests.refinement.test_refiner import built_model, saved

needs_tifffile = pytest.mark.skipif(not has_tifffile(), reason="the extra `tiff` is missing")
HEIGHT, WIDTH = 52, 70
BANDS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 5), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 4096, (HEIGHT, WIDTH, 5), dtype=np.uint16)
CHOSEN = TiffPart(0, (4, 0, 2))


def tags(entries, start, big=False):
    """An IFD of whole numbers, little-endian, none after it; what doesn't fit lies behind it."""
    word, head = ("Q", 8) if big else ("I", 2)
    kinds = {"H": 3, "I": 4, "Q": 16}
    size = head + len(entries) * (20 if big else 12) + (8 if big else 4)
    rows, rest = b"", b""
    for tag, kind, values in entries:
        value = struct.pack(f"<{len(values)}{kind}", *values)
        room = struct.calcsize(word)
        if len(value) > room:
            place, rest = start + size + len(rest), rest + value
            value = struct.pack(f"<{word}", place)
        rows += struct.pack(f"<HH{word}", tag, kinds[kind], len(values)) + value.ljust(room, b"\0")
    return (
        struct.pack("<Q" if big else "<H", len(entries)) + rows + struct.pack(f"<{word}", 0) + rest
    )


def by_hand(values, *, planar=False, tile=0, big=False, turn=1, photometric=1):
    """Write a TIFF by its specification, byte for byte, without any library."""
    height, width, bands = values.shape
    values = values.astype(values.dtype.newbyteorder("<"))
    planes = [values[..., at : at + 1] for at in range(bands)] if planar else [values]
    pieces = []
    for plane in planes:
        if not tile:
            pieces += [plane[top : top + 20] for top in range(0, height, 20)]
            continue
        padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
        pieces += [
            padded[top : top + tile, left : left + tile]
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    head, places, content = (16 if big else 8), [], b""
    for piece in pieces:
        places.append(head + len(content))
        content += piece.tobytes()
    start, word = head + len(content), "Q" if big else "I"
    counts = [len(piece.tobytes()) for piece in pieces]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    where = (
        [(322, "H", [tile]), (323, "H", [tile]), (324, word, places), (325, word, counts)]
        if tile
        else [(273, word, places), (278, "H", [20]), (279, word, counts)]
    )
    entries = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [8 * values.dtype.itemsize] * bands),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (274, "H", [turn]),
        (277, "H", [bands]),
        (284, "H", [2 if planar else 1]),
        (338, "H", [0] * (bands - 1)),
        (339, "H", [kind] * bands),
        *where,
    ]
    entries = sorted(entry for entry in entries if entry[2])
    mark = (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)
        if big
        else b"II*\0" + struct.pack("<I", start)
    )
    return mark + content + tags(entries, start, big)


def eight(values, white=4095):
    return (values.astype(np.float64) * 255 / white).astype(np.uint8)


def refusal(tmp_path, content, part=CHOSEN):
    (tmp_path / "bad.tif").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        decode_image(tmp_path / "bad.tif", 4095, part)
    return str(refused.value)


@needs_tifffile
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("tile", [0, 32])
@pytest.mark.parametrize("planar", [False, True])
def test_chosen_bands_are_those_written_by_hand(tmp_path, planar, tile, big):
    for values, expected in ((BANDS, BANDS), (DEEP, eight(DEEP))):
        (tmp_path / "a.tif").write_bytes(by_hand(values, planar=planar, tile=tile, big=big))
        picture = decode_image(tmp_path / "a.tif", 4095, CHOSEN)
        np.testing.assert_array_equal(picture, expected[..., [4, 0, 2]])
        grey = decode_image(tmp_path / "a.tif", 4095, TiffPart(0, (3,)))
        np.testing.assert_array_equal(grey, np.repeat(expected[..., [3]], 3, axis=2))


@needs_tifffile
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "jpeg2000"])
def test_compressed_bands_come_out_as_tifffile_was_given_them(tmp_path, compression, order):
    from tifffile import imwrite

    floats = DEEP.astype(np.float32) / 4095
    for values, white in ((BANDS, None), (DEEP, 4095), (floats, (0.0, 1.0))):
        if compression == "jpeg2000" and (values is floats or order == ">"):
            continue  # of floats there is none, and tifffile swaps the bytes as it writes
        for planar, bigtiff in (("contig", False), ("separate", True)):
            shaped = values if planar == "contig" else np.moveaxis(values, -1, 0)
            how = {"planarconfig": planar, "bigtiff": bigtiff, "byteorder": order, "tile": (16, 32)}
            how |= {"photometric": "minisblack", "compression": compression}
            imwrite(tmp_path / "a.tif", shaped, **how)
            scaled = values if white is None else eight(values, 1.0 if values is floats else 4095)
            picture = decode_image(tmp_path / "a.tif", white, CHOSEN)
            np.testing.assert_array_equal(picture, scaled[..., [4, 0, 2]])


@needs_tifffile
@pytest.mark.parametrize("turn", range(1, 9))
def test_bands_are_turned_as_pillow_turns_the_same_picture(tmp_path, turn):
    colours = BANDS[..., :3]
    Image.fromarray(colours).save(tmp_path / "a.tif", tiffinfo={274: turn})
    own = decode_image(tmp_path / "a.tif", None, TiffPart(0, (0, 1, 2)))
    np.testing.assert_array_equal(own, decode_image(tmp_path / "a.tif"))
    ((_, facts),) = read_facts(tmp_path, ["a.tif"], TiffPart(0, (0, 1, 2))).items()
    assert facts == read_facts(tmp_path, ["a.tif"])["a.tif"]


@needs_tifffile
def test_white_that_is_zero_and_zeros_that_are_left_out_are_understood(tmp_path):
    (tmp_path / "a.tif").write_bytes(by_hand(BANDS[..., :2], photometric=0))
    grey = decode_image(tmp_path / "a.tif", None, TiffPart(0, (1,)))
    np.testing.assert_array_equal(grey[..., 0], 255 - BANDS[..., 1])
    whole = by_hand(BANDS, tile=32)
    places = struct.pack("<I", 8), struct.pack("<I", 32 * 32 * 5)
    at = whole.rindex(places[0] + struct.pack("<I", 8 + 32 * 32 * 5))
    sparse = whole[:at] + bytes(4) + whole[at + 4 :]
    counts = whole.index(places[1] * 6)
    sparse = sparse[:counts] + bytes(4) + sparse[counts + 4 :]
    (tmp_path / "a.tif").write_bytes(sparse)
    expected = BANDS[..., [4, 0, 2]]
    expected[:32, :32] = 0
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif", None, CHOSEN), expected)


def test_a_page_that_pillow_wrote_is_chosen_and_told_without_tifffile(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "has_tifffile", lambda: False)
    pages = [Image.fromarray(BANDS[:30, :, :3]), Image.fromarray(BANDS[..., 3])]
    pages.append(Image.fromarray(DEEP[..., 0]))
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif"), BANDS[:30, :, :3])
    second = decode_image(tmp_path / "a.tif", None, TiffPart(1))
    np.testing.assert_array_equal(second, np.repeat(BANDS[..., [3]], 3, axis=2))
    third = decode_image(tmp_path / "a.tif", 4095, TiffPart(2))
    np.testing.assert_array_equal(third, np.repeat(eight(DEEP[..., [0]]), 3, axis=2))
    write(tmp_path, {"b.csv": csv_of("a.tif,1,1,30,50")})
    table = read_annotations(tmp_path, page=2)
    assert table.sizes.tolist() == [[HEIGHT, WIDTH]]
    assert table.deep == {"a.tif"}
    assert "; other pages aren't read: a.tif" in table.note
    assert table.note.endswith("; page 2 of TIFFs is read, counted from 0")
    with pytest.raises(BadInput, match=r"it has 3 pages, and no page 3, from 0\); correct data"):
        decode_image(tmp_path / "a.tif", 4095, TiffPart(3))


def test_without_the_extra_one_sentence_names_it(tmp_path, monkeypatch):
    for module in (headers, tiff):
        monkeypatch.setattr(module, "has_tifffile", lambda: False)
    (tmp_path / "a.tif").write_bytes(by_hand(DEEP))
    write(tmp_path, {"b.csv": csv_of("a.tif,1,1,30,50")})
    for part in ({}, {"bands": [0, 1, 2]}):
        with pytest.raises(BadInput, match=r"pip install 'lightning_bbox\[tiff\]'") as refused:
            read_annotations(tmp_path, **part)
        assert "\n" not in str(refused.value)


@needs_tifffile
def test_bands_and_pages_that_are_not_there_are_refused(tmp_path):
    whole = by_hand(DEEP)
    assert "5 bands of 16 bits isn't read without saying which" in refusal(
        tmp_path, whole, TiffPart()
    )
    assert "it has 5 bands, and no band 7, from 0" in refusal(tmp_path, whole, TiffPart(0, (7,)))
    assert "it has 1 page, and no page 2, from 0" in refusal(tmp_path, whole, TiffPart(2, (0,)))
    assert "of which no bands are read" in refusal(tmp_path, by_hand(DEEP, photometric=5))


@needs_tifffile
def test_damaged_files_are_refused_in_one_sentence(tmp_path, monkeypatch):
    whole = by_hand(DEEP, tile=32)
    generator = np.random.default_rng(0)
    start = len(whole) - 400
    for end in (0, 3, 8, 100, start, start + 90):
        assert "\n" not in refusal(tmp_path, whole[:end])
    for _ in range(60):
        broken = bytearray(whole)
        for at in generator.integers(start, len(whole), 6):
            broken[at] = generator.integers(256)
        (tmp_path / "bad.tif").write_bytes(broken)
        with suppress(BadInput):  # nothing else
            decode_image(tmp_path / "bad.tif", 65_535, CHOSEN)
    places = struct.pack("<II", 8, 8 + 32 * 32 * 10)
    far = whole.replace(places, b"\xff\xff\xff\x7f" * 2)
    assert "it is truncated" in refusal(tmp_path, far)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    assert "max_pixels" in refusal(tmp_path, whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    many = np.zeros((HEIGHT, WIDTH, 15), np.uint16)
    (tmp_path / "a.tif").write_bytes(by_hand(many))
    assert decode_image(tmp_path / "a.tif", 4095, CHOSEN).shape == (HEIGHT, WIDTH, 3)
    assert "values, more than memory is kept for" in refusal(tmp_path, by_hand(many, tile=64))


@pytest.mark.parametrize(
    ("page", "bands"), [(-1, None), (True, None), (0, [0, 1]), (0, [-1]), (0, []), (0, [0.5])]
)
def test_parts_that_can_not_be_are_refused(page, bands):
    with pytest.raises(BadInput, match="expected"):
        TiffPart(page, bands)


def test_what_is_read_is_said():
    assert TiffPart().words() == ""
    assert TiffPart(2).words() == "page 2 of TIFFs is read, counted from 0"
    assert TiffPart(0, [5]).words() == "page 0 and band 5 of TIFFs are read, counted from 0"
    error = no_such_page(1, 4)
    assert isinstance(error, PartError)
    assert (str(error), error.remedy) == (
        "it has 1 page, and no page 4, from 0",
        "correct data.reading.page",
    )
    assert tiff_mark(BytesIO(by_hand(BANDS))) == b"II*\0"
    assert tiff_mark(BytesIO(b"GIF89a")) == b""
    refuse_other_part(TiffPart(1, [0]), TiffPart(1, (0,)))
    with pytest.raises(BadInput, match=r"bands \[3\] of TIFFs, and None is read now; set data"):
        refuse_other_part(TiffPart(0, [3]), TiffPart())


def data_set(tmp_path):
    names = [f"{role}{at}" for role in ("train", "val", "test") for at in range(2)]
    for at, name in enumerate(names):
        (tmp_path / f"{name}.tif").write_bytes(by_hand(np.roll(DEEP, 7 * at, axis=1), planar=True))
    rows = [f"{name}.tif,4,5,40,45,{name[:-1]}" for name in names]
    write(tmp_path, {"b.csv": csv_of(*rows, header="image,x1,y1,x2,y2,split")})
    return names


def data_of(root, **reading):
    splits = Splits(train="train", val="val", test="test")
    return BoxDataModule(str(root), splits=splits, reading=Reading(**reading))


@needs_tifffile
def test_bands_travel_from_the_data_to_the_model_and_to_whatever_reads_for_it(tmp_path):
    data_set(tmp_path)
    expected = eight(DEEP[..., [4, 0, 2]])
    data = data_of(tmp_path, bands=[4, 0, 2])
    assert any("bands 4, 0, 2 of TIFFs are read" in note for note in data.source.notes)
    assert any("other bands aren't read: train0.tif" in note for note in data.source.notes)
    assert any("12 bits" in n or "4095 is white" in n for n in data.source.notes)
    spec = data.spec()
    assert spec.part == CHOSEN
    pictures = [data.source.store.picture(at)[..., :3] for at in range(6)]
    assert any(np.array_equal(each, expected) for each in pictures)
    model = built_model()
    model.spec = replace(model.spec, part=spec.part, white_level=4095)
    path = saved(model, tmp_path / "a.ckpt")
    assert read_spec(read_checkpoint(path)).part == CHOSEN
    box = np.array([[10.0, 10, 40, 44]])
    alike = Refiner(path).refine(tmp_path / "train0.tif", box)
    np.testing.assert_array_equal(alike, Refiner(path).refine(expected, box))
    later = data_of(tmp_path)
    later.follow(replace(spec, geometry=later.geometry))
    assert later.part == CHOSEN
    np.testing.assert_array_equal(later.source.store.picture(0), data.source.store.picture(0))
    with pytest.raises(BadInput, match=r"trained with bands \[4, 0, 2\] of TIFFs, and \[0\] is"):
        data_of(tmp_path, bands=[0]).follow(spec)
    content = (tmp_path / "train0.tif").read_bytes()
    np.testing.assert_array_equal(decode_picture(content, Limits(), 4095, CHOSEN), expected)


@needs_tifffile
def test_stores_thumbnails_levels_and_check_read_the_chosen_bands(tmp_path):
    import torch

    data_set(tmp_path)
    paths, sizes = [tmp_path / "train0.tif"], torch.tensor([[HEIGHT, WIDTH]])
    expected = eight(DEEP[..., [4, 0, 2]])
    stores = [ImageStore.from_files(paths, sizes, white_level=4095, part=CHOSEN)]
    stores.append(open_disk_store(tmp_path / "kept", paths, sizes, 4095, CHOSEN))
    ((one, _),) = PictureFiles(paths, sizes, white_level=4095, part=CHOSEN).parts(torch.tensor([0]))
    for store in (*stores, one):
        np.testing.assert_array_equal(store.picture(0), expected)
    other = open_disk_store(tmp_path / "kept", paths, sizes, 4095, TiffPart(0, (1,)))
    np.testing.assert_array_equal(other.picture(0)[..., 0], eight(DEEP[..., 1]))
    assert find_levels(paths, CHOSEN).white == 4095
    thumbnails, faults = read_thumbnails(paths, CHOSEN)
    assert not faults
    assert thumbnails.float().std() > 0
    found = check_data(data_of(tmp_path, bands=[4, 0, 2]))
    assert not found.refusal
    lines = [line for section in found.sections for line in section.lines]
    assert any("bands 4, 0, 2 of TIFFs are read" in line for line in lines)
    assert "choose three, or one" in check_data(data_of(tmp_path)).refusal
    table = BoxTable.from_arrays(["train0.tif"], [[[1, 2, 30, 40]]], root=tmp_path, bands=[4, 0, 2])
    assert table.part == CHOSEN
    with (tmp_path / "train0.tif").open("rb") as file, open_part(file, CHOSEN) as page:
        assert isinstance(page, TiffPage)
        np.testing.assert_array_equal(rgb_of(page, 4095), expected)


def test_an_exported_models_facts_keep_the_part():
    model = built_model()
    spec = replace(model.spec, part=CHOSEN)
    facts = GraphFacts(
        format=1, spec=spec, per_class=False, law_shape=None, max_shift=None, version="", licence=""
    )
    told = facts.plain()
    told["spec"]["part"]["bands"] = list(told["spec"]["part"]["bands"])  # as JSON has it
    assert GraphFacts.from_plain(told).spec.part == CHOSEN
