"""The pyramid of halved pictures, and which of them a crop box is cut from.

A crop pixel stands for a region of the picture, and its value should be that region's mean. Beside
each picture lie its halves, down to a single pixel, so that a mean over any region takes as many
reads as one over a few pixels. The rule, for a crop box that is `rx` picture pixels wide and `ry`
high for each crop pixel:

1. Level 0 is the picture. A pixel of level n + 1 is the mean of 2 x 2 of level n, rounded to 8 bits
   (half to even). Where a side is odd its last row or column counts twice. Pixel j of level n so
   begins at j * 2^n of the picture, whatever the sides.
2. A box is cut from the largest level n for which (rx * ry + 2) / 4^n >= 2.69, of those the
   picture has, and else from level 0: from level 1 where it is shrunk by 2.96 or more, from level 2
   by 6.41, and so on, for each level twice as much.
3. Along each side a crop pixel is the mean of three bilinear samples, at its place and a reach to
   both sides of it. In pixels of level n the reach is the root of ((r^2 + 2) / 4^n - c) / 8, where
   that is from 0 to 1, with c = 3 on level 0: then what a crop pixel sees is spread as widely as
   in the region's exact mean. On the halves c = 2.27: a little wider, against what would fall
   between their pixels. On level 0 the reach is 0 for r below 1.15, a single bilinear sample.

At a reach of at most a pixel the samples of a side fall on four pixels, which `taps` weighs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64, Integer, UInt8
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.crop_geometry import EXACT, HALVED, LEAST, MOST_LEVELS, SHARP


class Region(NamedTuple):
    """Where a crop is cut from its picture's pyramid.

    Attributes:
        offsets: Where the level of each box begins in the store.
        heights: Rows of that level.
        widths: Columns of that level.
        boxes: The crop boxes in its pixels.
        reach: How far samples lie from the middle one, (x, y), in its pixels.
    """

    offsets: Int64[Tensor, " b"]
    heights: Int32[Tensor, " b"]
    widths: Int32[Tensor, " b"]
    boxes: Boxes
    reach: Float[Tensor, "b 2"]


def num_levels(heights: Integer[Tensor, " n"], widths: Integer[Tensor, " n"]) -> Tensor:
    """Return how many levels pictures have: the last one is a single pixel.

    Examples:
        >>> num_levels(torch.tensor([1, 5, 480]), torch.tensor([1, 3, 640]))
        tensor([ 1,  4, 11])
    """
    longer = torch.maximum(heights, widths)[:, None]
    return 1 + (longer > _powers_of_two(heights)[:-1]).sum(dim=1)


def level_sides(sides: Integer[Tensor, " n"]) -> Integer[Tensor, "n l"]:
    """Return the sides of all levels, as far as any picture has them.

    Examples:
        >>> level_sides(torch.tensor([5]))[0, :5]
        tensor([5, 3, 2, 1, 1])
    """
    # Division, not a shift: exported graphs know none.
    return (sides[:, None] - 1) // _powers_of_two(sides) + 1


def _powers_of_two(like: Integer[Tensor, " n"]) -> Integer[Tensor, " l"]:
    """Return 1, 2, 4 and so on, a number a level."""
    # AOTInductor of torch 2.13 takes a power of whole numbers for one of fractions.
    return torch.arange(MOST_LEVELS, device=like.device).float().exp2().round().to(like.dtype)


def level_starts(
    heights: Integer[Tensor, " n"], widths: Integer[Tensor, " n"]
) -> Int64[Tensor, "n l"]:
    """Return where each level begins, and the last one ends, in its picture's stretch of a store.

    Levels that a picture hasn't begin where it ends.

    Examples:
        >>> level_starts(torch.tensor([3]), torch.tensor([5]))[0, :6]
        tensor([ 0, 15, 21, 23, 24, 24])
    """
    areas = level_sides(heights).long() * level_sides(widths).long()
    there = torch.arange(MOST_LEVELS, device=heights.device) < num_levels(heights, widths)[:, None]
    ends = (areas * there).cumsum(dim=1)
    return torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)


def num_pixels(sizes: Integer[Tensor, "n 2"]) -> Int64[Tensor, " n"]:
    """Return how many pixels pictures take with their halves: a third more, in the usual ones.

    Args:
        sizes: Height and width of each.

    Examples:
        >>> num_pixels(torch.tensor([[3, 5], [1, 1]]))
        tensor([24,  1])
    """
    heights, widths = sizes.unbind(dim=1)
    areas = level_sides(heights).long() * level_sides(widths).long()
    # Beyond the last level, a pixel, halves would go on with one each.
    return areas.sum(dim=1) - (MOST_LEVELS - num_levels(heights, widths))


def shrinks(boxes: Boxes, size: int) -> Float[Tensor, "b 2"]:
    """Return how many picture pixels a crop pixel is wide and high, mirrored or not."""
    return (boxes[:, 2:] - boxes[:, :2]).abs() / size


def is_shrunk(boxes: Boxes, size: int) -> Bool[Tensor, " b"]:
    """Tell which boxes a crop pixel sees more of than one bilinear sample of the picture tells.

    Examples:
        >>> is_shrunk(torch.tensor([[0.0, 0, 51, 51], [0, 0, 45, 52]]), 45)
        tensor([False,  True])
    """
    return (shrinks(boxes, size) >= SHARP).any(dim=1)


def levels_for(
    boxes: Boxes,
    size: int,
    heights: Integer[Tensor, " b"],
    widths: Integer[Tensor, " b"],
    most: int = MOST_LEVELS,
) -> Int64[Tensor, " b"]:
    """Return the level that each box is cut from; level 0 where a box isn't a number.

    Args:
        boxes: Crop boxes in picture pixels.
        size: Side of the crops.
        heights: Rows of each box's picture.
        widths: Columns of each box's picture.
        most: How many levels pictures have at most.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 133, 133], [0, 0, 134, 134], [0, 0, 134, 134]])
        >>> levels_for(boxes, 45, torch.tensor([600, 600, 1]), torch.tensor([800, 800, 1]))
        tensor([0, 1, 0])
    """
    smaller = torch.arange(1, MOST_LEVELS, device=boxes.device, dtype=boxes.dtype)
    level = (_spread(shrinks(boxes, size).prod(dim=1)[:, None], smaller) >= LEAST).sum(dim=1)
    return torch.minimum(level, num_levels(heights, widths) - 1).clamp(max=most - 1)


def reaches(boxes: Boxes, size: int, levels: Int64[Tensor, " b"]) -> Float[Tensor, "b 2"]:
    """Return how far samples lie from the middle one, (x, y), in pixels of each box's level."""
    # In the boxes' own precision: that of the network that trains may be another by default.
    shrink, level = shrinks(boxes, size), levels[:, None].to(boxes.dtype)
    spread = _spread(shrink.square(), level) - (EXACT - (EXACT - HALVED) * level.clamp(max=1))
    sharp = (level == 0) & ~(shrink >= SHARP)
    return (spread / 8).clamp(min=0, max=1).sqrt().masked_fill(sharp, 0.0)


