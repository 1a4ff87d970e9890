"""Checks of the labels: do the offsets that are learned belong to what the crops show?

A fixed reader learns the offsets as they are, and as they would be under each known mistake. Where
a mistake undone makes them readable, the labels have it.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.loader import Split
from lightning_bbox.data.samples import Items
from lightning_bbox.geometry.boxes import box_centers, box_sizes, boxes_around, shift_boxes
from lightning_bbox.insight.diagnosis.case import Case, first
from lightning_bbox.insight.diagnosis.checks.attempts import attempt
from lightning_bbox.insight.diagnosis.findings import (
    Alter,
    Cure,
    Finding,
    Frame,
    between,
    spread_of,
)
from lightning_bbox.insight.diagnosis.reader import Reader

_LEGIBLE = 0.25
"""R2 from which on the fixed reader makes sense of labels; healthy sets have 0.4 to 0.9."""
_MISPLACED = 0.2  # from which crops say nothing of labels
_TRIED, _HELD = 900, 400  # draws for each mistake that is tried
_ITEMS, _VIEWS = 250, 3  # that are judged one by one, and crops of each


def check_labels(case: Case) -> Iterator[Finding]:
    """Check the labels, the cheapest first."""
    yield attempt("spread of the targets", _constant, case)
    yield attempt("equal pictures, equal labels", _contradicting, case)
    yield attempt("labels can be read", _readable, case)
    yield attempt("labels follow the picture", _by_shifts, case)
    noise = attempt("noise of the labels", _noise, case)
    yield attempt("every part of the labels", _in_part, case, noise)
    yield noise


def _constant(case: Case) -> Finding:
    """Are there offsets to learn at all?"""
    spread = [float(value) for value in case.offsets(case.train).std(dim=0)[:2]]
    worst = min(spread)
    boxes = case.given and isinstance(case.data, BoxDataModule)
    options = ("--data.proposals=null",) if boxes else ()
    return Finding(
        "spread of the targets",
        f"standard deviation of dx and dy {spread[0]:.2f} and {spread[1]:.2f} px",
        "more than 0.2 px in both; 2.9 for uniform shifts of 5",
        between(worst, 0.2, 0.05),
        "constant_targets",
        Cure(options, "give proposals that are off, or none, and a data.jitter draws them"),
    )


def _contradicting(case: Case) -> Finding:
    """Do equal crops have equal offsets?"""
    samples, check = case.train, "equal pictures, equal labels"
    items = case.data.items_of("train")
    if not case.given:
        found, share = _contradicting_boxes(case)
    else:
        crops = case.crops(samples)
        tiny = torch.nn.functional.adaptive_avg_pool2d(crops, 6).flatten(1)
        keys = (tiny * 64).round().to(torch.uint8).numpy()
        groups: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(key.tobytes(), []).append(row)
        offsets = case.offsets(samples)
        off = 0
        for rows in groups.values():
            numbers = {int(samples.items[row]) for row in rows}
            if len(numbers) > 1:
                off += len(rows) * (float(offsets[rows].std(dim=0).max()) > 0.5)
        share, found = off / len(keys), f"{off} of {len(keys)} crops have a twin with other offsets"
    return Finding(
        check,
        found,
        "none",
        between(share, 0.02, 0.15),
        "contradicting_labels",
        Cure(words="leave out, or put right, the labels of equal pictures; `check` lists pictures "
             "that look alike" if len(items) else ""),
    )  # fmt: skip


def _contradicting_boxes(case: Case) -> tuple[str, float]:
    """Count pictures that are equal to another whose boxes lie elsewhere."""
    items = case.data.items_of("train")
    numbers = torch.unique(items.image_index)[:3000]
    whole = torch.cat([torch.zeros(len(numbers), 2), case.sizes[numbers]], dim=1)
    keys = _thumbnails(case, numbers, whole)
    first: dict[bytes, int] = {}
    twins: list[tuple[int, int]] = []
    for number, key in zip(numbers.tolist(), keys, strict=True):
        if key in first:
            twins.append((first[key], number))
        first.setdefault(key, number)
    off = sum(not _same_boxes(items.boxes, items.image_index, *pair) for pair in twins)
    found = f"{off} of {len(numbers)} pictures equal another one whose boxes lie elsewhere"
    return found, 2 * off / len(numbers)


def _thumbnails(case: Case, numbers: Tensor, whole: Float[Tensor, "n 4"]) -> list[bytes]:
    """Return each picture's key: whole, in a few grey levels of a few pixels."""
    keys = []
    for some in torch.split(torch.arange(len(numbers)), 128):
        any_row = case.train.take(torch.zeros(len(some), dtype=torch.int64))
        crops = case.data.cut(any_row._replace(image_index=numbers[some], crop_boxes=whole[some]))
        tiny = torch.nn.functional.adaptive_avg_pool2d(crops, 8).flatten(1)
        keys += [key.tobytes() for key in (tiny * 96).round().to(torch.uint8).numpy()]
    return keys


