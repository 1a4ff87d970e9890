"""The pyramid's rule, beside exact means of regions: by weights, by pixels, and at the edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_bbox.pictures.pyramid import (
    MOST_LEVELS,
    cut_picture,
    halved_picture,
    level_sides,
    level_starts,
    levels_for,
    num_levels,
    reaches,
    regions,
    shrinks,
    taps,
)
from tests.crops import NOT_FINITE, close, made_up_picture

SHRINKS = np.geomspace(1, 24, 40)
"""Of 40 sizes of boxes, from the crop's own size up."""


def square_box(shrink, size, center):
    half = shrink * size / 2
    return (center - half, center - half, center + half, center + half)


def mean_weights(low, high, count):
    """Return the weight of each pixel of a row in the exact mean from one place to another."""
    pixels = np.arange(count)
    return np.clip(np.minimum(pixels + 1, high) - np.maximum(pixels, low), 0, None) / (high - low)


def region_means(picture, box, size):
    """Return the exact means of a crop's regions, in NumPy; the border repeats outside."""
    x1, y1, x2, y2 = box
    margin = int(np.ceil(max(0, -x1, -y1, x2 - picture.shape[1], y2 - picture.shape[0])))
    padded = np.pad(picture.astype(float), ((margin,) * 2, (margin,) * 2, (0, 0)), mode="edge")
    sides = []
    for low, high, count in ((y1, y2, padded.shape[0]), (x1, x2, padded.shape[1])):
        edges = low + margin + np.arange(size + 1) * (high - low) / size
        pairs = [sorted(pair) for pair in pairwise(edges)]
        sides.append(np.array([mean_weights(*pair, count) for pair in pairs]))
    return sides[0] @ np.moveaxis(padded, -1, 0) @ sides[1].T / 255


def seen_weights(shrink, size, count, center):
    """Return what our crop pixels weigh each pixel of a row by: levels and taps written out."""
    low, _, high, _ = box = square_box(shrink, size, center)
    boxes, side = torch.tensor([box], dtype=torch.float64), torch.tensor([count])
    level = levels_for(boxes, size, side, side)
    reach, wide = reaches(boxes, size, level)[0, :1], 2 ** int(level)
    index, weights = taps(
        torch.tensor([low / wide]), torch.tensor([high / wide]), reach,
        level_sides(side)[:, int(level)], size,
    )  # fmt: skip
    found = np.zeros((size, count))
    for tap in range(4):
        for pixel in range(size):
            at = int(index[0, tap, pixel]) * wide
            found[pixel, at : at + wide] += float(weights[0, tap, pixel]) / wide
    return found


def figures_of(weights, shrink, centers):
    """Return the noise left, the spread, and the energy above the crop's Nyquist limit."""
    pixels = np.arange(weights.shape[1]) + 0.5
    noise = (weights**2).sum(axis=1).mean()  # of a side; the deviation of both is its own square
    spread = (weights * (pixels - centers[:, None]) ** 2).sum(axis=1).mean() ** 0.5
    spectrum = (np.abs(np.fft.rfft(weights, 4096, axis=1)) ** 2).mean(axis=0)
    below = np.fft.rfftfreq(4096) <= 1 / (2 * shrink)
    return noise, spread, 1 - (spectrum[below].sum() / spectrum.sum()) ** 2, spectrum.sum() ** 2


@pytest.mark.parametrize("shrink", SHRINKS)
def test_what_a_crop_pixel_sees_is_like_the_exact_mean_of_its_region(shrink):
    size, count, center = 31, 1024, 511.37
    low = center - shrink * size / 2
    edges = low + shrink * np.arange(size + 1)
    exact = np.array([mean_weights(*pair, count) for pair in pairwise(edges)])
    centers = (edges[1:] + edges[:-1]) / 2
    ours = figures_of(seen_weights(shrink, size, count, center), shrink, centers)
    mean = figures_of(exact, shrink, centers)
    assert 0.75 <= ours[0] / mean[0] <= 1.25
    assert 0.85 <= ours[1] / mean[1] <= 1.15
    assert ours[2] * ours[3] <= 1.5 * mean[2] * mean[3] + 1e-9


@pytest.mark.parametrize("shrink", SHRINKS[::3])
def test_the_noise_of_a_white_picture_is_lowered_as_by_exact_means(shrink):
    picture = np.random.default_rng(1).normal(128, 30, (700, 700, 3)).clip(0, 255).astype(np.uint8)
    box = square_box(shrink, 28, 348.3)
    (crop,) = cut_picture(torch.from_numpy(picture), torch.tensor([box]).float(), 28)
    exact = region_means(picture, box, 28)
    assert 0.75 <= float(crop.std()) / exact.std() <= 1.25
    assert np.corrcoef(crop.flatten(), exact.ravel())[0, 1] > 0.75


