"""Files that are whole or not there, and that say what they were made of."""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from lightning_bbox.core.errors import BadInput

CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full or may not be written to."""

_PIECE = 1 << 24  # bytes of a file that are read at once


def write_atomically(path: Path, *content: bytes | memoryview, option: str = "--runs") -> None:
    """Write a file whole or not at all: a temporary neighbour, synced, then renamed.

    The folder is synced too, so that the new name outlives a power cut.

    Args:
        path: The file.
        content: What it holds, one piece after the other.
        option: What names another folder.

    Raises:
        BadInput: The folder can't be written to, or there is no room; what was there stays.
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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"{str(content)[:40]!r}"
        raise BadInput.at(str(path), f"holds {held}, no settings", remedy)
    return {str(key): value for key, value in content.items()}


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


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed."""
    for path in folder.rglob(".*.*.tmp"):
        path.unlink(missing_ok=True)


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


class KeyedFile:
    """A file, and a sidecar in JSON that says what it depends on, and how to know it is whole.

    The sidecar is written last, so a file that has one is whole.

    Args:
        path: The file; the sidecar lies beside it.
        key: What the file's content depends on, by name.
        option: What names another folder.
    """

    def __init__(self, path: Path, key: dict[str, str], option: str) -> None:
        self.path, self.sidecar = path, path.with_suffix(".json")
        self.key, self.option = key, option

    def problem(self) -> str | None:
        """Say why the file can't be used: it is stale or damaged; `""` where there is none."""
        if not self.sidecar.exists():
            return ""
        try:
            said = json.loads(self.sidecar.read_bytes())
            key, size, checksum = dict(said["key"]), said["bytes"], said["crc32"]
        except (OSError, ValueError, TypeError, KeyError):
            return f"damaged ({self.sidecar.name} can't be read)"
        names = [name for name in self.key | key if self.key.get(name) != key.get(name)]
        if names:
            return f"stale (made of other {', '.join(names)})"
        try:
            if (found := self.path.stat().st_size) != size:
                return f"damaged ({self.path.name} has {found} bytes of {size})"
            if _checksum(self.path) != checksum:
                return f"damaged (the checksum of {self.path.name} is wrong)"
        except OSError as error:
            return f"damaged ({self.path.name} can't be read: {error.strerror})"
        return None

    def write(
        self, pieces: Iterable[bytes | memoryview], facts: Mapping[str, object] | None = None
    ) -> None:
        """Write both files, each whole or not at all, as the pieces come.

        Args:
            pieces: What the file holds, one piece after the other.
            facts: What else the sidecar tells a person.

        Raises:
            BadInput: The folder can't be written to, or there is no room.
        """
        size = checksum = 0

        def passing() -> Iterator[bytes | memoryview]:
            nonlocal size, checksum
            for piece in pieces:
                size, checksum = size + len(piece), zlib.crc32(piece, checksum)
                yield piece

        # An old sidecar must not vouch for the new file, nor the new one for an old file.
        write_pieces(self.path, passing(), self.option)
        said = {"key": self.key, **(facts or {}), "bytes": size, "crc32": checksum}
        write_atomically(self.sidecar, json.dumps(said, indent=2).encode(), option=self.option)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum
