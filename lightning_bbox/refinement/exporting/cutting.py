"""The cut inside of a graph: crops from one picture and its halves, by reads of single pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.crop_geometry import MOST_LEVELS, CropGeometry
from lightning_bbox.pictures.pyramid import level_sides, levels_for, regions, taps


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
    at = regions(torch.zeros_like(height), height, width, places, size)
    level = levels_for(places, size, height, width)[:, None]
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
    level = picture.index_select(0, _counted(height)).index_select(1, _counted(width)).float()
    levels = [level.flatten(0, 1)]
    for _ in range(MOST_LEVELS - 1):
        for axis in (0, 1):
            last = level.shape[axis] - 2
            first = 2 * torch.arange(last // 2 + 2)
            pair = [level.index_select(axis, (first + at).clamp(max=last)) for at in (0, 1)]
            level = pair[0] + pair[1]
        level = (level / 4).round()
        levels.append(level.flatten(0, 1))
    return torch.cat(levels).to(torch.uint8)


def _counted(side: int) -> Tensor:
    return torch.arange(side + 1).clamp(max=side - 1)
