"""Checks of the optimisation: what is planned, and how a short training of the run goes."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from lightning_bbox.insight.diagnosis.case import Case, first
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.checks.network import default_backbone
from lightning_bbox.insight.diagnosis.findings import Cure, Finding, between
from lightning_bbox.insight.diagnosis.reader import Reader
from lightning_bbox.insight.diagnosis.trials import Recorder, Trial
from lightning_bbox.models.regressor import BoxRegressor
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.regularizers import Regularization

_USUAL = ("--model.optimizer=null",)
_USUAL_RATE = 0.01  # that most trainings stay below


def check_plan(case: Case) -> Iterator[Finding]:
    """Check what is planned, without training."""
    if not case.descends:
        return
    yield attempt("steps of the run", _steps, case)
    yield attempt("schedule", _schedule, case)
    yield attempt("weight decay", _decay, case)
    yield attempt("penalties", _penalty, case)


def check_course(case: Case, trial: Trial, recorder: Recorder, trained: Case) -> Iterator[Finding]:
    """Check how a short training went.

    Args:
        case: The training.
        trial: What its short training came to.
        recorder: What was noted meanwhile.
        trained: The case that was trained.
    """
    if not case.descends:
        return
    yield attempt("learning rate", _rate, case, trial, recorder)
    yield _pull(recorder)
    yield _rounding(case, recorder)
    yield attempt("training and evaluation mode", _modes, case, trained)
    yield attempt("offsets in the features", _read_off, case, trial, trained)
    yield attempt("twenty samples by heart", _overfit, case)


def _steps(case: Case) -> Finding:
    """Are there enough steps to learn anything?"""
    steps = case.planned_steps
    return Finding(
        "steps of the run",
        f"{steps:,} steps of {case.data.batch_size}" if steps < 10**9 else "no end was said",
        "some thousand; a few hundred show whether it learns",
        between(math.log10(max(steps, 1)), 2.3, 1.6),
        "too_few_steps",
        Cure(("--trainer.max_epochs=22", "--trainer.max_steps=-1", "--data.draws_per_epoch=20000")),
    )


def _schedule(case: Case) -> Finding:
    """Is the learning rate there as long as the run is?"""
    model = case.model
    assert isinstance(model, BoxRegressor)
    check = "schedule"
    factors = [float(model.schedule.factor(at / 200)) for at in range(201)]
    most = max(factors)
    if most <= 0:
        return Finding(check, "the learning rate is always 0", "above 0", 1.0,
                       "schedule_ends_early", Cure(("--model.schedule=null",)))  # fmt: skip
    share = sum(factors) / len(factors) / most
    used = sum(factor > 0.05 * most for factor in factors) / len(factors)
    return Finding(
        check,
        f"{type(model.schedule).__name__}: on average {share:.0%} of its highest rate, above a "
        f"twentieth of it in {used:.0%} of the run; highest factor {most:.2g}",
        "40 to 100 % on average",
        max(between(used, 0.5, 0.2), between(share, 0.25, 0.08), between(most, 0.3, 0.01)),
        "schedule_ends_early",
        Cure(("--model.schedule=null",)),
    )


def _optimizer(case: Case) -> torch.optim.Optimizer:
    model = case.model
    assert isinstance(model, BoxRegressor)
    weights = [nn.Parameter(torch.zeros(1))]
    return model.optimizer(weights) if model.optimizer else torch.optim.AdamW(
        weights, lr=3e-3, weight_decay=0.1
    )  # fmt: skip


def _decay(case: Case) -> Finding:
    """Would decay alone leave anything of the weights?"""
    optimizer, check = _optimizer(case), "weight decay"
    group = optimizer.param_groups[0]
    decay, rate = float(group.get("weight_decay", 0)), float(group["lr"])
    model = case.model
    assert isinstance(model, BoxRegressor)
    mean = sum(model.schedule.factor(at / 50) for at in range(51)) / 51
    steps = min(case.planned_steps, 100_000)
    whole = decay * rate * mean * steps
    a_thousand = decay * min(rate, _USUAL_RATE) * mean * 1000  # a wild rate is another cause
    found = f"{decay:g} at a rate of {rate:g}: alone it would divide the weights by e^{whole:.2g}"
    weight = between(math.log10(max(a_thousand, 1e-9)), 0.3, 1.0)
    return Finding(check, found, "by less than e^2 in a thousand steps", weight,
                   "decay_too_strong", Cure(_USUAL))  # fmt: skip


def _penalty(case: Case) -> Finding:
    """Do penalties for the weights weigh less than the loss of the data?"""
    check, model = "penalties", case.model
    assert isinstance(model, BoxRegressor)
    if not model.regularizers:
        return Finding(check, "none")
    samples = first(case.train, 64).to(model.device)
    to_boxes = partial(model.codec.decode, proposals=samples.proposals)
    with torch.no_grad():
        penalty = float(Regularization(model.regularizers, model.net).penalty())
        outputs = model.net.head.select(model.net(case.crops(samples)), samples.labels)
        targets = model.codec.encode(samples.gt_boxes, samples.proposals)
        loss = float(model.net.head.loss(outputs, targets, to_boxes).mean())
    ratio = penalty / max(loss, 1e-9)
    return Finding(
        check,
        f"{penalty:.3g} as training begins, beside a loss of {loss:.3g}",
        "less than the loss",
        between(math.log10(max(ratio, 1e-9)), 0.0, 1.0),
        "decay_too_strong",
        Cure(("--model.regularizers=null",)),
    )


def _rate(case: Case, trial: Trial, recorder: Recorder) -> Finding:
    """Do steps move the weights by a useful amount?"""
    check = "learning rate"
    cure = Cure(_USUAL)
    losses = recorder.losses
    group = _optimizer(case).param_groups[0]
    if trial.diverged:
        return Finding(check, f"diverged within {len(losses)} steps at a rate of {group['lr']:g}",
                       "finite losses", 1.0, "lr_too_large", cure)  # fmt: skip
    tenth = max(1, len(losses) // 10)
    begin = sum(losses[:tenth]) / tenth if losses else math.nan
    end = sum(losses[-tenth:]) / tenth if losses else math.nan
    highest = max(losses, default=math.nan)
    update = recorder.update
    found = (
        f"{group['lr']:g}; a step moves weights by {update:.1e} of their size (median); loss "
        f"{begin:.3g} at first, {end:.3g} at last; error {trial.error:.2f} of predict-mean's"
    )
    expected = "updates of 1e-4 to 3e-2, and an error below 0.9"
    if leap := between(math.log10(max(_leap(case), 1e-12)), -0.5, 0.5):
        found += f"; the first step moves each weight by {_leap(case):.2g} of its usual size"
        return Finding(check, found, f"{expected}; a first step below 0.3", leap, "lr_too_large",
                       cure)  # fmt: skip
    stuck = between(trial.error, 0.8, 0.95)
    if not math.isfinite(update):
        return Finding(check, found, expected)
    wild = max(between(math.log10(update + 1e-12), -1.5, -0.7),
               between(math.log10(max(highest / max(begin, 1e-9), 1e-9)), 0.5, 1.5))  # fmt: skip
    if wild and stuck:
        return Finding(check, found, expected, wild * (0.4 + 0.6 * stuck), "lr_too_large", cure)
    timid = between(math.log10(update + 1e-12), -3.6, -4.6)
    return Finding(check, found, expected, timid * (0.4 + 0.6 * stuck), "lr_too_small", cure)


def _leap(case: Case) -> float:
    """Return the size of Adam's largest step over what the middle layer's weights usually have.

    It moves each weight by the learning rate, whatever the gradient; weights of n inputs that keep
    a signal's scale are of some 1 / sqrt(n). 0 for other optimizers.
    """
    optimizer, model = _optimizer(case), case.model
    assert isinstance(model, BoxRegressor)
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return 0.0
    sizes = sorted(
        weights[0].numel() ** -0.5
        for weights in model.net.parameters()
        if weights.requires_grad and weights.dim() > 1
    )
    most = max(model.schedule.factor(at / 50) for at in range(51))
    middle = sizes[len(sizes) // 2] if sizes else 0.0
    return float(optimizer.param_groups[0]["lr"]) * most / middle if middle else 0.0


def _pull(recorder: Recorder) -> Finding:
    """Is decay stronger than the data?"""
    check = "decay against the data"
    if not recorder.decay:
        return Finding(check, "no decay in the gradient", "weaker than the data's gradient")
    values = sorted(recorder.decay)
    middle = values[len(values) // 2]
    return Finding(
        check, f"decay pulls {middle:.2g} times as hard as the data (median)",
        "less than the data", between(math.log10(middle + 1e-9), 0.0, 0.7), "decay_too_strong",
        Cure(_USUAL),
    )  # fmt: skip


def _rounding(case: Case, recorder: Recorder) -> Finding:
    """Do updates get lost in rounding?"""
    precision = str(case.made.trainer.get("precision"))
    if not recorder.unchanged:
        return Finding("rounding", because="no step was looked at")
    share = sum(recorder.unchanged) / len(recorder.unchanged)
    return Finding(
        "rounding",
        f"{share:.0%} of the weights come out of a step as they were, in {precision}",
        "under 10 %", between(share, 0.15, 0.5), "precision",
        Cure(("--trainer.precision=32-true",)),
    )  # fmt: skip


def _modes(case: Case, trained: Case) -> Finding:
    """Is the same said in training and in evaluation mode?"""
    check, net = "training and evaluation mode", trained.model.net
    samples = first(case.train, 256).to(trained.model.device)
    crops = case.crops(samples)
    states = {name: value.clone() for name, value in net.state_dict().items()}
    said = {}
    try:
        for training in (False, True):
            net.train(training)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                rows = torch.split(torch.arange(len(crops)), max(2, min(256, case.data.batch_size)))
                outputs = [
                    net.head.decode(net.head.select(net(crops[some]), samples.labels[some])).float()
                    for some in rows
                    if len(some) > 1
                ]
            said[training] = torch.cat(outputs)
    finally:
        net.eval()
        net.load_state_dict(states)
    gap = (said[True] - said[False]).abs().mean()
    targets = case.model.codec.encode(samples.gt_boxes, samples.proposals).float()
    share = float(gap / targets.std(dim=0).mean().clamp(min=1e-9))
    found = f"predictions differ by {share:.2f} of the targets' spread"
    drops = any(isinstance(each, nn.Dropout | nn.Dropout2d) and each.p for each in net.modules())
    cause = "dropout_before_output" if drops else "tiny_batch_norm"
    cure = Cure(("--data.batch_size=128",))
    if drops and isinstance(net.backbone, ShallowConvNet):
        cure = Cure(("--model.backbone.dropout=0", "--model.backbone.input_dropout=0"))
    weight = 0.6 * between(share, 0.35, 0.9)
    return Finding(check, found, "under a third", weight, cause, cure)


def _read_off(case: Case, trial: Trial, trained: Case) -> Finding:
    """Can the offset be read from the features of the net that was trained for a short while?"""
    check, net = "offsets in the features", trained.model.net
    if case.readable < 0.2 or trial.diverged:
        return Finding(check, because="labels can't be read from the crops themselves")
    seen = []
    for samples, offsets in ((case.train, case.train_seen), (case.val, case.val_seen)):
        crops = case.crops(samples)
        with torch.no_grad():
            features = torch.cat([net.features(some).float() for some in torch.split(crops, 128)])
        if not bool(features.isfinite().all()):
            return Finding(check, because="the features aren't finite")
        if features.shape[1] > 2048:
            features = features[:, :: -(-features.shape[1] // 2048)]
        seen.append(offsets._replace(features=features.cpu()))
    if float(seen[0].features.std(dim=0).max()) == 0:
        r2 = 0.0
    else:
        r2 = float(Reader(seen[0]).r2(seen[1])[:2].mean())
    kept = max(r2, 0.0) / case.readable
    found = f"R2 {r2:.2f} in the features, {case.readable:.2f} of a fixed reader in the crops"
    weight = 0.75 * between(kept, 0.5, 0.1)
    backbone = net.backbone
    cure = default_backbone(case)
    if isinstance(backbone, ShallowConvNet) and backbone.global_pool:
        cure = Cure(("--model.backbone.global_pool=false",))
    return Finding(check, found, "as much as in the crops", weight, "position_lost", cure)


def _overfit(case: Case) -> Finding:
    """Can twenty samples be learned by heart, without what regularises?"""
    check = "twenty samples by heart"
    model, net = case.model, case.model.net
    if not any(weights.requires_grad for weights in net.parameters()):
        return Finding(check, because="nothing learns")
    samples = first(case.train, 20).to(model.device)
    crops = case.crops(samples)
    targets = model.codec.encode(samples.gt_boxes, samples.proposals)
    states = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not net.backbone.frozen:
            module.train()
    weights = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=2e-3)
    to_boxes = partial(model.codec.decode, proposals=samples.proposals)
    try:
        with torch.enable_grad():
            for _ in range(120):
                optimizer.zero_grad()
                outputs = net.head.select(net(crops), samples.labels)
                loss = net.head.loss(outputs, targets, to_boxes).mean()
                torch.autograd.backward(loss)
                optimizer.step()
        with torch.no_grad():
            said = net.head.decode(net.head.select(net(crops), samples.labels)).float()
    finally:
        net.eval()
        net.load_state_dict(states)
    truth = targets.float()
    scale = (truth - truth.mean(dim=0)).abs().mean().clamp(min=1e-9)
    left = float((said - truth).abs().mean() / scale)
    low, high = float(truth[:, :2].min()), float(truth[:, :2].max())
    reach = float(said[:, :2].min()) / low if low < 0 else 1.0, float(said[:, :2].max()) / high
    one_sided = min(reach)
    found = (
        f"{left:.0%} of predict-mean's error is left after 120 steps; predictions reach "
        f"{reach[0]:.0%} of the lowest target and {reach[1]:.0%} of the highest"
    )
    weight = 0.9 * between(left, 0.3, 0.6) * between(one_sided, 0.75, 0.3)
    return Finding(
        check, found, "under 20 %, and the whole range", weight, "bounded_output",
        Cure(("--model.head=lightning_bbox.BinHead",)),
    )  # fmt: skip
