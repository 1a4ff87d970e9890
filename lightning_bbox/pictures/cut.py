"""The cut: from the store and boxes to crops, by the kernel that is asked for."""

import math
import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile, should_compile
from lightning_bbox.core.errors import BadInput
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.kernels import (
    Kernel,
    compiled_bilinear,
    native_cut,
    sample_bilinear,
)
from lightning_bbox.pictures.store import ImageStore, PictureFiles

PAYS_FROM = 1e8
"""Pixels of crops from which on augmentation compiled by Inductor pays on the CPU, 50,000 crops of
45 x 45: it takes some seconds to compile, and saves a tenth of a millisecond a crop."""


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


def kernel_for(choice: CutCompile, device: torch.device, on_host: bool = False) -> Kernel:
    """Return the kernel that cuts on a device.

    Args:
        choice: What the user asked for.
        device: Where crops are cut.
        on_host: Whether that is for another device, so that Triton has no part in it.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler, or it fails.
    """
    if choice == "triton" and not on_host:
        from lightning_bbox.cuda.triton_cut import triton_bilinear

        return triton_bilinear
    choice = True if choice == "triton" else choice
    if not should_compile(choice, device, pays_on_cpu=True):
        return sample_bilinear
    if device.type == "cpu":
        try:
            native_cut()
        except BadInput as problem:
            if choice is True:
                raise
            warnings.warn(f"crops are cut uncompiled, which is slower: {problem}", stacklevel=2)
            return sample_bilinear
    return compiled_bilinear


def is_compiled(choice: CutCompile, device: torch.device, pixels: float = math.inf) -> bool:
    """Tell whether kernels that augment are compiled on a device.

    Args:
        choice: What the user asked for.
        device: Where crops are cut.
        pixels: How many pixels of crops there will be: for few it doesn't pay on the CPU.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    pays = pixels >= PAYS_FROM
    return should_compile(True if choice == "triton" else choice, device, pays_on_cpu=pays)
