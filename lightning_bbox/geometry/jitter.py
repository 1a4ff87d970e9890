"""Jitter laws: how proposals are drawn around true boxes.

A law turns keyed uniform numbers into proposals, so it holds no state and needs no generator. Laws
that reject a draw try a fixed number of times, all at once; a sample whose tries all fail keeps the
true box and is counted.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.geometry.boxes import (
    Boxes,
    box_area,
    box_centers,
    box_sizes,
    boxes_around,
    paired_iou,
)
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw

_REACH = 4.0  # standard deviations at which a fitted law ends

SLACK = 1e-4
"""Far from the origin, a box's area in float32 is only this exact."""


@dataclass(frozen=True)
class Jittered:
    """Proposals, and which of them no try gave (they equal the true box)."""

    proposals: Boxes
    failed: Bool[Tensor, " n"]


class Jitter:
    """A law of proposals.

    Subclasses give `columns` uniform numbers to `_propose`, and state in `bounds` how far proposals
    can be off.
    """

    columns: int = 4
    tries: int = 1

    def propose(
        self, gt_boxes: Boxes, uniforms: Float[Tensor, "n c"], geometry: CropGeometry, resize: bool
    ) -> Jittered:
        """Draw a proposal for each true box.

        Args:
            gt_boxes: True boxes.
            uniforms: Numbers in [0, 1), `columns * tries` a box.
            geometry: Says what a px is.
            resize: Whether the size changes too, or the centre only.
        """
        tries = uniforms.view(len(gt_boxes), self.tries, self.columns)
        boxes = gt_boxes[:, None].expand(-1, self.tries, -1)
        proposals = self._propose(boxes, tries, geometry, resize)
        accepted = self._accepts(boxes, proposals, geometry)
        first = accepted.int().argmax(dim=1)
        chosen = proposals[torch.arange(len(gt_boxes)), first]
        failed = ~accepted.any(dim=1)
        return Jittered(torch.where(failed[:, None], gt_boxes, chosen), failed)

    def bounds(self, geometry: CropGeometry) -> tuple[float, float]:
        """Return the largest shift in px and the largest change of log size."""
        raise NotImplementedError

    def _propose(
        self, boxes: Boxes, uniforms: Tensor, geometry: CropGeometry, resize: bool
    ) -> Boxes:
        raise NotImplementedError

    def _accepts(self, boxes: Boxes, proposals: Boxes, geometry: CropGeometry) -> Tensor:
        return torch.ones(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)


class UniformJitter(Jitter):
    """Shift the centre uniformly, change each side log-uniformly.

    Args:
        shift: Largest shift in px along x and along y.
        log_scale: Largest change of the logarithm of each side (0.2: between 0.82 and 1.22 times).
        integer: Draw whole px only, as in patches that must not be resampled.

    Raises:
        BadInput: The shift isn't positive, the scale is negative, or integer shifts aren't whole.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> law, draws = UniformJitter(5.0), torch.ones(1, 4)
        >>> law.propose(boxes, draws, CropGeometry(), resize=False).proposals
        tensor([[ 5.,  5., 35., 35.]])
    """

    def __init__(self, shift: float = 5.0, log_scale: float = 0.2, integer: bool = False) -> None:
        if not (0 < shift < math.inf and 0 <= log_scale < math.inf):
            msg = f"jitter shift {shift} must be positive, log_scale {log_scale} not negative"
            raise BadInput(msg)
        if integer and shift != int(shift):
            msg = f"jitter shift {shift} isn't whole, but integer jitter was asked for"
            raise BadInput(msg)
        self.shift, self.log_scale, self.integer = shift, log_scale, integer

    def bounds(self, geometry: CropGeometry) -> tuple[float, float]:
        """Return the bounds as given."""
        return self.shift, self.log_scale

    def _propose(
        self, boxes: Boxes, uniforms: Tensor, geometry: CropGeometry, resize: bool
    ) -> Boxes:
        sizes = box_sizes(boxes)
        if resize:
            sizes = sizes * torch.exp((2 * uniforms[..., 2:] - 1) * self.log_scale)
        if self.integer:
            steps = (uniforms[..., :2] * (2 * self.shift + 1)).floor()
            shifts = steps.clamp(max=2 * self.shift) - self.shift
        else:
            shifts = (2 * uniforms[..., :2] - 1) * self.shift
        px = geometry.px(boxes_around(box_centers(boxes), sizes))
        return boxes_around(box_centers(boxes) + shifts * px, sizes)


