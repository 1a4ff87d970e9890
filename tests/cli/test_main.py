"""What a user runs: every config, the run folder, determinism, reloading."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_bbox import BoxRegressor, LinearHead, SceneDataModule, ShallowConvNet
from lightning_bbox.cli.arguments import CONFIG_FOLDERS, resolve
from lightning_bbox.cli.main import main
from lightning_bbox.core.errors import BadInput
from tests.conftest import yolo_folder
from tests.runs import CONFIGS, SCENES, TINY, fit, same, weights


def patches_file(folder: Path) -> Path:
    random = np.random.default_rng(0)
    path = folder / "patches.npz"
    np.savez(path, patches=random.integers(0, 255, (60, 55, 55, 3), dtype=np.uint8))
    return path


def test_quickstart_leaves_a_complete_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(tmp_path, "run")
    files = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.json"]
    for name in [*files, "data.png", "crops.png"]:
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents.*"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 2 < metrics["test/mae_px_predict_mean"] < 3
    assert 0 < metrics["test/cramer_rao_mae_px"] < metrics["test/mae_px"]
    assert metrics["test/mae_px_low"] <= metrics["test/mae_px"] <= metrics["test/mae_px_high"]
    assert metrics["train_steps"] == 8
    assert metrics["train_seconds"] > 0
    printed = capsys.readouterr().out
    for part in ("predict the mean", "crops.png", "tensorboard --logdir", "train: 60 pictures"):
        assert part in printed


@pytest.mark.parametrize(
    "name", ["voc", "coco", "yolo", "csv", "bccd", "bccd_fast", "rbc", "deeppcb", "naive"]
)
def test_config_runs_where_only_the_root_is_given(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name in ("csv", "yolo"):
        root = request.getfixturevalue("csv_folder")
        if name == "yolo":
            yolo_folder(root)
    else:
        folders = {"voc": "bccd", "coco": "rbc", "naive": "bccd", "bccd_fast": "bccd"}
        root = request.getfixturevalue("real_data") / folders.get(name, name)
    base = ["fit", "-c", str(CONFIGS / f"{name}.yaml"), f"--data.root={root}", *TINY]
    folder = fit(tmp_path, "run", base=base)
    assert json.loads((folder / "metrics.json").read_text())["test/mae_px"] > 0


@pytest.mark.parametrize("name", ["alexnet_fc6_ridge", "alexnet_fc6_sgd", "rcnn_pool5"])
def test_alexnet_config_runs_where_only_the_root_is_given(
    name: str, real_data: Path, real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_BBOX_WEIGHTS", str(real_weights))
    options = ["--data.batch_size=16", "--data.draws_per_epoch=48", "--data.eval_draws=20"]
    options += ["--data.compile=false", "--trainer.log_every_n_steps=1"]
    if name == "alexnet_fc6_sgd":
        options.append("--trainer.max_epochs=2")
    if name.startswith("alexnet"):  # fc6 of 227 px is too much for a test
        options += ["--model.backbone.layer=conv3", "--data.crop.size=79"]
    base = ["fit", "-c", str(CONFIGS / f"{name}.yaml"), f"--data.root={real_data / 'bccd'}"]
    folder = fit(tmp_path, "run", *options, base=base)
    assert json.loads((folder / "metrics.json").read_text())["test/mae_px"] > 0


def test_patches_config_runs_where_only_the_file_is_given(tmp_path: Path) -> None:
    options = [f"--data.file={patches_file(tmp_path)}", *TINY]
    folder = fit(tmp_path, "run", base=["fit", "-c", str(CONFIGS / "patches.yaml"), *options])
    assert json.loads((folder / "metrics.json").read_text())["test/mae_px_predict_mean"] > 2


def test_every_config_is_run_by_these_tests() -> None:
    tested = {"quickstart", "patches", "voc", "coco", "yolo", "csv"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested | {
        "bccd", "bccd_fast", "rbc", "deeppcb", "naive",
        "alexnet_fc6_ridge", "alexnet_fc6_sgd", "rcnn_pool5",
    }  # fmt: skip


def test_one_seed_gives_one_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        weights(fit(tmp_path, name, f"--seed_everything={seed}"))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(first, again)
    assert not same(first, other)


def test_the_saved_config_repeats_the_run(tmp_path: Path) -> None:
    first = fit(tmp_path, "first")
    config = f"--config={first / 'config.yaml'}"
    assert main(["fit", config, "--name=again"]) == 0
    assert same(weights(first), weights(tmp_path / "again"))


def test_a_class_may_go_by_the_module_it_lay_in(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run", "--model.head=lightning_bbox.heads.LinearHead")
    assert "class_path: lightning_bbox.LinearHead" in (folder / "config.yaml").read_text()


def test_without_checkpoints_the_model_is_tested_as_it_is(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run", "--trainer.enable_checkpointing=false")
    assert json.loads((folder / "metrics.json").read_text())["test/mae_px"] > 0
    assert not (folder / "checkpoints").exists()


def test_reload_by_path_gives_the_tested_model(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run", "--model.head=LinearHead")
    model = BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert isinstance(model.net.head, LinearHead)
    assert isinstance(model.net.backbone, ShallowConvNet)
    data = SceneDataModule(num_scenes=60, batch_size=40, eval_draws=40, compile=False)
    (rows,) = data.test_dataloader()
    batch = data.make_batch(rows)
    with torch.no_grad():
        boxes = model(batch.crops, batch.proposals)
        torch.testing.assert_close(model(batch.crops[:1], batch.proposals[:1]), boxes[:1])
    px = data.geometry.px(batch.proposals)
    error = ((boxes - batch.gt_boxes)[:, :2] / px).abs().mean()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert float(error) == pytest.approx(metrics["test/mae_px"], rel=1e-5)


def test_the_test_command_repeats_the_test_of_fit(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run")
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    config = f"--config={folder / 'config.yaml'}"
    assert main(["test", config, checkpoint, f"--runs={tmp_path}", "--name=again"]) == 0
    first, again = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "again")
    )
    assert first["test/mae_px"] == again["test/mae_px"]


def test_fine_tuning_starts_from_the_weights(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run")
    weights_path = folder / "checkpoints" / "best.ckpt"
    options = [
        f"--model.weights={weights_path}",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.0",
    ]
    tuned = weights(fit(tmp_path, "tuned", *options))
    kernel = "net.backbone.convs.0.weight"
    assert tuned[kernel].equal(weights(folder, "best")[kernel])


def test_four_targets_and_flip_averaging_run(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run", "--data.num_targets=4", "--model.average_flips=true")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/mae_edge_px"] > 0


def test_existing_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").touch()
    assert main([*SCENES, f"--runs={tmp_path}", "--name=run"]) == 2
    message = capsys.readouterr().err
    assert "a run of this name exists" in message
    assert "--resume" in message


def test_a_refused_run_removes_no_folder_that_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine" / "config.yaml"
    config.parent.mkdir()
    data = "{class_path: BoxDataModule, init_args: {root: nowhere}}"
    config.write_text(f"{{model: BoxRegressor, data: {data}}}")
    for name, is_left in (("mine", True), ("new", False)):
        assert main(["fit", f"--config={config}", f"--runs={tmp_path}", f"--name={name}"]) == 2
        assert "nowhere: is no folder" in capsys.readouterr().err
        assert (tmp_path / name).exists() == is_left
    assert config.is_file()


def test_presets_are_the_files_in_configs() -> None:
    assert resolve(["fit", "-c", "preset:voc"]) == ["fit", f"--config={CONFIGS / 'voc.yaml'}"]
    assert resolve(["fit", "--data.root=preset:voc"]) == ["fit", "--data.root=preset:voc"]
    assert CONFIG_FOLDERS[1] == CONFIGS
    with pytest.raises(BadInput, match="choose one of alexnet_fc6_ridge, alexnet_fc6_sgd, bccd"):
        resolve(["fit", "--config=preset:none"])


def test_crops_sheet_shows_the_three_colours(tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(fit(tmp_path, "run") / "crops.png"))
    for colour in ((235, 64, 52), (40, 200, 80), (70, 130, 255)):
        assert (sheet == colour).all(axis=-1).sum() > 100


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_geometry_stays_exact_in_every_precision(precision: str, tmp_path: Path) -> None:
    exact, other = (
        weights(fit(tmp_path, name, f"--trainer.precision={value}", "--model.head=BinHead"))
        for name, value in (("exact", "32-true"), ("other", precision))
    )
    buffers = [name for name in exact if name.startswith("codec.") or name.endswith("head.edges")]
    assert len(buffers) == 5
    for name in buffers:
        assert other[name].dtype == torch.float32
        assert other[name].equal(exact[name])


def test_photometric_kornia_modules_are_named_in_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blur = {"class_path": "kornia.augmentation.RandomGaussianBlur"}
    blur |= {"init_args": {"kernel_size": [3, 3], "sigma": [0.5, 1.0]}}
    config = tmp_path / "augment.yaml"
    augment = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "noise": 0.02}
    config.write_text(
        yaml.safe_dump({"data": {"init_args": {"augment": augment | {"extra": [blur]}}}})
    )
    with_blur = [*SCENES[:3], "-c", str(config), *SCENES[3:]]
    assert same(*(weights(fit(tmp_path, name, base=with_blur)) for name in ("first", "again")))
    blur |= {"class_path": "kornia.augmentation.RandomAffine", "init_args": {"degrees": 10.0}}
    config.write_text(yaml.safe_dump({"data": {"init_args": {"augment": {"extra": [blur]}}}}))
    assert main([*with_blur, f"--runs={tmp_path}", "--name=bad"]) == 2
    assert "RandomAffine, which isn't a photometric" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    options = ["--trainer.precision=64-true", "--model.backbone.batch_norm=false"]
    options += ["--model.regularizers+=L2Penalty", "--model.regularizers.strength=0.3"]
    options += ["--model.regularizers+=MaxNorm", "--model.regularizers.limit=1"]
    one = weights(fit(tmp_path, "one", *options))
    command = [sys.executable, "-m", "lightning_bbox", *SCENES, *options, f"--runs={tmp_path}"]
    command += ["--name=two", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    finished = subprocess.run(
        [*command, "--trainer.strategy=ddp"],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    two = weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-8)
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    assert second["test/mae_px"] == pytest.approx(first["test/mae_px"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_run_reloads_like_any_other(tmp_path: Path) -> None:
    folder = fit(tmp_path, "run", "--model.compile=true", "--data.compile=true")
    assert not any("_orig_mod" in name for name in weights(folder))
    BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
