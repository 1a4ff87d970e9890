import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.data.loader import PlanLoader, rank_share
from tests.crops import interleaved


@given(
    num_rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 3),
)
def test_the_ranks_part_each_global_batch(num_rows, batch_size, world_size):
    seen = []
    for batch in range(-(-num_rows // batch_size)):
        shares = [
            rank_share(num_rows, batch_size, batch, rank, world_size).tolist()
            for rank in range(world_size)
        ]
        expected = list(range(batch * batch_size, min((batch + 1) * batch_size, num_rows)))
        assert sorted(itertools.chain(*shares)) == expected
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen += expected
    assert seen == list(range(num_rows))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(24, 8), (29, 8), (9, 9), (20, 6)])
def test_in_training_the_ranks_share_one_and_the_same_full_batch(world_size, num_rows, batch_size):
    loaders = [
        PlanLoader("train", num_rows, batch_size, rank, world_size, lambda: (4, 0), full=True)
        for rank in range(world_size)
    ]
    batches = list(zip(*loaders, strict=True))
    assert len(batches) == num_rows // batch_size == len(loaders[0])
    for index, shares in enumerate(batches):
        rows = interleaved([share.rows for share in shares])
        assert rows.tolist() == list(range(index * batch_size, (index + 1) * batch_size))
        assert all(share.valid.all() for share in shares)
        assert {(share.split, share.epoch) for share in shares} == {("train", 4)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(24, 8), (29, 8), (1, 9), (20, 6)])
def test_in_evaluation_each_row_is_seen_exactly_once(world_size, num_rows, batch_size):
    loaders = [
        PlanLoader("test", num_rows, batch_size, rank, world_size) for rank in range(world_size)
    ]
    batches = list(zip(*loaders, strict=True))  # as many for every rank, or gathering hangs
    assert len(batches) == -(-num_rows // batch_size) == len(loaders[0])
    seen = []
    for index, shares in enumerate(batches):
        assert {len(share.rows) for share in shares} == {-(-batch_size // world_size)}
        rows = [row for share in shares for row in share.rows[share.valid].tolist()]
        first, last = index * batch_size, min((index + 1) * batch_size, num_rows)
        assert sorted(rows) == list(range(first, last))
        assert all(0 <= row < num_rows for share in shares for row in share.rows.tolist())
        seen += rows
    assert sorted(seen) == list(range(num_rows))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_starting_from_a_position_equals_skipping(full, first):
    make = partial(PlanLoader, "train", 29, 8, 1, 2, full=full)
    whole = list(make(position=lambda: (2, 0)))
    rest = list(make(position=lambda: (2, first)))
    assert len(rest) == max(0, len(whole) - first)
    for late, early in zip(rest, whole[first:], strict=True):
        assert (late.split, late.epoch) == (early.split, early.epoch)
        assert torch.equal(late.rows, early.rows)
        assert torch.equal(late.valid, early.valid)


def test_the_position_is_read_when_the_walk_begins():
    position = [0, 0]
    loader = PlanLoader("train", 32, 8, 0, 1, lambda: tuple(position), full=True)
    position[:] = [5, 3]
    assert [(rows.epoch, rows.rows[0].item()) for rows in loader] == [(5, 24)]
    position[:] = [6, 0]
    assert [rows.epoch for rows in loader] == [6] * 4
