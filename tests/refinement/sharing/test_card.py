"""The card of a run: it says what the run's files say, and nothing that they don't."""

import json
import re
import shutil

import pytest
import yaml

from lightning_bbox.cli.main import main
from lightning_bbox.core.recipes import Plain
from tests.annotation_files import csv_of, write
from tests.refinement.test_refiner import BOXES, picture
from tests.runs import TINY, files_of

CLASSES = ("cell", "disc")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on sixteen pictures of three boxes, one of them marked difficult."""
    root = tmp_path_factory.mktemp("world") / "My cells"
    rows = [
        f"p{n}.png,{4 + 9 * k},{5 + n},{24 + 9 * k},{27 + n},{CLASSES[k % 2]},{(n, k) == (3, 1)}"
        for n in range(16)
        for k in range(3)
    ]
    header = "image,xmin,ymin,xmax,ymax,label,difficult"
    write(root, {"boxes.csv": csv_of(*rows, header=header)})
    write(root, {f"p{n}.png": (64, 60) for n in range(16)})
    options = ["fit", "--model=BoxRegressor", "--data=BoxDataModule", *TINY]
    options += [f"--data.root={root}", f"--runs={root.parent}", "--name=cells"]
    options += ["--data.jitter=UniformJitter", "--data.jitter.shift=4"]
    assert main(options) == 0
    return root.parent / "cells"


def card_in(folder, *options):
    assert main(["card", str(folder), *options]) == 0
    return (folder / "card.md").read_text()


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path / "cells")


def head_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def rows_of(text, head):
    """Return the cells of the table whose head begins so."""
    lines = text[text.index(f"| {head}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def test_the_head_says_it_to_machines(run, own):
    head = head_of(card_in(own, "--licence=cc-by-4.0", "--title=Cells: a model # 1"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert head["library_name"] == "lightning_bbox"
    assert head["license"] == "cc-by-4.0"
    (index,) = head["model-index"]
    assert index["name"] == "Cells: a model # 1"
    (result,) = index["results"]
    assert result["dataset"] == {"type": "My cells", "name": "My cells", "split": "test"}
    values = {each["type"]: each["value"] for each in result["metrics"]}
    assert values == {
        "mae": pytest.approx(metrics["test/mae_px"], abs=5e-5),
        "iou": pytest.approx(metrics["test/iou_after"], abs=5e-5),
    }


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ([], {}),
        (["--licence=mit"], {"license": "mit"}),
        (["--licence=Ask: me, first"], {"license": "other", "license_name": "Ask: me, first"}),
    ],
)
def test_the_licence_is_told_as_it_is_given(own, option, said):
    text = card_in(own, *option)
    head = head_of(text)
    assert {key: head[key] for key in ("license", "license_name") if key in head} == said
    told = text.rpartition("## Licence\n\n")[2].strip()
    stated = said.get("license_name") or said.get("license")
    assert told == (stated or "Not stated: ask whoever gave you the model.")


def test_figures_stand_beside_those_of_predicting_the_mean(run, own):
    text = card_in(own)
    metrics = json.loads((run / "metrics.json").read_text())
    rows = {row[0]: row[1:] for row in rows_of(text, "on the test")[2:]}
    pairs = {
        "error of the centre, px": ("mae_px", "mae_px_predict_mean"),
        "error in picture pixels": ("error_picture", "error_picture_predict_mean"),
        "share of boxes made worse": ("harmed", "harmed_predict_mean"),
    }
    for words, names in pairs.items():
        assert rows[words] == [f"{metrics[f'test/{name}']:.3f}" for name in names]
    parts = rows_of(text, "part of the test")[2:]
    assert [row[0] for row in parts[:2]] == ["class cell", "class disc"]
    harm = rows_of(text, "boxes that are")[2:]
    assert [float(row[1]) for row in harm] == [
        pytest.approx(row["iou_before"], abs=5e-4) for row in metrics["test/harm"]
    ]
    held = [row[1] for row in rows_of(text, "intervals of")[2:]]
    assert held == [f"{100 * metrics[f'test/coverage_{level}']:.1f} %" for level in (50, 90, 95)]


def test_the_data_are_counted(own):
    """Against the annotations themselves: 48 boxes, one of them marked."""
    text = card_in(own)
    table = rows_of(text, "My cells")
    assert table[0][1:] == ["pictures", "groups", "boxes", "left out", *CLASSES]
    numbers = [[int(cell) for cell in row[1:]] for row in table[2:]]
    assert [row[0] for row in table[2:]] == ["training", "validation", "test"]
    assert [sum(column) for column in zip(*numbers, strict=True)] == [16, 16, 47, 1, 32, 15]
    assert all(row[2] == row[4] + row[5] for row in numbers)
    assert "`UniformJitter(shift=4.0, " in text
    assert "off by up to 4 px, 13.3 % of the box" in text


def test_no_path_of_a_machine_is_in_it(run, own):
    text = card_in(own)
    assert str(run.parent) not in text
    assert not re.search(r"(?<![\w.])/\w+/\w+", text)


def test_an_interval_is_told_where_there_is_one(own):
    path = own / "metrics.json"
    metrics = json.loads(path.read_text())
    few = {"test/groups": 3, "test/pictures": 3}
    path.write_text(json.dumps({k: v for k, v in metrics.items() if "mae_px_" not in k} | few))
    text = card_in(own)
    assert "interval of the error of the centre over 3 pictures of the test: too few" in text
    assert "Its test has too few pictures or groups for an interval." in text
    (own / "card.md").unlink()
    many = {"test/groups": 12, "test/pictures": 40, "test/mae_px_low": 1, "test/mae_px_high": 2.5}
    path.write_text(json.dumps(metrics | many))
    text = card_in(own)
    assert "over 12 groups of the test: 1.000 to 2.500 px" in text
    assert "too few" not in text


def test_pictures_are_shown_where_the_run_has_them(own):
    assert re.findall(r"\]\((\w+\.png)\)", card_in(own)) == ["crops.png", "data.png"]
    for name in ("card.md", "data.png"):
        (own / name).unlink()
    assert re.findall(r"\]\((\w+\.png)\)", card_in(own)) == ["crops.png"]


def test_a_run_that_left_less_is_told_so(own):
    path = own / "metrics.json"
    metrics = json.loads(path.read_text())
    left = ("data", "settings", "test/harm", "train_steps", "train_seconds")
    kept = {name: value for name, value in metrics.items() if name not in left}
    path.write_text(json.dumps({k: v for k, v in kept.items() if "coverage" not in k}))
    text = card_in(own)
    assert "How many pictures and boxes there were isn't told" in text
    assert "## Whom it harms\n\nNot measured." in text
    assert "The model tells no standard deviations." in text


@pytest.mark.parametrize("shared", [False, True])
def test_the_card_loads_its_model(own, monkeypatch, shared, tmp_path):
    place = tmp_path / "elsewhere" / "cells" if shared else own
    options = [f"--to={place}"] if shared else []
    assert main(["card", str(own), *options]) == 0
    text = (place / ("README.md" if shared else "card.md")).read_text()
    assert ("from_pretrained" in text) == shared
    (code,) = re.findall(r"(?s)```python\n(.*?)```", text)
    monkeypatch.chdir(place.parent)
    names: dict[str, Plain] = {"image": picture(), "rough_boxes": BOXES}
    exec(code, names)
    assert names["boxes"].shape == BOXES.shape


def test_a_folder_to_share_has_the_model_the_card_and_the_pictures(own, tmp_path):
    before, folder = files_of(own), tmp_path / "to" / "share"
    assert main(["card", str(own), f"--to={folder}"]) == 0
    names = {"README.md", "config.json", "crops.png", "data.png", "model.safetensors"}
    assert {*files_of(folder)} == names
    assert (folder / "crops.png").read_bytes() == (own / "crops.png").read_bytes()
    assert files_of(own) == before


def test_what_is_there_stays(own, tmp_path, capsys):
    card_in(own)
    (own / "card.md").write_text("mine")
    assert main(["card", str(own)]) == 2
    assert "card.md: is there already; move it" in capsys.readouterr().err
    assert (own / "card.md").read_text() == "mine"
    for name in ("README.md", "crops.png", "config.json"):
        folder = tmp_path / name.partition(".")[0]
        write(folder, {name: "mine"})
        assert main(["card", str(own), f"--to={folder}"]) == 2
        assert "already" in capsys.readouterr().err
        assert files_of(folder) == {name: b"mine"}


def test_what_no_card_can_be_made_of_is_refused(own, tmp_path, capsys):
    (own / "metrics.json").write_text("[]")
    wrong = {
        str(own): "metrics.json: isn't what a test wrote",
        str(tmp_path / "nowhere"): "is no folder; name that of a run",
        str(tmp_path): "no such checkpoint",
    }
    for folder, sentence in wrong.items():
        assert main(["card", folder]) == 2
        assert sentence in capsys.readouterr().err
    (own / "metrics.json").unlink()
    assert main(["card", str(own)]) == 2
    said = capsys.readouterr().err
    assert "has no metrics.json" in said
    assert "fit --resume" in said
    assert main(["card", str(own), "--licens=mit"]) == 2
