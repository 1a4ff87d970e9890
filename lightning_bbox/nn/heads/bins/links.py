"""Links: from features to a distribution over each row's bins, by a layer of their own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part
from lightning_bbox.nn.heads.base import near_zero_linear
from lightning_bbox.nn.heads.bins.labels import Probs, running_sums

IMPOSSIBLE = -1e4
"""Logit of what a row doesn't have: its probability is 0, and 0 times its logarithm too."""

Logits = Float[Tensor, "b r m"]


class Link(Part):
    """A layer, and what its outputs mean as a distribution over bins.

    Each row has its own outputs. Bins that a row doesn't have get no probability. Distributions are
    in fp32 whatever the layer runs in.
    """

    inside: Tensor  # bytes: a callback that averages buffers can't do so with truth values

    def build(
        self, in_features: int, inside: Bool[Tensor, "r k"], prior: Float[Tensor, "r k"]
    ) -> "Link":
        """Make the layer.

        Args:
            in_features: Length of the feature vector.
            inside: Which bins each row has.
            prior: Mass of each bin before a picture is seen.
        """
        self.register_buffer("inside", inside.byte(), persistent=False)
        self.linear = near_zero_linear(in_features, len(inside) * self.outputs())
        return self

    def outputs(self) -> int:
        """Return how many outputs a row has: one for each bin, unless a subclass says otherwise."""
        return self.inside.shape[1]

    def forward(self, features: Float[Tensor, "b f"]) -> Logits:
        """Return the logits, a row for each coordinate."""
        logits: Tensor = self.linear(features)
        return torch.unflatten(logits, 1, (len(self.inside), -1))

    def log_probs(self, logits: Logits) -> Probs:
        """Return the logarithms of the probabilities of the bins."""
        raise NotImplementedError

    def probs(self, logits: Logits) -> Probs:
        """Return the probabilities of the bins."""
        return self.log_probs(logits).exp()

    def attributes(self, labels: Probs) -> Logits:
        """Return what each logit alone is to say, 0 to 1, where a link asks yes or no."""
        raise NotImplementedError

    def asked(self) -> Bool[Tensor, "r m"]:
        """Return which logits count, where a link asks yes or no."""
        raise NotImplementedError


class SoftmaxLink(Link):
    """One logit for each bin: the bins exclude each other.

    References:
        CS231n notes, Linear classification: the softmax classifier.
    """

    def log_probs(self, logits: Logits) -> Probs:
        """Return the logarithm of the softmax."""
        return _masked(logits.float(), self.inside).log_softmax(dim=-1)

    def probs(self, logits: Logits) -> Probs:
        """Return the softmax."""
        return _masked(logits.float(), self.inside).softmax(dim=-1)


class IndependentLink(Link):
    """A sigmoid for each bin, asked alone whether the offset lies in it: attribute-wise.

    The probabilities are the sigmoids over their sum.

    References:
        CS231n notes, Loss functions: attribute classification.
    """

    def log_probs(self, logits: Logits) -> Probs:
        """Return the logarithms of the normalised sigmoids."""
        return _masked(F.logsigmoid(logits.float()), self.inside).log_softmax(dim=-1)

    def attributes(self, labels: Probs) -> Logits:
        """Return the labels: each bin's own yes or no."""
        return labels

    def asked(self) -> Bool[Tensor, "r m"]:
        """Return the bins that a row has."""
        return self.inside.bool()


class TreeLink(Link):
    """A tree of choices from coarse to fine, a softmax at each node.

    A leaf's probability is the product of the choices on its path, so that cross-entropy is the sum
    of the nodes'. Branches that hold none of a row's bins are never chosen, which serves any number
    of bins.

    Args:
        children: Choices at each node.

    References:
        Morin and Bengio, Hierarchical probabilistic neural network language model (2005). Ours
        splits the range in order, and always computes every leaf. CS231n notes, Loss functions.

    Examples:
        >>> inside = torch.ones(2, 4, dtype=torch.bool)
        >>> link = TreeLink().build(8, inside, inside / 4)
        >>> link.outputs()
        6
        >>> link.probs(torch.zeros(1, 2, 6))[0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    alive: Tensor

    def __init__(self, children: int = 2) -> None:
        super().__init__()
        if children < 2:
            msg = f"TreeLink children is {children}; expected 2 or more"
            raise BadInput(msg)
        self.children_per_node = children

    def build(
        self, in_features: int, inside: Bool[Tensor, "r k"], prior: Float[Tensor, "r k"]
    ) -> "TreeLink":
        """Make the layer, and find the branches that hold bins."""
        super().build(in_features, inside, prior)
        levels = self._levels()
        leaves = F.pad(inside, (0, levels[-1] - inside.shape[1]))
        alive = [leaves.view(len(inside), size, -1).any(dim=-1) for size in levels]
        self.register_buffer("alive", torch.cat(alive, dim=-1).byte(), persistent=False)
        return self

    def _levels(self) -> list[int]:
        depth, bins = 1, self.inside.shape[1]
        while self.children_per_node**depth < bins:
            depth += 1
        return [self.children_per_node**level for level in range(1, depth + 1)]

    def outputs(self) -> int:
        """Return the number of choices in a row's tree."""
        return sum(self._levels())

    def log_probs(self, logits: Logits) -> Probs:
        """Return the sums over each leaf's path."""
        possible = _masked(logits.float(), self.alive)
        paths = torch.zeros_like(possible[..., :1])
        for level in torch.split(possible, self._levels(), dim=-1):
            choices = torch.unflatten(level, -1, (-1, self.children_per_node)).log_softmax(dim=-1)
            paths = (paths[..., None] + choices).flatten(-2)
        return paths[..., : self.inside.shape[1]]


