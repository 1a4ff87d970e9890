from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.annotations.formats.csv import CSV
from lightning_bbox.annotations.splits import held_out, hold_out_groups, split_pictures
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput


def make_table(names="abc", root="data", classes=("cell", "plate"), groups=None):
    """Two boxes a picture, one of each class; a third box of the last picture was skipped."""
    count = len(names)
    return BoxTable(
        root=Path(root),
        images=tuple(f"{name}.png" for name in names),
        groups=tuple(groups or names),
        splits=("",) * count,
        sizes=torch.tensor([[50 + n, 60] for n in range(count)]),
        image_index=torch.arange(count).repeat_interleave(2),
        boxes=torch.tensor([[0.0, 0, 10 + n, 20] for n in range(2 * count)]),
        labels=torch.tensor([0, 1]).repeat(count),
        classes=classes,
        ids=tuple(f"{name}:{n}" for name in names for n in (1, 2)),
        entries=tuple((f"{name}", n) for name in names for n in (0, 1)),
        format=CSV,
        skipped=(f"{names[-1]}:3: bad",),
        skipped_index=(count - 1,),
    )


def test_pictures_take_boxes_and_skipped_sentences_along():
    table = make_table().pictures([2, 0])
    assert table.images == ("c.png", "a.png")
    assert table.sizes.tolist() == [[52, 60], [50, 60]]
    assert table.ids == ("c:1", "c:2", "a:1", "a:2")
    assert table.image_index.tolist() == [0, 0, 1, 1]
    assert (table.skipped, table.skipped_index) == (("c:3: bad",), (0,))
    assert make_table().pictures([0, 1]).skipped == ()
    assert make_table().pictures([]).boxes.shape == (0, 4)


def test_a_picture_is_not_kept_twice():
    with pytest.raises(BadInput, match="kept twice"):
        make_table().pictures([1, 1])


def test_boxes_where_leaves_pictures_without_boxes():
    table = make_table().boxes_where(torch.tensor([False, False, True, False, False, False]))
    assert table.ids == ("b:1",)
    assert len(table.images) == 3


def test_of_classes_numbers_the_classes_anew():
    table = make_table(classes=("plate", "cell")).of_classes(["cell"])
    assert (table.classes, table.labels.tolist()) == (("cell",), [0, 0, 0])
    both = make_table().of_classes(["plate", "cell"])
    assert both.labels.tolist() == [1, 0] * 3
    names = [both.classes[label] for label in both.labels]
    assert names == ["cell", "plate"] * 3


def test_an_unknown_class_is_refused_with_those_there():
    with pytest.raises(BadInput, match=r"no class dog; choose from cell \(3\), plate \(3\)"):
        make_table().of_classes(["cell", "dog"])


def test_of_min_size_needs_both_sides():
    assert make_table().of_min_size(12.0).ids == ("b:1", "b:2", "c:1", "c:2")
    assert len(make_table().of_min_size(20.5).ids) == 0


groups_lists = st.lists(st.text(max_size=3), min_size=2, max_size=30).filter(
    lambda groups: len(set(groups)) > 1
)


@given(groups_lists, st.floats(0.001, 0.999), st.integers(0, 9))
def test_a_group_is_on_one_side(groups, fraction, seed):
    table = make_table(range(len(groups)), groups=groups)
    kept, held = split_pictures(table.groups, fraction, seed)
    assert sorted(kept + held) == list(range(len(groups)))
    assert kept
    assert held
    kept_groups = {groups[at] for at in kept}
    held_groups = {groups[at] for at in held}
    assert not kept_groups & held_groups
    wanted = round(fraction * len(set(groups)))
    assert len(held_groups) == min(max(wanted, 1), len(set(groups)) - 1)


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 3))
def test_folds_part_the_groups_and_the_first_is_the_split_without(count, fraction, seed):
    groups, number = {f"g{at}" for at in range(count)}, round(1 / fraction)
    held = max(round(fraction * count), 1)
    if count - held < number - 1:
        with pytest.raises(BadInput, match=f"{count} groups, too few for {number} folds"):
            hold_out_groups(groups, fraction, seed, fold=number - 1)
        return
    folds = [hold_out_groups(groups, fraction, seed, fold) for fold in range(number)]
    assert folds[0] == hold_out_groups(groups, fraction, seed)
    if number > 1:
        assert sorted(name for fold in folds for name in fold) == sorted(groups)
    sizes = [len(fold) for fold in folds[1:]]
    assert not sizes or max(sizes) - min(sizes) <= 1
    with pytest.raises(BadInput, match=f"val_fold is {number}, but .* makes {number} folds"):
        hold_out_groups(groups, fraction, seed, fold=number)


@given(st.permutations(range(12)), st.integers(0, 9))
def test_a_split_does_not_depend_on_the_order_of_files(order, seed):
    table = make_table("abcdefghijkl")
    held = {table.images[at] for at in split_pictures(table.groups, 0.25, seed)[1]}
    moved = table.pictures(order)
    assert held == {moved.images[at] for at in split_pictures(moved.groups, 0.25, seed)[1]}


def test_a_split_keeps_the_order_of_groups_when_pictures_are_added():
    few, many = make_table("abcdefgh"), make_table("abcdefghijklmnop")
    held_few = {few.images[at] for at in split_pictures(few.groups, 0.5, 0)[1]}
    held_many = {many.images[at] for at in split_pictures(many.groups, 0.25, 0)[1]}
    assert len(held_few) == len(held_many) == 4
    # The first four by hash of sixteen: those of the first eight are among the four of the eight.
    assert held_many & set(few.images) <= held_few


def test_seeds_differ_and_nothing_is_held_out_at_zero():
    table = make_table("abcdefghijkl")
    assert len({tuple(split_pictures(table.groups, 0.25, seed)[1]) for seed in range(9)}) > 1
    assert split_pictures(table.groups, 0.0, 0) == (list(range(12)), [])
    assert split_pictures(make_table(groups="xxx").groups, 0.0, 0)[1] == []


def test_a_split_is_the_same_for_ever():
    assert split_pictures(make_table("abcdefghijkl").groups, 0.25, 0)[1] == [5, 6, 7]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_is_refused(fraction):
    with pytest.raises(BadInput, match="fraction to hold out"):
        split_pictures(make_table().groups, fraction, 0)


def test_one_group_cannot_be_split():
    with pytest.raises(BadInput, match="too few groups to hold one out \\(x\\)"):
        split_pictures(make_table(groups="xxx").groups, 0.1, 0)


def test_held_out_by_name():
    table = make_table(groups="xyx")
    assert held_out(table.groups, ["x"]) == ([1], [0, 2])
    with pytest.raises(BadInput, match="no group z; choose from x, y"):
        held_out(table.groups, ["x", "z"])
