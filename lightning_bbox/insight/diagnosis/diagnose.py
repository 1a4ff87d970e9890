"""The command `diagnose`: run the checks, try the cures, and name the most probable cause."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.messages import say
from lightning_bbox.evaluation.intervals import TOO_FEW, Mean, clustered_interval
from lightning_bbox.insight.diagnosis.case import Case, Made, Make
from lightning_bbox.insight.diagnosis.checks.attempts import blame, blame_unmade, failed
from lightning_bbox.insight.diagnosis.checks.crops import check_crops
from lightning_bbox.insight.diagnosis.checks.labels import check_labels
from lightning_bbox.insight.diagnosis.checks.network import check_network
from lightning_bbox.insight.diagnosis.checks.optimisation import check_course, check_plan
from lightning_bbox.insight.diagnosis.checks.targets import check_targets
from lightning_bbox.insight.diagnosis.findings import (
    CAUSES,
    Alter,
    Cure,
    Finding,
    suspects,
)
from lightning_bbox.insight.diagnosis.reader import Reader
from lightning_bbox.insight.diagnosis.trials import Recorder, Trial, Trials, gain

FOUND = 0.5
"""Score from which on a cause is named."""
_MOST_SUSPECTS = 5
_CLEAR_HARM = 0.25  # of predict-mean's error


@dataclass(frozen=True)
class Suspect:
    """A cause, its evidence, and what its cure brought.

    Attributes:
        name: Of `CAUSES`.
        finding: The strongest evidence for it.
        harm: By how much of predict-mean's error it makes the cured training worse when it is put
            back, with its interval; None where that wasn't tried.
        score: From both; those above `FOUND` are named.
        tried: What was tried, or why it wasn't.
    """

    name: str
    finding: Finding
    harm: Mean | None
    score: float
    tried: str

    @property
    def words(self) -> str:
        """The cause, in words."""
        return CAUSES[self.name].words


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks: Every check, in the order in which they were made.
        suspects: Those doubted, the most probable first.
        trials: The short trainings.
        cure: The measured gain of all cures together over the training as it is, in shares of
            predict-mean's error; None where nothing was tried.
        seconds: How long the checks took, and the trials.
        outlook: What would help where nothing is wrong.
        subject: What was diagnosed.
        refused: What was said of cures that the training doesn't take.
        parts: What the default in the place of each part that was asked for brings, in shares of
            predict-mean's error, the most first.
    """

    checks: tuple[Finding, ...]
    suspects: tuple[Suspect, ...]
    trials: tuple[Trial, ...]
    cure: Mean | None
    seconds: tuple[float, float]
    outlook: str
    subject: str
    refused: tuple[str, ...] = ()
    parts: tuple[tuple[str, Mean], ...] = ()

    @property
    def named(self) -> tuple[Suspect, ...]:
        """The causes that are named."""
        return tuple(each for each in self.suspects if each.score >= FOUND)

    @property
    def found(self) -> bool:
        """Whether there is a cause."""
        return bool(self.named)

    @property
    def raised(self) -> tuple[Finding, ...]:
        """The checks that can't be made, as a part of the user's own raised in them."""
        return tuple(each for each in self.checks if each.trace)


def diagnose(
    make: Make,
    subject: str,
    *,
    checkpoint: str | None = None,
    minutes: float = 3.0,
    steps: int = 300,
) -> Diagnosis:
    """Find why a training doesn't learn.

    Args:
        make: Makes the training, with options added.
        subject: What it is called.
        checkpoint: A trained model's, whose network is then looked at.
        minutes: How long short trainings may take, beside the first.
        steps: How many steps each of them makes.

    Raises:
        BadInput: The training would be refused, or an argument is out of range.
    """
    if not 0 <= minutes < float("inf") or steps < 20:
        msg = f"diagnose minutes is {minutes:g} and steps {steps}; give 0 or more, and 20 or more"
        raise BadInput(msg)
    since = time.monotonic()
    case = _built(make, checkpoint)
    findings: list[Finding] = []
    for check in (check_labels, check_crops, check_targets, check_network, check_plan):
        findings += _said(check(case))
    trials = Trials(make, case, steps, minutes)
    recorder, done = Recorder(steps), list[Trial]()
    say(f"a training of {steps} steps, as it is ...")
    try:
        as_is, trained = trials.run(
            "as it is", recorder=recorder, steps=min(steps, case.planned_steps)
        )
    except Exception as error:  # noqa: BLE001 (a user's part may raise anything)
        findings += _said(iter([failed("a short training", error, case.made)]))
    else:
        done.append(as_is)
        findings += _said(check_course(case, as_is, recorder, trained))
    until = time.monotonic()
    ranked, cure, refused = _tried(trials, suspects(findings), done)
    parts = _by_parts(trials, case, done, refused)
    outlook = ""
    if done and not any(each.score >= FOUND for each in ranked):
        try:
            outlook = _outlook(case, done[0])
        except Exception as error:  # noqa: BLE001 (as above)
            findings += _said(iter([failed("learning curve", error, case.made)]))
    return Diagnosis(
        checks=tuple(findings),
        suspects=tuple(ranked),
        trials=tuple(done),
        cure=cure,
        seconds=(until - since, time.monotonic() - until),
        outlook=outlook,
        subject=subject,
        refused=tuple(refused),
        parts=tuple(parts),
    )


