"""Boxes that were drawn before EXIF turned their picture, and back.

Pictures are upright here, but some tools show them as the sensor saw them: then the size that an
annotation states is the one before the turn, and so are its boxes.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that exchange width and height."""

_MIRRORED = ([2, 3, 6, 7], [3, 4, 7, 8])  # those that mirror in x, and in y, after that exchange


def upright_boxes(
    boxes: Float[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"], turns: Int64[Tensor, " n"]
) -> Float[Tensor, "n 4"]:
    """Turn boxes as EXIF turns their pictures.

    Args:
        boxes: Edges, `xyxy` in pixels of the picture before.
        sizes: Height and width of each box's picture once it is upright.
        turns: EXIF orientation of each box's picture; 1 changes nothing.

    Examples:
        >>> box, size = torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.tensor([[64, 48]])
        >>> upright_boxes(box, size, torch.tensor([6]))
        tensor([[ 8.,  1., 46., 30.]])
    """
    return _mirrored(_exchanged(boxes, turns), sizes, turns)


def sensor_boxes(
    boxes: Float[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"], turns: Int64[Tensor, " n"]
) -> Float[Tensor, "n 4"]:
    """Turn boxes back: the inverse of `upright_boxes`.

    Args:
        boxes: Edges, `xyxy` in pixels of the upright picture.
        sizes: Height and width of each box's picture once it is upright.
        turns: EXIF orientation of each box's picture.

    Examples:
        >>> box, size = torch.tensor([[8.0, 1.0, 46.0, 30.0]]), torch.tensor([[64, 48]])
        >>> sensor_boxes(box, size, torch.tensor([6]))
        tensor([[ 1.,  2., 30., 40.]])
    """
    return _exchanged(_mirrored(boxes, sizes, turns), turns)


def stored_sizes(sizes: Int64[Tensor, "n 2"], turns: Int64[Tensor, " n"]) -> Int64[Tensor, "n 2"]:
    """Return the heights and widths that pictures have before EXIF turns them.

    Args:
        sizes: Height and width of each once it is upright.
        turns: EXIF orientation of each.

    Examples:
        >>> stored_sizes(torch.tensor([[64, 48], [64, 48]]), torch.tensor([6, 3])).tolist()
        [[48, 64], [64, 48]]
    """
    return torch.where((turns >= SIDEWAYS[0])[:, None], sizes.flip(-1), sizes)


def _exchanged(boxes: Float[Tensor, "n 4"], turns: Int64[Tensor, " n"]) -> Float[Tensor, "n 4"]:
    """Exchange x and y where sides are exchanged."""
    return torch.where((turns >= SIDEWAYS[0])[:, None], boxes[:, [1, 0, 3, 2]], boxes)


def _mirrored(
    boxes: Float[Tensor, "n 4"], sizes: Int64[Tensor, "n 2"], turns: Int64[Tensor, " n"]
) -> Float[Tensor, "n 4"]:
    """Mirror boxes in an upright picture, from right to left, upside down, or both."""
    mirror = torch.stack([torch.isin(turns, turns.new_tensor(each)) for each in _MIRRORED], dim=1)
    low, high, sides = boxes[:, :2], boxes[:, 2:], sizes.flip(-1)
    first, last = torch.where(mirror, sides - high, low), torch.where(mirror, sides - low, high)
    return torch.cat([first, last], dim=1)
