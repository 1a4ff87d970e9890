"""How much of the bare loop's throughput `fit` keeps, with its report, curves and checkpoints on.

Both train the default model on the same crops with the same draws, and end with the same weights.
Timed are the steps between two points of the first epoch, so that neither preparations nor
validation count, for the bare loop has none.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch

from benchmarks.runner import Arm, Case, Setting, Timed, as_any, process_clock
from benchmarks.train_step import BareLoop, flop_of
from lightning_bbox import BoxRegressor, SceneDataModule
from lightning_bbox.core.compiling import default_precision, should_compile
from lightning_bbox.models.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_bbox.reports.callbacks import PlainProgress, Throughput
from lightning_bbox.reports.loggers import EventLog, LoggedReport

BATCH = 1024
SEVERAL = 10
LOG_EVERY = 50
"""As the command line does; at least once while it is timed."""


class StepClock(pl.Callback):
    """Time the steps from one to another; on the CPU with TensorBoard's thread, which writes.

    Args:
        first: After how many steps the clock starts.
        last: After how many it stops.
        setting: Which clock.
    """

    def __init__(self, first: int, last: int, setting: Setting) -> None:
        self.first, self.last, self.setting = first, last, setting
        self.seconds = 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Start or stop."""
        self.tick(trainer.global_step)

    def tick(self, step: int) -> None:
        """Start or stop, after a step."""
        if step in (self.first, self.last):
            self.seconds = process_clock(self.setting.device) - self.seconds


def cases(setting: Setting) -> Iterator[Case]:
    """Yield `fit` beside the bare loop at the batch size of the targets."""
    batch = setting.pick(32, BATCH, BATCH)
    warm, timed = (50, 300) if setting.on_cuda else setting.pick((1, 4), (1, 4), (2, 50))
    steps = warm + timed
    scenes = setting.pick(60, 1000, 4000)

    def data() -> SceneDataModule:
        return SceneDataModule(
            num_scenes=scenes, batch_size=batch, draws_per_epoch=steps * batch, eval_draws=64
        )

    # A GPU adds up in another order from run to run; the CPU gives the same weights to the bit.
    tolerance, note = (None, "adds up in another order") if setting.on_cuda else (1e-6, "")
    several = [
        Arm(
            f"fit, {SEVERAL} steps a call{', each one graph' * graph}",
            partial(fit_several, data, setting, warm, steps, graph),
            tolerance,
            note,
        )
        for graph in (False, True)
    ]
    loop = BareLoop(data(), setting.device, default_precision())
    flop = flop_of(loop, next(loop.data.batches("train", 0, setting.device)))
    half = loop.precision.startswith("bf16")
    yield Case(
        name=f"fit with TensorBoard, batch {batch}",
        unit="crops",
        items=timed * batch,
        arms=[
            Arm("fit", lambda _: fit(data(), setting, warm, steps)),
            Arm("the bare loop", lambda _: bare(data(), setting, warm, steps), tolerance, note),
            *(several if setting.on_cuda else []),
        ],
        flop=timed * flop,
        dtype=torch.bfloat16 if half else torch.float32,
    )


def fit(
    data: SceneDataModule,
    setting: Setting,
    warm: int,
    steps: int,
    steps_per_call: int = 1,
    cuda_graph: bool = False,
) -> Timed:
    """Train an epoch with the trainer that the command line makes."""
    pl.seed_everything(0, verbose=False)
    watch = StepClock(warm, steps, setting)
    model = BoxRegressor(steps_per_call=steps_per_call, cuda_graph=cuda_graph)
    with tempfile.TemporaryDirectory() as folder:
        logger = EventLog(folder, name="", version="run", default_hp_metric=False)
        kept = RunCheckpoint(Path(folder) / "run" / "checkpoints")
        trainer = pl.Trainer(
            accelerator="gpu" if setting.on_cuda else "cpu",
            devices=1,
            precision=as_any(default_precision()),
            max_epochs=1,
            logger=logger,
            callbacks=[LoggedReport(), Throughput(), PlainProgress(), kept, watch],
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=min(LOG_EVERY, steps - warm),
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=data)
        logger.close()
    return Timed(watch.seconds, weights_of(model))


def fit_several(
    data: Callable[[], SceneDataModule],
    setting: Setting,
    warm: int,
    steps: int,
    cuda_graph: bool,
    _: int,
) -> Timed:
    """Train the same, several steps a call."""
    return fit(data(), setting, warm, steps, SEVERAL, cuda_graph)


def bare(data: SceneDataModule, setting: Setting, warm: int, steps: int) -> Timed:
    """Train the same steps in a loop of its own."""
    compiled = should_compile("auto", setting.device, pays_on_cpu=False)
    loop = BareLoop(data, setting.device, default_precision(), compiled, steps)
    watch = StepClock(warm, steps, setting)
    for step, batch in enumerate(data.batches("train", 0, setting.device), start=1):
        loop.step(batch)
        watch.tick(step)
    return Timed(watch.seconds, weights_of(loop.model))


def weights_of(model: BoxRegressor) -> torch.Tensor:
    """Return all weights as one vector, on the CPU."""
    return torch.cat([weight.detach().float().flatten().cpu() for weight in model.parameters()])
