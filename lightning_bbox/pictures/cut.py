"""The cut: from the store and boxes to crops."""

from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.kernels import Kernel, sample_bilinear
from lightning_bbox.pictures.store import ImageStore


def cut_crops(
    store: ImageStore,
    image_index: Int64[Tensor, " b"],
    crop_boxes: Boxes,
    size: int,
    supersample: int = 1,
    kernel: Kernel = sample_bilinear,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from the store with one resampling.

    Args:
        store: The pictures.
        image_index: Which picture each crop comes from.
        crop_boxes: Where to cut, `xyxy` in picture pixels; swapped corners mirror the crop.
        size: Side of the crops in pixels.
        supersample: Each crop pixel averages this many bilinear samples squared.
        kernel: What samples (see `lightning_bbox.pictures.kernels`).

    Returns:
        Crops in [0, 1].

    Examples:
        >>> import numpy as np, torch
        >>> store = ImageStore.from_array(np.full((1, 8, 8, 3), 255, dtype=np.uint8))
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> cut_crops(store, torch.tensor([0]), box, size=2).unique()
        tensor([1.])
    """
    offsets, heights = store.offsets[image_index], store.heights[image_index]
    widths = store.widths[image_index]
    return kernel(store.pixels, offsets, heights, widths, crop_boxes, size, supersample)
