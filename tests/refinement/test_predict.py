"""What `predict` makes of annotation files: the same files, with other boxes in them."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from tests import annotation_files as files

CONFIGS = Path(__file__).parents[2] / "configs"
# Pictures by stem: width, height, boxes by class as xyxy edges; one box is very small.
SCENE = {
    "a": (80, 64, [("cell", (5.0, 6.0, 30.5, 30.25)), ("plate", (10.0, 20.0, 70.0, 60.0))]),
    "b": (50, 60, [("cell", (11.0, 12.0, 33.0, 44.0)), ("cell", (1.0, 2.0, 4.0, 5.0))]),
    "empty": (16, 16, []),
}
WRITERS = {
    "voc": files.write_voc,
    "coco": files.write_coco,
    "yolo": files.write_yolo,
    "csv": files.write_csv,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for a moment, at another crop size than the default."""
    runs = tmp_path_factory.mktemp("runs")
    options = ["--data.num_scenes=60", "--trainer.max_epochs=1", "--data.crop.size=32"]
    options += ["--trainer.log_every_n_steps=1"]
    options += ["--data.batch_size=16", "--data.draws_per_epoch=320", "--data.eval_draws=40"]
    options += ["--data.compile=false", "--data.num_targets=4", "--trainer.precision=32-true"]
    options += ["--model.backbone=ShallowConvNet", "--model.backbone.channels=[4,8]"]
    options += ["--model.backbone.convs_per_scale=1", "--model.backbone.fc=[16]"]
    quickstart = ["fit", "-c", str(CONFIGS / "quickstart.yaml"), f"--runs={runs}", "--name=run"]
    assert main([*quickstart, *options]) == 0
    return runs / "run"


