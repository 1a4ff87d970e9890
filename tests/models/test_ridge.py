"""The closed form as a model: what scikit-learn would find, however the pass was run."""

import math
import re
import signal

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from lightning_bbox import (
    BadInput,
    BinHead,
    BoxDataModule,
    BoxRegressor,
    ChannelNorm,
    LinearHead,
    Refiner,
    RidgeRegressor,
    SceneDataModule,
    ShallowConvNet,
    Splits,
    UniformJitter,
    WhitenedCodec,
)
from lightning_bbox.cli.main import main
from lightning_bbox.core.files import OWN
from lightning_bbox.models.checkpoints import CHECKPOINT_KEY, read_checkpoint
from lightning_bbox.refinement.exporting.export import export
from lightning_bbox.refinement.exporting.parity import odd_cases
from tests.runs import (
    CONFIGS,
    PYTHON,
    SCENES,
    FrozenConvNet,
    assert_equal_runs,
    fit,
    interfered,
    ranks,
    run,
    run_well,
    strike,
    trained_quietly,
)

# Lightning 2.6.6 hasn't followed torch 2.13's pytree, and `pytest.warns` lets others pass.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")
RIDGE = [*SCENES[:3], "--model=RidgeRegressor", *SCENES[3:]]


def small_net(fc=(24,)):
    return ShallowConvNet(channels=(4, 8), convs_per_scale=1, fc=fc)


def scenes(**arguments):
    options = {"num_scenes": 60, "batch_size": 16, "draws_per_epoch": 160, "eval_draws": 50}
    return SceneDataModule(compile=False, **(options | arguments))


def fitted(model, data, epochs=1, **options):
    """Fit a model for some epochs, without files."""
    trained_quietly(model, data, max_epochs=epochs, **options)
    return model


@torch.no_grad()
def table(model, data, split="train", epochs=1, first=0):
    """Return features, targets and labels of a split, as NumPy."""
    parts = []
    for epoch in range(first, first + epochs):
        for batch in data.batches(split, epoch, torch.device("cpu")):
            features = model.net.features(batch.crops)
            targets = model.codec.encode(batch.gt_boxes, batch.proposals)
            columns = (features.double(), targets.double(), batch.labels)
            parts.append([column[batch.valid].numpy() for column in columns])
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def by_scikit_learn(features, targets, lam):
    scaler = StandardScaler().fit(features)
    variances = features.var(axis=0)
    least = 0.1 * np.sqrt(variances[variances > 0].mean())
    scaler.scale_ = np.maximum(features.std(axis=0), least)
    found = Ridge(alpha=lam, solver="svd").fit(scaler.transform(features), targets)
    weight = found.coef_ / scaler.scale_
    return weight, found.intercept_ - weight @ scaler.mean_


