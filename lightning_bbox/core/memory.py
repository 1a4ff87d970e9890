"""Memory of the process: what is freed stays at hand for the next step."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**31 - 1
_DECIDE = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, for the next tensor to take.

    By default glibc gives large pieces back to the system at once and has them cleared anew: at a
    batch of 1,024 a step of the default network on a CPU takes 1.2 times as long by that (`python
    -m benchmarks memory`). Kept, they cost some memory. Who sets
    `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` or `GLIBC_TUNABLES` has decided otherwise.

    The command line does so; a program that trains on a CPU may call it first.

    Returns:
        Whether it is done: not where that was decided, or the library has no such switch.

    Examples:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not _DECIDE.isdisjoint(os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not Linux with glibc
        return False
    return all(mallopt(option, _LARGEST) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
