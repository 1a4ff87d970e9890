"""Files that later runs use again, with a sidecar that says what they were made of."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lightning_bbox.core.files import write_atomically, write_pieces

_PIECE = 1 << 24  # bytes of a file that are read at once


class KeyedFile:
    """A file, and a sidecar in JSON that says what it depends on, and how to know it is whole.

    The sidecar is written last, so a file that has one is whole.

    Args:
        path: The file; the sidecar lies beside it.
        key: What the file's content depends on, by name.
        option: What names another folder.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.bin"
        ...     KeyedFile(path, {"weights": "a"}, "--model.cache").write([b"12", b"3"])
        ...     KeyedFile(path, {"weights": "b"}, "--model.cache").problem()
        'stale (made of other weights)'
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
