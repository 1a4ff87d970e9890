"""Likelihoods against SciPy and numerical integrals, and the head that predicts its own scale."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from lightning_bbox import (
    BadInput,
    DeltaCodec,
    FlowLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    LikelihoodHead,
    MeanStdCodec,
    PixelCodec,
)
from tests.parts import BOUNDS, boxes_at, draw_offsets, fitted_codec, spec_with

ERRORS = torch.linspace(-4, 4, 41)[:, None].repeat(1, 2)
LOGS = torch.linspace(-3, 2, 82).view(41, 2)
LAWS = {GaussianLikelihood(): scipy.stats.norm, LaplaceLikelihood(): scipy.stats.laplace}
LIKELIHOODS = [*LAWS, GaussianLikelihood(0.5), FlowLikelihood(2, 8)]

laws = pytest.mark.parametrize(("likelihood", "law"), LAWS.items(), ids=["gaussian", "laplace"])
likelihoods = pytest.mark.parametrize(
    "likelihood", LIKELIHOODS, ids=["gaussian", "laplace", "beta", "flow"]
)
codecs = pytest.mark.parametrize("codec", [DeltaCodec, MeanStdCodec, PixelCodec])


def learned_flow(num_targets=2, seed=0, std=0.2):
    """Return a flow that has left the identity far behind."""
    torch.manual_seed(seed)
    flow = FlowLikelihood().build(num_targets)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return flow.requires_grad_(False)


def mass_on_a_grid(nll, reach=10.0, steps=301):
    """Return points of a grid in 2-D, and what a density, from its logarithm, puts on each."""
    axis = torch.linspace(-reach, reach, steps)
    points = torch.cartesian_prod(axis, axis)
    mass = (-nll(points).double().sum(dim=1)).exp() * float(axis[1] - axis[0]) ** 2
    return points.double(), mass[:, None]


def head_of(likelihood, bounds=BOUNDS["two"], codec=None):
    torch.manual_seed(0)
    head = LikelihoodHead(likelihood).build(8, spec_with(bounds))
    if codec is not None:
        head.fit(codec.space())
    return head


def descend(parameters, loss, rate, steps):
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@laws
def test_the_density_is_scipys(likelihood, law):
    expected = -law.logpdf(ERRORS.numpy(), scale=np.exp(LOGS.numpy()))
    np.testing.assert_allclose(likelihood.nll(ERRORS, LOGS), expected, rtol=1e-4, atol=1e-5)
    mean, std = likelihood.moments(ERRORS)
    assert (float(mean), float(std)) == pytest.approx((law.mean(), law.std()))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_weighs_the_gradients_of_the_gaussian_by_the_variance_to_its_power(beta):
    mean, logs = torch.zeros(41, 2, requires_grad=True), LOGS.clone().requires_grad_()
    GaussianLikelihood(beta).loss(ERRORS - mean, logs).sum().backward()
    variances = (2 * LOGS).exp()
    torch.testing.assert_close(mean.grad, -ERRORS / variances * variances**beta)
    torch.testing.assert_close(logs.grad, (1 - ERRORS**2 / variances) * variances**beta)


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (GaussianLikelihood(), 0.5),
        (GaussianLikelihood(0.5), 0.5),
        (LaplaceLikelihood(), 0.866 + math.log(2)),
        (FlowLikelihood().build(1), 0.5 + 0.5 * math.log(2 * math.pi)),
    ],
    ids=["gaussian", "beta", "laplace", "flow"],
)
def test_the_loss_at_chance_is_that_of_uniform_targets_of_variance_1(likelihood, expected):
    errors = torch.linspace(-math.sqrt(3), math.sqrt(3), 20_001)[:, None]
    loss = likelihood.loss(errors, torch.zeros_like(errors)).mean().detach()
    assert float(loss) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("num_targets", [2, 4])
def test_a_flow_begins_as_the_standard_normal_density(num_targets):
    errors, logs = torch.randn(2, 50, num_targets)
    flow = FlowLikelihood().build(num_targets)
    normal = torch.distributions.Normal(0.0, logs.exp())
    torch.testing.assert_close(flow.nll(errors, logs).sum(dim=1), -normal.log_prob(errors).sum(1))
    mean, std = flow.moments(errors)
    torch.testing.assert_close(mean, torch.zeros(num_targets), rtol=0, atol=1e-2)
    torch.testing.assert_close(std, torch.ones(num_targets), rtol=0, atol=1e-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_flows_density_integrates_to_1_and_has_the_moments_it_tells(seed):
    flow = learned_flow(seed=seed)
    points, mass = mass_on_a_grid(lambda points: flow.nll(points, torch.zeros_like(points)))
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    mean = (mass * points).sum(dim=0)
    std = (mass * (points - mean).square()).sum(dim=0).sqrt()
    assert (mean.abs() > 0.01).any()
    told_mean, told_std = flow.moments(mass)
    torch.testing.assert_close(told_mean, mean, rtol=0, atol=0.02)
    torch.testing.assert_close(told_std, std, rtol=0.02, atol=0)


def test_a_flows_density_of_four_coordinates_integrates_to_1():
    flow, wide = learned_flow(4, std=0.12), torch.distributions.Normal(0.0, 1.5)
    points = wide.sample((100_000, 4))
    logs = -flow.nll(points, torch.zeros_like(points)).sum(dim=1)
    ratios = (logs - wide.log_prob(points).sum(dim=1)).exp()
    assert float(ratios.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("num_targets", [2, 4])
def test_scales_are_undone_before_the_flow_so_that_its_density_is_stretched(num_targets):
    """Each coordinate's own scale, and the determinant that goes with all of them."""
    flow, errors = learned_flow(num_targets), torch.randn(20, num_targets)
    logs = torch.linspace(-1, 0.7, num_targets).expand(20, num_targets)
    wide, plain = flow.nll(errors * logs.exp(), logs), flow.nll(errors, torch.zeros_like(errors))
    added = logs.mean(dim=1, keepdim=True).expand_as(logs)
    torch.testing.assert_close(wide, plain + added, rtol=1e-4, atol=1e-4)


