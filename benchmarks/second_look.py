"""How far off may a box be? One look, the same one repeated, and a second stage that learned.

    python -m benchmarks.second_look --root FOLDER/rbc [--only scenes] [--runs runs/second_look]

A first stage is trained on shifts of up to 12 px at a context of 2, a second one on the errors that
it leaves on validation pictures (`second`). On test boxes, by how far off they began: the error
(mean of x and y, px of the first look's crops), how often the told 90 % interval holds, and how
many are marked as beyond the trained range, also of boxes that are drawn up to twice as far off,
and of pictures of another kind: what the model of the one set makes of the other's. What becomes of
marked boxes is told by their IoU with the truth before and where the model puts them. Proposals
that overlap another box of their picture more than their own may mean that one, as nothing but
the crop says which is meant: what is left without them stands in a column of its own.

A run that is there is not run again. What was found goes to `benchmarks/results/second_look.json`
and, as tables, to stdout and `second_look.md`; a set that isn't asked for stays as it was there.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.ranks import machine
from lightning_bbox import (
    BoxDataModule,
    BoxRegressor,
    CropDataModule,
    SceneDataModule,
    Splits,
    UniformJitter,
)
from lightning_bbox.cli.main import main as run
from lightning_bbox.data.loader import Rows
from lightning_bbox.data.samples import Items, Samples
from lightning_bbox.evaluation.metrics import coordinate_errors
from lightning_bbox.geometry.boxes import paired_iou
from lightning_bbox.nn.calibration import coverage

RESULTS = Path(__file__).parent / "results"
REACH, BAND = 12, 3
DRAWS = 8_000  # of the test: one in sixteen begins within 3 px
BUDGET = [
    "--data.crop.context=2",
    "--data.jitter=UniformJitter",
    f"--data.jitter.shift={REACH}",
    "--second.context=1.5",
    "--second.max_epochs=6",
    "--data.draws_per_epoch=10000",
]
PRESETS = {
    "scenes": ["preset:quickstart", "--trainer.max_epochs=6"],
    "rbc": ["preset:rbc", "--trainer.max_epochs=10"],
}
"""The configuration and the epochs of the first stage, by the set's name."""
FIRST = ((0, REACH), (0.9 * REACH, REACH))
BEYOND = ((REACH, REACH + 2), (REACH + 2, REACH + 4), (REACH + 4, REACH + 8), (20, 2 * REACH))
LOOKS = ("one look", "the same again", "a second stage")


