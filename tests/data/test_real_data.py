"""The real data sets are split as their protocols say."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.refine import main as refine
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import held_out
from lightning_bbox.cli.main import main
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.options import Splits

SPLITS = ("train", "val", "test")


def read(root, splits=Splits(), **arguments):
    return BoxDataModule(str(root), splits=splits, compile=False, **arguments)


BCCD = Splits(train="ImageSets/Main/trainval.txt", test="ImageSets/Main/test.txt")


def test_the_published_split_of_bccd_is_used(real_data):
    root = real_data / "bccd"
    splits = read(root, BCCD).source.splits
    trainval, test = (read_annotations(root, split_file=f).boxes for f in (BCCD.train, BCCD.test))
    assert torch.equal(splits["test"].boxes, test)
    both = torch.cat([splits["train"].boxes, splits["val"].boxes])
    assert sorted(both.tolist()) == sorted(trainval.tolist())
    counts = {name: len(splits[name].image_index.unique()) for name in SPLITS}
    assert counts["test"] == 72
    assert counts["train"] + counts["val"] == 292
    assert counts["val"] == 29
    skipped = "\n".join(sentence for name in SPLITS for sentence in splits[name].skipped)
    assert skipped.count("\n") == 1
    assert "BloodImage_00338" in skipped
    assert "BloodImage_00343" in skipped


def test_copies_of_a_picture_of_rbc_stay_together(real_data):
    root, pattern = real_data / "rbc", r"([^/]+)\.rf\."
    named = Splits(train="train", test=["valid", "test"], group_pattern=pattern)
    data = read(root, named, classes=["rbc"], min_size=20)
    table = read_annotations(root, group_pattern=pattern).of_min_size(20).of_classes(["rbc"])
    splits = data.source.splits
    tested = [at for at, split in enumerate(table.splits) if split != "train"]
    expected = table.pictures(tested).boxes
    torch.testing.assert_close(splits["test"].boxes, expected, rtol=0, atol=0)
    groups = {name: groups_of(splits[name], table) for name in SPLITS}
    assert groups["train"].isdisjoint(groups["val"])
    assert groups["test"].isdisjoint(groups["train"] | groups["val"])
    assert (len(groups["train"]), len(groups["val"])) == (63, 7)


def by_picture(image_index, boxes):
    """Return the boxes of each picture, by the picture's number."""
    found = {}
    for at, box in zip(image_index.tolist(), boxes.tolist(), strict=True):
        found.setdefault(at, []).append(tuple(box))
    return {at: tuple(boxes) for at, boxes in found.items()}


def groups_of(items, table):
    """Return the groups of the pictures that hold the items, found by all their boxes."""
    known = {boxes: at for at, boxes in by_picture(table.image_index, table.boxes).items()}
    pictures = by_picture(items.image_index, items.boxes).values()
    return {table.groups[known[boxes]] for boxes in pictures}


def test_three_boards_of_deeppcb_are_held_out(real_data):
    root, boards = real_data / "deeppcb", ["group77000", "group90100", "group92000"]
    # Few boxes, so few pictures to decode.
    data = read(root, Splits(test_groups=boards), min_size=60)
    table = read_annotations(root).of_min_size(60)
    kept, held = (table.pictures(side).boxes for side in held_out(table.groups, boards))
    splits = data.source.splits
    torch.testing.assert_close(splits["test"].boxes, held, rtol=0, atol=0)
    assert len(splits["train"]) + len(splits["val"]) == len(kept)
    assert len(held) > 10
    groups = {name: groups_of(splits[name], table) for name in SPLITS}
    assert groups["test"] <= set(boards)
    assert groups["train"].isdisjoint(groups["val"] | set(boards))


def test_the_own_splits_of_deeppcb_share_boards_and_are_not_used(real_data):
    data = read(real_data / "deeppcb", min_size=60)
    assert any("share groups" in note for note in data.source.notes)


@pytest.fixture(scope="module")
def run_on_rbc(real_data, tmp_path_factory):
    """Train a small net on RBC for some seconds, sizes too."""
    runs = tmp_path_factory.mktemp("runs")
    config = Path(__file__).parents[2] / "configs" / "rbc.yaml"
    options = ["--data.num_targets=4", "--data.draws_per_epoch=4000", "--trainer.max_epochs=2"]
    options += ["--data.jitter=UniformJitter", "--data.jitter.log_scale=0.15"]
    options += ["--data.compile=false", "--data.eval_draws=200"]
    options += ["--model.backbone=ShallowConvNet", "--model.backbone.channels=[16,32,32]"]
    options += ["--model.backbone.convs_per_scale=1", "--trainer.log_every_n_steps=10"]
    base = ["fit", f"--config={config}", f"--data.root={real_data / 'rbc'}", f"--runs={runs}"]
    assert main([*base, "--name=run", *options]) == 0
    return runs / "run"


@pytest.mark.slow
def test_predict_brings_roughened_cells_nearer_to_the_truth(real_data, run_on_rbc, tmp_path):
    splits = [f"{name}/_annotations.coco.json" for name in ("valid", "test")]
    command = ["--root", str(real_data / "rbc"), "--checkpoint", str(run_on_rbc)]
    assert refine([*command, "--annotations", *splits, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "refine.json").read_text())
    low, _ = found["gain, 95 % interval over pictures"]
    assert low > 0.01
    assert found["boxes refined"] > 600
    assert found["all but the boxes came back"]
    assert found["second run equal to the byte"]


@pytest.mark.slow
def test_predict_leaves_the_bad_boxes_of_bccd_as_they_are(real_data, run_on_rbc, tmp_path):
    root = real_data / "bccd"
    command = ["predict", "-c", "preset:voc", f"--data.root={root}", f"--ckpt_path={run_on_rbc}"]
    assert main([*command, f"--runs={tmp_path}", "--name=out"]) == 0
    unchanged = (tmp_path / "out" / "unchanged.txt").read_text().splitlines()
    for name in ("BloodImage_00338", "BloodImage_00343"):
        place = f"Annotations/{name}.xml: object "
        (line,) = (line for line in unchanged if line.startswith(place) and "no positive" in line)
        assert line.endswith("; left as it is")
    refined = read_annotations(root).files
    assert all((tmp_path / "out" / "refined" / file).is_file() for file in refined)
