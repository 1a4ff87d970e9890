"""Roughen the boxes of annotated pictures, let `predict` refine them, and measure what was won.

    python -m benchmarks.refine --root FOLDER --checkpoint RUN [--annotations FILE ...]

A copy of the data set gets boxes that are shifted by up to a tenth of their size in x and y, with
sides up to a tenth longer or shorter. `predict` refines them, twice. Printed, and written to
`benchmarks/results/refine.json`: the IoU with the true boxes before and after, whether all but the
numbers of the boxes came back, and whether the second run gave the same files to the byte.
"""

import argparse
import csv
import json
import shutil
import tempfile
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from lightning_bbox import CropGeometry, UniformJitter
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.annotations.write import write_boxes
from lightning_bbox.cli.main import main as lightning_bbox
from lightning_bbox.core.randomness import EpochPlan
from lightning_bbox.evaluation.intervals import clustered_interval
from lightning_bbox.geometry.boxes import paired_iou

RESULTS = Path(__file__).parent / "results"


def main(args: list[str] | None = None) -> int:
    """Roughen, refine twice, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder")
    parser.add_argument("--annotations", nargs="*", default=None)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--work", type=Path, default=None, help="where to keep all files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(args)
    truth = read_annotations(options.root, annotations=options.annotations)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        roughen(truth, options.fraction, work / "rough")
        for name in ("first", "again"):
            command = ["predict", "--ckpt_path", str(options.checkpoint)]
            command += ["--data.root", str(work / "rough"), "--runs", str(work), "--name", name]
            if options.annotations:
                command += ["--data.reading.annotations", json.dumps(options.annotations)]
            if code := lightning_bbox(command):
                return code
        results = compare(truth, work)
    results["fraction"] = options.fraction
    options.results.mkdir(exist_ok=True)
    (options.results / "refine.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return 0


def roughen(truth: BoxTable, fraction: float, folder: Path) -> None:
    """Copy the pictures, and the annotations with other boxes."""
    plan = EpochPlan(seed=0, epoch=0, num_items=len(truth.boxes), num_draws=len(truth.boxes))
    geometry = CropGeometry(context=1.0, reference_size=1.0)  # a px is the box's own side
    law = UniformJitter(fraction, log_scale=fraction)
    uniforms = plan.uniform("rough", law.columns * law.tries)
    boxes = law.propose(truth.boxes, uniforms, geometry, resize=True).proposals
    limits = truth.sizes[truth.image_index].flip(-1).repeat(1, 2)
    write_boxes(truth, boxes.clamp(min=0).minimum(limits), folder)  # nobody draws outside a picture
    for image in truth.images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(truth.root / image, folder / image)


def changes(folder: Path) -> list[dict[str, str]]:
    """Return the table of changes of a prediction."""
    return list(csv.DictReader((folder / "changes.csv").read_text().splitlines()))


def compare(truth: BoxTable, work: Path) -> dict[str, Any]:
    """Measure the IoU before and after over the boxes refined, and look at everything else."""
    files = list(truth.files)
    rough = read_annotations(work / "rough", annotations=files)
    shutil.copytree(work / "rough", work / "after")
    shutil.copytree(work / "first" / "refined", work / "after", dirs_exist_ok=True)
    refined = read_annotations(work / "after", annotations=files)
    assert truth.ids == rough.ids == refined.ids
    rows = changes(work / "first")
    told = [bool(row["gain"]) or not row["unchanged"] for row in rows]
    changed = torch.tensor(told)  # those that stay where they are right are among them
    before, after = (
        paired_iou(table.boxes, truth.boxes)[changed].double() for table in (rough, refined)
    )
    clusters = truth.image_index[changed]
    return {
        "data": truth.root.name,
        "boxes": len(truth.boxes),
        "boxes refined": int(changed.sum()),
        "iou before": float(before.mean()),
        "iou after": float(after.mean()),
        "gain, 95 % interval over pictures": clustered_interval(after - before, clusters)[1:3],
        "share improved": float((after > before).double().mean()),
        "truth within the model's own interval": coverage(truth, rough, work / "first"),
        "all but the boxes came back": all(
            without_boxes(work / "first" / "refined" / name) == without_boxes(work / "rough" / name)
            for name in files
        ),
        "second run equal to the byte": all(
            (work / "first" / name).read_bytes() == (work / "again" / name).read_bytes()
            for name in [*(f"refined/{name}" for name in files), "changes.csv", "changes.png"]
        ),
    }


def coverage(truth: BoxTable, rough: BoxTable, folder: Path) -> dict[str, float]:
    """Return how often the true centre lies in the interval of each level, by a normal law."""
    rows = changes(folder)
    px = CropGeometry().px(rough.boxes)
    deviations = []
    for row, box, unit in zip(rows, truth.boxes, px, strict=True):
        for axis, name in enumerate("xy") if row["std_x_px"] else ():
            low, high = float(row[f"new_{name}min"]), float(row[f"new_{name}max"])
            error = (low + high - float(box[axis] + box[axis + 2])) / 2 / float(unit[axis])
            deviations.append(abs(error) / max(float(row[f"std_{name}_px"]), 1e-3))
    within = {level: NormalDist().inv_cdf((1 + level) / 2) for level in (0.5, 0.9, 0.95)}
    return {
        f"{level:.0%}": sum(d <= limit for d in deviations) / len(deviations)
        for level, limit in within.items()
    }


def without_boxes(path: Path) -> Any:
    """Return a COCO file's content without the numbers of its boxes, and the areas of these."""
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for name in ("bbox", "area"):
            annotation.pop(name, None)
    return content


if __name__ == "__main__":
    raise SystemExit(main())
