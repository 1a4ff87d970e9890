"""The probe: what is known to be readable is found, what isn't is not, and the controls hold."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_bbox import BadInput, BoxRegressor, SceneDataModule, ShallowConvNet
from lightning_bbox.cli.main import main
from lightning_bbox.evaluation.metrics import error_px
from lightning_bbox.insight.layers import Projection, layer_hooks, layer_order
from lightning_bbox.insight.probe import LayerReader, LayerRows, ProbingTrainer, untrained
from lightning_bbox.insight.readings import Estimate, LayerReading, Reading, Readings, verdict
from lightning_bbox.insight.report import draw_readings, format_readings
from lightning_bbox.nn.backbones.base import Backbone
from lightning_bbox.solvers.least_squares import score_lambdas
from lightning_bbox.solvers.sums import RidgeSums, gather
from tests.runs import SCENES, fit

CPU = torch.device("cpu")


class ConvPool(Backbone):
    """One random 7x7 convolution, ReLU and average pooling, as in the claim about blind pixels."""

    def __init__(self, filters: int = 8) -> None:
        super().__init__()
        self.filters = filters

    def build(self, crop_size):
        self.conv, self.relu, self.pool = nn.Conv2d(3, self.filters, 7), nn.ReLU(), nn.AvgPool2d(3)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)
        self.out_features = self.filters * ((crop_size - 6) // 3) ** 2
        return self

    def forward(self, crops):
        return self.pool(self.relu(self.conv(crops))).flatten(1)


class Wrapped(ShallowConvNet):
    """Maps that go round: no border tells where anything is."""

    def build(self, crop_size):
        super().build(crop_size)
        for module in self.convs:
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "circular"
        return self


class Nothing(nn.Module):
    """Multiply by zero."""

    def forward(self, x):
        return 0 * x


class Forgetful(ConvPool):
    """The same, with a layer after which nothing is left, and one more."""

    def build(self, crop_size):
        super().build(crop_size)
        self.forget, self.after = nn.Sequential(Nothing(), nn.Identity()), nn.ReLU()
        return self

    def forward(self, crops):
        return self.after(self.forget(super().forward(crops)))


class Twice(Backbone):
    """One module applied twice, in place, beside no-ops and a function at the end."""

    def build(self, crop_size):
        self.conv, self.drop, self.flat = nn.Conv2d(3, 2, 5), nn.Dropout(0.5), nn.Flatten()
        self.relu, self.none = nn.ReLU(inplace=True), nn.Sequential()
        self.out_features = 2
        return self

    def forward(self, crops):
        map_ = self.drop(self.relu(self.conv(self.relu(crops - 0.5))))
        return self.none(self.flat(map_)).view(len(crops), 2, -1).mean(dim=2)


class Pretrained(ConvPool):
    """Weights that aren't those of a new network."""

    def load_pretrained(self):
        with torch.no_grad():
            self.conv.weight.fill_(1.0)


class Broken(ConvPool):
    """Weights of a run that diverged."""

    def load_pretrained(self):
        nn.init.constant_(self.conv.bias, float("nan"))


def scenes(kind="polar", num_scenes=2000, eval_draws=500):
    return SceneDataModule(
        kind, plain=True, num_scenes=num_scenes, eval_draws=eval_draws, compile=False
    )