def _same_boxes(boxes: Tensor, pictures: Tensor, one: int, other: int) -> bool:
    """Tell whether two pictures have boxes at the same places, to a pixel."""
    mine, theirs = boxes[pictures == one], boxes[pictures == other]
    if len(mine) != len(theirs):
        return False
    nearest = torch.cdist(mine, theirs, p=float("inf")).min(dim=1).values
    return bool((nearest < 1).all())


def _swap(boxes: Tensor, frame: Frame) -> Tensor:
    if frame.proposals is None:
        return boxes[:, [1, 0, 3, 2]]
    by = box_centers(boxes) - box_centers(frame.proposals)
    return shift_boxes(frame.proposals, by.flip(1))


def _mirror(axes: tuple[int, ...]) -> Alter:
    def alter(boxes: Tensor, frame: Frame) -> Tensor:
        if frame.proposals is None:
            centers = box_centers(boxes)
            for axis in axes:
                centers[:, axis] = frame.sizes[:, axis] - centers[:, axis]
            return boxes_around(centers, box_sizes(boxes))
        by = box_centers(boxes) - box_centers(frame.proposals)
        for axis in axes:
            by[:, axis] = -by[:, axis]
        return shift_boxes(frame.proposals, by)

    return alter


def _turn(times: int) -> Alter:
    """Return what turns boxes by so many quarter turns, as EXIF may turn their pictures."""

    def alter(boxes: Tensor, frame: Frame) -> Tensor:
        x, y = box_centers(boxes).unbind(dim=1)
        width, height = frame.sizes.unbind(dim=1)
        turned = (width - y, x) if times == 1 else (y, height - x)
        return boxes_around(torch.stack(turned, dim=1), box_sizes(boxes).flip(1))

    return alter


def _scale(x: float, y: float) -> Alter:
    def alter(boxes: Tensor, _frame: Frame) -> Tensor:
        return boxes * boxes.new_tensor([x, y, x, y])

    return alter


def mistakes(case: Case) -> dict[str, tuple[str, Alter, str]]:
    """Return what may be wrong with all labels: words, what undoes it, and the cause's name.

    Args:
        case: Says how large boxes and pictures are.
    """
    known: dict[str, tuple[str, Alter, str]] = {
        "swap": ("x and y exchanged", _swap, "axes_exchanged"),
        "mirror x": ("mirrored left-right", _mirror((0,)), "sign_wrong"),
        "mirror y": ("mirrored up-down", _mirror((1,)), "sign_wrong"),
        "mirror both": ("mirrored both ways", _mirror((0, 1)), "sign_wrong"),
    }
    if case.given:
        return known
    # Half a turn, as EXIF may say: likelier than two mistakes.
    known["mirror both"] = "turned by 180 degrees", _mirror((0, 1)), "crops_from_elsewhere"
    for times in (1, 3):
        words = f"turned by {90 * times} degrees"
        known[words] = words, _turn(times), "crops_from_elsewhere"
    items = case.data.items_of("train")
    reach = (items.boxes[:, 2:] / case.sizes[items.image_index]).quantile(0.999, dim=0)
    fitting = (1 / reach).tolist()
    for x, y in ((fitting[0], fitting[1]), (max(fitting),) * 2, (min(fitting),) * 2, (2, 2),
                 (0.5, 0.5), (1.5, 1.5), (2 / 3, 2 / 3)):  # fmt: skip
        words = f"of pictures {x:.2f} times as wide and {y:.2f} times as high"
        if abs(x - 1) > 0.1 or abs(y - 1) > 0.1:
            known[words] = words, _scale(x, y), "other_picture_size"
    return known