def _built(make: Make, checkpoint: str | None) -> Case:
    """Build the training; refuse it where a part of the user's own raises meanwhile."""
    made: Made | None = None
    try:
        made = make([])
        return Case(made, checkpoint)
    except BadInput:
        raise
    except Exception as error:
        found = None if made is None else blame(error, made)
        sentence = blame_unmade(error) if found is None else found.sentence
        if not sentence:
            raise
        msg = f"the training can't be built: {sentence}"
        raise BadInput(msg) from error


def _said(found: Iterator[Finding]) -> list[Finding]:
    """Say each finding as it comes."""
    kept = []
    for finding in found:
        kept.append(finding)
        say(f"  {finding.verdict:13} {finding.check}: {finding.because or finding.found}")
    return kept


def _tried(
    trials: Trials, doubted: dict[str, Finding], done: list[Trial]
) -> tuple[list[Suspect], Mean | None, list[str]]:
    """Cure all suspects at once, then put each back: what it alone does shows then.

    Without a training as it is there is nothing to compare with.
    """
    names = [name for name in doubted if doubted[name].cure.can_be_tried][:_MOST_SUSPECTS]
    refused: list[str] = []
    cured: Trial | None = None
    while done and names and trials.has_time():
        say(f"the same with {len(names)} cure{'s' * (len(names) > 1)} ...")
        changes = _together([doubted[name].cure for name in names])
        cured = _trial(trials, "cured", *changes, done=done, refused=refused, blamed=names[-1])
        if cured is not None:
            break
        names = names[:-1]
    harms: dict[str, Mean] = {}
    if cured is not None:
        if len(names) == 1:
            harms[names[0]] = gain(done[0], cured)
        for name in names if len(names) > 1 else ():
            if not trials.has_time():
                break
            others = [doubted[other].cure for other in names if other != name]
            say(f"cured but for this: {CAUSES[name].words} ...")
            changes, what = _together(others), f"cured but for {name}"
            again = _trial(trials, what, *changes, done=done, refused=refused, blamed=name)
            if again is not None:
                harms[name] = gain(again, cured)
    ranked = [_suspect(name, finding, harms.get(name)) for name, finding in doubted.items()]
    ranked.sort(key=lambda each: (-each.score, -each.finding.weight))
    return ranked, None if cured is None else gain(done[0], cured), refused


def _trial(
    trials: Trials,
    name: str,
    options: Sequence[str] = (),
    alters: Sequence[Alter] = (),
    *,
    done: list[Trial],
    refused: list[str],
    blamed: str,
) -> Trial | None:
    """Make a short training and keep it, or else why it can't be made, and what is to blame."""
    try:
        trial, _ = trials.run(name, options, alters)
    except Exception as error:  # noqa: BLE001 (a user's part may raise anything)
        refused.append(f"{blamed}: {_refusal(error, trials)}")
        return None
    done.append(trial)
    return trial


def _refusal(error: Exception, trials: Trials) -> str:
    """Return why a training can't be made: its options are refused, or a part raises."""
    if isinstance(error, BadInput):
        return str(error)
    if (found := blame(error, trials.base.made)) is None:
        raise error
    return found.sentence


def _together(cures: Sequence[Cure]) -> tuple[list[str], list[Alter]]:
    options = [option for cure in cures for option in cure.options]
    return list(dict.fromkeys(options)), [cure.alter for cure in cures if cure.alter is not None]


