"""Synthetic scenes: small pictures of one object each, whose box is known exactly.

An outline is a radius by angle, rendered through a signed distance; a picture is the object laid
over clutter laid over 1/f noise. Pixel noise is added after the cut, where its level is known.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import fp32_by_default, keyed_generator

SceneKind = Literal["bright", "polar", "texture", "template"]

_CHUNK = 64  # scenes drawn together; part of the meaning of a seed
_ANGLES = 720  # nodes of an outline: the chord between two leaves it by 2e-4 px at most
_MARGIN = 0.75 * (1 + 2 * 5 / 45)  # half a crop of context 1.5 plus a shift of 5/45 of its side


@dataclass(frozen=True)
class SceneStyle:
    """Say what scenes look like.

    Args:
        kind: What sets the object apart. `bright`: it is always brighter than its surroundings.
            `polar`: brighter or darker, with equal probability. `texture`: only its finer texture.
            `template`: nothing, all scenes are one known texture (`make_template`).
        plain: Discs on a flat background without clutter, the textbook case; there is no such
            `template`.
        contrast: Mean difference of object and surroundings in `bright` and `polar`, as a fraction
            of the intensity range; a scene's own lies between 2/3 and 4/3 of it.
        texture_std: Mean standard deviation of the fine texture in `texture`, likewise; the other
            kinds have 15 % of it unless they are plain.
        clutter: Mean amplitude of the shapes beneath the object, likewise.

    Raises:
        BadInput: If `kind` is none of the four, or a template is to be plain.
    """

    kind: SceneKind = "bright"
    plain: bool = False
    contrast: float = 0.3
    texture_std: float = 0.2
    clutter: float = 0.12

    def __post_init__(self) -> None:
        if self.kind not in get_args(SceneKind):
            kinds = ", ".join(get_args(SceneKind))
            msg = f"the kind of scene is {self.kind!r}; expected one of {kinds}"
            raise BadInput(msg)
        if self.plain and self.kind == "template":
            msg = "a template scene can't be plain: its texture is all there is; leave plain off"
            raise BadInput(msg)


class Outlines(NamedTuple):
    """Outlines of objects, star-shaped about a point inside, stretched to fill their boxes.

    Attributes:
        boxes: Bounding boxes, `xyxy` in pixels, tight on all four sides.
        radius: Radius at equally spaced angles from 0 (along x), before the stretch.
        hole: Fraction of the radius that is cut out; -1, not 0, where the object is solid.
    """

    boxes: Float[Tensor, "n 4"]
    radius: Float[Tensor, "n angles"]
    hole: Float[Tensor, " n"]


@fp32_by_default()
def make_scenes(
    num_scenes: int, style: SceneStyle, seed: int, size: int = 96
) -> tuple[UInt8[Tensor, "n size size 3"], Float[Tensor, "n 4"]]:
    """Make RGB pictures of one object each, and its boxes.

    Scene i is a function of (seed, i), the style and the size alone. The three kinds share boxes,
    outlines and backgrounds. A square crop of 1.5 times a box's larger side stays inside the
    picture when it is shifted by up to 5/45 of its own side.

    Args:
        num_scenes: How many scenes to make.
        style: What they look like.
        seed: Key of every random number.
        size: Height and width of a picture in pixels; at 96 a box's sides are 22 to 40 px each.

    Returns:
        The pictures, and the boxes as `xyxy` in pixels, the exact extent of the outlines.
    """
    pictures = torch.empty(num_scenes, size, size, 3, dtype=torch.uint8)
    boxes = torch.empty(num_scenes, 4)
    for start in range(0, num_scenes, _CHUNK):
        generator = keyed_generator("scenes", seed, start // _CHUNK)
        outlines = draw_outlines(_CHUNK, style, generator, size)
        painted = _paint(outlines, style, generator, size)
        count = min(_CHUNK, num_scenes - start)
        pictures[start : start + count] = painted[:count].permute(0, 2, 3, 1)
        boxes[start : start + count] = outlines.boxes[:count]
    return pictures, boxes


@fp32_by_default()
def make_template(
    contrast: float, seed: int, size: int = 64, finer: int = 4
) -> tuple[UInt8[Tensor, "1 p p 3"], Float[Tensor, "1 4"]]:
    """Make a picture of gray 1/f noise and nothing else, and a box in its middle.

    Its waves are 5.5 px and longer and go round at the picture's ends. It is stored finer than its
    pixels, so that cutting it at a fraction of a pixel moves it by that to 0.002 px.

    Args:
        contrast: Standard deviation as a fraction of the range, at most 0.2: above it would clip.
        seed: Key of the random numbers.
        size: Height and width in pixels; the box's sides are 30, so that a crop of context 1.5
            stays inside when it is shifted by up to 9.
        finer: How many stored pixels a pixel has along each side.

    Returns:
        The picture, `size * finer` stored pixels squared, and the box in stored pixels.
    """
    frequency = _frequencies(size)
    pink = ((frequency > 0) & (frequency <= 0.18)) / frequency.clamp(min=1 / size)
    fields = _fields(keyed_generator("template", seed), 1024, pink)
    fields /= fields.std(dim=(1, 2), keepdim=True)
    # Of many the flattest: its extremes lie within five standard deviations of each other.
    low, high = fields.amin(dim=(1, 2)), fields.amax(dim=(1, 2))
    flattest = (high - low).argmin()
    field = fields[flattest] - (high + low)[flattest] / 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(field))
    padded = torch.fft.ifftshift(F.pad(spectrum, [size * (finer - 1) // 2] * 4))
    texture = 0.5 + contrast * finer**2 * torch.fft.ifft2(padded).real
    picture = texture.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    low_end, high_end = (size / 2 - 15.0) * finer, (size / 2 + 15.0) * finer
    box = torch.tensor([[low_end, low_end, high_end, high_end]])
    return picture[None, :, :, None].expand(-1, -1, -1, 3), box


def draw_outlines(
    num_outlines: int, style: SceneStyle, generator: torch.Generator, size: int = 96
) -> Outlines:
    """Draw the outlines of objects and where they lie.

    Args:
        num_outlines: How many to draw.
        style: Plain styles have discs; others rounded polygons, wobbly blobs, and rings of both.
        generator: Source of the random numbers, on the CPU.
        size: Height and width of the picture in pixels.
    """
    sides = size / 96 * _uniform(generator, 22.0, 40.0, num_outlines, 2)
    place = torch.rand(num_outlines, 2, generator=generator)
    if style.plain:
        sides = sides[:, :1].expand(-1, 2)
        radius, hole = torch.ones(num_outlines, _ANGLES), -torch.ones(num_outlines)
    else:
        radius = _polygon_radius(generator, num_outlines) * _wobble(generator, num_outlines)
        ring = torch.rand(num_outlines, 1, generator=generator) < 0.25
        hole = torch.where(ring, _uniform(generator, 0.4, 0.6, num_outlines, 1), -1.0)[:, 0]
    margin = _MARGIN * sides.amax(dim=1, keepdim=True)
    centers = margin + place * (size - 2 * margin)
    return Outlines(torch.cat((centers - sides / 2, centers + sides / 2), dim=1), radius, hole)


def render_masks(
    outlines: Outlines, xs: Float[Tensor, "n w"], ys: Float[Tensor, "n h"]
) -> Float[Tensor, "n h w"]:
    """Render how much of each sample the object covers, from 0 to 1.

    Edges are ramps one sample wide through the signed distance to the outline, to first order.

    Args:
        outlines: The objects.
        xs: Where the columns lie in pixels, equally spaced; at least two.
        ys: Where the rows lie, with the same spacing.
    """
    boxes, radii, hole = outlines
    contour = torch.view_as_real(torch.polar(radii, _angles().expand_as(radii)))
    low, high = contour.amin(dim=1), contour.amax(dim=1)
    scale = (boxes[:, 2:] - boxes[:, :2]) / (high - low)
    origin = boxes[:, :2] - low * scale
    # In the frame before the stretch the outline is level 1 of |u| / R(angle of u).
    u = ((xs - origin[:, :1]) / scale[:, :1])[:, None, :]
    v = ((ys - origin[:, 1:]) / scale[:, 1:])[:, :, None]
    norm = (u.square() + v.square()).sqrt_().clamp_(min=1e-6)
    radius, slope = _look_up(radii, torch.atan2(v, u))
    level = norm / radius
    gradient = torch.hypot(
        (u + slope * v).div_(scale[:, :1, None]), (v - slope * u).div_(scale[:, 1:, None])
    ).div_(norm * radius)
    distance = torch.maximum(level - 1, hole[:, None, None] - level).div_(gradient)
    return (0.5 - distance / (xs[:, 1] - xs[:, 0])[:, None, None]).clamp_(0, 1)


def cramer_rao_std(
    d_dx: Float[Tensor, "b c s s"], d_dy: Float[Tensor, "b c s s"], noise_std: float
) -> Float[Tensor, "b 2"]:
    """Bound the error of any unbiased estimate of a crop's shift, (x, y).

    White Gaussian noise of known level; everything but the shift is taken as known.

    Args:
        d_dx: Derivative of the noise-free crops with respect to the shift in x.
        d_dy: The same in y.
        noise_std: Standard deviation of the noise in the crops' unit of intensity, positive.

    Returns:
        The least standard deviations, in the unit of shift in which the derivatives were taken;
        infinite where a crop says nothing about that direction.

    References:
        Kay, Fundamentals of Statistical Signal Processing: Estimation Theory (1993), chapter 3.
    """
    gradients = torch.stack((d_dx, d_dy), dim=1).flatten(2).double()
    information = gradients @ gradients.mT
    own = information.diagonal(dim1=1, dim2=2)
    other = own.flip(1).clamp(min=torch.finfo(torch.float64).tiny)
    left = own - information[:, :1, 1].square() / other
    # What stays of two parallel gradients is the rounding of float32 inputs, about 1e-14.
    left = torch.where(left > 1e-12 * own, left, 0.0)
    return (noise_std * left.rsqrt()).float()


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _signs(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1


def _angles() -> Float[Tensor, " angles"]:
    return torch.arange(_ANGLES) * (2 * math.pi / _ANGLES)


def _polygon_radius(generator: torch.Generator, num: int) -> Float[Tensor, "num angles"]:
    """Draw convex polygons of 3 to 6 sides whose corners are rounded by a p-norm.

    Four upright sides are a superellipse: an ellipse at p = 2, all but a rectangle at p = 32.
    """
    turn = _uniform(generator, 0.0, 2 * math.pi, num, 1)
    upright = torch.rand(num, 1, generator=generator) < 0.25
    num_sides = torch.randint(3, 7, (num, 1), generator=generator).masked_fill(upright, 4)
    index = torch.arange(6)
    normals = turn * ~upright + index * (2 * math.pi / num_sides)
    exponent = 2 * 16 ** torch.rand(num, 1, 1, generator=generator)
    cosines = torch.cos(_angles() - normals[..., None])
    powers = cosines.clamp(min=0) ** exponent * (index < num_sides)[..., None]
    return powers.sum(dim=1, keepdim=True).pow(-1 / exponent).squeeze(1)


def _wobble(generator: torch.Generator, num: int) -> Float[Tensor, "num angles"]:
    """Draw the factors that make a third of the outlines blobs: 1 plus a few Fourier terms."""
    orders = torch.arange(2.0, 6.0)[:, None]
    phases = _uniform(generator, 0.0, 2 * math.pi, num, len(orders), 1)
    amplitudes = 0.35 * torch.randn(num, len(orders), 1, generator=generator) / orders
    waves = torch.cos(orders * _angles() + phases)
    wobbly = torch.rand(num, 1, generator=generator) < 1 / 3
    return 1 + wobbly * (amplitudes * waves).sum(dim=1).clamp(-0.5, 0.5)


def _look_up(
    radius: Float[Tensor, "n angles"], angle: Float[Tensor, "n h w"]
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Read the radius at an angle, between two nodes, and its relative slope there."""
    per_radian = _ANGLES / (2 * math.pi)
    position = (angle * per_radian).remainder_(_ANGLES).flatten(1)
    node = position.long().clamp_(max=_ANGLES - 1)
    rise = radius.roll(-1, dims=1) - radius
    here = radius.gather(1, node).addcmul_(rise.gather(1, node), position.sub_(node))
    slope = (rise / radius * per_radian).gather(1, node)
    return here.view_as(angle), slope.view_as(angle)


