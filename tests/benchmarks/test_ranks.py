"""What several processes exchange, measured and on paper, and where the seconds of a fit go."""

import json

import pytest
import torch
import yaml

from benchmarks import paper, profile_fit, ranks
from lightning_bbox import AlexNet, BoxRegressor, CropGeometry, UniformJitter
from lightning_bbox.evaluation.metrics import RefinedBoxes
from lightning_bbox.geometry.codecs import OffsetSpec
from tests.conftest import ROOT

SMALLEST = ["--data.num_scenes=40", "--trainer.precision=32-true", "--data.compile=false"]
SMALLEST += ["--model.backbone=ShallowConvNet", "--model.backbone.channels=[4,8]"]
SMALLEST += ["--model.backbone.convs_per_scale=1", "--model.backbone.fc=[16]"]
ONE_FIT = ["--trainer.log_every_n_steps=2", "--data.batch_size=16"]
ONE_FIT += ["--data.draws_per_epoch=64", "--data.eval_draws=40"]


@pytest.mark.slow
def test_what_two_processes_hand_to_each_other_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "ARMS", (ranks.Arm(2, 1),))
    monkeypatch.setattr(ranks, "difference", lambda *_: 0.0)  # tests/cli/test_ranks.py sees to that
    small = ["--steps=4", "--window=2", "--rounds=1", "--batch_size=16", "--pictures=5"]
    assert ranks.main([*small, f"--results={tmp_path}", "--options", *SMALLEST]) == 0
    found = json.loads((tmp_path / "ranks.json").read_text())["arms"]
    assert {*found} == {"fit", "ridge", "predict"}
    model = BoxRegressor(**parts_of_the_smallest())
    (two, steps) = found["fit"]["2 x 1"]["bytes"], found["fit"]["2 x 1"]["steps"]
    assert two["gradients"] == 4 * steps * learning(model, 45)
    assert found["predict"]["2 x 1"]["bytes"]["all_reduce"] == RefinedBoxes(5 * 5, 2).table.nbytes
    assert "| predict | 2 x 1 |" in (tmp_path / "ranks.md").read_text()


def parts_of_the_smallest():
    from lightning_bbox import ShallowConvNet

    return {"backbone": ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(16,))}


def learning(model, size, frozen=False):
    """Return how many numbers of a model learn, of all of them if even the frozen ones do."""
    geometry = CropGeometry(size)
    model.build(OffsetSpec(geometry, 2, *UniformJitter().bounds(geometry)), seed=0)
    return sum(each.numel() for each in model.parameters() if each.requires_grad or frozen)


def test_on_paper_networks_have_the_weights_of_ours():
    fc6 = BoxRegressor(backbone=AlexNet(layer="fc6"))
    heads, all_of_it = learning(fc6, 227), sum(each.numel() for each in fc6.parameters())
    counts = [each.weights for each in paper.TRAINED]
    assert counts == [learning(BoxRegressor(), 45), heads, all_of_it]


def test_a_ring_sends_twice_what_there_is_but_each_ones_own_share():
    assert paper.ring_bytes(10, 1) == 0
    assert paper.ring_bytes(10, 2) == 40
    assert paper.ring_bytes(10, 4) == 60
    default = paper.TRAINED[0]
    crops = paper.least_batch(default, 8, 1e9)
    assert crops / default.crops == pytest.approx(paper.ring_bytes(default.weights, 8) / 1e9)


def test_a_picture_takes_four_bytes_a_pixel_and_a_third_more():
    assert paper.picture_bytes() == pytest.approx(4 * 640 * 480 * 4 / 3, rel=1e-3)
    alone, shared = paper.held(1), paper.held(8)
    assert alone["pinned"] == 8 * shared["pinned"]
    assert alone["disk"] == shared["disk"]


def test_the_docs_have_the_tables_on_paper():
    page = (ROOT / "docs" / "how-to" / "large.md").read_text()
    assert paper.exchange_table() in page
    assert paper.store_table() in page


@pytest.mark.slow
def test_each_second_of_a_fit_counts_once(tmp_path, capsys):
    options = ["--epochs=1", f"--results={tmp_path}", "--options", *SMALLEST, *ONE_FIT]
    assert profile_fit.main(options) == 0
    (told,) = json.loads((tmp_path / "profile_fit.json").read_text())["runs"].values()
    assert {*told["seconds"]} <= {*profile_fit.ORDER}
    assert sum(told["seconds"].values()) == pytest.approx(told["whole"])
    assert min(told["seconds"].values()) >= 0
    assert told["calls"][profile_fit.FORWARD] == told["steps"] - 1 == 3  # the first is apart
    assert "| backward | " in capsys.readouterr().out


def test_all_epochs_of_a_fit_are_computed_by_what_one_repeats():
    preset = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    assert preset["trainer"]["max_epochs"] == profile_fit.QUICKSTART_EPOCHS
    seconds = {profile_fit.IMPORTS: 3.0, profile_fit.BACKWARD: 5.0}
    told = {"seconds": seconds, "calls": {profile_fit.BACKWARD: 4}, "epochs": 2, "all epochs": 8}
    whole = profile_fit.all_epochs(told)
    assert whole == {profile_fit.IMPORTS: 3.0, profile_fit.BACKWARD: 20.0}
    table = profile_fit.as_markdown({"a": told | {"whole": 8.0, "steps": 4}})
    assert "| backward | 5.00 | 1250.0 | 20.0 (87.0%) |" in table


def test_what_goes_on_in_a_closed_part_counts_for_it_unless_it_is_told_apart():
    parts = profile_fit.Parts()
    cut = parts.timed(lambda: None, profile_fit.CROPS, profile_fit.CROPS)
    saved = parts.timed(lambda: None, profile_fit.CHECKPOINTS, profile_fit.CHECKPOINTS)
    validated = parts.timed(lambda: (cut(), saved()), profile_fit.VALIDATION, None)
    parts.timed(validated, profile_fit.REST, None)()
    assert dict(parts.calls) == dict.fromkeys(
        (profile_fit.REST, profile_fit.VALIDATION, profile_fit.CHECKPOINTS), 1
    )
    assert torch.tensor(list(parts.seconds.values())).min() >= 0
