"""Crops that are cut on the host, ahead of the steps: those of the device, to the bit."""

import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_bbox import (
    Augment,
    BinHead,
    BoxDataModule,
    BoxRegressor,
    ChannelNorm,
    CropGeometry,
    PatchDataModule,
    ShallowConvNet,
    Storage,
    UniformJitter,
)
from lightning_bbox.cli.main import main
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.feature_cache import compute_features
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.pictures import places, store
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.places import Room
from lightning_bbox.pictures.store import ImageStore
from tests.core.test_prefetch import alive
from tests.runs import TINY, equal, interfered, resume, same, trained_quietly

CPU = torch.device("cpu")
ALL_ON = Augment(brightness=0.3, contrast=0.3, saturation=0.3, noise=0.1)
GB = 10**9


@pytest.fixture
def rectangles(csv_folder, tmp_path):
    """Return how to make data modules of the pictures of rectangles."""

    def make(place="auto", **arguments):
        small = {"batch_size": 8, "draws_per_epoch": 40, "eval_draws": 21, "compile": False}
        small |= {"crop": CropGeometry(size=24), "augment": ALL_ON}
        small |= {"store": Storage(place, str(tmp_path / "store"))}
        return BoxDataModule(str(csv_folder), **small | arguments)

    return make


@pytest.mark.parametrize("place", ["pinned", "disk"])
@pytest.mark.parametrize("ranks", [(0, 1), (1, 3)])
def test_crops_cut_ahead_are_those_of_the_device_to_the_bit(place, ranks, rectangles):
    here, there = rectangles("device"), rectangles(place)
    assert not here.on_host
    assert there.on_host
    for data in (here, there):
        data.ranks = lambda: ranks
    for split, epochs in (("train", (0, 1)), ("val", (0,)), ("test", (0,))):
        for epoch in epochs:
            walk = there.loader(split, lambda epoch=epoch: (epoch, 0))
            assert all(rows.crops is not None for rows in walk)
            first, second = (list(data.batches(split, epoch, CPU)) for data in (here, there))
            assert same(first, second)
    assert not alive()


def test_the_default_type_that_a_network_sets_while_it_steps_has_no_part_in_crops(rectangles):
    for size in (24, 9):
        data = rectangles(crop=CropGeometry(size=size))
        samples = data.samples("train")
        expected = data.cut(samples)
        for default in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(default)
            try:
                crops = data.cut(samples)
            finally:
                torch.set_default_dtype(torch.float32)
            assert torch.equal(crops, expected)


def test_rows_of_several_steps_get_the_crops_of_each(rectangles):
    data = rectangles("pinned")
    singly = [rows.crops.tensor for rows in data.train_dataloader()]
    data.steps_per_call = 2
    stacked = torch.cat([rows.crops.tensor for rows in data.train_dataloader()])
    assert stacked.shape == (5, 8, 3, 24, 24)
    assert torch.equal(stacked, torch.stack(singly))


class Watch(pl.Callback):
    """Keep the crops that were trained on."""

    def __init__(self):
        self.crops = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.crops.append(batch.crops)  # of a step; rows of several have them cut or not


class Crash(pl.Callback):
    """Fail in the first step."""

    def on_train_batch_end(self, *_):
        assert alive()
        msg = "crash"
        raise RuntimeError(msg)


def train(data, *callbacks, model=None, **options):
    watch = Watch()
    model = model or BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(8,)), compile=False)
    options |= {"num_sanity_val_steps": 0, "max_epochs": 2, "callbacks": [watch, *callbacks]}
    trained_quietly(model, data, **options)
    return watch.crops


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_the_precision_of_the_network_does_not_round_crops_cut_ahead(precision, rectangles):
    here, there = (
        train(rectangles(place), precision=precision, limit_val_batches=0)
        for place in ("device", "pinned")
    )
    assert len(here) == 10
    assert same(here, there)


def test_several_steps_a_batch_take_the_crops_cut_ahead(rectangles):
    weights = []
    for place in ("device", "pinned"):
        model = BoxRegressor(
            ShallowConvNet(channels=(4, 8), fc=(8,)), compile=False, steps_per_call=3
        )
        train(rectangles(place), model=model, limit_val_batches=0)
        weights.append([weight.detach() for weight in model.parameters()])
    assert same(*weights)
    assert not alive()


def test_the_thread_ends_with_a_run_that_fails(rectangles):
    with pytest.raises(RuntimeError, match="crash"):
        train(rectangles("disk"), Crash())
    assert not alive()


def test_an_error_in_the_thread_is_raised_in_the_run(rectangles):
    data, cuts = rectangles("pinned"), []

    def cut(samples):
        cuts.append(len(samples.items))
        if cuts.count(8) == 3:  # after the statistics, in the third step
            msg = "no such crop"
            raise LookupError(msg)
        return BoxDataModule.cut(data, samples)

    data.cut = cut
    with pytest.raises(LookupError, match="no such crop"):
        train(data)
    assert not alive()


def fit(folder, name, *options):
    args = ["fit", "-c", "preset:csv", f"--data.root={folder / 'data'}", f"--runs={folder}"]
    args += [f"--data.store.folder={folder / 'store'}", "--trainer.max_epochs=2", *options]
    return main([*args, f"--name={name}", *TINY])


