"""A second stage looks again where the first says that a box is, in one checkpoint."""

import io
import json
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, BoxRegressor, Refiner
from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from lightning_bbox.cli.second_look import SecondLook, train_second
from lightning_bbox.models.checkpoints import drop_second, read_checkpoint
from lightning_bbox.models.training.stopping import RunStopped
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.store import ImageStore
from tests.conftest import write_rectangles
from tests.runs import CONFIGS, SCENES, TINY, fit, metrics, predict_with, resume, same

pytestmark = pytest.mark.slow  # two trainings

WIDE = ["--data.crop.context=2", "--data.num_targets=4", "--second.context=1.2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of pictures, that of a run of two looks, and what it printed."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data")
    write_rectangles(root)
    base = ["fit", "-c", str(CONFIGS / "csv.yaml"), f"--data.root={root}", *TINY, *WIDE]
    with redirect_stdout(io.StringIO()) as printed:
        folder = fit(tmp_path_factory.mktemp("runs"), "run", base=base)
    return root, folder, printed.getvalue()


@pytest.fixture
def run(trained):
    return trained[1]


def both(run):
    return BoxRegressor.load_from_checkpoint(run)


def test_one_command_leaves_one_checkpoint_of_both_looks(trained):
    _, run, printed = trained
    model = both(run)
    assert model.spec.geometry.context == 2
    second = model.second
    assert second.spec.geometry.context == 1.2
    own = BoxRegressor.load_from_checkpoint(run / "second")
    assert same(second.state_dict(), own.state_dict())
    assert second.spec == own.spec
    first = BoxRegressor.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert first.second is None
    assert "a second look is trained on boxes off by up to" in printed
    assert (run / "second" / "crops.png").is_file()


def test_the_second_stage_reaches_some_times_as_far_as_the_first_one_errs(run):
    errors = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 4]
    )
    reach = SecondLook(widen=3.0).reach(errors, torch.tensor([12.0, 12.0]))
    wide, far = 3 * np.quantile(errors.numpy(), 0.9, axis=0)
    assert far > 6
    assert reach.tolist() == pytest.approx([wide, 6.0])
    # That of the run hardly learned, so it reaches by half of 5 px of crops 2 / 1.2 times as wide.
    assert both(run).second.spec.max_shift == pytest.approx(2.5 * 2 / 1.2, abs=1e-3)


def test_the_second_look_is_cut_where_the_first_one_ends(trained):
    root, run, _ = trained
    table = read_annotations(root)
    own = table.image_index == 0
    rough = table.boxes[own] + torch.tensor([3.0, -2.0, 2.0, -1.0])
    with Image.open(root / table.images[0]) as image:
        picture = np.asarray(image.convert("RGB"))
    found = Refiner(run).refine_with_std(picture, rough)

    first = both(run)
    second, first.second = first.second, None
    store, index = ImageStore.from_pictures([picture]), torch.zeros(len(rough)).long()

    def look(model, boxes):
        crop = model.spec.geometry
        crops = cut_crops(store, index, crop.crop_boxes(boxes), crop.size)
        return model.refine(crops, boxes)

    factor = first.net.calibration
    second.net.calibration.temperature.fill_(1)
    second.net.calibration.least.zero_()
    there, _ = look(first, rough)
    boxes, stds = look(second, there)
    torch.testing.assert_close(found.boxes, boxes.clamp(min=0), rtol=0, atol=1e-3)
    own_px, given_px = (
        (box[:, 2:] - box[:, :2]) * side for box, side in ((there, 1.2), (rough, 2))
    )
    expected = torch.cat([stds[:, :2] * own_px / given_px, stds[:, 2:]], dim=1)
    torch.testing.assert_close(found.stds, factor(expected), rtol=1e-4, atol=1e-5)


