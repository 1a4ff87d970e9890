"""What a probe has read: how well each layer tells the offset, beside its controls, in words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_bbox.core.errors import listed
from lightning_bbox.evaluation.intervals import TOO_FEW

READABLE = 0.1
"""R2 from which the offset counts as readable: the whole interval must lie above."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval, whose ends are nan where nothing tells it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write two digits of the value."""
        return _two_digits(self.value)

    @property
    def interval(self) -> str:
        """Both ends in two digits."""
        if math.isnan(self.low):
            return TOO_FEW
        return f"{_two_digits(self.low)} to {_two_digits(self.high)}"


class Reading(NamedTuple):
    """How well a ridge on some features predicts the test's offsets.

    Attributes:
        r2: 1 less the squared error over that of predicting the training mean; mean of the
            coordinates.
        mae_px: Mean absolute error of the box's centre, in px.
        lam: The lambda it was chosen with.
    """

    r2: Estimate
    mae_px: Estimate
    lam: float


@dataclass(frozen=True)
class LayerReading:
    """What was read in one layer.

    Attributes:
        layer: Its name.
        size: How many numbers it puts out.
        width: To how many these were projected.
        net: The ridge on the network's own features.
        shuffled: The same features, with the targets of other samples: what chance gives.
        random: The same layer with random weights; None for the pixels, which have none.
    """

    layer: str
    size: int
    width: int
    net: Reading
    shuffled: Reading
    random: Reading | None

    @property
    def readings(self) -> dict[str, Reading]:
        """What was read, by what it was read in."""
        found = {"net": self.net, "random": self.random, "shuffled": self.shuffled}
        return {name: reading for name, reading in found.items() if reading is not None}

    @property
    def readable(self) -> bool:
        """Whether the offset can be read: surely above the threshold and above chance."""
        return self.net.r2.low > max(READABLE, self.shuffled.r2.high)

    @property
    def absent(self) -> bool:
        """Whether the offset can't be read, surely."""
        return self.net.r2.high < READABLE


@dataclass(frozen=True)
class Readings:
    """What was read in a network, from the pixels to the last layer.

    Attributes:
        layers: In the order in which they are computed, the pixels first.
        trained: Whether its weights are other than those a new network begins with.
        draws: How many training, validation and test draws there are, by split.
        predict_mean_px: Error of predicting the training mean, in px.
        lambda_by: What lambda was chosen by.
    """

    layers: tuple[LayerReading, ...]
    trained: bool
    draws: dict[str, int]
    predict_mean_px: Estimate
    lambda_by: str


def verdict(layers: Sequence[LayerReading], trained: bool) -> str:
    """Say in a sentence where the offset can be read, and whether training has a part in it.

    Nothing is said that a control contradicts.

    Args:
        layers: In the order in which they are computed, the pixels first.
        trained: Whether the weights are other than those a new network begins with.
    """
    if math.isnan(layers[0].net.r2.low):
        return f"nothing can be said: the test split has {TOO_FEW}"
    leaking = [layer for layer in layers if layer.shuffled.r2.low > READABLE]
    if leaking:
        at, r2 = leaking[0].layer, leaking[0].shuffled.r2
        return f"nothing can be said: with shuffled targets too {at} reaches R2 {r2}"
    if any(layer.readable for layer in layers):
        clauses = [_pixels(layers[0]), *_course(layers)]
    else:
        best = max(layers, key=_r2)
        surely = "" if all(layer.absent for layer in layers) else "surely "
        at_most = f"(at most R2 {best.net.r2} at {best.layer})"
        clauses = [f"no layer {surely}shows the offset linearly {at_most}"]
    return "; ".join(clause for clause in [*clauses, _random(layers, trained)] if clause)


def _r2(layer: LayerReading) -> float:
    return layer.net.r2.value


def _pixels(pixels: LayerReading) -> str:
    if pixels.readable:
        return f"the pixels show the offset already (R2 {pixels.net.r2})"
    if pixels.absent:
        return f"pixels alone don't show the offset (R2 {pixels.net.r2})"
    return f"whether pixels alone show the offset can't be told (R2 {pixels.net.r2.interval})"


def _course(layers: Sequence[LayerReading]) -> Iterator[str]:
    """Say where the offset appears, is best, is missing in between, and is lost."""
    shown = [index for index, layer in enumerate(layers) if layer.readable]
    first, last = layers[shown[0]], shown[-1]
    best = max((layers[index] for index in shown), key=_r2)
    better = f"best at {best.layer} (R2 {best.net.r2})" * (best.net.r2.low > first.net.r2.high)
    if first is layers[0]:
        yield better
    else:
        at = f"it becomes readable at {first.layer} (R2 {first.net.r2})"
        yield f"{at}, {better}" if better else at
    missing = [layers[index].layer for index in range(shown[0], last) if index not in shown]
    if missing:
        yield f"in between it isn't surely readable at {listed(missing)}"
    if last + 1 < len(layers):
        after = layers[last + 1]
        if all(layer.absent for layer in layers[last + 1 :]):
            yield f"after {after.layer} it is gone (R2 {after.net.r2})"
        else:
            yield f"from {after.layer} on it isn't surely readable (R2 {after.net.r2.interval})"
    elif layers[last].net.r2.high < best.net.r2.low:
        yield f"R2 {layers[last].net.r2} is left at {layers[last].layer}"


def _random(layers: Sequence[LayerReading], trained: bool) -> str:
    """Compare the best layer with the best that random weights have, wherever that is."""
    controls = [layer.random.r2 for layer in layers if layer.random is not None]
    if not controls:
        return ""
    theirs, ours = max(controls), max(layer.net.r2 for layer in layers if layer.random is not None)
    if not trained:
        return f"another draw of the random weights reaches {theirs}"
    against = f"({theirs} against {ours})"
    if max(theirs.high, ours.high) < READABLE:
        return f"nor do random weights (R2 {theirs})"
    if theirs.low > ours.high:
        return f"random weights do better {against}"
    if theirs.value >= ours.low:
        return f"random weights do as well {against}"
    if theirs.high >= ours.low:
        return f"random weights may do as well {against}"
    gain = _two_digits(ours.value - theirs.value)
    return f"random weights reach {theirs}, so training adds {gain}"


def _two_digits(value: float) -> str:
    """Write two digits, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"
