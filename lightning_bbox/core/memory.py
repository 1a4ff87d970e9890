"""What the machine has: memory, of which a process keeps what it frees, and cores.

Linux tells most; where another system doesn't tell something, the docstring says what is assumed.
"""

import ctypes
import os
import sys
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
    # Only Linux with glibc has it; on Windows not even the C library is found so.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return all(mallopt(option, _LARGEST) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


_TOO_MUCH = ("can't allocate memory", "Overflow when unpacking long", "size calculation overflowed")


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is too little memory, on the host or on the device.

    Examples:
        >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    # PyTorch's allocator on the CPU has no class of its own for it, nor for sizes beyond 64 bits.
    told = any(words in str(error) for words in _TOO_MUCH)
    return told or not names.isdisjoint(("MemoryError", "OutOfMemoryError"))


def free_host_memory(root: Path = Path("/")) -> int:
    """Return how many bytes of memory are free: on the machine, or in this container.

    Where the system isn't Linux, all memory counts as free.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        return host_memory()
    return min([free, *_free_in_groups(root)])


def host_memory() -> int:
    """Return how many bytes of memory the machine has; Windows doesn't tell: without limit."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def peak_host_memory() -> int:
    """Return the most bytes of memory that this process has held; 0 on Windows, which counts none.

    Examples:
        >>> peak_host_memory() >= 0
        True
    """
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def usable_cores() -> int:
    """Return how many cores this process may use; all of the machine where that isn't told.

    Examples:
        >>> usable_cores() > 0
        True
    """
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # neither macOS nor Windows has it
        return os.cpu_count() or 1


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
