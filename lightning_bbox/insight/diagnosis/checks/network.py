"""Checks of the network as training begins: what learns, what it sees, how signals go through."""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_bbox.geometry.boxes import box_sizes
from lightning_bbox.insight.diagnosis.case import Case, first
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.findings import Cure, Finding, between
from lightning_bbox.insight.layers import layer_hooks
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.backbones.extractor import FeatureExtractor
from lightning_bbox.nn.heads.soft_argmax import SoftArgmaxHead
from lightning_bbox.nn.stochastic import DropConnect

_DEFAULT = "--model.backbone=null"  # its class by name would keep its arguments
_HE = "init=lightning_bbox.HeInit", "init.bias=0"  # the class by name alone, likewise
_ROWS = 64


def check_network(case: Case) -> Iterator[Finding]:
    """Check the network, the cheapest first."""
    yield attempt("what learns", _frozen, case)
    yield attempt("batch norm", _norms, case)
    yield attempt("dropout", _dropout, case)
    yield attempt("places in the network", _places, case)
    yield attempt("receptive field", _field, case)
    yield attempt("signals through the network", _signals, case)
    yield attempt("gradients through the network", _gradients, case)


def _own(case: Case, *options: str) -> Cure:
    """Return options of the shallow net, or the shallow net itself in another's place."""
    if isinstance(case.model.net.backbone, ShallowConvNet):
        return Cure(tuple(f"--model.backbone.{option}" for option in options))
    return default_backbone(case)


def default_backbone(case: Case) -> Cure:
    """Return the default in the backbone's place, and in that of a head that takes maps alone.

    Args:
        case: The training.
    """
    maps = isinstance(case.model.net.head, SoftArgmaxHead)
    return Cure((_DEFAULT, *["--model.head=null"] * maps))


def _frozen(case: Case) -> Finding:
    """Is what has to learn free to?"""
    check, net = "what learns", case.model.net
    sizes = {
        name: sum(weights.numel() for weights in part.parameters() if weights.requires_grad)
        for name, part in (("backbone", net.backbone), ("head", net.head))
    }
    held = sum(weights.numel() for weights in net.backbone.parameters()) - sizes["backbone"]
    pretrained = not isinstance(net.backbone, ShallowConvNet) and _has_weights(net.backbone)
    found = (
        f"{sizes['backbone']:,} weights of the backbone and {sizes['head']:,} of the head learn, "
        f"{held:,} of the backbone are frozen"
    )
    if not case.descends:
        return Finding(check, "the head, exactly", "the head of an exact model")
    if case.is_trained:
        return Finding(check, found, "all, or pretrained features and the head")
    share = held / max(1, held + sizes["backbone"])
    weight = between(share, 0.3, 0.9) * (0.2 if pretrained else 1.0)
    if not sizes["head"]:
        weight = 1.0
    cure = default_backbone(case) if share else Cure(("--model.head=lightning_bbox.BinHead",))
    if isinstance(net.backbone, FeatureExtractor):
        cure = Cure(("--model.backbone.frozen=false",))
    return Finding(
        check, found, "all, or pretrained features and the head", weight, "frozen_weights", cure
    )


def _has_weights(backbone: nn.Module) -> bool:
    return bool(getattr(backbone, "weights", None) or getattr(backbone, "file", None))


def _norms(case: Case) -> Finding:
    """Have batch norms enough samples?"""
    check = "batch norm"
    norms = [each for each in case.model.net.modules() if isinstance(each, _BatchNorm)]
    batch = case.data.batch_size
    if not norms or case.model.net.backbone.frozen or not case.descends:
        return Finding(check, "none that learns", "16 samples a batch or more")
    return Finding(
        check, f"{len(norms)} layers, {batch} samples a batch", "16 samples or more",
        between(batch, 16, 4), "tiny_batch_norm", Cure(("--data.batch_size=128",)),
    )  # fmt: skip


