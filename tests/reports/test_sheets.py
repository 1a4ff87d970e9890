"""Sheets are drawn of whatever a model says."""

import numpy as np
import pytest
import torch

from lightning_bbox import SceneDataModule
from lightning_bbox.evaluation.evaluation import Evaluation
from lightning_bbox.evaluation.metrics import Refined
from lightning_bbox.reports.sheets import PANEL, draw_rows


def drawn(box):
    """Return what is drawn of a scene whose box is refined to this one."""
    data = SceneDataModule(num_scenes=10, eval_draws=1, compile=False)
    samples, nothing = data.samples("val"), torch.zeros(1)
    found = Refined(torch.tensor([box]), nothing, *torch.zeros(3, 1, 2), nothing == 0)
    (panel,) = draw_rows(data, Evaluation(samples, found, {}, []), [0])
    return np.asarray(panel)[:PANEL]


@pytest.mark.parametrize("huge", [1e9, 1e30, 1e36])
def test_boxes_that_reach_far_beyond_the_crop_are_drawn_as_those_that_just_do(huge):
    """A model about to diverge says such boxes, and Pillow raised SystemError."""
    near, around = ([40.0, 40.0, 500.0, 500.0], [-500.0, -500.0, 500.0, 500.0])
    np.testing.assert_array_equal(drawn([40.0, 40.0, huge, huge]), drawn(near))
    np.testing.assert_array_equal(drawn([-huge, -huge, huge, huge]), drawn(around))
    np.testing.assert_array_equal(drawn([huge, huge, huge, huge]), drawn(around))
    assert not np.array_equal(drawn(near), drawn(around))