class LaplaceJitter(Jitter):
    """GOTURN's motion model: Laplace shifts in units of the size, Laplace changes of scale.

    Draws whose crop would lose the true centre are drawn again.

    Args:
        shift: Scale of the shift's Laplace law, as a fraction of the box's size.
        scale: Scale of the size change's Laplace law.
        max_scale: Where the change of size is clipped.

    References:
        Held et al., Learning to track at 100 fps with deep regression networks (2016), section 3.4.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> law, draws = LaplaceJitter(), torch.full((1, 40), 0.5)
        >>> law.propose(boxes, draws, CropGeometry(), resize=True).proposals
        tensor([[ 0.,  0., 30., 30.]])
    """

    tries = 10

    def __init__(self, shift: float = 1 / 5, scale: float = 1 / 15, max_scale: float = 0.4) -> None:
        if not (0 < shift < math.inf and 0 < scale < math.inf and 0 < max_scale < 1):
            msg = (
                f"Laplace jitter shift {shift}, scale {scale}, max_scale {max_scale}: "
                f"expected > 0, and max_scale < 1"
            )
            raise BadInput(msg)
        self.shift, self.scale, self.max_scale = shift, scale, max_scale

    def bounds(self, geometry: CropGeometry) -> tuple[float, float]:
        """Return half the reference side, as the true centre stays in the crop, and the clip."""
        return geometry.reference_size / 2, -math.log(1 - self.max_scale)

    def _propose(
        self, boxes: Boxes, uniforms: Tensor, geometry: CropGeometry, resize: bool
    ) -> Boxes:
        sizes = box_sizes(boxes)
        shifts = _laplace(uniforms[..., :2]) * self.shift * sizes
        if resize:
            change = _laplace(uniforms[..., 2:]) * self.scale
            sizes = sizes * (1 + change.clamp(-self.max_scale, self.max_scale))
        return boxes_around(box_centers(boxes) + shifts, sizes)

    def _accepts(self, boxes: Boxes, proposals: Boxes, geometry: CropGeometry) -> Tensor:
        crops = geometry.crop_boxes(proposals)
        distance = (box_centers(boxes) - box_centers(crops)).abs()
        return (distance <= box_sizes(crops) / 2).all(dim=-1)


class OverlapJitter(Jitter):
    """MDNet's samples for its box regressor: wide draws, kept when they overlap enough.

    Args:
        shift: Largest shift, as a fraction of the mean of width and height.
        scale: Sides change by this to the power of U(-1, 1).
        aspect: The aspect ratio changes likewise.
        min_iou: Least overlap with the true box.
        max_area: Largest area relative to the true box; the smallest is the same area.

    References:
        Nam and Han, Learning multi-domain convolutional networks (2016), section 4.2, and its
        published settings.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> law, draws = OverlapJitter(), torch.full((1, 200), 0.5)
        >>> law.propose(boxes, draws, CropGeometry(), resize=True).proposals
        tensor([[ 0.,  0., 30., 30.]])
    """

    tries = 50  # one draw in eleven is accepted with these settings: 1 % of the samples keep none

    def __init__(
        self,
        shift: float = 0.3,
        scale: float = 1.6,
        aspect: float = 1.1,
        min_iou: float = 0.6,
        max_area: float = 2.0,
    ) -> None:
        ratios = all(1 <= ratio < math.inf for ratio in (scale, aspect, max_area))
        if not (0 < shift < math.inf and ratios and 0 < min_iou < 1):
            msg = (
                f"overlap jitter shift {shift}, scale {scale}, aspect {aspect}, min_iou {min_iou}, "
                f"max_area {max_area}: expected shift > 0, ratios >= 1 and 0 < min_iou < 1"
            )
            raise BadInput(msg)
        self.shift, self.scale, self.aspect = shift, scale, aspect
        self.min_iou, self.max_area = min_iou, max_area

    def bounds(self, geometry: CropGeometry) -> tuple[float, float]:
        """Return what the overlap allows.

        Along one side the overlap is at most (w + p) / 2 - d of (w + p) / 2 + d, for a shift d
        between sides w and p whose ratio is between the least IoU and its inverse.
        """
        largest = (1 / self.min_iou + 1) / 2 * (1 - self.min_iou) / (1 + self.min_iou)
        return largest * geometry.px_per_delta, -math.log(self.min_iou)

    def _propose(
        self, boxes: Boxes, uniforms: Tensor, geometry: CropGeometry, resize: bool
    ) -> Boxes:
        sizes = box_sizes(boxes)
        signed = 2 * uniforms - 1
        shifts = signed[..., :2] * self.shift * sizes.mean(dim=-1, keepdim=True)
        if resize:
            scale = self.scale ** signed[..., 2:3]
            aspect = self.aspect ** (signed[..., 3:4] * signed.new_tensor([1.0, -1.0]))
            sizes = sizes * scale * aspect
        return boxes_around(box_centers(boxes) + shifts, sizes)

    def _accepts(self, boxes: Boxes, proposals: Boxes, geometry: CropGeometry) -> Tensor:
        ratio = box_area(proposals) / box_area(boxes)
        large, small = ratio <= self.max_area + SLACK, ratio >= 1 - SLACK
        return (paired_iou(boxes, proposals) >= self.min_iou) & large & small


