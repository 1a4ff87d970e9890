"""Small grey copies of pictures, and which of them show nearly the same."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from lightning_bbox.annotations.headers import FAULTS, fault_words, open_part, refuse_bomb
from lightning_bbox.core.tiff import TiffPage, TiffPart
from lightning_bbox.pictures.decode import DECODERS, upright

SIDE = 24
"""Width and height of a thumbnail in pixels."""

_ALIKE = (
    0.93  # correlation of thumbnails: pictures of RBC and DeepPCB that aren't copies reach 0.88
)
_FLAT = 2.0  # grey levels: standard deviation of a thumbnail that shows nothing
_ROWS = 1024  # compared at once with all others


def read_thumbnails(
    paths: Sequence[Path], part: TiffPart = TiffPart()
) -> tuple[UInt8[Tensor, "n s s"], dict[int, str]]:
    """Decode pictures as small as will do, several at once, and shrink them to squares.

    Args:
        paths: The pictures.
        part: Which page and bands of TIFFs.

    Returns:
        The thumbnails, and what is wrong with those that can't be decoded, by index; theirs are
        black.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        each = pool.map(partial(_thumbnail, part=part), paths)
        found = [*tqdm(each, "pictures", len(paths), leave=False, disable=None, delay=2)]
    faults = {at: one for at, one in enumerate(found) if isinstance(one, str)}
    black = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels = [black if isinstance(one, str) else one for one in found]
    return torch.from_numpy(
        np.stack(pixels) if pixels else black[None, :0].reshape(0, SIDE, SIDE)
    ), faults


def _thumbnail(path: Path, part: TiffPart) -> UInt8[np.ndarray, "s s"] | str:
    try:
        with path.open("rb") as file, open_part(file, part) as image:
            refuse_bomb(image, in_parts=True)
            if isinstance(image, TiffPage):
                return _shrunk(image.overview().astype(np.float32))
            image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at an eighth of its size
            turned = upright(image)
            if turned.mode.startswith("I") or turned.mode == "F":
                return _shrunk(np.asarray(turned, dtype=np.float32))
            small = turned.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            return np.asarray(small)
    except FAULTS as error:
        return fault_words(error, path)


def _shrunk(values: np.ndarray) -> UInt8[np.ndarray, "s s"]:
    """Shrink values of any range, grey or of three bands, that then reach from black to white."""
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    shown = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-6)))
    return np.asarray(shown.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def alike_pairs(thumbnails: UInt8[Tensor, "n s s"]) -> Int64[Tensor, "pairs 2"]:
    """Find the pairs of pictures that show nearly the same, be it mirrored or turned by 90 deg.

    Args:
        thumbnails: Of each picture; flat ones are like none.

    Returns:
        The indices of each pair, the lower first.
    """
    pixels = thumbnails.float()
    seen = pixels.flatten(1).std(dim=1) > _FLAT
    index = seen.nonzero().flatten()
    own = _normalised(pixels[index])
    turns = [pixels[index].rot90(k, (1, 2)) for k in range(4)]
    others = [_normalised(each) for turn in turns for each in (turn, turn.flip(2))]
    found = []
    for start in range(0, len(index), _ROWS):
        rows = own[start : start + _ROWS]
        alike = torch.zeros(len(rows), len(index), dtype=torch.bool)
        for each in others:
            alike |= rows @ each.T > _ALIKE
        pairs = alike.nonzero() + torch.tensor([start, 0])
        found.append(index[pairs[pairs[:, 0] < pairs[:, 1]]])
    return torch.cat([*found, torch.zeros(0, 2, dtype=torch.int64)])


def _normalised(pixels: Float[Tensor, "n s s"]) -> Float[Tensor, "n p"]:
    flat = pixels.flatten(1)
    return torch.nn.functional.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)
