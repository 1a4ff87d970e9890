"""One model that isn't told how boxes are off, beside figures of models that are told (ReBox).

    python -m benchmarks.rebox --data FOLDER [--only bccd rbc scenes] [--seeds 0 1 2] [--sizes all]

FOLDER holds `bccd` and `rbc`; scenes are drawn, with exact boxes, so that what isn't planted there
is right. A model with four targets learns from 100 training pictures, or from all. The test
pictures' boxes are made 0.6 to 1.4 times as large, or their sides are moved by up to 5, 10 or 20 %
of the box, or half of them are too small, or a share of them is far off and the others hardly.
Then they are moved as `predict --law trained` does, and by the law that is learned from these very
boxes, without any label. From how few boxes it can be learned is seen by laws of 50, 200 and 1,000
of them, and by the one that the checkpoint has for fewer. Of several `--log_scales` of the training
jitter the best on the training's own validation pictures is taken, by the first seed. Trained runs
are kept in `--runs`, so that the same command goes on. Results: `benchmarks/results/rebox.json`
and, as tables, stdout and `rebox.md`; of sets without runs there they stay as they were.

What differs from ReBox: its figures are for 54 validation pictures and 735 boxes of another split
of BCCD, it learns from 100 samples, and it is told the noise; its cases of moved sides can't be
drawn again from what is public, so there are no figures of it for these.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.audit import FAR, NEAR, off_by, scenes
from benchmarks.ranks import machine
from lightning_bbox import Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.evaluation.intervals import Mean, clustered_interval, crossed_interval
from lightning_bbox.evaluation.metrics import HARM, coordinate_errors
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, boxes_around, paired_iou
from lightning_bbox.geometry.weighing import Said, learn_law, placed, places_of
from lightning_bbox.insight.audit import Audit, judge, said_inside
from lightning_bbox.pictures.decode import decode_image

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {
    0.6: (0.930, 0.503),
    0.7: (0.908, 0.663),
    0.8: (0.895, 0.708),
    0.9: (0.886, 0.728),
    1.1: (0.874, 0.727),
    1.2: (0.867, 0.720),
    1.3: (0.858, 0.704),
    1.4: (0.846, 0.685),
}
"""Mean IoU on BCCD by scale, of ReBox and of SAM ViT-H.

From the result files of the ReBox repository, submitted to IJCAI-ECAI 2026.
"""
BESIDE = (
    "ReBox is told the noise, learns from 100 samples, and its figures are for 54 validation "
    "pictures and 735 boxes of another split; its cases of moved sides can't be drawn again from "
    "what is public. Boxes are cut at the picture's border. Estimated shares count what the "
    "annotations themselves have of wrong boxes."
)
"""What stands above the tables."""
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)
SIDES = (0.05, 0.1, 0.2)
SHARES = (0.0, 0.02, 0.05, 0.2)
NEARLY = 0.01
FEW = 100  # training pictures
LEARNED_FROM = (0, 50, 200, 1000)  # boxes that a law is learned from
COMMON = ["--data.num_targets=4", "--data.jitter=UniformJitter", "--data.jitter.shift=8"]
BATCH = 24  # pictures at once
NUM_TESTED = 500  # scenes, of one box each
_NINETY = 1.645  # standard deviations


class Set(NamedTuple):
    """A data set: its configuration, and which of its pictures train and test."""

    options: list[str]
    trains: Callable[[BoxTable, int], bool]
    classes: list[str] | None
    min_size: float


def _in_file(name: str) -> Callable[[BoxTable, int], bool]:
    def listed(table: BoxTable, at: int) -> bool:
        names = (table.root / "ImageSets" / "Main" / name).read_text().split()
        return Path(table.images[at]).stem in names

    return listed


SETS = {
    "bccd": Set(
        ["--model=BoxRegressor", "--data=BoxDataModule"], _in_file("trainval.txt"), None, 0
    ),
    "rbc": Set(["-c", "preset:rbc"], lambda table, at: table.splits[at] == "train", ["rbc"], 20),
    "scenes": Set(["-c", "preset:csv"], lambda _, at: at >= NUM_TESTED, None, 0),
}


class Case(NamedTuple):
    """One way in which boxes are off.

    Attributes:
        name: What it is called.
        boxes: The boxes.
        bad: Which of them are far off, where some are.
        kinds: What class each counts as, where that isn't its own.
    """

    name: str
    boxes: Boxes
    bad: Tensor | None = None
    kinds: list[str] | None = None


def main(args: list[str] | None = None) -> int:
    """Train what isn't there yet, measure what isn't, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebox")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", default=["100", "all"], choices=["100", "all"])
    parser.add_argument("--log_scales", nargs="+", type=float, default=[0.55, 0.7])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5, help="of each mixture")
    parser.add_argument("--runs", type=Path, default=Path("runs/rebox"))
    options = parser.parse_args(args)
    for name in options.only:
        for size in options.sizes:
            scale = chosen_scale(name, size, options)
            for seed in options.seeds:
                run = trained(name, size, scale, seed, options)
                if not (run / "rebox.npz").is_file():
                    measure(run, of_role(name, options, "test"), options.repetitions)
    file = RESULTS / "rebox.json"
    results = json.loads(file.read_text())["sets"] if file.is_file() else {}
    ours = {"machine": machine(), "epochs": options.epochs}
    results |= {name: ours | found for name, found in collect(options.runs).items()}
    file.write_text(json.dumps({"sets": results}, indent=1) + "\n")
    text = as_markdown(results)
    (RESULTS / "rebox.md").write_text(text)
    print(text)
    return 0


