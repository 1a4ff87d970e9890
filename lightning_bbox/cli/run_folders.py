"""A run's folder: whether it is free, and with which checkpoint the run in it begins."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import make_folder, remove_leftovers, write_atomically
from lightning_bbox.models.checkpoints import checkpoint_of, newest_checkpoint, read_checkpoint
from lightning_bbox.refinement.predictions import put_originals_back

_RESULTS = (("predict", "changes.csv", "refined boxes"), ("probe", "probe.json", "a probe"))


@dataclass
class Begun:
    """What a command has begun, and whether it may take it back.

    Attributes:
        folder: The run's folder, None until it is known.
        is_new: Whether this command made the folder, so that nobody else's files are in it.
    """

    folder: Path | None = None
    is_new: bool = False

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
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # Lightning sets it
            _refuse_taken(command, folder, resuming)
            remove_leftovers(folder)
            if resuming and checkpoint:
                _begin_last(folder, Path(checkpoint))
            if command == "predict":
                put_originals_back(folder)
        self.folder = folder
        return checkpoint

    @rank_zero_only
    def make_folder(self) -> None:
        """Make the run's folder where it isn't there.

        Raises:
            BadInput: It can't be made.
        """
        assert self.folder is not None
        is_new = not self.folder.exists()
        make_folder(self.folder)
        self.is_new = is_new

    @rank_zero_only
    def undo(self) -> None:
        """Remove the folder of a run that was refused before it began, with its settings."""
        if self.folder is None or not self.is_new:
            return
        files = [*self.folder.iterdir()]
        if all(path.name.startswith(("events.", "config.yaml")) for path in files):
            for path in files:
                path.unlink(missing_ok=True)
            self.folder.rmdir()


def _is_of(folder: Path, checkpoint: str | None) -> bool:
    """Tell whether a checkpoint, or a folder of some, is this run's."""
    if checkpoint in (None, "best", "last"):
        return checkpoint is not None
    return folder.resolve() in (Path(str(checkpoint)).resolve() / "any").parents


def _find_checkpoint(command: str, folder: Path, asked: str | None) -> str | None:
    if asked is None:
        if command in ("fit", "probe"):
            return None
        msg = f"{command} needs a trained model; add --ckpt_path and a checkpoint"
        raise BadInput(msg)
    if command != "fit" or not (asked == "last" or Path(asked).is_dir()):
        named = folder / "checkpoints" / f"{asked}.ckpt"
        path = named if asked in ("best", "last") else checkpoint_of(asked)
        read_checkpoint(path)
        return str(path)
    whose = folder if asked == "last" else Path(asked)
    found, unread = newest_checkpoint(whose / "checkpoints")
    for sentence in unread:
        rank_zero_warn(f"{sentence}; going on from {found}")
    if found is None:
        rank_zero_warn(f"{whose}: has no checkpoint yet, so the run begins anew")
    return str(found) if found else None


def _refuse_taken(command: str, folder: Path, resuming: bool) -> None:
    """Refuse to mix two runs in one folder."""
    for other, file, what in _RESULTS:
        if command == other and (folder / file).exists():
            msg = f"{folder}: holds {what} already; choose another --name"
            raise BadInput(msg)
    if any((folder / "checkpoints").glob("*.ckpt")) and not resuming:
        more = f", or continue it with --resume {folder}" if command == "fit" else ""
        msg = f"{folder}: a run of this name exists; choose another --name{more}"
        raise BadInput(msg)


def _begin_last(folder: Path, checkpoint: Path) -> None:
    """Make the checkpoint that a run goes on from its last, whichever it is."""
    last = folder / "checkpoints" / "last.ckpt"
    if checkpoint.resolve() != last.resolve():
        write_atomically(last, checkpoint.read_bytes())
