"""A whole step of training as one CUDA graph: recorded once, then replayed with one launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch.optim import Optimizer

from lightning_bbox.data.loader import Rows

WARM_STEPS = 3
"""Steps made as usual before one is recorded: they compile, and choose algorithms."""

Result = TypeVar("Result")


class StepGraph(Generic[Result]):
    """Make the first steps as usual, record one, and replay it for all others.

    What is replayed are the kernels alone, on the memory they were recorded on: rows and learning
    rates are written there before, results are read from there after, and whatever else the host
    decides in a step stays as it was.

    Args:
        step: Makes a step from rows on the device, forward to the update of the weights, without
            waiting for the device, and returns tensors.
        optimizer: Whose rates the step follows.

    References:
        The CUDA programming guide, CUDA graphs; PyTorch's notes on CUDA semantics, whole-network
        capture.
    """

    def __init__(self, step: Callable[[Rows], Result], optimizer: Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._made = 0
        self._replay: Callable[[], None] | None = None

    @property
    def is_warm(self) -> bool:
        """Whether steps are replayed from now on, the next one recorded first if none is."""
        return self._made >= WARM_STEPS

    def warm_up(self, step: Callable[[Rows], Result], rows: Rows) -> Result:
        """Make a step as usual, beside the stream that everything else is on."""
        self._made += 1
        with beside(rows.rows.device):
            return step(rows)

    def replay(self, rows: Rows) -> Result:
        """Make a step by replaying the recorded one; its results last until the next."""
        if self._replay is None:
            self._record(rows)
        self._rows.copy_(rows.rows)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        assert self._replay is not None
        self._replay()
        return self._result

    def _record(self, rows: Rows) -> None:
        device, groups = rows.rows.device, self._optimizer.param_groups
        self._rows = rows.rows.clone()
        self._rates = [torch.full((), group["lr"], device=device) for group in groups]
        for state in self._optimizer.state.values():
            if "step" in state:  # some optimizers count on the host, unless told to before
                state["step"] = state["step"].to(device)

        def body() -> None:
            self._result = self._step(rows._replace(rows=self._rows))

        with capturable(self._optimizer, self._rates):
            self._replay = record(body)


@contextmanager
def capturable(optimizer: Optimizer, rates: list[torch.Tensor]) -> Iterator[None]:
    """Have an optimizer take its learning rates from the device, and count its steps there.

    Args:
        optimizer: One that has the option `capturable`.
        rates: The rate of each group of parameters.

    Examples:
        >>> adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> with capturable(adam, [torch.tensor(0.2)]):
        ...     adam.param_groups[0]["lr"], adam.param_groups[0]["capturable"]
        (tensor(0.2000), True)
        >>> adam.param_groups[0]["lr"], adam.param_groups[0]["capturable"]
        (0.1, False)
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
    """Launch on another stream of a CUDA device, between what came before and what comes after.

    Examples:
        >>> with beside(torch.device("cpu")):  # has no streams
        ...     torch.ones(2).sum().item()
        2.0
    """
    if device.type != "cuda":
        yield
        return
    here, other = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    other.wait_stream(here)
    with torch.cuda.stream(other):
        yield
    here.wait_stream(other)


def record(body: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the current CUDA device, without running it.

    Args:
        body: Must not wait for the device.

    Returns:
        What replays it.

    Examples:
        >>> callable(record)
        True
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile; TensorBoard's doesn't, a user's could.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph.replay