_OF_MISTAKES = {
    "axes_exchanged": "exchange x and y in the files, or name the columns rightly "
    "(data.reading.columns)",
    "sign_wrong": "turn the sign round: offsets point from the proposal to the object, x to the "
    "right and y down",
    "crops_from_elsewhere": "say what boxes are drawn on (data.reading.exif: apply or ignore)",
    "other_picture_size": "scale the boxes to the pictures, or give the pictures they were drawn "
    "on (data.reading.images)",
}


def _inside(boxes: Tensor, frame: Frame) -> Bool[Tensor, " n"]:
    """Tell which boxes' centres lie in their pictures."""
    centers = box_centers(boxes)
    return ((centers > 0) & (centers < frame.sizes)).all(dim=1)


def _readable(case: Case) -> Finding:
    """Can the labels be read, and if not, under which mistake could they?"""
    if case.misplaced > _MISPLACED:
        return Finding("labels can be read", because="crops don't show the place asked for")
    as_is = case.readable
    found = f"a fixed reader finds {max(as_is, 0):.0%} of the offsets' variance in validation crops"
    check, expected = "labels can be read", f"more than {_LEGIBLE:.0%}; 40 to 90 % is usual"
    if as_is >= _LEGIBLE + 0.25 or case.given:
        return Finding(check, found, expected)
    best, name = as_is, ""
    tried = mistakes(case)
    for key, (_, alter, _cause) in tried.items():
        r2 = _r2_if(case, alter)
        if r2 > best:
            best, name = r2, key
    if name and best > max(as_is + 0.15, 1.6 * as_is, _LEGIBLE):
        words, alter, cause = tried[name]
        return Finding(
            check,
            f"{found}, and {best:.0%} if they are taken to be {words}",
            expected,
            between(best - as_is, 0.0, 0.25),
            cause,
            Cure(words=_OF_MISTAKES[cause], alter=alter),
            crops=_before_and_after(case, alter),
        )
    cure = Cure(words="look at the sheet of crops, and at which file belongs to which picture")
    return Finding(
        check, f"{found}; no known mistake explains it", expected,
        0.9 * between(as_is, _LEGIBLE, 0.08) * case.telling, "labels_shuffled", cure,
        crops=(("true boxes as the labels say", case.crops(first(case.train, 12))),),
    )  # fmt: skip


def _r2_if(case: Case, alter: Alter) -> float:
    """Return how well offsets are read from crops cut at altered boxes."""
    seen = []
    splits: tuple[tuple[Split, int], ...] = (("train", _TRIED), ("val", _HELD))
    for split, draws in splits:
        items = case.data.items_of(split)
        changed = case.altered(items, alter)
        inside = _inside(changed.boxes, case.frame(items))
        if inside.float().mean() < 0.6:
            return 0.0
        seen.append(case.seen(case.draw(changed, draws, f"mistake {split}")))
    return float(Reader(seen[0]).r2(seen[1])[:2].mean())


def _before_and_after(case: Case, alter: Alter) -> tuple[tuple[str, Tensor], ...]:
    items = case.data.items_of("train")
    few = 12
    as_is = case.crops(case.draw(items, few, "shown"))
    mended = case.crops(case.draw(case.altered(items, alter), few, "shown"))
    return (("crops as the labels say", as_is), ("the same with the mistake undone", mended))


def _by_shifts(case: Case) -> Finding:
    """Do labels go with what shifted crops show? Only where proposals are given can they not."""
    check = "labels follow the picture"
    expected = "read offsets and labels go together: slopes near 1 on the diagonal, 0 beside it"
    if not case.given:
        return Finding(
            check, "proposals are drawn around the true boxes, so that labels follow", expected
        )
    reader, shift_r2 = case.label_free
    if shift_r2 < 0.08:
        why = f"shifts of the crops themselves can't be read (R2 {shift_r2:.2f})"
        return Finding(check, because=why)
    said = reader(case.train_seen.features)[:, :2]
    labels = case.train_seen.targets[:, :2].double()
    said, labels = said - said.mean(dim=0), labels - labels.mean(dim=0)
    # The reader shrinks: undone by how it says its own shifts.
    matrix = torch.linalg.lstsq(said, labels).solution.T
    correlation = (said.T @ labels) / (said.norm(dim=0)[:, None] * labels.norm(dim=0))
    diagonal, beside = correlation.diagonal(), correlation.flip(1).diagonal()
    found = (
        f"shifts can be read (R2 {shift_r2:.2f}); labels go with them by x {matrix[0, 0]:.2f}, "
        f"{matrix[0, 1]:.2f}; y {matrix[1, 0]:.2f}, {matrix[1, 1]:.2f}; correlations "
        f"{diagonal[0]:.2f} and {diagonal[1]:.2f}, crossed {beside[0]:.2f} and {beside[1]:.2f}"
    )
    own, crossed = float(diagonal.abs().mean()), float(beside.abs().mean())
    if crossed > own + 0.1:
        weight = between(crossed - own, 0.05, 0.25)
        cure = Cure(words=_OF_MISTAKES["axes_exchanged"], alter=_swap)
        return Finding(check, found, expected, weight, "axes_exchanged", cure)
    wrong = tuple(axis for axis in range(2) if float(diagonal[axis]) < -0.08)
    if wrong:
        cure = Cure(words=_OF_MISTAKES["sign_wrong"], alter=_mirror(wrong))
        weight = between(-float(diagonal[list(wrong)].mean()), 0.05, 0.2)
        return Finding(check, found, expected, weight, "sign_wrong", cure)
    strongest = max(case.readable, own**2)
    if strongest < 0.1:
        cure = Cure(words="see that the n-th label belongs to the n-th patch")
        weight = between(strongest, 0.1, 0.03)
        return Finding(check, found, expected, weight, "labels_shuffled", cure)
    return _units(case, check, found, expected)


