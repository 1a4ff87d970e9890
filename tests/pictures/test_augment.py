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
    mean_shift,
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
    ("module", "shift"),
    [
        (K.RandomBoxBlur((4, 4), p=1.0), 0.5**0.5),
        (K.RandomBoxBlur((2, 3), p=1.0), 0.5),
        (K.RandomBoxBlur((4, 4), p=0.5), 0.5**0.5 / 2),
        (K.RandomBoxBlur((5, 5), p=1.0), 0.0),
        (K.RandomGamma((0.5, 2.0), p=1.0), 0.0),
    ],
    ids=["4 x 4", "2 x 3", "half of the time", "5 x 5", "gamma"],
)
def test_the_shift_of_a_disc_is_the_one_that_the_kernel_makes(module, shift):
    share = float(module.p)
    spread = 3 * shift / share * (share * (1 - share) / 128) ** 0.5  # of the draws that do nothing
    assert mean_shift(module) == pytest.approx(shift, abs=spread + 1e-3)


@pytest.mark.parametrize(
    "module",
    [
        K.RandomBoxBlur((4, 4)),
        K.RandomMotionBlur((3, 9), 35.0, 0.5, p=1.0),
        K.RandomMotionBlur(9, (0.0, 360.0), (-1.0, 1.0), p=1.0),
        K.RandomErasing(),
        K.RandomErasing(p=0.1),
        K.RandomErasing(scale=(0.9, 1.0), ratio=(1.0, 1.0), p=1.0),
        K.RandomPlasmaShadow(p=1.0),
        K.RandomRain(p=1.0, drop_height=(5, 8), drop_width=(-2, 2)),
        nn.Sequential(K.RandomGamma(), K.RandomBoxBlur((4, 4), p=1.0)),
        K.RandomBrightness((1.99, 2.0), p=1.0),
    ],
    ids=lambda module: type(module).__name__,
)
def test_photometric_classes_that_move_or_hide_the_object_are_refused(module):
    with pytest.raises(BadInput, match=rf"extra's {type(module).__name__} moves or hides the obj"):
        Augment(extra=[module])


@pytest.mark.parametrize(
    "module",
    [
        K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0),
        K.RandomAutoContrast(p=1.0),
        K.RandomChannelDropout(p=1.0),
        K.RandomChannelShuffle(p=1.0),
        K.RandomEqualize(p=1.0),
        K.RandomGaussianBlur((5, 5), (0.5, 2.0), p=1.0),
        K.RandomGaussianIllumination(p=1.0),
        K.RandomGaussianNoise(0.0, 0.5, p=1.0),
        K.RandomHue((-0.5, 0.5), p=1.0),
        K.RandomInvert(p=1.0),
        K.RandomJPEG((10.0, 50.0), p=1.0),
        K.RandomLinearCornerIllumination(p=1.0),
        K.RandomLinearIllumination(p=1.0),
        K.RandomMedianBlur((3, 3), p=1.0),
        K.RandomMotionBlur(5, 35.0, 0.0, p=1.0),
        K.RandomPlanckianJitter(p=1.0),
        K.RandomPosterize(3, p=1.0),
        K.RandomSaltAndPepperNoise(p=1.0),
        K.RandomSharpness(p=1.0),
        K.RandomSnow(p=1.0),
        K.RandomSolarize(p=1.0),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_leaves_the_object_where_it_is_is_allowed_and_leaves_the_random_numbers(module):
    torch.manual_seed(7)
    Augment(extra=[module])
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))


def test_a_module_that_fails_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match=r"RandomRain can't be applied to crops of 45 x 45 px \("):
        Augment(extra=[K.RandomRain(drop_height=(50, 60), p=1.0)])


def test_the_extra_modules_of_one_are_not_those_of_another():
    given = [K.RandomGamma()]
    augment = Augment(extra=given)
    given.append(K.RandomHorizontalFlip())
    assert len(augment.extra) == 1
    assert Augment().extra == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, r"augment brightness is -0\.1; expected 0 \(off\) to 1"),
        ({"contrast": 1.5}, r"augment contrast is 1\.5"),
        ({"saturation": 2}, "augment saturation is 2"),
        *(
            ({name: float("nan")}, f"augment {name} is nan")
            for name in ("brightness", "contrast", "saturation", "noise")
        ),
        ({"noise": float("inf")}, "augment noise is inf"),
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


@pytest.mark.parametrize("size", [836, 837, 1182, 1183, 1300])
def test_noise_reaches_crops_of_any_size(size):
    """From 1183 px on a crop has more values than the bank had; up to 836 px nothing changes."""
    bank = NoiseBank(("noise",), window=3 * size**2)
    assert bank.length == max(1 << 22, 6 * size**2)
    offsets = bank.offsets(EpochPlan(seed=0, epoch=0, num_items=10, num_draws=1000))
    assert len(offsets.unique()) > 990
    assert offsets.min() >= 0
    assert offsets.max() + bank.window <= bank.length


def test_crops_larger_than_the_bank_once_was_get_noise():
    bank = NoiseBank(("noise",), window=3 * 1183**2)
    noise = bank.windows(torch.tensor([0, 5]))
    assert noise.shape == (2, 3 * 1183**2)
    assert torch.equal(noise[0, 5:], noise[1, :-5])
    assert noise[0].std() == pytest.approx(1, abs=0.01)
