"""Several steps a Lightning batch: the same run as with one, whatever else is switched on."""

import signal
from pathlib import Path

import pytest
import torch

from benchmarks.protocol import read_curve
from lightning_bbox import (
    BoxRegressor,
    RidgeRegressor,
    SceneDataModule,
    ShallowConvNet,
)
from lightning_bbox.cli.main import main
from lightning_bbox.data.loader import HostCrops, PlanLoader
from lightning_bbox.models.checkpoints import read_checkpoint
from tests.runs import (
    CONFIGS,
    DOUBLE,
    PYTHON,
    assert_equal_curves,
    assert_equal_runs,
    file_names,
    fit,
    ranks,
    run_well,
    same,
    strike,
    trained_quietly,
    weights,
)

# Four steps an epoch, so that the second call of three makes one step only.
BASE = [
    *DOUBLE,
    "--trainer.precision=32-true",
    "--model.backbone.batch_norm=true",
    "--model.backbone.dropout=0.2",
    "--model.regularizers=[{class_path: lightning_bbox.MaxNorm, init_args: {limit: 2}}]",
]
BASE_CONFIG = CONFIGS / "csv.yaml"
THREE = "--model.steps_per_call=3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step a batch."""
    return fit(tmp_path_factory.mktemp("whole"), "run", base=BASE)


def test_rows_of_several_steps_are_those_of_each() -> None:
    arguments = {"num_rows": 50, "batch_size": 12, "rank": 0, "world_size": 2, "full": True}
    one = list(PlanLoader("train", **arguments, position=lambda: (5, 0)))
    loader = PlanLoader("train", **arguments, position=lambda: (5, 0), steps=3)
    several = list(loader)
    assert len(loader) == len(several) == 2
    assert [len(rows.rows) for rows in several] == [3, 1]
    steps = [step for rows in several for step in rows.steps()]
    assert [(step.epoch, step.rows.tolist()) for step in steps] == [
        (row.epoch, row.rows.tolist()) for row in one
    ]
    (last,) = PlanLoader("train", **arguments, position=lambda: (5, 1), steps=3)
    assert last.rows.equal(one[3].rows[None])


def test_crops_that_were_cut_ahead_go_to_their_steps() -> None:
    (rows,) = PlanLoader("train", 6, 2, rank=0, world_size=1, full=True, steps=3)
    crops = torch.arange(6.0).view(3, 2, 1, 1, 1)
    steps = list(rows._replace(crops=HostCrops(crops)).steps())
    assert [step.crops.tensor.flatten().tolist() for step in steps] == [[0, 1], [2, 3], [4, 5]]


def test_several_steps_a_batch_are_the_same_run_to_the_bit(whole: Path, tmp_path: Path) -> None:
    several = fit(tmp_path, "run", THREE, base=BASE)
    assert same(weights(several), weights(whole))
    assert_equal_runs(several, whole, atol=0)
    assert_equal_curves(several, whole, atol=0)
    assert file_names(several) == file_names(whole)
    for key in ("global_step", "epoch"):
        ours, theirs = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (several, whole))
        assert ours[key] == theirs[key]
    # Time is known at the end of a batch only.
    assert read_curve(whole, "perf/crops_per_s")[0] == [1, 3, 5, 7]
    assert read_curve(several, "perf/crops_per_s")[0] == [2, 3, 6, 7]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_precision_of_each_step_is_that_of_one_a_batch(precision: str, tmp_path: Path) -> None:
    option = f"--trainer.precision={precision}"
    one = fit(tmp_path, "one", option, base=BASE)
    several = fit(tmp_path, "several", option, THREE, base=BASE)
    assert same(weights(several), weights(one))


def test_a_run_of_several_steps_a_batch_goes_on_to_the_bit(whole: Path, tmp_path: Path) -> None:
    command = [*BASE, THREE, f"--runs={tmp_path}", "--name=run"]
    assert main([*command, *strike(signal.SIGINT, "itself", step=3, rank=0)]) == 130
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_equal_runs(tmp_path / "run", whole, atol=0)


def test_no_step_is_made_beyond_the_last(tmp_path: Path) -> None:
    options = ["--trainer.max_steps=5", "--trainer.max_epochs=-1"]
    one = fit(tmp_path, "one", *options, base=BASE)
    several = fit(tmp_path, "several", *options, THREE, base=BASE)
    assert read_checkpoint(several / "checkpoints/last.ckpt")["global_step"] == 5
    assert same(weights(several), weights(one))


def test_crops_cut_on_the_host_serve_several_steps(csv_folder: Path, tmp_path: Path) -> None:
    csv = [*BASE[:2], str(BASE_CONFIG), f"--data.root={csv_folder}", *BASE[4:]]
    one = fit(tmp_path, "one", base=csv)
    several = fit(tmp_path, "several", THREE, "--data.store=pinned", base=csv)
    assert same(weights(several), weights(one))


def test_a_model_after_it_gets_its_own_rows_of_the_same_data() -> None:
    data = SceneDataModule(
        num_scenes=30, batch_size=16, draws_per_epoch=64, eval_draws=20, compile=False
    )
    net = ShallowConvNet(channels=(4, 8), fc=(16,))
    for model in (BoxRegressor(net, steps_per_call=3), RidgeRegressor(net)):
        assert trained_quietly(model, data, max_epochs=1).global_step == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.steps_per_call=0"], "steps_per_call is 0; expected 1 or more"),
        ([THREE, "--trainer.gradient_clip_val=1"], "gradient clipping"),
        ([THREE, "--trainer.accumulate_grad_batches=2"], "gradient accumulation"),
    ],
)
def test_what_several_steps_cannot_do_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, f"--runs={tmp_path}", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_run_goes_on_with_as_many_steps_a_batch(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*BASE, THREE, f"--runs={whole.parent}", "--name=run", "--ckpt_path=last"]
    assert main(command) == 2
    assert "model.steps_per_call is 1 in the checkpoint and 3 now" in capsys.readouterr().err


@pytest.mark.slow
def test_several_steps_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    runs = [f"--runs={tmp_path}", THREE]
    one = fit(tmp_path, "one", base=DOUBLE)
    run_well([*PYTHON, *DOUBLE, *runs, "--name=two", *ranks(2)])
    assert_equal_runs(tmp_path / "two", one, atol=1e-8)
    assert_equal_curves(tmp_path / "two", one, atol=1e-6)
