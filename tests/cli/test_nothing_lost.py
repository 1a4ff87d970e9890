"""Nothing lost: stops and resumes, checkpoints that are bad, disks that are full, losses gone."""

import json
import pickle
import random
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from lightning_bbox import BoxRegressor, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN
from lightning_bbox.models.checkpoints import newest_checkpoint, read_checkpoint
from lightning_bbox.nn.heads.bins.decoders import ExpectationDecoder
from tests.conftest import write_rectangles, yolo_folder
from tests.runs import (
    HASTY,
    SCENES,
    end_of,
    equal,
    files_of,
    interfered,
    metrics,
    predict_with,
    resume,
    same,
    scenes,
    start,
    trained_quietly,
)

STEPS = 12
ANEW = "has no checkpoint yet, so the run begins anew"


def fit_in(folder, *options):
    return [*HASTY, f"--runs={folder.parent}", f"--name={folder.name}", *options]


def begin(folder, *options):
    """Fit, and return the exit code: that of a crash is Python's own."""
    try:
        return main(fit_in(folder, *options))
    except RuntimeError as crash:
        if str(crash) != "crash":
            raise
        return 1


def last_step(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert begin(folder) == 0
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run, stopped in its second epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert begin(folder, *interfered("training", 6, 2)) == 130
    return folder


@pytest.fixture
def cut(stopped, tmp_path):
    """A copy of the stopped run: that it was moved makes no difference."""
    return shutil.copytree(stopped, tmp_path / "cut")


def test_the_last_checkpoint_is_the_last_where_another_is_the_best(tmp_path):
    assert begin(tmp_path / "run", "--model.optimizer.lr=0.5") == 0
    steps = [end_of(tmp_path / "run")[f"{name}.global_step"] for name in ("best", "last")]
    assert steps[0] < steps[1] == STEPS


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("moment", "step", "signum"),
    [
        ("training", 10, 2),  # when the best epoch is over
        ("validation", 4, 2),
        ("test", STEPS, 15),
        pytest.param("validation", STEPS, 15, marks=slow),
        pytest.param("test", STEPS, 2, marks=slow),
        pytest.param("test end", STEPS, 15, marks=slow),
    ],
)
def test_a_run_stopped_and_resumed_equals_one_that_was_not(moment, step, signum, whole, tmp_path):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered(moment, step, signum)) == 128 + signum
    assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("start", 0, 15)) == 143
    with pytest.warns(UserWarning, match=ANEW):
        assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_run_can_be_stopped_again_and_again(whole, tmp_path):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("training", 2, 15)) == 143
    for step in (7, STEPS):
        assert resume(folder, *interfered("training", step, 2)[1:]) == 130
    assert resume(folder) == 0
    assert equal(folder, whole)


def test_a_stop_leaves_the_best_checkpoint_alone(cut):
    steps = {path.stem: read_checkpoint(path)["global_step"] for path in cut.rglob("*.ckpt")}
    assert steps == {"best": 4, "last": 6}


def test_after_a_stop_only_a_better_epoch_is_the_best(tmp_path):
    wild, steps = "--model.optimizer.lr=0.5", dict[str, int]()
    assert begin(tmp_path / "whole", wild) == 0
    assert begin(tmp_path / "cut", *interfered("training", 10, 2), wild) == 130
    assert resume(tmp_path / "cut") == 0
    for name in ("whole", "cut"):
        steps[name] = end_of(tmp_path / name)["best.global_step"]
    assert steps["whole"] == steps["cut"] < 10


def test_the_same_command_goes_on_with_ckpt_path_last(cut, whole):
    assert begin(cut, "--ckpt_path=last") == 0
    assert equal(cut, whole)


