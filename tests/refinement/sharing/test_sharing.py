"""A model as a folder without code: it gives the run's own boxes, or isn't read at all."""

import hashlib
import json
import pickle
import shutil
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from lightning_bbox import BadInput, BinHead, LinearHead, Refiner, RidgeRegressor
from lightning_bbox.cli.main import main
from lightning_bbox.models.checkpoints import write_shared
from tests.refinement.test_predict import command, run, write_set  # noqa: F401 (fixtures)
from tests.refinement.test_refiner import BOXES, built_model, picture
from tests.runs import files_of, fit

MODELS = {
    "bins": {"head": BinHead()},
    "four targets, averaged over flips": {"num_targets": 4, "average_flips": True},
    "a linear head": {"head": LinearHead()},
    "ridge": {"kind": RidgeRegressor},
}


def found_by(refiner):
    return refiner.refine_with_std(picture(), BOXES)


def assert_same(one, other):
    """Compare to the bit, NaN with NaN."""
    for first, second in zip(one[:2], other[:2], strict=True):
        assert first.numpy().tobytes() == second.numpy().tobytes()
    assert one.unmoved == other.unmoved
    assert one.gains.numpy().tobytes() == other.gains.numpy().tobytes()


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):  # noqa: F811 (a fixture)
    folder = tmp_path_factory.mktemp("shared") / "model"
    assert main(["card", str(run), f"--to={folder}"]) == 0
    return folder


def test_a_shared_run_gives_its_own_boxes_to_the_bit(run, shared):  # noqa: F811
    expected = found_by(Refiner(run))
    assert_same(found_by(Refiner.from_pretrained(shared)), expected)
    assert_same(
        found_by(Refiner.from_pretrained(str(shared), batch_size=2)),
        found_by(Refiner(run, batch_size=2)),
    )
    assert_same(found_by(Refiner(shared)), expected)  # as checkpoints are named everywhere


