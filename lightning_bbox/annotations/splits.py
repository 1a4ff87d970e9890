"""Who trains, validates and tests: the names of splits, their files, and shares without leaks."""

import hashlib
import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lightning_bbox.core.errors import BadInput, listed

ROLES = ("train", "val", "test")
Split = Literal["train", "val", "test"]
_SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainval", "train-val", "train_val"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testdev", "test-dev", "test_dev"), "test"),
}
# The names as whole words, the longest first: train-val is not train and val.
_SPLIT_WORDS = re.compile(
    rf"(?<![^\W\d_])(?:{'|'.join(sorted(_SPLIT_NAMES, key=len, reverse=True))})(?![^\W\d_])"
)


class SplitNames(NamedTuple):
    """Which of the files' splits serve which role; empty lists where nobody said."""

    train: list[str]
    val: list[str]
    test: list[str]


def all_names(names: SplitNames) -> list[str]:
    """Return the names of all roles."""
    return [*names.train, *names.val, *names.test]


def split_files(names: SplitNames) -> list[str]:
    """Return the names that are split files."""
    return [name for name in all_names(names) if name.endswith(".txt")]


def check_names(names: SplitNames) -> None:
    """Refuse names that contradict each other.

    Raises:
        BadInput: If one is named twice, or only some of them are split files.
    """
    named, files = all_names(names), split_files(names)
    if twice := sorted({name for name in named if named.count(name) > 1}):
        msg = f"split {listed(twice)} is named twice; name each once"
        raise BadInput(msg)
    if files and len(files) != len(named):
        msg = f"splits {listed(named)} mix .txt files and names; use either for all"
        raise BadInput(msg)


def check_known(origins: Sequence[str], names: SplitNames) -> None:
    """Refuse names that no picture has.

    Args:
        origins: The split of each picture, as the files tell it.
        names: What the user names.

    Raises:
        BadInput: If no picture is in a split that is named.
    """
    there = set(origins)
    if unknown := [name for name in all_names(names) if name not in there]:
        known = listed(sorted(there - {""}))
        msg = f"there is no split {listed(unknown)}; the files have {known or 'none'}"
        raise BadInput(msg)


def image_sets(root: Path, whole: bool = True) -> SplitNames:
    """Return VOC's split files that are there.

    Args:
        root: Folder of the data set, which `ImageSets/Main` lies in.
        whole: Whether `trainval.txt` may train: where `test.txt` tests, or one of its two parts
            isn't there.
    """
    folder = PurePosixPath("ImageSets/Main")
    there = {path.stem: str(folder / path.name) for path in (root / folder).glob("*.txt")}
    whole &= "trainval" in there and ("test" in there or not {"train", "val"} <= there.keys())
    stems = ("trainval", "", "test") if whole else ("train", "val", "test")
    return SplitNames(*([there[stem]] if stem in there else [] for stem in stems))


def shared_groups(groups: Iterable[str], roles: Iterable[str]) -> list[str]:
    """Return the groups that lie in more than one role.

    Args:
        groups: The group of each picture.
        roles: Its role; nothing where it has none.
    """
    seen: dict[str, set[str]] = {}
    for group, role in zip(groups, roles, strict=True):
        seen.setdefault(group, set()).add(role)
    return sorted(group for group, found in seen.items() if len(found - {""}) > 1)


def usual_split(name: str) -> Split | None:
    """Tell which split a usual name means, in any case and with digits behind or not.

    Args:
        name: Name of a split or of a folder.
    """
    return _SPLIT_NAMES.get(re.sub(r"[ _-]?\d*$", "", name.casefold()))


def split_in_name(file: str) -> Split | None:
    """Tell which split a file is of by the one usual name among the words of its own name.

    Args:
        file: Path of a file that speaks of many pictures.
    """
    words = _SPLIT_WORDS.findall(PurePosixPath(file).stem.casefold())
    found = {_SPLIT_NAMES[word] for word in words}
    return found.pop() if len(found) == 1 else None


def split_pictures(
    groups: Sequence[str], fraction: float, seed: int, fold: int = 0
) -> tuple[list[int], list[int]]:
    """Split the pictures by group, the same way whatever their order.

    Takes the group of each picture, and otherwise what `hold_out_groups` does. Returns the indices
    of the pictures kept, and of those held out.
    """
    return _parted(groups, hold_out_groups(set(groups), fraction, seed, fold))


def hold_out_groups(groups: Set[str], fraction: float, seed: int, fold: int = 0) -> set[str]:
    """Choose groups to hold out, by a hash of seed and name.

    So a group keeps its place when others are added. The folds of one seed share no group, and
    together they are all: as many as the fraction goes into 1, the first of its size, the others as
    equal as can be.

    Args:
        groups: Names of the groups.
        fraction: Fraction of them to hold out, rounded, but one at least where it is positive, and
            never all.
        seed: Other seeds hold out other groups.
        fold: Which share to hold out, from 0, for cross-validation.

    Raises:
        BadInput: If the fraction is not in [0, 1), there is only one group to split, or no such
            fold.
    """
    if not 0 <= fraction < 1:
        msg = f"the fraction to hold out is {fraction}; choose one in [0, 1)"
        raise BadInput(msg)
    folds = round(1 / fraction) if fraction else 1
    if not 0 <= fold < folds:
        msg = (
            f"splits: there is no fold {fold}, as a fraction of {fraction:g} makes {folds} folds, "
            f"from 0; set fold or test_fold to one of them"
        )
        raise BadInput(msg)
    if fraction == 0:
        return set()
    if len(groups) < 2:
        names = listed(sorted(groups)) or "none"
        msg = (
            f"there are too few groups to hold one out ({names}); "
            f"give three at least, to train, validate and test on"
        )
        raise BadInput(msg)
    ordered = sorted(groups, key=lambda group: _digest(f"{seed}:{group}"))
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    if fold == 0:
        return set(ordered[:count])
    rest, others = ordered[count:], folds - 1
    if len(rest) < others:
        msg = f"there are {len(groups)} groups, too few for {folds} folds; raise val_fraction"
        raise BadInput(msg)
    start, end = (len(rest) * at // others for at in (fold - 1, fold))
    return set(rest[start:end])


def held_out(groups: Sequence[str], names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Split the pictures by the names of the groups to hold out.

    Takes the group of each picture. Returns the indices of the pictures kept, and of those held
    out.

    Raises:
        BadInput: If no picture is of a group that is named.
    """
    if unknown := [name for name in names if name not in groups]:
        there = sorted(set(groups))
        msg = f"there is no group {listed(unknown)}; choose from {listed(there)}"
        raise BadInput(msg)
    return _parted(groups, set(names))


def _parted(groups: Sequence[str], out: Set[str]) -> tuple[list[int], list[int]]:
    held = [group in out for group in groups]
    places = range(len(held))
    return [at for at in places if not held[at]], [at for at in places if held[at]]


def _digest(text: str) -> bytes:
    # surrogateescape: names of files need not be UTF-8
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