def all_of(name: str, options: argparse.Namespace) -> BoxTable:
    """Return a data set; scenes are drawn where they aren't yet."""
    if name == "scenes":
        return scenes(options.runs / name)
    return read_annotations(options.data / name)


def of_role(name: str, options: argparse.Namespace, role: str) -> BoxTable:
    """Return a data set's training or test pictures, with the boxes that count."""
    chosen = SETS[name]
    table = all_of(name, options)
    kept = [at for at in range(len(table.images)) if chosen.trains(table, at) == (role == "train")]
    table = table.pictures(kept).of_min_size(chosen.min_size)
    return table.of_classes(chosen.classes) if chosen.classes else table


def trained(name: str, size: str, scale: float, seed: int, options: argparse.Namespace) -> Path:
    """Return the run of a data set, its size, its jitter and a seed, trained where it isn't."""
    run: Path = options.runs / f"{name}-{size}-{scale:g}-{seed}"
    if (run / "metrics.json").is_file():
        return run
    root = all_of(name, options).root
    command = ["fit", *SETS[name].options, f"--data.root={root}", *COMMON]
    command += [f"--data.jitter.log_scale={scale}", f"--trainer.max_epochs={options.epochs}"]
    command += [f"--seed_everything={seed}", "--data.reading.allow_outside=true"]
    for role in ("train", "test"):
        file = split_file(name, size if role == "train" else "all", role, options)
        command.append(f"--data.splits.{role}={os.path.relpath(file, root)}")
    last = [f"--ckpt_path={run}"] * any(run.glob("checkpoints/*.ckpt"))
    assert lightning_bbox([*command, f"--runs={options.runs}", f"--name={run.name}", *last]) == 0
    return run


def split_file(name: str, size: str, role: str, options: argparse.Namespace) -> Path:
    """Write down which pictures train or test: of a few the same ones for every seed."""
    options.runs.mkdir(parents=True, exist_ok=True)
    path: Path = options.runs / f"{name}-{size}-{role}.txt"
    if not path.is_file():
        images = of_role(name, options, role).images
        if size != "all":
            order = torch.randperm(len(images), generator=keyed_generator("rebox", name))
            images = tuple(images[at] for at in sorted(order[:FEW].tolist()))
        path.write_text("".join(f"{image}\n" for image in images))
    return path


