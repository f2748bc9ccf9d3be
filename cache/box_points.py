"""Points of a box seen from above, at which a BEV map is sampled per box: in the same order wherever they are needed.

`9`: corners, edge middles and centre, as UniDistill reads them; `AxB`: the centres of A x B equal parts of the box, as
region pooling has them. Order: along the length from back to front, and for each step across from right to left.
"""

from __future__ import annotations

import numpy as np


def point_offsets(points: str) -> np.ndarray:
    """(P, 2) float64 for `9` or `AxB`: along and across the box, as shares -0.5..0.5 of length and width."""
    if points == "9":
        along = across = np.array([-0.5, 0.0, 0.5])
    else:
        along, across = ((np.arange(count) + 0.5) / count - 0.5 for count in map(int, points.split("x")))
    return np.stack(np.meshgrid(along, across, indexing="ij"), axis=-1).reshape(-1, 2)


def box_points(boxes: np.ndarray, points: str, enlarge: float = 1.0) -> np.ndarray:
    """(N, P, 2) float64 x, y (m) of the points of boxes (N, 9) x, y, z, l, w, h, yaw, vx, vy; length and width times
    `enlarge` first."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 9)
    share = point_offsets(points)
    along, across = share[:, 0] * boxes[:, 3:4] * enlarge, share[:, 1] * boxes[:, 4:5] * enlarge  # (N, P)
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x = boxes[:, 0:1] + along * cos - across * sin
    y = boxes[:, 1:2] + along * sin + across * cos
    return np.stack([x, y], axis=-1)
