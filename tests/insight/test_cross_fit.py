"""`lightning-bbox audit`, as a user runs it."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lightning_bbox import DisplacementLaw
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import split_pictures
from lightning_bbox.cli.main import main
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.insight import cross_fit
from tests.reviews import held_by
from tests.runs import TINY, files_of

PICTURES, EACH = 12, 6
FLAT = "p0.png,5,5,5,9,cell"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write noise with boxes, one of them without a width, and one picture a split of the files."""
    folder = tmp_path_factory.mktemp("audit") / "cells"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["image,xmin,ymin,xmax,ymax,label,split", f"{FLAT},test"]
    for number in range(PICTURES):
        pixels = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
        split = "test" if number < 2 else "train"
        lines += [
            f"p{number}.png,{10 + 9 * at},{5 + 4 * at},{34 + 9 * at},{30 + 4 * at},cell,{split}"
            for at in range(EACH)
        ]
    lines.append("p3.png,2,2,5,5,speck,train")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(root, *options, name="out"):
    small = ["--data.min_size=10", "--folds=2", "--jobs=2", *TINY, f"--name={name}"]
    return ["audit", "-c", "preset:csv", f"--data.root={root}", f"--runs={root.parent}", *small,
            *options]  # fmt: skip


@pytest.fixture(scope="module")
def audited(root):
    before = files_of(root)
    assert main(command(root, "--apply", "--overlap=0.8")) == 0
    assert files_of(root) == before
    return root.parent / "out"


def rows_of(folder):
    return list(csv.DictReader((folder / "audit.csv").read_text().splitlines()))


@pytest.mark.slow
def test_every_box_has_its_line_invalid_ones_first_and_those_not_judged_last(root, audited):
    rows, table = rows_of(audited), read_annotations(root)
    assert len(rows) == len(table.boxes) + 1
    assert {row["id"] for row in rows} == {"boxes.csv:2", *table.ids}
    assert (rows[0]["id"], rows[0]["wrong"]) == ("boxes.csv:2", "1")
    assert rows[0]["reason"].startswith("invalid: the box xmin=5")
    assert rows[-1]["label"] == "speck"
    assert rows[-1]["reason"] == "not judged: has a side below min_size 10"
    scores = [float(row["wrong"]) * float(row["apart"]) for row in rows[1:-1]]
    assert scores == sorted(scores, reverse=True)
    boxes = dict(zip(table.ids, table.boxes.tolist(), strict=True))
    corners = ("xmin", "ymin", "xmax", "ymax")
    for row in rows[1:-1]:
        assert [float(row[name]) for name in corners] == boxes[row["id"]]


@pytest.mark.slow
def test_no_box_is_judged_by_a_model_that_saw_its_picture(root, audited):
    images = read_annotations(root).images
    for fold in (0, 1):
        (kept, out) = split_pictures(images, 0.5, 0, fold)
        judged = {row["image"] for row in rows_of(audited) if row["fold"] == str(fold)}
        assert judged == {images[at] for at in out}
        with np.load(audited / f"fold{fold}-seed0" / "test_errors.npz") as errors:
            tested = set(errors["picture"].tolist())
        assert tested == {sorted(images).index(images[at]) for at in out}
        assert kept


@pytest.mark.slow
def test_figures_sheet_and_refined_files_lie_beside_the_table(root, audited):
    figures = json.loads((audited / "audit.json").read_text())
    assert (figures["boxes"], figures["invalid"]) == (PICTURES * EACH, 1)
    share = figures["share"]
    assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    law = DisplacementLaw.load(audited / "law.json")
    text = (audited / "audit.md").read_text()
    assert law.words() in text
    assert figures["overlap"] == 0.8
    assert "an IoU with the truth below 0.8" in text
    with Image.open(audited / "audit.png") as sheet:
        assert sheet.width > 500
    old = (root / "boxes.csv").read_text().splitlines()
    new = (audited / "refined" / "boxes.csv").read_text().splitlines()
    likely = {row["id"] for row in rows_of(audited) if row["fold"] and float(row["wrong"]) >= 0.5}
    changed = {f"boxes.csv:{at}" for at, pair in enumerate(zip(old, new, strict=True), start=1)
               if pair[0] != pair[1]}  # fmt: skip
    assert changed <= likely
    on_page = [box["id"] for box in held_by(audited / "review.html")["boxes"]]
    judged = [row["id"] for row in rows_of(audited) if row["fold"]]
    assert changed <= set(on_page)
    assert on_page == [name for name in judged if name in on_page]  # the worst first


