"""Codecs: true boxes and anchors to targets, and back.

One codec serves sampler, loss, decoder and exporter; its statistics are buffers and travel in the
checkpoint. Targets are Girshick's deltas (dx, dy) or (dx, dy, dw, dh), shifted and scaled
coordinate by coordinate, or whitened together.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, boxes_around, shift_boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry

FULL_SCALE = 65_535
"""White in a picture that uses all of its 16 bits."""
MAX_LOG_SIZE = math.log(1000 / 16)
"""Decoding clamps dw and dh here, so that exp can't overflow (the constant is Detectron's)."""

Deltas = Float[Tensor, "*#b n"]

White = int | tuple[float, float]
"""What is white in pictures of more than 8 bits a band, where 0 is black; or black and white."""


def encode_deltas(boxes: Boxes, anchors: Boxes) -> Float[Tensor, "*#b 4"]:
    """Encode boxes as R-CNN deltas relative to anchors.

    The centre's shift is in units of the anchor's size, the change of size is the logarithm of a
    ratio. Not finite where a width or height isn't positive.

    Args:
        boxes: Boxes to encode, `xyxy`.
        anchors: The box each one is relative to, same frame.

    References:
        Girshick et al., Rich feature hierarchies (2014), appendix C, equations 6-9.

    Examples:
        >>> encode_deltas(torch.tensor([[1.0, 1, 11, 21]]), torch.tensor([[0.0, 0, 10, 20]]))
        tensor([[0.1000, 0.0500, 0.0000, 0.0000]])
    """
    sizes = box_sizes(anchors)
    shifts = (box_centers(boxes) - box_centers(anchors)) / sizes
    return torch.cat([shifts, torch.log(box_sizes(boxes) / sizes)], dim=-1)


def decode_deltas(deltas: Deltas, anchors: Boxes) -> Boxes:
    """Apply deltas to anchors; with two of them the size stays.

    Args:
        deltas: (dx, dy) or (dx, dy, dw, dh).
        anchors: The box each one is relative to, `xyxy`.

    References:
        Girshick et al., Rich feature hierarchies (2014), appendix C, equations 1-4.

    Examples:
        >>> decode_deltas(torch.tensor([[0.1, 0.05]]), torch.tensor([[0.0, 0.0, 10.0, 20.0]]))
        tensor([[ 1.,  1., 11., 21.]])
    """
    sizes = box_sizes(anchors)
    centers = box_centers(anchors) + deltas[..., :2] * sizes
    if deltas.shape[-1] == 4:
        sizes = sizes * torch.exp(deltas[..., 2:].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE))
    return boxes_around(centers, sizes)


@dataclass(frozen=True)
class OffsetSpec:
    """What a model must know of the data to be built: it travels in the checkpoint.

    Args:
        geometry: How proposals become crops.
        num_targets: 2 for (dx, dy), 4 for (dx, dy, dw, dh).
        max_shift: Largest shift to expect, in px.
        max_log_size: Largest change of log size to expect.
        classes: Names of the classes.
        white_level: What is white, or black and white, in pictures of more than 8 bits a band; None
            where there were none.
        part: Which page and bands of TIFFs are read.
    """

    geometry: CropGeometry
    num_targets: int
    max_shift: float
    max_log_size: float
    classes: tuple[str, ...] = ()
    white_level: White | None = None
    part: TiffPart = TiffPart()

    def __post_init__(self) -> None:
        if not all(0 <= bound < math.inf for bound in (self.max_shift, self.max_log_size)):
            msg = f"offsets reach {self.max_shift} px and {self.max_log_size}; expected 0 or more"
            raise BadInput(msg)
        if self.white_level is not None:
            as_white(self.white_level)

    @property
    def bounds(self) -> list[float]:
        """Largest magnitude of each coordinate, in px and in log size."""
        return [self.max_shift] * 2 + [self.max_log_size] * (self.num_targets - 2)

    @property
    def units(self) -> list[float]:
        """Size of one px, or of one unit of log size, as a delta."""
        return [1 / self.geometry.px_per_delta] * 2 + [1.0] * (self.num_targets - 2)


def refuse_other_crops(spec: OffsetSpec, geometry: CropGeometry, num_targets: int) -> None:
    """Refuse to apply a model to crops of another kind than it was trained on.

    Args:
        spec: What the model was trained on.
        geometry: The crops it is to be used on.
        num_targets: How many coordinates it is to predict.

    Raises:
        BadInput: Crops or targets differ.

    Examples:
        >>> spec = OffsetSpec(CropGeometry(), num_targets=2, max_shift=5.0, max_log_size=0.0)
        >>> refuse_other_crops(spec, CropGeometry(), num_targets=2)
    """
    for name in ("size", "context", "square", "reference_size"):
        trained, given = (getattr(crop, name) for crop in (spec.geometry, geometry))
        if trained != given:
            msg = (
                f"the model was trained with crop.{name} = {trained}, the data has {given}; "
                f"make them equal"
            )
            raise BadInput(msg)
    if spec.num_targets != num_targets:
        msg = (
            f"the model predicts {spec.num_targets} targets, the data asks for {num_targets}; "
            f"set num_targets"
        )
        raise BadInput(msg)


def as_white(given: object) -> White:
    """Return what is white, or black and white, as it was given or read from a file.

    Args:
        given: A whole number, or two numbers.

    Raises:
        BadInput: It is neither, or can't be.

    Examples:
        >>> as_white(4095), as_white([0.5, 1])
        (4095, (0.5, 1.0))
    """
    if isinstance(given, int) and given is not True and 0 < given <= FULL_SCALE:
        return given
    if isinstance(given, (list, tuple)) and len(given) == 2:
        black, white = (
            float(each) if isinstance(each, (int, float)) else math.nan for each in given
        )
        if math.isfinite(white - black) and black < white:
            return black, white
    shown = list(given) if isinstance(given, tuple) else given
    problem = f"white_level is {shown}; expected auto, or 1 to {FULL_SCALE}"
    msg = f"{problem}, or [BLACK, WHITE] with BLACK below WHITE"
    raise BadInput(msg)


def refuse_other_white(spec: OffsetSpec, white_level: White | None) -> None:
    """Refuse to go on with pictures of more than 8 bits that would be read otherwise than before.

    Args:
        spec: What the model was trained on.
        white_level: What is white in the pictures now; None where none has more than 8 bits.

    Raises:
        BadInput: Such pictures were there and are there, and other values were black or white.

    Examples:
        >>> spec = OffsetSpec(CropGeometry(), 2, 5.0, 0.0, white_level=4095)
        >>> refuse_other_white(spec, white_level=4095)
    """
    if None not in (spec.white_level, white_level) and spec.white_level != white_level:
        then, now = (
            list(w) if isinstance(w, tuple) else w for w in (spec.white_level, white_level)
        )
        msg = (
            f"the model was trained with white_level {then}, that of the data is {now}; set "
            f"data.white_level={then}"
        )
        raise BadInput(msg)


class TargetSpace(NamedTuple):
    """How targets relate to px: an offset p in px is the target `origin + p * unit`.

    Attributes:
        unit: One px, or one unit of log size, in target units.
        origin: The target of a perfect proposal.
        std: Standard deviation of the training targets.
        bound: Largest offset to expect, in px and in log size.
        mixed: Whether targets mix the coordinates, so that units and origins mean nothing.
    """

    unit: Float[Tensor, " n"]
    origin: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    bound: Float[Tensor, " n"]
    mixed: bool = False


class DeltaCodec(Part):
    """Girshick's deltas as they are: the question's unscaled targets.

    Subclasses choose another shift and scale of the targets.

    Examples:
        >>> codec = DeltaCodec().build(OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
        >>> proposals = torch.tensor([[0.0, 0.0, 30.0, 30.0]])
        >>> codec.encode(torch.tensor([[3.0, 0.0, 33.0, 30.0]]), proposals)
        tensor([[0.1000, 0.0000]])
    """

    shift: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def build(self, spec: OffsetSpec) -> "DeltaCodec":
        """Make the buffers for a number of targets."""
        self.spec = spec
        for name, value in (("shift", 0.0), ("scale", 1.0), ("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((spec.num_targets,), value))
        return self

    def fit(self, gt_boxes: Boxes, proposals: Boxes, *, rescale: bool = True) -> None:
        """Set the scaling and the statistics from the training split.

        Args:
            gt_boxes: True boxes of training samples.
            proposals: What each was proposed as.
            rescale: Whether to set the scaling, or the statistics alone.

        Raises:
            BadInput: The targets of one coordinate are all the same, so there is nothing to learn.
        """
        anchors = self.spec.geometry.anchors(proposals.double().cpu())
        deltas = encode_deltas(gt_boxes.double().cpu(), anchors)
        deltas = deltas[:, : self.spec.num_targets]
        if len(deltas) < 2:
            msg = f"{len(deltas)} training targets are too few to learn from; give at least 2"
            raise BadInput(msg)
        # Boxes are float32: below this a spread is rounding, not jitter.
        if not bool((deltas.std(dim=0) > 1e-5).all()):
            msg = (
                f"the {len(deltas)} training targets of one coordinate are all the same: there is "
                f"nothing to learn; check the jitter, or use 2 targets where sizes don't change"
            )
            raise BadInput(msg)
        if rescale:
            self._fit_scaling(deltas)
        targets = self._scaled(deltas)
        self.mean.copy_(targets.mean(dim=0))
        self.std.copy_(targets.std(dim=0))

    def _fit_scaling(self, deltas: Tensor) -> None:
        self.scale.copy_(deltas.new_tensor(self._fixed_scale()))

    def _fixed_scale(self) -> list[float]:
        return [1.0] * self.spec.num_targets

    def encode(self, gt_boxes: Boxes, proposals: Boxes) -> Float[Tensor, "*#b n"]:
        """Return the targets of true boxes, in fp32."""
        anchors = self.spec.geometry.anchors(proposals.float())
        return self._scaled(encode_deltas(gt_boxes.float(), anchors)[..., : self.spec.num_targets])

    def decode(self, targets: Float[Tensor, "*#b n"], proposals: Boxes) -> Boxes:
        """Return the boxes of targets, in fp32; with two targets proposals keep their size."""
        deltas = self._unscaled(targets.float())
        anchors = self.spec.geometry.anchors(proposals.float())
        if self.spec.num_targets == 4:
            return decode_deltas(deltas, anchors)
        return shift_boxes(proposals.float(), deltas * box_sizes(anchors))

    def _scaled(self, deltas: Tensor) -> Tensor:
        return (deltas - self.shift) / self.scale

    def _unscaled(self, targets: Tensor) -> Tensor:
        return targets * self.scale + self.shift

    def space(self) -> TargetSpace:
        """Return the way from px to targets."""
        unit = self.scale.new_tensor(self.spec.units) / self.scale
        return TargetSpace(
            unit, -self.shift / self.scale, self.std, self.scale.new_tensor(self.spec.bounds)
        )


class FixedStdCodec(DeltaCodec):
    """Deltas over fixed standard deviations.

    Args:
        stds: One for each of dx, dy, dw, dh.

    References:
        Girshick, Fast R-CNN (2015): its code divides by (0.1, 0.1, 0.2, 0.2).
    """

    def __init__(self, stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)) -> None:
        super().__init__()
        if not all(0 < std < math.inf for std in stds):
            msg = f"codec stds {stds} must be positive"
            raise BadInput(msg)
        self.stds = tuple(stds)

    def _fixed_scale(self) -> list[float]:
        return list(self.stds[: self.spec.num_targets])


class MeanStdCodec(DeltaCodec):
    """Deltas minus the training mean, over the training standard deviation.

    Targets have unit variance, whatever the jitter.

    References:
        Girshick et al., Rich feature hierarchies (2014) normalises its targets likewise.
    """

    def _fit_scaling(self, deltas: Tensor) -> None:
        self.shift.copy_(deltas.mean(dim=0))
        self.scale.copy_(deltas.std(dim=0))


class MaxShiftCodec(DeltaCodec):
    """Deltas over the largest one to expect, so that targets lie in [-1, 1].

    The question's own remedy.
    """

    def _fixed_scale(self) -> list[float]:
        spec = self.spec
        return [bound * unit for bound, unit in zip(spec.bounds, spec.units, strict=True)]


class PixelCodec(DeltaCodec):
    """Shifts in px; sizes stay logarithms."""

    def _fixed_scale(self) -> list[float]:
        return self.spec.units


class WhitenedCodec(DeltaCodec):
    """Deltas with all correlations taken out: centred, times the covariance's inverse root.

    Args:
        eps: What is added to the covariance's eigenvalues, as a share of their mean.

    References:
        Girshick et al., Rich feature hierarchies (2014): its code whitens the targets of its box
        regressors, with an absolute eps of 0.001; ours is relative, since deltas are small.

    Examples:
        >>> codec = WhitenedCodec().build(OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
        >>> proposals = torch.tensor([[0.0, 0.0, 30.0, 30.0]]).expand(4, 4)
        >>> boxes = shift_boxes(proposals, torch.tensor([[3.0, 0], [-3, 0], [0, 3], [0, -3]]))
        >>> codec.fit(boxes, proposals)
        >>> codec.encode(boxes, proposals).std(dim=0)
        tensor([0.9995, 0.9995])
    """

    whitening: Tensor
    coloring: Tensor

    def __init__(self, eps: float = 0.001) -> None:
        super().__init__()
        if not 0 <= eps < math.inf:
            msg = f"WhitenedCodec eps is {eps}; expected 0 or more"
            raise BadInput(msg)
        self.eps = eps

    def build(self, spec: OffsetSpec) -> "WhitenedCodec":
        """Make the buffers for a number of targets."""
        super().build(spec)
        self.register_buffer("whitening", torch.eye(spec.num_targets))
        self.register_buffer("coloring", torch.eye(spec.num_targets))
        return self

    def _fit_scaling(self, deltas: Tensor) -> None:
        self.shift.copy_(deltas.mean(dim=0))
        variances, axes = torch.linalg.eigh(deltas.T.cov())
        stds = (variances.clamp(min=0) + self.eps * variances.mean()).sqrt()
        self.whitening.copy_(axes / stds @ axes.T)
        self.coloring.copy_(axes * stds @ axes.T)

    def _scaled(self, deltas: Tensor) -> Tensor:
        # A sum, not a matrix product: this stays in fp32 under autocast and without TF32.
        whitening = self.whitening.to(deltas)
        return ((deltas - self.shift)[..., None, :] * whitening).sum(dim=-1)

    def _unscaled(self, targets: Tensor) -> Tensor:
        return (targets[..., None, :] * self.coloring).sum(dim=-1) + self.shift

    def space(self) -> TargetSpace:
        """Return the targets' spread; the coordinates are mixed."""
        return super().space()._replace(mixed=True)
