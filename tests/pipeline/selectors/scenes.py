"""Random boxes and clouds about a small grid, some of them off it, for the tests of selectors."""

from __future__ import annotations

import numpy as np

from cache.frame import Camera
from cache.grid import BevGrid

GRID = BevGrid(-10, 10, -6, 6, 0.5)  # 24 x 40: rows and columns cannot be mixed up
SQUARE = BevGrid(-8, 8, -8, 8, 0.5)


def random_boxes(rng: np.random.Generator, count: int, reach: float = 12.0) -> np.ndarray:
    """(count, 9) float32: from a cone to a bus, any heading, centres up to `reach` metres out."""
    boxes = np.zeros((count, 9), np.float32)
    boxes[:, :2] = rng.uniform(-reach, reach, (count, 2))
    boxes[:, 3:6] = np.exp(rng.uniform(np.log(0.2), np.log(8), (count, 3)))
    boxes[:, 6] = rng.uniform(-7, 7, count)
    boxes[:, 7:] = np.nan  # velocities are often unknown, and nobody should mind
    return boxes


def some_camera(
    yaw: float, *, channel: str = "CAM_FRONT", place: tuple[float, float, float] = (0, 0, 0), pitch: float = 0.0
) -> Camera:
    """A camera of 160 x 90 pixels, 65 degrees wide, at `place`, that looks `yaw` counter-clockwise from +x and `pitch`
    downwards (rad)."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    to_camera = np.eye(4)
    to_camera[:3, :3] = right, np.cross(forward, right), forward
    to_camera[:3, 3] = -to_camera[:3, :3] @ np.asarray(place, float)
    intrinsic = np.array([[125.0, 0, 80], [0, 125, 45], [0, 0, 1]])
    return Camera(channel, 160, 90, 0, intrinsic, to_camera)


def turned(boxes: np.ndarray) -> np.ndarray:
    """The boxes after a quarter turn to the left about the origin."""
    out = boxes.astype(np.float64)
    out[:, 0], out[:, 1], out[:, 6] = -boxes[:, 1], boxes[:, 0], boxes[:, 6] + np.pi / 2
    return out


def turned_map(array: np.ndarray) -> np.ndarray:
    """A square map after the same turn: what was at (x, y) is at (-y, x)."""
    return np.flip(np.swapaxes(array, -1, -2), axis=-1)
