"""Box geometry for pictures: corners, edges clipped at a camera's near plane, footprints seen from above.

Pure numpy, vectorised over boxes; boxes (N, 9) canonical as in `cache.frame.Detections`.
"""

from __future__ import annotations

import numpy as np

from cache.frame import Camera

NEAR_M = 0.3

# Corners 0..3 are the bottom, 4..7 the top, both front-left, front-right, rear-right, rear-left.
_CORNERS = np.array(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]]
)
EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])
FRONT_FACE = (0, 1, 5, 4)


def corners(boxes_lidar: np.ndarray) -> np.ndarray:
    """(N, 8, 3) float64 corners, canonical frame; order: bottom then top, each front-left, front-right, rear-right,
    rear-left as seen by a driver."""
    boxes = np.asarray(boxes_lidar, np.float64).reshape(-1, 9)
    local = _CORNERS[None] * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    out = local.copy()
    out[..., 0] = cos * local[..., 0] - sin * local[..., 1]
    out[..., 1] = sin * local[..., 0] + cos * local[..., 1]
    return out + boxes[:, None, :3]


def footprints(boxes_lidar: np.ndarray) -> np.ndarray:
    """(N, 4, 2) outline seen from above: front-left, front-right, rear-right, rear-left."""
    return corners(boxes_lidar)[:, :4, :2]


def to_camera(points: np.ndarray, camera: Camera) -> np.ndarray:
    """(..., 3) canonical points in the camera's axes (x right, y down, z forward, metres)."""
    return points @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]


def to_pixels(points_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """(..., 2) pixels of points in front of the camera."""
    projected = points_camera @ camera.intrinsic.T
    return projected[..., :2] / projected[..., 2:]


def clip_segments(segments: np.ndarray, near_m: float = NEAR_M) -> tuple[np.ndarray, np.ndarray]:
    """Segments (S, 2, 3) in camera axes cut to z >= near_m: the cut segments (K, 2, 3) and which they were (K,)."""
    z = segments[..., 2]
    kept = np.flatnonzero((z > near_m).any(axis=1))
    segments, z = segments[kept].copy(), z[kept]
    start, end = segments[:, 0].copy(), segments[:, 1].copy()
    for side, behind in ((0, z[:, 0] < near_m), (1, z[:, 1] < near_m)):
        t = (near_m - z[behind, 0]) / (z[behind, 1] - z[behind, 0])
        segments[behind, side] = start[behind] + t[:, None] * (end[behind] - start[behind])
    return segments, kept


def clip_polygon(polygon: np.ndarray, near_m: float = NEAR_M) -> np.ndarray:
    """A planar polygon (V, 3) in camera axes cut to z >= near_m: (V', 3), empty where it lies wholly behind."""
    out = []
    for current, following in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if current[2] >= near_m:
            out.append(current)
        if (current[2] >= near_m) != (following[2] >= near_m):
            t = (near_m - current[2]) / (following[2] - current[2])
            out.append(current + t * (following - current))
    return np.array(out).reshape(-1, 3)


def visible_boxes(boxes_lidar: np.ndarray, camera: Camera) -> np.ndarray:
    """Indices of the boxes of which some part lies in the image, far ones first. Occlusion is not considered."""
    points = to_camera(corners(boxes_lidar), camera)  # (N, 8, 3)
    segments, which = clip_segments(points[:, EDGES].reshape(-1, 2, 3))
    pixels = to_pixels(segments, camera)
    box = which // len(EDGES)
    seen = []
    for number in np.unique(box):
        low, high = pixels[box == number].min(axis=(0, 1)), pixels[box == number].max(axis=(0, 1))
        if (high > 0).all() and low[0] < camera.width and low[1] < camera.height:
            seen.append(number)
    found = np.asarray(seen, np.int64)
    return found[np.argsort(-points[found, :, 2].mean(axis=1), kind="stable")]
