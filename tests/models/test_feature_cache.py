"""Features of a frozen backbone: computed once, the same as if they were not kept, or refused."""

import json
import os
import shutil
import signal

import lightning.pytorch as pl
import pytest
import torch
import yaml
from kornia.augmentation import RandomGaussianNoise
from torch._dynamo.utils import counters

from lightning_bbox import (
    Augment,
    BinHead,
    CropGeometry,
    L2Loss,
    LinearHead,
    ShallowConvNet,
    UniformJitter,
)
from lightning_bbox.cli.main import main
from lightning_bbox.core.cache_file import CacheFile, Content
from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.loader import Rows
from tests.runs import (
    CONFIGS,
    DOUBLE,
    PYTHON,
    SCENES,
    FrozenConvNet,
    assert_equal_runs,
    end_of,
    frozen,
    interfered,
    ranks,
    run_well,
    same,
    scenes,
    told,
    trained,
)


class FixDraws(pl.Callback):
    """Train on the crops of the first epoch."""

    def on_train_start(self, trainer, pl_module):
        trainer.datamodule.fix_draws()


@pytest.mark.parametrize("head", [BinHead, lambda: LinearHead(L2Loss())])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-12), ("bf16-mixed", 2e-3)]
)
def test_cached_training_gives_the_losses_of_crops(head, precision, tolerance, tmp_path):
    crops = trained(frozen(head=head()), scenes(), FixDraws(), precision=precision)
    assert {shape[-1] for shape in crops.crops} == {24}
    memory, written, read = (
        trained(frozen(head=head(), cache=cache), scenes(), precision=precision)
        for cache in ("memory", str(tmp_path), str(tmp_path))
    )
    assert {shape[-1] for shape in memory.crops} == {0}
    assert memory.losses == pytest.approx(crops.losses, rel=tolerance)
    for found, expected in zip(memory.evaluated, crops.evaluated, strict=True):
        assert found == pytest.approx(expected, rel=tolerance)
    assert memory.losses == written.losses == read.losses
    assert memory.evaluated == written.evaluated == read.evaluated


@pytest.mark.slow
def test_a_compiled_network_fills_the_cache_with_one_graph_of_features():
    plain = trained(frozen(cache="memory"), epochs=1)
    torch._dynamo.reset()
    counters["stats"].clear()
    model = frozen(cache="memory", compile=True)
    compiled = trained(model, epochs=1)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    # Of the crops' features (the training draws, and the short batches of both evaluations, which
    # are filled up), never of the whole network: its batches hold features.
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_bf16_true_trains_on_kept_features(place, tmp_path):
    cache = place if place == "memory" else str(tmp_path)
    watch = trained(frozen(cache=cache), precision="bf16-true", epochs=1)
    assert len(watch.losses) == 4


