"""From what layers of a net make to features: tokens laid out, maps pooled, channels mixed."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import Part
from lightning_bbox.nn.backbones.base import flattened


class Neck(Part):
    """Make one map, and features of it, of what one or several layers make.

    Maps of several layers lie on each other by their channels where they are of one size, as `grid`
    makes them; otherwise, and where there is nothing to do, outputs are flattened, one after
    another. Squared maps of w x w x c are a hundred thousand features soon: the last two arguments
    are against that.

    Args:
        tokens: Of layers that make tokens (b, n, c): how many of them, the first ones, belong to no
            place, such as 1 for a class token. The others are laid out as a square map.
        grid: Average each map to so many cells a side.
        channels: Mix the channels of each place to so many (a 1 x 1 convolution), which learns,
            also where the net is frozen.

    Raises:
        BadInput: A value is out of its range.

    Examples:
        >>> neck = Neck(grid=2, channels=3)
        >>> maps = [torch.zeros(5, 8, 6, 6), torch.zeros(5, 16, 3, 3)]
        >>> neck.build(maps)
        >>> neck(maps).shape, neck.map_shape
        (torch.Size([5, 12]), (3, 2, 2))
    """

    map_shape: tuple[int, int, int] | None = None

    def __init__(
        self, tokens: int | None = None, grid: int | None = None, channels: int | None = None
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("tokens", tokens, 0),
            ("grid", grid, 1),
            ("channels", channels, 1),
        ):
            if value is not None and value < least:
                msg = f"Neck {name} is {value}; expected {least} or more"
                raise BadInput(msg)
        self.tokens, self.grid, self.channels = tokens, grid, channels

    def build(self, outputs: Sequence[Float[Tensor, "b ..."]]) -> None:
        """Make what learns, for outputs as those of the layers are.

        Raises:
            BadInput: They aren't tokens or maps where the neck needs some.
        """
        maps = [self._as_map(output) for output in outputs]
        self.map_shape = None
        if joint := _joined(maps):
            if self.channels is not None:
                self.mix = nn.Conv2d(joint[0], self.channels, 1)
            self.map_shape = (self.channels or joint[0], *joint[1:])
        elif self.channels is not None:
            shapes = ", ".join(str(list(each.shape[1:])) for each in maps)
            msg = (
                f"Neck channels mixes those of one map, and the layers make {shapes} for a crop; "
                f"set grid so that their maps are of one size, or leave channels out"
            )
            raise BadInput(msg)

    def forward(self, outputs: Sequence[Float[Tensor, "b ..."]]) -> Float[Tensor, "b f"]:
        """Return the features of what the layers made."""
        maps = [self._as_map(output) for output in outputs]
        if self.map_shape is None:
            return torch.cat([each.flatten(1) for each in maps], dim=1)
        joint = torch.cat(maps, dim=1)
        return flattened(joint if self.channels is None else self.mix(joint))

    def _as_map(self, output: Tensor) -> Tensor:
        if self.tokens is not None:
            output = self._laid_out(output, self.tokens)
        if self.grid is None:
            return output
        if output.dim() != 4 or min(output.shape[2:]) < self.grid:
            msg = (
                f"Neck grid {self.grid} averages maps (channels, height, width) of at least that "
                f"size, and a layer makes {list(output.shape[1:])} for a crop; lower it, name an "
                f"earlier layer, or say how many tokens belong to no place"
            )
            raise BadInput(msg)
        return F.adaptive_avg_pool2d(output, self.grid)

    def _laid_out(self, output: Tensor, first: int) -> Tensor:
        """Return tokens as a square map, without the first ones."""
        count = output.shape[1] - first if output.dim() == 3 else 0
        side = math.isqrt(max(count, 0))
        if not side or side * side != count:
            msg = (
                f"Neck tokens {first} leaves out so many of the tokens (n, channels) of a square, "
                f"and a layer makes {list(output.shape[1:])} for a crop; correct it, or leave it "
                f"out where the layer makes maps"
            )
            raise BadInput(msg)
        return output[:, first:].mT.reshape(len(output), -1, side, side)


def _joined(maps: Sequence[Tensor]) -> tuple[int, int, int] | None:
    """Return channels, height and width of maps that lie on each other; None where they don't."""
    sizes = {tuple(each.shape[2:]) for each in maps if each.dim() == 4}
    if len(sizes) != 1 or any(each.dim() != 4 for each in maps):
        return None
    ((height, width),) = sizes
    return sum(each.shape[1] for each in maps), height, width
