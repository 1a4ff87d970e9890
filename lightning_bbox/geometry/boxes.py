"""Boxes as tensors: formats, flipping, area and the IoU family.

Every function is pure and works on any number of leading dimensions. Unless a name says otherwise a
box is `xyxy`, float32, in continuous pixel edges: a picture spans [0, W] x [0, H] and width = x2 -
x1.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Boxes = Float[Tensor, "*#b 4"]

EPS = 1e-7
"""Keeps the weight of CIoU's term of aspects finite where boxes are equal."""


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Convert corners to the top-left corner and the size.

    Examples:
        >>> xyxy_to_xywh(torch.tensor([1.0, 2.0, 4.0, 8.0]))
        tensor([1., 2., 3., 6.])
    """
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def xywh_to_xyxy(boxes: Float[Tensor, "*#b 4"]) -> Boxes:
    """Convert the top-left corner and the size to corners.

    Examples:
        >>> xywh_to_xyxy(torch.tensor([1.0, 2.0, 3.0, 6.0]))
        tensor([1., 2., 4., 8.])
    """
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_cxcywh(boxes: Boxes) -> Float[Tensor, "*#b 4"]:
    """Convert corners to the centre and the size.

    Examples:
        >>> xyxy_to_cxcywh(torch.tensor([1.0, 2.0, 4.0, 8.0]))
        tensor([2.5000, 5.0000, 3.0000, 6.0000])
    """
    return torch.cat([box_centers(boxes), box_sizes(boxes)], dim=-1)


def cxcywh_to_xyxy(boxes: Float[Tensor, "*#b 4"]) -> Boxes:
    """Convert the centre and the size to corners.

    Examples:
        >>> cxcywh_to_xyxy(torch.tensor([2.5, 5.0, 3.0, 6.0]))
        tensor([1., 2., 4., 8.])
    """
    return boxes_around(boxes[..., :2], boxes[..., 2:])


def boxes_around(centers: Float[Tensor, "*#b 2"], sizes: Float[Tensor, "*#b d"]) -> Boxes:
    """Return the boxes of centres (x, y) and sizes (width, height); one size makes squares.

    Examples:
        >>> boxes_around(torch.tensor([2.5, 5.0]), torch.tensor([3.0, 6.0]))
        tensor([1., 2., 4., 8.])
    """
    half = sizes / 2
    return torch.cat([centers - half, centers + half], dim=-1)


def box_centers(boxes: Boxes) -> Float[Tensor, "*#b 2"]:
    """Return the centres (x, y).

    Examples:
        >>> box_centers(torch.tensor([1.0, 2.0, 4.0, 8.0]))
        tensor([2.5000, 5.0000])
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_sizes(boxes: Boxes) -> Float[Tensor, "*#b 2"]:
    """Return the sizes as (width, height), negative where corners are swapped.

    Examples:
        >>> box_sizes(torch.tensor([1.0, 2.0, 4.0, 8.0]))
        tensor([3., 6.])
    """
    return boxes[..., 2:] - boxes[..., :2]


def box_area(boxes: Boxes) -> Float[Tensor, "*#b"]:
    """Return the area in square pixels; a box with swapped corners has none.

    Examples:
        >>> box_area(torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 3.0, 1.0, 1.0]]))
        tensor([18.,  0.])
    """
    return _product(box_sizes(boxes).clamp(min=0))


def scale_boxes(boxes: Boxes, factor: float) -> Boxes:
    """Scale boxes about their centres.

    Examples:
        >>> scale_boxes(torch.tensor([0.0, 0.0, 10.0, 20.0]), 1.5)
        tensor([-2.5000, -5.0000, 12.5000, 25.0000])
    """
    return boxes_around(box_centers(boxes), box_sizes(boxes) * factor)


def square_boxes(boxes: Boxes) -> Boxes:
    """Widen the shorter side about the centre until the box is square.

    Examples:
        >>> square_boxes(torch.tensor([0.0, 0.0, 10.0, 20.0]))
        tensor([-5.,  0., 15., 20.])
    """
    return boxes_around(box_centers(boxes), box_sizes(boxes).amax(dim=-1, keepdim=True))


def shift_boxes(boxes: Boxes, shifts: Float[Tensor, "*#b 2"]) -> Boxes:
    """Move boxes by shifts (x, y) in pixels.

    Examples:
        >>> shift_boxes(torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([1.0, -1.0]))
        tensor([ 1., -1., 11., 19.])
    """
    return boxes + torch.cat([shifts, shifts], dim=-1)