def test_a_run_is_resumed_from_within_its_folder_and_leftovers_removed(cut, whole, monkeypatch):
    for name in (
        "checkpoints/.last.ckpt.123.lightning_bbox.tmp",
        ".config.yaml.123.lightning_bbox.tmp",
    ):
        (cut / name).write_bytes(b"half of a write that was killed")
    monkeypatch.chdir(cut)
    assert resume(Path()) == 0
    assert equal(cut, whole)
    assert [path.name for path in cut.rglob(".*")] == [OWN]


@pytest.fixture
def file_size():
    """Give the size of files free, and free again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield free
    free()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("action", "times", "code", "said"),
    [
        ("crash", 1, 1, ""),
        ("fill_disk", 1, 2, "can't be written (File too large); make room, or"),
        pytest.param(15, 2, 143, "terminated", marks=slow, id="a second signal"),
    ],
)
def test_what_ends_a_run_at_once_leaves_the_checkpoint_before(
    action, times, code, said, whole, tmp_path, capsys, file_size
):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("training", 6, action, times)) == code
    assert said in capsys.readouterr().err
    file_size()
    assert newest_checkpoint(folder / "checkpoints")[1] == []
    assert last_step(folder) == 4
    assert resume(folder) == 0
    assert equal(folder, whole)


@slow
@pytest.mark.parametrize(
    ("options", "steps", "action", "code"),
    [
        (["--trainer.val_check_interval=2"], (3, 4), "crash", 1),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4"], (4, 8), "crash", 1),
        (["--trainer.accumulate_grad_batches=2"], (2,), 2, 130),  # waits until they are used
    ],
    ids=["validation twice an epoch", "every second epoch", "accumulated gradients"],
)
def test_other_rhythms_resume_exactly(options, steps, action, code, tmp_path):
    assert begin(tmp_path / "whole", *options) == 0
    for step in steps:
        folder = tmp_path / f"cut-{step}"
        assert begin(folder, *options, *interfered("batch start", step, action)) == code
        assert resume(folder) == 0
        assert equal(folder, tmp_path / "whole")


def test_a_finished_run_goes_on_where_more_epochs_are_asked_for(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "more")
    assert main(["fit", "--trainer.max_epochs=4", f"--resume={folder}"]) == 0
    assert last_step(folder) == STEPS + 4
    assert json.loads((folder / "metrics.json").read_text())["train_steps"] == STEPS + 4


def test_a_model_saved_in_python_goes_on(tmp_path):
    path, model = tmp_path / "model.ckpt", BoxRegressor(backbone=ShallowConvNet(channels=(4, 8)))
    options = {"log_every_n_steps": 1, "logger": False}
    trained_quietly(model, scenes(), max_epochs=1, **options).save_checkpoint(path)
    assert trained_quietly(BoxRegressor(), scenes(), path, max_epochs=2, **options).global_step == 8


@pytest.mark.usefixtures("whole")  # jsonargparse has said what is deprecated before
def test_without_validation_the_last_model_is_kept_and_tested(tmp_path):
    with pytest.warns(UserWarning, match="could not find the monitored key"):
        assert begin(tmp_path / "run", "--trainer.limit_val_batches=0") == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_background_job_goes_on_ignoring_interrupts(whole, tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert begin(tmp_path / "run", *interfered("training", 5, 2)) == 0
    assert equal(tmp_path / "run", whole)


# Checkpoints that are bad.


def flipped(content):
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


BREAK = {
    "html": lambda _: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": flipped,
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("kind", BREAK)
def test_the_newest_checkpoint_that_loads_is_found(kind, cut):
    last, best = (cut / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(BREAK[kind](last.read_bytes()))
    found, (unread,) = newest_checkpoint(cut / "checkpoints")
    assert found == best
    problem = (
        "is damaged (the checksum of" if kind == "flipped" else "can't be read as a checkpoint"
    )
    assert unread.startswith(f"{last}: {problem}")


def test_resume_falls_back_to_the_newest_checkpoint_that_loads(cut, whole):
    last, best = (cut / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(flipped(last.read_bytes()))
    expected = f"{re.escape(str(last))}.*going on from {re.escape(str(best))}"
    with pytest.warns(UserWarning, match=expected):
        assert resume(cut) == 0
    assert equal(cut, whole)


def test_a_run_killed_between_its_two_checkpoints_has_both_in_the_end(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "cut")
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    shutil.copy(last, best)
    last.write_bytes(b"")
    with pytest.warns(UserWarning, match="going on from"):
        assert resume(folder) == 0
    assert last_step(folder) == STEPS


def test_a_broken_best_checkpoint_is_replaced_by_the_best_to_come(cut):
    best = cut / "checkpoints" / "best.ckpt"
    best.write_bytes(b"")
    skipped, replaced = "going on from .*last.ckpt", "the best of the epochs to come takes its"
    with pytest.warns(UserWarning, match=skipped), pytest.warns(UserWarning, match=replaced):
        assert resume(cut) == 0
    assert read_checkpoint(best)["global_step"] > 6


def test_a_run_whose_checkpoints_are_all_broken_is_refused(cut, refused):
    for path in (cut / "checkpoints").iterdir():
        path.write_bytes(b"")
    sentence = refused(["fit", f"--resume={cut}"])
    for name in ("best", "last"):
        assert f"{name}.ckpt: can't be read as a checkpoint of lightning_bbox" in sentence


def test_going_on_from_another_run_leaves_a_taken_folder_alone(cut, whole, tmp_path, refused):
    taken = shutil.copytree(whole, tmp_path / "taken")
    before = files_of(taken)
    assert "a run of this name exists" in refused(fit_in(taken, f"--ckpt_path={cut}"))
    assert files_of(taken) == before


def test_a_refused_resume_leaves_the_settings_of_a_run_that_had_only_begun(
    whole, tmp_path, refused
):
    (tmp_path / "begun").mkdir()
    config = Path(shutil.copy(whole / "config.yaml", tmp_path / "begun"))
    with pytest.warns(UserWarning, match=ANEW):
        refused(["fit", f"--resume={config.parent}", "--model.weights=no.ckpt"])
    assert config.is_file()


def test_a_refused_resume_changes_no_file_of_the_run(cut, whole, refused):
    before = files_of(cut)
    refused(["fit", f"--resume={cut}", "--model.head=LinearHead", "--trainer.max_epochs=9"])
    assert files_of(cut) == before
    assert resume(cut) == 0
    assert equal(cut, whole)


def test_a_refused_resume_leaves_even_a_broken_last_checkpoint(cut, refused):
    (cut / "checkpoints" / "last.ckpt").write_bytes(b"")
    before = files_of(cut)
    with pytest.warns(UserWarning, match="going on from"):
        refused(["fit", f"--resume={cut}", "--seed_everything=1"])
    assert files_of(cut) == before


def test_results_are_gone_as_soon_as_a_run_goes_on_by_other_settings(whole, tmp_path):
    """Else the error of the run before would stand beside the settings of this one."""
    folder = shutil.copytree(whole, tmp_path / "cut")
    longer = ["--trainer.max_epochs=4", *interfered("training", 14, 2)]
    assert resume(folder, *longer) == 130
    left = {path.name for path in folder.iterdir()}
    assert left.isdisjoint({"metrics.json", "test_errors.npz", "crops.png"})
    assert "max_epochs: 4" in (folder / "config.yaml").read_text()
    assert resume(folder) == 0
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    # Those of the best checkpoint, which the run before may have left.
    longest = 4 if end_of(folder)["best.global_step"] > STEPS else 3
    assert settings["trainer.max_epochs"] == longest


def test_results_say_by_what_they_were_trained_not_by_what_was_asked_for_since(whole, tmp_path):
    """A finished run has nothing left to train at another rate."""
    folder = shutil.copytree(whole, tmp_path / "cut")
    assert resume(folder, "--model.optimizer.lr=0.02") == 0
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert settings["model.optimizer.lr"] == 0.1
    assert "lr: 0.1" in (folder / "config.yaml").read_text()


AT_WORK = """
import sys, time
from pathlib import Path
from lightning_bbox.core.files import alone_in
with alone_in(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_second_command_on_a_run_is_refused_while_the_first_is_at_work(cut, whole, refused):
    """The lock is its process's: however that ends, the next one has the folder."""
    other = start([sys.executable, "-c", AT_WORK, str(cut)])
    assert other.stdout.readline() == "mine\n"
    before = files_of(cut)
    try:
        sentence = refused(["fit", f"--resume={cut}"])
    finally:
        other.kill()
        other.communicate()
    assert sentence == (
        f"{cut}: another process is at work in it; wait until it ends, or choose another --name"
    )
    assert files_of(cut) == before
    assert resume(cut) == 0
    assert equal(cut, whole)


def test_a_flipped_bit_is_never_taken_for_a_weight(whole, tmp_path):
    path = whole / "checkpoints" / "last.ckpt"
    content, good, copy = path.read_bytes(), read_checkpoint(path), tmp_path / "copy.ckpt"
    draw, refusals = random.Random(0), 0
    for _ in range(60):
        at = draw.randrange(len(content))
        changed = content[at] ^ 1 << draw.randrange(8)
        copy.write_bytes(content[:at] + bytes([changed]) + content[at + 1 :])
        try:
            assert same(read_checkpoint(copy), good)
        except BadInput:
            refusals += 1
    assert refusals > 40


class Malice:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write_foreign(path, kind):
    """Write something that isn't a checkpoint of ours."""
    malice = {"state_dict": Malice(path.with_name("owned"))}
    content = {"tensor": torch.zeros(3), "list": [1], "none": None, "malicious": malice}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(malice))
    elif kind == "lightning":
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(pl.LightningModule())
        trainer.save_checkpoint(path)
    else:
        torch.save(content[kind], path)


