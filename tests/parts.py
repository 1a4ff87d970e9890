"""What parts of a model are built for in tests, and targets to try them on."""

from collections.abc import Sequence

import pytest
import torch

from lightning_bbox import (
    CropGeometry,
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    OffsetSpec,
    PixelCodec,
)

CODECS = [DeltaCodec, FixedStdCodec, MeanStdCodec, MaxShiftCodec, PixelCodec]
"""Those that keep the coordinates apart."""
BOUNDS = {"two": [5.0, 5.0], "four": [5.0, 5.0, 0.2, 0.2], "uneven": [3.0, 3.0, 0.51, 0.51]}
"""Largest offsets, in px and log size."""

each_codec = pytest.mark.parametrize("codec", CODECS)
several_bounds = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
two_or_four = pytest.mark.parametrize("num_targets", [2, 4])


def spec_with(bounds: Sequence[float]) -> OffsetSpec:
    """Return what a head needs to know of data with these bounds, in px and log size."""
    largest_log_size = bounds[-1] if len(bounds) == 4 else 0.0
    return OffsetSpec(CropGeometry(), len(bounds), bounds[0], largest_log_size)


def spec_of(num_targets=4):
    return spec_with(BOUNDS["four"][:num_targets])


def boxes_at(offsets):
    """Return true boxes and anchors with these offsets, in px and log size."""
    anchors = torch.tensor([10.0, 20.0, 55.0, 80.0], dtype=torch.float64).expand(len(offsets), 4)
    sizes = anchors[:, 2:] - anchors[:, :2]
    centers = (anchors[:, 2:] + anchors[:, :2]) / 2 + offsets[:, :2] * sizes / 30
    sizes = sizes * offsets[:, 2:].exp() if offsets.shape[1] == 4 else sizes
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1).float(), anchors.float()


def draw_offsets(num=500, bounds=(5.0, 5.0, 0.2, 0.2), seed=0):
    unit = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * unit - 1) * torch.tensor(bounds) + torch.tensor([0.3, -0.2, 0.01, 0.0])


def fitted_codec(codec, num_targets=4):
    fitted = codec().build(spec_of(num_targets))
    fitted.fit(*boxes_at(draw_offsets()))
    return fitted
