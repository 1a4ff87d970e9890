"""What all data modules share, tried on random patches and on scenes."""

import math
from functools import partial
from itertools import chain

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.data import module
from lightning_bbox.data.loader import PlanLoader
from lightning_bbox.data.patches import PatchDataModule
from lightning_bbox.geometry.boxes import box_centers, box_sizes
from lightning_bbox.geometry.codecs import encode_deltas
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.geometry.jitter import OverlapJitter, UniformJitter
from lightning_bbox.pictures.augment import Augment
from tests import runs
from tests.crops import batch_of, interleaved, rows_of
from tests.runs import same

ALL_ON = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "noise": 0.1}


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Return how to make data modules of 40 random patches."""
    path = tmp_path_factory.mktemp("patches") / "patches.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 26, 26, 3), dtype=np.uint8)
    np.save(path, pixels)
    small = {"batch_size": 8, "draws_per_epoch": 64, "eval_draws": 30, "compile": False}
    return lambda **arguments: PatchDataModule(str(path), **small | arguments)


scenes = partial(runs.scenes, batch_size=8, eval_draws=30)


def walk(data, split, epoch=0, world_size=1):
    """Return each rank's batches of an epoch."""
    make = partial(PlanLoader, split, data.num_draws(split), data.batch_size)
    return [
        [
            data.make_batch(rows)
            for rows in make(rank, world_size, lambda: (epoch, 0), full=split == "train")
        ]
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("split", ["val", "test", "train_eval"])
def test_evaluation_batches_are_those_of_any_epoch_and_training_settings(split):
    others = {
        "seed": 7,
        "batch_size": 4,
        "draws_per_epoch": 16,
        "augment": Augment(flip_x=False, **ALL_ON),
    }
    data, other = scenes(), scenes(**others)
    num = data.num_draws(split)
    expected = data.make_batch(rows_of(split, num))
    assert same(other.make_batch(rows_of(split, num, epoch=3)), expected)


@pytest.mark.parametrize("split", ["val", "test", "train_eval"])
def test_items_and_shifts_do_not_depend_on_the_number_of_targets(split):
    two, four = scenes(num_targets=2), scenes(num_targets=4)
    samples = [data.samples(split) for data in (two, four)]
    assert torch.equal(samples[0].items, samples[1].items)
    shifts = [
        (box_centers(drawn.gt_boxes) - box_centers(drawn.proposals))
        / two.geometry.px(drawn.proposals)
        for drawn in samples
    ]
    torch.testing.assert_close(shifts[0], shifts[1], rtol=0, atol=1e-4)
    assert not torch.equal(box_sizes(samples[0].proposals), box_sizes(samples[1].proposals))


def test_training_draws_differ_between_epochs_and_seeds(patches):
    data = patches(jitter=UniformJitter(4.0), augment=Augment(**ALL_ON))
    other = patches(jitter=UniformJitter(4.0), augment=Augment(**ALL_ON), seed=1)
    first = data.samples("train", 0)
    assert same(first, data.samples("train", 0))
    for samples in (data.samples("train", 1), other.samples("train", 0)):
        for name in ("items", "proposals", "flips", "factors", "noise"):
            assert not torch.equal(getattr(samples, name), getattr(first, name)), name


def test_splits_draw_from_their_own_items_and_differ(patches):
    data = patches()
    pictures = {split: set(data.samples(split).image_index.tolist()) for split in ("val", "test")}
    pictures["train"] = set(data.samples("train").image_index.tolist())
    assert pictures["train"].isdisjoint(pictures["val"] | pictures["test"])
    assert pictures["val"].isdisjoint(pictures["test"])
    assert set(data.samples("train_eval").image_index.tolist()) <= pictures["train"]
    assert not torch.equal(
        data.samples("train_eval").proposals, data.samples("train").proposals[:8]
    )


def test_training_uses_boxes_evenly(patches):
    data = patches()
    num = len(data.source.splits["train"])
    counts = torch.zeros(num, dtype=torch.int64)
    for epoch in range(5):
        counts += data.samples("train", epoch).items.bincount(minlength=num)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_known_features_stand_for_the_crops_of_their_draws(patches, world_size):
    data = patches(augment=Augment(**ALL_ON))
    data.fix_draws()
    plain = walk(data, "train", epoch=2, world_size=world_size)
    data.features = {"train": data.make_batch(rows_of("train", 64)).crops.flatten(1)}
    known = walk(data, "train", epoch=2, world_size=world_size)
    for batch, expected in zip(chain(*known), chain(*plain), strict=True):
        assert batch.crops.shape == (len(batch.rows), 3, 0, 0)
        assert torch.equal(batch.features.view_as(expected.crops), expected.crops)
        assert same(batch[1:6], expected[1:6])


def test_fixed_draws_are_those_of_the_first_epoch_in_an_order_of_the_seed_and_epoch(patches):
    data, again, other = patches(), patches(), patches(seed=1)
    first = data.samples("train")
    for each in (data, again, other):
        each.fix_draws()
    assert same(data.samples("train"), first)
    orders = [data.samples("train", epoch) for epoch in (1, 2)]
    assert not torch.equal(orders[0].noise, orders[1].noise)
    for epoch, samples in enumerate(orders, start=1):
        assert torch.equal(samples.noise.sort()[0], first.noise.sort()[0])
        assert same(samples, again.samples("train", epoch))
        assert not torch.equal(samples.noise, other.samples("train", epoch).noise)
    data.setup("fit")
    assert not torch.equal(data.samples("train", 1).noise.sort()[0], first.noise.sort()[0])


def test_batches_are_those_of_the_seed_whatever_was_before():
    asked = [("train", 1), ("train", 0), ("val", 0), ("train", 1), ("train", 2)]
    make = partial(scenes, augment=Augment(**ALL_ON), num_targets=4)
    data = make()
    for split, epoch in asked:
        fresh, rows = make(), rows_of(split, 8, epoch)
        assert same(data.make_batch(rows), fresh.make_batch(rows))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_batches_make_up_the_global_batch(split, world_size):
    data = scenes(augment=Augment(**ALL_ON), eval_draws=24)
    (whole,) = walk(data, split)
    ranks = zip(*walk(data, split, world_size=world_size), strict=True)
    for batch, shares in zip(whole, ranks, strict=True):
        for name in ("crops", "gt_boxes", "proposals", "rows"):
            parts = [getattr(share, name)[share.valid] for share in shares]
            torch.testing.assert_close(
                interleaved(parts), getattr(batch, name), rtol=0, atol=1e-6, msg=name
            )


def test_evaluation_crops_are_not_augmented(patches):
    data = patches(augment=Augment(**ALL_ON))
    for split in ("val", "test", "train_eval"):
        samples = data.samples(split)
        assert not samples.flips.any()
        assert samples.factors.shape[1] == 0
        assert torch.equal(batch_of(data, split).crops, data.cut(samples))


def test_training_crops_are_augmented_as_the_plan_says(patches):
    augment = Augment(brightness=0.3, contrast=0.3, noise=0.1)
    data = patches(augment=augment)
    samples, batch = data.samples("train", 1), data.make_batch(rows_of("train", 64, epoch=1))
    assert torch.equal(batch.gt_boxes, samples.gt_boxes)
    assert torch.equal(batch.proposals, samples.proposals)
    crops = batch.crops
    noise = data.noise.windows(samples.noise).view_as(crops)
    expected = augment.photometry(data.cut(samples), samples.factors) + 0.1 * noise
    torch.testing.assert_close(crops, expected, rtol=0, atol=1e-6)
    assert noise.std() == pytest.approx(1, abs=0.02)


def mirrored(crops, flips):
    """Mirror each crop by torch's flip."""
    along_x = torch.where(flips[:, 0, None, None, None] > 0, crops.flip(3), crops)
    return torch.where(flips[:, 1, None, None, None] > 0, along_x.flip(2), along_x)


def cut_and_mirrored(data):
    """Return the crops of flipped samples, and those of unflipped ones mirrored."""
    samples = data.samples("train")
    assert len(samples.flips.unique(dim=0)) == 4
    unflipped = samples.cut_at(data.geometry, samples.proposals, torch.zeros(64, 2))
    return data.cut(samples), mirrored(data.cut(unflipped), samples.flips)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [10, 24])
