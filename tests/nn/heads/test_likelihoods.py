"""Likelihoods against scipy, torch.distributions and numerical integrals."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_bbox import FlowLikelihood, GaussianLikelihood, LaplaceLikelihood
from lightning_bbox.core.errors import BadInput

ERRORS = torch.linspace(-4, 4, 41)[:, None].repeat(1, 2)
LOGS = torch.linspace(-3, 2, 82).view(41, 2)


def learned_flow(num_targets=2, couplings=6, seed=0):
    """Return a flow that has left the identity far behind."""
    torch.manual_seed(seed)
    flow = FlowLikelihood(couplings).build(num_targets)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return flow.requires_grad_(False)


def grid_density(flow, reach=10.0, steps=301):
    """Return points of a grid in 2-D, the flow's density there, and the cells' area."""
    axis = torch.linspace(-reach, reach, steps)
    points = torch.cartesian_prod(axis, axis)
    density = (-flow.nll(points, torch.zeros_like(points)).double().sum(dim=1)).exp()
    return points.double(), density, float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [(GaussianLikelihood(), scipy.stats.norm), (LaplaceLikelihood(), scipy.stats.laplace)],
    ids=["gaussian", "laplace"],
)
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
    assert mean.grad is not None
    assert logs.grad is not None
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
    points, density, area = grid_density(flow)
    assert float(density.sum()) * area == pytest.approx(1, abs=2e-3)
    mean = (density[:, None] * points).sum(dim=0) * area
    std = ((density[:, None] * (points - mean).square()).sum(dim=0) * area).sqrt()
    assert (mean.abs() > 0.01).any()
    told_mean, told_std = flow.moments(density)
    torch.testing.assert_close(told_mean, mean, rtol=0, atol=0.02)
    torch.testing.assert_close(told_std, std, rtol=0.02, atol=0)


@pytest.mark.parametrize("num_targets", [2, 4])
def test_a_flows_density_is_the_bases_times_the_determinant_of_its_jacobian(num_targets):
    flow = learned_flow(num_targets)

    def to_normal(points):
        for step in range(flow.couplings):
            free, log_scale, shift = flow._coupling(step, points)
            points = free * (points * log_scale.exp() + shift) + (1 - free) * points
        return points

    for error in torch.randn(5, num_targets):
        jacobian = torch.autograd.functional.jacobian(to_normal, error)
        base = scipy.stats.norm.logpdf(to_normal(error).numpy()).sum()
        expected = base + np.linalg.slogdet(jacobian.numpy())[1]
        found = -flow.nll(error[None], torch.zeros(1, num_targets)).sum()
        assert float(found) == pytest.approx(float(expected), abs=1e-4)


def test_a_flow_scales_as_a_density_does():
    flow, errors = learned_flow(), torch.randn(20, 2)
    logs = torch.tensor([0.7, 0.7]).expand(20, 2)
    wide, plain = flow.nll(errors * math.exp(0.7), logs), flow.nll(errors, torch.zeros(20, 2))
    torch.testing.assert_close(wide, plain + 0.7, rtol=1e-4, atol=1e-4)


def test_a_flow_learns_a_skewed_density_that_a_normal_one_can_not_tell():
    torch.manual_seed(0)
    errors = torch.randn(2_000, 2).exp() / 2 - 0.8
    flow = FlowLikelihood(couplings=4, hidden=16).build(2)
    optimizer, logs = torch.optim.Adam(flow.parameters(), lr=1e-2), torch.zeros_like(errors)
    for _ in range(150):
        optimizer.zero_grad()
        flow.nll(errors, logs).mean().backward()
        optimizer.step()
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
