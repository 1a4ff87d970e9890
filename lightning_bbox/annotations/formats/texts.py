"""What files of every format hold: text, lines and numbers.

A file is named relative to the root of its data set.
"""

import re
import reprlib
import shlex
from pathlib import Path

from lightning_bbox.core.errors import BadInput

# Narrower than float(), which also takes 1_000 and the digits of every script. No two parts of it
# take the same digits: trying all their divisions would take hours for a megabyte of them.
_NUMBER = re.compile(
    r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE
)

_SET = ("1", "1.0", "true", "yes")
_EXACT = 16  # digits that a float holds

_OPTIONS = {"root": "--data.root", "group_pattern": "--data.splits.group_pattern"}


def argument(name: str, value: object = None) -> str:
    """Name an argument of `read_annotations` as Python has it and as the command line does.

    Args:
        name: The argument.
        value: What to set it to, where that is known.

    Examples:
        >>> argument("images"), argument("allow_outside", True)
        ('images= (--data.reading.images)',
         'allow_outside=True (--data.reading.allow_outside=true)')
        >>> print(argument("group_pattern", "^(a b)"))
        group_pattern='^(a b)' (--data.splits.group_pattern='^(a b)')
    """
    option = _OPTIONS.get(name, f"--data.reading.{name}")
    if value is None:
        return f"{name}= ({option})"
    plain = "true" if value is True else re.sub("[' ]", "", str(value))
    if isinstance(value, str):
        plain = shlex.quote(value)  # to paste into a shell
    return f"{name}={value!r} ({option}={plain})"


def read_bytes(root: Path, file: str) -> bytes:
    """Read a file.

    Raises:
        BadInput: If it can't be read.
    """
    try:
        return (root / file).read_bytes()
    except OSError as error:
        raise BadInput.unreadable(file, error) from error


def read_text(root: Path, file: str) -> str:
    r"""Read a UTF-8 text file as `plain_text`.

    Raises:
        BadInput: If it can't be read as UTF-8.
    """
    try:
        text = read_bytes(root, file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput.at(file, f"is not UTF-8 text ({error})", "save it as UTF-8") from error
    return plain_text(text)


def plain_text(text: str) -> str:
    r"""Take off a byte order mark, and make all line ends newlines."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(root: Path, file: str) -> list[tuple[int, str]]:
    r"""Read the lines of a text file that are not blank, stripped, each with its number.

    Raises:
        BadInput: If it can't be read as UTF-8.
    """
    lines = enumerate(read_text(root, file).split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def parse_number(text: str, name: str, place: str) -> float:
    """Parse a number written in a file; `nan` and `inf` are numbers too, to be judged as boxes.

    A whole number becomes an int, so that it can be told from 1.0.

    Args:
        text: What is written.
        name: What it is the value of.
        place: Where it stands.

    Raises:
        BadInput: If it is not a number.
    """
    if not _NUMBER.fullmatch(text):
        raise BadInput.at(place, f"{name} is {reprlib.repr(text)}, not a number", "correct it")
    return int(text) if len(text) < _EXACT and text.lstrip("+-").isdigit() else float(text)


def is_set(value: object) -> bool:
    """Tell whether a flag is set, as files of all kinds write it.

    Args:
        value: What the file has: a text, a number, a truth value or nothing.

    Examples:
        >>> [is_set(value) for value in ("1", 1, True, " true", "0", None, "Unspecified")]
        [True, True, True, True, False, False, False]
    """
    return str(value).strip().casefold() in _SET


def whole_text(text: str, place: str) -> str:
    r"""Return a text that files can hold; the escapes of JSON and YAML can name what none can.

    Args:
        text: The name of a class.
        place: Where it stands.

    Raises:
        BadInput: If it has half of a character.
    """
    if re.search("[\ud800-\udfff]", text):
        problem = f"{reprlib.repr(text)} has half of a character"
        raise BadInput.at(place, problem, "write it whole")
    return text