def mirror_boxes(
    boxes: Boxes, centers: Float[Tensor, "*#b 2"], flips: Float[Tensor, "*#b 2"]
) -> Boxes:
    """Mirror boxes about the vertical and horizontal lines through given centres.

    Args:
        boxes: Boxes to mirror.
        centers: Points (x, y) that stay where they are.
        flips: 1 to mirror left-right (first) or up-down (second), 0 to leave alone.

    Examples:
        >>> box, center = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 5.0])
        >>> mirror_boxes(box, center, torch.tensor([1.0, 0.0]))
        tensor([7., 2., 9., 4.])
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    mirrored = torch.cat([2 * centers - high, 2 * centers - low], dim=-1)
    return torch.where(torch.cat([flips, flips], dim=-1) > 0, mirrored, boxes)


def swap_corners(
    boxes: Boxes, across: Bool[Tensor, "*b"], down: Bool[Tensor, "*b"]
) -> Float[Tensor, "*b 4"]:
    """Exchange left and right, top and bottom, which mirrors the crop that is cut there.

    Args:
        boxes: Boxes, `xyxy`.
        across: Where left and right change places.
        down: Where top and bottom do.

    Examples:
        >>> across, down = torch.tensor([True, False])
        >>> swap_corners(torch.tensor([1.0, 2.0, 3.0, 4.0]), across, down)
        tensor([3., 2., 1., 4.])
    """
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    left, right = torch.where(across, x2, x1), torch.where(across, x1, x2)
    top, bottom = torch.where(down, y2, y1), torch.where(down, y1, y2)
    return torch.stack([left, top, right, bottom], dim=-1)


def _product(sizes: Float[Tensor, "*#b 2"]) -> Float[Tensor, "*#b"]:
    # The gradient of `prod` counts zeros on the host, and waits for the device.
    return sizes[..., 0] * sizes[..., 1]


def _nonzero(sizes: Float[Tensor, "*#b"]) -> Float[Tensor, "*#b"]:
    # By no bound, which would be in square pixels: boxes in other units may be as small as it is.
    return sizes.masked_fill(sizes == 0, 1)


def _intersection_and_union(boxes: Boxes, others: Boxes) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = _product((high - low).clamp(min=0))
    return intersection, box_area(boxes) + box_area(others) - intersection


def _enclosing_sizes(boxes: Boxes, others: Boxes) -> Tensor:
    low = torch.minimum(boxes[..., :2], others[..., :2])
    high = torch.maximum(boxes[..., 2:], others[..., 2:])
    return (high - low).clamp(min=0)


def paired_iou(boxes: Boxes, others: Boxes) -> Float[Tensor, "*#b"]:
    """Return the intersection over union of each box with its partner (0 for two empty boxes).

    Examples:
        >>> paired_iou(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]]))
        tensor([0.3333])
    """
    intersection, union = _intersection_and_union(boxes, others)
    return intersection / _nonzero(union)


def paired_giou(boxes: Boxes, others: Boxes) -> Float[Tensor, "*#b"]:
    """Return the generalised IoU: IoU - (C - U) / C, C the enclosing box's area.

    References:
        Rezatofighi et al., Generalized intersection over union (2019), algorithm 1.

    Examples:
        >>> paired_giou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([-0.3333])
    """
    intersection, union = _intersection_and_union(boxes, others)
    enclosing = _nonzero(_product(_enclosing_sizes(boxes, others)))
    return intersection / _nonzero(union) - (enclosing - union) / enclosing


def paired_diou(boxes: Boxes, others: Boxes) -> Float[Tensor, "*#b"]:
    """Return the distance IoU: IoU - (centre distance / enclosing diagonal)^2.

    References:
        Zheng et al., Distance-IoU loss (2020), equation 6.

    Examples:
        >>> paired_diou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([-0.4000])
    """
    distance = (box_centers(boxes) - box_centers(others)).square().sum(dim=-1)
    diagonal = _enclosing_sizes(boxes, others).square().sum(dim=-1)
    return paired_iou(boxes, others) - distance / _nonzero(diagonal)


def paired_ciou(boxes: Boxes, others: Boxes) -> Float[Tensor, "*#b"]:
    """Return the complete IoU: distance IoU - alpha v, v the difference of the aspect angles.

    The weight alpha = v / (1 - IoU + v) carries no gradient.

    References:
        Zheng et al., Distance-IoU loss (2020), equations 8 to 11.

    Examples:
        >>> paired_ciou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([-0.4000])
    """
    angles = [_aspect_angle(box_sizes(each).clamp(min=0)) for each in (boxes, others)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        alpha = v / (1 - paired_iou(boxes, others) + v).clamp(min=EPS)
    return paired_diou(boxes, others) - alpha * v


def _aspect_angle(sizes: Float[Tensor, "*#b 2"]) -> Float[Tensor, "*#b"]:
    # Of a point the angle has no gradient, as its area has none.
    sizes = sizes.masked_fill((sizes == 0).all(dim=-1, keepdim=True), 1)
    return torch.atan2(sizes[..., 0], sizes[..., 1])
