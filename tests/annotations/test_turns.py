"""Boxes drawn on pictures before EXIF turned them, or after: told by sizes, others, or the user."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, read_annotations
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.pictures.decode import decode_image
from tests.annotation_files import coco, csv_of, voc, write


def bright(path, orientation, size=(64, 48)):
    """Save a picture that is bright in (20, 5, 50, 15) as it is stored."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[5:15, 20:50] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def bright_box(path):
    lit = decode_image(path)[:, :, 0] > 127
    (top, *_, low), (left, *_, right) = (np.flatnonzero(lit.any(axis=side)) for side in (1, 0))
    return [left, top, right + 1, low + 1]


STORED = {
    "csv": ("b.csv", csv_of("a.png,20,5,50,15")),
    "yolo": ("a.txt", f"0 {35 / 64!r} {10 / 48!r} {30 / 64!r} {10 / 48!r}"),
    "voc": ("a.xml", voc("a.png", (64, 48), ("cell", (21, 6, 50, 15)))),
    "coco": ("b.json", coco(("a.png", (0, 0), [("cell", (20, 5, 30, 10))]))),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_stored_pictures_turn_with_them_and_are_written_back_there(
    tmp_path, orientation, kind
):
    file, content = STORED[kind]
    content = content if isinstance(content, str) else json.dumps(content)
    bright(tmp_path / "a.png", orientation)
    write(tmp_path, {file: content})
    table = read_annotations(tmp_path, exif="ignore")
    torch.testing.assert_close(table.boxes, torch.tensor([bright_box(tmp_path / "a.png")]).float())
    (kept,) = write_boxes(table, table.boxes, tmp_path / "kept")
    assert kept.read_text() == content
    (moved,) = write_boxes(table, table.boxes + 2.0, tmp_path / "out")
    assert moved.read_text() != content
    moved.replace(tmp_path / file)
    again = read_annotations(tmp_path, exif="ignore", annotations=file)
    torch.testing.assert_close(again.boxes, table.boxes + 2.0, atol=1e-3, rtol=0)


def turned_set(root, sizes, exif="auto", orientations=(6, 3)):
    """Write two pictures that EXIF turns, of which the files state sizes."""
    for name, orientation in zip("ab", orientations, strict=True):
        bright(root / f"{name}.png", orientation)
    boxes = [("cell", (20, 5, 10, 10))]
    files = coco(*((f"{name}.png", size, boxes) for name, size in zip("ab", sizes, strict=True)))
    write(root, {"b.json": files})
    return read_annotations(root, exif=exif)


def test_what_one_size_tells_holds_for_pictures_whose_size_tells_nothing(tmp_path):
    table = turned_set(tmp_path, [(64, 48), (64, 48)])
    assert table.turns == {"a.png": 6, "b.png": 3}
    assert "drawn on them as they are stored, 2: a.png, b.png" in table.note
    table = turned_set(tmp_path, [(48, 64), (64, 48)])
    assert table.turns == {}
    assert "drawn on them as EXIF turns them, 1: a.png" in table.note


def test_where_nothing_tells_it_is_said_and_the_user_decides(tmp_path):
    table = turned_set(tmp_path, [(0, 0), (64, 48)])
    assert table.turns == {}
    said = "unless exif='ignore' (--data.reading.exif=ignore), 2: a.png, b.png"
    assert said in table.note
    assert turned_set(tmp_path, [(0, 0), (64, 48)], "ignore").turns == {"a.png": 6, "b.png": 3}
    assert turned_set(tmp_path, [(64, 48), (64, 48)], "apply").turns == {}
    with pytest.raises(BadInput, match=r"states 63 x 48 pixels, but a\.png has 48 x 64 once EXIF"):
        turned_set(tmp_path, [(63, 48), (64, 48)], "ignore")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_any_other_picture(tmp_path, orientation):
    bright(tmp_path / "a.tiff", orientation)
    write(tmp_path, {"b.csv": csv_of("a.tiff,20,5,50,15")})
    table = read_annotations(tmp_path, exif="ignore")
    assert table.sizes.tolist() == [[48, 64] if orientation < 5 else [64, 48]]
    assert table.boxes.tolist() == [bright_box(tmp_path / "a.tiff")]