@pytest.mark.parametrize("aspect", [1, 2, 0.4])
@pytest.mark.parametrize("shrink", [1, 1.3, 2, 3, 4.7, 9, 17])
def test_crops_of_a_smooth_picture_are_the_means_of_their_regions(shrink, aspect):
    x, y = np.arange(431), np.arange(397)[:, None]
    waves = [np.sin(x / 31 + y / 47), np.cos(x / 40 - y / 23), np.sin(x / 17) * np.cos(y / 29)]
    picture = np.uint8(np.rint(127.5 + 120 * np.stack(waves, axis=-1)))
    wide, high = 8 * shrink * aspect**0.5, 8 * shrink / aspect**0.5
    boxes = [(190.3 - wide, 170.8 - high, 190.3 + wide, 170.8 + high)]
    x1, y1, x2, y2 = boxes[0]
    boxes += [(x2, y1, x1, y2), (x1 - 150, y1 - 140, x2 - 150, y2 - 140)]
    crops = cut_picture(torch.from_numpy(picture), torch.tensor(boxes).float(), 16)
    for crop, box in zip(crops, boxes, strict=True):
        exact = region_means(picture, sorted_box(box), 16)
        exact = exact[..., ::-1] if box[0] > box[2] else exact
        inside = exact if box[0] > 0 and box[1] > 0 else exact[:, 8:, 8:]
        kept = crop.numpy() if box[0] > 0 and box[1] > 0 else crop.numpy()[:, 8:, 8:]
        assert np.abs(kept - inside).max() < 0.04


def sorted_box(box):
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


@pytest.mark.parametrize(("shrink", "level"), [(1, 0), (2.1, 0), (3.4, 1), (6.9, 2), (13.4, 3)])
@pytest.mark.parametrize("shape", [(128, 128), (127, 125), (113, 121)])
def test_on_every_level_a_ramp_shows_where_each_crop_pixel_lies(shrink, level, shape):
    """Two grey levels a pixel: then all means of 2 x 2 are whole numbers, on all levels."""
    picture = torch.zeros(*shape, 3, dtype=torch.uint8)
    picture[..., 0] = 2 * torch.arange(shape[1]).clamp(max=127)
    picture[..., 1] = 2 * torch.arange(shape[0])[:, None].clamp(max=127)
    box = x1, y1, x2, y2 = square_box(shrink, 8, 57.3)
    boxes = torch.tensor([box, (x2, y2, x1, y1)]).float()
    sides = (torch.full((2,), side) for side in shape)
    assert levels_for(boxes, 8, *sides).tolist() == [level] * 2
    crops = 255 * cut_picture(picture, boxes, 8)
    places = 2 * (x1 + (torch.arange(8) + 0.5) / 8 * (x2 - x1) - 0.5)
    inside = slice(2, 6) if level == 3 else slice(1, 7)  # away from the picture's border
    for crop, expected in zip(crops, (places, places.flip(0)), strict=True):
        close(crop[0, :, inside], expected[inside].expand(8, -1), atol=2e-3)
        close(crop[1, inside], expected[inside, None].expand(-1, 8), atol=2e-3)


def test_halves_are_rounded_means_and_an_odd_edge_counts_twice():
    picture = made_up_picture(7, 10)
    half = halved_picture(torch.from_numpy(picture)).numpy()
    padded = np.pad(picture.astype(float), ((0, 1), (0, 0), (0, 0)), mode="edge")
    expected = np.rint(padded.reshape(4, 2, 5, 2, 3).mean(axis=(1, 3)))
    np.testing.assert_array_equal(half, expected)


def test_a_row_of_pixels_is_cut_like_as_many_equal_rows():
    row = torch.from_numpy(made_up_picture(1, 200))
    boxes = torch.tensor([[10.0, -3, 150, 5], [-20, -90, 190, 80], [3, 0, 12, 1], [180, 0, 20, 1]])
    close(cut_picture(row, boxes, 9), cut_picture(row.expand(200, -1, -1), boxes, 9), atol=1e-6)
    turned, upright = boxes[:, [1, 0, 3, 2]], row.transpose(0, 1)
    close(cut_picture(upright, turned, 9), cut_picture(row, boxes, 9).transpose(2, 3), atol=1e-6)


def test_levels_lie_one_after_another_down_to_a_single_pixel():
    heights, widths = torch.tensor([1, 6, 480, 70_000]), torch.tensor([1, 9, 640, 1])
    assert num_levels(heights, widths).tolist() == [1, 5, 11, MOST_LEVELS]
    starts, sides = level_starts(heights, widths), (level_sides(heights), level_sides(widths))
    for number, levels in enumerate((1, 5, 11, MOST_LEVELS)):
        place = 0
        for level in range(MOST_LEVELS):
            assert starts[number, level] == place
            high, wide = (int(side[number, level]) for side in sides)
            assert high == -(-int(heights[number]) // 2**level)
            assert wide == -(-int(widths[number]) // 2**level)
            place += high * wide if level < levels else 0
        assert starts[number, -1] == place


def test_boxes_of_the_crops_size_take_a_single_sample_and_those_that_are_not_finite_level_0():
    boxes = torch.tensor([*NOT_FINITE[:1], (3.2, 4, 12.2, 13), (12.2, 13, 3.2, 4)])
    sides = torch.full((3,), 50, dtype=torch.int32)
    place = regions(torch.zeros(3).long(), sides, sides, boxes, 9)
    assert place.offsets.tolist() == [0, 0, 0]
    assert place.reach.tolist() == [[0, 0]] * 3
    assert torch.equal(place.boxes[1:], boxes[1:])
    close(shrinks(boxes[1:], 9), torch.ones(2, 2))
    every = torch.tensor(NOT_FINITE)
    sides = torch.full((len(every),), 50, dtype=torch.int32)
    levels = levels_for(every, 9, sides, sides)
    assert ((levels >= 0) & (levels < num_levels(sides, sides))).all()
