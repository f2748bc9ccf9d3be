"""A BEV map at points that are no cell centres: bilinear, as `trainer.terms.sampling` reads the student's.

In the outer half cell the border's value holds; a point off the map has value 0 and is marked, since a clamped one
would be a feature of another place.
"""

from __future__ import annotations

import numpy as np

from cache.grid import BevGrid


def sample_points(bev: np.ndarray, grid: BevGrid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values (N, P, C) float32 of the map (C, H, W) at points (N, P, 2) x, y in metres, and inside (N, P) bool.

    inside: x_min <= x < x_max, likewise y; a point that is not finite is not. Elsewhere values are 0.
    """
    channels = len(bev)
    col = (points[..., 0] - grid.x_min) / grid.cell_m - 0.5  # whole numbers at centres
    row = (points[..., 1] - grid.y_min) / grid.cell_m - 0.5
    inside = (row >= -0.5) & (row < grid.height - 0.5) & (col >= -0.5) & (col < grid.width - 0.5)  # NaN is in no range
    row, col = (np.clip(place[inside], 0, size - 1) for place, size in ((row, grid.height), (col, grid.width)))
    top, left = np.floor(row).astype(np.int64), np.floor(col).astype(np.int64)
    down, right = row - top, col - left
    below, beside = np.minimum(top + 1, grid.height - 1), np.minimum(left + 1, grid.width - 1)
    flat = bev.reshape(channels, -1)
    total = np.zeros((len(row), channels))
    for r, share_r in ((top, 1 - down), (below, down)):
        for c, share_c in ((left, 1 - right), (beside, right)):
            total += (share_r * share_c)[:, None] * flat[:, r * grid.width + c].T
    out = np.zeros((*points.shape[:2], channels), np.float32)
    out[inside] = total
    return out, inside
