"""One switch for torch.compile: asked for, refused, or decided by what the machine has."""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal, ParamSpec, TypeVar

import torch

from lightning_bbox.core.errors import BadInput

Compile = Literal["auto"] | bool
"""`true` compiles or refuses, `false` never compiles, `auto` compiles where it pays."""

CutCompile = Compile | Literal["triton"]
"""The same for kernels that cut and augment; `triton` cuts by the one that is written in Triton."""

P = ParamSpec("P")
R = TypeVar("R")


def has_cxx_compiler() -> bool:
    """Tell whether the C++ compiler that torch.compile calls on the CPU is there."""
    return _is_found(os.environ.get("CXX", "g++"), os.environ.get("PATH"))


@cache
def _is_found(program: str, path: str | None) -> bool:
    """Tell whether there is such a program; asked for each batch, a search would be felt."""
    return shutil.which(program, path=path) is not None


def should_compile(choice: Compile, device: torch.device, pays_on_cpu: bool) -> bool:
    """Decide whether to compile for a device.

    Args:
        choice: What the user asked for.
        device: Where the code will run.
        pays_on_cpu: Whether `auto` compiles on the CPU too.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    if choice is False or (choice == "auto" and device.type not in ("cuda", "cpu")):
        return False
    wanted = choice is True or device.type == "cuda" or pays_on_cpu
    if not wanted or has_cxx_compiler():
        return wanted
    if choice is True:
        msg = "compile is true, but no C++ compiler was found; install g++, set CXX, or use auto"
        raise BadInput(msg)
    warnings.warn(
        "no C++ compiler found: running uncompiled, which is slower; install g++ or set CXX",
        stacklevel=2,
    )
    return False


def compiled(function: Callable[P, R], **options: int) -> Callable[P, R]:
    """Compile a kernel whole, without bounds checks: it must clamp its own indices.

    Checks cost a third of the cut on the CPU (1.6 against 2.2 ms for 128 crops of 45 px on two
    cores).

    Args:
        function: What to compile.
        options: Inductor's, beside that (see `torch.compile`).
    """
    return torch.compile(
        function, fullgraph=True, options={"assert_indirect_indexing": False, **options}
    )


def default_precision() -> str:
    """Return bf16-mixed where the hardware multiplies in bf16, else fp32.

    The environment variable `LIGHTNING_BBOX_PRECISION` says it instead where it is set, so that
    runs on machines of several kinds can be alike.
    """
    if asked := os.environ.get("LIGHTNING_BBOX_PRECISION"):
        return asked
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def compiled_for_any_batch(function: Callable[P, R], **options: int) -> Callable[P, R]:
    """Compile a kernel to one graph that serves tensors of any length.

    Args:
        function: What to compile; the first axis of its tensors is dynamic.
        options: Inductor's (see `compiled`).
    """
    fast = compiled(function, **options)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for value in args:
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return fast(*args, **kwargs)

    return call
