from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import ConfigError
from trainer.partition import micro_parts, padded, rank_part, worker_of


@given(st.integers(0, 60), st.integers(1, 20))
def test_parts_of_all_ranks_are_the_batch_in_order_and_differ_by_one_at_most(size: int, world: int) -> None:
    parts = [rank_part(size, rank, world) for rank in range(world)]
    assert np.concatenate([part.of(np.arange(size)) for part in parts]).tolist() == list(range(size))
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 7))
def test_micro_batches_are_as_many_on_every_rank_and_are_its_part(size: int, world: int, micro: int) -> None:
    values = np.arange(size)
    lists = [micro_parts(size, rank, world, micro) for rank in range(world)]
    assert {len(parts) for parts in lists} == {ceil(ceil(size / world) / micro)}
    for rank, parts in enumerate(lists):
        assert all(part.size <= micro for part in parts)
        joined = np.concatenate([part.of(values) for part in parts])
        assert joined.tolist() == rank_part(size, rank, world).of(values).tolist()


def test_a_rank_without_part_runs_on_a_dummy_of_weight_zero() -> None:
    parts = [padded(rank_part(2, rank, 3)) for rank in range(3)]
    assert [(part.of(np.array([8, 9])).tolist(), weight.tolist()) for part, weight in parts] == [
        ([8], [0.0]),
        ([8], [1.0]),
        ([9], [1.0]),
    ]


@pytest.mark.parametrize(("rank", "world"), [(3, 3), (-1, 2), (0, 0)])
def test_a_rank_that_there_is_not_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match=f"rank {rank} of {world}"):
        rank_part(8, rank, world)


def test_workers_take_turns() -> None:
    assert [worker_of(step, 3) for step in range(5)] == [0, 1, 2, 0, 1]
