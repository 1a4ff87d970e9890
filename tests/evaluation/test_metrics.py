import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.evaluation.metrics import RefinedBoxes, box_metrics, error_px
from lightning_bbox.geometry.boxes import shift_boxes
from tests import reference
from tests.draws import THOROUGH

ROWS = 20


def made_up_evaluation(count=ROWS, seed=0):
    """Refined boxes, proposals, true boxes and the size of a px, as a model might leave them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale, columns=4):
        return scale * torch.randn(count, columns, generator=generator, dtype=torch.float64)

    low = 50 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    gt_boxes = torch.cat([low, low + 15 + noise(2.0, 2)], dim=1)
    proposals = shift_boxes(gt_boxes, noise(3.0, 2)) + noise(0.5)
    boxes = 0.7 * gt_boxes + 0.3 * proposals + noise(0.3)
    px = 0.4 + torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return boxes, proposals, gt_boxes, px


def empty_table(rows=ROWS):
    return RefinedBoxes(rows, num_targets=2)


def fill(metric, rows, *, valid=None):
    """Write made up rows: a row's box and loss depend on its number only."""
    boxes, _, _, _ = made_up_evaluation()
    rows = torch.as_tensor(rows)
    valid = torch.ones(len(rows), dtype=torch.bool) if valid is None else torch.tensor(valid)
    coordinates = boxes[rows, :2]
    told = rows / 8, coordinates / 100, coordinates / 50, coordinates / 25
    metric.update(rows, valid, boxes[rows].float(), *told)
    return metric


def same_table(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.refined(), second.refined(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_targets", [2, 4])
@pytest.mark.parametrize("count", [2, 20, 101])
def test_box_metrics_equal_the_oracle_in_fp64_whatever_the_boxes_are(dtype, num_targets, count):
    tensors = [tensor.to(dtype) for tensor in made_up_evaluation(count, seed=count)]
    expected = reference.box_metrics(*(t.double().numpy() for t in tensors), num_targets)
    assert box_metrics(*tensors, num_targets) == pytest.approx(expected, rel=1e-9)


def test_box_metrics_of_a_hand_made_case():
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.0, 20.0]])
    boxes = torch.tensor([[2.0, 0.0, 12.0, 20.0], [0.0, -4.0, 10.0, 16.0]])
    proposals = shift_boxes(gt_boxes, torch.tensor([[4.0, 4.0], [-4.0, -4.0]]))
    found = box_metrics(boxes, proposals, gt_boxes, torch.full((2, 2), 2.0), num_targets=4)
    expected = {
        "mae_px": 0.75,
        "rmse_px": math.sqrt(1.25),
        "p95_px": 1.95,
        "within_1px": 0.5,
        "error_fraction": 0.1,
        "error_picture": 1.5,
        "iou_before": 96 / 304,
        "iou_after": 2 / 3,
        "harmed": 0.0,
        "mae_edge_px": 0.75,
        "slope_dx": 0.75,
        "r2_dx": 1 - 1 / 8,
        "slope_dy": 0.5,
        "r2_dy": 1 - 4 / 8,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("num_targets", [2, 4])
def test_perfect_boxes_have_no_error(num_targets):
    _, proposals, gt_boxes, px = made_up_evaluation()
    found = box_metrics(gt_boxes, proposals, gt_boxes, px, num_targets)
    for name in ("mae_px", "rmse_px", "p95_px", "error_fraction", "error_picture", "harmed"):
        assert found[name] == 0
    worse = box_metrics(proposals, gt_boxes, gt_boxes, px, num_targets)
    assert worse["harmed"] == 1
    for name in ("within_1px", "iou_after", "slope_dx", "slope_dy", "r2_dx", "r2_dy"):
        assert found[name] == pytest.approx(1)
    assert found.get("mae_edge_px") == (0 if num_targets == 4 else None)


def test_unmoved_proposals_have_slope_zero_and_the_same_overlap():
    _, proposals, gt_boxes, px = made_up_evaluation()
    found = box_metrics(proposals, proposals, gt_boxes, px, num_targets=2)
    assert found["slope_dx"] == found["slope_dy"] == 0
    assert found["iou_after"] == found["iou_before"]
    assert found["r2_dx"] <= 0
    assert found["r2_dy"] <= 0


def test_predicting_the_mean_has_r2_zero():
    _, proposals, gt_boxes, _ = made_up_evaluation()
    px = torch.ones(ROWS, 2, dtype=torch.float64)
    mean = error_px(gt_boxes, proposals, px).mean(dim=0)
    guess = shift_boxes(proposals, mean.expand(ROWS, 2))
    found = box_metrics(guess, proposals, gt_boxes, px, num_targets=2)
    assert found["r2_dx"] == pytest.approx(0, abs=1e-9)
    assert found["r2_dy"] == pytest.approx(0, abs=1e-9)
    assert found["slope_dx"] == pytest.approx(0, abs=1e-9)


@given(st.floats(0.1, 10), st.floats(-100, 100), st.permutations(range(ROWS)))
@THOROUGH
def test_px_metrics_ignore_the_pictures_scale_its_origin_and_the_order(scale, shift, order):
    tensors = made_up_evaluation()
    moved = [(boxes * scale + shift)[order] for boxes in tensors[:3]]
    expected = box_metrics(*tensors, num_targets=4)
    expected["error_picture"] *= scale
    found = box_metrics(*moved, tensors[3][order] * scale, num_targets=4)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("offsets", "mae", "rmse"),
    [
        (torch.linspace(-5, 5, 1001), 2.5, 2.887),
        (torch.arange(-5.0, 6.0), 2.727, 3.162),
    ],
    ids=["uniform", "integers"],
)
def test_errors_at_chance_are_those_of_the_theory(offsets, mae, rmse):
    gt_boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]]).expand(len(offsets), 4)
    shifts = torch.stack([offsets, offsets.flip(0)], dim=1)
    proposals = shift_boxes(gt_boxes, shifts)
    found = box_metrics(proposals, proposals, gt_boxes, torch.ones_like(shifts), num_targets=2)
    assert found["mae_px"] == pytest.approx(mae, rel=2e-3)
    assert found["rmse_px"] == pytest.approx(rmse, rel=2e-3)


