"""Displacement laws: planted ones are found, boxes that are right stay, and none drifts."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from lightning_bbox import BadInput, DisplacementLaw, fit_law, law_of_pairs
from lightning_bbox.geometry.boxes import paired_iou
from lightning_bbox.geometry.codecs import decode_deltas
from lightning_bbox.geometry.law_fitting import usual_law

STD = 0.05  # of what the model says
BOX = torch.tensor([0.0, 0.0, 1.0, 1.0])


def said_of(off, seed=0, std=STD):
    """Return what a model would say of boxes that are off so, and its standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    return off + std * torch.randn(off.shape, generator=generator), torch.full_like(off, std)


def normal(count, mean, std, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(mean) + std * torch.randn(count, len(mean), generator=generator)


def iou(offsets, truth):
    return paired_iou(decode_deltas(offsets, BOX), decode_deltas(truth, BOX))


def test_a_planted_law_is_found():
    law = fit_law(*said_of(normal(4000, [0.02, 0.0, 0.1, -0.05], 0.04)))
    assert law.right < 0.1
    share, mean, std = max(zip(law.shares, law.means, law.stds, strict=True))
    assert share > 0.85
    assert mean == pytest.approx([0.02, 0.0, 0.1, -0.05], abs=0.012)
    assert std == pytest.approx([0.04] * 4, abs=0.01)


@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.05, 0.2])
def test_boxes_that_are_right_stay_and_the_others_are_found(wrong):
    bad = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < wrong
    truth = bad[:, None] * normal(3000, [0.0] * 4, 0.2)
    said, stds = said_of(truth)
    law = fit_law(said, stds)
    assert law.right == pytest.approx(1 - wrong, abs=0.03)
    moved = law.move(said, stds)
    assert iou(moved.offsets, truth)[~bad].mean() > 0.99
    assert (moved.offsets[~bad] == 0).all(dim=1).double().mean() > 0.97
    if wrong:
        places = 0 * said, said, moved.offsets
        before, model, after = (iou(offsets, truth)[bad].mean() for offsets in places)
        assert after - before > 0.8 * (model - before)
        assert moved.wrong[bad].mean() > 0.6 > 0.1 > moved.wrong[~bad].mean()


@pytest.mark.parametrize("bias", [0.0, 0.2])
def test_a_bias_of_the_model_is_not_taken_for_one_of_the_boxes(bias):
    said, stds = said_of(torch.zeros(2000, 4))
    law = fit_law(said + bias * STD, stds)
    assert law.right > 0.95
    moved = law.move(said + bias * STD, stds).offsets
    assert (moved == 0).all(dim=1).double().mean() > 0.995


def test_two_ways_of_being_off_are_told_apart():
    off = torch.cat(
        [normal(2700, [0.0, 0.0, 0.105, 0.105], 0.01), normal(300, [0.0] * 4, 0.3, seed=3)]
    )
    law = fit_law(*said_of(off))
    assert len(law.shares) == 2
    share, mean, _ = max(zip(law.shares, law.means, law.stds, strict=True))
    assert share == pytest.approx(0.9, abs=0.03)
    assert mean == pytest.approx([0.0, 0.0, 0.105, 0.105], abs=0.01)
    assert "10 % too narrow, 10 % too short on average" in law.words()


def test_what_follows_of_a_box_is_bayes_rule_on_a_fine_grid():
    law = DisplacementLaw(0.3, (0.7,), ((0.1, 0.0),), ((0.04, 0.02),))
    said, stds = (0.06, 0.01), (0.05, 0.03)
    moved = law.move(torch.tensor([said]), torch.tensor([stds]))
    grid = np.linspace(-0.4, 0.5, 9001)
    right, wrong, means = 0.3, 0.7, []
    for axis in range(2):
        likelihood = scipy_stats.norm(grid, stds[axis]).pdf(said[axis])
        joint = likelihood * scipy_stats.norm(law.means[0][axis], law.stds[0][axis]).pdf(grid)
        means.append((grid * joint).sum() / joint.sum())
        wrong *= joint.sum() * (grid[1] - grid[0])
        right *= scipy_stats.norm(0, stds[axis]).pdf(said[axis])
    chance = wrong / (wrong + right)
    assert float(moved.wrong) == pytest.approx(chance, abs=1e-4)
    candidates = [0.0, 0.0], means, [chance * mean for mean in means]
    assert min(math.dist(moved.offsets[0].tolist(), one) for one in candidates) < 1e-4


