"""Nothing lost: stops and resumes, checkpoints that are bad, disks that are full, losses gone."""

import json
import pickle
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_bbox import BoxRegressor, SceneDataModule, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from lightning_bbox.models.checkpoints import newest_checkpoint, read_checkpoint
from lightning_bbox.nn.heads.bins.decoders import ExpectationDecoder
from tests.conftest import write_rectangles, yolo_folder
from tests.runs import SCENES, end_of, equal, files_of, interfered, resume, same

EPOCHS, STEPS = 3, 12
# So fast that the last epoch is not the best one.
OPTIONS = [
    f"--trainer.max_epochs={EPOCHS}", "--model.backbone.dropout=0.5",
    "--model.optimizer=AdamW", "--model.optimizer.lr=0.1",
]  # fmt: skip
FIT = [*SCENES, *OPTIONS]


def begin(folder: Path, *options: str) -> int:
    return main([*FIT, f"--runs={folder.parent}", f"--name={folder.name}", *options])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("lightning-bbox: ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert begin(folder) == 0
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in its second epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert begin(folder, *interfered("training", 6, 2)) == 130
    return folder


@pytest.fixture
def cut(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run: that it was moved makes no difference."""
    return Path(shutil.copytree(stopped, tmp_path / "cut"))


def test_the_last_checkpoint_is_the_last_where_another_is_the_best(whole: Path) -> None:
    steps = [end_of(whole)[f"{name}.global_step"] for name in ("best", "last")]
    assert steps[0] < steps[1] == STEPS


@pytest.mark.parametrize(
    ("moment", "step", "signum"),
    [
        ("start", 0, 15),
        ("training", 2, 2),
        ("training", 4, 15),
        ("training", 5, 2),
        ("training", STEPS, 2),
        ("validation", 4, 2),
        ("validation", STEPS, 15),
        ("test", STEPS, 2),
        ("test", STEPS, 15),
        ("test end", STEPS, 15),
    ],
)
def test_a_run_stopped_and_resumed_equals_one_that_was_not(
    moment: str, step: int, signum: int, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    assert begin(folder, *interfered(moment, step, signum)) == 128 + signum
    if moment == "start":
        with pytest.warns(UserWarning, match="has no checkpoint yet, so the run begins anew"):
            assert resume(folder) == 0
    else:
        assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_stop_leaves_the_best_checkpoint_alone(cut: Path) -> None:
    steps = {path.stem: read_checkpoint(path)["global_step"] for path in cut.rglob("*.ckpt")}
    assert steps == {"best": 4, "last": 6}


def test_the_same_command_goes_on_with_ckpt_path_last(cut: Path, whole: Path) -> None:
    assert begin(cut, "--ckpt_path=last") == 0
    assert equal(cut, whole)


def test_a_run_can_be_stopped_again_and_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("training", 2, 15)) == 143
    for step in (3, 4, 7, 11, STEPS):
        assert resume(folder, *interfered("training", step, 2)[1:]) == 130
    assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_second_signal_stops_at_once_and_keeps_the_checkpoint_before(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("training", 6, 15, times=2)) == 143
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_crash_keeps_the_checkpoint_before(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="crash"):
        begin(folder, *interfered("training", 7, "crash"))
    assert resume(folder) == 0
    assert equal(folder, whole)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (["--trainer.val_check_interval=2"], 3),
        (["--trainer.val_check_interval=2"], 4),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4"], 4),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4"], 8),
    ],
)
def test_validation_twice_an_epoch_or_every_second_one_resumes_exactly(
    options: list[str], step: int, tmp_path: Path
) -> None:
    assert begin(tmp_path / "whole", *options) == 0
    folder = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="crash"):
        begin(folder, *options, *interfered("batch start", step, "crash"))
    assert resume(folder) == 0
    assert equal(folder, tmp_path / "whole")


def test_a_stop_waits_until_accumulated_gradients_are_used(tmp_path: Path) -> None:
    options = ["--trainer.accumulate_grad_batches=2"]
    assert begin(tmp_path / "whole", *options) == 0
    folder = tmp_path / "cut"
    assert begin(folder, *options, *interfered("batch start", 2, 2)) == 130
    assert resume(folder) == 0
    assert equal(folder, tmp_path / "whole")


def test_a_finished_run_goes_on_where_more_epochs_are_asked_for(
    whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "more"))
    assert main(["fit", "--trainer.max_epochs=4", f"--resume={folder}"]) == 0
    assert end_of(folder)["last.global_step"] == STEPS + 4
    assert json.loads((folder / "metrics.json").read_text())["train_steps"] == STEPS + 4


def test_a_run_is_resumed_from_within_its_folder(
    cut: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cut)
    assert resume(Path()) == 0
    assert equal(cut, whole)


def test_a_model_saved_in_python_goes_on(tmp_path: Path) -> None:
    data = SceneDataModule(num_scenes=60, batch_size=16, draws_per_epoch=64, eval_draws=40)

    def trainer(epochs: int) -> pl.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return pl.Trainer(accelerator="cpu", max_epochs=epochs, log_every_n_steps=1, **quiet)

    first = trainer(1)
    first.fit(BoxRegressor(backbone=ShallowConvNet(channels=(4, 8))), data)
    first.save_checkpoint(tmp_path / "model.ckpt")
    second = trainer(2)
    second.fit(BoxRegressor(), data, ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert second.global_step == 8


@pytest.mark.usefixtures("whole")  # jsonargparse has said what is deprecated before
def test_without_validation_the_last_model_is_kept_and_tested(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        assert begin(tmp_path / "run", "--trainer.limit_val_batches=0") == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (tmp_path / "run" / "metrics.json").exists()


def test_leftovers_of_a_killed_write_are_removed(cut: Path) -> None:
    (cut / "checkpoints" / ".last.ckpt.123.tmp").write_bytes(b"half")
    (cut / ".config.yaml.123.tmp").write_bytes(b"half")
    assert resume(cut) == 0
    assert not list(cut.rglob(".*"))


# Checkpoints that are bad.


def html(_: bytes) -> bytes:
    return b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


def garbage(content: bytes) -> bytes:
    return random.Random(0).randbytes(len(content))


def nothing(_: bytes) -> bytes:
    return b""


BREAK = [html, truncated, flipped, garbage, nothing]


@pytest.mark.parametrize("break_", BREAK)
def test_resume_falls_back_to_the_newest_checkpoint_that_loads(
    break_: Callable[[bytes], bytes], cut: Path, whole: Path
) -> None:
    last, best = (cut / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(break_(last.read_bytes()))
    with pytest.warns(UserWarning, match=re.escape(f"going on from {best}")) as warnings:
        assert resume(cut) == 0
    assert str(last) in str(warnings[0].message)
    assert equal(cut, whole)


def test_a_run_killed_between_its_two_checkpoints_has_both_in_the_end(
    whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "cut"))
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    shutil.copy(last, best)
    last.write_bytes(b"")
    with pytest.warns(UserWarning, match="going on from"):
        assert resume(folder) == 0
    assert end_of(folder)["last.global_step"] == STEPS


def test_a_broken_best_checkpoint_is_replaced_by_the_best_to_come(cut: Path) -> None:
    best = cut / "checkpoints" / "best.ckpt"
    best.write_bytes(b"")
    skipped, replaced = "going on from .*last.ckpt", "the best of the epochs to come takes its"
    with pytest.warns(UserWarning, match=skipped), pytest.warns(UserWarning, match=replaced):
        assert resume(cut) == 0
    assert read_checkpoint(best)["global_step"] > 6


def test_a_run_whose_checkpoints_are_all_broken_is_refused(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (cut / "checkpoints").iterdir():
        path.write_bytes(b"")
    capsys.readouterr()
    assert resume(cut) == 2
    sentence = refusal(capsys)
    for name in ("best", "last"):
        assert f"{name}.ckpt: can't be read as a checkpoint of lightning_bbox" in sentence


def test_a_run_killed_before_its_first_checkpoint_begins_anew(cut: Path, whole: Path) -> None:
    for path in (cut / "checkpoints").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="has no checkpoint yet, so the run begins anew"):
        assert resume(cut) == 0
    assert equal(cut, whole)


def test_going_on_from_another_run_leaves_a_taken_folder_alone(
    cut: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = Path(shutil.copytree(whole, tmp_path / "taken"))
    before = files_of(taken)
    capsys.readouterr()
    assert begin(taken, f"--ckpt_path={cut}") == 2
    assert "a run of this name exists" in refusal(capsys)
    assert files_of(taken) == before


def test_a_flipped_bit_is_never_taken_for_a_weight(whole: Path, tmp_path: Path) -> None:
    path = whole / "checkpoints" / "last.ckpt"
    content, good, copy = path.read_bytes(), read_checkpoint(path), tmp_path / "copy.ckpt"
    draw, refused = random.Random(0), 0
    for _ in range(60):
        at = draw.randrange(len(content))
        flipped = content[at] ^ 1 << draw.randrange(8)
        copy.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        try:
            assert same(read_checkpoint(copy), good)
        except BadInput:
            refused += 1
    assert refused > 40


class Malice:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def foreign(kind: str, folder: Path, good: Path) -> str:
    """Make something that isn't a checkpoint of ours; return what is said of it."""
    path = folder / "foreign.ckpt"
    unreadable = "can't be read as a checkpoint of lightning_bbox; give one that a run wrote"
    other = "wasn't written by lightning_bbox; give a checkpoint that a run of it wrote"
    if kind in ("html", "truncated", "garbage", "nothing"):
        path.write_bytes(globals()[kind](good.read_bytes()))
        return unreadable
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Malice(folder / "owned")}))
        return unreadable
    if kind == "malicious":
        torch.save({"state_dict": Malice(folder / "owned")}, path)
        return unreadable
    if kind == "lightning":
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(pl.LightningModule())
        trainer.save_checkpoint(path)
        return other
    torch.save({"tensor": torch.zeros(3), "list": [1], "none": None}[kind], path)
    return other