def _paint(
    outlines: Outlines, style: SceneStyle, generator: torch.Generator, size: int
) -> UInt8[Tensor, "n 3 size size"]:
    """Lay each object over its background.

    The object starts from the background's local mean, so that its contrast is the stated one.
    """
    num = len(outlines.boxes)
    grid = (torch.arange(size) + 0.5).expand(num, -1)
    gray = _uniform(generator, 0.42, 0.58, num, 1, 1, 1)
    background = gray + _uniform(generator, -0.08, 0.08, num, 3, 1, 1)
    inside = background + _fills(generator, num, size, style)
    if not style.plain:
        relief = _relief(generator, num, size)
        coarse = F.interpolate(relief, size // 8, mode="area")
        inside += F.interpolate(coarse, (size, size), mode="bilinear")
        background = background + relief.add_(_clutter(generator, num, size, style.clutter))
    picture = background.lerp(inside, render_masks(outlines, grid, grid)[:, None])
    return picture.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _fills(
    generator: torch.Generator, num: int, size: int, style: SceneStyle
) -> Float[Tensor, "num 3 size size"]:
    """Draw what sets the objects apart from the local mean: contrast, or fine texture."""
    strength = _uniform(generator, 2 / 3, 4 / 3, num, 1, 1, 1)
    tint = _uniform(generator, 0.85, 1.15, num, 3, 1, 1)
    sign = _signs(generator, num, 1, 1, 1)  # drawn for all, so that the kinds' backgrounds agree
    # Waves of some 3 to 8 px: fine, but kept where a crop is reduced.
    band = torch.exp(-(((_frequencies(size) - 0.22) / 0.1) ** 2) / 2)
    fine = _fields(generator, num, band).clamp_(-2, 2)[:, None]
    if style.kind == "texture":
        return style.texture_std * strength * tint * fine
    contrast = style.contrast * strength * tint * (sign if style.kind == "polar" else 1.0)
    return contrast if style.plain else contrast + 0.15 * style.texture_std * fine


def _relief(generator: torch.Generator, num: int, size: int) -> Float[Tensor, "num 3 size size"]:
    """Draw 1/f noise about zero, gray with a weaker part of one random hue."""
    frequency = _frequencies(size)
    pink = (frequency > 0) / frequency.clamp(min=1 / size)
    fields = _fields(generator, 2 * num, pink).view(num, 2, -1)
    hue = 0.3 * torch.randn(num, 3, 1, generator=generator)
    weights = 0.08 * torch.cat((torch.ones_like(hue), hue), dim=2)
    return (weights @ fields).view(num, 3, size, size)


def _clutter(
    generator: torch.Generator, num: int, size: int, amplitude: float
) -> Float[Tensor, "num 3 size size"]:
    """Draw lines, small blobs and a larger shape, lighter or darker, anywhere in the picture."""
    # Half sizes in px at 96 px: two lines and a rectangle, then three ellipses.
    half_sizes = torch.tensor([[96, 0.5], [96, 1], [16, 12], [3, 2], [3, 3], [6, 4]])
    shape = (num, len(half_sizes))
    half = size / 96 * _uniform(generator, 0.7, 1.3, *shape, 1) * half_sizes
    turn = _uniform(generator, 0.0, math.pi, *shape)
    x0, y0 = _uniform(generator, 0.0, float(size), 2, *shape)
    axes = torch.stack((turn.cos(), turn.sin(), -turn.sin(), turn.cos()), dim=2)
    axes = axes.view(*shape, 2, 2) / half[..., None]
    sign = _signs(generator, num, 1, len(half_sizes))
    tint = amplitude * sign * _uniform(generator, 2 / 3, 4 / 3, num, 3, len(half_sizes))
    grid = torch.arange(size) + 0.5
    coverage = torch.empty(*shape, size, size)
    for k in range(len(half_sizes)):
        x, y = (grid - x0[:, k, None])[:, None, :], (grid - y0[:, k, None])[:, :, None]
        u, v = (axes[:, k, i, :1, None] * x + axes[:, k, i, 1:, None] * y for i in (0, 1))
        level = torch.maximum(u.abs_(), v.abs_()) if k < 3 else torch.hypot(u, v)
        ramp = half[:, k, 1:, None]
        torch.clamp(level.mul_(-ramp).add_(ramp + 0.5), 0, 1, out=coverage[:, k])
    return (tint @ coverage.flatten(2)).view(num, 3, size, size)


def _frequencies(size: int) -> Float[Tensor, "size size"]:
    cycles = torch.fft.fftfreq(size)
    return torch.hypot(cycles[:, None], cycles)


def _fields(
    generator: torch.Generator, num: int, gain: Float[Tensor, "size size"]
) -> Float[Tensor, "num size size"]:
    """Draw periodic noise of unit variance whose spectrum has the shape of the gain."""
    gain = gain / gain.square().mean().sqrt()
    noise = torch.randn(2, num // 2, *gain.shape, generator=generator)
    # Real and imaginary part of complex noise under an even gain are two independent fields.
    field = torch.fft.ifft2(torch.complex(*noise).mul_(gain), norm="ortho")
    return torch.cat((field.real, field.imag))
