"""Learning-rate schedules as functions of the run's progress: no config repeats its length."""

import math

from lightning_bbox.errors import BadInput
from lightning_bbox.parts import Part


class Schedule(Part):
    """A factor of the learning rate for each moment of the run."""

    def factor(self, progress: float) -> float:
        """Return the factor at a progress between 0 (first step) and 1 (last)."""
        raise NotImplementedError


class Constant(Schedule):
    """Keep the learning rate.

    Examples:
        >>> Constant().factor(0.5)
        1.0
    """

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(Schedule):
    """Fall along half a cosine.

    Args:
        final: Last factor.

    References:
        Loshchilov and Hutter, SGDR (2017), equation 5, without restarts.

    Examples:
        >>> [round(Cosine().factor(p), 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """

    def __init__(self, final: float = 0.0) -> None:
        super().__init__()
        if not 0 <= final <= 1:
            msg = f"cosine final factor is {final}; expected 0 to 1"
            raise BadInput(msg)
        self.final = final

    def factor(self, progress: float) -> float:
        """Return the factor."""
        return _cosine(1.0, self.final, progress)


class OneCycle(Schedule):
    """Rise along a cosine, then fall along another, far below the start.

    Args:
        warmup: Share of the run in which it rises.
        initial: First factor.
        final: Last factor.

    References:
        Smith and Topin, Super-convergence (2018); the constants are PyTorch's, without its momentum
        cycle.

    Examples:
        >>> [round(OneCycle().factor(p), 2) for p in (0.0, 0.3, 1.0)]
        [0.04, 1.0, 0.0]
    """

    def __init__(self, warmup: float = 0.3, initial: float = 0.04, final: float = 4e-6) -> None:
        super().__init__()
        if not (0 < warmup < 1 and 0 <= initial <= 1 and 0 <= final <= 1):
            msg = f"one-cycle warmup {warmup}, initial {initial}, final {final}: expected 0 to 1"
            raise BadInput(msg)
        self.warmup, self.initial, self.final = warmup, initial, final

    def factor(self, progress: float) -> float:
        """Return the factor."""
        if progress < self.warmup:
            return _cosine(self.initial, 1.0, progress / self.warmup)
        return _cosine(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
