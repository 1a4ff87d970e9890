"""Scenes: what they promise about boxes and kinds, and the bound on any estimate of a shift."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_bbox.core.randomness import keyed_generator
from lightning_bbox.data.drawing import (
    Outlines,
    SceneStyle,
    cramer_rao_std,
    draw_outlines,
    make_scenes,
    make_template,
    render_masks,
)
from lightning_bbox.geometry.boxes import box_centers

KINDS = ("bright", "polar", "texture")


def first_chunk(style, seed=0, size=96):
    """Return 64 scenes in 0..1 with the outlines they were made from."""
    pictures, boxes = make_scenes(64, style, seed, size)
    outlines = draw_outlines(64, style, keyed_generator("scenes", seed, 0), size)
    assert torch.equal(outlines.boxes, boxes)
    return pictures.permute(0, 3, 1, 2).float() / 255, outlines


def masks_of(outlines, size=96):
    grid = (torch.arange(size) + 0.5).expand(len(outlines.boxes), -1)
    return render_masks(outlines, grid, grid)


def inside_and_ring(outlines):
    """Return the weights of pixels well inside, and of those outside within some 4 px."""
    masks = masks_of(outlines)[:, None]
    near = F.max_pool2d(masks, 9, stride=1, padding=4)
    edge = F.max_pool2d(masks, 3, stride=1, padding=1)
    return (masks > 0.99).float(), near.gt(0) * edge.eq(0)


def mean_over(values, weights):
    return (values * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_does_not_depend_on_how_many_are_made(kind, plain):
    style = SceneStyle(kind, plain=plain)
    few, many = make_scenes(67, style, seed=3), make_scenes(130, style, seed=3)
    assert all(torch.equal(a, b[:67]) for a, b in zip(few, many, strict=True))


def test_seeds_and_scenes_differ():
    pictures, boxes = make_scenes(130, SceneStyle(), seed=0)
    other_pictures, other_boxes = make_scenes(130, SceneStyle(), seed=1)
    assert not (boxes == other_boxes).any()
    assert (pictures != other_pictures).float().mean() > 0.9
    assert len(boxes.unique(dim=0)) == 130
    assert not make_template(0.2, seed=0)[0].equal(make_template(0.2, seed=1)[0])


def test_kinds_share_boxes_and_what_surrounds_them():
    scenes = [first_chunk(SceneStyle(kind), seed=4) for kind in KINDS]
    outside = masks_of(scenes[0][1])[:, None] == 0
    for pictures, outlines in scenes[1:]:
        assert torch.equal(outlines.boxes, scenes[0][1].boxes)
        assert torch.equal(pictures * outside, scenes[0][0] * outside)


@pytest.mark.parametrize("plain", [False, True])
def test_boxes_are_tight_at_24_samples_a_pixel(plain):
    outlines = draw_outlines(48, SceneStyle(plain=plain), torch.Generator().manual_seed(5))
    samples, pad = 24, 1.0
    steps = (torch.arange(int((40 + 2 * pad) * samples)) + 0.5) / samples - pad
    for i in range(48):
        one = Outlines(*(part[i : i + 1] for part in outlines))
        xs, ys = one.boxes[:, :1] + steps, one.boxes[:, 1:2] + steps
        inside = render_masks(one, xs, ys)[0] > 0.5
        columns, rows = xs[0, inside.any(dim=0)], ys[0, inside.any(dim=1)]
        half = 0.5 / samples
        extent = torch.stack(
            (columns[0] - half, rows[0] - half, columns[-1] + half, rows[-1] + half)
        )
        assert (extent - one.boxes[0]).abs().max() < 0.05


def test_edges_are_the_area_a_pixel_shares_with_the_object():
    outlines = draw_outlines(24, SceneStyle(), torch.Generator().manual_seed(6))
    fine_grid = ((torch.arange(96 * 8) + 0.5) / 8).expand(24, -1)
    area = F.avg_pool2d((render_masks(outlines, fine_grid, fine_grid) > 0.5).float(), 8)
    error = masks_of(outlines) - area
    assert error.abs().mean(dim=(1, 2)).div(area.mean(dim=(1, 2))).max() < 0.02
    grid = torch.arange(96) + 0.5 - box_centers(outlines.boxes)[:, :, None]
    moment = torch.stack(((error * grid[:, :1]).sum((1, 2)), (error.mT * grid[:, 1:]).sum((1, 2))))
    assert (moment / area.sum((1, 2))).abs().max() < 0.05


def test_half_covered_pixels_average_to_the_exact_area_of_a_disc():
    outlines = draw_outlines(16, SceneStyle(plain=True), torch.Generator().manual_seed(7))
    radius = (outlines.boxes[:, 2] - outlines.boxes[:, 0]) / 2
    area = masks_of(outlines).sum(dim=(1, 2))
    torch.testing.assert_close(area, math.pi * radius.square(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["bright", "polar"])
def test_pictures_of_discs_lie_where_their_boxes_say(kind):
    pictures, outlines = first_chunk(SceneStyle(kind, plain=True))
    weights = (pictures - pictures[:, :, :1, :1]).abs().mean(dim=1)
    grid = torch.arange(96) + 0.5
    x, y = (weights * grid).sum((1, 2)), (weights.mT * grid).sum((1, 2))
    centers = torch.stack((x, y), dim=1) / weights.sum((1, 2))[:, None]
    assert (centers - box_centers(outlines.boxes)).abs().max() < 0.03


@pytest.mark.parametrize("size", [64, 96])
def test_shifted_crops_stay_inside_the_picture(size):
    _, boxes = make_scenes(512, SceneStyle(), seed=0, size=size)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 22 / 96 * size - 1e-3
    assert sides.max() <= 40 / 96 * size + 1e-3
    assert sides.T.corrcoef()[0, 1].abs() < 0.15
    centers = box_centers(boxes)
    reach = 1.5 * sides.amax(dim=1, keepdim=True) * (0.5 + 5 / 45)
    assert (centers - reach).min() >= -1e-3
    assert (centers + reach).max() <= size + 1e-3
    phases = (centers % 1).flatten()
    assert 0.45 < phases.mean() < 0.55
    assert phases.std() == pytest.approx(1 / math.sqrt(12), rel=0.1)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_less_than_one_percent_of_pixels_saturate(kind, plain):
    pictures, _ = make_scenes(128, SceneStyle(kind, plain=plain), seed=0)
    assert ((pictures == 0) | (pictures == 255)).float().mean() < 0.01


def contrast_to_surroundings(style, seed=0):
    """Return the mean inside each object less that around it, and the gray pictures."""
    pictures, outlines = first_chunk(style, seed)
    inside, ring = inside_and_ring(outlines)
    gray = pictures.mean(dim=1, keepdim=True)
    return mean_over(gray, inside) - mean_over(gray, ring), gray, inside, ring


def test_bright_objects_are_brighter_and_polar_ones_brighter_or_darker_by_one_law():
    bright, polar = (
        torch.cat([contrast_to_surroundings(SceneStyle(kind), seed)[0] for seed in range(8)])
        for kind in ("bright", "polar")
    )
    assert (bright > 0).float().mean() >= 0.99
    assert 0.25 < bright.mean() < 0.35
    assert 0.4 < (polar > 0).float().mean() < 0.6
    assert polar.mean().abs() < 0.05
    assert polar.abs().mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("plain", [False, True])
def test_polar_pixels_do_not_correlate_with_the_offset(plain):
    pictures, boxes = make_scenes(1024, SceneStyle("polar", plain=plain), seed=0)
    gray = F.avg_pool2d(pictures.float().mean(dim=3)[:, None], 8).flatten(1)
    variables = torch.cat((gray, box_centers(boxes)), dim=1)
    correlation = variables.T.corrcoef()[:-2, -2:]
    assert correlation.square().mean() < 2 / 1024  # 1 / 1024 is what chance gives


@pytest.mark.parametrize("plain", [False, True])
def test_textured_objects_differ_by_texture_alone(plain):
    difference, gray, inside, ring = contrast_to_surroundings(SceneStyle("texture", plain=plain))
    assert difference.mean().abs() < 0.01
    assert difference.std() < 0.25 * 0.2
    detail = (gray - F.avg_pool2d(gray, 5, stride=1, padding=2)).square()
    std_inside, std_ring = mean_over(detail, inside).sqrt(), mean_over(detail, ring).sqrt()
    assert std_inside.mean() == pytest.approx(0.2, abs=0.04)
    assert (std_inside > 1.5 * std_ring).float().mean() >= 0.95


def gaussian_blob(x, y, amplitude=0.5, width=4.0, size=45):
    """Return a blob at (x, y) and its derivatives with respect to x and y."""
    grid = torch.arange(size, dtype=torch.float64) + 0.5
    dx, dy = grid - x[:, None, None], grid[:, None] - y[:, None, None]
    blob = amplitude * torch.exp(-(dx.square() + dy.square()) / (2 * width**2))
    return blob, blob * dx / width**2, blob * dy / width**2


def test_bound_of_a_gaussian_blob_is_the_analytic_one():
    _, d_dx, d_dy = gaussian_blob(torch.tensor([22.5, 20.1]), torch.tensor([22.5, 24.7]))
    std = cramer_rao_std(
        d_dx[:, None].expand(-1, 3, -1, -1).float(),
        d_dy[:, None].expand(-1, 3, -1, -1).float(),
        0.1,
    )
    # The sum of fx^2 over the plane is pi/2 times the squared amplitude, whatever the width.
    expected = 0.1 / math.sqrt(3 * math.pi / 2 * 0.5**2)
    torch.testing.assert_close(std, torch.full((2, 2), expected), rtol=1e-4, atol=0)


def test_bound_is_the_diagonal_of_the_inverse_information():
    d_dx = torch.randn(3, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    d_dy = 0.8 * d_dx + torch.randn(3, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    jacobian = torch.stack((d_dx.flatten(1), d_dy.flatten(1)), dim=2)
    covariance = 0.3**2 * torch.linalg.inv(jacobian.mT @ jacobian)
    expected = covariance.diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(cramer_rao_std(d_dx, d_dy, 0.3), expected)


def test_bound_is_infinite_where_a_crop_says_nothing():
    edge, none = torch.rand(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    assert cramer_rao_std(none, none, 0.1).isinf().all()
    assert cramer_rao_std(none, edge, 0.1).isinf().tolist() == [[True, False]]
    assert cramer_rao_std(edge, -0.7 * edge, 0.1).isinf().all()


def test_maximum_likelihood_reaches_the_bound():
    trials, noise_std = 1000, 0.05
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([[22.9, 21.8]], dtype=torch.float64)
    blob, d_dx, d_dy = gaussian_blob(*true.T)
    noise = torch.randn(trials, 45, 45, generator=generator, dtype=torch.float64)
    seen = blob + noise_std * noise
    guess = torch.full((trials, 2), 22.5, dtype=torch.float64)
    for _ in range(5):  # Gauss-Newton
        template, *slopes = gaussian_blob(*guess.T)
        jacobian = torch.stack(slopes, dim=3).flatten(1, 2)
        residual = (seen - template).flatten(1)[..., None]
        step = torch.linalg.solve(jacobian.mT @ jacobian, jacobian.mT @ residual)
        guess = guess + step[..., 0]
    bound = cramer_rao_std(d_dx[:, None].float(), d_dy[:, None].float(), noise_std)
    ratio = (guess - true).square().mean(dim=0).sqrt() / bound[0]
    assert (ratio - 1).abs().max() < 0.15


def test_a_template_is_gray_band_limited_and_of_the_stated_contrast():
    pictures, boxes = make_template(0.2, seed=0)
    assert (pictures == pictures[..., :1]).all()
    texture = pictures[0, :, :, 0].double() / 255
    assert texture.std().item() == pytest.approx(0.2, rel=0.01)
    cycles = torch.fft.fftfreq(256, d=0.25)  # of a pixel, which is four stored ones
    power = (torch.fft.fft2(texture).abs() / 256**2).square()
    beyond = power[torch.hypot(cycles[:, None], cycles) > 0.181]
    assert beyond.sum() < 2 / (12 * 255**2)  # that of rounding
    assert ((pictures == 0) | (pictures == 255)).float().mean() < 0.005
    assert (boxes[0, 2:] - boxes[0, :2]).tolist() == [120.0, 120.0]


def test_a_template_falls_off_as_one_over_f():
    waves = torch.fft.fftfreq(256) * 256
    length = torch.hypot(waves[:, None], waves)
    long_waves, short_waves = (length >= 2) & (length < 5), (length >= 7) & (length < 11)
    powers = torch.zeros(256, 256)
    for seed in range(4):
        powers += torch.fft.fft2(make_template(0.2, seed)[0][0, :, :, 0].float()).abs().square()
    ratio = (powers[long_waves].mean() / powers[short_waves].mean()).item()
    expected = (length[long_waves] ** -2).mean() / (length[short_waves] ** -2).mean()
    assert ratio == pytest.approx(expected.item(), rel=0.35)  # 4 x 30 free waves of long ones