def test_a_flow_learns_a_skewed_density_that_a_normal_one_can_not_tell():
    torch.manual_seed(0)
    errors = torch.randn(2_000, 2).exp() / 2 - 0.8
    flow, logs = FlowLikelihood(couplings=4, hidden=16).build(2), torch.zeros_like(errors)
    descend(flow.parameters(), lambda: flow.nll(errors, logs).mean(), rate=1e-2, steps=150)
    normal = scipy.stats.norm(errors.mean(), errors.std()).logpdf(errors.numpy()).mean()
    assert float(flow.nll(errors, logs).mean().detach()) < -normal - 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianLikelihood(1.5), r"beta is 1\.5; expected 0"),
        (lambda: GaussianLikelihood(-0.1), r"beta is -0\.1; expected 0"),
        (lambda: FlowLikelihood(couplings=0), "0 couplings of width 64; expected 1 or more"),
        (lambda: FlowLikelihood(hidden=0), "6 couplings of width 0; expected 1 or more"),
    ],
)
def test_impossible_likelihoods_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@codecs
@laws
def test_density_stds_and_prediction_are_in_px_and_log_size_whatever_the_codec(
    codec, likelihood, law
):
    fitted = fitted_codec(codec)
    head, space = head_of(likelihood, BOUNDS["four"], fitted), fitted.space()
    offsets = draw_offsets(100, seed=1)
    outputs = 0.5 * torch.randn(100, 8)
    predicted = ((head.decode(outputs) - space.origin) / space.unit).numpy()
    stds = head.stds(outputs).numpy()
    scales = outputs[:, 4:].exp() * space.std / space.unit
    np.testing.assert_allclose(stds, scales * law.std(), rtol=1e-5)
    nll = head.nll(outputs, fitted.encode(*boxes_at(offsets)))
    expected = -law.logpdf(offsets.numpy(), predicted, stds / law.std())
    np.testing.assert_allclose(nll, expected, rtol=1e-3, atol=2e-3)


