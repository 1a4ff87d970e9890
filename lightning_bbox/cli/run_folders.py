"""A run's folder: whether it is free, and with which checkpoint the run in it begins."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN, alone_in, make_folder, remove_leftovers
from lightning_bbox.models.checkpoints import (
    checkpoint_of,
    newest_checkpoint,
    read_checkpoint,
    refuse_weights_alone,
)
from lightning_bbox.refinement.predictions import put_originals_back
from lightning_bbox.reports.callbacks import CONFIG, is_of_a_run

_RESULTS = (
    ("predict", "changes.csv", "refined boxes"),
    ("probe", "probe.json", "a probe"),
    ("test", "metrics.json", "a test's results"),
)
_WRITTEN = {
    "fit": ("data.png", "law.json", "skipped.txt", "crops.png", "test_errors.npz"),
    "validate": ("law.json", "skipped.txt"),
    "test": ("law.json", "skipped.txt", "crops.png", "test_errors.npz"),
    "predict": (
        *("refined", "before", "law.json", "skipped.txt", "unchanged.txt"),
        *("changes.png", "review.html"),
    ),
    "probe": ("probe.md", "probe.png"),
}
"""What a command would write over, beside its results and settings."""
_BEFORE_A_RUN = ("events.", CONFIG, "data.png", "law.json", "skipped.txt", OWN)
"""What is written before a run can't be refused any more."""


class Begun:
    """What a command has begun, and may take back: its folder is this process's alone meanwhile.

    Attributes:
        folder: The run's folder, None until it is known.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._lock = ExitStack()
        self._made: list[Path] = []  # folders, the innermost first
        self._there = set[str]()  # what the run's folder held before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let others have the folder."""
        self._lock.close()

    def begin(self, command: str, folder: Path, asked: str | None) -> str | None:
        """Make sure a run may begin, and return the checkpoint to go on from, or to apply.

        A fit that goes on takes the newest checkpoint that can be read, and says which can't. What
        a stopped `predict --overwrite` left half done is undone.

        Args:
            command: `fit`, `validate`, `test`, `predict` or `probe`; the first and the last do
                without a checkpoint.
            folder: The run's folder, there or not.
            asked: A checkpoint, a run's folder, or `last` or `best` of this one.

        Raises:
            BadInput: The folder holds another run, or no checkpoint is given or can be read.
        """
        resuming = command == "fit" and _is_of(folder, asked)
        checkpoint = _find_checkpoint(command, folder, asked)
        self._take(folder)
        self.folder = folder
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # Lightning sets it
            _refuse_taken(command, folder, resuming, signed=OWN in self._there)
            remove_leftovers(folder)
            if command == "predict":
                put_originals_back(folder)
        return checkpoint

    @rank_zero_only
    def _take(self, folder: Path) -> None:
        """Make the folder where it isn't there, and keep other processes out of it."""
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        make_folder(folder)
        signed = (folder / OWN).exists()
        self._lock.enter_context(alone_in(folder))
        self._there = {path.name for path in folder.iterdir()}
        if not signed:
            self._there.remove(OWN)

    @rank_zero_only
    def undo(self) -> None:
        """Remove what this command made, where it was refused before its run began."""
        self._lock.close()
        if self.folder is None:
            return
        files = [path for path in self.folder.iterdir() if path.name not in self._there]
        if all(path.name.startswith(_BEFORE_A_RUN) for path in files):
            for path in files:
                path.unlink(missing_ok=True)
        for made in self._made:
            with suppress(OSError):  # something is in it
                made.rmdir()


def _is_of(folder: Path, checkpoint: str | None) -> bool:
    """Tell whether a checkpoint, or a folder of some, is this run's."""
    if checkpoint in (None, "best", "last"):
        return checkpoint is not None
    return folder.resolve() in (Path(str(checkpoint)).resolve() / "any").parents


def _find_checkpoint(command: str, folder: Path, asked: str | None) -> str | None:
    if asked is None:
        if command in ("fit", "probe"):
            return None
        msg = (
            f"{command} needs a trained model; add --ckpt_path and a checkpoint, behind -c where "
            f"there is one: a run's configuration names none, and what comes last holds"
        )
        raise BadInput(msg)
    if command != "fit" or not (asked == "last" or Path(asked).is_dir()):
        named = folder / "checkpoints" / f"{asked}.ckpt"
        path = named if asked in ("best", "last") else checkpoint_of(asked)
        checkpoint = read_checkpoint(path)
        if command == "fit":
            refuse_weights_alone(checkpoint, str(path))
        return str(path)
    whose = folder if asked == "last" else Path(asked)
    found, unread = newest_checkpoint(whose / "checkpoints")
    for sentence in unread:
        rank_zero_warn(f"{sentence}; going on from {found}")
    if found is None:
        rank_zero_warn(f"{whose}: has no checkpoint yet, so the run begins anew")
    return str(found) if found else None


def _refuse_taken(command: str, folder: Path, resuming: bool, signed: bool) -> None:
    """Refuse to mix two runs in one folder, or a run with what it would write over."""
    for other, file, what in _RESULTS:
        if command == other and (folder / file).exists():
            msg = f"{folder}: holds {what} already; choose another --name"
            raise BadInput(msg)
    there = [*folder.glob("checkpoints/*.ckpt"), *folder.glob("metrics.json")]
    if there and not resuming:
        more = f", or continue it with --resume {folder}" if command == "fit" else ""
        msg = f"{folder}: a run of this name exists; choose another --name{more}"
        raise BadInput(msg)
    config = folder / CONFIG
    of_a_run = config.exists() and is_of_a_run(config)
    if command == "fit" and config.exists() and not of_a_run:
        problem = "wasn't written by a run, and this one would write its settings over it"
        raise BadInput.at(str(config), problem, "choose another --name, or rename the file")
    if of_a_run or signed:
        return
    for path in (folder / name for name in _WRITTEN.get(command, ())):
        if path.exists():
            problem = f"wasn't written by a run, and {command} would write over it"
            raise BadInput.at(str(path), problem, "choose another --name, or rename the file")
