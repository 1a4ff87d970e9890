"""What is fitted before training: from the training split alone, and how good a start it is."""

import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_bbox import (
    PCA,
    BadInput,
    BoxDataModule,
    BoxRegressor,
    ChannelNorm,
    DeltaCodec,
    FixedStdCodec,
    L2Loss,
    LinearHead,
    MaxShiftCodec,
    MeanNorm,
    MeanStdCodec,
    PCAWhitening,
    PixelCodec,
    RangeNorm,
    ShallowConvNet,
    WhitenedCodec,
    ZCAWhitening,
    ridge,
)
from lightning_bbox.solvers.least_squares import score_lambdas, usual_deviations
from lightning_bbox.solvers.sums import gather
from tests.runs import fit, frozen, scenes, told, trained, trained_quietly

PREPROCESSES = {
    "channel": ChannelNorm,
    "mean of all": lambda: MeanNorm("global", "global"),
    "mean picture": lambda: MeanNorm("pixel", "pixel"),
    "range": RangeNorm,
    "pca": lambda: PCA(20, draws=60),
    "pca whitening": lambda: PCAWhitening(20, draws=60),
    "zca": lambda: ZCAWhitening(20, draws=60),
}
CODECS = [DeltaCodec, FixedStdCodec, MaxShiftCodec, MeanStdCodec, PixelCodec, WhitenedCodec]


def statistics(data, preprocess, codec):
    """Return all that is fitted before training: of preprocessing, codec and head."""
    head = LinearHead(standardize=True, exact_start=60)
    backbone = ShallowConvNet(channels=(4,), fc=())
    model = BoxRegressor(backbone, head, codec(), preprocess(), compile=False)
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model.trainer.datamodule = data
    model.setup("fit")
    return {name: value.clone() for name, value in model.state_dict().items()}


def all_statistics(data):
    data.setup("fit")
    pairs = [(name, MeanStdCodec) for name in PREPROCESSES]
    pairs += [("channel", codec) for codec in CODECS]
    return {
        (name, codec.__name__): statistics(data, PREPROCESSES[name], codec) for name, codec in pairs
    }


def differences(first, second):
    """Return which pairs of preprocessing and codec have other statistics."""
    return {
        pair
        for pair, found in first.items()
        if any(not torch.equal(value, second[pair][name]) for name, value in found.items())
    }


def boxes_of(folder):
    data = BoxDataModule(
        str(folder), num_targets=4, draws_per_epoch=60, eval_draws=80, batch_size=30, compile=False
    )
    data.setup("fit")
    return data


def poisoned(folder, copy, splits):
    """Copy a data set, its pictures of some splits inverted and their boxes smaller."""
    shutil.copytree(folder, copy)
    source = boxes_of(folder).source
    lines = (folder / "boxes.csv").read_text().splitlines()
    for items in (source.splits[split] for split in splits):
        for row in range(len(items)):
            at = int(items.name(row).rpartition(":")[2]) - 1  # "boxes.csv:5"
            name, *corners, label = lines[at].split(",")
            moved = (str(int(x) + by) for x, by in zip(corners, (2, 1, -3, -4), strict=True))
            lines[at] = ",".join([name, *moved, label])
            pixels = np.asarray(Image.open(folder / name))
            Image.fromarray(255 - pixels // 2).save(copy / name)
    (copy / "boxes.csv").write_text("\n".join(lines) + "\n")
    return copy


def test_nothing_but_the_training_split_enters_any_statistic(csv_folder, tmp_path):
    clean = all_statistics(boxes_of(csv_folder))
    held_out = all_statistics(boxes_of(poisoned(csv_folder, tmp_path / "a", ["val", "test"])))
    assert not differences(clean, held_out)
    train = all_statistics(boxes_of(poisoned(csv_folder, tmp_path / "b", ["train"])))
    assert differences(clean, train) == clean.keys()


# The exact start.


def standing_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def first_errors(model, data):
    """Return the validation errors before any step: the model's, and predicting the mean's."""
    model.optimizer = standing_still
    trained_quietly(model, data, max_steps=1, num_sanity_val_steps=-1)
    metrics = model.evaluations["val"].metrics
    return metrics["mae_px"], metrics["mae_px_predict_mean"]


@pytest.mark.parametrize(("kind", "standardize"), [("bright", False), ("polar", True)])
def test_before_any_step_an_exact_start_beats_predicting_the_mean(kind, standardize):
    data = scenes(kind=kind, num_scenes=300, eval_draws=100)
    backbone = type(frozen().net.backbone)((16, 16), fc=(), downsample="max")
    model = frozen(backbone=backbone, head=LinearHead(standardize=standardize, exact_start=1000))
    error, chance = first_errors(model, data)
    assert error < (0.45 if kind == "bright" else 0.6) * chance


def test_an_exact_start_holds_for_a_backbone_with_batch_norm_that_learns():
    data = scenes(num_scenes=300, eval_draws=100)
    backbone = ShallowConvNet((8, 16), fc=(), downsample="max")
    model = BoxRegressor(backbone, LinearHead(exact_start=1000), compile=False)
    error, chance = first_errors(model, data)
    assert error < 0.55 * chance
    watch = trained(
        BoxRegressor(
            ShallowConvNet((8, 16), fc=(), downsample="max"),
            LinearHead(L2Loss(), exact_start=1000),
            optimizer=standing_still,
            compile=False,
        ),
        data,
        epochs=1,
    )
    assert np.mean(watch.losses) < 1  # of 2: two coordinates of unit variance


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("count", [15, 100], ids=["dual", "primal"])
def test_the_head_takes_the_ridge_solution_of_each_regressor(per_class, count):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 20, generator=generator) + 1
    targets = features[:, :2] + torch.randn(count, 2, generator=generator)
    labels = torch.arange(count) % 2
    spec = scenes().spec()
    spec = type(spec)(spec.geometry, 2, 5.0, 0.0, ("a", "b", "unseen"))
    head = LinearHead(per_class=per_class, exact_start=count, standardize=True).build(20, spec)
    small = head.linear.weight.clone()
    head.fit_features(features, targets, labels)
    for number in range(3 if per_class else 1):
        own = labels == number if per_class else labels >= 0
        found = head.select(head(features), torch.full((count,), number))[own]
        if number == 2:
            assert torch.equal(head.linear.weight[4:], small[4:])
            continue
        lambdas, scores = score_lambdas([gather(features[own], targets[own]).spectrum("standard")])
        best = ridge(features[own], targets[own], float(lambdas[scores.argmin()]), "standard")
        expected = features[own].double() @ best.weight.T + best.bias
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_kept_features_are_all_solved_for():
    head, data, seen = LinearHead(L2Loss(), exact_start=10), scenes(), {}
    model = frozen(head=head, cache="memory", optimizer=standing_still)

    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            samples = data.samples("train")
            seen["features"] = data.features["train"]
            seen["targets"] = pl_module.codec.encode(samples.gt_boxes, samples.proposals)

    trained(model, data, Keep(), epochs=1)
    features, targets = seen["features"], seen["targets"]
    lambdas, scores = score_lambdas([gather(features, targets).spectrum("standard")])
    best = ridge(features, targets, float(lambdas[scores.argmin()]), "standard")
    torch.testing.assert_close(
        model.net.head.linear.weight.double(), best.weight, rtol=1e-4, atol=1e-5
    )


