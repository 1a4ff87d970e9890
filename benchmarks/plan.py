"""How fast an epoch's order and random numbers are laid out, beside a generator for each sample."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.inputs import JITTERED, ONE_SAMPLE, RandomPictures
from benchmarks.runner import Arm, Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """Yield epochs of the usual length, and longer ones."""
    for draws in setting.pick((500,), (20_000, 200_000), (20_000, 1_000_000)):
        boxes = max(100, draws // 5)
        data = RandomPictures(10, 300, 300, boxes, (28, 60), ONE_SAMPLE, 100, draws, JITTERED)
        data.setup("fit")
        numbers = sum(values.numel() * values.element_size() for values in data.samples("train", 0))
        arms = [Arm("ours", partial(epoch_of, data))]
        if draws <= 20_000:
            arms.append(
                Arm(
                    "a generator for each sample",
                    partial(one_by_one, draws, boxes),
                    None,
                    "draws as many numbers, but lays out no boxes",
                )
            )
        name = f"an epoch of {draws} samples"
        yield Case(name, "samples", draws, arms, useful_bytes=numbers)


def epoch_of(data: RandomPictures, epoch: int) -> torch.Tensor:
    """Lay out an epoch."""
    return data.samples("train", epoch).proposals


def one_by_one(draws: int, boxes: int, epoch: int) -> torch.Tensor:
    """Draw the box, the shift, two flips, three factors and the noise's place of each sample."""
    order = np.random.default_rng(epoch).integers(0, boxes, draws)
    drawn = np.empty((draws, 8))
    for sample in range(draws):
        drawn[sample] = np.random.default_rng((epoch, sample)).random(8)
    return torch.from_numpy(drawn[order.argsort()])
