"""Nets made by functions, as packages of pretrained nets have them: stand-ins of their signatures.

timm and torchvision can't live beside a CPU build of torch from their own registry; what is called
here has the names, arguments and outputs of theirs. `torch.hub.load` is the real one.
"""

import re
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from lightning_bbox import BadInput, BinHead, BoxRegressor, FeatureExtractor, Neck, Refiner
from lightning_bbox.cli.main import main
from lightning_bbox.core.recipes import _CALLS_BY_PERSONS, from_plain
from tests.runs import SCENES, TINY, fit, scenes, trained_quietly

CALLS = []


class EfficientNet(nn.Module):
    """The names of efficientnet_lite_pytorch's, small."""

    def __init__(self):
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self._blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))

    def forward(self, crops):
        maps = self._conv_stem(crops)
        for block in self._blocks:
            maps = block(maps).relu()
        return maps

    @classmethod
    def from_name(cls, model_name, override_params=None):  # noqa: ARG003 (theirs)
        CALLS.append(model_name)
        return cls()


class ResNet(nn.Module):
    """The names of torchvision's and timm's resnets, small."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.layer2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, crops):
        maps = self.layer2(self.layer1(self.bn1(self.conv1(crops)).relu()).relu_()).relu_()
        return self.fc(maps.mean((2, 3)))


class ViT(nn.Module):
    """The names of timm's ViT: a class token before those of the patches."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, crops):
        tokens = self.patch_embed(crops).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1))[:, 0]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # noqa: ARG003 (theirs)
        return pretrained(cls(), pretrained_model_name_or_path)


def pretrained(net, name):
    CALLS.append(name)
    for weight in net.parameters():
        nn.init.constant_(weight, 0.25)
    return net


def create_model(model_name, pretrained=False, num_classes=5, **kwargs):
    """As timm.create_model."""
    if kwargs:
        msg = f"got an unexpected keyword argument {next(iter(kwargs))!r}"
        raise TypeError(msg)
    kinds = {"resnet18": lambda: ResNet(num_classes), "vit_tiny_patch16_224": ViT}
    if model_name not in kinds:
        msg = f"Unknown model ({model_name})"
        raise RuntimeError(msg)
    net = kinds[model_name]()
    return globals()["pretrained"](net, model_name) if pretrained else net