def trainer(precision="32-true"):
    return ProbingTrainer(
        accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def probe(net, data, draws=3000, width=512, **options):
    return trainer().probe(BoxRegressor(net), data, draws=draws, width=width, **options)


def r2(readings):
    return {layer.layer: layer.net.r2.value for layer in readings.layers}


def words(readings):
    return verdict(readings.layers, readings.trained)


@functools.cache
def claimed(kind):
    return probe(ConvPool(), scenes(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["polar", "texture"])
def test_pixels_are_blind_where_one_random_convolution_with_pooling_sees(kind):
    readings = claimed(kind)
    found = r2(readings)
    assert list(found) == ["pixels", "conv Conv2d", "relu ReLU", "pool AvgPool2d"]
    assert abs(found["pixels"]) < 0.05
    assert abs(found["conv Conv2d"]) < 0.05
    assert found["pool AvgPool2d"] > 0.8
    assert words(readings).startswith("pixels alone don't show the offset (R2 0.00); it becomes")
    assert "best at pool AvgPool2d" in words(readings)
    assert "training adds" not in words(readings)


@pytest.mark.slow
def test_pixels_show_bright_objects():
    readings = claimed("bright")
    assert r2(readings)["pixels"] > 0.7
    assert words(readings).startswith("the pixels show the offset already (R2 0.9")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["polar", "texture", "bright"])
def test_shuffled_targets_give_chance_and_another_draw_of_random_weights_does_as_well(kind):
    readings = claimed(kind)
    mean = readings.predict_mean_px.value
    for layer in readings.layers:
        assert abs(layer.shuffled.r2.value) < 0.05
        assert layer.shuffled.mae_px.value == pytest.approx(mean, rel=0.05)
        assert layer.net.r2.low <= layer.net.r2.value <= layer.net.r2.high
    assert readings.layers[0].random is None
    for layer in readings.layers[1:]:
        assert layer.random != layer.net
        assert layer.random.r2.value == pytest.approx(layer.net.r2.value, abs=0.1)


@pytest.mark.slow
def test_global_pooling_of_an_untrained_scale_loses_the_offset():
    net = ShallowConvNet(channels=(8,), fc=(), batch_norm=False, global_pool=True)
    readings = probe(net, scenes())
    found = r2(readings)
    assert list(found)[1:] == ["convs.0 Conv2d", "convs.1 ReLU", "global pooling"]
    assert found["convs.1 ReLU"] > 0.8
    assert abs(found["global pooling"]) < 0.05
    assert "; after global pooling it is gone (R2 0.00)" in words(readings)


@pytest.mark.slow
def test_zeros_at_the_border_tell_what_global_pooling_would_lose():
    arguments = {"channels": (8, 16, 32), "fc": (), "global_pool": True}
    zeros, wrapped = (
        r2(probe(net(**arguments), scenes(num_scenes=1000), draws=2000, width=64))["global pooling"]
        for net in (ShallowConvNet, Wrapped)
    )
    assert zeros > 0.2
    assert abs(wrapped) < 0.1


def test_the_layer_that_destroys_the_offset_is_named():
    readings = probe(Forgetful(), scenes("bright", 200, 200), draws=400, width=128)
    assert "after forget.0 Nothing it is gone (R2 0.00)" in words(readings)
    assert readings.layers[-1].layer == "after ReLU"


def test_figures_equal_scikit_learn_on_the_same_features():
    data, net = scenes("bright", 100, 120), ConvPool(4)
    model = BoxRegressor(net)
    readings = trainer().probe(model, data, draws=300, width=1000)
    features, targets = {}, {}
    for split in ("train_eval", "val", "test"):
        samples = data.samples(split, draws=300 if split == "train_eval" else None)
        with torch.no_grad():
            features[split] = model.net.features(data.crops_of(samples)).double()
        targets[split] = model.codec.encode(samples.gt_boxes, samples.proposals).double()
    layer = readings.layers[-1]
    assert (layer.size, layer.width) == features["test"].shape[1:] * 2
    scaler = StandardScaler().fit(features["train_eval"])
    scale = np.maximum(scaler.scale_, 0.1 * np.sqrt((scaler.scale_**2).mean()))
    x = {split: (rows.numpy() - scaler.mean_) / scale for split, rows in features.items()}
    scaled = torch.from_numpy(x["train_eval"])
    lambdas = score_lambdas([gather(scaled, targets["train_eval"]).spectrum("none")])[0].tolist()
    fits = {
        lam: Ridge(lam, solver="svd").fit(scaled.numpy(), targets["train_eval"]) for lam in lambdas
    }
    errors = {
        lam: ((fit.predict(x["val"]) - targets["val"].numpy()) ** 2).sum()
        for lam, fit in fits.items()
    }
    assert layer.net.lam == pytest.approx(min(errors, key=errors.get), rel=1e-6)
    predicted = fits[min(errors, key=errors.get)].predict(x["test"])
    error = ((predicted - targets["test"].numpy()) ** 2).sum(axis=0)
    spread = ((targets["test"] - targets["train_eval"].mean(dim=0)) ** 2).sum(dim=0).numpy()
    assert layer.net.r2.value == pytest.approx((1 - error / spread).mean(), abs=1e-5)
    boxes = model.codec.decode(torch.from_numpy(predicted).float(), samples.proposals)
    off = error_px(boxes, samples.gt_boxes, data.geometry.px(samples.proposals)).abs().mean()
    assert layer.net.mae_px.value == pytest.approx(float(off), abs=1e-4)


def test_a_unit_that_almost_never_varies_does_not_rule():
    data, model, probing = scenes("bright", 20, 300), BoxRegressor(ConvPool(2)), trainer()
    probing.probe(model, data, draws=20, width=8)
    reader = LayerReader(data, model.codec, 300, 8, "val", probing.precision_plugin, CPU)
    sums, rows = RidgeSums(3, 4), {}
    for split, rare in (("train", 1e-4), ("val", 0.5), ("test", 0.5)):
        rows[split] = torch.nn.functional.pad(reader.targets[split][:, :2], (0, 1))
        rows[split][0, 2] = rare
    sums.update(rows["train"], reader.targets["train"])
    kept = LayerRows(Projection("a", 3, 8, CPU), sums, [rows["val"]], [rows["test"]])
    found, shuffled = reader.solve("a", kept)
    assert found.r2.value > 0.99
    assert shuffled.r2.value < 0.05
    unscaled = sums.compute().spectrum("standard").solution(found.lam)
    assert (rows["test"].double() @ unscaled.weight.T).abs().max() > 20  # what it is a cure for


def test_gcv_chooses_a_lambda_of_its_own_and_reads_as_well():
    data = scenes("bright", 200, 200)
    by_val, by_gcv = (
        probe(ConvPool(4), data, draws=600, width=128, lambda_by=by) for by in ("val", "gcv")
    )
    assert r2(by_gcv)["pixels"] == pytest.approx(r2(by_val)["pixels"], abs=0.1)
    assert "cross-validation" in format_readings(by_gcv)
    assert max(layer.shuffled.r2.value for layer in by_val.layers) < 0.1


def test_one_probe_repeats_to_the_bit_and_pretrained_weights_count_as_trained():
    data = scenes("bright", 50, 50)
    first, again, other = (
        probe(net(4), data, draws=100, width=64) for net in (ConvPool, ConvPool, Pretrained)
    )
    assert first == again
    assert not first.trained
    assert other.trained
    assert other.layers[-1].random.r2 != other.layers[-1].net.r2


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_every_precision_reads_about_the_same(precision):
    exact, other = (
        trainer(value).probe(
            BoxRegressor(ShallowConvNet(channels=(8,), fc=())), scenes("bright", 100, 100),
            draws=300, width=64,
        )
        for value in ("32-true", precision)
    )  # fmt: skip
    assert r2(other) == pytest.approx(r2(exact), abs=0.05)
    assert not other.trained


def test_training_draws_are_fixed_and_as_many_as_asked_for():
    few, many = (scenes(num_scenes=50).samples("train_eval", draws=count) for count in (20, 90))
    assert (len(few.items), len(many.items)) == (20, 90)
    assert few.proposals.equal(many.proposals[:20])
    assert not many.flips.any()


def test_untrained_leaves_the_global_generator_alone():
    net = ConvPool().build(45)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    untrained(net, 45, "probe", 0)
    assert torch.rand(1).equal(first)


def test_layers_that_do_nothing_are_left_out_and_others_have_names():
    net = Twice().build(9).eval()
    crops = torch.rand(3, 3, 9, 9)
    names = layer_order(net, lambda: net(crops))
    assert names == ["relu ReLU", "conv Conv2d", "relu ReLU (2)", "features"]
    assert not any(module._forward_hooks for module in net.modules())


def test_an_output_is_handed_over_before_it_is_overwritten():
    torch.manual_seed(0)
    net = Twice().build(9).eval()
    lowest = {}
    with (
        torch.no_grad(),
        layer_hooks(net, lambda name, out: lowest.update({name: float(out.min())})),
    ):
        net(torch.rand(50, 3, 9, 9))
    assert lowest["conv Conv2d"] < 0
    assert lowest["relu ReLU (2)"] == 0


def test_projection_keeps_inner_products():
    rows = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    rows[1] += rows[0]
    true = rows @ rows.T
    found = torch.stack(
        [gram(Projection(f"layer {n}", 20_000, 500, CPU)(rows)) for n in range(200)]
    )
    norms = true.diagonal().outer(true.diagonal()).sqrt()
    error = (found - true) / norms
    assert error.mean(dim=0).abs().max() < 0.02
    assert error.std(dim=0).max() < 2 / 500**0.5


def gram(rows):
    return rows @ rows.T


def test_projection_is_seeded_and_leaves_narrow_rows_alone():
    rows = torch.rand(4, 300)
    first, again, other = (Projection(name, 300, 50, CPU)(rows) for name in ("a", "a", "b"))
    assert first.equal(again)
    assert not first.equal(other)
    for width in (300, 301):
        narrow = Projection("a", 300, width, CPU)
        assert narrow(rows) is rows
        assert narrow.width == 300


def reading(value, spread=0.02):
    estimate = Estimate(value, value - spread, value + spread)
    return Reading(estimate, Estimate(2.5, 2.4, 2.6), 1.0)


def table(*rows):
    """Make layers of (name, R2, R2 of random weights, half of the interval)."""
    return [
        LayerReading(
            name, 9, 9, reading(value, *spread), reading(0.0),
            None if random is None else reading(random, *spread),
        )
        for name, value, random, *spread in rows
    ]  # fmt: skip


PIXELS = ("pixels", 0.0, None)


@pytest.mark.parametrize(
    ("rows", "trained", "expected"),
    [
        (
            [PIXELS, ("conv1", 0.0, 0.0), ("relu1", 0.62, 0.6), ("pool1", 0.88, 0.87)], True,
            ("pixels alone don't show the offset (R2 0.00); it becomes readable at relu1 (R2 0.62)"
            ", best at pool1 (R2 0.88); random weights do as well (0.87 against 0.88)"),
        ),
        (
            [("pixels", 0.3, None), ("pool5", 0.71, 0.55), ("global pooling", 0.01, 0.0)], True,
            ("the pixels show the offset already (R2 0.30); best at pool5 (R2 0.71); after global "
            "pooling it is gone (R2 0.01); random weights reach 0.55, so training adds 0.16"),
        ),
        (
            [PIXELS, ("conv1", 0.03, 0.02)], True,
            ("no layer shows the offset linearly (at most R2 0.03 at conv1); nor do random weights "
            "(R2 0.02)"),
        ),
        (
            [PIXELS, ("conv1", 0.03, 0.5)], True,
            ("no layer shows the offset linearly (at most R2 0.03 at conv1); random weights do "
            "better (0.50 against 0.03)"),
        ),
        (
            [PIXELS, ("conv1", 0.12, 0.0, 0.05)], True,
            ("no layer surely shows the offset linearly (at most R2 0.12 at conv1); random weights "
            "reach 0.00, so training adds 0.12"),
        ),
        (
            [("pixels", 0.11, None, 0.05), ("a", 0.6, 0.5, 0.06), ("b", 0.12, 0.1, 0.06)], False,
            ("whether pixels alone show the offset can't be told (R2 0.06 to 0.16); it becomes "
            "readable at a (R2 0.60); from b on it isn't surely readable (R2 0.06 to 0.18); "
            "another draw of the random weights reaches 0.50"),
        ),
        (
            [PIXELS, ("a", 0.6, 0.5, 0.06), ("b", 0.0, 0.0), ("c", 0.4, 0.1)], True,
            ("pixels alone don't show the offset (R2 0.00); it becomes readable at a (R2 0.60); in "
            "between it isn't surely readable at b; R2 0.40 is left at c; random weights may do "
            "as well (0.50 against 0.60)"),
        ),
        ([("pixels", 0.9, None)], True, "the pixels show the offset already (R2 0.90)"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_table_shows(rows, trained, expected):
    assert verdict(table(*rows), trained) == expected


def test_the_verdict_trusts_nothing_where_shuffled_targets_are_read_too():
    layers = table(PIXELS, ("conv1", 0.9, 0.2))
    leaking = LayerReading("relu1", 9, 9, reading(0.9), reading(0.5), None)
    found = verdict([*layers, leaking], trained=True)
    assert found == "nothing can be said: with shuffled targets too relu1 reaches R2 0.50"


def test_the_verdict_says_nothing_where_too_few_groups_tell_no_interval():
    unsure = Reading(Estimate(0.9, math.nan, math.nan), Estimate(1, math.nan, math.nan), 1.0)
    layers = [LayerReading("pixels", 9, 9, unsure, unsure, None)]
    found = verdict(layers, trained=True)
    assert found == "nothing can be said: the test split has too few groups for an interval"
    assert unsure.r2.interval == "too few groups for an interval"
    assert draw_readings(Readings(tuple(layers), True, {}, unsure.mae_px, "val"))


def test_what_chance_reaches_is_not_readable():
    chance = Reading(Estimate(0.12, 0.05, 0.3), Estimate(2.5, 2.4, 2.6), 1.0)
    layer = LayerReading("conv1", 9, 9, reading(0.25), chance, None)
    assert not layer.readable


def test_the_chart_has_room_for_many_layers():
    layers = table(PIXELS, *((f"convs.{place} BatchNorm2d", 0.5, 0.4) for place in range(40)))
    draws = {"train": 5000, "val": 2000, "test": 2000}
    few, many = (
        draw_readings(Readings(tuple(some), True, draws, Estimate(2.5, 2.4, 2.6), "val"))
        for some in (layers[:3], layers)
    )
    assert many.width > 2 * few.width / 1.1
    assert many.height == few.height


def command(runs, name, *options, base=SCENES[1:]):
    options = [f"--runs={runs}", f"--name={name}", "--draws=60", "--width=32", *options]
    return main(["probe", *base, *options])


def test_the_command_leaves_figures_table_chart_and_events(tmp_path, capsys):
    assert command(tmp_path, "run", "--model.backbone.global_pool=true") == 0
    folder = tmp_path / "run"
    figures = json.loads((folder / "probe.json").read_text())
    assert [layer["layer"] for layer in figures["layers"]][-4:] == [
        "global pooling", "fcs.0 Linear", "fcs.1 BatchNorm1d", "fcs.2 ReLU",
    ]  # fmt: skip
    assert not figures["trained"]
    assert figures["draws"] == {"train": 60, "val": 40, "test": 40}
    assert figures["layers"][0].keys() == {"layer", "size", "width", "net", "shuffled"}
    table = (folder / "probe.md").read_text()
    assert figures["verdict"] in table
    assert table in capsys.readouterr().out + "\n"
    assert np.asarray(Image.open(folder / "probe.png")).std() > 1
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["probe/layers"]
    assert {"probe/r2/net", "probe/mae_px/random", "probe/r2/shuffled"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Scalars("probe/r2/net")) == len(figures["layers"])


@pytest.mark.slow
def test_a_trained_run_is_probed_from_its_folder_alone(tmp_path):
    checkpoint = fit(tmp_path, "fit") / "checkpoints" / "best.ckpt"

    def probed(name, *options, **base):
        assert command(tmp_path, name, *options, **base) == 0
        return json.loads((tmp_path / name / "probe.json").read_text())

    alone = probed("alone", f"--ckpt_path={tmp_path / 'fit'}", base=[])
    assert alone["trained"]
    assert probed("file", f"--ckpt_path={checkpoint}") == alone
    tuned = probed("weights", f"--model.weights={checkpoint}")
    assert tuned["trained"]
    assert tuned["layers"][-1]["net"]["r2"] == alone["layers"][-1]["net"]["r2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lambda_by=luck"], "lambda_by: is 'luck'; expected 'val', 'gcv'"),
        (["--draws=2"], "probe draws is 2; expected at least 10"),
        (["--draws=many"], "draws: is 'many'; expected a whole number"),
        (["--width=0"], "probe width is 0; expected at least 1"),
        (["--ckpt_path=no.ckpt"], "no.ckpt: no such checkpoint"),
        (["--trainer.devices=2"], "probe runs in one process, not 2; set trainer.devices to 1"),
    ],
)
def test_mistakes_are_refused_with_exit_code_2(options, message, tmp_path, capsys):
    assert command(tmp_path, "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_is_refused():
    broken = Broken(2)
    with pytest.raises(BadInput, match="the output of conv Conv2d isn't finite"):
        trainer().probe(BoxRegressor(broken), scenes("bright", 20, 20), draws=20, width=16)


def test_python_refuses_another_way_to_choose_lambda():
    with pytest.raises(BadInput, match="lambda_by is 'luck'"):
        probe(ConvPool(), scenes(), lambda_by="luck")
