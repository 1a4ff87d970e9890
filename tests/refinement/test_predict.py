"""What `predict` makes of annotation files: the same files, with other boxes in them."""

import csv
import json
import re
import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, BoxDataModule, BoxRegressor, DisplacementLaw, Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from lightning_bbox.core.files import OWN
from lightning_bbox.geometry.class_laws import ClassLaws
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.geometry.trained_range import TrainedRange
from lightning_bbox.refinement.predictions import PredictionFiles
from tests import annotation_files
from tests.runs import CONFIGS, files_of, fit

# Pictures by stem: width, height, boxes by class as xyxy edges; one box is very small.
SCENE = {
    "a": (80, 64, [("cell", (5.0, 6.0, 30.5, 30.25)), ("plate", (10.0, 20.0, 70.0, 60.0))]),
    "b": (50, 60, [("cell", (11.0, 12.0, 33.0, 44.0)), ("cell", (1.0, 2.0, 4.0, 5.0))]),
    "empty": (16, 16, []),
}
FLAT = "cell;5;5;7;9;a.png;flat"
FLAT_SAYS = "boxes.csv:6: the box xmin=5, ymin=7, xmax=5, ymax=9 in a.png has no positive width"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train for a moment, at another crop size than the default."""
    options = ["--trainer.max_epochs=1", "--data.crop.size=32", "--data.num_targets=4"]
    return fit(tmp_path_factory.mktemp("runs"), "run", *options, "--data.draws_per_epoch=320")


@pytest.fixture
def write_set(tmp_path, monkeypatch):
    """Return a function that writes a data set in a format, its pictures full of noise."""
    monkeypatch.setattr(annotation_files, "SCENE", SCENE)

    def written(name, folder="data"):
        root = tmp_path / folder
        getattr(annotation_files, f"write_{name}")(root)
        random = np.random.default_rng(0)
        for path in root.rglob("*.png"):
            with Image.open(path) as blank:
                width, height = blank.size
            noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        return root

    return written


def command(run, root, name, *options):
    return [
        *("predict", "-c", str(CONFIGS / "coco.yaml"), f"--ckpt_path={run}"),
        *("--data.reading.format=auto", f"--data.root={root}", "--data.compile=false"),
        *("--trainer.precision=32-true", f"--runs={root.parent}", f"--name={name}", *options),
    ]


def predict(run, root, name, *options):
    """Refine the boxes of a folder and return what was written."""
    assert main(command(run, root, name, *options)) == 0
    return root.parent / name


def unchanged(folder):
    return (folder / "unchanged.txt").read_text().splitlines()


def without_numbers(content):
    return re.sub(rb"-?\d+(\.\d+)?", b"#", content)


@pytest.mark.parametrize("name", ["voc", "coco", "yolo", "csv"])
def test_refined_boxes_come_back_in_their_own_files(name, run, write_set):
    root = write_set(name)
    before = files_of(root)
    folder = predict(run, root, "out")
    assert files_of(root) == before
    written = files_of(folder / "refined")
    assert written.keys() == {file for file in before if not file.endswith((".png", "data.yaml"))}
    for file, content in written.items():
        assert without_numbers(content) == without_numbers(before[file])

    shutil.copytree(folder / "refined", root, dirs_exist_ok=True)
    refiner = Refiner(run)
    rough, refined = read_annotations(write_set(name, "again")), read_annotations(root)
    assert (refined.ids, refined.images) == (rough.ids, rough.images)
    assert torch.equal(refined.labels, rough.labels)
    for at, path in enumerate(rough.images):
        mine = rough.image_index == at
        expected = refiner.refine_with_std(rough.root / path, rough.boxes[mine]).boxes
        torch.testing.assert_close(refined.boxes[mine], expected, rtol=0, atol=2e-3)


def test_a_single_box_is_refined(run, write_set, monkeypatch):
    monkeypatch.setattr(annotation_files, "SCENE", {"a": (80, 64, SCENE["a"][2][:1])})
    root = write_set("csv")
    rough = read_annotations(root)
    (written,) = (predict(run, root, "out") / "refined").glob("*.csv")
    expected = Refiner(run).refine_with_std(root / rough.images[0], rough.boxes).boxes
    assert len(expected) == 1
    assert not torch.equal(expected, rough.boxes)
    shutil.copy(written, root)
    found = read_annotations(root).boxes
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_the_runs_own_configuration_gives_the_same_files_to_the_byte(run, write_set):
    root = write_set("coco")
    first = files_of(predict(run, root, "first"))
    files = {"changes.csv", "changes.png", "review.html", "unchanged.txt"}
    assert first.keys() == files | {"refined/_annotations.coco.json", OWN}
    own = ["predict", f"--ckpt_path={run}", "--data=BoxDataModule", f"--data.root={root}"]
    assert main([*own, f"--runs={root.parent}", "--name=own"]) == 0
    assert files_of(root.parent / "own") == first


def test_boxes_whose_picture_is_missing_are_listed_and_stay(run, write_set, capsys):
    root = write_set("csv")
    file = root / "boxes.csv"
    file.write_text(f"{file.read_text()}\ncell;9;1;1;9;gone.png;")
    line = file.read_text().count("\n") + 1
    folder = predict(run, root, "out", "--data.reading.on_missing=skip")
    said = f"boxes.csv:{line}: the box is in 'gone.png', which isn't there"
    assert (folder / "skipped.txt").read_text() == f"{said}; left out\n"
    assert f"{said}; left as it is" in unchanged(folder)
    assert (folder / "refined/boxes.csv").read_text().endswith("\ncell;9;1;1;9;gone.png;")
    assert f"skipped boxes are listed in {folder / 'skipped.txt'}" in capsys.readouterr().out


@pytest.fixture
def many(write_set, monkeypatch):
    """Sixty boxes in six pictures."""
    boxes = [(4.0 + 2 * n, 5.0 + n, 34.0 + 2 * n, 30.0 + n) for n in range(10)]
    scene = {f"p{n}": (90, 64, [("cell", box) for box in boxes]) for n in range(6)}
    monkeypatch.setattr(annotation_files, "SCENE", scene)
    return write_set("csv")


def moved_by(refiner, root):
    table = read_annotations(root)
    pictures = [root / image for image in table.images]
    boxes = [table.boxes[table.image_index == at] for at in range(len(pictures))]
    return pictures, boxes, torch.cat([one.boxes for one in refiner.refine_batch(pictures, boxes)])


def rows_of(folder):
    return list(csv.DictReader((folder / "changes.csv").read_text().splitlines()))


def corners_of(folder):
    names = [f"new_{name}" for name in ("xmin", "ymin", "xmax", "ymax")]
    return torch.tensor([[float(row[name]) for name in names] for row in rows_of(folder)])


def test_boxes_move_by_their_own_law(run, many, capfd):
    folder = predict(run, many, "auto")
    law = DisplacementLaw.load(folder / "law.json")
    assert f"{law.words()} (law.json)" in capfd.readouterr().out
    refiner = Refiner(run)
    pictures, boxes, _ = moved_by(refiner, many)
    mine = refiner.fit_law(pictures, boxes)
    assert mine.right == pytest.approx(law.right, abs=1e-3)
    expected = moved_by(Refiner(run, law=law), many)[-1]
    torch.testing.assert_close(corners_of(folder), expected, rtol=0, atol=2e-3)
    for row in rows_of(folder):
        assert 0 <= float(row["wrong"]) <= 1
        stays = all(row[f"new_{name}"] == row[name] for name in ("xmin", "ymin", "xmax", "ymax"))
        assert (float(row["gain"]) > 0) != stays
        assert (row["unchanged"] == "is best left where it is") == stays


def test_boxes_beyond_the_trained_range_are_marked_and_their_deviations_left_out(
    run, many, tmp_path, capfd
):
    near = predict(run, many, "near")
    capfd.readouterr()
    model = BoxRegressor.load_from_checkpoint(run)
    pictures, boxes, _ = moved_by(Refiner(model), many)
    model.range = None
    found = Refiner(model, law="trained").refine_batch(pictures, boxes)
    # The range is put to where half of these boxes lie beyond it, by what is told of them.
    said = torch.cat([one.stds for one in found]) / model.net.calibration.temperature
    largest = (said / torch.tensor(model.spec.bounds)).amax(dim=1).log()
    model.range = TrainedRange((0.0, 1.0), float(largest.median()) + 1e-4)
    beyond = largest > model.range.limit
    assert 20 < int(beyond.sum()) < 40
    files = PredictionFiles(tmp_path / "far")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[files]
    )
    trainer.predict(model, BoxDataModule(str(many)), return_predictions=False)
    rows = rows_of(tmp_path / "far")
    assert [row["beyond"] for row in rows] == ["yes" if far else "" for far in beyond]
    for row, before in zip(rows, rows_of(near), strict=True):
        kept = {name: row[name] for name in row if not name.startswith(("std_", "beyond"))}
        assert kept == {name: before[name] for name in kept}
        stds = [row[name] for name in row if name.startswith("std_")]
        assert (stds == [""] * 4) == (row["beyond"] == "yes")
    told = f"{int(beyond.sum())} of {len(rows)} boxes seem farther off than those of the training"
    assert told in capfd.readouterr().out

    found = Refiner(model).refine_batch(pictures, boxes)
    assert torch.equal(torch.cat([one.beyond for one in found]), beyond)
    assert torch.equal(torch.cat([one.stds for one in found]).isnan().any(dim=1), beyond)
    assert Refiner(model).fit_law(pictures, boxes) == Refiner(run).fit_law(pictures, boxes)


def test_where_most_boxes_lie_beyond_the_trained_range_these_stay(run, many, tmp_path, capfd):
    model = BoxRegressor.load_from_checkpoint(run)
    model.range = TrainedRange((0.0, 1.0), -100.0)
    pictures, boxes, _ = moved_by(Refiner(run), many)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            PredictionFiles(tmp_path / "auto"),
            PredictionFiles(tmp_path / "trained", law="trained"),
        ],
    )
    trainer.predict(model, BoxDataModule(str(many)), return_predictions=False)
    assert torch.equal(corners_of(tmp_path / "auto"), torch.cat(boxes))
    reason = "lies beyond the trained range, as most do (--law trained moves it)"
    assert {row["unchanged"] for row in rows_of(tmp_path / "auto")} == {reason}
    assert f"{len(torch.cat(boxes))} of {len(torch.cat(boxes))} boxes" in capfd.readouterr().out
    moved = [row["unchanged"] == "" for row in rows_of(tmp_path / "trained")]
    assert any(moved)
    with pytest.raises(BadInput, match="0 boxes are too few to tell how they are off"):
        Refiner(model).fit_law(pictures, boxes)


def test_boxes_move_by_a_law_at_hand_or_by_that_of_the_training(run, many, capfd):
    trained = predict(run, many, "trained", "--law=trained")
    assert not (trained / "law.json").exists()
    expected = moved_by(Refiner(run), many)[-1]
    torch.testing.assert_close(corners_of(trained), expected, rtol=0, atol=2e-3)
    assert {row["gain"] for row in rows_of(trained)} == {""}

    law = DisplacementLaw(1.0, (0.0,), ((0.0,) * 4,), ((0.1,) * 4,))
    law.save(many.parent / "right.json")
    still = predict(run, many, "still", f"--law={many.parent / 'right.json'}")
    refined = (still / "refined" / "boxes.csv").read_bytes()
    assert refined == (many / "boxes.csv").read_bytes()

    path = many / "boxes.csv"
    path.write_text(path.read_text() + "p0.png,-6,10,30,40,cell\n")  # partly outside
    overhung = predict(run, many, "overhung", f"--law={many.parent / 'right.json'}")
    assert (overhung / "refined" / "boxes.csv").read_bytes() == path.read_bytes()

    assert main(command(run, many, "wrong", f"--law={many / 'boxes.csv'}")) == 2
    assert "boxes.csv: holds no displacement law" in capfd.readouterr().err
    DisplacementLaw(1.0, (0.0,), ((0.0,) * 2,), ((0.1,) * 2,)).save(many.parent / "two.json")
    assert main(command(run, many, "two", f"--law={many.parent / 'two.json'}")) == 2
    assert "the law has 2 coordinates, the model 4" in capfd.readouterr().err


def test_boxes_move_by_the_law_of_their_class(run, many, capfd):
    lines = (many / "boxes.csv").read_text().splitlines(keepends=True)
    lines[1::2] = [line.replace("cell", "plate") for line in lines[1::2]]
    (many / "boxes.csv").write_text("".join(lines))
    right = DisplacementLaw(1.0, (0.0,), ((0.0,) * 4,), ((0.1,) * 4,))
    aside = DisplacementLaw(0.0, (1.0,), ((0.2, 0.0, 0.0, 0.0),), ((1e-3,) * 4,))
    laws = ClassLaws(right, {"plate": aside})
    laws.save(many.parent / "laws.json")
    folder = predict(run, many, "by-class", f"--law={many.parent / 'laws.json'}")
    assert "plate: 100 % of the boxes are 20 % too far left" in capfd.readouterr().out
    assert ClassLaws.load(folder / "law.json") == laws
    rows = rows_of(folder)
    assert {row["label"] for row in rows} == {"plate", "cell"}
    for row in rows:
        shift = float(row["new_xmin"]) - float(row["xmin"])
        assert shift == pytest.approx(6.0 if row["label"] == "plate" else 0.0, abs=0.2)


def test_few_boxes_move_as_in_training_and_that_is_said(run, write_set, capfd):
    folder = predict(run, write_set("csv"), "few")
    told = (
        "4 boxes are too few to tell how they are off; 50 do; so they move as if off as in training"
    )
    assert told in capfd.readouterr().out
    assert not (folder / "law.json").exists()


@pytest.fixture
def measured(run, tmp_path):
    """The run's checkpoint, with a law of its own."""
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    law = DisplacementLaw(0.5, (0.5,), ((0.0,) * 4,), ((0.3,) * 4,))
    reliability = Reliability((0.0,) * 4, (0.9,) * 4, (1.2,) * 4)
    checkpoint["lightning_bbox"] |= {"law": law.plain(), "reliability": reliability.plain()}
    torch.save(checkpoint, tmp_path / "measured.ckpt")
    return tmp_path / "measured.ckpt"


