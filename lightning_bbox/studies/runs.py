"""Run a study: every arm with every seed, several side by side, and go on where it stopped."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from tqdm import tqdm

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import alone_in, make_folder, write_atomically
from lightning_bbox.core.memory import free_host_memory, keep_freed_memory, usable_cores
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.models.training.divergence import OUTCOME
from lightning_bbox.reports.callbacks import Settings
from lightning_bbox.studies.nodes import Node
from lightning_bbox.studies.page import refuse_foreign, write_comparison
from lightning_bbox.studies.results import read_result, refuse_other_settings
from lightning_bbox.studies.study import Result, Run, Study
from lightning_bbox.studies.study_file import read_study

Fit = Callable[[list[str]], int]
"""The command line: arguments to an exit code."""

Rehearse = Callable[[list[str]], Settings]
"""The command line's settings alone, by its arguments; they may be refused."""

PATIENCE = 60.0
"""Seconds that runs which are stopped have to save where they stand."""
_MEMORY_OF_A_RUN = 2 << 30  # bytes: PyTorch and a small data set
_REFUSED = 2


def compare_parser() -> CommandParser:
    """Return what reads the options of `compare` alone."""
    parser = CommandParser(
        "compare",
        "Measure configurations against each other, as a study's file says: base names "
        "the configuration that all arms change, options what is set for all, axes what each level "
        "sets, design how they are crossed (one_at_a_time, full, or fraction: N), arms single ones "
        "beside them, exclude what doesn't go together; seeds, folds, steps or seconds, reach_px. "
        "All options that aren't here are those of fit, and go to every run.",
        config="the study's file, or preset:compare/NAME; further ones are configurations for all",
        name="that of the study's file",
    )
    parser.add_argument("--steps", type=int, help="steps of a run, instead of the study's budget")
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs side by side; by default one a GPU or core, and no more than one for 2 GB of "
        "free memory",
    )
    return parser


def compare(arguments: list[str], fit: Fit, rehearse: Rehearse) -> None:
    """Run the command `compare`: a study from its file, then its tables, charts and page.

    Args:
        arguments: The command line after `compare`; what it doesn't know goes to every fit.
        fit: The command line, for the runs.
        rehearse: What tells beforehand why an arm would be refused.

    Raises:
        BadInput: The study can't be run.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        msg = "compare needs a server of processes, which Windows hasn't; run it on Linux or macOS"
        raise BadInput(msg)
    own, options = compare_parser().parse_known_args(arguments)
    if not own.config:
        msg = "config: missing; name the study's file, or a preset:compare/NAME, with -c"
        raise BadInput(msg)
    study = read_study(own.config[0])
    study = replace(study, configs=(*study.configs, *own.config[1:]))
    for name, value in (("jobs", own.jobs), ("steps", own.steps)):
        if value is not None and value < 1:
            msg = f"--{name} is {value}; give 1 or more"
            raise BadInput(msg)
    if own.steps is not None:
        study = replace(study, steps=own.steps, seconds=None)
    for run in study.runs()[: len(study.arms)]:
        try:
            rehearse(["fit", *study.arguments(run, options)])
        except BadInput as refusal:
            msg = f"{own.config[0]}: arm {run.arm.name!r}: {refusal}"
            raise BadInput(msg) from refusal
    folder = Path(own.runs) / (own.name or study.name)
    make_folder(folder)
    with alone_in(folder):
        refuse_foreign(folder)
        found = found_results(study, options, folder, rehearse)
        results = run_study(study, options, folder, own.jobs or default_jobs(), fit, found)
        text = write_comparison(study, results, folder)
    say(f"\n{text}\n\nthe same with charts: {folder}")
    broken = [result for result in results if result.status in ("refused", "failed")]
    if broken:
        first = broken[0]
        msg = (
            f"{len(broken)} of {len(results)} runs were refused or failed, the first "
            f"{first.run.name} ({first.detail}); {folder / first.run.name / 'log.txt'} has more"
        )
        raise BadInput(msg)


def default_jobs() -> int:
    """Return how many runs go side by side: one a GPU, else a core, as far as memory goes."""
    places = torch.cuda.device_count() or usable_cores()
    return max(1, min(places, free_host_memory() // _MEMORY_OF_A_RUN))


def found_results(
    study: Study, options: list[str], folder: Path, rehearse: Rehearse
) -> list[Result]:
    """Return what is there of each run, and refuse what other settings made.

    Args:
        study: What is to be run.
        options: Options of `fit` for all runs.
        folder: The study's folder.
        rehearse: What tells the settings that a run would have.

    Raises:
        BadInput: Something was made by other settings.
    """
    found = [read_result(run, folder / run.name) for run in study.runs()]
    for result in found:
        if result.settings is not None:
            now = rehearse(["fit", *study.arguments(result.run, options)])
            refuse_other_settings(result, folder / result.run.name, now)
    return found


def run_study(
    study: Study,
    options: list[str],
    folder: Path,
    jobs: int,
    fit: Fit,
    found: list[Result],
    node: Node = Node(),
) -> list[Result]:
    """Make all runs of a study that aren't there yet, and return what became of all.

    Of several machines each makes its share, and none returns before all are done. What arrived or
    diverged is not run again; what was stopped goes on; what was refused or failed is tried once
    more.

    Args:
        study: What is to be run.
        options: Options of `fit` for all runs.
        folder: The study's folder.
        jobs: How many runs go side by side.
        fit: The command line.
        found: What is there of each run.
        node: This machine.

    Raises:
        BadInput: The base itself can't be run, or another machine has ended.
    """
    pending = [result.run for result in found if result.status not in ("done", "diverged")]
    own = pending[node.number :: node.in_all]
    node.meet()  # before one begins all have seen what was there
    with Workers(folder, jobs, fit) as workers, Progress(study, pending, own, jobs) as progress:
        for result in workers.results((run, study.arguments(run, options)) for run in own):
            progress.show(_accepted(study, result))
    node.meet()
    return [read_result(run, folder / run.name) for run in study.runs()]


def _accepted(study: Study, result: Result) -> Result:
    """Stop the study where the base itself can't be run: its arms couldn't be compared."""
    if result.run.arm == study.arms[0] and result.status in ("refused", "failed"):
        raise BadInput(result.detail)
    return result


class Workers:
    """Processes that fit side by side, each a fresh one with its share of the cores or a GPU.

    They come from a server that has imported everything once. A signal to this process is handed
    on, and their runs are left so that they can go on.

    Args:
        folder: Where the runs are kept.
        jobs: How many at once.
        fit: The command line.
    """

    def __init__(self, folder: Path, jobs: int, fit: Fit) -> None:
        self._folder, self._fit = folder, fit
        self._free = list(range(jobs))
        self._threads = max(1, usable_cores() // jobs)
        self._running: dict[ForkServerProcess, tuple[Run, int]] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([fit.__module__])

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what still runs: each saves what it has, and is killed where it doesn't end.

        Another Ctrl-C kills at once.
        """
        for process in self._running:
            process.terminate()
        end = time.monotonic() + PATIENCE
        try:
            for process in self._running:
                process.join(max(0.0, end - time.monotonic()))
        finally:
            for process in self._running:
                process.kill()
                process.join()

    def results(self, runs: Iterable[tuple[Run, list[str]]]) -> Iterator[Result]:
        """Start each run, with its arguments, as soon as there is room; yield those that end."""
        for run, arguments in runs:
            if not self._free:
                yield from self._end_some()
            self._start(run, arguments)
        while self._running:
            yield from self._end_some()

    def _start(self, run: Run, arguments: list[str]) -> None:
        slot, folder = self._free.pop(0), self._folder / run.name
        make_folder(folder)
        going_on = [f"--ckpt_path={folder}"] * any(folder.glob("checkpoints/*.ckpt"))
        gpus = torch.cuda.device_count()
        device = f"--trainer.devices={[slot % gpus] if gpus else 1}"
        # Last: a configuration that a run has saved names these too.
        where = [f"--runs={self._folder}", f"--name={run.name}"]
        command = ["fit", device, *arguments, *where, *going_on]
        process = self._context.Process(
            target=_work, args=(self._fit, command, folder / "log.txt", self._threads)
        )
        process.start()
        self._running[process] = (run, slot)

    def _end_some(self) -> list[Result]:
        multiprocessing.connection.wait([process.sentinel for process in self._running])
        ended = [process for process in self._running if process.exitcode is not None]
        return [self._end(process) for process in ended]

    def _end(self, process: ForkServerProcess) -> Result:
        run, slot = self._running.pop(process)
        self._free.append(slot)
        folder = self._folder / run.name
        if process.exitcode and not (folder / OUTCOME).is_file():
            status = "refused" if process.exitcode == _REFUSED else "failed"
            detail = _last_line(folder / "log.txt") or f"exit code {process.exitcode}"
            outcome = {"status": status, "step": None, "detail": detail}
            make_folder(folder)
            write_atomically(folder / OUTCOME, json.dumps(outcome).encode())
        return read_result(run, folder)