def test_a_flipped_crop_is_the_flip_of_the_crop(square, size):
    geometry = CropGeometry(size=size, square=square)
    found, expected = cut_and_mirrored(scenes(crop=geometry, num_targets=4))
    # Positions near 100 px are rounded to 8e-6 px, so values to about that part of a step.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_flipped_crop_of_whole_pixels_is_bit_equal(patches):
    assert torch.equal(*cut_and_mirrored(patches()))


@pytest.mark.parametrize("square", [False, True])
def test_flipping_turns_the_offset_round_and_keeps_the_size(square):
    geometry = CropGeometry(size=24, square=square)
    flipping = scenes(crop=geometry, num_targets=4)
    straight = scenes(crop=geometry, num_targets=4, augment=Augment(False, False))
    samples, plain = flipping.samples("train"), straight.samples("train")
    assert torch.equal(samples.proposals, plain.proposals)
    signs = torch.cat([1 - 2 * samples.flips, torch.ones(64, 2)], dim=1)
    torch.testing.assert_close(
        encode_deltas(samples.gt_boxes, samples.proposals),
        signs * encode_deltas(plain.gt_boxes, plain.proposals),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("stage", "options", "crops"),
    [
        ("fit", {"max_epochs": 3}, 3 * 64),
        ("fit", {"max_epochs": 3, "max_steps": 5}, 5 * 8),
        ("fit", {"max_steps": 5, "accumulate_grad_batches": 2}, 5 * 8 * 2),
        ("fit", {"max_epochs": -1}, math.inf),
        ("test", {}, 30),
    ],
)
def test_what_few_crops_need_is_not_compiled(patches, monkeypatch, stage, options, crops):
    """Compiling takes longer than all of them; nothing was known of their number before."""
    data = patches(compile="auto")
    data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, **options)
    data.trainer.state.fn = stage
    asked = []
    monkeypatch.setattr(module, "is_compiled", lambda *a: asked.append(a))
    data.crops_of(data.samples("test"), augment=True)
    assert asked[0][-1] == crops * data.geometry.size**2


