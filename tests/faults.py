"""Sixty deliberate faults: how many do the tests notice?

The project is copied to a temporary folder. There one fault after the other is put in, and the
tests that ought to fail are run, once without any fault too. A fault is found by its text, in
whatever module that stands. `--root` tries another checkout, to measure tests before and after a
change.

    python -m tests.faults --only IoU
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

PACKAGE = "lightning_bbox"
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "dist", "build")

# Files of commit 7538207, whose tests lay side by side: those that had another name there.
FLAT_NAMES = {
    "annotations/test_read": "test_annotations",
    "annotations/test_splits": "test_tables",
    "annotations/test_write": "test_writers",
    "cli/test_main": "test_cli",
    "core/test_randomness": "test_plan",
    "data/test_boxes": "test_box_data",
    "data/test_module": "test_data",
    "data/test_patches": "test_patch_data",
    "evaluation/test_intervals": "test_metrics",
    "models/training/test_several_steps": "test_step_graph",
    "nn/backbones/test_base": "test_alexnet",
    "nn/heads/bins/test_head": "test_bin_head",
    "nn/heads/bins/test_labels": "test_bins",
    "nn/heads/test_likelihood": "test_likelihoods",
    "pictures/test_cut": "test_crops",
    "pictures/test_decode": "test_picture_modes",
    "pictures/test_disk": "test_stores",
}


class Fault(NamedTuple):
    """What is wrong, the text that it replaces (once in the package), and who must notice."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # core
    Fault(
        "keyed randomness: every epoch has the numbers of the first",
        "keyed_generator(stream, self.seed, self.epoch)",
        "keyed_generator(stream, self.seed, 0)",
        ("core/test_randomness",),
    ),
    Fault(
        "caches: a file with a wrong checksum counts as whole",
        'if f"{checksum:08x}" != head["crc32"]:',
        'if not head["crc32"]:',
        ("pictures/test_disk",),
    ),
    Fault(
        "caches: what somebody else wrote is made anew",
        'if head["made_by"] == _MADE_BY:',
        "if head:",
        ("pictures/test_disk",),
    ),
    Fault(
        "files: what is written anew can be read by all",
        "temporary.chmod(mode)",
        "pass",
        ("core/test_files",),
    ),
    # geometry
    Fault(
        "IoU: the intersection counts twice in the union",
        "box_area(boxes) + box_area(others) - intersection",
        "box_area(boxes) + box_area(others)",
        ("geometry/test_boxes",),
    ),
    Fault(
        "GIoU: the empty part of the enclosing box is added",
        "- (enclosing - union) / enclosing",
        "+ (enclosing - union) / enclosing",
        ("geometry/test_boxes",),
    ),
    Fault(
        "codec: the change of size has no bound",
        "deltas[..., 2:].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE)",
        "deltas[..., 2:]",
        ("geometry/test_codecs",),
    ),
    Fault(
        "codec: with two targets x moves by the height, y by the width",
        "deltas * box_sizes(anchors))",
        "deltas * box_sizes(anchors).flip(-1))",
        ("geometry/test_codecs",),
    ),
    Fault(
        "crop geometry: a px grows with the context",
        "self.reference_size / self.context",
        "self.reference_size * self.context",
        ("pictures/test_cut", "geometry/test_codecs"),
    ),
    Fault(
        "jitter: whole shifts never reach their upper end",
        "(2 * self.shift + 1)).floor()",
        "(2 * self.shift)).floor()",
        ("geometry/test_jitter",),
    ),
    # annotations
    Fault(
        "VOC: the last pixel of a box is left out",
        "(base, base, base - 1, base - 1)",
        "(base, base, base, base)",
        ("annotations/test_read",),
    ),
    Fault(
        "VOC: edges are written as if they were pixels",
        "from_xyxy=partial(shifted, by=shifts)",
        "from_xyxy=shifted",
        ("annotations/test_write",),
    ),
    Fault(
        "YOLO: x is a fraction of the height",
        "values * sizes.flip(-1).repeat(1, 2) if self.fractions",
        "values * sizes.repeat(1, 2) if self.fractions",
        ("annotations/test_read",),
    ),
    Fault(
        "YOLO: the names in classes.txt are off by one",
        "{n - 1: line for n, line in",
        "{n: line for n, line in",
        ("annotations/test_read",),
    ),
    Fault(
        "COCO: x and y change places",
        "x, y, width, height = map(as_float, box)",
        "y, x, width, height = map(as_float, box)",
        ("annotations/test_read",),
    ),
    Fault(
        "a box that reaches far out to the left or above is taken",
        "torch.cat([-boxes[:, :2], boxes[:, 2:] - limits], dim=1).amax(dim=1)",
        "(boxes[:, 2:] - limits).amax(dim=1)",
        ("annotations/test_odd_input", "annotations/test_read"),
    ),
    Fault(
        "headers: two of the orientations that lie on their side are forgotten",
        "SIDEWAYS = (5, 6, 7, 8)",
        "SIDEWAYS = (6, 8)",
        ("annotations/test_read",),
    ),
    Fault(
        "writer: a file that has changed since it was read is written over",
        "(found.float() != table.boxes[indices])",
        "(found.float() == torch.inf)",
        ("annotations/test_write",),
    ),
    # pictures of 16 bits, extra augmentations, files of patches
    Fault(
        "16 bits: the white level of the training isn't that of later pictures",
        "self._white_trained = self.white_level = known",
        "_ = known",
        ("pictures/test_levels",),
    ),
    Fault(
        "16 bits: the level is found in test pictures too",
        "seen = sorted(set(deep).intersection(training)) or deep",
        "seen = deep",
        ("pictures/test_levels",),
    ),
    Fault(
        "extra augmentations: what hides the object passes",
        "shift.where(top > 1 / 255, torch.tensor(_RADIUS)).mean()",
        "shift[top > 1 / 255].sum() / len(top)",
        ("pictures/test_augment",),
    ),
    Fault(
        "patches: more is inflated than the file can hold",
        "if member.file_size > factor * min(member.compress_size, size):",
        "if member.file_size < 0:",
        ("data/test_patches",),
    ),
    Fault(
        "headers: an orientation behind a PNG's pixels is overlooked",
        "if _has_late_orientation(path):",
        "if not path:",
        ("annotations/test_headers",),
    ),
    # splits
    Fault(
        "splits: the seed has no part in them",
        '_digest(f"{seed}:{group}")',
        "_digest(group)",
        ("annotations/test_splits",),
    ),
    Fault(
        "splits: a group in two of them is not noticed",
        'len(found - {""}) > 1',
        'len(found - {""}) > 2',
        ("data/test_boxes",),
    ),
    # pictures
    Fault(
        "files of pictures: each batch decodes its own",
        "missing = sorted(wanted - kept.keys())",
        "missing = sorted(wanted)",
        ("pictures/test_store",),
    ),
    Fault(
        "EXIF: pictures on their side are turned the wrong way",
        "6: Image.Transpose.ROTATE_270",
        "6: Image.Transpose.ROTATE_90",
        ("pictures/test_decode",),
    ),
    Fault(
        "cut: samples lie half a pixel off",
        "dtype=low.dtype) + 0.5",
        "dtype=low.dtype)",
        ("pictures/test_cut",),
    ),
    Fault(
        "cut: beyond the left and upper border pixels are extrapolated",
        "sample_places(low, high, size).clamp(min=0)",
        "sample_places(low, high, size)",
        ("pictures/test_cut",),
    ),
    Fault(
        "cut: halves are sampled half a pixel of theirs off",
        "boxes * torch.exp2(-at.to(boxes.dtype))",
        "boxes * torch.exp2(-at.to(boxes.dtype)) + 0.5",
        ("pictures/test_cut",),
    ),
    Fault(
        "store: a picture's halves are rounded down",
        "four += _ONES",
        "four += 0",
        ("pictures/test_store",),
    ),
    Fault(
        "augmentation: factors only ever darken",
        "1 + (2 * drawn - 1)",
        "1 + (drawn - 1)",
        ("pictures/test_augment",),
    ),
    # data
    Fault(
        "samples: crops are mirrored without their true boxes",
        "gt_boxes=mirror_boxes(gt_boxes, box_centers(proposals), flips)",
        "gt_boxes=gt_boxes",
        ("data/test_module",),
    ),
    Fault(
        "loader: all processes take the same rows",
        "[rank::world_size]",
        "[: -(-batch_size // world_size)]",
        ("data/test_loader",),
    ),
    Fault(
        "loader: a resumed epoch begins anew",
        "range(first * self.steps, self.num_batches, self.steps)",
        "range(0, self.num_batches, self.steps)",
        ("data/test_loader",),
    ),
    Fault(
        "evaluation draws depend on the seed of the run",
        '(stream_seed("evaluation", split), 0)',
        '(stream_seed("evaluation", split, self.seed), 0)',
        ("data/test_module",),
    ),
    Fault(
        "patches: their offsets have the wrong sign",
        "torch.from_numpy(offsets)",
        "-torch.from_numpy(offsets)",
        ("data/test_patches",),
    ),
    # the exact solver
    Fault(
        "ridge: lambda grows with the number of samples",
        "self.cross / (self.values + lam)[:, None]",
        "self.cross / (self.values + self.count * lam)[:, None]",
        ("solvers/test_ridge",),
    ),
    Fault(
        "ridge: features are not centred",
        "self.gram.addr(mean, mean, alpha=-count)",
        "self.gram",
        ("solvers/test_ridge",),
    ),
    Fault(
        "ridge: GCV divides by the degrees of freedom once",
        "self.count * residual / free.square()",
        "self.count * residual / free",
        ("solvers/test_ridge",),
    ),
    # networks
    Fault(
        "whitening: the smallest components are blown up",
        "(values + self.eps * usual).rsqrt()",
        "values.rsqrt()",
        ("nn/test_whitening",),
    ),
    Fault(
        "He's init: the variance is that of the outputs",
        'kaiming_normal_(weight, nonlinearity="relu")',
        'kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")',
        ("nn/test_inits",),
    ),
    Fault(
        "max-norm: short weights are stretched to the limit",
        "(self.limit / lengths).clamp(max=1)",
        "(self.limit / lengths)",
        ("nn/test_regularizers",),
    ),
    Fault(
        "smooth L1: it jumps where it turns linear",
        "quadratic, distance - 0.5 * beta)",
        "quadratic, distance)",
        ("nn/test_losses",),
    ),
    Fault(
        "one cycle: the rate drops after the warm-up",
        "(progress - self.warmup) / (1 - self.warmup)",
        "progress",
        ("nn/test_schedules",),
    ),
    Fault(
        "calibration: the scale of a Laplace law is taken for its deviation",
        "-math.log1p(-level) / math.sqrt(2)",
        "-math.log1p(-level)",
        ("nn/test_calibration",),
    ),
    Fault(
        "a frozen backbone drops and counts as if it learnt",
        "super().train(mode and not self.frozen)",
        "super().train(mode)",
        ("nn/backbones/test_base",),
    ),
    Fault(
        "Gaussian labels: narrower than they say",
        "(spread[:, None] * math.sqrt(2))",
        "spread[:, None]",
        ("nn/heads/bins/test_labels", "nn/heads/bins/test_head"),
    ),
    Fault(
        "ordinal bins: thresholds are off by one",
        ".flip(-1)[..., 1:]",
        ".flip(-1)[..., :-1]",
        ("nn/heads/bins/test_links",),
    ),
    Fault(
        "median decoder: half a bin off",
        "(inside - 0.5) * spacing",
        "inside * spacing",
        ("nn/heads/bins/test_decoders",),
    ),
    Fault(
        "soft-argmax: x and y of the map change places",
        "torch.cartesian_prod(y, x).flip(1)",
        "torch.cartesian_prod(y, x)",
        ("nn/heads/test_soft_argmax",),
    ),
    Fault(
        "Gaussian likelihood: a wide spread costs nothing",
        ".square() + log_scales + _HALF_LN_2_PI",
        ".square() + _HALF_LN_2_PI",
        ("nn/heads/test_likelihood",),
    ),
    Fault(
        "displacement law: a box moves though staying is expected to be better",
        "best = expected.argmax(dim=0, keepdim=True)",
        "best = expected[1:].argmax(dim=0, keepdim=True) + 1",
        ("geometry/test_displacement",),
    ),
    Fault(
        "displacement law: what the picture says isn't weighed by how sure it is",
        "where = (variances * said + told * means) / total",
        "where = (said + means) / 2",
        ("geometry/test_displacement",),
    ),
    # evaluation
    Fault(
        "metrics: the error is a fraction of the proposal",
        "error * px / box_sizes(gt_boxes)",
        "error * px / box_sizes(proposals)",
        ("evaluation/test_metrics",),
    ),
    Fault(
        "metrics: rows that fill up a batch count",
        "torch.where(valid[:, None], written, 0.0)",
        "written",
        ("evaluation/test_metrics",),
    ),
    Fault(
        "intervals: large groups count as much as small ones",
        "variance = (of_clusters.square() / (1 - share)).sum()",
        "variance = of_clusters.square().sum()",
        ("evaluation/test_intervals",),
    ),
    # models
    Fault(
        "statistics of crops come from the validation split",
        'preprocess.fit(data.cut(data.samples("train_eval", draws',
        'preprocess.fit(data.cut(data.samples("val", draws',
        ("models/test_fitting",),
    ),
    Fault(
        "averages over flips leave the mirrored boxes mirrored",
        "boxes = mirror_boxes(mirrored, centers, axes_flipped)",
        "boxes = mirrored",
        ("models/test_base", "refinement/test_refiner"),
    ),
    Fault(
        "divergence: the last bad step is told for the first",
        "~torch.isfinite(loss) & (self._first < 0)",
        "~torch.isfinite(loss)",
        ("models/training/test_several_steps", "cli/test_nothing_lost"),
    ),
    Fault(
        "divergence: weights that are spoilt already are kept for a replay",
        "sound = sound & ends.isfinite().all()",
        "sound = sound | False",
        ("insight/test_replay",),
    ),
    Fault(
        "command line: null for an option of a part is a text",
        're.sub("=None$", "=null", word)',
        "word",
        ("cli/test_main",),
    ),
    Fault(
        "checkpoints: a flipped bit is taken for a weight",
        "damaged = file.testzip()",
        "damaged = None",
        ("cli/test_nothing_lost",),
    ),
    Fault(
        "checkpoints: a resumed run may have other settings",
        "if then.get(name) != value:",
        "if name not in then:",
        ("cli/test_nothing_lost",),
    ),
    Fault(
        "checkpoints: after a stop any epoch counts as the best",
        "self.best_k_models = {path: score}",
        "self.best_k_models = {}",
        ("cli/test_nothing_lost",),
    ),
    # reports
    Fault(
        "report: the model stands in the column of predicting the mean",
        'metrics.get(f"{name}_predict_mean")',
        "metrics.get(name)",
        ("reports/test_tables",),
    ),
    # refining
    Fault(
        "refine: boxes reach out of the picture",
        "torch.minimum(boxes.clamp(min=0), limits.repeat(1, 2))",
        "boxes.clamp(min=0)",
        ("refinement/test_refiner",),
    ),
    Fault(
        "refine: max_shift is in pixels of the picture",
        "(boxes - rough).abs() / px.repeat(1, 2)",
        "(boxes - rough).abs()",
        ("refinement/test_refiner", "refinement/test_predict"),
    ),
    # studies
    Fault(
        "t-interval: as wide for many runs as for one",
        "math.sqrt(variance / count)",
        "math.sqrt(variance)",
        ("evaluation/test_intervals", "studies/test_comparison"),
    ),
    Fault(
        "comparison: the better arm is told to be the worse",
        "error(mine) - error(its)",
        "error(its) - error(mine)",
        ("studies/test_comparison",),
    ),
    # insight
    Fault(
        "probe: what shuffled targets reach too counts as readable",
        "self.net.r2.low > max(READABLE, self.shuffled.r2.high)",
        "self.net.r2.low > READABLE",
        ("insight/test_probe",),
    ),
    # command line
    Fault(
        "command line: a run that diverged ends with 0",
        "say_once(str(error))",
        "return say_once(str(error)) or 0",
        ("cli/test_nothing_lost",),
    ),
    Fault(
        "command line: a run of the same name is written over",
        "if there and not resuming:",
        "if folder is None:",
        ("cli/test_main",),
    ),
    Fault(
        "command line: a second process works in the folder of a run",
        "self._lock.enter_context(alone_in(folder))",
        "pass",
        ("cli/test_nothing_lost",),
    ),
    Fault(
        "compare: what other settings made is taken over",
        "if then is None or then == now:",
        "if then is not None:",
        ("studies/test_results",),
    ),
)


