"""Plant errors into annotations, and see how many of them `audit` finds.

    python -m benchmarks.audit --data FOLDER [--only scenes bccd rbc] [--seeds 0] [--share 0.05]
    python -m benchmarks.audit --data FOLDER --net default --folds 5 --epochs 22

FOLDER holds `bccd` and `rbc`; scenes are drawn, with exact boxes. In a copy of the annotations a
share of the boxes gets sides that are off by 15 to 30 % of the box's own, outwards or inwards by
chance. Then `audit` runs: as quickly as it makes sense, or, by the second command, as it does by
itself, with more folds, a larger net and more epochs. Precision at k is the share of planted boxes
among the first k of its table, where k is how many were planted: real errors of the annotations
count as false alarms. Folds that are there already are not trained again. The figures go to
`benchmarks/results/audit.json` and, as a table, to stdout and `audit.md`; those of other data sets,
seeds and shares stay there as they were.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from benchmarks.ranks import machine
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.core.randomness import keyed_generator, stream_seed
from lightning_bbox.data.drawing import SceneStyle, make_scenes
from lightning_bbox.geometry.boxes import Boxes, box_sizes, paired_iou

RESULTS = Path(__file__).parent / "results"
SETS = {
    "scenes": ["-c", "preset:csv"],
    "bccd": ["-c", "preset:voc"],
    "rbc": ["-c", "preset:rbc"],
}
"""Data sets, and how they are audited."""
NETS = {
    "small": [
        "--model.backbone=ShallowConvNet",
        "--model.backbone.channels=[16, 32, 64]",
        "--model.backbone.fc=[128]",
    ],
    "default": [],
}
"""What learns: half of the default's channels take a third of the time."""
SETTINGS = ("share", "net", "folds", "epochs")
NUM_SCENES, NOISE = 1500, 0.05
NEAR, FAR = 0.15, 0.3


def main(args: list[str] | None = None) -> int:
    """Plant, audit, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--net", default="small", choices=list(NETS))
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/audit"))
    options = parser.parse_args(args)
    ours = {name: getattr(options, name) for name in SETTINGS}
    found = []
    for name in options.only:
        for seed in options.seeds:
            found.append(measure(name, seed, options) | {"settings": ours, "machine": machine()})
            print(json.dumps(found[-1]), flush=True)
    file = RESULTS / "audit.json"
    known = json.loads(file.read_text())["audits"] if file.is_file() else []
    merged = {key_of(one): one for one in (*known, *found)}
    results = [merged[key] for key in sorted(merged)]
    file.write_text(json.dumps({"audits": results}, indent=1) + "\n")
    text = as_markdown(results)
    (RESULTS / "audit.md").write_text(text)
    print(text)
    return 0


def key_of(audit: dict[str, Any]) -> tuple[Any, ...]:
    """Return what of an audit makes it another one than the rest, in the order of the table."""
    settings = [audit["settings"][name] for name in SETTINGS]
    return list(SETS).index(audit["data"]), audit["seed"], *settings


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Audit one data set with errors planted by one seed."""
    ours = [f"{100 * options.share:g}", options.net, f"{options.folds}x{options.epochs}"]
    work = options.runs / "-".join([name, f"{seed}", *ours])
    truth = scenes(options.runs / "scenes") if name == "scenes" else read(options.data / name)
    planted = copy_with_errors(truth, options.share, seed, work / "planted")
    command = ["audit", *SETS[name], *NETS[options.net], f"--data.root={work / 'planted'}"]
    command += [
        f"--runs={work}",
        "--name=audit",
        f"--folds={options.folds}",
        f"--jobs={options.jobs}",
        "--apply",
    ]
    command += [f"--trainer.max_epochs={options.epochs}", f"--seed_everything={seed}"]
    assert lightning_bbox(command) == 0, name
    return outcome(truth, planted, work) | {"data": name, "seed": seed}


def read(root: Path) -> BoxTable:
    """Read a data set's annotations."""
    return read_annotations(root)


