"""Stop a run between two steps when a signal asks for it, so that it can go on to the bit."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

_Handler = Callable[[int, FrameType | None], Any] | int | None


class RunStopped(BaseException):
    """The run stands between two steps, where a signal asked it to stop.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM stop at once, as Ctrl-C does, wherever no run has taken it over.

    Lightning alone would only note it, and look at the note between two batches.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopBetweenSteps(pl.Callback):
    """Turn SIGINT and SIGTERM into a stop at the end of the step, or of the validation.

    An interrupt in the midst of an optimizer's step would leave half of the weights updated. Of
    several processes, any may be signalled: they agree at the next log. Where nothing is trained,
    SIGTERM stops at once.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._before: dict[int, _Handler] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                # A shell lets its background jobs ignore SIGINT; so they shall.
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Stop where a signal came, but not while gradients are being accumulated."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        every: int = trainer.log_every_n_steps or 50  # type: ignore[attr-defined] # Lightning sets it
        if trainer.world_size == 1 or trainer.global_step % every == 0:
            self._stop_if_noted(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop here where a signal came since the last step; Lightning gives the signals back."""
        self._stop_if_noted(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the validation is no part of training."""
        if trainer.state.fn != "fit":
            self._stop_at_once()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once."""
        self._stop_at_once()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once."""
        self._stop_at_once()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._give_back()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum:
            self._give_back()
            self._take_sigterm()
            signal.raise_signal(signum)
            return
        self._signum = signum
        # Unbuffered: the signal may have come in the midst of a write.
        os.write(2, b"lightning-bbox: stopping after this step; once more stops at once\n")

    def _stop_if_noted(self, trainer: pl.Trainer) -> None:
        signum = self._signum
        if trainer.world_size > 1:
            noted = torch.tensor(float(signum), device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(noted, reduce_op="max"))
        if signum:
            raise RunStopped(signum)

    def _stop_at_once(self) -> None:
        if self._signum:
            raise RunStopped(self._signum)
        self._take_sigterm()

    def _take_sigterm(self) -> None:
        """Replace Lightning's handler, in which the processes wait for each other."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _raise)

    def _give_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def _raise(signum: int, _: FrameType | None) -> None:
    raise SIGTERMException(128 + signum)
