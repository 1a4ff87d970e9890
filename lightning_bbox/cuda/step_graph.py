"""A whole step of training as one CUDA graph: recorded once, then replayed with one launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.optim import Optimizer

WARM_STEPS = 3
"""Steps made as usual before one is recorded: they compile, and choose algorithms."""

Result = TypeVar("Result")


class StepGraph(Generic[Result]):
    """Make the first steps as usual, record one, and replay it for all others.

    What is replayed are the kernels alone, on the memory they were recorded on: rows and learning
    rates are written there before, results are read from there after, and whatever else the host
    decides in a step stays as it was.

    Args:
        optimizer: Whose rates the steps follow.

    References:
        The CUDA programming guide, CUDA graphs; PyTorch's notes on CUDA semantics, whole-network
        capture.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._made = 0
        self._launch: Callable[[], None] | None = None

    @property
    def is_warm(self) -> bool:
        """Whether steps are replayed from now on, the next one recorded first if none is."""
        return self._made >= WARM_STEPS

    def warm_up(self, step: Callable[[], Result], device: torch.device) -> Result:
        """Make a step as usual, beside the stream that everything else is on."""
        self._made += 1
        with beside(device):
            return step()

    def replay(self, step: Callable[[Tensor], Result], rows: Int64[Tensor, " b"]) -> Result:
        """Make a step by replaying the recorded one; its results last until the next.

        Args:
            step: Makes a step from rows on the device, forward to the update of the weights,
                without waiting for the device, and returns tensors.
            rows: What the step is of.
        """
        if self._launch is None:
            self._launch = self._record(step, rows)
        self._rows.copy_(rows)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._launch()
        return self._result

    def _record(self, step: Callable[[Tensor], Result], rows: Tensor) -> Callable[[], None]:
        groups = self._optimizer.param_groups
        self._rows = rows.clone()
        self._rates = [torch.full((), group["lr"], device=rows.device) for group in groups]
        for state in self._optimizer.state.values():
            if "step" in state:  # some optimizers count on the host, unless told to before
                state["step"] = state["step"].to(rows.device)

        def body() -> None:
            self._result = step(self._rows)

        with capturable(self._optimizer, self._rates):
            return self.record(body)

    @staticmethod
    def record(body: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches on the current CUDA device, without running it.

        Args:
            body: Must not wait for the device.

        Returns:
            What replays it.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile; TensorBoard's doesn't, a user's could.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            body()
        return graph.replay


@contextmanager
def capturable(optimizer: Optimizer, rates: list[Tensor]) -> Iterator[None]:
    """Have an optimizer take its learning rates from the device, and count its steps there.

    Args:
        optimizer: One that has the option `capturable`.
        rates: The rate of each group of parameters.
    """
    asked = [
        {name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups
    ]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(lr=rate, capturable=True)
        yield
    finally:
        for group, values in zip(optimizer.param_groups, asked, strict=True):
            group.update(values)


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Launch on another stream of a CUDA device, between what came before and what comes after."""
    if device.type != "cuda":
        yield
        return
    here, other = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    other.wait_stream(here)
    with torch.cuda.stream(other):
        yield
    here.wait_stream(other)
