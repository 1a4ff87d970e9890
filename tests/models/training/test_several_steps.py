"""Several steps a Lightning batch: the same run as with one, also where one is replayed.

On CUDA what is replayed is a graph; here it is a tape of operators that freezes the same things.
"""

import signal
import sys

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.protocol import read_curve
from lightning_bbox import BadInput, BoxRegressor, RidgeRegressor, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.cuda.step_graph import WARM_STEPS, StepGraph
from lightning_bbox.data import module
from lightning_bbox.data.loader import HostCrops, PlanLoader
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.training.divergence import DivergedError
from lightning_bbox.models.training.several_steps import SeveralSteps
from lightning_bbox.pictures.kernels import _sample_spread
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
    scenes,
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
THREE = "--model.steps_per_call=3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one step a batch."""
    return fit(tmp_path_factory.mktemp("whole"), "run", base=BASE)


def test_rows_of_several_steps_are_those_of_each():
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


def test_crops_that_were_cut_ahead_go_to_their_steps():
    (rows,) = PlanLoader("train", 6, 2, rank=0, world_size=1, full=True, steps=3)
    crops = torch.arange(6.0).view(3, 2, 1, 1, 1)
    steps = list(rows._replace(crops=HostCrops(crops)).steps())
    assert [step.crops.tensor.flatten().tolist() for step in steps] == [[0, 1], [2, 3], [4, 5]]


def test_several_steps_a_batch_are_the_same_run_to_the_bit(whole, tmp_path):
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


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision=bf16-mixed"],
        ["--trainer.precision=64-true"],
        ["--trainer.max_steps=5", "--trainer.max_epochs=-1"],
    ],
    ids=["bf16-mixed", "64-true", "5 steps, which is within a batch"],
)
def test_each_step_is_that_of_one_a_batch(options, tmp_path):
    one = fit(tmp_path, "one", *options, base=BASE)
    several = fit(tmp_path, "several", *options, THREE, base=BASE)
    steps = {
        read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] for run in (one, several)
    }
    assert steps == {5 if "--trainer.max_steps=5" in options else 8}
    assert same(weights(several), weights(one))


def test_crops_cut_on_the_host_serve_several_steps(csv_folder, tmp_path):
    csv = ["fit", "-c", str(CONFIGS / "csv.yaml"), f"--data.root={csv_folder}", *BASE[4:]]
    one = fit(tmp_path, "one", base=csv)
    several = fit(tmp_path, "several", THREE, "--data.store.place=pinned", base=csv)
    assert same(weights(several), weights(one))


def test_a_run_of_several_steps_a_batch_goes_on_to_the_bit(whole, tmp_path):
    command = [*BASE, THREE, f"--runs={tmp_path}", "--name=run"]
    assert main([*command, *strike(signal.SIGINT, "itself", step=3, rank=0)]) == 130
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3
    assert main([*command, "--ckpt_path=last"]) == 0
    assert_equal_runs(tmp_path / "run", whole, atol=0)


def test_a_run_goes_on_with_as_many_steps_a_batch(whole, capsys):
    command = [*BASE, THREE, f"--runs={whole.parent}", "--name=run", "--ckpt_path=last"]
    assert main(command) == 2
    assert "model.steps_per_call is 1 in the checkpoint and 3 now" in capsys.readouterr().err


def test_a_model_after_it_gets_its_own_rows_of_the_same_data():
    data, net = scenes(), ShallowConvNet(channels=(4, 8), fc=(16,))
    for model in (BoxRegressor(net, steps_per_call=3), RidgeRegressor(net)):
        assert trained_quietly(model, data, max_epochs=1).global_step == 4


@pytest.mark.slow
def test_several_steps_of_two_processes_equal_those_of_one(tmp_path):
    one = fit(tmp_path, "one", base=DOUBLE)
    run_well([*PYTHON, *DOUBLE, THREE, f"--runs={tmp_path}", "--name=two", *ranks(2)])
    assert_equal_runs(tmp_path / "two", one, atol=1e-8)
    assert_equal_curves(tmp_path / "two", one, atol=1e-6)


