"""The cut: from the store and boxes to crops, by the kernel that is asked for."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile, should_compile
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.pictures.kernels import Kernel, compiled_bilinear, sample_bilinear
from lightning_bbox.pictures.store import ImageStore, PictureFiles


def cut_crops(
    store: ImageStore | PictureFiles,
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
        kernel: What samples (see `kernel_for`).

    Returns:
        Crops in [0, 1].
    """
    crops, start = list[Tensor](), 0
    for part, index in store.parts(image_index):
        boxes = crop_boxes[start : start + len(index)]
        part.expect(index, boxes)
        pictures = part.offsets[index], part.heights[index], part.widths[index]
        crops.append(kernel(part.pixels, *pictures, boxes, size, supersample))
        start += len(index)
    return torch.cat(crops) if len(crops) > 1 else crops[0]


def kernel_for(choice: CutCompile, device: torch.device, on_host: bool = False) -> Kernel:
    """Return the kernel that cuts on a device.

    Args:
        choice: What the user asked for.
        device: Where crops are cut.
        on_host: Whether that is for another device, so that Triton has no part in it.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    if choice == "triton" and not on_host:
        from lightning_bbox.cuda.triton_cut import triton_bilinear

        return triton_bilinear
    return compiled_bilinear if is_compiled(choice, device) else sample_bilinear


def is_compiled(choice: CutCompile, device: torch.device) -> bool:
    """Tell whether kernels that cut and augment are compiled on a device.

    Raises:
        BadInput: Compilation was asked for and there is no C++ compiler.
    """
    return should_compile(True if choice == "triton" else choice, device, pays_on_cpu=True)