KINDS = ["html", "truncated", "garbage", "nothing", "pickle", "malicious"]


@pytest.mark.parametrize("kind", [*KINDS, "lightning", "tensor", "list", "none"])
def test_a_foreign_checkpoint_is_refused_in_one_sentence(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = foreign(kind, tmp_path, whole / "checkpoints" / "last.ckpt")
    path = tmp_path / "foreign.ckpt"
    runs, config = f"--runs={tmp_path}", f"--config={whole / 'config.yaml'}"
    for arguments in (
        ["test", config, runs, f"--ckpt_path={path}"],
        ["fit", config, runs, f"--ckpt_path={path}"],
        ["fit", config, runs, f"--model.weights={path}"],
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"lightning-bbox: {path}: {sentence}"
    assert not (tmp_path / "owned").exists()


def test_a_folder_without_a_checkpoint_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"--config={whole / 'config.yaml'}"
    assert main(["test", config, f"--ckpt_path={tmp_path}"]) == 2
    expected = f"{tmp_path}/checkpoints/best.ckpt: no such checkpoint; check its path"
    assert refusal(capsys) == expected


# Disks that are full, or can't be written to.


@pytest.fixture
def file_size() -> Iterator[None]:
    """Give the size of files free again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("file_size")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_no_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cut"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert begin(folder, *interfered("training", 7, "fill_disk")) == 2
    assert "can't be written (File too large); make room, or" in refusal(capsys)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_checkpoint(folder / "checkpoints")[1] == []
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert resume(folder) == 0
    assert equal(folder, whole)


@pytest.mark.parametrize("runs", ["file", "/proc/nothing", "/dev/null/runs"])
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_an_output_folder_that_cannot_be_made_is_refused(
    command: str,
    runs: str,
    whole: Path,
    csv_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("a file")
    where = [f"--runs={tmp_path / runs}", "--name=run"]
    arguments = {
        "fit": FIT,
        "test": ["test", f"--ckpt_path={whole}"],
        "predict": predict(whole, csv_folder),
    }
    capsys.readouterr()
    assert main([*arguments[command], *where]) == 2
    assert re.match(r".*: can't be written \(.*\); make room, or name another", refusal(capsys))


def test_a_file_in_place_of_the_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file")
    assert begin(tmp_path / "run") == 2
    assert f"{tmp_path / 'run'}: can't be written" in refusal(capsys)
    assert (tmp_path / "run").read_text() == "a file"


# What the command line says wins, or is refused.


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--data.batch_size=8", "data.batch_size is 16 in the checkpoint and 8 now"),
        ("--data.draws_per_epoch=80", "data.draws_per_epoch is 64 in the checkpoint and 80 now"),
        ("--seed_everything=1", "data.seed is 0 in the checkpoint and 1 now"),
        ("--model.optimizer=SGD", "the optimizer is AdamW in the checkpoint and SGD now"),
        ("--model.head=LinearHead", "model.head is BinHead in the checkpoint and LinearHead in"),
        ("--model.backbone.fc=[8]", "model.backbone.fc is [16] in the checkpoint and [8] in"),
        ("--model.codec=DeltaCodec", "model.codec is MeanStdCodec in the checkpoint and DeltaC"),
        ("--data.num_targets=4", "2 targets"),
        ("--data.jitter=UniformJitter --data.jitter.shift=8", "largest shift is 5.0 in the chec"),
    ],
)
def test_a_resumed_run_refuses_what_would_make_it_another(
    option: str, sentence: str, cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_checkpoint(cut / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert resume(cut, *option.split()) == 2
    assert sentence in refusal(capsys)
    assert same(read_checkpoint(cut / "checkpoints" / "last.ckpt"), before)


@pytest.mark.parametrize(("name", "old", "new"), [("lr", 0.1, 0.02), ("weight_decay", 0.01, 0.3)])
def test_a_resumed_run_takes_the_optimizers_settings_and_says_so(
    name: str, old: float, new: float, cut: Path
) -> None:
    sentence = f"the optimizer's {name} was {old} so far and is {new} now"
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        assert resume(cut, f"--model.optimizer.{name}={new}") == 0
    last = read_checkpoint(cut / "checkpoints" / "last.ckpt")
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert group["initial_lr" if name == "lr" else name] == new
    assert last["lr_schedulers"][0]["base_lrs"] == [group["initial_lr"]]


def test_weights_to_start_from_are_said_to_be_ignored_by_a_resumed_run(
    cut: Path, whole: Path
) -> None:
    with pytest.warns(UserWarning, match=r"model\.weights is not loaded"):
        assert resume(cut, f"--model.weights={whole}") == 0
    assert equal(cut, whole)


def predict(run: Path, data: Path) -> list[str]:
    return ["predict", "--model=BoxRegressor", "--data=BoxDataModule", f"--data.root={data}",
            "--data.compile=false", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}",
            "--trainer.precision=32-true", f"--runs={data.parent}"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:predict returned None")
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_trained_model_keeps_its_parts_and_refuses_others(
    command: str, whole: Path, csv_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = predict(whole, csv_folder)
    if command != "predict":
        arguments = [command, *SCENES[1:4], *arguments[-3:]]
    capsys.readouterr()
    assert main([*arguments, "--name=other", "--model.head=LinearHead"]) == 2
    assert "model.head is BinHead in the checkpoint and LinearHead in" in refusal(capsys)
    assert main([*arguments, "--name=same"]) == 0


# Losses that are not finite.


def test_a_loss_that_is_not_finite_is_laid_to_its_step_rate_and_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    options = ["--model.backbone.batch_norm=false", "--trainer.log_every_n_steps=3"]
    assert begin(folder, *options, *interfered("batch start", 6, "spoil_crop")) == 1
    data = SceneDataModule(
        kind="bright", num_scenes=60, batch_size=16, draws_per_epoch=64, eval_draws=40
    )
    items, row = data.samples("train", 1).items, (6 - 4) * 16 + 3
    name = data.source.splits["train"].name(int(items[row]))
    rate = read_checkpoint(folder / "checkpoints" / "last.ckpt")  # of step 4
    assert rate["global_step"] == 4
    sentence = capsys.readouterr().err.splitlines()[-1]
    expected = r"lightning-bbox: the loss is not finite since step 6 \(learning rate [\d.e-]+; "
    assert re.match(expected + re.escape(f"samples {name});"), sentence)


def test_a_run_whose_loss_was_not_finite_goes_on_at_a_lower_rate(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="lr was 0.1 so far and is 1e"):
        assert resume(cut, "--model.optimizer.lr=1e30") == 1
    assert "not finite since step" in capsys.readouterr().err
    for path in (cut / "checkpoints").iterdir():
        state = read_checkpoint(path)["state_dict"]
        assert all(state[name].isfinite().all() for name in state if "head.edges" not in name)
    with pytest.warns(UserWarning, match=r"lr was 0\.1 so far and is 0\.01"):
        assert resume(cut, "--model.optimizer.lr=0.01") == 0


def test_weights_spoilt_by_the_last_step_of_an_epoch_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    assert begin(folder, *interfered("optimizer step", 7, "spoil_gradient")) == 1
    assert "the weights are not finite since step 7 (learning rate" in capsys.readouterr().err
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert resume(folder) == 0


class NoPlace(ExpectationDecoder):
    """Says nothing, as a network does that overflows in evaluation only."""

    def __call__(self, probs: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
        return super().__call__(probs, centers, widths) * torch.nan


def test_boxes_that_are_none_end_a_run_whose_losses_are_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = f"--model.head.decoder={__name__}.NoPlace"
    assert begin(tmp_path / "bad", "--model.head=BinHead", decoder) == 1
    expected = "the refined boxes are not finite since step 3 (learning rate"
    assert expected in capsys.readouterr().err


# Originals that are overwritten.


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_predict_stopped_while_it_overwrote_begins_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write_rectangles(data)
    yolo_folder(data)
    old = files_of(data)
    arguments = [*predict(whole, data), "--name=run", "--overwrite=true"]
    assert main(arguments) == 0
    new, made = files_of(data), files_of(run)
    assert new != old
    # As a kill after five files would leave it.
    (run / "changes.csv").unlink()
    for name in sorted(name for name in old if name.endswith(".txt"))[5:]:
        (data / name).write_bytes(old[name])
    (data / ".9.txt.123.tmp").write_bytes(b"half")
    with pytest.warns(UserWarning, match="the originals are put back first"):
        assert main(arguments) == 0
    assert files_of(data) == new
    assert files_of(run) == made
    (run / "changes.csv").unlink()
    (data / "3.txt").write_text("0 0.5 0.5 0.1 0.1")
    capsys.readouterr()
    assert main(arguments) == 2
    assert f"{data / '3.txt'}: was changed since a predict that was stopped" in refusal(capsys)
    assert files_of(data) == new | {"3.txt": b"0 0.5 0.5 0.1 0.1"}


def test_a_background_job_goes_on_ignoring_interrupts(whole: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert begin(tmp_path / "run", *interfered("training", 5, 2)) == 0
    assert equal(tmp_path / "run", whole)


def test_a_refused_resume_leaves_the_settings_of_a_run_that_had_only_begun(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copyfile(whole / "config.yaml", folder / "config.yaml")
    with pytest.warns(UserWarning, match="has no checkpoint yet"):
        assert main(["fit", f"--resume={folder}", "--model.weights=no.ckpt"]) == 2
    assert (folder / "config.yaml").is_file()
