"""Where the time of `predict` goes: CPU seconds of its stages.

    python -m benchmarks.profile_predict [--runs 5]

Prints a table of the cases of `benchmarks/predict.py`, with the files that the command line writes;
of several runs the median of each stage. Each stage is a few functions that are wrapped, without
what others of them spend within; threads are added up.
"""

import argparse
import io
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch

from benchmarks.__main__ import quiet
from benchmarks.inputs import noise
from benchmarks.predict import (
    A_BOX,
    FILES,
    LARGE,
    decode_files,
    predict_files,
    some_boxes,
    write_jpegs,
)
from benchmarks.runner import Setting, single_thread
from benchmarks.train_step import fitted_model
from lightning_bbox import BoxDataModule, Refiner
from lightning_bbox.annotations import headers
from lightning_bbox.data import module
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.pictures import store
from lightning_bbox.refinement import refiner
from lightning_bbox.refinement.predictions import PredictionFiles

STAGES: Mapping[str, tuple[tuple[object, str], ...]] = {
    "annotations and headers read": (
        (BoxDataModule, "read_rough"),
        (headers, "_facts_or_known"),
    ),
    "pictures decoded": ((store, "decode_sized"), (refiner, "as_rgb")),
    "pixels packed": ((store.ImageStore, "expect"),),
    "crops cut": ((module, "cut_crops"), (refiner, "cut_crops")),
    "the network": ((OffsetNet, "forward"),),
    "its outputs made boxes": ((OffsetModel, "_look"),),
    "the law": ((PredictionFiles, "_weigh"), (refiner.Refiner, "_weigh")),
    "files written": ((PredictionFiles, "on_predict_end"),),
}
"""The functions of each stage."""
REST, TOTAL, ALONE = "the rest", "all", "Pillow alone, decoding"


class Stages:
    """CPU seconds that named functions spend, each without what others of them spend within."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._thread, self._lock = threading.local(), threading.Lock()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Wrap the functions of all stages for a while."""
        with ExitStack() as stack:
            for stage, functions in STAGES.items():
                for owner, name in functions:
                    timed = self._timed(stage, getattr(owner, name))
                    stack.enter_context(patch.object(owner, name, timed))
            since = time.process_time()
            yield
            spent = time.process_time() - since
        self.seconds |= {REST: spent - sum(self.seconds.values()), TOTAL: spent}

    def _timed(self, stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def timed(*args: object, **options: object) -> object:
            outer, since = getattr(self._thread, "within", 0.0), time.thread_time()
            self._thread.within = 0.0
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - since
                with self._lock:
                    self.seconds[stage] += spent - self._thread.within
                self._thread.within = outer + spent

        return timed


class Case(NamedTuple):
    """What is done in a run, how often, and the folder of its JPEGs, if it has one."""

    name: str
    times: int
    call: Callable[[], None]
    root: Path | None = None


def cases(setting: Setting, folder: Path) -> Iterator[Case]:
    """Yield the cases."""
    model = fitted_model(some_boxes(), setting.device)
    for name, sizes in FILES.items():
        pictures, height, width, boxes = setting.pick(*sizes)
        write_jpegs(root := folder / name, pictures, height, width, boxes)

        def predict(root: Path = root) -> None:
            with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
                predict_files(model, root, setting, [PredictionFiles(Path(out) / "run")])

        yield Case(
            f"{boxes:,} boxes in each of {pictures:,} JPEGs of {width} x {height}", 1, predict, root
        )
    ready = Refiner(model, setting.device)
    height, width = setting.pick((60, 80), LARGE, LARGE)
    picture, times = noise(1, height, width)[0], setting.pick(1, 50, 50)

    def refine() -> None:
        for _ in range(times):
            ready.refine(picture, A_BOX)

    yield Case(f"`Refiner`, a box of {width} x {height}", times, refine)


def measured(setting: Setting, runs: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each stage of each case, the median of runs after a first one."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, single_thread():
        for name, times, call, root in cases(setting, Path(folder)):
            call()
            several = []
            for _ in range(runs):
                stages = Stages()
                with stages.measuring():
                    call()
                since = time.process_time()
                if root is not None:
                    decode_files(root)
                    stages.seconds[ALONE] = time.process_time() - since
                several.append(stages.seconds)
            rows = (*STAGES, REST, TOTAL, ALONE)
            found[name] = {row: median(one[row] for one in several) / times for row in rows}
    return found


def as_markdown(found: dict[str, dict[str, float]]) -> str:
    """Return a table: a row a stage, with milliseconds and the share of all."""
    rows = [["CPU time, ms", *found], ["---"] * (1 + len(found))]
    for stage in (*STAGES, REST, TOTAL, ALONE):
        rows.append([stage])
        for seconds in found.values():
            share = f"{1e3 * seconds[stage]:.3g} ({seconds[stage] / seconds[TOTAL]:.0%})"
            rows[-1].append(share if seconds[stage] else "")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(args: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(args)
    quiet()
    print(as_markdown(measured(Setting(torch.device("cpu")), options.runs)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
