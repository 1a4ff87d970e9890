"""What data modules hand on: the items of a split, the samples of an epoch, a batch.

The words, in the order in which pixels take that way:

- **px**: 1/45 of the crop box's side (of `reference_size`), whatever size crops are cut at.
- **proposal**: a rough box that is to be corrected; drawn around a true one, or given.
- **displacement**: how far the true box lies from its proposal, in px.
- **item**: what a split holds: a picture, a true box in it, its class, perhaps its own proposal.
- **draw**: one use of an item in an epoch, with random numbers of its own.
- **sample**: what a draw gives: the item's boxes with a proposal, flips, photometry and noise.
- **row**: the number of a sample in its epoch; a loader yields nothing else.
- **crop**: the pixels that are cut around a sample's proposal, as a network sees them.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes, swap_corners
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.displacement import DisplacementLaw
from lightning_bbox.pictures.store import ImageStore, PictureFiles


@dataclass(frozen=True)
class Items:
    """What one split draws from.

    Attributes:
        image_index: Picture of each item in the store.
        boxes: True boxes, `xyxy` in picture pixels.
        labels: Class of each item.
        clusters: What intervals are over: the group of each item, which is its picture where
            the files tell no groups.
        proposals: Proposals that are given; None draws them from the jitter law.
        skipped: One sentence for each bad item left out.
        ids: Where each item comes from, such as `boxes.csv:12`; its number where there is nothing.
    """

    image_index: Int64[Tensor, " n"]
    boxes: Boxes
    labels: Int64[Tensor, " n"]
    clusters: Int64[Tensor, " n"]
    proposals: Boxes | None = None
    skipped: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.boxes)

    def digest(self) -> str:
        """Return a fingerprint of the boxes, their classes, pictures' places and proposals."""
        hashed = hashlib.sha256()
        given = () if self.proposals is None else (self.proposals,)
        for tensor in (self.image_index, self.boxes, self.labels, *given):
            hashed.update(tensor.contiguous().cpu().numpy().tobytes())
        return hashed.hexdigest()

    def rows(self, chosen: Int64[Tensor, " k"]) -> "Items":
        """Return some of the items."""
        return Items(
            self.image_index[chosen],
            self.boxes[chosen],
            self.labels[chosen],
            self.clusters[chosen],
            None if self.proposals is None else self.proposals[chosen],
            ids=tuple(self.ids[row] for row in chosen.tolist()) if self.ids else (),
        )

    def name(self, item: int) -> str:
        """Say where an item comes from."""
        return self.ids[item] if self.ids else f"item {item}"


@dataclass(frozen=True)
class Source:
    """All that a data module reads: the pictures, and the items of each split.

    Attributes:
        store: The pictures of all splits.
        splits: Items by "train", "val" and "test".
        classes: Names of the labels.
        notes: Sentences a person should read before trusting the data.
        law: How the training proposals are off, where they are given and enough to tell.
        missing: One sentence for each box whose picture isn't there.
    """

    store: ImageStore | PictureFiles
    splits: dict[str, Items]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    law: DisplacementLaw | None = None
    missing: tuple[str, ...] = ()

    @property
    def skipped(self) -> list[str]:
        """One sentence for each box that was left out, of whatever split."""
        return [*(each for items in self.splits.values() for each in items.skipped), *self.missing]


class Samples(NamedTuple):
    """Every sample of one epoch of a split, a row each, in picture pixels.

    `flips` mirrors a sample about its proposal's centre: `gt_boxes` are mirrored already, and so is
    the crop that is cut at `crop_boxes`, whose corners are swapped for that.
    """

    items: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    image_index: Int64[Tensor, " n"]
    gt_boxes: Float[Tensor, "n 4"]
    proposals: Float[Tensor, "n 4"]
    flips: Float[Tensor, "n 2"]
    factors: Float[Tensor, "n f"]
    noise: Int64[Tensor, " n"]
    crop_boxes: Float[Tensor, "n 4"]

    def take(self, rows: Int64[Tensor, " b"]) -> "Samples":
        """Return some rows."""
        return Samples(*(tensor[rows] for tensor in self))

    def cut_at(
        self, geometry: CropGeometry, proposals: Boxes, flips: Float[Tensor, "n 2"]
    ) -> "Samples":
        """Have the crops cut around these proposals, mirrored by swapped corners."""
        return self._replace(
            crop_boxes=swap_corners(geometry.crop_boxes(proposals), *(flips > 0).T)
        )

    def to(self, device: torch.device) -> "Samples":
        """Move all rows."""
        return Samples(*(tensor.to(device) for tensor in self))


class Batch(NamedTuple):
    """What a model sees: crops, and the boxes that go with them.

    Attributes:
        crops: RGB crops, in [0, 1] but for noise.
        gt_boxes: True boxes, `xyxy` in the (possibly mirrored) picture.
        proposals: The boxes to refine, same frame.
        rows: Row of each sample in its epoch.
        valid: False where a sample only fills up the batch.
        labels: Class of each sample, as the model numbers them.
        features: What the backbone makes of the crops, where that is known already: then there are
            no crops, (b, 3, 0, 0).
    """

    crops: Float[Tensor, "b 3 s s"]
    gt_boxes: Float[Tensor, "b 4"]
    proposals: Float[Tensor, "b 4"]
    rows: Int64[Tensor, " b"]
    valid: Bool[Tensor, " b"]
    labels: Int64[Tensor, " b"]
    features: Float[Tensor, "b f"] | None = None
