"""Who is trained on when: pure functions from (seed, epoch, number of entries) to an order, and from it to a step's
entries.

Nothing here keeps state, so any process on any machine that knows the seed and the step computes the same batch. Good
for lists that fit in memory (a permutation of a million entries: 15 ms, 8 MB); it does not keep shard locality, which
`trainer.blocks` does.
"""

from __future__ import annotations

import numpy as np

# the first word of the seed keeps the streams apart: order, augmentation (2), the draw of unlabelled frames, the order
# of blocks (4) and what is within a window of them (5), the draw of balanced frames (6)
_ORDER, _UNLABELLED = 1, 3


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation (n,) int64 of an epoch's list: every entry exactly once. Pure; seed and epoch are >= 0."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_ORDER, seed, epoch))))
    return generator.permutation(n)


def epoch_list(seed: int, epoch: int, labelled: int, unlabelled: int, drawn: int) -> np.ndarray:
    """An epoch's entries in order (labelled + drawn,) int64: every labelled one, 0 .. labelled - 1, and `drawn` of the
    unlabelled ones, which follow them, none twice. Pure.

    Unlabelled ones are drawn so that ceil(unlabelled / drawn) epochs use each at least once and at most twice. Without
    any the order is `epoch_order`'s.
    """
    order = epoch_order(seed, epoch, labelled + drawn)
    if not drawn:
        return order
    return np.concatenate([np.arange(labelled), labelled + unlabelled_draw(seed, epoch, unlabelled, drawn)])[order]


def unlabelled_draw(seed: int, epoch: int, unlabelled: int, drawn: int) -> np.ndarray:
    """Which of 0 .. unlabelled - 1 the epoch draws, (drawn,) int64, none twice, as `epoch_list` says. Pure."""
    if not drawn:
        return np.zeros(0, np.int64)
    turn, part = divmod(epoch, -(-unlabelled // drawn))
    shuffled = np.random.Generator(np.random.Philox(np.random.SeedSequence((_UNLABELLED, seed, turn))))
    return shuffled.permutation(unlabelled)[(part * drawn + np.arange(drawn)) % unlabelled]


def steps_per_epoch(n: int, batch: int, drop_last: bool = False) -> int:
    """Steps that use each of n entries once; the last may be short, or, with `drop_last`, is left out where it is."""
    return n // batch if drop_last else -(-n // batch)


def step_entries(order: np.ndarray, step: int, batch: int) -> np.ndarray:
    """The entries (<= batch,) of step `step` of the epoch whose order this is: a fixed slice.

    Over the steps of an epoch each entry comes exactly once, and the last batch may be short; beyond the last step the
    slice is empty.
    """
    return order[step * batch : (step + 1) * batch]