@pytest.mark.parametrize("name", MODELS)
def test_a_model_at_hand_comes_back_as_it_was(tmp_path, name):
    refiner = Refiner(built_model(**MODELS[name]))
    refiner.save_pretrained(tmp_path / "a")
    again = Refiner.from_pretrained(tmp_path / "a")
    assert_same(found_by(again), found_by(refiner))
    assert type(again.model) is type(refiner.model)
    assert again.spec == refiner.spec
    assert again.model.recipe() == refiner.model.recipe()
    again.save_pretrained(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_shared_model_looks_twice_where_its_run_does(tmp_path):
    first, second = built_model(4), built_model(4, seed=1)
    first.second = second
    Refiner(first).save_pretrained(tmp_path / "a")
    again = Refiner.from_pretrained(tmp_path / "a")
    assert again.model.second is not None
    assert_same(found_by(again), found_by(Refiner(first)))


def test_it_has_no_code_and_nothing_of_the_run(run, shared):  # noqa: F811
    config = json.loads((shared / "config.json").read_text())
    assert {*config} == {"library_name", "version", "sha256", "lightning_bbox"}
    assert not {"run", "training_set"} & {*config["lightning_bbox"]}
    assert str(run.parent) not in (shared / "config.json").read_text()
    content = (shared / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == config["sha256"]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    mine = safetensors.torch.load(content)
    assert {*mine} == {*best}
    assert all(torch.equal(mine[name], best[name]) for name in best)


def test_other_commands_take_it_as_a_checkpoint(run, shared, write_set):  # noqa: F811
    root = write_set("csv")
    for name, model in (("own", run), ("shared", shared)):
        assert main(command(model, root, name)) == 0
    mine, theirs = (root.parent / name / "changes.csv" for name in ("own", "shared"))
    assert mine.read_text() == theirs.read_text()


def broken_byte(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_config(text):
    return lambda folder: (folder / "config.json").write_text(text)


def resigned(change):
    """Change the weights, and have the recipe say that these are they."""

    def at(folder):
        path, config = folder / "model.safetensors", folder / "config.json"
        content = change(path.read_bytes())
        path.write_bytes(content)
        told = json.loads(config.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
        config.write_text(json.dumps(told))

    return at


def without_a_layer(content):
    weights = safetensors.torch.load(content)
    del weights["codec.mean"]
    return safetensors.torch.save(weights)


def without_recipe(folder):
    path = folder / "config.json"
    told = json.loads(path.read_text())
    del told["lightning_bbox"]["model"]["head"]
    path.write_text(json.dumps(told))


def of_a_strangers_class(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("lightning_bbox.BinHead", "os.system"))


BROKEN = {
    "a byte": (broken_byte, "isn't the file that .*config.json is of, or is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "no recipe": (lambda f: (f / "config.json").unlink(), "config.json: there is no such file"),
    "no JSON": (with_config("{"), "config.json: isn't what lightning_bbox wrote"),
    "another's JSON": (with_config('{"model_type": "vit"}'), "isn't what lightning_bbox wrote"),
    "a list": (with_config("[]"), "isn't what lightning_bbox wrote"),
    "a pickle": (resigned(lambda _: pickle.dumps({"a": 1})), "model.safetensors: can't be read"),
    "other weights": (resigned(without_a_layer), "its weights don't fit its own model"),
    "a part": (without_recipe, "lacks what rebuilds its model"),
    "code": (of_a_strangers_class, "os.system"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_not_shared_so_is_refused(tmp_path, shared, name):
    change, sentence = BROKEN[name]
    folder = shutil.copytree(shared, tmp_path / "model")
    change(folder)
    with pytest.raises(BadInput, match=sentence):
        Refiner.from_pretrained(folder)


def test_a_folder_of_pickles_is_never_loaded(tmp_path, run):  # noqa: F811
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(fit))
    remedy = "make such a folder by lightning-bbox card RUN --to FOLDER"
    for folder in (tmp_path, run):
        with pytest.raises(BadInput, match=f"holds no model.safetensors.*{remedy}"):
            Refiner.from_pretrained(folder)


def test_nothing_is_written_over(tmp_path, shared):
    before = files_of(shared)
    refiner = Refiner.from_pretrained(shared)
    with pytest.raises(BadInput, match=r"holds a model\.safetensors already; move it"):
        refiner.save_pretrained(shared)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"holds a config\.json already"):
        refiner.save_pretrained(tmp_path)
    assert files_of(shared) == before
    assert files_of(tmp_path) == {"config.json": b"{}"}


def test_what_is_no_tensor_is_refused(tmp_path):
    checkpoint = {"state_dict": {"net.mine": {"a": 1}}, "lightning_bbox": {}}
    with pytest.raises(BadInput, match=r"net\.mine can't be shared"):
        write_shared(checkpoint, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def hub(monkeypatch):
    """Stand in for huggingface_hub: its function's own signature, and a model or an error."""
    asked = []
    module = types.ModuleType("huggingface_hub")

    def serve(answer):
        def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
            asked.append((repo_id, revision, tuple(allow_patterns)))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        module.snapshot_download = snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        return asked

    return serve


def test_a_model_of_the_hub_is_downloaded_without_anything_else(hub, run, shared):  # noqa: F811
    asked = hub(shared)
    refiner = Refiner.from_pretrained("owner/cells", revision="v1")
    assert_same(found_by(refiner), found_by(Refiner(run)))
    assert asked == [("owner/cells", "v1", ("model.safetensors", "config.json"))]


def test_a_folder_wins_over_the_hub(hub, shared, monkeypatch):
    asked = hub(OSError("none"))
    monkeypatch.chdir(shared.parent.parent)
    Refiner.from_pretrained(f"{shared.parent.name}/{shared.name}")
    assert asked == []


def test_what_the_hub_cannot_give_is_refused(hub, tmp_path):
    hub(OSError("401 Client Error.\n\nRepository Not Found"))
    with pytest.raises(BadInput, match=r"owner/cells: can't be had .*\(401 Client Error. Repo"):
        Refiner.from_pretrained("owner/cells")
    hub(tmp_path)
    with pytest.raises(BadInput, match=r"owner/cells: holds no model\.safetensors"):
        Refiner.from_pretrained("owner/cells")


def test_without_huggingface_hub_its_models_are_refused_and_folders_work(monkeypatch, shared):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInput, match=r"owner/cells: .*pip install 'lightning_bbox\[hub\]'"):
        Refiner.from_pretrained("owner/cells")
    assert len(Refiner.from_pretrained(shared).refine(picture(), BOXES)) == len(BOXES)


@pytest.mark.parametrize("source", ["nowhere", "/no/where", "a/b/c", "./a/b", "a/../b", ""])
def test_what_is_neither_a_folder_nor_an_id_is_refused(hub, source, tmp_path, monkeypatch):
    asked = hub(OSError("none"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput):
        Refiner.from_pretrained(source)
    assert asked == []


def test_a_revision_of_a_folder_is_refused(shared):
    with pytest.raises(BadInput, match="revision v1 is asked for; leave it out"):
        Refiner.from_pretrained(shared, revision="v1")


def test_an_exported_graph_is_not_shared(tmp_path):
    refiner = Refiner(built_model())
    refiner._graph = types.SimpleNamespace(path="model.onnx")
    with pytest.raises(BadInput, match=r"model\.onnx: is an exported graph"):
        refiner.save_pretrained(tmp_path / "a")


def test_crops_of_other_pictures_agree_too(run, shared):  # noqa: F811
    random = np.random.default_rng(1)
    for height, width in ((40, 40), (200, 31)):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        boxes = random.uniform(0, 20, (30, 2)).repeat(2, axis=0).reshape(30, 4)
        boxes[:, 2:] = boxes[:, :2] + random.uniform(5, 20, (30, 2))
        one, other = (each.refine(image, boxes) for each in (Refiner(run), Refiner(shared)))
        assert one.tobytes() == other.tobytes()