def write_set(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a data set in a format, its pictures full of noise."""
    monkeypatch.setattr(files, "SCENE", SCENE)
    WRITERS[name](root)
    random = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            width, height = image.size
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


def predict(run: Path, root: Path, name: str, *options: str) -> Path:
    """Refine the boxes of a folder and return what was written."""
    command = ["predict", "-c", str(CONFIGS / "coco.yaml"), f"--ckpt_path={run}"]
    command += ["--data.reading.format=auto", f"--data.root={root}", "--data.compile=false"]
    command += ["--trainer.precision=32-true", f"--runs={root.parent}", f"--name={name}"]
    assert main([*command, *options]) == 0
    return root.parent / name


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_numbers(content: bytes) -> bytes:
    return re.sub(rb"-?\d+(\.\d+)?", b"#", content)


@pytest.mark.parametrize("name", WRITERS)
def test_refined_boxes_come_back_in_their_own_files(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", name, monkeypatch)
    before = contents(root)
    folder = predict(run, root, "out")
    assert contents(root) == before
    written = contents(folder / "refined")
    assert written.keys() == {file for file in before if not file.endswith((".png", "data.yaml"))}
    for file, content in written.items():
        assert without_numbers(content) == without_numbers(before[file])

    shutil.copytree(folder / "refined", root, dirs_exist_ok=True)
    refiner = Refiner(run)
    rough = read_annotations(write_set(tmp_path / "again", name, monkeypatch))
    refined = read_annotations(root)
    assert (refined.ids, refined.images) == (rough.ids, rough.images)
    assert torch.equal(refined.labels, rough.labels)
    for at, path in enumerate(rough.images):
        mine = rough.image_index == at
        expected = refiner.refine_with_std(rough.root / path, rough.boxes[mine]).boxes
        torch.testing.assert_close(refined.boxes[mine], expected, rtol=0, atol=2e-3)


def test_a_second_run_gives_the_same_files_to_the_byte(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "coco", monkeypatch)
    first, again = (contents(predict(run, root, name)) for name in ("first", "again"))
    assert first == again
    assert set(first) == {
        "changes.csv",
        "changes.png",
        "unchanged.txt",
        "refined/_annotations.coco.json",
    }


def test_the_table_of_changes_tells_each_box(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "csv", monkeypatch)
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
    assert (folder / "unchanged.txt").read_text().splitlines() == [
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


def test_boxes_that_would_move_too_far_stay_and_are_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "yolo", monkeypatch)
    folder = predict(run, root, "out", "--max_shift=1e-6")
    for file, content in contents(folder / "refined").items():
        assert content == (root / file).read_bytes()
    unchanged = (folder / "unchanged.txt").read_text().splitlines()
    assert len(unchanged) == 4
    assert all("px, more than max_shift 1e-06; left as it is" in line for line in unchanged)


def test_boxes_beyond_the_limit_of_batches_stay_and_are_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "csv", monkeypatch)
    limits = ["--data.batch_size=3", "--trainer.limit_predict_batches=0.5"]
    folder = predict(run, root, "out", *limits)
    whole = predict(run, root, "whole", "--data.batch_size=3")
    lines, old, new = (
        (path / "boxes.csv").read_text().splitlines()
        for path in (folder / "refined", root, whole / "refined")
    )
    assert lines == [*new[:4], *old[4:]]
    reason = "boxes.csv:5: was left out by trainer.limit_predict_batches; left as it is\n"
    assert (folder / "unchanged.txt").read_text() == reason


def test_overwrite_exchanges_the_originals_and_keeps_what_they_held(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "voc", monkeypatch)
    before = contents(root)
    folder = predict(run, root, "out", "--overwrite=true")
    refined = contents(folder / "refined")
    assert contents(root) == before | refined
    assert contents(folder / "before") == {file: before[file] for file in refined}
    assert refined["Annotations/a.xml"] != before["Annotations/a.xml"]


def test_bad_boxes_come_back_unchanged_and_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "csv", monkeypatch)
    path = root / "boxes.csv"
    lines = [*path.read_text().splitlines(), "cell;5;5;7;9;a.png;flat", "cell;nan;1;1;9;b.png;"]
    path.write_text("\n".join(lines))
    folder = predict(run, root, "out")
    assert (folder / "refined" / "boxes.csv").read_text().splitlines()[-2:] == lines[-2:]
    flat = "boxes.csv:6: the box xmin=5, ymin=7, xmax=5, ymax=9 in a.png has no positive width"
    lost = "boxes.csv:7: the box xmin=1, ymin=1, xmax=nan, ymax=9 in b.png is not finite"
    unchanged = (folder / "unchanged.txt").read_text().splitlines()
    assert unchanged == [f"{flat}; left as it is", f"{lost}; left as it is"]


def test_results_of_a_detector_are_refined_with_scores_and_order_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "coco", monkeypatch)
    results = [
        {"image_id": n, "category_id": 5, "score": score, "bbox": box, "extra": {"bbox": [1]}}
        for n, score, box in ((1, 0.25, [10.0, 11.0, 20.0, 30.0]), (0, 0.75, [5, 6, 25, 24]))
    ]
    (root / "results.json").write_text(json.dumps(results))
    option = "--data.reading.annotations=[_annotations.coco.json,results.json]"
    written = json.loads((predict(run, root, "out", option) / "refined/results.json").read_text())
    for new, old in zip(written, results, strict=True):
        assert new.pop("bbox") != old.pop("bbox")
    assert written == results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.crop.size=45"], "the model was trained with crop.size = 32, the data has 45"),
        (["--data.num_targets=2"], "the model predicts 4 targets, the data asks for 2"),
        (["--model.head=LinearHead"], "model.head is BinHead in the checkpoint and LinearHead in"),
        (["--max_shift=-1"], "max_shift"),
        (["--data.classes=[dog]"], "there is no class dog; choose from cell (3), plate (1)"),
        (["--data.min_size=999"], "the predict split has no boxes left"),
        (["--data=SceneDataModule"], "SceneDataModule has no rough boxes to refine; give annotat"),
    ],
)
def test_what_cannot_be_refined_is_refused(
    options: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_set(tmp_path / "data", "coco", monkeypatch)
    command = ["predict", "-c", str(CONFIGS / "coco.yaml"), f"--ckpt_path={run}"]
    command += [f"--data.root={root}"] if "--data=SceneDataModule" not in options else []
    assert main([*command, f"--runs={tmp_path}", "--name=out", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "refined").exists()


def test_on_bad_error_refuses_bad_boxes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "data", "yolo", monkeypatch)
    (root / "labels" / "b.txt").write_text("0 0.5 0.5 0 0.1\n")
    command = ["predict", "-c", str(CONFIGS / "yolo.yaml"), f"--ckpt_path={run}"]
    command += [f"--data.root={root}", "--data.reading.on_bad=error", f"--runs={tmp_path}"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert (
        "labels/b.txt:1: the box cx=0.5, cy=0.5, w=0, h=0.1 in images/b.png has no pos" in message
    )


def test_a_folder_that_holds_refined_boxes_is_not_mixed_with_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "data", "csv", monkeypatch)
    predict(run, root, "out")
    command = ["predict", "-c", str(CONFIGS / "csv.yaml"), f"--ckpt_path={run}"]
    assert main([*command, f"--data.root={root}", f"--runs={tmp_path}", "--name=out"]) == 2
    assert "holds refined boxes already; choose another --name" in capsys.readouterr().err


def test_the_runs_own_configuration_is_taken_where_none_is_given(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "data", "csv", monkeypatch)
    command = ["predict", f"--ckpt_path={run}", "--data=BoxDataModule", f"--data.root={root}"]
    assert main([*command, f"--runs={tmp_path}", "--name=own"]) == 0
    expected = contents(predict(run, root, "other") / "refined")
    assert contents(tmp_path / "own" / "refined") == expected
