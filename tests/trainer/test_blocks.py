from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.blocks import BlockOrder, block_offsets, block_order

SIZES = st.lists(st.integers(1, 25), max_size=12)
SEEDS = st.integers(0, 2**40)


def shards_of(sizes: list[int]) -> np.ndarray:
    """Shard numbers as an index has them; some shards have no frame of the list."""
    return np.repeat(3 * np.arange(len(sizes)), sizes)


@given(SIZES, st.integers(0, 9))
def test_blocks_are_pieces_of_one_shard_each_and_hold_every_entry_once(sizes: list[int], frames: int) -> None:
    shard = shards_of(sizes)
    offsets = block_offsets(shard, frames)
    expected = [0]  # plainly: a shard after another, cut from its front
    for size in sizes:
        start = expected[-1]
        expected += [start + min(cut, size) for cut in range(frames or size, size + (frames or size), frames or size)]
    assert offsets.tolist() == expected
    for low, high in pairwise(offsets.tolist()):
        assert len(set(shard[low:high].tolist())) == 1
        assert not frames or high - low <= frames


@given(SIZES, st.integers(0, 9), st.integers(1, 6), SEEDS, st.integers(0, 500), st.data())
def test_any_slice_is_the_whole_order_s_and_every_entry_comes_once(
    sizes: list[int], frames: int, window: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    offsets = block_offsets(shards_of(sizes), frames)
    whole = block_order(offsets, window, seed, epoch)
    assert sorted(whole.tolist()) == list(range(sum(sizes)))
    order = BlockOrder(offsets, window, seed, epoch)
    assert len(order) == len(whole)
    for _ in range(4):  # forwards, backwards, beyond the end
        start = data.draw(st.integers(0, len(whole) + 3))
        stop = data.draw(st.integers(start, len(whole) + 9))
        assert order.entries(start, stop).tolist() == whole[start:stop].tolist()


@given(SIZES, st.integers(0, 9), st.integers(1, 6), SEEDS, st.integers(1, 40))
def test_entries_of_a_slice_come_from_so_many_shards_a_window_and_no_more(
    sizes: list[int], frames: int, window: int, seed: int, batch: int
) -> None:
    shard = shards_of(sizes)
    order = BlockOrder(block_offsets(shard, frames), window, seed, 0)
    lengths: dict[int, int] = {}
    for start in range(0, len(order), batch):
        touched = order.windows(start, min(start + batch, len(order)))
        assert len(set(shard[order.entries(start, start + batch)].tolist())) <= window * len(touched)
    for position in range(len(order)):
        (number,) = order.windows(position, position + 1)
        lengths[number] = lengths.get(number, 0) + 1
    start = 0
    for _, length in sorted(lengths.items()):
        assert len(set(shard[order.entries(start, start + length)].tolist())) <= window
        start += length


@given(SIZES, st.integers(1, 6), SEEDS)
def test_with_blocks_of_whole_shards_a_shard_that_was_left_is_not_opened_again(
    sizes: list[int], window: int, seed: int
) -> None:
    shard = shards_of(sizes)
    order = BlockOrder(block_offsets(shard), window, seed, 0)
    seen: set[int] = set()
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and order.windows(start, stop + 1) == order.windows(start, start + 1):
            stop += 1
        opened = set(shard[order.entries(start, stop)].tolist())
        assert not opened & seen
        seen |= opened
        start = stop


def test_entries_are_shuffled_within_a_window_and_blocks_beyond_it() -> None:
    offsets = block_offsets(np.repeat(np.arange(20), 50))
    first, second = (BlockOrder(offsets, 4, 0, epoch).entries(0, 1000) for epoch in (0, 1))
    shards = [set((part // 50).tolist()) for part in np.split(first, 5)]
    assert all(len(window) == 4 for window in shards)
    assert shards != [set(range(i, i + 4)) for i in range(0, 20, 4)]  # blocks
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05  # entries
    assert first.tolist() != second.tolist()


def test_block_order_of_a_seed_never_changes_between_releases() -> None:
    offsets = block_offsets(np.repeat([0, 1, 2, 3], 3), 2)
    assert offsets.tolist() == [0, 2, 3, 5, 6, 8, 9, 11, 12]
    assert block_order(offsets, 3, 7, 1).tolist() == [2, 11, 3, 6, 4, 0, 1, 7, 9, 5, 8, 10]