def test_a_box_moves_only_for_an_expected_gain():
    law = DisplacementLaw(0.4, (0.6,), ((0.0, 0.05, 0.1, 0.0),), ((0.1,) * 4,))
    said, stds = said_of(normal(50, [0.0, 0.05, 0.1, 0.0], 0.1))
    moved = law.move(said, stds)
    assert (moved.gain >= 0).all()
    assert ((moved.gain == 0) == (moved.offsets == 0).all(dim=1)).all()
    stays = DisplacementLaw(1.0, (0.0,), ((0.0,) * 4,), ((0.1,) * 4,)).move(said, stds)
    assert torch.equal(stays.offsets, torch.zeros_like(said))
    assert torch.equal(stays.wrong, torch.zeros(50))


def test_boxes_refined_once_do_not_drift_when_they_are_refined_again():
    truth = normal(3000, [0.0] * 4, 0.06)
    said, stds = said_of(truth)
    first = fit_law(said, stds).move(said, stds).offsets
    # The picture says the same of the box where it is now.
    again = fit_law(said - first, stds).move(said - first, stds).offsets
    assert (again == 0).all(dim=1).double().mean() > 0.95
    assert iou(first + again, truth).mean() > iou(first, truth).mean() - 0.002


def test_the_told_deviation_holds_where_boxes_are_off_by_a_normal_law():
    truth = normal(4000, [0.0, 0.0, 0.1, 0.1], 0.06)
    said, stds = said_of(truth)
    moved = fit_law(said, stds).move(said, stds)
    held = ((moved.offsets - truth).abs() <= 1.645 * moved.stds).double().mean()
    assert held == pytest.approx(0.9, abs=0.02)


def test_a_law_of_many_boxes_is_the_same_each_time():
    truth = normal(60_000, [0.1, 0.0], 0.03)
    law = fit_law(*said_of(truth))
    assert law == fit_law(*said_of(truth))
    assert max(zip(law.shares, law.means, strict=True))[1] == pytest.approx([0.1, 0.0], abs=0.005)


def test_of_no_boxes_none_moves():
    law = DisplacementLaw(0.5, (0.5,), ((0.1, 0.0),), ((0.02, 0.02),))
    assert law.move(torch.zeros(0, 2), torch.zeros(0, 2)).offsets.shape == (0, 2)


@pytest.mark.parametrize("std", [math.nan, 0.0])
def test_too_few_boxes_or_a_model_that_cannot_tell_have_no_law(std):
    with pytest.raises(BadInput, match="49 boxes are too few"):
        fit_law(*said_of(torch.zeros(49, 2)))
    with pytest.raises(BadInput, match="no standard deviations"):
        fit_law(torch.zeros(60, 2), torch.full((60, 2), std))


def test_a_law_is_kept_in_a_file(tmp_path):
    law = fit_law(*said_of(normal(200, [0.0, 0.0, 0.1, 0.1], 0.05)))
    law.save(tmp_path / "law.json")
    assert DisplacementLaw.load(tmp_path / "law.json") == law
    older = {name: value for name, value in law.plain().items() if name != "within"}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert DisplacementLaw.load(tmp_path / "older.json").shares == law.shares


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"right": 1}',
        '{"right": 0.5, "shares": [0.2], "means": [[0, 0]], "stds": [[1, 1]]}',
        '{"right": 0.5, "shares": [0.5], "means": [[0, 0]], "stds": [[1, -1]]}',
        '{"right": 0.5, "shares": [0.5], "means": [[0, 0]], "stds": [[1, NaN]]}',
        '{"right": 0.5, "shares": [0.5], "means": [[0, 0, 0]], "stds": [[1, 1, 1]]}',
    ],
)
def test_a_file_that_holds_no_law_is_refused(tmp_path, text):
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(BadInput, match="law"):
        DisplacementLaw.load(tmp_path / "law.json")
    with pytest.raises(BadInput, match="nothing"):
        DisplacementLaw.load(tmp_path / "nothing.json")


