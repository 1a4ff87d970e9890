"""Train on a detector's own boxes, on boxes drawn like them, and on uniform jitter.

    python -m benchmarks.proposals --root FOLDER/rbc [--seeds 0 1 2] [--runs runs/proposals]

A made-up detector is off by something in common and, the lower its score, the more at random; it
misses a tenth of the cells and finds some where there are none. Its boxes train four-target models
as `data.proposals`, or by the law that fits them (`FittedJitter`), or not at all: then uniform
jitter does, of the usual range or as wide as the detector's. All are tested on its boxes of the
test pictures. A run that is
there is not run again. What was found goes to `benchmarks/results/proposals.json` and, as a table,
to stdout and `proposals.md`.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.ranks import machine
from lightning_bbox import BoxDataModule, BoxRegressor, DisplacementLaw, Reading, Splits
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main as run
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.evaluation.intervals import crossed_interval
from lightning_bbox.geometry.boxes import Boxes, paired_iou
from lightning_bbox.geometry.codecs import decode_deltas

RESULTS = Path(__file__).parent / "results"
FILE = "detections.csv"
BIAS = torch.tensor([0.0, 0.04, -0.08, -0.08])
"""Of the detector's boxes to the true ones: 4 % too far down, 8 % too narrow and too short."""
BUDGET = ["--data.num_targets=4", "--data.draws_per_epoch=10000", "--trainer.max_epochs=6"]
UNIFORM, OWN, DRAWN = "uniform jitter", "its own boxes", "boxes drawn by their law"
ARMS = {
    UNIFORM: ["--data.jitter=UniformJitter"],
    "wider uniform jitter": [
        "--data.jitter=UniformJitter",
        "--data.jitter.shift=8",
        "--data.jitter.log_scale=0.4",
    ],
    OWN: [f"--data.proposals={FILE}"],
    DRAWN: ["--data.jitter=FittedJitter", "--data.jitter.law={law}"],
}
"""What trains, by name, and its options; its own boxes leave the law that the last draws by."""


def main(args: list[str] | None = None) -> int:
    """Make the detector, train what isn't there yet, test all, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proposals")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--law_seeds", nargs="+", type=int, help="of the boxes drawn by the law")
    parser.add_argument("--runs", type=Path, default=Path("runs/proposals"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    runs = options.runs.resolve()
    detected = detect(options.root.resolve(), runs / "data")
    seeds = dict.fromkeys(ARMS, options.seeds)
    seeds[DRAWN] = options.law_seeds or options.seeds
    folders = {name: [train(name, seed, detected, runs) for seed in seeds[name]] for name in ARMS}
    law = DisplacementLaw.load(folders[OWN][0] / "law.json")
    results = {"machine": machine(), "law": law.words()}
    results |= measure(detected, folders)
    options.results.mkdir(exist_ok=True)
    (options.results / "proposals.json").write_text(json.dumps(results, indent=1) + "\n")
    text = as_markdown(results)
    (options.results / "proposals.md").write_text(text)
    print(text)
    return 0


def detect(root: Path, folder: Path) -> Path:
    """Lay a detector's boxes beside links to the pictures and true boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid", "test"):
        if not (folder / part).exists():
            (folder / part).symlink_to(root / part)
    truth = read_annotations(root)
    generator = keyed_generator("detector")
    count = len(truth.boxes)
    doubt = torch.rand(count, 1, generator=generator)
    off = BIAS + (0.02 + 0.08 * doubt**2) * torch.randn(count, 4, generator=generator)
    found = (torch.rand(count, generator=generator) >= 0.1).nonzero().flatten().tolist()
    limits = truth.sizes[truth.image_index].flip(-1).repeat(1, 2)
    boxes = decode_deltas(off, truth.boxes).clamp(min=0).minimum(limits)
    # Cells where there are none: every twentieth box, half a picture away.
    false = (truth.boxes + limits / 2) % limits
    rows = [(at, boxes[at], 1 - float(doubt[at])) for at in found]
    rows += [
        (at, false[at], 0.3) for at in found[::20] if bool((false[at, 2:] > false[at, :2]).all())
    ]
    with (folder / FILE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "xmin", "ymin", "xmax", "ymax", "label", "score"])
        for at, box, score in rows:
            image, label = truth.images[truth.image_index[at]], truth.classes[truth.labels[at]]
            writer.writerow([image, *(f"{edge:.3f}" for edge in box.tolist()), label, score])
    return folder


def train(name: str, seed: int, root: Path, runs: Path) -> Path:
    """Train once, and return the run's folder."""
    folder, own = (runs / f"{each.replace(' ', '-')}-{seed}" for each in (name, OWN))
    if not (folder / "metrics.json").exists():
        command = ["fit", "-c", "preset:rbc", f"--data.root={root}", f"--seed_everything={seed}"]
        command += ["--data.reading.allow_outside=true", *BUDGET]
        command += [option.format(law=own / "law.json") for option in ARMS[name]]
        assert run([*command, f"--runs={runs}", f"--name={folder.name}"]) == 0, folder
    return folder


def measure(root: Path, folders: dict[str, list[Path]]) -> dict[str, Any]:
    """Refine the detector's boxes of the test pictures with each model, and compare."""
    data = BoxDataModule(
        str(root),
        classes=["rbc"],
        min_size=20,
        splits=Splits(train="train", test=["valid", "test"], group_pattern=r"([^/]+)\.rf\."),
        reading=Reading(allow_outside=True),
        proposals=FILE,
        num_targets=4,
    )
    data.setup("test")
    samples = data.samples("test", draws=len(data.source.splits["test"]))
    clusters = data.source.splits["test"].clusters[samples.items]

    def iou_of(boxes: Boxes) -> torch.Tensor:
        return paired_iou(boxes, samples.gt_boxes).double()

    def refined(folder: Path) -> Boxes:
        model = BoxRegressor.load_from_checkpoint(folder)
        rows = torch.arange(len(samples.items)).chunk(8)
        parts = [samples.take(some) for some in rows]
        return torch.cat([model.refine(data.crops_of(part), part.proposals)[0] for part in parts])

    ious = {name: [iou_of(refined(each)) for each in runs] for name, runs in folders.items()}
    before = iou_of(samples.proposals)
    arms = {}
    for name, found in ious.items():
        gains = [own - other for own, other in zip(found, ious[UNIFORM], strict=False)]
        gain = crossed_interval(gains, [clusters] * len(gains))
        arms[name] = {
            "iou": [float(each.mean()) for each in found],
            "harmed": [float((each < before).double().mean()) for each in found],
            "gain": None if name == UNIFORM else [gain.value, gain.low, gain.high],
        }
    return {"boxes": len(before), "iou before": float(before.mean()), "arms": arms}


def as_markdown(results: dict[str, Any]) -> str:
    """Return the table: the mean over seeds, and the paired gain over uniform jitter."""
    lines = [
        f"The detector's training boxes, as its law says: {results['law']}.",
        f"Its {results['boxes']} boxes of test pictures: IoU {results['iou before']:.3f} before.",
        "",
        "| trained on | seeds | IoU after | made worse | more IoU than by uniform jitter (95 %) |",
        "|---|---|---|---|---|",
    ]
    for name, arm in results["arms"].items():
        iou, harmed = (sum(arm[key]) / len(arm[key]) for key in ("iou", "harmed"))
        gain = "{:+.4f} ({:+.4f} to {:+.4f})".format(*arm["gain"]) if arm["gain"] else ""
        lines.append(f"| {name} | {len(arm['iou'])} | {iou:.4f} | {100 * harmed:.0f} % | {gain} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