def main(args: Sequence[str] | None = None) -> int:
    """Try the faults, a line each; return 1 where one isn't noticed or has no place."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names to try")
    parser.add_argument("--list", action="store_true", help="tell where each fault would be put")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    asked = parser.parse_args(args)
    asked.root = asked.root.resolve()
    faults = [fault for fault in FAULTS if any(part in fault.name for part in asked.only)]
    placed = [fault for fault in faults if has_place(asked.root, fault)]
    if asked.list:
        return len(placed) < len(faults)
    with copies(asked.root, asked.jobs) as free, ThreadPoolExecutor(asked.jobs) as pool:
        if not passes_without(placed, free):
            return 1
        caught = sum(pool.map(lambda fault: is_noticed(fault, free), placed))
    say(f"{caught} of {len(faults)} caught")
    return caught < len(faults)


def has_place(root: Path, fault: Fault) -> bool:
    """Say where a fault goes, and whether that is one place and its tests are there."""
    found = places(root, fault)
    where = [str(path.relative_to(root)) for path in (*found, *files_of(root, fault))]
    right = len(found) == 1 and len(where) == 1 + len(fault.tests)
    say(f"{'' if right else 'NO PLACE, or tests missing: '}{fault.name}: {', '.join(where)}")
    return right


def places(root: Path, fault: Fault) -> list[Path]:
    """List the modules that hold a fault's text, as often as they do."""
    modules = sorted((root / PACKAGE).rglob("*.py"))
    return [path for path in modules for _ in range(path.read_text().count(fault.old))]


