"""The LiDAR mask without ground on a real keyframe: objects stay, the road goes, by a fit that is the test's own."""

from __future__ import annotations

import numpy as np
import pytest

from cache.coverage import Coverage
from cache.frame import rotation_matrix
from cache.grid import BevGrid
from cache.store import FrameStore
from pipeline.coverage import coverage_weights
from pipeline.evidence import evidence_of
from pipeline.frames import FrameOptions, cache_frames
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

pytestmark = needs_real_data
ROAD_REACH_M = 40.0
PATCH_M = 2.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    cache = tmp_path_factory.mktemp("real")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=0)
    cache_frames(REAL_ROOT, "v1.0-mini", cache, options=options, workers=1)
    return FrameStore(cache / "frames")


def inside_boxes(points: np.ndarray, boxes_global: np.ndarray, lidar_to_global: np.ndarray) -> np.ndarray:
    """(P,) bool: which canonical points lie in any global box."""
    there = points[:, :3].astype(np.float64) @ lidar_to_global[:3, :3].T + lidar_to_global[:3, 3]
    inside = np.zeros(len(points), bool)
    for box in boxes_global:
        local = (there - box[:3]) @ rotation_matrix(box[6:10])
        inside |= (np.abs(local) <= box[[4, 3, 5]] / 2).all(axis=1)
    return inside


def near_road(points: np.ndarray) -> np.ndarray:
    """(P,) bool: returns within 0.2 m of a quadratic through the low returns of a grid, where it holds.

    Knows nothing of the mask's own fit: one polynomial, Cauchy's weights, started at the LiDAR's mounting height.
    """
    xyz = points[:, :3].astype(np.float64)
    held = (np.abs(xyz[:, :2]) < ROAD_REACH_M).all(axis=1)
    cell = np.floor(xyz[held, :2] / PATCH_M).astype(int)
    low = []
    for patch in np.unique(cell, axis=0):
        inside = xyz[held][(cell == patch).all(axis=1)]
        if len(inside) >= 3:
            low.append(inside[np.argsort(inside[:, 2])[len(inside) // 10]])
    x, y, z = np.array(low).T

    def terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x / ROAD_REACH_M, y / ROAD_REACH_M
        return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)

    weights = (np.abs(z + 1.84) < 1).astype(float)
    for _ in range(60):
        root = np.sqrt(weights)
        factors = np.linalg.lstsq(terms(x, y) * root[:, None], z * root, rcond=None)[0]
        weights = 1 / (1 + ((z - terms(x, y) @ factors) / 0.08) ** 2)
    return held & (np.abs(xyz[:, 2] - terms(xyz[:, 0], xyz[:, 1]) @ factors) <= 0.2)


def at_points(mask: np.ndarray, points: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """What the mask says at each point (P,), and which points are on its grid."""
    col = np.floor((points[:, 0].astype(np.float64) - grid.x_min) / grid.cell_m).astype(int)
    row = np.floor((points[:, 1].astype(np.float64) - grid.y_min) / grid.cell_m).astype(int)
    on_grid = (col >= 0) & (col < grid.width) & (row >= 0) & (row < grid.height)
    return (mask[np.where(on_grid, row, 0), np.where(on_grid, col, 0)] > 0) & on_grid, on_grid


@pytest.mark.parametrize("cell_m", [0.4, 0.8])
def test_objects_stay_and_the_road_goes(store: FrameStore, cell_m: float) -> None:
    grid = BevGrid(-51.2, 51.2, -51.2, 51.2, cell_m)
    points = store.points(0)
    coverage = Coverage.parse("lidar(ground=0.2)")
    mask = coverage_weights(coverage, evidence_of(store, 0, coverage), grid)[0]
    kept, on_grid = at_points(mask, points, grid)
    inside = inside_boxes(points, store.truth(0).boxes_global, store.frame(0).lidar_to_global()) & on_grid
    road = near_road(points) & ~inside
    assert inside.sum() > 900 and road.sum() > 10_000
    print(
        f"cells of {cell_m} m: {kept[inside].mean():.4f} of box points kept, {(~kept)[road].mean():.4f} of road dropped"
    )
    assert kept[inside].mean() >= 0.95
    assert (~kept)[road].mean() >= 0.8
