"""A permutation that keeps shards together: blocks of a list are shuffled, and entries within a window of blocks.

For stores that are read over a network, or from disks that seek: at any time entries come from the few shards of one
window, and with blocks of whole shards an epoch opens each shard once. Bad where a shard holds alike frames and the
window is small: entries of one shard stay within a window's length of each other. Any slice costs the windows it lies
in, so a run starts anywhere at once, and nothing of the list's size is kept (beside 8 bytes a block).
"""

from __future__ import annotations

import numpy as np

_BLOCKS, _WITHIN = 4, 5  # these streams apart from those of `trainer.order`


def block_offsets(shard: np.ndarray, frames: int = 0) -> np.ndarray:
    """Blocks of a list whose entries lie in the shards `shard` (N,), each shard's entries together.

    A block is at most `frames` entries of one shard, or all of them for 0. Returns offsets (blocks + 1,) int64: block
    b is entries offsets[b] .. offsets[b + 1].
    """
    frames = min(frames, len(shard))
    borders = np.flatnonzero(np.diff(shard)) + 1
    starts = np.concatenate([np.zeros(min(len(shard), 1), np.int64), borders])
    sizes = np.diff(np.append(starts, len(shard)))
    pieces = -(-sizes // frames) if frames else np.ones_like(sizes)
    first = np.cumsum(pieces) - pieces  # of each shard's pieces, its number among all
    within = np.arange(int(pieces.sum())) - np.repeat(first, pieces)
    return np.append(np.repeat(starts, pieces) + within * frames, len(shard)).astype(np.int64)


def block_order(offsets: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """The whole permutation (N,) int64, as `BlockOrder` gives it slice by slice: the plain version, for tests and for
    reading. Pure.

    Blocks are shuffled and dealt into ceil(blocks / window) windows of equal numbers (to one) of blocks; the entries of
    a window are shuffled among themselves.
    """
    blocks = len(offsets) - 1
    windows = -(-blocks // window)
    shuffled = _generator(_BLOCKS, seed, epoch).permutation(blocks)
    out = [np.zeros(0, np.int64)]
    for number in range(windows):
        members = shuffled[number * blocks // windows : (number + 1) * blocks // windows]
        entries = np.concatenate([np.arange(offsets[block], offsets[block + 1]) for block in members])
        out.append(_generator(_WITHIN, seed, epoch, number).permutation(entries))
    return np.concatenate(out)


class BlockOrder:
    """`block_order`, any slice of it at once. offsets: as `block_offsets` gives them; window: blocks, at least 1.

    Safe to share between threads: the window last made is kept, and one thread may replace another's.
    """

    def __init__(self, offsets: np.ndarray, window: int, seed: int, epoch: int) -> None:
        self._offsets, self._key = offsets, (seed, epoch)
        blocks = len(offsets) - 1
        windows = -(-blocks // window)
        self._shuffled = _generator(_BLOCKS, seed, epoch).permutation(blocks)
        self._first = np.arange(windows + 1) * blocks // max(windows, 1)  # of each window, its first shuffled block
        ends = np.cumsum(np.concatenate([[0], np.diff(offsets)[self._shuffled]]))
        self._starts = ends[self._first]  # of each window, its first entry
        self._last: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def windows(self, start: int, stop: int) -> range:
        """The windows in which the entries start .. stop lie: together they come from at most `window` blocks, and so
        shards, for each of these."""
        if start >= stop:
            return range(0)
        low, high = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        return range(int(low), int(high) + 1)

    def entries(self, start: int, stop: int) -> np.ndarray:
        """Entries start .. stop of the order, (stop - start,) int64, fewer at its end."""
        start, stop = min(start, len(self)), min(stop, len(self))
        parts = [np.zeros(0, np.int64)]
        for number in self.windows(start, stop):
            begin = int(self._starts[number])
            parts.append(self._window(number)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def _window(self, number: int) -> np.ndarray:
        known, entries = self._last
        if known != number:
            members = self._shuffled[self._first[number] : self._first[number + 1]]
            joined = np.concatenate([np.arange(self._offsets[block], self._offsets[block + 1]) for block in members])
            entries = _generator(_WITHIN, *self._key, number).permutation(joined)
            self._last = (number, entries)
        return entries


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
