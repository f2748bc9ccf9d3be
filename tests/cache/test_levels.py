"""Levels: pooling and repeating by hand and by loops; grids that do not go together; a round trip on either grid."""

from __future__ import annotations

import numpy as np
import pytest

from cache.bev import BevEncoding
from cache.cells import scatter_cells
from cache.errors import ConfigError, CorruptError
from cache.grid import BevGrid
from cache.levels import Level, level_ratio, level_weights

MAIN = BevGrid(-8.0, 8.0, -4.0, 4.0, 1.0)  # 8 x 16
BEV = BevEncoding(3, *MAIN.shape, 2)


def on(cell_m: float, **changes: float) -> BevGrid:
    return BevGrid(**{**MAIN.to_dict(), "cell_m": cell_m, **changes})


def test_weights_are_pooled_and_repeated_by_hand() -> None:
    weights = np.array([[[0, 0.5, 0, 0], [0.25, 0, 0, 1]]], np.float32)
    np.testing.assert_array_equal(level_weights(weights, 2), [[[0.5, 1]]])
    np.testing.assert_array_equal(level_weights(weights, 1), weights)
    np.testing.assert_array_equal(level_weights(weights, -2)[0, :2], [[0, 0, 0.5, 0.5, 0, 0, 0, 0]] * 2)


def slowly(weights: np.ndarray, main: BevGrid, level: BevGrid) -> np.ndarray:
    """By the places of the cells' centres alone."""
    out = np.zeros((len(weights), *level.shape), np.float32)
    of_main, of_level = main.centres(), level.centres()
    reach = max(main.cell_m, level.cell_m) / 2
    for r in range(level.height):
        for c in range(level.width):
            near = (np.abs(of_main - of_level[r, c]) < reach).all(axis=-1)
            out[:, r, c] = weights[:, near].max(axis=1)
    return out


@pytest.mark.parametrize("cell_m", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_pooling_equals_the_obvious_way(cell_m: float) -> None:
    rng = np.random.default_rng(3)
    weights = rng.random((2, *MAIN.shape)).astype(np.float32) * (rng.random((2, *MAIN.shape)) < 0.1)
    found = level_weights(weights, level_ratio(MAIN, on(cell_m)))
    np.testing.assert_array_equal(found, slowly(weights, MAIN, on(cell_m)))


@pytest.mark.parametrize("level", [on(1.0, x_max=9.0), on(0.8), on(1.6), on(8 / 3)], ids=str)
def test_grids_that_do_not_go_together_are_refused(level: BevGrid) -> None:
    with pytest.raises(ConfigError, match="expected one range, cells in whole ratios"):
        level_ratio(MAIN, level)


@pytest.mark.parametrize("layout", ["cells", "dense"])
@pytest.mark.parametrize("cell_m", [0.5, 1.0, 2.0])
def test_a_level_comes_back_at_the_cells_that_its_weights_make(cell_m: float, layout: str) -> None:
    rng = np.random.default_rng(4)
    grid = on(cell_m)
    bev = BevEncoding(3, *MAIN.shape, 2, layout=layout)
    level = Level.on("up", 5, grid, MAIN, bev, "A")
    weights = (rng.random((2, *MAIN.shape)) < 0.1).astype(np.float32)
    whole = rng.normal(size=(5, *grid.shape)).astype(np.float32)
    stored = {**bev.encode(np.zeros((3, *MAIN.shape), np.float32), weights), **level.encode(whole, weights)}
    assert ("level_up_index" in stored) == (cell_m != 1.0) and {spec.name for spec in level.fields()} <= set(stored)
    cells = level.to_cells(stored, "here")
    values, kept = scatter_cells(cells, grid.shape)
    pooled = slowly(weights, MAIN, grid)
    np.testing.assert_array_equal(kept, pooled)
    np.testing.assert_array_equal(values, np.where(pooled.any(axis=0), whole.astype(np.float16), 0))
    assert all(size in ("A" if cell_m != 1.0 else "K", "2") for size in level.fields()[-1].shape[:1] if size.isalpha())
    broken = {**stored, level.stored_name("bev_index"): stored[level.stored_name("bev_index")][::-1]}
    with pytest.raises(CorruptError, match="here: cells out of order"):
        level.to_cells(broken, "here")
