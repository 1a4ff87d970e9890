"""The batch size that `auto` finds: the knee, the same for all, kept by a run, without a trace."""

import re

import lightning.pytorch as pl
import pytest
import torch

from lightning_bbox import BoxRegressor, RidgeRegressor, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.training import tuning
from lightning_bbox.models.training.tuning import Knee, batch_sizes, find_batch_size, find_knee
from lightning_bbox.pictures.places import Room
from tests.runs import (
    SCENES,
    fit,
    frozen,
    interfered,
    resume,
    same,
    scenes,
    trained_quietly,
    weights,
)

AUTO = [option for option in SCENES if "batch_size" not in option] + ["--data.batch_size=auto"]


@pytest.mark.parametrize(
    ("rates", "size", "measured"),
    [
        ([100, 200, 400, 800], 128, 4),
        ([100, 95, 90, 80], 16, 4),
        ([100, 192, 199, 200, 201, 202, 203], 32, 5),
        ([100, 150, 194, 200, 203, 204, 300], 64, 6),
        ([100, 101, 102, 103, 500], 16, 4),
        ([100], 16, 1),
        ([100, 200, 400, None, 800], 64, 4),
        ([100, 99, None], 16, 3),
    ],
)
def test_the_smallest_batch_near_the_best_is_taken(rates, size, measured):
    sizes, asked = [16 << n for n in range(len(rates))], []

    def measure(batch_size):
        asked.append(batch_size)
        return rates[sizes.index(batch_size)]

    knee = find_knee(sizes, measure)
    assert knee.size == size
    assert asked == sizes[:measured]
    assert list(knee.rates.values()) == [rate for rate in rates[:measured] if rate]


def test_what_ended_the_search_is_told():
    def limit(*rates):
        sizes = [16 << n for n in range(len(rates))]
        return find_knee(sizes, dict(zip(sizes, rates, strict=True)).get).limit

    assert limit(1, 2) == "no more are drawn in an epoch"
    assert limit(1, None) == "32 don't fit into memory"
    assert limit(9, 9, 9, 9) == "more bring no more"
    told = Knee(16, {16: 1000.4, 32: 1020.6}, "more bring no more").sentence()
    assert told == (
        "batch_size: 16, the smallest within 5 % of the most crops a second "
        "(16: 1000, 32: 1021; more bring no more); the learning rate is as you set it"
    )


def test_no_batch_that_fits_is_refused():
    with pytest.raises(BadInput, match="not even the smallest batch fits"):
        find_knee([16, 32], lambda _: None)


@pytest.mark.parametrize(
    ("draws", "world_size", "sizes"),
    [
        (128, 1, [16, 32, 64, 128]),
        (127, 1, [16, 32, 64]),
        (64, 16, [32, 64]),
        (64, 20, [64]),
        (5, 1, [4]),
        (1, 1, [1]),
    ],
)
def test_sizes_are_powers_of_two_within_an_epoch(draws, world_size, sizes):
    assert batch_sizes(draws, world_size) == sizes


@pytest.fixture
def quick(monkeypatch):
    """Measure for no longer than it takes to measure at all."""
    monkeypatch.setattr(tuning, "_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_auto_trains_as_the_size_it_found_would_and_a_resumed_run_keeps_it(
    tmp_path, capsys, monkeypatch
):
    def found(said):
        return [int(size) for size in re.findall(r"batch_size: (\d+), the smallest", said)]

    monkeypatch.setattr(tuning, "NEAR", 0.0)  # the smallest, whatever this machine does
    arguments = [*AUTO, f"--runs={tmp_path}", "--name=auto", "--model.backbone.dropout=0.5"]
    assert main([*arguments, *interfered("training", 6, 2)]) == 130
    assert found(capsys.readouterr().out) == [16]
    monkeypatch.setattr(tuning, "find_knee", lambda *_: pytest.fail("measured again"))
    assert resume(tmp_path / "auto") == 0
    assert "batch_size" not in capsys.readouterr().out
    kept = read_checkpoint(tmp_path / "auto/checkpoints/last.ckpt")["lightning_bbox"]["run"]
    assert kept["data.batch_size"] == 16
    told = fit(tmp_path, "told", "--data.batch_size=16", "--model.backbone.dropout=0.5")
    assert same(weights(tmp_path / "auto"), weights(told))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["solver", "cached features"])
def test_the_solver_and_cached_features_find_a_size_too(kind, capsys):
    data = scenes(batch_size="auto")
    model = frozen(cache="memory")
    if kind == "solver":
        model = RidgeRegressor(ShallowConvNet(channels=(4,), fc=(8,)), compile=False)
    trained_quietly(model, data, max_epochs=1, num_sanity_val_steps=0)
    assert capsys.readouterr().out.count("batch_size: ") == 1
    assert data.batch_size in (16, 32, 64)


class Greedy(ShallowConvNet):
    """A convnet that takes more memory for more than 16 crops than there is."""

    def forward(self, crops):
        if len(crops) > 16:
            raise torch.OutOfMemoryError
        return super().forward(crops)


@pytest.mark.usefixtures("quick")
def test_a_step_that_does_not_fit_ends_the_search(capsys):
    data = scenes(batch_size="auto")
    model = BoxRegressor(Greedy(channels=(4,), fc=(8,)), compile=False)
    trained_quietly(model, data, max_epochs=1, num_sanity_val_steps=0)
    assert data.batch_size == 16
    assert "32 don't fit into memory" in capsys.readouterr().out


@pytest.fixture
def data():
    """What a run is about to find the batch size of."""
    data = scenes(batch_size="auto")
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    return data


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("taken", "size"), [(500, 64), (501, 16)])
def test_memory_that_twice_the_batch_would_exceed_ends_the_search_before(
    taken, size, data, monkeypatch, capsys
):
    monkeypatch.setattr(tuning, "NEAR", 1.0)
    monkeypatch.setattr(tuning, "measure_room", lambda _: Room(1000, 1000, shared=False))
    held, sizes = [0], []

    def step(batch):
        held[0] = taken
        sizes.append(len(batch.crops))

    monkeypatch.setattr(tuning, "peak_memory", lambda _: held[0])
    find_batch_size(data, step)
    assert max(sizes) == size
    assert ("32 don't fit into memory" in capsys.readouterr().out) == (size == 16)


@pytest.mark.usefixtures("quick")
def test_what_the_first_process_found_is_what_all_take(data):
    data.trainer.strategy.broadcast = lambda found: {16: 64, 32: 64, 64: 64}[found]
    find_batch_size(data, lambda batch: batch.crops.sum())
    assert data.batch_size == 64
