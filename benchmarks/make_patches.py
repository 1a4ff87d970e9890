"""Make patches of annotated pictures: the question's data, from any data set.

    python -m benchmarks.make_patches ROOT OUT.npz [--shifted]

Two patches a box by default, 45x45 crops at the pictures' own scale with shifts of up to 5 px. With
a margin a patch is 55x55, its object in the middle, and shifts are cut from it at training; already
shifted it is 45x45, and `offsets` says where its object lies. Nothing is resampled: a patch is a
piece of its picture, at whole pixels, its border repeated where the picture ends. `groups` are the
data set's own.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.pictures.decode import decode_image, find_levels

SIDE, SHIFT = 45, 5


def main(args: list[str] | None = None) -> int:
    """Read the data set, cut the patches, write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_patches", description=__doc__)
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("out", type=Path, help="npz to write")
    parser.add_argument("--shifted", action="store_true", help="shift now, without a margin")
    parser.add_argument("--per-box", type=int, default=2, help="patches a box")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    table = read_annotations(options.root)
    arrays = make_patches(table, options.per_box, options.shifted, options.seed)
    np.savez(options.out, **arrays)  # type: ignore[arg-type] # numpy's stub takes them for flags
    sys.stdout.write(f"{options.out}: {len(arrays['patches'])} patches\n")
    return 0


def make_patches(table: BoxTable, per_box: int, shifted: bool, seed: int) -> dict[str, np.ndarray]:
    """Return `patches`, `groups` and, where shifted, `offsets`.

    An object's centre falls between pixels, so a patch holds it up to half a pixel off its middle;
    that remainder is part of `offsets`. With a margin it can't be told, so each patch of a box is
    moved by up to half a pixel more, as boxes drawn by people are.
    """
    side = SIDE if shifted else SIDE + 2 * SHIFT
    deep = [table.root / name for name in table.images if name in table.deep]
    white_level = find_levels(deep).white if deep else None
    generator = keyed_generator("patches", seed)
    patches, offsets, groups = [], [], []
    for index in range(len(table.images)):
        boxes = table.boxes[table.image_index == index]
        picture = decode_image(table.root / table.images[index], white_level)
        for center in box_centers(boxes).repeat_interleave(per_box, dim=0):
            reach = SHIFT if shifted else 0.5
            moved = center + (2 * torch.rand(2, generator=generator) - 1) * reach
            corner = (moved - side / 2).round()
            patches.append(cut_patch(picture, corner.int().tolist(), side))
            offsets.append((center - corner - side / 2).numpy())
            groups.append(table.groups[index])
    arrays = {"patches": np.stack(patches), "groups": np.array(groups)}
    return arrays | {"offsets": np.stack(offsets)} if shifted else arrays


def cut_patch(picture: np.ndarray, corner: list[int], side: int) -> np.ndarray:
    """Cut a square at whole pixels; the border repeats."""
    columns = np.clip(np.arange(corner[0], corner[0] + side), 0, picture.shape[1] - 1)
    rows = np.clip(np.arange(corner[1], corner[1] + side), 0, picture.shape[0] - 1)
    return picture[rows[:, None], columns[None]]


if __name__ == "__main__":
    sys.exit(main())