def chosen_scale(name: str, size: str, options: argparse.Namespace) -> float:
    """Return the training jitter's log scale that is best on validation pictures, by one seed.

    What counts is the mean IoU over the eight scales, by the law of the boxes.
    """
    if len(options.log_scales) == 1:
        return float(options.log_scales[0])
    means = dict[float, float]()
    for scale in options.log_scales:
        run = trained(name, size, scale, options.seeds[0], options)
        path = run / "validation.json"
        if not path.is_file():
            table = validation_of(run, name, options)
            model, found = Judge(run, table), []
            for case in scaled(table):
                moved = model.audit(case, *model.trained(case.boxes)).boxes
                found.append(float(paired_iou(moved, table.boxes).mean()))
            path.write_text(json.dumps({"mean IoU": sum(found) / len(found)}))
        means[scale] = json.loads(path.read_text())["mean IoU"]
    print(f"{name}, {size} pictures: mean IoU on validation by log_scale: {means}")
    return max(means, key=lambda scale: means[scale])


def validation_of(run: Path, name: str, options: argparse.Namespace) -> BoxTable:
    """Return the pictures that a run validated on: the seeded tenth of its training pictures."""
    from lightning_bbox.annotations.splits import split_pictures

    size = run.name.split("-")[1]
    listed = set(split_file(name, size, "train", options).read_text().splitlines())
    table = of_role(name, options, "train")
    table = table.pictures([at for at, image in enumerate(table.images) if image in listed])
    groups = table.groups
    return table.pictures(split_pictures(groups, 0.1, seed=0)[1])


class Judge:
    """A trained model, and pictures that it hasn't learned from.

    Args:
        run: The model's run.
        table: The pictures, and the boxes that count as true.
    """

    def __init__(self, run: Path, table: BoxTable) -> None:
        self.refiner, self.table = Refiner(run, law="trained"), table
        self.refiner.model.range = None  # what it says of all boxes is wanted, marked or not
        self.images = [decode_image(table.root / image) for image in table.images]
        self.counts = table.image_index.bincount(minlength=len(table.images)).tolist()
        self.names = [table.classes[label] for label in table.labels.tolist()]
        self.limits = table.sizes[table.image_index].flip(-1).float()

    def trained(self, boxes: Boxes) -> tuple[Boxes, Float[Tensor, "n t"]]:
        """Move boxes as if they were off as those of the training were; say how sure that is."""
        split, found = torch.split(boxes, self.counts), []
        for start in range(0, len(self.images), BATCH):
            some = slice(start, start + BATCH)
            found += self.refiner.refine_batch(self.images[some], split[some])
        return torch.cat([one.boxes for one in found]), torch.cat([one.stds for one in found])

    def said(self, boxes: Boxes, found: Boxes, stds: Float[Tensor, "n t"]) -> Said:
        """Return what `trained` found as laws take it."""
        sizes = self.table.sizes[self.table.image_index]
        told = boxes, sizes, self.refiner.spec.geometry
        return said_inside(found, stds, *told, self.refiner.model.reliability)

    def audit(self, case: Case, found: Boxes, stds: Float[Tensor, "n t"]) -> Audit:
        """Weigh what `trained` found against the law that is learned from these very boxes."""
        table, index = self.table, self.table.image_index
        names = case.kinds or self.names
        said = self.said(case.boxes, found, stds)
        return judge(said, case.boxes, table.sizes[index], index, names)

    def held(self, case: Case, audit: Audit, said: Said) -> np.ndarray:
        """Return in what part of each box's coordinates the told 90 % interval holds the truth."""
        geometry, reliability = self.refiner.spec.geometry, self.refiner.model.reliability
        moved = audit.law.move(said, self.names)
        found = placed(moved, said, case.boxes, geometry, reliability, self.limits)
        px, count = geometry.px(case.boxes), found.stds.shape[1]
        errors = coordinate_errors(found.boxes, self.table.boxes, px, count)
        held: np.ndarray = (errors.abs() <= _NINETY * found.stds).double().mean(dim=1).numpy()
        return held

    def by_few(self, boxes: Boxes, said: Said, few: int, repetitions: int) -> np.ndarray:
        """Return each box's IoU under laws of a few of them; 0 takes the checkpoint's own.

        Args:
            boxes: All of them.
            said: What the model says of these.
            few: How many a law is learned from.
            repetitions: How often others are drawn; the mean is taken.
        """
        index, found = self.table.image_index, []
        limits = self.table.sizes[index].flip(-1).to(boxes.dtype)
        for repetition in range(repetitions if few else 1):
            order = torch.randperm(len(boxes), generator=keyed_generator("few", few, repetition))
            rows = order[:few].sort().values
            told = said.take(rows), boxes[rows], limits[rows], index[rows]
            law = learn_law(*told) if few else self.refiner.model.law
            assert law is not None
            moved = law.move(*said)
            places = places_of(moved, said, boxes, limits)
            found.append(paired_iou(inside(self.table, places), self.table.boxes))
        mean: np.ndarray = torch.stack(found).mean(dim=0).numpy()
        return mean


