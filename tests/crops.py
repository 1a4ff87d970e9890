"""Pictures, boxes, rows and crops that several tests cut and compare."""

import numpy as np
import torch
from PIL import Image

from lightning_bbox.data.loader import Rows
from lightning_bbox.geometry.codecs import MeanStdCodec
from lightning_bbox.nn.preprocess import ChannelNorm
from lightning_bbox.pictures.store import ImageStore

SIZE = 9
INSIDE = (5.2, 6.9, 21.7, 19.4)
OUTSIDE = {
    "left and above": (-7.5, -3.25, 9.0, 8.0),
    "right and below": (30.0, 22.0, 55.5, 41.0),
    "all around": (-10.0, -8.0, 60.0, 50.0),
    "beside": (80.0, 5.0, 90.0, 15.0),
    "a sliver": (3.0, 4.0, 3.01, 20.0),
    "empty": (7.3, 7.3, 7.3, 7.3),
    "mirrored across": (21.7, 6.9, 5.2, 19.4),
    "mirrored down": (5.2, 19.4, 21.7, 6.9),
    "mirrored both": (21.7, 19.4, 5.2, 6.9),
}
SHAPES = [(31, 43), (24, 30), (1, 1), (1, 40), (50, 1)]
NOT_FINITE = [
    (float("nan"),) * 4,
    (0.0, 0.0, float("inf"), 9.0),
    (float("-inf"), 0.0, float("inf"), 9.0),
    (float("-inf"),) * 4,
    (float("inf"),) * 4,
    (1e30, -1e30, 3e38, 3e38),
    (0.0, float("nan"), 9.0, 9.0),
]
# Whole numbers, a crop pixel to a picture pixel, some of them across the border.
ALIGNED = [(0, 0), (13, 7), (34, 22), (-4, 3), (38, -2), (-30, 60)]


def made_up_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_picture(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def saved_pictures(folder, shapes, suffix="png"):
    """Save made-up pictures by their number, and return their paths."""
    return [
        save_picture(folder / f"{number}.{suffix}", made_up_picture(*shape, seed=number))
        for number, shape in enumerate(shapes)
    ]


def mixed_batch(count):
    """A store of pictures of several sizes, and crops from it, inside and outside."""
    generator = torch.Generator().manual_seed(count)
    pictures = [made_up_picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    index = torch.randint(len(pictures), (count,), generator=generator)
    boxes = 60 * torch.rand(count, 4, generator=generator) - 10
    return ImageStore.from_pictures(pictures), index, boxes


def planes(picture):
    """The picture as (3, H, W) from 0 to 1, bit by bit as a cut converts it."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() * (1 / 255)


def close(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def rows_of(split, num, epoch=0):
    return Rows(split, epoch, torch.arange(num), torch.ones(num, dtype=torch.bool))


def batch_of(data, split):
    """Return all samples of a split's first epoch as one batch."""
    return data.make_batch(rows_of(split, data.num_draws(split)))


def fitted(data):
    """Return what a codec and the usual preprocessing learn from a data module."""
    codec, norm, train = MeanStdCodec().build(data.spec()), ChannelNorm(), data.samples("train")
    codec.fit(train.gt_boxes, train.proposals)
    norm.fit(data.cut(data.samples("train_eval")))
    return dict(codec.state_dict()) | dict(norm.state_dict())


def interleaved(shares):
    """Undo the ranks' shares of one global batch."""
    whole = torch.empty(sum(map(len, shares)), *shares[0].shape[1:], dtype=shares[0].dtype)
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole
