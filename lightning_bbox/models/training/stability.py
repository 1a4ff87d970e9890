"""The largest learning rate at which gradient descent on a linear layer is stable."""

import math
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.losses import Loss

_BLOCK = 1024  # rows that are held in fp64 at once
_MOST_STEPS = 200


def largest_stable_rate(
    head: LinearHead, features: Float[Tensor, "n f"], group: dict[str, Any]
) -> float | None:
    """Return the learning rate beyond which SGD on a linear head diverges, None where any loss may.

    It is 2 (1 + momentum) / lambda, lambda the largest eigenvalue of the loss's own Hessian: the
    loss's largest curvature by Phi^T Phi / n, Phi the features as the head standardizes them and a
    column of ones, plus the weight decay. That holds for the gradient of all samples; small batches
    need less.

    Args:
        head: The layer with its loss; with an activation on its output no rate is known.
        features: What it is trained on.
        group: Options of `torch.optim.SGD`.

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods (1964).
        LeCun et al., Efficient backprop (1998), section 4.6 for the rate, section 4.3 for
        centring. With Nesterov's momentum, as torch has it, the rate is 1 + 2 momentum lower.
    """
    curvature = head.criterion.curvature(head.std) if isinstance(head.criterion, Loss) else None
    if curvature is None or head.activation != "none":
        return None
    shift, scale = (head.feature_mean, head.feature_std) if head.standardize else (None, None)
    steepest = float(curvature.max()) * largest_eigenvalue(features, shift, scale)
    momentum = float(group["momentum"])
    nesterov = 1 + 2 * momentum if group["nesterov"] else 1
    damped = 1 - float(group["dampening"]) if momentum else 1
    return 2 * (1 + momentum) / nesterov / damped / (steepest + float(group["weight_decay"]))


@torch.no_grad()
def largest_eigenvalue(
    features: Float[Tensor, "n f"],
    shift: Float[Tensor, " f"] | None = None,
    scale: Float[Tensor, " f"] | None = None,
    tolerance: float = 1e-6,
) -> float:
    """Return the largest eigenvalue of Phi^T Phi / n, by Lanczos's method in fp64.

    Phi are the features less `shift`, divided by `scale`, and a column of ones for the bias. They
    are used block by block: no second table is made.

    Args:
        features: A row for each sample.
        shift: What to subtract from each feature.
        scale: What to divide each feature by.
        tolerance: Largest relative error.

    References:
        Golub and Van Loan, Matrix computations (4th ed., 2013), section 10.1; ours orthogonalizes
        anew in each step, and stops by the residual's norm.
    """
    columns = features.shape[1] + 1
    vector = torch.randn(columns, dtype=torch.float64, generator=keyed_generator("lanczos"))
    vector = vector.to(features.device)
    basis = [vector / vector.norm()]
    diagonal, beside = list[float](), list[float]()
    value, step = 0.0, 0
    while step < min(columns, _MOST_STEPS):
        step += 1
        product = _gram_product(features, basis[-1], shift, scale)
        diagonal.append(float(product @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            product = product - known.T @ (known @ product)
        rest = float(product.norm())
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        value = float(values[-1])
        if rest * abs(float(vectors[-1, -1])) <= tolerance * value:
            break
        beside.append(rest)
        basis.append(product / rest)
    return value


def _gram_product(
    features: Tensor, vector: Tensor, shift: Tensor | None, scale: Tensor | None
) -> Float64[Tensor, " m"]:
    """Return Phi^T Phi / n by a vector, whose last entry is the bias's."""
    total = torch.zeros_like(vector)
    for block in torch.split(features, _BLOCK):
        rows = block.double()
        rows = rows if shift is None else rows - shift
        rows = rows if scale is None else rows / scale
        outputs = rows @ vector[:-1] + vector[-1]
        total[:-1] += rows.T @ outputs
        total[-1] += outputs.sum()
    return total / len(features)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Float64[Tensor, "k k"]:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for index, value in enumerate(beside):
        matrix[index, index + 1] = matrix[index + 1, index] = value
    return matrix


def excess_message(rate: float, largest: float, standardized: bool) -> str | None:
    """Say that a learning rate is above the largest stable one, None where it isn't.

    Args:
        rate: The highest of the run.
        largest: The largest stable one.
        standardized: Whether the head standardizes its features.
    """
    if not (rate > largest and math.isfinite(largest)):
        return None
    remedy = "lower it" if standardized else "lower it, or set model.head.standardize"
    return (
        f"the learning rate {rate:.3g} exceeds {largest:.3g}, the largest that is stable for SGD "
        f"with this loss and these features; {remedy}"
    )
