"""Synthetic scenes as training data, with the Cramer-Rao bound of their shifts."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_bbox.core.compiling import CutCompile
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import stream_seed
from lightning_bbox.data.drawing import (
    SceneKind,
    SceneStyle,
    cramer_rao_std,
    make_scenes,
    make_template,
)
from lightning_bbox.data.draws import BatchSize
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Items, Samples, Source
from lightning_bbox.geometry.boxes import shift_boxes
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import Jitter
from lightning_bbox.pictures.augment import Augment
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
        crop: How proposals become crops; a trained model knows, others take `CropGeometry()`.
        jitter: Law of the proposals; uniform shifts of 5 px by default.
        num_targets: 2 learns the centre (dx, dy), 4 the size too (dx, dy, dw, dh); a trained model
            knows, others learn 2.
        augment: What happens to training crops; flips by default.
        batch_size: Size of the global batch, over all processes; `auto` takes the smallest within
            5 % of the most crops a second, measured when training begins.
        draws_per_epoch: Training samples in an epoch.
        eval_draws: Samples of each evaluation.
        seed: Seed of order, proposals and augmentation; the scenes don't depend on it.
        compile: Compile the cut; `auto` does where there is a compiler, `triton` cuts by a kernel
            written in Triton instead (CUDA; its speed is not measured yet).

    Examples:
        >>> data = SceneDataModule(num_scenes=100, compile=False)
        >>> data.setup("fit")
        >>> len(data.source.store)
        130
    """

    def __init__(
        self,
        kind: SceneKind = "bright",
        plain: bool = False,
        num_scenes: int = 4_000,
        noise: float = 0.05,
        crop: CropGeometry | None = None,
        jitter: Jitter | None = None,
        num_targets: Literal[2, 4] | None = None,
        augment: Augment = Augment(),
        batch_size: BatchSize = 128,
        draws_per_epoch: int = 20_000,
        eval_draws: int = 2_000,
        seed: int = 0,
        compile: CutCompile = "auto",  # noqa: A002 (the name of the option everywhere)
    ) -> None:
        if num_scenes < 10:
            msg = f"data num_scenes is {num_scenes}; expected at least 10, for three splits"
            raise BadInput(msg)
        if noise <= 0:
            msg = f"data noise is {noise}; expected above 0, so that the Cramer-Rao bound exists"
            raise BadInput(msg)
        super().__init__(
            crop,
            jitter,
            num_targets,
            augment,
            batch_size,
            draws_per_epoch,
            eval_draws,
            seed,
            compile,
            noise,
        )
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
                self.cut(samples._replace(crop_boxes=self.crop_boxes(boxes, samples.flips)))
                for boxes in moved
            )
            derivatives.append((ahead - behind) / (2 * step_px))
        return cramer_rao_std(derivatives[0].cpu(), derivatives[1].cpu(), self.sensor_noise)
