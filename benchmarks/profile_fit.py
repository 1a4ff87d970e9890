"""Where the seconds of a training go: `fit` as a user calls it, from the command to the prompt.

    python -m benchmarks.profile_fit [--data FOLDER] [--epochs 4] [--options OPTION ...]

First the quick start as `make fit` runs it; then, where FOLDER holds bccd, the default training on
red cells; both shortened to some epochs, and what all of them would take is computed: what an epoch
repeats (see `REPEATED`) times the epochs. Each runs in a process of its own, whose methods are
wrapped from here. A second counts once: for the innermost part named here that goes on, but what
goes on in a validation, a test or the first step counts for those, unless it is of the parts told
apart (see `APART`). All is written to `benchmarks/results/profile_fit.json`, and printed.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

SINCE = time.perf_counter()
RESULTS = Path(__file__).parent / "results"

START, IMPORTS, OPTIONS = (
    "the interpreter starts and ends",
    "imports",
    "options are read, parts made",
)
ITEMS, DECODING = "scenes are drawn, or annotations read", "pictures are decoded and packed"
MODEL, COMPILING = "the model is built and fitted to the data", "kernels are compiled"
FIRST, REST = "the first step, kernels apart", "Lightning's loops and all else"
CROPS, FORWARD, BACKWARD = "crops are laid out, cut, augmented", "forward, loss", "backward"
OPTIMIZER, LOGS = "optimizer, closure, schedule", "scalars are logged"
VALIDATION, RELIABILITY = "validation", "reliability at several widths"
CHECKPOINTS, CURVES = "checkpoints", "sheets and curves of a validation"
SHEETS, TEST = "sheets and tables before and after", "final test"
ORDER = (
    *(START, IMPORTS, OPTIONS, ITEMS, DECODING, MODEL, COMPILING, FIRST, CROPS, FORWARD, BACKWARD),
    *(OPTIMIZER, LOGS, REST, VALIDATION, RELIABILITY, CHECKPOINTS, CURVES, SHEETS, TEST),
)
REPEATED = {*ORDER[ORDER.index(CROPS) : ORDER.index(SHEETS)]}
"""Parts that take as long in each epoch."""
QUICKSTART_EPOCHS = 16
OPEN = {OPTIONS, REST, OPTIMIZER}
"""Parts in which others count for themselves."""
APART = {COMPILING, DECODING, LOGS, RELIABILITY, CHECKPOINTS, CURVES, SHEETS}
"""Parts that count for themselves wherever they are."""
OURS, LIGHTNING = "lightning_bbox.", "lightning.pytorch."
PARTS = {
    f"{OURS}cli.run:_lightning_cli": OPTIONS,
    f"{OURS}data.scenes:SceneDataModule.read": ITEMS,
    f"{OURS}data.boxes:BoxDataModule.read": ITEMS,
    f"{OURS}data.boxes:BoxDataModule._open_store": DECODING,
    f"{OURS}models.base:OffsetModel.configure_model": MODEL,
    f"{OURS}pictures.kernels:_made": COMPILING,
    f"{OURS}data.module:compiled_photometry": COMPILING,  # at its first call
    f"{LIGHTNING}loops.fit_loop:_FitLoop.run": REST,
    f"{LIGHTNING}loops.training_epoch_loop:_TrainingEpochLoop.advance": FIRST,  # at its first call
    f"{OURS}data.module:CropDataModule.make_batch": CROPS,
    f"{OURS}models.regressor:BoxRegressor.training_step": FORWARD,
    f"{LIGHTNING}strategies.strategy:Strategy.backward": BACKWARD,
    "torch.optim:AdamW.step": OPTIMIZER,
    f"{OURS}models.regressor:BoxRegressor.note_step": LOGS,
    f"{OURS}reports.callbacks:Throughput.on_train_batch_end": LOGS,
    f"{LIGHTNING}trainer.connectors.logger_connector:_LoggerConnector.log_metrics": LOGS,
    f"{LIGHTNING}loops.evaluation_loop:_EvaluationLoop.run": VALIDATION,
    f"{OURS}models.measuring:MeasuredModel._measure_reliability": RELIABILITY,
    f"{LIGHTNING}trainer.trainer:Trainer.save_checkpoint": CHECKPOINTS,
    f"{OURS}reports.callbacks:RunReport.on_fit_start": SHEETS,
    f"{OURS}reports.callbacks:RunReport.on_test_end": SHEETS,
    f"{OURS}reports.loggers:LoggedReport.on_train_start": SHEETS,
    f"{OURS}reports.loggers:LoggedReport.on_validation_end": CURVES,
    f"{OURS}reports.loggers:LoggedReport.on_test_end": SHEETS,
    f"{LIGHTNING}trainer.trainer:Trainer.test": TEST,
}
"""What is wrapped, and which part it is."""
ONCE = {FIRST: REST, f"{OURS}data.module:compiled_photometry": None}
"""Parts that later calls are not, and which they are instead."""


class Parts:
    """Seconds by part, each second counted once."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = SINCE

    def tick(self) -> None:
        """Count the time since the last tick for what has been going on."""
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else IMPORTS] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], part: str, later: str | None) -> Any:
        """Return a function that does the same, and counts.

        Args:
            function: What is called.
            part: Which part it is.
            later: Which one later calls are; None for whatever goes on.
        """
        called = False

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal called
            own, called = (later if called else part), True
            closed = not OPEN.issuperset(self._open) and own not in APART
            if own is None or closed:
                return function(*args, **kwargs)
            self.tick()
            self._open.append(own)
            self.calls[own] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.tick()
                self._open.pop()

        return counted

    def wrap(self) -> None:
        """Wrap all there is to."""
        for place, part in PARTS.items():
            module, _, path = place.partition(":")
            *owners, name = path.split(".")
            owner: Any = importlib.import_module(module)
            for each in owners:
                owner = getattr(owner, each)
            later = ONCE.get(place, ONCE.get(part, part))
            setattr(owner, name, self.timed(getattr(owner, name), part, later))


