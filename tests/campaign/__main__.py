"""Whatever befalls a file, no command ends in a traceback or changes a file that isn't its own.

`python -m tests.campaign --minutes 30 --seed 0` damages one file after the other: annotations,
pictures, files of patches, stores, caches of features, checkpoints, studies and what their runs
left. It runs a command on each, and compares every file before and after. `--keep FOLDER --first 17
--trials 1` repeats trial 17.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from tests.campaign.damage import TOKENS, mutated, mutated_picture
from tests.campaign.forked import Ended, run
from tests.campaign.sets import SETS, SUFFIXES
from tests.conftest import write_rectangles
from tests.runs import TINY, files_of

LIMIT = 120  # seconds: a damaged study may ask for a million steps
FIT = [
    *("fit", "--model=BoxRegressor", "--data=BoxDataModule", *TINY),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.draws_per_epoch=32"),
]
FROZEN = ["--model.backbone=tests.runs.FrozenConvNet", "--model.backbone.fc=[16]"]
FOREIGN = ("pictures.json", "train.json", "notes.txt")
"""What a person may keep beside a store or a cache."""
STUDY = {
    "base": "config.yaml",
    "arms": {"wide": {"model.backbone.fc": [8]}},
    "seeds": [0],
    "steps": 2,
}


class Trial(NamedTuple):
    """A file that is damaged, and the command that meets it.

    Attributes:
        file: Which file.
        content: What it holds then.
        command: The command.
        own: Folders whose files the command may change where it isn't refused.
        replaced: Whether it may replace the damaged file, which the package had made.
    """

    file: Path
    content: bytes
    command: list[str]
    own: tuple[str, ...] = ("runs/new",)
    replaced: bool = False


class World:
    """Data sets, a run, a study, a store and a cache, as new before each trial.

    Args:
        folder: Where all of it goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder / "world", folder / "logs"
        self._kept = folder / "kept"
        self.logs.mkdir(parents=True, exist_ok=True)
        if not self._kept.exists():
            self._make()
            self.folder.rename(self._kept)

    def renew(self) -> None:
        """Put every file back."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._kept, self.folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def one_of(self, pattern: str, dice: random.Random) -> Path:
        """Choose among the files of some name."""
        return dice.choice(sorted(path for path in self.folder.glob(pattern) if path.is_file()))

    def fit(self, *options: str, sets: str = "csv", name: str = "new") -> list[str]:
        where = [f"--runs={self.path('runs')}", f"--name={name}"]
        return [*FIT, f"--data.root={self.path(f'sets/{sets}')}", *where, *options]

    def stored(self, name: str = "new") -> list[str]:
        folder = self.path("store")
        return self.fit("--data.store.place=disk", f"--data.store.folder={folder}", name=name)

    def cached(self, name: str = "new") -> list[str]:
        return self.fit(*FROZEN, f"--model.cache={self.path('cache')}", name=name)

    def patches(self) -> list[str]:
        file, where = self.path("patches.npz"), [f"--runs={self.path('runs')}", "--name=new"]
        return [*FIT[:2], "--data=PatchDataModule", *FIT[3:], f"--data.file={file}", *where]

    def applied(self, command: str, checkpoint: Path, sets: str = "csv") -> list[str]:
        root = f"--data.root={self.path(f'sets/{sets}')}"
        where = [f"--runs={self.path('runs')}", "--name=new", "--trainer.accelerator=cpu"]
        data = ["--data=BoxDataModule", root, "--data.compile=false"]
        return [command, f"--ckpt_path={checkpoint}", *data, *where]

    def compare(self) -> list[str]:
        return [
            "compare",
            f"-c={self.path('study.yaml')}",
            f"--runs={self.path('runs')}",
            "--jobs=1",
        ]

    def _make(self) -> None:
        for sets, write in SETS.items():
            folder = self.path(f"sets/{sets}")
            folder.mkdir(parents=True)
            write_rectangles(folder)
            if write:
                write(folder)
        draw = np.random.default_rng(0)
        squares = draw.integers(0, 99, (60, 36, 36, 1), dtype=np.uint8)
        squares[:, 12:24, 12:24] += 120
        np.savez(self.path("patches.npz"), patches=squares, groups=np.arange(60) // 2)
        for folder in ("store", "cache"):
            self.path(folder).mkdir()
            for name in FOREIGN:
                (self.path(folder) / name).write_text('{"mine": 1}\n')
        self._done(self.fit(name="run"))
        self._done(self.stored(name="stored"))
        self._done(self.cached(name="cached"))
        config = yaml.safe_load(self.path("runs/run/config.yaml").read_text())
        self.path("config.yaml").write_text(yaml.safe_dump(config))
        self.path("study.yaml").write_text(yaml.safe_dump(STUDY))
        self._done(self.compare())
        undamaged = [self.patches(), *(self.fit(sets=name) for name in SETS if name != "csv")]
        undamaged += [self.applied(name, self.path("runs/run")) for name in ("predict", "validate")]
        for command in undamaged:
            self._done(command)
            shutil.rmtree(self.path("runs/new"))

    def _done(self, command: list[str]) -> None:
        ended = run(command, self.logs / "made.txt", limit=LIMIT)
        if ended.code:
            sys.exit(ended.log)


def _annotations(world: World, dice: random.Random) -> Trial:
    sets = dice.choice([*SETS])
    file = world.one_of(f"sets/{sets}/**/*.{SUFFIXES.get(sets, 'csv')}", dice)
    content = mutated(file.read_bytes(), dice, TOKENS[sets])
    return Trial(file, content, _of_data(world, dice, sets))


def _picture(world: World, dice: random.Random) -> Trial:
    file = world.one_of("sets/csv/*.png", dice)
    content = mutated_picture(file.read_bytes(), dice)
    if dice.random() < 0.2:
        buffer = BytesIO()
        Image.new(dice.choice(["1", "L", "I;16", "RGBA", "P"]), (dice.randint(1, 300), 9)).save(
            buffer, "PNG"
        )
        content = buffer.getvalue()
    return Trial(file, content, _of_data(world, dice, "csv"))


def _of_data(world: World, dice: random.Random, sets: str) -> list[str]:
    commands = [
        world.fit(sets=sets),
        *(world.applied(name, world.path("runs/run"), sets) for name in ("predict", "test")),
    ]
    return dice.choice(commands)


def _patches(world: World, dice: random.Random) -> Trial:
    file = world.path("patches.npz")
    if dice.random() < 0.5:
        return Trial(file, mutated_picture(file.read_bytes(), dice), world.patches())
    with np.load(file) as read:
        arrays = dict(read)
    name = dice.choice([*arrays, "offsets"])
    odd = [
        *(np.zeros(shape) for shape in ((), (0,), (60,), (60, 2), (59, 2), (60, 36, 36, 2))),
        np.full((60, 2), dice.choice([np.nan, np.inf, -1e308, 3.0])),
        np.arange(60).astype(dice.choice(["int8", "uint64", "complex64", "bool", "datetime64[s]"])),
        *(np.array(["a"] * 60), np.array([b"\0"] * 60), np.array([None] * 60)),
        np.zeros((60, 36, 36, 1), dice.choice(["uint8", "uint16", "float32", "int64", "S1"])),
        np.zeros((1, 36, 36), np.uint8),
    ]
    arrays[name] = dice.choice(odd)
    if dice.random() < 0.2:
        del arrays[dice.choice([*arrays])]
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return Trial(file, buffer.getvalue(), world.patches())


def _kept(folder: str, world: World, dice: random.Random) -> Trial:
    """Damage a store's or a cache's file, or put somebody's file in its place."""
    made = [path for path in world.path(folder).rglob("*") if path.name not in FOREIGN]
    file = dice.choice(sorted(path for path in made if path.is_file() and path.stat().st_size))
    command = world.stored() if folder == "store" else world.cached()
    if dice.random() < 0.3:
        return Trial(file, b'{"mine": 1}\n', command, ("runs/new", folder))
    content = file.read_bytes()
    head, newline, rest = content.partition(b"\n")
    what = dice.random()
    if what < 0.3:
        said = json.loads(head)
        _lose(said, dice)
        content = json.dumps(said).encode() + newline + rest
    elif what < 0.6:
        content = mutated(head, dice, TOKENS["coco"]) + newline + rest
    else:
        content = mutated_picture(content, dice)
    return Trial(file, content, command, ("runs/new", folder), replaced=True)