def test_targets_stay_within_the_spec():
    for square in (False, True):
        data = scenes(crop=CropGeometry(size=24, square=square), num_targets=4, eval_draws=500)
        spec = data.spec()
        for split in ("train", "train_eval"):
            samples = data.samples(split)
            deltas = encode_deltas(samples.gt_boxes, spec.geometry.anchors(samples.proposals))
            offsets = (deltas / deltas.new_tensor(spec.units)).abs().amax(dim=0)
            assert (offsets <= deltas.new_tensor(spec.bounds) + 1e-3).all()


def test_failed_draws_keep_the_true_box_are_counted_and_told():
    data = scenes(jitter=OverlapJitter(min_iou=0.8), num_targets=4, eval_draws=200)
    samples = data.samples("val")
    kept = (samples.proposals == samples.gt_boxes).all(dim=1).sum().item()
    assert 0 < kept < 200
    assert data.failed_draws["val"] == kept
    line = next(line for line in data.describe() if line.startswith("val: "))
    assert line.endswith(f"{kept} of 200 draws left unjittered")


def test_description_counts_pictures_boxes_and_the_spread_of_targets():
    data = scenes(eval_draws=2_000, draws_per_epoch=2_000)
    cut, *lines = data.describe()
    assert cut.startswith("crops of ")
    for line, name, count in zip(lines, ("train", "val", "test"), (30, 3, 6), strict=True):
        assert line.startswith(f"{name}: {count} pictures, {count} boxes, 0 skipped, target std ")
        spread = [float(word) for word in line.split("std ")[1].removesuffix(" px").split(", ")]
        assert spread == pytest.approx([2.89, 2.89], abs=0.1)


def test_loaders_walk_through_the_draws_asked_for(patches):
    data = patches()
    train = list(data.train_dataloader())
    assert [len(rows.rows) for rows in train] == [8] * 8
    val, train_eval = data.val_dataloader()
    assert [loader.split for loader in (val, train_eval)] == ["val", "train_eval"]
    for loader, num_draws in ((val, 30), (train_eval, 8), (data.test_dataloader(), 30)):
        assert sum(int(rows.valid.sum()) for rows in loader) == num_draws
        assert {rows.epoch for rows in loader} == {0}
        assert len(data.samples(loader.split).items) == num_draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data batch_size is 0; expected at least 1"),
        ({"eval_draws": 0}, "data eval_draws is 0"),
        ({"draws_per_epoch": 7}, "draws_per_epoch 7 is below batch_size 8"),
        ({"num_targets": 3}, "num_targets"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        scenes(**arguments)


def test_boxes_drawn_at_several_widths_go_that_part_of_the_jitters_way():
    data = scenes(num_targets=4, eval_draws=80)
    for split, others in (("val_widths", "val"), ("test_widths", "test")):
        samples, widths = data.samples(split), data.widths(split)
        assert len(samples.items) == len(widths) == data.num_draws(split) == 40
        assert widths.view(8, 5).tolist() == [pytest.approx([0.0, 0.1, 0.4, 1.0, 2.0])] * 8
        assert set(samples.image_index.tolist()) <= set(data.samples(others).image_index.tolist())
        px = data.geometry.px(samples.proposals)
        shifts = (box_centers(samples.gt_boxes) - box_centers(samples.proposals)) / px
        sizes = (box_sizes(samples.gt_boxes) / box_sizes(samples.proposals)).log()
        assert torch.equal(samples.proposals[::5], samples.gt_boxes[::5])
        for at, width in enumerate((0.1, 0.4, 1.0, 2.0), start=1):
            # A px is of the box drawn, whose sides are up to 1.22 times the truth's, and 1.5 times
            # where it goes twice the way.
            most = 1.5 if width > 1 else 1.25
            assert 0.5 * width * 5 < shifts[at::5].abs().max() < most * width * 5
            assert 0.5 * width * 0.2 < sizes[at::5].abs().max() < 1.15 * width * 0.2
    assert data.widths("val").tolist() == [1.0] * 80


def test_twice_the_way_has_the_same_ratios_twice_and_always_some_size():
    data = scenes(num_targets=4, eval_draws=500, jitter=UniformJitter(5.0, 1.2))
    far = data.samples("val_widths").take(data.widths("val_widths") == 2)
    assert bool((box_sizes(far.proposals) > 0).all())
    logs = (box_sizes(far.proposals) / box_sizes(far.gt_boxes)).log().abs()
    assert 1.8 < float(logs.max()) <= 2.4 + 1e-4


def test_whole_px_stay_whole_at_several_widths(patches):
    data = patches(jitter=UniformJitter(4.0, integer=True))
    assert set(data.widths("val_widths").tolist()) == {0.0, 1.0}
    samples = data.samples("val_widths")
    shifts = box_centers(samples.gt_boxes) - box_centers(samples.proposals)
    assert torch.equal(shifts, shifts.round())
