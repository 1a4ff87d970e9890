"""Runs that are hit by signals at random moments of their life lose nothing.

`python -m tests.campaign.kills --kills 200 --terms 50 --seed 0` hits tiny fits and predictions with
SIGKILL, SIGTERM and SIGINT, lets them go on each time, looks at every file they left, and compares
what they end with to what an undisturbed run gives, to the bit.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from PIL import Image

from lightning_bbox.core.errors import BadInput
from lightning_bbox.models.checkpoints import read_checkpoint
from lightning_bbox.refinement.reviewing.review_page import PAGE
from tests.campaign.forked import Ended, Hit, run
from tests.conftest import write_rectangles, yolo_folder
from tests.runs import HASTY, end_of, files_of, predict_with, same

COMMON = ["--trainer.callbacks+=tests.campaign.forked.Phases", "--trainer.accelerator=cpu"]
FIT = [*HASTY, "--data.draws_per_epoch=192", *COMMON]
CODES = {signal.SIGKILL: 0, signal.SIGTERM: 143, signal.SIGINT: 130}
"""What a command that was hit may end with, unless the signal itself ends it."""
SHORT = {"fit": ("training", "validation", "saving", "test"), "predict": ("predicting", "writing")}
"""Phases that a moment chosen evenly over a run's life would seldom meet."""


def moments(
    signals: list[signal.Signals], command: str, seconds: float, seed: int
) -> Iterator[Hit]:
    """Draw when each signal hits: half of them evenly over a run's life, half in short phases."""
    for number, signum in enumerate(signals):
        draw = random.Random(f"{seed}:{command}:{number}")
        if draw.random() < 0.5:
            yield Hit(signum, "start", draw.uniform(0, seconds))
        else:
            yield Hit(signum, draw.choice(SHORT[command]), draw.uniform(0, 0.05))


def unreadable(folder: Path) -> Iterator[str]:
    """Find the files of a run that can't be read; the event log is appended to, and left out."""
    for path in folder.rglob("[!.]*"):
        try:
            if path.suffix == ".ckpt":
                read_checkpoint(path)
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml" and not isinstance(yaml.safe_load(path.read_text()), dict):
                yield f"{path}: is no mapping"
        except (BadInput, OSError, ValueError, SyntaxError, yaml.YAMLError) as error:
            yield f"{path}: {error}"


class Campaign:
    """Run commands, hit them, let them go on, and note what is wrong.

    Args:
        folder: Where all of it goes.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.signals, self.phases, self.counts = Counter[str](), Counter[str](), Counter[str]()
        self.wrong = list[str]()
        (folder / "logs").mkdir(parents=True)

    def check(self, kind: str, problem: object, good: bool = False) -> None:
        """Note what is not as it should be."""
        if not good:
            self.counts[kind] += 1
            self.wrong.append(f"{kind}: {problem}")

    def summary(self) -> str:
        counts, (signals, phases) = self.counts, map(_listed, (self.signals, self.phases))
        return (
            f"{self.signals.total()} hits ({signals}) on {counts['fit']} fits and "
            f"{counts['predict']} predictions; by phase: {phases}; {counts['resume']} resumes, "
            f"{counts['mismatch']} mismatches, {counts['unreadable']} unreadable files, "
            f"{counts['exit code']} wrong exit codes, {counts['traceback']} tracebacks"
        )

    def undisturbed(self, arguments: list[str], name: str) -> float:
        """Run a command that nothing hits, and return how long it takes."""
        ended = self._process([*arguments, f"--name={name}"], None)
        if ended.code:
            sys.exit(ended.log)
        return ended.seconds

    def _process(self, arguments: list[str], hit: Hit | None) -> Ended:
        self.counts["process"] += 1
        number = self.counts["process"]
        ended = run(arguments, self.folder / "logs" / f"{number:04}.txt", hit)
        what = f"log {number}, {ended.hit or 'not hit'} in {ended.phase}"
        self.check("traceback", what, "Traceback" not in ended.log)
        codes = (CODES[ended.hit.signum], -ended.hit.signum) if ended.hit else ()
        self.check("exit code", f"{ended.code}, {what}", ended.code in (0, *codes))
        if ended.hit:
            self.signals[ended.hit.signum.name] += 1
            self.phases[ended.phase] += 1
        return ended

    def hit_all(self, signals: list[signal.Signals], command: str, seconds: float) -> None:
        """Hit one run after the other until all signals are spent, and let each get through.

        A run that was hit is hit again every second time, so that many of them end.
        """
        left = moments(signals, command, seconds, self.seed)
        hit = next(left, None)
        again = random.Random(f"{self.seed}:{command}:again")
        while hit:
            self.counts[command] += 1
            trial = _TRIALS[command](self, self.counts[command])
            spared = finished = False
            while not finished:
                ended = self._process(trial.arguments(), None if spared else hit)
                if ended.hit:
                    hit, spared = next(left, None), again.random() < 0.5
                elif hit and not spared:  # it came too late
                    hit = hit._replace(seconds=hit.seconds / 2)
                for sentence in unreadable(trial.folder):
                    self.check("unreadable", sentence)
                trial.look()
                finished = trial.finished(ended)
                if not finished and not ended.hit:
                    self.check("mismatch", f"{trial.folder} can't go on: {ended.log}")
                    break
                self.counts["resume"] += not finished
            else:
                trial.compare()


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


class FitTrial:
    """A fit that is resumed after each hit."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        self.check, self.folder = campaign.check, campaign.folder / f"fit-{number}"

    def arguments(self) -> list[str]:
        """Begin, or go on where there is a configuration to go on from."""
        if (self.folder / "config.yaml").exists():
            return ["fit", f"--resume={self.folder}"]
        return [*FIT, f"--runs={self.folder.parent}", f"--name={self.folder.name}"]

    def look(self) -> None:
        """See no more than that all files can be read."""

    def finished(self, ended: Ended) -> bool:
        return ended.code == 0

    def compare(self) -> None:
        """Compare with the run that nothing hit."""
        expected = end_of(self.folder.parent / "whole")
        for key, value in end_of(self.folder).items():
            self.check("mismatch", f"{self.folder}: {key}", same(value, expected[key]))
        leftovers = [path for path in self.folder.rglob(".*") if path.suffix == ".tmp"]
        self.check("mismatch", f"left over: {leftovers}", not leftovers)


