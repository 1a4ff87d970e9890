"""Which annotated picture trains, validates and tests, and that its crops are its own.

Box n begins at x = n and picture n is of the gray level n, so both say where they come from.
"""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_bbox import BoxTable, FittedJitter, Matching, UniformJitter
from lightning_bbox.annotations import headers as headers_module
from lightning_bbox.core.errors import BadInput
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.data.options import Reading, Splits
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.pictures.places import Storage
from tests.annotation_files import coco, csv_of, voc, write
from tests.crops import batch_of, fitted
from tests.runs import files_of, same

SIZE = (100, 48)
HEADER = "image,xmin,ymin,xmax,ymax,label,split,group"
SPLITS = ("train", "val", "test")


def draw(path, n):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", SIZE, n).save(path)


def write_voc(root, num, **sets):
    """Write pictures in VOC, and the numbers of those in each split file."""
    for n in range(num):
        draw(root / f"JPEGImages/p{n}.png", n)
        text = voc(f"p{n}.png", SIZE, ("cell", (n + 1, 6, n + 20, 30)))
        write(root, {f"Annotations/p{n}.xml": text})
    for name, numbers in sets.items():
        lines = "".join(f"p{n}\n" for n in numbers)
        write(root, {f"ImageSets/Main/{name}.txt": lines})
    return root


def write_coco(root, **folders):
    for folder, numbers in folders.items():
        entries = [(f"p{n}.png", SIZE, [("cell", (n, 5, 20, 25))]) for n in numbers]
        write(root, {f"{folder}/_annotations.coco.json": coco(*entries)})
        for n in numbers:
            draw(root / f"{folder}/p{n}.png", n)
    return root


def write_yolo(root, **folders):
    for folder, numbers in folders.items():
        for n in numbers:
            draw(root / folder / f"images/p{n}.png", n)
            line = f"0 {(n + 10) / 100} {17.5 / 48} {20 / 100} {25 / 48}\n"
            write(root, {f"{folder}/labels/p{n}.txt": line})
    write(root, {"data.yaml": "names: [cell]\n"})
    return root


def write_csv(root, num, split=lambda _: "", group=lambda _: "", label=lambda _: "cell", boxes=()):
    """Write pictures in CSV, with further lines at will."""
    for n in range(num):
        draw(root / f"p{n}.png", n)
    lines = [f"p{n}.png,{n},5,{n + 20},30,{label(n)},{split(n)},{group(n)}" for n in range(num)]
    write(root, {"boxes.csv": csv_of(*lines, *boxes, header=HEADER)})
    return root


def read(root, splits=Splits(), **arguments):
    small = {"batch_size": 4, "draws_per_epoch": 40, "eval_draws": 20, "compile": False}
    small |= {"crop": CropGeometry(size=16), "store": Storage("device")}
    return BoxDataModule(str(root), splits=splits, **small | arguments)


def pictures(data):
    """Return the numbers of each split's pictures."""
    splits = data.source.splits
    return {name: sorted({round(x) for x in splits[name].boxes[:, 0].tolist()}) for name in SPLITS}


def three_splits(n):
    return ("train", "val", "test")[n % 3]


def cell_or_dust(n):
    return "cell" if n % 3 else "dust"


def together(found):
    return sorted(n for numbers in found.values() for n in numbers)


