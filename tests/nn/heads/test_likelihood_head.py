"""The head that predicts its own scale."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from benchmarks.protocol import read_curve
from lightning_bbox import (
    DeltaCodec,
    FlowLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    LikelihoodHead,
    LinearHead,
    MeanStdCodec,
    PixelCodec,
    WhitenedCodec,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.recipes import from_plain
from tests.nn.heads.test_linear import BOUNDS, boxes_at, draw_offsets, fitted_codec, several_bounds
from tests.parts import spec_with
from tests.runs import fit, weights

LIKELIHOODS = [None, GaussianLikelihood(0.5), LaplaceLikelihood(), FlowLikelihood(2, 8)]
likelihoods = pytest.mark.parametrize(
    "likelihood", LIKELIHOODS, ids=["gaussian", "beta", "laplace", "flow"]
)


def head_of(likelihood, bounds=(5.0, 5.0), codec=None):
    head = LikelihoodHead(likelihood).build(8, spec_with(bounds))
    if codec is not None:
        head.fit(codec.space())
    return head


@pytest.mark.parametrize("codec", [DeltaCodec, MeanStdCodec, PixelCodec])
@pytest.mark.parametrize("likelihood", [GaussianLikelihood(), LaplaceLikelihood()])
def test_density_stds_and_prediction_are_in_px_and_log_size_whatever_the_codec(codec, likelihood):
    fitted = fitted_codec(codec)
    head = head_of(likelihood, BOUNDS["four"], fitted)
    offsets = draw_offsets(100, seed=1)
    boxes, anchors = boxes_at(offsets)
    targets = fitted.encode(boxes, anchors)
    outputs = 0.5 * torch.randn(100, 8)
    space = fitted.space()
    predicted = ((head.decode(outputs) - space.origin) / space.unit).numpy()
    law = {"gaussian": scipy.stats.norm, "laplace": scipy.stats.laplace}[head.error_law]
    stds = head.stds(outputs).numpy()
    scales = outputs[:, 4:].exp() * space.std / space.unit
    np.testing.assert_allclose(stds, scales * law.std(), rtol=1e-5)
    expected = -law.logpdf(offsets.numpy(), predicted, stds / law.std())
    np.testing.assert_allclose(head.nll(outputs, targets), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("codec", [DeltaCodec, MeanStdCodec, PixelCodec])
@likelihoods
def test_the_loss_does_not_depend_on_the_scaling_of_targets(codec, likelihood):
    offsets, outputs = draw_offsets(50, seed=1)[:, :2], torch.randn(50, 4)
    losses = []
    for each in (codec, DeltaCodec):
        fitted = fitted_codec(each, 2)
        shifted = fitted.encode(*boxes_at(offsets)) - fitted.mean
        torch.manual_seed(0)
        losses.append(head_of(likelihood, codec=fitted).loss(outputs, shifted))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


@likelihoods
@several_bounds
def test_gradients_are_finite_under_bf16_autocast_even_at_the_ends_of_the_scale(likelihood, bounds):
    torch.manual_seed(0)
    head = head_of(likelihood, bounds)
    features = torch.randn(32, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head(features)
        far = outputs + torch.linspace(-20, 20, 32)[:, None]
        targets = 3 * torch.randn(32, len(bounds))
        found = [head.loss(outputs, targets), head.decode(outputs), head.stds(outputs)]
        extreme = head.loss(far, targets) + head.nll(far, targets).sum(dim=1)
    assert all(each.dtype == torch.float32 for each in (outputs, *found))
    (found[0].sum() + extreme.sum()).backward()
    assert features.grad is not None
    for each in (features.grad, extreme, head.stds(far), *(p.grad for p in head.parameters())):
        assert each.isfinite().all()


def test_log_scales_are_kept_within_minus_7_and_3():
    outputs = torch.tensor([[0.0, 0.0, -50.0, 50.0]])
    assert head_of(None).stds(outputs).log().tolist() == [pytest.approx([-7.0, 3.0])]


def test_the_first_prediction_is_the_middle_with_the_spread_of_the_targets():
    torch.manual_seed(0)
    fitted = fitted_codec(MeanStdCodec, 2)
    head = head_of(None, codec=fitted)
    outputs = head(torch.randn(100, 8))
    assert head.decode(outputs).abs().max() < 0.01
    space = fitted.space()
    torch.testing.assert_close(head.stds(outputs)[0], space.std / space.unit, rtol=0.01, atol=0)


def test_a_gaussian_head_recovers_means_and_scales_that_depend_on_the_features():
    torch.manual_seed(0)
    features = functional.one_hot(torch.randint(4, (4_000,)), 8).float()
    means, scales = torch.tensor([-1.0, 0, 1, 2]), torch.tensor([0.1, 0.3, 1, 2])
    kinds = features[:, :4].argmax(dim=1)
    targets = means[kinds, None] + scales[kinds, None] * torch.randn(4_000, 2)
    head = head_of(None)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(features), targets).mean().backward()
        optimizer.step()
    outputs = head(torch.eye(8)[:4])
    torch.testing.assert_close(head.stds(outputs)[:, 0], scales, rtol=0.1, atol=0)
    torch.testing.assert_close(head.decode(outputs)[:, 0], means, rtol=0, atol=0.15)


def test_the_flow_heads_prediction_is_the_mean_of_its_density():
    head = head_of(FlowLikelihood(2, 8))
    for parameter in head.likelihood.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    outputs = torch.tensor([[0.3, -0.2, 0.1, -0.5]])
    axis = torch.linspace(-10, 10, 401)
    targets = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        nll = head.nll(outputs.expand(len(targets), 4), targets).sum(dim=1)
        mass = (-nll.double()).exp() * float(axis[1] - axis[0]) ** 2
        assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
        mean = (mass[:, None] * targets).sum(dim=0)
        torch.testing.assert_close(head.decode(outputs)[0], mean.float(), rtol=0, atol=0.02)


@likelihoods
def test_what_was_fitted_travels_in_the_checkpoint(likelihood):
    head = head_of(likelihood, BOUNDS["four"], fitted_codec(MeanStdCodec))
    other = from_plain(head.recipe()).build(8, spec_with(BOUNDS["four"]))
    other.load_state_dict(head.state_dict())
    outputs, targets = head(torch.randn(5, 8)), torch.randn(5, 4)
    assert other.error_law == head.error_law
    for method in ("loss", "nll"):
        again, expected = (getattr(each, method)(outputs, targets) for each in (other, head))
        assert torch.equal(again, expected)
    assert torch.equal(other.stds(outputs), head.stds(outputs))


def test_a_codec_that_mixes_the_coordinates_is_refused():
    with pytest.raises(BadInput, match="LikelihoodHead needs a codec that keeps the coordinates"):
        head_of(None, codec=fitted_codec(WhitenedCodec, 2))


def test_a_head_that_predicts_no_scale_can_tell_no_density():
    head = LinearHead().build(8, spec_with([5.0, 5.0]))
    assert head.nll(torch.zeros(3, 2), torch.zeros(3, 2)).isnan().all()
    assert head.error_law == "gaussian"


@pytest.mark.parametrize(
    "options",
    [
        ["--model.head=LikelihoodHead"],
        ["--model.head=LikelihoodHead", "--model.head.likelihood=LaplaceLikelihood"],
        [
            "--model.head=LikelihoodHead",
            "--model.head.likelihood=GaussianLikelihood",
            "--model.head.likelihood.beta=0.5",
        ],
        ["--model.head=LikelihoodHead", "--model.head.likelihood=FlowLikelihood"],
        ["--model.head=LinearHead"],
    ],
    ids=["gaussian", "laplace", "beta", "flow", "linear"],
)
def test_a_run_tells_its_calibration_where_its_head_can(tmp_path, options, capsys):
    folder = fit(tmp_path, "run", "--trainer.max_epochs=1", *options)
    found = json.loads((folder / "metrics.json").read_text())
    temperature = float(weights(folder)["net.calibration.temperature"])
    told = {f"test/coverage_{level}" for level in (50, 90, 95)} | {"test/std_px", "test/nll"}
    if options == ["--model.head=LinearHead"]:
        assert temperature == 1
        assert not told & found.keys()
    else:
        assert 0.1 < temperature < 3
        assert told <= found.keys()
        assert all(math.isfinite(found[name]) for name in told)
        assert read_curve(folder, "val/coverage_90")[1] == [pytest.approx(0.9, abs=0.02)]
        assert found["test/coverage_50"] < found["test/coverage_90"] <= found["test/coverage_95"]
    assert ("50/90/95 % intervals hold" in capsys.readouterr().out) == (temperature != 1)