def _store(world: World, dice: random.Random) -> Trial:
    return _kept("store", world, dice)


def _cache(world: World, dice: random.Random) -> Trial:
    return _kept("cache", world, dice)


def _checkpoint(world: World, dice: random.Random) -> Trial:
    file = world.path(f"runs/run/checkpoints/{dice.choice(['best', 'last'])}.ckpt")
    content = file.read_bytes()
    if dice.random() < 0.5:
        content = mutated_picture(content, dice)
    else:
        checkpoint = torch.load(file, weights_only=True)
        if dice.random() < 0.3:
            del checkpoint[dice.choice([*checkpoint])]
        else:
            _lose(checkpoint["lightning_bbox"], dice)
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
    if dice.random() < 0.3:
        command = ["fit", f"--resume={world.path('runs/run')}", "--trainer.max_epochs=2"]
        return Trial(file, content, command, ("runs/run",))
    command = dice.choice(["test", "validate", "predict"])
    return Trial(file, content, world.applied(command, file))


def _lose(tree: dict[str, object], dice: random.Random) -> None:
    """Remove something from a tree of mappings, or put something else in its place."""
    key = dice.choice([*tree])
    inner = tree[key]
    if isinstance(inner, dict) and inner and dice.random() < 0.8:
        _lose(inner, dice)
    elif dice.random() < 0.5:
        del tree[key]
    else:
        tree[key] = dice.choice([None, "", -1, 1e308, True, [], {}, "lightning_bbox.BinHead"])


