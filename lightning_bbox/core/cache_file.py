"""A cache's file, whose head signs it and says what it was made of."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import locked, remove_leftovers_of, replacing

_MADE_BY = "lightning_bbox"
_PIECE = 1 << 24  # bytes of a file that are read at once
_PAGE = 4096  # a head fills some of these, so that what follows begins where a page does
_LONGEST_HEAD = 1 << 24


def digest_of(key: Mapping[str, object]) -> str:
    """Return a fingerprint of a key for a file's name, or of a head: 16 hexadecimal digits.

    Examples:
        >>> digest_of({"seed": "0"})
        '576926118785c9af'
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def usual_folder(root: Path) -> Path:
    """Return where what is made of a data set is kept on disk where nobody says.

    Args:
        root: Folder of the data set.

    Raises:
        BadInput: The user has no home folder.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        msg = "no home folder is known to keep files in; set HOME, or name one for pixels with "
        msg += "--data.store.folder"
        raise BadInput(msg) from error
    root = root.resolve()
    name = f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    return cache / "lightning_bbox" / name


class Content(NamedTuple):
    """The content of a cache's file, of which it is known that it is whole.

    Attributes:
        file: The file, open, which is to be closed; it stands where the content begins.
        start: Where that is, in bytes.
        facts: What else its head tells.
    """

    file: BinaryIO
    start: int
    facts: dict[str, Any]


class CacheFile:
    """A file that one process makes, and many use without waiting for each other, now and later.

    Its head is a line of JSON that says who made it, of what, and how to know that it is whole. A
    file that has no such head is somebody else's: it is neither used nor replaced.

    Args:
        path: The file. Its name tells it from those of other keys, by `digest_of`.
        key: What the content depends on, by name.
        option: What names another folder.
    """

    def __init__(self, path: Path, key: dict[str, str], option: str) -> None:
        self.path, self.key, self.option = path, key, option

    def open(self) -> Content | str:
        """Open the file, and return its content or say why it can't be used.

        It is checked by its size and time of change. Only where somebody has touched or copied it
        all of it is read, once, for its checksum.

        Returns:
            The content; or why it is of no use; `""` where there is no file.

        Raises:
            BadInput: The file can't be read, or is somebody else's.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise BadInput.unreadable(str(self.path), error) from error
        with ExitStack() as unless_whole:
            unless_whole.enter_context(file)
            try:
                head, start = self._head_of(file)
                if problem := self._problem(file, head, start):
                    return problem
            except OSError as error:
                raise BadInput.unreadable(str(self.path), error) from error
            unless_whole.pop_all()
        return Content(file, start, head["facts"])

    def _head_of(self, file: BinaryIO) -> tuple[dict[str, Any], int]:
        """Return what the head says, and where it ends."""
        line = file.readline(_LONGEST_HEAD)
        try:
            head = json.loads(line)
            if head["made_by"] == _MADE_BY:
                return head, len(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        problem = f"wasn't written by {_MADE_BY}, and nothing else is written over"
        remedy = f"move it away, or name another folder with {self.option}"
        raise BadInput.at(str(self.path), problem, remedy)

    def _problem(self, file: BinaryIO, head: dict[str, Any], start: int) -> str:
        sealed = {name: said for name, said in head.items() if name != "seal"}
        if head.get("seal") != digest_of(sealed):
            return f"damaged (the head of {self.path.name} has changed)"
        key = head["key"]
        if names := [name for name in self.key | key if self.key.get(name) != key.get(name)]:
            return f"stale (made of other {', '.join(names)})"
        stat = os.fstat(file.fileno())
        if stat.st_size != (whole := start + head["bytes"]):
            return f"damaged ({self.path.name} has {stat.st_size} bytes of {whole})"
        if stat.st_mtime_ns != _nanoseconds(head["modified"]):
            checksum = 0
            while piece := file.read(_PIECE):
                checksum = zlib.crc32(piece, checksum)
            if f"{checksum:08x}" != head["crc32"]:
                return f"damaged (the checksum of {self.path.name} is wrong)"
            _set_time(self.path, head["modified"])
        file.seek(start)
        return ""

    @contextmanager
    def making(self) -> Iterator[None]:
        """Keep other processes from making the file too; who only reads it doesn't wait.

        Raises:
            BadInput: The folder can't be written to.
        """
        with locked(self.path.with_name(f"{self.path.name}.lock"), self.option):
            remove_leftovers_of(self.path)
            yield

    def write(
        self,
        size: int,
        pieces: Iterable[bytes | memoryview],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Write the file whole or not at all, as its pieces come: it need never be in memory.

        Args:
            size: Bytes of all pieces.
            pieces: What it holds, one piece after the other.
            facts: What else its head is to tell.

        Raises:
            BadInput: The folder can't be written to, or there is no room; what was there stays.
        """
        # Even seconds of the past: every file system keeps them, and no later change has them.
        modified = int(time.time() - 2) // 2 * 2
        said = {"made_by": _MADE_BY, "key": self.key, "facts": facts or {}, "bytes": size}

        def head(checksum: int) -> bytes:
            whole = said | {"crc32": f"{checksum:08x}", "modified": modified}
            line = json.dumps(whole | {"seal": digest_of(whole)}).encode()
            return line + b" " * (-(len(line) + 1) % _PAGE) + b"\n"

        with replacing(self.path, self.option) as file:
            checksum, start = 0, file.write(head(0))
            for piece in pieces:
                file.write(piece)
                checksum = zlib.crc32(piece, checksum)
            assert file.tell() == start + size
            file.seek(0)
            file.write(head(checksum))
        _set_time(self.path, modified)


def _nanoseconds(seconds: int) -> int:
    return seconds * 1_000_000_000


def _set_time(path: Path, seconds: int) -> None:
    with suppress(OSError):  # somebody else's: it is read whole each time
        os.utime(path, (seconds, seconds))
