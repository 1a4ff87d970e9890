"""A step at which a run diverged is kept as it was; its replay names what isn't finite first."""

import json
import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from lightning_bbox import Augment, BoxRegressor, LinearHead, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.insight.diagnosis.replay import replay
from lightning_bbox.models.training.divergence import (
    BAD_STEP,
    BAD_STEP_KEY,
    DivergedError,
    LossWatch,
    kept_rows,
)
from tests.runs import scenes, trained_quietly

QUICK = [
    "--model=BoxRegressor",
    "--data=SceneDataModule",
    "--data.num_scenes=40",
    "--data.batch_size=32",
    "--data.draws_per_epoch=256",
    "--data.eval_draws=40",
    "--data.compile=false",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=4",
    "--model.backbone=ShallowConvNet",
    "--model.backbone.channels=[4,8]",
    "--model.backbone.fc=[16]",
    "--model.schedule=Constant",
]
PARTS = "tests.insight.diverging_parts"
WILD = [
    "--model.head=LinearHead",
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.lr=1e5",
]


def fit(folder, name, *options):
    return main(["fit", *QUICK, *options, f"--runs={folder}", f"--name={name}"])


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        (WILD, None, "blew the weights up: lower the learning rate"),
        (
            ["--model.head=LinearHead", f"--model.head.loss={PARTS}.LogLoss"],
            "the loss (LogLoss)",
            "from outputs of up to 0.0",
        ),
        (
            ["--model.head=LinearHead", f"--model.head.loss={PARTS}.RootLoss"],
            "the gradient of the loss (RootLoss)",
            "under the root",
        ),
        (
            [f"--model.backbone={PARTS}.ReciprocalConvNet", "--model.backbone.channels=[4,8]"],
            "backbone.convs.9 (Reciprocal)",
            "from inputs of up to",
        ),
        (
            [f"--model.backbone={PARTS}.RatioConvNet", "--model.backbone.channels=[4,8]"],
            "backbone (RatioConvNet)",
            "isn't finite",
        ),
        (
            [f"--model.backbone={PARTS}.RootConvNet", "--model.backbone.channels=[4,8]"],
            "the gradient of backbone.convs.9 (Root)",
            "by inputs of up to",
        ),
    ],
    ids=["rate", "loss", "gradient of the loss", "layer", "between layers", "gradient of a layer"],
)
def test_the_first_that_is_not_finite_is_named(options, where, words, tmp_path, capsys):
    assert fit(tmp_path, "run", *options) == 1
    path = tmp_path / "run" / BAD_STEP
    assert f"diagnose --replay {path}" in capsys.readouterr().out
    torch.load(path, weights_only=True)
    assert main(["diagnose", f"--replay={path}", f"--runs={tmp_path}", "--name=told"]) == 3
    told = json.loads((tmp_path / "told" / "replay.json").read_text())
    assert words in told["sentence"]
    assert words in capsys.readouterr().out
    assert where in (None, told["where"])
    assert told["sentence"] in (tmp_path / "told" / "replay.md").read_text()
    assert len(told["samples"]) == 32


class Note(pl.Callback):
    """Note weights and crops as each step finds them."""

    def __init__(self):
        self.weights, self.crops = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        weights = pl_module.net.named_parameters()
        self.weights.append({name: own.detach().clone() for name, own in weights})
        self.crops.append(batch.crops.clone())


def test_weights_and_batch_are_those_before_the_step(tmp_path):
    note = Note()
    model = BoxRegressor(
        ShallowConvNet(channels=(4, 8), fc=(16,)),
        LinearHead(),
        optimizer=partial(torch.optim.SGD, lr=1e5),
    )
    data = scenes(draws_per_epoch=160, augment=Augment(noise=0.1))  # noise is drawn by the step
    with pytest.raises(DivergedError) as caught:
        trained_quietly(model, data, max_epochs=2, log_every_n_steps=4, callbacks=[note])
    kept = caught.value.kept
    step = kept[BAD_STEP_KEY]["step"]
    assert step >= 1
    torch.testing.assert_close(
        kept[BAD_STEP_KEY]["batch"]["crops"], note.crops[step], atol=0, rtol=0
    )
    for name, own in note.weights[step].items():
        torch.testing.assert_close(kept["state_dict"][f"net.{name}"], own, atol=0, rtol=0)
    torch.save(kept, tmp_path / BAD_STEP)
    assert replay(tmp_path / BAD_STEP).step == step  # from its path alone


def test_a_file_without_a_step_is_refused(tmp_path, capsys):
    assert fit(tmp_path, "run") == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for path, words in ((best, "holds no step to replay"), (tmp_path / "x.pt", "no such")):
        capsys.readouterr()
        assert main(["diagnose", f"--replay={path}", f"--runs={tmp_path}", "--name=told"]) == 2
        assert words in capsys.readouterr().err


class TestWatch:
    def steps(self, weights, losses):
        """Take in steps: the weights before each, and its loss."""
        watched = torch.nn.Parameter(torch.tensor([weights[0]]))
        watch = LossWatch(torch.device("cpu"))
        watch.follow([watched])
        for step, (weight, loss) in enumerate(zip(weights, losses, strict=True)):
            watched.data.fill_(weight)
            rows = torch.tensor([2 * step, 2 * step + 1])
            watch.take(torch.tensor(loss), torch.tensor([loss, loss]), rows)
            watch.note(step, 0, 0.1, rows)
            if step == 1:
                assert math.isfinite(float(watch.mean()))
        watched.data.fill_(math.nan)
        return watch.last_sound()

    @pytest.mark.parametrize(
        ("weights", "losses", "step"),
        [
            ([1.0, 2.0, 3.0, 4.0], [0.1, 0.1, math.nan, math.nan], 2),
            ([1.0, 2.0, 3.0, math.nan], [0.1, 0.1, 0.1, math.nan], 2),  # its gradient did it
            ([1.0, 2.0, math.inf, 4.0], [0.1, 0.1, 0.1, math.inf], 3),
            ([1.0, 2.0, math.nan], [0.1, 0.1, math.nan], 1),  # before the newest log
        ],
    )
    def test_the_last_step_with_finite_weights_is_kept(self, weights, losses, step):
        sound = self.steps(weights, losses)
        assert sound.step == step
        assert sound.rows.tolist() == [2 * step, 2 * step + 1]
        assert sound.weights[0].tolist() == [weights[step]]

    def test_nothing_is_known_before_a_step(self):
        assert LossWatch(torch.device("cpu")).last_sound() is None

    def test_more_than_64_mb_of_weights_are_not_kept(self):
        watch = LossWatch(torch.device("cpu"))
        rows = torch.tensor([0])
        for millions, known in ((17, False), (16, True)):
            watch.follow([torch.zeros(millions * 2**20)])
            watch.take(torch.tensor(0.1), torch.tensor([0.1]), rows)
            watch.note(0, 0, 0.1, rows)
            assert (watch.last_sound() is not None) == known


def test_a_batch_that_is_too_large_keeps_those_to_blame():
    rows = torch.arange(10, 20)
    kept = kept_rows(rows, [19, 12], bytes_each=16 * 2**20)
    assert rows[kept].tolist() == [10, 11, 12, 19]
    assert kept_rows(rows, [], bytes_each=2**40).tolist() == [0]