def _spread(squared: Tensor, level: Tensor) -> Tensor:
    """Return twelve times the variance that an exact mean asks for, in pixels of a level."""
    return (squared + 2) * torch.exp2(-2.0 * level)


def regions(
    offsets: Int64[Tensor, " b"],
    heights: Int32[Tensor, " b"],
    widths: Int32[Tensor, " b"],
    boxes: Boxes,
    size: int,
    most: int = MOST_LEVELS,
) -> Region:
    """Return where in the store, and how, the crop of each box is sampled.

    Args:
        offsets: Where the picture of each box begins.
        heights: Rows of that picture.
        widths: Columns of that picture.
        boxes: Crop boxes in picture pixels.
        size: Side of the crops.
        most: How many levels pictures have at most.
    """
    levels = levels_for(boxes, size, heights, widths, most)
    at = levels[:, None]
    return Region(
        offsets + level_starts(heights, widths).gather(1, at)[:, 0],
        level_sides(heights).gather(1, at)[:, 0],
        level_sides(widths).gather(1, at)[:, 0],
        boxes * torch.exp2(-at.to(boxes.dtype)),
        reaches(boxes, size, levels),
    )


def sample_places(low: Tensor, high: Tensor, size: int) -> Float[Tensor, "b s"]:
    """Return where along a side the middles of crop pixels lie, from the middle of pixel 0.

    Args:
        low: Where the boxes begin.
        high: Where they end; swapped with that in mirrored ones.
        size: Side of the crops.

    Examples:
        >>> sample_places(torch.tensor([0.0, 8.0]), torch.tensor([4.0, 0.0]), 4)
        tensor([[0.0000, 1.0000, 2.0000, 3.0000],
                [6.5000, 4.5000, 2.5000, 0.5000]])
    """
    steps = torch.arange(size, device=low.device, dtype=low.dtype) + 0.5
    steps = steps * ((high - low) / size)[:, None]
    return low[:, None] + steps - 0.5


