"""Groups of weights: who learns how fast, who decays, and from which epoch on."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.nn.regularizers import is_bias


@dataclass(frozen=True)
class WeightRule:
    """How some weights learn that don't learn as the rest does.

    Args:
        pattern: Regular expression, found in the names of the weights that are meant, such as
            `^backbone`, `norm` or `head.*bias`.
        lr: Their learning rate, as a factor of the optimizer's.
        weight_decay: Theirs in the place of the optimizer's; that one by default.
        from_epoch: The epoch, counted from 0, that they learn from; until then they stay.
        until_epoch: The epoch that they stay from; never by default.

    Raises:
        BadInput: A value is out of its range, or the pattern no regular expression.
    """

    pattern: str
    lr: float = 1.0
    weight_decay: float | None = None
    from_epoch: int = 0
    until_epoch: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            msg = f"model.groups: pattern {self.pattern!r} is no regular expression ({error})"
            raise BadInput(msg) from error
        if not 0 < self.lr < float("inf"):
            msg = (
                f"model.groups: lr of {self.pattern!r} is {self.lr}; expected above 0, a factor of "
                f"the optimizer's; weights that never learn are told by backbone.frozen"
            )
            raise BadInput(msg)
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            msg = (
                f"model.groups: weight_decay of {self.pattern!r} is {self.weight_decay}; expected 0"
            )
            msg = f"{msg} or more"
            raise BadInput(msg)
        last = self.until_epoch
        if self.from_epoch < 0 or (last is not None and last <= self.from_epoch):
            msg = (
                f"model.groups: {self.pattern!r} learns from epoch {self.from_epoch} until {last}; "
                f"expected 0 or more, and a later one"
            )
            raise BadInput(msg)

    def learns_in(self, epoch: int) -> bool:
        """Tell whether the weights learn in an epoch.

        Examples:
            >>> [WeightRule("head", from_epoch=1, until_epoch=3).learns_in(n) for n in range(4)]
            [False, True, True, False]
        """
        return self.from_epoch <= epoch and (self.until_epoch is None or epoch < self.until_epoch)


@dataclass(frozen=True)
class WeightGroups:
    """How weights are told apart in training.

    Args:
        decay_biases: Have the optimizer's weight decay act on biases and norms too, as on all
            weights.
        first_layer: Learning rate of the backbone's first layer, as a factor of the optimizer's,
            which the head has. Those of the layers between lie between, in equal ratios.
        rules: How some weights learn; the first rule that fits one holds, beside `first_layer`.

    Raises:
        BadInput: A value is out of its range.

    References:
        Howard and Ruder, Universal language model fine-tuning (2018): discriminative rates and
        gradual unfreezing. Goyal et al., Accurate, large minibatch SGD (2017), section 5.3, and He
        et al., Bag of tricks (2019), section 3.1: no decay of biases and norms.
    """

    decay_biases: bool = True
    first_layer: float = 1.0
    rules: list[WeightRule] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.first_layer < float("inf"):
            msg = (
                f"model.groups: first_layer is {self.first_layer}; expected above 0, such as 0.1; "
                f"a backbone that doesn't learn is told by backbone.frozen"
            )
            raise BadInput(msg)

    @property
    def by_epoch(self) -> list[WeightRule]:
        """The rules by which weights stay for some epochs."""
        return [rule for rule in self.rules if rule.from_epoch or rule.until_epoch]

    def advice(self, epochs: int | None) -> list[str]:
        """Warn of weights that would never learn, a sentence each.

        Args:
            epochs: How many the run has; None or -1 where nobody said.
        """
        return [
            f"model.groups: {rule.pattern!r} learns from epoch {rule.from_epoch}, counted from 0, "
            f"and the run has {epochs}: those weights stay as they are; lower from_epoch"
            for rule in self.by_epoch
            if 0 <= (epochs or -1) <= rule.from_epoch
        ]


class _Member(NamedTuple):
    """A weight that learns, and how."""

    weight: nn.Parameter
    lr: float  # a factor
    weight_decay: float | None  # None: the optimizer's
    rule: WeightRule | None


class Grouping:
    """The weights of one network by how they learn.

    Args:
        groups: How they are told apart.
        net: Whose weights; found once, by name: those that learn.

    Raises:
        BadInput: A rule fits none of them, or there is an epoch in which none learns.
    """

    def __init__(self, groups: WeightGroups, net: nn.Module) -> None:
        self._net, self._groups = net, groups
        factors = _factors_by_depth(net, groups.first_layer)
        named = {name: each for name, each in net.named_parameters() if each.requires_grad}
        self._members = [
            self._member(name, weight, factors[name]) for name, weight in named.items()
        ]
        fitting = {member.rule for member in self._members}
        for rule in groups.rules:
            if rule not in fitting:
                msg = (
                    f"model.groups: pattern {rule.pattern!r} fits no weight that learns and that "
                    f"no earlier rule takes; choose from {listed(list(named)) or 'none'}"
                )
                raise BadInput(msg)
        self.staying: frozenset[nn.Parameter] = frozenset()
        for epoch in {0, *(rule.until_epoch or 0 for rule in groups.by_epoch)}:
            if named and len(self._staying_in(epoch)) == len(named):
                msg = (
                    f"model.groups: nothing learns in epoch {epoch}; let the rules leave some, "
                    f"such as the head"
                )
                raise BadInput(msg)

    def __str__(self) -> str:
        """Say what tells the weights apart; empty where nothing does."""
        return str(self._groups) if self._groups != WeightGroups() else ""

    def _member(self, name: str, weight: nn.Parameter, factor: float) -> _Member:
        rules = (rule for rule in self._groups.rules if re.search(rule.pattern, name))
        rule = next(rules, None)
        decay = None if self._groups.decay_biases or not is_bias(name, weight) else 0.0
        if rule is None:
            return _Member(weight, factor, decay, None)
        own = decay if rule.weight_decay is None else rule.weight_decay
        return _Member(weight, factor * rule.lr, own, rule)

    def optimized_by(self, make: Any) -> Optimizer:  # noqa: ANN401 (Lightning's OptimizerCallable)
        """Make an optimizer in whose groups each weight learns as it is to.

        Args:
            make: Makes one of weights, or of groups of them, with its own rate and decay for all.

        Raises:
            BadInput: It has no weight decay, and some are to have another.
        """
        alike: dict[tuple[float, float | None], list[nn.Parameter]] = {}
        for member in self._members:
            alike.setdefault((member.lr, member.weight_decay), []).append(member.weight)
        if set(alike) <= {(1.0, None)}:
            optimizer: Optimizer = make([member.weight for member in self._members])
            return optimizer
        kinds = sorted(alike, key=lambda kind: (-kind[0], kind[1] is not None, kind[1]))
        optimizer = make([{"params": alike[kind]} for kind in kinds])
        for group, (lr, decay) in zip(optimizer.param_groups, kinds, strict=True):
            group["lr"] *= lr
            if decay is not None and "weight_decay" not in group:
                msg = f"model.groups: {type(optimizer).__name__} has no weight_decay; leave it out"
                raise BadInput(msg)
            if decay is not None:
                group["weight_decay"] = decay
        return optimizer

    def _staying_in(self, epoch: int) -> frozenset[nn.Parameter]:
        return frozenset(
            member.weight
            for member in self._members
            if member.rule is not None and not member.rule.learns_in(epoch)
        )

    def begin(self, epoch: int, alone: bool) -> None:
        """Have the weights stay, or learn, that are to in an epoch, and their layers' mode be so.

        Layers whose weights all stay are in evaluation, dropout among them too.

        Args:
            epoch: Counted from 0.
            alone: Whether one process trains: several ask for all gradients, and drop some.
        """
        if not self._groups.by_epoch:
            return
        self.staying = self._staying_in(epoch)
        self._net.train()
        if alone:
            for member in self._members:
                member.weight.requires_grad_(member.weight not in self.staying)
        for module in self._net.modules():
            weights = [*module.parameters()]
            if weights and self.staying.issuperset(weights):
                module.eval()

    def drop_gradients(self) -> None:
        """Drop the gradients of the weights that stay, so that the optimizer passes them over."""
        for weight in self.staying:
            weight.grad = None


def relearn(net: nn.Module, optimizer: Optimizer) -> None:
    """Have all weights of an optimizer learn, and their norms follow the data.

    Lightning's callbacks of fine-tuning unfreeze weights once, and not where a run goes on.

    Args:
        net: Whose weights.
        optimizer: What holds those that were unfrozen.
    """
    held = {weight for group in optimizer.param_groups for weight in group["params"]}
    for module in net.modules():
        own = [*module.parameters(recurse=False)]
        if own and held.issuperset(own):
            for weight in own:
                weight.requires_grad_(True)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats = True


def _factors_by_depth(net: nn.Module, first: float) -> dict[str, float]:
    """Return the factor of each weight's rate: `first` at the first layer, 1 behind the last.

    Layers are the modules of the backbone with weights of their own, in the order of their names.
    """
    names = [name for name, _ in net.named_parameters()]
    backbone = (name for name in names if name.startswith("backbone."))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in backbone))
    place = {layer: 1 - at / len(layers) for at, layer in enumerate(layers)}
    return {name: first ** place.get(name.rpartition(".")[0], 0.0) for name in names}
