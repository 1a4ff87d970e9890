import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from lightning_bbox import (
    AttributeHinge,
    BinaryCrossEntropy,
    CrossEntropy,
    CumulativeLink,
    GaussianLabels,
    IndependentLink,
    OneHotLabels,
    SoftmaxLink,
    StructuredHinge,
    TreeLink,
    WestonWatkinsHinge,
)
from lightning_bbox.nn.heads.bins.labels import lay_grid
from lightning_bbox.nn.heads.bins.losses import usual_loss

GRID = lay_grid([5.0, 0.4], [0.5, 0.05], 0)
BINS = (21, 17)
AT_CHANCE = [
    (CrossEntropy(), SoftmaxLink(), math.log),
    (BinaryCrossEntropy(), IndependentLink(), lambda bins: bins * math.log(2)),
    (BinaryCrossEntropy(), CumulativeLink(), lambda bins: (bins - 1) * math.log(2)),
    (WestonWatkinsHinge(), SoftmaxLink(), lambda bins: bins - 1),
    (WestonWatkinsHinge(squared=True), SoftmaxLink(), lambda bins: bins - 1),
    (AttributeHinge(), IndependentLink(), lambda bins: bins),
]
LOSSES = [(loss, link) for loss, link, _ in AT_CHANCE]
LOSSES += [(CrossEntropy(), TreeLink()), (StructuredHinge(), SoftmaxLink())]


def built(link):
    torch.manual_seed(0)
    return link.build(8, GRID.inside, GRID.prior(torch.tensor([5.0, 0.4])))


def chance(loss, link, offsets):
    link = built(link)
    logits = torch.zeros_like(link(torch.zeros(len(offsets), 8)))
    return loss(link, logits, OneHotLabels()(offsets, GRID), GRID)


@pytest.mark.parametrize(("loss", "link", "of_bins"), AT_CHANCE, ids=lambda one: type(one).__name__)
def test_loss_at_chance_is_that_of_the_number_of_bins(loss, link, of_bins):
    losses = chance(loss, link, torch.tensor([[1.3, 0.1], [-5.0, 0.4]]))
    assert losses.tolist() == pytest.approx([sum(of_bins(bins) for bins in BINS)] * 2, rel=1e-5)


def test_the_tree_at_chance_costs_the_ln_of_the_choices_along_the_path():
    grid = lay_grid([5.0], [0.5], 3.0)
    link = TreeLink().build(8, grid.inside, grid.prior(torch.tensor([5.0])))
    logits = torch.zeros(27, 1, link.outputs())
    losses = CrossEntropy()(link, logits, torch.eye(27)[:, None], grid)
    # Leaves 27 to 31 don't exist: the last three have no choice at the third level, the last one
    # none at the fifth either.
    choices = torch.tensor([5.0] * 24 + [4.0, 4.0, 3.0])
    torch.testing.assert_close(losses, choices * math.log(2))


def test_the_structured_hinge_at_chance_is_the_distance_of_the_farthest_bin():
    losses = chance(StructuredHinge(), SoftmaxLink(), torch.tensor([[0.0, 0.0], [4.0, -0.4]]))
    assert losses.tolist() == pytest.approx([5.0 + 4.0, 9.0 + 8.0])


def looped_hinge(name, f, y, inside, distances):
    bins = [j for j in range(len(f)) if inside[j]]
    others = [max(0.0, f[j] - f[y] + 1) for j in bins if j != y]
    return {
        "ww": sum(others),
        "squared": sum(term**2 for term in others),
        "structured": max(distances[j] + f[j] - f[y] for j in bins),
        "attribute": sum(max(0.0, 1 - (1 if j == y else -1) * f[j]) for j in bins),
    }[name]


@pytest.mark.parametrize(
    ("name", "loss", "link"),
    [
        ("ww", WestonWatkinsHinge(), SoftmaxLink()),
        ("squared", WestonWatkinsHinge(squared=True), SoftmaxLink()),
        ("structured", StructuredHinge(), SoftmaxLink()),
        ("attribute", AttributeHinge(), IndependentLink()),
    ],
)
def test_hinges_equal_a_plain_loop(name, loss, link):
    offsets = torch.tensor([[1.3, 0.1], [-5.0, 0.4], [0.2, -0.13]])
    logits = 2 * torch.randn(3, 2, 21)
    losses = loss(built(link), logits, OneHotLabels()(offsets, GRID), GRID)
    true = GRID.true_bins(offsets)
    for sample in range(3):
        expected = 0.0
        for row in range(2):
            y = int(true[sample, row])
            distances = [abs(j - y) * 0.5 for j in range(21)]
            f = logits[sample, row].double().numpy()
            expected += looped_hinge(name, f, y, GRID.inside[row], distances)
        assert losses[sample].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("link", [CumulativeLink(), IndependentLink()])
@pytest.mark.parametrize("labels", [OneHotLabels(), GaussianLabels()])
def test_the_logistic_loss_has_its_brackets(link, labels):
    grid = lay_grid([5.0], [0.5], labels.padding)
    link = link.build(8, grid.inside, grid.prior(torch.tensor([5.0])))
    offsets = torch.tensor([[1.3], [-4.9]])
    q = labels(offsets, grid)
    logits = 2 * torch.randn_like(link(torch.zeros(2, 8)))
    y = q.double().numpy()[:, 0]
    if isinstance(link, CumulativeLink):
        y = np.stack([y[:, j + 1 :].sum(axis=1) for j in range(y.shape[1] - 1)], axis=1)
    s = expit(logits.detach().double().numpy()[:, 0])
    expected = -(y * np.log(s) + (1 - y) * np.log(1 - s)).sum(axis=1)
    losses = BinaryCrossEntropy()(link, logits, q, grid)
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize(("loss", "link"), LOSSES, ids=repr)
def test_what_lies_outside_a_row_changes_nothing(loss, link):
    link = built(link)
    labels = OneHotLabels()(torch.tensor([[1.3, 0.1]]), GRID)
    logits = torch.randn_like(link(torch.zeros(1, 8)))
    changed = logits.clone()
    counts = (link.alive if isinstance(link, TreeLink) else link.inside).bool()
    counts = link.asked() if isinstance(link, CumulativeLink) else counts
    changed[:, ~counts] += 7
    assert torch.equal(loss(link, changed, labels, GRID), loss(link, logits, labels, GRID))
    assert torch.equal(link.probs(changed), link.probs(logits))


def test_each_link_has_its_usual_loss():
    assert isinstance(usual_loss(None), CrossEntropy)
    for link in (SoftmaxLink(), TreeLink()):
        assert isinstance(usual_loss(link), CrossEntropy)
    for link in (CumulativeLink(), IndependentLink()):
        assert isinstance(usual_loss(link), BinaryCrossEntropy)
