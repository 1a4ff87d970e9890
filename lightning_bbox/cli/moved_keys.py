"""Options that have other names since 0.2: the old ones go on working for one version."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

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

_OURS = ("BoxDataModule", "PatchDataModule")  # a user's own class may have an option of such a name
_OPTION = re.compile(r"--data\.(?:init_args\.)?(\w+)(\+?)(=.*)?", re.DOTALL)


def with_new_options(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Rename the options of a command line; its configs are renamed as they are parsed.

    Args:
        words: The command line, with the paths of its configs.

    Returns:
        The command line, and which options were renamed, in the configs too.

    Examples:
        >>> with_new_options(["fit", "--data.batch_size=8", "--data.val_fold", "1"])
        (['fit', '--data.batch_size=8', '--data.splits.fold', '1'], {'val_fold': 'splits.fold'})
    """
    configs = [_loaded(text) for text in _configs(words)]
    if not all(map(_is_ours, [*_values(words, "--data"), *map(_class_in, configs)])):
        return list(words), {}
    moved = dict[str, str]()
    for config in configs:
        moved |= _rename(config)
    renamed = []
    for word, following in _pairs(words):
        found = _OPTION.fullmatch(word)
        value = found[3][1:] if found and found[3] else following
        if found and (new := _new_name(found[1], value)):
            moved[found[1]] = new
            renamed.append(f"--data.{new}{found[2]}{found[3] or ''}")
        else:
            renamed.append(word)
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
    config = _loaded(text)
    if not _is_ours(_class_in(config)) or not _rename(config):
        return text
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def told(moved: dict[str, str]) -> str:
    """Say which names are old.

    Examples:
        >>> told({"val_fold": "splits.fold"})
        'data.val_fold is data.splits.fold now; the old name goes with the next version'
    """
    names = ", ".join(f"data.{old} is data.{new} now" for old, new in moved.items())
    return f"{names}; the old name{'s go' if len(moved) > 1 else ' goes'} with the next version"


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
    for key, value in list(arguments.items()):
        if new := _new_name(key, value):
            group, _, name = new.partition(".")
            del arguments[key]
            arguments.setdefault(group, {})[name] = value
            moved[key] = new
    return moved


def _is_ours(class_path: str) -> bool:
    return not class_path or class_path.rpartition(".")[2] in _OURS


def _class_in(config: dict[str, Any]) -> str:
    """Return the class of data that a config asks for, or nothing."""
    data = config.get("data")
    name = data.get("class_path") if isinstance(data, dict) else data
    return name if isinstance(name, str) else ""


def _configs(words: Sequence[str]) -> Iterator[str]:
    """Yield the text of each config; what can't be read is refused by the parser."""
    for value in _values(words, "-c", "--config"):
        try:
            yield Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError):
            yield value


def _values(words: Sequence[str], *options: str) -> Iterator[str]:
    for word, following in _pairs(words):
        name, given, value = word.partition("=")
        if name in options:
            yield value if given else following


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word with the one behind it."""
    return zip(words, [*words[1:], ""], strict=True)


def _loaded(text: str) -> dict[str, Any]:
    """Read YAML; what is none is refused by the parser."""
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
