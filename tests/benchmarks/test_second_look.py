"""Which draws of the benchmark of two looks may mean another box."""

import numpy as np
import torch

from benchmarks.second_look import _marked, overlaps_its_own_most
from lightning_bbox import SceneDataModule, UniformJitter


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.clip(sides, 0, None)))
    return common / (float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common)


def test_a_proposal_may_mean_the_box_that_it_overlaps_most():
    data = SceneDataModule(num_scenes=80, jitter=UniformJitter(30.0))
    data.setup("test")
    items, samples = data.source.splits["test"], data.samples("test")
    # All boxes in one picture: many proposals lie nearer to another than to their own.
    items = type(items)(
        torch.zeros_like(items.image_index), items.boxes, items.labels, items.clusters
    )
    found = overlaps_its_own_most(samples, items)
    boxes = items.boxes.double().numpy()
    for row, item in enumerate(samples.items.tolist()):
        proposal = samples.proposals[row].double().numpy()
        ious = [overlap(proposal, box) for box in boxes]
        assert bool(found[row]) == (ious[item] >= max(ious) - 1e-6)
    assert 0 < int(found.sum()) < len(found)


def test_marked_boxes_are_told_with_what_becomes_of_them():
    assert _marked({"marked": 0.0, "before": float("nan"), "after": float("nan")}) == "0.0 %"
    assert _marked({"marked": 0.25, "before": 0.5, "after": 0.75}) == "25.0 %: 0.50 to 0.75"
