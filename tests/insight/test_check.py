"""What `check` says of a data set is true, and so is what it says `fit` would refuse."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BoxDataModule, read_annotations
from lightning_bbox.cli.main import main
from lightning_bbox.geometry.boxes import paired_iou
from lightning_bbox.insight.check import check_data, max_overlaps, touches_border
from lightning_bbox.insight.check_files import format_check, write_check
from lightning_bbox.insight.leaks import alike_across, torn_sequences
from lightning_bbox.pictures.thumbnails import SIDE, alike_pairs, read_thumbnails
from tests.annotation_files import NINE, ROWS, csv_of, write
from tests.runs import TINY

ROLES = ["train", "val", "test"]


def checked(root, files):
    write(root, files)
    return check_data(BoxDataModule(str(root)))


def section(found, title):
    return next(each for each in found.sections if each.title == title)


def noise(seed, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def test_what_is_there_is_counted(tmp_path):
    rows = ["0.png,1,1,20,20", "0.png,2,2,21,21", "0.png,5,5,5,9", "1.png,-9,1,4,9"]
    found = checked(tmp_path, NINE | {"b.csv": csv_of(*rows, *ROWS[1:])})
    text = format_check(found)
    assert found.refusal == ""
    assert section(found, "Verdict").lines == [
        "fit would run",
        "fit would skip: 2 invalid boxes (listed under Faults)",
    ]
    assert section(found, "Pictures").lines[0] == "9 pictures, 64 x 48 (9 pictures)"
    assert section(found, "Pictures").table[1] == ["PNG", "L", "8", "9"]
    assert section(found, "Classes").table[1] == ["object", "10", "9", "19", "19"]
    assert "1 box: no positive width or height" in text
    assert "b.csv:4: the box xmin=5, ymin=5, xmax=5, ymax=9 in 0.png has no positive width" in text
    assert "20 % (2) of the boxes overlap another by an IoU above 0.5" in text
    assert len(section(found, "Splits").table) == 4
    assert sum(int(row[3]) for row in section(found, "Splits").table[1:]) == 10


REFUSED = {
    "a missing picture": ({"b.csv": csv_of(*ROWS, "x.png,1,1,9,9")}, "1 of 10 pictures are not in"),
    "a broken picture": ({"b.csv": csv_of(*ROWS), "3.png": b"no"}, "3.png can't be read as a pict"),
    "a truncated picture": ({"b.csv": csv_of(*ROWS)}, "1 picture can't be decoded, such as 3.png"),
    "nothing to split": ({"b.csv": csv_of(ROWS[0])}, "there are too few groups to hold one out"),
    "no annotations": ({}, "no annotations found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fit_refuses_is_said_with_exit_code_2_and_the_rest_is_said_too(
    tmp_path, monkeypatch, capsys, name
):
    files, sentence = REFUSED[name]
    write(tmp_path / "set", NINE | files)
    if name == "a truncated picture":
        noise(0).save(tmp_path / "set" / "3.png")
        whole = (tmp_path / "set" / "3.png").read_bytes()
        (tmp_path / "set" / "3.png").write_bytes(whole[:-40])
    monkeypatch.chdir(tmp_path)
    arguments = ["--data.root=set", "--name=here"]
    assert main(["check", *arguments]) == 2
    printed, said = capsys.readouterr()
    assert sentence in said
    assert f"fit would refuse: {said.removeprefix('lightning-bbox: ').strip()}" in printed
    assert (tmp_path / "runs/here/check.html").is_file()
    if name not in ("no annotations", "a broken picture"):
        assert "Classes" in printed
    assert main(["check", *arguments]) == 2
    assert "holds something already; choose another --name" in capsys.readouterr().err


def test_the_command_leaves_a_page_that_needs_nothing_else(tmp_path, monkeypatch, capsys):
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS)})
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--data.root=.", "--name=here"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs/here"
    assert {path.name for path in folder.iterdir()} == {
        "check.html", "check.txt", "data.png", "strangest.png",
    }  # fmt: skip
    assert printed.startswith((folder / "check.txt").read_text().strip())
    page = (folder / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "color-scheme: light dark" in page
    again = read_annotations(tmp_path)  # what lies beside the page is no data
    assert again.images == tuple(NINE)


def test_a_configuration_may_say_what_would_be_fitted(tmp_path, monkeypatch, capsys):
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS)})
    monkeypatch.chdir(tmp_path)
    options = ["--data.root=.", "--data.classes=[cat]"]
    assert main(["check", "-c", "preset:csv", *options]) == 2
    assert "there is no class cat; choose from object (9)" in capsys.readouterr().err
    assert main(["check", "-c", "preset:quickstart"]) == 2
    assert "check reads annotated pictures, not SceneDataModule" in capsys.readouterr().err


def test_overlaps_equal_a_plain_loop(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows, corners = [], torch.rand(120, 4, generator=generator)
    for at, (x, y, w, h) in enumerate(corners.tolist()):
        edges = x * 40, y * 30, x * 40 + 2 + w * 20, y * 30 + 2 + h * 15
        rows.append(f"{at % 3}.png,{','.join(map(repr, edges))}")
    write(tmp_path, {f"{n}.png": (64, 48) for n in range(3)} | {"b.csv": csv_of(*rows)})
    table = read_annotations(tmp_path)
    overlaps, others = max_overlaps(table)
    for at in range(len(table.boxes)):
        same = (table.image_index == table.image_index[at]) & (torch.arange(120) != at)
        ious = paired_iou(table.boxes[at].expand(120, 4), table.boxes) * same
        torch.testing.assert_close(overlaps[at], ious.max())
        if ious.max() > 0:
            torch.testing.assert_close(ious[others[at]], ious.max())
        else:
            assert others[at] == at


def test_boxes_at_the_border_are_those_within_half_a_pixel(tmp_path):
    rows = ["a.png,0.4,9,20,20", "a.png,9,9,63.6,20", "a.png,1,1,63,47", "a.png,9,9,20,48.5"]
    write(tmp_path, {"a.png": (64, 48), "b.csv": csv_of(*rows)})
    assert touches_border(read_annotations(tmp_path)).tolist() == [True, True, False, True]


def test_copies_mirrored_and_turned_are_found_and_others_are_not(tmp_path):
    pictures = [noise(seed, (96, 96)) for seed in range(30)]
    copies = [
        pictures[0].transpose(Image.Transpose.ROTATE_90),
        pictures[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((90, 90)),
        pictures[2].point(lambda value: value * 0.8 + 20),
    ]
    paths = [tmp_path / f"{n}.png" for n in range(33)]
    for path, picture in zip(paths, [*pictures, *copies], strict=True):
        picture.save(path)
    paths[2].with_suffix(".jpg").write_bytes(b"no")
    thumbnails, faults = read_thumbnails([*paths, paths[2].with_suffix(".jpg")])
    assert (thumbnails.shape, [*faults]) == ((34, SIDE, SIDE), [33])
    assert alike_pairs(thumbnails).tolist() == [[0, 30], [1, 31], [2, 32]]
    flat = torch.full((5, SIDE, SIDE), 9, dtype=torch.uint8)
    assert alike_pairs(flat).tolist() == []


SEQUENCES = {
    "two videos": ([f"v{v}_{n:03}.png" for v in "ab" for n in range(6)], True),
    "two folders": ([f"v{v}/{n:03}.png" for v in "abc" for n in range(6)], True),
    "one numbered set": ([f"cell_{n:03}.png" for n in range(12)], False),
    "names by chance": ([f"{(n * 7919) % 997:x}{n}.png" for n in range(12)], False),
    "far numbers": ([f"v{v}_{900 * n}.png" for v in "ab" for n in range(6)], False),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_numbered_sequences_in_several_splits_are_told_with_what_mends_it(name):
    images, told = SEQUENCES[name]
    leak = torn_sequences(images, images, [ROLES[at % 3] for at in range(len(images))])
    assert bool(leak) == told
    assert torn_sequences(images, ["one"] * len(images), ROLES * (len(images) // 3)) is None
    apart = ["train" if "a" in image else "val" for image in images]
    assert torn_sequences(images, images, apart) is None


def test_the_pattern_that_is_told_joins_what_is_torn(tmp_path):
    images = [f"v{v}_{n:03}.png" for v in "abcd" for n in range(6)]
    leak = torn_sequences(images, images, [ROLES[at % 3] for at in range(len(images))])
    assert leak is not None
    assert "group_pattern" in leak.sentence()
    write(tmp_path, dict.fromkeys(images, (64, 48)))
    write(tmp_path, {"b.csv": csv_of(*(f"{image},1,1,9,9" for image in images))})
    table = read_annotations(tmp_path, group_pattern=leak.pattern)
    assert set(table.groups) == {"va", "vb", "vc", "vd"}


def test_nearly_equal_pictures_in_different_splits_are_told():
    pairs, images = torch.tensor([[0, 1], [2, 3]]), [f"{n}.png" for n in range(4)]
    leak = alike_across(pairs, images, ["train", "test", "val", "val"])
    assert leak is not None
    words = "1 pair of nearly equal pictures in different splits, such as 0.png (train) and 1.png"
    assert leak.words.startswith(words)
    assert leak.sentence().endswith("put such pictures into one group")
    assert alike_across(pairs, images, ["train", "train", "val", ""]) is None


def test_bccd_has_two_boxes_of_no_size_and_one_field_twice(real_data, tmp_path):
    found = check_data(BoxDataModule(str(real_data / "bccd")))
    assert section(found, "Faults").lines[0] == "2 boxes: no positive width or height"
    assert "BloodImage_00037.jpg and JPEGImages/BloodImage_00038.jpg" in format_check(found)
    write_check(found, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")


def test_a_fit_says_the_most_important_of_it(tmp_path, monkeypatch, capsys):
    write(tmp_path, NINE | {"b.csv": csv_of(*ROWS)})
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "preset:csv", "--data.root=.", *TINY, "--name=run"]) == 0
    printed = capsys.readouterr().out
    assert "classes: object 9\n" in printed
    assert (
        "boxes: 19 to 19 pixels wide (median 19), 19 to 19 high (median 19); 100 % (9)" in printed
    )
    assert "lightning-bbox check --data.root ." in printed


def test_groups_in_several_of_the_files_own_splits_are_told(tmp_path):
    rows = [f"{n}.png,1,1,20,20,g{n // 3},{'train' if n % 2 else 'test'}" for n in range(9)]
    header = "image,xmin,ymin,xmax,ymax,group,split"
    found = checked(tmp_path, NINE | {"b.csv": csv_of(*rows, header=header)})
    told = "3 groups lie in several of the files' own splits: g0, g1, g2"
    assert section(found, "Leaks").lines[0] == told
