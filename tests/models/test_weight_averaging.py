"""Averaged weights, by Lightning's callback: what is kept, tested, predicted with and resumed."""

import json
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_bbox import BoxRegressor, Refiner, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.models.checkpoints import read_checkpoint
from tests.runs import SCENES, equal, fit, interfered, resume, scenes, trained_quietly

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging")  # unsharded
EMA = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.5",
]


class Weights(pl.Callback):
    """Keep the weights after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        named = pl_module.net.named_parameters()
        self.seen.append({name: each.detach().clone() for name, each in named})


def test_a_checkpoint_holds_the_average_of_the_steps(tmp_path):
    steps = Weights()
    model = BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(16,)), compile=False)
    callbacks = [EMAWeightAveraging(decay=0.8), steps]
    trainer = trained_quietly(model, scenes(), max_epochs=2, callbacks=callbacks)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    kept = BoxRegressor.load_from_checkpoint(tmp_path / "model.ckpt").net
    for name, weight in kept.named_parameters():
        average = steps.seen[0][name].double()
        for step in steps.seen[1:]:
            average = 0.8 * average + 0.2 * step[name].double()
        torch.testing.assert_close(weight.double(), average, atol=1e-5, rtol=1e-4, msg=name)
    last = steps.seen[-1]
    assert not any(weight.equal(last[name]) for name, weight in kept.named_parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("ema"), "whole", *EMA)


def test_test_and_predict_use_the_average(whole, tmp_path):
    best = whole / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(best)
    refiner = Refiner(whole)
    for name, weight in refiner.model.net.named_parameters():
        assert weight.equal(checkpoint["state_dict"][f"net.{name}"])
        assert not weight.equal(checkpoint["current_model_state"][f"net.{name}"]), name
    command = ["test", f"--ckpt_path={whole}", f"--runs={tmp_path}", "--name=again"]
    assert main([*command, "--trainer.precision=32-true", "--data.compile=false"]) == 0
    folders = whole, tmp_path / "again"
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert figures[0]["test/mae_px"] == figures[1]["test/mae_px"]


def test_a_run_that_goes_on_averages_as_one_that_was_never_stopped(whole, tmp_path):
    stopped = interfered("training", 5, signal.SIGINT)
    assert main([*SCENES, f"--runs={tmp_path}", "--name=half", *EMA, *stopped]) == 130
    assert resume(tmp_path / "half") == 0
    assert equal(tmp_path / "half", whole)