def _units(case: Case, check: str, found: str, expected: str) -> Finding:
    """Are labels in px, and about the right middle?"""
    reader, draws = case.reader, case.val
    generator = keyed_generator("diagnose", "units")
    shifts = (torch.rand(len(draws.items), 2, generator=generator) * 2 - 1) * 2
    moved = case.seen(case.recut(draws, shifts))
    change = reader(moved.features)[:, :2] - reader(case.val_seen.features)[:, :2]
    slope = -float((change * shifts).sum() / shifts.square().sum())
    unit = slope / max(case.readable, 0.05)
    mean = case.train_seen.targets[:, :2].mean(dim=0)
    spread = spread_of(case.train_seen.targets[:, :2])
    found += f"; a shift of 1 px changes what is read by {slope:.2f} px at an R2 of "
    found += f"{case.readable:.2f}; mean label {mean[0]:.2f}, {mean[1]:.2f} px"
    off = max(between(unit, 0.45, 0.2), between(unit, 2.2, 4.0))
    if off:
        cure = Cure(words="give offsets in pixels of the patch, not in shares of it")
        return Finding(check, found, expected, off, "labels_off_by_constant", cure)
    pictures = len(torch.unique(case.data.items_of("train").clusters))
    sure = float(mean.abs().max()) > 4 * spread / pictures**0.5
    weight = sure * between(float(mean.abs().max()) / max(spread, 1e-6), 0.12, 0.3)
    words = "measure offsets from the middle of the patch, (width / 2, height / 2)"
    cure = Cure(words=words, alter=about_the_middle(case))
    return Finding(check, found, expected, weight, "labels_off_by_constant", cure)


def about_the_middle(case: Case) -> Alter:
    """Return what takes the mean label off all labels.

    Args:
        case: Its proposals are given.
    """
    items, geometry = case.data.items_of("train"), case.data.geometry
    proposals = items.proposals
    assert proposals is not None
    off = (box_centers(items.boxes) - box_centers(proposals)) / geometry.px(proposals)
    mean = off.mean(dim=0)

    def alter(boxes: Tensor, frame: Frame) -> Tensor:
        assert frame.proposals is not None
        return shift_boxes(boxes, -mean * geometry.px(frame.proposals))

    return alter


def _in_part(case: Case, noise: Finding) -> Finding:
    """Would a part of the labels be better explained by a mistake?"""
    check, expected = "every part of the labels", "under 6 % of those that tell"
    if case.misplaced > _MISPLACED:
        return Finding(check, because="crops don't show the place asked for")
    if case.readable < 0.08:
        return Finding(check, because="labels can't be read well enough to judge parts of them")
    best, words = 0.0, ""
    for name, (said, alter, _) in mistakes(case).items():
        if name.startswith("of pictures"):
            continue
        share = _share_explained(case, alter)
        if share > best:
            best, words = share, said
    found = f"{best:.0%} of the labels are better explained if taken to be {words or 'wrong'}"
    cure = Cure(words="find what those files have in common (`audit` lists the boxes), mend them")
    weight = between(best, 0.06, 0.15) * (1 - 0.7 * noise.weight)  # noise fits anything
    return Finding(check, found, expected, weight, "flipped_part", cure)


