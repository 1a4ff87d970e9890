"""What a data set is, and what is wrong with it, before anything is trained on it."""

import gc
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from jaxtyping import Bool, Float, Int64
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_bbox.annotations.headers import Facts, read_facts
from lightning_bbox.annotations.splits import ROLES, shared_groups, usual_split
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.validity import LEFT_OUT
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.core.messages import say
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.roles import assign_roles
from lightning_bbox.data.samples import Source
from lightning_bbox.geometry.boxes import box_area, box_sizes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.insight.leaks import alike_across, torn_sequences
from lightning_bbox.pictures.decode import are_large
from lightning_bbox.pictures.pyramid import num_pixels
from lightning_bbox.pictures.store import PictureFiles
from lightning_bbox.pictures.thumbnails import alike_pairs, read_thumbnails

_MOST_SEEN = 5_000  # pictures that thumbnails are made of
_SAMPLED = 10  # faults of a kind that are quoted
_SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)
_OVERLAPPING = 0.5  # IoU

Rows = list[list[str]]


class Section(NamedTuple):
    """A part of what is said.

    Attributes:
        title: Its title.
        lines: Sentences.
        table: Rows of cells, those of the head first, or none.
    """

    title: str
    lines: list[str]
    table: Rows


class Check(NamedTuple):
    """What a check has found.

    Attributes:
        root: The data set's folder.
        sections: What is said of it.
        refusal: Why `fit` would refuse it, or nothing.
        strangest: Boxes to look at, as indices of the table by what is strange about them.
        others: The box that each box of the table overlaps most; itself where it overlaps none.
        table: What was read, if anything could be.
        data: The data as a fit would see them, whose pictures are decoded as they are asked for;
            None where it would refuse them.
    """

    root: str
    sections: list[Section]
    refusal: str
    strangest: dict[str, list[int]]
    others: Int64[Tensor, " n"]
    table: BoxTable | None
    data: "Undecoded | None"


class Undecoded(BoxDataModule):
    """A data module that has read its annotations, and decodes pictures when they are asked for.

    Args:
        data: The module to be like.
        table: What its annotations say.
    """

    def __init__(self, data: BoxDataModule, table: BoxTable) -> None:
        super().__init__(str(data.root))
        vars(self).update(vars(data))
        self._source = None
        self.read_table = lambda **_: table  # type: ignore[assignment]

    def _open_store(self, paths: list[Path], sizes: Int64[Tensor, "n 2"]) -> PictureFiles:  # type: ignore[override] # never cut on a device
        return PictureFiles(paths, sizes, white_level=self.white_level, part=self.part)


def check_data(data: BoxDataModule) -> Check:
    """Read all that `fit` would read, but the pictures themselves, and say what there is.

    Args:
        data: The data module that a fit would have.
    """
    table, refusals = _read(data)
    if table is None:
        none = torch.zeros(0, dtype=torch.int64)
        return Check(str(data.root), [_verdicts(refusals, [])], refusals[0], {}, none, None, None)
    undecoded = Undecoded(data, table)
    source = None
    try:
        source = undecoded.source
    except BadInput as refusal:
        refusals.append(str(refusal))
    roles = _roles(data, table)
    facts = read_facts(table.root, table.images, table.part)
    leaks, broken = _leaks(table, roles)
    if broken:
        word = _plural("picture", len(broken))
        refusals.append(f"{len(broken)} {word} can't be decoded, such as {broken[0]}")
    geometry = undecoded.geometry
    overlaps, others = max_overlaps(table)
    sections = [
        _verdicts(refusals, _skipped(data, table, source)),
        _files(table),
        _pictures(table, [one for one in facts.values() if isinstance(one, Facts)]),
        _classes(table),
        _boxes(table, geometry, overlaps),
        _splits(table, roles, source),
        Section("Leaks", leaks or ["none found"], []),
        _faults(table, broken),
    ]
    return Check(
        str(data.root),
        sections,
        refusals[0] if refusals else "",
        _strangest(table, overlaps, others),
        others,
        table,
        undecoded if source else None,
    )


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Have Python not search for cycles of garbage: among millions of records that takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_collector_at_rest()
def _read(data: BoxDataModule) -> tuple[BoxTable | None, list[str]]:
    """Read the table; where pictures are missing, without them, so that the rest can be said."""
    try:
        return data.read_table(), []
    except BadInput as refusal:
        refusals = [str(refusal)]
    try:
        return data.read_table(on_missing="skip", on_bad="skip"), refusals
    except BadInput:
        return None, refusals


