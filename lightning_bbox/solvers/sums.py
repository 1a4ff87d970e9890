"""Ridge regression: samples summed up over batches and processes, or kept where they are few."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_bbox.core.errors import BadInput
from lightning_bbox.solvers.least_squares import (
    OF_ROUNDING,
    OF_ROUNDING_ELSE,
    Moments,
    RidgeSolution,
    Rows,
    Scaling,
    add_lower_product,
    chunks,
    first_invalid,
)


class Gathering(Metric):
    """What is gathered of samples, and can be kept while a pass is stopped."""

    full_state_update = False

    def state(self) -> dict[str, Tensor]:
        """Return what all processes gathered."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return {name: dim_zero_cat(getattr(self, name)).clone() for name in self._defaults}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what was gathered; one process takes it, the others begin empty."""
        for name, default in self._defaults.items():
            held = state[name].to(self.device)
            setattr(self, name, [held] if isinstance(default, list) else held)
        self._update_count += 1


class RidgeSums(Gathering):
    """Sum up features and targets over batches and processes, in fp64.

    The memory is that of one Gram matrix, however many samples there are. Sums are of differences
    from the first samples' mean, so that no digits are lost to features far off centre.

    Args:
        num_features: Length of a feature vector.
        num_targets: How many coordinates are predicted.
    """

    count: Tensor
    shift: Tensor
    target_shift: Tensor
    rounding: Tensor
    feature_sum: Tensor
    target_sum: Tensor
    gram: Tensor
    cross: Tensor
    target_squares: Tensor
    norms: Tensor

    def __init__(self, num_features: int, num_targets: int) -> None:
        super().__init__(dist_sync_fn=self._reduced)
        shapes: dict[str, tuple[int, ...]] = {
            "count": (),
            "feature_sum": (num_features,),
            "target_sum": (num_targets,),
            "gram": (num_features, num_features),
            "cross": (num_features, num_targets),
            "target_squares": (num_targets,),
            "norms": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        # Alike in all processes by the time they are put together.
        alike = {"shift": (num_features,), "target_shift": (num_targets,), "rounding": ()}
        for name, shape in alike.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="max")
        self._begun = False

    def update(self, features: Float[Tensor, "b p"], targets: Float[Tensor, "b t"]) -> None:
        """Add samples."""
        self.rounding.clamp_(min=OF_ROUNDING.get(features.dtype, OF_ROUNDING_ELSE))
        for x, y in chunks(features, targets):
            if not self._begun:
                self.shift, self.target_shift = x.mean(dim=0), y.mean(dim=0)
                self._begun = True
            self.norms += x.norm(dim=1).sum()
            x, y = x - self.shift, y - self.target_shift  # noqa: PLW2901 (not to be mistaken)
            self.count += len(x)
            self.feature_sum += x.sum(dim=0)
            self.target_sum += y.sum(dim=0)
            self.cross.addmm_(x.T, y)
            self.target_squares += y.square().sum(dim=0)
            add_lower_product(self.gram, x.T)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what was gathered; sums of version 0.1.0 have no shift."""
        old = {name: torch.zeros_like(getattr(self, name)) for name in ("shift", "target_shift")}
        old["rounding"] = torch.full_like(self.rounding, OF_ROUNDING_ELSE)
        super().restore(old | state)
        self._begun = True

    def sync(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (torchmetrics' own, passed on)
        """Put the sums of all processes together, once they are about the same point."""
        if distributed.is_available() and distributed.is_initialized() and not self._is_synced:
            totals = self.feature_sum + self.count * self.shift
            target_totals = self.target_sum + self.count * self.target_shift
            of_all = torch.cat([self.count[None], totals, target_totals])
            distributed.all_reduce(of_all)
            means = of_all[1:] / of_all[0].clamp(min=1)
            self._move(means[: len(totals)], means[len(totals) :])
        super().sync(*args, **kwargs)

    def _reduced(self, value: Tensor, group: Any = None) -> list[Tensor]:  # noqa: ANN401 (as above)
        """Return the sum, or the largest, of all processes; gathered, all would lie in each."""
        alike = any(value is each for each in (self.shift, self.target_shift, self.rounding))
        op = distributed.ReduceOp.MAX if alike else distributed.ReduceOp.SUM
        distributed.all_reduce(value, op, group)
        return [value]

    def _move(self, shift: Tensor, target_shift: Tensor) -> None:
        """Let the sums be of differences from another point."""
        by, target_by = shift - self.shift, target_shift - self.target_shift
        self.gram.addr_(by, self.feature_sum, alpha=-1)
        self.cross.addr_(by, self.target_sum, alpha=-1)
        self.target_squares -= target_by * self.target_sum
        self.feature_sum -= self.count * by
        self.target_sum -= self.count * target_by
        self.gram.addr_(self.feature_sum, by, alpha=-1)
        self.cross.addr_(self.feature_sum, target_by, alpha=-1)
        self.target_squares -= target_by * self.target_sum
        self.shift, self.target_shift = shift, target_shift

    def compute(self) -> Moments | None:
        """Return means and centred products; None where there are no samples."""
        count = int(self.count)
        if count == 0:
            return None
        mean, target_mean = self.feature_sum / count, self.target_sum / count  # from the shift
        return Moments(
            count,
            self.shift + mean,
            self.target_shift + target_mean,
            self.gram.addr(mean, mean, alpha=-count),
            self.cross.addr(mean, target_mean, alpha=-count),
            (self.target_squares - count * target_mean.square()).clamp(min=0),
            self.norms / count,
            float(self.rounding),
        )


class RidgeRows(Gathering):
    """Keep samples, over batches and processes, for fewer samples than features."""

    features: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b p"], targets: Float[Tensor, "b t"]) -> None:
        """Add samples."""
        self.features.append(features)
        self.targets.append(targets)

    def compute(self) -> Rows | None:
        """Return all samples; None where there are none."""
        features = dim_zero_cat(self.features) if len(self.features) else torch.zeros(0)
        return Rows(features, dim_zero_cat(self.targets)) if len(features) else None


def ridge(
    features: Float[Tensor, "n p"],
    targets: Float[Tensor, "n t"],
    lam: float,
    scaling: Scaling = "none",
) -> RidgeSolution:
    """Solve ridge regression exactly, in the primal or, with fewer samples than features, the dual.

    Args:
        features: A row a sample; of any floating type, the sums are in fp64.
        targets: What to predict.
        lam: Weight of the penalty on the scaled features' weights, 0 or more; 0 gives the solution
            of minimum norm.
        scaling: What features are divided by first.

    Raises:
        BadInput: Lambda is negative or not finite, there are no samples, or one isn't finite.

    References:
        Hoerl and Kennard, Ridge regression (1970).

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> ridge(x, 3 * x - 1, lam=0.0).weight
        tensor([[3.]], dtype=torch.float64)
    """
    if not 0 <= lam < math.inf:
        msg = f"lambda is {lam}; expected 0 or more"
        raise BadInput(msg)
    return gather(features, targets).solve(lam, scaling)


def gather(features: Float[Tensor, "n p"], targets: Float[Tensor, "n t"]) -> Moments | Rows:
    """Return what a solution needs of samples at hand: their moments, or, being few, themselves.

    Raises:
        BadInput: There are no samples, or one isn't finite.
    """
    if (bad := first_invalid(features, targets)) is not None:
        place, what = f"sample {bad[0]}", bad[1]
        raise BadInput.at(place, what, "a ridge needs finite ones: mend or leave it out")
    if 0 < len(features) < features.shape[1]:
        return Rows(features, targets)
    sums = RidgeSums(features.shape[1], targets.shape[1]).to(features.device)
    sums.update(features, targets)
    moments = sums.compute()
    if moments is None:
        msg = "a ridge needs samples; none were given"
        raise BadInput(msg)
    return moments
