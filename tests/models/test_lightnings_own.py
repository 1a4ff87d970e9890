"""What Lightning ships: each callback and each option of its Trainer works, or one sentence says
why not."""

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_bbox import (
    Augment,
    BoxRegressor,
    Constant,
    FlowLikelihood,
    LikelihoodHead,
    LinearHead,
    RidgeRegressor,
    ShallowConvNet,
    SoftArgmaxHead,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.evaluation.metrics import coordinate_errors
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.training.divergence import DivergedError
from lightning_bbox.nn.calibration import half_width
from tests.runs import FrozenConvNet, Watch, frozen, scenes, trained_quietly


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
    "BackboneFinetuning": lambda: lightnings.BackboneFinetuning(1),
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


CHANGE_THE_MODEL = ("BackboneFinetuning", "BaseFinetuning", "EMAWeightAveraging", "WeightAveraging")


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
    # The factor on standard deviations is that of these draws: the 30th of their 32 errors decides.
    px = trainer.datamodule.geometry.px(now.samples.proposals)
    errors = coordinate_errors(now.refined.boxes, now.samples.gt_boxes, px, 2)
    widths = half_width("gaussian", 0.9) * now.refined.stds
    assert int((errors.abs() < 1.0001 * widths).sum()) == 30
    more = train_with(WORKING[name](), tmp_path, 3, tmp_path / "model.ckpt")
    assert more.global_step == 6


@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging", "BackboneFinetuning"])
def test_a_ridge_refuses_what_works_on_steps(kind):
    callback = getattr(lightnings, kind)()
    with pytest.raises(BadInput, match=f"trainer.callbacks: {kind} works on an optimizer's steps"):
        trained_quietly(RidgeRegressor(compile=False), scenes(), callbacks=[callback], max_epochs=1)


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_of_lightning_is_refused_in_one_sentence(name, tmp_path):
    make, sentence = REFUSED[name]
    with pytest.raises((BadInput, MisconfigurationException)) as caught:
        train_with(make(), tmp_path, epochs=2)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# What people type.

LOGLESS = {"log_every_n_steps": 0, "logger": False, "enable_checkpointing": False}


class Crops(pl.Callback):
    """Keep the crops and true boxes of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((batch.crops.clone(), batch.gt_boxes.clone(), batch.rows.clone()))


@pytest.mark.parametrize("batches", [2, 0.5])
def test_overfitted_batches_are_the_same_crops_in_every_epoch(batches):
    crops, augment = Crops(), Augment(noise=0.05, brightness=0.2)
    model, data = frozen(), scenes(augment=augment, eval_draws=128)
    trained_quietly(model, data, max_epochs=3, overfit_batches=batches, callbacks=[crops])
    assert len(crops.seen) == 6
    assert not crops.seen[0][1].equal(crops.seen[1][1])
    for step in range(2, 6):
        for now, first in zip(crops.seen[step], crops.seen[step % 2], strict=True):
            assert now.equal(first)


def test_what_draws_by_step_draws_the_same_where_batches_are_overfitted():
    class Draws(pl.Callback):
        seen = []  # noqa: RUF012 (one run)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(torch.rand(3))

    trained_quietly(frozen(), scenes(), max_epochs=2, overfit_batches=3, callbacks=[Draws()])
    first, second = Draws.seen[:3], Draws.seen[3:]
    assert all(map(torch.equal, first, second))
    assert not first[0].equal(first[1])


def test_overfitting_gets_rid_of_the_error_on_its_batch():
    losses = Watch()
    model = BoxRegressor(ShallowConvNet(channels=(16, 16), fc=(64,)), LinearHead(), compile=False)
    trained_quietly(model, scenes(), max_epochs=60, overfit_batches=1, callbacks=[losses])
    assert losses.losses[-1] < 0.02 * losses.losses[0]
    assert len(set(map(tuple, torch.stack(losses.rows).tolist()))) == 1


@pytest.mark.parametrize("options", [LOGLESS, {"barebones": True}], ids=str)
@pytest.mark.parametrize("several", [1, 2])
@pytest.mark.filterwarnings("ignore:.*barebones")
def test_a_run_that_logs_nothing_trains_as_any(options, several):
    bare = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), compile=False, steps_per_call=several)
    logged = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), compile=False)
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=2, **options)
    trainer.fit(bare, datamodule=scenes())
    trained_quietly(logged, scenes(), max_epochs=2)
    assert trainer.global_step == 8
    for name, value in logged.state_dict().items():
        torch.testing.assert_close(bare.state_dict()[name], value, msg=name)


def test_a_loss_that_is_not_finite_ends_a_run_that_logs_nothing():
    def huge(parameters):
        return torch.optim.SGD(parameters, lr=1e30)

    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), LinearHead(), optimizer=huge)
    with pytest.raises(DivergedError):
        trained_quietly(model, scenes(), max_epochs=2, log_every_n_steps=0)


def test_a_model_is_loaded_as_lightnings_users_type_it(tmp_path):
    path = tmp_path / "model.ckpt"
    trained_quietly(frozen(), scenes(), max_epochs=1).save_checkpoint(path)
    plain = BoxRegressor.load_from_checkpoint(path).state_dict()
    for words in ({"strict": False}, {"weights_only": True}, {"map_location": None}):
        state = BoxRegressor.load_from_checkpoint(path, **words).state_dict()
        assert all(state[name].equal(plain[name]) for name in plain)
    checkpoint = read_checkpoint(path)
    del checkpoint["state_dict"]["codec.mean"]
    torch.save(checkpoint, path)
    loaded = BoxRegressor.load_from_checkpoint(path, strict=False)
    assert loaded.codec.scale.equal(plain["codec.scale"])
    with pytest.raises(BadInput, match="its weights don't fit its own model"):
        BoxRegressor.load_from_checkpoint(path)
    with pytest.raises(BadInput, match="can't change average_flips: a checkpoint says"):
        BoxRegressor.load_from_checkpoint(path, average_flips=True)


def test_lbfgs_learns():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=10, line_search_fn="strong_wolfe")

    backbone = ShallowConvNet(channels=(8, 8), fc=(16,), batch_norm=False)
    model = BoxRegressor(
        backbone, LinearHead(), optimizer=lbfgs, compile=False, schedule=Constant()
    )
    watch = Watch()
    trained_quietly(model, scenes(), max_epochs=6, overfit_batches=1, callbacks=[watch])
    assert watch.losses[-1] < 0.5 * watch.losses[0]


@pytest.mark.parametrize("options", [{"steps_per_call": 2}, {}], ids=str)
def test_lbfgs_is_refused_where_steps_are_tried_once(options):
    model = BoxRegressor(
        ShallowConvNet(channels=(4,), fc=()), optimizer=torch.optim.LBFGS, **options
    )
    data = scenes(batch_size=16 if "steps_per_call" in options else "auto")
    with pytest.raises(BadInput, match="LBFGS tries a step several times"):
        trained_quietly(model, data, max_epochs=1)


HEADS = {
    "linear": LinearHead,
    "likelihood": LikelihoodHead,
    "flow": lambda: LikelihoodHead(FlowLikelihood(2, 8)),
    "soft-argmax": SoftArgmaxHead,
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_stays_in_fp32_where_the_network_runs_in_half_precision(kind):
    head = HEADS[kind]()
    model = BoxRegressor(ShallowConvNet(channels=(8, 8), fc=()), head, compile=False)
    trained_quietly(model, scenes(num_targets=4), max_epochs=1, precision="bf16-true")
    assert {weight.dtype for weight in model.net.backbone.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in head.parameters()} == {torch.float32}
    features = torch.randn(5, model.net.backbone.out_features).bfloat16()
    outputs = head(features)
    assert outputs.dtype == torch.float32
    assert outputs.equal(head.double()(features.double()).float()) or torch.allclose(
        outputs, head(features.double()).float(), atol=1e-5
    )


def test_an_exact_solution_keeps_its_digits_in_half_precision():
    model = RidgeRegressor(FrozenConvNet(channels=(4, 8), fc=(16,)), lam=1.0, compile=False)
    trained_quietly(model, scenes(), max_epochs=1, precision="bf16-true")
    weight = model.net.head.linear.weight
    assert weight.dtype == torch.float32
    assert not weight.equal(weight.bfloat16().float())