def test_vocs_image_sets_are_used_where_they_are(tmp_path):
    write_voc(tmp_path, 25, trainval=range(20, 0, -1), test=[0, 21, 22])
    data = read(tmp_path)
    found = pictures(data)
    assert found["test"] == [0, 21, 22]
    assert sorted(found["train"] + found["val"]) == list(range(1, 21))
    assert len(found["val"]) == 2
    assert "2 pictures are in none of the named splits" in data.source.notes
    named = Splits(train="ImageSets/Main/trainval.txt", test=["ImageSets/Main/test.txt"])
    assert pictures(read(tmp_path, named)) == found


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_voc(tmp_path / "set", 20, trainval=range(10), test=range(10, 20))
    data = read("~/set", store=Storage("disk", "~/pixels"))
    assert pictures(data)["test"] == list(range(10, 20))
    assert list((tmp_path / "pixels").glob("*.rgbx"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_without_a_home_folder_only_the_disk_asks_for_one(tmp_path, monkeypatch):
    write_csv(tmp_path, 30, three_splits)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where nobody knows one
    assert len(read(tmp_path).source.store) == 30
    with pytest.raises(BadInput, match=r"no home folder is known .* with --data\.store\.folder"):
        read(tmp_path, store=Storage("disk")).read()
    with pytest.raises(BadInput, match=r"^~/set: the home folder that ~ means isn't known"):
        read("~/set")


@pytest.mark.parametrize(
    ("sets", "sizes"),
    [
        ({"train": range(4), "val": [4, 5], "test": [6, 7, 8]}, [4, 2, 3]),
        ({"train": range(8), "val": [8, 9]}, [6, 2, 2]),
        ({"train": range(8), "val": [8, 9], "trainval": range(10)}, [6, 2, 2]),
        ({"trainval": range(7), "test": [7, 8, 9]}, [6, 1, 3]),
        ({"val": [8, 9]}, [6, 2, 2]),
        ({"test": [8, 9]}, [7, 1, 2]),
    ],
    ids=["all three", "of 2012", "of 2012, whole", "of 2007", "val alone", "test alone"],
)
def test_of_vocs_sets_those_that_are_there_are_used(tmp_path, sets, sizes):
    num = sum(sizes)
    data = read(write_voc(tmp_path, num, **sets))
    found = pictures(data)
    assert [len(found[name]) for name in SPLITS] == sizes
    assert together(found) == list(range(num))
    assert all(found[name] == [*sets[name]] for name in ("val", "test") if name in sets)
    for name in {"val", "test"} - sets.keys():
        share = {"val": 10, "test": 20}[name]
        why = f"by seed 0, because ImageSets has no {name}.txt"
        assert f"{name}: {share} % of the training pictures {why}" in data.source.notes


def test_beside_vocs_sets_that_are_named_the_others_are_used(tmp_path):
    sets = {"train": range(4), "val": [4, 5], "trainval": range(6), "test": [6, 7, 8]}
    write_voc(tmp_path, 9, **sets)
    of_train = Splits(train="ImageSets/Main/train.txt")
    assert pictures(read(tmp_path, of_train)) == {name: [*sets[name]] for name in SPLITS}
    tested_on_val = pictures(read(tmp_path, Splits(test="ImageSets/Main/val.txt")))
    assert (tested_on_val["test"], together(tested_on_val)) == ([4, 5], [*range(6)])
    whole = read(tmp_path, Splits(train="ImageSets/Main/trainval.txt"))
    assert pictures(whole)["test"] == [6, 7, 8]
    assert sorted(pictures(whole)["train"] + pictures(whole)["val"]) == [*range(6)]


def test_annotations_and_headers_are_read_once_however_many_split_files(tmp_path, monkeypatch):
    write_voc(tmp_path, 12, train=range(4), val=range(4, 8), test=range(8, 12))
    opened, headers = Counter(), Counter()
    path_open, facts = Path.open, headers_module._facts

    def counted_open(path, *arguments, **options):
        opened[path.name] += 1
        return path_open(path, *arguments, **options)

    def counted_facts(root, path, part):
        headers[path] += 1
        return facts(root, path, part)

    monkeypatch.setattr(Path, "open", counted_open)
    monkeypatch.setattr(headers_module, "_facts", counted_facts)
    assert pictures(read(tmp_path))["test"] == [8, 9, 10, 11]
    assert {opened[f"p{n}.xml"] for n in range(12)} == {2}  # recognised by its root, and read
    assert headers == dict.fromkeys((f"JPEGImages/p{n}.png" for n in range(12)), 1)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("train", "valid", "test"), ("Train", "VAL2017", "Testing")]
)
@pytest.mark.parametrize("writer", [write_coco, write_yolo])
def test_folders_by_the_usual_names_are_the_splits(tmp_path, writer, names):
    numbers = range(6), [6, 7], [8, 9, 10]
    writer(tmp_path, **dict(zip(names, numbers, strict=True)))
    assert pictures(read(tmp_path)) == dict(zip(SPLITS, map(list, numbers), strict=True))


def test_the_official_coco_layout_gives_its_splits_and_a_test_carved_from_training(tmp_path):
    for split, numbers in {"train": range(20), "val": range(20, 25)}.items():
        entries = [(f"{n % 20}.png", SIZE, [("cell", (n, 5, 20, 25))]) for n in numbers]
        write(tmp_path, {f"annotations/instances_{split}2017.json": coco(*entries)})
        write(tmp_path, {f"annotations/captions_{split}2017.json": coco(*entries)})
        for n in numbers:
            draw(tmp_path / f"{split}2017/{n % 20}.png", n)
    found = pictures(read(tmp_path))
    assert found["val"] == list(range(20, 25))
    assert len(found["test"]) == 4
    assert sorted(found["train"] + found["test"]) == list(range(20))


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"val2017": 10}, {"train": 7, "val": 1, "test": 2}),
        ({"train": 20, "test": 5}, {"train": 18, "val": 2, "test": 5}),
        ({"train": 20, "valid": 5}, {"train": 16, "val": 5, "test": 4}),
    ],
    ids=["a lone one is parted anew", "validation", "test"],
)
def test_what_is_missing_is_carved_from_the_training_pictures(tmp_path, folders, sizes):
    numbers = iter(range(25))
    there = {name: [next(numbers) for _ in range(count)] for name, count in folders.items()}
    found = pictures(read(write_coco(tmp_path, **there)))
    assert {name: len(found[name]) for name in SPLITS} == sizes
    assert together(found) == sorted(n for each in there.values() for n in each)
    for own, name in (("test", "test"), ("valid", "val")):
        assert found[name] == there.get(own, found[name])


