"""What people write on the command line, made into what LightningCLI takes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded, read_yaml

COMMANDS = {
    "fit": "Train a model, and test its best checkpoint.",
    "validate": "Measure a trained model on the validation split.",
    "test": "Measure a trained model on the test split.",
    "predict": "Refine the boxes of annotation files with a trained model.",
    "probe": "Show where in a network, trained or not, the offset can be read linearly.",
    "check": "Say what a data set is and what is wrong with it, before anything is trained.",
    "diagnose": "Say why a training doesn't learn, and measure what mends it.",
    "export": "Write a trained model as one graph that runs without this package.",
    "audit": "Say which annotated boxes are wrong, by models that haven't seen them.",
    "apply": "Make annotation files of what a person decided on review.html.",
    "card": "Write a card of a trained model, and the model as a folder to share.",
    "serve": "Answer over HTTP, and Label Studio, with a trained model.",
    "compare": "Measure configurations against each other, as a study's file says.",
}

OF_TRAINED = ("validate", "test", "predict", "probe", "diagnose")
"""Commands for which a checkpoint says what the model is."""

OPTIONS = (
    "config",
    "help",
    "print_config",
    "seed_everything",
    "name",
    "runs",
    "ckpt_path",
    "second",
)
"""What every command takes beside `trainer`, `model` and `data`."""
OPTIONS_OF = {
    "predict": ("decimals", "law", "max_shift", "overwrite", "review"),
    "probe": ("draws", "width", "lambda_by"),
    "audit": ("folds", "jobs", "overlap", "apply", "review"),
    "diagnose": ("minutes", "steps", "replay"),
}
"""What a command takes besides: `commands` and the signature of `probe` say how."""

PRESET = "preset:"
_PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where presets lie: inside an installed package, beside it in a checkout."""


_WITHOUT_FILES = ("SceneDataModule", "PatchDataModule")
"""Data that has no annotation files: a run on it is applied to those of pictures."""
_LONG = {"-c": "--config", "-h": "--help"}


class Option(NamedTuple):
    """An option as it was written: its name with the dashes, its value, and all its words."""

    name: str
    value: str
    words: list[str]


def options(arguments: Sequence[str]) -> Iterator[Option]:
    """Yield the options of a command line in their order.

    Args:
        arguments: The words behind the command.

    Examples:
        >>> [(option.name, option.value) for option in options(["-c", "a.yaml", "--data.root=b"])]
        [('--config', 'a.yaml'), ('--data.root', 'b')]
    """
    rest = list(arguments)
    while rest:
        name, equals, value = rest[0].partition("=")
        words = rest[:1]
        if not equals and rest[1:] and not rest[1].startswith(("--", "-c", "-h")):
            value, words = rest[1], rest[:2]
        yield Option(_LONG.get(name, name), value, words)
        rest = rest[len(words) :]


def chosen_class(group: str, given: Sequence[Option]) -> str:
    """Return the class path that a command line chooses for `model` or `data`, the last one.

    Raises:
        BadInput: A config can't be read.
    """
    class_path = ""
    for option in given:
        if option.name == f"--{group}":
            class_path = option.value
        elif option.name == "--config":
            class_path = class_in(content_of(option.value), group) or class_path
    return class_path


def class_in(config: dict[str, Any], group: str) -> str:
    """Return the class path that a config names for `model` or `data`, or nothing."""
    chosen = config.get(group)
    chosen = chosen.get("class_path") if isinstance(chosen, dict) else chosen
    return chosen if isinstance(chosen, str) else ""


def content_of(config: str) -> dict[str, Any]:
    """Return what a config holds.

    Raises:
        BadInput: It can't be read.
    """
    return read_yaml(Path(config), "write options as in trainer: {max_epochs: 9}")


