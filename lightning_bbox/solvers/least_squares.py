"""Exact linear least squares with a ridge: one factorisation serves a whole grid of lambdas.

The penalty is `||Y - XW||^2 + lambda ||W||^2` on features that are centred and scaled; the
intercept isn't penalised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.randomness import keyed_generator

Scaling = Literal["standard", "norm20", "none"]
"""What features are divided by before they are penalised: each by its own standard deviation (see
`usual_deviations`), all so that their mean norm is 20 (R-CNN's), or nothing. They are always
centred."""

LEAF = 256
"""Rows of a Gram matrix whose whole block is computed; of larger ones only the lower triangle."""

CHUNK = 2048
"""Samples converted to fp64 at once."""

OF_ROUNDING = {torch.float64: 1e-13}
OF_ROUNDING_ELSE = 1.5e-7
"""Deviations, as a share of the mean, that rounding gives a constant feature, by its dtype."""


class RidgeSolution(NamedTuple):
    """Weights and intercept for features as they are, neither centred nor scaled.

    Attributes:
        weight: As in `nn.Linear`.
        bias: The same.
        lam: The lambda they belong to.
        condition: Largest over smallest eigenvalue of what was solved, lambda included; estimated
            from below where that was by Cholesky.
    """

    weight: Float[Tensor, "t p"]
    bias: Float[Tensor, " t"]
    lam: float
    condition: float


@dataclass(frozen=True)
class Spectrum:
    """The eigenvectors of scaled features, from which every lambda's solution follows at once.

    Directions that the samples don't span are left out, so that lambda 0 gives the solution of
    minimum norm.

    Attributes:
        count: How many samples there are.
        mean: Mean of the features.
        scale: What they are divided by.
        target_mean: Mean of the targets.
        target_squares: Centred sum of squares of the targets.
        values: Eigenvalues of the centred, scaled Gram matrix.
        basis: Their eigenvectors.
        cross: Products of the features along these with the targets.
    """

    count: int
    mean: Float[Tensor, " p"]
    scale: Float[Tensor, " p"]
    target_mean: Float[Tensor, " t"]
    target_squares: Float[Tensor, " t"]
    values: Float[Tensor, " k"]
    basis: Float[Tensor, "p k"]
    cross: Float[Tensor, "k t"]

    def solution(self, lam: float) -> RidgeSolution:
        """Return the solution of one lambda; 0 gives that of minimum norm."""
        weight = (self.basis @ (self.cross / (self.values + lam)[:, None])).T
        values = self.values if len(self.values) else self.values.new_ones(1)
        condition = float((values.max() + lam) / (values.min() + lam))
        return _unscaled(weight, self.mean, self.scale, self.target_mean, lam, condition)

    def gcv(self, lambdas: Float[Tensor, " l"]) -> Float[Tensor, " l"]:
        """Return the generalised cross-validation of lambdas, infinite where nothing is left over.

        It takes samples for independent; several draws of one object aren't.

        References:
            Golub, Heath and Wahba, Generalized cross-validation (1979).
        """
        values = self.values[:, None]
        explained = self.cross.square().sum(dim=1)[:, None] / values
        left = lambdas / (values + lambdas)  # of each direction; no difference, so no lost digits
        outside = self.count - 1 - len(values)
        residual = (explained * left.square()).sum(dim=0)
        if outside:
            residual = residual + (self.target_squares.sum() - explained.sum()).clamp(min=0)
        free = outside + left.sum(dim=0)
        return torch.where(free > 0, self.count * residual / free.square(), torch.inf)


class Moments:
    """Means and centred products of samples, in fp64: all that a solution needs of many samples.

    Args:
        count: How many samples there are.
        mean: Mean of the features.
        target_mean: Mean of the targets.
        gram: Centred products of the features; only the lower triangle is filled.
        cross: Centred products of features and targets.
        target_squares: Centred sums of squares of the targets.
        mean_norm: Mean Euclidean norm of a sample's features.
        rounding: Deviation that is rounding alone, as a share of a feature's mean.
    """

    # No dataclass: torchmetrics squeezes the tensors of one that `compute` returns.
    def __init__(
        self,
        count: int,
        mean: Float[Tensor, " p"],
        target_mean: Float[Tensor, " t"],
        gram: Float[Tensor, "p p"],
        cross: Float[Tensor, "p t"],
        target_squares: Float[Tensor, " t"],
        mean_norm: Float[Tensor, ""],
        rounding: float,
    ) -> None:
        self.count, self.mean, self.target_mean = count, mean, target_mean
        self.gram, self.cross, self.rounding = gram, cross, rounding
        self.target_squares, self.mean_norm = target_squares, mean_norm

    def is_finite(self) -> bool:
        """Tell whether all features and targets were finite: one that wasn't shows in the sums."""
        sums = self.gram.diagonal(), self.target_squares
        return all(bool(each.isfinite().all()) for each in sums)

    def scale(self, scaling: Scaling) -> Float[Tensor, " p"]:
        """Return what features are divided by; those that are constant by infinity, so they go."""
        variances = self.gram.diagonal() / self.count
        return _scale(scaling, variances, self.mean, self.mean_norm, self.rounding)

    def _scaled(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        gram = self.gram / scale[:, None]
        return gram.div_(scale), self.cross / scale[:, None]

    def spectrum(self, scaling: Scaling) -> Spectrum:
        """Decompose the Gram matrix."""
        scale = self.scale(scaling)
        gram, cross = self._scaled(scale)
        values, vectors = torch.linalg.eigh(gram)
        spanned = _spanned(values, self.count)
        values, basis = values[spanned], vectors[:, spanned]
        return Spectrum(
            self.count, self.mean, scale, self.target_mean, self.target_squares,
            values, basis, basis.T @ cross,
        )  # fmt: skip

    def solve(self, lam: float, scaling: Scaling) -> RidgeSolution:
        """Solve for one lambda by Cholesky, or by the spectrum where that breaks down."""
        scale = self.scale(scaling)
        solved = _solve(*self._scaled(scale), lam)
        if solved is None:
            return self.spectrum(scaling).solution(lam)
        weight, condition = solved
        return _unscaled(weight.T, self.mean, scale, self.target_mean, lam, condition)

    def squared_errors(self, solutions: Sequence[RidgeSolution]) -> Float[Tensor, " s"]:
        """Return the sum of squared errors of each solution on these samples."""
        weights, biases = _stacked(solutions)
        gram = self.gram.tril() + self.gram.tril(-1).T
        spread = ((weights @ gram - 2 * self.cross.T) * weights).sum(dim=(1, 2))
        offsets = self.target_mean - biases - weights @ self.mean
        return self.target_squares.sum() + spread + self.count * offsets.square().sum(dim=1)


class Rows:
    """Samples as they are, for fewer samples than features: the dual form.

    Args:
        features: A row a sample.
        targets: The same.
    """

    def __init__(self, features: Float[Tensor, "n p"], targets: Float[Tensor, "n t"]) -> None:
        self.features, self.targets, self.count = features, targets, len(features)

    def is_finite(self) -> bool:
        """Tell whether all features and targets are finite."""
        return first_invalid(self.features, self.targets) is None

    def _scaled(self, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return scaled features and centred targets, and what they were centred and scaled by."""
        x, y = self.features.double(), self.targets.double()
        mean, target_mean = x.mean(dim=0), y.mean(dim=0)
        mean_norm = x.norm(dim=1).mean() if scaling == "norm20" else mean.new_ones(())
        x = x - mean
        if scaling == "none":
            return x, y - target_mean, mean, torch.ones_like(mean), target_mean
        variances = torch.linalg.vector_norm(x, dim=0).square() / len(x)
        rounding = OF_ROUNDING.get(self.features.dtype, OF_ROUNDING_ELSE)
        scale = _scale(scaling, variances, mean, mean_norm, rounding)
        return x.div_(scale), y - target_mean, mean, scale, target_mean

    def spectrum(self, scaling: Scaling) -> Spectrum:
        """Decompose the samples' own products."""
        x, y, mean, scale, target_mean = self._scaled(scaling)
        values, vectors = torch.linalg.eigh(_lower_product(x))
        spanned = _spanned(values, x.shape[1])
        values, vectors = values[spanned], vectors[:, spanned]
        return Spectrum(
            len(x), mean, scale, target_mean, y.square().sum(dim=0),
            values, x.T @ (vectors / values.sqrt()), values.sqrt()[:, None] * (vectors.T @ y),
        )  # fmt: skip

    def solve(self, lam: float, scaling: Scaling) -> RidgeSolution:
        """Solve for one lambda by Cholesky, or by the spectrum where that breaks down."""
        x, y, mean, scale, target_mean = self._scaled(scaling)
        products = _lower_product(x)
        # Centred rows add up to zero; targets do too, so lifting that direction changes nothing.
        products += products.diagonal().mean() / len(x)
        solved = _solve(products, y, lam)
        if solved is None:
            return self.spectrum(scaling).solution(lam)
        weight, condition = solved
        return _unscaled(weight.T @ x, mean, scale, target_mean, lam, condition)

    def squared_errors(self, solutions: Sequence[RidgeSolution]) -> Float[Tensor, " s"]:
        """Return the sum of squared errors of each solution on these samples."""
        weights, biases = _stacked(solutions)
        total = weights.new_zeros(len(weights))
        for x, y in chunks(self.features, self.targets):
            errors = y - biases[:, None] - x @ weights.transpose(1, 2)
            total += errors.square().sum(dim=(1, 2))
        return total


def score_lambdas(
    spectra: Sequence[Spectrum | None],
    held_out: Sequence[Moments | Rows | None] | None = None,
    steps: int = 21,
) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"]]:
    """Score lambdas from a millionth to ten thousand times the mean eigenvalue: less is better.

    Args:
        spectra: What they are for; several regressors share one lambda.
        held_out: Samples to score each regressor on, by its squared error; without them generalised
            cross-validation scores it.
        steps: How many lambdas.

    Returns:
        The lambdas, and their scores.
    """
    present = [spectrum for spectrum in spectra if spectrum]
    trace = sum(float(spectrum.values.sum()) for spectrum in present)
    directions = max(1, sum(len(spectrum.values) for spectrum in present))
    grid = torch.logspace(-6, 4, steps, dtype=torch.float64) * (trace / directions or 1.0)
    if held_out is None:
        scores = [each.count * each.gcv(grid.to(each.values)).cpu() for each in present]
        return grid, torch.stack(scores).sum(dim=0)
    errors = [
        held.squared_errors([each.solution(float(lam)) for lam in grid]).cpu()
        for each, held in zip(spectra, held_out, strict=True)
        if each and held
    ]
    return grid, torch.stack(errors).sum(dim=0)


def usual_deviations(variances: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Return standard deviations, but none below a tenth of the root mean square of those above 0.

    A unit that hardly ever fires would rule where it does, were it divided by its own.

    Args:
        variances: Of each feature.
    """
    usual = variances.clamp(min=0).sum() / (variances > 0).sum().clamp(min=1)
    return variances.clamp(min=0.01 * usual).sqrt()


def add_lower_product(product: Float[Tensor, "m m"], rows: Float[Tensor, "m k"]) -> None:
    """Add `rows @ rows.T` to the lower triangle, by halves: torch has no product of half the work.

    What lies above the diagonal means nothing.

    Args:
        product: Where to add.
        rows: In the same dtype.
    """
    if len(rows) <= LEAF:
        product.addmm_(rows, rows.T)
        return
    half = len(rows) // 2
    add_lower_product(product[:half, :half], rows[:half])
    product[half:, :half].addmm_(rows[half:], rows[:half].T)
    add_lower_product(product[half:, half:], rows[half:])


def chunks(
    features: Float[Tensor, "n p"], targets: Float[Tensor, "n t"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk through samples, in fp64 and a few at once, so that a large table isn't copied."""
    for start in range(0, len(features), CHUNK):
        rows = slice(start, start + CHUNK)
        yield features[rows].double(), targets[rows].double()


def first_invalid(
    features: Float[Tensor, "n p"], targets: Float[Tensor, "n t"] | None = None
) -> tuple[int, str] | None:
    """Return the first sample that isn't finite and what of it isn't; None where all are.

    Args:
        features: A row a sample.
        targets: The same, if there are any.

    Examples:
        >>> first_invalid(torch.tensor([[1.0, 2.0], [3.0, torch.nan]]))
        (1, 'feature 1 is nan')
    """
    found = []
    for name, values in (("feature", features), ("target", targets)):
        parts = () if values is None else torch.split(values, CHUNK)
        for number, part in enumerate(parts):
            if not bool((finite := part.isfinite()).all()):
                row, column = (~finite).nonzero()[0].tolist()
                value = float(part[row, column])
                found.append((number * CHUNK + row, f"{name} {column} is {value}"))
                break
    return min(found, default=None)


def _lower_product(rows: Float[Tensor, "m k"]) -> Float[Tensor, "m m"]:
    product = rows.new_zeros(len(rows), len(rows))
    add_lower_product(product, rows)
    return product


def _scale(
    scaling: Scaling, variances: Tensor, mean: Tensor, mean_norm: Tensor, rounding: float
) -> Tensor:
    """Return what features are divided by: infinity where all that varies is rounding."""
    if scaling == "none":
        return torch.ones_like(mean)
    if scaling == "norm20":
        return (mean_norm / 20).expand_as(mean)
    varying = variances > (rounding * mean).square()
    return torch.where(varying, usual_deviations(variances.where(varying, 0)), torch.inf)


def _spanned(values: Tensor, other_side: int) -> Tensor:
    """Tell which eigenvalues are more than rounding."""
    eps = torch.finfo(torch.float64).eps
    return values > eps * max(len(values), other_side) * values.abs().max()


def _stacked(solutions: Sequence[RidgeSolution]) -> tuple[Tensor, Tensor]:
    """Return weights (s, t, p) and intercepts (s, t)."""
    weights = torch.stack([solution.weight for solution in solutions])
    return weights, torch.stack([solution.bias for solution in solutions])


def _unscaled(
    weight: Tensor, mean: Tensor, scale: Tensor, target_mean: Tensor, lam: float, condition: float
) -> RidgeSolution:
    weight = weight / scale
    return RidgeSolution(weight, target_mean - weight @ mean, lam, condition)


def _solve(
    products: Float[Tensor, "m m"], right: Float[Tensor, "m t"], lam: float
) -> tuple[Float[Tensor, "m t"], float] | None:
    """Solve `(products + lam) w = right` and estimate the condition number; None if that fails.

    Only the lower triangle is read. A few steps of power iteration each way, downwards from the
    smallest pivot, give the condition from below, most often within a factor of three.
    """
    products.diagonal().add_(lam)
    factor, failed = torch.linalg.cholesky_ex(products)
    if lam <= 0 or bool(failed):
        return None
    large = torch.randn(len(right), 1, generator=keyed_generator("condition")).to(right)
    small = 1e-3 * large / large.norm()
    small[factor.diagonal().argmin()] += 1
    solved = torch.cholesky_solve(torch.cat([right, small], dim=1), factor)
    small = solved[:, -1:]
    for _ in range(2):
        small = torch.cholesky_solve(small / small.norm(), factor)
        large = factor @ (factor.T @ (large / large.norm()))
    return solved[:, :-1], float(large.norm() * small.norm())
