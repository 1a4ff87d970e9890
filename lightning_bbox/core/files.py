"""Files that are whole or not there."""

import errno
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_bbox.core.errors import BadInput

CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full or may not be written to."""


def write_atomically(path: Path, *content: bytes | memoryview, option: str = "--runs") -> None:
    """Write a file whole or not at all: a temporary neighbour, synced, then renamed.

    The folder is synced too, so that the new name outlives a power cut.

    Args:
        path: The file.
        content: What it holds, one piece after the other.
        option: What names another folder.

    Raises:
        BadInput: The folder can't be written to, or there is no room; what was there stays.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", b"hello")
        ...     (Path(folder) / "a.txt").read_text()
        'hello'
    """
    write_pieces(path, content, option)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], option: str = "--runs") -> None:
    """Write a file whole or not at all, as its pieces come: it need never be in memory.

    Args:
        path: The file.
        pieces: What it holds, one piece after the other.
        option: What names another folder.

    Raises:
        BadInput: The folder can't be written to, or there is no room; what was there stays.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pieces(Path(folder) / "a.txt", (letter.encode() for letter in "hello"))
        ...     (Path(folder) / "a.txt").read_text()
        'hello'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error, option) from error


def cannot_write(path: Path | str, error: OSError, option: str = "--runs") -> BadInput:
    """Say that something can't be written, and why.

    Args:
        path: What can't be written.
        error: Why.
        option: What names another folder.

    Examples:
        >>> print(cannot_write("runs/a", PermissionError(13, "Permission denied")))
        runs/a: can't be written (Permission denied); make room, or name another folder with --runs
    """
    problem = f"can't be written ({error.strerror})"
    return BadInput.at(str(path), problem, f"make room, or name another folder with {option}")


def make_folder(folder: Path, option: str = "--runs") -> None:
    """Make a folder, with those above it, where it isn't there.

    Args:
        folder: The folder.
        option: What names another one.

    Raises:
        BadInput: It can't be made, or a file has its name.

    Examples:
        >>> make_folder(Path("/dev/null/run"))
        Traceback (most recent call last):
        lightning_bbox.BadInput: /dev/null/run: can't be written (Not a directory); ...
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, option) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / ".last.ckpt.123.tmp").touch()
        ...     remove_leftovers(Path(folder))
        ...     list(Path(folder).iterdir())
        []
    """
    for path in folder.rglob(".*.*.tmp"):
        path.unlink(missing_ok=True)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_picture(Path(folder) / "a.png", Image.new("RGB", (2, 2)))
        ...     (Path(folder) / "a.png").read_bytes()[1:4]
        b'PNG'
    """
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
