"""Checks of the crops: is the object in them, large enough, and as it is in validation?"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.recipes import class_path_of
from lightning_bbox.data.loader import Rows, Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.patches import PatchDataModule
from lightning_bbox.geometry.boxes import box_area, box_centers, box_sizes
from lightning_bbox.geometry.jitter import UniformJitter
from lightning_bbox.insight.diagnosis.case import Case, first
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.findings import Cure, Finding, between, spread_of
from lightning_bbox.insight.diagnosis.reader import Offsets, Reader, features_of

_ALIKE = 0.7
"""Correlation from which on crops show the same."""
_AROUND = 1.125
"""The default context over what the default shifts need."""
_USUAL_INPUTS = Cure(("--model.preprocess=null",))


def check_crops(case: Case) -> Iterator[Finding]:
    """Check the crops, the cheapest first."""
    yield attempt("place of the crops", _place, case)
    yield attempt("the object in the crop", _context, case)
    yield attempt("size of the object", _object_size, case)
    yield attempt("normalisation of the inputs", _normalisation, case)
    yield attempt("law of the offsets", _law, case)
    yield attempt("pictures on both sides", _leak, case)
    yield attempt("augmentation", _augmentation, case)
    yield attempt("training and validation pictures", _domain, case)


def _context(case: Case) -> Finding:
    """How much of the object is in the crop?"""
    samples, geometry = case.train, case.data.geometry
    seen = geometry.crop_boxes(samples.proposals)
    corners = torch.cat(
        [torch.maximum(samples.gt_boxes[:, :2], seen[:, :2]),
         torch.minimum(samples.gt_boxes[:, 2:], seen[:, 2:])], dim=1
    )  # fmt: skip
    inside = box_sizes(corners).clamp(min=0).prod(dim=1) / box_area(samples.gt_boxes)
    share, cut = float(inside.mean()), float((inside < 0.999).float().mean())
    patches = isinstance(case.data, PatchDataModule)  # their boxes are the patches' middle
    return Finding(
        "the object in the crop",
        f"{share:.0%} of the objects' area is inside the crop, {cut:.0%} of the objects are cut",
        "more than 95 % of the area",
        0.0 if patches else max(between(share, 0.95, 0.85), 0.8 * between(cut, 0.5, 0.95)),
        "context_too_small",
        _fitting_context(case),
    )


def _fitting_context(case: Case) -> Cure:
    """Return the context that holds nearly all objects, with as much around them as by default.

    The same boxes are to be proposed as before, so shifts in px change with what a px is.
    """
    samples, geometry, data = case.train, case.data.geometry, case.data
    seen = geometry.crop_boxes(samples.proposals)
    ends = samples.gt_boxes - box_centers(seen).repeat(1, 2)
    share = 2 * float((ends.abs() / box_sizes(seen).repeat(1, 2)).amax(dim=1).quantile(0.99))
    context = min(10.0, max(1.0, round(_AROUND * share * geometry.context, 1)))
    options = [f"--data.crop.context={context:g}"]
    if isinstance(data.jitter, UniformJitter) and not case.given:
        shift = data.jitter.shift * geometry.context / context
        options += [
            "--data.jitter=lightning_bbox.UniformJitter",
            f"--data.jitter.shift={shift:.4g}",
        ]
        options += ["--data.jitter.integer=false"] * data.jitter.integer
    return Cure(tuple(options))


def _object_size(case: Case) -> Finding:
    """How many pixels of the crop is the object wide?"""
    samples, geometry = case.train, case.data.geometry
    sides = box_sizes(samples.gt_boxes) / box_sizes(geometry.crop_boxes(samples.proposals)).abs()
    side = float((sides * geometry.size).amin(dim=1).median())
    real = float(box_sizes(samples.gt_boxes).amin(dim=1).median())
    weight = max(between(side, 12.0, 6.0), between(real, 8.0, 3.5))
    if geometry.context > 2:
        cure = _fitting_context(case)
    elif real < 8:
        cure = Cure(words="use pictures of a higher resolution, or leave small boxes out "
                    "(data.min_size)")  # fmt: skip
    else:
        cure = Cure((f"--data.crop.size={45}",))
    return Finding(
        "size of the object",
        f"{side:.0f} pixels of the crop at the median, {real:.0f} pixels of the picture",
        "more than 12 of the crop and 8 of the picture",
        weight,
        "object_too_small",
        cure,
    )


def _normalisation(case: Case) -> Finding:
    """Are the network's inputs centred, and of a spread near 1?"""
    net = case.model.net
    few = first(case.train, 400)
    with torch.no_grad():
        inputs = net.preprocess(case.crops(few).to(case.model.device)).float()
    mean = inputs.mean(dim=(0, 2, 3)).abs().max()
    std = inputs.std(dim=(0, 2, 3))
    low, high = float(std.min()), float(std.max())
    weight = max(between(float(mean), 1.0, 3.0), between(high, 3.0, 8.0), between(low, 0.35, 0.12))
    return Finding(
        "normalisation of the inputs",
        f"by channel, means of at most {mean:.2f} and deviations of {low:.2f} to {high:.2f}",
        "means near 0, deviations near 1",
        weight,
        "wrong_normalisation",
        _USUAL_INPUTS,
    )


