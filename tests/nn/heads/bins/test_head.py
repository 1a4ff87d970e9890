import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox import (
    ArgmaxDecoder,
    AttributeHinge,
    BadInput,
    BinaryCrossEntropy,
    BinHead,
    CrossEntropy,
    CumulativeLink,
    Decoder,
    ExpectationDecoder,
    GaussianLabels,
    IndependentLink,
    MeanShiftDecoder,
    MedianDecoder,
    ModeDecoder,
    OneHotLabels,
    Part,
    SmoothedLabels,
    SoftmaxLink,
    StructuredHinge,
    TreeLink,
    TwoHotLabels,
    WestonWatkinsHinge,
)
from lightning_bbox.geometry.codecs import TargetSpace
from tests.parts import (
    BOUNDS,
    boxes_at,
    draw_offsets,
    each_codec,
    fitted_codec,
    several_bounds,
    spec_of,
    spec_with,
    two_or_four,
)

LABELS = [GaussianLabels(), OneHotLabels(), SmoothedLabels(), TwoHotLabels()]
DECODERS = [
    *(ExpectationDecoder(), ArgmaxDecoder(), MeanShiftDecoder(), MedianDecoder(), ModeDecoder())
]
HINGES = [WestonWatkinsHinge(), WestonWatkinsHinge(True), StructuredHinge()]
COMBINATIONS = [
    *product([SoftmaxLink, TreeLink], [CrossEntropy()], LABELS),
    *product([CumulativeLink, IndependentLink], [BinaryCrossEntropy()], LABELS),
    *product([SoftmaxLink], HINGES, [OneHotLabels()]),
    (IndependentLink, AttributeHinge(), OneHotLabels()),
]
combinations = pytest.mark.parametrize(("link", "loss", "labels"), COMBINATIONS, ids=repr)


def bin_head(bounds=(5.0, 5.0), codec=None, **arguments):
    head = BinHead(**arguments).build(8, spec_with(bounds))
    if codec is not None:
        head.fit(codec.space())
    return head


def hl_gauss(offset, bound, width, sigma=0.75):
    """Return centres and masses of one coordinate's bins, straight from the formula."""
    reach = math.ceil(bound / width + 4 * sigma - 1e-6)
    edges = (np.arange(-reach, reach + 2) - 0.5) * width
    offset = np.clip(offset, edges[0], edges[-1])
    cdf = scipy.stats.norm.cdf(edges, loc=offset, scale=sigma * width)
    return np.arange(-reach, reach + 1) * width, np.diff(cdf) / (cdf[-1] - cdf[0])


def test_the_default_bins_are_27_from_minus_6_and_a_half_and_cost_2_ln_27_at_chance():
    head = bin_head()
    assert head.centers.shape == (2, 27)
    assert head.centers[:, [0, 13, -1]].tolist() == [[-6.5, 0.0, 6.5]] * 2
    losses = head.loss(torch.zeros(1, 2, 27), torch.tensor([[1.3, -4.9]]))
    assert losses.item() == pytest.approx(2 * math.log(27), rel=1e-5)


@several_bounds
@pytest.mark.parametrize("sigma", [0.5, 0.75, 2.0])
def test_bins_reach_four_sigma_beyond_the_bound_and_labels_are_those_of_hl_gauss(bounds, sigma):
    head = bin_head(bounds, labels=GaussianLabels(sigma))
    offsets = draw_offsets(100, [*bounds, 0.2, 0.2][:4])[:, : len(bounds)]
    probs = head.target_probs(offsets.float())
    assert probs.shape == (100, *head.centers.shape)
    for row, bound in enumerate(bounds):
        width, inside = 0.5 if row < 2 else 0.05, head.grid.inside[row]
        expected = [hl_gauss(y, bound, width, sigma) for y in offsets[:, row].numpy()]
        np.testing.assert_allclose(head.centers[row, inside], expected[0][0], atol=1e-6)
        masses = np.stack([mass for _, mass in expected])
        np.testing.assert_allclose(probs[:, row, inside], masses, atol=2e-6)
        assert (probs[:, row, ~inside] == 0).all()


