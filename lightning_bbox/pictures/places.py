"""Where packed pixels are kept: on the device, in host memory or on disk; and who decides."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import lightning.pytorch as pl
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.memory import free_host_memory
from lightning_bbox.core.messages import say

Place = Literal["device", "pinned", "disk"]
"""`pinned` is the memory of the host, where crops are cut ahead of the steps."""

DEVICE_SHARE = 0.5
"""Share of a GPU's free memory that pixels may take: networks and their batches need the rest."""
HOST_SHARE = 0.75


@dataclass(frozen=True)
class Storage:
    """Where pixels are kept.

    Args:
        place: On the `device`; in the memory of the host (`pinned`), where crops are cut ahead and
            sent over; in a file on `disk` that is mapped, for sets that exceed the memory; `auto`
            takes the first of these that has room.
        folder: Folder of that file, which later runs use again; one for this data set in the user's
            cache folder by default.
    """

    place: Literal["auto", "device", "pinned", "disk"] = "auto"
    folder: str | None = None


class Room(NamedTuple):
    """Bytes that are free.

    Attributes:
        device: On the device of the batches; that of the host where they are one.
        host: In the memory of the host.
        shared: Whether the device's memory is the host's.
    """

    device: int
    host: int
    shared: bool


class Placement:
    """Decide where the pixels of a run are kept, once.

    Args:
        storage: What the user asked for.
        disk: Whether they may be kept there.

    Attributes:
        asked: The place asked for, or `auto`.
        folder: Where a disk's pixels are kept; None where nobody said.
        place: Where they are kept; None while `auto` has not chosen.

    Raises:
        BadInput: A disk is asked for and no pixels are kept there.
    """

    def __init__(self, storage: Storage, disk: bool) -> None:
        if storage.place == "disk" and not disk:
            msg = "data.store.place is disk, but these pixels aren't kept there; choose auto"
            raise BadInput(msg)
        self.asked, self.folder, self.disk = storage.place, storage.folder, disk
        self.place: Place | None = None if storage.place == "auto" else storage.place
        self._chosen_for: torch.device | None = None

    def place_of(self, needed: int, trainer: pl.Trainer | None) -> Place:
        """Return where so many bytes of pixels are kept; `auto` chooses now if it hasn't."""
        if self.place is None:
            self.place = self.choose(needed, trainer)
        return self.place

    def choose(self, needed: int, trainer: pl.Trainer | None) -> Place:
        """Choose for a trainer's device, the same on all its processes, and say so."""
        self._chosen_for = device_of(trainer)
        processes = trainer.num_devices if trainer else 1
        place, why = choose_place(needed, measure_room(self._chosen_for), processes, self.disk)
        if trainer:
            place, why = trainer.strategy.broadcast((place, why))
        if trainer or place != "device":
            say(f"store: auto is {place} here ({why})")
        return place

    def was_for_another(self, trainer: pl.Trainer | None) -> bool:
        """Tell whether `auto` has chosen for another device than the trainer's."""
        return self._chosen_for not in (None, device_of(trainer))


def device_of(trainer: pl.Trainer | None) -> torch.device:
    """Return the device that a trainer's batches are on; the CPU without one."""
    return trainer.strategy.root_device if trainer else torch.device("cpu")


def measure_room(device: torch.device) -> Room:
    """Measure how much memory is free now."""
    host = free_host_memory()
    if device.type != "cuda":
        return Room(host, host, shared=True)
    return Room(torch.cuda.mem_get_info(device)[0], host, shared=False)


def choose_place(
    needed: int, room: Room, processes: int = 1, disk: bool = True
) -> tuple[Place, str]:
    """Choose where pixels are kept, and say why.

    Args:
        needed: Bytes of all packed pixels.
        room: What is free.
        processes: How many processes of this machine hold pixels of their own; on a disk they share
            them.
        disk: Whether they may be kept there.
    """
    pixels = f"{told(needed)} of pixels"
    if disk and needed * processes > HOST_SHARE * room.host:
        each = f" in each of {processes} processes" if processes > 1 else ""
        return "disk", (
            f"{pixels}{each} are more than three quarters of the {told(room.host)} free in memory"
        )
    if not room.shared and needed > DEVICE_SHARE * room.device:
        return (
            "pinned",
            f"{pixels} are more than half of the {told(room.device)} free on the device",
        )
    return "device", f"{pixels}, {told(room.device)} free"


def told(size: int) -> str:
    """Say a number of bytes."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