def resolve(arguments: Sequence[str]) -> list[str]:
    """Replace presets by their files, and what names a run's folder by the options it stands for.

    `--resume FOLDER` goes on with a run; `--ckpt_path` without a config takes that of the run whose
    folder, or checkpoint, it names. What is predicted are the boxes of annotated pictures.

    Args:
        arguments: The command, and its options.

    Raises:
        BadInput: There is no such preset, or no run to resume.

    Examples:
        >>> resolve(["fit", "--trainer.max_epochs=1"])
        ['fit', '--trainer.max_epochs=1']
    """
    given = list(options([_at_home(word) for word in arguments[1:]]))
    words: list[str] = []
    of_run: list[str] = []
    for name, value, written in given:
        if name == "--resume":
            of_run = _resumed(Path(value))
        elif name == "--config" and value.startswith(PRESET):
            words.append(f"--config={_preset(value.removeprefix(PRESET))}")
        else:
            words += written
            configured = any(other.name == "--config" for other in given)
            if name == "--ckpt_path" and not configured:
                of_run = of_run or _config_of_run(value)
            if name == "--replay" and not configured and Path(value).exists():
                path = Path(value).absolute()
                of_run = _config_of_run(str(path if path.is_dir() else path.parent))
    if arguments[0] == "check":
        chosen = [*options([*of_run, *words])]
        usual = {"data": "BoxDataModule", "model": "BoxRegressor"}
        missing = [each for each in usual.items() if not chosen_class(each[0], chosen)]
        of_run = [*(f"--{group}={name}" for group, name in missing), *of_run]
    if arguments[0] == "predict" and not chosen_class("data", [*options(words)]):
        named = chosen_class("data", [*options(of_run)]).rpartition(".")[2]
        if named in ("", *_WITHOUT_FILES):
            of_run = [*of_run, "--data=BoxDataModule"]
    # First, so that what else the command line says wins.
    return [*arguments[:1], *of_run, *words]


def _at_home(word: str) -> str:
    """Put the home folder in the place of `~`, which shells leave behind `=`.

    Raises:
        BadInput: The word isn't UTF-8, as names of files may be but configurations can't.
    """
    if re.search("[\ud800-\udfff]", word):
        remedy = "go to that folder, and name it from there, such as --data.root=."
        raise BadInput.at(repr(word), "isn't UTF-8, in which settings are kept", remedy)
    home = re.match(r"(--[\w.+]+=)?~(?=/|$)", word)
    return f"{home[1] or ''}{expanded('~')}{word[home.end() :]}" if home else word


def _config_of_run(checkpoint: str) -> list[str]:
    """Return the option that takes the configuration of a checkpoint's run, where it lies in one.

    The checkpoint may go by its run's folder.
    """
    path = Path(checkpoint)
    if checkpoint not in ("", "best", "last") and not path.exists():
        msg = f"{checkpoint}: no such run or checkpoint; correct --ckpt_path"
        raise BadInput(msg)
    if path.is_file() and path.absolute().parent.name == "checkpoints":
        path = path.absolute().parents[1]
    config = path / "config.yaml"
    return [f"--config={config}"] if checkpoint and config.is_file() else []


def asked_checkpoint(given: Sequence[Option]) -> str | None:
    """Return the path of the checkpoint that a command is to apply; None where none is named.

    Args:
        given: The command's options; the last one wins.
    """
    asked = [option.value for option in given if option.name == "--ckpt_path"]
    return asked[-1] if asked and asked[-1] not in ("best", "last") else None


def _preset(name: str) -> Path:
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    kind = "compare/" * name.startswith("compare/")
    names = sorted(
        {kind + path.stem for folder in CONFIG_FOLDERS for path in folder.glob(f"{kind}*.yaml")}
    )
    msg = f"there is no preset {name!r}; choose one of {', '.join(names)}"
    raise BadInput(msg)


def _resumed(folder: Path) -> list[str]:
    folder = folder if folder.name else folder.resolve()
    config = folder / "config.yaml"
    if not folder.is_dir():
        msg = f"{folder}: no such run; --resume takes the folder of one"
        raise BadInput(msg)
    if not config.is_file():
        msg = f"{config}: missing, so this run can't be resumed; start it anew"
        raise BadInput(msg)
    return [
        f"--config={config}",
        f"--runs={folder.parent}",
        f"--name={folder.name}",
        f"--ckpt_path={folder}",
    ]
