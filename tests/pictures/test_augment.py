import kornia.augmentation as K
import pytest
import torch
from torch import nn

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.randomness import EpochPlan
from lightning_bbox.pictures.augment import (
    Augment,
    NoiseBank,
    adjust_photometry,
    compiled_photometry,
)

PLAN = EpochPlan(seed=0, epoch=0, num_items=10, num_draws=10_000)


def draw_crops(num=16, size=12, seed=0):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Roll(nn.Module):
    def forward(self, crops):
        return crops.roll(1, dims=3)


@pytest.mark.parametrize(
    "strengths", [(0.3, 0.4, 0.5), (1.0, 1.0, 1.0), (0.0, 0.9, 0.0), (0.0, 0.0, 0.0)]
)
def test_photometry_equals_kornias_color_jitter(strengths):
    torch.manual_seed(0)
    crops = draw_crops()
    jitter = K.ColorJitter(*strengths, p=1.0, order=(0, 1, 2))
    expected = jitter(crops)
    names = ("brightness_factor", "contrast_factor", "saturation_factor")
    factors = torch.stack([jitter._params[name] for name in names], dim=1)
    assert (factors.std(dim=0) > 0).tolist() == [strength > 0 for strength in strengths]
    torch.testing.assert_close(adjust_photometry(crops, factors), expected, rtol=0, atol=1e-6)


def test_photometry_does_not_depend_on_the_batch():
    crops, factors = draw_crops(), 1 + 0.4 * torch.rand(16, 3)
    parts = [adjust_photometry(crops[i::3], factors[i::3]) for i in range(3)]
    together = adjust_photometry(crops, factors)
    for i in range(3):
        torch.testing.assert_close(together[i::3], parts[i], rtol=0, atol=1e-6)


@pytest.mark.compile
def test_the_compiled_photometry_equals_the_plain_one_for_every_batch():
    factors = 1 + 0.8 * torch.rand(16, 3, generator=torch.Generator().manual_seed(1)) - 0.4
    for count in (16, 5, 1):
        crops = draw_crops(count)
        plain = adjust_photometry(crops, factors[:count])
        fast = compiled_photometry(crops, factors[:count])
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)


def test_factors_fill_the_strengths_and_no_more():
    factors = Augment(brightness=0.1, contrast=0.2, saturation=0.5).factors(PLAN)
    assert (Augment(contrast=0.3).factors(PLAN)[:, [0, 2]] == 1).all()
    limits = torch.tensor([0.1, 0.2, 0.5])
    assert ((factors - 1).abs() <= limits + 1e-6).all()
    assert ((factors - 1).abs().amax(dim=0) > 0.99 * limits).all()
    torch.testing.assert_close(factors.mean(dim=0), torch.ones(3), rtol=0, atol=0.01)
    assert factors.T.corrcoef().fill_diagonal_(0).abs().max() < 0.04


def test_factors_are_keyed_by_seed_and_epoch():
    augment = Augment(brightness=0.1)
    first, again = augment.factors(PLAN), augment.factors(PLAN)
    assert torch.equal(first, again)
    for other in (EpochPlan(1, 0, 10, 10_000), EpochPlan(0, 1, 10, 10_000)):
        assert not torch.equal(augment.factors(other), first)
    assert torch.equal(augment.factors(EpochPlan(0, 0, 10, 100)), first[:100])


