"""Whatever befalls the files of a data set, reading them ends in a table or in one sentence.

`python -m tests.campaign.readers --minutes 30 --seed 0` damages one annotation file or picture
after the other, in every format. Each set is read, its boxes are moved, written and read again, in
at most five seconds of the processor and 1 GiB more than before. `--first 17 --trials 1` repeats
trial 17.
"""

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import has_tifffile
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.decode import decode_image, open_image
from lightning_bbox.pictures.store import ImageStore
from lightning_bbox.pictures.thumbnails import read_thumbnails
from tests.campaign.damage import TOKENS, mutated, mutated_picture
from tests.campaign.sets import SETS
from tests.campaign.test_readers import PICTURES, check_sentence, judge, large_pictures, size_of
from tests.conftest import write_rectangles

LIMIT = 5.0  # seconds
MEMORY = 1 << 30  # bytes
LARGE = list(large_pictures()) if has_tifffile() else []
WHITE = (None, 65_535, 4095, (0.0, 1.0), (-5.0, 300.0))


class Hung(BaseException):
    """A trial took too long; nothing may catch that."""


def _hung(*_: object) -> None:
    raise Hung


@contextmanager
def bounded() -> Iterator[None]:
    """Have a trial end where it takes more time or memory than it may."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MEMORY
    signal.signal(signal.SIGPROF, _hung)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def made(kind: str) -> dict[str, bytes]:
    """Return the files of a small data set."""
    with tempfile.TemporaryDirectory() as folder:
        write_rectangles(Path(folder))
        if write := SETS[kind]:
            write(Path(folder))
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def of_annotations(kind: str, files: dict[str, bytes], dice: random.Random) -> str:
    """Damage an annotation file of a set, and read it."""
    hit = dice.choice([name for name in files if not name.endswith((".png", ".jpg"))])
    options = dice.choice(({}, {}, {"on_bad": "error"}, {"on_missing": "skip"}, {"rough": True}))
    return judge(files | {hit: mutated(files[hit], dice, TOKENS[kind])}, options)


def of_picture(dice: random.Random) -> str:
    """Damage a picture, and decode it."""
    suffix, content = dice.choice(PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(mutated_picture(content, dice))
        try:
            size_of(Path(folder), path.name)
            decode_image(path, dice.choice(WHITE))
        except BadInput as refusal:
            check_sentence(str(refusal))
            return "refused"
    return "decoded"


def of_large_picture(dice: random.Random) -> str:
    """Damage a TIFF that is read in parts, and cut crops of it."""
    with tempfile.TemporaryDirectory() as folder, patch.object(Image, "MAX_IMAGE_PIXELS", 100):
        path = Path(folder) / "a.tif"
        path.write_bytes(mutated_picture(dice.choice(LARGE), dice))
        try:
            size_of(Path(folder), path.name)
            read_thumbnails([path])
            store = ImageStore.from_pictures([open_image(path, dice.choice(WHITE))])
            corners = torch.tensor([[dice.uniform(-9, 60) for _ in range(2)] for _ in range(3)])
            boxes = torch.cat([corners, corners + dice.uniform(2, 90)], dim=1)
            cut_crops(store, torch.zeros(3, dtype=torch.int64), boxes, 8)
        except BadInput as refusal:
            check_sentence(str(refusal))
            return "refused"
    return "cut"


def campaign(seed: int, trials: Iterable[int], end: float) -> int:
    """Hold it until the time is over, and return how many trials went wrong."""
    sets = {kind: made(kind) for kind in SETS}
    kinds = [*sets, "picture", *(["large picture"] if LARGE else [])]
    counts, wrong, slowest = Counter[str](), 0, (0.0, "")
    for number in trials:
        if time.monotonic() > end:
            break
        dice, kind = random.Random(f"{seed}:{number}"), kinds[number % len(kinds)]
        start = time.process_time()
        try:
            with bounded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Pillow says of damage is its own affair
                if kind in sets:
                    how = of_annotations(kind, sets[kind], dice)
                else:
                    how = of_picture(dice) if kind == "picture" else of_large_picture(dice)
        except (Exception, Hung) as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            wrong, how = wrong + 1, "wrong"
            print(f"trial {number} ({kind}): {type(error).__name__}: {error}", flush=True)
            print("".join(traceback.format_exception(error)[-4:]), flush=True)
        counts[f"{kind} {how}"] += 1
        slowest = max(slowest, (time.process_time() - start, f"trial {number} ({kind})"))
    told = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
    print(f"{counts.total()} trials: {told}; {wrong} problems")
    print(f"the slowest took {slowest[0]:.2f} s: {slowest[1]}")
    return wrong


def main() -> int:
    """Hold a campaign; return 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.readers", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--trials", type=int, default=10_000_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    trials = range(asked.first, asked.first + asked.trials)
    return bool(campaign(asked.seed, trials, time.monotonic() + 60 * asked.minutes))


if __name__ == "__main__":
    sys.exit(main())
