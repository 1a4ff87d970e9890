"""Where the pictures of a sequence lie, and which is the one of a frame."""

import re
from collections.abc import Sequence
from pathlib import Path

_SUFFIX = re.compile(r"\.(avif|bmp|gif|jfif|jpe?g|jp2|png|pgm|ppm|tiff?|webp)$", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)$")


def frames_in(root: Path, folders: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first folder that holds pictures, with their names by their numbers.

    Args:
        root: Folder of the data set.
        folders: Folders relative to it, best first.
    """
    for folder in folders:
        path = root / folder
        names = [each.name for each in path.iterdir()] if path.is_dir() else []
        if pictures := [name for name in names if _SUFFIX.search(name)]:
            return folder, sorted(pictures, key=lambda name: (frame_of(name), name))
    return folders[0], []


def frame_of(name: str) -> int:
    """Return the number at the end of a picture's name, or -1.

    Examples:
        >>> frame_of("frame_000017.PNG"), frame_of("a.png")
        (17, -1)
    """
    match = _NUMBER.search(name.rpartition(".")[0])
    return int(match[1]) if match else -1
