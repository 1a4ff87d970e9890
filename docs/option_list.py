"""The page of all options, out of the parsers, signatures and docstrings that they come from."""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import lightning.pytorch.callbacks as lightning_callbacks
from jsonargparse import ArgumentParser

import lightning_bbox
from lightning_bbox.cli.arguments import OPTIONS_OF
from lightning_bbox.cli.commands import BoxCLI
from lightning_bbox.cli.exporting import export_parser
from lightning_bbox.cli.run import option_parsers
from lightning_bbox.cli.second_look import SecondLook
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.insight.cross_fit import audit_parser
from lightning_bbox.insight.diagnosis.command import diagnose_parser
from lightning_bbox.models.base import OffsetModel
from lightning_bbox.refinement.reviewing.apply import apply_parser
from lightning_bbox.refinement.serving.serve import serve_parser
from lightning_bbox.refinement.sharing.command import card_parser
from lightning_bbox.studies.runs import compare_parser

_INTRODUCTION = """# Every option

What a run may be told, by name: on the command line as `--data.min_size 20`, in a config as
`data: {init_args: {min_size: 20}}`. `lightning-bbox fit` takes all of them but the last
section's; so do `validate`, `test`, `predict`, `probe`, `check`, `diagnose`, `audit` and
`compare` as far as they have a use for them. Where a part has classes to choose from, the class
comes before its options: `--model.head BinHead --model.head.grids 3`. An option without a default
here has the one that its words tell. [Configure a run](../how-to/configure.md) shows them
together; the site's search finds them here.
"""
_PARTS = (("data", CropDataModule), ("model", OffsetModel), ("second", SecondLook))
_TRAINER = """## trainer

Lightning's `Trainer`, in its own words. A run begins with other defaults than Lightning's where
they are told here; `precision` is bf16-mixed where the hardware multiplies in bf16, else 32-true
(`LIGHTNING_BBOX_PRECISION` says which), and `max_epochs` is 22 for a `BoxRegressor` and 1 for a
`RidgeRegressor`.
"""
_ON_EACH_MACHINE = ("trainer.precision", "trainer.devices")
"""Options whose defaults depend on where the page is made."""
_CALLBACKS = """## trainer.callbacks

As in `--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/mae_px`; what works
beside what is told in [train it your way](../how-to/training.md). A run has its own that keep
checkpoints, reports and logs.
"""
_KINDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    dict: "names and values",
}
_PARSERS = {
    "audit": audit_parser,
    "diagnose": diagnose_parser,
    "compare": compare_parser,
    "export": export_parser,
    "apply": apply_parser,
    "card": card_parser,
    "serve": serve_parser,
}


_USED_BASES = (lightning_bbox.DeltaCodec,)
"""Classes that others are made from, and that are used themselves."""


class Choice(NamedTuple):
    """Classes that an option chooses from: its dotted name, their base, and whose option it is."""

    path: str
    base: type
    owner: str


def option_page() -> str:
    """Return the page in Markdown."""
    parsers = option_parsers()
    common = [
        action
        for action in _told(parsers["fit"])
        if not action.dest.startswith(("trainer.", "model", "data"))
    ]
    lines = [_INTRODUCTION, "## Of the run", "", *_rows("", common)]
    for choice in _choices():
        lines += _of_choice(choice)
    trainer = [each for each in _told(parsers["fit"]) if each.dest.startswith("trainer.")]
    lines += [_TRAINER, *_rows("", trainer), _CALLBACKS, *_of_callbacks()]
    lines += ["## Of single commands", ""]
    for command, names in OPTIONS_OF.items():
        if command in BoxCLI.subcommands():
            own = [each for each in _told(parsers[command]) if each.dest in names]
            lines += [f"### {command}", "", *_rows("", own)]
    for command, parser in _PARSERS.items():
        lines += [f"### {command}", "", *_rows("", _told(parser()))]
    return "\n".join(lines)


def _choices() -> Iterator[Choice]:
    """Yield all choices of classes, each after the one whose classes have it."""
    waiting = [Choice(path, base, "") for path, base in _PARTS]
    known: set[type] = set()
    while waiting:
        choice = waiting.pop(0)
        if choice.base not in known:
            known.add(choice.base)
            yield choice
            within = [
                Choice(f"{choice.path}.{action.dest}", found, each.__name__)
                for each in _classes(choice.base)
                for action in _options(each)
                for found in _ours_in(action)
            ]
            waiting = [*within, *waiting]


