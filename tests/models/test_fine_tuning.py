"""Weights to start from, and models trained further, mean what they meant before."""

import shutil

import pytest
import torch

from lightning_bbox import (
    BinHead,
    BoxDataModule,
    BoxRegressor,
    CropGeometry,
    FlowLikelihood,
    LikelihoodHead,
    LinearHead,
    MeanNorm,
    MeanStdCodec,
    PixelCodec,
    SoftArgmaxHead,
    UniformJitter,
    WhitenedCodec,
)
from lightning_bbox.core.errors import BadInput
from lightning_bbox.models.checkpoints import read_checkpoint
from tests.runs import FrozenConvNet, fit, frozen, resume, scenes, trained_quietly

MAKERS = {
    "linear": lambda: LinearHead(standardize=True),
    "gaussian": LikelihoodHead,
    "flow": lambda: LikelihoodHead(FlowLikelihood(2, 8)),
    "soft-argmax": SoftArgmaxHead,
    "bins": lambda: BinHead(l1_weight=0.5),
}


def standing_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def hasty(parameters):
    return torch.optim.AdamW(parameters, lr=0.03)


def data_of(shift, **arguments):
    jitter = UniformJitter(shift=shift, log_scale=0.03 * shift)
    return scenes(jitter=jitter, num_targets=4, **arguments)


def model_with(head, **arguments):
    backbone = FrozenConvNet(channels=(8, 8), convs_per_scale=1, fc=())
    return frozen(**{"backbone": backbone, "head": head, "optimizer": hasty, **arguments})


def trained_on(path, shift, model, **arguments):
    """Train for an epoch, and keep the model."""
    trainer = trained_quietly(model, data_of(shift, **arguments), max_epochs=1)
    trainer.save_checkpoint(path)
    return model.eval()


def begun_with(path, shift, head, codec=None, **arguments):
    """Begin with weights, and make a step of no length."""
    model = model_with(head, weights=str(path), optimizer=standing_still, codec=codec)
    trained_quietly(model, data_of(shift, **arguments), max_steps=1)
    return model.eval()


def refined(model, data):
    """Return boxes and standard deviations, before calibration."""
    model.net.calibration.load_state_dict({"temperature": torch.ones(()), "least": torch.zeros(4)})
    samples = data.samples("val")
    return model.refine(data.crops_of(samples), samples.proposals)


@pytest.mark.parametrize("codec", [MeanStdCodec, PixelCodec])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_begins_by_saying_what_its_weights_said(kind, codec, tmp_path):
    path = tmp_path / "old.ckpt"
    preprocess = MeanNorm("pixel", "pixel")
    old = trained_on(path, 6.0, model_with(MAKERS[kind](), codec=codec(), preprocess=preprocess))
    new = begun_with(path, 2.0, MAKERS[kind]())
    data = data_of(2.0)
    data.setup("fit")
    for now, then in zip(refined(new, data), refined(old, data), strict=True):
        torch.testing.assert_close(now, then, atol=1e-4, rtol=1e-5, equal_nan=True)
    # The baseline and the losses' unit are of the data that it learns from now.
    torch.testing.assert_close(new.codec.std, old.codec.std / 3, rtol=0.15, atol=0)
    if kind in ("linear", "soft-argmax", "bins"):
        assert new.net.head.std.equal(new.codec.std)


def test_weights_for_other_crops_are_refused(tmp_path):
    path = tmp_path / "old.ckpt"
    trained_on(path, 2.0, model_with(LinearHead()))
    sentence = "old.ckpt: the model was trained with crop.context = 1.5, the data has 2.5"
    with pytest.raises(BadInput, match=sentence):
        begun_with(path, 2.0, LinearHead(), crop=CropGeometry(size=24, context=2.5))


def test_weights_for_other_targets_or_preprocessing_than_asked_for_are_refused(tmp_path):
    path = tmp_path / "old.ckpt"
    trained_on(path, 2.0, model_with(LinearHead()))
    with pytest.raises(BadInput, match=r"model.codec is MeanStdCodec in the checkpoint and Whiten"):
        begun_with(path, 2.0, LinearHead(), WhitenedCodec())
    begun_with(path, 2.0, LinearHead(), MeanStdCodec())