def _dropout(case: Case) -> Finding:
    """Is a prediction moved by what is dropped?"""
    check, net = "dropout", case.model.net
    drops = {
        name: float(layer.p)
        for name, layer in net.named_modules()
        if isinstance(layer, _DropoutNd | DropConnect) and layer.p > 0
    }
    if not drops or net.backbone.frozen or not case.descends:
        return Finding(check, "none that acts", "none before a regressed number")
    most = max(drops.values())
    squares = net.head.reach is None  # it says numbers, and not a distribution
    found = ", ".join(f"{name} {share:g}" for name, share in drops.items())
    weight = between(most, 0.15, 0.5) if squares else between(most, 0.5, 0.8)
    options = [f"--model.backbone.{name}=0" for name in ("dropout", "input_dropout", "dropconnect")]
    shallow = isinstance(net.backbone, ShallowConvNet)
    cure = Cure(tuple(options) if shallow else ("--model.head=lightning_bbox.BinHead",))
    return Finding(
        check, found, "none before a regressed number", weight, "dropout_before_output", cure
    )


def _outputs(case: Case, training: bool = False) -> dict[str, Tensor]:
    """Return what each layer puts out for some training crops."""
    net, found = case.model.net, dict[str, Tensor]()
    crops = case.crops(first(case.train, _ROWS)).to(case.model.device)

    def take(name: str, output: Tensor) -> None:
        found[name] = output.detach().float().clone()

    modes = [(module, module.training) for module in net.modules()]
    states = {name: value.clone() for name, value in net.state_dict().items()}
    net.train(training)
    try:
        with torch.no_grad(), layer_hooks(net.backbone, take):
            net.features(crops)
    finally:
        for module, before in modes:
            module.training = before
        net.load_state_dict(states)  # batch norms have seen a batch
    return found


def _places(case: Case) -> Finding:
    """Is there a layer behind which nothing tells where things are?"""
    check, backbone = "places in the network", case.model.net.backbone
    maps = {name: out.shape for name, out in _outputs(case).items() if out.dim() == 4}
    if not maps:
        return Finding(check, because="the backbone has no maps")
    least = min(min(shape[-2:]) for shape in maps.values())
    pooled = isinstance(backbone, ShallowConvNet) and backbone.global_pool
    steps = [name for name, shape in maps.items() if min(shape[-2:]) == least]
    found = f"the smallest map has {least} x {least} places ({steps[0]})"
    coordinates = isinstance(backbone, ShallowConvNet) and backbone.coordinates
    weight = max(between(least, 4, 1), 0.9 * pooled) * (0.4 if coordinates else 1.0)
    cure = default_backbone(case)
    if pooled:
        cure = _own(case, "global_pool=false")
    return Finding(check, found, "4 x 4 places or more", weight, "position_lost", cure)


