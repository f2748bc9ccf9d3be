"""view: a cell counts where its upright line meets the camera's frustum, as clipping that line in the camera says."""

from __future__ import annotations

import numpy as np
import pytest

from cache.frame import Camera
from cache.grid import BevGrid
from pipeline.selectors.view import view_mask
from tests.pipeline.selectors.scenes import GRID, SQUARE, some_camera, turned_map

LONG = BevGrid(-8, 72, -40, 40, 1.0)


def random_camera(rng: np.random.Generator) -> Camera:
    return some_camera(rng.uniform(-7, 7), place=tuple(rng.normal(0, 2, 3)), pitch=rng.uniform(-0.6, 0.6))


def slow_view(camera: Camera, grid: BevGrid, near: float, far: float, z_min: float, z_max: float) -> np.ndarray:
    """Each line from (x, y, z_min) to (x, y, z_max) is brought into the camera and clipped by the frustum's six planes,
    one after the other (Cyrus and Beck)."""
    fx, fy, cx, cy = (float(camera.intrinsic[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    planes = [  # normals into the frustum, and offsets: n . p + d >= 0
        (np.array([fx, 0, cx]), 0.0),
        (np.array([-fx, 0, camera.width - cx]), 0.0),
        (np.array([0, fy, cy]), 0.0),
        (np.array([0, -fy, camera.height - cy]), 0.0),
        (np.array([0, 0, 1.0]), -near),
        (np.array([0, 0, -1.0]), far),
    ]
    mask = np.zeros(grid.shape, np.float32)
    for row in range(grid.height):
        for col in range(grid.width):
            x, y = grid.x_min + (col + 0.5) * grid.cell_m, grid.y_min + (row + 0.5) * grid.cell_m
            a, b = ((camera.lidar_to_camera @ np.array([x, y, z, 1.0]))[:3] for z in (z_min, z_max))
            first, last = 0.0, 1.0
            for normal, offset in planes:
                at_a, at_b = float(normal @ a + offset), float(normal @ b + offset)
                if at_a < 0 and at_b < 0:
                    first, last = 1.0, 0.0
                elif at_a < 0:
                    first = max(first, at_a / (at_a - at_b))
                elif at_b < 0:
                    last = min(last, at_a / (at_a - at_b))
            mask[row, col] = first <= last
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_equals_clipping_each_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    camera = random_camera(rng)
    bounds = {"near": rng.uniform(0.2, 3), "far": rng.uniform(4, 30), "z_min": rng.uniform(-4, 0), "z_max": 1.5}
    mask = view_mask([camera], GRID, **bounds)
    np.testing.assert_array_equal(mask, slow_view(camera, GRID, **bounds))
    assert mask.dtype == np.float32 and 0 < mask.sum() < mask.size


def test_where_some_height_is_in_the_picture_the_cell_counts_and_only_there() -> None:
    """By projecting 400 heights a cell. Between two of them an edge of the frustum may slip through."""
    camera = random_camera(np.random.default_rng(9))
    xy = np.repeat(GRID.centres().reshape(-1, 2), 400, axis=0)
    z = np.tile(np.linspace(-2, 1, 400), len(xy) // 400)
    p = np.concatenate([xy, z[:, None], np.ones((len(z), 1))], axis=1) @ camera.lidar_to_camera[:3].T
    u, v = (p @ camera.intrinsic.T)[:, :2].T / p[:, 2]
    seen = (p[:, 2] >= 1) & (p[:, 2] <= 8) & (u >= 0) & (u <= 160) & (v >= 0) & (v <= 90)
    sampled = seen.reshape(*GRID.shape, 400).any(axis=-1)
    mask = view_mask([camera], GRID, near=1, far=8, z_min=-2, z_max=1) > 0
    assert not (sampled & ~mask).any() and (mask & ~sampled).sum() <= 3


def test_a_level_camera_sees_a_wedge_between_its_depths() -> None:
    mask = view_mask([some_camera(0.0)], LONG)
    x, y = np.moveaxis(LONG.centres(), -1, 0)
    np.testing.assert_array_equal(mask, (x >= 2) & (x <= 58) & (np.abs(y) <= 0.64 * x))
    high = view_mask([some_camera(0.0)], LONG, z_min=5.0, z_max=9.0, far=1000)  # seen from x = 5 / 0.36 = 13.9 m on
    np.testing.assert_array_equal(high, (x >= 5 / 0.36) & (np.abs(y) <= 0.64 * x))


def test_several_cameras_are_the_union_and_a_turn_turns_the_mask() -> None:
    one, two = some_camera(0.3), some_camera(0.3 + np.pi / 2)
    first, second = (view_mask([camera], SQUARE) for camera in (one, two))
    np.testing.assert_array_equal(second, turned_map(first))
    np.testing.assert_array_equal(view_mask([one, two], SQUARE), np.maximum(first, second))


def test_a_picture_of_another_size_sees_the_same() -> None:
    small = some_camera(0.5, pitch=0.2)
    intrinsic = np.diag([10.0, 10, 1]) @ small.intrinsic
    large = Camera("CAM_FRONT", 1600, 900, 0, intrinsic, small.lidar_to_camera)
    np.testing.assert_array_equal(view_mask([small], GRID), view_mask([large], GRID))


def test_a_camera_at_the_sky_sees_no_cell_and_one_at_the_ground_those_below_it() -> None:
    down, up = (some_camera(0.0, place=(0.01, 0.01, 0), pitch=angle) for angle in (np.pi / 2, -np.pi / 2))
    bounds = {"near": 1.0, "far": 4.0, "z_min": -4.0, "z_max": 0.0}
    assert not view_mask([up], GRID, **bounds).any()
    mask = view_mask([down], GRID, **bounds)
    x, y = np.moveaxis(GRID.centres() - 0.01, -1, 0)
    np.testing.assert_array_equal(mask, (np.abs(x) <= 0.36 * 4) & (np.abs(y) <= 0.64 * 4))