UNREADABLE = "can't be read as a checkpoint of lightning_bbox; give one that a run wrote"
OTHERS = "wasn't written by lightning_bbox; give a checkpoint that a run of it wrote"
FOREIGN = dict.fromkeys(("pickle", "malicious"), UNREADABLE)
FOREIGN |= dict.fromkeys(("lightning", "tensor", "list", "none"), OTHERS)


@pytest.mark.parametrize(("kind", "sentence"), FOREIGN.items())
def test_a_foreign_checkpoint_is_refused_and_runs_nothing(kind, sentence, tmp_path):
    path = tmp_path / "foreign.ckpt"
    write_foreign(path, kind)
    with pytest.raises(BadInput) as refusal:
        read_checkpoint(path)
    assert str(refusal.value) == f"{path}: {sentence}"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("command", ["test --ckpt_path", "fit --ckpt_path", "fit --model.weights"])
def test_every_command_refuses_a_foreign_checkpoint(command, whole, tmp_path, refused):
    path = tmp_path / "foreign.ckpt"
    write_foreign(path, "malicious")
    name, option = command.split()
    config = f"--config={whole / 'config.yaml'}"
    sentence = refused([name, config, f"--runs={tmp_path}", f"{option}={path}"])
    assert sentence == f"{path}: {UNREADABLE}"
    assert not (tmp_path / "owned").exists()


