"""Every trick by one line, as a user writes it: what it changes, resumes to the bit, averages."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_bbox import (
    BinHead,
    BoxRegressor,
    Constant,
    L2Penalty,
    MaxNorm,
    SceneDataModule,
    ShallowConvNet,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.backbones.convnet import Downsample
from lightning_bbox.nn.stochastic import stochastic_layers
from tests.parts import spec_with
from tests.runs import SCENES, fit, same

CONFIG = """
model:
  class_path: lightning_bbox.BoxRegressor
  init_args:
    backbone:
      class_path: lightning_bbox.ShallowConvNet
      init_args:
        channels: [4, 8]
        convs_per_scale: 1
        fc: [16]
        coordinates: true
        two_scales: true
        input_dropout: 0.1
        dropout: 0.2
        dropconnect: 0.3
        downsample: {pooling}
    regularizers:
    - class_path: lightning_bbox.L2Penalty
    - {{class_path: L1Penalty, init_args: {{strength: 1.0e-3}}}}
    - {{class_path: ElasticNet, init_args: {{pattern: head}}}}
    - {{class_path: MaxNorm, init_args: {{limit: 0.5}}}}
    passes: 2
"""
poolings = pytest.mark.parametrize(
    "pooling", ["stochastic", pytest.param("fractional", marks=pytest.mark.slow)]
)
SHORT = [
    "--data.crop.size=44",
    "--trainer.max_epochs=1",
    "--data.num_scenes=20",
    "--data.draws_per_epoch=32",
]


@poolings
def test_a_line_of_yaml_switches_each_trick(pooling: str, tmp_path: Path) -> None:
    config = tmp_path / "tricks.yaml"
    config.write_text(CONFIG.format(pooling=pooling))
    options = [option for option in SCENES[3:] if not option.startswith("--model")]
    folder = fit(tmp_path, "run", base=[*SCENES[:3], "-c", str(config), *options, *SHORT])
    assert 0 < json.loads((folder / "metrics.json").read_text())["test/mae_px"] < 10
    model = BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    kinds = [type(layer).__name__ for layer in stochastic_layers(model.net)]
    pool = {"stochastic": "StochasticPool2d", "fractional": "FractionalPool2d"}[pooling]
    assert kinds == ["Dropout", pool, pool, "Dropout", "DropConnect"]
    assert model.net.backbone.convs[0].in_channels == 8  # type: ignore[index] # a Sequential
    rows = [weight.flatten(1).norm(dim=1) for weight in L2Penalty().weights_of(model.net)]
    assert max(lengths.detach().max() for lengths in rows) < 0.5 + 1e-5
    assert model.passes == 2
    log = EventAccumulator(str(folder)).Reload().Scalars("train/penalty")  # type: ignore[no-untyped-call] # not typed
    assert len(log) == 2
    assert all(event.value > 0 for event in log)
    assert "regularizers" not in model.recipe()


def trainer(epochs: int) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, log_every_n_steps=1, **quiet)


def scenes() -> SceneDataModule:
    small = {"num_scenes": 20, "batch_size": 16, "draws_per_epoch": 32, "eval_draws": 40}
    return SceneDataModule(**small, compile=False)  # type: ignore[arg-type] # all are numbers


def tricky(pooling: Downsample) -> BoxRegressor:
    shares = {"input_dropout": 0.1, "dropout": 0.2, "dropconnect": 0.3}
    backbone = ShallowConvNet((4, 8), downsample=pooling, fc=(16,), coordinates=True, **shares)  # type: ignore[arg-type] # shares are numbers
    rules = [L2Penalty(), MaxNorm(0.5)]
    return BoxRegressor(backbone, schedule=Constant(), regularizers=rules, passes=2)


@poolings
def test_a_run_with_every_trick_goes_on_to_the_bit(pooling: Downsample, tmp_path: Path) -> None:
    whole, first, second = (trainer(epochs) for epochs in (2, 1, 2))
    whole.fit(tricky(pooling), scenes())
    first.fit(tricky(pooling), scenes())
    first.save_checkpoint(tmp_path / "model.ckpt")
    torch.rand(7)
    second.fit(tricky(pooling), scenes(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert second.global_step == 4
    assert same(*(run.lightning_module.state_dict() for run in (whole, second)))
    assert whole.logged_metrics["val/mae_px"] == second.logged_metrics["val/mae_px"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.Trainer, Path]:
    run, path = trainer(1), tmp_path_factory.mktemp("begun") / "model.ckpt"
    run.fit(tricky("max"), scenes())
    run.save_checkpoint(path)
    return run, path


def test_a_run_that_goes_on_keeps_its_regularizers(begun: tuple[pl.Trainer, Path]) -> None:
    other = tricky("max")
    other.regularizers = []
    with pytest.raises(BadInput, match=r"model.regularizers is L2Penalty \{'strength': 0.0001, "):
        trainer(2).fit(other, scenes(), ckpt_path=begun[1], weights_only=True)


def built(passes: int | None, **arguments: object) -> BoxRegressor:
    backbone = ShallowConvNet(channels=(4,), fc=(16,), **arguments)  # type: ignore[arg-type]
    model = BoxRegressor(backbone, BinHead(), passes=passes)
    model.build(spec_with([5.0, 5.0]), seed=0)
    torch.nn.init.normal_(
        model.net.head.link.linear.weight, generator=torch.Generator().manual_seed(0)
    )
    return model.eval()


CROPS = torch.rand(6, 3, 45, 45, generator=torch.Generator().manual_seed(0))
PROPOSALS = torch.tensor([[10.0, 10.0, 40.0, 40.0]]).expand(6, 4)


def test_passes_are_averaged_the_same_way_again_and_leave_the_model_as_it_was() -> None:
    model = built(passes=8, dropout=0.5)
    state = torch.get_rng_state()
    boxes, stds = model.refine(CROPS, PROPOSALS)
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = model.refine(CROPS, PROPOSALS)
    assert torch.equal(boxes, again)
    assert stds.isfinite().all()
    model.passes = 0
    assert not torch.equal(model.refine(CROPS, PROPOSALS)[0], boxes)
    assert torch.equal(model.refine(CROPS, PROPOSALS)[0], model(CROPS, PROPOSALS))


def test_many_passes_come_close_to_the_mean_of_training_draws() -> None:
    model = built(passes=400, dropout=0.3, batch_norm=False)
    model.net.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([model(CROPS, PROPOSALS) for _ in range(400)])
    model.eval()
    error = draws.std(dim=0).max() / 400**0.5
    torch.testing.assert_close(
        model.refine(CROPS, PROPOSALS)[0], draws.mean(dim=0), rtol=0, atol=float(6 * error)
    )


def test_passes_travel_in_the_checkpoint_and_can_be_turned_off(
    begun: tuple[pl.Trainer, Path],
) -> None:
    run, path = begun
    assert BoxRegressor.load_from_checkpoint(path).passes == 2
    errors = []
    for passes in (None, 2, 0, 3):
        model = BoxRegressor(passes=passes)
        metrics, _ = trainer(1).validate(
            model, scenes(), ckpt_path=path, verbose=False, weights_only=True
        )
        errors.append(metrics["val/mae_px"])
    assert errors[0] == errors[1] == run.logged_metrics["val/mae_px"]
    assert len(set(errors)) == 3


def test_passes_without_anything_stochastic_are_refused_before_training() -> None:
    message = "model.passes is 4, but nothing in the model draws at random, so that all passes are"
    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=(8,)), passes=4)
    with pytest.raises(BadInput, match=message):
        trainer(1).fit(model, scenes())
    model.passes = 0
    trainer(1).fit(model, scenes())
    model.passes = 4
    with pytest.raises(BadInput, match=message):
        trainer(1).validate(model, scenes())
