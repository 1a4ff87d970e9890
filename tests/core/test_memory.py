"""Freed memory is kept unless somebody decided otherwise; free is what the container leaves."""

import ctypes
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_bbox.core.memory import free_host_memory, keep_freed_memory, peak_host_memory
from lightning_bbox.pictures.places import measure_room


def test_the_c_library_is_told_where_it_has_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory() == hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_who_decided_otherwise_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")
    assert keep_freed_memory() is False


def meminfo(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8000 kB\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8_192_000),
        ({"proc/self/cgroup": "0::/a/b\n"}, 8_192_000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "3000000",
                "sys/fs/cgroup/a/memory.current": "1000000",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 200\n",
            },
            2_000_200,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": "1000000",
                "sys/fs/cgroup/memory.stat": "anon 5\n",
            },
            8_192_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/seen/from/outside\n1:cpu:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000",
                "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 3000\n",
            },
            2000,
        ),
    ],
)
def test_free_memory_is_that_of_the_container(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    assert free_host_memory(meminfo(tmp_path, files)) == free


def test_without_proc_all_memory_counts_as_free(tmp_path: Path) -> None:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_host_memory(tmp_path) == pages >= measure_room(torch.device("cpu")).host > 0
    assert measure_room(torch.device("cpu")).shared


@pytest.mark.parametrize(("system", "peak"), [("linux", 7 * 1024), ("darwin", 7)])
def test_the_peak_is_in_bytes_whatever_the_system_counts(
    system: str, peak: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setattr(sys, "platform", system)
    assert peak_host_memory() == peak