def scenes(folder: Path) -> BoxTable:
    """Draw scenes into files, with noise of a sensor and a CSV of exact boxes."""
    if not (folder / "boxes.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        drawn, boxes = make_scenes(NUM_SCENES, SceneStyle("bright"), stream_seed("scenes", "audit"))
        noise = torch.randn(drawn.shape, generator=keyed_generator("audit noise"))
        noisy = (drawn.float() + 255 * NOISE * noise).round().clamp(0, 255).byte().numpy()
        lines = ["image,xmin,ymin,xmax,ymax"]
        for at, (picture, box) in enumerate(zip(noisy, boxes.tolist(), strict=True)):
            Image.fromarray(picture).save(folder / f"{at:04}.png")
            lines.append(f"{at:04}.png,{','.join(f'{edge:.4f}' for edge in box)}")
        (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return read_annotations(folder)


def copy_with_errors(truth: BoxTable, share: float, seed: int, folder: Path) -> Bool[Tensor, " n"]:
    """Write a copy of a data set with errors in a share of its boxes; return which."""
    generator = keyed_generator("planted", seed)
    order = torch.randperm(len(truth.boxes), generator=generator)
    planted = torch.zeros(len(truth.boxes), dtype=torch.bool)
    planted[order[: round(share * len(order))]] = True
    limits = truth.sizes[truth.image_index].flip(-1)
    wrong = off_by(truth.boxes, limits, NEAR, FAR, generator)
    boxes = torch.where(planted[:, None], wrong, truth.boxes)
    if not folder.is_dir():
        shutil.copytree(truth.root, folder)
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        write_boxes(truth, boxes, folder)
    return planted


def off_by(
    boxes: Boxes, limits: Tensor, near: float, far: float, generator: torch.Generator
) -> Boxes:
    """Move each edge by a share of the box's side, out or in by chance, but not out of the picture.

    An edge that would leave the picture goes the other way.
    """
    shape = boxes.shape
    amount = near + (far - near) * torch.rand(shape, generator=generator)
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    step = amount * box_sizes(boxes).repeat(1, 2)
    moved = boxes + sign * step
    most = limits.to(boxes.dtype).repeat(1, 2)
    outside = (moved < 0) | (moved > most)
    return torch.where(outside, boxes - sign * step, moved)


def outcome(truth: BoxTable, planted: Bool[Tensor, " n"], work: Path) -> dict[str, Any]:
    """Compare an audit's table and refined files with what was planted."""
    rows = list(csv.DictReader((work / "audit" / "audit.csv").read_text().splitlines()))
    judged = [row["id"] for row in rows if row["gain"]]
    names = {name for name, is_wrong in zip(truth.ids, planted.tolist(), strict=True) if is_wrong}
    names &= set(judged)
    hits = [name in names for name in judged[: len(names)]]
    share = json.loads((work / "audit" / "audit.json").read_text())["share"]
    rough = read_annotations(work / "planted", annotations=list(truth.files))
    shutil.rmtree(work / "after", ignore_errors=True)
    shutil.copytree(work / "planted", work / "after")
    shutil.copytree(work / "audit" / "refined", work / "after", dirs_exist_ok=True)
    after = read_annotations(work / "after", annotations=list(truth.files))
    assert truth.ids == rough.ids == after.ids
    ious = {
        f"iou of the {who} {when}": float(paired_iou(table.boxes, truth.boxes)[chosen].mean())
        for who, chosen in (("planted", planted), ("others", ~planted))
        for when, table in (("before", rough), ("after", after))
        if bool(chosen.any())
    }
    return {
        "boxes": len(judged),
        "planted": len(names),
        "precision at k": sum(hits) / len(hits) if hits else None,
        "share": share,
        **ious,
    }


def as_markdown(found: list[dict[str, Any]]) -> str:
    """Return the table."""
    names = ["data", "seed", "net, folds x epochs", "boxes", "planted", "precision at k"]
    names += ["estimated share (95 %)", "IoU of the planted", "IoU of the others"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for one in found:
        share = one["share"]
        ious = [
            f"{one[f'iou of the {who} before']:.3f} to {one[f'iou of the {who} after']:.3f}"
            if f"iou of the {who} before" in one
            else "-"
            for who in ("planted", "others")
        ]
        precision, ours = one["precision at k"], one["settings"]
        learned = f"{ours['net']}, {ours['folds']} x {ours['epochs']}"
        lines.append(
            f"| {one['data']} | {one['seed']} | {learned} | {one['boxes']} | {one['planted']} | "
            f"{'-' if precision is None else f'{precision:.2f}'} | {share['value']:.3f} "
            f"({share['low']:.3f} to {share['high']:.3f}) | {ious[0]} | {ious[1]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