def _roles(data: BoxDataModule, table: BoxTable) -> list[str]:
    """Return the role of each picture of a table; nothing where none can be given."""
    try:
        ordered, roles, _ = assign_roles(table, data.splits, data.reading.allow_outside)
    except BadInput:
        return [""] * len(table.images)
    role_of = dict(zip(ordered.images, roles, strict=True))
    return [role_of[path] for path in table.images]


def _verdicts(refusals: Sequence[str], skipped: Sequence[str]) -> Section:
    lines = [f"fit would refuse: {refusal}" for refusal in refusals] or ["fit would run"]
    return Section("Verdict", [*lines, *(f"fit would skip: {line}" for line in skipped)], [])


def _skipped(data: BoxDataModule, table: BoxTable, source: Source | None) -> list[str]:
    lines = []
    if table.skipped:
        count = len(table.skipped)
        lines.append(f"{count} invalid {_plural('box', count)} (listed under Faults)")
    if table.missing and data.reading.on_missing == "skip":
        lines.append(f"{len(table.missing)} whose picture isn't there (listed under Faults)")
    kept = table.of_min_size(data.min_size)
    if data.classes and set(data.classes) <= set(table.classes):
        kept = kept.of_classes(data.classes)
    if left := len(table.boxes) - len(kept.boxes):
        lines.append(f"{left} boxes of other classes or below the least size")
    kept, marked = (kept, []) if data.use_marked else kept.without_marked()
    if marked:
        word = _plural("box", len(marked))
        lines.append(f"{len(marked)} {word} marked difficult or to be ignored")
    empty = len(table.images) - len(set(table.image_index.tolist()))
    if empty:
        lines.append(f"{empty} {_plural('picture', empty)} without a valid box")
    if source:
        used = sum(len(items) for items in source.splits.values())
        if used < len(kept.boxes):
            lines.append(f"{len(kept.boxes) - used} boxes of pictures in none of the splits")
    return lines


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}{'es' if noun == 'box' else 's'}"


def _files(table: BoxTable) -> Section:
    head, *notes = table.note.split("; ")
    return Section("Annotations", [head, *notes], [])


def _pictures(table: BoxTable, facts: Sequence[Facts]) -> Section:
    kinds = Counter((one.kind, one.mode, _bits(one)) for one in facts)
    rows = [["format", "mode", "bits a band", "pictures"]]
    rows += [[kind, mode, str(bits), f"{n:,}"] for (kind, mode, bits), n in kinds.most_common()]
    sizes = Counter((width, height) for height, width in table.sizes.tolist())
    (common, count), *_ = sizes.most_common()
    smallest, largest = (f(sizes, key=math.prod) for f in (min, max))
    large = are_large(table.sizes)
    pixels = int(num_pixels(table.sizes[~large]).sum())
    shown = f"{common[0]} x {common[1]} ({count:,} pictures)"
    if len(sizes) > 1:
        shown = (
            f"{len(sizes)} sizes, from {smallest[0]} x {smallest[1]} to {largest[0]} x "
            f"{largest[1]}, the most frequent {shown}"
        )
    lines = [
        f"{len(table.images):,} pictures, {shown}",
        f"decoded they take {4 * pixels / 1e9:.2f} GB",
    ]
    if count := int(large.sum()):
        lines.append(f"{count} have so many pixels that only what crops are cut from is decoded")
    if turns := Counter(one.turn for one in facts if one.turn != 1):
        told = ", ".join(f"{n} by orientation {turn}" for turn, n in sorted(turns.items()))
        lines.append(f"EXIF turns {sum(turns.values())} of them: {told}")
    return Section("Pictures", lines, rows)