def taps(
    low: Tensor, high: Tensor, reach: Tensor, limit: Tensor, size: int
) -> tuple[Int32[Tensor, "b 4 s"], Float[Tensor, "b 4 s"]]:
    """Return the four pixels that the samples of a side fall on, and their weights.

    Indices are clamped as integers too, so that a box that is not finite can't read outside the
    store; so the border repeats.

    Args:
        low: Where the boxes begin, in pixels of their level.
        high: Where they end.
        reach: How far the outer samples lie from the middle one.
        limit: How many pixels the side of the level has.
        size: Side of the crops.
    """
    last = (limit - 1)[:, None]
    # Two pixels past the border all samples of a side see it alone.
    place = torch.minimum(sample_places(low, high, size).clamp(min=-2), (last + 2).float())
    first = place.floor()
    tap = torch.arange(-1, 3, device=low.device, dtype=torch.int32)[:, None]
    off, far = (place - first)[:, None] - tap, reach[:, None, None]
    left, middle, right = ((1 - each.abs()).clamp(min=0) for each in (off - far, off, off + far))
    index = torch.minimum((first.int()[:, None] + tap).clamp(min=0), last[:, None])
    return index, (left + right + middle) * (1 / 3)


def halved_picture(picture: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h2 w2 3"]:
    """Return the mean of each 2 x 2 pixels; the last row or column of an odd side counts twice.

    Examples:
        >>> halved_picture(torch.tensor([[[0], [1], [9]]], dtype=torch.uint8))[..., 0]
        tensor([[0, 9]], dtype=torch.uint8)
    """
    sums = picture.int()
    for axis in (0, 1):
        if sums.shape[axis] % 2:
            sums = torch.cat([sums, sums.narrow(axis, sums.shape[axis] - 1, 1)], dim=axis)
        first, second = (torch.arange(at, sums.shape[axis], 2, device=sums.device) for at in (0, 1))
        sums = sums.index_select(axis, first) + sums.index_select(axis, second)
    return ((sums + 1 + (sums // 4) % 2) // 4).to(torch.uint8)


def cut_picture(
    picture: UInt8[Tensor, "h w 3"], boxes: Boxes, size: int
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from one picture by the rule alone: no store, no packing, nothing but torch.

    The plain twin of all kernels, for graphs that are exported and for tests.

    Args:
        picture: The picture.
        boxes: Crop boxes, `xyxy` in its pixels; swapped corners mirror.
        size: Side of the crops.

    Returns:
        Crops in [0, 1].

    Examples:
        >>> picture = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3)
        >>> whole = cut_picture(picture, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 4)
        >>> torch.equal(whole, picture.permute(2, 0, 1)[None] / 255)
        True
    """
    height, width = picture.shape[:2]
    start = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    heights, widths = torch.full_like(start, height).int(), torch.full_like(start, width).int()
    place = regions(start, heights, widths, boxes, size)
    levels = [picture]
    while max(levels[-1].shape[:2]) > 1 and len(levels) < MOST_LEVELS:
        levels.append(halved_picture(levels[-1]))
    pixels = torch.cat([level.reshape(-1, picture.shape[2]) for level in levels])
    x1, y1, x2, y2 = place.boxes.unbind(dim=1)
    x, weight_x = taps(x1, x2, place.reach[:, 0], place.widths, size)
    y, weight_y = taps(y1, y2, place.reach[:, 1], place.heights, size)
    rows = place.offsets[:, None, None] + y.long() * place.widths[:, None, None]
    # (b, 4 taps down, s rows, 4 taps across, s columns, 3)
    values = pixels[rows[:, :, :, None, None] + x[:, None, None]].float()
    return torch.einsum("btyuxc,bty,bux->bcyx", values, weight_y, weight_x) / 255
