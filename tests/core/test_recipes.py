import copy
import enum
import inspect
import io
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import (
    Part,
    Recipe,
    from_plain,
    to_plain,
    with_public_paths,
)
from lightning_bbox.geometry.codecs import (
    DeltaCodec,
    FixedStdCodec,
    MaxShiftCodec,
    MeanStdCodec,
    OffsetSpec,
    PixelCodec,
)
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.nn.backbones.convnet import ShallowConvNet
from lightning_bbox.nn.box_losses import CIoULoss, DIoULoss, GIoULoss, IoULoss
from lightning_bbox.nn.heads.bins.decoders import (
    ArgmaxDecoder,
    ExpectationDecoder,
    MeanShiftDecoder,
    MedianDecoder,
    ModeDecoder,
)
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.heads.bins.labels import (
    GaussianLabels,
    OneHotLabels,
    SmoothedLabels,
    TwoHotLabels,
)
from lightning_bbox.nn.heads.bins.links import (
    CumulativeLink,
    IndependentLink,
    SoftmaxLink,
    TreeLink,
)
from lightning_bbox.nn.heads.bins.losses import (
    AttributeHinge,
    BinaryCrossEntropy,
    CrossEntropy,
    StructuredHinge,
    WestonWatkinsHinge,
)
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.heads.soft_argmax import SoftArgmaxHead
from lightning_bbox.nn.inits import (
    FanInInit,
    GlorotInit,
    HeInit,
    NormalInit,
    SparseInit,
    ZeroInit,
)
from lightning_bbox.nn.losses import (
    CharbonnierLoss,
    HuberLoss,
    L1Loss,
    L2Loss,
    LogCoshLoss,
    SmoothL1Loss,
)
from lightning_bbox.nn.preprocess import ChannelNorm, MeanNorm, RangeNorm
from lightning_bbox.nn.regularizers import ElasticNet, L1Penalty, L2Penalty, MaxNorm
from lightning_bbox.nn.schedules import Constant, Cosine, OneCycle
from lightning_bbox.nn.whitening import PCA, PCAWhitening, ZCAWhitening
from tests.parts import spec_with


class Wrapper(Part):
    """A part of parts, with every way of passing an argument."""

    def __init__(self, first, *, parts=(), options=None):
        super().__init__()
        self.first, self.parts, self.options = first, nn.ModuleList(parts), options


class Color(enum.StrEnum):
    RED = "red"


PARTS = [
    ChannelNorm(),
    ShallowConvNet((8, 16), 5, (1, 2), downsample="max", fc=(), dropout=0.25),
    LinearHead(SmoothL1Loss(beta=1 / 9)),
    LinearHead(),
    LinearHead(CIoULoss(), activation="tanh"),
    SoftArgmaxHead(),
    SoftArgmaxHead(0.5, sigma=0.75, loss=HuberLoss(0.5)),
    BinHead(GaussianLabels(1.0), SoftmaxLink(), CrossEntropy(), ModeDecoder(5), grids=2),
    BinHead(SmoothedLabels(0.2), TreeLink(3), decoder=MeanShiftDecoder(20), max_shift=4.0),
    BinHead(TwoHotLabels(), CumulativeLink(), decoder=MedianDecoder()),
    BinHead(OneHotLabels(), IndependentLink(), BinaryCrossEntropy(), ArgmaxDecoder()),
    BinHead(loss=WestonWatkinsHinge(squared=True)),
    BinHead(loss=StructuredHinge(), decoder=ExpectationDecoder()),
    BinHead(loss=AttributeHinge()),
    DeltaCodec(),
    FixedStdCodec((0.1, 0.2, 0.3, 0.4)),
    MeanStdCodec(),
    MaxShiftCodec(),
    PixelCodec(),
    L1Loss(),
    L2Loss(),
    HuberLoss(),
    LogCoshLoss(),
    CharbonnierLoss(0.01),
    IoULoss(),
    GIoULoss(),
    DIoULoss(),
    CIoULoss(),
    MeanNorm("pixel", std="global"),
    RangeNorm("channel"),
    PCA(50),
    PCAWhitening(50, eps=0.01),
    ZCAWhitening(draws=500),
    LinearHead(exact_start=100),
    ZeroInit(bias=0.01),
    NormalInit(0.1),
    FanInInit(),
    GlorotInit(),
    HeInit(),
    SparseInit(5, bias=0.01),
    ShallowConvNet(init=SparseInit(inputs=3)),
    Constant(),
    Cosine(final=0.1),
    OneCycle(0.2, final=0.0),
    L2Penalty(0.1),
    L1Penalty(pattern="fc"),
    ElasticNet(),
    MaxNorm(),
    Wrapper(
        LinearHead(L1Loss()),
        parts=[BinHead(), Wrapper(None)],
        options={"a": [1, True], "b": L2Loss()},
    ),
]


