"""Where pixels are kept is chosen by the memory that is free."""

import os

import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.places import (
    Placement,
    Room,
    Storage,
    choose_place,
    free_host_memory,
    measure_room,
)

GB = 10**9


@pytest.mark.parametrize(
    ("needed", "room", "processes", "disk", "place"),
    [
        (5, Room(8, 8, shared=True), 1, True, "device"),
        (6, Room(8, 8, shared=True), 1, True, "device"),
        (7, Room(8, 8, shared=True), 1, True, "disk"),
        (7, Room(8, 8, shared=True), 1, False, "device"),
        (3, Room(8, 8, shared=True), 2, True, "device"),
        (4, Room(8, 8, shared=True), 2, True, "disk"),
        (4, Room(8, 64, shared=False), 1, True, "device"),
        (5, Room(8, 64, shared=False), 1, True, "pinned"),
        (5, Room(8, 64, shared=False), 8, True, "pinned"),
        (7, Room(80, 64, shared=False), 8, True, "disk"),
        (60, Room(80, 64, shared=False), 1, True, "disk"),
        (60, Room(80, 64, shared=False), 1, False, "pinned"),
    ],
)
def test_auto_takes_the_first_place_with_room(needed, room, processes, disk, place):
    room = room._replace(device=room.device * GB, host=room.host * GB)
    found, why = choose_place(needed * GB, room, processes, disk)
    assert found == place
    assert f"{needed} GB of pixels" in why
    assert "free" in why


def meminfo(root, files):
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
def test_free_memory_is_that_of_the_container(files, free, tmp_path):
    assert free_host_memory(meminfo(tmp_path, files)) == free


def test_without_proc_all_memory_counts_as_free(tmp_path):
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_host_memory(tmp_path) == pages >= measure_room(torch.device("cpu")).host > 0
    assert measure_room(torch.device("cpu")).shared


def test_a_disk_is_refused_where_no_pixels_are_kept_there():
    with pytest.raises(BadInput, match="place is disk, but these pixels aren't kept there"):
        Placement(Storage("disk"), disk=False)
