"""Does a data set that doesn't fit into memory train as fast as one that does?

    python -m benchmarks.stores [--gigabytes 8] [--times 10] [--rounds 7]

Pictures are made, so many that their packed pixels take `--gigabytes`. One process trains the
default model on them from a store in memory; another, with its whole memory limited to a tenth of
the pixels by a memory cgroup (which takes root), decodes them into a store on disk and trains from
that. They take turns, a window of steps each, the order reversed in every other round; while one
trains the other waits. Before, the crops of both are compared to the bit. Seconds are of the wall
clock, as waiting for the disk is what is asked about. All is written to
`benchmarks/results/stores.json`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image

from benchmarks.ranks import machine, summary
from lightning_bbox import BoxDataModule, BoxRegressor, Storage

RESULTS = Path(__file__).parent / "results"
HEIGHT, WIDTH, BOXES = 768, 1024, 12
GATE = 0.5
"""Least speed from the disk, over that from memory."""


def main(args: list[str] | None = None) -> int:
    """Make the pictures, let the two train in turns, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of packed pixels")
    parser.add_argument("--times", type=float, default=10.0, help="pixels over allowed memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="of a window")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="of what is made; removed afterwards")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--trains", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.trains:
        train(**options.trains)
        return 0
    settings = {name: value for name, value in vars(options).items() if name != "trains"}
    results: dict[str, Any] = {"machine": machine(), "settings": json_of(settings)}
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        results |= compare(options, folder)
    finally:
        shutil.rmtree(folder)
    options.results.mkdir(exist_ok=True)
    (options.results / "stores.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0 if results["disk over memory"]["median"] >= GATE else 1


def json_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the folders of this machine."""
    return {name: value for name, value in settings.items() if name not in ("folder", "results")}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let both train in turns."""
    count = round(options.gigabytes * 1e9 / (4 * HEIGHT * WIDTH))
    make_pictures(folder / "data", count)
    limit = int(4 * HEIGHT * WIDTH * count / options.times)
    base = {"root": str(folder / "data"), "steps": options.steps, "batch": options.batch_size}
    rates: dict[str, list[float]] = {"device": [], "disk": []}
    with memory_group(limit) as group, started(base | {"store": "device"}) as memory:
        disk_settings = base | {"store": "disk", "folder": str(folder / "store")}
        with started(disk_settings, group) as disk:
            children = {"device": memory, "disk": disk}
            begun = {name: ask(child) for name, child in children.items()}
            print(json.dumps(begun, indent=2), flush=True)
            assert begun["device"]["crops"] == begun["disk"]["crops"], "other crops"
            told = {}
            for turn in range(-1, options.rounds):  # the first window warms up
                for name in children if turn % 2 else reversed(children):
                    told[name] = ask(children[name])
                    if turn >= 0:
                        rates[name].append(options.steps * options.batch_size / told[name]["s"])
                        print(f"{name}: {rates[name][-1]:.0f} crops/s", flush=True)
            peak = int((group / PEAK[group_version()]).read_text())
    read = told["disk"]["read"] - begun["disk"]["read"]
    ratios = [b / a for a, b in zip(rates["device"], rates["disk"], strict=True)]
    return {
        "bytes of pixels": 4 * HEIGHT * WIDTH * count,
        "bytes allowed to the process that trains from disk": limit,
        "bytes it took at most, page cache included": peak,
        "bytes it read from the disk while it trained": read,
        "seconds until it trained, decoding included": begun["disk"]["s"],
        "seconds until the other trained": begun["device"]["s"],
        "crops a second from memory": summary(rates["device"]),
        "crops a second from disk": summary(rates["disk"]),
        "disk over memory": summary(ratios),
    }


def make_pictures(folder: Path, count: int) -> None:
    """Write pictures of random discs, and their boxes."""
    folder.mkdir()
    random, lines = np.random.default_rng(0), ["image,xmin,ymin,xmax,ymax"]
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for number in range(count):
        coarse = random.integers(40, 120, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        picture = np.array(
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        )
        for _ in range(BOXES):
            radius = random.uniform(15, 40)
            cx, cy = random.uniform(radius, WIDTH - radius), random.uniform(radius, HEIGHT - radius)
            left, top = int(cx - radius), int(cy - radius)
            part = np.s_[top : top + int(2 * radius) + 2, left : left + int(2 * radius) + 2]
            disc = (x[part] + 0.5 - cx) ** 2 + (y[part] + 0.5 - cy) ** 2 < radius**2
            picture[part][disc] = random.integers(130, 255, 3)
            corners = f"{cx - radius:.2f},{cy - radius:.2f},{cx + radius:.2f},{cy + radius:.2f}"
            lines.append(f"{number}.jpg,{corners}")
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=85)
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")


LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}


def group_version() -> int:
    """Return which version of control groups this machine has."""
    return 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a control group whose processes may use so much memory, page cache included."""
    base = Path("/sys/fs/cgroup") / ("memory" if group_version() == 1 else "")
    group = base / f"lightning_bbox_stores_{os.getpid()}"
    group.mkdir()
    try:
        (group / LIMIT[group_version()]).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


@contextmanager
def started(settings: dict[str, Any], group: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a process that trains, in a control group if any, and end it."""
    words = [sys.executable, "-m", "benchmarks.stores", "--trains", json.dumps(settings)]
    if group is not None:
        words = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def ask(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Have a process go on, and return what it tells next."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    for line in child.stdout:
        if line.startswith("{"):
            told: dict[str, Any] = json.loads(line)
            return told
    msg = f"a process that trains ended with {child.wait()}"
    raise RuntimeError(msg)


class Windows(pl.Callback):
    """Train a window of steps whenever asked, and tell how long it took."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.hashed = steps, 0, hashlib.sha256()
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        if self.done < 5:
            self.hashed.update(batch.crops.numpy().tobytes())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.done += 1
        if self.done == 5 or (self.done > 5 and (self.done - 5) % self.steps == 0):
            seconds = time.perf_counter() - self.since
            read = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
            told = {"s": seconds, "read": int(read["read_bytes"]), "crops": self.hashed.hexdigest()}
            print(json.dumps(told), flush=True)
            sys.stdin.readline()
            self.since = time.perf_counter()


def train(root: str, steps: int, batch: int, store: Any, folder: str | None = None) -> None:
    """Train until killed, a window at a time; the first five steps are told of with their crops."""
    sys.stdin.readline()
    windows = Windows(steps)
    data = BoxDataModule(
        root, store=Storage(store, folder), batch_size=batch, draws_per_epoch=100_000
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1000, limit_val_batches=0, callbacks=[windows],
        enable_model_summary=False, use_distributed_sampler=False, **quiet,  # type: ignore[arg-type] # bools
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(BoxRegressor(), datamodule=data)


if __name__ == "__main__":
    sys.exit(main())