def test_known_offsets_give_their_law_without_a_model():
    off = normal(2000, [0.0, -0.04, 0.08, 0.08], 0.03)
    off[:200] = 0
    law = law_of_pairs(decode_deltas(off, BOX), BOX.expand(2000, 4))
    assert law.right == pytest.approx(0.1, abs=0.002)
    share, mean, std = max(zip(law.shares, law.means, law.stds, strict=True))
    assert share == pytest.approx(0.9, abs=0.002)
    assert mean == pytest.approx(off[200:].mean(dim=0).tolist(), abs=1e-4)
    assert std == pytest.approx(off[200:].std(dim=0).tolist(), abs=1e-3)
    for part in (
        "10 % of the boxes are right",
        "4 % too far down",
        "8 % too narrow, 8 % too short",
    ):
        assert part in law.words()


def test_few_pairs_tell_no_law():
    with pytest.raises(BadInput, match="49 boxes are too few"):
        law_of_pairs(BOX.expand(49, 4), BOX.expand(49, 4))


TAILS = ((0.85, 1.0), (0.15, 3.0))


def test_boxes_that_are_right_stay_though_some_errors_of_the_model_are_large():
    wide = torch.rand(2000, 1, generator=torch.Generator().manual_seed(3)) < TAILS[1][0]
    said, stds = said_of(torch.zeros(2000, 4))
    said = torch.where(wide, TAILS[1][1] * said, said)
    taken = fit_law(said, stds)
    law = fit_law(said, stds, tails=TAILS)
    assert law.right > 0.97 > taken.right
    assert (law.move(said, stds, TAILS).offsets == 0).all(dim=1).double().mean() > 0.99


def test_under_errors_of_two_widths_bayes_rule_holds_on_a_fine_grid():
    law = DisplacementLaw(0.3, (0.7,), ((0.1, 0.0),), ((0.04, 0.02),))
    said, stds = (0.16, 0.01), (0.05, 0.03)
    moved = law.move(torch.tensor([said]), torch.tensor([stds]), TAILS)
    grid = np.linspace(-0.8, 1.0, 9001)
    step, wrong, right, sums = grid[1] - grid[0], 0.0, 0.0, np.zeros(2)
    for share, factor in TAILS:
        masses, means = [], []
        for axis in range(2):
            likelihood = scipy_stats.norm(grid, factor * stds[axis]).pdf(said[axis])
            prior = scipy_stats.norm(law.means[0][axis], law.stds[0][axis]).pdf(grid)
            masses.append((likelihood * prior).sum() * step)
            means.append((grid * likelihood * prior).sum() * step / masses[-1])
        wrong += 0.7 * share * np.prod(masses)
        sums += 0.7 * share * np.prod(masses) * np.array(means)
        at_zero = [scipy_stats.norm(0, factor * stds[axis]).pdf(said[axis]) for axis in range(2)]
        right += 0.3 * share * np.prod(at_zero)
    assert float(moved.wrong) == pytest.approx(wrong / (wrong + right), abs=1e-4)
    candidates = [0.0, 0.0], sums / wrong, sums / (wrong + right)
    assert min(math.dist(moved.offsets[0].tolist(), one) for one in candidates) < 1e-4


def test_under_the_usual_law_boxes_that_are_right_stay_and_far_ones_move():
    widths = torch.tensor([0.0, 0.1, 0.4, 1.0]).repeat(500)
    truth = 0.5 * widths[:, None] * (2 * torch.rand(2000, 4, generator=torch.manual_seed(4)) - 1)
    law = usual_law(truth, widths, 0.5)
    assert law.right == 0.5 == pytest.approx(sum(law.shares))
    for std, width in zip(law.stds, (0.1, 0.4, 1.0), strict=True):
        assert std == pytest.approx([0.5 * width / math.sqrt(3)] * 4, rel=0.1)
    said, stds = said_of(truth)
    moved = law.move(said, stds).offsets
    right, far = widths == 0, widths == 1
    assert iou(moved, truth)[right].mean() > 0.985 > iou(said, truth)[right].mean() + 0.05
    assert iou(moved, truth)[far].mean() > iou(said, truth)[far].mean() - 0.02
    alone = law.move(said[5:6], stds[5:6]).offsets
    torch.testing.assert_close(alone[0], moved[5])


