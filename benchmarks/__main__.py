"""Measure how fast everything is, and make the report of it.

    python -m benchmarks [QUESTION ...] [--size smallest|small|full] [--device cpu|cuda]
    python -m benchmarks report

Without a name all questions are asked, in the order of the data. Each row is kept in this machine's
file in `benchmarks/results/` as soon as it is measured. `report` writes tables and plots into
`benchmarks/README.md`.
"""

import argparse
import importlib
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.report import as_lines, verdicts, write_report
from benchmarks.rows import RESULTS, Row, keep
from benchmarks.runner import Setting, measure

QUESTIONS = (
    *("crops", "augment", "plan", "loader", "train_step", "memory", "fit"),
    *("features", "ridge", "predict", "reading", "scaling", "time_to_accuracy"),
)


def main(args: list[str] | None = None) -> int:
    """Ask the questions, or write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"report, or of {', '.join(QUESTIONS)}"
    )
    parser.add_argument("--size", choices=("smallest", "small", "full"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="CUDA where there is any")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    parser.add_argument("--data", type=Path, help="folder that holds bccd, for time_to_accuracy")
    configs = "presets or YAML files that time_to_accuracy trains, side by side"
    parser.add_argument("--config", nargs="+", default=[], help=configs)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    if options.questions == ["report"]:
        print(f"written: {write_report(options.results)}")
        return 0
    if odd := set(options.questions) - {*QUESTIONS}:
        parser.error(f"no question {', '.join(sorted(odd))}; choose of {', '.join(QUESTIONS)}")
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is here, so nothing was measured", file=sys.stderr)
        return 2
    setting = Setting(
        torch.device(kind),
        options.size,
        time.monotonic() + 60 * options.minutes,
        options.data,
        tuple(options.seeds),
        tuple(options.config),
    )
    names = options.questions or QUESTIONS
    with compile_cache(options.size), warnings.catch_warnings():
        quiet()
        failed = [name for name in names if not answer(name, setting, options.results)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def answer(name: str, setting: Setting, results: Path) -> bool:
    """Ask a question, print and keep its rows, and tell whether it went to the end."""
    print(f"\n{name}: {first_line(name)}", flush=True)
    torch.compiler.reset()  # no other question's shapes make a graph general
    try:
        measured = []
        for row in rows_of(name, setting):
            print("\n".join(as_lines(row)), flush=True)
            keep([row], results)
            measured.append(row)
        print("\n".join(verdicts(measured)), flush=True)
    except Exception:  # noqa: BLE001 (the questions after it are still asked, and the exit code tells)
        traceback.print_exc()
        return False
    return True


def rows_of(name: str, setting: Setting) -> Iterator[Row]:
    """Yield the rows of a question, as long as there is time."""
    question = importlib.import_module(f"benchmarks.{name}")
    late = time.monotonic() > setting.deadline
    if late:
        print(f"  {name} is left out: the minutes are over")
    elif hasattr(question, "rows"):
        yield from question.rows(setting)
    else:
        for case in question.cases(setting):
            if time.monotonic() > setting.deadline:
                print(f"  {case.name} and what follows are left out: the minutes are over")
                return
            yield measure(name, case, setting)


def first_line(name: str) -> str:
    """Return what a question is."""
    return (importlib.import_module(f"benchmarks.{name}").__doc__ or "").partition("\n")[0]


@contextmanager
def compile_cache(size: str) -> Iterator[None]:
    """Compile anew, so that a first call's time is that of a user's first run; not for a test."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        own = {} if size == "smallest" else {"TORCHINDUCTOR_CACHE_DIR": folder}
        with patch.dict(environ, own):
            yield


def quiet() -> None:
    """Silence Lightning's hints, which are for users of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    warnings.filterwarnings("ignore", module="torch")


if __name__ == "__main__":
    raise SystemExit(main())
