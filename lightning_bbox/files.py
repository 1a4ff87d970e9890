"""Files that are whole or not there."""

import os
from io import BytesIO
from pathlib import Path

from PIL import Image


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, synced, then renamed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", b"hello")
        ...     (Path(folder) / "a.txt").read_text()
        'hello'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
