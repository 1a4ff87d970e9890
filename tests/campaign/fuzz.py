"""Fuzz the readers, the writer and the decoder of pictures.

    python -m tests.campaign.fuzz --minutes 30 --seed 0 --keep findings

Every case must end in a table (whose moved boxes can be written and read back) or in a refusal of
one line, within 5 seconds of computing and a gibibyte (two for pictures). Whatever else happens is
a finding: it is stored in the folder `keep`, and how to repeat it is printed. Cases are a function
of the seed and their number; they run in a process of their own, so that hangs and crashes end only
that process.
"""

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.campaign.cases import KINDS, case_of
from tests.conftest import DATA

PATIENCE = (
    20.0  # seconds on the clock until a case counts as hanging; other work may share the core
)
COMMAND = ("-m", "tests.campaign.fuzz")  # what a worker runs
_CASES_A_WORKER = 20_000  # a leak would show as a finding, a slow one not at all
_SLACK = 1 << 29  # bytes a worker may map beyond what it may hold


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, and return 1 where it found anything."""
    parser = argparse.ArgumentParser("python -m tests.campaign.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--keep", type=Path, help="folder for the cases that failed")
    parser.add_argument("--cases", type=int, help="how many, instead of how long")
    parser.add_argument("--case", type=int, help="run this one only, in this process")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--made-up", action="store_true", help="leave the real data aside")
    options = parser.parse_args(arguments)
    data = DATA if DATA.is_dir() and not options.made_up else None
    if options.work:
        _work(options.seed, data)
        return 0
    if options.case is not None:
        return _repeat(options.seed, options.case, data)
    return _campaign(options, data)


def _campaign(options: argparse.Namespace, data: Path | None) -> int:
    print(f"seed {options.seed}, {'real files and ' if data else ''}made-up files", flush=True)
    tally = _Tally()
    end = time.monotonic() + 60 * options.minutes
    worker = _Worker(options)
    number = 0
    while number < options.cases if options.cases else time.monotonic() < end:
        if worker.cases >= _CASES_A_WORKER:
            worker.stop()
            worker = _Worker(options)
        verdict = worker.verdict(number)
        tally.add(number, verdict)
        if verdict["finding"]:
            _tell(options, data, number, verdict)
            worker.stop()
            worker = _Worker(options)
        number += 1
    worker.stop()
    tally.tell()
    return 1 if tally.findings else 0


class _Worker:
    """The process that runs cases, one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [sys.executable, *COMMAND, "--work", "--seed", options.seed]
        command += ["--made-up"] if options.made_up else []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.cases = 0
        try:
            self._line(patience=120)  # until it has imported everything
        except (TimeoutError, EOFError):
            self.stop()
            raise

    def verdict(self, number: int) -> dict:
        self.cases += 1
        with suppress(BrokenPipeError):  # it is dead, as the line will say
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        try:
            return json.loads(self._line(PATIENCE))
        except (TimeoutError, EOFError) as error:
            kind = KINDS[number % len(KINDS)]
            return {"kind": kind, "outcome": "failed", "finding": str(error)} | dict.fromkeys(
                ("seconds", "megabytes"), 0.0
            )

    def _line(self, patience: float) -> bytes:
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            msg = f"hangs for more than {patience:.0f} s"
            raise TimeoutError(msg)
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read()[-500:].decode("utf-8", "replace")
            msg = f"the process died with {self._process.returncode}: {last}"
            raise EOFError(msg)
        return line

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def _work(seed: int, data: Path | None) -> None:
    """Run the cases whose numbers come in, and print a verdict for each."""
    from tests.campaign.judge import MOST_FOR_PICTURES, judged

    # What libraries print must not come between the verdicts.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # there a sync costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        root = Path(folder) / "case"
        for number in range(2 * len(KINDS)):
            judged(case_of(-1, number, data), root)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + (MOST_FOR_PICTURES << 20) + _SLACK
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print("ready", file=out, flush=True)
        for line in _lines(sys.stdin.fileno()):
            verdict = judged(case_of(seed, int(line), data), root)
            print(json.dumps(verdict._asdict()), file=out, flush=True)


def _lines(descriptor: int) -> Iterator[str]:
    with os.fdopen(descriptor) as stream:
        yield from stream


def _repeat(seed: int, number: int, data: Path | None) -> int:
    from tests.campaign.judge import _run, judged

    case = case_of(seed, number, data)
    with tempfile.TemporaryDirectory() as folder:
        print(judged(case, Path(folder) / "case"))
        print(_run(case, Path(folder) / "again"))
    return 0


def _tell(options: argparse.Namespace, data: Path | None, number: int, verdict: dict) -> None:
    again = f"python -m tests.campaign.fuzz --seed {options.seed} --case {number}"
    print(f"finding in {verdict['kind']}: {verdict['finding'][:1000]}")
    print(f"    repeat: {again}{'' if data else ' --made-up'}", flush=True)
    if options.keep:
        from tests.campaign.judge import store

        folder = options.keep / f"{options.seed}-{number}"
        store(case_of(options.seed, number, data), folder)
        (folder / "finding.txt").write_text(f"{verdict['finding']}\n{again}\n")


class _Tally:
    """What the campaign has seen."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self._slowest = (0.0, 0, "")
        self._largest = (0.0, 0, "")
        self.findings = 0

    def add(self, number: int, verdict: dict) -> None:
        self._outcomes[verdict["kind"]][verdict["outcome"]] += 1
        self._slowest = max(self._slowest, (verdict["seconds"], number, verdict["kind"]))
        self._largest = max(self._largest, (verdict["megabytes"], number, verdict["kind"]))
        self.findings += bool(verdict["finding"])

    def tell(self) -> None:
        for kind, outcomes in self._outcomes.items():
            parts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            print(f"{kind}: {sum(outcomes.values())} cases: {parts}")
        seconds, number, kind = self._slowest
        print(f"slowest: {seconds:.2f} s, case {number} ({kind})")
        megabytes, number, kind = self._largest
        print(f"largest: {megabytes:.0f} MiB, case {number} ({kind})")
        print(f"findings: {self.findings}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
