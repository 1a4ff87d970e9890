import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.core.randomness import EpochPlan, keyed_generator, stream_seed


@given(
    num_items=st.integers(1, 40),
    num_draws=st.integers(1, 100),
    num_epochs=st.integers(1, 8),
    seed=st.integers(0, 2**62),
)
def test_after_every_epoch_items_were_used_evenly(num_items, num_draws, num_epochs, seed):
    counts = torch.zeros(num_items, dtype=torch.int64)
    for epoch in range(num_epochs):
        order = EpochPlan(seed, epoch, num_items, num_draws).order
        assert order.shape == (num_draws,)
        counts += order.bincount(minlength=num_items)
        assert counts.max() - counts.min() <= 1


def test_epochs_walk_along_one_sequence_whatever_their_length():
    whole = EpochPlan(7, 0, num_items=10, num_draws=60).order
    parts = [EpochPlan(7, epoch, num_items=10, num_draws=15).order for epoch in range(4)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_plan_is_a_function_of_its_fields():
    first, again = (EpochPlan(3, 2, num_items=50, num_draws=80) for _ in range(2))
    torch.manual_seed(0)
    order, numbers = first.order, first.uniform("jitter", 4)
    torch.manual_seed(1)
    assert torch.equal(again.order, order)
    assert torch.equal(again.uniform("jitter", 4), numbers)


def test_planning_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    plan = EpochPlan(3, 2, num_items=50, num_draws=80)
    assert len(plan.order) == len(plan.uniform("jitter", 4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [EpochPlan(1, 0, 1000, 1000), EpochPlan(0, 1, 1000, 1000)])
def test_another_seed_or_epoch_gives_another_order_and_other_numbers(other):
    plan = EpochPlan(0, 0, 1000, 1000)
    assert (plan.order == other.order).float().mean() < 0.02
    assert (plan.uniform("jitter", 1) == other.uniform("jitter", 1)).float().mean() < 0.02


def test_streams_are_independent():
    plan = EpochPlan(0, 0, 20_000, 20_000)
    jitter, flip = plan.uniform("jitter", 2), plan.uniform("flip", 2)
    position = plan.order.float()[:, None]
    correlation = torch.cat([jitter, flip, position], dim=1).T.corrcoef() - torch.eye(5)
    assert correlation.abs().max() < 0.03  # 4 / sqrt(20,000)


def test_asking_for_one_stream_does_not_change_another():
    plan, other = (EpochPlan(0, 3, 100, 100) for _ in range(2))
    plan.uniform("flip", 2)
    assert torch.equal(plan.uniform("jitter", 4), other.uniform("jitter", 4))


def test_numbers_are_uniform():
    numbers = EpochPlan(0, 0, 1, 50_000).uniform("jitter", 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    rank = (torch.arange(50_000) + 0.5)[:, None] / 50_000
    assert (numbers.sort(dim=0).values - rank).abs().max() < 1.63 / 50_000**0.5  # KS at 1 %


def test_a_samples_numbers_do_not_depend_on_how_many_samples_there_are():
    few, many = (EpochPlan(0, 0, 10, num).uniform("jitter", 3) for num in (10, 1000))
    assert torch.equal(many[:10], few)


def test_keys_are_not_confused_with_one_another():
    keys = [("a", 1, 2), ("a", 12), ("a1", 2), ("a", 1, "2"), ("a", 2, 1)]
    seeds = {stream_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine():
    assert stream_seed("order", 0, 1) == 5235859805464026190
    generator = keyed_generator("order", 0, 1)
    assert generator.initial_seed() == stream_seed("order", 0, 1)
    assert generator.device.type == "cpu"
