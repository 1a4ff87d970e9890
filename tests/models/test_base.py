"""What all models do: average over flips, tell how sure they are, and be validated at the end."""

import json
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_bbox import (
    BadInput,
    BinHead,
    BoxRegressor,
    LikelihoodHead,
    LinearHead,
    ShallowConvNet,
    SoftArgmaxHead,
)
from lightning_bbox.cli.main import main
from lightning_bbox.evaluation.metrics import Refined, coordinate_errors, error_px
from lightning_bbox.evaluation.widths import AtWidths, measure_reliability
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.models.checkpoints import checkpoint_of, read_checkpoint
from lightning_bbox.nn.calibration import Calibration, conformal_factor, coverage
from tests.parts import spec_of
from tests.runs import (
    SCENES,
    equal,
    fit,
    interfered,
    resume,
    same,
    scenes,
    trained,
    trained_quietly,
    weights,
)


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


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_few_draws_are_evaluated_like_many(draws: int) -> None:
    data, model = scenes(eval_draws=draws), BoxRegressor(ShallowConvNet(channels=(4,)))
    trained(model, data, epochs=1)
    for split, count in (("val", draws), ("train_eval", 1)):
        samples, found = data.samples(split), model.evaluations[split]
        with torch.no_grad():
            boxes = model.eval()(data.crops_of(samples), samples.proposals)
        torch.testing.assert_close(found.refined.boxes, boxes, rtol=0, atol=1e-3)
        assert found.refined.losses.shape == found.refined.seen.shape == (count,)
        errors = error_px(boxes, samples.gt_boxes, data.geometry.px(samples.proposals))
        assert found.metrics["mae_px"] == pytest.approx(float(errors.abs().mean()), abs=1e-3)


FLIPS = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("num_targets", [2, 4])
@pytest.mark.parametrize(("passes", "flips"), [(0, True), (6, False), (5, True)])
@pytest.mark.parametrize("head", [BinHead, LikelihoodHead, LinearHead])
def test_the_std_of_an_average_holds_the_spread_of_its_parts(head, passes, flips, num_targets):
    backbone = ShallowConvNet(channels=(8,), fc=(32,), dropout=0.5)
    model = BoxRegressor(backbone, head(), passes=passes, average_flips=flips)
    model.build(spec_of(num_targets), seed=0)
    model.eval()
    with torch.no_grad():
        for weights in model.net.head.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=torch.manual_seed(0)))
    said = []
    model.net.head.register_forward_hook(lambda _, __, outputs: said.append(outputs))
    proposals = torch.tensor([[10.0, 20.0, 40.0, 60.0], [5.0, 5.0, 50.0, 30.0]])
    boxes, stds = model.refine(torch.rand(2, 3, 45, 45), proposals)

    said = said[1:] if passes else said  # the first is of no pass
    assert len(said) == max(1, passes) * (4 if flips else 1)
    corners, told = [], []
    for at, outputs in enumerate(said):
        box = model.codec.decode(model.net.head.decode(outputs), proposals).double().numpy()
        for axis, mirrored in enumerate(FLIPS[at % 4] if flips else ()):
            if mirrored:
                both = (proposals[:, axis] + proposals[:, axis + 2]).numpy()
                box[:, axis], box[:, axis + 2] = both - box[:, axis + 2], both - box[:, axis]
        corners.append(box)
        told.append(model.net.head.stds(outputs).double().numpy())
    corners, told = np.stack(corners), np.stack(told)
    np.testing.assert_allclose(boxes, corners.mean(axis=0), atol=1e-4)
    low, high = corners[..., :2], corners[..., 2:]
    px = model.spec.geometry.px(proposals).double().numpy()
    offsets = np.concatenate([(low + high) / 2 / px, np.log(high - low)], axis=2)[..., :num_targets]
    expected = np.sqrt((told**2).mean(axis=0) + offsets.var(axis=0))
    np.testing.assert_allclose(stds, expected, rtol=1e-3, atol=1e-5)
    if head is LinearHead:  # of its own error it knows nothing
        assert stds.isnan().all()
    else:
        assert (stds.numpy() > 1.001 * told.mean(axis=0)).all()


class Calibrations(pl.Callback):
    """Keep what validations measured, and what they had to measure and to calibrate with."""

    def __init__(self):
        self.held, self.errors, self.stds, self.calibrations = [], [], [], [Calibration()]

    @torch.no_grad()
    def on_validation_end(self, trainer, model):
        data = trainer.datamodule
        samples, head = data.samples("val"), model.net.head
        with model.net.evaluating():
            outputs = model.net(data.crops_of(samples))
        boxes = model.codec.decode(head.decode(outputs), samples.proposals)
        px = data.geometry.px(samples.proposals)
        self.errors.append(coordinate_errors(boxes, samples.gt_boxes, px, data.num_targets))
        self.stds.append(head.stds(outputs))
        self.held.append(float(trainer.callback_metrics["val/coverage_50"]))
        self.calibrations.append(deepcopy(model.net.calibration))


