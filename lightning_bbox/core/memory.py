"""Memory: what a process frees stays at hand for its next step; how much is free."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

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


def free_host_memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory are free: on the machine, or in this container.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield what the control groups of this process leave it: containers are limited by those."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        for folder in (base / path.lstrip("/"), base):  # a container sees its own as the root
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                stat = (folder / "memory.stat").read_text().split()
            except (OSError, ValueError):  # no such group, or no limit: `max`
                continue
            reclaimable = int(stat[stat.index(names[2]) + 1]) if names[2] in stat else 0
            yield max(0, limit - used + reclaimable)
            break