@pytest.mark.parametrize("options", [[], ["--law=own"]])
def test_few_boxes_move_by_the_models_own_law_and_that_is_said(measured, write_set, capfd, options):
    root = write_set("csv")
    folder = predict(measured, root, "few", *options)
    said = "boxes move by the model's own law, as if 50 % of them were right (law.json)"
    out = capfd.readouterr().out
    assert said in out
    assert ("4 boxes are too few to tell how they are off" in out) == (not options)
    refiner = Refiner(measured)
    assert DisplacementLaw.load(folder / "law.json") == refiner.law
    expected = moved_by(refiner, root)[-1]
    torch.testing.assert_close(corners_of(folder), expected, rtol=0, atol=2e-3)


def test_a_law_of_its_own_that_a_model_has_not_is_refused(run, write_set, capfd):
    assert main(command(run, write_set("csv"), "own", "--law=own")) == 2
    assert (
        "the checkpoint has no law of its own; take that which validate" in capfd.readouterr().err
    )


def test_the_table_of_changes_tells_each_box(run, write_set):
    root = write_set("csv")
    folder = predict(run, root, "out", "--data.min_size=6", "--data.classes=[cell]")
    rows = list(csv.DictReader((folder / "changes.csv").read_text().splitlines()))
    table = read_annotations(root)
    assert [row["id"] for row in rows] == list(table.ids)
    assert [row["label"] for row in rows] == [table.classes[label] for label in table.labels]
    assert [row["unchanged"] for row in rows] == [
        "",
        "is of class plate, not of `classes`",
        "",
        "has a side below min_size 6",
    ]
    assert unchanged(folder) == [
        "boxes.csv:3: is of class plate, not of `classes`; left as it is",
        "boxes.csv:5: has a side below min_size 6; left as it is",
    ]
    for row, old in zip(rows, table.boxes, strict=True):
        corners = ("xmin", "ymin", "xmax", "ymax")
        assert [float(row[corner]) for corner in corners] == old.tolist()
        new = torch.tensor([float(row[f"new_{corner}"]) for corner in corners])
        shift = (new - old).reshape(2, 2).mean(dim=0)
        sides = old[2:] - old[:2]
        for axis, pixels, side in zip("xy", shift.tolist(), sides.tolist(), strict=True):
            assert float(row[f"shift_{axis}_pixels"]) == pytest.approx(pixels, abs=1.1e-3)
            assert float(row[f"shift_{axis}_fraction"]) == pytest.approx(pixels / side, abs=1.1e-3)
            assert float(row[f"shift_{axis}_px"]) == pytest.approx(30 * pixels / side, abs=4e-3)
        assert bool(row["std_x_px"]) == (row["unchanged"] == "")
        if row["std_x_px"]:
            assert 0 < float(row["std_x_px"]) < 5
    with Image.open(folder / "changes.png") as sheet:
        assert sheet.width > 1000