def test_without_any_split_pictures_are_parted_by_a_seed_of_their_own(tmp_path):
    write_yolo(tmp_path, all=range(30))
    found = pictures(read(tmp_path))
    assert {name: len(found[name]) for name in SPLITS} == {"train": 22, "val": 2, "test": 6}
    assert together(found) == list(range(30))
    assert pictures(read(tmp_path, seed=5)) == found
    assert pictures(read(tmp_path, Splits(seed=1))) != found
    halves = pictures(read(tmp_path, Splits(test_fraction=0.5, val_fraction=0.2)))
    assert {name: len(halves[name]) for name in SPLITS} == {"train": 12, "val": 3, "test": 15}
    assert len(pictures(read(tmp_path, Splits(val_fraction=0.5)))["val"]) == 12


def test_folds_of_validation_part_what_is_left_beside_the_test(tmp_path):
    write_yolo(tmp_path, all=range(30))
    found = [pictures(read(tmp_path, Splits(fold=fold))) for fold in range(10)]
    assert found[0] == pictures(read(tmp_path))
    assert all(together(each) == list(range(30)) for each in found)
    assert all(each["test"] == found[0]["test"] for each in found)
    rest = sorted(set(range(30)) - set(found[0]["test"]))
    assert sorted(at for each in found for at in each["val"]) == rest


def test_a_fold_is_refused_where_there_is_a_validation_split(tmp_path):
    write_coco(tmp_path, train=range(20), valid=range(20, 25))
    with pytest.raises(BadInput, match=r"splits\.fold is 3, but the val split is there"):
        _ = read(tmp_path, Splits(fold=3)).source


def test_splits_that_share_groups_are_replaced_by_groups_and_it_is_said(tmp_path):
    write_csv(tmp_path, 30, lambda n: "test" if n % 3 == 0 else "train", lambda n: f"b{n // 5}")
    data = read(tmp_path)
    found = pictures(data)
    assert together(found) == list(range(30))
    groups = [{n // 5 for n in found[name]} for name in SPLITS]
    assert [len(names) for names in groups] == [4, 1, 1]
    assert len(set.union(*groups)) == 6
    (note,) = (note for note in data.source.notes if "share groups" in note)
    assert note.startswith("the files' own splits share groups (b0, b1, b2, b3, b4, b5), so")


def test_splits_that_share_no_group_are_used_with_their_groups(tmp_path):
    write_csv(tmp_path, 30, lambda n: "test" if n < 10 else "train", lambda n: f"b{n // 5}")
    data = read(tmp_path, Splits(val_fraction=0.25))
    found = pictures(data)
    assert found["test"] == list(range(10))
    assert {n // 5 for n in found["val"]}.isdisjoint({n // 5 for n in found["train"]})
    assert len(found["val"]) == 5
    assert not any("share groups" in note for note in data.source.notes)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"train": "a", "val": "b", "test": "c"}, {"train": "a", "val": "b", "test": "c"}),
        ({"train": ["a", "d"], "val": "b", "test": "c"}, {"train": "ad", "val": "b", "test": "c"}),
        ({"val": "b", "test": ["c", "d"]}, {"train": "a", "val": "b", "test": "cd"}),
        ({"test": "d"}, {"test": "d"}),
        ({"val": "a"}, {"val": "a"}),
    ],
)
def test_splits_are_those_named(tmp_path, arguments, expected):
    write_csv(tmp_path, 40, lambda n: "abcd"[n % 4])
    data = read(tmp_path, Splits(**arguments))
    found = pictures(data)
    for name, letters in expected.items():
        assert found[name] == [n for n in range(40) if "abcd"[n % 4] in letters]
    used = together(found)
    assert len(set(used)) == len(used)
    left = f"{40 - len(used)} pictures are in none of the named splits"
    assert (left in data.source.notes) == ("train" in arguments and len(used) < 40)
    assert "train" in arguments or len(used) == 40


