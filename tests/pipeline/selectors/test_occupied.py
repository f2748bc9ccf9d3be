"""lidar: counts returns a cell as a loop would, within heights, borders below and left included."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache.grid import BevGrid
from pipeline.selectors.occupied import occupied_mask
from tests.pipeline.selectors.scenes import GRID, SQUARE, turned_map


def slow_occupied(cloud: np.ndarray, grid: BevGrid, points: int, z_min: float, z_max: float) -> np.ndarray:
    counts = np.zeros(grid.shape, int)
    for x, y, z in cloud[:, :3].tolist():
        if z_min <= z <= z_max and math.isfinite(x) and math.isfinite(y):
            row, col = math.floor((y - grid.y_min) / grid.cell_m), math.floor((x - grid.x_min) / grid.cell_m)
            if 0 <= row < grid.height and 0 <= col < grid.width:
                counts[row, col] += 1
    return (counts >= points).astype(np.float32)


def a_cloud(seed: int, count: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-12, -8, -4, 0, 0), (12, 8, 4, 255, 0.5), (count, 5)).astype(np.float32)
    cloud[: count // 2] = cloud[: count // 2].round()  # on the borders of cells and heights
    cloud[::97, 0], cloud[1::97, 2], cloud[2::97, 1] = np.nan, np.nan, np.inf
    return cloud


@pytest.mark.parametrize(("points", "z_min", "z_max"), [(1, -5.0, 3.0), (2, -1.0, 2.0), (3, -5.0, 5.0)])
def test_the_mask_equals_the_loop_over_points(points: int, z_min: float, z_max: float) -> None:
    cloud = a_cloud(points)
    mask = occupied_mask(cloud, GRID, points, z_min, z_max)
    np.testing.assert_array_equal(mask, slow_occupied(cloud, GRID, points, z_min, z_max))
    assert mask.dtype == np.float32 and 0 < mask.sum() < mask.size


def test_a_cell_owns_its_lower_borders_and_heights_count_with_their_ends() -> None:
    cloud = np.array([[-10, -6, 1, 0, 0], [10, 0, 1, 0, 0], [0, 6, 1, 0, 0], [0.5, 0, 2, 0, 0], [0.5, 1, 2.01, 0, 0]])
    assert np.argwhere(occupied_mask(cloud, GRID, 1, 1.0, 2.0)).tolist() == [[0, 0], [12, 21]]


def test_moving_and_turning_the_cloud_moves_and_turns_the_mask() -> None:
    cloud = np.random.default_rng(3).uniform(-3, 3, (200, 5))
    moved, turned = cloud.copy(), cloud.copy()
    moved[:, 0] += 4 * SQUARE.cell_m
    turned[:, 0], turned[:, 1] = -cloud[:, 1], cloud[:, 0]
    mask = occupied_mask(cloud, SQUARE)
    np.testing.assert_array_equal(occupied_mask(moved, SQUARE), np.roll(mask, 4, axis=1))
    np.testing.assert_array_equal(occupied_mask(turned, SQUARE), turned_map(mask))


def test_an_empty_cloud_occupies_nothing() -> None:
    assert not occupied_mask(np.zeros((0, 5), np.float32), GRID).any()


def test_without_ground_the_returns_above_it_are_counted_and_no_others() -> None:
    rng = np.random.default_rng(4)
    cloud = np.concatenate([rng.uniform((-12, -8, 0, 0, 0), (12, 8, 0.05, 1, 0), (3000, 5)), a_cloud(5, 200)])
    cloud[3000:, 2] = np.abs(cloud[3000:, 2])
    cloud[:3000, 2] += 0.1 * cloud[:3000, 0] - 1.8
    cloud[3000:, 2] += 0.1 * cloud[3000:, 0] - 1.4
    assert occupied_mask(cloud, GRID).mean() > 0.8
    mask = occupied_mask(cloud, GRID, 2, ground=0.2)
    np.testing.assert_array_equal(mask, slow_occupied(cloud[3000:], GRID, 2, -5.0, 3.0))
    classes = np.where(np.arange(3000) % 7 == 0, 17, 24).astype(np.uint8)  # cars among the road
    known = occupied_mask(cloud, GRID, ground=0.2, lidarseg=classes)
    np.testing.assert_array_equal(known, slow_occupied(np.r_[cloud[:3000:7], cloud[3000:]], GRID, 1, -5.0, 3.0))
    np.testing.assert_array_equal(occupied_mask(cloud, GRID, lidarseg=classes), occupied_mask(cloud, GRID))
