"""What crops become before a net's first layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lightning_bbox.core.errors import BadInput


class Coordinates(nn.Module):
    """Append the pixels' x and y as two channels, from -1 to 1 between the outer pixels' centres.

    References:
        Liu et al., An intriguing failing of convolutional neural networks and the CoordConv
        solution (2018).
    """

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c+2 h w"]:
        """Return the maps with two channels more."""
        samples, _, height, width = maps.shape
        like = {"dtype": maps.dtype, "device": maps.device}
        x = torch.linspace(-1, 1, width, **like).expand(samples, 1, height, width)  # type: ignore[call-overload] # two options
        y = torch.linspace(-1, 1, height, **like)[:, None].expand(samples, 1, height, width)  # type: ignore[call-overload] # likewise
        return torch.cat([maps, x, y], dim=1).contiguous(memory_format=torch.channels_last)


class TwoScales(nn.Module):
    """Lay the crop's middle and the whole crop on each other, at half the crop's side both.

    The middle is as sharp as the crop, the whole half as sharp: a net sees the object in detail and
    what is about it by as many pixels as one of them has.

    Args:
        crop_size: Side of the crops, in px.

    Raises:
        BadInput: The crops have no middle of half their side, on whole pixels.

    References:
        Karpathy et al., Large-scale video classification with convolutional neural networks (2014),
        section 3.2: a fovea and a context, of a net each. Here one net sees both.

    Examples:
        >>> TwoScales(8)(torch.arange(64.0).reshape(1, 1, 8, 8))[0, :, 0]
        tensor([[18.0000, 19.0000, 20.0000, 21.0000],
                [ 4.5000,  6.5000,  8.5000, 10.5000]])
    """

    def __init__(self, crop_size: int) -> None:
        super().__init__()
        if crop_size < 4 or crop_size % 4:
            near = 4 * max(round(crop_size / 4), 1)
            msg = (
                f"two_scales halves crops about their middle, and those of {crop_size} px have no "
                f"half on whole pixels; set data.crop.size to a multiple of 4, such as {near} or, "
                f"for the middle to be as sharp as those are, {2 * near}"
            )
            raise BadInput(msg)
        self.crop_size = crop_size

    def forward(self, crops: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 2*c s/2 s/2"]:
        """Return the middle's channels, then those of the whole."""
        first, last = self.crop_size // 4, 3 * self.crop_size // 4
        middle = crops[:, :, first:last, first:last]
        views = torch.cat([middle, functional.avg_pool2d(crops, 2)], dim=1)
        return views.contiguous(memory_format=torch.channels_last)
