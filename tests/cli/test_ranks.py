"""Several processes train as one, end as one, and speak as one, whoever launched them."""

import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import yaml

from lightning_bbox import SceneDataModule
from lightning_bbox.cli.main import main
from lightning_bbox.cli.processes import default_devices, refuse_other_count, started_outside
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN
from lightning_bbox.models.checkpoints import read_checkpoint
from tests.runs import (
    DOUBLE,
    PYTHON,
    assert_equal_curves,
    assert_equal_runs,
    ended,
    file_names,
    files_of,
    fit,
    metrics,
    ranks,
    run,
    run_well,
    start,
    strike,
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
TORCHRUN += ["-m", "lightning_bbox"]

PENALIZED = [
    *DOUBLE,
    "--model.regularizers+=L2Penalty",
    "--model.regularizers.strength=0.3",
    "--model.regularizers+=MaxNorm",
    "--model.regularizers.limit=1",
]

# Ten steps an epoch; the validation error never falls by 100 px, so the second is the last.
SINGLE = [
    *DOUBLE,
    "--data.draws_per_epoch=180",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=5",
]
CALLBACKS = [
    {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/mae_px", "patience": 1, "min_delta": 100},
    },
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"filename": "mine-{epoch}", "save_top_k": -1, "every_n_epochs": 1},
    },
]


FILES = [
    OWN,
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "config.yaml",
    "crops.png",
    "data.png",
]
FILES += ["events", "metrics.json", "test_errors.npz"]


def command(folder, *options):
    return [*PENALIZED, f"--runs={folder.parent}", f"--name={folder.name}", *options]


def on_two(folder, *options):
    return [*PYTHON, *command(folder, *ranks(2), *options)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, never stopped."""
    return fit(tmp_path_factory.mktemp("whole"), "run", base=PENALIZED)


@pytest.fixture(scope="module")
def cut_on_two(tmp_path_factory):
    """Two processes, of which the second was sent SIGTERM after the third step."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, run(on_two(folder, *strike(signal.SIGTERM, "itself")))


def assert_stopped(folder, finished, code, step):
    """See that all processes stopped at a step, and one said so."""
    assert finished.code == code, finished.err[-3000:]
    word = {143: "terminated", 130: "interrupted"}[code]
    said = [line for line in finished.err.splitlines() if line.startswith("lightning-bbox: ")]
    assert said[-1:] == [f"lightning-bbox: {word}; continue with fit --resume {folder}"]
    assert "Traceback" not in finished.err
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == step
    assert [path.name for path in folder.rglob(".*")] == [OWN]


def test_other_launchers_say_how_many_devices_there_are(monkeypatch):
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(BadInput, match="SLURM started 8 tasks; give srun --ntasks-per-node"):
        default_devices()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert started_outside() == (4, 8)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert default_devices() == 2
    with pytest.raises(BadInput, match="are 1 processes, but 2 were started"):
        refuse_other_count(trainer)


def test_a_batch_too_small_for_all_processes_is_refused():
    data = SceneDataModule(num_scenes=20, batch_size=3, compile=False)
    data.trainer = SimpleNamespace(global_rank=0, world_size=4)
    with pytest.raises(BadInput, match="batch_size is 3, but there are 4 processes"):
        data.train_dataloader()


def test_a_run_in_double_precision_goes_on_to_the_bit(whole, tmp_path):
    folder = tmp_path / "run"
    assert main(command(folder, *strike(signal.SIGINT, "itself", step=3, rank=0))) == 130
    assert main(command(folder, "--ckpt_path=last")) == 0
    assert_equal_runs(folder, whole, atol=0)


@pytest.mark.slow
def test_two_processes_equal_one_and_leave_every_file_once(whole, tmp_path):
    folder = tmp_path / "run"
    run_well(on_two(folder))
    assert_equal_runs(folder, whole, atol=1e-8)
    assert file_names(folder) == file_names(whole) == FILES
    assert_equal_curves(folder, whole, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:EarlyStopping may end the run")
def test_four_processes_of_torchrun_equal_one_and_agree_on_the_folder(tmp_path):
    config = tmp_path / "callbacks.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": CALLBACKS}}))
    base = [*SINGLE[:3], "-c", str(config), *SINGLE[3:]]
    one = fit(tmp_path, "one", base=base)
    run_well([*TORCHRUN, *base, "--trainer.accelerator=cpu", f"--runs={tmp_path / 'four'}"])
    (four,) = (tmp_path / "four").iterdir()
    assert four.name.startswith("quickstart-")
    assert metrics(four)["train_steps"] == 20
    assert_equal_runs(four, one, atol=1e-5)
    assert_equal_curves(four, one, atol=1e-4)
    mine = [f"checkpoints/mine-epoch={epoch}.ckpt" for epoch in (0, 1)]
    assert file_names(four) == file_names(one) == sorted([*FILES, *mine])