def test_boxes_that_would_move_too_far_stay_and_are_listed(run, write_set):
    root = write_set("yolo")
    folder = predict(run, root, "out", "--max_shift=1e-6")
    assert files_of(folder / "refined").items() <= files_of(root).items()
    reasons = unchanged(folder)
    assert len(reasons) == 4
    assert all("px, more than max_shift 1e-06; left as it is" in line for line in reasons)


def test_boxes_beyond_the_limit_of_batches_stay_and_are_listed(run, write_set):
    root = write_set("csv")
    three = "--data.batch_size=3"
    folder = predict(run, root, "out", three, "--trainer.limit_predict_batches=0.5")
    whole = predict(run, root, "whole", three)
    lines, old, new = (
        (path / "boxes.csv").read_text().splitlines()
        for path in (folder / "refined", root, whole / "refined")
    )
    assert lines == [*new[:4], *old[4:]]
    reason = "boxes.csv:5: was left out by trainer.limit_predict_batches; left as it is"
    assert unchanged(folder) == [reason]


def test_overwrite_exchanges_the_originals_and_keeps_what_they_held(run, write_set):
    root = write_set("voc")
    before = files_of(root)
    folder = predict(run, root, "out", "--overwrite=true")
    refined = files_of(folder / "refined")
    assert files_of(root) == before | refined
    assert files_of(folder / "before") == {file: before[file] for file in refined}
    assert refined["Annotations/a.xml"] != before["Annotations/a.xml"]


