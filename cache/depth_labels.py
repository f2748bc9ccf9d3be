"""LiDAR returns in the images, as depth labels: 8 bytes a return, and back.

A label is camera position, u and v in 1/32 pixel, depth in cm. No occlusion test: who reads them keeps the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cache.errors import StoreError
from cache.frame import Camera

_MIN_DEPTH_M, _MAX_DEPTH_M = 1.0, 200.0  # a stray return beyond what the sensor can see is no label
MAX_PIXEL = 2**16 // 32 - 1


def depth_labels(points: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """(D, 4) uint16 of canonical points (P, >= 3) that fall into each image by at least a pixel, through the camera's
    own pose at its own time. Raises StoreError for an image beyond MAX_PIXEL pixels.
    """
    packed = [np.zeros((0, 4), np.uint16)]
    for position, camera in enumerate(cameras):
        xyz = points[:, :3].astype(np.float64) @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]
        xyz = xyz[(xyz[:, 2] > _MIN_DEPTH_M) & (xyz[:, 2] < _MAX_DEPTH_M)]
        uvd = xyz @ camera.intrinsic.T
        u, v = uvd[:, 0] / xyz[:, 2], uvd[:, 1] / xyz[:, 2]
        keep = (u > 1) & (u < camera.width - 1) & (v > 1) & (v < camera.height - 1)
        packed.append(pack_depth(np.full(int(keep.sum()), position), u[keep], v[keep], xyz[keep, 2]))
    return np.concatenate(packed)


def pack_depth(camera: np.ndarray, u: np.ndarray, v: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """(D, 4) uint16 labels of equally long columns: camera position, pixels, pixels, metres.

    Raises StoreError where a value does not fit: not finite, negative, pixels beyond MAX_PIXEL, depth beyond 655 m.
    """
    packed = np.stack([camera, np.round(u * 32), np.round(v * 32), np.round(depth_m * 100)], axis=1)
    if not ((packed >= 0) & (packed < 2**16)).all():
        raise StoreError(
            f"depth labels: a value is not finite, negative, or beyond {MAX_PIXEL} pixels or 655 m; "
            f"store images of at most {MAX_PIXEL} pixels"
        )
    return packed.astype(np.uint16)


def unpack_depth(packed: np.ndarray) -> np.ndarray:
    """(D, 4) float32: camera position, u, v in pixels of the stored image, depth in metres."""
    out = packed.astype(np.float32)
    out[:, 1:3] /= 32.0
    out[:, 3] /= 100.0
    return out
