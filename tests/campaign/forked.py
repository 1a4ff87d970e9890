"""Commands run in forked processes, and hit by a signal at a moment of their life."""

import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch

import lightning_bbox.cli.run  # noqa: F401 (`main` imports it late: each fork would again)
from lightning_bbox.cli.main import main

PHASES = ("start", "training", "validation", "saving", "test", "predicting", "writing")
_SHARED = mmap.mmap(-1, 1)


class Phases(pl.Callback):
    """Tell the process that forked this one where a run stands, through a byte they share."""

    def on_train_batch_start(self, *_: object) -> None:
        _enter("training")

    def on_validation_start(self, *_: object) -> None:
        _enter("validation")

    def on_save_checkpoint(self, *_: object) -> None:
        _enter("saving")

    def on_test_start(self, *_: object) -> None:
        _enter("test")

    def on_predict_start(self, *_: object) -> None:
        _enter("predicting")

    def on_predict_batch_end(self, *_: object) -> None:
        _enter("writing")


class Hit(NamedTuple):
    """A signal, so long after a phase has begun."""

    signum: signal.Signals
    phase: str
    seconds: float


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal), and the hit if it came in time."""

    code: int
    hit: Hit | None
    phase: str
    log: str
    seconds: float


def run(arguments: list[str], log: Path, hit: Hit | None = None, limit: int = 0) -> Ended:
    """Run a command in a forked process, which takes no time to import anything, and hit it.

    Args:
        arguments: The command.
        log: What it says goes there.
        hit: When a signal hits it.
        limit: Seconds after which SIGALRM ends it; never by default.
    """
    log.write_bytes(b"")
    _enter("start")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(limit)
        _be_the_command(arguments, log)
    status = _status_before(child, started, hit) if hit else None
    landed, phase = hit if status is None else None, PHASES[_SHARED[0]]
    if landed:
        os.kill(child, landed.signum)
    if status is None:
        status = os.waitpid(child, 0)[1]
    seconds = time.monotonic() - started
    text = log.read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), landed, phase, text, seconds)


def _enter(phase: str) -> None:
    _SHARED[0] = PHASES.index(phase)


def _be_the_command(arguments: list[str], log: Path) -> None:
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # The first call to torch after a fork replaces its pool of threads: two that come at once may
    # meet where there is none ("Invalid thread pool!"), and decoders are several threads.
    torch.set_num_threads(torch.get_num_threads())
    code = 1
    try:
        code = main(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:  # as Python does
        code = 130
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:  # noqa: BLE001 (a forked process must not go on as the one it came from)
        traceback.print_exc()
    finally:
        os._exit(code)


def _status_before(child: int, started: float, hit: Hit) -> int | None:
    """Wait for the moment of a hit; return the status of a process that has ended before."""
    since = started if hit.phase == "start" else None
    while since is None or time.monotonic() < since + hit.seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if since is None and PHASES[_SHARED[0]] == hit.phase:
            since = time.monotonic()
        time.sleep(0.0005)
    return None