@codecs
@likelihoods
def test_the_loss_does_not_depend_on_the_scaling_of_targets(codec, likelihood):
    offsets, outputs = draw_offsets(50, seed=1)[:, :2], torch.randn(50, 4)
    losses = []
    for each in (codec, DeltaCodec):
        fitted = fitted_codec(each, 2)
        shifted = fitted.encode(*boxes_at(offsets)) - fitted.mean
        losses.append(head_of(likelihood, codec=fitted).loss(outputs, shifted))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


@likelihoods
def test_all_is_finite_at_the_ends_of_the_scale(likelihood):
    head = head_of(likelihood)
    outputs = (torch.randn(32, 4) + torch.linspace(-20, 20, 32)[:, None]).requires_grad_()
    targets = 3 * torch.randn(32, 2)
    losses = head.loss(outputs, targets) + head.nll(outputs, targets).sum(dim=1)
    losses.sum().backward()
    for each in (losses, head.stds(outputs), outputs.grad, *(p.grad for p in head.parameters())):
        assert each is None or each.isfinite().all()


def test_log_scales_are_kept_within_minus_7_and_3():
    outputs = torch.tensor([[0.0, 0.0, -50.0, 50.0]])
    assert head_of(None).stds(outputs).log().tolist() == [pytest.approx([-7.0, 3.0])]


@likelihoods
@pytest.mark.parametrize(("inside", "beyond"), [(-6.9, -7.2), (2.9, 3.2)])
def test_a_scale_beyond_its_bounds_comes_back_as_one_within_them_does(likelihood, inside, beyond):
    features, noise = torch.ones(500, 8), torch.randn(500, 2, generator=torch.manual_seed(0))
    ends = []
    for start in (inside, beyond):
        head = head_of(likelihood)
        with torch.no_grad():
            head.linear.bias[2:] = start
        learned = [head.linear.weight, head.linear.bias]
        descend(learned, lambda head=head: head.loss(head(features), noise).mean(), 0.05, 200)
        outputs = head(features).detach()
        ends.append((head.stds(outputs).mean(), head.nll(outputs, noise).mean()))
    (std, nll), (std_after, nll_after) = ends
    torch.testing.assert_close(std_after, std, rtol=0.2, atol=0)
    assert nll_after < nll + 0.01
    assert std_after > 100 * math.exp(-7)
    assert std_after < 1.3


def test_within_its_bounds_a_scale_costs_nothing_and_beyond_its_distance():
    head, targets = head_of(None), torch.zeros(3, 2)
    logs = torch.tensor([[-7.0, 3.0], [-9.0, 0.0], [0.0, 5.5]])
    losses = head.loss(torch.cat([torch.zeros(3, 2), logs], dim=1), targets)
    expected = torch.tensor([-7.0 + 3, -7.0 + 2, 3.0 + 2.5])
    torch.testing.assert_close(losses, expected)


def test_a_gaussian_head_recovers_means_and_scales_that_depend_on_the_features():
    head = head_of(None)
    features = functional.one_hot(torch.randint(4, (4_000,)), 8).float()
    means, scales = torch.tensor([-1.0, 0, 1, 2]), torch.tensor([0.1, 0.3, 1, 2])
    kinds = features[:, :4].argmax(dim=1)
    targets = means[kinds, None] + scales[kinds, None] * torch.randn(4_000, 2)
    descend(head.parameters(), lambda: head.loss(head(features), targets).mean(), 0.05, 300)
    outputs = head(torch.eye(8)[:4])
    torch.testing.assert_close(head.stds(outputs)[:, 0], scales, rtol=0.1, atol=0)
    torch.testing.assert_close(head.decode(outputs)[:, 0], means, rtol=0, atol=0.15)


def test_the_flow_heads_prediction_is_the_mean_of_its_density():
    head = head_of(FlowLikelihood(2, 8)).requires_grad_(False)
    for parameter in head.likelihood.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    outputs = torch.tensor([[0.3, -0.2, 0.1, -0.5]])
    targets, mass = mass_on_a_grid(lambda points: head.nll(outputs.expand(len(points), 4), points))
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    mean = (mass * targets).sum(dim=0).float()
    torch.testing.assert_close(head.decode(outputs)[0], mean, rtol=0, atol=0.02)
