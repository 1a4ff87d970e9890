"""The cut inside of a graph: crops from one picture and its halves, by reads of single pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.pictures.pyramid import level_sides, levels_for, regions, taps

LEVELS = 10
"""Levels that a graph makes of a picture: each takes a compiler some seconds. Crop boxes of more
than 1,600 times the crop's size are cut from the last one too, with what falls between its
pixels."""


def cut_in_graph(
    picture: UInt8[Tensor, "h w 3"], geometry: CropGeometry, boxes: Boxes
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops around boxes as `cut_picture` does, without a choice that depends on sizes.

    Args:
        picture: The picture.
        geometry: How to cut.
        boxes: The boxes, `xyxy` in its pixels.
    """
    size, places = geometry.size, geometry.crop_boxes(boxes)
    height, width = (
        torch.full_like(places[:, 0], side, dtype=torch.int64) for side in picture.shape[:2]
    )
    at = regions(torch.zeros_like(height), height, width, places, size, LEVELS)
    level = levels_for(places, size, height, width, LEVELS)[:, None]
    areas = (level_sides(height) + 1) * (level_sides(width) + 1)
    start = (areas.cumsum(dim=1) - areas).gather(1, level)
    x1, y1, x2, y2 = at.boxes.unbind(dim=1)
    x, weight_x = taps(x1, x2, at.reach[:, 0], at.widths, size)
    y, weight_y = taps(y1, y2, at.reach[:, 1], at.heights, size)
    rows = start[:, :, None] + y * (at.widths + 1)[:, None, None]
    pixels, lines = _with_halves(picture), []
    for row, weight in zip(rows.unbind(dim=1), weight_y.unbind(dim=1), strict=True):
        index = row[:, :, None, None] + x[:, None]  # b rows, 4 taps, columns
        read = pixels.index_select(0, index.flatten()).float()
        values = torch.unflatten(read, 0, (-1, size, x.shape[1], size))
        line = (values * weight_x[:, None, :, :, None]).sum(dim=2)
        lines.append(line * weight[:, :, None, None])
    return torch.stack(lines).sum(dim=0).permute(0, 3, 1, 2) / 255


def _with_halves(picture: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "p 3"]:
    """Return the pixels of a picture, of its half, and so on, one after the other.

    Each has its last row and column twice: a side of one pixel would be taken for a constant.
    """
    height, width = picture.shape[0], picture.shape[1]
    level = picture.index_select(0, _places(height, 0, 0)).index_select(1, _places(width, 0, 0))
    level, levels = level.float(), [level.flatten(0, 1)]
    for number in range(1, LEVELS):
        for axis, side in enumerate((height, width)):
            first, second = (level.index_select(axis, _places(side, number, at)) for at in (0, 1))
            level = first + second
        level = (level / 4).round()
        levels.append(level.flatten(0, 1).to(torch.uint8))
    return torch.cat(levels)


def _places(side: int, level: int, at: int) -> Tensor:
    """Return which pixels of the level before are the first ones, or second, of each of a level."""
    # By the picture's own side: from level to level a compiler would get ever longer formulas.
    number = (side - 1) // 2**level + 2
    if level == 0:
        return torch.arange(number).clamp(max=number - 2)
    return (2 * torch.arange(number) + at).clamp(max=(side - 1) // 2 ** (level - 1))
