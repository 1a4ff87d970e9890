import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_bbox.core.errors import BadInput
from lightning_bbox.models.advice import stopping_advice
from lightning_bbox.nn.schedules import Constant, Cosine, OneCycle, Plateau, RunSchedule
from tests.runs import frozen, scenes, trained_quietly


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


@pytest.mark.parametrize("cycles", [1, 3, 5])
def test_restarts_equal_torchs(cycles):
    length = 20
    expected = torchs_rates(
        cycles * length,
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, length, eta_min=0.01
        ),
    )
    ours = our_rates(cycles * length + 1, Cosine(0.1, cycles=cycles))
    assert ours == pytest.approx([*expected, 0.01])


@pytest.mark.parametrize("schedule", [Constant, Plateau])
def test_a_warm_up_is_a_straight_line(schedule):
    expected = torchs_rates(
        101,
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=20),
    )
    assert our_rates(101, schedule(warmup=0.2, initial=0.25)) == pytest.approx(expected)


@pytest.mark.parametrize("patience", [0, 2])
def test_a_plateau_falls_as_torchs(patience):
    errors = torch.randint(0, 30, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=0.0, min_lr=0.01
    )
    for count, error in enumerate(errors, start=1):
        torchs.step(error)
        fall = Plateau(patience, drop=0.5, least=0.01).fall(errors[:count])
        assert fall == pytest.approx(optimizer.param_groups[0]["lr"])


class Errors(RunSchedule):
    """What validation finds, as a test has it."""

    said = ()

    def see(self, error, schedule):
        super().see(self.said[len(self.errors)], schedule)


def standing(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def test_a_plateau_lowers_the_rate_at_once_and_where_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_bbox.models.regressor.RunSchedule", Errors)
    monkeypatch.setattr(Errors, "said", (3.0, 2.0, 2.0, 1.0, 1.0, 1.0))
    ends = []
    for epochs, checkpoint in ((6, None), (3, None), (6, tmp_path / "half.ckpt")):
        model = frozen(backbone=None, schedule=Plateau(0, drop=0.5), optimizer=standing)
        data = scenes(draws_per_epoch=16, eval_draws=8)
        trainer = trained_quietly(model, data, checkpoint, max_epochs=epochs, log_every_n_steps=1)
        trainer.save_checkpoint(tmp_path / ("half.ckpt" if epochs == 3 else "whole.ckpt"))
        ends.append((trainer.optimizers[0].param_groups[0]["lr"], model.state_dict()))
    assert [rate for rate, _ in ends] == pytest.approx([0.01 / 8, 0.01 / 2, 0.01 / 8])
    assert all(value.equal(ends[2][1][name]) for name, value in ends[0][1].items())


def test_early_stopping_is_warned_of_where_the_rate_would_stay_high():
    stops = [EarlyStopping("val/mae_px", patience=3)]
    for schedule in (OneCycle(), Cosine()):
        (said,) = stopping_advice(stops, schedule)
        assert "brings the learning rate down, and with it the error" in said
    (said,) = stopping_advice(stops, Plateau(patience=3))
    assert "the run ends before the rate falls" in said
    assert stopping_advice(stops, Plateau(patience=2)) == []
    assert stopping_advice(stops, Constant()) == []
    assert stopping_advice([], OneCycle()) == []


def test_a_plateau_without_validation_is_refused():
    with pytest.raises(BadInput, match="Plateau goes by validation, and the run has none"):
        trained_quietly(frozen(schedule=Plateau()), scenes(), max_epochs=1, limit_val_batches=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Constant, {"warmup": 1.0}),
        (Constant, {"warmup": 0.1, "initial": 2.0}),
        (Cosine, {"cycles": 0}),
        (Plateau, {"patience": -1}),
        (Plateau, {"drop": 1.0}),
        (Plateau, {"least": -0.1}),
    ],
)
def test_schedules_out_of_range_are_refused(kind, options):
    with pytest.raises(BadInput, match="expected"):
        kind(**options)
