import doctest
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_bbox.annotations.formats.tables.csv import CSV
from lightning_bbox.annotations.table import BoxTable
from lightning_bbox.core.errors import BadInput
from tests.annotation_files import write


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


def test_a_table_is_made_of_arrays(tmp_path):
    write(tmp_path, {"a.png": (64, 48), "sub/b.png": (32, 40), "c.png": (9, 9)})
    paths = ["a.png", tmp_path / "sub/b.png", "c.png"]
    boxes = [np.array([[1, 2, 30, 40], [5, 5, 70, 9]]), torch.tensor([[0.0, 0, 32, 40]]), []]
    table = BoxTable.from_arrays(
        paths,
        boxes,
        labels=[["cell", "plate"], ["cell"], []],
        groups=["x", "x", "y"],
        splits=["train", "", "test"],
        root=tmp_path,
    )
    assert table.images == ("a.png", str(tmp_path / "sub/b.png"), "c.png")
    assert table.boxes.tolist() == [[1, 2, 30, 40], [0, 0, 32, 40]]
    assert [table.classes[at] for at in table.labels] == ["cell", "cell"]
    assert table.sizes.tolist() == [[48, 64], [40, 32], [9, 9]]
    assert (table.groups, table.splits) == (("x", "x", "y"), ("train", "", "test"))
    (sentence,) = table.skipped
    assert sentence == (
        "a.png: box 2: the box xmin=5, ymin=5, xmax=70, ymax=9 in a.png "
        "reaches 6 px outside the 64 x 48 picture; left out"
    )
    rough = BoxTable.from_arrays(paths, boxes, root=tmp_path, rough=True)
    assert (len(rough.boxes), rough.skipped, rough.classes) == (3, (), ("object",))


BOX = [[1, 1, 9, 9]]
MISFITS = {
    "boxes are of 1 pictures, and paths of 2": (["a.png", "b.png"], [BOX], {}),
    "labels are of 2 pictures, and paths of 1": (["a.png"], [BOX], {"labels": ["a", "b"]}),
    "a.png: has 2 labels and 1 boxes; give a label for each": (
        ["a.png"],
        [BOX],
        {"labels": [["a", "b"]]},
    ),
    "a.png: its boxes have the shape (1, 3); give n x 4": (["a.png"], [[[1, 2, 3]]], {}),
    "a.png: is there twice": (["a.png", "a.png"], [BOX, BOX], {}),
    "there are no paths": ([], [], {}),
    "none.png: none.png can't be read": (["none.png"], [BOX], {}),
    "a.png: box 1: the box xmin=nan": (["a.png"], [[[np.nan, 1, 2, 3]]], {"on_bad": "error"}),
}


@pytest.mark.parametrize("sentence", MISFITS)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, sentence):
    write(tmp_path, {"a.png": (64, 48), "b.png": (64, 48)})
    paths, boxes, options = MISFITS[sentence]
    with pytest.raises(BadInput) as refusal:
        BoxTable.from_arrays(paths, boxes, root=tmp_path, **options)
    assert str(refusal.value).startswith(sentence)


def examples_of_from_arrays():
    """Return the functions of the docstring's examples, which need other packages' objects."""
    (found,) = doctest.DocTestFinder(recurse=False).find(BoxTable.from_arrays, "from_arrays")
    names = {"BoxTable": BoxTable, "np": np}
    for example in found.examples:
        if example.source.startswith("def "):
            exec(example.source, names)
    return names


class Loose(dict):
    """What has attributes and items, as samples and detections of other packages have."""

    __getattr__ = dict.__getitem__


def test_the_docstring_shows_tables_of_detections_and_views(tmp_path):
    write(tmp_path, {"a.png": (64, 48), "b.png": (64, 48)})
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    names = examples_of_from_arrays()
    four = np.array([[6.4, 4.8, 38.4, 28.8]])
    found = Loose(xyxy=four, data={"class_name": np.array(["cell"])})
    empty = Loose(xyxy=np.zeros((0, 4)), data={"class_name": np.array([])})
    table = names["of_detections"](paths, [found, empty])
    assert (table.images, table.classes) == ((*paths,), ("cell",))
    torch.testing.assert_close(table.boxes, torch.tensor(four).float())
    detection = Loose(bounding_box=[0.1, 0.1, 0.5, 0.5], label="cell")
    sizes = Loose(width=64, height=48)
    view = [
        Loose(filepath=path, metadata=sizes, ground_truth=truth)
        for path, truth in zip(paths, (Loose(detections=[detection]), None), strict=True)
    ]
    again = names["of_view"](view)
    assert torch.allclose(again.boxes, table.boxes)
    assert again.classes == ("cell",)


def test_the_docstring_shows_a_table_of_a_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    write(tmp_path, {"a.png": (64, 48)})
    columns = ["image", "xmin", "ymin", "xmax", "ymax", "label"]
    rows = [[str(tmp_path / "a.png"), 1, 1, 9, 9, "cell"]]
    table = examples_of_from_arrays()["of_frame"](pandas.DataFrame(rows, columns=columns))
    assert (table.boxes.tolist(), table.classes) == ([[1, 1, 9, 9]], ("cell",))