def test_a_folder_without_a_checkpoint_is_refused(whole, tmp_path, refused):
    sentence = refused(["test", f"--config={whole / 'config.yaml'}", f"--ckpt_path={tmp_path}"])
    assert sentence == f"{tmp_path}/checkpoints/best.ckpt: no such checkpoint; check its path"


# Folders that can't be written to.


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("fit", "file"),
        ("fit", "/proc/nothing"),
        ("fit", "/dev/null/runs"),
        ("test", "/proc/nothing"),
        ("predict", "/proc/nothing"),
    ],
)
def test_an_output_folder_that_cannot_be_made_is_refused(
    command, runs, whole, csv_folder, tmp_path, refused
):
    (tmp_path / "file").write_text("a file")
    of_command = {"fit": HASTY, "test": ["test", f"--ckpt_path={whole}"]}
    arguments = of_command.get(command) or predict_with(whole, csv_folder)
    sentence = refused([*arguments, f"--runs={tmp_path / runs}", "--name=run"])
    assert re.match(r".*: can't be written \(.*\); make room, or name another", sentence)


def test_a_file_in_place_of_the_run_is_refused(tmp_path, refused):
    (tmp_path / "run").write_text("a file")
    assert f"{tmp_path / 'run'}: can't be written" in refused(fit_in(tmp_path / "run"))
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
def test_a_resumed_run_refuses_what_would_make_it_another(option, sentence, cut, refused):
    before = read_checkpoint(cut / "checkpoints" / "last.ckpt")
    assert sentence in refused(["fit", f"--resume={cut}", *option.split()])
    assert same(read_checkpoint(cut / "checkpoints" / "last.ckpt"), before)