def test_named_groups_are_tested_on(tmp_path):
    write_csv(tmp_path, 30, lambda n: "test" if n % 2 else "train", lambda n: f"b{n // 5}")
    data = read(tmp_path, Splits(test_groups=["b1", "b4"]))
    found = pictures(data)
    assert found["test"] == [*range(5, 10), *range(20, 25)]
    assert len(found["val"]) == 5
    assert {n // 5 for n in found["val"]}.isdisjoint({n // 5 for n in found["train"]})
    assert "test: groups b1, b4, as splits.test_groups says" in data.source.notes


def test_beside_named_groups_the_files_own_splits_are_kept(tmp_path):
    own = ["val", "test", *["train"] * 4]
    write_csv(tmp_path, 30, lambda n: own[n // 5], lambda n: f"b{n // 5}")
    data = read(tmp_path, Splits(test_groups=["b4"]))
    left = [*range(10, 20), *range(25, 30)]  # and what the files call test is in none
    assert pictures(data) == {"train": left, "val": [*range(5)], "test": [*range(20, 25)]}
    assert "5 pictures are in none of the named splits" in data.source.notes


@pytest.mark.parametrize(
    ("asked", "train", "test"),
    [
        ({"val": ["valid"]}, range(6), [8, 9, 10]),
        ({"test": ["test"]}, range(6), [8, 9, 10]),
        ({"train": ["train"]}, range(6), [8, 9, 10]),
        ({"train": ["train", "test"], "test": ["other"]}, [*range(6), 8, 9, 10], [11, 12]),
        ({"test": ["other"]}, range(6), [11, 12]),
    ],
)
def test_what_bears_another_roles_name_trains_only_if_named_for_it(tmp_path, asked, train, test):
    names = ["train"] * 6 + ["valid"] * 2 + ["test"] * 3 + ["other"] * 2
    write_csv(tmp_path, 13 if test == [11, 12] else 11, lambda n: names[n])
    found = pictures(read(tmp_path, Splits(**asked)))
    assert found == {"train": [*train], "val": [6, 7], "test": test}


DAYS = {"m": [*range(10)], "t": [*range(10, 14)], "f": [*range(14, 18)]}
DATA_YAML = {
    "folders": ({"train": "monday", "val": "tuesday", "test": "friday"}, "m t f", ""),
    "a folder too far up": (
        {"train": "../monday/images", "valid": r"..\tuesday\images"}, "m t", ""),
    "of another machine": (
        {"path": "/far/set", "train": "/far/set/monday/images", "val": "tuesday"}, "m t", ""),
    "several": ({"train": "[monday, friday]", "val": "tuesday"}, "mf t", ""),
    "lists": ({"train": "lists/train.txt", "val": "lists/val.txt"}, "m t",
        "1 lines of lists name no annotated picture: images/gone.png"),
    "one isn't here": ({"train": "monday", "val": "tuesday", "test": "gone"}, "m t",
        "test of data.yaml (gone) isn't there; splits as in data.yaml"),
    "one twice": ({"train": "monday", "val": "monday"}, "m",
        "the pictures of val are those of train, and left to it"),
    "one within another": ({"train": ".", "val": "tuesday", "test": "friday"}, "m t f",
        "8 pictures are in two splits, and don't train"),
    "none": ({"train": "", "val": ""}, "mtf", ""),
}  # fmt: skip


@pytest.mark.parametrize(("splits", "days", "note"), DATA_YAML.values(), ids=DATA_YAML)
def test_the_splits_of_data_yaml_are_used(tmp_path, splits, days, note):
    write_yolo(tmp_path, monday=DAYS["m"], tuesday=DAYS["t"], friday=DAYS["f"])
    near = "\n".join(f"./../monday/images/p{n}.png" for n in DAYS["m"])
    far = "\n".join(f"/far/away/tuesday/images/p{n}.png" for n in DAYS["t"])
    write(tmp_path, {"lists/train.txt": near, "lists/val.txt": f"images/gone.png\n{far}"})
    lines = "".join(f"{name}: {value}\n" for name, value in splits.items())
    write(tmp_path, {"data.yaml": f"names: [cell]\n{lines}"})
    data = read(tmp_path)
    found = pictures(data)
    stated = [sorted(n for day in each for n in DAYS[day]) for each in days.split()]
    for name, numbers in zip(SPLITS[1:], stated[1:], strict=False):
        assert found[name] == numbers
    assert together(found) == sorted(n for numbers in stated for n in numbers)
    assert note in data.source.notes[0]


def test_what_is_no_path_in_data_yaml_is_refused(tmp_path):
    write_yolo(tmp_path, monday=range(5))
    write(tmp_path, {"data.yaml": "names: [cell]\ntrain: {monday: 1}\n"})
    problem = r"data\.yaml: 'train' is .*, no path or list of paths; write"
    with pytest.raises(BadInput, match=problem):
        read(tmp_path).read()


def test_a_note_a_role_says_how_it_came_about(tmp_path):
    def notes(root, splits=Splits()):
        found = [note for note in read(root, splits).source.notes if note.split(":")[0] in SPLITS]
        assert len(found) == 3
        return dict(note.split(": ") for note in found)

    write_csv(tmp_path / "a", 30, lambda n: "abcd"[n % 4])
    assert notes(tmp_path / "a", Splits(val="b")) == {
        "train": "all other pictures",
        "val": "b, as splits.val says",
        "test": "20 % of the training pictures by seed 0, "
        "because the files have no test split, only a, b, c, d",
    }
    write_csv(tmp_path / "b", 30, group=lambda n: f"b{n // 3}")
    assert notes(tmp_path / "b", Splits(fold=3, seed=1, val_fraction=0.2)) == {
        "train": "all other pictures",
        "val": "20 % of the training groups by seed 1, fold 3, because the files name no splits",
        "test": "20 % of the groups by seed 1, because the files name no splits",
    }
    write_coco(tmp_path / "c", train=range(9), val2017=[9, 10], test=[11])
    assert notes(tmp_path / "c") == {
        "train": "the files' own split train",
        "val": "the files' own split val2017",
        "test": "the files' own split test",
    }
    write_coco(tmp_path / "d", val2017=range(20))
    assert notes(tmp_path / "d")["test"] == (
        "20 % of the pictures by seed 0, because the files' own splits can't be used"
    )
    write_voc(tmp_path / "e", 20, trainval=range(12), val=range(3), test=range(12, 20))
    assert notes(tmp_path / "e") == {
        "train": "the files' own split ImageSets/Main/trainval.txt",
        "val": "10 % of the training pictures by seed 0, "
        "because ImageSets' val.txt is used for another role",
        "test": "the files' own split ImageSets/Main/test.txt",
    }


def test_a_group_pattern_keeps_copies_of_a_picture_on_one_side(tmp_path):
    for n in range(30):
        draw(tmp_path / f"p{n // 3}.rf.{n}.png", n)
    lines = [f"p{n // 3}.rf.{n}.png,{n},5,{n + 20},30" for n in range(30)]
    write(tmp_path, {"boxes.csv": csv_of(*lines)})
    found = pictures(read(tmp_path, Splits(group_pattern=r"([^/]+)\.rf\.")))
    copies = [{n // 3 for n in found[name]} for name in SPLITS]
    assert [len(found[name]) for name in SPLITS] == [21, 3, 6]
    assert [len(names) for names in copies] == [7, 1, 2]


def test_small_boxes_and_other_classes_are_left_out_and_counted(tmp_path):
    tiny = [f"p{n}.png,{n},5,{n + 9},40,cell,," for n in range(30)]
    write_csv(tmp_path, 30, label=lambda n: ("cell", "plate", "dust")[n % 3], boxes=tiny)
    data = read(tmp_path, classes=["plate", "cell"], min_size=10)
    assert together(pictures(data)) == [n for n in range(30) if n % 3 < 2]
    assert data.source.classes == ("plate", "cell")
    assert "20 of 60 boxes kept by classes and least size" in data.source.notes
    assert len(data.source.store) == 20
    for items in data.source.splits.values():
        expected = [1 - round(x) % 3 for x in items.boxes[:, 0].tolist()]
        assert items.labels.tolist() == expected


def test_filters_do_not_move_pictures_between_splits(tmp_path):
    write_csv(tmp_path, 30, label=cell_or_dust)
    whole, cells = pictures(read(tmp_path)), pictures(read(tmp_path, classes=["cell"]))
    assert cells == {name: [n for n in whole[name] if n % 3] for name in SPLITS}


@pytest.mark.parametrize(
    "write_set",
    [
        lambda root: write_voc(root, 25, trainval=range(20, 0, -1), test=[24, 0, 22]),
        lambda root: write_coco(root, train=range(9, 0, -1), valid=[12, 11], test=[14, 10]),
        lambda root: write_csv(root, 30, label=cell_or_dust),
    ],
    ids=["voc", "coco", "csv"],
)
def test_crops_are_cut_from_the_pictures_their_boxes_lie_in(tmp_path, write_set):
    data = read(write_set(tmp_path), classes=["cell"])
    for split in SPLITS:
        samples, batch = data.samples(split), batch_of(data, split)
        numbers = data.source.splits[split].boxes[samples.items, 0].round()
        levels = batch.crops.amax(dim=(1, 2, 3)) * 255
        torch.testing.assert_close(levels, numbers, rtol=0, atol=1e-3)
        torch.testing.assert_close(batch.crops.amin(dim=(1, 2, 3)) * 255, levels)


def test_intervals_are_over_pictures_where_nobody_tells_groups(tmp_path):
    more = [f"p{n}.png,{n},10,{n + 30},40,cell,," for n in range(30)]
    data = read(write_csv(tmp_path, 30, boxes=more))
    for items in data.source.splits.values():
        same = items.clusters[:, None] == items.clusters
        assert torch.equal(same, items.image_index[:, None] == items.image_index)
        assert items.clusters.bincount().max() == 2


def test_intervals_are_over_groups_where_the_files_tell_them(tmp_path):
    data = read(write_csv(tmp_path, 30, group=lambda n: f"board{n % 10}"))
    for items in data.source.splits.values():
        boards = items.boxes[:, 0].round().long() % 10  # a picture's number is its box's left edge
        same = items.clusters[:, None] == items.clusters
        assert torch.equal(same, boards[:, None] == boards)
        assert len(items.clusters.unique()) < len(items.image_index.unique())


def test_skipped_boxes_are_listed_with_their_split(tmp_path):
    bad = ["p3.png,30,5,30,9,cell,train,", "p8.png,8,9,20,5,cell,test,"]
    write_csv(tmp_path, 10, lambda n: "test" if n > 6 else "train", boxes=bad)
    data = read(tmp_path)
    found = {name: data.source.splits[name].skipped for name in SPLITS}
    (tested,) = found["test"]
    assert "p8.png" in tested
    (trained,) = found["train"] + found["val"]
    assert "p3.png" in trained
    line = next(line for line in data.describe() if line.startswith("test: "))
    assert "3 pictures, 3 boxes, 1 skipped" in line
    with pytest.raises(BadInput, match=r"boxes\.csv:12"):
        read(tmp_path, reading=Reading(on_bad="error")).setup("fit")


def test_statistics_come_from_training_pictures_alone(tmp_path):
    def split(n):
        return "test" if n > 24 else "valid" if n > 20 else "train"

    first = read(write_csv(tmp_path / "a", 30, split), crop=CropGeometry(size=16, square=True))
    write_csv(tmp_path / "b", 30, split)
    lines = (tmp_path / "b/boxes.csv").read_text().splitlines()
    lines[22:] = [f"p{n}.png,0,0,90,{n},cell,{split(n)}," for n in range(21, 30)]
    (tmp_path / "b/boxes.csv").write_text("\n".join(lines))
    for n in range(21, 30):
        draw(tmp_path / f"b/p{n}.png", 200)
    other = read(tmp_path / "b", crop=CropGeometry(size=16, square=True))
    assert first.spec() == other.spec()
    assert same(fitted(first), fitted(other))
    assert not torch.equal(first.samples("test").gt_boxes, other.samples("test").gt_boxes)


REFUSED = {
    "unknown_split": ({"test": "tset"}, "no split tset; the files have test, train, val"),
    "mixed": ({"train": "train", "test": "a.txt"}, "mix .txt files and names"),
    "split_and_groups": ({"test": "test", "test_groups": ["p1.png"]}, "are both set"),
    "train_is_test": ({"train": ["train", "val"], "test": "train"}, "split train is named twice"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_splits_are_refused(tmp_path, arguments, message):
    write_csv(tmp_path, 30, three_splits)
    with pytest.raises(BadInput, match=message):
        read(tmp_path, Splits(**arguments)).setup("fit")


def test_named_splits_that_share_a_group_are_refused(tmp_path):
    write_csv(tmp_path, 30, three_splits, lambda n: f"b{n // 15}")
    named = Splits(train="train", val="val", test="test")
    with pytest.raises(BadInput, match="groups b0, b1 lie in more than one split"):
        read(tmp_path, named).setup("fit")


def test_a_split_whose_boxes_are_all_filtered_out_is_refused(tmp_path):
    write_csv(tmp_path, 30, three_splits, label=lambda n: "dust" if n % 3 == 2 else "cell")
    with pytest.raises(BadInput, match="the test split has no boxes left"):
        read(tmp_path, classes=["cell"]).setup("fit")


def test_runs_on_other_classes_keep_their_pixels_side_by_side(tmp_path, capsys):
    root = write_csv(tmp_path / "data", 70, label=lambda n: "cell" if n % 2 else "dust")
    store = Storage("disk", str(tmp_path / "store"))
    for _ in range(2):
        for name in ("cell", "dust"):
            found, expected = (
                read(root, classes=[name], **place).source.store for place in ({"store": store}, {})
            )
            assert len(found) == 35
            assert torch.equal(found.pixels, expected.pixels)
    said = capsys.readouterr().out
    assert (said.count("decoded into"), said.count("read from")) == (2, 2)


def test_a_store_within_the_data_keeps_the_annotations(tmp_path):
    root = write_coco(tmp_path, train=range(9), valid=range(9, 14), test=range(14, 20))
    for folder in ("train", "valid", "test"):
        (root / folder / "_annotations.coco.json").rename(root / folder / "pictures.json")
    before = files_of(root)
    for folder in (root, root / "train"):
        _ = read(root, store=Storage("disk", str(folder))).source
    assert before.items() <= files_of(root).items()


def write_proposals(root, num=75, missed=(), per_box=1):
    """Write pictures in CSV, each box with proposals that are off in x by n modulo 5 pixels."""
    write_csv(root, num, split=three_splits)
    lines = [
        f"p{n}.png,{n + n % 5 + k},5,{n + 20 + n % 5 + k},30,cell,{1 - k / 10}"
        for n in range(num)
        if n not in missed
        for k in range(per_box)
    ]
    header = "image,xmin,ymin,xmax,ymax,label,confidence"
    write(root, {"rough/found.csv": csv_of(*lines, header=header)})
    return root


def with_proposals(root, **options):
    named = Reading(annotations=["boxes.csv"], images=".")
    return read(root, reading=named, proposals="rough/found.csv", **options)


def test_proposals_that_are_given_are_what_is_cut_and_corrected(tmp_path):
    data = with_proposals(write_proposals(tmp_path, missed=(0, 1, 2, 3)), num_targets=4)
    assert pictures(data)["train"] == list(range(6, 75, 3))
    for split in SPLITS:
        samples = data.samples(split)
        n = data.source.splits[split].boxes[samples.items, 0]
        off = n.remainder(5)
        assert torch.equal(samples.proposals[:, 0], n + off)
        sign = 1 - 2 * samples.flips[:, 0]
        assert torch.equal(samples.gt_boxes[:, 0], samples.proposals[:, 0] - sign * off)
        gray = data.crops_of(samples).mean(dim=(1, 2, 3)) * 255
        assert torch.equal(gray.round(), n)
    assert (data.samples("train").flips.mean(dim=0) > 0).all()
    again = data.samples("train", epoch=1)
    assert not torch.equal(again.items, data.samples("train").items)


def test_what_a_model_must_know_is_of_the_training_proposals(tmp_path):
    root = write_proposals(tmp_path)
    lines = (root / "rough/found.csv").read_text().splitlines()
    lines[1] = "p0.png,0,5,18,32,cell,1"
    write(root, {"rough/found.csv": "\n".join(lines)})
    spec = with_proposals(root, num_targets=4).spec()
    assert spec.max_shift == pytest.approx(30 * 4 / 20)
    assert spec.max_log_size == pytest.approx(math.log(20 / 18))


def test_several_proposals_of_a_box_are_all_used_where_that_is_asked_for(tmp_path):
    root = write_proposals(tmp_path, num=12, per_box=3)
    one, all_of_them = (with_proposals(root, matching=Matching(several=it)) for it in (False, True))
    assert [len(one.source.splits[name]) for name in SPLITS] == [4, 4, 4]
    items = all_of_them.source.splits["test"]
    assert len(items) == 12
    assert len(set(items.ids)) == 4
    assert len(set(zip(items.ids, items.proposals[:, 0].tolist(), strict=True))) == 12
    assert items.digest() != one.source.splits["test"].digest()


def test_what_finds_no_partner_is_counted_and_listed(tmp_path):
    root = write_proposals(tmp_path, missed=(4, 5))
    text = (root / "rough/found.csv").read_text()
    write(root, {"rough/found.csv": f"{text}\np7.png,60,5,80,30,cell,0.1"})
    source = with_proposals(root).source
    (note,) = (note for note in source.notes if note.startswith("proposals: "))
    for part in ("found.csv", "73 are matched", "1 aren't", "2 of 75 true boxes have none"):
        assert part in note
    skipped = {name: source.splits[name].skipped for name in SPLITS}
    assert skipped["train"] == ()
    assert skipped["val"] == (
        "boxes.csv:6: the true box has no proposal in p4.png; left out",
        "rough/found.csv:75: the proposal has no true box in p7.png; left out",
    )
    assert skipped["test"] == ("boxes.csv:7: the true box has no proposal in p5.png; left out",)


def test_how_proposals_are_off_is_said_of_the_training_split_alone(tmp_path):
    root = write_csv(
        tmp_path, 80, split=lambda n: "test" if n < 10 else "val" if n < 20 else "train"
    )
    lines = [
        f"p{n}.png,{n + off},5,{n + off + 20},30,cell"
        for n in range(80)
        for off in [4 - 6 * (n < 20)]
    ]
    write(root, {"rough/found.csv": csv_of(*lines, header="image,xmin,ymin,xmax,ymax,label")})
    source = with_proposals(root).source
    assert source.law.right == 0
    assert source.notes[-1] == (
        "how the training proposals are off: 100 % of the boxes are 20 % too far right on average, "
        "and off by 0 % at random"
    )
    source.law.save(tmp_path / "law.json")
    law = FittedJitter(str(tmp_path / "law.json"))
    drawn = read(root, reading=Reading(annotations=["boxes.csv"]), jitter=law).samples("test")
    assert (drawn.proposals - drawn.gt_boxes)[:, 0].tolist() == pytest.approx([4.0] * 20, abs=1e-2)


def test_few_proposals_tell_no_law_and_say_so(tmp_path):
    source = with_proposals(write_proposals(tmp_path)).source
    assert source.law is None
    assert any("25 boxes are too few" in note for note in source.notes)


def test_jitter_beside_proposals_is_refused(tmp_path):
    root = write_proposals(tmp_path)
    with pytest.raises(BadInput, match=r"so data.jitter draws none; leave one of them out"):
        with_proposals(root, jitter=UniformJitter())


def test_every_picture_tests_in_one_fold_where_the_files_splits_do_not_count(tmp_path):
    write_coco(tmp_path, train=range(12), test=range(12, 20))
    tested = [
        pictures(read(tmp_path, Splits(stated=False, test_fraction=0.25, test_fold=fold)))["test"]
        for fold in range(4)
    ]
    every = [picture for fold in tested for picture in fold]
    assert sorted(every) == list(range(20))
    with pytest.raises(BadInput, match="stated is false, but splits are named"):
        Splits(stated=False, test="test")


def test_a_table_at_hand_trains_and_is_refined_as_its_files_are(tmp_path):
    write_csv(tmp_path, 12, boxes=["p3.png,-5,1,20,20,cell,,"])
    data = BoxDataModule(str(tmp_path))
    numbers = range(12)
    paths = [tmp_path / f"p{n}.png" for n in numbers]
    boxes = [[[n, 5, n + 20, 30]] + [[-5, 1, 20, 20]] * (n == 3) for n in numbers]
    labels = [["cell"] * len(each) for each in boxes]
    names = [f"p{n}.png" for n in numbers]
    table = BoxTable.from_arrays(names, boxes, labels=labels, root=tmp_path)
    mine = BoxDataModule(table=table)
    for split in SPLITS:
        one, other = data.samples(split), mine.samples(split)
        assert same(one.gt_boxes, other.gt_boxes)
        assert same(one.proposals, other.proposals)
    assert len(table.skipped) == 1
    rough = BoxTable.from_arrays(paths, boxes, labels=labels, rough=True)
    source = BoxDataModule(table=rough).read_rough()
    assert len(source.splits["predict"].boxes) == 13


ONE_OF_BOTH = {
    "data.root is not set": {},
    "a table and data.root are both given": {"root": "set", "table": True},
    "a table and data.splits.group_pattern are both given": {
        "table": True,
        "splits": Splits(group_pattern="(.)"),
    },
    "data.table is 7, no BoxTable": {"table": 7},
}


@pytest.mark.parametrize("sentence", ONE_OF_BOTH)
def test_either_a_root_or_a_table_is_given(tmp_path, sentence):
    Image.new("L", SIZE).save(tmp_path / "a.png")
    options = dict(ONE_OF_BOTH[sentence])
    if options.get("table") is True:
        options["table"] = BoxTable.from_arrays(["a.png"], [[[1, 1, 9, 9]]], root=tmp_path)
    with pytest.raises(BadInput, match=f"^{sentence}"):
        BoxDataModule(**options)


def marked_set(root, marked=((0, 1), (8,), (9,))):
    """Write ten pictures of two boxes, of which the first is marked in some of each split."""
    train, val, test = (range(8), range(8, 9), range(9, 10))
    write_voc(root, 10, train=train, val=val, test=test)
    extra = "<object><name>cell</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax>"
    extra += "<ymax>9</ymax></bndbox></object></annotation>"
    for n in range(10):
        path = root / f"Annotations/p{n}.xml"
        text = path.read_text().replace("</annotation>", extra)
        if any(n in numbers for numbers in marked):
            text = text.replace("<bndbox>", "<difficult>1</difficult><bndbox>", 1)
        path.write_text(text)
    return root


def test_marked_boxes_take_no_part_and_a_note_a_role_counts_them(tmp_path):
    source = BoxDataModule(str(marked_set(tmp_path))).source
    assert [len(source.splits[role]) for role in SPLITS] == [14, 1, 1]
    notes = [note for note in source.notes if "marked" in note]
    counts = ("train: 2 boxes are", "val: 1 box is", "test: 1 box is")
    told = "marked difficult or to be ignored, and left out; data.use_marked takes them"
    assert notes == [f"{count} {told}" for count in counts]
    assert [len(source.splits[role].skipped) for role in SPLITS] == [2, 1, 1]
    (sentence,) = source.splits["val"].skipped
    place = "Annotations/p8.xml: object 1: the box in JPEGImages/p8.png"
    assert sentence == f"{place} is marked difficult; left out"
    marked = {f"Annotations/p{n}.xml: object 1" for n in (0, 1, 8, 9)}
    used = {name for role in SPLITS for name in source.splits[role].ids}
    assert len(used) == 16
    assert not used & marked


def test_marked_boxes_are_used_where_that_is_asked_for(tmp_path):
    source = BoxDataModule(str(marked_set(tmp_path)), use_marked=True).source
    assert [len(source.splits[role]) for role in SPLITS] == [16, 2, 2]
    assert not any("marked" in note for note in source.notes)
    assert not any(source.splits[role].skipped for role in SPLITS)


def test_marked_boxes_are_refined_all_the_same(tmp_path):
    data = BoxDataModule(str(marked_set(tmp_path)))
    data.setup("predict")
    assert len(data.source.splits["predict"]) == 20
    assert not any(data.rough.reasons)


def test_what_is_marked_shares_no_proposals(tmp_path):
    root = marked_set(tmp_path, [(0, 1)])
    rows = [f"JPEGImages/p{n}.png,{n},5,{n + 20},30,cell" for n in range(10)]
    write(root, {"rough.csv": csv_of(*rows, header="image,xmin,ymin,xmax,ymax,label")})
    data = BoxDataModule(str(root), proposals="rough.csv", matching=Matching(min_iou=0.3))
    assert [len(data.source.splits[role]) for role in SPLITS] == [6, 1, 1]


def test_a_split_of_marked_boxes_alone_is_refused(tmp_path):
    root = marked_set(tmp_path)
    path = root / "Annotations/p8.xml"
    path.write_text(path.read_text().replace("</name><bnd", "</name><difficult>1</difficult><bnd"))
    with pytest.raises(BadInput, match=r"the val split has no boxes left.*2 not kept.*use_marked"):
        _ = BoxDataModule(str(root)).source
