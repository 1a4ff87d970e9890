"""What each picture was taken of: its group, which never lies in two splits."""

import re
from collections.abc import Mapping

from lightning_bbox.annotations.formats.format import Picture
from lightning_bbox.core.errors import BadInput


def group_pictures(found: Mapping[str, Picture], pattern: str | None) -> tuple[str, ...]:
    """Name the group of each picture: as the pattern or else the file says, or else its own path.

    Args:
        found: The pictures by path.
        pattern: Regular expression to search in a path, whose first group is the picture's group.

    Raises:
        BadInput: If the pattern is no regular expression with a group, or doesn't fit a path.
    """
    if pattern is None:
        return tuple(picture.group or path for path, picture in found.items())
    expression = _compiled(pattern)
    groups = []
    for path in found:
        match = expression.search(path)
        if match is None or not match[1]:
            problem = f"group_pattern {pattern!r} finds no group in this path"
            raise BadInput.at(path, problem, "write a pattern that fits every picture")
        groups.append(match[1])
    return tuple(groups)


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