@pytest.mark.parametrize(("name", "old", "new"), [("lr", 0.1, 0.02), ("weight_decay", 0.01, 0.3)])
def test_a_resumed_run_takes_the_optimizers_settings_and_says_so(name, old, new, cut):
    sentence = f"the optimizer's {name} was {old} so far and is {new} now"
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        assert resume(cut, f"--model.optimizer.{name}={new}") == 0
    last = read_checkpoint(cut / "checkpoints" / "last.ckpt")
    (group,) = last["optimizer_states"][0]["param_groups"]
    assert group["initial_lr" if name == "lr" else name] == new
    assert last["lr_schedulers"][0]["base_lrs"] == [group["initial_lr"]]


def test_weights_to_start_from_are_said_to_be_ignored_by_a_resumed_run(cut, whole):
    with pytest.warns(UserWarning, match=r"model\.weights is not loaded"):
        assert resume(cut, f"--model.weights={whole}") == 0
    assert equal(cut, whole)


@pytest.mark.filterwarnings("ignore:predict returned None")
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_trained_model_keeps_its_parts_and_refuses_others(command, whole, csv_folder, refused):
    arguments = predict_with(whole, csv_folder)
    if command != "predict":
        arguments = [command, *SCENES[1:4], "--data.eval_draws=40", *arguments[-4:]]
    sentence = refused([*arguments, "--name=other", "--model.head=LinearHead"])
    assert "model.head is BinHead in the checkpoint and LinearHead in" in sentence
    assert main([*arguments, "--name=same"]) == 0


# A checkpoint knows its model.


@pytest.fixture
def moved(whole, tmp_path):
    """The best checkpoint of the run, away from it."""
    return Path(shutil.copy(whole / "checkpoints" / "best.ckpt", tmp_path / "moved.ckpt"))


def data_of(whole, folder):
    """Write a config that has the run's data alone, and return the options that take it."""
    config = yaml.safe_load((whole / "config.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": config["data"]}))
    return [f"--config={folder / 'data.yaml'}", "--trainer.precision=32-true", f"--runs={folder}"]


def test_a_checkpoint_alone_repeats_the_test_of_its_run(whole, moved, tmp_path):
    options = [f"--ckpt_path={moved}", *data_of(whole, tmp_path)]
    assert main(["test", *options, "--name=moved"]) == 0
    found, expected = (
        {key: value for key, value in metrics(folder).items() if key.startswith("test/")}
        for folder in (tmp_path / "moved", whole)
    )
    assert found == expected
    assert main(["validate", *options]) == 0
    assert main(["probe", *options, "--draws=64", "--name=probed"]) == 0
    assert (tmp_path / "probed" / "probe.json").is_file()


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_checkpoint_alone_predicts_as_its_run_does(whole, moved, csv_folder, tmp_path):
    common = [f"--data.root={csv_folder}", f"--runs={tmp_path}", "--trainer.precision=32-true"]
    within = whole / "checkpoints" / "best.ckpt"
    for name, checkpoint in (("run", whole), ("file", moved), ("within", within)):
        options = ["--data=BoxDataModule"] if checkpoint != moved else []
        command = ["predict", f"--ckpt_path={checkpoint}", *options, *common, f"--name={name}"]
        assert main(command) == 0
    changes = [(tmp_path / n / "changes.csv").read_bytes() for n in ("run", "file", "within")]
    assert changes[0] == changes[1] == changes[2]