def saved_and_loaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def built_head():
    head = BinHead(bin_width=0.25).build(4, spec_with([5.0, 5.0]))
    codec = PixelCodec().build(OffsetSpec(CropGeometry(), 2, 5.0, 0.0))
    head.fit(codec.space())
    return head


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_is_rebuilt_from_a_file_that_holds_no_code(part):
    recipe = saved_and_loaded(part.recipe())
    again = from_plain(recipe)
    assert type(again) is type(part)
    assert again.recipe() == recipe
    assert repr(again) == repr(part)


def test_a_recipe_holds_what_was_given_and_the_defaults_of_the_rest():
    recipe = ShallowConvNet((8, 16, 16), batch_norm=False).recipe()
    assert recipe["class_path"] == "lightning_bbox.ShallowConvNet"
    given = {"channels": [8, 16, 16], "batch_norm": False}
    parameters = inspect.signature(ShallowConvNet).parameters
    assert recipe["init_args"] == {n: p.default for n, p in parameters.items()} | given | {
        "fc": list(parameters["fc"].default)
    }


def test_parts_within_parts_keep_their_arguments():
    part = Wrapper(LinearHead(SmoothL1Loss(0.5)), options={"loss": L2Loss(), "sizes": (1, 2)})
    again = from_plain(saved_and_loaded(part.recipe()))
    assert again.first.criterion.beta == 0.5
    assert isinstance(again.options["loss"], L2Loss)
    assert again.options["sizes"] == (1, 2)


def test_plain_values_pass_unchanged_but_for_lists_that_become_tuples():
    value = {"a": [None, True, 3, 0.5, "text", {"b": []}]}
    assert to_plain(value, "value") == value
    assert from_plain(saved_and_loaded(value)) == {"a": (None, True, 3, 0.5, "text", {"b": ()})}
    assert to_plain(from_plain(value), "value") == value


@pytest.mark.parametrize("value", [Path("a"), np.zeros(2), torch.zeros(2), nn.ReLU(), len, {1}])
def test_other_values_are_refused_with_their_name(value):
    message = f"Wrapper: first is a {type(value).__name__}, which a checkpoint can't keep; give"
    with pytest.raises(BadInput, match=message):
        Wrapper(value)
    with pytest.raises(BadInput, match=message):
        Wrapper([{"a": value}])


