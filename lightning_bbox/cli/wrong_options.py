"""What is wrong with the options of a command line or a config, in one sentence."""

import argparse
import inspect
import os
import re
from collections.abc import Callable, Sequence, Set
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from jsonargparse._actions import _ActionConfigLoad
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lightning_bbox.cli.first_look import NO_SUCH_OPTION, SEE_HELP
from lightning_bbox.cli.moved_keys import with_new_keys
from lightning_bbox.core.errors import BadInput, listed, nearest
from lightning_bbox.core.recipes import find_class, public_path

LONGEST = 400
"""Characters of the parser's own words to show: it may repeat a whole configuration."""

MANY = 12
"""Names beyond which the nearest one is told instead of all."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

_ALL = "options"  # the place of what concerns no single one

# The parser's own words, where its errors don't carry what they are about.
_KEY = re.compile(r'Parser key "([^"]+)"[^:]*:\s*(.*)', re.DOTALL)
_VALUE = re.compile(r"class_path '([^']*)'|(?:Got|Given) value: (.*)")
_UNKNOWN = re.compile(r"unrecognized arguments: -*([^\s=]+)|[Oo]ption '([^']+)'")

# A class of ours in a config, by its module: 0.1.0 wrote down what it was given.
_BY_MODULE = re.compile(r"(?<![\w./-])lightning_bbox(?:\.\w+){2,}")

E = TypeVar("E", bound=BaseException)


class WrongOption(argparse.ArgumentError):
    """What is wrong with an option.

    Args:
        option: Its dotted name, as far as the parser that saw it knows.
        problem: What is wrong with it.
        remedy: What the user can do.
    """

    def __init__(self, option: str, problem: str, remedy: str) -> None:
        super().__init__(None, problem)
        self.option, self.problem, self.remedy = option, problem, remedy


class OneSentenceParser(LightningArgumentParser):
    """Refuse a command line or a config in one sentence that names the option and its value.

    Attributes:
        own_options: The options that the help tells, by the names of their values; None for all.
    """

    own_options: Set[str] | None = None

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Tell a command's own options, where it says which these are."""
        if self.own_options is None:
            return super().format_help(formatter)
        formatter = formatter or self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        formatter.start_section("options")
        formatter.add_arguments([each for each in self._actions if each.dest in self.own_options])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise our own refusal where one is the cause, else say what is wrong with which option.

        The parser of a part is caught by those around it, which know where the part stands.
        """
        if (refusal := cause(ex, BadInput)) is not None:
            raise refusal
        wrong = self._wrong(message, ex)
        if self.exit_on_error:
            raise BadInput.at(wrong.option, wrong.problem, wrong.remedy) from ex
        raise wrong from ex

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any) -> Any:  # type: ignore[override] # noqa: ANN401 (jsonargparse's)
        """Parse a command line, whatever module a class of ours goes by on it."""
        words = None if args is None else [_by_public_paths(word) for word in args]
        if words and "namespace" in kwargs:
            # An option of a part: jsonargparse 4.53 has read its null, and written it as Python's.
            words = [re.sub("=None$", "=null", word) for word in words]
        return super().parse_args(words, *more, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (jsonargparse's)
        """Parse a config, whatever classes and options of ours were called when it was written."""
        return super().parse_string(with_new_keys(_by_public_paths(content)), *args, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (jsonargparse's)
        """Parse a config, and name it in a refusal."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except BadInput as error:
            msg = f"{path}: {error}"
            raise BadInput(msg) from error

    def validate(self, namespace: Any, *more: Any, **kwargs: Any) -> None:  # noqa: ANN401 (jsonargparse's)
        """Check a configuration; a null where there must be something is refused here.

        jsonargparse 4.53 takes it for an option that isn't given, and hands it to the class.
        """
        for action in self._actions:
            if namespace.get(action.dest, _ALL) is None and not _may_be_null(action):
                expected = listed(expected_words(getattr(action, "_typehint", None)))
                remedy = f"give {expected}, or leave it out" if expected else "leave it out"
                wrong = WrongOption(_ALL, "is null", f"{remedy} for its default")
                msg = f'Parser key "{action.dest}": null'
                raise TypeError(msg) from wrong
        super().validate(namespace, *more, **kwargs)

    def _wrong(self, message: str, error: Exception | None) -> WrongOption:
        inner, key = cause(error, WrongOption), _KEY.match(message)
        if inner is not None:
            option = f"{key[1]}.{inner.option}" if key else inner.option
            return WrongOption(option.removesuffix(f".{_ALL}"), inner.problem, inner.remedy)
        if key:
            return self._wrong_value(key[1], key[2])
        if unknown := _UNKNOWN.search(message):
            name = unknown[1] or unknown[2]
            return WrongOption(name, NO_SUCH_OPTION, self._other_name(name))
        return WrongOption(_ALL, _shortened(message), SEE_HELP)

    def _wrong_value(self, option: str, words: str) -> WrongOption:
        hints = [getattr(a, "_typehint", None) for a in self._actions if a.dest == option]
        found = _VALUE.search(words)
        if not found or hints in ([], [None]):
            return WrongOption(option, _shortened(words), SEE_HELP)
        value, expected = found[1] or found[2], expected_words(hints[0])
        if (reason := _import_failure(value)) is not None:
            remedy = "correct the name, or give its folder in PYTHONPATH"
            return WrongOption(option, f"{value} can't be imported ({reason})", remedy)
        near = nearest(value, expected) if len(expected) > MANY else ""
        return WrongOption(option, f"is {value!r}", near or f"expected {listed(expected)}")

    def _other_name(self, name: str) -> str:
        commands = (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
        parsers = [self, *(parser for choices in commands for parser in choices.values())]
        names = [action.dest for parser in parsers for action in parser._actions]
        own = [name for name in names if name.rpartition(".")[2] != "help"]
        if near := nearest(name, own):
            return near
        if self.exit_on_error:
            return SEE_HELP
        remedy = "name the class that has it first"
        return f"choose from {listed(own)}, or {remedy}" if own else remedy


def _may_be_null(action: argparse.Action) -> bool:
    """Tell whether an option of ours, or a group of them, may have no value."""
    if isinstance(action, _ActionConfigLoad):  # options of a part that is always there
        return False
    hint = getattr(action, "_typehint", None)
    return action.default is None or hint in (None, Any) or NoneType in get_args(hint)


def _by_public_paths(text: str) -> str:
    return _BY_MODULE.sub(lambda found: public_path(found[0]), text)


def cause(error: BaseException | None, *kinds: type[E]) -> E | None:
    """Return an error of one of these kinds from among those that an error was made of."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


def lacking_package(error: BaseException) -> BadInput | None:
    """Return a refusal where a class that was asked for lacks a package, such as a logger's.

    Args:
        error: What making the parts of a command ended with.
    """
    found = re.search(r"class_path '([\w.]+)':\s+(.*(?:not met|No module named).*)", str(error))
    if found is None:
        return None
    name = found[1].rpartition(".")[2]
    return BadInput(f"{name} needs a package that isn't installed: {found[2].strip()}")


def expected_words(hint: object) -> list[str]:
    """Say which values a type allows: choices, kinds of numbers, names of classes."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # A learning rate may be a tensor, but not one that can be written.
        return [word for part in args if part is not Tensor for word in expected_words(part)]
    if origin is Literal:
        return [repr(choice) for choice in args]
    if origin is Callable:
        return expected_words(args[-1])
    if inspect.isclass(origin):
        return [f"a {origin.__name__}"]
    if inspect.isclass(hint) and hint is not NoneType:
        return [_KINDS[hint]] if hint in _KINDS else class_names(hint)
    return []


def class_names(base: type) -> list[str]:
    """Name the classes derived from a class in its own package, or else the class itself."""
    package = base.__module__.partition(".")[0]
    names = set[str]()
    rest: list[type] = base.__subclasses__()
    while rest:
        derived = rest.pop()
        rest += derived.__subclasses__()
        private = derived.__name__.startswith("_") or inspect.isabstract(derived)
        if derived.__module__.partition(".")[0] == package and not private:
            names.add(derived.__name__)
    return sorted(names or {base.__name__})


def _import_failure(value: str) -> str | None:
    """Say why a class of the user's own can't be had, None where it can."""
    words = value.split(".")
    if len(words) < 2 or words[0] == "lightning_bbox" or not all(w.isidentifier() for w in words):
        return None
    try:
        find_class(value, object, "the config")
    except BadInput as error:
        return _shortened(str(error.__cause__ or error))
    return None


def _shortened(message: str) -> str:
    words = " ".join(message.split()).rstrip(".")
    return words if len(words) <= LONGEST else words[:LONGEST] + " ..."
