"""Checks of targets and head: could a perfect network say what is to be said?"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.insight.diagnosis.case import Case
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.findings import Cure, Finding, between, spread_of
from lightning_bbox.nn.heads.base import PointHead
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.heads.bins.labels import GaussianLabels, TwoHotLabels
from lightning_bbox.nn.heads.linear import LinearHead

_FREE_STEPS = 300


def check_targets(case: Case) -> Iterator[Finding]:
    """Check targets and head, the cheapest first."""
    yield attempt("the codec there and back", _round_trip, case)
    yield attempt("spread of the targets as they are learned", _scaling, case)
    yield attempt("reach of the head", _reach, case)
    yield attempt("width of the bins", _width, case)
    yield attempt("the head by itself", _free_outputs, case)


def _round_trip(case: Case) -> Finding:
    """Is what the codec encodes decoded to the same boxes?"""
    samples, codec = case.train, case.model.codec
    again = codec.decode(codec.encode(samples.gt_boxes, samples.proposals), samples.proposals)
    px = case.data.geometry.px(samples.proposals)
    off = ((box_centers(again) - box_centers(samples.gt_boxes)) / px).abs().mean()
    share = float(off) / max(spread_of(case.offsets(samples)[:, :2]), 1e-9)
    return Finding(
        "the codec there and back",
        f"true boxes come back off by {float(off):.2g} px",
        "under a hundredth of a px",
        between(share, 0.01, 0.1),
        "wrong_decoder",
        Cure(("--model.codec=lightning_bbox.MeanStdCodec",)),
    )


def _scaling(case: Case) -> Finding:
    """Are targets of a spread near 1, where a head says them as numbers?"""
    check, head = "spread of the targets as they are learned", case.model.net.head
    samples = case.train
    targets = case.model.codec.encode(samples.gt_boxes, samples.proposals).float()
    spread, mean = targets.std(dim=0), targets.mean(dim=0).abs().max()
    low, high = float(spread.min()), float(spread.max())
    found = f"standard deviations {low:.3g} to {high:.3g}, means of at most {mean:.2g}"
    if not isinstance(head, PointHead) or not case.descends:
        return Finding(check, found, "of no matter to this head")
    weight = max(between(math.log10(max(low, 1e-9)), -0.45, -1.0),
                 between(math.log10(max(high, 1e-9)), 0.7, 1.5))  # fmt: skip
    return Finding(
        check, found, "near 1", weight, "unscaled_targets",
        Cure(("--model.codec=lightning_bbox.MeanStdCodec",)),
    )  # fmt: skip


def _reach(case: Case) -> Finding:
    """Do the bins reach as far as the offsets?"""
    check, head = "reach of the head", case.model.net.head
    reach = head.reach
    if reach is None:
        return Finding(check, "any offset", "as far as the offsets")
    offsets = case.offsets(case.train).abs()
    beyond = float((offsets[:, :2].amax(dim=1) > reach[0] * 1.001).float().mean())
    most = float(offsets[:, :2].max())
    found = f"{reach[0]:.2f} px, and offsets of {most:.2f}; {beyond:.0%} of them lie beyond"
    options = (_wider(case),) if isinstance(head, BinHead) else ()
    weight = between(beyond, 0.005, 0.1)
    return Finding(
        check, found, "none beyond", weight, "bins_too_narrow",
        Cure(options, "" if options else "train a new model on these offsets"),
    )  # fmt: skip


def _wider(case: Case) -> str:
    """Return the option by which bins hold the shifts of the data."""
    return f"--model.head.max_shift={case.data.spec().max_shift:.6g}"


def _width(case: Case) -> Finding:
    """Are the bins finer than the error that is hoped for?"""
    check, head = "width of the bins", case.model.net.head
    if not isinstance(head, BinHead):
        return Finding(check, "no bins", "finer than a px")
    spread = spread_of(case.offsets(case.train)[:, :2])
    share = head.bin_width / max(spread, 1e-6)
    found = f"{head.bin_width:g} px, {share:.2f} of the offsets' spread"
    soft = isinstance(head.labels, GaussianLabels | TwoHotLabels)
    weight = between(share, 1.2, 2.5) if soft else between(share, 0.45, 1.0)
    return Finding(
        check, found, "under the spread; 0.5 px is usual", weight, "bins_too_coarse",
        Cure(("--model.head.bin_width=0.5",)),
    )  # fmt: skip


def _free_outputs(case: Case) -> Finding:
    """If the head's outputs were free, would its loss and decoder bring them to the truth?"""
    check, net = "the head by itself", case.model.net
    rows = torch.arange(128)
    samples = case.train.take(rows).to(case.model.device)
    targets = case.model.codec.encode(samples.gt_boxes, samples.proposals)
    with torch.no_grad():
        crops = case.crops(samples)
        outputs = net.head.select(net(crops), samples.labels).float()
    if not case.descends:
        return Finding(check, because="the ridge has no loss to descend")
    error = _left(case, targets, samples.proposals, outputs)
    scale = targets.float().std(dim=0).clamp(min=1e-9)
    share = float((error / scale).abs()[:, :2].mean()) / 0.866
    found = f"{share:.0%} of predict-mean's error is left if each output is set as the loss wants"
    expected = "under 10 %"
    weight = between(share, 0.12, 0.4)
    head = net.head
    if isinstance(head, LinearHead) and head.activation != "none":
        found += f"; outputs go through {head.activation}"
        cure = Cure(("--model.head.activation=none",))
        return Finding(check, found, expected, max(weight, 0.7 * (share > 0.05)),
                       "bounded_output", cure)  # fmt: skip
    if isinstance(head, BinHead):
        cause = _of_bins(case, head, targets)
        cures = {
            "wrong_decoder": Cure(("--model.head.decoder=lightning_bbox.ExpectationDecoder",)),
            "bins_too_coarse": Cure(("--model.head.bin_width=0.5",)),
            "bins_too_narrow": Cure((_wider(case),)),
        }
        return Finding(check, found, expected, weight, cause, cures[cause])
    cure = Cure(("--model.head=lightning_bbox.BinHead",))
    return Finding(check, found, expected, weight, "bounded_output", cure)


def _left(case: Case, targets: Tensor, proposals: Tensor, start: Tensor) -> Float[Tensor, "n t"]:
    """Descend on the outputs themselves, and return the errors that are left."""
    head = case.model.net.head
    free = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.3)
    to_boxes = partial(case.model.codec.decode, proposals=proposals)
    for step in range(_FREE_STEPS):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / _FREE_STEPS)
        optimizer.zero_grad()
        loss = head.loss(free, targets, to_boxes).mean()
        if not loss.requires_grad:
            break
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        return head.decode(free).float() - targets.float()


def _of_bins(case: Case, head: BinHead, targets: Tensor) -> str:
    """Say which of the bins' parts leaves an error: the range, the width, or the decoder."""
    if head.reach is not None:
        offsets = case.offsets(case.train)[:, :2].abs()
        if float((offsets.amax(dim=1) > head.reach[0] * 1.001).float().mean()) > 0.02:
            return "bins_too_narrow"
    offsets = head.offsets(targets.float())[:, :2]
    expected = (head.target_probs(targets.float())[:, :2] * head.centers[:2]).sum(dim=-1)
    spread, left = spread_of(offsets), float((expected - offsets).abs().mean())
    if left > 0.1 * spread or head.bin_width > 0.6 * spread:
        return "bins_too_coarse"
    return "wrong_decoder"
