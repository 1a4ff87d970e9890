"""What a user runs: every config, the run folder, determinism, reloading."""

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_bbox import (
    BoxDataModule,
    BoxRegressor,
    DisplacementLaw,
    LinearHead,
    SceneDataModule,
    ShallowConvNet,
)
from lightning_bbox.cli.arguments import CONFIG_FOLDERS, resolve
from lightning_bbox.cli.main import main
from lightning_bbox.cli.run import make
from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import OWN
from tests.conftest import yolo_folder
from tests.runs import CONFIGS, SCENES, TINY, files_of, fit, same, weights


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folder of a tiny run, and what it printed."""
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()) as printed:
        folder = fit(tmp_path_factory.mktemp("runs"), "run")
    return folder, printed.getvalue()


@pytest.fixture
def run(quickstart):
    """The folder of that run, only to be looked at."""
    return quickstart[0]


def test_quickstart_leaves_a_complete_run_folder(quickstart):
    folder, printed = quickstart
    files = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.json"]
    for name in [*files, "data.png", "crops.png"]:
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents.*"))
    metrics = metrics_of(folder)
    assert 2 < metrics["test/mae_px_predict_mean"] < 3
    assert 0 < metrics["test/cramer_rao_mae_px"] < metrics["test/mae_px"]
    assert metrics["test/mae_px_low"] < metrics["test/mae_px"] < metrics["test/mae_px_high"]
    assert metrics["test/groups"] == metrics["test/pictures"] >= 5
    assert metrics["train_steps"] == 8
    assert metrics["train_seconds"] > 0
    row = f"{metrics['test/mae_px']:9.3f}{metrics['test/mae_px_predict_mean']:19.3f}\n"
    for part in (row, "predict the mean", "crops.png", "tensorboard --logdir", "train: 60 pic"):
        assert part in printed


def test_crops_sheet_shows_the_three_colours(run):
    with Image.open(run / "crops.png") as image:
        sheet = np.asarray(image)
    for colour in ((235, 64, 52), (40, 200, 80), (70, 130, 255)):
        assert (sheet == colour).all(axis=-1).sum() > 100


@pytest.mark.parametrize(
    "name",
    [
        *("voc", "coco", "yolo", "csv", "bccd", "bccd_fast", "rbc", "naive", "small"),
        pytest.param("deeppcb", marks=pytest.mark.slow),
    ],
)
def test_config_runs_where_only_the_root_is_given(name, tmp_path, request):
    if name in ("csv", "yolo"):
        root = request.getfixturevalue("csv_folder")
        if name == "yolo":
            yolo_folder(root)
    else:
        folders = dict.fromkeys(("voc", "naive", "bccd_fast", "small"), "bccd") | {"coco": "rbc"}
        root = request.getfixturevalue("real_data") / folders.get(name, name)
    base = ["fit", "-c", str(CONFIGS / f"{name}.yaml"), f"--data.root={root}", *TINY]
    folder = fit(tmp_path, "run", base=base)
    assert metrics_of(folder)["test/mae_px"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet_fc6_ridge", "alexnet_fc6_sgd", "rcnn_pool5"])
def test_alexnet_config_runs_where_only_the_root_is_given(
    name, real_data, real_weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("LIGHTNING_BBOX_WEIGHTS", str(real_weights))
    options = ["--data.batch_size=16", "--data.draws_per_epoch=48", "--data.eval_draws=20"]
    options += ["--data.compile=false", "--trainer.log_every_n_steps=1"]
    if name == "alexnet_fc6_sgd":
        options.append("--trainer.max_epochs=2")
    if name.startswith("alexnet"):  # fc6 of 227 px is too much for a test
        options += ["--model.backbone.layer=conv3", "--data.crop.size=79"]
    base = ["fit", "-c", str(CONFIGS / f"{name}.yaml"), f"--data.root={real_data / 'bccd'}"]
    folder = fit(tmp_path, "run", *options, base=base)
    assert metrics_of(folder)["test/mae_px"] > 0


def test_patches_config_runs_where_only_the_file_is_given(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "patches.npz"
    np.savez(path, patches=random.integers(0, 255, (60, 55, 55, 3), dtype=np.uint8))
    base = ["fit", "-c", str(CONFIGS / "patches.yaml"), f"--data.file={path}", *TINY]
    assert metrics_of(fit(tmp_path, "run", base=base))["test/mae_px_predict_mean"] > 2


def test_proposals_config_runs_where_the_files_are_given(csv_folder, tmp_path):
    """Its law then draws proposals of another run, and its boxes are tested on by that."""
    header, *lines = (csv_folder / "boxes.csv").read_text().splitlines()
    rows = [line.rsplit(",", 5) for line in lines]
    found = [
        ",".join([name, *(str(int(edge) - (n + k) % 3) for k, edge in enumerate(box)), label])
        for n, (name, *box, label) in enumerate(rows)
    ]
    (csv_folder / "found.csv").write_text("\n".join([header, *found]))
    given = ["--data.proposals=found.csv", "--data.reading.annotations=boxes.csv"]
    root = f"--data.root={csv_folder}"
    base = ["fit", "-c", str(CONFIGS / "proposals.yaml"), root, *given, *TINY]
    with redirect_stdout(io.StringIO()) as printed:
        folder = fit(tmp_path, "own", base=base)
    assert "36 are matched to true boxes by class and an IoU of 0.5 or more" in printed.getvalue()
    assert "boxes are too few to tell how they are off" in printed.getvalue()
    assert metrics_of(folder)["test/mae_px"] > 0
    law = DisplacementLaw(0.0, (1.0,), ((0.05, 0.0, 0.1, 0.0),), ((0.02,) * 4,))
    law.save(tmp_path / "law.json")
    base = ["fit", "-c", str(CONFIGS / "csv.yaml"), root, given[1], *TINY, "--data.num_targets=4"]
    jitter = ["--data.jitter=FittedJitter", f"--data.jitter.law={tmp_path / 'law.json'}"]
    drawn = fit(tmp_path, "drawn", *jitter, base=base)
    command = ["test", f"--ckpt_path={drawn}", f"--runs={tmp_path}", "--name=tested", given[0]]
    assert main([*command, "--data.jitter=null"]) == 0
    assert metrics_of(tmp_path / "tested")["test/iou_before"] == pytest.approx(
        metrics_of(folder)["test/iou_before"]
    )


ELSEWHERE = {"two_looks", "small_pretrained"}
"""What `test_second_look` and `test_factories` run."""


def test_every_config_is_run_by_these_tests():
    tested = {"quickstart", "patches", "voc", "coco", "yolo", "csv", "proposals"} | ELSEWHERE
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested | {
        "bccd", "bccd_fast", "rbc", "deeppcb", "naive", "small",
        "alexnet_fc6_ridge", "alexnet_fc6_sgd", "rcnn_pool5",
    }  # fmt: skip


def test_one_seed_gives_one_run_and_another_seed_another(run, tmp_path):
    again, other = (
        weights(fit(tmp_path, str(seed), f"--seed_everything={seed}")) for seed in (0, 1)
    )
    assert same(weights(run), again)
    assert not same(weights(run), other)


def test_the_saved_config_repeats_the_run(run, tmp_path):
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--runs={tmp_path}", "--name=a"]) == 0
    assert same(weights(run), weights(tmp_path / "a"))


def test_a_class_may_go_by_the_module_it_lay_in(capsys):
    head = "--model.head=lightning_bbox.heads.LinearHead"
    assert main([*SCENES, head, "--print_config"]) == 0
    assert "class_path: lightning_bbox.LinearHead" in capsys.readouterr().out


def test_without_checkpoints_the_model_is_tested_as_it_is(tmp_path):
    folder = fit(tmp_path, "run", "--trainer.enable_checkpointing=false")
    assert metrics_of(folder)["test/mae_px"] > 0
    assert not (folder / "checkpoints").exists()


def test_reload_by_path_gives_the_tested_model(tmp_path):
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
    assert float(error) == pytest.approx(metrics_of(folder)["test/mae_px"], rel=1e-5)


def test_the_test_command_repeats_the_test_of_fit(run, tmp_path):
    arguments = [f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}"]
    assert main(["test", *arguments, f"--runs={tmp_path}", "--name=again"]) == 0
    assert metrics_of(tmp_path / "again")["test/mae_px"] == metrics_of(run)["test/mae_px"]


def test_fine_tuning_starts_from_the_weights(run, tmp_path):
    options = [f"--model.weights={run / 'checkpoints' / 'best.ckpt'}"]
    options += ["--model.optimizer=SGD", "--model.optimizer.lr=0.0"]
    tuned = weights(fit(tmp_path, "tuned", *options))
    kernel = "net.backbone.convs.0.weight"
    assert tuned[kernel].equal(weights(run, "best")[kernel])


def test_four_targets_and_flip_averaging_run(tmp_path):
    folder = fit(tmp_path, "run", "--data.num_targets=4", "--model.average_flips=true")
    assert metrics_of(folder)["test/mae_edge_px"] > 0


def test_existing_run_is_refused(run, refused):
    sentence = refused([*SCENES, f"--runs={run.parent}", f"--name={run.name}"])
    assert "a run of this name exists" in sentence
    assert "--resume" in sentence


def write_config(folder, header=""):
    """Write settings whose data isn't there, as a person does, or with the header of a run."""
    folder.mkdir()
    data = "{class_path: BoxDataModule, init_args: {root: nowhere}}"
    (folder / "config.yaml").write_text(f"{header}{{model: BoxRegressor, data: {data}}}")
    return folder / "config.yaml"


