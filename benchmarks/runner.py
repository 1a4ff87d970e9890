"""The rules of measuring, kept in one place.

Ways to do the same (arms) are timed in one process, in turns, the order reversed in every other
round, after it is seen that they agree. On the CPU counted is the time of one thread (and of worker
processes, where an arm has some), which neighbours hardly change; on CUDA the time between two
events, with inputs that rotate beyond the L2 cache. The first call, which warms up and may compile,
is a figure of its own.
"""

import ctypes
import importlib
import multiprocessing
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.rows import Row, Run, Spread, Timing

Size = Literal["smallest", "small", "full"]
Call = Callable[[int], object]
"""One call of an arm; the number of the call chooses among rotating inputs."""
V = TypeVar("V")


class Timed(NamedTuple):
    """What an arm returns that times itself, such as a whole run with its preparations apart."""

    seconds: float
    value: object


@dataclass(frozen=True)
class Arm:
    """One way to do it.

    `tolerance` is the largest difference from what ours returns, None where there is nothing to
    compare, and then `note` says why. `refusals` are errors that mean it can't be done this way.
    """

    name: str
    call: Call
    tolerance: float | None = 0.0
    note: str = ""
    refusals: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Case:
    """What to measure: ours first, then its peers, and those left out with the reason."""

    name: str
    unit: str
    items: int
    arms: list[Arm]
    useful_bytes: int = 0
    flop: int = 0
    dtype: torch.dtype = torch.float32
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """On which device to measure, how much, how long, and with which data.

    `compile_peers` also tries others' code under torch.compile, which takes its time.
    """

    device: torch.device
    size: Size = "small"
    deadline: float = float("inf")
    data: Path | None = None
    seeds: tuple[int, ...] = (0,)
    configs: tuple[str, ...] = ()
    compile_peers: bool = True

    def pick(self, smallest: V, small: V, full: V) -> V:
        """Choose by size."""
        return {"smallest": smallest, "small": small, "full": full}[self.size]

    @property
    def on_cuda(self) -> bool:
        """Tell whether this is a GPU."""
        return self.device.type == "cuda"

    def rotations(self, input_bytes: int) -> int:
        """Return how many sets of inputs exceed the L2 cache twice; two on the CPU."""
        if not self.on_cuda:
            return 2
        cache: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(64, max(2, 2 * cache // max(1, input_bytes) + 1))

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second, read and written, that a copy moves."""
        source = torch.randint(0, 255, (self.pick(1 << 24, 1 << 26, 1 << 27),), dtype=torch.uint8)
        source = source.to(self.device).repeat(16 if self.on_cuda else 1)
        target = torch.empty_like(source)
        return 2 * source.numel() / self._quickest(lambda _: target.copy_(source))

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOP a second of a large matrix product, measured once."""
        known: dict[torch.dtype, float] = self.__dict__.setdefault("_matmul_rates", {})
        if dtype not in known:
            side = 8192 if self.on_cuda else self.pick(256, 1024, 1024)
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            known[dtype] = 2 * side**3 / self._quickest(lambda _: a @ b)
        return known[dtype]

    def _quickest(self, call: Call) -> float:
        call(0)
        return min(seconds_of(call, 0, 3, self.device) for _ in range(5))

    def floor_seconds(self, case: Case) -> float | None:
        """Return the least time that the bytes and the FLOP of a case can take."""
        limits = []
        if case.useful_bytes:
            limits.append(case.useful_bytes / self.copy_rate)
        if case.flop:
            limits.append(case.flop / self.matmul_rate(case.dtype))
        return max(limits, default=None)


def measure(question: str, case: Case, setting: Setting) -> Row:
    """See that the arms agree, time them in turns, and return the row."""
    run = run_facts(setting)
    with single_thread():
        firsts, differences, skipped = first_calls(case, setting)
        arms = [arm for arm in case.arms if arm.name in firsts]
        peaks, once = {}, {}
        for arm in arms:
            peaks[arm.name], once[arm.name] = peak_mb(arm.call, setting.device)
        seconds = rounds_of(arms, once, setting)
        floor = setting.floor_seconds(case)
    ours, *peers = arms
    timings = [
        Timing(arm.name, spread(seconds[arm.name]), firsts[arm.name], peaks[arm.name], arm.note)
        for arm in arms
    ]
    return Row(
        question=question,
        case=case.name,
        size=setting.size,
        run=run,
        unit=case.unit,
        items=case.items,
        useful_bytes=case.useful_bytes,
        flop=case.flop,
        floor_seconds=floor,
        floor_share=None if floor is None else floor / timings[0].seconds.median,
        arms=timings,
        ratios={
            peer.name: spread(
                [a / b for a, b in zip(seconds[peer.name], seconds[ours.name], strict=True)]
            )
            for peer in peers
        },
        differences=differences,
        skipped=case.skipped | skipped,
    )


def first_calls(
    case: Case, setting: Setting
) -> tuple[dict[str, float], dict[str, float | None], dict[str, str]]:
    """Call each arm once: how long that took, how far it is from ours, and which can't be done."""
    firsts: dict[str, float] = {}
    differences: dict[str, float | None] = {}
    skipped: dict[str, str] = {}
    expected: object = None
    for at, arm in enumerate(case.arms):
        since = time.perf_counter()
        try:
            result = arm.call(0)
        except arm.refusals as error:
            skipped[arm.name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            )
            continue
        synchronize(setting.device)
        firsts[arm.name] = time.perf_counter() - since
        if at == 0:
            expected = result
            continue
        differences[arm.name] = None
        if arm.tolerance is not None:
            apart = differences[arm.name] = difference(result, expected)
            assert apart <= arm.tolerance, (
                f"{case.name}: {arm.name} differs by {apart} from {case.arms[0].name}"
            )
    return firsts, differences, skipped


def rounds_of(arms: list[Arm], once: dict[str, float], setting: Setting) -> dict[str, list[float]]:
    """Time the arms in turns until the rounds or the case's own time are over; three at least.

    Args:
        arms: Ours and its peers.
        once: About how long a call of each takes.
        setting: How many rounds.
    """
    least = 0.002 if setting.on_cuda else setting.pick(0.001, 0.02, 0.05)
    most_rounds, budget = setting.pick(3, 9, 21), setting.pick(1.0, 6.0, 30.0)
    repeats = {
        name: max(1, min(1000, round(least / max(seconds, 1e-7)))) for name, seconds in once.items()
    }
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    since = time.perf_counter()
    for turn in range(most_rounds):
        if turn >= 3 and time.perf_counter() - since > budget:
            break
        for arm in arms if turn % 2 == 0 else reversed(arms):
            times = repeats[arm.name]
            seconds[arm.name].append(seconds_of(arm.call, turn * times, times, setting.device))
    return seconds


def seconds_of(call: Call, turn: int, repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, on the mean of some."""
    # Results are dropped at once, as a training loop would: kept, each took fresh memory.
    results = (call(at) for at in range(turn, turn + repeats))
    own = (result.seconds for result in results if isinstance(result, Timed))
    if device.type == "cuda":
        begin, end = (as_any(torch.cuda.Event)(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        own_seconds = list(own)
        end.record()
        end.synchronize()
        measured = float(begin.elapsed_time(end)) / 1e3
    else:
        since = cpu_seconds()
        own_seconds = list(own)
        measured = cpu_seconds() - since
    return (sum(own_seconds) if own_seconds else measured) / repeats


def cpu_seconds() -> float:
    """Return the CPU time of this thread, of the worker processes there are, and of those gone."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = multiprocessing.active_children()
    # On Linux this is the clock of another process: the second field is CPUCLOCK_SCHED.
    alive = sum(time.clock_gettime(~worker.pid << 3 | 2) for worker in workers if worker.pid)
    return time.thread_time() + alive + gone.ru_utime + gone.ru_stime


def process_clock(device: torch.device) -> float:
    """Return the CPU time of all threads of this process; on CUDA the time, with nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def synchronize(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute in one thread, in torch and in what else multiplies matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def difference(result: object, expected: object) -> float:
    """Return the largest difference of two results: tensors, arrays or numbers."""
    values = (one.value if isinstance(one, Timed) else one for one in (result, expected))
    a, b = (torch.as_tensor(as_any(value)).detach().cpu() for value in values)
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def spread(values: list[float]) -> Spread:
    """Return the median and the quartiles."""
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    low, median, high = quantiles.tolist()
    return Spread(median, low, high, len(values))


def peak_mb(call: Call, device: torch.device) -> tuple[float | None, float]:
    """Return the most MB that a call holds beyond what was held, if known, and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        seconds = seconds_of(call, 1, 1, device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6, seconds
    known = forget_peak()
    before = status_kilobytes("VmRSS") if known else 0
    seconds = seconds_of(call, 1, 1, device)
    return max(0, status_kilobytes("VmHWM") - before) / 1e3 if known else None, seconds


def forget_peak() -> bool:
    """Give back what is free, and begin the process's peak at what it holds now; Linux only."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    clear = Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        return False
    clear.write_text("5")
    return True


def status_kilobytes(name: str) -> int:
    """Return a line of this process's status: `VmRSS` is held now, `VmHWM` was at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def run_facts(setting: Setting, threads: int = 1) -> Run:
    """Return what the figures of a run that begins now depend on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(
        git, check=False, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    names = ("torch", "lightning", "kornia", "numpy", "sklearn", "onnxruntime", "torchvision")
    versions = {name: str(module.__version__) for name in names if (module := optional(name))}
    return Run(
        commit=commit.stdout.strip() or "unknown",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        device=torch.cuda.get_device_name(setting.device) if setting.on_cuda else "cpu",
        processor=processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        load=list(os.getloadavg()),
        versions={"python": platform.python_version(), **versions},
    )


def processor() -> str:
    """Return the model of the CPU, and its widest vectors."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def optional(name: str) -> ModuleType | None:
    """Return a module that may be missing, or may not fit the torch that is installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError):
        return None


NOT_INSTALLED = "not installed"


def compile_errors() -> tuple[type[Exception], ...]:
    """Return what torch.compile raises where it can't compile somebody else's code."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def byte_size(*tensors: Tensor) -> int:
    """Return how many bytes tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def as_any(value: object) -> Any:
    """Return a value without its type, for modules that have none."""
    return value
