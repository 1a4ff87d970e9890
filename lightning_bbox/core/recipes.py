"""Recipes: how the exchangeable pieces of a model remember how they were made.

A checkpoint must rebuild its model from its path alone, whether the run began in YAML or in Python.
Each piece therefore records the arguments it was constructed with, as plain data that loads with
`weights_only=True`, under the one public path of its class.
"""

import copy
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self, TypeVar

from torch import Tensor, nn

import lightning_bbox
from lightning_bbox.core.errors import BadInput

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
T = TypeVar("T")

_TRUSTED: ContextVar[tuple[str, ...] | None] = ContextVar("_TRUSTED", default=None)
"""Packages that a file being rebuilt may have imported; None where a person names the classes."""
_CALLS_BY_PERSONS: set[tuple[str, str]] = set()
"""Functions that a person named in this process, with their arguments as JSON."""


class Recipe:
    """Anything that knows how it was made.

    Subclasses take plain values or other recipes in `__init__`; what depends on the data (sizes,
    statistics) comes later through a method of theirs, so that the same recipe serves any data.

    Raises:
        BadInput: An argument is neither plain data nor has a recipe, or the `__init__` of a
            subclass takes arguments that can't be given by name.

    Examples:
        >>> class Scale(Recipe):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         self.factor = factor
        >>> Scale(2.0).recipe()["init_args"]
        {'factor': 2.0}
    """

    _init_args: dict[str, Plain]

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 (passed on)
        """Refuse a class that could not be made again by the names of its arguments."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and cls.__call__ is not nn.Module.__call__:
            # What is no module may be written like one, as all parts of 0.1.0 were.
            cls.__call__ = cls.forward  # type: ignore[attr-defined,method-assign] # said above
        if "__init__" not in vars(cls):
            return
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                msg = (
                    f"{cls.__qualname__}.__init__ takes {name} by position only, so a checkpoint "
                    f"can't make it again; give the argument a name of its own"
                )
                raise BadInput(msg)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 (passes through any signature)
        """Record the arguments before `__init__` sees them."""
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        itself, *parameters = signature.parameters.values()
        # Defaults too, so that those of a later version don't change a model that was saved.
        given = {p.name: p.default for p in parameters if p.default is not p.empty}
        given |= signature.bind_partial(made, *args, **kwargs).arguments
        del given[itself.name]
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        path = class_path_of(cls)
        plain = {name: to_plain(value, f"{path}: {name}") for name, value in given.items()}
        object.__setattr__(made, "_init_args", plain)
        return made

    def __init__(self) -> None:  # object's own would take any arguments, as `__new__` does
        super().__init__()

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._init_args.items())
        return f"{type(self).__name__}({given})"

    def recipe(self) -> dict[str, Plain]:
        """Return class path and arguments, as plain data."""
        return {
            "class_path": class_path_of(type(self)),
            "init_args": copy.deepcopy(self._init_args),
        }


class Part(Recipe, nn.Module):
    """An `nn.Module` that knows its own recipe, and keeps its own buffers exact.

    Examples:
        >>> class Scale(Part):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         super().__init__()
        >>> Scale(2.0).recipe()["init_args"]
        {'factor': 2.0}
    """

    __repr__ = nn.Module.__repr__

    def extra_repr(self) -> str:
        """Show what the part is made of beside modules."""
        own = [item for item in vars(self).items() if isinstance(item[1], Recipe)]
        return ", ".join(f"{name}={value!r}" for name, value in own)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast the part, but keep its own floating-point buffers as exact as they are.

        They hold geometry and statistics, which stay in fp32 whatever the network runs in.
        """
        exact = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # not typed in torch
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *args: Any,  # noqa: ANN401 (torch's own, passed on)
    ) -> None:
        # What follows from the recipe is made by it, and checkpoints of 0.1.0 hold it all the same.
        # Theirs may be another: that of weights their run began with. Then it is this part's own.
        for name in [*self._non_persistent_buffers_set]:
            if (stored := state_dict.get(prefix + name)) is None:
                continue
            made = self.get_buffer(name)
            if made.shape == stored.shape and made.allclose(stored.to(made)):
                del state_dict[prefix + name]
            else:
                self._non_persistent_buffers_set.discard(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def class_path_of(cls: type) -> str:
    """Return the path that names a class everywhere: the public one where it has one.

    Examples:
        >>> class_path_of(lightning_bbox.ShallowConvNet)
        'lightning_bbox.ShallowConvNet'
        >>> class_path_of(nn.ReLU)
        'torch.nn.modules.activation.ReLU'
    """
    return public_path(f"{cls.__module__}.{cls.__qualname__}")


def public_path(class_path: str) -> str:
    """Return the public path of a class of this package, by whatever module it went once.

    Public names are unique, so that a class can move from room to room and older checkpoints and
    configurations still mean it.

    Examples:
        >>> public_path("lightning_bbox.codecs.MeanStdCodec")  # its module in 0.1.0
        'lightning_bbox.MeanStdCodec'
        >>> public_path("mine.codecs.MeanStdCodec")
        'mine.codecs.MeanStdCodec'
    """
    package, _, name = class_path.rpartition(".")
    ours = package.partition(".")[0] == lightning_bbox.__name__ and name in lightning_bbox.__all__
    return f"{lightning_bbox.__name__}.{name}" if ours else class_path


def with_public_paths(value: Plain) -> Plain:
    """Return plain data with the classes in it by their public paths, as recipes say them now.

    Examples:
        >>> with_public_paths([{"class_path": "lightning_bbox.heads.LinearHead", "init_args": {}}])
        [{'class_path': 'lightning_bbox.LinearHead', 'init_args': {}}]
    """
    if isinstance(value, list):
        return [with_public_paths(item) for item in value]
    if isinstance(value, dict):
        found = {key: with_public_paths(item) for key, item in value.items()}
        if found.keys() == {"class_path", "init_args"}:
            found["class_path"] = public_path(str(found["class_path"]))
        return found
    return value


def to_plain(value: object, name: str) -> Plain:
    """Turn an argument into plain data of its own; what has a recipe becomes its recipe.

    Args:
        value: The argument.
        name: How to call it in an error.

    Raises:
        BadInput: The value can't be written as plain data.

    Examples:
        >>> to_plain((1, 2), "sizes")
        [1, 2]
    """
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value] # no subclass: NumPy's and enums don't reload
    if isinstance(value, Recipe):
        return value.recipe()
    if isinstance(value, list | tuple):
        return [to_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item, name) for key, item in value.items()}
    msg = (
        f"{name} is a {type(value).__name__}, which a checkpoint can't keep; "
        f"give plain values or subclasses of lightning_bbox.Part"
    )
    raise BadInput(msg)


