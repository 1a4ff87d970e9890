"""Which annotations are wrong: found among boxes whose truth is known, and how sure that is."""

import pytest
import torch

from lightning_bbox import BadInput, CropGeometry, fit_law
from lightning_bbox.geometry.boxes import box_sizes, paired_iou
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.insight.audit import (
    Audit,
    judge,
    pooled,
    reasons_of,
    said_inside,
    share_of_wrong,
    words_of,
)
from lightning_bbox.insight.cross_fit import folds_of

GEOMETRY = CropGeometry()


def simulated(seed, share=0.1, pictures=60, each=10, std=0.04):
    """Return what a model would say of boxes of which a share is off, those of a picture alike."""
    generator = torch.Generator().manual_seed(seed)
    rates = share * 2 * torch.rand(pictures, generator=generator)  # some annotators are worse
    clusters = torch.arange(pictures).repeat_interleave(each)
    wrong = torch.rand(len(clusters), generator=generator) < rates[clusters]
    off = 0.2 * torch.randn(len(clusters), 4, generator=generator) * wrong[:, None]
    said = off + std * torch.randn(off.shape, generator=generator)
    return said, torch.full_like(said, std), clusters, wrong


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_interval_of_the_share_holds_the_true_one(share):
    """Of 30 repetitions 28.5 would be 95 %, with a standard deviation of 1.2."""
    held = 0
    for seed in range(30):
        said, stds, clusters, _ = simulated(seed, share, pictures=40)
        wrong = fit_law(said, stds, 40).move(said, stds).wrong
        mean = share_of_wrong(wrong, clusters)
        assert 0 <= mean.low <= mean.value <= mean.high <= 1
        held += mean.low <= share <= mean.high
    assert held >= 25


def test_the_interval_of_probabilities_that_are_sure_is_that_of_a_share():
    wrong = torch.zeros(400)
    wrong[:40] = 1
    mean = share_of_wrong(wrong, torch.arange(400))
    half = 1.966 * (0.1 * 0.9 / 399) ** 0.5
    assert mean.value == pytest.approx(0.1)
    assert mean.high / mean.value == pytest.approx(torch.tensor(half / 0.1).exp().item(), rel=1e-3)
    unsure = share_of_wrong(0.05 + 0.5 * wrong, torch.arange(400))
    assert unsure.high - unsure.low > 1.5 * (mean.high - mean.low)


def test_boxes_that_are_all_right_have_a_share_of_none():
    """Of as many where three in a hundred are wrong, none is seen one time in twenty."""
    assert share_of_wrong(torch.zeros(100), torch.arange(100))[:3] == (0.0, 0.0, 0.03)
    assert share_of_wrong(torch.ones(100), torch.arange(100))[:3] == (1.0, 0.97, 1.0)


def test_probabilities_that_are_all_alike_tell_no_share():
    mean = share_of_wrong(torch.full((100,), 0.4), torch.arange(100))
    assert mean[:3] == (pytest.approx(0.4), 0.0, 1.0)


def boxes_and_truth():
    """Return 600 boxes in 60 pictures, every twelfth off by a fifth, and what a model says."""
    generator = torch.Generator().manual_seed(0)
    corner = 20 + 40 * torch.rand(600, 2, generator=generator)
    truth = torch.cat([corner, corner + 20 + 20 * torch.rand(600, 2, generator=generator)], dim=1)
    wrong = torch.arange(600) % 12 == 0
    annotated = truth.clone()
    annotated[wrong, 0] -= 8
    found = truth + 0.8 * torch.randn(truth.shape, generator=generator)
    stds = torch.full((600, 4), 1.0)
    stds[:, 2:] = 0.05
    return annotated, truth, found, stds, wrong


def test_wrong_boxes_come_first_and_are_told_where_they_should_be():
    annotated, truth, found, stds, wrong = boxes_and_truth()
    sizes, clusters = torch.full((600, 2), 200), torch.arange(600) // 10
    said = said_inside(found, stds, annotated, sizes, GEOMETRY, None)
    audit = judge(said, annotated, sizes, clusters)
    first = audit.worst_first()[: int(wrong.sum())]
    assert wrong[first].double().mean() > 0.95
    assert audit.wrong[wrong].min() > 0.5 > audit.wrong[~wrong].double().mean()
    before, after = (paired_iou(boxes, truth)[wrong].mean() for boxes in (annotated, audit.boxes))
    assert after > before + 0.1
    assert audit.share.low < 1 / 12 < audit.share.high
    assert all(
        reason.startswith("left edge")
        for reason, is_wrong in zip(reasons_of(annotated, audit.boxes), wrong, strict=True)
        if is_wrong
    )
    sentence, law = words_of(audit, "pictures")
    assert "of the 600 boxes are wrong" in sentence
    assert "over 60 pictures" in sentence
    assert law == audit.law.words()