def scaled(table: BoxTable, scales: tuple[float, ...] = tuple(PUBLISHED)) -> Iterator[Case]:
    """Yield boxes that are larger or smaller about their centres, cut at the picture's border."""
    centers, sizes = box_centers(table.boxes), box_sizes(table.boxes)
    for scale in scales:
        name = "exact" if scale == 1 else f"all x {scale:g}"
        boxes = table.boxes if scale == 1 else inside(table, boxes_around(centers, scale * sizes))
        yield Case(name, boxes)


def moved_sides(table: BoxTable) -> Iterator[Case]:
    """Yield boxes each of whose sides is off by up to a share of the box, at random."""
    for most in SIDES:
        uniforms = torch.rand(table.boxes.shape, generator=keyed_generator("sides", str(most)))
        step = (2 * uniforms - 1) * most * box_sizes(table.boxes).repeat(1, 2)
        yield Case(f"sides off by up to {100 * most:g} %", inside(table, table.boxes + step))


def two_kinds(table: BoxTable) -> Iterator[Case]:
    """Yield boxes half of which are too small, named as two classes and as one."""
    (small,) = scaled(table, (0.9,))
    half = torch.rand(len(table.boxes), generator=keyed_generator("kinds")) < 0.5
    boxes = torch.where(half[:, None], small.boxes, table.boxes)
    kinds = ["small" if is_small else "exact" for is_small in half.tolist()]
    yield Case("half x 0.9, half exact, as two classes", boxes, kinds=kinds)
    yield Case("the same as one class", boxes, kinds=["any"] * len(kinds))


def mixtures(table: BoxTable, repetitions: int) -> Iterator[Case]:
    """Yield boxes of which a share is far off, and the others hardly or not at all."""
    limits = table.sizes[table.image_index].flip(-1)
    for share in SHARES:
        for repetition in range(repetitions):
            generator = keyed_generator("mixture", str(share), repetition)
            order = torch.randperm(len(table.boxes), generator=generator)
            bad = torch.zeros(len(table.boxes), dtype=torch.bool)
            bad[order[: round(share * len(order))]] = True
            far = off_by(table.boxes, limits, NEAR, FAR, generator)
            near = off_by(table.boxes, limits, 0, NEARLY * (repetition % 2), generator)
            boxes = torch.where(bad[:, None], far, near)
            yield Case(f"{100 * share:g} % far off #{repetition}", boxes, bad)


def inside(table: BoxTable, boxes: Boxes) -> Boxes:
    """Cut boxes at their picture's border, as nobody draws beyond it."""
    limits = table.sizes[table.image_index].flip(-1).repeat(1, 2)
    return boxes.clamp(min=0).minimum(limits.to(boxes.dtype))


