"""What is to be refined, as Python has it: pictures of several kinds, and boxes."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.tiff import TiffPart
from lightning_bbox.geometry.boxes import Boxes
from lightning_bbox.geometry.codecs import White
from lightning_bbox.pictures.decode import Decoded, open_image, to_rgb, upright

Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
"""A file; a Pillow image; an array (h, w, 3), (h, w, 1) or (h, w); a tensor (3, h, w) or (1, h, w).

Arrays and tensors are RGB or grey, and uint8.
"""


@dataclass(frozen=True)
class Asked:
    """What is to be refined: the boxes of several pictures, one after another.

    Attributes:
        pictures: The pictures.
        rough: Their boxes, `xyxy` in picture pixels.
        index: Which picture each lies in.
        sizes: That picture's height and width.
        numbers: The number of each box's class, where the model asks for it.
        unmoved: Why a box can't be refined, by its place.
        counts: How many boxes each picture has.
    """

    pictures: list[Decoded]
    rough: Boxes
    index: Int64[Tensor, " n"]
    sizes: Int64[Tensor, "n 2"]
    numbers: Int64[Tensor, " n"]
    unmoved: dict[int, str]
    counts: list[int]

    @cached_property
    def usable(self) -> Int64[Tensor, " k"]:
        """Which boxes can be refined."""
        return torch.tensor([at for at in range(len(self.rough)) if at not in self.unmoved]).long()

    @property
    def limits(self) -> Float[Tensor, "n 2"]:
        """Width and height of each box's picture."""
        return self.sizes.flip(-1).to(self.rough.dtype)


def as_rgb(
    image: Picture, white_level: White | None = None, part: TiffPart = TiffPart()
) -> Decoded:
    """Return a picture's pixels as uint8 (h, w, 3), or a large file open.

    Args:
        image: The picture.
        white_level: What is white, or black and white, in a file or Pillow image beyond 8 bits.
        part: Which page and bands of a file that is a TIFF.

    Raises:
        BadInput: It is of another type or shape, or can't be decoded.
    """
    if isinstance(image, str | PathLike):
        return open_image(image, white_level, part)
    if isinstance(image, Image.Image):
        return to_rgb(upright(image), white_level)
    array = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8:
        msg = f"the image is {array.dtype}; give uint8, such as (255 * image).round() of 0..1"
        raise BadInput(msg)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        kinds = "(h, w, 3) or (h, w) as an array, (3, h, w) as a tensor"
        msg = f"the image has the shape {tuple(image.shape)}; expected RGB or grey, {kinds}"
        raise BadInput(msg)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def as_boxes(boxes: np.ndarray | Tensor) -> Boxes:
    """Return boxes as a tensor in fp32, on the CPU.

    Raises:
        BadInput: They are of another shape.
    """
    rough = torch.as_tensor(boxes).detach().float().cpu()
    if rough.ndim != 2 or rough.shape[1] != 4:
        msg = f"boxes have the shape {tuple(rough.shape)}; expected (n, 4), xyxy in pixels"
        raise BadInput(msg)
    return rough
