"""What all models do: average over flips, and be validated where a run ends."""

import json

import pytest
import torch

from lightning_bbox import BoxRegressor, LinearHead, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.models.checkpoints import checkpoint_of, read_checkpoint
from tests.parts import spec_of
from tests.runs import SCENES, equal, fit, interfered, resume


@pytest.mark.parametrize("num_targets", [2, 4])
def test_over_flips_a_shift_that_ignores_the_picture_averages_out(num_targets: int) -> None:
    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), LinearHead(), average_flips=True)
    model.build(spec_of(num_targets), seed=0)
    model.eval()
    with torch.no_grad():
        model.net.head.linear.weight.zero_()
        model.net.head.linear.bias.fill_(0.1)
    proposals = torch.tensor([[10.0, 20.0, 40.0, 60.0], [5.0, 5.0, 50.0, 30.0]])
    averaged, _ = model.refine(torch.rand(2, 3, 45, 45), proposals)
    torch.testing.assert_close(box_centers(averaged), box_centers(proposals))
    model.average_flips = False
    once, _ = model.refine(torch.rand(2, 3, 45, 45), proposals)
    assert (box_centers(once) - box_centers(proposals)).abs().min() > 0.1


# Where a run ends. Epochs have four batches.

slow = pytest.mark.slow
ENDS = {
    "within an epoch": ("--trainer.max_steps=6 --trainer.max_epochs=-1", 6, [4, 6]),
    "within the first epoch": ("--trainer.max_steps=3", 3, [3]),
    "with an epoch": ("--trainer.max_steps=4", 4, [4]),
    "gradients accumulated": (
        "--trainer.max_steps=3 --trainer.accumulate_grad_batches=3", 3, [2, 3],
    ),
    "several steps a call": ("--trainer.max_steps=6 --model.steps_per_call=4", 6, [4, 6]),
    "every second epoch": (
        "--trainer.max_epochs=3 --trainer.check_val_every_n_epoch=2", 12, [8, 12],
    ),
    "every three batches": ("--trainer.val_check_interval=3", 8, [3, 7, 8]),
    "every five batches": (
        "--trainer.val_check_interval=5 --trainer.check_val_every_n_epoch=null", 8, [5, 8],
    ),
    "after a time": ("--trainer.val_check_interval=00:01:00:00", 8, [8]),
}  # fmt: skip
FAST = ("within an epoch", "within the first epoch", "gradients accumulated", "every three batches")


def steps_in(folder):
    """Return the step of each checkpoint of a run."""
    paths = (folder / "checkpoints").iterdir()
    return {path.stem: read_checkpoint(path)["global_step"] for path in paths}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in FAST else slow) for name in ENDS]
)
def test_a_run_is_validated_where_it_ends(case, tmp_path):
    options, steps, validated = ENDS[case]
    folder = fit(tmp_path, "run", *options.split())
    found = json.loads((folder / "metrics.json").read_text())
    curve = dict(found["val/curve"])
    assert [*curve] == validated
    assert found["train_steps"] == validated[-1] == steps
    best = min(curve, key=curve.__getitem__)
    assert steps_in(folder) == {"best": best, "last": steps}
    assert checkpoint_of(folder).stem == "best"


def test_a_ridge_is_solved_and_validated_where_its_steps_end(tmp_path):
    options = ["--model=RidgeRegressor", "--trainer.max_steps=3"]
    base = [option for option in SCENES if not option.startswith("--model.backbone")]
    folder = fit(tmp_path, "ridge", *options, base=base)
    assert json.loads((folder / "metrics.json").read_text())["val/curve"][0][0] == 3
    assert steps_in(folder) == {"best": 3, "last": 3}


def test_a_run_whose_steps_end_within_an_epoch_resumes_exactly(tmp_path):
    options = ["--trainer.max_steps=7", "--trainer.max_epochs=-1"]
    whole = fit(tmp_path, "whole", *options)
    for step in (6, 7):  # within the epoch, and when it was the last
        command = [*SCENES, f"--runs={tmp_path}", f"--name={step}", *options]
        assert main([*command, *interfered("training", step, 2)]) == 130
        assert resume(tmp_path / str(step)) == 0
        assert equal(tmp_path / str(step), whole)


def test_a_run_that_was_never_validated_goes_by_its_last_checkpoint(tmp_path):
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        folder = fit(tmp_path, "run", "--trainer.limit_val_batches=0")
    assert steps_in(folder) == {"last": 8}
    assert checkpoint_of(folder).stem == "last"
    assert main(["test", *SCENES[1:], f"--ckpt_path={folder}", f"--runs={tmp_path}"]) == 0