class CumulativeLink(Link):
    """One score for each row, compared with thresholds between the bins: ordinal regression.

    A logit says whether the offset lies beyond a threshold. The thresholds share the weights; their
    biases descend by construction, so that the bins' probabilities, the differences of neighbouring
    sigmoids, are never negative. The biases begin at the logits of the prior.

    References:
        Cao, Mirjalili and Raschka, Rank consistent ordinal regression for neural networks (2020),
        CORAL. Theirs descend at the optimum only; ours always.

    Examples:
        >>> inside = torch.ones(2, 4, dtype=torch.bool)
        >>> link = CumulativeLink().build(8, inside, inside / 4)
        >>> link.probs(link(torch.zeros(1, 8)))[0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SelectBackward0>)
    """

    def build(
        self, in_features: int, inside: Bool[Tensor, "r k"], prior: Float[Tensor, "r k"]
    ) -> "CumulativeLink":
        """Make the score's weights, and the thresholds from the prior."""
        self.register_buffer("inside", inside.byte(), persistent=False)
        self.linear = near_zero_linear(in_features, len(inside), bias=False)
        starts = _tails(prior).clamp(1e-6, 1 - 1e-6).logit()
        gaps = -starts.diff(dim=-1).clamp(max=-1e-3)
        bias = torch.cat([starts[:, :1], gaps + torch.log(-torch.expm1(-gaps))], dim=-1)
        self.bias = nn.Parameter(bias.flatten())
        return self

    def thresholds(self) -> Float[Tensor, "r m"]:
        """Return the biases, descending."""
        bias = self.bias.float().view(len(self.inside), -1)
        order = torch.ones(bias.shape[1] - 1, bias.shape[1] - 1, device=bias.device).tril()
        # Not cumsum, of which CUDA has no deterministic form.
        drops = (order * F.softplus(bias[:, None, 1:])).sum(dim=-1)
        return torch.cat([bias[:, :1], bias[:, :1] - drops], dim=-1)

    def forward(self, features: Float[Tensor, "b f"]) -> Logits:
        """Return the logits of lying beyond each threshold, in fp32."""
        scores: Tensor = self.linear(features)
        return scores.float()[..., None] + self.thresholds()

    def log_probs(self, logits: Logits) -> Probs:
        """Return the logarithms of the differences of the sigmoids."""
        # Every offset lies beyond a threshold below its row, and none beyond one above it.
        below = self.inside.int().cumsum(dim=-1)[:, :-1] == 0
        logits = _masked(logits.float(), self.asked()).masked_fill(below, -IMPOSSIBLE)
        above = F.pad(logits, (1, 0), value=-IMPOSSIBLE)
        beyond = F.pad(logits, (0, 1), value=IMPOSSIBLE)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without cancellation.
        gap = (above - beyond).clamp(min=1e-6)
        return F.logsigmoid(above) + F.logsigmoid(-beyond) + torch.log(-torch.expm1(-gap))

    def attributes(self, labels: Probs) -> Logits:
        """Return the labels' mass beyond each threshold."""
        return _tails(labels)

    def asked(self) -> Bool[Tensor, "r m"]:
        """Return the thresholds between two bins of a row."""
        return (self.inside[:, :-1] & self.inside[:, 1:]).bool()


def _masked(logits: Logits, possible: Tensor) -> Logits:
    return logits.masked_fill(~possible.bool(), IMPOSSIBLE)


def _tails(probs: Float[Tensor, "*b k"]) -> Float[Tensor, "*b m"]:
    """Return the mass beyond each bin but the last."""
    return running_sums(probs.flip(-1)).flip(-1)[..., 1:]
