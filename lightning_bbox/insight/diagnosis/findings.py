"""What a check of a diagnosis says: its figure, what would be expected, and whom it suspects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["labels", "crops", "targets and head", "network", "optimisation", "none"]
Verdict = Literal["fine", "doubtful", "at fault", "not made", "can't be made"]

DOUBTFUL, AT_FAULT = 0.3, 0.6
"""From which weight of its evidence on a check doubts, and accuses."""


class Cause(NamedTuple):
    """Something that keeps a model from learning.

    Attributes:
        kind: What part of the training it lies in.
        words: It, as the end of "the most probable cause: ...".
    """

    kind: Kind
    words: str


CAUSES = {
    "axes_exchanged": Cause("labels", "x and y are exchanged in the labels"),
    "sign_wrong": Cause("labels", "the labels have a wrong sign, or are mirrored"),
    "flipped_part": Cause("labels", "a part of the labels is mirrored, turned or has another sign"),
    "labels_shuffled": Cause("labels", "the labels don't belong to these pictures"),
    "labels_off_by_constant": Cause("labels", "the labels follow another convention"),
    "other_picture_size": Cause("labels", "the boxes belong to pictures of another size"),
    "contradicting_labels": Cause("labels", "equal pictures have different labels"),
    "constant_targets": Cause("labels", "all targets are the same"),
    "label_noise": Cause("labels", "the labels are noisy"),
    "context_too_small": Cause("crops", "the crops cut the object away"),
    "object_too_small": Cause("crops", "the object is only a few pixels wide in the crops"),
    "crops_from_elsewhere": Cause("crops", "the crops come from the wrong place of the pictures"),
    "augmentation_moves_labels": Cause("crops", "augmentation moves the object, not its label"),
    "augmentation_destroys": Cause("crops", "augmentation destroys what shows the offset"),
    "wrong_normalisation": Cause("crops", "the network's inputs are not centred and scaled"),
    "train_val_differ": Cause("crops", "training and validation data differ"),
    "leak": Cause("crops", "validation or test pictures are among those trained on"),
    "unscaled_targets": Cause("targets and head", "the targets are far from a spread of 1"),
    "bounded_output": Cause("targets and head", "the outputs can't reach the targets"),
    "bins_too_narrow": Cause("targets and head", "the bins don't reach as far as the shifts"),
    "bins_too_coarse": Cause("targets and head", "the bins are too coarse"),
    "wrong_decoder": Cause("targets and head", "the decoder doesn't find what the labels say"),
    "position_lost": Cause("network", "the network loses where things are"),
    "receptive_field_small": Cause("network", "the receptive field is smaller than the object"),
    "frozen_weights": Cause("network", "weights that should learn are frozen"),
    "dead_units": Cause("network", "most units are dead"),
    "bad_init": Cause("network", "the weights begin so that signals die out or explode"),
    "tiny_batch_norm": Cause("network", "batch norm has too few samples in a batch"),
    "dropout_before_output": Cause("network", "dropout disturbs what is regressed"),
    "lr_too_large": Cause("optimisation", "the learning rate is too high"),
    "lr_too_small": Cause("optimisation", "the learning rate is too low"),
    "decay_too_strong": Cause("optimisation", "weight decay outweighs the data"),
    "schedule_ends_early": Cause("optimisation", "the schedule ends before much is learned"),
    "too_few_steps": Cause("optimisation", "the run has too few steps"),
    "precision": Cause("optimisation", "the precision loses the updates"),
}
"""Every cause that is known, by its name."""


@dataclass(frozen=True)
class Cure:
    """What should mend a cause.

    Attributes:
        options: Command-line options that mend it, such as `--model.schedule=null`.
        words: What is to be done besides, or instead, in a sentence's end; empty where the options
            are all.
        alter: What mends true boxes in memory, given boxes and the sizes (width, height) of their
            pictures, or their proposals, so that it can be tried though files have to be mended.
    """

    options: tuple[str, ...] = ()
    words: str = ""
    alter: "Alter | None" = None

    @property
    def can_be_tried(self) -> bool:
        """Whether a short training can show what it brings."""
        return bool(self.options) or self.alter is not None

    def __str__(self) -> str:
        """Say it as one piece of text."""
        return "; ".join(filter(None, [" ".join(self.options), self.words]))


class Frame(NamedTuple):
    """What boxes lie in, a row each.

    Attributes:
        sizes: Width and height of the pictures, in pixels.
        proposals: Proposals that are given with the boxes; None where they are drawn.
    """

    sizes: Float[Tensor, "n 2"]
    proposals: Float[Tensor, "n 4"] | None


Alter = Callable[[Float[Tensor, "n 4"], Frame], Float[Tensor, "n 4"]]
"""Changes true boxes; those that it leaves alone come back as they are."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        found: The figures.
        expected: What would be there if nothing were wrong.
        weight: How strongly that speaks for a cause, from 0 to 1.
        cause: The name of the cause it speaks for, of `CAUSES`.
        cure: What should mend it.
        because: Why the check wasn't made; nothing where it was.
        trace: The traceback of what a part of the user's own raised in it.
        crops: Pictures that show it, by title.
    """

    check: str
    found: str = ""
    expected: str = ""
    weight: float = 0.0
    cause: str | None = None
    cure: Cure = Cure()
    because: str = ""
    trace: str = ""
    crops: tuple[tuple[str, Float[Tensor, "n 3 s s"]], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Fine, doubtful or at fault, by the weight of the evidence."""
        if self.trace:
            return "can't be made"
        if self.because:
            return "not made"
        if self.cause is None or self.weight < DOUBTFUL:
            return "fine"
        return "at fault" if self.weight >= AT_FAULT else "doubtful"


def between(value: float, none: float, full: float) -> float:
    """Return how strong evidence is: 0 at a figure that says nothing, 1 at one that says all.

    Args:
        value: The figure.
        none: Where evidence begins.
        full: Where it is complete; may lie below `none`.

    Examples:
        >>> between(3.0, 2.0, 4.0), between(0.2, 0.5, 0.0), between(9.0, 2.0, 4.0)
        (0.5, 0.6, 1.0)
    """
    share = (value - none) / (full - none)
    return min(1.0, max(0.0, share))


def suspects(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return the strongest finding for each cause that is doubted, the strongest first."""
    strongest: dict[str, Finding] = {}
    for finding in findings:
        if finding.verdict in ("doubtful", "at fault") and finding.cause is not None:
            known = strongest.get(finding.cause)
            if known is None or known.weight < finding.weight:
                strongest[finding.cause] = finding
    return dict(sorted(strongest.items(), key=lambda item: -item[1].weight))


def spread_of(values: Float[Tensor, "n t"]) -> float:
    """Return the root mean square of the columns' standard deviations."""
    return float(torch.sqrt(values.double().var(dim=0).mean()))