def test_weights_for_other_bins_of_the_same_number_are_refused(tmp_path):
    path = tmp_path / "old.ckpt"
    old = trained_on(path, 5.0, model_with(BinHead()))
    assert old.net.head.centers[0, -1] == 6.5
    sentence = r"its bins are 27 of 0.5, 13 of 0.05, those asked for 27 of 1, 13 of 0.05"
    with pytest.raises(BadInput, match=sentence):
        begun_with(path, 5.0, BinHead(bin_width=1.0, max_shift=10.0))
    state = read_checkpoint(path)
    # Version 0.1.0 took such weights over, bins and all, and kept the bins beside its own recipe.
    grid = old.net.head.grid._asdict()
    grid["centers"], grid["edges"] = 2 * grid["centers"], 2 * grid["edges"]
    grid["widths"] = 2 * grid["widths"]
    state["state_dict"] |= {f"net.head.{name}": value for name, value in grid.items()}
    torch.save(state, path)
    with pytest.raises(BadInput, match="its bins are"):
        begun_with(path, 5.0, BinHead())
    loaded = BoxRegressor.load_from_checkpoint(path)
    assert loaded.net.head.centers[0, -1] == 13.0
    assert loaded.state_dict()["net.head.centers"][0, -1] == 13.0


def test_regressors_of_classes_stay_those_of_their_classes(csv_folder, tmp_path):
    lines = (csv_folder / "boxes.csv").read_text().splitlines()
    named = [line.replace("part", "ab"[row % 2]) for row, line in enumerate(lines[1:])]

    def data_with(lines):
        (csv_folder / "boxes.csv").write_text("\n".join([header, *lines]) + "\n")
        small = {"crop": CropGeometry(size=24), "batch_size": 16, "draws_per_epoch": 64}
        return BoxDataModule(str(csv_folder), eval_draws=20, compile=False, **small)

    header, path = lines[0], tmp_path / "old.ckpt"
    old = model_with(LinearHead(per_class=True))
    trained_quietly(old, data_with(named), max_epochs=1).save_checkpoint(path)
    new = model_with(LinearHead(per_class=True), weights=str(path), optimizer=standing_still)
    only_b = data_with([line for line in named if line[-1] == "b"])
    trainer = trained_quietly(new, only_b, max_steps=1)
    assert new.spec.classes == ("a", "b")
    samples = trainer.datamodule.samples("val")
    assert samples.labels.unique().tolist() == [1]
    crops = trainer.datamodule.crops_of(samples)
    found = [m.eval()(crops, samples.proposals, samples.labels) for m in (old, new)]
    torch.testing.assert_close(*found)
    other = model_with(LinearHead(per_class=True), weights=str(path))
    only_c = data_with([f"{line[:-1]}c" for line in named])
    with pytest.raises(BadInput, match="a regressor for each of a, b, but none for c"):
        trained_quietly(other, only_c, max_steps=1)


@pytest.mark.parametrize("kind", ["bins", "linear"])
@pytest.mark.parametrize("way", ["weights", "loaded"])
def test_offsets_beyond_what_a_head_was_made_for_are_warned_of(kind, way, tmp_path, recwarn):
    path = tmp_path / "old.ckpt"
    trained_on(path, 5.0, model_with(MAKERS[kind]()))
    if way == "weights":
        begun_with(path, 12.0, MAKERS[kind]())
    else:
        loaded = BoxRegressor.load_from_checkpoint(path)
        trained_quietly(loaded, data_of(12.0), max_steps=1)
    said = [str(warning.message) for warning in recwarn]
    sentence = "shifts reach 12 px, and the BinHead was made for 5: what lies beyond is never found"
    assert any(line.startswith(sentence) for line in said) == (kind == "bins")


def test_a_run_goes_on_without_the_weights_that_it_began_with(tmp_path):
    first = fit(tmp_path, "first")
    second = fit(tmp_path, "second", f"--model.weights={first}")
    shutil.rmtree(first)
    with pytest.warns(UserWarning, match="model.weights is not loaded"):
        assert resume(second, "--trainer.max_epochs=3") == 0
    assert read_checkpoint(second / "checkpoints" / "last.ckpt")["global_step"] == 12
