"""Regularizers: what the loss gains for the size of the weights, or what is done to them.

They act in training alone and are no part of the model: its checkpoint does without.
"""

import re
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.recipes import Recipe


class Regularizer(Recipe):
    """A rule for some of the weights that learn.

    Args:
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `backbone.fcs` or `^head`; all by default.
        exempt_biases: Leave out biases, and what else has one dimension: the scales of norms.

    Raises:
        BadInput: The pattern is no regular expression.
    """

    def __init__(self, pattern: str = "", exempt_biases: bool = True) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            msg = f"{type(self).__name__} pattern is {pattern!r}, which is no regular expression"
            msg = f"{msg} ({error}); correct it"
            raise BadInput(msg) from error
        self.pattern, self.exempt_biases = pattern, exempt_biases

    def weights_of(self, net: nn.Module) -> list[nn.Parameter]:
        """Return the weights of a network that are meant, of those that learn.

        Raises:
            BadInput: The pattern fits none of them.
        """
        names = {
            name: weight
            for name, weight in net.named_parameters()
            if weight.requires_grad and not (self.exempt_biases and is_bias(name, weight))
        }
        found = [weight for name, weight in names.items() if re.search(self.pattern, name)]
        if not found:
            exempt = " (biases and norms are exempt)" if self.exempt_biases else ""
            msg = (
                f"{type(self).__name__} pattern {self.pattern!r} fits no weight that learns; "
                f"choose from {listed(list(names)) or 'none'}{exempt}"
            )
            raise BadInput(msg)
        return found

    def penalty(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return what a weight adds to the loss; nothing by default."""
        return torch.zeros((), device=weight.device)

    def project(self, weight: Tensor) -> None:
        """Change a weight in place after a step; nothing by default."""


class ElasticNet(Regularizer):
    """Add l1 |w| + l2 w^2 to the loss for each weight; there is no half.

    Args:
        l1: Of the absolute values.
        l2: Of the squares.
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `backbone.fcs` or `^head`; all by default.
        exempt_biases: Leave out biases, and what else has one dimension: the scales of norms.

    Raises:
        BadInput: A strength is negative or not finite, or the pattern no regular expression.

    References:
        Zou and Hastie, Regularization and variable selection via the elastic net (2005). CS231n
        notes, Regularization.

    Examples:
        >>> ElasticNet(l1=0.5, l2=0.1).penalty(torch.tensor([[3.0, -1.0]]))
        tensor(3.)
    """

    def __init__(
        self,
        l1: float = 1e-5,
        l2: float = 1e-4,
        pattern: str = "",
        exempt_biases: bool = True,
    ) -> None:
        super().__init__(pattern, exempt_biases)
        for name, value in (("l1", l1), ("l2", l2)):
            _refuse_below_zero(f"ElasticNet {name}", value)
        self.l1, self.l2 = l1, l2

    def penalty(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return what a weight adds to the loss."""
        exact = _exact(weight)
        return self.l1 * exact.abs().sum() + self.l2 * exact.square().sum()


class L2Penalty(Regularizer):
    """Add half the strength times w^2 to the loss for each weight.

    Under plain SGD that is its weight decay. The optimizer's own decay (AdamW's by default) acts
    beside it.

    Args:
        strength: Lambda; the gradient is lambda w.
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `backbone.fcs` or `^head`; all by default.
        exempt_biases: Leave out biases, and what else has one dimension: the scales of norms.

    Raises:
        BadInput: The strength is negative or not finite, or the pattern no regular expression.

    References:
        CS231n notes, Regularization.

    Examples:
        >>> L2Penalty(strength=0.1).penalty(torch.tensor([[3.0, -1.0]]))
        tensor(0.5000)
    """

    def __init__(
        self, strength: float = 1e-4, pattern: str = "", exempt_biases: bool = True
    ) -> None:
        super().__init__(pattern, exempt_biases)
        _refuse_below_zero("L2Penalty strength", strength)
        self.strength = strength

    def penalty(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return what a weight adds to the loss."""
        return 0.5 * self.strength * _exact(weight).square().sum()


class L1Penalty(Regularizer):
    """Add the strength times |w| to the loss for each weight.

    Args:
        strength: Lambda; the gradient is lambda times the sign of w.
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `backbone.fcs` or `^head`; all by default.
        exempt_biases: Leave out biases, and what else has one dimension: the scales of norms.

    Raises:
        BadInput: The strength is negative or not finite, or the pattern no regular expression.

    References:
        Tibshirani, Regression shrinkage and selection via the lasso (1996). CS231n notes,
        Regularization.

    Examples:
        >>> L1Penalty(strength=0.1).penalty(torch.tensor([[3.0, -1.0]]))
        tensor(0.4000)
    """

    def __init__(
        self, strength: float = 1e-5, pattern: str = "", exempt_biases: bool = True
    ) -> None:
        super().__init__(pattern, exempt_biases)
        _refuse_below_zero("L1Penalty strength", strength)
        self.strength = strength

    def penalty(self, weight: Tensor) -> Float[Tensor, ""]:
        """Return what a weight adds to the loss."""
        return self.strength * _exact(weight).abs().sum()


class MaxNorm(Regularizer):
    """Shorten each neuron's incoming weights to a length, after every step of the optimizer.

    A filter of a convolution is a neuron; biases are left as they are.

    Args:
        limit: The largest length of a neuron's weights; 3 or 4 are usual.
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `backbone.fcs` or `^head`; all by default.

    Raises:
        BadInput: The limit isn't positive, or the pattern no regular expression.

    References:
        Srivastava et al., Dropout (2014), section 5.1. CS231n notes, Regularization.

    Examples:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> MaxNorm(limit=1.0).project(weight)
        >>> weight
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    def __init__(self, limit: float = 3.0, pattern: str = "") -> None:
        super().__init__(pattern)
        if not limit > 0:
            msg = f"MaxNorm limit is {limit}; expected above 0"
            raise BadInput(msg)
        self.limit = limit

    def project(self, weight: Tensor) -> None:
        """Shorten the rows that are too long, in place."""
        lengths = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=_exact(weight).dtype)
        factors = (self.limit / lengths).clamp(max=1).to(weight.dtype)
        weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))