def test_validation_keeps_how_a_model_errs_where_its_checkpoint_does_not_say(
    whole, moved, tmp_path, capfd
):
    options = [f"--ckpt_path={moved}", *data_of(whole, tmp_path), "--data.eval_draws=200"]
    assert main(["validate", *options, "--name=measured"]) == 0
    kept = tmp_path / "measured" / "checkpoints" / "best.ckpt"
    assert f"are kept with it in {kept}" in capfd.readouterr().out
    found, before = (torch.load(path, weights_only=True) for path in (kept, moved))
    assert found["lightning_bbox"]["law"]["right"] == 0.5
    assert "law" not in before["lightning_bbox"]
    for name, value in before["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    again = [f"--ckpt_path={kept}", *options[1:], "--name=again"]
    assert main(["validate", *again]) == 0
    assert not (tmp_path / "again" / "checkpoints").exists()
    del found["lightning_bbox"]["reliability"]["common"]  # as checkpoints were before that
    torch.save(found, tmp_path / "older.ckpt")
    older = [f"--ckpt_path={tmp_path / 'older.ckpt'}", *options[1:], "--name=renewed"]
    assert main(["validate", *older]) == 0
    renewed = torch.load(tmp_path / "renewed" / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(renewed["lightning_bbox"]["reliability"]["common"]) == 2


def test_what_a_checkpoint_does_not_know_is_asked_for(moved, refused):
    sentence = refused(["test", f"--ckpt_path={moved}"])
    assert sentence == "data: missing; add it to the command line or a config"


def test_a_checkpoint_may_not_have_a_class_imported_for_a_command(moved, csv_folder, refused):
    content = torch.load(moved, weights_only=True)
    content["lightning_bbox"]["class"] = "antigravity.Flight"
    torch.save(content, moved)
    sentence = refused(["predict", f"--ckpt_path={moved}", f"--data.root={csv_folder}"])
    assert "antigravity.Flight, and a file may not have antigravity imported" in sentence
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "lost", ["model", "codec", "head", "init_args", "average_flips", "state_dict"]
)
def test_a_checkpoint_that_lacks_a_part_is_read_or_refused_in_a_sentence(
    lost, moved, csv_folder, refused
):
    content = torch.load(moved, weights_only=True)
    ours = content["lightning_bbox"]
    recipe = ours["model"]
    places = {"model": ours, "init_args": recipe["head"]} | dict.fromkeys(recipe, recipe)
    del places.get(lost, content)[lost]
    torch.save(content, moved)
    if lost == "average_flips":  # older than the option
        assert not BoxRegressor.load_from_checkpoint(moved).average_flips
        return
    sentence = f"{moved}: lacks what rebuilds its model; give a checkpoint as a run wrote it"
    assert refused(["predict", f"--ckpt_path={moved}", f"--data.root={csv_folder}"]) == sentence
    with pytest.raises(BadInput, match="lacks what rebuilds its model"):
        BoxRegressor.load_from_checkpoint(moved)


@pytest.mark.parametrize(
    "lost", ["optimizer_states", "loops", "global_step", "pytorch-lightning_version"]
)
def test_a_run_does_not_go_on_from_weights_alone(lost, cut, tmp_path, refused):
    for path in cut.rglob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        del content[lost]
        torch.save(content, path)
    problem = f"has no {lost}, so a run can't go on from it; begin a new run from its weights with"
    assert f"last.ckpt: {problem} --model.weights" in refused(["fit", f"--resume={cut}"])
    file = cut / "checkpoints" / "best.ckpt"
    command = fit_in(tmp_path / "new", f"--ckpt_path={file}")
    assert refused(command) == f"{file}: {problem} --model.weights"
    assert not (tmp_path / "new").exists()
    BoxRegressor.load_from_checkpoint(file)


# Losses that are not finite.


def test_a_loss_that_is_not_finite_is_laid_to_its_step_rate_and_sample(tmp_path, capsys):
    folder = tmp_path / "bad"
    options = ["--model.backbone.batch_norm=false", "--trainer.log_every_n_steps=3"]
    assert begin(folder, *options, *interfered("batch start", 6, "spoil_crop")) == 1
    data = scenes(num_scenes=60, crop=None)
    items, row = data.samples("train", 1).items, (6 - 4) * 16 + 3
    name = data.source.splits["train"].name(int(items[row]))
    assert last_step(folder) == 4
    sentence = capsys.readouterr().err.splitlines()[-1]
    expected = r"lightning-bbox: the loss is not finite since step 6 \(learning rate [\d.e-]+; "
    assert re.match(expected + re.escape(f"samples {name});"), sentence)


def test_a_run_whose_loss_was_not_finite_goes_on_at_a_lower_rate(cut, capsys):
    with pytest.warns(UserWarning, match="lr was 0.1 so far and is 1e"):
        assert resume(cut, "--model.optimizer.lr=1e30") == 1
    assert "not finite since step" in capsys.readouterr().err
    for path in (cut / "checkpoints").iterdir():
        state = read_checkpoint(path)["state_dict"]
        assert all(state[name].isfinite().all() for name in state if "head.edges" not in name)
    with pytest.warns(UserWarning, match=r"lr was 0\.1 so far and is 0\.01"):
        assert resume(cut, "--model.optimizer.lr=0.01") == 0


def test_weights_spoilt_by_the_last_step_of_an_epoch_are_not_saved(tmp_path, capsys):
    folder = tmp_path / "bad"
    assert begin(folder, *interfered("optimizer step", 7, "spoil_gradient")) == 1
    assert "the weights are not finite since step 7 (learning rate" in capsys.readouterr().err
    assert last_step(folder) == 4
    assert resume(folder) == 0


class NoPlace(ExpectationDecoder):
    """Says nothing, as a network does that overflows in evaluation only."""

    def __call__(self, probs, centers, widths):
        return super().__call__(probs, centers, widths) * torch.nan


def test_invalid_boxes_end_a_run_whose_losses_are_finite(tmp_path, capsys):
    decoder = f"--model.head.decoder={__name__}.NoPlace"
    assert begin(tmp_path / "bad", "--model.head=BinHead", decoder) == 1
    expected = "the refined boxes are not finite since step 3 (learning rate"
    assert expected in capsys.readouterr().err


# Originals that are overwritten.


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_predict_stopped_while_it_overwrote_begins_again(whole, tmp_path, refused):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write_rectangles(data)
    yolo_folder(data)
    old = files_of(data)
    arguments = [*predict_with(whole, data), "--name=run", "--overwrite=true"]
    assert main(arguments) == 0
    new, made = files_of(data), files_of(run)
    assert new != old
    # As a kill after five files would leave it.
    (run / "changes.csv").unlink()
    for name in sorted(name for name in old if name.endswith(".txt"))[5:]:
        (data / name).write_bytes(old[name])
    (data / ".9.txt.123.lightning_bbox.tmp").write_bytes(b"half")
    with pytest.warns(UserWarning, match="the originals are put back first"):
        assert main(arguments) == 0
    assert files_of(data) == new
    assert files_of(run) == made
    (run / "changes.csv").unlink()
    (data / "3.txt").write_text("0 0.5 0.5 0.1 0.1")
    sentence = refused(arguments)
    assert sentence.startswith(f"{data / '3.txt'}: was changed since a predict that was stopped")
    assert files_of(data) == new | {"3.txt": b"0 0.5 0.5 0.1 0.1"}