def _share_explained(case: Case, alter: Alter) -> float:
    """Return the share of items that fit far better altered, among those that tell.

    Each is seen in several crops, so that the reader's errors average out.
    """
    items = case.data.items_of("val")
    changed = case.altered(items, alter)
    moved = (box_centers(changed.boxes) - box_centers(items.boxes)).norm(dim=1)
    least = 0.5 * box_sizes(items.boxes).amin(dim=1)
    if items.proposals is not None:
        least = case.data.geometry.px(items.proposals).mean(dim=1) * 2
    clear = (_inside(changed.boxes, case.frame(items)) | case.given) & (moved > least)
    chosen = clear.nonzero().flatten()[:_ITEMS]
    if len(chosen) < 40:
        return 0.0
    fits = [_misfit(case, each.rows(chosen)) for each in (items, changed)]
    as_is, altered = fits
    better, worse = (altered < 0.35 * as_is).sum(), (as_is < 0.35 * altered).sum()
    return float(better / (better + worse).clamp(min=1))


def _misfit(case: Case, items: Items) -> Float[Tensor, " n"]:
    """Return each item's mean squared distance between its label and what is read."""
    generator = keyed_generator("diagnose", "part")
    total = torch.zeros(len(items), dtype=torch.float64)
    for view in range(_VIEWS):
        samples = case.each(items, f"part {view}")
        if case.given:  # a reader of these labels would have learned a part's mistake
            shifts = (torch.rand(len(items), 2, generator=generator) * 2 - 1) * 3
            seen = case.seen(case.recut(samples, shifts))
            reader, r2 = case.label_free
            said = reader(seen.features)[:, :2] / max(r2, 0.2) ** 0.5
        else:
            seen = case.seen(samples)
            said = case.reader(seen.features)[:, :2]
        total += (said - seen.targets[:, :2]).square().sum(dim=1) / _VIEWS
    return total


def _noise(case: Case) -> Finding:
    """Is there more in the labels than what crops show?"""
    check = "noise of the labels"
    cure = Cure(words="look at the boxes that `audit` lists, and draw those anew")
    if case.given:
        return _noise_of_given(case, check, cure)
    if case.readable < 0.15:
        return Finding(check, because="labels can't be read well enough to tell their noise")
    samples, reader = case.val, case.reader
    generator = keyed_generator("diagnose", "noise")
    offsets = case.val_seen.targets[:, :2]
    wanted = offsets[torch.randperm(len(offsets), generator=generator)]
    again = case.seen(case.recut(samples, offsets - wanted))
    first = (reader(case.val_seen.features) - case.val_seen.targets)[:, :2]
    second = (reader(again.features) - again.targets)[:, :2]
    together = (first * second).mean(dim=0).clamp(min=0)
    whole = (first.square() + second.square()).mean(dim=0) / 2
    share, noise = float((together / whole).mean()), float(together.mean().sqrt())
    spread = spread_of(offsets)
    found = (
        f"{share:.0%} of the reader's squared error is the same in every crop of an object: noise "
        f"of at most {noise:.2f} px a coordinate, which no model can learn"
    )
    weight = min(between(share, 0.6, 0.85), between(noise / spread, 0.35, 0.7))
    return Finding(
        check, found, "under 60 %, and under a third of the shifts' spread", weight,
        "label_noise", cure,
    )  # fmt: skip


def _noise_of_given(case: Case, check: str, cure: Cure) -> Finding:
    """Bound the labels' noise: crops show how far objects are spread, whatever the labels say.

    Shifts made here are read with the objects' own spread as noise: R2 is at most the former's
    share of both variances.
    """
    _, r2 = case.label_free
    if r2 < 0.08:
        return Finding(check, because=f"shifts of the crops can't be read (R2 {r2:.2f})")
    made = case.made_shift**2 / 3  # of uniform shifts
    shown, labels = made * (1 / r2 - 1), spread_of(case.train_seen.targets[:, :2]) ** 2
    noise = max(0.0, labels - shown)
    found = (
        f"labels have a standard deviation of {labels**0.5:.2f} px, of which crops show at most "
        f"{shown**0.5:.2f}: noise of at least {noise**0.5:.2f} px, which no model can learn"
    )
    weight = between(noise / labels, 0.2, 0.45)
    return Finding(
        check, found, "under a fifth of the labels' variance", weight, "label_noise", cure
    )