def _field(case: Case) -> Finding:
    """How much of the crop can one place of the last map see?"""
    check, net = "receptive field", case.model.net
    crops = case.crops(first(case.train, 4)).to(case.model.device)
    last: dict[str, Tensor] = {}

    def take(_name: str, output: Tensor) -> None:
        if output.dim() == 4 and min(output.shape[-2:]) > 1:
            last["map"] = output

    inputs = net.preprocess(crops).detach().to(net.dtype).requires_grad_()
    with torch.enable_grad(), layer_hooks(net.backbone, take):
        outputs = net.backbone(inputs)
        if "map" not in last or not last["map"].requires_grad:
            return Finding(check, because="there is no map whose gradient could tell")
        height, width = last["map"].shape[-2:]
        middle = last["map"][:, :, height // 2, width // 2].abs().sum()
        (gradient,) = torch.autograd.grad(middle, inputs)
    touched = (gradient.abs().sum(dim=(0, 1)) > 0).nonzero()
    if not len(touched):
        return Finding(check, because="the middle of the last map has no gradient")
    side = int((touched.max(dim=0).values - touched.min(dim=0).values + 1).min())
    samples, geometry = case.train, case.data.geometry
    shares = box_sizes(samples.gt_boxes) / box_sizes(geometry.crop_boxes(samples.proposals)).abs()
    thing = float((shares.mean(dim=1) * geometry.size).median())
    mixes = outputs.shape[1] < last["map"][0].numel() and any(
        isinstance(layer, nn.Linear) for layer in net.backbone.modules()
    )
    pooled = isinstance(net.backbone, ShallowConvNet) and net.backbone.global_pool
    sees = mixes and not pooled
    weight = 0.0 if sees else between(side / thing, 0.7, 0.3)
    return Finding(
        check,
        f"{side} pixels; the object has {thing:.0f}"
        + ("; layers after it see the whole crop" if sees else ""),
        "as large as the object, or layers after it that see the whole crop",
        weight, "receptive_field_small", default_backbone(case),
    )  # fmt: skip


def _signals(case: Case) -> Finding:
    """Do activations keep their scale from layer to layer, and do units answer at all?"""
    check, net = "signals through the network", case.model.net
    outputs = _outputs(case, training=True)
    stds = {name: float(out.std()) for name, out in outputs.items()}
    acting = {name: std for name, std in stds.items() if outputs[name].numel() > _ROWS}
    begin, last = next(iter(acting.values()), 1.0), list(acting.values())[-1] if acting else 1.0
    ratio = last / max(begin, 1e-12)
    rectified = {
        name: out for name, out in outputs.items() if "ReLU" in name and "Leaky" not in name
    }
    dead = {name: float((_by_unit(out) <= 0).float().mean()) for name, out in rectified.items()}
    worst = max(dead.values(), default=0.0)
    varied = _varies(outputs)
    found = (
        f"the last layer's spread is {ratio:.2g} times the first's; at most {worst:.0%} of a "
        f"layer's units answer to no crop; crops differ in {varied:.2g} of the features' spread"
    )
    expected = "between 0.01 and 100 times; fewer than half dead"
    by_init = max(between(ratio, 0.02, 0.001), between(ratio, 60, 2000)) if case.descends else 0.0
    if not last or varied < 1e-4:
        by_init = 1.0
    fixed = _own(case, *_HE)
    shallow = isinstance(net.backbone, ShallowConvNet)
    if worst > 0.6 and not net.backbone.frozen:
        weight = between(worst, 0.5, 0.85)
        return Finding(check, found, expected, weight, "dead_units", fixed)
    weight = by_init * (1.0 if not case.is_trained else 0.4)
    cure = Cure((*fixed.options, "--model.backbone.batch_norm=true")) if shallow else fixed
    return Finding(check, found, expected, weight, "bad_init", cure)


def _by_unit(output: Tensor) -> Float[Tensor, " u"]:
    """Return each unit's, or channel's, largest answer to any crop."""
    return output.amax(dim=(0, 2, 3)) if output.dim() == 4 else output.amax(dim=0)


def _varies(outputs: dict[str, Tensor]) -> float:
    """Return how much the last features differ between crops, over their spread."""
    last = list(outputs.values())[-1].flatten(1)
    scale = last.square().mean().sqrt().clamp(min=1e-20)
    return float(last.std(dim=0).mean() / scale)


def _gradients(case: Case) -> Finding:
    """Are the first layers reached by the loss's gradient?"""
    check, net = "gradients through the network", case.model.net
    named = [
        (name, weights)
        for name, weights in net.named_parameters()
        if weights.requires_grad and weights.dim() > 1
    ]
    if not case.descends or len(named) < 2:
        return Finding(check, because="fewer than two layers learn by gradients")
    samples = first(case.train, _ROWS).to(case.model.device)
    crops = case.crops(samples)
    states = {name: value.clone() for name, value in net.state_dict().items()}
    targets = case.model.codec.encode(samples.gt_boxes, samples.proposals)
    net.train()
    try:
        with torch.enable_grad():
            outputs = net.head.select(net(crops), samples.labels)
            to_boxes = partial(case.model.codec.decode, proposals=samples.proposals)
            loss = net.head.loss(outputs, targets, to_boxes).mean()
            weights = [each for _, each in named]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        net.eval()
        net.load_state_dict(states)
    shares = [_share(*pair) for pair in zip(gradients, weights, strict=True)]
    lowest, last = shares[0], max(shares[-1], 1e-30)
    still = [name for share, (name, _) in zip(shares, named, strict=True) if share == 0]
    found = (
        f"loss {float(loss.detach()):.3g}; gradient over weight {lowest:.2g} in the first layer, "
        f"{last:.2g} in the last" + (f"; none at all in {', '.join(still[:3])}" if still else "")
    )
    # A head that begins near zero lets little through at first.
    weight = 0.9 if still and len(still) >= len(named) - 1 else between(lowest, 1e-6, 1e-9)
    return Finding(
        check, found, "above a millionth in the first layer", weight, "bad_init",
        _own(case, *_HE),
    )  # fmt: skip


def _share(gradient: Tensor | None, weights: Tensor) -> float:
    """Return a gradient's size over that of its weights; 0 where they take no part."""
    return (
        0.0
        if gradient is None
        else float(gradient.norm() / weights.detach().norm().clamp(min=1e-12))
    )
