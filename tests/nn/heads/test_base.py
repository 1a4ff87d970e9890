"""What holds of every head: dtypes, gradients, first predictions, checkpoints, and a whole run."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.protocol import read_curve
from lightning_bbox import (
    ArgmaxDecoder,
    BadInput,
    BinHead,
    BoxRegressor,
    CumulativeLink,
    FlowLikelihood,
    GaussianLikelihood,
    GIoULoss,
    IndependentLink,
    L1Loss,
    L2Loss,
    LaplaceLikelihood,
    LikelihoodHead,
    LinearHead,
    MeanShiftDecoder,
    MeanStdCodec,
    MedianDecoder,
    ShallowConvNet,
    SoftArgmaxHead,
    TreeLink,
    TwoHotLabels,
    WestonWatkinsHinge,
    WhitenedCodec,
)
from lightning_bbox.core.recipes import from_plain
from tests.parts import BOUNDS, boxes_at, draw_offsets, fitted_codec, several_bounds, spec_with
from tests.runs import fit, weights

MAP = (3, 6, 9)
FEATURES = math.prod(MAP)
HEADS = {
    "smooth L1": LinearHead(),
    "L1": LinearHead(L1Loss()),
    "L2": LinearHead(L2Loss()),
    "GIoU": LinearHead(GIoULoss()),
    "bins": BinHead(bin_width=0.25),
    "gaussian": LikelihoodHead(),
    "beta": LikelihoodHead(GaussianLikelihood(0.5)),
    "laplace": LikelihoodHead(LaplaceLikelihood()),
    "flow": LikelihoodHead(FlowLikelihood(2, 8)),
    "soft-argmax": SoftArgmaxHead(0.5),
    "soft-argmax GIoU": SoftArgmaxHead(loss=GIoULoss()),
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def fitted(head, bounds=BOUNDS["two"], codec=MeanStdCodec):
    """Return a head of its own, built and fitted, and the way from its targets to boxes."""
    torch.manual_seed(0)
    head = from_plain(head.recipe()).build(FEATURES, spec_with(bounds), MAP)
    codec = fitted_codec(codec, len(bounds))
    head.fit(codec.space())
    return head, lambda targets: codec.decode(targets, boxes_at(draw_offsets(len(targets)))[1])


def moved_from_the_start(head):
    """Move the weights away from where some have no gradient."""
    for weight in head.parameters():
        weight.data.add_(0.05 * torch.randn(weight.shape))


@heads
@several_bounds
def test_gradients_are_finite_under_bf16_autocast(head, bounds):
    head, to_boxes = fitted(head, bounds)
    moved_from_the_start(head)
    features = torch.randn(32, FEATURES, requires_grad=True)
    targets = 3 * torch.randn(32, len(bounds))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head(features)
        losses = head.loss(outputs, targets, to_boxes)
        told = [head.decode(outputs), head.stds(outputs), head.nll(outputs, targets)]
    assert all(each.shape == (32, len(bounds)) for each in told)
    assert all(each.dtype == torch.float32 for each in (losses, *told))
    assert losses.shape == (32,)
    if isinstance(head, BinHead):
        assert outputs.dtype == torch.bfloat16
    else:
        torch.testing.assert_close(losses, head.loss(head(features), targets, to_boxes))
    losses.sum().backward()
    for gradient in (features.grad, *(weight.grad for weight in head.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@heads
def test_the_first_prediction_is_the_middle(head):
    """The training mean, or the proposal where a head thinks in px."""
    head, _ = fitted(head)
    outputs = head(torch.randn(100, FEATURES).relu())
    space = fitted_codec(MeanStdCodec, 2).space()
    middle = space.origin if isinstance(head, BinHead | SoftArgmaxHead) else torch.zeros(2)
    assert (head.decode(outputs) - middle).abs().max() < 0.1
    if isinstance(head, LikelihoodHead) and head.error_law == "gaussian":
        spread = (space.std / space.unit).expand(100, 2)
        torch.testing.assert_close(head.stds(outputs), spread, rtol=0.03, atol=0)


@heads
def test_what_was_fitted_travels_in_the_checkpoint(head):
    head, to_boxes = fitted(head, BOUNDS["four"])
    other = from_plain(head.recipe()).build(FEATURES, spec_with(BOUNDS["four"]), MAP)
    other.load_state_dict(head.state_dict())
    outputs, targets = head(torch.randn(5, FEATURES)), torch.randn(5, 4)

    def told(head):
        said = [head.decode(outputs), head.stds(outputs), head.nll(outputs, targets)]
        return torch.cat([*said, head.loss(outputs, targets, to_boxes)[:, None]], dim=1)

    assert torch.equal(told(other).nan_to_num(), told(head).nan_to_num())
    assert other.error_law == head.error_law


@heads
def test_nothing_waits_for_the_device(head):
    head, to_boxes = fitted(head, BOUNDS["four"])
    features, targets = torch.randn(5, FEATURES), torch.ones(5, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs = head(features)
        head.loss(outputs, targets, to_boxes).sum().backward()
        head.decode(outputs), head.stds(outputs), head.nll(outputs, targets)
    assert "aten::_local_scalar_dense" not in {event.key for event in profile.key_averages()}


EXPORTED = HEADS | {
    "standardized": LinearHead(standardize=True),
    "tanh": LinearHead(activation="tanh"),
    "tree": BinHead(link=TreeLink(3), grids=2),
    "ordinal": BinHead(link=CumulativeLink(), decoder=MedianDecoder()),
    "independent": BinHead(link=IndependentLink(), decoder=ArgmaxDecoder(), grids=3),
    "hinge": BinHead(loss=WestonWatkinsHinge()),
    "mean shift": BinHead(decoder=MeanShiftDecoder(3), labels=TwoHotLabels()),
}


class Told(torch.nn.Module):
    """What a head tells of features."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features, targets):
        outputs = self.head(features)
        return self.head.decode(outputs), self.head.stds(outputs), self.head.nll(outputs, targets)


