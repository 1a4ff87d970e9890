"""Principal components: against scikit-learn, and what whitening promises of training crops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import decomposition

from lightning_bbox import PCA, BadInput, MeanNorm, PCAWhitening, RangeNorm, ZCAWhitening
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.nn.whitening import principal_axes

SIZE = 6
NUMBERS = 3 * SIZE**2
WHITE = 1e-9
"""An eps that changes nothing which can be measured."""

kinds = pytest.mark.parametrize("kind", [PCA, PCAWhitening, ZCAWhitening])
counts = pytest.mark.parametrize("count", [60, 500], ids=["dual", "primal"])


def draw_crops(count=500, seed=0):
    """Return crops with neighbours alike, so that variances differ by much."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(NUMBERS, NUMBERS, generator=generator) * 0.97 ** torch.arange(NUMBERS)
    sources = torch.randn(count, NUMBERS, generator=torch.Generator().manual_seed(seed + 1))
    return (0.5 + 0.02 * sources @ mixing.T).view(count, 3, SIZE, SIZE)


def fitted(kind, crops, **arguments):
    norm = kind(**arguments).build(SIZE)
    norm.fit(crops)
    return norm


def covariance(crops):
    return crops.double().flatten(1).T.cov()


@counts
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_scikit_learn_rotated_back_to_pixels(count, whiten):
    train, other = draw_crops(count), draw_crops(30, seed=5)
    oracle = decomposition.PCA(20, whiten=whiten, svd_solver="full")
    oracle.fit(train.flatten(1).double().numpy())
    expected = oracle.transform(other.flatten(1).double().numpy()) @ oracle.components_
    norm = PCAWhitening(20, eps=WHITE) if whiten else PCA(20)
    norm.build(SIZE).fit(train)
    np.testing.assert_allclose(norm(other).flatten(1), expected, atol=2e-4 if whiten else 2e-5)


@kinds
def test_training_crops_are_centred_and_those_all_the_same_become_zero(kind):
    train, same = draw_crops(), torch.full((40, 3, SIZE, SIZE), 0.3)
    assert fitted(kind, train, components=20)(train).mean(dim=0).abs().max() < 1e-4
    assert fitted(kind, same, components=20)(same).abs().max() < 1e-5


@kinds
def test_crops_pass_through_until_it_is_fitted_or_loaded(kind):
    train = draw_crops()
    norm = fitted(kind, train, components=20)
    again = from_plain(norm.recipe()).build(SIZE)
    torch.testing.assert_close(again(train), train)
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again(train[:4]), norm(train[:4]))
    channels_last = train.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(norm(channels_last), norm(train))


def test_zca_with_all_components_makes_the_covariance_the_identity():
    train = draw_crops(1000)
    found = covariance(fitted(ZCAWhitening, train, components=NUMBERS, eps=WHITE)(train))
    torch.testing.assert_close(found, torch.eye(NUMBERS).double(), rtol=0, atol=1e-3)


@counts
@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_zca_that_spans_the_crops_is_the_textbook_formula(count, eps):
    train, other = draw_crops(count), draw_crops(30, seed=5)
    flat = train.flatten(1).double().numpy()
    spread = np.cov(flat.T)
    values, vectors = np.linalg.eigh(spread)
    absolute = eps * np.trace(spread) / NUMBERS
    matrix = vectors / np.sqrt(np.clip(values, 0, None) + absolute) @ vectors.T
    expected = (other.flatten(1).double().numpy() - flat.mean(axis=0)) @ matrix
    spanned = min(count - 1, NUMBERS)
    found = fitted(ZCAWhitening, train, components=spanned, eps=eps)(other).flatten(1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_beside_its_components_zca_makes_the_mean_variance_1():
    train = draw_crops(1000)
    norm = fitted(ZCAWhitening, train, components=20, eps=WHITE)
    found = covariance(norm(train))
    axes = norm.axes.flatten(1).double()
    along = axes @ found @ axes.T
    torch.testing.assert_close(along, torch.eye(20).double(), rtol=0, atol=1e-3)
    assert (found.trace() - along.trace()) / (NUMBERS - 20) == pytest.approx(1, abs=1e-3)


@given(scale=st.floats(0.01, 100), shift=st.floats(-1, 1))
def test_whitening_does_not_depend_on_the_pixels_scale(scale, shift):
    train = draw_crops(200)
    scaled = scale * train.double() + shift
    expected = fitted(ZCAWhitening, train.double(), components=20)(train[:5].double())
    found = fitted(ZCAWhitening, scaled, components=20)(scaled[:5])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_axes_of_fewer_samples_than_asked_for_are_padded_with_zeros():
    samples = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    found = principal_axes(samples, 6)
    assert (found.values[:3] > 0).all()
    assert not found.values[3:].any()
    assert not found.axes[3:].any()
    torch.testing.assert_close(found.axes[:3] @ found.axes[:3].T, torch.eye(3).double())
    torch.testing.assert_close(found.values.sum(), found.variance)


@kinds
def test_half_precision_costs_no_digits(kind):
    train = draw_crops()
    norm = fitted(kind, train, components=20)
    expected = norm(train)
    exact = norm(train.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(expected.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(train), expected)
    assert torch.equal(norm.bfloat16()(train), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCA(0), "PCA components is 0 and draws 1024; expected at least one"),
        (lambda: ZCAWhitening(100, draws=100), "components is 100 and draws 100; expected"),
        (lambda: PCAWhitening(eps=0.0), "PCAWhitening eps is 0.0; expected above 0"),
        (lambda: PCA(109).build(SIZE), "PCA components is 109, but crops of 6 px are 108 numbers"),
        (lambda: MeanNorm("row"), "MeanNorm mean is 'row'; expected one of global, channel, pixel"),
        (lambda: MeanNorm(std="row"), "MeanNorm std is 'row'; expected one of"),
        (lambda: RangeNorm("row"), "RangeNorm per is 'row'; expected one of"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@pytest.mark.slow
@pytest.mark.compile
@kinds
def test_compiled_to_one_graph_it_gives_the_same(kind):
    train = draw_crops()
    norm = fitted(kind, train, components=20)
    compiled = torch.compile(norm, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(train), norm(train), rtol=1e-5, atol=1e-5)
