"""random: free cells only, as many as asked for, the same in every process, every set as likely as any other."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.selectors.background import background_mask

SHAPE = (24, 40)
TOKEN = hashlib.md5(b"a frame").hexdigest()
KNOWN = [1, 8, 16, 47, 51, 59]
REPOSITORY = Path(__file__).resolve().parents[3]
DRAW = """
import numpy as np
from pipeline.selectors.background import background_mask
print(np.flatnonzero(background_mask(np.zeros((24, 40)), {token!r}, 9, 4)).tolist())
"""


def picked_at(seed: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(size=SHAPE) * (rng.uniform(size=SHAPE) < share)).astype(np.float32)


def slow_draw(picked: np.ndarray, token: str, cells: int, seed: int) -> set[int]:
    """The free cells by their lots, read from the hash eight bytes at a time."""
    stream = hashlib.shake_256(f"{seed}/{token}".encode()).digest(8 * picked.size)
    lots = {cell: int.from_bytes(stream[8 * cell : 8 * cell + 8], "little") for cell in range(picked.size)}
    free = [cell for cell in range(picked.size) if picked.flat[cell] == 0]
    return set(sorted(free, key=lots.__getitem__)[:cells])


@pytest.mark.parametrize(("share", "cells"), [(0.0, 50), (0.5, 200), (0.99, 3)])
def test_the_draw_equals_the_slow_one(share: float, cells: int) -> None:
    picked = picked_at(1, share)
    mask = background_mask(picked, TOKEN, cells, 3)
    assert set(np.flatnonzero(mask).tolist()) == slow_draw(picked, TOKEN, cells, 3)
    assert mask.sum() == cells and mask.dtype == np.float32 and set(np.unique(mask)) == {0, 1}
    assert not (mask * picked).any()


def test_fewer_free_cells_than_asked_for_are_all_taken() -> None:
    picked = picked_at(2, 0.95)
    np.testing.assert_array_equal(background_mask(picked, TOKEN, 10**8), picked == 0)
    assert not background_mask(np.ones(SHAPE), TOKEN, 5).any()


def test_seed_and_token_change_the_draw_and_nothing_else_does() -> None:
    free = np.zeros(SHAPE)
    draws = [background_mask(free, token, 40, seed).tobytes() for token in (TOKEN, TOKEN[::-1]) for seed in (0, 1)]
    assert len(set(draws)) == 4
    assert background_mask(free, TOKEN, 40, 0).tobytes() == draws[0]


def test_more_cells_add_to_a_draw_and_a_picked_cell_changes_one() -> None:
    free = np.zeros(SHAPE)
    few, many = (background_mask(free, TOKEN, n) for n in (30, 31))
    assert (many >= few).all()
    taken = free.copy()
    taken.flat[np.flatnonzero(few)[0]] = 1
    assert (background_mask(taken, TOKEN, 30) != few).sum() == 2


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    here = np.flatnonzero(background_mask(np.zeros(SHAPE), TOKEN, 9, 4)).tolist()
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(token=TOKEN)],
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(here)


def test_a_known_draw_stays_what_it_is() -> None:
    """Stores are byte-identical when written again, so the draw is part of the format."""
    assert np.flatnonzero(background_mask(np.zeros((8, 8)), "0" * 32, 6, 0)).tolist() == KNOWN


def test_every_cell_is_as_likely_as_any_other() -> None:
    """400 draws of 96 of 960 cells: each cell is drawn 40 times on average, deviation 6."""
    counts = sum(background_mask(np.zeros(SHAPE), f"{i:032x}", 96) for i in range(400))
    assert counts.mean() == 40 and 4.5 < counts.std() < 7.5 and counts.min() > 10 and counts.max() < 75
