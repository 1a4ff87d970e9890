"""Losses of classified offsets: one small class each, which says what links and labels it fits.

A loss maps logits and labels to one number a sample, summed over the rows of a grid.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Recipe
from lightning_bbox.nn.heads.bins.labels import (
    BinGrid,
    BinLabels,
    GaussianLabels,
    OneHotLabels,
    Probs,
)
from lightning_bbox.nn.heads.bins.links import (
    IMPOSSIBLE,
    CumulativeLink,
    IndependentLink,
    Link,
    Logits,
    SoftmaxLink,
    TreeLink,
)

Losses = Float[Tensor, " b"]


class BinLoss(Recipe):
    """Logits and labels to a number for each sample.

    Examples:
        >>> import torch
        >>> from lightning_bbox.nn.heads.bins.labels import lay_grid
        >>> grid = lay_grid([1.0], [0.5], padding=0)
        >>> for loss in (CrossEntropy(), WestonWatkinsHinge(), StructuredHinge()):
        ...     link = SoftmaxLink().build(8, grid.inside, grid.inside / 5)
        ...     print(loss(link, torch.zeros(1, 1, 5), torch.eye(5)[None, :1], grid))
        tensor([1.6094])
        tensor([4.])
        tensor([2.])
    """

    fits: ClassVar[dict[type[Link], type[BinLabels]]]
    """The links it can train, each with its usual labels; the first is the usual link."""
    any_labels: ClassVar[bool] = True
    """Whether labels may be spread over several bins."""
    probabilistic: ClassVar[bool] = True
    """Whether it makes the link's probabilities those of the offset."""

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the loss of each sample."""
        raise NotImplementedError

    def usual_labels(self, link: Link) -> BinLabels:
        """Return the labels that usually go with the link.

        Raises:
            BadInput: The loss fits other links.
        """
        for fitting, labels in self.fits.items():
            if isinstance(link, fitting):
                return labels()
        ours, theirs = type(self).__name__, type(link).__name__
        links = " or ".join(fitting.__name__ for fitting in self.fits)
        msg = f"{ours} can't train {theirs}; choose {links} for it, or another loss"
        raise BadInput(msg)

    def refuse_misfits(self, labels: BinLabels) -> None:
        """Refuse labels that mean nothing to the loss.

        Raises:
            BadInput: It needs one true bin, and they are spread over several.
        """
        if not (self.any_labels or isinstance(labels, OneHotLabels)):
            ours, theirs = type(self).__name__, type(labels).__name__
            msg = f"{ours} needs one true bin, and {theirs} are spread; choose OneHotLabels"
            raise BadInput(msg)


class CrossEntropy(BinLoss):
    """Minus the mean log probability under the labels: of the leaves, where the link is a tree.

    References:
        CS231n notes, Linear classification: the softmax classifier.
    """

    fits: ClassVar[dict[type[Link], type[BinLabels]]] = {
        SoftmaxLink: GaussianLabels,
        TreeLink: GaussianLabels,
    }

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the cross-entropy of each sample."""
        return -(labels * link.log_probs(logits)).sum(dim=(1, 2))


class BinaryCrossEntropy(BinLoss):
    """A logistic loss for each yes or no that a link asks: ordinal, or attribute-wise.

    -[y ln s + (1 - y) ln(1 - s)], summed over what is asked: whether the offset lies beyond each
    threshold of a `CumulativeLink`, or in each bin of an `IndependentLink`.

    References:
        CS231n notes, Loss functions: attribute classification, whose printed formula lacks these
        brackets. Cao, Mirjalili and Raschka, Rank consistent ordinal regression (2020), equation 4.
    """

    fits: ClassVar[dict[type[Link], type[BinLabels]]] = {
        CumulativeLink: OneHotLabels,
        IndependentLink: OneHotLabels,
    }

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the sum of the logistic losses of each sample."""
        losses = F.binary_cross_entropy_with_logits(
            logits.float(), link.attributes(labels), reduction="none"
        )
        return (losses * link.asked()).sum(dim=(1, 2))


class Hinge(BinLoss):
    """Scores that are to beat each other by a margin; they tell no probabilities."""

    fits: ClassVar[dict[type[Link], type[BinLabels]]] = {SoftmaxLink: OneHotLabels}
    any_labels: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False


class WestonWatkinsHinge(Hinge):
    """The true bin's score beats each other's by 1, or it costs: the multi-class SVM.

    sum over j != y of max(0, f_j - f_y + 1). The scores' softmax orders the bins, but isn't their
    probability.

    Args:
        squared: Square each term, which punishes large violations more.

    References:
        Weston and Watkins, Support vector machines for multi-class pattern recognition (1999).
        CS231n notes, Linear classification: the multiclass SVM loss.
    """

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        self.squared = squared

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the sum of the violations of each sample."""
        violations = (_leads(logits, labels) + 1).clamp(min=0) * (grid.inside * (1 - labels))
        if self.squared:
            violations = violations.square()
        return violations.sum(dim=(1, 2))


class StructuredHinge(Hinge):
    """The true bin's score beats each other's by their distance: near misses cost less.

    max over j of (Delta(j, y) + f_j - f_y), with Delta the distance of the bins' centres in px; a
    bin of sizes counts as wide as one of shifts.

    References:
        Tsochantaridis et al., Large margin methods for structured and interdependent output
        variables (2005), margin rescaling. CS231n notes, Loss functions: structured prediction.
    """

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the largest violation of each sample."""
        truths = (labels * grid.centers).sum(dim=-1, keepdim=True)
        px = (grid.widths[0] / grid.widths)[:, None]
        violations = (grid.centers - truths).abs() * px + _leads(logits, labels)
        return violations.masked_fill(~grid.inside, IMPOSSIBLE).amax(dim=-1).sum(dim=-1)


class AttributeHinge(Hinge):
    """Each bin's score is above 1 where the offset lies in it, and below -1 elsewhere.

    max(0, 1 - y_j f_j), y_j 1 or -1, summed over bins: a binary SVM for each.

    References:
        CS231n notes, Loss functions: attribute classification.
    """

    fits: ClassVar[dict[type[Link], type[BinLabels]]] = {IndependentLink: OneHotLabels}

    def __call__(self, link: Link, logits: Logits, labels: Probs, grid: BinGrid) -> Losses:
        """Return the sum of the violations of each sample."""
        violations = (1 - (2 * labels - 1) * logits.float()).clamp(min=0)
        return (violations * grid.inside).sum(dim=(1, 2))


def _leads(logits: Logits, labels: Probs) -> Logits:
    """Return by how much each score beats the true bin's."""
    scores = logits.float()
    leads: Tensor = scores - (scores * labels).sum(dim=-1, keepdim=True)
    return leads


def usual_loss(link: Link | None) -> BinLoss:
    """Return the loss that a link is usually trained by; without a link, cross-entropy."""
    asks = isinstance(link, tuple(BinaryCrossEntropy.fits))
    return BinaryCrossEntropy() if asks else CrossEntropy()
