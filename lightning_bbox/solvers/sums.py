"""Ridge regression: samples summed up over batches and processes, or kept where they are few."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_bbox.core.errors import BadInput
from lightning_bbox.solvers.least_squares import (
    Moments,
    RidgeSolution,
    Rows,
    Scaling,
    add_lower_product,
    chunks,
)


class Gathering(Metric):
    """What is gathered of samples, and can be kept while a pass is stopped."""

    full_state_update = False

    def state(self) -> dict[str, Tensor]:
        """Return what all processes gathered."""
        with self.sync_context():
            return {name: dim_zero_cat(getattr(self, name)).clone() for name in self._defaults}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what was gathered; one process takes it, the others begin empty."""
        for name, default in self._defaults.items():
            held = state[name].to(self.device)
            setattr(self, name, [held] if isinstance(default, list) else held)
        self._update_count += 1


class RidgeSums(Gathering):
    """Sum up features and targets over batches and processes, in fp64.

    The memory is that of one Gram matrix, however many samples there are.

    Args:
        num_features: Length of a feature vector.
        num_targets: How many coordinates are predicted.
    """

    count: Tensor
    feature_sum: Tensor
    target_sum: Tensor
    gram: Tensor
    cross: Tensor
    target_squares: Tensor
    norms: Tensor

    def __init__(self, num_features: int, num_targets: int) -> None:
        super().__init__()
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

    def update(self, features: Float[Tensor, "b p"], targets: Float[Tensor, "b t"]) -> None:
        """Add samples."""
        for x, y in chunks(features, targets):
            self.count += len(x)
            self.feature_sum += x.sum(dim=0)
            self.target_sum += y.sum(dim=0)
            self.cross.addmm_(x.T, y)
            self.target_squares += y.square().sum(dim=0)
            self.norms += x.norm(dim=1).sum()
            add_lower_product(self.gram, x.T)

    def compute(self) -> Moments | None:
        """Return means and centred products; None where there are no samples."""
        count = int(self.count)
        if count == 0:
            return None
        mean, target_mean = self.feature_sum / count, self.target_sum / count
        return Moments(
            count,
            mean,
            target_mean,
            self.gram.addr(mean, mean, alpha=-count),
            self.cross.addr(mean, target_mean, alpha=-count),
            (self.target_squares - count * target_mean.square()).clamp(min=0),
            self.norms / count,
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
        BadInput: Lambda is negative, or there are no samples.

    References:
        Hoerl and Kennard, Ridge regression (1970).

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> ridge(x, 3 * x - 1, lam=0.0).weight
        tensor([[3.]], dtype=torch.float64)
    """
    if lam < 0:
        msg = f"lambda is {lam}; expected 0 or more"
        raise BadInput(msg)
    return gather(features, targets).solve(lam, scaling)


def gather(features: Float[Tensor, "n p"], targets: Float[Tensor, "n t"]) -> Moments | Rows:
    """Return what a solution needs of samples at hand: their moments, or, being few, themselves.

    Raises:
        BadInput: There are no samples.
    """
    if 0 < len(features) < features.shape[1]:
        return Rows(features, targets)
    sums = RidgeSums(features.shape[1], targets.shape[1]).to(features.device)
    sums.update(features, targets)
    moments = sums.compute()
    if moments is None:
        msg = "a ridge needs samples; none were given"
        raise BadInput(msg)
    return moments
