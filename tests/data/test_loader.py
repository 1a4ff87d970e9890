from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bbox.data.loader import PlanLoader
from tests.crops import interleaved


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 3), st.booleans())
def test_the_ranks_part_each_global_batch(num_rows, batch_size, world_size, full):
    make = partial(PlanLoader, "test", num_rows, batch_size, full=full)
    loaders = [make(rank, world_size, lambda: (4, 0)) for rank in range(world_size)]
    batches = list(zip(*loaders, strict=True))  # as many for every rank, or gathering hangs
    seen = num_rows - num_rows % batch_size if full else num_rows
    assert len(batches) == -(-seen // batch_size) == len(loaders[0])
    for index, shares in enumerate(batches):
        rows = interleaved([share.rows[share.valid] for share in shares]).tolist()
        assert rows == list(range(seen))[index * batch_size : (index + 1) * batch_size]
        assert all(0 <= row < num_rows for share in shares for row in share.rows.tolist())
        assert {(share.split, share.epoch) for share in shares} == {("test", 4)}
        if full:
            assert all(share.valid.all() for share in shares)
        else:
            assert {len(share.rows) for share in shares} == {-(-batch_size // world_size)}


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