def measure(run: Path, table: BoxTable, repetitions: int) -> None:
    """Move the boxes of all cases, and keep each one's IoU before and after in `rebox.npz`."""
    model, shares = Judge(run, table), {}
    kept: dict[str, np.ndarray] = {"pictures": table.image_index.numpy()}
    cases = [*scaled(table, SCALES), *moved_sides(table), *two_kinds(table)]
    for case in [*cases, *mixtures(table, repetitions)]:
        found, stds = model.trained(case.boxes)
        audit = model.audit(case, found, stds)
        if case.bad is not None:
            shares[case.name] = audit.share._asdict()
            kept[f"{case.name}/bad"] = case.bad.numpy()
        for when, boxes in (("before", case.boxes), ("trained", found), ("law", audit.boxes)):
            kept[f"{case.name}/{when}"] = paired_iou(boxes, table.boxes).numpy()
        told = [f"{when} {kept[f'{case.name}/{when}'].mean():.3f}" for when in WAYS]
        if case.bad is None and case.kinds is None:
            said = model.said(case.boxes, found, stds)
            kept[f"{case.name}/held"] = model.held(case, audit, said)
            told.append(f"intervals hold {kept[f'{case.name}/held'].mean():.2f}")
            for few in (few for few in LEARNED_FROM if few <= len(table.boxes)):
                kept[f"{case.name}/{few}"] = model.by_few(case.boxes, said, few, repetitions)
                told.append(f"by {few} boxes {kept[f'{case.name}/{few}'].mean():.3f}")
        print(run.name, case.name, *told, flush=True)
    (run / "rebox.json").write_text(json.dumps(shares, indent=1))
    np.savez(run / "rebox.npz", **kept)  # type: ignore[arg-type] # its stub is of other arguments


WAYS = ("before", "trained", "law")


class Measured(NamedTuple):
    """The IoU of each box, by run: of seeds of one data set and size."""

    runs: list[dict[str, np.ndarray]]
    shares: list[dict[str, dict[str, float]]]

    def values(self, case: str, way: str) -> list[Tensor]:
        """Return the IoUs of one case, a tensor a run."""
        return [torch.from_numpy(run[f"{case}/{way}"]).double() for run in self.runs]

    def difference(self, case: str, way: str, other: str) -> Mean:
        """Return how much one way is above another, paired, over runs and pictures."""
        pairs = zip(self.values(case, way), self.values(case, other), strict=True)
        pictures = [torch.from_numpy(run["pictures"]) for run in self.runs]
        values = [mine - its for mine, its in pairs]
        if len(values) == 1:
            return clustered_interval(values[0], pictures[0])
        return crossed_interval(values, pictures)


