"""Normalisation of crops: against NumPy and published numbers, and what it keeps."""

import numpy as np
import pytest
import torch

from lightning_bbox import PCA, PCAWhitening, ZCAWhitening
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.nn.preprocess import CaffeNorm, ChannelNorm, ImageNetNorm, MeanNorm, RangeNorm
from lightning_bbox.reports.sheets import draw_preprocess


def draw_crops(num=200, seed=0):
    crops = torch.rand(num, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return crops * torch.tensor([0.5, 0.2, 0.01])[:, None, None] + 0.3


FITTED = [ChannelNorm(), MeanNorm("pixel", "pixel"), RangeNorm()]
fitted_norms = pytest.mark.parametrize("norm", FITTED, ids=lambda norm: type(norm).__name__)


def built(norm, crops):
    norm.build(crops.shape[-1]).fit(crops)
    return norm


def test_statistics_are_exact_where_single_precision_sums_are_not():
    crops = torch.full((20_000, 3, 9, 9), 1.0)
    crops[::2] -= 1e-3
    norm = built(ChannelNorm(), crops)
    assert norm.mean.tolist() == pytest.approx([0.9995] * 3, abs=1e-7)
    assert norm.std.tolist() == pytest.approx([5e-4] * 3, rel=1e-3)


def test_imagenet_norm_takes_published_means_to_zero_and_stds_to_one():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    crops = torch.stack([mean, mean + std])[:, :, None, None].expand(2, 3, 4, 5)
    normed = ImageNetNorm()(crops)
    torch.testing.assert_close(normed[0], torch.zeros(3, 4, 5))
    torch.testing.assert_close(normed[1], torch.ones(3, 4, 5))


def test_caffe_norm_turns_rgb_of_0_to_1_into_centred_bgr_of_0_to_255():
    red, green, blue = 0.2, 0.5, 0.9
    crops = torch.tensor([red, green, blue])[None, :, None, None].expand(2, 3, 4, 5)
    expected = torch.tensor([blue * 255 - 104, green * 255 - 117, red * 255 - 123])
    normed = CaffeNorm()(crops.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(normed, expected[None, :, None, None].expand(2, 3, 4, 5))


@pytest.mark.parametrize("kind", [ImageNetNorm, CaffeNorm])
def test_fixed_norms_are_not_fitted_and_leave_nothing_in_a_checkpoint(kind):
    norm, crops = kind(), draw_crops(4)
    before = norm(crops)
    norm.fit(crops)
    assert torch.equal(norm(crops), before)
    assert not norm.state_dict()
    assert torch.equal(from_plain(norm.recipe())(crops), before)


@pytest.mark.parametrize("kind", [ImageNetNorm, CaffeNorm])
def test_fixed_norms_follow_the_device_and_stay_exact_in_any_dtype(kind):
    assert all(buffer.is_meta for buffer in kind().to("meta").buffers())
    crops = draw_crops(4)
    assert torch.equal(kind().bfloat16()(crops), kind()(crops))
    exact = kind()(crops.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), kind()(crops))


AXES = {"global": (0, 1, 2, 3), "channel": (0, 2, 3), "pixel": (0,)}
several_means = pytest.mark.parametrize("mean", AXES)


@several_means
@pytest.mark.parametrize("std", [None, *AXES])
def test_mean_norm_is_what_the_notes_do_in_numpy(mean, std):
    train, other = draw_crops(), draw_crops(20, seed=1)
    centre = train.double().numpy().mean(axis=AXES[mean], keepdims=True)
    expected = other.double().numpy() - centre
    if std is not None:
        centred = train.double().numpy() - centre
        expected = expected / centred.std(axis=AXES[std], keepdims=True, ddof=1)
    found = built(MeanNorm(mean, std), train)(other)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_channel_norm_is_the_mean_norm_of_channels_to_the_bit():
    train, other = draw_crops(), draw_crops(20, seed=1) + 0.2
    found, expected = (
        built(norm, train)(other) for norm in (ChannelNorm(), MeanNorm("channel", "channel"))
    )
    assert torch.equal(found, expected)


@fitted_norms
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_what_does_not_vary_is_only_centred(norm, value):
    crops = draw_crops()
    crops[:, 1] = value
    built(norm, crops)
    assert norm(crops)[:, 1].abs().max() < 1e-6
    assert norm(crops)[:, 0].std() > 0.3
    crops[:, 1] += 0.25
    torch.testing.assert_close(norm(crops)[:, 1], torch.full((200, 9, 9), 0.25))


@fitted_norms
def test_what_is_built_passes_crops_through_until_it_is_fitted_or_loaded(norm):
    crops = draw_crops()
    again = from_plain(norm.recipe()).build(9)
    assert torch.equal(again(crops), crops)
    again.load_state_dict(built(norm, crops).state_dict())
    assert torch.equal(again(crops), norm(crops))


@pytest.mark.parametrize("per", AXES)
def test_range_norm_takes_training_crops_to_minus_1_to_1(per):
    crops = draw_crops()
    normed = built(RangeNorm(per), crops)(crops)
    ends = normed.amin(dim=AXES[per]), normed.amax(dim=AXES[per])
    for end, expected in zip(ends, (-1, 1), strict=True):
        torch.testing.assert_close(end, torch.full_like(end, expected), rtol=0, atol=1e-4)


LEARNT = [MeanNorm("pixel"), MeanNorm("pixel", "pixel"), RangeNorm()]
LEARNT += [PCA(50), PCAWhitening(20), ZCAWhitening(50)]


@pytest.mark.parametrize("norm", LEARNT, ids=lambda norm: type(norm).__name__)
def test_what_was_learnt_is_shown_in_the_range_of_pictures(norm):
    crops = draw_crops()
    pictures = built(norm, crops).pictures()
    assert pictures
    for shown in pictures.values():
        assert shown.shape[1:] == (3, 9, 9)
        assert 0 <= shown.min() < shown.max() <= 1
    sheet = draw_preprocess(norm, crops[:8])
    assert np.asarray(sheet).std() > 10


def test_what_is_only_a_number_is_not_shown():
    crops = draw_crops(10)
    for norm in (ChannelNorm(), MeanNorm("global", "channel"), RangeNorm("channel"), CaffeNorm()):
        assert draw_preprocess(built(norm, crops), crops) is None
