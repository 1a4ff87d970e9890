"""How long annotations take to be read, checked and written with every box moved, and their memory.

Each of these is a process of its own, once, so that its peak of memory is that of a user's; `check`
is the whole command. The first call's seconds are those of the wall clock. Peers read the files,
and do no more. The full size is a million boxes.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.rows import Row, Spread, Timing

if TYPE_CHECKING:  # torch would take its time and memory in the processes of the peers
    from benchmarks.runner import Setting

FORMATS = ("COCO", "YOLO", "CSV")
WIDTH, HEIGHT = 640, 480
CLASSES = ("nut", "bolt", "washer")


def rows(setting: "Setting") -> Iterator[Row]:
    """Measure reading, checking and writing of each format; on the host, whatever the device."""
    pictures, boxes = setting.pick((6, 10), (400, 50), (10_000, 100))
    with tempfile.TemporaryDirectory() as folder:
        for kind in setting.pick(FORMATS[-1:], FORMATS, FORMATS):
            root = Path(folder)
            make_set(root, kind, pictures, boxes)
            for work in WORKS:
                yield row_of(setting, kind, work, root, pictures * boxes)


def row_of(setting: "Setting", kind: str, work: str, root: Path, count: int) -> Row:
    """Measure one work, and how long its peer takes, where it has one."""
    from benchmarks.runner import run_facts

    run, ours = run_facts(setting), measured(work, root)
    timings, ratios = [ours], {}
    if work == "read":
        peer = measured(f"peer of {kind}", root)
        timings.append(peer)
        ratio = peer.seconds.median / ours.seconds.median
        ratios[peer.name] = Spread(ratio, ratio, ratio, 1)
    return Row(
        question="reading",
        case=f"{work} {count:,} boxes of {kind}",
        size=setting.size,
        run=run,
        unit="boxes",
        items=count,
        arms=timings,
        ratios=ratios,
        differences=dict.fromkeys(ratios, None),
    )


def measured(work: str, root: Path) -> Timing:
    """Do some work in another process."""
    command = [sys.executable, "-m", "benchmarks.reading", work, str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, wall, peak = json.loads(done.stdout.splitlines()[-1])
    name, note = PEERS.get(work, (None, ""))[0] or "lightning_bbox", "in a process of its own"
    return Timing(name, Spread(seconds, seconds, seconds, 1), wall, peak, note)


def make_set(root: Path, kind: str, pictures: int, boxes: int) -> None:
    """Write pictures of random blocks where there are none, and their boxes in one format."""
    (root / "images").mkdir(exist_ok=True)
    for old in (*root.glob("*.*"), *root.glob("labels/*")):
        old.unlink()
    random, names = np.random.default_rng(0), [f"{at:06}.jpg" for at in range(pictures)]
    for name in (each for each in names if not (root / "images" / each).exists()):
        coarse = random.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(root / "images" / name, quality=80)
    corners = random.uniform(0, [WIDTH - 60, HEIGHT - 60], (pictures, boxes, 2)).round(2)
    sizes = random.uniform(8, 59, (pictures, boxes, 2)).round(2)
    labels = random.integers(0, len(CLASSES), (pictures, boxes))
    WRITERS[kind](root, names, np.concatenate([corners, sizes], axis=2), labels)


def _coco(root: Path, names: list[str], xywh: np.ndarray, labels: np.ndarray) -> None:
    images = [
        {"id": at, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for at, name in enumerate(names)
    ]
    annotations = [
        {"id": at * len(own) + n, "image_id": at, "category_id": label, "bbox": box, "iscrowd": 0}
        | {"area": box[2] * box[3], "segmentation": []}
        for at, (own, those) in enumerate(zip(xywh.tolist(), labels.tolist(), strict=True))
        for n, (box, label) in enumerate(zip(own, those, strict=True))
    ]
    categories = [{"id": at, "name": name} for at, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))


def _yolo(root: Path, names: list[str], xywh: np.ndarray, labels: np.ndarray) -> None:
    (root / "labels").mkdir(exist_ok=True)
    (root / "data.yaml").write_text(f"train: images\nnames: {json.dumps(CLASSES)}\n")
    centers = (xywh[..., :2] + xywh[..., 2:] / 2) / [WIDTH, HEIGHT]
    sizes = xywh[..., 2:] / [WIDTH, HEIGHT]
    for name, *each in zip(names, centers.tolist(), sizes.tolist(), labels.tolist(), strict=True):
        lines = [
            f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
            for (x, y), (w, h), label in zip(*each, strict=True)
        ]
        (root / "labels" / name).with_suffix(".txt").write_text("".join(lines))


def _csv(root: Path, names: list[str], xywh: np.ndarray, labels: np.ndarray) -> None:
    lines = ["image,xmin,ymin,xmax,ymax,label\n"]
    for name, own, those in zip(names, xywh.tolist(), labels.tolist(), strict=True):
        lines += [
            f"images/{name},{x:.2f},{y:.2f},{x + w:.2f},{y + h:.2f},{CLASSES[label]}\n"
            for (x, y, w, h), label in zip(own, those, strict=True)
        ]
    (root / "boxes.csv").write_text("".join(lines))


WRITERS: dict[str, Callable[[Path, list[str], np.ndarray, np.ndarray], None]] = {
    "COCO": _coco,
    "YOLO": _yolo,
    "CSV": _csv,
}


def read(root: Path) -> float:
    """Read."""
    from lightning_bbox.annotations.read import read_annotations

    since = time.process_time()
    read_annotations(root)
    return time.process_time() - since


def check(root: Path) -> int:
    """Run the command, which writes its page and sheets."""
    from lightning_bbox.cli.main import main as lightning_bbox

    with tempfile.TemporaryDirectory() as folder:
        return lightning_bbox(["check", f"--data.root={root}", f"--runs={folder}"])


def write(root: Path) -> float:
    """Read, move every box, and write; only the writing is timed."""
    from lightning_bbox.annotations.read import read_annotations
    from lightning_bbox.annotations.write import write_boxes

    table = read_annotations(root)
    since = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        write_boxes(table, table.boxes + 0.5, Path(folder))
    return time.process_time() - since


def _json(root: Path) -> int:
    return len(json.loads((root / "annotations.json").read_text())["annotations"])


def _numbers(root: Path) -> int:
    lines = (line for path in (root / "labels").iterdir() for line in path.read_text().splitlines())
    return len([[*map(float, line.split())] for line in lines])


def _cells(root: Path) -> int:
    with (root / "boxes.csv").open(newline="") as file:
        return len([[*map(float, row[1:5])] for at, row in enumerate(csv.reader(file)) if at])


WORKS: dict[str, Callable[[Path], Any]] = {"read": read, "check": check, "write": write}
PEERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "peer of COCO": ("json alone", _json),
    "peer of YOLO": ("splitting lines alone", _numbers),
    "peer of CSV": ("csv alone", _cells),
}


def main() -> None:
    """Print CPU seconds, those of the wall clock, and the most MB that the process held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=[*WORKS, *PEERS])
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    call = WORKS.get(options.work) or PEERS[options.work][1]
    begun, since = time.perf_counter(), time.process_time()
    own = call(options.root)
    seconds, wall = time.process_time() - since, time.perf_counter() - begun
    # Not by getrusage, which counts what the process that started this one held.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e3
    print(json.dumps([own if isinstance(own, float) else seconds, wall, peak]))


if __name__ == "__main__":
    main()
