"""Freed memory is kept for the next tensor, unless somebody decided otherwise."""

import ctypes

import pytest

from lightning_bbox import keep_freed_memory


def test_the_c_library_is_told_where_it_has_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory() == hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_who_decided_otherwise_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")
    assert keep_freed_memory() is False
