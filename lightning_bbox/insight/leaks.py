"""Pictures of the same thing on both sides of a split: numbered frames, and near-duplicates."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor

from lightning_bbox.annotations.formats.texts import argument

_FRAME = re.compile(r"^(.*\D|)(\d+)\D*$")
_FEW = 3  # frames that make a sequence
_NEAR = 10  # numbers of a sequence's neighbours lie no farther apart, at the median
_PATTERNS = (
    r"([^/]+)\.rf\.",
    r"^(.+?)[-_./ ]+\d+[^/\d]*\.\w+$",
    r"^(.+)/[^/]+$",
    r"([^/_-]+)[_-][^/]*$",
)
"""Groups that names may tell: before `.rf.`, before the last number, the folder, the first word."""


class Leak(NamedTuple):
    """Pictures that show the same, in different splits.

    Attributes:
        words: What was found, with a count and an example.
        pattern: The `group_pattern` that puts such pictures together, or nothing where none does.
    """

    words: str
    pattern: str

    def sentence(self) -> str:
        """Say what was found and what mends it."""
        if not self.pattern:
            return f"{self.words}; put such pictures into one group"
        return f"{self.words}; {argument('group_pattern', self.pattern)} keeps them together"


def torn_sequences(
    images: Sequence[str], groups: Sequence[str], roles: Sequence[str]
) -> Leak | None:
    """Find numbered frames that lie in several splits.

    One sequence alone is no evidence: most sets number their pictures. Several that are numbered
    each on its own are the frames of as many videos, or the pieces of as many pictures.

    Args:
        images: Paths of the pictures.
        groups: The group of each.
        roles: The role of each, or nothing.

    Examples:
        >>> images = [f"cam{cam}_{n:03}.png" for cam in (1, 2) for n in range(4)]
        >>> torn_sequences(images, images, ["train", "train", "val", "train"] * 2).words
        '2 sequences of numbered pictures lie in several splits, such as cam1_000.png (train) and
        cam1_002.png (val)'
    """
    sequences: dict[str, dict[int, int]] = defaultdict(dict)
    for at, path in enumerate(images):
        match = _FRAME.match(path.rpartition(".")[0] or path)
        if match and groups[at] == path:
            sequences[match[1]][int(match[2])] = at
    long = {name: found for name, found in sequences.items() if _is_sequence([*found])}
    if len(long) < 2:
        return None
    pairs = []
    for found in long.values():
        ends = {roles[at]: at for at in reversed([*found.values()]) if roles[at]}
        if len(ends) > 1:
            first, second, *_ = sorted(ends.values())
            pairs.append((first, second))
    if not pairs:
        return None
    example = " and ".join(f"{images[at]} ({roles[at]})" for at in pairs[0])
    words = f"{len(pairs)} sequences of numbered pictures lie in several splits, such as {example}"
    return Leak(words, _pattern_for(images, pairs))


def alike_across(
    pairs: Int64[Tensor, "pairs 2"], images: Sequence[str], roles: Sequence[str]
) -> Leak | None:
    """Find pictures that look nearly the same but lie in different splits.

    Args:
        pairs: The indices of pictures that look alike.
        images: Paths of the pictures.
        roles: The role of each, or nothing.
    """
    torn = [
        (one, other)
        for one, other in pairs.tolist()
        if roles[one] and roles[other] and roles[one] != roles[other]
    ]
    if not torn:
        return None
    example = " and ".join(f"{images[at]} ({roles[at]})" for at in torn[0])
    word = "pair" if len(torn) == 1 else "pairs"
    words = f"{len(torn)} {word} of nearly equal pictures in different splits, such as {example}"
    return Leak(words, _pattern_for(images, torn))


def _is_sequence(numbers: Sequence[int]) -> bool:
    ordered = sorted(numbers)
    gaps = sorted(b - a for a, b in pairwise(ordered))
    return len(numbers) >= _FEW and gaps[len(gaps) // 2] <= _NEAR


def _pattern_for(images: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    """Return the pattern that fits every path, joins all pairs and leaves groups to split."""
    for pattern in _PATTERNS:
        found = [re.search(pattern, path) for path in images]
        groups = [match[1] for match in found if match]
        joins = len(groups) == len(images) and all(groups[a] == groups[b] for a, b in pairs)
        if joins and len(set(groups)) >= 3:
            return pattern
    return ""