@pytest.mark.usefixtures("csv_folder")
def test_a_run_from_disk_stopped_in_mid_epoch_ends_as_one_on_the_device_that_was_not(
    tmp_path, capsys, monkeypatch
):
    assert fit(tmp_path, "whole", "--data.store.place=device") == 0
    rooms = {"little": Room(400_000, 400_000, shared=True), "much": Room(GB, GB, shared=True)}
    monkeypatch.setattr(places, "measure_room", lambda _: rooms["little"])
    assert fit(tmp_path, "cut", *interfered("training", 6, 2)) == 130
    assert not alive()
    said = capsys.readouterr().out
    assert "store: auto is disk here (0.615 MB of pixels are more than three quarters" in said
    assert "pictures decoded into" in said
    monkeypatch.setattr(places, "measure_room", lambda _: rooms["much"])
    assert resume(tmp_path / "cut") == 0
    assert not alive()
    said = capsys.readouterr().out
    assert "store: auto is device here" in said
    assert "store: disk, as this run began" in said
    assert "pictures read from" in said
    assert equal(tmp_path / "cut", tmp_path / "whole")
    kept = read_checkpoint(tmp_path / "cut/checkpoints/last.ckpt")["BoxDataModule"]
    assert kept == {"store": "disk"}


def test_auto_chooses_the_device_and_says_nothing_outside_of_a_run(rectangles, capsys):
    data = rectangles()
    assert not data.on_host
    assert type(data.source.store) is ImageStore
    assert capsys.readouterr().out == ""


def test_what_was_read_for_another_device_is_placed_anew(rectangles, monkeypatch, capsys):
    data = rectangles()
    pixels = data.source.store.pixels
    monkeypatch.setattr(places, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(places, "measure_room", lambda _: Room(500_000, GB, shared=False))
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    data.setup("fit")
    assert data.on_host
    assert data.source.store.pixels is pixels
    assert "store: auto is pinned here" in capsys.readouterr().out


def test_where_the_first_process_keeps_pixels_all_do(rectangles, capsys):
    data = rectangles()
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    data.trainer.strategy.broadcast = lambda choice: ("pinned", f"not {choice[0]}")
    assert data.on_host
    assert capsys.readouterr().out == "store: auto is pinned here (not device)\n"


def test_features_of_a_frozen_backbone_are_computed_on_crops_cut_ahead(rectangles):
    net = OffsetNet(ChannelNorm(), ShallowConvNet(channels=(4,), fc=(8,)).build(24), BinHead())
    found = []
    for place in ("device", "disk"):
        data = rectangles(place)
        data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
        found.append(compute_features(data, "val", net))
    assert torch.equal(*found)
    assert not alive()


def test_patches_stay_on_the_host_where_asked(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 26, 26, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", pixels)
    small = {"batch_size": 8, "draws_per_epoch": 32, "eval_draws": 8, "compile": False}
    here, there, auto = (
        PatchDataModule(str(tmp_path / "patches.npy"), store=Storage(place), **small)
        for place in ("device", "pinned", "auto")
    )
    assert [data.on_host for data in (here, there, auto)] == [False, True, False]
    first, second = (list(data.batches("train", 1, CPU)) for data in (here, there))
    assert same(first, second)


def test_predict_decodes_each_picture_once_and_ahead(rectangles, monkeypatch):
    decoded, usual = [], store.decode_sized
    monkeypatch.setattr(store, "decode_sized", lambda *a: decoded.append(a[0].name) or usual(*a))
    data = rectangles(batch_size=4)  # three boxes a picture
    data.setup("predict")
    crops = []
    for rows in data.predict_dataloader():
        batch = data.make_batch(rows)
        crops.append(batch.crops[batch.valid])
    assert sorted(decoded) == sorted(f"{number}.png" for number in range(12))
    proposals = data.samples("predict")
    table = data.rough.table
    paths = [table.root / name for name in table.images]
    whole = ImageStore.from_files(paths, table.sizes)
    boxes = data.geometry.crop_boxes(proposals.proposals)
    expected = cut_crops(whole, proposals.image_index, boxes, 24)
    assert torch.equal(torch.cat(crops), expected)


@pytest.mark.parametrize("place", ["device", "pinned", "disk"])
def test_a_data_module_can_be_pickled_before_and_after_its_use(place, rectangles):
    data = rectangles(place, jitter=UniformJitter(3.0), num_targets=4)
    fresh = pickle.loads(pickle.dumps(data))
    data.setup("fit")
    batches = list(data.batches("train", 1, CPU))
    used = pickle.loads(pickle.dumps(data))
    for copy in (fresh, used):
        assert same(list(copy.batches("train", 1, CPU)), batches)
        assert copy.spec() == data.spec()
        assert copy.describe() == data.describe()
        copy.teardown("fit")
    data.setup("predict")
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.samples("predict").proposals, data.samples("predict").proposals)
    assert again.rough.reasons == data.rough.reasons
    data.teardown("predict")


def test_a_data_module_that_trained_can_be_pickled_with_its_trainer(rectangles):
    data = rectangles("pinned")
    model = BoxRegressor(ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=(16,)))
    trained_quietly(model, data, max_epochs=1)
    assert same(pickle.loads(pickle.dumps(data)).samples("val"), data.samples("val"))
