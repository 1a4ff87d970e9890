"""The cut inside of a graph: crops from one picture by reads of single pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.pictures.kernels import _sample_shifts, _taps


def cut_in_graph(
    picture: UInt8[Tensor, "h w 3"], geometry: CropGeometry, boxes: Boxes
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops around boxes as `cut_crops` does, by no more than can be traced.

    Args:
        picture: The picture.
        geometry: How to cut.
        boxes: The boxes, `xyxy` in its pixels.
    """
    size, samples = geometry.size, geometry.supersample or 1
    places = geometry.crop_boxes(boxes)
    shifted = (places[:, None] + _sample_shifts(samples, places, size)).flatten(0, 1)
    height, width = (
        torch.full_like(shifted[:, 0], side, dtype=torch.int32) for side in picture.shape[:2]
    )
    x0, x1, weight_x = _taps(shifted[:, 0], shifted[:, 2], width, size)
    y0, y1, weight_y = _taps(shifted[:, 1], shifted[:, 3], height, size)
    pixels = picture.flatten(0, 1)
    rows = [(y * width[:, None])[:, :, None] for y in (y0, y1)]
    corners = [(row + x[:, None, :]).flatten() for row in rows for x in (x0, x1)]
    shape = -1, size, size
    a, b, c, d = (
        torch.unflatten(pixels.index_select(0, corner).float(), 0, shape) for corner in corners
    )
    across = weight_x[:, None, :, None]
    top, low = a + (b - a) * across, c + (d - c) * across
    crops = (top + (low - top) * weight_y[:, :, None, None]) * (1 / 255)
    crops = crops.permute(0, 3, 1, 2)
    averaged: Tensor = torch.unflatten(crops, 0, (-1, samples**2)).mean(dim=1)
    return averaged
