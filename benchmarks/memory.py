"""What it spares to keep freed memory, as the command line does on a CPU, in a training step.

Each way is a process of its own, since the C library can't be told to go back.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.inputs import ONE_SAMPLE, RandomPictures
from benchmarks.runner import Arm, Case, Setting, Timed
from benchmarks.train_step import BareLoop
from lightning_bbox.core.memory import keep_freed_memory

WAYS = {"kept, as by the command line": True, "given back, glibc's default": False}


def cases(setting: Setting) -> Iterator[Case]:
    """Yield steps of two batch sizes; none on CUDA, where torch keeps memory itself."""
    if setting.on_cuda:
        return
    for size in setting.pick((16,), (1024,), (128, 1024)):
        steps = setting.pick(1, 3, 10)
        arms = [Arm(name, partial(in_a_process, size, steps, keep)) for name, keep in WAYS.items()]
        yield Case(f"training step, batch {size}, freed memory", "crops", size, arms)


def in_a_process(size: int, steps: int, keep: bool, _: int) -> Timed:
    """Make steps in another process; its value is the last loss."""
    command = [sys.executable, "-m", "benchmarks.memory", str(size), str(steps)]
    command += ["--keep"] * keep
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, loss = json.loads(done.stdout)
    return Timed(seconds, loss)


def main() -> None:
    """Print the seconds of a step, and the last loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    draws = options.size * (options.steps + 1)
    data = RandomPictures(40, 300, 300, 400, (28, 60), ONE_SAMPLE, options.size, draws)
    data.setup("fit")
    loop, loss, since = BareLoop(data, device), torch.zeros(()), 0.0
    for step, batch in enumerate(data.batches("train", 0, device)):
        if step == 1:
            since = time.thread_time()
        loss = loop.step(batch)
    print(json.dumps([(time.thread_time() - since) / options.steps, loss.item()]))


if __name__ == "__main__":
    main()
