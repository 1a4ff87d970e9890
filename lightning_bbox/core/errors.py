"""The one way this package refuses what a user gave it."""

import difflib
import errno
from collections.abc import Iterable, Sequence
from typing import Self

CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full or may not be written to."""

_MOST_LISTED = 12
_FIRST = 10
_LONGEST = 2000  # characters: a file may hold a megabyte where a name should be


class BadInput(ValueError):  # noqa: N818 - named by what the user reads, not by how it is raised
    """Say in one sentence what cannot be used and what to do about it.

    The command line prints the sentence and exits with 2. It is kept to one line of bearable
    length, whatever it quotes.

    Examples:
        >>> str(BadInput("context is -1; expected > 0"))
        'context is -1; expected > 0'
    """

    def __init__(self, sentence: str) -> None:
        line = " ".join(sentence.splitlines())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
        super().__init__(line)

    @classmethod
    def at(cls, place: str, problem: str, remedy: str) -> Self:
        """Compose the sentence from its three parts.

        Args:
            place: File, line or id that the problem stands at.
            problem: What is wrong there, with the value.
            remedy: What the user can do.

        Examples:
            >>> str(BadInput.at("boxes.csv:12", "xmin is 'a', not a number", "correct the line"))
            "boxes.csv:12: xmin is 'a', not a number; correct the line"
        """
        return cls(f"{place}: {problem}; {remedy}")

    @classmethod
    def all_of(cls, problems: Sequence["BadInput"]) -> "BadInput":
        """Say several problems at once: how many there are, and the first ten.

        Args:
            problems: One at least.

        Examples:
            >>> str(BadInput.all_of([BadInput("a.png: broken"), BadInput("b.png: missing")]))
            '2 problems: a.png: broken | b.png: missing'
        """
        if len(problems) == 1:
            return problems[0]
        said = [str(problem) for problem in problems[:_FIRST]]
        more = [f"and {len(problems) - _FIRST} more"] * (len(problems) > _FIRST)
        return cls(f"{len(problems)} problems: {' | '.join([*said, *more])}")

    @classmethod
    def unreadable(cls, place: str, error: OSError) -> Self:
        """Say that the system can't read a file or folder, and why.

        Examples:
            >>> str(BadInput.unreadable("boxes.csv", IsADirectoryError(21, "Is a directory")))
            "boxes.csv: can't be read (Is a directory); check its name and permissions"
        """
        return cls.at(place, f"can't be read ({error.strerror})", "check its name and permissions")


BadInput.__module__ = "lightning_bbox"  # its public path, which tracebacks print


def shortened(text: str, most: int = 300) -> str:
    r"""Keep both ends of a name that is too long to be read, and all of it in one line.

    Args:
        text: The name.
        most: How many characters are bearable.

    Examples:
        >>> shortened("a" * 1000, most=20)
        'aaaaaaaa ... aaaaaaaa'
        >>> print(shortened("a\nb.png"))
        a\nb.png
    """
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    half = (most - 4) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def listed(names: Sequence[str]) -> str:
    """Join names for a message, the first dozen of them.

    Examples:
        >>> listed(["RBC", "WBC"])
        'RBC, WBC'
        >>> listed([str(number) for number in range(100)])
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more'
    """
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(map(shortened, names[:_MOST_LISTED])) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """Ask whether the nearest of the known names was meant; say nothing where none is near.

    Examples:
        >>> nearest("rot", ["root", "images"])
        'did you mean root?'
    """
    by_letters = {word.casefold(): word for word in known}
    begun = [word for word in by_letters if word.startswith(name.casefold())]
    near = begun[:1] or difflib.get_close_matches(name.casefold(), by_letters, n=1)
    return f"did you mean {by_letters[near[0]]}?" if near else ""
