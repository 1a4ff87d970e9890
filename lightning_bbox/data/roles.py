"""Which picture trains, validates and tests, and how that came about: a note for each role."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lightning_bbox.annotations.split_files import pictures_named
from lightning_bbox.annotations.splits import (
    ROLES,
    SplitNames,
    all_names,
    check_known,
    held_out,
    image_sets,
    shared_groups,
    split_files,
    split_pictures,
    usual_split,
)
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.data.options import Shares, Splits

_UNSTATED = "splits.stated is false"


def assign_roles(
    table: BoxTable, asked: Splits, allow_outside: bool
) -> tuple[BoxTable, list[str], list[str]]:
    """Give each picture of a table a role.

    What the user names comes first. A role that nobody names is that of VOC's split file, or of the
    split that goes by its usual name; what bears such a name never trains unless it is named for
    that. Roles that are still missing are carved from the training pictures, by group.

    Args:
        table: All pictures.
        asked: What the user names.
        allow_outside: Whether split files may lie outside the table's root.

    Returns:
        The table with those pictures first that split files name, in their order; the role of each
        picture, or nothing; and what a person should know, a note for each role among it.

    Raises:
        BadInput: What is named isn't there or contradicts itself, or there is nothing to carve.
    """
    if not asked.stated:
        table = replace(table, splits=("",) * len(table.images))
    named, sets = asked.names(), _unnamed_sets(table, asked)
    table = _with_split_files(table, (named, sets), allow_outside)
    check_known(table.splits, named)
    mine = {name: role for role in ROLES for name in getattr(named, role)}
    usual = _usual_roles(set(table.splits), mine, sets)
    taken = {*mine.values(), *(["test"] if asked.test_groups else [])}
    others = {name: "" if role in taken else role for name, role in usual.items()}
    roles, doubts = _roles(table, mine | others, asked.test_groups), list[str]()
    if usual and (shared := shared_groups(table.groups, _roles(table, mine | usual))):
        doubts.append(f"the files' own splits share groups ({listed(shared)})")
    elif usual and "train" not in roles:
        doubts.append(f"the files' own splits ({listed(sorted(usual))}) leave nothing to train on")
    if doubts:
        doubts[-1] += ", so pictures are split by group"
        others, roles = {}, _roles(table, mine, asked.test_groups)
    notes = {role: _note(role, mine, others, asked) for role in ROLES}
    why = _why(table, sets, bool(doubts)) if asked.stated else dict.fromkeys(ROLES, _UNSTATED)
    notes |= _carve(table, roles, asked, why)
    if shared := shared_groups(table.groups, roles):
        msg = f"groups {listed(shared)} lie in more than one split; name other splits or groups"
        raise BadInput(msg)
    left = roles.count("")
    doubts += [f"{left} pictures are in none of the named splits"] * bool(left)
    return table, roles, [*(f"{role}: {note}" for role, note in notes.items()), *doubts]


def _unnamed_sets(table: BoxTable, asked: Splits) -> SplitNames:
    """Return VOC's split files of the roles that the user doesn't name, but none that he does."""
    if not asked.stated:
        return SplitNames([], [], [])
    named = asked.names()
    mine = all_names(named)
    sets = zip(named, image_sets(table.root, whole=not named.train), strict=True)
    return SplitNames(
        *([] if names else [name for name in usual if name not in mine] for names, usual in sets)
    )


def _with_split_files(
    table: BoxTable, ranks: Iterable[SplitNames], allow_outside: bool
) -> BoxTable:
    """Put those pictures first that split files name, with the file as their split.

    The files of the first rank win; those of one rank may not name the same picture.
    """
    named = dict[str, str]()
    for names in ranks:
        mine = dict[str, str]()
        for file in split_files(names):
            images = pictures_named(table.images, table.root, file, allow_outside)
            if twice := [image for image in images if image in mine]:
                problem = f"{twice[0]} is named in {mine[twice[0]]} too"
                raise BadInput.at(file, problem, "put each picture into one split")
            mine |= dict.fromkeys(images, file)
        named |= {image: file for image, file in mine.items() if image not in named}
    if not named:
        return table
    places = {image: at for at, image in enumerate(table.images)}
    order = [*named, *(image for image in table.images if image not in named)]
    table = table.pictures([places[image] for image in order])
    splits = (named.get(*own) for own in zip(table.images, table.splits, strict=True))
    return replace(table, splits=tuple(splits))


def _usual_roles(origins: set[str], mine: Mapping[str, str], sets: SplitNames) -> dict[str, str]:
    """Return the role of each split that the user doesn't name but whose name tells it."""
    of_files = {name: role for role in ROLES for name in getattr(sets, role)}
    usual = {name: of_files.get(name) or usual_split(name) for name in origins - mine.keys()}
    return {name: role for name, role in usual.items() if role}


