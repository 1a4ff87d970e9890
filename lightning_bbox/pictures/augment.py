"""Augmentation of the training crops: flips, photometry, noise, and any photometric kornia module.

kornia changes pixels; boxes are moved by our own code. Parameters come from the epoch plan, so a
sample looks the same on every device and for every number of processes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from kornia import augmentation, enhance
from torch import Tensor, nn
from torch.nn import functional

from lightning_bbox.core.compiling import compiled_for_any_batch
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import EpochPlan, keyed_generator, stream_seed

Crops = Float[Tensor, "b c h w"]

MOST_MOVED = 0.1
"""By how many pixels of a crop an augmentation may move the object, in the mean."""

_SIDE, _RADIUS, _CENTER, _TRIES = 45, 10.0, (20.5, 24.5), 128  # of the disc that tells it
_FLAT, _DISC = 0.3, 0.8  # grey levels, neither of which inverting or solarizing makes the other


@dataclass(frozen=True)
class Augment:
    """What happens to training crops; validation and test crops are never touched.

    Args:
        flip_x: Mirror half of the crops left-right, with their boxes.
        flip_y: Mirror half of the crops up-down, with their boxes.
        brightness: Intensities are multiplied by U(1 - b, 1 + b).
        contrast: Contrast about the crop's mean grey is multiplied by U(1 - c, 1 + c).
        saturation: The distance from grey is multiplied by U(1 - s, 1 + s).
        noise: Standard deviation of Gaussian noise, as a fraction of the intensity range.
        extra: Photometric kornia augmentations, applied last; seeded by the step, not by the
            sample.

    Raises:
        BadInput: A strength is out of range, or an extra augmentation mixes crops or moves what is
            in them (see `mean_shift`).

    Examples:
        >>> Augment(flip_y=False).flips(EpochPlan(0, 0, 10, 10))[:, 1].unique()
        tensor([0.])
    """

    flip_x: bool = True
    flip_y: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    noise: float = 0.0
    extra: tuple[nn.Module, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                msg = f"augment {name} is {value}; expected 0 (off) to 1"
                raise BadInput(msg)
        if not 0 <= self.noise < math.inf:
            msg = f"augment noise is {self.noise}; expected 0 (off) or more"
            raise BadInput(msg)
        object.__setattr__(self, "extra", tuple(self.extra))  # a list could be added to later
        for module in self.extra:
            _refuse_geometric(module)
            _refuse_moving(module)

    def flips(self, plan: EpochPlan) -> Float[Tensor, "n 2"]:
        """Draw which samples are mirrored, left-right and up-down (0 or 1)."""
        drawn = plan.uniform("flip", 2)
        return (drawn < 0.5) * drawn.new_tensor([self.flip_x, self.flip_y])

    def factors(self, plan: EpochPlan) -> Float[Tensor, "n 3"] | None:
        """Draw the factors of brightness, contrast and saturation, or None where all are off."""
        strengths = [self.brightness, self.contrast, self.saturation]
        if not any(strengths):
            return None
        drawn = plan.uniform("photometry", 3)
        return 1 + (2 * drawn - 1) * drawn.new_tensor(strengths)

    def photometry(
        self,
        crops: Crops,
        factors: Float[Tensor, "b 3"] | None,
        adjust: "Adjust | None" = None,
    ) -> Crops:
        """Apply brightness, contrast and saturation, in this order, then the extra modules.

        Args:
            crops: RGB in [0, 1].
            factors: Of each crop; None leaves these three out.
            adjust: What applies them; `adjust_photometry` by default.
        """
        if factors is not None:
            crops = (adjust or adjust_photometry)(crops, factors)
        for module in self.extra:
            crops = module(crops)
        return crops


def adjust_photometry(crops: Crops, factors: Float[Tensor, "b 3"]) -> Crops:
    """Multiply brightness, contrast and saturation, clipped to [0, 1] after each.

    Equals `kornia.augmentation.ColorJitter` with `order=(0, 1, 2)` and no hue, given the same
    factors.

    Args:
        crops: RGB in [0, 1].
        factors: Factors of brightness, contrast and saturation.
    """
    crops = enhance.adjust_brightness_accumulative(crops, factors[:, 0])
    crops = enhance.adjust_contrast_with_mean_subtraction(crops, factors[:, 1])
    return enhance.adjust_saturation_with_gray_subtraction(crops, factors[:, 2])


Adjust = Callable[[Crops, Float[Tensor, "b 3"]], Crops]


def _adjust_planes(crops: Crops, factors: Float[Tensor, "b 3"]) -> Crops:
    """Do the same plane by plane: compiled, kornia's functions take 1.6 times as long."""
    brightness, contrast, saturation = (f[:, None, None] for f in factors.unbind(dim=1))
    planes = [(plane * brightness).clamp(max=1) for plane in crops.unbind(dim=1)]
    mean = _grey(planes).mean(dim=(1, 2), keepdim=True)
    planes = [(p * contrast + mean * (1 - contrast)).clamp(0, 1) for p in planes]
    grey = _grey(planes)
    planes = [(p * saturation + grey * (1 - saturation)).clamp(0, 1) for p in planes]
    return torch.stack(planes, dim=1)


