import pytest
import torch

from lightning_bbox.core.errors import BadInput
from lightning_bbox.nn.schedules import Constant, Cosine, OneCycle


def torchs_rates(total, make, rate=0.1):
    """Return the rates of a run under one of PyTorch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < total else None
    return rates


def our_rates(total, schedule, rate=0.1):
    return [rate * schedule.factor(step / (total - 1)) for step in range(total)]


@pytest.mark.parametrize("total", [50, 1_000])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_one_cycle_equals_torchs(total, share):
    expected = torchs_rates(
        total,
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=total, pct_start=share, cycle_momentum=False
        ),
    )
    # PyTorch's peak is step `share * total - 1`, counted from 0.
    warmup = (share * total - 1) / (total - 1)
    assert our_rates(total, OneCycle(warmup)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("total", [20, 1_000])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_torchs(total, final):
    expected = torchs_rates(
        total,
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=total - 1, eta_min=0.1 * final
        ),
    )
    # PyTorch steps recursively, so its last rates carry the rounding of all before.
    assert our_rates(total, Cosine(final)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_one_cycle_begins_peaks_and_ends_where_it_says():
    schedule = OneCycle(0.25, initial=0.1, final=0.01)
    assert schedule.factor(0.0) == pytest.approx(0.1)
    assert schedule.factor(0.25) == pytest.approx(1.0)
    assert schedule.factor(1.0) == pytest.approx(0.01)
    factors = [schedule.factor(step / 400) for step in range(401)]
    assert factors[:101] == sorted(factors[:101])
    assert factors[100:] == sorted(factors[100:], reverse=True)


@pytest.mark.parametrize("schedule", [Cosine(0.1), OneCycle(final=0.1)])
def test_after_the_run_the_last_factor_stays(schedule):
    # Lightning asks for one step more than the run has.
    assert schedule.factor(1.01) == pytest.approx(0.1)


def test_constant_is_constant():
    assert {Constant().factor(step / 10) for step in range(12)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (Cosine, {"final": -0.1}, r"cosine final factor is -0\.1; expected 0 to 1"),
        (Cosine, {"final": 1.1}, r"cosine final factor is 1\.1"),
        (OneCycle, {"warmup": 0.0}, r"one-cycle warmup 0\.0"),
        (OneCycle, {"warmup": 1.0}, r"one-cycle warmup 1\.0"),
        (OneCycle, {"initial": 2.0}, r"initial 2\.0"),
        (OneCycle, {"final": -1.0}, r"final -1\.0: expected 0 to 1"),
    ],
)
def test_impossible_schedules_are_refused(schedule, arguments, message):
    with pytest.raises(BadInput, match=message):
        schedule(**arguments)