class PredictTrial:
    """Boxes refined on a copy of a data set, over the originals or not, begun again when hit."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        draw = random.Random(f"{campaign.seed}:predict:{number}")
        kind, self.overwrite = draw.choice(["csv", "yolo"]), draw.random() < 0.6
        self.check, runs = campaign.check, campaign.folder
        self.folder, self.data = runs / f"predict-{number}", runs / f"copy-{number}"
        shutil.copytree(runs / f"data-{kind}", self.data)
        self.old, self.expected = self._annotations(), files_of(runs / f"whole-{kind}")
        self.new = {name: self.expected[f"refined/{name}"] for name in self.old}

    def _annotations(self) -> dict[str, bytes]:
        files = files_of(self.data)
        return {name: content for name, content in files.items() if not name.endswith(".png")}

    def arguments(self) -> list[str]:
        """Always the same."""
        options = [f"--overwrite={str(self.overwrite).lower()}", f"--name={self.folder.name}"]
        return [*predict_with(self.folder.parent / "whole", self.data), *COMMON, *options]

    def look(self) -> None:
        """See that each original is the old or the new, and the old is kept if any is new."""
        now = {name: (self.data / name).read_bytes() for name in self.old}
        whole = all(now[name] in (self.old[name], self.new[name]) for name in now)
        self.check("mismatch", f"{self.data}: neither old nor new", whole)
        kept = now == self.old or files_of(self.folder / "before") == self.old
        self.check("mismatch", f"{self.folder}: before/ is not complete", kept)

    def finished(self, ended: Ended) -> bool:
        """Tell whether the table of changes, which is written last, is there."""
        return (self.folder / "changes.csv").exists()

    def compare(self) -> None:
        """Compare with the predictions that nothing hit."""
        made, expected = files_of(self.folder), self.expected
        if self.overwrite:
            expected = expected | {f"before/{name}": old for name, old in self.old.items()}
        for name, content in expected.items():
            alike = made.get(name) == content
            if name == PAGE:  # it says where the data lie, which are a copy here
                alike = name in made
            self.check("mismatch", f"{self.folder / name}", alike)
        right = self._annotations() == (self.new if self.overwrite else self.old)
        self.check("mismatch", f"{self.data}: not as it is to be", right)


_TRIALS = {"fit": FitTrial, "predict": PredictTrial}


def campaign(kills: int, terms: int, seed: int, folder: Path) -> Campaign:
    """Hit so many times, every third time a prediction."""
    signals = [signal.SIGKILL] * kills
    signals += [signal.SIGINT if at % 4 == 3 else signal.SIGTERM for at in range(terms)]
    random.Random(f"{seed}:order").shuffle(signals)
    torch.set_num_threads(1)
    work = Campaign(folder, seed)
    seconds = work.undisturbed([*FIT, f"--runs={folder}"], "whole")
    work.hit_all(signals[len(signals) // 3 :], "fit", seconds)
    for kind in ("csv", "yolo"):
        data = folder / f"data-{kind}"
        data.mkdir()
        write_rectangles(data)
        if kind == "yolo":
            yolo_folder(data)
        command = [*predict_with(folder / "whole", data), *COMMON]
        seconds = work.undisturbed(command, f"whole-{kind}")
    work.hit_all(signals[: len(signals) // 3], "predict", seconds)
    return work


def main() -> int:
    """Hold a campaign, and say what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terms", type=int, default=50, help="one in four is a SIGINT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder to leave everything in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary) / "runs"
        held = campaign(asked.kills, asked.terms, asked.seed, folder)
    sys.stdout.write("\n".join([*held.wrong, held.summary()]) + "\n")
    return bool(held.wrong)


if __name__ == "__main__":
    sys.exit(main())
