"""What each picture was taken of: its group, which never lies in two splits."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.core.errors import BadInput

_SOURCE = re.compile(r"^(.+)\.rf\.[0-9a-zA-Z]+\.[^.]+$")
"""Names of Roboflow's copies of a picture, which share what stands before `.rf.`."""


def group_pictures(found: Mapping[str, Picture], pattern: str | None) -> tuple[str, ...]:
    """Name the group of each picture: as the pattern or else the file says, or else its own path.

    Copies of one picture, which Roboflow names alike up to `.rf.`, are one group, whatever folder
    they lie in.

    Args:
        found: The pictures by path.
        pattern: Regular expression to search in a path, whose first group is the picture's group.

    Raises:
        BadInput: If the pattern is no regular expression with a group, or doesn't fit a path.
    """
    if pattern is None:
        return tuple(picture.group or _source(path) or path for path, picture in found.items())
    return groups_in(found, pattern)


def groups_in(paths: Iterable[str], pattern: str) -> tuple[str, ...]:
    """Find the group of each picture in its path.

    Args:
        paths: The pictures' paths.
        pattern: Regular expression to search in them, whose first group is the picture's group.

    Raises:
        BadInput: If the pattern is no regular expression with a group, or doesn't fit a path.

    Examples:
        >>> groups_in(["a-1.png", "a-2.png", "b-1.png"], "(.)-")
        ('a', 'a', 'b')
    """
    expression = _compiled(pattern)
    groups = []
    for path in paths:
        match = expression.search(path)
        if match is None or not match[1]:
            problem = f"group_pattern {pattern!r} finds no group in this path"
            raise BadInput.at(path, problem, "write a pattern that fits every picture")
        groups.append(match[1])
    return tuple(groups)


def groups_note(found: Mapping[str, Picture], groups: Sequence[str]) -> str:
    """Say how many pictures are copies of others, as their names tell; nothing where none is.

    Args:
        found: The pictures by path.
        groups: The group of each.
    """
    copies = Counter(
        group
        for (path, picture), group in zip(found.items(), groups, strict=True)
        if not picture.group and group == _source(path)
    )
    several = {group: count for group, count in copies.items() if count > 1}
    if not several:
        return ""
    pictures = sum(several.values())
    return f"{pictures} pictures are copies of {len(several)}, by what stands before .rf. in names"


def _source(path: str) -> str:
    match = _SOURCE.match(PurePosixPath(path).name)
    return match[1] if match else ""


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        msg = f"group_pattern {pattern!r} is no regular expression ({error}); correct it"
        raise BadInput(msg) from error
    if not expression.groups:
        msg = f"group_pattern {pattern!r} has no group; put what names one in parentheses"
        raise BadInput(msg)
    return expression