def inside(file: Path, command: list[str]) -> int:
    """Run a command in this process, and write down its seconds."""
    from lightning_bbox.cli.run import _import_public_names, run
    from lightning_bbox.core.memory import keep_freed_memory

    keep_freed_memory()
    _import_public_names()
    parts = Parts()
    parts.wrap()
    code = run(command)
    parts.tick()
    told = {"seconds": dict(parts.seconds), "calls": dict(parts.calls)}
    file.write_text(json.dumps(told))
    return code


def profile(options: list[str]) -> dict[str, Any]:
    """Run `fit` with these options in a process of its own, and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        command = ["fit", *options, f"--runs={folder}", "--name=run"]
        words = [sys.executable, "-m", "benchmarks.profile_fit", "--inside", str(file), *command]
        since = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - since
        told: dict[str, Any] = json.loads(file.read_text())
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    told["seconds"][START] = whole - sum(told["seconds"].values())
    return told | {"whole": whole, "steps": metrics["train_steps"]}


def all_epochs(told: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each part with all epochs, by those of some."""
    times = told["all epochs"] / told["epochs"]
    return {
        part: seconds * (times if part in REPEATED else 1)
        for part, seconds in told["seconds"].items()
    }


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """Compose the table: seconds of each part, and its share of all epochs."""
    heads = [f"{name}, {told['epochs']} epochs, s | one, ms" for name, told in found.items()]
    heads = [
        f"{head} | all {told['all epochs']} epochs, s (share)"
        for head, told in zip(heads, found.values(), strict=True)
    ]
    lines = [f"| part | {' | '.join(heads)} |", "|---|" + "---|---|---|" * len(found)]
    whole = {name: all_epochs(told) for name, told in found.items()}
    for part in ORDER:
        cells = [part]
        for name, told in found.items():
            seconds, calls = told["seconds"].get(part, 0.0), told["calls"].get(part, 0)
            each = f"{1e3 * seconds / calls:.1f}" if part in REPEATED - {REST} and calls else ""
            computed = whole[name].get(part, 0.0)
            share = computed / sum(whole[name].values())
            cells += [f"{seconds:.2f}", each, f"{computed:.1f} ({share:.1%})"]
        lines.append(f"| {' | '.join(cells)} |")
    cells = [
        f"{told['whole']:.1f} | {told['steps']} steps | {sum(whole[name].values()):.0f}"
        for name, told in found.items()
    ]
    return "\n".join([*lines, f"| all | {' | '.join(cells)} |"])


def main(args: list[str] | None = None) -> int:
    """Profile the quick start, and the default training where there is data for it."""
    arguments = sys.argv[1:] if args is None else args
    if arguments[:1] == ["--inside"]:
        return inside(Path(arguments[1]), arguments[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_fit", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds bccd")
    parser.add_argument("--epochs", type=int, default=4, help="of each training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more of fit's")
    options = parser.parse_args(args)
    from benchmarks.ranks import machine
    from lightning_bbox import BoxRegressor

    results: dict[str, Any] = {"machine": machine()}
    jobs = {"make fit": (["-c", "preset:quickstart"], QUICKSTART_EPOCHS)}
    if options.data is not None:
        words = ["-c", "preset:bccd", f"--data.root={options.data / 'bccd'}"]
        jobs["preset:bccd"] = (words, BoxRegressor.default_epochs)
    found = {}
    for name, (words, epochs) in jobs.items():
        short = [*words, f"--trainer.max_epochs={options.epochs}", *options.options]
        found[name] = profile(short) | {"epochs": options.epochs, "all epochs": epochs}
    results["machine"]["load after"] = os.getloadavg()
    results |= {"runs": found}
    options.results.mkdir(exist_ok=True)
    (options.results / "profile_fit.json").write_text(json.dumps(results, indent=2) + "\n")
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
