"""A recorded step: on CUDA a graph, here a tape of operators that freezes the same things."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.protocol import read_curve
from lightning_bbox import BoxRegressor, SceneDataModule, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from lightning_bbox.models import step_graph
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.models.divergence import DivergedError
from lightning_bbox.models.stepping import SteppingModel
from tests.models.test_stepping import BASE, THREE
from tests.runs import fit, strike, trained_quietly, weights

# Epochs of 4 steps: 3 as usual, the rest replayed, over two more epochs.
GRAPH = [THREE, "--model.cuda_graph=true", "--data.compile=false", "--trainer.max_epochs=3"]
PLAIN = [THREE, "--data.compile=false", "--trainer.max_epochs=3"]
LOGGED = "--trainer.log_every_n_steps=1"


class Tape(TorchDispatchMode):
    """Operators as they were called, with the very tensors, to be called again on them.

    Like a CUDA graph it knows memory and not what the host would decide; unlike one it has run the
    operators once when they are recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and keep it; what waits for a device, or comes from the host, fails."""
        name = func.name()
        assert "_local_scalar_dense" not in name, "a step waits for the device"
        assert "lift_fresh" not in name, "a step makes a tensor from numbers of the host"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Call all again, and put the results where they were."""
        for func, args, kwargs, result in self.calls:
            new = func(*args, **kwargs)
            for old, fresh in zip(tree_leaves(result), tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and not shares(old, fresh):
                    old.copy_(fresh)


def shares(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are views of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def record_on_tape(body: Callable[[], None]) -> Callable[[], None]:
    """Stand in for `step_graph.record`."""
    with Tape() as tape:
        body()
    replays = 0

    def replay() -> None:
        nonlocal replays
        replays += 1
        if replays > 1:  # the first is what recording did
            tape.replay()

    return replay


@pytest.fixture
def on_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record steps of the CPU."""
    monkeypatch.setattr(step_graph, "record", record_on_tape)
    monkeypatch.setattr(SteppingModel, "refuse_graph", lambda *_: None)
    adam = sys.modules["torch.optim.adam"]  # which torch.optim hides
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


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


@pytest.mark.slow
@pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in CASES.items()])
@pytest.mark.usefixtures("on_tape")
def test_replayed_steps_are_those_of_a_usual_run(options: tuple[str, ...], tmp_path: Path) -> None:
    assert_same_runs(tmp_path, PLAIN, GRAPH, options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in CASES.items()])
def test_on_cuda_replayed_steps_are_those_of_a_usual_run(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    on_cuda = "--trainer.accelerator=gpu", "--trainer.devices=1", "--data.compile=auto"
    assert_same_runs(tmp_path, [*PLAIN, *on_cuda], [*GRAPH, *on_cuda], options, tolerance=1e-3)


def assert_same_runs(
    folder: Path,
    plain: list[str],
    graph: list[str],
    options: tuple[str, ...],
    tolerance: float = 1e-5,
) -> None:
    """Train both ways, and compare what was learned and what was logged."""
    usual = fit(folder, "usual", *plain, *options, LOGGED, base=BASE)
    replayed = fit(folder, "replayed", *graph, *options, LOGGED, base=BASE)
    for name, value in weights(usual).items():
        torch.testing.assert_close(
            weights(replayed)[name], value, rtol=tolerance, atol=tolerance / 10
        )
    curves = {"train/loss", "train/lr", "val/mae_px"}
    for curve in curves | (
        {"train/penalty"} if "--model.regularizers=[]" not in options else set()
    ):
        steps, values = read_curve(replayed, curve)
        assert steps == read_curve(usual, curve)[0]
        assert values == pytest.approx(read_curve(usual, curve)[1], rel=tolerance)


@pytest.mark.usefixtures("on_tape")
def test_what_is_replayed_is_a_step_and_not_more() -> None:
    """Of ten steps, three are made as usual, one is recorded, and no other runs on the host."""
    model, calls = small_model(), []
    usual = model._descend

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return usual(*arguments, **options)

    model._descend = counted
    trainer = train(model, epochs=2)
    assert trainer.global_step == 10
    assert len(calls) == step_graph.WARM_STEPS + 1
    assert model._graph is None  # its memory is given back


@pytest.mark.slow
@pytest.mark.usefixtures("on_tape")
def test_a_run_begun_by_replaying_goes_on_as_usual(tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("on_tape")
def test_the_first_bad_step_is_found_among_replayed_ones() -> None:
    with pytest.raises(DivergedError, match=r"since step 4 .*samples item \d+, item \d+") as caught:
        train(small_model(), epochs=2, callbacks=[Spoil(after=4)])
    assert caught.value.step == 4


class Spoil(pl.Callback):
    """Spoil a weight after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: BoxRegressor, *_: object) -> None:
        """Spoil it in its own memory, where a recorded step finds it."""
        if trainer.global_step == self.after:
            next(pl_module.net.backbone.parameters()).data.fill_(torch.nan)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the run is on cpu"),
        (["--model.steps_per_call=1"], "it takes model.steps_per_call of 2 or more"),
        (
            ["--data.augment.extra=[kornia.augmentation.RandomGamma]"],
            "augment.extra draws on the host",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, *GRAPH, *options, f"--runs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "model.cuda_graph can't record this run's steps: " in said
    assert words in said


def test_an_optimizer_that_counts_on_the_host_is_refused() -> None:
    asks = Asks()
    train(BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(16,))), epochs=1, callbacks=[asks])
    assert "SGD has no option capturable" in asks.answer


class Asks(pl.Callback):
    """Ask whether steps of SGD could be recorded."""

    answer = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: BoxRegressor) -> None:
        """Ask."""
        with pytest.raises(BadInput) as caught:
            pl_module.refuse_graph(torch.optim.SGD(pl_module.parameters(), lr=0.1))
        self.answer = str(caught.value)


def test_a_tape_tells_what_a_graph_could_not_record() -> None:
    with pytest.raises(AssertionError, match="waits for the device"):
        record_on_tape(lambda: torch.ones(1).add(1).item())
    with pytest.raises(AssertionError, match="from numbers of the host"):
        record_on_tape(lambda: torch.tensor([1.0, 2.0]))


def small_model() -> BoxRegressor:
    """A network that learns in no time."""
    net = ShallowConvNet(channels=(4, 8), fc=(16,))
    return BoxRegressor(net, steps_per_call=4, cuda_graph=True)


def train(model: BoxRegressor, epochs: int, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Train it, five steps an epoch."""
    data = SceneDataModule(
        num_scenes=30, batch_size=16, draws_per_epoch=80, eval_draws=20, compile=False
    )
    return trained_quietly(
        model, data, max_epochs=epochs, log_every_n_steps=1, callbacks=list(callbacks)
    )
