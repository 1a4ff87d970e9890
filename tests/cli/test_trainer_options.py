"""Every option of Lightning's Trainer works on the command line, or one sentence refuses it."""

import inspect

import lightning.pytorch as pl
import pytest

from lightning_bbox.cli.main import main
from tests.runs import SCENES

CALLBACKS = "lightning.pytorch.callbacks"
SMALL = [*SCENES, "--data.num_scenes=20", "--data.draws_per_epoch=32", "--data.eval_draws=16"]
BOTH, NONE = ["best.ckpt", "last.ckpt"], list[str]()
OPTIONS = {
    "accelerator=cpu": BOTH,
    "accumulate_grad_batches=2": BOTH,
    "barebones=true": "trainer.barebones: a run of the command line logs",
    "benchmark=true": BOTH,
    f"callbacks+={CALLBACKS}.BackboneFinetuning": BOTH,
    f"callbacks+={CALLBACKS}.LearningRateFinder": "trainer.callbacks: LearningRateFinder trains",
    f"callbacks+={CALLBACKS}.EMAWeightAveraging": BOTH,
    f"callbacks+={CALLBACKS}.TQDMProgressBar": BOTH,
    f"callbacks+={CALLBACKS}.EarlyStopping --trainer.callbacks.monitor=val/nothing": (
        "trainer: Early stopping conditioned on metric `val/nothing` which is not available"
    ),
    "check_val_every_n_epoch=5": BOTH,
    "default_root_dir=elsewhere": BOTH,
    "detect_anomaly=true": BOTH,
    "deterministic=true": BOTH,
    "devices=1": BOTH,
    "enable_autolog_hparams=false": BOTH,
    "enable_checkpointing=false": NONE,
    "enable_model_summary=true": BOTH,
    "enable_progress_bar=true": BOTH,
    "fast_dev_run=true": NONE,
    "gradient_clip_algorithm=value": BOTH,
    "gradient_clip_val=1.0": BOTH,
    "inference_mode=false": BOTH,
    "limit_predict_batches=1": BOTH,
    "limit_test_batches=1": BOTH,
    "limit_train_batches=1": BOTH,
    "limit_val_batches=1": BOTH,
    "log_every_n_steps=0": BOTH,
    "logger=false": BOTH,
    "max_epochs=1": BOTH,
    "max_steps=3": BOTH,
    "max_time=00:00:10:00": BOTH,
    "min_epochs=3": BOTH,
    "min_steps=5": BOTH,
    "model_registry=name": BOTH,
    "num_nodes=1": BOTH,
    "num_sanity_val_steps=1": BOTH,
    "overfit_batches=1": BOTH,
    "plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO": (
        "trainer: Received multiple values for CheckpointIO flags in `plugins`"
    ),
    "precision=bf16-true": BOTH,
    "profiler=simple": BOTH,
    "reload_dataloaders_every_n_epochs=1": BOTH,
    "strategy=fsdp": "trainer: The strategy `fsdp` requires a GPU accelerator",
    "sync_batchnorm=true": BOTH,
    "use_distributed_sampler=true": BOTH,
    "val_check_interval=100": "trainer: `val_check_interval` (100) must be less than or equal",
}
FAST = ("barebones", "callbacks", "fast_dev_run", "overfit_batches", "log_every", "val_check")


def test_every_option_of_the_trainer_is_tried() -> None:
    tried = {option.partition("=")[0].removesuffix("+") for option in OPTIONS}
    assert tried == {*inspect.signature(pl.Trainer).parameters}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=[] if option.startswith(FAST) else pytest.mark.slow)
        for option in OPTIONS
    ],
)
def test_an_option_of_the_trainer_works_or_is_refused(option, tmp_path, capsys):
    expected = OPTIONS[option]
    command = [*SMALL, f"--runs={tmp_path}", "--name=run", *f"--trainer.{option}".split()]
    if isinstance(expected, str):
        assert main(command) == 2
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert sentence.startswith(f"lightning-bbox: {expected}")
        return
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.glob("run/checkpoints/*")) == expected
    assert (tmp_path / "run" / "metrics.json").exists() == ("fast_dev_run" not in option)