@pytest.mark.slow
def test_a_process_that_is_terminated_stops_all_at_the_next_log(cut_on_two):
    assert_stopped(*cut_on_two, code=143, step=4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [PYTHON, TORCHRUN], ids=["one", "four"])
def test_a_run_of_two_goes_on_with(launcher, whole, cut_on_two, tmp_path):
    folder = shutil.copytree(cut_on_two[0], tmp_path / "run")
    run_well([*launcher, *command(folder, "--trainer.accelerator=cpu", "--ckpt_path=last")])
    assert_equal_runs(folder, whole, atol=1e-8)


@pytest.mark.slow
def test_a_run_of_one_goes_on_with_two_tasks_of_slurm(whole, tmp_path):
    folder = tmp_path / "run"
    assert main(command(folder, *strike(signal.SIGINT, "itself", step=5, rank=0))) == 130
    again = [*PYTHON, *command(folder, "--trainer.accelerator=cpu", "--ckpt_path=last")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "boxes", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    slurm |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    tasks = [start(again, SLURM_PROCID=rank, SLURM_LOCALID=rank, **slurm) for rank in "01"]
    for task in tasks:
        finished = ended(task)
        assert finished.code == 0, finished.err[-3000:]
    assert_equal_runs(folder, whole, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "whom", "step", "stop", "code"),
    [(signal.SIGINT, "group", 3, 4, 130), (signal.SIGTERM, "main", 8, 8, 143)],
    ids=["all interrupted", "first terminated at the last step"],
)
def test_a_signal_stops_all_at_the_next_log_or_the_end(
    signum, whom, step, stop, code, whole, tmp_path
):
    folder = tmp_path / "run"
    finished = run(on_two(folder, *strike(signum, whom, step)))
    assert_stopped(folder, finished, code, stop)
    assert main(command(folder, "--ckpt_path=last")) == 0
    assert_equal_runs(folder, whole, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "whom", "step", "rank"),
    [
        (signal.SIGKILL, "itself", 3, 1),
        (signal.SIGKILL, "main", 0, 1),
        (0, "itself", 0, 1),
        (0, "itself", 3, 0),
        (signal.SIGTERM, "itself", -1, 1),
    ],
    ids=["killed", "first killed", "fails in validation", "first fails", "stopped in the test"],
)
def test_one_process_that_dies_ends_the_run(signum, whom, step, rank, tmp_path):
    # Gloo waits half an hour for a process that is gone, `run` some minutes for all of them.
    finished = run(on_two(tmp_path / "run", *strike(signum, whom, step, rank)))
    assert (tmp_path / "run" / "struck").exists()
    assert finished.code != 0
    assert not list(tmp_path.glob("**/*.tmp"))
    assert signum != 0 or "RuntimeError: one process fails" in finished.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for a process's children in /proc")
def test_a_process_whose_launcher_is_gone_before_they_meet_ends(tmp_path):
    process = start(on_two(tmp_path / "run"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not children.read_text():
        time.sleep(0.05)
    process.kill()
    assert ended(process).code == -signal.SIGKILL


def test_a_process_of_several_leaves_all_it_said_and_no_teardown(tmp_path):
    script = f"""
import atexit
from torch import distributed
from lightning_bbox.cli.main import leave
class Teardown:
    def __del__(self): print("torn down")
kept = Teardown()
atexit.register(print, "at exit")
distributed.init_process_group("gloo", "file://{tmp_path / "store"}", rank=0, world_size=1)
print("said", end=" ")
leave(3)
"""
    finished = run([sys.executable, "-c", script])
    assert (finished.code, finished.out) == (3, "said at exit\n"), finished.err


DIVERGES = ["--model.optimizer=SGD", "--model.optimizer.lr=1e30", "--model.head=LinearHead"]
DIVERGES += ["--model.head.loss=L2Loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--data.batch_size=1"], 2, "batch_size is 1, but there are 2 processes"),
        (DIVERGES, 1, "the loss is not finite since step 1 "),
    ],
    ids=["bad input", "divergence"],
)
def test_what_ends_all_processes_is_said_once(options, code, sentence, tmp_path):
    finished = run(on_two(tmp_path / "run", *options))
    assert finished.code == code
    (said,) = finished.err.splitlines()
    assert sentence in said


@pytest.mark.slow
def test_two_processes_of_the_console_script_predict_as_one(whole, csv_folder, tmp_path):
    script = Path(sys.executable).with_name("lightning-bbox")
    if not script.is_file():
        pytest.skip("the package is not installed")
    predict = ["predict", f"--ckpt_path={whole}", "--data=BoxDataModule", "--data.compile=false"]
    predict += [f"--data.root={csv_folder}", "--trainer.precision=32-true", f"--runs={tmp_path}"]
    assert main([*predict, "--name=one"]) == 0
    run_well([str(script), *predict, "--name=two", *ranks(2)])
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    written = {"refined/boxes.csv", "changes.csv", "changes.png", "review.html", "unchanged.txt"}
    assert one.keys() == written | {OWN}
    assert one == two