@each_codec
@two_or_four
def test_bins_lie_in_px_whatever_the_codec(codec, num_targets):
    fitted = fitted_codec(codec, num_targets)
    offsets = draw_offsets(200, seed=1)[:, :num_targets]
    reference = bin_head(spec_of(num_targets).bounds)
    expected = reference.target_probs(offsets.float())
    head = bin_head(spec_of(num_targets).bounds, fitted)
    boxes, anchors = boxes_at(offsets)
    targets = fitted.encode(boxes, anchors)
    torch.testing.assert_close(head.target_probs(targets), expected, rtol=0, atol=1e-4)
    logits = torch.randn(200, *head.centers.shape)
    torch.testing.assert_close(
        head.loss(logits, targets), reference.loss(logits, offsets.float()), rtol=1e-4, atol=1e-4
    )
    perfect = head.target_probs(targets).log().clamp(min=-100)
    torch.testing.assert_close(
        fitted.decode(head.decode(perfect), anchors), boxes, rtol=0, atol=2e-3
    )


@given(offset=st.floats(-1e6, 1e6), logit=st.floats(-100, 100))
def test_offsets_beyond_the_range_stay_finite(offset, logit):
    head = bin_head(BOUNDS["four"])
    targets = torch.full((1, 4), offset)
    probs = head.target_probs(targets)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(1, 4))
    logits = torch.zeros(1, *head.centers.shape)
    logits[..., 0] = logit
    assert head.loss(logits, targets).isfinite().all()


def test_an_offset_beyond_the_range_counts_as_its_end():
    head = bin_head()
    end = head.edges[0, -1].item()
    far, at_end = (head.target_probs(torch.full((1, 2), x)) for x in (1e3, end))
    assert torch.equal(far, at_end)
    assert far.argmax(dim=-1).tolist() == [[26, 26]]