@pytest.mark.parametrize(
    ("head", "num_targets", "told"),
    [(BinHead, 2, 2), (BinHead, 4, 4), (SoftArgmaxHead, 2, 2), (SoftArgmaxHead, 4, 2)],
)
def test_intervals_are_measured_before_their_factor_is_fitted(head, num_targets, told):
    data, seen = scenes(num_targets=num_targets), Calibrations()
    model = BoxRegressor(ShallowConvNet(channels=(4,), fc=()), head(), compile=False)
    trained(model, data, seen, epochs=3)
    law = model.net.head.error_law
    for epoch, (errors, stds) in enumerate(zip(seen.errors, seen.stds, strict=True)):
        assert stds[:, :told].isfinite().all()
        assert stds[:, told:].isnan().all()
        before, after = seen.calibrations[epoch : epoch + 2]
        found = coverage(errors[:, :told], before(stds)[:, :told], law, 0.5)
        assert seen.held[epoch] == pytest.approx(found, abs=0.02)
        least = torch.maximum(stds, after.least[:num_targets])[:, :told]
        factor = conformal_factor(errors[:, :told], least, law)
        assert float(after.temperature) == pytest.approx(factor, rel=1e-3)
        assert float(after.temperature) != float(before.temperature)

    trainer = trained_quietly(model, data, max_epochs=0)
    trainer.validate(model, data, verbose=False)
    assert "val/std_px" in trainer.callback_metrics
    assert not [name for name in trainer.callback_metrics if "coverage" in name]
    trainer.test(model, data, verbose=False)
    assert 0 < trainer.callback_metrics["test/coverage_50"] < 1


# Where a run ends. Epochs have four batches.

slow = pytest.mark.slow
ENDS = {
    "within an epoch": ("--trainer.max_steps=6 --trainer.max_epochs=-1", 6, [4, 6]),
    "within the first epoch": ("--trainer.max_steps=3", 3, [3]),
    "before the least of epochs": ("--trainer.max_steps=6 --trainer.min_epochs=3", 6, [4, 6]),
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


@slow
def test_a_run_whose_steps_ended_within_an_epoch_goes_on_to_more_exactly(tmp_path):
    options = ["--trainer.max_epochs=-1", "--model.schedule=Constant"]
    longer = fit(tmp_path, "longer", "--trainer.max_steps=10", *options)
    folder = fit(tmp_path, "run", "--trainer.max_steps=6", *options)
    assert resume(folder, "--trainer.max_steps=10") == 0
    assert same(weights(folder), weights(longer))
    assert steps_in(folder)["last"] == 10


def test_how_a_model_errs_is_measured_after_validation_and_travels_with_it(tmp_path: Path) -> None:
    data, model = scenes(eval_draws=400, num_targets=4), BoxRegressor(ShallowConvNet(channels=(4,)))
    trainer = trained_quietly(model, data, max_epochs=1, num_sanity_val_steps=0)
    model.eval()

    def refined(split: str) -> AtWidths:
        samples, widths = data.samples(split), data.widths(split)
        with torch.no_grad():
            boxes, stds = model.refine(data.crops_of(samples), samples.proposals)
        columns = boxes, stds[:, 0], stds, stds, stds[:, :2], stds[:, 0] > 0
        return AtWidths(samples, Refined(*columns), widths)

    reliability, law = measure_reliability(refined("val_widths"), refined("val"), data.geometry)
    assert (model.law, reliability.tails[0]) == (
        law,
        pytest.approx(model.reliability.tails[0], abs=0.02),
    )
    assert model.reliability.common == pytest.approx(reliability.common, abs=0.02)
    assert model.reliability.factors == pytest.approx(reliability.factors, rel=0.02)
    assert model.law.means == law.means
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    again = BoxRegressor.load_from_checkpoint(path)
    assert (again.reliability, again.law) == (model.reliability, model.law)
    assert again.range == model.range is not None
    near = data.samples("val")
    crops, proposals = data.crops_of(near), near.proposals
    marked = again.refine_and_mark(crops, proposals)[-1]
    assert 0 < float(marked.float().mean()) <= 0.01  # of the boxes that the limit was ranked among
    trainer.test(model, datamodule=data, verbose=False)
    rows = model.evaluations["test"].harm
    assert [row.draws for row in rows] == [40] * 5
    assert rows[0].harmed_law <= rows[0].harmed

    checkpoint = torch.load(path, weights_only=True)
    for name in ("law", "reliability", "range"):
        broken = deepcopy(checkpoint)
        broken["lightning_bbox"][name] = {"right": 1}
        torch.save(broken, path)
        with pytest.raises(BadInput, match="doesn't say how its model errs"):
            BoxRegressor.load_from_checkpoint(path)
    for name in ("law", "reliability"):
        del checkpoint["lightning_bbox"][name]
    torch.save(checkpoint, path)  # as older ones are
    old = BoxRegressor.load_from_checkpoint(path)
    assert old.law is old.reliability is None


def test_a_head_that_cannot_tell_has_no_law_of_its_own() -> None:
    model = BoxRegressor(ShallowConvNet(channels=(4,)), LinearHead())
    trained(model, scenes(eval_draws=200), epochs=1)
    assert model.law is model.reliability is None