def _work(fit: Fit, arguments: list[str], log: Path, threads: int) -> None:
    """Fit in a process of its own, which speaks to a file."""
    os.setpgid(0, 0)  # Ctrl-C at the terminal is for the study: it hands it on
    _end_with_parent()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # OMP_NUM_THREADS may ask for fewer: threads that share a core wait for each other busily.
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    keep_freed_memory()
    sys.argv[1:] = arguments  # what Lightning launches a run's further processes with
    sys.exit(fit(arguments))


def _end_with_parent() -> None:
    """Stop as soon as the study's process is gone, whatever ended it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    spoken = [line for line in lines if line.strip()]
    return spoken[-1].removeprefix("lightning-bbox: ") if spoken else ""


class Progress:
    """A bar, or a line a run where there is no terminal, with the time that is left.

    Args:
        study: What runs.
        pending: The runs there are to make.
        own: Those that this machine makes.
        jobs: How many go side by side.
    """

    def __init__(self, study: Study, pending: list[Run], own: list[Run], jobs: int) -> None:
        self._pending, self._ended, self._since = len(own), 0, time.monotonic()
        there = len(study.runs()) - len(pending)
        say(
            f"{study.name}: {len(study.arms)} arms, {len(pending)} runs to make, {jobs} at once"
            + (f", {len(own)} of them on this machine" if len(own) < len(pending) else "")
            + (f"; {there} are there already" if there else "")
        )
        self._bar = tqdm(total=self._pending, unit="run", disable=not sys.stderr.isatty())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, result: Result) -> None:
        """Say what became of a run."""
        self._ended += 1
        spent = time.monotonic() - self._since
        left = spent / self._ended * (self._pending - self._ended) / 60
        line = f"{result.run.arm.name}, seed {result.run.seed}: {_outcome(result)}"
        if self._bar.disable:
            say(f"[{self._ended}/{self._pending}, about {left:.0f} min left] {line}")
        else:
            self._bar.write(line)
            self._bar.update()


def _outcome(result: Result) -> str:
    if result.status == "done":
        seconds = result.metrics["train_seconds"]
        return f"{result.metrics['test/mae_px']:.3f} px in {seconds:.0f} s"
    why = f" ({result.detail})" if result.step is None else f" at step {result.step}"
    return f"{result.status}{why}"
