"""How the cut scales with the batch, and an epoch's plan and cut with the number of boxes.

One process, two and four are compared by `python -m benchmarks.ranks`.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.crops import cut_case, in_turn
from benchmarks.inputs import CROP, JITTERED, ONE_SAMPLE, PATCH, RandomPictures, batches_of
from benchmarks.runner import Arm, Case, Setting
from lightning_bbox.data.loader import Rows

BATCH = "the cut"
BOXES = "an epoch's first batch, boxes"


def cases(setting: Setting) -> Iterator[Case]:
    """Yield batches from 64 to 65,536, then data of 1,000 to 1,000,000 boxes."""
    sizes = setting.pick((16, 64), (64, 256, 1024, 4096), (64, 256, 1024, 4096, 16_384, 65_536))
    largest = 65_536 if setting.on_cuda else sizes[-1]
    patches = setting.pick(256, 4096, 8192)
    for batch in sizes if not setting.on_cuda else (64, 256, 1024, 4096, 16_384, largest):
        data = RandomPictures(
            patches, PATCH, PATCH, patches, (28, 34), ONE_SAMPLE, batch, 2 * batch, JITTERED
        )
        batches = batches_of(data, batch, setting)
        calls = [partial(data.crops_of, samples, augment=True) for samples in batches]
        arms = [Arm("ours", in_turn(calls))]
        yield cut_case(BATCH, batch, CROP, arms)
    for boxes in setting.pick((1000,), (1000, 100_000), (1000, 10_000, 100_000, 1_000_000)):
        yield of_boxes(boxes, setting)


def of_boxes(boxes: int, setting: Setting) -> Case:
    """Lay out an epoch that sees every box once, move it to the device, and cut a batch of it."""
    batch = setting.pick(64, 1000, 1000)
    data = RandomPictures(20, 300, 300, boxes, (28, 60), ONE_SAMPLE, batch, boxes)
    data.setup("fit")
    rows = torch.arange(batch, device=setting.device)

    def first_batch(turn: int) -> torch.Tensor:
        # Another epoch than the last call's, so that it is laid out anew.
        return data.make_batch(Rows("train", 1 + turn, rows, torch.ones_like(rows).bool())).crops

    return Case(f"{BOXES} {boxes}", "epochs", 1, [Arm("ours", first_batch)])
