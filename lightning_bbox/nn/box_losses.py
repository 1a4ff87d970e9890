"""Losses on decoded boxes: the IoU family.

They pay no heed to a box's size, and to no codec's scaling: a shift by a hundredth of the box costs
about 0.02 anywhere. Boxes are decoded in fp32; all losses are 0 where the boxes are equal, and
their gradients are finite for empty boxes too.
"""

from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.recipes import Recipe
from lightning_bbox.geometry.boxes import Boxes, paired_ciou, paired_diou, paired_giou, paired_iou


class BoxLoss(Recipe):
    """Predicted and true boxes to a number for each sample."""

    def __call__(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample.

        Args:
            boxes: What the head predicts, decoded.
            gt_boxes: Where the objects are.
        """
        raise NotImplementedError


class IoULoss(BoxLoss):
    """1 - IoU: for a shift by d of a box w wide it is 2d / (w + d), so next to L1.

    Boxes that don't overlap have no gradient.

    References:
        Yu et al., UnitBox (2016), whose loss is -ln IoU; ours is linear in the IoU.

    Examples:
        >>> import torch
        >>> loss = IoULoss()
        >>> loss(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 0.0, 15.0, 10.0]]))
        tensor([0.6667])
    """

    def __call__(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return 1 - paired_iou(boxes, gt_boxes)


class GIoULoss(BoxLoss):
    """1 - IoU, and the share of the enclosing box that neither covers.

    References:
        Rezatofighi et al., Generalized intersection over union (2019).

    Examples:
        >>> import torch
        >>> GIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([1.3333])
    """

    def __call__(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return 1 - paired_giou(boxes, gt_boxes)


class DIoULoss(BoxLoss):
    """1 - IoU, and the squared distance of the centres over the enclosing box's diagonal.

    References:
        Zheng et al., Distance-IoU loss (2020), equation 7.

    Examples:
        >>> import torch
        >>> DIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([1.4000])
    """

    def __call__(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return 1 - paired_diou(boxes, gt_boxes)


class CIoULoss(BoxLoss):
    """The distance-IoU loss, and how far the aspect ratios differ.

    With two targets, where sizes stay, it is that of the distance alone.

    References:
        Zheng et al., Distance-IoU loss (2020), equations 8 to 11: the weight of the aspect ratio
        carries no gradient. Its code replaces a factor of the gradient, ours keeps the formula's.

    Examples:
        >>> import torch
        >>> CIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([1.4000])
    """

    def __call__(self, boxes: Boxes, gt_boxes: Boxes) -> Float[Tensor, " b"]:
        """Return the loss of each sample."""
        return 1 - paired_ciou(boxes, gt_boxes)
