import math
import tempfile
from pathlib import Path

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox import (
    BadInput,
    CropGeometry,
    DisplacementLaw,
    FittedJitter,
    LaplaceJitter,
    OverlapJitter,
    UniformJitter,
    law_of_pairs,
)
from lightning_bbox.geometry.boxes import box_area, box_centers, box_sizes, paired_iou


def fitted(right, *parts):
    """Return the jitter of a law, of parts (share, mean, std), that lies in a file."""
    path = Path(tempfile.mkdtemp()) / "law.json"
    DisplacementLaw(right, *zip(*parts, strict=True)).save(path)
    return FittedJitter(str(path))


SKEWED = (0.6, (0.05, -0.1, 0.2, 0.1), (0.02, 0.03, 0.04, 0.05))
WIDE = (0.3, (0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.1, 0.1))
LAWS = {
    "fitted": fitted(0.0, (1.0, *SKEWED[1:])),
    "fitted_to_two": fitted(0.01, SKEWED, (0.39, *WIDE[1:])),
    "uniform": UniformJitter(5.0, 0.2),
    "integer": UniformJitter(5.0, 0.2, integer=True),
    "wide": UniformJitter(12.5, 0.7),
    "laplace": LaplaceJitter(),
    "wide_laplace": LaplaceJitter(1.0, 0.5, 0.6),
    "overlap": OverlapJitter(),
    "wide_overlap": OverlapJitter(1.0, 3.0, 2.0, min_iou=0.3, max_area=4.0),
}
GEOMETRIES = {
    "usual": CropGeometry(),
    "square": CropGeometry(context=1.2, square=True),
    "patch": CropGeometry(size=16, context=1.0, reference_size=16.0),
}

laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
resizes = pytest.mark.parametrize("resize", [False, True], ids=["shift", "resize"])

with_retries = pytest.mark.parametrize("law", [LAWS["laplace"], LAWS["overlap"]])

sides = st.floats(2, 500)
edges = st.floats(-200, 3000)
unit = st.floats(0, 1, exclude_max=True)


def draw_boxes(num, seed=0, low=0.0):
    """Boxes of 20 to 60 px a side, at least `low` px from the picture's corner."""
    generator = torch.Generator().manual_seed(seed)
    corners = low + 100 * torch.rand(num, 2, generator=generator)
    return torch.cat([corners, corners + 20 + 40 * torch.rand(num, 2, generator=generator)], dim=1)


def draw_uniforms(law, num, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, law.columns * law.tries, generator=generator)


def offsets_of(boxes, proposals, geometry):
    """Return the shifts in px and the changes of log size from proposals to boxes."""
    px = geometry.px(geometry.anchors(proposals))
    shifts = (box_centers(boxes) - box_centers(proposals)) / px
    return shifts, (box_sizes(boxes) / box_sizes(proposals)).log()


def draw(law, boxes, resize=True, geometry=GEOMETRIES["usual"]):
    return law.propose(boxes, draw_uniforms(law, len(boxes)), geometry, resize)


def propose(law, num=5_000, geometry=GEOMETRIES["usual"], resize=True):
    """Return boxes and what the law made of them, failed draws left out."""
    boxes = draw_boxes(num)
    jittered = draw(law, boxes, resize, geometry)
    return boxes[~jittered.failed], jittered.proposals[~jittered.failed]


@laws
@geometries
@resizes
@given(corner=st.tuples(edges, edges), size=st.tuples(sides, sides), data=st.data())
def test_no_proposal_is_further_off_than_the_bounds(law, geometry, resize, corner, size, data):
    count = law.columns
    numbers = data.draw(st.lists(unit, min_size=count, max_size=count))
    box = [*corner, corner[0] + size[0], corner[1] + size[1]]
    boxes = torch.tensor([box], dtype=torch.float64)
    uniforms = torch.tensor(numbers, dtype=torch.float64).repeat(1, law.tries)
    proposals = law.propose(boxes, uniforms, geometry, resize).proposals
    shifts, log_sizes = offsets_of(boxes, proposals, geometry)
    max_shift, max_log_size = law.bounds(geometry)
    assert shifts.abs().max() <= max_shift + 1e-6
    assert log_sizes.abs().max() <= max_log_size + 1e-6


@laws
@geometries
@resizes
def test_bounds_hold_in_single_precision_but_for_rounding(law, geometry, resize):
    shifts, log_sizes = offsets_of(*propose(law, 2_000, geometry, resize), geometry)
    max_shift, max_log_size = law.bounds(geometry)
    assert shifts.abs().max() <= max_shift + 1e-3
    assert log_sizes.abs().max() <= max_log_size + 1e-4