@pytest.mark.compile
@pytest.mark.slow
def test_with_all_that_is_fast_losses_follow_the_plain_run_for_100_steps(csv_folder, tmp_path):
    base = ["fit", "-c", str(CONFIGS / "csv.yaml"), f"--data.root={csv_folder}", *DOUBLE[4:]]
    base += ["--trainer.precision=32-true", "--trainer.log_every_n_steps=1"]
    base += ["--data.batch_size=16", "--data.draws_per_epoch=800"]
    base += [f"--data.augment.{what}=0.2" for what in ("brightness", "contrast")]
    base += ["--data.augment.noise=0.02", "--model.backbone.batch_norm=true"]
    plain = fit(tmp_path, "plain", "--data.store.place=device", base=base)
    fast = ["--data.compile=true", "--model.compile=true", "--data.store.place=pinned"]
    fast = fit(tmp_path, "fast", *fast, "--model.steps_per_call=7", base=base)
    steps, losses = read_curve(fast, "train/loss")
    assert steps == list(range(100))
    assert losses == pytest.approx(read_curve(plain, "train/loss")[1], rel=1e-3)


# Replayed. Epochs of 4 steps: 3 as usual, the rest replayed, over two more epochs.

PLAIN = [THREE, "--data.compile=false", "--trainer.max_epochs=3"]
GRAPH = [*PLAIN, "--model.cuda_graph=true"]


