"""Fit, predict and the exact ridge in 1, 2 and 4 processes: one model, how fast, what is exchanged.

    python -m benchmarks.ranks [--steps 60] [--rounds 3]

First the default model without batch norm learns built-in scenes in 64-true for eight steps, with
one process and with two: printed is the largest difference of their parameters, to be rounding.
Then one process with one thread, one with two threads, and two and four with one thread each do the
same work, in turns, the order reversed in every other round: train the default model on the same
global batches, solve a ridge on the default network's features, and refine the boxes of JPEGs, all
from the second batch on to the last validation, solution or file. Crops a second are by the clock
on the wall; the processor's seconds, of all processes together, are hardly changed by what else
runs. Bytes are those that a process hands to a collective operation of
torch.distributed, counted as it does, gradients by a hook of DDP's; the buffers that DDP hands on
with each step are not among them. All is written to `benchmarks/results/ranks.json`, and as a table
to `ranks.md` beside it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_bbox.core.compiling import default_precision
from lightning_bbox.models.checkpoints import read_checkpoint

RESULTS = Path(__file__).parent / "results"
MOST = 1e-8
"""Largest difference that is rounding in 64-true."""
EXACT_STEPS = 8
FIT, RIDGE, PREDICT = "fit", "ridge", "predict"
QUICKSTART = ["fit", "-c", "preset:quickstart", "--data.eval_draws=128", "--trainer.max_epochs=1"]
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "reduce_scatter_tensor",
    "gather",
    "scatter",
)


class Arm(NamedTuple):
    """How many processes, and threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


ARMS = (Arm(1, 1), Arm(1, 2), Arm(2, 1), Arm(4, 1))


