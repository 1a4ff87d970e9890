"""Where pixels are kept is chosen by the memory that is free."""

import pytest

from lightning_bbox.core.errors import BadInput
from lightning_bbox.pictures.places import (
    Placement,
    Room,
    Storage,
    choose_place,
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


def test_a_disk_is_refused_where_no_pixels_are_kept_there():
    with pytest.raises(BadInput, match="place is disk, but these pixels aren't kept there"):
        Placement(Storage("disk"), disk=False)
