"""What is fitted before training begins: codec, preprocessing and head, on training draws alone.

What they are fitted on must be finite.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.loader import Split
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Samples
from lightning_bbox.geometry.codecs import DeltaCodec
from lightning_bbox.nn.network import OffsetNet
from lightning_bbox.solvers.least_squares import first_invalid


def fit_parts(
    net: OffsetNet, codec: DeltaCodec, data: CropDataModule, device: torch.device
) -> None:
    """Fit the parts of a model that was just built, in the order in which they need each other.

    Args:
        net: The network; its weights stay what they are, but for a head that begins at a solution.
        codec: Boxes to targets and back.
        data: Where the training draws come from.
        device: Where to cut crops and compute features.

    Raises:
        BadInput: A feature that the head is to be fitted on isn't finite.
    """
    samples = data.samples("train", epoch=0)
    codec.fit(samples.gt_boxes, samples.proposals)
    preprocess, head = net.preprocess, net.head
    with torch.no_grad():
        preprocess.fit(data.cut(data.samples("train_eval", draws=preprocess.draws).to(device)))
    head.fit(codec.space())
    if head.takes_features:
        samples = data.samples("train_eval", draws=head.draws)
        features = _first_features(net, data, samples.to(device))
        refuse_invalid_features(features, data, "train_eval", samples)
        fit_head(net, codec, features, samples)


def fit_head(
    net: OffsetNet, codec: DeltaCodec, features: Float[Tensor, "n f"], samples: Samples
) -> None:
    """Fit the head on the features of training draws; nothing else in the network changes."""
    own, theirs = codec.mean.device, features.device
    targets = codec.encode(samples.gt_boxes.to(own), samples.proposals.to(own))
    net.head.fit_features(features, targets.to(theirs), samples.labels.to(theirs))


def refuse_invalid_features(
    features: Float[Tensor, "n f"], data: CropDataModule, split: Split, samples: Samples
) -> None:
    """Refuse features of which one isn't finite: it would spoil what is learned of all others.

    Args:
        features: A row a draw.
        data: Where the draws come from.
        split: Of which split.
        samples: The draws.

    Raises:
        BadInput: Names the first such draw.
    """
    if (bad := first_invalid(features)) is not None:
        row, what = bad
        raise invalid_features(data, split, int(samples.items[row]), row, what)


def invalid_features(
    data: CropDataModule, split: Split, item: int, row: int, what: str
) -> BadInput:
    """Say that a draw has a feature that isn't finite.

    Args:
        data: Where the draw comes from.
        split: Of which split.
        item: Of which item.
        row: Which draw of the epoch.
        what: The feature and its value.
    """
    place = f"{data.item_name(split, item)} (draw {row} of {split})"
    remedy = "train in a 32-bit precision, or give the backbone other weights"
    return BadInput.at(place, f"what the backbone makes of it isn't finite: {what}", remedy)


def _first_features(net: OffsetNet, data: CropDataModule, samples: Samples) -> Float[Tensor, "n f"]:
    """Return features as they are when training begins, with batch norm's statistics of then."""
    device, count = samples.items.device, len(samples.items)
    rows = torch.arange(count, device=device).chunk(math.ceil(count / data.batch_size))
    net.to(device)
    net.settle_norms(data.crops_of(samples.take(some)) for some in rows)
    with net.evaluating():
        return torch.cat([net.features(data.crops_of(samples.take(some))) for some in rows])