def test_a_run_that_goes_on_keeps_the_head_it_had(tmp_path):
    def model():
        return frozen(head=LinearHead(exact_start=50), optimizer=standing_still)

    first, resumed = model(), model()
    trainer = trained_quietly(first, scenes(), max_epochs=1)
    with torch.no_grad():
        first.net.head.linear.weight.fill_(0.25)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    trained_quietly(resumed, scenes(), tmp_path / "stopped.ckpt", max_epochs=2)
    assert (resumed.net.head.linear.weight == 0.25).all()


# Statistics of the head's features.


@pytest.mark.parametrize(("cache", "split"), [(None, "train_eval"), ("memory", "train")])
def test_a_new_head_is_fitted_on_features_that_change_nothing(cache, split):
    model, data = frozen(head=LinearHead(standardize=True), cache=cache), scenes()
    trained(model, data, epochs=1)
    with torch.no_grad():
        crops = data.crops_of(data.samples(split), augment=split == "train")
        features = model.net.eval().features(crops)
    torch.testing.assert_close(model.net.head.feature_mean, features.mean(dim=0))
    spread = usual_deviations(features.var(dim=0, correction=0))
    torch.testing.assert_close(model.net.head.feature_std, spread)
    assert all(module.num_batches_tracked == 0 for module in norms(model))


def norms(model):
    return [module for module in model.modules() if hasattr(module, "num_batches_tracked")]


def test_a_backbone_that_learns_keeps_its_statistics_while_the_head_is_fitted():
    model = BoxRegressor(ShallowConvNet(channels=(4, 8), fc=(16,)), LinearHead(standardize=True))
    trained(model, epochs=1)
    assert all(module.num_batches_tracked == 4 for module in norms(model))


def test_a_restored_head_keeps_its_statistics(tmp_path):
    model = frozen(head=LinearHead(standardize=True))
    trainer = trained_quietly(model, scenes(), max_epochs=1, log_every_n_steps=1)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    restored = BoxRegressor.load_from_checkpoint(tmp_path / "model.ckpt")
    told(restored, scenes(seed=5), epochs=1)
    assert torch.equal(restored.net.head.feature_mean, model.net.head.feature_mean)


# Whole runs.

CHOICES = [
    ["--model.preprocess=MeanNorm", "--model.preprocess.mean=pixel"],
    ["--model.preprocess=RangeNorm", "--model.backbone.init=SparseInit"],
    ["--model.preprocess=ZCAWhitening", "--model.head=LinearHead", "--model.head.exact_start=64"],
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice[0].rpartition("=")[2])
def test_a_run_with_each_preprocessing_shows_what_it_learnt(choice, tmp_path):
    folder = fit(tmp_path, "run", "--trainer.max_epochs=1", "--data.crop.size=16", *choice)
    restored = BoxRegressor.load_from_checkpoint(folder)
    assert type(restored.net.preprocess).__name__ == choice[0].rpartition("=")[2]
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Images("train/preprocess")) == 1


class Overflows(ShallowConvNet):
    """Has an infinite feature."""

    def forward(self, crops):
        features = super().forward(crops)
        features[7 % len(features), 2] = torch.inf
        return features


def test_a_head_is_fitted_on_finite_features_only():
    data = scenes()
    for head in (LinearHead(standardize=True), LinearHead(exact_start=60)):
        model = BoxRegressor(Overflows(channels=(4,)), head, compile=False)
        with pytest.raises(BadInput, match=r"draw 7 of train_eval\): .*: feature 2 is inf"):
            trained(model, data)
