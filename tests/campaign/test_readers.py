"""Whatever befalls a file ends in a table or in one sentence, and boxes return as written.

Files that hypothesis draws, parts of real data sets and pictures of every kind are damaged: bytes
flipped, parts cut, swapped or repeated, numbers made extreme, lines ended and texts encoded
otherwise. A longer campaign: `pytest tests/campaign/test_readers.py --hypothesis-profile campaign`.
"""

import json
import random
import resource
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.annotations.headers import read_header
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.validity import flaws_of
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import box_sizes, scale_boxes
from lightning_bbox.pictures.decode import decode_image
from tests.annotation_drafts import DRAFTS
from tests.annotation_files import write
from tests.campaign.damage import TOKENS, mutated, mutated_picture
from tests.conftest import DATA

# What Pillow says of the damage is its own affair.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# The largest picture that is read has 89 million pixels, and Pillow takes 24 bytes for one of WebP.
MOST_MEMORY = 2 << 30
LEAST_SIDE = 2.0  # pixels: a VOC box that has shrunk to one pixel is a click
NAMES = "path: .\nnames:\n  0: cell\n  1: plate\n"
OPTIONS = st.fixed_dictionaries(
    {}, optional={"on_bad": st.just("error"), "group_pattern": st.just(r"(.)[^/]*$")}
)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """No file may have the process map much more than it does."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", DRAFTS)
@given(data=st.data(), seed=st.integers(0), options=OPTIONS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(kind, data, seed, options):
    dice, draft = random.Random(seed), data.draw(DRAFTS[kind])
    files = draft.files() | ({"data.yaml": NAMES.encode()} if kind == "yolo" else {})
    hit = dice.choice([name for name in files if not name.endswith(".png")])
    content = files[hit] if isinstance(files[hit], bytes) else files[hit].encode()
    tokens = TOKENS["yaml" if hit.endswith(".yaml") else kind]
    event(judge(files | {hit: mutated(content, dice, tokens)}, draft.options | options))


@pytest.mark.skipif(not DATA.is_dir(), reason="there is no real data")
@pytest.mark.parametrize("kind", ["voc", "coco", "csv"])
@given(seed=st.integers(0))
def test_a_damaged_part_of_a_real_set_is_too(kind, seed):
    dice, files = random.Random(seed), real_set(kind)
    hit = dice.choice([name for name in files if not isinstance(files[name], tuple)])
    event(judge(files | {hit: mutated(files[hit], dice, TOKENS[kind])}, {}))


@given(st.integers(0))
def test_a_damaged_picture_is_decoded_or_refused_in_one_sentence(seed):
    dice = random.Random(seed)
    suffix, content = dice.choice(PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"a.{suffix}").write_bytes(mutated_picture(content, dice))
        for look in (size_of, pixels_of):
            try:
                look(Path(folder), f"a.{suffix}")
            except BadInput as refusal:
                check_sentence(str(refusal))


def size_of(root, name):
    header = read_header(root, name, Picture("b.csv", "b.csv:2"))
    assert min(header.height, header.width) > 0


def pixels_of(root, name):
    pixels = decode_image(root / name)
    assert (pixels.ndim, pixels.shape[2], pixels.dtype.name) == (3, 3, "uint8")


def judge(files, options):
    """Read, move every other box, write, read again, and compare; say how far that went."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "in", Path(folder) / "out"
        write(root, files)
        try:
            table = read_annotations(root, **options)
        except BadInput as refusal:
            check_sentence(str(refusal))
            return "refused"
        check_table(table)
        write(out, files)
        moved = scale_boxes(table.boxes, 0.875) + 0.0625 * box_sizes(table.boxes).repeat(1, 2)
        moves = (box_sizes(moved) >= LEAST_SIDE).all(dim=1) & (torch.arange(len(moved)) % 2 == 0)
        # A rough box may overhang its picture, and would move out of it.
        moves &= ~flaws_of(moved, table.sizes[table.image_index].flip(-1))[2]
        boxes = torch.where(moves[:, None], moved, table.boxes)
        try:
            write_boxes(table, boxes, out, decimals=3)
        except BadInput as refusal:
            check_sentence(str(refusal))
            return "not written"
        found = read_annotations(out, **options)
    assert not len(boxes) or float((found.boxes - boxes).abs().max()) <= 0.001
    assert found.boxes[~moves].equal(table.boxes[~moves])
    for name in ("images", "ids", "classes", "groups", "splits", "entries", "files"):
        assert getattr(found, name) == getattr(table, name), f"{name} have changed"
    assert len(found.skipped) == len(table.skipped)
    for name in ("labels", "sizes", "image_index"):
        assert getattr(found, name).equal(getattr(table, name)), f"{name} have changed"
    return "written"


