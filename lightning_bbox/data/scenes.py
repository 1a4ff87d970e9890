"""Synthetic scenes as training data, with the Cramer-Rao bound of their shifts."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.data.drawing import (
    SceneKind,
    SceneStyle,
    cramer_rao_std,
    make_scenes,
    make_template,
)
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Items, Samples, Source
from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.pictures.places import Storage
from lightning_bbox.pictures.store import ImageStore

Pictures = UInt8[np.ndarray, "n h w 3"]


class SceneDataModule(CropDataModule):
    """Built-in synthetic scenes with exact boxes: no files needed.

    Noise is added after the cut, at a known level, so that the Cramer-Rao bound of the test scenes
    is known.

    Args:
        kind: What sets the object apart: always `bright`, `polar` (randomly brighter or darker), or
            `texture` alone; or a `template`: every scene is the same texture, all that differs is
            shift and noise.
        plain: Discs on a flat background without clutter, the textbook case.
        num_scenes: Training scenes; validation and test have a tenth and a fifth of it more.
        noise: Standard deviation of the noise, as a fraction of the range.
        common: What all data modules take (see `CropDataModule`), but for `store`.

    Examples:
        >>> data = SceneDataModule(num_scenes=100, compile=False)
        >>> data.setup("fit")
        >>> len(data.source.store)
        130
    """

    def __init__(
        self,
        kind: SceneKind = "bright",
        *,
        plain: bool = False,
        num_scenes: int = 4_000,
        noise: float = 0.05,
        **common: Any,  # noqa: ANN401 (typed there)
    ) -> None:
        if num_scenes < 10:
            msg = f"data num_scenes is {num_scenes}; expected at least 10, for three splits"
            raise BadInput(msg)
        if not 0 < noise < math.inf:
            msg = f"data noise is {noise}; expected above 0, so that the Cramer-Rao bound exists"
            raise BadInput(msg)
        super().__init__(store=Storage("device"), **common)
        self.sensor_noise = noise
        self.style = SceneStyle(kind, plain)
        self.num_scenes = num_scenes

    def read(self) -> Source:
        """Draw the scenes of each split from a seed of its own; a template is one for all."""
        counts = {
            "train": self.num_scenes,
            "val": self.num_scenes // 10,
            "test": self.num_scenes // 5,
        }
        draw = self._one_template if self.style.kind == "template" else self._own_scenes
        pictures, splits = draw(counts)
        plain = "plain " if self.style.plain else ""
        note = f"{plain}{self.style.kind} scenes, noise {self.sensor_noise:g} of the range"
        return Source(ImageStore.from_array(pictures), splits, ("object",), (note,))

    def _own_scenes(self, counts: dict[str, int]) -> tuple[Pictures, dict[str, Items]]:
        pictures, splits, start = [], {}, 0
        for name, count in counts.items():
            drawn, boxes = make_scenes(count, self.style, stream_seed("scenes", name))
            index = torch.arange(start, start + count)
            splits[name] = Items(index, boxes, torch.zeros_like(index), index)
            pictures.append(drawn.numpy())
            start += count
        return np.concatenate(pictures), splits

    def _one_template(self, counts: dict[str, int]) -> tuple[Pictures, dict[str, Items]]:
        picture, box = make_template(self.style.texture_std, stream_seed("scenes", "template"))
        splits = {}
        for name, count in counts.items():
            index = torch.zeros(count, dtype=torch.int64)
            splits[name] = Items(index, box.repeat(count, 1), index, torch.arange(count))
        return picture.numpy(), splits

    def error_floor(self, samples: Samples) -> dict[str, float]:
        """Return the errors of an unbiased estimate at the Cramer-Rao bound: mean and RMSE."""
        samples = samples.to(self.source.store.device)
        stds = torch.cat(
            [
                self._cramer_rao(samples.take(rows))
                for rows in torch.arange(len(samples.items)).chunk(8)
            ]
        )
        return {
            "cramer_rao_mae_px": float(stds.mean()) * math.sqrt(2 / math.pi),
            "cramer_rao_rmse_px": float(stds.square().mean().sqrt()),
        }

    def _cramer_rao(self, samples: Samples, step_px: float = 0.25) -> Tensor:
        """Bound each sample's shift, from central differences of the noise-free crop."""
        px = self.geometry.px(samples.proposals)
        derivatives = []
        for axis in (0, 1):
            step = torch.zeros_like(px)
            step[:, axis] = step_px * px[:, axis]
            moved = (shift_boxes(samples.proposals, sign * step) for sign in (1, -1))
            ahead, behind = (
                self.cut(samples.cut_at(self.geometry, proposals, samples.flips))
                for proposals in moved
            )
            derivatives.append((ahead - behind) / (2 * step_px))
        return cramer_rao_std(derivatives[0].cpu(), derivatives[1].cpu(), self.sensor_noise)
