import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.annotations.splits import (
    held_out,
    hold_out_groups,
    split_in_name,
    split_pictures,
    usual_split,
)
from lightning_bbox.core.errors import BadInput
from tests.annotation_files import csv_of, write

LETTERS = "abcdefghijkl"
many_groups = st.lists(st.text(max_size=3), min_size=2, max_size=30).filter(
    lambda groups: len(set(groups)) > 1
)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train2017", "TRAINVAL", "training", "train_val", "train-1"]),
        ("val", ["val", "valid", "Validation", "dev", "val_2014"]),
        ("test", ["test", "testing", "test-dev2017", "Test 2"]),
        (None, ["", "2017", "trains", "minival", "trainvaltest", "contest", "all"]),
    ],
)
def test_usual_names_of_splits(split, names):
    assert {usual_split(name) for name in names} == {split}
    assert {split_in_name(f"test/{name}.json") for name in names} == {split}
    assert {split_in_name(f"a_{name}_b.v1.json") for name in names} == {split}


@given(many_groups, st.floats(0.001, 0.999), st.integers(0, 9))
def test_a_group_is_on_one_side(groups, fraction, seed):
    kept, held = split_pictures(groups, fraction, seed)
    assert sorted(kept + held) == list(range(len(groups)))
    assert kept
    assert held
    held_groups = {groups[at] for at in held}
    assert held_groups.isdisjoint(groups[at] for at in kept)
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
    with pytest.raises(BadInput, match=f"no fold {number}, as .* makes {number} folds"):
        hold_out_groups(groups, fraction, seed, fold=number)


@given(st.permutations(LETTERS), st.integers(0, 9))
def test_a_split_does_not_depend_on_the_order_of_files(moved, seed):
    held = {LETTERS[at] for at in split_pictures(LETTERS, 0.25, seed)[1]}
    assert held == {moved[at] for at in split_pictures(moved, 0.25, seed)[1]}


def test_a_split_keeps_the_order_of_groups_when_pictures_are_added():
    few, many = set("abcdefgh"), set("abcdefghijklmnop")
    held_few, held_many = hold_out_groups(few, 0.5, seed=0), hold_out_groups(many, 0.25, seed=0)
    assert len(held_few) == len(held_many) == 4
    # The first four by hash of sixteen: those of the first eight are among the four of the eight.
    assert held_many & few <= held_few


def test_seeds_differ_and_nothing_is_held_out_at_zero():
    assert len({tuple(split_pictures(LETTERS, 0.25, seed)[1]) for seed in range(9)}) > 1
    assert split_pictures(LETTERS, 0.0, 0) == (list(range(12)), [])
    assert split_pictures("xxx", 0.0, 0)[1] == []


def test_a_split_is_the_same_for_ever():
    assert split_pictures(LETTERS, 0.25, 0)[1] == [5, 6, 7]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_is_refused(fraction):
    with pytest.raises(BadInput, match="fraction to hold out"):
        split_pictures("abc", fraction, 0)


def test_one_group_cannot_be_split():
    with pytest.raises(BadInput, match="too few groups to hold one out \\(x\\)"):
        split_pictures("xxx", 0.1, 0)


def test_held_out_by_name():
    assert held_out("xyx", ["x"]) == ([1], [0, 2])
    with pytest.raises(BadInput, match="no group z; choose from x, y"):
        held_out("xyx", ["x", "z"])


def test_copies_of_a_picture_are_one_group_in_whatever_folder(tmp_path):
    names = [f"train/a_jpg.rf.{'0' * 32}.jpg", f"valid/a_jpg.rf.{'1' * 32}.jpg", "train/b.jpg"]
    files = dict.fromkeys(names, (64, 48)) | {
        "b.csv": csv_of(*(f"{name},1,1,9,9" for name in names))
    }
    write(tmp_path, files)
    table = read_annotations(tmp_path)
    assert table.groups == ("a_jpg", "a_jpg", "train/b.jpg")
    assert "2 pictures are copies of 1, by what stands before .rf. in names" in table.note
    assert read_annotations(tmp_path, group_pattern="(.*)").groups == table.images
