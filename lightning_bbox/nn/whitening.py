"""Preprocessing by principal components: PCA, and PCA and ZCA whitening."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.preprocess import Preprocess

SHOWN = 36
"""How many of the leading components are shown."""


class PrincipalAxes(NamedTuple):
    """Where samples vary most, in fp64.

    Attributes:
        mean: Of the samples.
        values: Variances along the axes, falling.
        axes: Of length 1, a row each; zeros where the samples span no more.
        variance: Of the samples, summed over all directions.
    """

    mean: Float[Tensor, " p"]
    values: Float[Tensor, " k"]
    axes: Float[Tensor, "k p"]
    variance: Float[Tensor, ""]


def principal_axes(samples: Float[Tensor, "n p"], count: int) -> PrincipalAxes:
    """Return the leading axes of samples, from the smaller one of their two Gram matrices.

    Args:
        samples: A row each; of any floating type, what is computed is in fp64.
        count: How many axes.

    References:
        Turk and Pentland, Eigenfaces for recognition (1991): fewer pictures than pixels.
    """
    rows = samples.double()
    mean = rows.mean(dim=0)
    rows = rows - mean
    dual = len(rows) < rows.shape[1]
    gram = rows @ rows.T if dual else rows.T @ rows
    squares, vectors = torch.linalg.eigh(gram)
    spanned = squares > torch.finfo(torch.float64).eps * max(rows.shape) * squares[-1]
    squares, vectors = squares[spanned][-count:].flip(0), vectors[:, spanned][:, -count:].flip(1)
    axes = (rows.T @ (vectors / squares.sqrt()) if dual else vectors).T
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * largest.sign()  # either sign would do; this one makes pictures comparable
    free = max(1, len(rows) - 1)
    values = squares.new_zeros(count)
    values[: len(squares)] = squares / free
    padded = rows.new_zeros(count, rows.shape[1])
    padded[: len(axes)] = axes
    return PrincipalAxes(mean, values, padded, gram.trace() / free)


class PrincipalNorm(Preprocess, ABC):
    """Centre crops, and scale them along the principal axes of the training crops.

    What lies beside the axes is scaled as a whole, so a crop stays a picture: a product with a few
    components and back, in fp32 whatever the network runs in. Subclasses say by how much.

    Args:
        components: How many principal axes; what is fitted are these, not a whole covariance.
        draws: How many training draws they are found in.

    Raises:
        BadInput: A number isn't positive, or there are no more draws than components.
    """

    mean: Tensor
    axes: Tensor
    gains: Tensor
    rest: Tensor

    def __init__(self, components: int = 144, draws: int = 1024) -> None:
        super().__init__()
        if not 0 < components < draws:
            msg = (
                f"{type(self).__name__} components is {components} and draws {draws}; expected at "
                f"least one component, and more draws than components"
            )
            raise BadInput(msg)
        self.components, self.draws = components, draws

    def build(self, crop_size: int) -> "PrincipalNorm":
        """Make the buffers: before it is fitted, crops pass through.

        Raises:
            BadInput: Crops don't have as many numbers as there are to be components.
        """
        shape = 3, crop_size, crop_size
        if self.components > (numbers := 3 * crop_size**2):
            msg = (
                f"{type(self).__name__} components is {self.components}, but crops of {crop_size} "
                f"px are {numbers} numbers; expected at most that"
            )
            raise BadInput(msg)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("axes", torch.zeros(self.components, *shape))
        self.register_buffer("gains", torch.ones(self.components))
        self.register_buffer("rest", torch.ones(()))
        return self

    @abstractmethod
    def scales(
        self, values: Float[Tensor, " k"], left: Float[Tensor, ""], usual: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
        """Return what to multiply each axis by, and what lies beside them.

        Args:
            values: Variances along the axes.
            left: Mean variance of the directions beside them.
            usual: Mean variance of all directions.
        """

    def fit(self, crops: Float[Tensor, "n 3 h w"]) -> None:
        """Find mean, axes and scales of training crops."""
        found = principal_axes(crops.detach().flatten(1), self.components)
        usual = found.variance / found.mean.numel()
        beside = found.mean.numel() - self.components
        left = (found.variance - found.values.sum()).clamp(min=0) / max(1, beside)
        if not beside:  # any number would do; one of another size would cost digits
            left = found.values[-1]
        # Crops that are all the same have nothing to scale.
        gains, rest = self.scales(found.values, left, torch.where(usual > 0, usual, 1.0))
        self.mean.copy_(found.mean.view_as(self.mean))
        self.axes.copy_(found.axes.view_as(self.axes))
        self.gains.copy_(gains)
        self.rest.copy_(rest)

    def forward(self, crops: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Centre and scale."""
        with torch.autocast(crops.device.type, enabled=False):
            exact = crops.to(torch.promote_types(crops.dtype, torch.float32))
            mean, axes, gains, rest = (
                statistic.to(exact.dtype)
                for statistic in (self.mean, self.axes.flatten(1), self.gains, self.rest)
            )
            centred = exact - mean
            along = centred.flatten(1) @ axes.T
            return rest * centred + (along * (gains - rest) @ axes).view(crops.shape)

    def pictures(self) -> dict[str, Float[Tensor, "n 3 h w"]]:
        """Return the mean and the leading components."""
        leading = self.axes[:SHOWN]
        largest = leading.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        title = f"the {len(leading)} leading of {self.components} components, by falling variance"
        return {"mean": self.mean[None], title: 0.5 + leading / (2 * largest)}


