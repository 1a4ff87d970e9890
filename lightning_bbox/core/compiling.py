"""One switch for what is compiled: asked for, refused, or decided by what the machine has."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch

from lightning_bbox.core.errors import BadInput

Compile = Literal["auto"] | bool
"""`true` compiles or refuses, `false` never compiles, `auto` compiles where it pays."""

CutCompile = Compile | Literal["triton"]
"""The same for kernels that cut and augment; `triton` cuts by the one that is written in Triton."""

P = ParamSpec("P")
R = TypeVar("R")

# Without contraction sums are the same on every CPU, whatever its vectors.
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


def has_cxx_compiler() -> bool:
    """Tell whether the C++ compiler that torch.compile calls on the CPU is there."""
    return _is_found(_cxx_compiler(), os.environ.get("PATH"))


def _cxx_compiler() -> str:
    return os.environ.get("CXX", "g++")


def native_library(source: Path) -> ctypes.CDLL:
    """Compile a file of C++ for this very CPU, and load it; nothing of it stays on disk.

    Args:
        source: The file; it is quick to compile where it includes little.

    Raises:
        BadInput: The compiler can't, or what it made can't be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / f"{source.stem}.so")
        command = [_cxx_compiler(), *_FLAGS, str(source), "-o", library]
        # Not every compiler knows the CPU it runs on by that name.
        problem = _failure([*command, "-march=native"]) and _failure(command)
        if not problem:
            try:
                return ctypes.CDLL(library)
            except OSError as error:
                problem = str(error)
    why = problem.splitlines()[-1]
    msg = f"{command[0]} can't make {source.name} ({why}); set CXX, or compile to false"
    raise BadInput(msg)


def _failure(command: list[str]) -> str:
    """Run a command, and return what it says where it fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return ran.stderr.strip() or "it says nothing" if ran.returncode else ""


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


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel whole, without bounds checks: it must clamp its own indices.

    Args:
        function: What to compile.
    """
    return torch.compile(function, fullgraph=True, options={"assert_indirect_indexing": False})


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


def compiled_for_any_batch(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel to one graph that serves tensors of any length.

    Args:
        function: What to compile; the first axis of its tensors is dynamic.
    """
    fast = compiled(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for value in args:
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return fast(*args, **kwargs)

    return call