def from_plain(value: Plain, trust: Sequence[str] = ()) -> Any:  # noqa: ANN401 (the inverse of to_plain: whatever the recipe names)
    """Rebuild what `to_plain` wrote; sequences come back as tuples, which parts take.

    Only classes with a recipe are constructed, and only those of this package, of modules that
    are imported already, and of what is trusted: a file can't have code run that lies about.

    Args:
        value: Plain data, of a file that may come from anywhere.
        trust: Modules or packages that may be imported for it.

    Raises:
        BadInput: A recipe names a class that doesn't exist, has no recipe, or isn't trusted.

    Examples:
        >>> from_plain([1, {"a": 2.0}])
        (1, {'a': 2.0})
    """
    with trusting(trust):
        return _from_plain(value)


@contextmanager
def trusting(trust: Sequence[str]) -> Iterator[None]:
    """Find classes that a file names: only those that `from_plain` would construct.

    Args:
        trust: Modules or packages that may be imported for it.

    Examples:
        >>> with trusting(["mine"]):
        ...     find_class("antigravity.Flight", nn.Module, "the checkpoint")
        Traceback (most recent call last):
        lightning_bbox.BadInput: the checkpoint needs antigravity.Flight, and a file may not ...
    """
    token = _TRUSTED.set(tuple(trust))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def _from_plain(value: Plain) -> Any:  # noqa: ANN401 (as above)
    if isinstance(value, list):
        return tuple(_from_plain(item) for item in value)
    if isinstance(value, dict):
        if value.keys() == {"class_path", "init_args"}:
            return _build(str(value["class_path"]), value["init_args"])
        return {key: _from_plain(item) for key, item in value.items()}
    return value


def _build(class_path: str, init_args: Plain) -> Recipe:
    cls = find_class(class_path, Recipe, "the checkpoint")
    if not isinstance(init_args, dict):
        msg = f"the checkpoint's arguments of {class_path} are {init_args!r}; expected a mapping"
        raise BadInput(msg)
    try:
        return cls(**{key: _from_plain(item) for key, item in init_args.items()})
    except TypeError as error:
        msg = f"the checkpoint's arguments of {class_path} don't fit it ({error})"
        raise BadInput(msg) from error


