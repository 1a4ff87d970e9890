"""How fast AlexNet's fc6 features are computed from pictures, the cut at 227 px in front."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.crops import PLAIN, in_turn
from benchmarks.inputs import RandomPictures, bank_of, batches_of, crop_boxes
from benchmarks.peers import kornia_resize
from benchmarks.runner import Arm, Case, Setting, compile_errors
from lightning_bbox import AlexNet, CropGeometry, ImageNetNorm
from lightning_bbox.core.compiling import default_precision, should_compile
from lightning_bbox.nn.backbones.alexnet import torchvision_alexnet
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.network import OffsetNet

SIDE = 227


def cases(setting: Setting) -> Iterator[Case]:
    """Yield crops to fc6 features, in the default precision."""
    batch = 1024 if setting.on_cuda else setting.pick(1, 8, 32)
    geometry = CropGeometry(SIDE)
    pictures = 128 if setting.on_cuda else 4
    data = RandomPictures(pictures, 480, 640, 256, (90, 160), geometry, batch, 2 * batch, PLAIN)
    batches, bank = batches_of(data, batch, setting), bank_of(data, setting.device)
    half = default_precision() == "bf16-mixed"
    net = features_net(setting)
    compiled = should_compile("auto", setting.device, pays_on_cpu=False)
    if compiled:
        net.compile(fullgraph=True)
    plain = nn.Sequential(ImageNetNorm(), *like_torchvision(net)).to(setting.device).eval()
    index = [samples.image_index for samples in batches]
    boxes = [crop_boxes(data, samples) for samples in batches]
    cuts = [partial(data.crops_of, samples) for samples in batches]
    theirs = [partial(kornia_resize, bank, i, b, SIDE) for i, b in zip(index, boxes, strict=True)]
    tolerance = 0.3 if half else 1e-2  # features are some units large
    arms = [
        Arm("ours", in_turn([features_of(net.fast_features, cut, half, setting) for cut in cuts])),
        Arm(
            "kornia crop_and_resize, plain AlexNet",
            in_turn([features_of(plain, cut, half, setting) for cut in theirs]),
            tolerance,
        ),
    ]
    if setting.on_cuda or setting.size == "full":
        name = f"ours, {'not ' * compiled}compiled"
        other = net.features if compiled else torch.compile(net.features)
        calls = [features_of(other, cut, half, setting) for cut in cuts]
        arms.append(Arm(name, in_turn(calls), tolerance, "", compile_errors()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.features(torch.zeros(1, 3, SIDE, SIDE, device=setting.device))
    yield Case(
        name=f"AlexNet fc6 at {SIDE}, batch {batch}",
        unit="crops",
        items=batch,
        arms=arms,
        flop=batch * int(counter.get_total_flops()),
        dtype=torch.bfloat16 if half else torch.float32,
    )


def features_net(setting: Setting) -> OffsetNet:
    """Return the frozen network up to fc6, with random weights."""
    torch.manual_seed(0)
    backbone = AlexNet("fc6").build(SIDE)
    net = OffsetNet(ImageNetNorm(), backbone, BinHead()).to(setting.device).eval()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lags
    return net


def like_torchvision(net: OffsetNet) -> list[nn.Module]:
    """Return torchvision's layers up to fc6 and its ReLU, with the same weights."""
    with torch.device("meta"):  # nothing is allocated for the layers after fc6
        whole = torchvision_alexnet()
    whole.load_state_dict(net.backbone.state_dict(), strict=False, assign=True)
    *before, classifier = whole
    return [*before, *list(classifier.children())[:3]]


def features_of(
    net: Callable[[Tensor], Tensor], cut: Callable[[], Tensor], half: bool, setting: Setting
) -> Callable[[], Tensor]:
    """Return a call that cuts and applies a network, without gradients.

    Only the network runs in half precision: a cut whose coordinates are bf16 misses by pixels.
    """

    def call() -> Tensor:
        mixed: AbstractContextManager[object] = nullcontext()
        if half:
            mixed = torch.autocast(setting.device.type, dtype=torch.bfloat16)
        with torch.inference_mode():
            crops = cut()
            with mixed:
                return net(crops).float()

    return call