def _roles(
    table: BoxTable, role_of: Mapping[str, str], test_groups: Sequence[str] | None = None
) -> list[str]:
    """Return each picture's role; what isn't named trains, unless training is."""
    rest = "" if "train" in role_of.values() else "train"
    roles = [role_of.get(split, rest) for split in table.splits]
    for at in held_out(table.groups, test_groups or [])[1]:
        roles[at] = "test"
    return roles


def _note(role: str, mine: Mapping[str, str], usual: Mapping[str, str], asked: Splits) -> str:
    """Say what has a role; all other pictures where nothing is named for it."""
    if role == "test" and asked.test_groups:
        return f"groups {listed(asked.test_groups)}, as splits.test_groups says"
    if names := [name for name, its in mine.items() if its == role]:
        return f"{listed(names)}, as splits.{role} says"
    if names := sorted(name for name, its in usual.items() if its == role):
        return f"the files' own split {listed(names)}"
    return "all other pictures"


def _why(table: BoxTable, sets: SplitNames, dropped: bool) -> dict[str, str]:
    """Say for each role why it has to be carved, if it has."""
    if dropped:
        return dict.fromkeys(ROLES, "the files' own splits can't be used")
    if not all_names(sets):
        there = listed(sorted({split for split in table.splits if split}))
        return {
            role: f"the files have no {role} split, only {there}"
            if there
            else "the files name no splits"
            for role in ROLES
        }
    files = {role: f"{role}.txt" for role in ROLES}
    return {
        role: f"ImageSets' {file} is used for another role"
        if (table.root / "ImageSets" / "Main" / file).is_file()
        else f"ImageSets has no {file}"
        for role, file in files.items()
    }


def _carve(
    table: BoxTable, roles: list[str], asked: Splits, why: Mapping[str, str]
) -> dict[str, str]:
    """Fill in the test and validation roles that nobody named, and say how."""
    notes = dict[str, str]()
    whole = "" if set(roles) == {"train"} else "training "
    for role, fold in (("test", asked.test_fold), ("val", asked.fold)):
        if role in roles:
            if fold:
                name = "test_fold" if role == "test" else "fold"
                msg = f"splits.{name} is {fold}, but the {role} split is there; leave one out"
                raise BadInput(msg)
            continue
        fraction = asked.test_fraction if role == "test" else asked.val_fraction
        train = [at for at, name in enumerate(roles) if name == "train"]
        groups = [table.groups[at] for at in train]
        for at in split_pictures(groups, fraction, asked.seed, fold)[1]:
            roles[train[at]] = role
        what = "pictures" if len({*groups}) == len(groups) else "groups"
        notes[role] = f"{share_note(role, asked, whole + what)}, because {why[role]}"
        whole = "training "
    return notes


def share_note(role: str, shares: Shares, what: str) -> str:
    """Say which share validates or tests.

    Args:
        role: Which of the two.
        shares: The shares.
        what: What they are of, such as pictures.

    Examples:
        >>> share_note("test", Shares(), "pictures")
        '20 % of the pictures by seed 0'
        >>> share_note("val", Shares(fold=3), "training groups")
        '10 % of the training groups by seed 0, fold 3'
    """
    test = role == "test"
    fraction = shares.test_fraction if test else shares.val_fraction
    number = shares.test_fold if test else shares.fold
    fold = f", fold {number}" * (number > 0)
    return f"{100 * fraction:.4g} % of the {what} by seed {shares.seed}{fold}"