def _law(case: Case) -> Finding:
    """Are training and validation offsets spread alike?"""
    train, val = case.offsets(case.train), case.offsets(case.val)
    one, other = spread_of(train[:, :2]), spread_of(val[:, :2])
    ratio = max(one, other) / max(min(one, other), 1e-9)
    shift = float((train.mean(dim=0) - val.mean(dim=0))[:2].abs().max()) / max(one, other, 1e-9)
    return Finding(
        "law of the offsets",
        f"standard deviation {one:.2f} px in training, {other:.2f} in validation; means "
        f"{shift:.2f} deviations apart",
        "deviations within a third of each other, means within a quarter",
        max(between(ratio, 1.35, 2.0), between(shift, 0.25, 0.7)),
        "train_val_differ",
        Cure(words="let validation come from the same source (leave data.splits.val out, and a "
             "tenth of the training pictures validates)"),
    )  # fmt: skip


def _leak(case: Case) -> Finding:
    """Are validation or test pictures among those trained on?"""
    keys: dict[str, list[bytes]] = {}
    names: tuple[Split, ...] = ("train", "val", "test")
    for name in names:
        items = case.data.items_of(name)
        samples = case.draw(items, min(len(items), 2000), "leak")
        samples = samples._replace(proposals=samples.gt_boxes).cut_at(
            case.data.geometry, samples.gt_boxes, samples.flips
        )
        tiny = torch.nn.functional.adaptive_avg_pool2d(case.data.cut(samples), 9).flatten(1)
        rough = (tiny * 128).round().to(torch.uint8).numpy()
        keys[name] = [key.tobytes() for key in rough]
    trained = set(keys["train"])
    shares = {
        name: sum(key in trained for key in keys[name]) / len(keys[name])
        for name in ("val", "test")
    }
    worst = max(shares.values())
    texture = len(trained) < 0.5 * len(keys["train"])  # all look alike: that tells nothing
    return Finding(
        "pictures on both sides",
        f"{shares['val']:.0%} of the validation and {shares['test']:.0%} of the test objects look "
        f"exactly like one that is trained on",
        "none",
        0.0 if texture else 0.7 * between(worst, 0.02, 0.1),
        "leak",
        Cure(
            words="say what belongs together (data.splits.group_pattern); `check` lists the pairs"
        ),
    )


def _place(case: Case) -> Finding:
    """Do crops show the place that is asked for? A data module of one's own may cut otherwise."""
    samples, off = first(case.train, 12), case.misplaced
    own, plain = case.data.cut(samples), CropDataModule.cut(case.data, samples)
    return Finding(
        "place of the crops",
        f"they differ from a plain cut of the crop boxes by {off:.2f} of their contrast",
        "under 0.1",
        between(off, 0.1, 0.4),
        "crops_from_elsewhere",
        Cure(
            _without_own(case.data),
            "mend the data module's own cut: it takes another place than the crop boxes",
        ),
        crops=(("as the data module cuts", own), ("a plain cut of the same", plain)),
    )