def test_test_and_predict_look_twice(trained, tmp_path):
    root, run, _ = trained
    at = ["--data.compile=false", f"--runs={tmp_path}"]
    assert main(["test", f"--ckpt_path={run}", *at, "--name=test"]) == 0
    assert metrics(tmp_path / "test")["test/mae_px"] == metrics(run)["test/mae_px"]
    assert main(["validate", f"--ckpt_path={run}", *at, "--name=validate"]) == 0
    command = predict_with(run, root)
    assert (
        main([*command, "--law=trained", "--decimals=3", f"--runs={tmp_path}", "--name=out"]) == 0
    )
    rough = read_annotations(root)
    shutil.copytree(root, tmp_path / "again")
    shutil.copytree(tmp_path / "out" / "refined", tmp_path / "again", dirs_exist_ok=True)
    boxes = read_annotations(tmp_path / "again").boxes
    assert not torch.equal(boxes, rough.boxes)
    refiner = Refiner(run)
    for at, path in enumerate(rough.images):
        mine = rough.image_index == at
        expected = refiner.refine_with_std(root / path, rough.boxes[mine]).boxes
        torch.testing.assert_close(boxes[mine], expected, rtol=0, atol=2e-3)


def test_a_run_goes_on_with_its_second_look(run, tmp_path):
    """As one that was stopped before its second stage began."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "second")
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")
    if not same(first_of(run), first_of(folder)):
        pytest.skip("the last epoch wasn't the best one")
    (folder / "metrics.json").unlink()
    assert resume(folder) == 0
    assert same(both(run).state_dict(), both(folder).state_dict())
    assert metrics(folder)["test/mae_px"] == metrics(run)["test/mae_px"]
    assert resume(folder) == 0  # once more, as both are done
    assert same(both(run).state_dict(), both(folder).state_dict())


def first_of(run):
    state = both(run).state_dict()
    return {k: v for k, v in state.items() if not k.startswith(("second.", "net.calibration."))}


@pytest.mark.parametrize(("code", "error"), [(143, RunStopped), (130, RunStopped), (2, BadInput)])
def test_a_second_run_that_does_not_end_well_leaves_the_first_as_it_is(run, code, error):
    best = run / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    with pytest.raises(error) as caught:
        train_second(SecondLook(), BoxRegressor(), best, run, {}, lambda _: code)
    assert getattr(caught.value, "signum", code - 128) == code - 128
    assert best.read_bytes() == before


def test_crops_of_the_first_look_alone_are_refused(run):
    model = both(run)
    crops, boxes = torch.zeros(2, 3, 45, 45), torch.tensor([[5.0, 5.0, 30.0, 30.0]] * 2)
    with pytest.raises(BadInput, match=r"looks twice, .* use a Refiner"):
        model.refine(crops, boxes)


def test_training_goes_on_without_the_second_stage(run):
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    drop_second(checkpoint)
    model = BoxRegressor()
    model._become(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    assert model.second is None


def test_two_looks_config_runs(tmp_path):
    base = ["fit", "-c", str(CONFIGS / "two_looks.yaml"), "--data.num_scenes=60", *TINY]
    folder = fit(tmp_path, "run", base=base)
    assert both(folder).second.spec.geometry.context == 1.5
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert settings["second.context"] == 1.5


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--second.widen=0.5", "second.widen is 0.5; choose one in 1..10"),
        ("--second.context=0.5", "crop context 0.5 is outside 1..10"),
        ("--trainer.devices=2", "second: is trained by one process"),
        ("--trainer.enable_checkpointing=false", "second: goes into the best checkpoint"),
    ],
)
def test_a_second_look_that_cannot_be_is_refused_before_training(
    option, sentence, refused, tmp_path
):
    second = "--second.context=1.5"
    assert sentence in refused([*SCENES, second, option, f"--runs={tmp_path}", "--name=run"])


def test_patches_are_not_looked_at_twice(refused, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "patches.npz"
    np.savez(path, patches=random.integers(0, 255, (60, 55, 55, 3), dtype=np.uint8))
    base = ["fit", "-c", str(CONFIGS / "patches.yaml"), f"--data.file={path}", *TINY]
    command = [*base, "--second.context=1.5", f"--runs={tmp_path}", "--name=run"]
    assert "patches are cut already" in refused(command)