@pytest.mark.slow
def test_folds_that_are_there_are_kept_and_others_do_not_mix_with_them(root, audited, capsys):
    before = files_of(audited)
    assert main(command(root, "--apply", "--overlap=0.8")) == 0
    assert "0 runs to make" in capsys.readouterr().out
    assert files_of(audited) == before
    assert main(command(root, "--trainer.max_epochs=1")) == 2
    assert "was run with other settings (trainer.max_epochs 2, now 1)" in capsys.readouterr().err
    changed = root.parent / "changed"
    shutil.copytree(root, changed)
    path = changed / "boxes.csv"
    path.write_text(path.read_text().replace("10,5,34,30", "11,5,34,30"))
    assert main(command(changed)) == 2
    other = "is of other annotations, pictures or folds than those at hand"
    assert other in capsys.readouterr().err
    path.write_bytes((root / "boxes.csv").read_bytes())
    with Image.open(changed / "p3.png") as picture:
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed / "p3.png")
    assert main(command(changed)) == 2
    assert other in capsys.readouterr().err
    assert files_of(audited) == before


@pytest.mark.slow
def test_what_an_audit_left_before_agrees_with_the_one_that_follows(root, audited):
    folder = root.parent / "again"
    shutil.copytree(audited, folder)
    refined, page = folder / "refined" / "boxes.csv", folder / "review.html"
    refined.write_text("of an audit before")
    assert main(command(root, "--overlap=0.8", "--review=0", name="again")) == 0
    assert refined.read_bytes() == (audited / "refined" / "boxes.csv").read_bytes()
    assert not page.exists()
    (folder / "audit.json").unlink()
    for name in ("audit.csv", "audit.md", "audit.png", "law.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "refined")
    assert main(command(root, name="again")) == 2


@pytest.mark.slow
def test_folds_that_look_twice_judge_by_both_looks(root):
    twice = ["--data.crop.context=2", "--second.context=1.2"]
    assert main(command(root, *twice, name="twice")) == 0
    judged = [row for row in rows_of(root.parent / "twice") if row["fold"]]
    assert len(judged) == PICTURES * EACH


def test_far_errors_of_a_model_are_those_of_the_annotations_it_was_measured_on():
    """Validation holds as many wrong boxes: its tails would excuse those that are judged."""
    wild = Reliability((0.1, 0.0), (0.9, 0.8), (0.5, 0.5), ((0.9, 1.0), (0.1, 4.0)))
    kept = cross_fit._without_tails(wild)
    assert kept == Reliability((0.1, 0.0), (0.9, 0.8), (1.0, 1.0))
    assert cross_fit._without_tails(None) is None


def test_what_no_audit_wrote_stays(root, tmp_path, capsys):
    mine = tmp_path / "mine" / "audit.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main([*command(root), f"--runs={tmp_path}", "--name=mine"]) == 2
    assert "audit.csv: wasn't written by an audit" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--folds=1"], "--folds is 1; give 2 or more"),
        (["--overlap=1.2"], "--overlap is 1.2; give an IoU between 0 and 1, such as 0.9"),
        (["--jobs=0"], "--jobs is 0; give 1 or more"),
        (["--folds=40"], "12 pictures or groups are too few for 40 folds; set --folds lower"),
        (["--fold=2"], "fold: there is no such option; did you mean folds?"),
        (["--ckpt_path=x.ckpt"], "ckpt_path: audit trains its own models; leave it out"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_sentence(
    root, tmp_path, options, sentence, capsys
):
    assert main([*command(root), f"--runs={tmp_path}", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_scenes_have_no_annotations_to_judge(tmp_path, capsys):
    assert main(["audit", "-c", "preset:quickstart", f"--runs={tmp_path}", *TINY]) == 2
    assert "audit judges the boxes of annotation files" in capsys.readouterr().err
