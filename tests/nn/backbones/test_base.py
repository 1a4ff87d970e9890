"""What holds of every backbone: who decides its weights, what learns, its precision, its reload."""

import pytest
import torch
from torch import nn

from lightning_bbox import AlexNet, BoxRegressor, CropGeometry, FeatureExtractor, ShallowConvNet
from lightning_bbox.core.recipes import from_plain
from lightning_bbox.nn.backbones.base import flattened
from tests.runs import scenes, trained_quietly

SIZE = 71


class Net(nn.Module):
    """A user's net."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Dropout(0.5), nn.Conv2d(4, 6, 3)),
        )
        self.fc = nn.Linear(6, 3)

    def forward(self, crops):
        return self.fc(self.body(crops).mean(dim=(2, 3)))


MAKERS = {
    "shallow": lambda **_: ShallowConvNet((4, 8), fc=(16,), dropout=0.5),
    "torchvision": lambda **options: AlexNet("fc6", **options),
    "caffe": lambda **options: AlexNet("pool5", layout="caffe", **options),
    "extractor": lambda **options: FeatureExtractor(f"{__name__}.Net", "body.4", **options),
}
every = pytest.mark.parametrize("kind", MAKERS)


def build(kind, seed=0, frozen=False, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MAKERS[kind](frozen=frozen, **options).build(SIZE)


def draw_crops(num=2):
    return torch.randn(num, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@every
def test_weights_are_a_function_of_torchs_generator(kind):
    first, again, other = (build(kind, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    largest = max(first, key=lambda name: first[name].numel())
    assert not torch.equal(first[largest], other[largest])


@every
def test_a_frozen_net_neither_learns_nor_drops_nor_counts(kind):
    net = build(kind, frozen=True)
    if kind == "shallow":  # which is frozen by others alone
        net.freeze()
    state, crops = {name: value.clone() for name, value in net.state_dict().items()}, draw_crops()
    net.train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(net(crops), net(crops))
    assert not net(crops).requires_grad
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["shallow", "torchvision", "extractor"])  # pool5 drops nothing
def test_a_net_that_is_not_frozen_learns_and_drops(kind):
    net, crops = build(kind), draw_crops()
    assert net.training
    assert not torch.equal(net(crops), net(crops))
    net(crops).sum().backward()
    learning = [weight for weight in net.parameters() if weight.requires_grad]
    assert learning
    assert all(weight.grad is not None for weight in learning)
    assert torch.equal(net.eval()(crops), net(crops))


@torch.no_grad()
@every
def test_it_runs_in_half_and_in_double_precision(kind):
    net, crops = build(kind).eval(), draw_crops()
    expected = net(crops)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(crops)
    assert half.dtype == torch.bfloat16
    assert (half - expected).norm() < 0.03 * expected.norm()
    double = net.double()(crops.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every
def test_it_compiles_to_one_graph(kind):
    net, crops = build(kind).eval(), draw_crops()
    expected = net(crops)
    net.compile(fullgraph=True, backend="aot_eager")  # whose code is generated isn't ours to test
    for num in (2, 1):
        torch.testing.assert_close(net(crops[:num]), expected[:num], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every
def test_the_recipe_rebuilds_it(kind):
    net, crops = build(kind, frozen=True), draw_crops()
    again = from_plain(net.recipe())
    assert again.recipe() == net.recipe()
    assert again.frozen == net.frozen == (kind != "shallow")
    again.build(SIZE).load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(crops), net.eval()(crops))


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # a frozen one is, for good
@pytest.mark.parametrize("kind", ["caffe", "extractor"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_model_reloads_without_the_file_of_weights(kind, frozen, tmp_path):
    path, start = tmp_path / "a.pth", build(kind, seed=1)
    torch.save((start.net if kind == "extractor" else start).state_dict(), path)
    model = BoxRegressor(MAKERS[kind](frozen=frozen, weights=str(path)), compile=False)
    data = scenes(crop=CropGeometry(SIZE), draws_per_epoch=16, eval_draws=8)
    trained_quietly(model, data, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    path.unlink()
    again = BoxRegressor.load_from_checkpoint(tmp_path / "a.ckpt")
    first, weight = next(start.parameters()), next(again.net.backbone.parameters())
    assert torch.equal(weight, first) == frozen
    assert weight.requires_grad != frozen
    assert again.net.backbone.weights == str(path)
    crops, boxes = draw_crops().clamp(0, 1), torch.tensor([[10.0, 10, 40, 40]] * 2)
    assert torch.equal(again.eval()(crops, boxes), model.eval()(crops, boxes))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_flattened_maps_have_the_maps_layout(layout):
    made = torch.randn(3, 4, 5, 6).to(memory_format=layout).requires_grad_()
    maps, gradients = made * 1, []
    maps.register_hook(gradients.append)
    weights = torch.randn(3, 120)
    (flattened(maps) * weights).sum().backward()
    assert gradients[0].stride() == maps.stride()
    assert torch.equal(made.grad, weights.reshape(3, 4, 5, 6))
    assert torch.equal(flattened(maps), made.flatten(1))
