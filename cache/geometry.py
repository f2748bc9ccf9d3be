"""Rigid geometry in numpy: boxes from global to canonical, which points a box holds, how the sensor moved. float64
inside."""

from __future__ import annotations

import numpy as np

from cache.frame import rotation_matrix


def boxes_to_lidar(boxes_global: np.ndarray, lidar_to_global: np.ndarray) -> np.ndarray:
    """Global boxes (N, 12) x, y, z, w, l, h, qw, qx, qy, qz, vx, vy -> canonical (N, 9) float32 x, y, z, l, w, h, yaw,
    vx, vy. The yaw is that of the box's heading seen from above in the canonical frame; NaN velocities stay NaN.
    """
    out = np.zeros((len(boxes_global), 9))
    if not len(boxes_global):
        return out.astype(np.float32)
    inverse = np.linalg.inv(lidar_to_global)
    out[:, :3] = boxes_global[:, :3] @ inverse[:3, :3].T + inverse[:3, 3]
    out[:, 3:6] = boxes_global[:, [4, 3, 5]]
    headings = np.stack([rotation_matrix(q)[:, 0] for q in boxes_global[:, 6:10]]) @ inverse[:3, :3].T
    out[:, 6] = np.arctan2(headings[:, 1], headings[:, 0])
    velocity = np.concatenate([boxes_global[:, 10:12], np.zeros((len(boxes_global), 1))], axis=1)
    out[:, 7:9] = (velocity @ inverse[:3, :3].T)[:, :2]
    return out.astype(np.float32)


def points_in_boxes(points_xyz: np.ndarray, boxes_global: np.ndarray, lidar_to_global: np.ndarray) -> np.ndarray:
    """(N,) int: how many canonical points (P, 3) lie in each global box (faces count), by the box's full 3-D rotation.

    As the devkit's `points_in_box`; cost O(N P).
    """
    points_global = points_xyz.astype(np.float64) @ lidar_to_global[:3, :3].T + lidar_to_global[:3, 3]
    counts = np.zeros(len(boxes_global), np.int64)
    for i, box in enumerate(boxes_global):
        local = (points_global - box[:3]) @ rotation_matrix(box[6:10])
        half = box[[4, 3, 5]] / 2
        counts[i] = int((np.abs(local) <= half).all(axis=1).sum())
    return counts


def past_to_now(
    past_to_global: np.ndarray, now_to_global: np.ndarray, augmentation: np.ndarray | None = None
) -> np.ndarray:
    """(4, 4) float64: where a point that stands still lay in the past canonical frame -> where it lies now.

    past_to_global, now_to_global: `Frame.lidar_to_global()` of both moments; augmentation: A (4, 4) of the bird's-eye
    view, one for both, so that A T inv(A) maps augmented to augmented coordinates; None is none. The product is made in
    float64 from global poses, whose kilometres would leave float32 a few millimetres.
    """
    motion = np.linalg.solve(now_to_global, past_to_global)
    return motion if augmentation is None else augmentation @ motion @ np.linalg.inv(augmentation)
