"""lidar: the cells that hold LiDAR returns, within a range of heights, with or without those of the ground.

    w = 1 where a cell holds `points` returns or more that count, else 0

Needs no annotations, so it works on every frame. About 10 ms for a cloud of ten sweeps (300,000 points), and without
ground what `pipeline.selectors.ground` costs.

Source: BEV-LGKD's foreground mask M_lidar (arXiv 2212.00623), one sweep in voxels 0.2 m high from -5 to 3 m; its ground
is told by lidarseg's classes, which most data sets lack.
"""

from __future__ import annotations

import numpy as np

from cache.grid import BevGrid
from pipeline.selectors.ground import ground_returns


def occupied_mask(
    cloud: np.ndarray,
    grid: BevGrid,
    points: int = 1,
    z_min: float = -5.0,
    z_max: float = 3.0,
    *,
    ground: float = 0.0,
    lidarseg: np.ndarray | None = None,
) -> np.ndarray:
    """(H, W) float32: 1 at cells that hold at least `points` returns with z_min <= z <= z_max, 0 elsewhere.

    cloud: (P, 5) or any (P, >= 3) x, y, z, canonical frame (m). A cell owns its lower borders, not its upper ones.
    Points with a NaN are skipped. ground above 0: returns of the ground do not count, up to so many metres above the
    fitted surface, or by `lidarseg` where it tells of a return (see `ground_returns`).
    """
    if ground > 0:
        cloud = np.asarray(cloud)[~ground_returns(cloud, ground, lidarseg)]
    x, y, z = np.asarray(cloud)[:, :3].astype(np.float64).T
    col, row = np.floor((x - grid.x_min) / grid.cell_m), np.floor((y - grid.y_min) / grid.cell_m)
    kept = (z >= z_min) & (z <= z_max) & (row >= 0) & (row < grid.height) & (col >= 0) & (col < grid.width)
    cells = row[kept].astype(np.int64) * grid.width + col[kept].astype(np.int64)
    counts = np.bincount(cells, minlength=grid.height * grid.width)
    return (counts >= points).astype(np.float32).reshape(grid.shape)
