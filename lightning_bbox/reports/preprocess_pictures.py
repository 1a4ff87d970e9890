"""Pictures of what a preprocessing learnt, and of what it makes of crops."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lightning_bbox.nn.preprocess import Preprocess
from lightning_bbox.reports.sheets import COLUMNS, draw_crop, draw_sheet

_SHARE = 0.995  # of values that are shown as they are; the others are black or white


def visible(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Scale pictures alike, so that nearly all of them lies in [0, 1], and 0 is grey.

    Examples:
        >>> visible(torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1)).flatten()
        tensor([0.0000, 0.5000, 0.7500])
    """
    magnitudes = pictures.abs().flatten().sort().values
    limit = magnitudes[round(_SHARE * (len(magnitudes) - 1))].clamp(min=1e-6)
    return 0.5 + pictures / (2 * limit)


@torch.no_grad()
def draw_preprocess(preprocess: Preprocess, crops: Float[Tensor, "n 3 h w"]) -> Image.Image | None:
    """Draw what a preprocessing learnt, and crops before and after it; None where it has none.

    Args:
        preprocess: Fitted.
        crops: Some to show, in [0, 1], on its device.

    Examples:
        >>> from lightning_bbox.nn.preprocess import ChannelNorm, MeanNorm
        >>> crops = torch.rand(10, 3, 9, 9)
        >>> draw_preprocess(ChannelNorm(), crops)
        >>> norm = MeanNorm("pixel").build(9)
        >>> norm.fit(crops)
        >>> draw_preprocess(norm, crops[:4]).size
        (1242, 640)
    """
    learnt = preprocess.pictures()
    if not learnt:
        return None
    single = {name: found[0] for name, found in learnt.items() if len(found) == 1}
    sections = [("what the training crops say of each pixel", _panels(single))]
    for name, found in learnt.items():
        if len(found) > 1:
            sections.append((name, _panels({str(at + 1): each for at, each in enumerate(found)})))
    after = f"the same after {type(preprocess).__name__}, 0 shown grey"
    for name, found in {"crops": crops, after: visible(preprocess(crops))}.items():
        sections.append((name, [draw_crop(crop, [], "") for crop in found]))
    return draw_sheet(sections, (), COLUMNS)


def _panels(pictures: dict[str, Tensor]) -> list[Image.Image]:
    return [draw_crop(each, [], name) for name, each in pictures.items()]