def test_errors_that_go_together_in_a_picture_are_no_law_of_the_boxes():
    shared = normal(60, [0.0] * 4, 0.6 * STD).repeat_interleave(10, dim=0)
    said, stds = said_of(shared)  # of boxes that are all right
    law = fit_law(said, stds, num_pictures=60)
    assert law.right == 1.0 > fit_law(said, stds).right
    moved = law.move(said, stds)
    assert torch.equal(moved.offsets, torch.zeros_like(said))
    # What can't be told of them is told as a standard deviation.
    assert moved.stds[0].tolist() == pytest.approx([0.6 * STD] * 4, rel=0.4)


def test_boxes_slightly_off_that_count_as_right_are_told_as_sure_as_they_are():
    truth = normal(1500, [0.0] * 4, 0.3 * STD)
    said, stds = said_of(truth)
    law = fit_law(said, stds, num_pictures=80)
    assert law.right == 1.0
    held = (truth.abs() <= 1.645 * law.move(said, stds).stds).double().mean()
    assert held == pytest.approx(0.9, abs=0.08)


def test_few_boxes_far_off_are_found_however_few_the_pictures():
    truth = torch.zeros(1000, 4)
    truth[:20] = normal(20, [0.0] * 4, 0.25)
    said, stds = said_of(truth)
    law = fit_law(said, stds, num_pictures=20)
    assert law.right == pytest.approx(0.98, abs=0.015)
    assert law.move(said, stds).wrong[:20].mean() > 0.7


@pytest.mark.parametrize("within", [(0.1,), (0.1, -0.1), (0.1, math.nan)])
def test_a_law_within_no_numbers_is_refused(within):
    with pytest.raises(BadInput, match="is no law"):
        DisplacementLaw(1.0, (0.0,), ((0.0, 0.0),), ((0.1, 0.1),), within)


@pytest.mark.parametrize("num_targets", [2, 4])
def test_the_probability_of_a_small_overlap_is_that_of_simulated_truths(num_targets):
    generator = torch.Generator().manual_seed(3)
    count, std = 40_000, 0.03
    far = torch.rand(count, generator=generator) < 0.4
    truth = 0.08 * torch.randn(count, num_targets, generator=generator) * far[:, None]
    said = truth + std * torch.randn(truth.shape, generator=generator)
    law = DisplacementLaw(0.6, (0.4,), ((0.0,) * num_targets,), ((0.08,) * num_targets,))
    chance = law.short_of(0.85, said, torch.full_like(said, std))
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(count, 4)
    short = paired_iou(unit, decode_deltas(truth, unit)) < 0.85
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        these = (chance >= low) & (chance <= low + 0.2)
        shares = [float(each[these].double().mean()) for each in (short, chance)]
        assert these.sum() > 200
        assert shares[0] == pytest.approx(shares[1], abs=0.04), low


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.2])
def test_right_boxes_stay_where_a_model_errs_more_than_it_tells(factor):
    """Errors that are larger than told look like a narrow law of the boxes."""
    said, stds = said_of(torch.zeros(1000, 4))
    law = fit_law(factor * said, stds, num_pictures=200)
    assert law.right == 1.0


@pytest.mark.parametrize("number", ["9" * 400, "1e200", "-101"])
def test_a_law_of_absurd_numbers_is_refused(tmp_path, number):
    path = tmp_path / "law.json"
    path.write_text(f'{{"right": 0, "shares": [1], "means": [[{number}, 0]], "stds": [[1, 1]]}}')
    with pytest.raises(BadInput):
        DisplacementLaw.load(path)
