"""What bench memory calls flat, on made-up series; that its pieces measure and draw."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from studies.benches.memory import KINDS, draw, judged, lasting, theil_sen
from studies.benches.resident import peak_resident, resident
from studies.benches.step_pair import PAIRS, recipe_of

STEPS = 30


def series(growth_mb: float, noise_mb: float = 5.0, warm_up_mb: float = 0.0) -> list[int]:
    """Three epochs around 500 MB that grow by so much an epoch; warm_up: what the first has more at its beginning."""
    rng = np.random.default_rng(0)
    step = np.arange(3 * STEPS)
    mb = 500 + growth_mb * step / STEPS + rng.normal(0, noise_mb, len(step)) - warm_up_mb * (step < 5)
    return [int(value * 1e6) for value in mb]


def test_noise_and_warm_up_are_flat_and_growth_is_not() -> None:
    assert judged(series(0.0), STEPS)["flat"]
    assert judged(series(0.0, warm_up_mb=300.0), STEPS)["flat"]
    assert judged(series(-30.0), STEPS)["flat"]
    grown = judged(series(25.0), STEPS)
    assert not grown["flat"] and grown["slope"] == pytest.approx(0.047, abs=0.01)
    late = series(0.0)
    late[2 * STEPS :] = [value + 40_000_000 for value in late[2 * STEPS :]]
    assert not judged(late, STEPS)["flat"]


def test_a_single_jump_does_not_move_the_slope() -> None:
    values = np.arange(20.0)
    values[7] = 1000.0
    assert theil_sen(values) == pytest.approx(1.0)


def test_memory_is_read_and_drawn(tmp_path: Path) -> None:
    before = resident()
    with mmap.mmap(-1, 160_000_000) as held:  # fresh pages: an array may lie in memory that was freed and kept
        np.frombuffer(held, np.uint8)[:] = 1
        assert resident() - before > 0.9 * len(held)
    assert peak_resident() >= resident() - 2**20
    out = {"epochs": 3, "steps_an_epoch": STEPS} | {kind: judged(series(0.0), STEPS) for kind in KINDS}
    draw(out, tmp_path / "images" / "memory.png")
    assert (tmp_path / "images" / "memory.png").read_bytes()[:4] == b"\x89PNG"


def test_the_run_lasts_so_many_epochs() -> None:
    recipe = lasting(recipe_of(PAIRS["tiny"]), 2, 3)
    assert (recipe.train.epochs, recipe.train.steps, recipe.train.batch) == (3, None, 2)