@pytest.mark.parametrize("value", [np.float64(0.1), Color.RED], ids=["numpy", "enum"])
def test_what_only_looks_plain_is_refused_or_made_plain(value):
    try:
        plain = to_plain(value, "beta")
    except BadInput:
        return
    assert saved_and_loaded(plain) == value


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("lightning_bbox.nn.losses.L3Loss", "L3Loss, which can't be imported here"),
        ("lightning_bbox.nn.losses.torch", "torch, which isn't a lightning_bbox part"),
        ("torch.nn.ReLU", "names torch.nn.ReLU, which isn't a lightning_bbox part"),
        ("os.system", "names os.system, which isn't a lightning_bbox part"),
        ("no_such_package.Loss", "may not have no_such_package imported"),
        ("Loss", "needs Loss, which can't be imported here"),
        (".losses.L2Loss", "needs .losses.L2Loss, which can't be imported here"),
    ],
)
def test_only_parts_that_exist_are_built(class_path, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        from_plain({"class_path": class_path, "init_args": {}})


@pytest.fixture
def foreign_module(tmp_path, monkeypatch):
    """A module in the search path that nobody has imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lying_about.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "from lightning_bbox import Part\n"
        "(Path(__file__).parent / 'it_ran').touch()\n"
        "class Mine(Part):\n"
        "    def __init__(self, width=4):\n"
        "        super().__init__()\n"
        "class Net(nn.Linear):\n"
        "    pass\n"
    )
    yield tmp_path / "it_ran"
    sys.modules.pop("lying_about", None)


@pytest.mark.parametrize(
    "recipe",
    [
        {"class_path": "lying_about.Mine", "init_args": {"width": 8}},
        {
            "class_path": "lightning_bbox.FeatureExtractor",
            "init_args": {"net": "lying_about.Net", "layer": ""},
        },
    ],
    ids=["part", "net of an extractor"],
)
def test_a_file_has_nothing_imported_that_is_not_trusted(recipe, foreign_module):
    with pytest.raises(BadInput, match=r"pass trust=\['lying_about'\]"):
        from_plain(recipe)
    assert not foreign_module.exists()
    with pytest.raises(BadInput, match="lying_about"):
        from_plain(recipe, trust=["lying"])
    assert from_plain(recipe, trust=["lying_about"]).recipe()["class_path"] == recipe["class_path"]
    assert foreign_module.exists()
    assert from_plain(recipe) is not None  # it is imported now


def test_old_paths_mean_the_public_names():
    old = {
        "class_path": "lightning_bbox.heads.LinearHead",
        "init_args": {"loss": {"class_path": "lightning_bbox.losses.L2Loss", "init_args": {}}},
    }
    assert isinstance(from_plain(old).criterion, L2Loss)
    new = with_public_paths(old)
    assert new["class_path"] == "lightning_bbox.LinearHead"
    assert new["init_args"]["loss"]["class_path"] == "lightning_bbox.L2Loss"
    foreign = {"class_path": "mine.heads.LinearHead", "init_args": {}}
    assert with_public_paths(foreign) == foreign


@pytest.mark.parametrize("init_args", [None, [1], {"gamma": 1}], ids=["none", "list", "unknown"])
def test_arguments_that_a_part_does_not_take_are_refused(init_args):
    with pytest.raises(BadInput, match="SmoothL1Loss"):
        from_plain({"class_path": "lightning_bbox.nn.losses.SmoothL1Loss", "init_args": init_args})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))]
)
def test_copies_keep_the_recipe(part, duplicate):
    again = duplicate(part)
    assert type(again) is type(part)
    assert again.recipe() == part.recipe()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))]
)
def test_copies_keep_weights_and_buffers_and_share_none(duplicate):
    head = built_head()
    again = duplicate(head)
    assert again.state_dict().keys() == head.state_dict().keys()
    for name, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with torch.no_grad():
        again.link.linear.weight.add_(1)
    assert not torch.equal(again.link.linear.weight, head.link.linear.weight)


def test_arguments_are_recorded_as_they_were_given():
    sizes = [8, 16]
    part = Wrapper(first=sizes)
    sizes.append(32)
    assert part.recipe()["init_args"] == {"first": [8, 16], "parts": [], "options": None}
    part.recipe()["init_args"]["first"].append(64)
    assert part.recipe()["init_args"]["first"] == [8, 16]
    with pytest.raises(TypeError, match="last"):
        Wrapper(1, last=2)


class Open(Recipe):
    """Takes any arguments by name."""

    def __init__(self, width=4, **options):
        self.width, self.options = width, options


def test_arguments_by_any_name_come_back_by_their_names():
    made = Open(8, depth=3, options=2)
    assert made.recipe()["init_args"] == {"width": 8, "depth": 3, "options": 2}
    again = from_plain(saved_and_loaded(made.recipe()))
    assert (again.width, again.options) == (8, {"depth": 3, "options": 2})


def test_arguments_without_names_are_refused_with_the_class():
    with pytest.raises(BadInput, match=r"Sizes.__init__ takes sizes by position only"):

        class Sizes(Part):
            def __init__(self, *sizes):
                super().__init__()


def test_casting_a_part_keeps_its_buffers_exact():
    head = built_head()
    net = nn.Sequential(nn.Linear(3, 4), head).bfloat16()
    assert head.link.linear.weight.dtype == net[0].weight.dtype == torch.bfloat16
    for name, value in built_head().named_buffers():
        assert torch.equal(head.get_buffer(name), value)
