from pathlib import Path

import pytest
import torch

from lightning_bbox.annotations.formats.tables.csv import CSV
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput


def make_table(names="abc", classes=("cell", "plate")):
    """Two boxes a picture, one of each class; a third box of the last picture was skipped."""
    count = len(names)
    return BoxTable(
        root=Path("data"),
        images=tuple(f"{name}.png" for name in names),
        groups=tuple(names),
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