def test_error_px_is_signed_and_in_px_along_each_axis():
    gt_boxes = torch.tensor([[10.0, 10.0, 30.0, 50.0]])
    boxes = shift_boxes(gt_boxes, torch.tensor([[3.0, -4.0]]))
    assert error_px(boxes, gt_boxes, torch.tensor([[1.5, 0.5]])).tolist() == [[2.0, -8.0]]


@given(st.permutations(range(ROWS)), st.lists(st.integers(0, ROWS), max_size=4))
@THOROUGH
def test_rows_in_any_order_and_any_batches_give_the_same_table(order, cuts):
    whole, parts = fill(empty_table(), range(ROWS)), empty_table()
    bounds = sorted([0, *cuts, ROWS])
    for first, last in pairwise(bounds):
        fill(parts, torch.tensor(order[first:last], dtype=torch.int64))
    assert same_table(whole, parts)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_of_few_rows_keeps_its_shape(rows):
    boxes, _, _, _ = made_up_evaluation()
    refined = fill(empty_table(rows), range(rows)).refined()
    assert torch.equal(refined.boxes, boxes[:rows].float())
    assert torch.equal(refined.losses, torch.arange(rows) / 8)
    assert torch.equal(refined.stds, (boxes[:rows, :2] / 100).float())
    assert torch.equal(refined.nll, (boxes[:rows, :2] / 50).float())
    assert refined.seen.tolist() == [True] * rows


def test_the_table_holds_what_was_written():
    boxes, _, _, _ = made_up_evaluation()
    refined = fill(empty_table(), [3, 17]).refined()
    assert refined.seen.nonzero().flatten().tolist() == [3, 17]
    assert torch.equal(refined.boxes[[3, 17]], boxes[[3, 17]].float())
    assert refined.losses[[3, 17]].tolist() == [3 / 8, 17 / 8]
    assert torch.equal(refined.stds[[3, 17]], (boxes[[3, 17], :2] / 100).float())
    assert torch.equal(refined.nll[[3, 17]], (boxes[[3, 17], :2] / 50).float())
    assert not bool(refined.boxes[~refined.seen].any())


def fill_with_nothing(metric, row, valid):
    """Write a row of NaN and infinity."""
    bad = torch.tensor([[math.nan, math.inf]])
    columns = bad.repeat(1, 2), bad[:, 0], bad, bad, bad
    metric.update(torch.tensor([row]), torch.tensor([valid]), *columns)


def test_rows_that_are_not_valid_are_ignored_whatever_they_hold():
    metric = fill(empty_table(), [4, 5, 4, 6], valid=[True, True, False, False])
    for row in (4, 7):
        fill_with_nothing(metric, row, valid=False)
    assert same_table(metric, fill(empty_table(), [4, 5]))


def test_a_valid_row_that_is_not_finite_stays_so():
    metric = empty_table(2)
    fill_with_nothing(metric, 1, valid=True)
    refined = metric.refined()
    assert not bool(refined.boxes[1].isfinite().any())
    assert bool(refined.boxes[0].isfinite().all())
    assert refined.seen.tolist() == [False, True]


def test_two_ranks_equal_one():
    whole = fill(empty_table(), range(ROWS))
    first = fill(empty_table(), range(0, ROWS, 2))
    # The last rank's share is filled up with rows that another one writes.
    valid = [True] * (ROWS // 2) + [False]
    second = fill(empty_table(), [*range(1, ROWS, 2), 0], valid=valid)
    first.merge_state(second)
    assert same_table(first, whole)


def test_boxes_in_bf16_are_collected_in_fp32():
    metric = empty_table(1)
    boxes, losses = torch.full((1, 4), 300.0).bfloat16(), torch.ones(1).bfloat16()
    metric.update(torch.tensor([0]), torch.tensor([True]), boxes, losses, *[boxes[:, :2]] * 3)
    refined = metric.refined()
    assert refined.boxes.dtype == refined.losses.dtype == torch.float32
    assert refined.boxes.unique().tolist() == boxes.float().unique().tolist()


def test_tables_of_processes_are_added_in_place_and_each_keeps_its_own(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda table, **_: table.mul_(2))
    metric, alone = fill(empty_table(), [3]), fill(empty_table(), [3])
    metric.sync(metric.dist_sync_fn, distributed_available=lambda: True)
    assert torch.equal(metric.table, 2 * alone.table)
    metric.unsync()
    assert torch.equal(metric.table, alone.table)
