"""How a model refines boxes: one look at crops around them, or two, averaged if asked to."""

from collections.abc import Callable
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.core.recipes import Plain, to_plain
from lightning_bbox.evaluation.metrics import coordinate_errors
from lightning_bbox.geometry.boxes import Boxes, box_centers, box_sizes, mirror_boxes
from lightning_bbox.geometry.codecs import DeltaCodec, MeanStdCodec, OffsetSpec
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.trained_range import TrainedRange, traits_of
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.heads.base import Head
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.nn.stochastic import sampling

Cut = Callable[[CropGeometry, Boxes], Tensor]
"""Cuts crops of a geometry around boxes, each in its own picture."""


class Parts(NamedTuple):
    """What a model is made of, None where that is left to it.

    Attributes:
        preprocess: Prepares crops; by default as the backbone asks for.
        backbone: Crops to features; a shallow convnet by default.
        head: Features to what is said of an offset; bins by default.
        codec: Boxes to targets and back; one that standardises by default.
    """

    preprocess: Preprocess | None = None
    backbone: Backbone | None = None
    head: Head | None = None
    codec: DeltaCodec | None = None


class RefiningModel(pl.LightningModule):
    """A network and a codec, and what they need to move boxes; nothing of how they learn.

    Args:
        parts: What was asked for.
        average_flips: Average what is said of a crop and of its mirror images.
    """

    def __init__(self, parts: Parts, average_flips: bool | None = None) -> None:
        super().__init__()
        self._asked = parts
        backbone = parts.backbone or ShallowConvNet()
        preprocess = parts.preprocess or backbone.default_preprocess()
        head, codec = parts.head or BinHead(), parts.codec or MeanStdCodec()
        self._take_parts(preprocess, backbone, head, codec)
        self.average_flips = average_flips
        self.passes: int | None = None  # that draw at random, and are averaged
        self.spec: OffsetSpec | None = None
        self.reliability: Reliability | None = None  # how it errs, as the last validation found
        self.law: DisplacementLaw | None = None  # of boxes too few to tell how they are off
        self.range: TrainedRange | None = None  # which it was trained on
        self.second: RefiningModel | None = None  # looks again where this one says

    def _take_parts(
        self, preprocess: Preprocess, backbone: Backbone, head: Head, codec: DeltaCodec
    ) -> None:
        self.net, self.codec = OffsetNet(preprocess, backbone, head), codec

    @property
    def asked(self) -> dict[str, Plain]:
        """The recipes of the parts that were asked for by name, None where one wasn't."""
        return {
            name: to_plain(part, f"model.{name}") for name, part in self._asked._asdict().items()
        }

    def recipe(self) -> dict[str, Plain]:
        """Return the arguments that rebuild this model, as plain data (without the optimizer)."""
        arguments = {
            "preprocess": self.net.preprocess,
            "backbone": self.net.backbone,
            "head": self.net.head,
            "codec": self.codec,
            "average_flips": bool(self.average_flips),
            "passes": self.passes or 0,
        }
        return {name: to_plain(part, f"model.{name}") for name, part in arguments.items()}

    def build(self, spec: OffsetSpec, seed: int) -> None:
        """Make the layers and buffers, initialised by the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed("init", seed))
            self.net.preprocess.build(spec.geometry.size)
            self.net.backbone.build(spec.geometry.size)
            backbone = self.net.backbone
            self.net.head.build(backbone.out_features, spec, backbone.map_shape)
        self.codec.build(spec)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lags
        self.spec = spec

    def forward(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
    ) -> Boxes:
        """Return refined boxes, in fp32 and in the proposals' frame, by one look.

        Args:
            crops: Crops in [0, 1], cut around the proposals.
            proposals: The boxes to refine.
            labels: Their classes, for a head that has a regressor for each.
        """
        return self._decode(self._outputs(crops, labels), proposals)

    @torch.no_grad()
    def refine(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
        cut: Cut | None = None,
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return refined boxes, and how far off the model deems them, averaged if asked to.

        Args:
            crops: As `forward` takes them, and so are the others.
            proposals: The boxes to refine.
            labels: Their classes.
            cut: Cuts crops of another geometry around other boxes in the same pictures; a model of
                two looks needs it.

        Returns:
            The boxes in the proposals' frame, and their calibrated standard deviations in px and
            log size, which hold the spread between flips and passes too. NaN where the head can't
            tell: that spread alone lacks the error which all of them share.

        Raises:
            BadInput: The model looks twice, and nothing cuts the second crops.
        """
        boxes, stds, _ = self.refine_and_mark(crops, proposals, labels, cut)
        return boxes, stds

    @torch.no_grad()
    def refine_and_mark(
        self,
        crops: Float[Tensor, "b 3 s s"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None = None,
        cut: Cut | None = None,
    ) -> tuple[Boxes, Float[Tensor, "b n"], Bool[Tensor, " b"]]:
        """Return what `refine` does, and who lies beyond the trained range, where it is known.

        Args:
            crops: As `forward` takes them, and so are the others.
            proposals: The boxes to refine.
            labels: Their classes.
            cut: As `refine` takes it.
        """
        boxes, stds, traits = self._look(crops, proposals, labels, cut)
        return boxes, stds, self.are_beyond(traits)

    def are_beyond(self, traits: Float[Tensor, "b 2"]) -> Bool[Tensor, " b"]:
        """Tell which boxes lie farther off than those of the training; none where that isn't known.

        Args:
            traits: By what they are known (see `traits_of`).
        """
        if self.range is None:
            return torch.zeros_like(traits[:, 0], dtype=torch.bool)
        return self.range.is_left(traits)

    def _look(
        self, crops: Tensor, proposals: Boxes, labels: Tensor | None, cut: Cut | None
    ) -> tuple[Boxes, Tensor, Tensor]:
        """Return refined boxes, their calibrated deviations, and the traits of the first look."""
        found = self._refined(self._outputs(crops, labels), crops, proposals, labels)
        boxes, stds = self._look_again(*found, proposals, labels, cut)
        return boxes, self.net.calibration(stds), self._traits(*found, proposals)

    def _traits(
        self, boxes: Boxes, stds: Float[Tensor, "b n"], proposals: Boxes
    ) -> Float[Tensor, "b 2"]:
        """Return by what boxes beyond the trained range are known."""
        assert self.spec is not None
        px = self.spec.geometry.px(proposals)
        said = coordinate_errors(boxes, proposals, px, stds.shape[1])
        return traits_of(said, stds, self.spec.bounds)

    def _look_again(
        self,
        boxes: Boxes,
        stds: Float[Tensor, "b n"],
        proposals: Boxes,
        labels: Int64[Tensor, " b"] | None,
        cut: Cut | None,
    ) -> tuple[Boxes, Float[Tensor, "b n"]]:
        """Return what the second stage says, where there is one, in the place of the first one's.

        It sees crops around the boxes that the first says. Deviations stay in px of the proposals.
        """
        second = self.second
        if second is None:
            return boxes, stds
        if cut is None:
            msg = "the model looks twice, and crops of the first look are not enough; use a Refiner"
            raise BadInput(msg)
        assert self.spec is not None
        assert second.spec is not None
        geometry = second.spec.geometry
        there = (boxes.isfinite().all(dim=1) & (box_sizes(boxes) > 0).all(dim=1))[:, None]
        places = torch.where(there, boxes, proposals)
        crops = cut(geometry, places)
        outputs = second._outputs(crops, labels)
        again, spread = second._refined(outputs, crops, places, labels)
        spread[:, :2] *= geometry.px(places) / self.spec.geometry.px(proposals)
        return torch.where(there, again, boxes), torch.where(there, spread, stds)

    def _outputs(
        self, crops: Tensor, labels: Tensor | None, features: Tensor | None = None
    ) -> Tensor:
        if features is None:
            outputs: Tensor = self.net(crops)
        else:
            outputs = self.net.head(features.to(self.net.dtype))
        if labels is not None:
            return self.net.head.select(outputs, labels)
        if self.net.head.per_class:
            msg = "the model has a regressor for each class; say the boxes' labels"
            raise BadInput(msg)
        return outputs

    def _decode(self, outputs: Tensor, proposals: Boxes) -> Boxes:
        return self.codec.decode(self.net.head.decode(outputs), proposals)

    def _refined(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> tuple[Boxes, Tensor]:
        """Return boxes, averaged over flips and passes that draw at random, and their stds."""
        if not self.passes:
            views = self._over_flips(outputs, crops, proposals, labels)
        else:
            with sampling(self.net, crops.device):
                drawn = [
                    self._over_flips(self._outputs(crops, labels), crops, proposals, labels)
                    for _ in range(self.passes)
                ]
            views = [view for each in drawn for view in each]
        if len(views) == 1:
            return views[0]
        assert self.spec is not None
        boxes, stds = (torch.stack(each) for each in zip(*views, strict=True))
        px = self.spec.geometry.px(proposals)
        offsets = [coordinate_errors(view, proposals, px, stds.shape[2]) for view in boxes]
        # The law of total variance: what each view is unsure of, and how far apart they are.
        variances = stds.square().mean(dim=0) + torch.stack(offsets).var(dim=0, correction=0)
        return boxes.mean(dim=0), variances.sqrt()

    def _over_flips(
        self, outputs: Tensor, crops: Tensor, proposals: Boxes, labels: Tensor | None
    ) -> list[tuple[Boxes, Tensor]]:
        """Return the boxes and the standard deviations of the crops, and of their mirror images."""
        views = [(self._decode(outputs, proposals), self.net.head.stds(outputs))]
        centers = box_centers(proposals)
        for flips in ((1, 0), (0, 1), (1, 1)) if self.average_flips else ():
            axes = [dim for dim, flip in zip((3, 2), flips, strict=True) if flip]
            outputs = self._outputs(crops.flip(axes), labels)
            mirrored = self._decode(outputs, proposals)
            axes_flipped = centers.new_tensor(flips).expand_as(centers)
            boxes = mirror_boxes(mirrored, centers, axes_flipped)
            views.append((boxes, self.net.head.stds(outputs)))
        return views