class Tape(TorchDispatchMode):
    """Operators as they were called, with the very tensors, to be called again on them.

    Like a CUDA graph it knows memory and not what the host would decide; unlike one it has run the
    operators once when they are recorded.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call an operator and keep it; what waits for a device, or comes from the host, fails."""
        name = func.name()
        assert "_local_scalar_dense" not in name, "a step waits for the device"
        assert "lift_fresh" not in name, "a step makes a tensor from numbers of the host"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        """Call all again, and put the results where they were."""
        for func, args, kwargs, result in self.calls:
            new = func(*args, **kwargs)
            for old, fresh in zip(tree_leaves(result), tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and not shares(old, fresh):
                    old.copy_(fresh)


def shares(one, other):
    """Tell whether two tensors are views of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def record_on_tape(body):
    """Stand in for `StepGraph.record`."""
    with Tape() as tape:
        body()
    done = iter([True])  # by recording

    def replay():
        next(done, False) or tape.replay()

    return replay


@pytest.fixture
def on_tape(monkeypatch):
    """Record steps of the CPU."""
    monkeypatch.setattr(StepGraph, "record", staticmethod(record_on_tape))
    monkeypatch.setattr(SeveralSteps, "refuse_graph", lambda *_: None)
    adam = sys.modules["torch.optim.adam"]  # which torch.optim hides
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    # As on a card: boxes of all sizes by one kernel, so that none waits to learn which these are.
    monkeypatch.setattr(module, "kernel_for", lambda *_: _sample_spread)


CASES = {
    "by default": (),
    "one parameter at a time, counted on the host": (
        "--model.optimizer=torch.optim.Adam",
        "--model.optimizer.lr=0.003",
    ),
    "everything that changes crops": (
        *(f"--data.augment.{what}=0.2" for what in ("brightness", "contrast", "saturation")),
        "--data.augment.noise=0.05",
        "--data.num_targets=4",
        "--model.regularizers=[lightning_bbox.L1Penalty]",
    ),
    "in bf16": ("--trainer.precision=bf16-mixed",),
    "from features": (
        "--model.backbone=tests.runs.FrozenConvNet",
        "--model.cache=memory",
        "--model.regularizers=[]",
    ),
    "by regression": ("--model.head=lightning_bbox.LinearHead",),
    "with a likelihood": ("--model.head=lightning_bbox.LikelihoodHead",),
    "by soft argmax": ("--model.head=lightning_bbox.SoftArgmaxHead", "--model.backbone.fc=[]"),
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


@pytest.mark.slow
@each_case
@pytest.mark.usefixtures("on_tape")
def test_replayed_steps_are_those_of_a_usual_run(options, tmp_path):
    assert_replays(tmp_path, options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@each_case
def test_on_cuda_replayed_steps_are_those_of_a_usual_run(options, tmp_path):
    on_cuda = "--trainer.accelerator=gpu", "--trainer.devices=1", "--data.compile=auto"
    assert_replays(tmp_path, (*options, *on_cuda), tolerance=1e-3)


def assert_replays(folder, options, tolerance=1e-5):
    """Train both ways, and compare what was learned and what was logged."""
    options = [*options, "--trainer.log_every_n_steps=1"]
    usual = fit(folder, "usual", *PLAIN, *options, base=BASE)
    replayed = fit(folder, "replayed", *GRAPH, *options, base=BASE)
    for name, value in weights(usual).items():
        torch.testing.assert_close(
            weights(replayed)[name], value, rtol=tolerance, atol=tolerance / 10
        )
    penalties = ["train/penalty"] * ("--model.regularizers=[]" not in options)
    for curve in ("train/loss", "train/lr", "val/mae_px", *penalties):
        steps, values = read_curve(usual, curve)
        assert read_curve(replayed, curve) == (steps, pytest.approx(values, rel=tolerance))


class CountedNet(ShallowConvNet):
    """A convnet that counts how often the host runs it in training."""

    runs = 0

    def forward(self, crops):
        self.runs += self.training
        return super().forward(crops)


@pytest.mark.usefixtures("on_tape")
def test_of_ten_steps_three_are_usual_one_is_recorded_and_no_other_runs_on_the_host():
    model = graphed(CountedNet(channels=(4, 8), fc=(16,)))
    assert train(model).global_step == 10
    assert model.net.backbone.runs == WARM_STEPS + 1


@pytest.mark.slow
@pytest.mark.usefixtures("on_tape")
def test_a_run_begun_by_replaying_goes_on_as_usual(tmp_path):
    options = [*BASE, f"--runs={tmp_path}", "--name=run"]
    stop = strike(signal.SIGINT, "itself", step=7, rank=0)
    assert main([*options, *GRAPH, *stop]) == 130
    state = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["optimizer_states"][0]
    (group,) = state["param_groups"]
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False
    assert main([*options, *PLAIN, "--ckpt_path=last"]) == 0
    plain = fit(tmp_path, "plain", *PLAIN, base=BASE)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-5, atol=1e-6)


class Spoil(pl.Callback):
    """Spoil a weight after four steps, in its own memory, where a recorded step finds it."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 4:
            next(pl_module.net.backbone.parameters()).data.fill_(torch.nan)


@pytest.mark.usefixtures("on_tape")
def test_the_first_bad_step_is_found_among_replayed_ones():
    with pytest.raises(DivergedError, match=r"since step 4 .*samples item \d+, item \d+") as caught:
        train(graphed(), callbacks=[Spoil()])
    assert caught.value.step == 4


def graphed(net=None):
    return BoxRegressor(
        net or ShallowConvNet(channels=(4, 8), fc=(16,)), steps_per_call=4, cuda_graph=True
    )


def train(model, **options):
    """Train for two epochs of five steps."""
    data = scenes(draws_per_epoch=80)
    return trained_quietly(model, data, max_epochs=2, log_every_n_steps=1, **options)


# Refused.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.steps_per_call=0"], "steps_per_call is 0; expected 1 or more"),
        ([THREE, "--trainer.gradient_clip_val=1"], "gradient clipping"),
        ([THREE, "--trainer.accumulate_grad_batches=2"], "gradient accumulation"),
        (GRAPH, "can't record this run's steps: the run is on cpu; leave"),
        ([*GRAPH, "--model.steps_per_call=1"], "it takes model.steps_per_call of 2 or more"),
        (
            [*GRAPH, "--data.augment.extra=[kornia.augmentation.RandomGamma]"],
            "augment.extra draws on the host",
        ),
    ],
)
def test_what_several_steps_or_a_graph_cannot_do_is_refused(options, words, tmp_path, capsys):
    assert main([*BASE, f"--runs={tmp_path}", *options]) == 2
    assert words in capsys.readouterr().err


class Ask(pl.Callback):
    """Ask whether steps of SGD could be recorded."""

    def on_train_start(self, trainer, pl_module):
        with pytest.raises(BadInput) as caught:
            SeveralSteps(pl_module, 3, cuda_graph=True).begin(torch.optim.SGD([torch.ones(1)]))
        self.answer = str(caught.value)


def test_an_optimizer_that_counts_on_the_host_is_refused():
    ask = Ask()
    train(BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(16,))), callbacks=[ask])
    assert "SGD has no option capturable" in ask.answer


def test_a_tape_tells_what_a_graph_could_not_record():
    with pytest.raises(AssertionError, match="waits for the device"):
        record_on_tape(lambda: torch.ones(1).add(1).item())
    with pytest.raises(AssertionError, match="from numbers of the host"):
        record_on_tape(lambda: torch.tensor([1.0, 2.0]))