def test_no_strength_draws_no_factors():
    assert Augment().factors(PLAN) is None
    crops = draw_crops()
    assert Augment().photometry(crops, None) is crops


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_half_of_the_crops_are_flipped_along_the_sides_that_are_on(flip_x, flip_y):
    flips = Augment(flip_x=flip_x, flip_y=flip_y).flips(PLAN)
    assert flips.shape == (10_000, 2)
    assert set(flips.unique().tolist()) <= {0.0, 1.0}
    shares = flips.mean(dim=0).tolist()
    assert shares == pytest.approx([0.5 * flip_x, 0.5 * flip_y], abs=0.02)
    both = Augment().flips(PLAN)
    assert torch.equal(flips, both * torch.tensor([flip_x, flip_y]))
    assert both.prod(dim=1).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "module",
    [
        K.ColorJitter(0.1, 0.1, 0.1, order=(0, 1, 2)),
        K.RandomGaussianBlur((3, 3), (0.1, 1.0)),
        K.RandomErasing(),
        nn.Sequential(K.RandomGamma(), K.RandomGrayscale()),
        K.ImageSequential(K.RandomGamma(), K.ImageSequential(K.RandomSolarize())),
        K.AugmentationSequential(K.RandomPosterize()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_photometric_modules_are_applied_last(module):
    crops, factors = draw_crops(), torch.full((16, 3), 0.9)
    augment = Augment(extra=[module])
    torch.manual_seed(0)
    result = augment.photometry(crops, factors)
    torch.manual_seed(0)
    torch.testing.assert_close(result, module(adjust_photometry(crops, factors)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (K.RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (K.RandomAffine(10.0), "RandomAffine"),
        (K.RandomCrop((8, 8)), "RandomCrop"),
        (K.Resize((8, 8)), "Resize"),
        (K.RandomMixUpV2(), "RandomMixUpV2"),
        (K.RandomMosaic(), "RandomMosaic"),
        (K.RandomJigsaw(), "RandomJigsaw"),
        (K.RandomTransplantation(), "RandomTransplantation"),
        (nn.Sequential(K.RandomGamma(), K.RandomRotation(5.0)), "RandomRotation"),
        (K.ImageSequential(K.RandomPerspective()), "RandomPerspective"),
        (K.AugmentationSequential(K.RandomElasticTransform()), "RandomElasticTransform"),
        (nn.Sequential(nn.Sequential(nn.Sequential(K.RandomVerticalFlip()))), "RandomVerticalFlip"),
        (nn.Sequential(), "Sequential"),
        (nn.Conv2d(3, 3, 3), "Conv2d"),
        (Roll(), "Roll"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_could_move_the_object_is_refused(module, name):
    message = f"augment.extra holds {name}, which isn't a photometric kornia augmentation"
    with pytest.raises(BadInput, match=message):
        Augment(extra=[K.RandomGamma(), module])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, r"augment brightness is -0\.1; expected 0 \(off\) to 1"),
        ({"contrast": 1.5}, r"augment contrast is 1\.5"),
        ({"saturation": 2}, "augment saturation is 2"),
        ({"noise": -0.01}, r"augment noise is -0\.01; expected 0 \(off\) or more"),
    ],
)
def test_impossible_strengths_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        Augment(**arguments)


def test_noise_is_the_stretch_of_the_bank_at_the_samples_offset():
    bank = NoiseBank(("noise", 0), window=7, length=100)
    offsets = torch.tensor([0, 3, 3, 93])
    expected = torch.stack([bank.values[offset : offset + 7] for offset in offsets])
    assert torch.equal(bank.windows(offsets), expected)


def test_noise_is_standard_normal():
    values = NoiseBank(("noise", 0), window=10, length=1 << 17).values.double()
    assert values.mean().abs() < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    expected = torch.distributions.Normal(0, 1).cdf(values.sort().values)
    rank = (torch.arange(len(values)) + 0.5) / len(values)
    assert (expected - rank).abs().max() < 1.63 / len(values) ** 0.5  # KS at 1 %
    assert torch.stack([values[:-1], values[1:]]).corrcoef()[0, 1].abs() < 0.01


def test_offsets_fill_the_bank_and_stay_inside():
    bank = NoiseBank(("noise", 0), window=48, length=1_000)
    offsets = bank.offsets(PLAN)
    assert offsets.min() == 0
    assert 945 <= offsets.max() <= 1_000 - 48
    assert torch.equal(offsets, bank.offsets(PLAN))
    assert not torch.equal(offsets, bank.offsets(EpochPlan(0, 1, 10, 10_000)))


def test_banks_differ_by_key():
    first, again, other = (NoiseBank(("noise", seed), 4, 64).values for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
