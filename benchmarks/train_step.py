"""How fast a training step is, in each precision, compiled and not, and with which floor.

The step is the bare loop's: what `fit` computes in a step, and nothing else.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import ONE_SAMPLE, RandomPictures
from benchmarks.runner import Arm, Call, Case, Setting, as_any, compile_errors
from lightning_bbox import BoxRegressor
from lightning_bbox.core.compiling import default_precision, should_compile
from lightning_bbox.data.module import CropDataModule
from lightning_bbox.data.samples import Batch
from lightning_bbox.nn.schedules import OneCycle


class BareLoop:
    """The default model's training step in plain torch, without a trainer.

    Args:
        data: What it trains on.
        device: Where.
        precision: As the trainer's.
        compile_net: Whether the network is compiled.
        steps: Length of the run that the learning rate is planned for.
    """

    def __init__(
        self,
        data: CropDataModule,
        device: torch.device,
        precision: str = "32-true",
        compile_net: bool = False,
        steps: int = 1000,
    ) -> None:
        data.setup("fit")
        self.data, self.device, self.precision = data, device, precision
        self.model = fitted_model(data, device)
        self.model.train()
        if precision == "bf16-true":
            self.model.net.bfloat16()
        if compile_net:
            self.model.net.compile(fullgraph=True)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.1, fused=True)
        schedule, last = OneCycle(), max(1, steps - 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: schedule.factor(min(1.0, step / last))
        )

    def step(self, batch: Batch) -> Tensor:
        """Learn from a batch, and return its loss."""
        with self.autocast():
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        as_any(loss).backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""
        model = self.model
        outputs = model.net.head.select(model.net(batch.crops), batch.labels)
        targets = model.codec.encode(batch.gt_boxes, batch.proposals)
        decode = partial(model.codec.decode, proposals=batch.proposals)
        return model.net.head.loss(outputs, targets, decode).sum() * (1 / len(batch.crops))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that the precision asks for."""
        if self.precision.endswith("-mixed"):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def fitted_model(data: CropDataModule, device: torch.device) -> BoxRegressor:
    """Return the default model as `fit` builds it for some data."""
    model = BoxRegressor()
    model.build(data.spec(), data.seed)
    samples = data.samples("train", 0)
    model.codec.fit(samples.gt_boxes, samples.proposals)
    model.net.preprocess.fit(data.cut(data.samples("train_eval").to(device)))
    model.net.head.fit(model.codec.space())
    return model.to(device)


def cases(setting: Setting) -> Iterator[Case]:
    """Yield steps of several batch sizes, each in several ways."""
    for size in (1024, 4096) if setting.on_cuda else setting.pick((16,), (128,), (128, 1024)):
        data = RandomPictures(40, 300, 300, 400, (28, 60), ONE_SAMPLE, size, 2 * size)
        data.setup("fit")
        default = BareLoop(
            data,
            setting.device,
            default_precision(),
            should_compile("auto", setting.device, pays_on_cpu=False),
        )
        batches = list(data.batches("train", 0, setting.device))
        arms = [Arm("the default", steps_of(default, batches))]
        for precision, compile_net in ways(setting):
            loop = BareLoop(data, setting.device, precision, compile_net)
            name = f"{precision}{', compiled' * compile_net}"
            # Before the first step, losses differ by rounding alone.
            tolerance = 1e-3 if precision == "32-true" else 3e-2
            arms.append(Arm(name, steps_of(loop, batches), tolerance, "", compile_errors()))
        dtype = torch.float32 if default.precision == "32-true" else torch.bfloat16
        yield Case(
            name=f"training step, batch {size}",
            unit="crops",
            items=size,
            arms=arms,
            flop=flop_of(default, batches[0]),
            dtype=dtype,
        )


def ways(setting: Setting) -> list[tuple[str, bool]]:
    """Return precisions, compiled or not, that are tried beside the default.

    On a CPU that doesn't multiply in bf16, a step in it takes some ten times as long: only the
    full size shows that.
    """
    halves = ("bf16-mixed", "bf16-true") if default_precision() == "bf16-mixed" else ()
    halves = setting.pick((), halves, ("bf16-mixed", "bf16-true"))
    compiled = (False, True) if setting.on_cuda or setting.size == "full" else (False,)
    return [(precision, way) for precision in ("32-true", *halves) for way in compiled]


def steps_of(loop: BareLoop, batches: list[Batch]) -> Call:
    """Return an arm's call: one step."""
    return lambda turn: loop.step(batches[turn % len(batches)])


def flop_of(loop: BareLoop, batch: Batch) -> int:
    """Count the FLOP of a step's products and convolutions, forward and backward."""
    plain = copy.deepcopy(loop.model.net)
    plain._compiled_call_impl = None
    with FlopCounterMode(display=False) as counter:
        as_any(plain(batch.crops.to(plain.dtype)).sum()).backward()
    return int(counter.get_total_flops())