def _bits(one: Facts) -> int:
    return {"1": 1, "I": 32, "F": 32}.get(one.mode, 16 if one.is_deep else 8)


def _classes(table: BoxTable) -> Section:
    rows = [["class", "boxes", "pictures", "median width", "median height"]]
    for number, name in enumerate(table.classes):
        mine = table.labels == number
        pictures = len(set(table.image_index[mine].tolist()))
        sizes = box_sizes(table.boxes[mine])
        medians = sizes.median(dim=0).values.tolist() if len(sizes) else [math.nan] * 2
        shown = ["-" if math.isnan(median) else f"{median:.4g}" for median in medians]
        rows.append([name, f"{int(mine.sum()):,}", f"{pictures:,}", *shown])
    classes = "1 class" if len(table.classes) == 1 else f"{len(table.classes)} classes"
    lines = [f"{len(table.boxes):,} valid boxes of {classes}"]
    if unused := [row[0] for row in rows[1:] if row[1] == "0"]:
        lines.append(f"classes without a box: {', '.join(unused)}")
    return Section("Classes", lines, rows)


def _boxes(table: BoxTable, geometry: CropGeometry, overlaps: Float[Tensor, " n"]) -> Section:
    boxes = table.boxes
    if not len(boxes):
        return Section("Boxes", ["none is valid"], [])
    sizes, limits = box_sizes(boxes), table.sizes[table.image_index].flip(-1)
    crops = geometry.crop_boxes(boxes)
    outside = (crops[:, :2] < 0).any(dim=1) | (crops[:, 2:] > limits).any(dim=1)
    touching = touches_border(table)
    per_picture = table.image_index.bincount(minlength=len(table.images)).float()
    named: dict[str, Tensor] = {
        "width, pixels": sizes[:, 0],
        "height, pixels": sizes[:, 1],
        "width over height": sizes[:, 0] / sizes[:, 1],
        "share of the picture, %": 100 * box_area(boxes) / limits.prod(dim=1),
        "boxes a picture": per_picture,
    }
    rows = [["", "least", "5 %", "median", "95 %", "most"]]
    for name, values in named.items():
        shares = _quantiles(values)
        rows.append([name, *(f"{value:.3g}" for value in shares)])
    enlarged = (box_sizes(crops) < geometry.size).any(dim=1)
    context = f"{geometry.context:g} times the box"
    small = f"fewer than {geometry.size} pixels a side, and are enlarged"
    lines = [
        f"{_share(enlarged)} of the crops ({context}) have {small}",
        f"{_share(outside)} of the crops reach outside their picture; its border is repeated there",
        f"{_share(touching)} of the boxes touch the border of their picture, perhaps cut off there",
        f"{_share(overlaps > _OVERLAPPING)} of the boxes overlap another by an IoU above 0.5",
    ]
    return Section("Boxes", lines, rows)


def _quantiles(values: Float[Tensor, " n"]) -> list[float]:
    ordered = values.float().sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in _SHARES]


def _share(which: Tensor) -> str:
    return f"{100 * which.float().mean():.3g} % ({int(which.sum()):,})"


def touches_border(table: BoxTable) -> Bool[Tensor, " n"]:
    """Tell which boxes have an edge within half a pixel of their picture's border.

    Args:
        table: The boxes.
    """
    limits = table.sizes[table.image_index].flip(-1)
    low, high = table.boxes[:, :2] <= 0.5, table.boxes[:, 2:] >= limits - 0.5
    return (low | high).any(dim=1)


