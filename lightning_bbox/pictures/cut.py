"""The cut: from the store and boxes to crops, by the kernel that is asked for."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile, should_compile
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.kernels import Kernel, compiled_bilinear, sample_bilinear
from lightning_bbox.pictures.store import ImageStore, PictureFiles

PAYS_FROM = 1e8
"""Pixels of crops from which on compiled kernels pay on the CPU, 50,000 crops of 45 x 45: they take
some 20 s to compile, 8 where that was done before, and save up to half a millisecond a crop."""


def cut_crops(
    store: ImageStore | PictureFiles,
    image_index: Int64[Tensor, " b"],
    crop_boxes: Boxes,
    size: int,
    kernel: Kernel = sample_bilinear,
) -> Float[Tensor, "b 3 s s"]:
    """Cut crops from the store with one resampling.

    Args:
        store: The pictures.
        image_index: Which picture each crop comes from.
        crop_boxes: Where to cut, `xyxy` in picture pixels; swapped corners mirror the crop.
        size: Side of the crops in pixels.
        kernel: What samples (see `kernel_for`).

    Returns:
        Crops in [0, 1].
    """
    crops, start = list[Tensor](), 0
    for part, index in store.parts(image_index):
        boxes = crop_boxes[start : start + len(index)]
        part.expect(index, boxes, size)
        pictures = part.offsets[index], part.heights[index], part.widths[index]
        crops.append(kernel(part.pixels, *pictures, boxes, size))
        start += len(index)
    return torch.cat(crops) if len(crops) > 1 else crops[0]


def warm_up(kernel: Kernel, size: int) -> None:
    """Compile on the host, for every kind of box, what `cut_crops` calls there.

    Args:
        kernel: What samples.
        size: Side of the crops in pixels.
    """
    store = ImageStore.from_array(np.zeros((2, 2, 2, 3), dtype=np.uint8))
    places = torch.tensor([1, 1, 4, 4])[:, None] * torch.tensor([0.0, 0, size, size])
    cut_crops(store, torch.tensor([0, 1, 0, 1]), places, size, kernel)


def kernel_for(
    choice: CutCompile, device: torch.device, on_host: bool = False, pixels: float = math.inf
) -> Kernel:
    """Return the kernel that cuts on a device.

    Args:
        choice: What the user asked for.
        device: Where crops are cut.
        on_host: Whether that is for another device, so that Triton has no part in it.
        pixels: How many pixels of crops there will be, as far as is known.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    if choice == "triton" and not on_host:
        from lightning_bbox.cuda.triton_cut import triton_bilinear

        return triton_bilinear
    return compiled_bilinear if is_compiled(choice, device, pixels) else sample_bilinear


def is_compiled(choice: CutCompile, device: torch.device, pixels: float = math.inf) -> bool:
    """Tell whether kernels that cut and augment are compiled on a device.

    Args:
        choice: What the user asked for.
        device: Where crops are cut.
        pixels: How many pixels of crops there will be: for few it doesn't pay on the CPU.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    pays = pixels >= PAYS_FROM
    return should_compile(True if choice == "triton" else choice, device, pays_on_cpu=pays)