def _grey(planes: Sequence[Tensor]) -> Tensor:
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


compiled_photometry: Adjust = compiled_for_any_batch(_adjust_planes)
"""The compiled twin of `adjust_photometry`."""


class NoiseBank:
    """Gaussian noise keyed by sample: windows of one long fixed draw.

    A sample's noise is the stretch of the bank that begins at the sample's own offset, so it
    doesn't depend on the batch, the device or the number of processes, and costs one gather.

    Args:
        key: What the noise depends on, beside the offset.
        window: How many numbers a sample needs.
        length: Length of the bank, or twice the window where that is more.
    """

    def __init__(self, key: Sequence[int | str], window: int, length: int = 1 << 22) -> None:
        self.key, self.window, self.length = tuple(key), window, max(length, 2 * window)

    def offsets(self, plan: EpochPlan) -> Int64[Tensor, " n"]:
        """Draw each sample's offset."""
        return (plan.uniform("noise", 1)[:, 0].double() * (self.length - self.window)).long()

    @cached_property
    def values(self) -> Float[Tensor, " length"]:
        """The whole draw, made at the first use."""
        generator = keyed_generator(*self.key)
        return torch.randn(self.length, dtype=torch.float32, generator=generator)

    def windows(self, offsets: Int64[Tensor, " b"]) -> Float[Tensor, "b w"]:
        """Return the noise of samples, of standard deviation 1."""
        self.values = self.values.to(offsets.device)
        return self.values.unfold(0, self.window, 1)[offsets]


@torch.no_grad()
def mean_shift(module: nn.Module) -> float:
    """Tell by how many pixels a module moves a disc of a radius of 10, in the mean over many draws.

    The disc is what differs between two pictures that go through it with the same random numbers,
    one with it and one without: noise and illumination are the same in both. Holes of single
    pixels don't matter. A draw that leaves nothing of the disc counts as its radius.

    Args:
        module: Takes crops in [0, 1].

    Examples:
        >>> round(mean_shift(augmentation.RandomBoxBlur((4, 4), p=1.0)), 3)  # half of both axes
        0.707
        >>> round(mean_shift(augmentation.RandomBoxBlur((3, 3), p=1.0)), 3)
        0.0
    """
    places = torch.arange(_SIDE) + 0.5
    x, y = places - _CENTER[0], (places - _CENTER[1])[:, None]
    disc = (_RADIUS + 0.5 - torch.hypot(x, y)).clamp(0, 1)
    flat, found = torch.full((_TRIES, 3, _SIDE, _SIDE), _FLAT), []
    with torch.random.fork_rng(devices=[]):
        for crops in (flat, flat + (_DISC - _FLAT) * disc):
            torch.manual_seed(stream_seed("mean shift"))
            found.append(module(crops))
    seen = (found[1] - found[0]).abs().sum(dim=1)
    seen = (seen - seen.flatten(1).median(dim=1).values[:, None, None]).abs()
    filled = -functional.max_pool2d(-functional.max_pool2d(seen, 3, 1, 1), 3, 1, 1)
    top = filled.amax(dim=(1, 2))
    shape = (4 * filled / top.clamp(min=1e-9)[:, None, None] - 1).clamp(0, 1)  # whatever its light
    area = shape.sum(dim=(1, 2)).clamp(min=1e-9)
    shift = torch.hypot((shape * x).sum(dim=(1, 2)) / area, (shape * y).sum(dim=(1, 2)) / area)
    return float(shift.where(top > 1 / 255, torch.tensor(_RADIUS)).mean())


def _refuse_moving(module: nn.Module) -> None:
    """Refuse by its effect what moves or hides the object, whatever its class."""
    name = type(module).__name__
    try:
        shift = mean_shift(module)
    except Exception as error:  # somebody's own module raises whatever it likes
        msg = (
            f"augment.extra's {name} can't be applied to crops of {_SIDE} x {_SIDE} px ({error}); "
            f"correct its arguments"
        )
        raise BadInput(msg) from error
    if not shift <= MOST_MOVED:
        msg = (
            f"augment.extra's {name} moves or hides the object, by {shift:.2f} px of a crop in the "
            f"mean where {MOST_MOVED} are allowed, and its label doesn't follow; leave it out or "
            f"choose other arguments, such as an odd kernel or no direction"
        )
        raise BadInput(msg)


def _refuse_geometric(module: nn.Module) -> None:
    children = list(module.children())
    if isinstance(module, augmentation.IntensityAugmentationBase2D):
        return
    if isinstance(module, nn.Sequential | augmentation.ImageSequential) and children:
        for child in children:
            _refuse_geometric(child)
        return
    msg = (
        f"augment.extra holds {type(module).__name__}, which isn't a photometric kornia "
        f"augmentation and could move the object without its label; use subclasses of "
        f"kornia.augmentation.IntensityAugmentationBase2D"
    )
    raise BadInput(msg)