def max_overlaps(table: BoxTable) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Return the largest IoU of each box with another one of its picture, and which that is.

    Boxes are sorted by their left edge, so that each is compared with those near it alone: a
    million of them take seconds.

    Args:
        table: The boxes.
    """
    # One long strip of pictures, side by side: those of others can't overlap.
    widths = table.sizes[:, 1].double()
    starts = (widths.cumsum(0) - widths + 4.0 * torch.arange(len(widths)))[table.image_index]
    boxes = table.boxes.double() + torch.stack([starts, torch.zeros_like(starts)] * 2, dim=1)
    order = boxes[:, 0].argsort(stable=True)
    boxes = boxes[order]
    areas = box_area(boxes)
    best, other = torch.zeros(len(boxes), dtype=torch.float64), torch.arange(len(boxes))
    last = torch.searchsorted(boxes[:, 0].contiguous(), boxes[:, 2].contiguous())
    rows, step = torch.arange(len(boxes)), 1
    while len(rows := rows[rows + step < last[rows]]):
        ahead = rows + step
        sides = torch.minimum(boxes[rows, 2:], boxes[ahead, 2:])
        sides = sides - torch.maximum(boxes[rows, :2], boxes[ahead, :2])
        shared = sides.clamp(min=0).prod(dim=1)
        iou = shared / (areas[rows] + areas[ahead] - shared)
        for mine, partner in ((rows, ahead), (ahead, rows)):
            more = iou > best[mine]
            best[mine[more]], other[mine[more]] = iou[more], partner[more]
        step += 1
    overlaps, others = torch.empty(len(boxes)), torch.empty(len(boxes), dtype=torch.int64)
    overlaps[order], others[order] = best.float(), order[other]
    return overlaps, others


def _splits(table: BoxTable, roles: Sequence[str], source: Source | None) -> Section:
    rows = [["split", "pictures", "groups", "boxes"]]
    counts = table.image_index.bincount(minlength=len(table.images)).tolist()
    for role in (*ROLES, ""):
        mine = [at for at, name in enumerate(roles) if name == role]
        if mine or role:
            groups = len({table.groups[at] for at in mine})
            boxes = sum(counts[at] for at in mine)
            rows.append([role or "none", f"{len(mine):,}", f"{groups:,}", f"{boxes:,}"])
    lines = [note for note in (source.notes if source else ()) if note != table.note]
    if (groups := len(set(table.groups))) == len(table.images):
        lines.append("each picture is a group of its own: nothing says which belong together")
    else:
        lines.append(f"{len(table.images):,} pictures are in {groups:,} groups")
    return Section("Splits", lines, rows)


def _leaks(table: BoxTable, roles: Sequence[str]) -> tuple[list[str], list[str]]:
    """Say what lies on both sides of a split, and which pictures can't be decoded."""
    step = -(-len(table.images) // _MOST_SEEN)
    seen = range(0, len(table.images), step)
    thumbnails, faults = read_thumbnails([table.root / table.images[at] for at in seen], table.part)
    pairs = torch.tensor(seen)[alike_pairs(thumbnails)].reshape(-1, 2)
    torn = torn_sequences(table.images, table.groups, roles)
    leaks = [torn, alike_across(pairs, table.images, roles)]
    lines = [leak.sentence() for leak in leaks if leak]
    stated = [usual_split(split) or split for split in table.splits]
    if shared := shared_groups(table.groups, stated):
        lines.append(
            f"{len(shared)} groups lie in several of the files' own splits: {listed(shared)}"
        )
    alike = [(a, b) for a, b in pairs.tolist() if table.groups[a] != table.groups[b]]
    if alike and not leaks[1]:
        shown, word = " and ".join(table.images[at] for at in alike[0]), _plural("pair", len(alike))
        lines.append(f"{len(alike)} {word} of nearly equal pictures in one split, such as {shown}")
    if step > 1:
        lines.append(f"looked at {len(seen):,} of {len(table.images):,} pictures for equal ones")
    broken = [f"{table.images[seen[at]]} ({fault})" for at, fault in faults.items()]
    return lines, broken


def _faults(table: BoxTable, broken: Sequence[str]) -> Section:
    """Count the faults by kind, and quote some of each with file and line."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for sentence in table.skipped:
        kinds[_kind(sentence)].append(sentence.removesuffix(LEFT_OUT))
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(found):,} {_plural('box', len(found))}: {kind}")
        lines += [f"  {sentence}" for sentence in found[:_SAMPLED]]
        lines += [f"  and {len(found) - _SAMPLED:,} more"] * (len(found) > _SAMPLED)
    if table.missing:
        lines.append(f"{len(table.missing):,} whose picture isn't there")
        lines += [f"  {one.removesuffix(LEFT_OUT)}" for one in table.missing[:_SAMPLED]]
        lines += [f"  and {len(table.missing) - _SAMPLED:,} more"] * (len(table.missing) > _SAMPLED)
    if broken:
        lines.append(f"{len(broken):,} {_plural('picture', len(broken))} that can't be decoded")
        lines += [f"  {one}" for one in broken[:_SAMPLED]]
    return Section("Faults", lines or ["none found"], [])


_KINDS = {
    "no positive": "no positive width or height",
    "not finite": "numbers that are not finite",
    "outside the": "reach outside their picture",
    "is a crowd": "crowds, not one object",
}


def _kind(sentence: str) -> str:
    return next((words for word, words in _KINDS.items() if word in sentence), "other reasons")


def _strangest(
    table: BoxTable,
    overlaps: Float[Tensor, " n"],
    others: Int64[Tensor, " n"],
    count: int = 16,
) -> dict[str, list[int]]:
    """Choose boxes to look at; of two that overlap, one."""
    areas, rows = box_area(table.boxes), torch.arange(len(table.boxes))
    first = (overlaps > 0) & ((others > rows) | (others[others] != rows))
    keys: dict[str, Tensor] = {
        "the smallest": -areas,
        "the largest": areas,
        "the most overlapping": torch.where(first, overlaps, -torch.inf),
        "the largest that touch the border": torch.where(touches_border(table), areas, -torch.inf),
    }
    chosen = {}
    for name, key in keys.items():
        order = key.argsort(descending=True, stable=True)[:count].tolist()
        chosen[name] = [at for at in order if math.isfinite(key[at])]
    return {name: found for name, found in chosen.items() if found}


class FirstLines(pl.Callback):
    """Say the most important of a check where a training begins."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which classes and what sizes of boxes there are, and where the rest is told."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, BoxDataModule):
            say("\n".join(first_lines(data.source, data.geometry)))
            say(f"leaks, faults and strange boxes: lightning-bbox check --data.root {data.root}")


def first_lines(source: Source, geometry: CropGeometry) -> list[str]:
    """Say which classes there are, how large their boxes are, and how much context they have.

    Args:
        source: What was read.
        geometry: How crops are cut.
    """
    items = [split for split in source.splits.values() if len(split)]
    boxes, labels = torch.cat([each.boxes for each in items]), torch.cat([e.labels for e in items])
    counts = labels.bincount(minlength=len(source.classes)).tolist()
    named = [f"{name} {n:,}" for name, n in zip(source.classes, counts, strict=True)]
    (low, _, median, _, high), (short, _, middle, _, tall) = map(_quantiles, box_sizes(boxes).T)
    enlarged = (box_sizes(geometry.crop_boxes(boxes)) < geometry.size).any(dim=1)
    return [
        f"classes: {listed(named)}",
        (
            f"boxes: {low:.4g} to {high:.4g} pixels wide (median {median:.4g}), {short:.4g} to "
            f"{tall:.4g} high (median {middle:.4g}); {_share(enlarged)} of the crops are enlarged"
        ),
    ]
