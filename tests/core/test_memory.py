"""Freed memory is at hand for the next tensor, unless somebody decided otherwise."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts a process

FAULTS = """
import ctypes, resource, sys
from lightning_bbox.core.memory import keep_freed_memory
print(hasattr(ctypes.CDLL(None), "mallopt"), keep_freed_memory() if sys.argv[1] == "keep" else None)
import torch
def faults():
    torch.ones(30_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
print(faults() - before)
"""


def run(mode: str, **environment: str) -> tuple[bool, str, int]:
    """Make a tensor of 120 MB twice, and count the pages that were faulted in for the second."""
    command = [sys.executable, "-c", FAULTS, mode]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment
    )
    can, did, faults = done.stdout.split()
    return can == "True", did, int(faults)


def test_a_tensor_takes_the_memory_of_the_one_before() -> None:
    can, did, faults = run("keep")
    if not can:
        pytest.skip("this C library has no mallopt")
    assert did == "True"
    assert faults < 100
    assert run("leave")[2] > 10 * max(1, faults)


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_who_decided_otherwise_is_left_alone(name: str) -> None:
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    assert run("keep", **{name: value})[1] == "False"
