import numpy as np
import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.backbones.inputs import Coordinates, TwoScales


def maps_of(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_coordinates_run_from_minus_one_to_one():
    maps = maps_of(2, 3, 5, 9).contiguous(memory_format=torch.channels_last)
    x, y = Coordinates()(maps)[1, 3:]
    np.testing.assert_allclose(x.numpy(), np.tile(np.linspace(-1, 1, 9), (5, 1)), atol=1e-6)
    np.testing.assert_allclose(y.numpy(), np.tile(np.linspace(-1, 1, 5), (9, 1)).T, atol=1e-6)
    assert torch.equal(Coordinates()(maps)[:, :3], maps)
    assert Coordinates()(maps).is_contiguous(memory_format=torch.channels_last)


def test_two_scales_are_the_middle_and_means_of_four_pixels():
    crops = maps_of(2, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    views = TwoScales(12)(crops)
    assert views.shape == (2, 6, 6, 6)
    assert views.is_contiguous(memory_format=torch.channels_last)
    for row in range(6):
        for column in range(6):
            assert torch.equal(views[:, :3, row, column], crops[:, :, 3 + row, 3 + column])
            four = crops.numpy()[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            mean = four.mean(axis=(2, 3))
            np.testing.assert_allclose(views.numpy()[:, 3:, row, column], mean, atol=1e-6)


def test_both_scales_have_the_crops_centre_in_theirs():
    crops = maps_of(1, 3, 12, 12)
    turned = TwoScales(12)(crops.flip(2, 3))
    torch.testing.assert_close(turned, TwoScales(12)(crops).flip(2, 3))


@pytest.mark.parametrize(
    ("size", "near"), [(45, "44 or, .*, 88"), (2, "4 or, .*, 8"), (90, "88 or, .*, 176")]
)
def test_crops_without_a_middle_are_refused(size, near):
    with pytest.raises(BadInput, match=f"those of {size} px have no half.* such as {near}"):
        TwoScales(size)
