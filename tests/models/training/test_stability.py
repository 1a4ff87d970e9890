"""The largest stable learning rate: real descent settles below it and diverges above it."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_bbox import (
    BinHead,
    BoxRegressor,
    Constant,
    L1Loss,
    L2Loss,
    LinearHead,
    MeanStdCodec,
    ShallowConvNet,
    SmoothL1Loss,
)
from lightning_bbox.geometry.codecs import TargetSpace
from lightning_bbox.models.training.stability import (
    excess_message,
    largest_eigenvalue,
    largest_stable_rate,
)
from tests.parts import spec_with
from tests.runs import FrozenConvNet, scenes, told


def draw_features(num=300, width=20, seed=0):
    """Draw features as after a ReLU: positive, far from their mean's origin, of unequal scales."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(num, width)) @ random.normal(size=(width, width)) + 1
    return torch.from_numpy(np.maximum(mixed, 0)).float()


def gram(features):
    phi = np.hstack([features.double().numpy(), np.ones((len(features), 1))])
    return phi.T @ phi / len(phi)


@pytest.mark.parametrize(("num", "width"), [(300, 20), (3000, 5), (10, 40), (2, 1), (500, 300)])
def test_largest_eigenvalue_equals_numpys(num, width):
    features = draw_features(num, width)
    expected = np.linalg.eigvalsh(gram(features))[-1]
    assert largest_eigenvalue(features) == pytest.approx(expected, rel=2e-6)
    center, scale = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)
    expected = np.linalg.eigvalsh(gram((features.double() - center) / scale))[-1]
    assert largest_eigenvalue(features, center, scale) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("features", [torch.zeros(5, 3), torch.ones(5, 3)], ids=["zero", "one"])
def test_largest_eigenvalue_of_constant_features(features):
    assert largest_eigenvalue(features) == pytest.approx(1 + float(features[0].sum()))


def test_largest_eigenvalue_does_not_depend_on_the_features_dtype():
    features = draw_features().bfloat16()
    assert largest_eigenvalue(features) == largest_eigenvalue(features.double())


def make_head(features, loss, standardize):
    torch.manual_seed(0)
    head = LinearHead(loss, standardize=standardize).build(features.shape[1], spec_with([5.0, 5.0]))
    head.fit(TargetSpace(torch.ones(2), torch.zeros(2), torch.tensor([0.5, 0.7]), torch.ones(2)))
    head.fit_features(features, torch.zeros(len(features), 2), torch.zeros(len(features)).long())
    return head.double()


SGD = [
    {"momentum": 0.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.5},
    {"momentum": 0.9, "weight_decay": 0.5},
]


@pytest.mark.parametrize("options", SGD, ids=str)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("loss", [L2Loss(), SmoothL1Loss(1e3)], ids=["l2", "smooth l1"])
def test_descent_settles_below_the_rate_and_diverges_above(options, standardize, loss):
    features = draw_features().double()
    targets = torch.randn(len(features), 2, generator=torch.Generator().manual_seed(1)).double()
    group = torch.optim.SGD([torch.zeros(1)], lr=1.0, **options).param_groups[0]
    largest = largest_stable_rate(make_head(features, loss, standardize), features, group)
    first, ends = 0.0, []
    for factor in (0.95, 1.05):
        head = make_head(features, loss, standardize)
        optimizer = torch.optim.SGD(head.parameters(), lr=factor * largest, **options)
        for step in range(600):
            # In fp64, where the head's own would be rounded to fp32.
            value = loss(head(features), targets, head.std.double()).mean()
            first = first if step else value.item()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        ends.append(value.item())
    assert ends[0] < first
    assert not ends[1] < 1e3 * first


def test_no_rate_is_known_where_the_loss_has_no_curvature():
    features = draw_features()
    group = torch.optim.SGD([torch.zeros(1)], lr=1.0).param_groups[0]
    for loss in (L1Loss(), SmoothL1Loss(0.0)):
        assert largest_stable_rate(make_head(features, loss, False), features, group) is None


def test_a_rate_that_is_not_exceeded_is_not_warned_of():
    assert excess_message(0.02, 0.031, standardized=False) is None
    assert excess_message(0.5, 0.031, standardized=True).endswith("; lower it")


class Logged(CSVLogger):
    """Keep what is logged."""

    def log_metrics(self, metrics, step=None):
        self.rates = [*getattr(self, "rates", []), metrics.get("train/largest_stable_lr")]


def run(folder, rate, momentum=0.9, cache="memory", epochs=60, **parts):
    """Train on all draws at once; return the losses, the largest rates logged, our warnings."""
    parts = {"head": LinearHead(L2Loss()), "codec": MeanStdCodec()} | parts
    model = BoxRegressor(
        **{"backbone": FrozenConvNet(channels=(4, 8), fc=(16,)), **parts},
        optimizer=lambda weights: torch.optim.SGD(weights, lr=rate, momentum=momentum),
        schedule=Constant(),
        cache=cache,
    )
    logger, data = Logged(folder), scenes(batch_size=64)
    watch, said = told(model, data, epochs=epochs, logger=logger, limit_val_batches=0)
    return watch.losses, [rate for rate in logger.rates if rate is not None], said


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_settles_below_the_rate_that_was_logged_and_diverges_above(
    momentum, tmp_path, capsys
):
    _, (largest,), _ = run(tmp_path, 1e-9, momentum, epochs=1)
    assert f"largest stable learning rate of SGD on these features: {largest:.3g}\n" in (
        capsys.readouterr().out
    )
    losses, _, said = run(tmp_path, 0.95 * largest, momentum)
    assert losses[-1] < losses[0]
    assert not said
    losses, (again,), (sentence,) = run(tmp_path, 1.05 * largest, momentum)
    assert not losses[-1] < 10 * losses[0]
    assert again == largest
    assert sentence == excess_message(1.05 * largest, largest, standardized=False)


def test_standardizing_features_far_from_zero_allows_a_larger_rate():
    features = draw_features() + 20
    group = torch.optim.SGD([torch.zeros(1)], lr=1.0).param_groups[0]
    plain, standard = (
        largest_stable_rate(make_head(features, L2Loss(), standardize), features, group)
        for standardize in (False, True)
    )
    assert standard > 100 * plain


def test_without_a_cache_the_rate_is_that_of_the_training_probe(tmp_path):
    kept, computed = (run(tmp_path, 1e-9, cache=cache, epochs=1)[1] for cache in ("memory", None))
    assert computed == pytest.approx(kept, rel=0.3)


@pytest.mark.parametrize(
    "parts",
    [
        {"head": LinearHead(L1Loss())},
        {"head": LinearHead(L2Loss(), activation="tanh")},
        {"head": BinHead()},
        {"head": LinearHead(L2Loss(), per_class=True)},
        {"backbone": ShallowConvNet(channels=(4, 8), fc=(16,)), "cache": None},
    ],
    ids=["l1", "tanh", "bins", "per class", "learns"],
)
def test_where_no_rate_is_known_nothing_is_said(parts, tmp_path, capsys):
    assert run(tmp_path, 1e-3, epochs=1, **parts)[1:] == ([], [])
    assert "largest stable" not in capsys.readouterr().out


def test_other_optimizers_are_let_alone(capsys):
    told(BoxRegressor(FrozenConvNet(channels=(4, 8), fc=(16,)), LinearHead(L2Loss())), epochs=1)
    assert "largest stable" not in capsys.readouterr().out
