"""Crops that are cut on the host, ahead of the steps that train on them."""

from collections.abc import Callable
from contextlib import closing
from itertools import chain
from typing import Self
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_bbox.core.prefetch import ahead
from lightning_bbox.data.loader import HostCrops, Rows, Walk
from lightning_bbox.data.samples import Samples

Cut = Callable[[Samples], Float[Tensor, "b 3 s s"]]


class HostCutter:
    """Cut the crops of an epoch's rows in another thread.

    Args:
        cut: What cuts the crops of samples.
        samples: Those of the epoch: nothing in them changes any more.
        device: Where the crops will be used.
    """

    def __init__(self, cut: Cut, samples: Samples, device: torch.device) -> None:
        self.cut, self.samples, self.device = cut, samples, device

    def __call__(self, rows: Rows) -> HostCrops:
        """Cut the crops of rows."""
        with torch.inference_mode(mode=False), torch.no_grad():
            crops = self.cut(self.samples.take(rows.rows.flatten()))
        crops = crops.view(*rows.rows.shape, *crops.shape[1:])
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # a thread begins with the first one
                crops = crops.pin_memory()  # so that they are sent while others train
        return HostCrops(crops)


class CropPrefetch:
    """Walks through rows whose crops are cut ahead, and their end."""

    def __init__(self) -> None:
        self._walks: WeakSet[Walk] = WeakSet()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        """Leave walks out: they belong to this process."""
        return type(self), ()

    def start(self, walk: Walk, cutter_for: Callable[[Rows], HostCutter | None]) -> Walk:
        """Yield rows with their crops.

        Args:
            walk: The rows.
            cutter_for: Called with the first of them: what cuts, or None where nothing is to be.
        """
        prefetched = _with_crops(walk, cutter_for)
        self._walks.add(prefetched)
        return prefetched

    def stop(self) -> None:
        """End all that is done ahead."""
        for walk in list(self._walks):
            walk.close()


def _with_crops(walk: Walk, cutter_for: Callable[[Rows], HostCutter | None]) -> Walk:
    first = next(walk, None)
    if first is None:
        return
    cutter, rest = cutter_for(first), chain([first], walk)
    if cutter is None:
        yield from rest
        return
    # Two at once: while one waits for the disk, the other cuts. Files to predict on are decoded in
    # their order, or those of one batch would push out those of the next.
    threads = 1 if first.split == "predict" else 2
    with closing(ahead(rest, cutter, depth=2, threads=threads)) as pairs:
        for rows, crops in pairs:
            yield rows._replace(crops=crops)
