"""A law at work on boxes that the picture's border cuts: their sides there stay."""

import numpy as np
import pytest
import torch

from lightning_bbox import BadInput
from lightning_bbox.geometry.boxes import paired_iou
from lightning_bbox.geometry.codecs import encode_deltas
from lightning_bbox.geometry.displacement import Moved
from lightning_bbox.geometry.law_fitting import fit_law
from lightning_bbox.geometry.weighing import Said, at_border, learn_law, places_of

WIDTH, HEIGHT = 200.0, 150.0
LIMITS = torch.tensor([[WIDTH, HEIGHT]])


def cut_at_the_border(scale, count=400, seed=0):
    """Return true boxes, boxes so many times as large, and what a model says of these.

    Objects lie anywhere, across the border too; the border cuts both kinds of boxes.
    """
    random = np.random.default_rng(seed)
    sizes = random.uniform(25, 50, (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * [WIDTH, HEIGHT] - sizes / 2
    limits = [WIDTH, HEIGHT, WIDTH, HEIGHT]
    truth = np.clip(np.concatenate([corners, corners + sizes], axis=1), 0, limits)
    sizes = truth[:, 2:] - truth[:, :2]
    centres = truth[:, :2] + sizes / 2
    rough = np.concatenate([centres - scale * sizes / 2, centres + scale * sizes / 2], axis=1)
    rough = np.clip(rough, 0, limits)
    truth, rough = (torch.from_numpy(each).float() for each in (truth, rough))
    stds = torch.full((count, 4), 0.05)
    said = encode_deltas(truth, rough) + stds * torch.from_numpy(random.normal(size=(count, 4)))
    return truth, rough, Said(said.float(), stds, ((1.0, 1.0),))


def test_sides_at_the_border_are_known_to_half_a_pixel():
    boxes = torch.tensor([[0.4, 0.6, 199.6, 149.4], [-0.5, 0.0, 80.0, 150.5]])
    assert at_border(boxes, LIMITS).tolist() == [
        [True, False, True, False],
        [True, True, False, True],
    ]


def test_a_law_is_learned_from_boxes_that_no_border_cuts_where_there_are_enough():
    _, rough, said = cut_at_the_border(1.3)
    clusters = torch.arange(len(rough)) // 4
    whole = ((rough[:, :2] > 0.5) & (rough[:, 2:] < LIMITS - 0.5)).all(dim=1)
    assert 100 < int(whole.sum()) < 350
    mine = learn_law(said, rough, LIMITS, clusters)
    pictures = len(set(clusters[whole].tolist()))
    assert mine == fit_law(said.offsets[whole], said.stds[whole], pictures)
    assert mine.means[0][2] == pytest.approx(-np.log(1.3), abs=0.01)
    # Of fewer than fifty such boxes all are taken; of fewer than fifty in all, none can be.
    few = torch.cat([whole.nonzero()[:49, 0], (~whole).nonzero()[:40, 0]])
    part = Said(said.offsets[few], said.stds[few], said.tails)
    mine = learn_law(part, rough[few], LIMITS, clusters[few])
    assert mine == fit_law(part.offsets, part.stds, len(set(clusters[few].tolist())))
    few = few[:49]
    part = Said(said.offsets[few], said.stds[few], said.tails)
    with pytest.raises(BadInput, match="49 boxes are too few"):
        learn_law(part, rough[few], LIMITS, clusters[few])


@pytest.mark.parametrize("scale", [1.1, 1.3])
def test_boxes_that_are_too_large_and_cut_end_nearer_to_the_truth(scale):
    truth, rough, said = cut_at_the_border(scale)
    law = learn_law(said, rough, LIMITS, torch.arange(len(rough)))
    moved = law.move(*said)
    cut = at_border(rough, LIMITS).any(dim=1)
    plain, found = places_of(moved, said, rough), places_of(moved, said, rough, LIMITS)
    assert torch.equal(plain[~cut], found[~cut])
    before, after = (paired_iou(each, truth)[cut].mean() for each in (plain, found))
    assert float(after) > float(before) + 0.01
    stay = (found == rough)[at_border(rough, LIMITS)]
    assert float(stay.double().mean()) > 0.95


def test_a_side_at_the_border_moves_where_the_picture_is_sure():
    rough = torch.tensor([[0.0, 20.0, 40.0, 60.0]]).repeat(3, 1)
    # The left side 4, 14 and 18 pixels farther in; 3 deviations of a side are 13.4 pixels.
    inside = torch.tensor([4.0, 13.0, 14.0])
    target = rough.clone()
    target[:, 0] = inside
    offsets = encode_deltas(target, rough)
    stds = torch.tensor([[0.1, 0.1, 0.1, 0.1]]).repeat(3, 1)
    assert 3 * np.hypot(0.1, 0.1 / 2) * 40 == pytest.approx(13.416, abs=1e-3)
    said, none = Said(offsets, stds, ((1.0, 1.0),)), torch.zeros(3)
    found = places_of(Moved(offsets, stds, none, none), said, rough, LIMITS)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 0.0, 14.0]))
    torch.testing.assert_close(found[:, 1:], rough[:, 1:])


def test_boxes_of_two_targets_move_whole():
    rough = torch.tensor([[0.0, 20.0, 40.0, 60.0]])
    offsets, stds, none = torch.tensor([[0.1, 0.0]]), torch.full((1, 2), 0.1), torch.zeros(1)
    said = Said(offsets, stds, ((1.0, 1.0),))
    found = places_of(Moved(offsets, stds, none, none), said, rough, LIMITS)
    torch.testing.assert_close(found, rough + torch.tensor([[4.0, 0.0, 4.0, 0.0]]))