def assert_is_solution(model, weight, bias):
    linear = model.net.head.linear
    np.testing.assert_allclose(linear.weight.detach(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(linear.bias.detach(), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_solution():
    model = fitted(RidgeRegressor(small_net(), lam=30.0, compile=True), scenes())
    features, targets, _ = table(model, scenes())
    assert_is_solution(model, *by_scikit_learn(features, targets, 30.0))


@pytest.mark.parametrize("fc", [(24,), ()])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_pass_ends_with_scikit_learns_solution(fc, epochs):
    data = scenes()
    model = fitted(RidgeRegressor(small_net(fc), lam=30.0), data, epochs)
    features, targets, _ = table(model, data, epochs=epochs)
    assert len(features) == 160 * epochs
    assert (features.shape[1] > len(features)) == (not fc)  # the dual, and the primal
    assert_is_solution(model, *by_scikit_learn(features, targets, 30.0))


def test_lambda_is_that_of_least_validation_error():
    data = scenes()
    model = fitted(RidgeRegressor(small_net(), lam="val"), data)
    chosen = float(model.trainer.callback_metrics["ridge/lambda"])
    held, truth, _ = table(model, data, "val")
    features, targets, _ = table(model, data)
    errors = {}
    for lam in chosen * np.logspace(-1, 1, 5):  # the grid's neighbours, two on each side
        weight, bias = by_scikit_learn(features, targets, lam)
        errors[lam] = ((held @ weight.T + bias - truth) ** 2).sum()
    assert min(errors, key=errors.get) == pytest.approx(chosen)
    assert_is_solution(model, *by_scikit_learn(features, targets, chosen))


def test_gcv_needs_no_validation_split():
    data = scenes(draws_per_epoch=320)
    model = fitted(RidgeRegressor(small_net(), lam="gcv"), data, limit_val_batches=0)
    features, targets, _ = table(model, data)
    lam = float(model.trainer.callback_metrics["ridge/lambda"])
    assert_is_solution(model, *by_scikit_learn(features, targets, lam))


def test_the_solution_is_better_than_the_mean_and_the_same_again():
    options = {"draws_per_epoch": 1600, "num_scenes": 400, "eval_draws": 200}
    data = scenes(**options)
    model = fitted(RidgeRegressor(small_net(())), data)
    metrics = model.evaluations["val"].metrics
    assert metrics["mae_px"] < 0.7 * metrics["mae_px_predict_mean"]
    again = fitted(RidgeRegressor(small_net(())), scenes(**options))
    assert torch.equal(model.net.head.linear.weight, again.net.head.linear.weight)


def test_four_whitened_targets_by_the_recipe_of_rcnn():
    data = scenes(num_targets=4, draws_per_epoch=320, jitter=UniformJitter(log_scale=0.2))
    model = RidgeRegressor(small_net(), WhitenedCodec(), lam=1000.0, scaling="norm20")
    fitted(model, data)
    features, targets, _ = table(model, data)
    factor = 20 / np.linalg.norm(features, axis=1).mean()
    expected = Ridge(alpha=1000.0).fit(features * factor, targets)
    assert_is_solution(model, expected.coef_ * factor, expected.intercept_)


CUT_SHORT = {
    "whole": ({}, 1),
    "steps end": ({"max_steps": 15}, 1),
    "batches are limited": ({"limit_train_batches": 12}, 2),
    "batches are overfitted": ({"overfit_batches": 12}, 2),
}


@pytest.mark.parametrize(("options", "epochs"), CUT_SHORT.values(), ids=CUT_SHORT)
def test_the_worst_draws_are_left_out_of_a_second_solution(options, epochs):
    data = scenes(draws_per_epoch=320)
    model = fitted(RidgeRegressor(small_net(), lam=10.0, robust=0.1), data, epochs, **options)
    drawn = 1 if "overfit_batches" in options else epochs
    each = next(iter(options.values()), 20)
    parts = [
        [column[: 16 * each] for column in table(model, data, first=epoch)]
        for epoch in [*range(drawn)] * (epochs // drawn)
    ]
    features, targets, _ = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    weight, bias = by_scikit_learn(features, targets, 10.0)
    errors = ((features @ weight.T + bias - targets) ** 2).sum(axis=1)
    keep = np.argsort(errors)[: round(0.9 * len(errors))]
    assert_is_solution(model, *by_scikit_learn(features[keep], targets[keep], 10.0))


@pytest.fixture
def two_classes(csv_folder):
    """The rectangles in two classes, every third one rare, the last two pictures held out."""
    path = csv_folder / "boxes.csv"
    header, *lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        label = line if number % 3 else line.replace(",part", ",rare")
        lines[number] = f"{label},{'test' if number >= 30 else 'train'}"
    path.write_text("\n".join([f"{header},split", *lines]) + "\n")
    return csv_folder


def boxes(folder, **arguments):
    options = {"batch_size": 16, "draws_per_epoch": 320, "eval_draws": 40, "compile": False}
    return BoxDataModule(str(folder), splits=Splits(test="test"), **(options | arguments))


@pytest.mark.parametrize("fc", [(24,), (150,)])
def test_each_class_gets_its_own_solution(two_classes, fc):
    data = boxes(two_classes)
    model = fitted(RidgeRegressor(small_net(fc), lam=30.0, per_class=True), data)
    features, targets, labels = table(model, data)
    assert model.spec.classes == data.source.classes == ("part", "rare")
    both = [by_scikit_learn(features[labels == n], targets[labels == n], 30.0) for n in (0, 1)]
    assert_is_solution(model, *(np.concatenate(each) for each in zip(*both, strict=True)))
    batch = next(data.batches("test", 0, torch.device("cpu")))
    moved, _ = model.refine(batch.crops, batch.proposals, batch.labels)
    outputs = model.net(batch.crops).detach().numpy().reshape(len(batch.crops), 2, 2)
    own = torch.from_numpy(outputs[np.arange(len(outputs)), batch.labels.numpy()])
    torch.testing.assert_close(moved, model.codec.decode(own, batch.proposals))
    with pytest.raises(BadInput, match="say the boxes' labels"):
        model.refine(batch.crops, batch.proposals)


def test_boxes_at_hand_are_refined_by_their_class(two_classes):
    data = boxes(two_classes)
    model = fitted(RidgeRegressor(small_net(), lam=30.0, per_class=True), data)
    refiner, picture = Refiner(model), two_classes / "0.png"
    rough = np.array([[10.0, 12, 40, 40]] * 3)
    with pytest.raises(BadInput, match="give each box's label"):
        refiner.refine(picture, rough)
    found = refiner.refine_with_std(picture, rough, ["rare", "part", "other"])
    assert found.unmoved == {2: "is of class 'other', which the model doesn't know"}
    assert not torch.allclose(found.boxes[0], found.boxes[1])
    by_part = refiner.refine_with_std(picture, rough[:1], ["part"])
    torch.testing.assert_close(by_part.boxes[0], found.boxes[1])


@pytest.mark.slow
def test_the_graph_of_a_ridge_for_each_class_gives_what_a_refiner_gives(two_classes, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = fitted(RidgeRegressor(small_net(), lam=30.0, per_class=True), boxes(two_classes))
    cases = [case for case in odd_cases(("part", "rare")) if case.picture.size < 1e6]
    report = export(model, tmp_path / "model.onnx", cases={"odd": cases})
    assert report["parity"]["odd"]["boxes"] > 50


def predicted(folder, runs, *options):
    """Fit on two classes, predict the same boxes, and return the lines before and after."""
    paths = [f"--data.root={folder}", f"--runs={runs}"]
    base = ["fit", "-c", str(CONFIGS / "csv.yaml"), *RIDGE[3:], "--model.per_class=true"]
    base.remove("--data.num_scenes=60")
    assert main([*base, *paths, *options, "--name=run"]) == 0
    predict = ["predict", f"--ckpt_path={runs / 'run'}", "--decimals=3"]
    assert main([*predict, *paths, "--name=out"]) == 0
    files = folder / "boxes.csv", runs / "out" / "refined" / "boxes.csv"
    return zip(*(path.read_text().splitlines() for path in files), strict=True)


def test_predict_refines_each_box_by_its_class(two_classes, tmp_path):
    _, *lines = predicted(two_classes, tmp_path)
    rough, refined = (line.split(",") for line in lines[3])
    name, *corners, label, _ = rough
    box = np.array([corners], dtype=float)
    found = Refiner(tmp_path / "run").refine(two_classes / name, box, [label])
    np.testing.assert_allclose(found[0], [float(x) for x in refined[1:5]], atol=2e-3)


def test_classes_that_are_left_out_of_predict_stay_as_they_were(two_classes, tmp_path):
    lines = predicted(two_classes, tmp_path, "--data.classes=[rare]")
    assert {old.split(",")[5] for old, new in lines if old != new} == {"rare"}


def test_classes_go_by_name_not_by_number(two_classes):
    model = fitted(RidgeRegressor(small_net(), lam=30.0, per_class=True), boxes(two_classes))
    rare = boxes(two_classes, classes=["rare"])
    rare.follow(model.spec, needs_class=True)
    assert set(rare.samples("train").labels.tolist()) == {1}
    path = two_classes / "boxes.csv"
    path.write_text(path.read_text().replace(",rare,", ",other,"))
    with pytest.raises(BadInput, match=r"regressor for each of part, rare, but none for other"):
        boxes(two_classes).follow(model.spec, needs_class=True)


def test_a_ridge_keeps_the_features_of_any_backbone():
    plain = fitted(RidgeRegressor(small_net(), lam=30.0), scenes())
    cached = fitted(RidgeRegressor(small_net(), lam=30.0, cache="memory"), scenes())
    torch.testing.assert_close(cached.net.head.linear.weight, plain.net.head.linear.weight)


def test_a_class_without_draws_is_moved_by_the_mean(two_classes):
    path = two_classes / "boxes.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "rare,train" not in line) + "\n")
    data = boxes(two_classes)
    with pytest.warns(UserWarning, match="rare had no training draws"):
        model = fitted(RidgeRegressor(small_net(), lam=30.0, per_class=True), data)
    batch = next(data.batches("test", 0, torch.device("cpu")))
    moved, _ = model.refine(batch.crops, batch.proposals, batch.labels)
    mean = model.codec.decode(model.codec.mean.expand(len(moved), -1), batch.proposals)
    rare = batch.labels == data.source.classes.index("rare")
    assert rare.any()
    torch.testing.assert_close(moved[rare], mean[rare])
    assert not torch.allclose(moved[~rare], mean[~rare])


def begin(folder, *options):
    return main([*RIDGE, f"--runs={folder.parent}", f"--name={folder.name}", *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on the command line, never stopped."""
    return fit(tmp_path_factory.mktemp("runs"), "whole", base=RIDGE)


def test_a_run_leaves_a_model_like_any_other(whole, csv_folder):
    files = {path.name.partition(".")[0] for path in whole.iterdir() if path.name != OWN}
    assert files == {"checkpoints", "config", "crops", "data", "events", "metrics", "test_errors"}
    refiner = Refiner(whole)
    boxes = np.array([[30.0, 20, 60, 50]])
    assert refiner.refine(np.zeros((80, 120, 3), np.uint8), boxes).shape == (1, 4)
    ridge, descent = (
        kind.load_from_checkpoint(whole / "checkpoints" / "best.ckpt")
        for kind in (RidgeRegressor, BoxRegressor)
    )
    crops, proposals = torch.rand(2, 3, 45, 45), torch.tensor([[10.0, 10, 40, 40]]).expand(2, 4)
    assert torch.equal(ridge(crops, proposals), descent(crops, proposals))
    out = whole.parent / "predicted"
    command = ["predict", "-c", str(whole / "config.yaml"), f"--ckpt_path={whole}"]
    options = [f"--runs={out.parent}", f"--name={out.name}", f"--data.root={csv_folder}"]
    assert main([*command, "--data=BoxDataModule", *options]) == 0
    assert (out / "refined" / "boxes.csv").is_file()


def test_one_epoch_is_enough_where_none_is_asked_for(tmp_path):
    config = tmp_path / "scenes.yaml"
    config.write_text("data: lightning_bbox.SceneDataModule\n")
    options = [option for option in RIDGE[3:] if option != "--trainer.max_epochs=2"]
    folder = fit(tmp_path, "run", *options, base=["fit", "-c", str(config)])
    assert "  max_epochs: 1\n" in (folder / "config.yaml").read_text()
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == 0


@pytest.mark.parametrize(
    ("moment", "step", "signum"),
    [
        ("training", 2, signal.SIGINT),
        ("training", 4, signal.SIGTERM),
        ("validation", 4, signal.SIGINT),
        ("training", 6, signal.SIGINT),
        ("training", 8, signal.SIGINT),
        ("validation", 8, signal.SIGTERM),
        ("test", 8, signal.SIGTERM),
    ],
)
def test_a_pass_that_was_stopped_goes_on_to_the_bit(moment, step, signum, whole, tmp_path):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered(moment, step, int(signum))) == 128 + signum
    assert main(["fit", f"--resume={folder}"]) == 0
    assert_equal_runs(folder, whole, atol=0)


def test_a_pass_that_ended_keeps_no_sums_and_takes_no_more_draws(whole, capsys):
    last = read_checkpoint(whole / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8
    assert "sums" not in last[CHECKPOINT_KEY]
    assert main(["fit", f"--resume={whole}", "--trainer.max_epochs=3"]) == 2
    assert "its sums are gone" in capsys.readouterr().err


def test_another_ridge_does_not_go_on(tmp_path, capsys):
    folder = tmp_path / "cut"
    assert begin(folder, *interfered("training", 2, signal.SIGINT)) == 130
    assert main(["fit", f"--resume={folder}", "--model.lam=3"]) == 2
    assert "the ridge is standard val in the checkpoint and standard 3.0 now" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--model.per_class=false", "--model.robust=0.1"])
def test_two_processes_equal_one(option, tmp_path):
    command = [*RIDGE, "--trainer.precision=64-true", option]
    for name, count in (("one", 1), ("two", 2)):
        run_well([*PYTHON, *command, *ranks(count), f"--runs={tmp_path}", f"--name={name}"])
    assert_equal_runs(tmp_path / "two", tmp_path / "one", atol=1e-10)


@pytest.mark.slow
def test_a_stopped_pass_goes_on_with_another_number_of_processes(tmp_path):
    command = [*RIDGE, "--trainer.precision=64-true", f"--runs={tmp_path}"]
    run_well([*PYTHON, *command, "--name=whole"])
    stop = interfered("training", 2, signal.SIGINT)
    assert main([*command, "--name=cut", *stop]) == 130
    run_well([*PYTHON, "fit", f"--resume={tmp_path / 'cut'}", *ranks(2)])
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole", atol=1e-10)
    stop = strike(signal.SIGTERM, "itself")
    assert run([*PYTHON, *command, "--name=two", *ranks(2), *stop]).code == 143
    one = ["--trainer.devices=1", "--trainer.strategy=auto"]
    assert main(["fit", f"--resume={tmp_path / 'two'}", *one]) == 0
    assert_equal_runs(tmp_path / "two", tmp_path / "whole", atol=1e-10)


class Doubled(ShallowConvNet):
    """Features twice, all but the same."""

    def build(self, crop_size):
        super().build(crop_size)
        self.out_features *= 2
        return self

    def forward(self, crops):
        features = super().forward(crops)
        return torch.cat([features, features + 1e-6 * torch.sin(1e3 * features)], dim=1)


def test_an_ill_conditioned_ridge_says_so():
    model = RidgeRegressor(Doubled(channels=(4, 8), convs_per_scale=1, fc=(24,)), lam=1e-12)
    with pytest.warns(UserWarning, match=r"ill-conditioned: with a condition number of"):
        fitted(model, scenes(draws_per_epoch=320))


def test_features_that_tell_nothing_say_so():
    net = ShallowConvNet(channels=(4,), convs_per_scale=1, fc=(), global_pool=True)
    with pytest.warns(UserWarning, match="the features tell next to nothing of the offset"):
        fitted(RidgeRegressor(net), scenes(num_scenes=400, eval_draws=400, draws_per_epoch=640))


def test_sums_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda _: 1000)
    with pytest.raises(BadInput, match=r"a ridge on 1152 features of 160 draws needs .* GB"):
        fitted(RidgeRegressor(small_net(())), scenes())


class Spoils(FrozenConvNet):
    """Makes an invalid feature of the crops that are about as bright as one."""

    value, like, margin = math.nan, math.inf, 0.0

    def forward(self, crops):
        features = super().forward(crops)
        features[(brightness(crops) - self.like).abs() < self.margin, 1] = self.value
        return features


def brightness(crops):
    return crops.mean(dim=(1, 2, 3))


def spoilt(net, data, split):
    """Have a backbone spoil the draw that is least like all others, and return its row."""
    data.setup("fit")
    norm = ChannelNorm().build(data.geometry.size)
    norm.fit(data.cut(data.samples("train_eval", draws=norm.draws)))
    means = {
        each: brightness(norm(data.crops_of(data.samples(each), augment=each == "train")))
        for each in ("train", "val")
    }
    gaps = (means[split][:, None] - torch.cat([*means.values()])).abs().sort(dim=1).values[:, 1]
    row = int(gaps.argmax())
    net.like, net.margin = float(means[split][row]), float(gaps[row]) / 2
    return row


@pytest.mark.parametrize("cache", [None, "memory"])
@pytest.mark.parametrize("fc", [(24,), ()], ids=["sums", "rows"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_draw_with_an_invalid_feature_is_named(value, fc, cache):
    data, net = scenes(), Spoils(channels=(4, 8), convs_per_scale=1, fc=fc)
    row, net.value = spoilt(net, data, "train"), value
    place = (
        f"{data.item_name('train', int(data.samples('train').items[row]))} (draw {row} of train)"
    )
    with pytest.raises(
        BadInput, match=f"^{re.escape(place)}: .*isn't finite: feature 1 is {value}"
    ):
        fitted(RidgeRegressor(net, lam=30.0, cache=cache), data)


def test_an_invalid_feature_of_validation_is_named_where_that_chooses_lambda():
    data, net = scenes(), Spoils(channels=(4, 8), convs_per_scale=1, fc=(24,))
    row = spoilt(net, data, "val")
    with pytest.raises(BadInput, match=rf" \(draw {row} of val\): .*: feature 1 is nan"):
        fitted(RidgeRegressor(net, lam="val"), data)


@pytest.mark.parametrize("lam", [-1.0, float("inf"), float("nan"), "loo"])
def test_a_lambda_out_of_range_is_refused(lam):
    with pytest.raises(BadInput, match=r"lam is .*; expected 0 or more, 'val' or 'gcv'"):
        RidgeRegressor(lam=lam)


@pytest.mark.parametrize("robust", [-0.1, 1.0])
def test_a_robust_share_out_of_range_is_refused(robust):
    with pytest.raises(BadInput, match="robust is"):
        RidgeRegressor(robust=robust)


@pytest.mark.parametrize(
    ("head", "named"),
    [(LinearHead(activation="tanh"), "LinearHead of activation 'tanh'"), (BinHead(), "BinHead of")],
    ids=["tanh", "bins"],
)
def test_a_checkpoints_head_that_no_ridge_solves_for_is_refused(head, named, tmp_path):
    data = scenes(draws_per_epoch=16, eval_draws=10)
    model = fitted(BoxRegressor(small_net(), head), data, limit_val_batches=0)
    model.trainer.save_checkpoint(tmp_path / "other.ckpt")
    ridge = RidgeRegressor.load_from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(BadInput, match=f"of activation 'none', and the model has a {named}"):
        fitted(ridge.train(), data)