@pytest.mark.usefixtures("exporting")
@pytest.mark.parametrize("head", EXPORTED.values(), ids=EXPORTED)
def test_a_head_is_exported_for_any_batch(head):
    head, _ = fitted(head, BOUNDS["four"])
    moved_from_the_start(head)
    told, batch = Told(head).eval(), torch.export.Dim("batch")
    some = torch.randn(3, FEATURES), torch.randn(3, 4)
    program = torch.export.export(told, some, dynamic_shapes=({0: batch}, {0: batch})).module()
    for count in (1, 3, 8):
        given = torch.randn(count, FEATURES), torch.randn(count, 4)
        for found, expected in zip(program(*given), told(*given), strict=True):
            assert found.shape == (count, 4)
            assert torch.equal(found.nan_to_num(9e9), expected.nan_to_num(9e9))


@pytest.mark.usefixtures("exporting")
@pytest.mark.parametrize("per_class", [False, True])
def test_a_model_is_exported_for_any_batch(per_class):
    head = LinearHead(per_class=True) if per_class else None
    model = BoxRegressor(ShallowConvNet(channels=(4,)), head)
    model.build(replace(spec_with(BOUNDS["two"]), classes=("bolt", "nut")), seed=0)
    moved_from_the_start(model.eval())
    labels = [torch.tensor([1, 0, 1, 0, 1])] if per_class else []
    some = [torch.rand(5, 3, 45, 45), boxes_at(draw_offsets(5))[1], *labels]
    batch = torch.export.Dim("batch")
    shapes = ({0: batch},) * len(some)
    program = torch.export.export(model, tuple(some), dynamic_shapes=shapes).module()
    for count in (1, 2, 5):
        given = [each[:count] for each in some]
        assert torch.equal(program(*given), model(*given))


@pytest.mark.parametrize("kind", [BinHead, LikelihoodHead, SoftArgmaxHead])
def test_a_codec_that_mixes_the_coordinates_is_refused_where_px_of_each_count(kind):
    with pytest.raises(BadInput, match=f"{kind.__name__} needs a codec that keeps the coordinates"):
        fitted(kind(), codec=WhitenedCodec)
    fitted(LinearHead(), codec=WhitenedCodec)


def test_a_head_that_predicts_no_scale_can_tell_no_density():
    head, _ = fitted(LinearHead())
    assert head.nll(torch.zeros(3, 2), torch.zeros(3, 2)).isnan().all()
    assert head.error_law == "gaussian"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["LikelihoodHead"], "std nll"),
        (["LikelihoodHead", "likelihood=LaplaceLikelihood"], "std nll"),
        (["LikelihoodHead", "likelihood=GaussianLikelihood", "likelihood.beta=0.5"], "std nll"),
        (["LikelihoodHead", "likelihood=FlowLikelihood"], "std nll"),
        (["SoftArgmaxHead", "loss=LogCoshLoss"], "std"),
        (["LinearHead", "loss=CIoULoss"], ""),
    ],
    ids=["gaussian", "laplace", "beta", "flow", "soft-argmax", "box loss"],
)
def test_a_run_trains_it_and_tells_its_calibration_where_it_can(tmp_path, options, told, capsys):
    head = [f"--model.head={options[0]}", *(f"--model.head.{option}" for option in options[1:])]
    others = {"SoftArgmaxHead": ["--model.backbone.fc=[]"], "LinearHead": ["--data.num_targets=4"]}
    folder = fit(tmp_path, "run", "--trainer.max_epochs=1", *head, *others.get(options[0], ()))
    found = json.loads((folder / "metrics.json").read_text())
    assert 0 < found["test/mae_px"] < 5
    model = BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert all(weights(folder)[name].equal(value) for name, value in model.state_dict().items())
    temperature = float(model.net.calibration.temperature)
    shares = [f"test/coverage_{level}" for level in (50, 90, 95)]
    assert math.isfinite(found.get("test/nll", math.nan)) == ("nll" in told)
    assert math.isfinite(found.get("test/std_px", math.nan)) == ("std" in told)
    if told:
        assert 0.1 < temperature < 3
        assert read_curve(folder, "val/coverage_90")[0] == [3]
        assert found[shares[0]] < found[shares[1]] <= found[shares[2]]
    else:
        assert temperature == 1
        assert not found.keys() & shares
    assert ("50/90/95 % intervals hold" in capsys.readouterr().out) == bool(told)


def test_a_backbone_without_a_map_is_refused_with_exit_code_2(tmp_path, capsys):
    with pytest.raises(AssertionError):
        fit(tmp_path, "run", "--model.head=SoftArgmaxHead")
    assert "SoftArgmaxHead needs a backbone whose features are a map" in capsys.readouterr().err
