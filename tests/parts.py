"""What parts of a model are built for in tests."""

from collections.abc import Sequence

from lightning_bbox.codecs import OffsetSpec
from lightning_bbox.crops import CropGeometry


def spec_with(bounds: Sequence[float]) -> OffsetSpec:
    """Return what a head needs to know of data with these bounds, in px and log size."""
    largest_log_size = bounds[-1] if len(bounds) == 4 else 0.0
    return OffsetSpec(CropGeometry(), len(bounds), bounds[0], largest_log_size)
