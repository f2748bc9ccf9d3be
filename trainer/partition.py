"""Who takes which part of a step: ranks of a global batch, micro-batches of a rank's part, workers of a rank's steps.

Pure arithmetic on counts, so that any process can tell what any other one reads. The global batch does not depend on
the number of ranks; parts of ranks are consecutive and differ by one entry at most; ranks may hold none, and take the
same number of steps and micro-batches as all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """What a rank, or one of its micro-batches, takes of a global batch: entries first .. first + size of it."""

    first: int
    size: int

    def of(self, values: np.ndarray) -> np.ndarray:
        """The part's share of values (global batch, ...)."""
        return values[self.first : self.first + self.size]


def rank_part(size: int, rank: int, world: int) -> Part:
    """Rank `rank`'s part of a global batch of `size`, the last of an epoch often less than the others. ConfigError for
    a rank that there is not."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} of {world}: expected 0 <= rank < world size; check how the run was launched")
    first, end = rank * size // world, (rank + 1) * size // world
    return Part(first, end - first)


def micro_parts(size: int, rank: int, world: int, micro: int) -> list[Part]:
    """A rank's part of a global batch of `size` in micro-batches of at most `micro` entries, for gradient accumulation.

    The list is as long on every rank, since a collective call waits for all of them; its last parts may be empty.
    """
    whole = rank_part(size, rank, world)
    largest = -(-size // world)
    return [
        Part(whole.first + min(start, whole.size), max(min(micro, whole.size - start), 0))
        for start in range(0, largest, micro)
    ]


def padded(part: Part) -> tuple[Part, np.ndarray]:
    """The part with something to run on, and each entry's weight, (entries,) float32: an empty part becomes the global
    batch's first entry with weight 0, so that a rank without work goes through the same collective calls."""
    if part.size:
        return part, np.ones(part.size, np.float32)
    return Part(0, 1), np.zeros(1, np.float32)


def worker_of(step: int, workers: int) -> int:
    """Which of a rank's workers builds its part of global step `step`, counted over all epochs: they take turns."""
    return step % workers
