"""Calibration: whether predicted standard deviations mean what they say, and a factor for it."""

import math
from statistics import NormalDist
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.recipes import Part

ErrorLaw = Literal["gaussian", "laplace"]
"""How errors are spread, given their standard deviation."""
LEVELS = (0.5, 0.9, 0.95)
"""Probabilities of the central intervals that are reported."""
_FITTED_LEVEL = 0.9
_SMALLEST, _LARGEST = 0.01, 100.0
_LEAST_SHARE = 0.1


def half_width(law: ErrorLaw, level: float) -> float:
    """Return how many standard deviations a central interval reaches to either side.

    Args:
        law: Of the errors.
        level: The interval's probability.
    """
    if law == "laplace":
        return -math.log1p(-level) / math.sqrt(2)
    return NormalDist().inv_cdf((1 + level) / 2)


def coverage(
    errors: Float[Tensor, "n t"], stds: Float[Tensor, "n t"], law: ErrorLaw, level: float
) -> float:
    """Return the share of errors within the central interval of a level, where one is told.

    Args:
        errors: Predicted minus true coordinates.
        stds: Their predicted standard deviations, in the same units; NaN where none is told.
        law: Of the errors.
        level: The interval's probability, which is what the share should be.
    """
    inside = errors.abs() <= half_width(law, level) * stds
    return float(inside[~stds.isnan()].double().mean())


def conformal_factor(
    errors: Float[Tensor, "n t"], stds: Float[Tensor, "n t"], law: ErrorLaw
) -> float:
    """Return the factor by which the 90 % interval holds 90 % of errors.

    It is the rank that a new error falls below with this probability, (n + 1) 0.9 rounded up, of
    the factors that the errors need each; a few huge errors change nothing. Errors that are not
    finite, or whose standard deviation is 0, need more than any factor. It stays within 0.01 to
    100.

    Args:
        errors: Predicted minus true coordinates; all coordinates count alike.
        stds: Their predicted standard deviations, in the same units; errors for which none is told
            (NaN) don't count.
        law: Of the errors.

    References:
        Lei et al., Distribution-free predictive inference for regression (2018), section 5.2: the
        locally weighted split conformal interval. Kuleshov et al., Accurate uncertainties for deep
        learning using calibrated regression (2018), on why it is fitted on held-out samples.
    """
    told = ~stds.isnan()
    errors, stds = errors[told].abs().double(), stds[told].double()
    needed = errors / (half_width(law, _FITTED_LEVEL) * stds)
    needed = needed.where(errors != 0, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    ranked = needed.sort().values
    rank = min(len(ranked), math.ceil(_FITTED_LEVEL * (len(ranked) + 1)))
    return min(max(float(ranked[rank - 1]), _SMALLEST), _LARGEST)


class Calibration(Part):
    """One factor on all standard deviations that a head tells, from validation errors.

    Before it come those below a tenth of the errors' own standard deviation (by their median), by
    coordinate: they become as large as that. Bins may say 0, which no factor mends. The factor is 1
    until it is fitted, and stays so for a head that can't tell; one that tells some coordinates
    only gets it from these.
    """

    temperature: Tensor
    least: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("least", torch.zeros(4))

    def fit(self, errors: Float[Tensor, "n t"], stds: Float[Tensor, "n t"], law: ErrorLaw) -> None:
        """Take over the factor by which the 90 % interval holds 90 % of errors.

        Args:
            errors: Predicted minus true coordinates, in px and log size.
            stds: What the head said, NaN where it can't tell.
            law: Of the errors.
        """
        if not can_tell(stds):
            return
        middle = errors.abs().nanmedian(dim=0).values / half_width(law, 0.5)
        least = (_LEAST_SHARE * middle).nan_to_num(posinf=0.0)
        self.temperature.fill_(conformal_factor(errors, torch.maximum(stds, least), law))
        self.least[: len(least)] = least

    def forward(self, stds: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
        """Return calibrated standard deviations."""
        least = self.least[: stds.shape[-1]].to(stds)
        return torch.maximum(stds, least) * self.temperature.to(stds)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *args: Any,  # noqa: ANN401 (torch's own, passed on)
    ) -> None:
        # Checkpoints of 0.1.0 have none.
        for name, value in Calibration().named_buffers():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)


def can_tell(values: Float[Tensor, "n t"]) -> bool:
    """Tell whether a head had something to say of any coordinate: NaN means that it had not."""
    return not bool(values.isnan().all())
