"""Two machines, each with a launch of torchrun of its own, leave the files of one process.

Here they are one machine, which both launches take for two.
"""

import shutil
import socket
import sys

import pytest

from lightning_bbox.cli.main import main
from lightning_bbox.cli.processes import one_of_nodes, started_outside
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN
from lightning_bbox.studies.nodes import Node
from tests.conftest import write_rectangles
from tests.runs import (
    DOUBLE,
    PYTHON,
    TINY,
    assert_equal_runs,
    ended,
    files_of,
    fit,
    ranks,
    run_well,
    start,
)

EXACT = ["--trainer.precision=64-true", "--trainer.accelerator=cpu"]


def launched_twice(*words, nodes=2):
    """Run a command by a launch of torchrun a machine, a process each, and return how they end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"]
    torchrun += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    launches = [
        start([*torchrun, f"--node_rank={node}", "-m", "lightning_bbox", *words])
        for node in range(nodes)
    ]
    return [ended(launch) for launch in launches]


def assert_well(finished):
    for each in finished:
        assert each.code == 0, each.err[-3000:]


def audit_of(root, runs, name):
    words = ["audit", "-c", "preset:csv", f"--data.root={root}", f"--runs={runs}"]
    words += ["--folds=2", "--jobs=1", *TINY, *EXACT, "--model.backbone.batch_norm=false"]
    return [*words, f"--name={name}"]


def told_by(folder):
    """Return the files of an audit, without those of its folds."""
    files = {name: held for name, held in files_of(folder).items() if "-seed0/" not in name}
    assert {"audit.csv", "audit.json", "audit.md", "law.json", OWN} <= files.keys()
    return files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twice the pictures of `write_rectangles`, so that there are boxes enough to judge."""
    folder = tmp_path_factory.mktemp("audited") / "data"
    folder.mkdir()
    write_rectangles(folder)
    head, *lines = (folder / "boxes.csv").read_text().splitlines()
    for picture in [*folder.glob("*.png")]:
        shutil.copy(picture, folder / f"again{picture.name}")
    (folder / "boxes.csv").write_text("\n".join([head, *lines, *(f"again{x}" for x in lines)]))
    return folder


@pytest.fixture(scope="module")
def one(root):
    """An audit by one process."""
    assert main(audit_of(root, root.parent, "one")) == 0
    return root.parent / "one"


@pytest.mark.slow
def test_two_machines_predict_as_one_process(csv_folder, tmp_path):
    model = fit(tmp_path, "model", base=DOUBLE)
    predict = ["predict", f"--ckpt_path={model}", "--data=BoxDataModule", *EXACT]
    predict += [f"--data.root={csv_folder}", "--data.compile=false", f"--runs={tmp_path}"]
    assert main([*predict, "--name=one"]) == 0
    assert_well(launched_twice(*predict, "--name=two", "--trainer.num_nodes=2"))
    written = files_of(tmp_path / "one")
    assert {"refined/boxes.csv", "changes.csv", "review.html"} <= written.keys()
    assert files_of(tmp_path / "two") == written


@pytest.mark.slow
def test_two_machines_share_the_folds_of_an_audit_and_leave_the_files_of_one(one, root, tmp_path):
    finished = launched_twice(*audit_of(root, tmp_path, "two"))
    assert_well(finished)
    assert "2 runs to make, 1 at once, 1 of them on this machine" in finished[0].out
    assert finished[1].out == ""
    assert told_by(tmp_path / "two") == told_by(one)


@pytest.mark.slow
def test_folds_that_two_processes_train_are_those_of_one(one, root, tmp_path):
    run_well([*PYTHON, *audit_of(root, tmp_path, "two"), *ranks(2)])
    assert told_by(tmp_path / "two").keys() == told_by(one).keys()
    for fold in ("fold0-seed0", "fold1-seed0"):
        assert_equal_runs(tmp_path / "two" / fold, one / fold, atol=1e-8)


@pytest.mark.slow
def test_a_refusal_on_one_machine_ends_the_audit_on_both(root, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "audit.csv").write_text("mine")
    finished = launched_twice(*audit_of(root, tmp_path, "two"))
    assert all(each.code for each in finished)
    assert "audit.csv: " in finished[0].err
    assert [*tmp_path.glob("two/fold*")] == []


def test_runs_of_a_study_know_nothing_of_the_launcher_and_others_of_a_machine_wait(monkeypatch):
    with one_of_nodes() as node:
        assert node == Node(0, 1)
    assert node.meet() is None
    launched = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    for name, value in {**launched, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with one_of_nodes() as node:
        assert node == Node(0, 1)
        assert started_outside() is None
    assert started_outside() == (2, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with one_of_nodes() as node:
        assert node is None


def test_a_machine_that_has_ended_is_told_in_a_sentence(monkeypatch):
    def lost():
        msg = "Connection closed by peer"
        raise RuntimeError(msg)

    monkeypatch.setattr("torch.distributed.barrier", lost)
    with pytest.raises(BadInput, match="another machine of the study has ended"):
        Node(1, 2).meet()