class FittedJitter(Jitter):
    """Proposals that are off as a law says, such as the one that fits a detector's boxes.

    Normal draws end at four standard deviations, so that the range to learn has an end.

    Args:
        law: Path of the law: the `law.json` of a run on `data.proposals`, or of a `predict`.

    Raises:
        BadInput: The file can't be read, or holds no law.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "law.json"
        >>> DisplacementLaw(0.0, (1.0,), ((0.1, 0.0),), ((0.0, 0.0),)).save(path)
        >>> law, draws = FittedJitter(str(path)), torch.full((1, 5), 0.5)
        >>> boxes = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> law.propose(boxes, draws, CropGeometry(), resize=False).proposals
        tensor([[-3.,  0., 27., 30.]])
    """

    columns = 5  # which part of the law, and four coordinates

    def __init__(self, law: str) -> None:
        self.law = DisplacementLaw.load(expanded(law))

    def bounds(self, geometry: CropGeometry) -> tuple[float, float]:
        """Return how far the widest part of the law reaches."""
        _, means, stds = self._parts()
        reach = (means.abs() + _REACH * stds).amax(dim=0).tolist()
        return max(reach[:2]) * geometry.px_per_delta, max(reach[2:], default=0.0)

    def _propose(
        self, boxes: Boxes, uniforms: Tensor, geometry: CropGeometry, resize: bool
    ) -> Boxes:
        if resize and self.law.num_targets == 2:
            msg = "the law of FittedJitter says nothing of sizes; set data.num_targets to 2"
            raise BadInput(msg)
        shares, means, stds = self._parts()
        ends = shares.cumsum(dim=0)[:-1].contiguous()
        part = torch.searchsorted(ends, uniforms[..., 0].contiguous(), right=True)
        normal = torch.special.ndtri(uniforms[..., 1 : 1 + means.shape[1]]).clamp(-_REACH, _REACH)
        offsets = means[part] + stds[part] * normal
        sizes = box_sizes(boxes)
        if resize:
            sizes = sizes * torch.exp(-offsets[..., 2:])
        return boxes_around(box_centers(boxes) - offsets[..., :2] * sizes, sizes)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares, means and standard deviations, those of boxes that are right first."""
        none = (0.0,) * self.law.num_targets
        rows = ((self.law.right, *self.law.shares), (none, *self.law.means), (none, *self.law.stds))
        shares, means, stds = (torch.tensor(row, dtype=torch.float32) for row in rows)
        return shares, means, stds


def _laplace(uniforms: Tensor) -> Tensor:
    """Turn uniform numbers into standard Laplace ones by the inverse distribution function."""
    signed = (uniforms - 0.5).clamp(min=-0.5 + 1e-7)
    return -signed.sign() * torch.log1p(-2 * signed.abs())