class Regularization:
    """Regularizers and the weights of one network that each of them means.

    Args:
        regularizers: In the order in which they act.
        net: Whose weights; found once, by name.

    Raises:
        BadInput: One of them means no weight that learns.
    """

    def __init__(self, regularizers: Sequence[Regularizer], net: nn.Module) -> None:
        self._chosen = [(each, each.weights_of(net)) for each in regularizers]

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._chosen)

    def __str__(self) -> str:
        """Name the regularizers with their arguments; empty where there are none."""
        return "; ".join(
            f"{type(each).__name__} {each.recipe()['init_args']}" for each, _ in self._chosen
        )

    def penalty(self) -> Float[Tensor, ""]:
        """Return what is added to the loss of a batch, on whichever process: no share of it."""
        terms = [each.penalty(weight) for each, weights in self._chosen for weight in weights]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def project(self, staying: Collection[Tensor] = ()) -> None:
        """Change the weights after a step.

        Args:
            staying: Those that are to stay as they are.
        """
        for each, weights in self._chosen:
            for weight in weights:
                if weight not in staying:
                    each.project(weight)


def is_bias(name: str, weight: Tensor) -> bool:
    """Tell whether a weight is a bias, or has one dimension as one: the scale of a norm.

    Args:
        name: Its name in the network.
        weight: The weight.
    """
    return weight.dim() < 2 or "bias" in name.rpartition(".")[2]


def _exact(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _refuse_below_zero(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        msg = f"{name} is {value}; expected 0 or more"
        raise BadInput(msg)
