"""What Lightning ships: each callback and each option of its Trainer works, or one sentence says
why not."""

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_bbox import BoxRegressor, RidgeRegressor
from lightning_bbox.core.errors import BadInput
from tests.runs import frozen, scenes, trained_quietly


class Freeze(lightnings.BaseFinetuning):
    """Train the head alone, as users write it."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


class Predictions(lightnings.BasePredictionWriter):
    def __init__(self):
        super().__init__("epoch")


class Progress(lightnings.ProgressBar):
    def disable(self):
        pass


class Spikes(lightnings.SpikeDetection):
    def load_state_dict(self, state_dict):  # Lightning's own fails
        pass


WORKING = {
    "BaseFinetuning": Freeze,
    "BasePredictionWriter": Predictions,
    "Callback": lightnings.Callback,
    "Checkpoint": lightnings.Checkpoint,
    "DeviceStatsMonitor": lambda: lightnings.DeviceStatsMonitor(cpu_stats=False),
    "EMAWeightAveraging": lambda: lightnings.EMAWeightAveraging(decay=0.5),
    "EarlyStopping": lambda: lightnings.EarlyStopping("val/mae_px"),
    "LambdaCallback": lambda: lightnings.LambdaCallback(on_train_start=lambda *_: None),
    "LearningRateMonitor": lightnings.LearningRateMonitor,
    "ModelCheckpoint": lambda: lightnings.ModelCheckpoint(monitor="val/mae_px", save_last=True),
    "ModelSummary": lambda: lightnings.ModelSummary(max_depth=2),
    "OnExceptionCheckpoint": lambda: lightnings.OnExceptionCheckpoint("."),
    "ProgressBar": Progress,
    "RichModelSummary": lightnings.RichModelSummary,
    "RichProgressBar": lightnings.RichProgressBar,
    "SpikeDetection": Spikes,
    "TQDMProgressBar": lightnings.TQDMProgressBar,
    "ThroughputMonitor": lambda: lightnings.ThroughputMonitor(lambda batch: len(batch.rows)),
    "Timer": lambda: lightnings.Timer(timedelta(hours=1)),
    "WeightAveraging": lightnings.WeightAveraging,
}
REFUSED = {
    "BackboneFinetuning": (lightnings.BackboneFinetuning, "from its model.weights"),
    "BatchSizeFinder": (lightnings.BatchSizeFinder, "set data.batch_size: auto"),
    "GradientAccumulationScheduler": (
        lambda: lightnings.GradientAccumulationScheduler({0: 1, 1: 2}),
        "set trainer.accumulate_grad_batches",
    ),
    "LearningRateFinder": (lightnings.LearningRateFinder, "set optimizer.lr"),
    "ModelPruning": (
        lambda: lightnings.ModelPruning("l1_unstructured"), "by torch.nn.utils.prune",
    ),
    "StochasticWeightAveraging": (
        lambda: lightnings.StochasticWeightAveraging(1e-3), "choose WeightAveraging",
    ),
}  # fmt: skip


def train_with(callback, folder, epochs, ckpt_path=None):
    options = {"max_epochs": epochs, "log_every_n_steps": 1, "default_root_dir": folder}
    if isinstance(callback, lightnings.ProgressBar):
        options["enable_progress_bar"] = True
    options |= {"callbacks": [callback], "logger": CSVLogger(folder, name="", version="")}
    if isinstance(callback, lightnings.Checkpoint):
        options["enable_checkpointing"] = True
    model = frozen(backbone=None)
    data = scenes(draws_per_epoch=32, eval_draws=16)
    return trained_quietly(model, data, ckpt_path, **options)


def test_every_callback_of_lightning_is_tried():
    assert {*WORKING, *REFUSED} == {*lightnings.__all__}


CHANGE_THE_MODEL = ("BaseFinetuning", "EMAWeightAveraging", "WeightAveraging")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in CHANGE_THE_MODEL else pytest.mark.slow)
        for name in WORKING
    ],
)
def test_a_callback_of_lightning_works(name, tmp_path):
    trainer = train_with(WORKING[name](), tmp_path, epochs=2)
    trained = trainer.lightning_module
    assert trainer.global_step == 4
    then = trained.evaluations["val"]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = BoxRegressor.load_from_checkpoint(tmp_path / "model.ckpt")
    for (key, value), (_, now) in zip(
        trained.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(now, value, msg=key)
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(**quiet).validate(loaded, datamodule=trainer.datamodule, verbose=False)
    now = loaded.evaluations["val"]
    assert now.metrics["mae_px"] == pytest.approx(then.metrics["mae_px"], abs=1e-5)
    assert now.refined.stds.allclose(then.refined.stds, equal_nan=True)
    more = train_with(WORKING[name](), tmp_path, 3, tmp_path / "model.ckpt")
    assert more.global_step == 6


@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging"])
def test_a_ridge_refuses_to_average_steps(kind):
    callback = getattr(lightnings, kind)()
    with pytest.raises(BadInput, match=f"trainer.callbacks: {kind} averages steps"):
        trained_quietly(RidgeRegressor(compile=False), scenes(), callbacks=[callback], max_epochs=1)


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_of_lightning_is_refused_in_one_sentence(name, tmp_path):
    make, sentence = REFUSED[name]
    with pytest.raises((BadInput, MisconfigurationException)) as caught:
        train_with(make(), tmp_path, epochs=2)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
