"""Any net of a user serves as a backbone: its layer is read, and nothing else is ever called."""

import copy
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from lightning_bbox import BadInput, FeatureExtractor
from lightning_bbox.core.recipes import from_plain

CALLED = []
RAN_ON = "the rest of the net ran"


class Tiny(nn.Module):
    """A user's net: layers in place, normalisation, dropout, odd outputs, an unused layer."""

    def __init__(self, channels=(4, 6), classes=3, fails=False):
        super().__init__()
        CALLED.append(type(channels))
        first, second = channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3), nn.BatchNorm2d(first), nn.ReLU(inplace=True)
        )
        self.block = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(first, second, 3, stride=2))
        self.pair = Pair()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(second, classes)
        self.whole_batch = Mean()
        self.unused = nn.Linear(2, 2)
        self.fails = fails

    def forward(self, crops):
        maps = self.block(self.stem(crops))
        self.pair(maps)
        self.whole_batch(maps)
        logits = self.fc(self.pool(maps).flatten(1))
        if self.fails:
            raise RuntimeError(RAN_ON)
        return logits


class Pair(nn.Module):
    def forward(self, maps):
        return maps, maps


class Mean(nn.Module):
    def forward(self, maps):
        return maps.mean()


class Recurrent(nn.Module):
    """Runs one layer twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, crops):
        return self.conv(self.conv(crops))


class Broken(nn.Module):
    def __init__(self):
        raise OSError(RAN_ON)


def never_to_be_called():
    CALLED.append("never")


TINY = f"{__name__}.Tiny"


def build(layer="block", seed=0, size=15, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FeatureExtractor(TINY, layer, **arguments).build(size)


def draw_crops(num=2, size=15):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "steps", "width"),
    [
        ("stem.0", ["stem.0"], 4 * 13 * 13),
        ("stem", ["stem"], 4 * 13 * 13),
        ("block.1", ["stem", "block"], 6 * 6 * 6),
        ("pool", ["stem", "block", "pool"], 6),
        ("fc", ["stem", "block", "pool", "flatten", "fc"], 3),
        ("", [""], 3),
    ],
)
def test_features_are_the_layers_output_flattened(layer, steps, width):
    net, crops = build(layer), draw_crops()
    plain = copy.deepcopy(net.net)
    for module in plain.modules():
        module._forward_hooks.clear()
    maps = crops
    for step in steps:
        maps = maps.flatten(1) if step == "flatten" else plain.get_submodule(step)(maps)
    assert net.out_features == width
    assert torch.equal(net(crops), maps.flatten(1))
    assert torch.equal(net(crops), net(crops))


@torch.no_grad()
def test_a_layer_behind_it_that_works_in_place_does_not_change_it():
    assert (build("stem.1")(draw_crops()) < 0).any()


def test_nothing_runs_behind_the_layer():
    build("pool", net_args={"fails": True})(draw_crops())
    with pytest.raises(BadInput, match="the rest of the net ran"):
        build("unused", net_args={"fails": True})


@torch.no_grad()
def test_a_layer_that_runs_twice_is_read_at_first():
    net = FeatureExtractor(f"{__name__}.Recurrent", "conv").build(9)
    crops = draw_crops(size=9)
    expected = nn.functional.conv2d(crops, net.net.conv.weight, net.net.conv.bias, padding=1)
    torch.testing.assert_close(net(crops), expected.flatten(1))


def test_of_a_net_that_is_not_frozen_that_learns_which_the_layer_depends_on():
    net = build("block", frozen=False)
    assert net.training
    assert net.net.block[0].training
    assert net.net.stem[1].num_batches_tracked == 0
    crops = draw_crops()
    assert not torch.equal(net(crops), net(crops))
    net(crops).sum().backward()
    learning = {name for name, weights in net.net.named_parameters() if weights.requires_grad}
    assert learning == {
        *("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"),
        *("block.1.weight", "block.1.bias"),
    }
    for name, weights in net.net.named_parameters():
        assert (weights.grad is not None) == (name in learning)
    with torch.no_grad():
        assert build("block", frozen=False).net.stem[0].weight.requires_grad


def test_a_layer_without_weights_before_it_leaves_nothing_to_learn():
    net = FeatureExtractor("torch.nn.Flatten", "", frozen=False).build(5)
    assert net.out_features == 75
    assert not list(net.parameters())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("builtins.dict", "names builtins.dict, which isn't derived from Module"),
        (f"{__name__}.TINY", "which isn't derived from Module; it isn't built"),
        (f"{__name__}.Tinny", f"needs {__name__}.Tinny, which can't be imported here"),
        ("no_such_package.Net", "FeatureExtractor net needs no_such_package.Net, which can't be"),
        ("Net", "needs Net, which can't be imported here"),
        ("", "needs , which can't be imported here"),
    ],
)
def test_of_classes_only_nets_are_ever_called(net, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        FeatureExtractor(net, "fc")
    recipe = FeatureExtractor(TINY, "fc").recipe()
    recipe["init_args"]["net"] = net
    with pytest.raises(
        BadInput, match=re.escape(message) if "package" not in net else "may not have no_such"
    ):
        from_plain(recipe)
    assert "never" not in CALLED


def test_a_module_that_fails_at_import_is_refused(tmp_path, monkeypatch):
    (tmp_path / "failing_package.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"imported here \(operator does not exist\)"):
        FeatureExtractor("failing_package.Net", "fc")


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (TINY, {"layer": "blok.1"}, r"Tiny has no layer 'blok.1'; the nearest names are 'block.1'"),
        ("torch.nn.Flatten", {"layer": "x"}, "Flatten has no layer 'x'; the nearest names are ''"),
        (TINY, {"layer": "unused"}, "'unused' of .*Tiny makes nothing; name one that makes one"),
        (TINY, {"layer": "pair"}, "layer 'pair' of .*Tiny makes a tuple; name one that makes"),
        (TINY, {"layer": "whole_batch"}, r"makes a tensor of shape \[\] for 5 crops; name one"),
        (TINY, {"layer": "fc", "net_args": {"classes": 2, "clases": 2}}, "can't be made with net_"),
        (
            f"{__name__}.Broken",
            {"layer": ""},
            r"can't be made with net_args {} \(the rest of the net ran",
        ),
        ("torch.nn.Flatten", {"layer": "", "net_args": {"start_dim": 0}}, r"shape \[3375\] for 5"),
    ],
)
def test_what_can_not_serve_is_refused(net, arguments, message):
    with pytest.raises(BadInput, match=message):
        FeatureExtractor(net, **arguments).build(15)


def test_crops_that_the_net_does_not_take_are_refused():
    with pytest.raises(BadInput, match=r"Tiny can't take crops of 3 px .*set data\.crop\.size"):
        build(size=3)


def test_arguments_that_are_not_plain_are_refused():
    with pytest.raises(BadInput, match="net_args is a function, which a checkpoint can't keep"):
        build(net_args={"classes": never_to_be_called})


@torch.no_grad()
def test_weights_are_taken_over_by_name(tmp_path):
    path, expected = tmp_path / "a.pth", build(seed=1)
    torch.save(expected.net.state_dict(), path)
    net, crops = build(weights=str(path)), draw_crops()
    assert not torch.equal(net(crops), expected(crops))
    net.load_pretrained()
    assert torch.equal(net(crops), expected(crops))
    without = build()
    without.load_pretrained()  # nothing: it stays as its class made it
    assert torch.equal(without(crops), build()(crops))


def test_weights_of_another_net_are_refused(tmp_path):
    other = build(net_args={"classes": 7}).net.state_dict()
    torch.save(other, tmp_path / "a.pth")
    del other["stem.1.num_batches_tracked"]
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in other.items()})
    for name, message in {
        "a.pth": r"a\.pth: fc\.weight has shape \[7, 6\], the net's has \[3",
        "a.npz": r"a\.npz: lacks stem\.1\.num_batches_tracked; give",
        "nowhere.pth": "no such file of weights",
    }.items():
        with pytest.raises(BadInput, match=message):
            build(weights=str(tmp_path / name)).load_pretrained()


def test_the_recipe_rebuilds_the_same_net_from_the_same_kinds_of_arguments():
    net = build(net_args={"channels": (5, 7), "classes": 2}, frozen=False)
    assert CALLED[-1] is list
    again = from_plain(net.recipe())
    assert again.recipe() == net.recipe()
    again.build(15).load_state_dict(net.state_dict())
    assert CALLED[-1] is list
    assert torch.equal(again.eval()(draw_crops()), net.eval()(draw_crops()))


@torch.no_grad()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))]
)
def test_copies_read_their_own_layer(duplicate):
    net, crops = build(), draw_crops()
    expected, again = net(crops), duplicate(net)
    again.net.stem[0].weight.zero_()
    assert torch.equal(net(crops), expected)
    assert not torch.equal(again(crops), expected)


@torch.no_grad()
@pytest.mark.usefixtures("exporting")
@pytest.mark.parametrize("layer", ["stem.1", "block"])
def test_it_exports_though_the_rest_of_the_net_runs_then(layer):
    net, crops = build(layer), draw_crops()
    exported = torch.export.export(net, (crops,)).module()
    torch.testing.assert_close(exported(crops), net(crops))


@torch.no_grad()
def test_threads_each_get_the_features_of_their_own_crops():
    net, crops = build("stem.0"), draw_crops(4)
    expected = [net(crops[at : at + 1]) for at in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many changes of threads as can be
    try:
        with ThreadPoolExecutor(4) as pool:
            walks = [at for _ in range(300) for at in range(4)]
            found = list(pool.map(lambda at: net(crops[at : at + 1]), walks))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(one, expected[at]) for at, one in zip(walks, found, strict=True))


def test_hooks_of_others_see_what_runs_before_the_layer():
    net, seen = build("block"), []
    for name, module in net.net.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    net(draw_crops())
    assert seen == ["stem.0", "stem.1", "stem.2", "stem", "block.0", "block.1"]