def test_bf16_logits_lose_nothing_more_in_the_loss():
    head = bin_head()
    logits, targets = torch.randn(64, 2, 27).bfloat16(), torch.randn(64, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, decoded = head.loss(logits, targets), head.decode(logits)
    torch.testing.assert_close(losses, head.loss(logits.float(), targets), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decoded, head.decode(logits.float()), rtol=1e-6, atol=1e-6)


def test_cross_entropy_is_least_at_the_target_distribution():
    head = bin_head(BOUNDS["uneven"])
    targets = torch.randn(20, 4) * torch.tensor([2.0, 3.0, 0.05, 0.2])
    best = head.target_probs(targets).log().clamp(min=-100)
    noise = 0.3 * torch.randn(20, *head.centers.shape)
    assert (head.loss(best, targets) < head.loss(best + noise, targets)).all()
    logits = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(head.loss(logits, targets).sum(), logits)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("bounds", [BOUNDS["two"], BOUNDS["uneven"]], ids=["two", "four"])
@combinations
def test_every_combination_trains_and_decodes_within_the_bins(link, loss, labels, bounds):
    torch.manual_seed(0)
    for grids in (1, 3):
        head = bin_head(bounds, labels=labels, link=link(), loss=loss, grids=grids)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
        features = torch.randn(16, 8)
        targets = torch.rand(16, len(bounds)) * torch.tensor(bounds)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = head(features)
                losses = head.loss(outputs, targets)
            losses.mean().backward()
            assert all(weight.grad.isfinite().all() for weight in head.parameters())
            optimizer.step()
        assert head.loss(head(features), targets).mean() < losses.mean()
        for decoder in DECODERS:
            head.decoder = decoder
            decoded = head.decode(head(features))
            assert decoded.shape == targets.shape
            assert (decoded.abs() <= head.edges.abs().amax(dim=-1)[: len(bounds)] + 1e-4).all()


@combinations
def test_density_and_deviation_are_those_of_the_votes_and_nan_of_a_hinge(link, loss, labels):
    torch.manual_seed(0)
    head = bin_head(BOUNDS["uneven"], labels=labels, link=link(), loss=loss, grids=2)
    outputs = head(1000 * torch.randn(8, 8)).detach()
    targets = (torch.rand(8, 4) * 2 - 1) * torch.tensor(BOUNDS["uneven"])
    nll, stds = head.nll(outputs, targets), head.stds(outputs)
    assert nll.shape == stds.shape == (8, 4)
    if not loss.probabilistic:
        assert nll.isnan().all()
        assert stds.isnan().all()
        return
    assert (stds >= 0).all()
    probs = head.probs(outputs).double().view(8, 2, 4, -1).numpy()
    edges = head.edges.double().view(2, 4, -1).numpy()
    for sample, row in np.ndindex(8, 4):
        density = 0.0
        for grid in range(2):
            y = float(targets[sample, row])
            bins = int(np.searchsorted(edges[grid, row], y)) - 1
            density += probs[sample, grid, row, bins] / (0.5 if row < 2 else 0.05) / 2
        assert nll[sample, row].item() == pytest.approx(-math.log(density), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("grids", [1, 4])
def test_stds_are_those_of_the_truth_without_the_blur_of_the_labels(grids):
    head = bin_head(grids=grids)
    truths = torch.from_numpy(scipy.stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)).float()
    labels = head.target_probs(truths[:, None] * torch.tensor([1.0, 0.5])).mean(dim=0)
    stds = head.stds(labels.log().clamp(min=-100)[None])
    torch.testing.assert_close(stds, torch.tensor([[1.0, 0.5]]), rtol=0, atol=0.01)


def test_a_head_sure_of_a_truth_deems_itself_exact():
    """The label of a known offset has no spread but its own blur."""
    head = bin_head()
    labels = head.target_probs(torch.tensor([0.0, 0.1, 1.23])[:, None].repeat(1, 2))
    assert head.stds(labels.clamp(min=1e-12).log()).max() < 0.05
    assert head.stds(torch.zeros_like(labels)).min() > 3.5


@pytest.mark.parametrize("grids", [1, 4])
def test_density_integrates_to_1(grids):
    head = bin_head(grids=grids)
    outputs = torch.randn(1, 2 * grids, head.centers.shape[1]) - head.centers.square()
    end = float(head.edges.abs().max())
    truths = torch.linspace(-end, end, 20_001)[:, None].repeat(1, 2)
    density = (-head.nll(outputs.expand(len(truths), -1, -1), truths)).exp()
    area = density.mean(dim=0) * 2 * end
    torch.testing.assert_close(area, torch.ones(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("decoder", [MeanShiftDecoder(), MedianDecoder()], ids=repr)
@pytest.mark.parametrize("grids", [2, 5])
def test_shifted_grids_decode_any_offset_and_cost_as_much_at_chance(grids, decoder):
    head = bin_head(grids=grids, decoder=decoder)
    offsets = torch.linspace(-5, 5, 501)[:, None].repeat(1, 2)
    logits = head.target_probs(offsets).log().clamp(min=-100)
    assert (head.decode(logits) - offsets).abs().max() < 0.01
    bins = head.grid.inside.sum(dim=-1)
    chance = head.loss(torch.zeros_like(logits), offsets)
    torch.testing.assert_close(chance, bins.log().sum().expand(501) / grids)
    together = head.votes(logits)
    torch.testing.assert_close(together.sum(dim=-1), torch.ones(501, 2))


@pytest.mark.parametrize("labels", [GaussianLabels(), TwoHotLabels()])
def test_the_l1_term_is_the_expectations_error_in_stds(labels):
    space = TargetSpace(
        *(torch.tensor(x) for x in ([2.0, 3.0], [0.1, 0.2], [4.0, 5.0], [5.0, 5.0]))
    )
    plain, with_l1 = bin_head(labels=labels), bin_head(labels=labels, l1_weight=0.5)
    for head in (plain, with_l1):
        head.fit(space)
    logits, targets = torch.randn(9, *plain.centers.shape), torch.randn(9, 2)
    errors = (plain.decode(logits) - targets).abs() / torch.tensor([4.0, 5.0])
    expected = plain.loss(logits, targets) + 0.5 * errors.sum(dim=-1)
    torch.testing.assert_close(with_l1.loss(logits, targets), expected)


def test_bins_reach_as_far_as_they_are_asked_to():
    head = bin_head(max_shift=3.0)
    assert (head.centers[0, -1], head.reach[0]) == (4.5, 3.0)
    assert bin_head().reach[0] == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bin_width": 0.0}, r"bin_width 0\.0"),
        ({"log_bin_width": -0.1}, r"log_bin_width -0\.1"),
        ({"grids": 0}, "grids 0"),
        ({"l1_weight": -1.0}, r"l1_weight -1\.0"),
        ({"max_shift": 0.0}, r"max_shift 0\.0"),
        (
            {"link": IndependentLink(), "loss": CrossEntropy()},
            "CrossEntropy can't train IndependentLink; choose SoftmaxLink or TreeLink",
        ),
        (
            {"link": TreeLink(), "loss": StructuredHinge()},
            "StructuredHinge can't train TreeLink; choose SoftmaxLink for it",
        ),
        (
            {"link": CumulativeLink(), "loss": AttributeHinge()},
            "AttributeHinge can't train CumulativeLink; choose IndependentLink",
        ),
        (
            {"labels": GaussianLabels(), "loss": WestonWatkinsHinge()},
            "WestonWatkinsHinge needs one true bin, and GaussianLabels are spread",
        ),
        ({"loss": StructuredHinge(), "l1_weight": 0.5}, r"l1_weight 0\.5 needs probabilities"),
    ],
)
def test_bins_and_combinations_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        BinHead(**arguments)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (GaussianLabels, 0.0, r"sigma is 0\.0"),
        (SmoothedLabels, 1.0, r"eps is 1\.0"),
        (TreeLink, 1, "children is 1"),
        (ModeDecoder, 2, "bins is 2"),
        (ModeDecoder, -1, "bins is -1"),
        (MeanShiftDecoder, 0, "steps is 0"),
    ],
)
def test_impossible_parts_are_refused(kind, value, message):
    with pytest.raises(BadInput, match=f"{kind.__name__} {message}"):
        kind(value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [GaussianLabels, SoftmaxLink, CrossEntropy, ExpectationDecoder]),
        ({"link": TreeLink()}, [GaussianLabels, TreeLink, CrossEntropy, ExpectationDecoder]),
        (
            {"link": CumulativeLink()},
            [OneHotLabels, CumulativeLink, BinaryCrossEntropy, ExpectationDecoder],
        ),
        ({"loss": AttributeHinge()}, [OneHotLabels, IndependentLink, AttributeHinge, ModeDecoder]),
    ],
)
def test_what_is_not_given_is_what_usually_goes_with_the_rest(given, expected):
    head = BinHead(**given)
    assert list(map(type, (head.labels, head.link, head.criterion, head.decoder))) == expected


class LastDecoder(Decoder):
    """Written as a module would be: with `forward`."""

    def forward(self, probs, centers, widths):
        return centers[:, -1].expand(len(probs), -1)


class LearnedDecoder(Part, LastDecoder):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, probs, centers, widths):
        return self.factor * super().forward(probs, centers, widths)


@pytest.mark.parametrize(
    ("decoder", "offset", "state"),
    [(LastDecoder(), 6.5, set()), (LearnedDecoder(), 3.25, {"decoder.factor"})],
)
def test_a_decoder_of_ones_own_may_be_called_by_forward_and_hold_weights(decoder, offset, state):
    head = bin_head(decoder=decoder)
    assert head.decode(torch.zeros(1, 2, 27)).tolist() == [[offset] * 2]
    assert head.state_dict().keys() - bin_head().state_dict().keys() == state


def test_a_head_shows_all_of_its_parts():
    shown = repr(BinHead(GaussianLabels(0.5), decoder=ModeDecoder(5)))
    for part in (
        "GaussianLabels(sigma=0.5)",
        "SoftmaxLink()",
        "CrossEntropy()",
        "ModeDecoder(bins",
    ):
        assert part in shown