def test_corners_that_were_rounded_are_no_errors_and_what_counts_as_one_is_the_users():
    annotated, truth, found, _, wrong = boxes_and_truth()
    found, stds = truth + 0.1 * (found - truth), torch.full((600, 4), 0.1)
    stds[:, 2:] = 0.005
    rounded = torch.where(wrong[:, None], annotated, truth).round()
    sizes, clusters = torch.full((600, 2), 200), torch.arange(600) // 10
    said = said_inside(found, stds, rounded, sizes, GEOMETRY, None)
    assert fit_law(said.offsets, said.stds, 60).right < 0.1  # all are off, by a little
    audit = judge(said, rounded, sizes, clusters)
    assert audit.share.low <= 1 / 12 <= audit.share.high
    assert audit.share.value == pytest.approx(1 / 12, abs=0.01)
    assert "an IoU with the truth below 0.9" in words_of(audit, "pictures")[0]
    strict = judge(said, rounded, sizes, clusters, overlap=0.97)
    assert strict.share.value > 0.3


def test_what_a_model_makes_of_the_world_beyond_a_picture_is_no_error():
    """A cell that the picture's border cuts is annotated as far as it is seen."""
    generator = torch.Generator().manual_seed(1)
    annotated = torch.tensor([[0.0, 10, 30, 40]]).repeat(100, 1)
    found = annotated + 0.5 * torch.randn(annotated.shape, generator=generator)
    found[:, 0] = -6
    stds = torch.full((100, 4), 1.0)
    stds[:, 2:] = 0.05
    sizes, clusters = torch.full((100, 2), 60), torch.arange(100)
    said = said_inside(found, stds, annotated, sizes, GEOMETRY, None)
    audit = judge(said, annotated, sizes, clusters)
    assert torch.equal(audit.boxes, annotated)
    assert audit.share.value < 0.01


def test_groups_are_judged_by_models_that_have_not_seen_them():
    groups = [f"g{number % 17}" for number in range(200)]
    folds = folds_of(groups, 5, seed=3)
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    for name in set(groups):
        assert len({int(fold) for fold, its in zip(folds, groups, strict=True) if its == name}) == 1


@pytest.mark.parametrize(("groups", "folds"), [(["a", "b"], 2), (["a", "b", "c", "c"], 5)])
def test_too_few_groups_are_refused(groups, folds):
    with pytest.raises(BadInput, match=f"^{len(set(groups))} pictures or groups are too few"):
        folds_of(groups, folds, seed=0)


def test_how_a_model_errs_is_taken_off_before_boxes_are_judged():
    """What it says too far left of all boxes is no error of theirs, if validation has shown it."""
    annotated, _, found, stds, wrong = boxes_and_truth()
    sizes, clusters = torch.full((600, 2), 200), torch.arange(600) // 10
    biased = found - torch.tensor([3.0, 0, 3, 0])
    bias = (float((-3 / box_sizes(annotated)[:, 0]).mean()), 0.0, 0.0, 0.0)
    known = Reliability(bias, (1.0,) * 4, (1.0,) * 4)
    halves = [(torch.arange(600) % 2) == half for half in (0, 1)]
    parts = [
        said_inside(biased[half], stds[half], annotated[half], sizes[half], GEOMETRY, known)
        for half in halves
    ]
    order = torch.cat([half.nonzero().flatten() for half in halves])
    audit = judge(pooled(parts), annotated[order], sizes[order], clusters[order])
    assert audit.share.low < 1 / 12 < audit.share.high
    first = audit.worst_first()[: int(wrong.sum())]
    assert wrong[order][first].double().mean() > 0.9


def test_where_no_box_is_wrong_the_farthest_apart_come_first():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(4, 1)
    apart, wrong = torch.tensor([0.1, 0.3, 0.2, 0.05]), torch.tensor([0.0, 0.0, 0.0, 0.5])
    found = Audit(None, boxes, wrong, apart, wrong, share_of_wrong(wrong, torch.arange(4)))
    assert found.worst_first() == [3, 1, 2, 0]