def test_kept_features_are_those_of_the_crops():
    model, data = frozen(cache="memory"), scenes(augment=Augment(brightness=0.3, noise=0.1))

    class Compare(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows = Rows("train", trainer.current_epoch, batch.rows, batch.valid)
            kept, data.features = data.features, {}
            crops = data.make_batch(rows)
            data.features = kept
            with torch.no_grad():
                expected = model.net.features(crops.crops)
            torch.testing.assert_close(batch.features, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(batch.gt_boxes, crops.gt_boxes)
            self.seen = True

    compare = Compare()
    trained(model, data, compare)
    assert compare.seen


def test_each_epoch_has_the_draws_of_the_first_in_an_order_of_its_own():
    data = scenes()
    first, other = data.samples("train"), data.samples("train", 2)
    assert not torch.equal(first.proposals.sort(dim=0)[0], other.proposals.sort(dim=0)[0])
    data.fix_draws()
    assert torch.equal(data.samples("train").proposals, first.proposals)
    orders = [data.samples("train", epoch).proposals for epoch in (1, 2)]
    assert not torch.equal(*orders)
    for order in orders:
        assert torch.equal(order.sort(dim=0)[0], first.proposals.sort(dim=0)[0])
        assert not torch.equal(order, first.proposals)
    data.teardown("fit")
    assert torch.equal(data.samples("train", 2).proposals, other.proposals)


def test_features_are_forgotten_when_a_run_ends():
    data = scenes()
    trained(frozen(cache="memory"), data)
    assert not data.features
    assert data.make_batch(next(iter(data.test_dataloader()))).features is None
    assert not torch.equal(
        *(data.samples("train", epoch).proposals.sort(dim=0)[0] for epoch in (0, 1))
    )


def test_averages_over_flips_are_computed_from_crops():
    watch = trained(frozen(cache="memory", average_flips=True))
    plain = trained(frozen(average_flips=True), scenes(), FixDraws())
    assert watch.evaluated[-1] == pytest.approx(plain.evaluated[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "augment", "message"),
    [
        (
            {"backbone": ShallowConvNet(channels=(4, 8))},
            Augment(),
            "model.cache keeps features, but the backbone ShallowConvNet learns",
        ),
        (
            {},
            Augment(extra=[RandomGaussianNoise()]),
            "augment.extra holds RandomGaussianNoise, which changes crops anew at each step",
        ),
    ],
)
def test_features_that_would_change_are_refused(model, augment, message):
    with pytest.raises(BadInput, match=message):
        trained(frozen(cache="memory", **model), scenes(augment=augment))


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("features")]


def kept(folder, split):
    """Return the file of a split's features, and what its head says."""
    (path,) = folder.glob(f"{split}-*.features")
    return path, json.loads(path.read_bytes().partition(b"\n")[0])


def test_features_are_computed_once_and_the_files_say_what_they_are(tmp_path, capsys):
    trained(frozen(cache=str(tmp_path)))
    splits = ("train", "train_eval", "val", "val_widths")
    paths = {split: kept(tmp_path, split)[0] for split in splits}
    computed = lines(capsys)
    assert [line.split(" computed")[0] for line in computed] == [
        "features of train: 64 x 16", "features of train_eval: 10 x 16",
        "features of val: 40 x 16", "features of val_widths: 20 x 16",
    ]  # fmt: skip
    for line, path in zip(computed, paths.values(), strict=True):
        assert line.endswith(f"kept in {path}")
    said = kept(tmp_path, "train")[1]
    assert said["facts"] == {"shape": [64, 16], "dtype": "<f4"}
    assert said["key"].keys() == {
        "pictures", "draws", "preprocess", "backbone", "weights", "precision", "versions"
    }  # fmt: skip
    assert torch.__version__ in said["key"]["versions"]
    trained(frozen(cache=str(tmp_path)))
    assert lines(capsys) == [f"features of {s}: read from {path}" for s, path in paths.items()]


@pytest.mark.parametrize(
    ("model", "data", "trainer"),
    [
        ({}, {"jitter": UniformJitter(4.0)}, {}),
        ({}, {"seed": 1}, {}),
        ({}, {"num_scenes": 31}, {}),
        ({}, {}, {"precision": "64-true"}),
        ({"fc": (16, 16)}, {}, {}),
        ({}, {"crop": CropGeometry(size=24, context=1.4)}, {}),
        ({}, {"augment": Augment(noise=0.1)}, {}),
    ],
)
def test_runs_of_other_settings_keep_features_side_by_side(model, data, trainer, tmp_path, capsys):
    def other(cache):
        backbone = FrozenConvNet(**{"channels": (4, 8), "fc": (16,)} | model)
        return trained(frozen(backbone=backbone, cache=cache), scenes(**data), epochs=1, **trainer)

    def usual():
        return trained(frozen(cache=str(tmp_path)), epochs=1)

    runs = [usual(), other(str(tmp_path))]
    assert sum("computed" in line for line in lines(capsys)) >= 4
    runs += [usual(), other(str(tmp_path))]
    assert all("read from" in line for line in lines(capsys))
    assert runs[0].losses == runs[2].losses
    assert runs[1].losses == runs[3].losses == other("memory").losses


def test_another_version_computes_its_own(tmp_path, monkeypatch, capsys):
    trained(frozen(cache=str(tmp_path)), epochs=1)
    monkeypatch.setattr(torch, "__version__", "3.0")
    lines(capsys)
    trained(frozen(cache=str(tmp_path)), epochs=1)
    assert all("computed" in line for line in lines(capsys))
    assert len(list(tmp_path.glob("*.features"))) == 8


def test_damaged_features_are_computed_anew(tmp_path):
    first = trained(frozen(cache=str(tmp_path)), epochs=1)
    path, _ = kept(tmp_path, "train")
    content = path.read_bytes()
    path.write_bytes(content[:-90] + bytes([content[-90] ^ 1]) + content[-89:])
    again, (said,) = told(frozen(cache=str(tmp_path)), epochs=1)
    words = f"damaged (the checksum of {path.name} is wrong)"
    assert said == f"features of train in {tmp_path} are {words}: computed anew"
    assert again.losses == first.losses


def test_the_features_that_were_checked_are_those_that_are_trained_on(tmp_path, monkeypatch):
    first, opened = trained(frozen(cache=str(tmp_path)), epochs=1), CacheFile.open

    def open_then_lose(file):
        found = opened(file)
        if isinstance(found, Content):  # another run takes its place at once
            shutil.copy(tmp_path / "zeros", tmp_path / "copy").replace(file.path)
        return found

    (tmp_path / "zeros").write_bytes(bytes(9000))
    monkeypatch.setattr(CacheFile, "open", open_then_lose)
    assert trained(frozen(cache=str(tmp_path)), epochs=1).losses == first.losses


def test_a_folder_of_annotations_keeps_them(tmp_path):
    theirs = [f"{name}.{end}" for name in ("train", "val", "train_eval") for end in ("json", "npy")]
    for name in theirs:
        (tmp_path / name).write_text(f"my {name}")
    trained(frozen(cache=str(tmp_path)), epochs=1)
    assert [(tmp_path / name).read_text() for name in theirs] == [f"my {name}" for name in theirs]


def test_a_file_of_somebody_else_in_the_place_of_features_is_refused(tmp_path):
    trained(frozen(cache=str(tmp_path)), epochs=1)
    path, _ = kept(tmp_path, "val")
    path.write_text("{}")
    with pytest.raises(BadInput, match=rf"{path}: wasn't written by .* --model\.cache"):
        trained(frozen(cache=str(tmp_path)), epochs=1)
    assert path.read_text() == "{}"


def test_a_folder_that_cannot_be_written_to_is_refused():
    with pytest.raises(BadInput, match=r"/dev/null/cache: can't be written .* --model.cache"):
        trained(frozen(cache="/dev/null/cache"))


def test_a_full_disk_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"\.features: can't be written \(No space left on"):
        trained(frozen(cache=str(tmp_path)))
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