def find_class(class_path: str, base: type[T], asked_by: str) -> type[T]:
    """Find a class by its path, and refuse whatever isn't one of a kind.

    Its module is imported, unless a checkpoint names it that wasn't told to be trusted.

    Args:
        class_path: Its module and name.
        base: What it must be derived from; nothing else is fit to be called.
        asked_by: Who names it, for an error.

    Raises:
        BadInput: It can't be imported, or isn't derived from the base.

    Examples:
        >>> find_class("torch.nn.ReLU", nn.Module, "the example")
        <class 'torch.nn.modules.activation.ReLU'>
    """
    module, _, name = public_path(class_path).rpartition(".")
    _refuse_untrusted(module, class_path, asked_by)
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing a user's module may raise anything
        msg = f"{asked_by} needs {class_path}, which can't be imported here ({error})"
        raise BadInput(msg) from error
    if isinstance(cls, type) and issubclass(cls, base):
        return cls
    kind = "a lightning_bbox part" if base is Recipe else f"derived from {base.__qualname__}"
    msg = f"{asked_by} names {class_path}, which isn't {kind}; it isn't built"
    raise BadInput(msg)


def find_maker(path: str, base: type[T], asked_by: str, arguments: Plain) -> Callable[..., object]:
    """Find what makes a thing: a class of its kind, or a function, also one of a class.

    A function may do anything. So a file may have one called only where its module is trusted by
    name, or a person named it before, in this process and with the same arguments.

    Args:
        path: Its module and name.
        base: What a class must be derived from.
        asked_by: Who names it, for an error.
        arguments: What it is going to be called with.

    Raises:
        BadInput: It can't be imported, isn't of the kind, can't be called, or may not be.

    Examples:
        >>> find_maker("torch.nn.ReLU", nn.Module, "the example", {})
        <class 'torch.nn.modules.activation.ReLU'>
        >>> with trusting([]):
        ...     find_maker("os.system", nn.Module, "the checkpoint", {"command": "ls"})
        Traceback (most recent call last):
        lightning_bbox.BadInput: the checkpoint needs the function os.system called, which a file
        may not have; where you trust it, name it in the configuration, or pass trust=['os']
    """
    module, trusted = path.rpartition(".")[0], _TRUSTED.get()
    call = path, json.dumps(arguments, sort_keys=True)
    if call not in _CALLS_BY_PERSONS:
        _refuse_untrusted(module, path, asked_by)
    try:
        maker = _imported(path)
    except Exception as error:  # importing a user's module may raise anything
        msg = f"{asked_by} needs {path}, which can't be imported here ({error})"
        raise BadInput(msg) from error
    if isinstance(maker, type) or not callable(maker):
        return find_class(path, base, asked_by)
    if trusted is None:
        _CALLS_BY_PERSONS.add(call)
    elif call not in _CALLS_BY_PERSONS and not _is_within(module, trusted):
        msg = (
            f"{asked_by} needs the function {path} called, which a file may not have; where you "
            f"trust it, name it in the configuration, or pass trust=[{path.partition('.')[0]!r}]"
        )
        raise BadInput(msg)
    return maker


def _imported(path: str) -> object:
    """Return what a path names: in a module, or in what a module holds."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
    return getattr(_imported(module), name)


def _is_within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in packages)


def _refuse_untrusted(module: str, class_path: str, asked_by: str) -> None:
    """Refuse to import a module for a file, unless it is ours, imported already, or trusted."""
    trusted = _TRUSTED.get()
    if trusted is None or module in sys.modules or module[:1] in ("", "."):
        return
    if _is_within(module, (lightning_bbox.__name__, *trusted)):
        return
    msg = (
        f"{asked_by} needs {class_path}, and a file may not have {module} imported; "
        f"where you trust it, import it first, name it in the configuration, or pass "
        f"trust=[{module.partition('.')[0]!r}]"
    )
    raise BadInput(msg)


def flatten(tree: object, name: str = "") -> dict[str, bool | int | float | str]:
    """Flatten a configuration to dotted names, classes by their short names, without None.

    Examples:
        >>> flatten({"head": {"class_path": "lightning_bbox.BinHead", "init_args": {"grids": 2}}})
        {'head': 'BinHead', 'head.grids': 2}
    """
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        return {name: tree if isinstance(tree, bool | int | float | str) else str(tree)}
    if "class_path" in tree:
        inner = tree.get("init_args") or {}
        return {name: str(tree["class_path"]).rpartition(".")[2], **flatten(inner, name)}
    prefix = f"{name}." if name else ""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        flat |= flatten(value, prefix + str(key))
    return flat
