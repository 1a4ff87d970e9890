"""On paper: what 8 GPUs and 16 machines exchange in a step, and how large data a store takes.

    python -m benchmarks.paper

Nothing here is measured; each figure is that of the formula in its function. Prints the tables of
`docs/how-to/large.md`.
"""

from typing import NamedTuple

import torch

from lightning_bbox.pictures.places import DEVICE_SHARE, HOST_SHARE
from lightning_bbox.pictures.pyramid import num_pixels

NVLINK, NETWORK = 900e9, 25e9
"""Bytes a second between the GPUs of a machine, and between machines."""
GPU, HOST, DISK = 80e9, 512e9, 4e12
"""Bytes of a GPU's memory, of a machine's, and of its disk."""
HEIGHT, WIDTH, BOXES = 480, 640, 7
"""Of a picture, and how many boxes it has, as in COCO."""
DECODED = 530
"""Pictures of that size that a core decodes a second, as benchmarks/README.md has it of Pillow."""
BYTES_A_PIXEL = 4


class Trained(NamedTuple):
    """What a network exchanges and computes.

    Attributes:
        name: Of the network, and what of it learns.
        weights: How many numbers learn.
        crops: The most crops a second of training steps that a GPU's arithmetic and memory allow.
    """

    name: str
    weights: int
    crops: float


# By an H200's 790 TFLOP/s in bf16 and 4.3 TB/s. The default net moves 1.2 MB a crop; AlexNet to fc6
# takes 1.39 GFLOP forward, and three times as much where all of it learns.
TRAINED = (
    Trained("default, 45 px", 1_472_214, 4.3e12 / 1.2e6),
    Trained("AlexNet fc6, 227 px, the head learns", 221_238, 790e12 / 1.39e9),
    Trained("the same, all of it learns", 40_443_766, 790e12 / (3 * 1.39e9)),
)


def ring_bytes(weights: int, processes: int) -> float:
    """Return the bytes that a process sends in a step: a ring's all-reduce of fp32 gradients.

    Args:
        weights: How many numbers learn.
        processes: How many processes share a step; over machines, how many machines.
    """
    return 2 * (processes - 1) / processes * 4 * weights


def least_batch(trained: Trained, processes: int, link: float) -> float:
    """Return the crops a GPU of which a step takes as long as the exchange does on a link.

    Gradients travel while the backward pass goes on, so that from some twice as many on the
    exchange hides behind it.
    """
    return trained.crops * ring_bytes(trained.weights, processes) / link


def picture_bytes(height: int = HEIGHT, width: int = WIDTH) -> int:
    """Return what a picture takes in a store, with its halves: a third more than its pixels."""
    return BYTES_A_PIXEL * int(num_pixels(torch.tensor([[height, width]])))


def held(processes: int) -> dict[str, float]:
    """Return the bytes of pictures that each store takes on a machine of so many processes.

    Each process holds all pictures: a step draws from any of them. A disk's file is one for all.
    """
    of_host = HOST_SHARE * HOST / processes
    return {"device": min(DEVICE_SHARE * GPU, of_host), "pinned": of_host, "disk": DISK}


def exchange_table() -> str:
    """Compose the table of what a step exchanges."""
    lines = ["| trained | 128 crops a GPU | 8 GPUs: sent by each | by NVLink | hides from |"]
    lines[0] += " 16 machines: sent by each | by its link | hides from |"
    lines.append("|---|---|---|---|---|---|---|---|")
    for trained in TRAINED:
        cells = [trained.name, _time(128 / trained.crops)]
        for processes, link in ((8, NVLINK), (16, NETWORK)):
            sent = ring_bytes(trained.weights, processes)
            batch = 2 * least_batch(trained, processes, link)
            cells += [f"{sent / 1e6:.3g} MB", _time(sent / link), f"{batch:,.0f} crops"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def store_table() -> str:
    """Compose the table of what stores take, and how long decoding does."""
    lines = ["| store | processes a machine | bytes of pictures | pictures | boxes | decoded in |"]
    lines.append("|---|---|---|---|---|---|")
    for processes in (1, 8):
        for store, size in held(processes).items():
            count = size / picture_bytes()
            decoders = 1 if store == "disk" else processes  # each process decodes what it holds
            hours = decoders * count / DECODED / 3600
            lines.append(
                f"| `{store}` | {processes} | {size / 1e9:,.0f} GB | {count:,.0f} | "
                f"{BOXES * count:,.0f} | {hours:.2g} core hours |"
            )
    return "\n".join(lines)


def main() -> int:
    """Print both tables."""
    print(f"{exchange_table()}\n\n{store_table()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
