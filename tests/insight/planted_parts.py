"""Parts as their users might write them, each with a mistake: what no option can be set to."""

import torch
from torch import Tensor

from lightning_bbox import (
    BoxDataModule,
    ChannelNorm,
    Decoder,
    LinearHead,
    MeanStdCodec,
    Preprocess,
    SceneDataModule,
    Schedule,
    ShallowConvNet,
)
from lightning_bbox.data.module import CropDataModule


class FrozenConvNet(ShallowConvNet):
    """Never learns what it should see."""

    def build(self, crop_size: int) -> "FrozenConvNet":
        super().build(crop_size)
        self.freeze()
        return self


class MirroredCrops(ChannelNorm):
    """Mirrors half of the training crops, and nobody tells their labels."""

    def forward(self, crops: Tensor) -> Tensor:
        crops = super().forward(crops)
        if not self.training:
            return crops
        mirrored = torch.rand(len(crops), 1, 1, 1, device=crops.device) < 0.5
        return torch.where(mirrored, crops.flip(3), crops)


class ErasedCrops(ChannelNorm):
    """Erases a square of three quarters of the side from each training crop."""

    def forward(self, crops: Tensor) -> Tensor:
        crops = super().forward(crops)
        if not self.training:
            return crops
        side = crops.shape[-1]
        first = torch.rand(2, len(crops), 1, device=crops.device) * side / 4
        places = torch.arange(side, device=crops.device)
        across, down = (places >= first) & (places < first + 0.75 * side)
        return crops.masked_fill((across[:, None, :] & down[:, :, None])[:, None], 0.0)


class TwiceNormalised(Preprocess):
    """Takes crops for bytes, although they are fractions, and centres them as ImageNet's."""

    def fit(self, crops: Tensor) -> None:
        pass

    def forward(self, crops: Tensor) -> Tensor:
        return (crops / 255 - 0.45) / 0.225


class OtherStatistics(Preprocess):
    """Centres and scales by what another set of brighter pictures had, in bytes."""

    def fit(self, crops: Tensor) -> None:
        pass

    def forward(self, crops: Tensor) -> Tensor:
        return (crops - 180.0) / 60.0


class _Shaken(CropDataModule):
    """Moves training crops by up to 6 px, and nobody tells their labels."""

    def crops_of(self, samples, augment=False, raw=None):
        crops = super().crops_of(samples, augment, raw)
        if not augment:
            return crops
        shifts = torch.randint(-6, 7, (len(crops), 2)).tolist()
        pairs = zip(crops, shifts, strict=True)
        return torch.stack([crop.roll(shift, (1, 2)) for crop, shift in pairs])


class ShakenScenes(_Shaken, SceneDataModule):
    pass


class ShakenBoxes(_Shaken, BoxDataModule):
    pass


class _CutElsewhere(CropDataModule):
    """Takes x for y where it cuts, and only there."""

    def cut(self, samples):
        exchanged = samples.proposals[:, [1, 0, 3, 2]]
        return super().cut(samples.cut_at(self.geometry, exchanged, samples.flips))


class ScenesElsewhere(_CutElsewhere, SceneDataModule):
    pass


class BoxesElsewhere(_CutElsewhere, BoxDataModule):
    pass


class BoundedHead(LinearHead):
    """Ends in a hyperbolic tangent, as a generator of pictures would."""

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.float().tanh()


class ForgetfulCodec(MeanStdCodec):
    """Decodes what it scaled as if it had not."""

    def _unscaled(self, targets: Tensor) -> Tensor:
        return targets / self.spec.geometry.px_per_delta


class ForgetfulDecoder(Decoder):
    """Counts bins from the largest shift, and forgets those beyond it."""

    def __call__(self, probs: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
        numbers = torch.arange(probs.shape[-1], device=probs.device, dtype=probs.dtype)
        return (probs * numbers).sum(dim=-1) * widths - 5.0


class EndsEarly(Schedule):
    """Is at zero after a fiftieth of the run."""

    def factor(self, progress: float) -> float:
        return max(0.0, 1 - 50 * progress)


class DecaysEachStep(Schedule):
    """Takes off a tenth after every step, which was meant for every epoch."""

    def factor(self, progress: float) -> float:
        return 0.9 ** (progress * 300)