def check_sentence(sentence):
    assert sentence.strip()
    assert len(sentence.splitlines()) == 1, ascii(sentence)
    assert len(sentence) <= 2000
    sentence.encode()


def check_table(table):
    assert table.boxes.isfinite().all()
    assert (box_sizes(table.boxes) > 0).all()
    assert len(table.boxes) == len(table.labels) == len(table.ids) == len(table.entries)
    assert not len(table.labels) or int(table.labels.max()) < len(table.classes)
    for sentence in (*map(str, table.skipped), *table.ids, table.note):
        check_sentence(sentence)


def real_set(kind):
    """Take a small part of a real data set, with blank pictures of the same sizes."""
    if kind == "voc":
        paths = sorted((DATA / "bccd" / "Annotations").glob("*.xml"))[:3]
        files = {f"Annotations/{p.name}": p.read_bytes().replace(b".jpg", b".png") for p in paths}
        return files | {f"JPEGImages/{path.stem}.png": (640, 480) for path in paths}
    if kind == "coco":
        whole = (DATA / "rbc" / "valid" / "_annotations.coco.json").read_bytes()
        names = {image["file_name"] for image in json.loads(whole)["images"]}
        return dict.fromkeys(names, (416, 416)) | {"_annotations.coco.json": whole}
    lines = (DATA / "deeppcb" / "boxes.csv").read_bytes().split(b"\n")[:13]
    names = {line.split(b",")[0].decode() for line in lines[1:]}
    return dict.fromkeys(names, (640, 640)) | {"b.csv": b"\n".join(lines)}


def pictures():
    """Save a small picture in every format and mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    rgb, palette = Image.fromarray(pixels), Image.fromarray(pixels).quantize(16)
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    saved = [
        *(("PNG", rgb.convert(mode), {}) for mode in ("RGB", "RGBA", "L", "LA", "1", "P")),
        *(("PNG", wide, {}), ("PNG", rgb, {"exif": exif}), ("PNG", palette, {"transparency": 3})),
        *(("JPEG", rgb.convert(mode), {"exif": exif}) for mode in ("RGB", "L", "CMYK")),
        *(("JPEG", rgb, {"progressive": True}), ("PNG", rgb, "pages"), ("MPO", rgb, "pages")),
        *(("BMP", rgb.convert(mode), {}) for mode in ("RGB", "L", "1", "P", "RGBA")),
        *(("WEBP", rgb, {"lossless": True, "exif": exif}), ("WEBP", rgb, "pages")),
        *(("PPM", rgb.convert(mode), {}) for mode in ("RGB", "L", "1")),
        *(("TIFF", rgb, {"compression": name}) for name in ("raw", "tiff_lzw", "packbits", "jpeg")),
        *(("TIFF", wide, {}), ("TIFF", rgb.convert("1"), {"compression": "group4"})),
        *(("TIFF", rgb, "pages"), ("GIF", palette, {"transparency": 1})),
        # Pillow looks at the content, so a file of any suffix may be one of these.
        *((name, rgb, {}) for name in ("AVIF", "DDS", "ICO", "JPEG2000", "PCX", "SGI", "TGA")),
    ]
    suffixes = {"JPEG": "jpg", "TIFF": "tif"}
    for form, image, options in saved:
        buffer = BytesIO()
        if options == "pages":
            image.copy().save(buffer, form, save_all=True, append_images=[rgb.rotate(90)])
        else:
            image.copy().save(buffer, form, **options)
        yield suffixes.get(form, form.lower()), buffer.getvalue()
    yield "ppm", b"P2\n# a\n2 2\n65535\n1 2 3 65535\n"


def large_pictures():
    """Save TIFFs in tiles and strips, that are read in parts where few pixels are allowed."""
    from tifffile import imwrite

    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    tiled = {"tile": (16, 16), "photometric": "rgb"}
    for values, options in (
        (pixels, tiled),
        (pixels, tiled | {"compression": "deflate", "predictor": True, "bigtiff": True}),
        (pixels, tiled | {"compression": "jpeg"}),
        (pixels, {"rowsperstrip": 5, "compression": "lzw", "photometric": "rgb"}),
        (pixels, {"photometric": "rgb"}),
        (pixels[..., 0] * np.uint16(257), {"tile": (16, 32), "compression": "zstd"}),
        (pixels[..., 0] / np.float32(255), {"rowsperstrip": 4}),
    ):
        buffer = BytesIO()
        imwrite(buffer, values, **options)
        yield buffer.getvalue()


PICTURES = list(pictures())