class Exchange(pl.Callback):
    """Write down how long the work took, and what the first process handed to collectives.

    Args:
        file: Where to.
    """

    def __init__(self, file: str) -> None:
        self.file, self.sent = Path(file), Counter[str]()
        for name in COLLECTIVES:
            counted = self._counted(name, getattr(distributed, name))
            for module in (distributed, distributed.distributed_c10d):
                setattr(module, name, counted)

    def _counted(self, name: str, collective: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            self.sent[name] += tensors[-1].nbytes if tensors else 0
            return collective(*args, **kwargs)

        return call

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the gradients that DDP exchanges."""
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self._gradients)

    def _gradients(
        self,
        state: None,
        bucket: distributed.GradBucket,  # type: ignore[name-defined] # torch's stub lags
    ) -> torch.futures.Future[torch.Tensor]:
        self.sent["gradients"] += bucket.buffer().nbytes
        self.sent["all_reduce"] -= bucket.buffer().nbytes  # which the next line counts too
        return allreduce_hook(state, bucket)  # type: ignore[arg-type] # None is the default group

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Begin after the first step, which warms up."""
        if batch_idx == 0:
            self._begin()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it down, before the test."""
        self._tell(trainer)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin after the first batch, which warms up."""
        if batch_idx == 0:
            self._begin()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it down, after the files."""
        if stage == PREDICT:
            self._tell(trainer)

    def _begin(self) -> None:
        self.sent.clear()
        self.since, self.busy = time.perf_counter(), time.process_time()

    def _tell(self, trainer: pl.Trainer) -> None:
        told = {"seconds": time.perf_counter() - self.since, "bytes": dict(self.sent)}
        busy = torch.tensor(time.process_time() - self.busy)
        told["busy"] = float(trainer.strategy.reduce(busy, reduce_op="sum"))
        if trainer.is_global_zero:
            self.file.write_text(json.dumps(told | {"steps": max(0, trainer.global_step - 1)}))


def main(args: list[str] | None = None) -> int:
    """Compare the parameters, then the speeds, and write both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--window", type=int, default=12, help="steps between two logs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=128, help="over all processes")
    parser.add_argument("--pictures", type=int, default=400, help="of 5 boxes, to predict")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more of fit's")
    options = parser.parse_args(args)
    results: dict[str, Any] = {"machine": machine(), "settings": {**vars(options)}}
    del results["settings"]["results"]
    base = [f"--trainer.log_every_n_steps={options.window}"]
    base += [f"--data.batch_size={options.batch_size}", *options.options]
    base += [f"--data.draws_per_epoch={options.steps * options.batch_size}"]
    with tempfile.TemporaryDirectory() as folder:
        few = [*base, f"--data.draws_per_epoch={EXACT_STEPS * options.batch_size}"]
        results["largest difference of parameters"] = difference(few, Path(folder))
        print(json.dumps(results, indent=2), flush=True)
        if results["largest difference of parameters"] > MOST:
            return 1
        results["arms"] = measure(base, options, Path(folder))
    results["machine"]["load after"] = os.getloadavg()
    options.results.mkdir(exist_ok=True)
    (options.results / "ranks.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.results / "ranks.md").write_text(as_markdown(results) + "\n")
    print(as_markdown(results))
    return 0


def measure(base: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let all arms do all work, in turns, and return what they took and exchanged."""
    trained = train(Arm(1, 1), [*QUICKSTART, *base], folder / "trained")
    make_pictures(folder / "pictures", options.pictures)
    drawn = (options.steps - 1) * options.batch_size
    works = {
        FIT: ([*QUICKSTART, *base], drawn),
        RIDGE: ([*QUICKSTART, *base, "--model=RidgeRegressor", "--model.lam=1"], drawn),
        PREDICT: (
            [PREDICT, f"--ckpt_path={trained}", "--data=BoxDataModule",
             f"--data.root={folder / 'pictures'}", f"--data.batch_size={options.batch_size}"],
            5 * options.pictures - options.batch_size,
        ),
    }  # fmt: skip
    found: dict[str, Any] = {name: {str(arm): [] for arm in ARMS} for name in works}
    for turn in range(options.rounds):
        for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
            for name, (words, crops) in works.items():
                run = train(arm, words, folder / f"{name}-{arm.processes}-{arm.threads}-{turn}")
                told = json.loads(exchange_of(run).read_text())
                told |= {"rate": crops / told["seconds"], "busy": 1e3 * told["busy"] / crops}
                found[name][str(arm)].append(told)
                print(f"{name}, {arm}: {told['rate']:.0f} crops/s", flush=True)
    return {name: {arm: in_all(told) for arm, told in arms.items()} for name, arms in found.items()}


def in_all(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what an arm took over all rounds, and what it exchanged, the same in each."""
    return {
        "crops a second": summary([told["rate"] for told in rounds]),
        "processor, s for 1,000 crops": summary([told["busy"] for told in rounds]),
        "steps": rounds[-1]["steps"],
        "bytes": rounds[-1]["bytes"],
    }


def as_markdown(results: dict[str, Any]) -> str:
    """Compose the table of speeds, beside one process and thread, and of what was exchanged."""
    lines = ["| work | processes x threads | crops/s | processor, s for 1,000 crops (quartiles) |"]
    lines[0] += " times one process | exchanged |"
    lines.append("|---|---|---|---|---|---|")
    for name, arms in results["arms"].items():
        one = arms[str(ARMS[0])]["processor, s for 1,000 crops"]["median"]
        for arm, told in arms.items():
            busy, steps = told["processor, s for 1,000 crops"], max(1, told["steps"])
            low, high = busy["quartiles"]
            gradients = told["bytes"].get("gradients", 0)
            others = sum(told["bytes"].values()) - gradients
            exchanged = f"{gradients / steps / 1e6:.2f} MB a step, " * bool(gradients)
            exchanged += f"{others / 1e6:.3f} MB besides" * bool(others)
            lines.append(
                f"| {name} | {arm} | {told['crops a second']['median']:.0f} | "
                f"{busy['median']:.2f} ({low:.2f} to {high:.2f}) | {busy['median'] / one:.2f} | "
                f"{exchanged or '-'} |"
            )
    where = results["machine"]
    lines += ["", f"{where['processor']}, {where['cores']} cores, {where['precision']}, commit"]
    lines[-1] += f" {where['commit']}, load {where['load before'][0]:.1f} to "
    lines[-1] += (
        f"{where['load after'][0]:.1f}. More processes than cores show what they cost, and a"
    )
    lines[-1] += (
        " machine with other work gives more of itself to more of them: the processor's time tells."
    )
    return "\n".join(lines)


def exchange_of(folder: Path) -> Path:
    """Return where a run writes down what it exchanged."""
    return folder.with_suffix(".json")


def make_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of 640 x 480 with five boxes each."""
    folder.mkdir()
    random, lines = np.random.default_rng(0), ["image,xmin,ymin,xmax,ymax"]
    for number in range(count):
        coarse = random.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
        for x, y in random.uniform(0, (600, 440), (5, 2)).tolist():
            lines.append(f"{number}.jpg,{x:.1f},{y:.1f},{x + 30:.1f},{y + 30:.1f}")
    (folder / "boxes.csv").write_text("\n".join(lines))


def difference(base: list[str], folder: Path) -> float:
    """Return the largest difference of any parameter between one process and two."""
    few = int(base[1].partition("=")[2]) * EXACT_STEPS
    exact = [
        *QUICKSTART,
        *base,
        f"--data.draws_per_epoch={few}",
        "--trainer.precision=64-true",
        "--model.backbone=ShallowConvNet",
    ]
    exact.append("--model.backbone.batch_norm=false")
    one, two = (
        read_checkpoint(train(arm, exact, folder / str(arm)) / "checkpoints" / "last.ckpt")
        for arm in (Arm(1, 1), Arm(2, 1))
    )
    return max(
        float((value.double() - two["state_dict"][name].double()).abs().max())
        for name, value in one["state_dict"].items()
    )


def train(arm: Arm, words: list[str], folder: Path) -> Path:
    """Run a command in processes of their own, and return the run's folder."""
    clock = {
        "class_path": "benchmarks.ranks.Exchange",
        "init_args": {"file": str(exchange_of(folder))},
    }
    command = [sys.executable, "-m", "lightning_bbox", *words]
    command += [f"--trainer.callbacks={json.dumps([clock])}"]
    command += [f"--runs={folder.parent}", f"--name={folder.name}", "--trainer.accelerator=cpu"]
    command += [f"--trainer.devices={arm.processes}"]
    command += ["--trainer.strategy=ddp"] if arm.processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(arm.threads)}
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if finished.returncode:
        sys.stderr.write(finished.stderr)
        finished.check_returncode()
    return folder


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of what was measured, and all of it."""
    low, median, high = torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": median, "quartiles": [low, high], "all": values}


def machine() -> dict[str, Any]:
    """Return what a figure of speed depends on."""
    cpuinfo, git = Path("/proc/cpuinfo"), ["git", "rev-parse", "--short", "HEAD"]
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    commit = subprocess.run(git, check=False, capture_output=True, text=True, cwd=RESULTS.parent)
    return {
        "commit": commit.stdout.strip(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "precision": default_precision(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
