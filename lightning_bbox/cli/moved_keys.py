"""Options that have other names since 0.2: the old ones go on working for one version."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from lightning_bbox.cli.arguments import chosen_class, class_in, content_of, options

MOVED = {
    "annotations": "reading.annotations",
    "images": "reading.images",
    "format": "reading.format",
    "voc_base": "reading.voc_base",
    "on_bad": "reading.on_bad",
    "allow_outside": "reading.allow_outside",
    "train_split": "splits.train",
    "val_split": "splits.val",
    "test_split": "splits.test",
    "test_groups": "splits.test_groups",
    "val_fraction": "splits.val_fraction",
    "test_fraction": "splits.test_fraction",
    "split_seed": "splits.seed",
    "val_fold": "splits.fold",
    "group_pattern": "splits.group_pattern",
    "store": "store.place",
    "store_folder": "store.folder",
}
"""Old names of what `data` takes, and the new ones."""

GONE = "crop.supersample"
"""What `data` takes no more: the cut takes as many samples as each box needs."""

_OURS = (
    "",
    "BoxDataModule",
    "PatchDataModule",
    "SceneDataModule",
)  # a user's own class may have such an option
_GONE_OPTION = re.compile(r"--data\.(?:init_args\.)?crop\.(?:init_args\.)?supersample(?==|$)")
_OPTION = re.compile(r"--data\.(?:init_args\.)?(\w+)(?=[+=]|$)")  # not `--data.store.place`


def with_new_options(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Rename the options of a command line; its configs are renamed as they are parsed.

    Args:
        words: The command line, with the paths of its configs.

    Returns:
        The command line, and which options were renamed, in the configs too.

    Raises:
        BadInput: A config can't be read.

    Examples:
        >>> with_new_options(["fit", "--data.batch_size=8", "--data.val_fold", "1"])
        (['fit', '--data.batch_size=8', '--data.splits.fold', '1'], {'val_fold': 'splits.fold'})
    """
    given, renamed, moved = list(options(words[1:])), list(words[:1]), dict[str, str]()
    if not _is_ours(chosen_class("data", given)):
        return list(words), moved
    for option in given:
        first, *more = option.words
        if _GONE_OPTION.match(first):
            moved[GONE] = ""
            continue
        if option.name == "--config":
            moved |= _rename(content_of(option.value))
        found = _OPTION.match(first)
        if found and (new := _new_name(found[1], option.value)):
            moved[found[1]] = new
            first = f"--data.{new}{first[found.end() :]}"
        renamed += [first, *more]
    return renamed, moved


def with_new_keys(text: str) -> str:
    """Rename the keys of a config in YAML; one that has no old ones is returned as it is.

    Examples:
        >>> print(with_new_keys("data: {init_args: {root: cells, val_fold: 2}}"))
        data:
          init_args:
            root: cells
            splits:
              fold: 2
    """
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
        return text  # the parser says what is wrong with it
    if not isinstance(config, dict) or not _is_ours(class_in(config, "data")):
        return text
    if not _rename(config):
        return text
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def told(moved: dict[str, str]) -> str:
    """Say which names are old, and what is no option any more.

    Examples:
        >>> told({"val_fold": "splits.fold"})
        'data.val_fold is data.splits.fold now; the old name goes with the next version'
    """
    renamed = [f"data.{old} is data.{new} now" for old, new in moved.items() if new]
    goes = f"; the old name{'s go' if len(renamed) > 1 else ' goes'} with the next version"
    sentences = [", ".join(renamed) + goes] if renamed else []
    if GONE in moved:
        sentences.append(f"data.{GONE} is left out: the cut takes the samples that each box needs")
    return "; ".join(sentences)


def _new_name(key: str, value: object) -> str | None:
    """Return the new name of an old key; `store` is both, by what it holds."""
    grouped = isinstance(value, dict) or (isinstance(value, str) and value.startswith("{"))
    return None if key == "store" and grouped else MOVED.get(key)


def _rename(config: dict[str, Any]) -> dict[str, str]:
    """Rename the keys of `data` in place, and return which."""
    data = config.get("data")
    if not isinstance(data, dict):
        return {}
    arguments = data["init_args"] if isinstance(data.get("init_args"), dict) else data
    moved = dict[str, str]()
    crop = arguments.get("crop")
    for holder in (crop, crop.get("init_args")) if isinstance(crop, dict) else ():
        if isinstance(holder, dict) and "supersample" in holder:
            del holder["supersample"]
            moved[GONE] = ""
    for key, value in list(arguments.items()):
        if new := _new_name(key, value):
            group, _, name = new.partition(".")
            del arguments[key]
            arguments.setdefault(group, {})[name] = value
            moved[key] = new
    return moved


def _is_ours(class_path: str) -> bool:
    return class_path.rpartition(".")[2] in _OURS
