"""What can be refused before anything heavy is imported: files that aren't there, misspelt options.

Of an option only what comes first is looked at (`--data.root`, `--trainer.max_epochs`), by the
sources alone, and only where none but classes of this package and Lightning's Trainer can have it;
the parser itself sees to the rest.
"""

import ast
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import lightning_bbox
from lightning_bbox.cli.arguments import (
    OF_TRAINED,
    OPTIONS,
    OPTIONS_OF,
    asked_checkpoint,
    chosen_class,
    options,
    resolve,
)
from lightning_bbox.cli.moved_keys import with_new_options
from lightning_bbox.core.errors import BadInput, nearest

NO_SUCH_OPTION = "there is no such option"
SEE_HELP = "`lightning-bbox fit --help` lists the options"

_TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
_GROUPS = ("model", "data")
_OF_ANY_CLASS = ("class_path", "init_args", "dict_kwargs", "help")
_WITHOUT_VALUE = ("help", "print_config", "apply")


def look_first(arguments: Sequence[str]) -> None:
    """Refuse what is wrong with a command line at first sight.

    Args:
        arguments: The command line, the command first.

    Raises:
        BadInput: There is no such option, configuration, preset or run; an option has no value; or
            model or data are missing.

    Examples:
        >>> look_first(["fit", "-c", "preset:csv", "--data.rot=DIR"])
        Traceback (most recent call last):
        lightning_bbox.BadInput: data.rot: there is no such option; did you mean root?
    """
    # Their options are others: their parsers see to them.
    if arguments[0] in ("compare", "apply", "serve", "export", "card"):
        return
    words, _ = with_new_options(resolve(arguments))
    given = list(options(words[1:]))
    own = {*OPTIONS, *OPTIONS_OF.get(arguments[0], ()), "trainer", *_GROUPS}
    chosen = {group: chosen_class(group, given) for group in _GROUPS}
    for option in given:
        first, *rest = (word.rstrip("+") for word in option.name[2:].split("."))
        if first not in own:
            raise _no_such(first, own)
        known = _arguments_of(*_TRAINER) if first == "trainer" else _known(chosen.get(first, ""))
        if rest and known and rest[0] not in known:
            raise _no_such(rest[0], known, f"{first}.")
        if option.words == [option.name] and [first, *rest][-1] not in _WITHOUT_VALUE:
            msg = f"{option.name[2:]}: has no value; write one behind it"
            raise BadInput(msg)
    missing = [group for group in _GROUPS if not chosen[group]]
    if arguments[0] in OF_TRAINED and asked_checkpoint(given) and "model" in missing:
        missing.remove("model")  # the checkpoint knows
    # A step that is replayed knows its model, and has its batch.
    enough = (*_WITHOUT_VALUE, "replay")
    if missing and not any(option.name.endswith(enough) for option in given):
        msg = f"{', '.join(missing)}: missing; add it to the command line or a config"
        raise BadInput(msg)


def _no_such(name: str, known: set[str], group: str = "") -> BadInput:
    """Say that there is no such option, and which was perhaps meant."""
    # As the parser says it: the options of a model or its data by their own names.
    shown = group if group == "trainer." else ""
    near = nearest(shown + name, [shown + word for word in sorted(known)])
    return BadInput.at(group + name, NO_SUCH_OPTION, near or SEE_HELP)


def _known(class_path: str) -> set[str]:
    """Return the options of a class of this package; nothing for others."""
    module, _, name = class_path.rpartition(".")
    ours = module.partition(".")[0] in ("", lightning_bbox.__name__)
    if not ours or name not in lightning_bbox.__all__:
        return set()
    return {*_OF_ANY_CLASS, *_arguments_of(lightning_bbox._HOME_OF[name], name)}


@cache
def _source(module: str) -> ast.Module:
    """Parse a module that isn't imported, nor are the packages it is in."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], *inner)
    return ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))


@cache
def _arguments_of(module: str, name: str) -> set[str]:
    """Return the arguments of a class, with those it passes on to its base."""
    classes = {node.name: node for node in _source(module).body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        homes = (node for node in _source(module).body if isinstance(node, ast.ImportFrom))
        home = next(h.module for h in homes if name in {alias.name for alias in h.names})
        return _arguments_of(str(home), name)
    inits = [
        node
        for node in classes[name].body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    named = set[str]()
    for init in inits:
        named = {argument.arg for argument in (*init.args.args[1:], *init.args.kwonlyargs)}
    if not inits or inits[0].args.kwarg:
        named = named.union(*(_arguments_of(module, ast.unparse(b)) for b in classes[name].bases))
    return named