CACHED = [*SCENES, "--model.backbone=tests.runs.FrozenConvNet", "--model.backbone.fc=[16]"]


def test_a_cached_run_stopped_and_resumed_equals_one_that_was_not(tmp_path):
    command = [*CACHED, "--model.cache=memory", f"--runs={tmp_path}"]
    assert main([*command, "--name=whole"]) == 0
    assert main([*command, "--name=cut", *interfered("training", 6, signal.SIGINT)]) == 130
    assert main(["fit", f"--resume={tmp_path / 'cut'}"]) == 0
    assert same(end_of(tmp_path / "cut"), end_of(tmp_path / "whole"))


def test_the_config_of_alexnet_runs_with_another_frozen_backbone(csv_folder, tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "alexnet_fc6_sgd.yaml").read_text())
    config["model"]["init_args"]["backbone"] = {
        "class_path": "tests.runs.FrozenConvNet",
        "init_args": {"channels": [4, 4, 4, 4], "fc": [16]},
    }
    data = {"crop": config["data"]["init_args"]["crop"], "root": str(csv_folder)}
    config["data"]["init_args"] = data | {"batch_size": 16, "draws_per_epoch": 32, "eval_draws": 8}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["fit", "-c", str(tmp_path / "config.yaml"), "--trainer.max_epochs=1"]
    command += ["--trainer.log_every_n_steps=1", "--trainer.precision=32-true"]
    command += ["--data.compile=false"]
    assert main([*command, f"--runs={tmp_path}", "--name=run"]) == 0
    printed = capsys.readouterr().out
    assert "features of train: 32 x 16 computed" in printed
    assert "largest stable learning rate" in printed


def test_a_cached_run_goes_on_cached_only(tmp_path, capsys):
    command = [*CACHED, f"--runs={tmp_path}", "--name=run"]
    assert main([*command, "--model.cache=memory", *interfered("training", 6, 2)]) == 130
    assert main([*command, "--ckpt_path=last"]) == 2
    assert "(model.cache) is True in the checkpoint and False now" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_with_a_cache_equal_one(tmp_path):
    base = [*DOUBLE, *CACHED[-2:], f"--runs={tmp_path}"]
    base += ["--model.head=LinearHead", "--model.head.standardize=true"]
    assert main([*base, "--model.cache=memory", "--name=one"]) == 0
    cache = f"--model.cache={tmp_path / 'features'}"
    finished = run_well([*PYTHON, *base, cache, "--name=two", *ranks(2)])
    assert finished.out.count("features of train:") == 1
    assert_equal_runs(tmp_path / "two", tmp_path / "one", atol=1e-8)