@pytest.mark.parametrize("name", ["data.png", "skipped.txt", "crops.png", "test_errors.npz"])
def test_a_run_writes_over_no_file_of_a_folder_that_is_no_run_s(name, tmp_path, refused):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    said = refused([*SCENES, f"--runs={tmp_path}", "--name=mine"])
    assert f"mine/{name}: wasn't written by a run, and fit would write over it" in said
    assert files_of(tmp_path) == {f"mine/{name}": b"mine"}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *[("predict", name) for name in ("refined/a.csv", "before/a.csv", "law.json")],
        *[("predict", name) for name in ("unchanged.txt", "skipped.txt", "review.html")],
        *[("validate", "skipped.txt"), ("test", "crops.png"), ("probe", "probe.png")],
    ],
)
def test_a_command_writes_over_no_file_of_a_folder_that_is_no_run_s(
    command, name, run, tmp_path, refused
):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    there = f"mine/{Path(name).parts[0]}"
    said = refused([command, f"--ckpt_path={run}", f"--runs={tmp_path}", "--name=mine"])
    assert f"{there}: wasn't written by a run, and {command} would write over it" in said
    assert files_of(tmp_path) == {f"mine/{name}": b"mine"}


def test_a_folder_that_a_run_was_refused_in_half_way_is_still_its_own(run, tmp_path):
    """What is signed by a lock that was there before is a run's, whatever it left."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / OWN).touch()
    (tmp_path / "mine" / "skipped.txt").write_text("of a run that was killed")
    command = ["validate", f"--ckpt_path={run}", f"--runs={tmp_path}", "--name=mine"]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("", "mine/config.yaml: wasn't written by a run, and this one would write its settings"),
        ("# lightning.pytorch==2.6.6\n", "nowhere: is no folder"),  # killed while it read its data
    ],
)
def test_a_refused_run_leaves_what_was_there(header, sentence, tmp_path, refused):
    config = write_config(tmp_path / "mine", header)
    (tmp_path / "mine" / "events.notes").write_text("mine")
    before = files_of(tmp_path)
    command = ["fit", f"--config={config}", f"--runs={tmp_path}"]
    assert sentence in refused([*command, "--name=mine"])
    assert files_of(tmp_path) == before


def test_a_refused_run_leaves_nothing_that_was_not_there(tmp_path, refused):
    config = write_config(tmp_path / "mine")
    sentence = refused(["fit", f"--config={config}", f"--runs={tmp_path / 'a' / 'b'}", "--name=c"])
    assert sentence.startswith("nowhere: is no folder")
    assert [*tmp_path.iterdir()] == [config.parent]


def test_a_run_that_keeps_no_checkpoint_is_not_written_over(tmp_path, refused):
    folder = fit(tmp_path, "run", "--trainer.enable_checkpointing=false")
    before = files_of(folder)
    command = [*SCENES, f"--runs={tmp_path}", "--name=run", "--model.backbone.fc=[8]"]
    assert "a run of this name exists" in refused(command)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("width", "said"),
    [(10**12, "you tried to allocate"), (2**62, "overflow"), (2**64, "Overflow")],
)
def test_a_model_that_is_too_large_for_the_memory_is_refused(width, said, tmp_path, refused):
    sentence = refused([*SCENES, f"--runs={tmp_path}", f"--model.backbone.fc=[{width}]"])
    assert sentence.startswith("memory: there is too little for what was asked (")
    assert said in sentence
    assert len(sentence) < 500
    assert not [*tmp_path.iterdir()]


def test_presets_are_the_files_in_configs():
    assert resolve(["fit", "-c", "preset:voc"]) == ["fit", f"--config={CONFIGS / 'voc.yaml'}"]
    assert resolve(["fit", "--data.root=preset:voc"]) == ["fit", "--data.root=preset:voc"]
    assert CONFIG_FOLDERS[1] == CONFIGS
    with pytest.raises(BadInput, match="choose one of alexnet_fc6_ridge, alexnet_fc6_sgd, bccd"):
        resolve(["fit", "--config=preset:none"])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_geometry_stays_exact_in_every_precision(precision, run, tmp_path):
    exact = weights(run)
    other = weights(fit(tmp_path, "other", f"--trainer.precision={precision}"))
    ends = ("head.origin", "head.unit")
    buffers = [name for name in exact if name.startswith("codec.") or name.endswith(ends)]
    assert len(buffers) == 6
    for name in buffers:
        assert other[name].dtype == torch.float32
        assert other[name].equal(exact[name])


def test_photometric_kornia_modules_are_named_in_yaml(tmp_path, refused):
    def with_extra(class_path, init_args, **augment):
        extra = [{"class_path": f"kornia.augmentation.{class_path}", "init_args": init_args}]
        settings = {"data": {"init_args": {"augment": augment | {"extra": extra}}}}
        config = tmp_path / f"{class_path}.yaml"
        config.write_text(yaml.safe_dump(settings))
        return [*SCENES[:3], "-c", str(config), *SCENES[3:]]

    others = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "noise": 0.02}
    blur = {"kernel_size": [3, 3], "sigma": [0.5, 1.0]}
    base = with_extra("RandomGaussianBlur", blur, **others)
    assert same(*(weights(fit(tmp_path, name, base=base)) for name in ("first", "again")))
    turned = with_extra("RandomAffine", {"degrees": 10.0})
    sentence = refused([*turned, f"--runs={tmp_path}", "--name=bad"])
    assert "RandomAffine, which isn't a photometric" in sentence


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_run_reloads_like_any_other(tmp_path):
    folder = fit(tmp_path, "run", "--model.compile=true", "--data.compile=true")
    assert not any("_orig_mod" in name for name in weights(folder))
    BoxRegressor.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")


OF_PARTS = {
    "model": {
        "class_path": "lightning_bbox.BoxRegressor",
        "init_args": {
            "head": {
                "class_path": "lightning_bbox.LinearHead",
                "init_args": {"loss": {"class_path": "lightning_bbox.L1Loss"}},
            },
            "backbone": {
                "class_path": "lightning_bbox.ShallowConvNet",
                "init_args": {"init": {"class_path": "lightning_bbox.ZeroInit"}},
            },
        },
    },
    "data": {
        "class_path": "lightning_bbox.BoxDataModule",
        "init_args": {"root": ".", "splits": {"train": "train.txt", "test": "test.txt"}},
    },
}


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--data.splits.train=null", "data.splits.train"),
        ("--data.init_args.splits.train=null", "data.splits.train"),
        ("--model.head.loss=null", "model.head.loss"),
        ("--model.backbone.init=null", "model.backbone.init"),
    ],
)
def test_null_for_an_option_of_a_part_is_no_text(option, key, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-bbox"])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(OF_PARTS))
    usual, made = make([f"--config={config}"]), make([f"--config={config}", option])
    assert key in usual.asked
    assert key not in made.asked
    assert type(usual.model.net.head.criterion).__name__ == "L1Loss"
    expected = "SmoothL1Loss" if "loss" in key else "L1Loss"
    assert type(made.model.net.head.criterion).__name__ == expected
    assert made.data.splits.train == (None if "train" in key else "train.txt")
    assert made.data.splits.test == "test.txt"


def test_what_is_interrupted_before_it_has_a_config_isnt_told_to_go_on(
    csv_folder, tmp_path, monkeypatch, capsys
):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(BoxDataModule, "read", interrupted)
    base = ["fit", "-c", str(CONFIGS / "csv.yaml"), f"--data.root={csv_folder}", *TINY]
    assert main([*base, f"--runs={tmp_path}", "--name=run"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lightning-bbox: interrupted"