def collect(runs: Path) -> dict[str, dict[str, object]]:
    """Return the figures of all runs that were measured, by data set and size."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(runs.glob("*/rebox.npz")):
        name, size, scale, _ = path.parent.name.split("-")
        groups.setdefault(f"{name}, {size} pictures, log_scale {scale}", []).append(path)
    return {name: figures(paths) for name, paths in groups.items()}


def figures(paths: list[Path]) -> dict[str, object]:
    """Return the figures of the runs of one data set and size."""
    measured = Measured(
        [dict(np.load(path)) for path in paths],
        [json.loads(path.with_suffix(".json").read_text()) for path in paths],
    )
    cases = {}
    names = [key.removesuffix("/law") for key in measured.runs[0] if key.endswith("/law")]
    for name in (name for name in names if "#" not in name):
        means = {way: float(torch.cat(measured.values(name, way)).mean()) for way in WAYS}
        gain = measured.difference(name, "law", "before")._asdict()
        worse = [
            float((after < before - HARM).double().mean())
            for before, after in zip(
                measured.values(name, "before"), measured.values(name, "law"), strict=True
            )
        ]
        by_few = {
            str(few): measured.difference(name, str(few), "before")._asdict()
            for few in LEARNED_FROM
            if f"{name}/{few}" in measured.runs[0]
        }
        cases[name] = means | {"gain": gain, "harmed": sum(worse) / len(worse), "by few": by_few}
        if f"{name}/held" in measured.runs[0]:
            cases[name]["held"] = float(torch.cat(measured.values(name, "held")).mean())
    return {"runs": len(paths), "cases": cases, "mixtures": mixed(measured, names)}


def mixed(measured: Measured, names: list[str]) -> dict[str, dict[str, object]]:
    """Return what becomes of good and bad boxes of mixtures, and the estimated shares."""
    found: dict[str, dict[str, object]] = {}
    for share in SHARES:
        mine = [name for name in names if name.startswith(f"{100 * share:g} % far off #")]
        row: dict[str, object] = {}
        for who in ("good", "bad"):
            for way in WAYS:
                values = [
                    values[run[f"{name}/bad"] == (who == "bad")]
                    for name in mine
                    for run, values in zip(measured.runs, measured.values(name, way), strict=True)
                ]
                joined = torch.cat(values)
                if len(joined):
                    row[f"{who} {way}"] = float(joined.mean())
        told = [shares[name] for name in mine for shares in measured.shares]
        row["estimated"] = [[one["value"], one["low"], one["high"]] for one in told]
        row["holds"] = sum(one["low"] <= share <= one["high"] for one in told)
        found[f"{100 * share:g} %"] = row
    return found


def as_markdown(results: dict[str, dict[str, object]]) -> str:
    """Return a table of cases and one of mixtures for each data set and size."""
    lines = [BESIDE, ""]
    for name, found in results.items():
        on_bccd = name.startswith("bccd")
        lines += [f"## {name}, {found['runs']} seeds", ""]
        head = ["the boxes given", "before", "law of the training", "their own law"]
        head += ["gain (95 %)", "harmed", "90 % intervals hold"]
        head += ["ReBox", "SAM"] if on_bccd else []
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        cases = found["cases"]
        assert isinstance(cases, dict)
        for case, row in cases.items():
            gain = row["gain"]
            cells = [case, *(f"{row[way]:.3f}" for way in WAYS)]
            cells += [f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"]
            cells += [f"{100 * row['harmed']:.0f} %"]
            cells += [f"{100 * row['held']:.0f} %" if "held" in row else ""]
            if on_bccd:
                scale = float(case[6:]) if case.startswith("all x") else 1.0
                cells += [f"{iou:.3f}" for iou in PUBLISHED.get(scale, ())] or ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *few_table(cases), *mixtures_table(found["mixtures"]), ""]
    return "\n".join(lines)


def few_table(cases: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """Return the lines of the table of gains under laws of few boxes, where they were measured."""
    fews = list(next(iter(cases.values())).get("by few", ()))
    if not fews:
        return []
    told = {"0": "the checkpoint's law"} | {few: f"a law of {few}" for few in fews if few != "0"}
    lines = [f"| gain of IoU by | {' | '.join(told.values())} | a law of all |"]
    lines.append("|" + "---|" * (len(fews) + 2))
    for case, row in cases.items():
        if not row["by few"]:
            continue
        gains = [row["by few"][few] for few in told] + [row["gain"]]
        cells = [f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})" for one in gains]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return [*lines, ""]


def mixtures_table(found: object) -> list[str]:
    """Return the lines of the table of mixtures."""
    assert isinstance(found, dict)
    head = ["far off", "the good: before, training's law, own", "the bad", "estimated share"]
    head += ["intervals that hold it"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for share, row in found.items():
        who = [
            ", ".join(f"{row[f'{name} {way}']:.3f}" for way in WAYS if f"{name} {way}" in row)
            for name in ("good", "bad")
        ]
        told = row["estimated"]
        means = [sum(column) / len(told) for column in zip(*told, strict=True)]
        shown = f"{means[0]:.3f} ({means[1]:.3f} to {means[2]:.3f})"
        lines.append(f"| {share} | {who[0]} | {who[1]} | {shown} | {row['holds']} of {len(told)} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
