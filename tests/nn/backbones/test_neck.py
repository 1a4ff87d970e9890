"""Necks: tokens laid out, maps averaged, channels mixed, of one layer or several."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from lightning_bbox import BadInput, FeatureExtractor, Neck
from lightning_bbox.core.recipes import from_plain


class Pyramid(nn.Module):
    """Maps of three sizes, of which later ones change the earlier in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.third = nn.Linear(6, 2)

    def forward(self, crops):
        maps = self.second(self.first(crops).relu_())
        return self.third(maps.mean((2, 3)))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def extractor(layer, neck=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeatureExtractor(f"{__name__}.Pyramid", layer, neck=neck, **options).build(12)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("layers", [["first", "second"], ["second", "first"], ["third", "first"]])
def test_several_layers_are_read_in_the_order_they_are_named(layers):
    net, crops = extractor(layers), draw(3, 3, 12, 12)
    made = {"first": net.net.first(crops)}
    made["second"] = net.net.second(made["first"].relu())
    made["third"] = net.net.third(made["second"].mean((2, 3)))
    expected = torch.cat([made[layer].flatten(1) for layer in layers], dim=1)
    assert net(crops).equal(expected)
    assert net.out_features == expected.shape[1]


@torch.no_grad()
def test_maps_are_averaged_over_a_grid_and_lie_on_each_other():
    net, crops = extractor(["first", "second"], Neck(grid=3)), draw(2, 3, 12, 12)
    first = net.net.first(crops)
    maps = [each.numpy() for each in (first, net.net.second(first.relu()))]
    expected = np.zeros((2, 10, 3, 3), np.float32)
    for row in range(3):
        for column in range(3):
            means = []
            for each in maps:
                side = each.shape[2] // 3
                cell = each[
                    :, :, row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                means.append(cell.mean((2, 3)))
            expected[:, :, row, column] = np.concatenate(means, axis=1)
    np.testing.assert_allclose(net(crops).numpy(), expected.reshape(2, -1), atol=1e-5)
    assert net.map_shape == (10, 3, 3)


@torch.no_grad()
def test_channels_are_mixed_at_each_place_alike():
    neck = Neck(channels=2)
    neck.build([draw(4, 3, 5, 5)])
    maps = draw(4, 3, 5, 5)
    mixed = neck([maps]).view(4, 2, 5, 5).numpy()
    weight, bias = neck.mix.weight[:, :, 0, 0].numpy(), neck.mix.bias.numpy()
    expected = np.einsum("oc,bchw->bohw", weight, maps.numpy()) + bias[:, None, None]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 5])
def test_tokens_are_laid_out_row_by_row(first):
    tokens = draw(3, first + 16, 7)
    neck = Neck(tokens=first)
    neck.build([tokens])
    assert neck.map_shape == (7, 4, 4)
    maps = neck([tokens]).view(3, 7, 4, 4)
    for row in range(4):
        for column in range(4):
            assert maps[:, :, row, column].equal(tokens[:, first + 4 * row + column])


def test_a_neck_that_does_nothing_flattens():
    neck, output = Neck(), draw(2, 3, 4, 4)
    neck.build([output])
    assert neck([output]).equal(output.flatten(1))
    assert not list(neck.parameters())
    assert neck.map_shape == (3, 4, 4)


@torch.no_grad()
def test_the_recipe_rebuilds_layers_and_neck():
    net = extractor(["first", "second"], Neck(grid=2, channels=3), frozen=False)
    again = from_plain(net.recipe()).build(12)
    again.load_state_dict(net.state_dict())
    assert again.eval()(draw(2, 3, 12, 12)).equal(net(draw(2, 3, 12, 12)))
    assert again.recipe() == net.recipe()


@pytest.mark.parametrize(
    ("neck", "shape", "message"),
    [
        (
            Neck(grid=3),
            (5, 8),
            "averages maps (channels, height, width) of at least that size, and",
        ),
        (Neck(grid=9), (5, 8, 4, 4), "a layer makes [8, 4, 4] for a crop; lower it"),
        (Neck(tokens=1), (5, 16, 8), "Neck tokens 1 leaves out so many of the tokens"),
        (Neck(tokens=0), (5, 8, 4, 4), "and a layer makes [8, 4, 4] for a crop; correct it"),
        (Neck(channels=2), (5, 8), "the layers make [8] for a crop; set grid"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(neck, shape, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        neck.build([draw(*shape)])


@pytest.mark.parametrize("options", [{"tokens": -1}, {"grid": 0}, {"channels": 0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BadInput, match=r"Neck \w+ is -?\d; expected \d or more"):
        Neck(**options)


@torch.no_grad()
def test_threads_read_several_layers_of_their_own_crops():
    net, crops = extractor(["first", "second"]), draw(4, 3, 12, 12)
    expected = [net(crops[at : at + 1]) for at in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many changes of threads as can be
    try:
        with ThreadPoolExecutor(4) as pool:
            walks = [at for _ in range(200) for at in range(4)]
            found = list(pool.map(lambda at: net(crops[at : at + 1]), walks))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(one, expected[at]) for at, one in zip(walks, found, strict=True))


@torch.no_grad()
@pytest.mark.usefixtures("exporting")
def test_several_layers_export():
    net, crops = extractor(["first", "second"], Neck(grid=2)), draw(2, 3, 12, 12)
    exported = torch.export.export(net, (crops,)).module()
    torch.testing.assert_close(exported(crops), net(crops))


@torch.no_grad()
@pytest.mark.compile
def test_several_layers_compile():
    net, crops = extractor(["first", "second"], Neck(grid=2)), draw(2, 3, 12, 12)
    expected = net(crops)
    net.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(net(crops), expected)
