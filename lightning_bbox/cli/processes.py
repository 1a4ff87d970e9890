"""The processes of one run: who launched them, who speaks for all, and that they end together."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from lightning_bbox.core.errors import BadInput
from lightning_bbox.studies.nodes import Node

PATIENCE = 10.0
"""Seconds that the first process has to say why a run ends, and to end the others."""

_FIRST = "LIGHTNING_BBOX_FIRST"
_FOLDER = "LIGHTNING_BBOX_RUN"  # for the processes that this one launches, never for its own use


@contextmanager
def one_of_a_run() -> Iterator[None]:
    """Be the first process of a run, or one that ends as soon as its launcher is gone.

    Whatever ends the launcher, a signal that can't be caught too: a process that waits for the
    others to come would wait for half an hour.
    """
    first = os.environ.get(_FIRST) if "LOCAL_RANK" in os.environ else None
    if first is not None:
        _end_without(int(first))
    else:
        os.environ.pop(_FOLDER, None)
        os.environ[_FIRST] = str(os.getpid())
        if TorchElasticEnvironment.detect():
            _end_without(os.getppid())
    try:
        yield
    finally:
        os.environ.pop(_FIRST, None)


def shared_by_launched(folder: Path) -> Path:
    """Tell launched processes the run's folder, whose name may hold the time; return their first's.

    Args:
        folder: What this process would call it.
    """
    return Path(os.environ.setdefault(_FOLDER, str(folder)))


def _end_without(launcher: int) -> None:
    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def say_once(sentence: str) -> None:
    """Write a sentence to stderr, once for all processes.

    The first one does, and then ends those it launched. Others speak where it hasn't.

    Args:
        sentence: Why the run ends.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined] # Lightning sets it
        time.sleep(PATIENCE)
    sys.stderr.write(f"lightning-bbox: {' '.join(sentence.split())}\n")


def end_launched(trainer: pl.Trainer, patience: float) -> None:
    """See the processes out that this one launched.

    Args:
        trainer: What launched them.
        patience: Seconds to let them end by themselves.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    processes = launcher.procs[:]
    # Lightning watches this list, and kills this process too when one of them ends with an error.
    launcher.procs.clear()
    for process in processes:
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Started(NamedTuple):
    """How many processes torchrun or SLURM started, on this machine and on all."""

    here: int
    in_all: int


def started_outside() -> Started | None:
    """Return how many processes torchrun or SLURM started, None where neither did.

    Raises:
        BadInput: SLURM wasn't told how many belong on a machine.
    """
    if TorchElasticEnvironment.detect():
        return Started(int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"]))
    if not SLURMEnvironment.detect():
        return None
    tasks, here = int(os.environ["SLURM_NTASKS"]), os.environ.get("SLURM_NTASKS_PER_NODE")
    if here is None and tasks > 1:
        msg = f"SLURM started {tasks} tasks; give srun --ntasks-per-node, how many on a machine"
        raise BadInput(msg)
    return Started(int(here or tasks), tasks)


_OF_LAUNCHERS = ("SLURM_", "TORCHELASTIC_")
_OF_A_PROCESS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", _FIRST),
)
"""Variables, before how others begin, by which a process knows that it is one of several."""


@contextmanager
def one_of_nodes() -> Iterator[Node | None]:
    """Be the one process of this machine that makes a study's runs; None is not to do anything.

    The runs are processes of their own, which are to know nothing of torchrun or SLURM.
    """
    started = started_outside()
    if started is None:
        yield Node()
        return
    of_torchrun = TorchElasticEnvironment.detect()
    environment = TorchElasticEnvironment() if of_torchrun else SLURMEnvironment()
    if environment.local_rank():
        yield None
        return
    node = Node(environment.node_rank(), started.in_all // started.here)
    if node.in_all > 1:
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        # Runs take as long as they take: a machine that has made its own waits for the others.
        distributed.init_process_group(
            "gloo", rank=node.number, world_size=node.in_all, timeout=timedelta(days=100)
        )
    names = [each for each in os.environ if each.startswith(_OF_LAUNCHERS) or each in _OF_A_PROCESS]
    known = {name: os.environ.pop(name) for name in names}
    try:
        yield node
    finally:
        os.environ.update(known)


def default_devices() -> int | str:
    """Return a device for each process that another launcher started here, else `auto`."""
    started = started_outside()
    return "auto" if started is None else started.here


def refuse_other_count(trainer: pl.Trainer) -> None:
    """Refuse to train on other devices than another launcher started processes for.

    Args:
        trainer: What is about to run.

    Raises:
        BadInput: There are more devices than processes, or fewer.
    """
    started, devices = started_outside(), trainer.num_devices * trainer.num_nodes
    if started is not None and started.in_all != devices:
        msg = (
            f"trainer.devices {trainer.num_devices} and trainer.num_nodes {trainer.num_nodes} are "
            f"{devices} processes, but {started.in_all} were started; set trainer.devices to "
            f"{started.here} and trainer.num_nodes to the number of machines"
        )
        raise BadInput(msg)
