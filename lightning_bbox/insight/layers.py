"""The layers of a backbone: what they are called, what they put out, and that made narrow."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.nn.backbones.base import Backbone

FEATURES = "features"
"""The backbone's own output, where it isn't that of its last layer."""

OUTPUTS_PER_INPUT = 2
"""With one, two inputs that fall together could never be told apart."""

_ROWS_AT_ONCE = 8
"""Rows projected together, in the cache: 128 of conv1 of AlexNet take 100 instead of 220 ms."""

_NO_OPS = (nn.Identity, _DropoutNd, nn.Flatten, nn.Sequential)  # the last where it is empty


class Projection:
    """Make long rows narrow: each input is added, with random signs, to a few random outputs.

    Inner products stay what they are on average, with a relative spread of about one over the root
    of the width. Rows that are narrow enough are left alone. The memory is that of a few rows.

    Args:
        name: With the size the key of the random numbers.
        size: Length of a row.
        width: Length of what comes out, at most.
        device: Where the rows are.

    References:
        Li, Hastie and Church, Very sparse random projections (2006); Charikar, Chen and
        Farach-Colton, Finding frequent items in data streams (2002). Ours has a fixed number of
        outputs for each input.
    """

    def __init__(self, name: str, size: int, width: int, device: torch.device) -> None:
        self.size, self.width = size, min(size, width)
        self.outputs = self.signs = torch.empty(0)
        if size > width:
            generator = keyed_generator("projection", name, size)
            shape = (OUTPUTS_PER_INPUT, size)
            signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.float32) * 2 - 1
            self.signs = (signs / OUTPUTS_PER_INPUT**0.5).to(device)
            self.outputs = torch.randint(0, width, shape, generator=generator).to(device)

    def __call__(self, rows: Float[Tensor, "b p"]) -> Float[Tensor, "b w"]:
        """Return the rows made narrow."""
        if self.size == self.width:
            return rows
        narrow = rows.new_zeros(len(rows), self.width)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            for outputs, signs in zip(self.outputs, self.signs, strict=True):
                narrow[some].index_add_(1, outputs, rows[some] * signs)
        return narrow


@contextmanager
def layer_hooks(backbone: Backbone, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand over what each layer puts out, as soon as it does, and last what the backbone does.

    Layers are the modules without modules of their own, but for those that do nothing in
    evaluation. One that is applied twice has two outputs, of two names. An output may be
    overwritten by the layer after it.

    Args:
        backbone: Whose layers; each is called as the backbone says, or by its place and class.
        take: Gets the name and the output.
    """
    times: Counter[str] = Counter()

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def call(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                times[name] += 1
                take(name if times[name] == 1 else f"{name} ({times[name]})", output)

        return call

    def end(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        times.clear()
        take(FEATURES, output)

    handles = [
        module.register_forward_hook(
            hook(backbone.layer_names.get(name, f"{name} {type(module).__name__}"))
        )
        for name, module in backbone.named_modules()
        if name and not isinstance(module, _NO_OPS) and not any(module.children())
    ]
    handles.append(backbone.register_forward_hook(end))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_order(backbone: Backbone, forward: Callable[[], object]) -> list[str]:
    """Name the layers in the order in which they are computed.

    Args:
        backbone: Whose layers.
        forward: Applies it to something.
    """
    names: list[str] = []
    last = torch.empty(0)

    def take(name: str, output: Tensor) -> None:
        nonlocal last
        values = output.detach().flatten(1).clone()
        if name != FEATURES or not torch.equal(values, last):
            names.append(name)
        last = values

    with layer_hooks(backbone, take):
        forward()
    return names