def _settings(world: World, dice: random.Random) -> Trial:
    file = world.path("runs/run/config.yaml")
    content = mutated(file.read_bytes(), dice, TOKENS["yaml"])
    command = ["fit", f"--resume={world.path('runs/run')}"]
    return Trial(file, content, command, ("runs",))


def _study(world: World, dice: random.Random) -> Trial:
    file = world.path("study.yaml")
    content = mutated(file.read_bytes(), dice, TOKENS["yaml"])
    return Trial(file, content, world.compare(), ("runs",))


def _results(world: World, dice: random.Random) -> Trial:
    name = dice.choice(["metrics.json", "test_errors.npz", "config.yaml", "outcome.json"])
    folder = world.path(f"runs/study/{dice.choice(['base', 'wide'])}-seed0")
    file, own = folder / name, ("runs/study",)
    if name == "test_errors.npz":
        return Trial(file, mutated_picture(file.read_bytes(), dice), world.compare(), own)
    if name == "config.yaml":
        (folder / "metrics.json").unlink()  # as that of a run which was stopped
        content = mutated(file.read_bytes(), dice, TOKENS["yaml"])
        return Trial(file, content, world.compare(), own)
    outcome = {"status": "diverged", "step": 1, "detail": "the loss is inf", "settings": {}}
    content = json.dumps(outcome).encode() if name == "outcome.json" else file.read_bytes()
    return Trial(file, mutated(content, dice, TOKENS["coco"]), world.compare(), own)


KINDS: tuple[Callable[[World, random.Random], Trial], ...] = (
    *(_annotations, _picture, _patches, _store, _cache, _checkpoint, _settings, _study, _results),
)


def judge(world: World, trial: Trial, ended: Ended, before: dict[str, str]) -> Iterator[str]:
    """Say what is wrong with how a command ended, and with what it has changed."""
    if "Traceback" in ended.log:
        yield "traceback"
    diverged = ended.code == 1 and "not finite" in ended.log
    if ended.code not in (0, 2, TIMED_OUT) and not diverged:
        yield f"exit code {ended.code}"
    last = (ended.log.splitlines() or [""])[-1]
    if ended.code == 2 and not last.startswith("lightning-bbox: "):
        yield f"no sentence, but {last[:200]!r}"
    after = hashes(world.folder)
    own = trial.own if ended.code != 2 else trial.own[1:]
    for name in sorted({*before, *after}):
        made_or_changed = before.get(name) != after.get(name)
        is_own = name.startswith(tuple(f"{folder}/" for folder in own)) and (
            Path(name).name not in FOREIGN
        )
        if name == trial.file.relative_to(world.folder).as_posix():
            is_own = trial.replaced or name.startswith("runs/")
        if made_or_changed and not is_own:
            yield f"{name} was changed"
        is_left = name.endswith((".tmp", "/.lock")) and name not in before
        if is_left and ended.code != TIMED_OUT:
            yield f"{name} is left"


TIMED_OUT = -14  # by SIGALRM


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(held).hexdigest() for name, held in files_of(folder).items()}


def campaign(folder: Path, seed: int, trials: Iterator[int], end: float) -> list[str]:
    """Hold it until the time is over, and return what was wrong."""
    world, wrong, counts = World(folder), list[str](), Counter[str]()
    for number in trials:
        if time.monotonic() > end:
            break
        world.renew()
        dice = random.Random(f"{seed}:{number}")
        kind = KINDS[number % len(KINDS)]
        trial = kind(world, dice)
        trial.file.write_bytes(trial.content)
        before = hashes(world.folder)
        ended = run(trial.command, world.logs / f"{number:05}.txt", limit=LIMIT)
        how = {0: "read", 1: "diverged", 2: "refused", TIMED_OUT: "timed out"}
        counts[f"{kind.__name__[1:]} {how.get(ended.code, 'failed')}"] += 1
        for problem in judge(world, trial, ended, before):
            file = trial.file.relative_to(world.folder)
            wrong.append(f"trial {number} ({trial.command[0]}, {file}): {problem}")
            sys.stdout.write(f"{wrong[-1]}\n")
            sys.stdout.flush()
    told = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
    sys.stdout.write(f"{counts.total()} trials: {told}; {len(wrong)} problems\n")
    return wrong


def main() -> int:
    """Hold a campaign; return 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to leave everything in, and to find it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        trials = iter(range(asked.first, asked.first + asked.trials))
        end = time.monotonic() + 60 * asked.minutes
        return bool(campaign(folder, asked.seed, trials, end))


if __name__ == "__main__":
    sys.exit(main())
