"""Boxes off by little and by much: whom a model harms, against a plain count."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_bbox import DisplacementLaw, SceneDataModule
from lightning_bbox.evaluation.metrics import Refined
from lightning_bbox.evaluation.widths import AtWidths, harm_rows, measure_reliability
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.weighing import move_under
from tests import reference

LAW = DisplacementLaw(0.5, (0.5,), ((0.0,) * 4,), ((0.2,) * 4,))
RELIABILITY = Reliability((0.01,) * 4, (0.9,) * 4, (1.1,) * 4)


@pytest.fixture(scope="module")
def drawn():
    """Made-up boxes: the truth and something at random."""
    data = SceneDataModule(num_scenes=40, eval_draws=800, compile=False, num_targets=4)
    samples = data.samples("test_widths")
    generator = torch.Generator().manual_seed(0)
    boxes = samples.gt_boxes + 1.5 * torch.randn(400, 4, generator=generator)
    px = data.geometry.px(samples.proposals)
    stds = torch.cat([1.06 / px, 0.07 * torch.ones(400, 2)], dim=1)
    refined = Refined(boxes, boxes[:, 0], stds, stds, stds[:, :2], boxes[:, 0] == boxes[:, 0])
    return data, AtWidths(samples, refined, data.widths("test_widths"))


def test_harm_is_a_plain_count_by_width(drawn):
    data, found = drawn
    samples, refined, widths = found
    told = refined.boxes, refined.stds, samples.proposals, data.geometry
    moved = move_under(LAW, *told, RELIABILITY).boxes
    rows = harm_rows(found, data.geometry, RELIABILITY, LAW)
    assert [row.draws for row in rows] == [80] * 5
    for row, width in zip(rows, (0.0, 0.1, 0.4, 1.0, 2.0), strict=True):
        own = np.flatnonzero(np.isclose(widths.numpy(), width))
        ious = [
            [
                reference.iou(box, truth)
                for box, truth in zip(boxes, samples.gt_boxes[own], strict=True)
            ]
            for boxes in (samples.proposals[own], refined.boxes[own], moved[own])
        ]
        before, after, law = (np.array(iou) for iou in ious)
        assert row.iou_before == pytest.approx(before.mean(), abs=1e-5)
        assert row.iou_after == pytest.approx(after.mean(), abs=1e-5)
        assert row.iou_law == pytest.approx(law.mean(), abs=1e-5)
        assert row.harmed == pytest.approx((after < before - 1e-3).mean(), abs=0.011)
        assert row.harmed_law == pytest.approx((law < before - 1e-3).mean(), abs=0.011)
    assert rows[0].name == "right"
    assert rows[0].iou_before == pytest.approx(1)
    assert rows[0].harmed > 0.9 > rows[0].harmed_law


def test_a_model_without_a_law_is_told_without_one(drawn):
    data, found = drawn
    for row in harm_rows(found, data.geometry):
        assert row.iou_law is row.harmed_law is None
    untold = found._replace(refined=found.refined._replace(stds=float("nan") * found.refined.stds))
    assert harm_rows(untold, data.geometry, RELIABILITY, LAW)[0].iou_law is None
    assert measure_reliability(untold, untold, data.geometry) == (None, None)


def test_a_model_that_errs_as_it_tells_is_found_reliable(drawn):
    data, found = drawn
    reliability, law = measure_reliability(found, found, data.geometry)
    assert reliability.bias == pytest.approx([0.0] * 4, abs=0.01)
    assert reliability.slope == pytest.approx([1.0] * 4, abs=0.1)
    assert len(reliability.common) == 4
    assert max(reliability.common) < 0.3  # each errs by itself; there are 400
    assert len(law.shares) == 3


def test_a_models_own_law_takes_as_few_boxes_to_be_right_as_harms_none(drawn):
    data, found = drawn
    reliability, law = measure_reliability(found, found, data.geometry)

    def lost(right):
        other = replace(law, right=right, shares=((1 - right) / 3,) * 3)
        rows = harm_rows(found.within(), data.geometry, reliability, other)
        return max(row.iou_before - row.iou_law for row in rows)

    assert law.right > 0.5
    assert lost(law.right) <= 0.003 < lost(law.right - 0.1)