def files_of(root: Path, fault: Fault) -> list[Path]:
    """List a fault's tests: their files, or the whole room of one that was moved within it."""
    tests, files = root / "tests", []
    for name in fault.tests:
        flat = FLAT_NAMES.get(name, name.rpartition("/")[2])
        candidates = (tests / f"{name}.py", tests / f"{flat}.py", (tests / name).parent)
        files += [path for path in candidates if path.exists()][:1]
    return files


@contextmanager
def copies(root: Path, count: int) -> Iterator[SimpleQueue[Path]]:
    """Hold some copies of the project, to take and to give back."""
    with tempfile.TemporaryDirectory() as folder:
        free = SimpleQueue[Path]()
        for number in range(count):
            copy = Path(folder) / str(number) / root.name
            shutil.copytree(root, copy, ignore=LEFT_OUT)
            free.put(copy)
        yield free


def passes_without(faults: Sequence[Fault], free: SimpleQueue[Path]) -> bool:
    """Run the tests of all faults without any: one that fails anyhow would notice nothing."""
    root, since = free.get(), time.monotonic()
    files = dict.fromkeys(path for fault in faults for path in files_of(root, fault))
    done = run_tests(root, [*files])
    free.put(root)
    words = (done.stdout or done.stderr).strip().rpartition("\n")[2]
    say(f"without a fault: {words} ({time.monotonic() - since:.0f} s)")
    if done.returncode:
        say(done.stdout + done.stderr)
    return done.returncode == 0


def is_noticed(fault: Fault, free: SimpleQueue[Path]) -> bool:
    """Put a fault into a copy, run its tests there, and take it out again."""
    root, since = free.get(), time.monotonic()
    (module,) = places(root, fault)
    right = module.read_text()
    try:
        module.write_text(right.replace(fault.old, fault.new))
        done = run_tests(root, files_of(root, fault))
    finally:
        module.write_text(right)
        free.put(root)
    # Only a test that fails has noticed: 2 and more is a file that pytest couldn't even load.
    verdict = {0: "NOT caught", 1: "caught"}.get(done.returncode, "BROKEN")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    by = f" by {failed[1]}" if failed else ""
    say(f"{verdict} in {time.monotonic() - since:.0f} s: {fault.name}{by}")
    if verdict == "BROKEN":
        say(done.stdout + done.stderr)
    return verdict == "caught"


def run_tests(root: Path, files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Run the fast tests of some files up to the first that fails, in one thread."""
    paths = [str(path.relative_to(root)) for path in files]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # Byte code is kept by time and size, which a fault may leave as they are.
    own = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "not slow", *paths],
        cwd=root,
        env=os.environ | own,
        check=False,
        capture_output=True,
        text=True,
    )


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
