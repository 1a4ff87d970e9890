"""The processes of a study: as many as memory is free for, and none outlives it."""

import os
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import pytest
import torch

from lightning_bbox.studies import runs
from lightning_bbox.studies.runs import Workers
from lightning_bbox.studies.study import Arm, Run
from tests.conftest import ROOT

RUN = Run(Arm("hung"), 0)


def hang(_):
    """Be a run that no signal stops."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    sys.stderr.write("hung")  # into its log
    sys.stderr.flush()
    time.sleep(600)
    return 0


@pytest.fixture
def hung(tmp_path):
    """A study's workers, one of which hangs, and its process."""
    workers = Workers(tmp_path, 1, hang)
    workers._start(RUN, [])
    log = tmp_path / RUN.name / "log.txt"
    while not (log.is_file() and "hung" in log.read_text()):
        time.sleep(0.05)
    (process,) = workers._running
    return workers, process


def test_a_run_that_hangs_is_killed_when_its_study_ends(hung, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    workers, process = hung
    workers.__exit__()
    assert process.exitcode == -signal.SIGKILL


def test_a_run_that_hangs_is_killed_at_once_by_another_interrupt(hung):
    workers, process = hung
    with (
        patch.object(process, "join", side_effect=[KeyboardInterrupt, None]),
        pytest.raises(KeyboardInterrupt),
    ):
        workers.__exit__()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def repeat(arguments):
    """Be a run that says what it was told."""
    sys.stderr.write("\n".join(arguments))
    return 0


def test_a_run_lies_in_its_studys_folder_whatever_its_configuration_says(tmp_path):
    """One that a run has saved says `name: null` and `runs: DIR`."""
    with Workers(tmp_path, 1, repeat) as workers:
        (result,) = workers.results([(RUN, ["--config=runs/old/config.yaml"])])
    assert result.run is RUN
    told = (tmp_path / RUN.name / "log.txt").read_text().splitlines()
    config = told.index("--config=runs/old/config.yaml")
    assert {f"--runs={tmp_path}", f"--name={RUN.name}"} <= {*told[config:]}


def count_threads(_):
    """Be a run that says how many threads it has."""
    sys.stderr.write(f"{torch.get_num_threads()}")
    return 0


def test_a_run_has_no_more_threads_than_the_environment_says(tmp_path):
    lines = [
        "import pathlib, sys",
        "from tests.studies.test_workers import RUN, count_threads",
        "from lightning_bbox.studies.runs import Workers",
        "with Workers(pathlib.Path(sys.argv[1]), 1, count_threads) as workers:",
        "    list(workers.results([(RUN, [])]))",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / RUN.name / "log.txt").read_text() == "1"


def test_no_more_runs_go_side_by_side_than_memory_is_free_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for gigabytes, jobs in ((0, 1), (3, 1), (4, 2), (11, 5), (64, 8)):
        monkeypatch.setattr(runs, "free_host_memory", lambda free=gigabytes: free << 30)
        assert runs.default_jobs() == jobs
