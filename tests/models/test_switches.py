"""Every fast switch at once follows the plain run."""

from pathlib import Path

import pytest

from benchmarks.protocol import read_curve
from tests.runs import CONFIGS, fit

BASE = [
    *("fit", "-c", str(CONFIGS / "csv.yaml")),
    "--trainer.precision=32-true",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=16",
    "--data.draws_per_epoch=800",
    "--data.eval_draws=40",
    "--data.augment.brightness=0.2",
    "--data.augment.contrast=0.2",
    "--data.augment.noise=0.02",
    "--model.backbone=ShallowConvNet",
    "--model.backbone.channels=[4,8]",
    "--model.backbone.convs_per_scale=1",
    "--model.backbone.fc=[16]",
]
PLAIN = ["--data.compile=false", "--model.compile=false", "--data.store=device"]
FAST = [
    "--data.compile=true",
    "--model.compile=true",
    "--data.store=pinned",
    "--model.steps_per_call=7",
]


@pytest.mark.compile
@pytest.mark.slow
def test_losses_follow_the_plain_run_for_100_steps(csv_folder: Path, tmp_path: Path) -> None:
    plain, fast = (
        fit(tmp_path, name, *options, f"--data.root={csv_folder}", base=BASE)
        for name, options in (("plain", PLAIN), ("fast", FAST))
    )
    steps, losses = read_curve(fast, "train/loss")
    assert steps == list(range(100))
    assert losses == pytest.approx(read_curve(plain, "train/loss")[1], rel=1e-3)
