"""The commands that make the README's figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.calibration import as_markdown as calibration_table
from benchmarks.first_experiment import PooledAlexNet
from benchmarks.first_experiment import as_markdown as first_experiment_table
from benchmarks.make_patches import main as make_patches
from benchmarks.protocol import ARMS, as_markdown, collect
from benchmarks.ranks import machine, summary
from benchmarks.ridge import one_lambda, problem
from benchmarks.runner import difference
from lightning_bbox import AlexNet, PatchDataModule
from lightning_bbox.cli.arguments import CONFIG_FOLDERS


@pytest.fixture
def one_square(tmp_path: Path) -> Path:
    """One picture with a white square of 20 px, not far from its border."""
    folder = tmp_path / "data"
    folder.mkdir()
    picture = np.zeros((100, 140, 3), dtype=np.uint8)
    picture[15:35, 101:121] = 255
    Image.fromarray(picture).save(folder / "a.png")
    rows = ["image,xmin,ymin,xmax,ymax,group"] + ["a.png,101,15,121,35,board"] * 8
    (folder / "boxes.csv").write_text("\n".join(rows))
    return folder


def centroids(patches: np.ndarray) -> np.ndarray:
    """Return the centre of the bright pixels of each patch, (x, y) in pixel edges."""
    places = [np.argwhere(patch[..., 0] > 128).mean(axis=0)[::-1] + 0.5 for patch in patches]
    return np.stack(places)


def test_shifted_patches_say_where_their_object_lies(one_square: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.npz"
    assert make_patches([str(one_square), str(out), "--shifted"]) == 0
    arrays = np.load(out)
    assert arrays["patches"].shape == (16, 45, 45, 3)
    assert set(arrays["groups"]) == {"board"}
    assert np.abs(arrays["offsets"]).max() <= 5.5
    assert len(np.unique(arrays["offsets"], axis=0)) > 8
    np.testing.assert_allclose(centroids(arrays["patches"]) - 22.5, arrays["offsets"], atol=1e-5)


def test_patches_of_pictures_of_16_bits_keep_their_levels(one_square: Path, tmp_path: Path) -> None:
    ramp = np.arange(14_000, dtype=np.uint16).reshape(100, 140) % 1000
    Image.fromarray(ramp).save(one_square / "a.png")
    assert make_patches([str(one_square), str(tmp_path / "patches.npz")]) == 0
    levels = np.unique(np.load(tmp_path / "patches.npz")["patches"])
    assert levels.max() == 999 * 255 // 1023
    assert len(levels) > 200


def test_patches_with_a_margin_hold_their_object_in_the_middle(
    one_square: Path, tmp_path: Path
) -> None:
    out = tmp_path / "patches.npz"
    assert make_patches([str(one_square), str(out)]) == 0
    arrays = np.load(out)
    assert arrays["patches"].shape == (16, 55, 55, 3)
    assert "offsets" not in arrays
    assert np.abs(centroids(arrays["patches"]) - 27.5).max() <= 1


def test_patches_load_as_training_data(tmp_path: Path, csv_folder: Path) -> None:
    for name, options in (("margin", []), ("shifted", ["--shifted"])):
        out = tmp_path / f"{name}.npz"
        assert make_patches([str(csv_folder), str(out), *options]) == 0
        data = PatchDataModule(str(out), compile=False)
        assert sum(len(items) for items in data.source.splits.values()) == 72
        assert data.spec().max_shift == pytest.approx(5, abs=0.5)


def test_every_row_of_the_table_has_its_config_and_runs_are_found_by_name(tmp_path: Path) -> None:
    names = {path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")}
    assert {arm.config for arm in ARMS} <= names
    for seed, error in enumerate((0.5, 0.7)):
        folder = tmp_path / f"bccd-{seed}"
        folder.mkdir()
        metrics = f'"test/mae_px": {error}, "test/mae_px_predict_mean": 2.4, "train_seconds": 10'
        overlap = '"test/iou_before": 0.7, "test/iou_after": 0.9, "val/curve": [[1, 0.8]]'
        (folder / "metrics.json").write_text(f"{{{metrics}, {overlap}}}")
    found = collect(ARMS[0], tmp_path)
    table = as_markdown({"bccd": found})
    assert "| 2 | 2.40 | 0.600 (0.500 to 0.700) | 4.0 | 0.700 to 0.900 |" in table


def test_speeds_are_told_with_their_quartiles_and_machine() -> None:
    told = summary([3.0, 1.0, 2.0, 5.0, 4.0])
    assert told == {"median": 3.0, "quartiles": [2.0, 4.0], "all": [3.0, 1.0, 2.0, 5.0, 4.0]}
    assert {"processor", "cores", "load before", "torch", "precision"} <= machine().keys()


def test_our_ridge_and_scikit_learns_solve_the_same_problem() -> None:
    ours, theirs = one_lambda(*problem(60, 80), torch.device("cpu"))
    assert difference(ours.call(0), theirs.call(0)) < 1e-8


def test_the_last_map_is_averaged_over_space() -> None:
    net = PooledAlexNet(layer="pool5", layout="caffe").build(131)
    crops = torch.rand(2, 3, 131, 131)
    maps = AlexNet(layer="pool5", layout="caffe").build(131)
    maps.load_state_dict(net.state_dict())
    assert net.out_features == 256
    expected = maps(crops).view(2, 256, 9).mean(dim=2)
    torch.testing.assert_close(net(crops), expected)


def test_the_first_experiments_tables_tell_each_figure_with_its_interval() -> None:
    r2 = {"value": 0.79, "low": 0.78, "high": 0.81}
    layer = {"layer": "pool5", "size": 9216, "net": {"r2": r2, "mae_px": {"value": 0.97}}}
    random = {"random": {"r2": {"value": 0.72}}}
    outcome = {"test/mae_px": 1.2, "test/mae_px_low": 1.12, "test/mae_px_high": 1.27}
    found = {
        "layers": {"BCCD": {"layers": [layer | random]}},
        "sizes": {"BCCD, 67 px": layer | random},
        "solvers": {"fc6: exact": outcome, "fc6: SGD": {}},
    }
    table = first_experiment_table(found)
    assert "| pool5 | 0.79 [0.78, 0.81] (0.72) |" in table
    assert "| BCCD, 67 px | 9216 | 0.79 [0.78, 0.81] (0.72) | 0.97 |" in table
    assert "| fc6: exact | 1.20 (1.12 to 1.27) |\n| fc6: SGD | diverged |" in table


def test_the_calibration_table_has_a_dash_where_nothing_was_told() -> None:
    runs = [{"test/mae_px": 0.1, "test/nll": 1.0}, {"test/mae_px": 0.3, "test/nll": 1.0}]
    *_, first, second = calibration_table({"Gaussian": runs, "HL-Gauss": runs[:1]}).splitlines()
    assert first == (
        "| Gaussian | 2 | 0.200 (0.100 to 0.300) | - | - | - | - | 1.000 (1.000 to 1.000) | - |"
    )
    assert second == "| HL-Gauss | 1 | 0.100 | - | - | - | - | 1.000 | - |"
