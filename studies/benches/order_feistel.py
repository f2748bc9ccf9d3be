"""The order that was not taken, for comparison: a permutation computed entry by entry, of which nothing is stored.

A Feistel network over the next even power of two (Luby and Rackoff 1988), walked on where it leads beyond the list
(Black and Rogaway 2002). Four rounds are no cipher; for a shuffle they do. No memory, any entry at once; but each step
pays for what a stored permutation pays once an epoch.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 4


def feistel_entries(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """The entries at `positions` (k,) of a permutation of n, (k,) int64. Pure."""
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence((7, seed, epoch)).generate_state(ROUNDS, np.uint64)
    out = positions.astype(np.uint64)
    walking = np.ones(len(out), bool)
    while walking.any():
        left, right = out[walking] >> np.uint64(half), out[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        out[walking] = (left << np.uint64(half)) | right
        walking = out >= n
    return out.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
