import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_bbox import (
    ArgmaxDecoder,
    ExpectationDecoder,
    MeanShiftDecoder,
    MedianDecoder,
    ModeDecoder,
    OneHotLabels,
)
from lightning_bbox.nn.heads.bins.labels import lay_grid, running_sums

WIDTHS = torch.tensor([0.5, 0.05])
CENTERS = torch.arange(-13, 14) * WIDTHS[:, None]


def some_votes(num=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    votes = (3 * torch.randn(num, 2, 27, generator=generator)).softmax(dim=-1)
    votes[:, 1, :5] = votes[:, 1, -5:] = 0
    return votes / votes.sum(dim=-1, keepdim=True)


def looped(oracle, votes):
    rows = [
        [oracle(p, c, w) for p, c, w in zip(sample, CENTERS.double(), WIDTHS.double(), strict=True)]
        for sample in votes.double()
    ]
    return np.array(rows, dtype=float)


def mean_shift(probs, centers, width):
    p, c, w = probs.numpy(), centers.numpy(), float(width)
    x = c[p.argmax()]
    for _ in range(100):
        kernel = np.exp(-(((x - c) / w) ** 2) / 2)
        new = (p * kernel * c).sum() / (p * kernel).sum()
        step, x = abs(new - x), new
        if step < 1e-3 * w:
            break
    return x


def median(probs, centers, width):
    edges = np.append(centers.numpy() - float(width) / 2, float(centers[-1] + width / 2))
    cdf = np.append(0, probs.numpy().cumsum())
    return np.interp(0.5, cdf, edges)


def around_mode(bins):
    def decode(probs, centers, _):
        mode = int(probs.argmax())
        window = slice(max(0, mode - bins // 2), mode + bins // 2 + 1)
        return np.average(centers[window], weights=probs[window])

    return decode


ORACLES = {
    ArgmaxDecoder(): lambda p, c, _: c[p.argmax()],
    ExpectationDecoder(): lambda p, c, _: np.average(c, weights=p),
    MeanShiftDecoder(): mean_shift,
    MedianDecoder(): median,
    ModeDecoder(): around_mode(3),
    ModeDecoder(1): around_mode(1),
    ModeDecoder(7): around_mode(7),
}
every_decoder = pytest.mark.parametrize("decoder", ORACLES, ids=repr)


@every_decoder
def test_a_decoder_equals_a_plain_loop(decoder):
    votes = some_votes()
    expected = looped(ORACLES[decoder], votes) / WIDTHS.numpy()
    decoded = decoder(votes, CENTERS, WIDTHS)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded / WIDTHS, expected, atol=2e-3)


@every_decoder
@given(seed=st.integers(0, 1_000), shift=st.integers(-4, 4))
def test_decoding_moves_with_the_votes(decoder, seed, shift):
    votes = torch.zeros(1, 2, 27)
    votes[..., 6:21] = some_votes(1, seed)[..., 6:21]
    votes = votes / votes.sum(dim=-1, keepdim=True)
    moved = decoder(votes.roll(shift, dims=-1), CENTERS, WIDTHS) / WIDTHS
    expected = decoder(votes, CENTERS, WIDTHS) / WIDTHS + shift
    torch.testing.assert_close(moved, expected, rtol=0, atol=5e-3)


@every_decoder
def test_a_single_vote_is_decoded_as_its_centre(decoder):
    votes = torch.eye(27)[:, None].repeat(1, 2, 1)
    torch.testing.assert_close(decoder(votes, CENTERS, WIDTHS), CENTERS.T)


def test_one_hot_labels_and_argmax_cost_the_width_over_root_12():
    grid = lay_grid([5.0], [0.5], 0)
    offsets = torch.linspace(-5, 5, 20_001)[:, None]
    decoded = ArgmaxDecoder()(OneHotLabels()(offsets, grid), grid.centers, grid.widths)
    rmse = (decoded - offsets).square().mean().sqrt().item()
    assert rmse == pytest.approx(0.5 / np.sqrt(12), rel=1e-3)


def test_two_peaks_do_not_mix_around_the_mode():
    votes = torch.zeros(1, 1, 27)
    votes[..., 2], votes[..., 22] = 0.4, 0.6
    decoders = (ModeDecoder(), MeanShiftDecoder(), ArgmaxDecoder(), MedianDecoder())
    for decoder in decoders:
        assert abs(decoder(votes, CENTERS[:1], WIDTHS[:1]).item() - 4.5) < 0.26
    assert ExpectationDecoder()(votes, CENTERS[:1], WIDTHS[:1]).item() == pytest.approx(0.5)


class Largest(TorchDispatchMode):
    """Note how many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_a_median_of_many_votes_takes_no_more_numbers_than_the_votes():
    votes = torch.rand(16, 2, 600).softmax(dim=-1)
    centers = torch.linspace(-5, 5, 600).repeat(2, 1)
    with Largest() as largest:
        found = MedianDecoder()(votes, centers, WIDTHS)
    assert largest.numbers <= votes.numel()
    below = (torch.ones(600, 600).tril().double() * votes.double()[..., None, :]).sum(dim=-1)
    at = (below < 0.5).sum(dim=-1, keepdim=True)
    share = votes.double().gather(-1, at)
    inside = ((0.5 - below.gather(-1, at)) / share + 0.5)[..., 0]
    expected = centers[0].double()[at[..., 0]] + inside * float(centers[0, 1] - centers[0, 0])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 27, 600])
def test_running_sums_equal_numpys(count):
    values = torch.rand(3, count)
    expected = values.double().numpy().cumsum(axis=1)
    np.testing.assert_allclose(running_sums(values), expected, rtol=1e-6)
