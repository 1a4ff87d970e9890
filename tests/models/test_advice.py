"""Advice: which combinations are warned of or refused before training, and which are not."""

import re

import pytest
from torch import nn

from lightning_bbox import (
    AlexNet,
    BadInput,
    BinHead,
    BoxRegressor,
    ChannelNorm,
    FeatureExtractor,
    L2Loss,
    L2Penalty,
    LinearHead,
    RidgeRegressor,
    ShallowConvNet,
    SmoothL1Loss,
)
from lightning_bbox.models.advice import advice
from lightning_bbox.nn.network import OffsetNet
from tests.runs import scenes, trained_quietly

DROPOUT = "dropout before a squared error: .* use a BinHead or loss: SmoothL1Loss, or leave"
NORM = "batch norm right before a squared error: .* use a BinHead or loss: SmoothL1Loss, or end"
POOL = "global pooling averages away where things are.*; set backbone.global_pool: false"


def said(backbone, head):
    return advice(OffsetNet(ChannelNorm(), backbone.build(21), head))


def small(**arguments):
    return ShallowConvNet(**{"channels": (4,), "fc": (8,)} | arguments)


class Normalised(nn.Sequential):
    """A net that ends in batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten())


def extractor(layer, **arguments):
    return FeatureExtractor(f"{__name__}.Normalised", layer=layer, **arguments)


@pytest.mark.parametrize(
    ("backbone", "head", "expected"),
    [
        (small(dropout=0.5), LinearHead(L2Loss()), [DROPOUT]),
        (small(dropout=0.5, fc=()), LinearHead(L2Loss()), [DROPOUT]),
        (small(dropconnect=0.5), LinearHead(L2Loss()), [DROPOUT]),
        (small(global_pool=True), BinHead(), [POOL]),
        (small(global_pool=True, input_dropout=0.1), LinearHead(L2Loss()), [DROPOUT, POOL]),
        (small(dropout=0.5), LinearHead(SmoothL1Loss()), []),
        (small(dropout=0.5), BinHead(), []),
        (small(), LinearHead(L2Loss()), []),
        (small(fc=()), LinearHead(L2Loss()), []),
        (small(batch_norm=False), LinearHead(L2Loss()), []),
        (small(global_pool=True, coordinates=True), BinHead(), []),
        (small(), BinHead(), []),
        (AlexNet(layer="conv1"), LinearHead(L2Loss()), []),
    ],
)
def test_advice_is_given_where_the_notes_warn_and_nowhere_else(backbone, head, expected):
    sentences = said(backbone, head)
    assert len(sentences) == len(expected)
    for sentence, pattern in zip(sentences, expected, strict=True):
        assert re.match(pattern, sentence)


def test_a_net_is_looked_at_up_to_the_layer_that_is_read():
    for layer, expected in (("2", [NORM]), ("1", []), ("3", [NORM]), ("", [NORM])):
        net = extractor(layer, frozen=False)
        assert len(said(net, LinearHead(L2Loss()))) == len(expected)
        assert not said(net, LinearHead())
    assert not said(extractor("2", frozen=True), LinearHead(L2Loss()))


def fit(model, **arguments):
    trained_quietly(model, scenes(**{"draws_per_epoch": 16} | arguments), max_epochs=1)


def test_advice_is_given_before_training():
    with pytest.raises(UserWarning, match=POOL):  # in tests warnings are errors
        fit(BoxRegressor(small(global_pool=True)))


def test_batch_norm_over_one_sample_is_refused_before_training():
    with pytest.raises(BadInput, match=r"two samples or more .* data\.batch_size is 1 for 1 proc"):
        fit(BoxRegressor(small()), batch_size=1)
    fit(BoxRegressor(small(batch_norm=False)), batch_size=1, draws_per_epoch=2)


def test_a_pattern_that_fits_nothing_is_refused_before_training():
    model = BoxRegressor(small(), regularizers=[L2Penalty(pattern="fc8")])
    with pytest.raises(BadInput, match="L2Penalty pattern 'fc8' fits no weight that learns; choo"):
        fit(model)


class Detached(L2Loss):
    """A loss by which nothing can learn."""

    def __call__(self, predictions, targets, std):
        return super().__call__(predictions.detach(), targets, std)


def test_a_loss_without_a_gradient_is_refused_at_the_first_step():
    with pytest.raises(BadInput, match="the loss of LinearHead has no gradient, so nothing can"):
        fit(BoxRegressor(small(), LinearHead(Detached())))


def test_dropout_is_refused_where_the_solution_is_closed():
    message = r"without draws, so the backbone's dropout 0\.5, dropconnect 0\.1 does nothing"
    with pytest.raises(BadInput, match=message):
        fit(RidgeRegressor(small(dropout=0.5, dropconnect=0.1)))