def test_bad_boxes_come_back_unchanged_and_listed(run, write_set):
    root = write_set("csv")
    lines = [*(root / "boxes.csv").read_text().splitlines(), FLAT, "cell;nan;1;1;9;b.png;"]
    (root / "boxes.csv").write_text("\n".join(lines))
    folder = predict(run, root, "out")
    assert (folder / "refined" / "boxes.csv").read_text().splitlines()[-2:] == lines[-2:]
    lost = "boxes.csv:7: the box xmin=1, ymin=1, xmax=nan, ymax=9 in b.png is not finite"
    assert unchanged(folder) == [f"{FLAT_SAYS}; left as it is", f"{lost}; left as it is"]


def test_results_of_a_detector_are_refined_with_scores_and_order_kept(run, write_set):
    root = write_set("coco")
    results = [
        {"image_id": n, "category_id": 5, "score": score, "bbox": box, "extra": {"bbox": [1]}}
        for n, score, box in ((1, 0.25, [10.0, 11.0, 20.0, 30.0]), (0, 0.75, [5, 6, 25, 24]))
    ]
    (root / "results.json").write_text(json.dumps(results))
    option = "--data.reading.annotations=[_annotations.coco.json,results.json]"
    written = json.loads((predict(run, root, "out", option) / "refined/results.json").read_text())
    given = predict(run, root, "given", "--data.proposals=results.json")
    assert json.loads((given / "refined/results.json").read_text()) == written
    for new, old in zip(written, results, strict=True):
        assert new.pop("bbox") != old.pop("bbox")
    assert written == results


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--data.crop.size=45", "the model was trained with crop.size = 32, the data has 45"),
        ("--data.num_targets=2", "the model predicts 4 targets, the data asks for 2"),
        ("--model.head=LinearHead", "model.head is BinHead in the checkpoint and LinearHead in"),
        ("--max_shift=-1", "max_shift"),
        ("--data.classes=[dog]", "there is no class dog; choose from cell (3), plate (1)"),
        ("--data.min_size=999", "the predict split has no boxes left"),
        ("--data.reading.on_bad=error", FLAT_SAYS),
        ("--name=taken", "holds refined boxes already; choose another --name"),
    ],
)
def test_what_cannot_be_refined_is_refused(option, sentence, run, write_set, refused):
    root = write_set("csv")
    with (root / "boxes.csv").open("a") as file:
        file.write(f"\n{FLAT}")
    (root.parent / "taken").mkdir()
    (root.parent / "taken" / "changes.csv").touch()
    assert sentence in refused(command(run, root, "out", option))
    assert not list(root.parent.glob("*/refined"))


def test_data_without_rough_boxes_are_refused(run, tmp_path, refused):
    asked = ["predict", f"--ckpt_path={run}", "--data=SceneDataModule", f"--runs={tmp_path}"]
    expected = "SceneDataModule has no rough boxes to refine; give annotated pictures"
    assert refused(asked).startswith(expected)


def test_the_white_of_pictures_of_16_bits_is_said(run, write_set, capsys):
    """The model was trained on 8 bits, so it is that of the pictures at hand."""
    root = write_set("csv")
    for path in root.glob("*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 3).save(path)
    predict(run, root, "deep")
    said = "2 of 2 pictures have more than 8 bits a band, where 1023 is white (auto: the largest"
    assert f"{said} value of 2 is 765)" in capsys.readouterr().out
