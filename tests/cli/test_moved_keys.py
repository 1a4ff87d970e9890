"""Options by their names of 0.1: they go on working, and one warning tells the new names."""

import json
import warnings

import pytest
import yaml

from lightning_bbox import CropDataModule
from lightning_bbox.cli.main import main
from lightning_bbox.cli.moved_keys import MOVED, told, with_new_keys, with_new_options
from tests.runs import TINY

OLD = {
    "format": "csv", "annotations": ["b.csv"], "images": "pics", "voc_base": 0, "on_bad": "error",
    "allow_outside": True, "train_split": "a", "val_split": ["b"], "test_split": "c",
    "val_fraction": 0.3, "test_fraction": 0.4, "split_seed": 5, "val_fold": 1,
    "group_pattern": "(x)", "store": "disk", "store_folder": "kept",
}  # fmt: skip


class OwnDataModule(CropDataModule):
    """A user's own, with an option of an old name."""

    def __init__(self, format: str, **common) -> None:  # noqa: A002
        super().__init__(**common)
        self.format = format


def asked_for(capsys, *options):
    """Return the data's settings as the command line understands them, and what it warns of."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", "--model=BoxRegressor", *options, "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    said = [str(each.message) for each in caught]
    return settings, [sentence for sentence in said if sentence.startswith("data.")]


def flat(settings):
    groups = ("splits", "reading", "store")
    return {f"{group}.{key}": value for group in groups for key, value in settings[group].items()}


def config_of(path, **data):
    path.write_text(yaml.safe_dump({"data": {"class_path": "BoxDataModule", "init_args": data}}))
    return f"--config={path}"


def test_every_old_key_of_a_config_has_a_new_one_and_all_are_told_at_once(tmp_path, capsys):
    config = config_of(tmp_path / "config.yaml", root="cells", batch_size=7, **OLD)
    settings, said = asked_for(capsys, config)
    assert {MOVED[key]: value for key, value in OLD.items()}.items() <= flat(settings).items()
    assert settings["batch_size"] == 7
    assert said == [told({key: MOVED[key] for key in sorted(OLD)})]
    assert OLD.keys() | {"test_groups"} == MOVED.keys()


@pytest.mark.parametrize("data", ["BoxDataModule", "SceneDataModule"])
def test_the_samples_of_a_crop_pixel_are_an_option_no_more_and_that_is_told(data, tmp_path, capsys):
    path, crop = tmp_path / "config.yaml", {"size": 33, "supersample": 2}
    rough = {"class_path": "CropGeometry", "init_args": crop}
    given = {"root": "cells"} if data == "BoxDataModule" else {}
    sentence = "data.crop.supersample is left out: the cut takes the samples that each box needs"
    for written in (crop, rough):
        config = {"data": {"class_path": data, "init_args": {"crop": written, **given}}}
        path.write_text(yaml.safe_dump(config))
        settings, said = asked_for(capsys, f"--config={path}")
        assert settings["crop"].get("init_args", settings["crop"])["size"] == 33
        assert said == [sentence]
    options = [f"--data={data}", *(f"--data.{key}={value}" for key, value in given.items())]
    for option in (["--data.crop.supersample=2"], ["--data.init_args.crop.supersample", "3"]):
        settings, said = asked_for(capsys, *options, *option, "--data.crop.size=21")
        assert settings["crop"]["size"] == 21
        assert said == [sentence]


def test_new_keys_are_not_told(tmp_path, capsys):
    new = {"splits": {"fold": 2}, "store": {"place": "pinned"}}
    config = config_of(tmp_path / "config.yaml", root="cells", **new)
    settings, said = asked_for(capsys, config, "--data.store.folder=kept")
    assert settings["splits"]["fold"] == 2
    assert settings["store"] == {"place": "pinned", "folder": "kept"}
    assert not said


@pytest.mark.parametrize("spelt", ["--data.{}={}", "--data.init_args.{}={}", "--data.{} {}"])
def test_old_options_work_however_they_are_written(spelt, capsys):
    old = {"val_fraction": 0.2, "val_split": "b", "store": "pinned", "test_groups": "[g1,g2]"}
    options = [word for each in old.items() for word in spelt.format(*each).split()]
    settings, said = asked_for(capsys, "--data=BoxDataModule", "--data.root=cells", *options)
    new = {"splits.val_fraction": 0.2, "splits.val": "b", "store.place": "pinned"}
    assert new.items() <= flat(settings).items()
    assert settings["splits"]["test_groups"] == ["g1", "g2"]
    assert said == [told({key: MOVED[key] for key in old})]


def test_options_win_over_configs_whichever_of_the_two_is_old(tmp_path, capsys):
    config = config_of(tmp_path / "old.yaml", root="cells", val_fraction=0.3, val_fold=1)
    options = ["--data.splits.val_fraction=0.2", "--data.split_seed=4"]
    settings, (sentence,) = asked_for(capsys, config, *options)
    expected = {"val_fraction": 0.2, "fold": 1, "seed": 4}
    assert expected.items() <= settings["splits"].items()
    assert "data.split_seed is data.splits.seed now" in sentence
    assert "data.val_fold is data.splits.fold now" in sentence


def test_patches_have_new_names_too_and_lists_grow(capsys):
    options = ["--data=PatchDataModule", "--data.file=p.npy", "--data.val_fold=3"]
    settings, _ = asked_for(capsys, *options)
    assert settings["splits"]["fold"] == 3
    grown, _ = with_new_options(
        ["fit", "--data.annotations+=a.csv", "--data.store", "{place: disk}"]
    )
    assert grown == ["fit", "--data.reading.annotations+=a.csv", "--data.store", "{place: disk}"]


def test_a_class_of_the_users_own_keeps_its_options(capsys):
    settings, said = asked_for(capsys, f"--data={__name__}.OwnDataModule", "--data.format=raw")
    assert (settings["format"], said) == ("raw", [])
    text = "data: {class_path: theirs.Data, init_args: {format: raw}}"
    assert with_new_keys(text) == text


@pytest.mark.parametrize("text", ["data: [", "5", "data: BoxDataModule", "trainer: {devices: 1}"])
def test_what_has_no_old_keys_is_left_as_it_is(text):
    assert with_new_keys(text) == text


@pytest.mark.parametrize(
    ("wrong", "near"), [("batch_sise", "batch_size"), ("splits.vold", "splits.fold")]
)
def test_a_misspelt_option_is_refused_with_the_nearest_name(wrong, near, capsys):
    options = ["--data=BoxDataModule", "--data.root=cells", f"--data.{wrong}=3"]
    assert main(["fit", "--model=BoxRegressor", *options]) == 2
    assert f"there is no such option; did you mean {near}?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:data.val_fraction is")
def test_a_run_by_old_names_is_the_run_by_new_ones(csv_folder, tmp_path):
    names = {
        "old": ("val_fraction", "split_seed", "store"),
        "new": ("splits.val_fraction", "splits.seed", "store.place"),
    }
    metrics = []
    for run, keys in names.items():
        options = [
            f"--data.{key}={value}" for key, value in zip(keys, (0.3, 2, "pinned"), strict=True)
        ]
        args = ["fit", "-c", "preset:csv", f"--data.root={csv_folder}", f"--name={run}"]
        assert main([*args, f"--runs={tmp_path}", *TINY, *options]) == 0
        metrics.append(json.loads((tmp_path / run / "metrics.json").read_text()))
    assert metrics[0] | {"train_seconds": 0} == metrics[1] | {"train_seconds": 0}