def _classes(base: type) -> list[type]:
    """Return the classes that an option may be given: the public ones, but for a mere base."""
    public = [getattr(lightning_bbox, name) for name in lightning_bbox.__all__]
    below = [each for each in public if inspect.isclass(each) and issubclass(each, base)]
    return [each for each in below if each is not base or base in _USED_BASES] or [base]


def _of_choice(choice: Choice) -> list[str]:
    """Return a section: what all classes take in the same way, then each with its own options."""
    owner = f" of {choice.owner}" if choice.path.startswith("model.head.") else ""
    lines = [f"## {choice.path}{owner}", ""]
    classes = {each: _options(each) for each in _classes(choice.base)}
    first, *others = ({action.dest: action for action in its} for its in classes.values())
    shared = [
        action
        for action in first.values()
        if others and all(_same(action, its.get(action.dest)) for its in others)
    ]
    if shared:
        lines += ["### All of them", "", *_rows(f"{choice.path}.", shared)]
    names = {action.dest for action in shared}
    for each, actions in classes.items():
        told = inspect.cleandoc(each.__doc__ or "").partition("\n")[0]
        lines += [f"### {each.__name__}", "", told, ""] if others else [told, ""]
        lines += _rows(f"{choice.path}.", [one for one in actions if one.dest not in names])
    return lines


def _same(one: argparse.Action, other: argparse.Action | None) -> bool:
    return other is not None and (one.help, one.default) == (other.help, other.default)


def _options(each: type) -> list[argparse.Action]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(each, fail_untyped=False)
    return _told(parser)


def _told(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the actions that are options, without helps and files of whole groups."""
    return [
        action
        for action in parser._actions
        if action.dest != "help"
        and not action.dest.endswith(".help")
        and (action.default != argparse.SUPPRESS or action.dest == "print_config")
    ]


def _ours_in(action: argparse.Action) -> list[type]:
    """Return the classes of ours that an option's value may be made of."""
    waiting, found = [getattr(action, "_typehint", None)], []
    while waiting:
        hint = waiting.pop()
        if inspect.isclass(hint) and hint.__module__.startswith("lightning_bbox."):
            found.append(hint)
        waiting += get_args(hint)
    return found


def _rows(prefix: str, actions: list[argparse.Action]) -> list[str]:
    """Return a definition for each option: its name, its values, its default, what it does."""
    lines = []
    for action in actions:
        name = f"{prefix}{action.dest}"
        shown = f"--{name}" if action.option_strings else name
        facts = [f"**`{shown}`**", _values(getattr(action, "_typehint", None) or action.type)]
        if action.choices:
            facts[1] = " or ".join(f"`{each}`" for each in action.choices)
        if action.nargs == 0:
            facts[1:] = []
        elif name not in _ON_EACH_MACHINE:
            facts.append(_default(action.default))
        lines += [", ".join(filter(None, facts)), f":   {_words(action.help or '')}", ""]
    return lines


def _values(hint: Any) -> str:  # noqa: ANN401 (any type hint)
    """Return what an option takes, in words."""
    return " or ".join(dict.fromkeys(filter(None, _kinds(hint))))


def _kinds(hint: Any) -> Iterator[str]:  # noqa: ANN401 (any type hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield from (f"`{each}`" for each in parts)
    elif origin in (list, tuple):
        yield f"list of {_values(parts[0])}"
    elif origin is Callable:
        yield f"class of {_values(parts[-1])}"
    elif origin is not None and origin not in _KINDS:
        for each in parts:
            yield from _kinds(each)
    elif inspect.isclass(kind := origin or hint) and kind not in (NoneType, Any):
        known = (_KINDS[each] for each in kind.__mro__ if each in _KINDS)
        yield next(known, f"`{kind.__name__}`")


def _default(default: object) -> str:
    if default is None or default == argparse.SUPPRESS or default in ((), [], ""):
        return ""
    if isinstance(default, bool):
        return f"default `{str(default).lower()}`"
    return f"default `{list(default) if isinstance(default, tuple) else default}`"


def _words(text: str) -> str:
    """Return a help as Markdown: Lightning's is reStructuredText, and tells defaults itself."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"\s*Default: *(?:`+[^`]*`+|\S+)\.?", "", text.replace("%%", "%"))
    return " ".join(text.replace("``", "`").split()) or "As it says."


def _of_callbacks() -> list[str]:
    lines = []
    for name in sorted(lightning_callbacks.__all__):
        words = inspect.cleandoc(getattr(lightning_callbacks, name).__doc__ or "")
        lines += [f"**`{name}`**", f":   {_words(words.partition(chr(10) * 2)[0])}", ""]
    return lines