class PCA(PrincipalNorm):
    """Keep of centred crops what lies along the leading principal axes, rotated back to pixels.

    What is left has the scale of crops in [0, 1] and is slightly blurred: components of low
    variance are high frequencies.

    Args:
        components: How many principal axes are kept.
        draws: How many training draws they are found in.

    Raises:
        BadInput: A number isn't positive, or there are no more draws than components.

    References:
        CS231n notes, Neural Networks 2, Data Preprocessing: PCA.

    Examples:
        >>> pca = PCA(components=2, draws=20).build(4)
        >>> crops = torch.rand(20, 3, 4, 4)
        >>> pca.fit(crops)
        >>> torch.linalg.matrix_rank(pca(crops).flatten(1), atol=1e-3).item()
        2
    """

    def scales(
        self, values: Float[Tensor, " k"], left: Float[Tensor, ""], usual: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
        """Keep the axes, and nothing beside them."""
        return torch.ones_like(values), torch.zeros_like(left)


class PCAWhitening(PrincipalNorm):
    """Keep the leading principal axes, each divided by its standard deviation, back in pixels.

    A convolution needs a picture, so the whitened coordinates are rotated back (the notes' "white
    representation"). For a linear model trained by SGD or with an L2 penalty that is all the same:
    it can't tell a rotation. The mean square of the result is components / numbers of a crop.

    Args:
        components: How many principal axes are kept.
        eps: What is added to the variances, in units of the mean one: components below it are noise
            that whitening would blow up.
        draws: How many training draws they are found in.

    Raises:
        BadInput: A number isn't positive, or there are no more draws than components.

    References:
        CS231n notes, Neural Networks 2, Data Preprocessing: whitening. Its eps is absolute, for
        pixels from 0 to 255; ours doesn't depend on their scale.

    Examples:
        >>> whitening = PCAWhitening(components=2, eps=1e-6, draws=20).build(4)
        >>> crops = torch.rand(20, 3, 4, 4)
        >>> whitening.fit(crops)
        >>> covariance = whitening(crops).flatten(1).T.cov()
        >>> torch.linalg.eigvalsh(covariance)[-3:].abs().round(decimals=3)
        tensor([0., 1., 1.])
    """

    def __init__(self, components: int = 144, eps: float = 0.1, draws: int = 1024) -> None:
        super().__init__(components, draws)
        if not 0 < eps < math.inf:
            msg = f"{type(self).__name__} eps is {eps}; expected above 0"
            raise BadInput(msg)
        self.eps = eps

    def scales(
        self, values: Float[Tensor, " k"], left: Float[Tensor, ""], usual: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
        """Divide the axes by their deviations, and keep nothing beside them."""
        return (values + self.eps * usual).rsqrt(), torch.zeros_like(left)


class ZCAWhitening(PCAWhitening):
    """Whiten crops and stay as near to them as can be: no direction is lost.

    Along the leading principal axes each has a variance of its own; the others share their mean
    one, which a few crops can tell while they can't tell each one's. With as many components as the
    training crops span this is ZCA as it is usually written.

    Args:
        components: How many principal axes have a variance of their own.
        eps: What is added to the variances, in units of the mean one: directions below it are noise
            that whitening would blow up.
        draws: How many training draws they are found in.

    Raises:
        BadInput: A number isn't positive, or there are no more draws than components.

    References:
        Bell and Sejnowski, The independent components of natural scenes are edge filters (1997).
        Tipping and Bishop, Probabilistic principal component analysis (1999): the shared variance.

    Examples:
        >>> whitening = ZCAWhitening(components=48, eps=1e-6, draws=400).build(4)
        >>> crops = torch.rand(400, 3, 4, 4)
        >>> whitening.fit(crops)
        >>> (whitening(crops).flatten(1).T.cov() - torch.eye(48)).abs().max().item() < 1e-3
        True
    """

    def __init__(self, components: int = 256, eps: float = 0.1, draws: int = 1024) -> None:
        super().__init__(components, eps, draws)

    def scales(
        self, values: Float[Tensor, " k"], left: Float[Tensor, ""], usual: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
        """Divide each axis by its deviation, and what lies beside them by the mean one there."""
        gains, _ = super().scales(values, left, usual)
        return gains, (left + self.eps * usual).rsqrt()