def main(args: list[str] | None = None) -> int:
    """Run what isn't there yet, measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_look")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--runs", type=Path, default=Path("runs/second_look"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    options.results.mkdir(exist_ok=True)
    file = options.results / "second_look.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for name in options.only:
        folder = options.runs / name
        if not (folder / "metrics.json").exists():
            command = ["fit", "-c", *PRESETS[name], *BUDGET]
            command += [f"--data.root={options.root}"] * (name == "rbc")
            assert run([*command, f"--runs={options.runs}", f"--name={name}"]) == 0
        one = BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
        two = BoxRegressor.load_from_checkpoint(folder)
        data, farther = (data_of(name, options.root, far) for far in (REACH, 2 * REACH))
        looks = measure(one, two, data)
        marked = marks(two, data, FIRST) | marks(two, farther, BEYOND)
        found[name] = {"machine": machine(), "looks": looks, "marked": marked}
        (other,) = set(PRESETS) - {name}
        data, farther = (data_of(other, options.root, far) for far in (REACH, 2 * REACH))
        found[name]["on " + other] = marks(two, data, FIRST) | marks(two, farther, BEYOND)
    file.write_text(json.dumps(found, indent=1) + "\n")
    text = as_markdown(found)
    (options.results / "second_look.md").write_text(text)
    print(text)
    return 0


def data_of(name: str, root: Path, reach: float) -> CropDataModule:
    """Return the data that a run was tested on, with proposals up to so many px off."""
    jitter = UniformJitter(reach)
    if name == "scenes":
        return SceneDataModule(jitter=jitter, eval_draws=DRAWS)
    splits = Splits(train="train", test=["valid", "test"], group_pattern=r"([^/]+)\.rf\.")
    return BoxDataModule(
        str(root), classes=["rbc"], min_size=20, splits=splits, jitter=jitter, eval_draws=DRAWS
    )


@torch.no_grad()
def measure(one: BoxRegressor, two: BoxRegressor, data: CropDataModule) -> dict[str, Any]:
    """Refine the test draws in three ways, and measure each by how far off they began."""
    assert one.spec is not None
    data.setup("test")
    data.follow(one.spec)
    samples, geometry = data.samples("test"), data.geometry
    px = geometry.px(samples.proposals)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {look: [] for look in LOOKS}
    for rows in torch.arange(len(samples.items)).chunk(32):
        part, own = samples.take(rows), Rows("test", 0, rows, torch.ones_like(rows).bool())
        crops, cut = data.crops_of(part), partial(data.crops_again, own)
        boxes, stds = one.refine(crops, part.proposals)
        again, spread = one.refine(cut(geometry, boxes), boxes)
        parts["one look"].append((boxes, stds))
        parts["the same again"].append((again, spread * geometry.px(boxes) / px[rows]))
        parts["a second stage"].append(two.refine(crops, part.proposals, None, cut))
    start = coordinate_errors(samples.proposals, samples.gt_boxes, px, 2).abs().amax(dim=1)
    clear = overlaps_its_own_most(samples, data.source.splits["test"])
    results: dict[str, Any] = {}
    for look, found in parts.items():
        boxes, stds = (torch.cat(column) for column in zip(*found, strict=True))
        errors = coordinate_errors(boxes, samples.gt_boxes, px, 2)
        bands = []
        for low in range(0, REACH, BAND):
            own_rows = (start >= low) & (start < low + BAND)
            held = coverage(errors[own_rows], stds[own_rows], one.net.head.error_law, 0.9)
            error = float(errors[own_rows].abs().mean())
            bands.append({"boxes": int(own_rows.sum()), "error": error, "held": held})
        ratio = errors[clear].abs().mean() / errors[clear & (start < BAND)].abs().mean()
        meant = {"share": float(clear.double().mean()), "ratio": float(ratio)}
        results[look] = {"error": float(errors.abs().mean()), "bands": bands, "own": meant}
    return results


def overlaps_its_own_most(samples: Samples, items: Items) -> Bool[Tensor, " n"]:
    """Tell which proposals overlap no other box of their picture more than their own.

    Args:
        samples: Draws, with proposals.
        items: What they were drawn from.
    """
    pictures, own = items.image_index[samples.items], torch.zeros(len(samples.items)).bool()
    for picture in sorted(set(pictures.tolist())):
        rows = pictures == picture
        boxes, drawn = items.boxes[items.image_index == picture], samples.proposals[rows]
        most = paired_iou(drawn[:, None], boxes[None]).amax(dim=1)
        own[rows] = paired_iou(drawn, samples.gt_boxes[rows]) >= most - 1e-6
    return own


@torch.no_grad()
def marks(
    model: BoxRegressor, data: CropDataModule, bands: Sequence[tuple[float, float]]
) -> dict[str, dict[str, float]]:
    """Return how many boxes of each band are marked, and what becomes of these.

    Bands are by how far off boxes began, in px.
    """
    assert model.spec is not None
    data.setup("test")
    data.follow(model.spec)
    samples, told = data.samples("test"), []
    for rows in torch.arange(len(samples.items)).chunk(32):
        part, own = samples.take(rows), Rows("test", 0, rows, torch.ones_like(rows).bool())
        cut = partial(data.crops_again, own)
        told.append(model.refine_and_mark(data.crops_of(part), part.proposals, None, cut))
    boxes, _, beyond = (torch.cat(column) for column in zip(*told, strict=True))
    px = data.geometry.px(samples.proposals)
    start = coordinate_errors(samples.proposals, samples.gt_boxes, px, 2).abs().amax(dim=1)
    clear = overlaps_its_own_most(samples, data.source.splits["test"])
    before, after = (paired_iou(each, samples.gt_boxes) for each in (samples.proposals, boxes))
    found = {}
    for low, high in bands:
        rows = (start >= low) & (start < high)
        found[f"{low:g} to {high:g} px"] = {
            "boxes": int(rows.sum()),
            "marked": float(beyond[rows].double().mean()),
            "before": float(before[rows & beyond].mean()),
            "after": float(after[rows & beyond].mean()),
            "own": int((rows & clear).sum()),
            "own marked": float(beyond[rows & clear].double().mean()),
        }
    return found


def _marked(band: dict[str, float]) -> str:
    """Say how many boxes of a band are marked, and their IoU with the truth before and after."""
    share = f"{100 * band['marked']:.1f} %"
    if not band["marked"]:
        return share
    return f"{share}: {band['before']:.2f} to {band['after']:.2f}"


def as_markdown(found: dict[str, Any]) -> str:
    """Return the table: error in px, and the share of coordinates in the told 90 % interval."""
    bands = [f"{low} to {low + BAND} px" for low in range(0, REACH, BAND)]
    clear = "all over the first, of those that overlap their own box most"
    lines = [
        f"| set | look | all | began at {' | '.join(bands)} | all over the first | {clear} |",
        f"|---|---|---|{'---|' * len(bands)}---|---|",
    ]
    for name, results in found.items():
        for look, result in results["looks"].items():
            first, *_ = result["bands"]
            cells = [
                f"{band['error']:.3f} ({100 * band['held']:.0f} %)" for band in result["bands"]
            ]
            ratio = result["error"] / first["error"]
            cells += [f"{ratio:.2f}", ""]
            if "own" in result:
                share = 100 * result["own"]["share"]
                cells[-1] = f"{result['own']['ratio']:.2f} ({share:.0f} % of all)"
            lines.append(f"| {name} | {look} | {result['error']:.3f} | {' | '.join(cells)} |")
    names = [f"{low:g} to {high:g} px" for low, high in (*FIRST, *BEYOND)]
    lines += ["", f"| marked as beyond {REACH} px: IoU before, after | {' | '.join(names)} |"]
    lines.append(f"|---|{'---|' * len(names)}")
    for name, results in found.items():
        told = {name: "marked"} | {f"{name} on {other}": f"on {other}" for other in PRESETS}
        for title, key in told.items():
            if key in results:
                cells = [_marked(results[key][band]) for band in names]
                lines.append(f"| {title} | {' | '.join(cells)} |")
        bands_of = [results["marked"][band] for band in names]
        if all("own" in band for band in bands_of):
            cells = [f"{100 * band['own marked']:.1f} % of {band['own']}" for band in bands_of]
            lines.append(f"| {name}, those that overlap no other box more | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
