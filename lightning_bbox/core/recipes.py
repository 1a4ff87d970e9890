"""Parts: the exchangeable pieces of a model, which remember how they were made.

A checkpoint must rebuild its model from its path alone, whether the run began in YAML or in Python.
Each part therefore records the arguments it was constructed with, as plain data that loads with
`weights_only=True`.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Self, TypeVar

from torch import Tensor, nn

from lightning_bbox.core.errors import BadInput

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
T = TypeVar("T")


class Part(nn.Module):
    """An `nn.Module` that knows its own recipe.

    Subclasses take plain values or other parts in `__init__`; what depends on the data (sizes,
    statistics) comes later through a method of theirs, so that the same recipe serves any data.

    Examples:
        >>> class Scale(Part):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         super().__init__()
        >>> Scale(2.0).recipe()["init_args"]
        {'factor': 2.0}
    """

    _init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 (passes through any signature)
        """Record the arguments before `__init__` sees them."""
        part = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        # Defaults too, so that those of a later version don't change a model that was saved.
        init_args = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        init_args |= signature.bind_partial(part, *args, **kwargs).arguments
        init_args.pop(next(iter(signature.parameters)))
        object.__setattr__(part, "_init_args", init_args)
        return part

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

    def recipe(self) -> dict[str, Plain]:
        """Return class path and arguments, as plain data.

        Raises:
            BadInput: An argument is neither plain data nor a part.
        """
        cls = type(self)
        path = f"{cls.__module__}.{cls.__qualname__}"
        return {
            "class_path": path,
            "init_args": {
                name: to_plain(value, f"{path}: {name}") for name, value in self._init_args.items()
            },
        }


def to_plain(value: object, name: str) -> Plain:
    """Turn an argument into plain data; parts become their recipes.

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
    if isinstance(value, Part):
        return value.recipe()
    if isinstance(value, list | tuple):
        return [to_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item, name) for key, item in value.items()}
    msg = (
        f"{name} is a {type(value).__name__}, which a checkpoint can't keep; "
        f"give plain values or subclasses of lightning_bbox.core.recipes.Part"
    )
    raise BadInput(msg)


def from_plain(value: Plain) -> Any:  # noqa: ANN401 (the inverse of to_plain: whatever the recipe names)
    """Rebuild what `to_plain` wrote; sequences come back as tuples, which parts take.

    Only subclasses of `Part` are constructed; to find them, the modules a recipe names are
    imported.

    Raises:
        BadInput: A recipe names a class that doesn't exist or isn't a part.

    Examples:
        >>> from_plain([1, {"a": 2.0}])
        (1, {'a': 2.0})
    """
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, dict):
        if value.keys() == {"class_path", "init_args"}:
            return _build(str(value["class_path"]), value["init_args"])
        return {key: from_plain(item) for key, item in value.items()}
    return value


def _build(class_path: str, init_args: Plain) -> Part:
    cls = find_class(class_path, Part, "the checkpoint")
    if not isinstance(init_args, dict):
        msg = f"the checkpoint's arguments of {class_path} are {init_args!r}; expected a mapping"
        raise BadInput(msg)
    try:
        return cls(**{key: from_plain(item) for key, item in init_args.items()})
    except TypeError as error:
        msg = f"the checkpoint's arguments of {class_path} don't fit it ({error})"
        raise BadInput(msg) from error


def find_class(class_path: str, base: type[T], asked_by: str) -> type[T]:
    """Import a class by its path, and refuse whatever isn't one of a kind.

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
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing a user's module may raise anything
        msg = f"{asked_by} needs {class_path}, which can't be imported here ({error})"
        raise BadInput(msg) from error
    if isinstance(cls, type) and issubclass(cls, base):
        return cls
    kind = "a lightning_bbox part" if base is Part else f"derived from {base.__qualname__}"
    msg = f"{asked_by} names {class_path}, which isn't {kind}; it isn't built"
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