def resnet18(*, weights=None, progress=True, **kwargs):  # noqa: ARG001 (theirs)
    """As torchvision.models.resnet18."""
    net = ResNet(**kwargs)
    return pretrained(net, weights) if weights is not None else net


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """Packages as they would be installed, known to nobody yet."""
    for name, content in {
        "timm": {"create_model": create_model, "version": lambda: "1.0"},
        "torchvision": {},
        "torchvision.models": {"resnet18": resnet18},
        "transformers": {"ViTModel": ViT},
        "efficientnet_lite_pytorch": {"EfficientNet": EfficientNet},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    _CALLS_BY_PERSONS.clear()
    CALLS.clear()


@pytest.fixture
def hub(tmp_path):
    """A repository of torch.hub."""
    (tmp_path / "hub").mkdir()
    source = f"from {__name__} import ResNet\n\ndef small():\n    return ResNet()\n"
    (tmp_path / "hub" / "hubconf.py").write_text(source)
    return str(tmp_path / "hub")


def crops_of(count=2, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


FACTORIES = {
    "timm": lambda _: ("timm.create_model", {"model_name": "resnet18"}, {"pretrained": True}),
    "torchvision": lambda _: ("torchvision.models.resnet18", {}, {"weights": "DEFAULT"}),
    "hub": lambda hub: (
        "torch.hub.load",
        {"repo_or_dir": hub, "model": "small", "source": "local"},
        {"verbose": False},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", FACTORIES)
def test_a_function_makes_the_net_and_weights_are_asked_for_once(kind, hub):
    path, arguments, with_weights = FACTORIES[kind](hub)
    extractor = FeatureExtractor(
        path, "layer1", arguments, frozen=False, pretrained_args=with_weights
    )
    extractor.build(32)
    assert CALLS == []
    extractor.load_pretrained()
    if kind != "hub":
        assert len(CALLS) == 1
        assert all(bool((weight == 0.25).all()) for weight in extractor.net.parameters())
    assert extractor.eval()(crops_of()).shape == (2, 6 * 8 * 8)
    again = from_plain(extractor.recipe()).build(32)  # a person named it in this process
    again.load_state_dict(extractor.state_dict())
    assert len(CALLS) <= 1
    assert again.eval()(crops_of()).equal(extractor(crops_of()))


@torch.no_grad()
def test_a_method_of_a_class_makes_the_net():
    arguments = {"pretrained_model_name_or_path": "google/vit"}
    neck = Neck(tokens=1)
    extractor = FeatureExtractor(
        "transformers.ViTModel.from_pretrained", "blocks.0", arguments, neck=neck
    ).build(32)
    assert CALLS == ["google/vit"]
    assert extractor.map_shape == (8, 4, 4)
    tokens = extractor.net.patch_embed(crops_of())
    expected = extractor.net.blocks[0].forward(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(extractor(crops_of()), expected.flatten(1))


WRONG = {
    "timm.create_model can't be made with net_args {'model_name': 'resnet19'} (Unknown model": (
        "timm.create_model", {"model_name": "resnet19"},
    ),
    "got an unexpected keyword argument 'depth'); give the arguments that it takes": (
        "timm.create_model", {"model_name": "resnet18", "depth": 3},
    ),
    "timm.version makes a str; name what makes a torch.nn.Module": ("timm.version", {}),
    "needs timm.create_modell, which can't be imported here": ("timm.create_modell", {}),
    "needs open_clip.create_model, which can't be imported here (No module named 'open_clip')": (
        "open_clip.create_model", {},
    ),
    "needs transformers.ViTModel.of, which can't be imported": ("transformers.ViTModel.of", {}),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_makes_no_net_is_refused_in_a_sentence(message):
    path, arguments = WRONG[message]
    with pytest.raises(BadInput, match=re.escape(message)):
        FeatureExtractor(path, "layer1", arguments).build(32)


def test_a_package_that_breaks_beside_this_torch_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_vision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"imported here \(operator torchvision::nms does not exist"):
        FeatureExtractor("broken_vision.models.resnet18", "layer1")


def test_a_file_has_no_function_called_that_nobody_named():
    recipe = FeatureExtractor("timm.create_model", "layer1", {"model_name": "resnet18"}).recipe()
    assert from_plain(recipe)
    other = recipe | {"init_args": recipe["init_args"] | {"net_args": {"model_name": "../evil"}}}
    system = recipe | {"init_args": {"net": "os.system", "layer": "", "net_args": {"command": "a"}}}
    for lying, trust in ((other, "timm"), (system, "os")):
        with pytest.raises(
            BadInput, match=rf"called, which a file may not have.*trust=\['{trust}'"
        ):
            from_plain(lying)
    with pytest.raises(BadInput, match=r"trust=\['os'\]"):
        from_plain(system, trust=["timm"])
    assert from_plain(other, trust=["timm"])


def test_a_run_with_a_function_is_applied_by_who_trusts_it(tmp_path, csv_folder):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "model:\n  class_path: BoxRegressor\n  init_args:\n    backbone:\n"
        "      class_path: FeatureExtractor\n      init_args:\n        net: timm.create_model\n"
        "        layer: [layer1, layer2]\n        net_args: {model_name: resnet18}\n"
        "        pretrained_args: {pretrained: true}\n"
        "        neck: {class_path: Neck, init_args: {grid: 4, channels: 5}}\n"
    )
    base = [each for each in SCENES if "model.backbone" not in each]
    folder = fit(tmp_path, "run", f"--config={config}", "--trainer.max_epochs=1", base=base)
    assert CALLS == ["resnet18"]
    _CALLS_BY_PERSONS.clear()  # as in another process
    with pytest.raises(BadInput, match=r"timm\.create_model called, .*pass trust=\['timm'\]"):
        Refiner(folder)
    assert Refiner(folder, trust=["timm"])
    predict = [
        "predict",
        f"--ckpt_path={folder}",
        f"--data.root={csv_folder}",
        f"--runs={tmp_path}",
    ]
    assert main([*predict, "--name=p", "--data.compile=false"]) == 0  # its config.yaml names it
    assert CALLS == ["resnet18"]


# Weights of files.


def saved(tmp_path, change):
    weights = change(ResNet().state_dict())
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", None])
def test_weights_of_a_larger_model_are_found_by_their_prefix(key, tmp_path):
    def wrapped(state):
        named = {f"module.net.{name}": value + 1 for name, value in state.items()}
        named |= {"module.head.weight": torch.ones(2)}
        return named if key is None else {key: named}

    path = saved(tmp_path, wrapped)
    net = FeatureExtractor(f"{__name__}.ResNet", "layer1", weights=path, prefix="module.net.")
    net.build(32)
    net.load_pretrained()
    read = torch.load(path, weights_only=True)
    read = read if key is None else read[key]
    for name, value in net.net.state_dict().items():
        assert value.equal(read[f"module.net.{name}"])


def test_what_a_file_leaves_is_told_where_it_may(tmp_path, capsys):
    def other(state):
        del state["bn1.bias"]
        return state | {"fc.weight": torch.ones(7, 8), "extra": torch.ones(1)}

    path = saved(tmp_path, other)
    strict = FeatureExtractor(f"{__name__}.ResNet", "layer1", weights=path).build(32)
    with pytest.raises(BadInput, match="holds extra, which the net lacks"):
        strict.load_pretrained()
    net = FeatureExtractor(f"{__name__}.ResNet", "layer1", weights=path, strict=False).build(32)
    own = net.net.fc.weight.clone()
    net.load_pretrained()
    said = capsys.readouterr()
    sentence = (
        f"weights {path}: 11 of the net's 13 taken; as it was made: bn1.bias, fc.weight; "
        f"left out of the file: fc.weight, extra"
    )
    assert sentence in said.out + said.err
    assert net.net.fc.weight.equal(own)
    assert net.net.conv1.weight.equal(torch.load(path, weights_only=True)["conv1.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "net."}, "holds no name that begins with 'net.', but such as conv1.weight"),
        (
            {"prefix": "conv1.", "strict": False},
            "holds no weight of the net's; it has weight, bias",
        ),
    ],
)
def test_weights_that_fit_nowhere_are_refused(options, message, tmp_path):
    path = saved(tmp_path, dict)
    net = FeatureExtractor(f"{__name__}.ResNet", "layer1", weights=path, **options).build(32)
    with pytest.raises(BadInput, match=re.escape(message)):
        net.load_pretrained()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": []}, "layer is []; name one, or several that differ"),
        ({"layer": ["fc", "fc"]}, "layer is ['fc', 'fc']; name one"),
        ({"prefix": "a"}, "prefix and strict say how a file of weights is read, and there is none"),
        ({"strict": False}, "prefix and strict say how a file of weights is read"),
        ({"weights": "a.pth", "pretrained_args": {"a": 1}}, "both say what the net begins with"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        FeatureExtractor(f"{__name__}.ResNet", **({"layer": "fc"} | options))


# A learning neck on a frozen net.


@pytest.mark.filterwarnings("ignore:Found 6 module")  # the frozen net's: so they are to be
def test_a_neck_learns_on_a_net_that_stays():
    neck = Neck(grid=3, channels=5)
    backbone = FeatureExtractor(f"{__name__}.ResNet", ["layer1", "layer2"], neck=neck)
    model = BoxRegressor(backbone, BinHead(), compile=False)
    trained_quietly(model, scenes(), max_epochs=1)
    fresh = BoxRegressor(from_plain(backbone.recipe()), BinHead(), compile=False)
    fresh.build(model.spec, seed=0)
    assert model.net.backbone.map_shape == (5, 3, 3)
    for name, value in fresh.net.backbone.state_dict().items():
        now = model.net.backbone.state_dict()[name]
        assert now.equal(value) == name.startswith("net."), name
    assert not model.net.backbone.net.training
    assert not any(weight.requires_grad for weight in model.net.backbone.net.parameters())


def test_the_preset_for_few_boxes_begins_with_weights_of_other_pictures(
    csv_folder, tmp_path, capsys
):
    command = ["-c", "preset:csv", "-c", "preset:small_pretrained", f"--data.root={csv_folder}"]
    assert main(["fit", *command, f"--runs={tmp_path}", "--name=without"]) == 2
    assert "efficientnet-lite0-57934424.pth" in capsys.readouterr().err
    path = tmp_path / "net.pth"
    torch.save(pretrained(EfficientNet(), "").state_dict(), path)
    base = ["fit", *command, f"--model.backbone.weights={path}", *TINY[:7]]
    folder = fit(tmp_path, "run", "--model.optimizer.lr=1e-9", base=base)
    assert CALLS[-1] == "efficientnet-lite0"
    model = BoxRegressor.load_from_checkpoint(
        folder / "checkpoints" / "last.ckpt", trust=[__name__]
    )
    learned = [model.net.backbone.net._blocks[at].weight for at in range(6)]
    assert [weight.requires_grad for weight in learned] == [True] * 5 + [False]  # not read
    torch.testing.assert_close(learned[4], torch.full_like(learned[4], 0.25), atol=1e-4, rtol=0)
