"""Files that are whole or not there, and locks that one process has at a time."""

import errno
import glob
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout
from PIL import Image

from lightning_bbox.core.errors import BadInput

_TEMPORARY = ".lightning_bbox.tmp"
"""What a temporary file's name ends in: it signs the file, which a killed process leaves behind."""


@contextmanager
def replacing(path: Path, option: str = "--runs") -> Iterator[BinaryIO]:
    """Yield a file to write, which then takes its place whole: a neighbour, synced, then renamed.

    Its permissions are those of the file that it replaces. The folder is synced too, so that the
    new name outlives a power cut.

    Args:
        path: The place.
        option: What names another folder.

    Raises:
        BadInput: The folder can't be written to, or there is no room; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        opener = partial(os.open, mode=0o666 if mode is None else mode)  # never wider than it ends
        try:
            with open(temporary, "wb", opener=opener) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error, option) from error


def write_atomically(path: Path, content: bytes, option: str = "--runs") -> None:
    """Write a file whole or not at all (see `replacing`).

    Args:
        path: The file.
        content: What it holds.
        option: What names another folder.

    Raises:
        BadInput: The folder can't be written to, or there is no room; what was there stays.
    """
    with replacing(path, option) as file:
        file.write(content)


def cannot_write(path: Path | str, error: OSError, option: str = "--runs") -> BadInput:
    """Say that something can't be written, and why.

    Args:
        path: What can't be written.
        error: Why.
        option: What names another folder.
    """
    problem = f"can't be written ({error.strerror})"
    return BadInput.at(str(path), problem, f"make room, or name another folder with {option}")


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file of settings.

    Args:
        path: The file.
        remedy: What to write where it holds no mapping.

    Raises:
        BadInput: It can't be read, isn't YAML, or holds something else than a mapping.
    """
    content = parse_yaml(path)
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"{str(content)[:40]!r}"
        raise BadInput.at(str(path), f"holds {held}, no settings", remedy)
    return {str(key): value for key, value in content.items()}


def parse_yaml(path: Path) -> object:
    """Return what a YAML file holds.

    Args:
        path: The file.

    Raises:
        BadInput: It can't be read, or isn't YAML.
    """
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput.unreadable(str(path), error) from error
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text ({error})"
        raise BadInput.at(str(path), problem, "give a file in YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = f"is not well-formed YAML ({getattr(error, 'problem', error)})"
        raise BadInput.at(place, problem, "repair it") from error
    # Values that PyYAML takes for dates and numbers, and can't make; nesting without end.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"holds a value that can't be read ({error})"
        raise BadInput.at(str(path), problem, "quote the value, or repair it") from error
    return content


def encoded(text: str) -> bytes:
    r"""Return a text as UTF-8, the names of files in it as the bytes that they have on the disk.

    Examples:
        >>> encoded("é"), encoded("caf\udce9.png")
        (b'\xc3\xa9', b'caf\xe9.png')
    """
    return text.encode("utf-8", "surrogateescape")


def expanded(path: str | Path) -> Path:
    """Return a path with the user's home folder in the place of `~`.

    Raises:
        BadInput: Nobody knows that folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        problem = "the home folder that ~ means isn't known"
        raise BadInput.at(str(path), problem, "write the path without ~, or set HOME") from error


def make_folder(folder: Path, option: str = "--runs") -> None:
    """Make a folder, with those above it, where it isn't there.

    Args:
        folder: The folder.
        option: What names another one.

    Raises:
        BadInput: It can't be made, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, option) from error


@contextmanager
def locked(path: Path, option: str = "--runs", refusal: BadInput | None = None) -> Iterator[None]:
    """Hold a lock that one process has at a time, and that the system frees however it ends.

    Args:
        path: The lock's file, which is made where it isn't there, and stays.
        option: What names another folder.
        refusal: Raised where another process holds the lock; by default it is waited for.

    Raises:
        BadInput: The lock is held by another process, or its file can't be made.
    """
    lock = FileLock(path, thread_local=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not path.exists():  # so nobody holds it, but it can't be made
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
            if refusal:
                raise refusal from None
            from lightning_bbox.core.messages import say  # by way of Lightning, which takes seconds

            say(f"waiting for another process, which holds {path}")
            lock.acquire()
    except OSError as error:
        raise cannot_write(path, error, option) from error
    try:
        yield
    finally:
        lock.release()


OWN = ".lightning_bbox.lock"
"""The lock of a folder that a run or a study works in; it stays, and so says whose folder it is."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, or a study's, however this one ends.

    What is refused meanwhile leaves a folder that wasn't ours without our lock.

    Args:
        folder: The folder.

    Raises:
        BadInput: Another process is at work in it.
    """
    lock = folder / OWN
    was_there = lock.exists()
    remedy = "wait until it ends, or choose another --name"
    refusal = BadInput.at(str(folder), "another process is at work in it", remedy)
    with locked(lock, refusal=refusal):
        try:
            yield
        except BadInput:
            if not was_there:
                with suppress(OSError):  # some systems keep a file that is open
                    lock.unlink()
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed, in a folder and those below it."""
    for path in folder.rglob(f".*.*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files of writes of one file that were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all."""
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