def _suspect(name: str, finding: Finding, harm: Mean | None) -> Suspect:
    if harm is None:
        tried = "its cure was not tried" if finding.cure.can_be_tried else "its cure can't be tried"
        return Suspect(name, finding, None, finding.weight, tried)
    sure = harm.low > 0 or (math.isnan(harm.low) and harm.value > 0.1)
    effect = min(1.0, harm.value / _CLEAR_HARM) if sure else 0.0
    score = 0.45 * finding.weight
    if sure and harm.value > 0.02:  # what it does counts, and then how plain it is
        score = FOUND + 0.4 * effect + 0.1 * finding.weight
    return Suspect(name, finding, harm, score, "its cure was tried")


_PARTS = ("backbone", "head", "codec", "preprocess", "optimizer", "schedule", "regularizers")


def _by_parts(
    trials: Trials, case: Case, done: list[Trial], refused: list[str]
) -> list[tuple[str, Mean]]:
    """Put the default in the place of each part that was asked for: what does it bring alone?

    Only where all defaults together are clearly better than the training as it is.
    """
    asked = [
        part
        for part in _PARTS
        if any(
            name == f"model.{part}" or name.startswith(f"model.{part}.") for name in case.made.asked
        )
    ]
    if not done or not case.descends or not asked or not trials.has_time():
        return []
    as_is = done[0]
    options = {part: f"--model.{part}=null" for part in asked}
    say("the same with the default parts ...")
    what = "all parts by default"
    usual = _trial(trials, what, [*options.values()], done=done, refused=refused, blamed=what)
    if usual is None or gain(as_is, usual).value < 0.03:
        return []
    found = []
    for part, option in options.items():
        if not trials.has_time():
            break
        say(f"the same with the default {part} ...")
        what = f"{part} by default"
        trial = _trial(trials, what, [option], done=done, refused=refused, blamed=part)
        if trial is not None:
            found.append((part, gain(as_is, trial)))
    return sorted(found, key=lambda each: -each[1].value)


def _outlook(case: Case, as_is: Trial) -> str:
    """Say what would help where nothing is wrong: more boxes, more steps, or nothing any more."""
    errors = learning_curve(case)
    quarter, whole = errors[0], errors[-1]
    boxes = len(case.data.items_of("train"))
    words = (
        f"the fixed reader's error falls from {float(quarter.mean()):.2f} to "
        f"{float(whole.mean()):.2f} px when it sees all {boxes} boxes and not a quarter of them: "
    )
    more = gain_of_twice(quarter, whole, case.clusters(case.val))
    if more.value > 0.03:
        words += f"twice as many would bring some {more.value:.0%} more"
    else:
        words += f"twice as many would bring little, some {more.value:.0%}"
    if math.isnan(more.low):
        words += f" ({TOO_FEW})"
    else:
        words += f" (95 % interval {more.low:.0%} to {more.high:.0%}, over validation pictures)"
    steps = case.planned_steps
    words += f"; a short training of {as_is.steps} steps leaves {as_is.error:.0%} of predict-mean's"
    words += " error"
    if case.descends and steps < 10**9:
        words += f", and the run has {steps:,} steps"
    return words


def gain_of_twice(
    quarter: Float[Tensor, " n"], whole: Float[Tensor, " n"], clusters: Int64[Tensor, " n"]
) -> Mean:
    """Return the share of the error that twice as many boxes would take off.

    Two doublings lie between a quarter and the whole; a third is taken to bring what each of these
    did on average. The interval is over the pictures that were validated on, the same for both.

    Args:
        quarter: Error of each validation draw, of what saw a quarter of the boxes.
        whole: Of what saw all of them.
        clusters: The picture or group of each draw.
    """
    ratio = clustered_interval(whole, clusters, quarter, positive=True)
    value, low, high = (1 - math.sqrt(end) for end in (ratio.value, ratio.high, ratio.low))
    return Mean(value, low, high, ratio.n)


def learning_curve(case: Case) -> list[Float[Tensor, " n"]]:
    """Return the fixed reader's error of each validation draw, in px, by the boxes it has seen.

    They are a quarter, a half and all of the boxes of the training.
    """
    samples, seen = case.train, case.train_seen
    order = torch.unique(samples.items)
    found = []
    for share in (0.25, 0.5, 1.0):
        chosen = order[: max(1, round(share * len(order)))]
        rows = torch.isin(samples.items, chosen).nonzero().flatten()
        reader = Reader(seen.take(rows))
        wrong = reader(case.val_seen.features) - case.val_seen.targets
        found.append(wrong[:, :2].abs().mean(dim=1))
    return found