def _augmentation(case: Case) -> Finding:
    """Can the offset still be read in crops as they are trained on, and does it go with them?"""
    check, data = "augmentation", case.data
    if case.readable < 0.1:
        return Finding(check, because="labels can't be read even in plain crops")
    rows = torch.arange(min(900, data.draws_per_epoch))
    samples = data.samples("train").take(rows)
    plain = _inputs(case, case.crops(samples), training=False)
    altered = _inputs(case, _trained_on(case, rows), training=True)
    seen = Offsets(features_of(plain), case.offsets(samples), samples.image_index)
    as_trained = seen._replace(features=features_of(altered))
    learn, held = rows[: len(rows) * 2 // 3], rows[len(rows) * 2 // 3 :]
    of_plain = Reader(seen.take(learn))
    before = float(of_plain.r2(seen.take(held))[:2].mean())
    after = float(Reader(as_trained.take(learn)).r2(as_trained.take(held))[:2].mean())
    if before < 0.1:  # mirrored crops may belie labels that plain ones don't
        return Finding(check, because=f"labels can't be read in mirrored crops (R2 {before:.2f})")
    kept = max(after, 0.0) / before
    moved = _moved(plain, altered)
    # How far what is read in them lies from what is read in plain crops.
    change = of_plain(as_trained.features)[:, :2] - of_plain(seen.features)[:, :2]
    apart = float(change.square().mean().sqrt()) / spread_of(seen.targets[:, :2])
    cure = _milder(data)
    if _inputs_differ(case):
        cure = _USUAL_INPUTS
    crops = (("crops as in validation", _shown(plain)), ("as they are trained on", _shown(altered)))
    found = (
        f"a fixed reader finds {before:.0%} of the variance in crops as in validation, {after:.0%} "
        f"as they are trained on; what is in them moves by {moved:.2f} pixels at the median, what "
        f"is read there by {apart:.2f} of the spread"
    )
    expected = "more than 85 % of that left, less than half a pixel moved"
    if kept > 0.82:
        return Finding(check, found, expected)
    weight = between(kept, 0.85, 0.5)
    if moved > 0.7 or (apart > 0.7 and _same_greys(plain, altered)):
        cause = "augmentation_moves_labels"
        return Finding(check, found, expected, weight, cause, cure, crops=crops)
    return Finding(check, found, expected, weight, "augmentation_destroys", cure, crops=crops)


def _milder(data: CropDataModule) -> Cure:
    """Return what takes away all that augmentation does beside mirroring."""
    augment = data.augment
    strengths = ("brightness", "contrast", "saturation", "noise")
    options = [f"--data.augment.{name}=0" for name in strengths if getattr(augment, name)]
    options += ["--data.augment.extra=[]"] * bool(augment.extra)
    if options:
        return Cure(tuple(options))
    return Cure(_without_own(data), "mend what the data module itself does to training crops")


def _without_own(data: CropDataModule) -> tuple[str, ...]:
    """Return the option that puts the class in the place of one that is derived from it."""
    kinds = [kind for kind in type(data).__mro__ if kind.__module__.startswith("lightning_bbox.")]
    if kinds[0] in (type(data), CropDataModule):
        return ()
    return (f"--data={class_path_of(kinds[0])}",)


def _trained_on(case: Case, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n 3 s s"]:
    """Return the crops of some rows of the first epoch as training has them."""
    data, crops = case.data, []
    with torch.random.fork_rng(devices=[]):
        data.seed_step(0)
        for some in torch.split(rows, 128):
            batch = Rows("train", 0, some, torch.ones(len(some), dtype=torch.bool))
            crops.append(data.make_batch(batch).crops)
    return torch.cat(crops)


@torch.no_grad()
def _inputs(
    case: Case, crops: Float[Tensor, "n 3 s s"], training: bool
) -> Float[Tensor, "n 3 s s"]:
    """Return what the backbone gets of crops; what can't be seen as a picture stays a crop."""
    preprocess = case.model.net.preprocess.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = preprocess(crops.to(case.model.device)).float().cpu()
    finally:
        preprocess.eval()
    return inputs if inputs.dim() == 4 and inputs.shape[1] == 3 else crops


def _inputs_differ(case: Case) -> bool:
    """Tell whether the preprocessing does otherwise in training."""
    crops = case.crops(first(case.train, 16))
    one, other = (_inputs(case, crops, training) for training in (False, True))
    return not torch.allclose(one, other, atol=1e-3)


def _same_greys(plain: Tensor, altered: Tensor) -> bool:
    """Tell whether crops hold the same grey levels, wherever they are."""
    one, other = (each.flatten(1).sort(dim=1).values for each in (plain, altered))
    return float((one - other).abs().mean()) < 0.25 * float(plain.std())


def _shown(inputs: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "m 3 s s"]:
    """Return a few inputs as pictures, between their own darkest and brightest."""
    few = inputs[:12]
    low, high = few.amin(dim=(1, 2, 3), keepdim=True), few.amax(dim=(1, 2, 3), keepdim=True)
    return (few - low) / (high - low).clamp(min=1e-6)


def _moved(plain: Float[Tensor, "n 3 s s"], altered: Float[Tensor, "n 3 s s"]) -> float:
    """Return by how many pixels what is in crops moves, at the median, by phase correlation.

    Only crops that are the same again once that is undone count: noise and holes move nothing.
    """
    one, other = plain.float().mean(dim=1), altered.float().mean(dim=1)
    side = one.shape[-1]
    window = torch.hann_window(side, periodic=False)
    window = window[:, None] * window
    one, other = (each - each.mean(dim=(1, 2), keepdim=True) for each in (one, other))
    product = torch.fft.rfft2(one * window) * torch.fft.rfft2(other * window).conj()
    peak = torch.fft.irfft2(product / product.abs().clamp(min=1e-9), s=(side, side))
    at = peak.flatten(1).argmax(dim=1)
    y, x = at // side, at % side
    rows, places = torch.arange(len(one))[:, None, None], torch.arange(side)
    back = other[rows, (places[:, None] - y[:, None, None]) % side,
                 (places - x[:, None, None]) % side]  # fmt: skip
    alike = (one * back * window).sum(dim=(1, 2)) / (
        ((one.square() * window).sum(dim=(1, 2)) * (back.square() * window).sum(dim=(1, 2)))
        .sqrt()
        .clamp(min=1e-9)
    )
    sure = alike > _ALIKE
    if sure.float().mean() < 0.2:
        return 0.0
    y, x = (torch.where(each > side // 2, each - side, each).float() for each in (y, x))
    return float(torch.hypot(x, y)[sure].median())


def _domain(case: Case) -> Finding:
    """Is what is learned in training pictures true of validation pictures?"""
    check = "training and validation pictures"
    fresh = case.seen(case.draw(case.data.items_of("train"), 500, "held-out shifts"))
    own = float(case.reader.r2(fresh)[:2].mean())
    held = case.readable
    train, val = (case.crops(first(each, 400)) for each in (case.train, case.val))
    levels = [float(crops.mean()) for crops in (train, val)]
    contrasts = [float(crops.std(dim=(1, 2, 3)).mean()) for crops in (train, val)]
    of_crops = float(train.mean(dim=(1, 2, 3)).std())
    other = abs(levels[0] - levels[1]) / max(of_crops, 0.02)
    contrast = max(contrasts) / max(min(contrasts), 1e-4)
    bias = (case.reader(case.val_seen.features) - case.val_seen.targets)[:, :2].mean(dim=0)
    off = float(bias.abs().max())
    spread = spread_of(case.val_seen.targets[:, :2])
    found = (
        f"R2 {own:.2f} on the training pictures, {held:.2f} on the validation's; mean grey "
        f"{levels[0]:.2f} and {levels[1]:.2f}, contrast {contrasts[0]:.2f} and {contrasts[1]:.2f}; "
        f"mean error in validation {bias[0]:.2f}, {bias[1]:.2f} px"
    )
    expected = "alike; small sets read worse on new pictures"
    if off > 0.25 * spread and held > 0.15:
        cure = Cure(words="read both splits by one convention (data.reading.voc_base, units)")
        weight = between(off / spread, 0.15, 0.4)
        return Finding(check, found, expected, weight, "labels_off_by_constant", cure)
    gap = between(held / max(own, 1e-6), 0.45, 0.1) * (own > 0.3) * case.telling
    weight = max(gap, 0.9 * between(other, 1.2, 2.5), 0.9 * between(contrast, 1.6, 2.5))
    cure = Cure(words="let validation come from the same source, or train on pictures like those "
                "it is to work on")  # fmt: skip
    return Finding(check, found, expected, weight, "train_val_differ", cure)