@geometries
@resizes
def test_uniform_shifts_are_uniform_in_px(geometry, resize):
    shifts, log_sizes = offsets_of(*propose(LAWS["uniform"], 20_000, geometry, resize), geometry)
    offsets = torch.cat([shifts / 5, log_sizes / 0.2], dim=1) if resize else shifts / 5
    for column in offsets.T.numpy():
        assert scipy.stats.kstest(column, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert offsets.T.corrcoef().fill_diagonal_(0).abs().max() < 0.03


@geometries
def test_whole_shifts_are_all_there_and_equally_frequent(geometry):
    law = UniformJitter(5.0, integer=True)
    shifts, _ = offsets_of(*propose(law, 20_000, geometry, resize=False), geometry)
    whole = shifts.round()
    assert (shifts - whole).abs().max() < 1e-3
    for axis in (0, 1):
        counts = (whole[:, axis].long() + 5).bincount(minlength=11)
        assert len(counts) == 11
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_whole_shifts_reach_both_ends_at_the_ends_of_the_numbers():
    boxes = torch.tensor([[0.0, 0.0, 45.0, 45.0]] * 3)
    numbers = torch.tensor([0.0, 0.5, 1 - 2**-24])[:, None].expand(3, 4)
    geometry = CropGeometry(context=1.0)
    proposals = UniformJitter(5.0, integer=True).propose(boxes, numbers, geometry, resize=False)
    assert (proposals.proposals - boxes)[:, 0].tolist() == [-5, 0, 5]


@laws
def test_shifts_alone_keep_the_size(law):
    boxes, proposals = propose(law, resize=False)
    torch.testing.assert_close(box_sizes(proposals), box_sizes(boxes), rtol=1e-5, atol=0)
    assert (box_centers(proposals) != box_centers(boxes)).any(dim=1).float().mean() > 0.98


@resizes
def test_accepted_overlaps_are_what_was_asked_for(resize):
    boxes, proposals = propose(OverlapJitter(), 20_000, resize=resize)
    assert len(boxes) > 5_000
    iou, ratio = paired_iou(boxes, proposals), box_area(proposals) / box_area(boxes)
    assert iou.min() >= 0.6
    assert iou.min() < 0.62
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 2
    assert (ratio.max() > 1.5) == resize


def test_no_accepted_overlap_is_larger_than_was_asked_for():
    boxes, proposals = propose(OverlapJitter(min_iou=0.1, max_area=1.5))
    assert 1.4 < (box_area(proposals) / box_area(boxes)).max() < 1.501


def test_few_overlap_draws_fail():
    assert draw(OverlapJitter(), draw_boxes(5_000)).failed.float().mean() < 0.01


def test_overlap_accepts_as_often_wherever_the_box_lies():
    law = OverlapJitter()
    law.tries = 1
    boxes = (draw_boxes(5_000) * 2**12).round() / 2**12  # the move adds no rounding of its own
    here, far = (draw(law, boxes + move, resize=False).failed for move in (0.0, 2048.0))
    assert far.float().mean().item() == pytest.approx(here.float().mean().item(), abs=0.005)


def test_overlap_varies_scale_and_aspect():
    law = OverlapJitter(scale=1.6, aspect=1.1, min_iou=0.01, max_area=9.0)
    log_sizes = offsets_of(*propose(law, 20_000), CropGeometry())[1]
    scale, aspect = log_sizes.mean(dim=1), log_sizes[:, 0] - log_sizes[:, 1]
    assert scale.min() == pytest.approx(-math.log(1.6), abs=0.01)
    assert aspect.std() > 0.03
    assert aspect.mean().abs() < 0.01


def test_laplace_shifts_have_the_quantiles_of_the_law():
    levels = torch.linspace(0.0005, 0.9995, 2_001, dtype=torch.float64)
    law, geometry = LaplaceJitter(), CropGeometry(context=10.0)  # so wide that none is drawn again
    boxes = torch.tensor([[10.0, 20.0, 40.0, 80.0]], dtype=torch.float64).expand(2_001, 4)
    uniforms = levels[:, None].repeat(1, law.columns * law.tries)
    jittered = law.propose(boxes, uniforms, geometry, resize=True)
    assert not jittered.failed.any()
    expected = torch.from_numpy(scipy.stats.laplace.ppf(levels.numpy(), scale=1 / 5))
    shifts = (box_centers(jittered.proposals) - box_centers(boxes)) / box_sizes(boxes)
    torch.testing.assert_close(shifts, expected[:, None].expand(-1, 2))
    changes = torch.from_numpy(scipy.stats.laplace.ppf(levels.numpy(), scale=1 / 15))
    ratios = box_sizes(jittered.proposals) / box_sizes(boxes)
    torch.testing.assert_close(ratios, 1 + changes.clamp(-0.4, 0.4)[:, None].expand(-1, 2))


@resizes
def test_the_true_centre_stays_in_the_crop_of_a_laplace_draw(resize):
    geometry = CropGeometry()
    boxes, proposals = propose(LaplaceJitter(), 20_000, resize=resize)
    crops = geometry.crop_boxes(proposals)
    centers = box_centers(boxes)
    assert (centers >= crops[:, :2] - 1e-4).all()
    assert (centers <= crops[:, 2:] + 1e-4).all()
    assert len(boxes) > 19_990


def test_laplace_ends_are_finite():
    boxes = draw_boxes(2)
    ends = torch.tensor([0.0, 1 - 2**-24])[:, None].expand(2, 40)
    assert LaplaceJitter().propose(boxes, ends, CropGeometry(), True).proposals.isfinite().all()


@with_retries
def test_draws_that_all_fail_keep_the_true_box_and_are_counted(law):
    boxes = draw_boxes(3)
    uniforms = torch.full((3, law.columns * law.tries), 1 - 2**-24)
    uniforms[1, -law.columns :] = 0.5  # the last try leaves this one where it is
    uniforms[2, -2 * law.columns : -law.columns] = 0.55
    jittered = law.propose(boxes, uniforms, CropGeometry(), resize=True)
    assert jittered.failed.tolist() == [True, False, False]
    assert torch.equal(jittered.proposals[0], boxes[0])
    torch.testing.assert_close(jittered.proposals[1], boxes[1])
    assert (jittered.proposals[2] != boxes[2]).any()


@with_retries
def test_the_first_try_that_is_accepted_counts(law):
    boxes = draw_boxes(500)
    uniforms = draw_uniforms(law, 500)
    jittered = law.propose(boxes, uniforms, CropGeometry(), resize=True)
    one = type(law)()
    one.tries = 1
    left = torch.ones(500, dtype=torch.bool)
    for columns in uniforms.split(law.columns, dim=1):
        single = one.propose(boxes, columns, CropGeometry(), resize=True)
        chosen = left & ~single.failed
        assert torch.equal(jittered.proposals[chosen], single.proposals[chosen])
        left &= single.failed
    assert torch.equal(left, jittered.failed)


@laws
def test_a_proposal_depends_on_its_own_numbers_alone(law):
    boxes, uniforms = draw_boxes(20), draw_uniforms(law, 20)
    together = law.propose(boxes, uniforms, CropGeometry(), resize=True).proposals
    alone = law.propose(boxes[7:8], uniforms[7:8], CropGeometry(), resize=True).proposals
    assert torch.equal(together[7:8], alone)


@pytest.mark.parametrize(
    ("law", "arguments", "message"),
    [
        (UniformJitter, {"shift": 0.0}, r"jitter shift 0\.0 must be positive"),
        (UniformJitter, {"shift": -1.0}, "jitter shift -1.0"),
        (UniformJitter, {"log_scale": -0.1}, "log_scale -0.1 not negative"),
        (UniformJitter, {"shift": 2.5, "integer": True}, "shift 2.5 isn't whole"),
        (LaplaceJitter, {"shift": 0.0}, r"Laplace jitter shift 0\.0"),
        (LaplaceJitter, {"scale": -0.1}, "scale -0.1"),
        (LaplaceJitter, {"max_scale": 1.0}, r"max_scale 1\.0"),
        (OverlapJitter, {"shift": 0.0}, r"overlap jitter shift 0\.0"),
        (OverlapJitter, {"scale": 0.9}, r"scale 0\.9"),
        (OverlapJitter, {"aspect": 0.5}, r"aspect 0\.5"),
        (OverlapJitter, {"min_iou": 1.0}, r"min_iou 1\.0"),
        (OverlapJitter, {"max_area": 0.5}, r"max_area 0\.5"),
    ],
)
def test_impossible_laws_are_refused(law, arguments, message):
    with pytest.raises(BadInput, match=message):
        law(**arguments)


def test_fitted_proposals_follow_their_law():
    boxes = draw_boxes(20_000)
    law = fitted(0.1, SKEWED, WIDE)
    proposals = draw(law, boxes).proposals
    stays = (proposals - boxes).abs().amax(dim=1) < 1e-4
    assert stays.float().mean() == pytest.approx(0.1, abs=0.01)
    shifts = (box_centers(boxes) - box_centers(proposals)) / box_sizes(proposals)
    offsets = torch.cat([shifts, (box_sizes(boxes) / box_sizes(proposals)).log()], dim=1)
    for at, column in enumerate(offsets[~stays].T.numpy()):
        skewed, wide = (scipy.stats.norm(mean[at], std[at]) for _, mean, std in (SKEWED, WIDE))
        mixed = (2 * skewed.cdf(column) + wide.cdf(column)) / 3
        assert scipy.stats.kstest(mixed, "uniform").pvalue > 0.005
    again = law_of_pairs(boxes, proposals)
    (share, mean, std), _ = sorted(zip(again.shares, again.means, again.stds, strict=True))[::-1]
    assert (again.right, share) == pytest.approx((0.1, 0.6), abs=0.02)
    assert mean == pytest.approx(SKEWED[1], abs=0.005)
    assert std == pytest.approx(SKEWED[2], abs=0.005)


def test_a_law_without_sizes_draws_none():
    law = fitted(0.0, (1.0, (0.1, 0.0), (0.01, 0.01)))
    boxes = draw_boxes(10)
    assert draw(law, boxes, resize=False).proposals.isfinite().all()
    with pytest.raises(BadInput, match=r"says nothing of sizes; set data.num_targets to 2"):
        draw(law, boxes)


def test_a_law_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"law.json: can't be read"):
        FittedJitter(str(tmp_path / "law.json"))
