"""LiDAR files: one .pcd.bin checked and read, and key frame plus sweeps brought into the keyframe's LiDAR frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import DataError

POINT_BYTES = 20  # float32 x, y, z, intensity, ring
HDL32_BEAMS = 32
HDL32_MIN_COLUMNS = 1060  # a full turn has 1084..1087 in every file looked at; fewer means that the file was cut


@dataclass(frozen=True)
class Sweep:
    """One LiDAR file of a frame: where it lies, its pose in the canonical frame (4, 4), and its age in seconds."""

    path: str
    to_canonical: np.ndarray
    dt_s: float


def read_lidar_file(path: Path) -> np.ndarray:
    """(P, 5) float32 x, y, z, intensity, ring in the sensor frame, own-car points still in.

    Raises DataError naming the file where it is missing, truncated, or holds NaN or infinite values.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing LiDAR file; restore it from the data set") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it from the data set") from None
    if not data or len(data) % POINT_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes, expected a multiple of {POINT_BYTES} (float32 x, y, z, intensity, ring); "
            "the file is truncated, restore it from the data set"
        )
    points = np.frombuffer(data, np.float32).reshape(-1, 5)
    # An HDL-32E file tells a cut that keeps whole points: its beams repeat 0..31, a full turn has over 1,000 columns.
    beams = points[:, 4]
    is_hdl32 = len(points) >= HDL32_BEAMS and np.array_equal(
        beams[:HDL32_BEAMS], np.arange(HDL32_BEAMS, dtype=np.float32)
    )
    if is_hdl32 and (len(points) % HDL32_BEAMS or len(points) < HDL32_BEAMS * HDL32_MIN_COLUMNS):
        raise DataError(
            f"{path}: {len(points)} points in firing columns of {HDL32_BEAMS}, expected whole columns of a full turn "
            f"(about {HDL32_BEAMS * 1085}); the file is truncated, restore it from the data set"
        )
    bad = ~np.isfinite(points[:, :4]).all(axis=1)
    if bad.any():
        raise DataError(
            f"{path}: {int(bad.sum())} of {len(points)} points are NaN or infinite, expected finite metres; "
            "restore the file from the data set"
        )
    return points


def aggregate(sweeps: Sequence[Sweep], root: Path) -> np.ndarray:
    """(P, 5) float32 x, y, z, intensity, dt_s of all sweeps in the canonical frame, own-car returns (|x|, |y| < 1 m in
    the sweep's own frame) removed. Raises DataError as `read_lidar_file`.
    """
    clouds = []
    for sweep in sweeps:
        points = read_lidar_file(root / sweep.path)
        points = points[beside_own_car(points)]
        cloud = np.empty((len(points), 5), np.float32)
        xyz = points[:, :3].astype(np.float64) @ sweep.to_canonical[:3, :3].T + sweep.to_canonical[:3, 3]
        cloud[:, :3] = xyz
        cloud[:, 3] = points[:, 3]
        cloud[:, 4] = sweep.dt_s
        clouds.append(cloud)
    return np.concatenate(clouds)


def beside_own_car(points: np.ndarray) -> np.ndarray:
    """(P,) bool: which points (P, 2 or more), in their own sweep's frame (m), are no returns of the own car."""
    return (np.abs(points[:, 0]) >= 1.0) | (np.abs(points[:, 1]) >= 1.0)


def read_lidarseg_file(path: Path, points_path: Path) -> np.ndarray:
    """(L,) uint8 nuScenes-lidarseg classes of a sweep's points, those of the own car left out as in `aggregate`.

    Raises DataError naming the file where it cannot be read or does not have one class a point of `points_path`.
    """
    points = read_lidar_file(points_path)
    try:
        classes = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it from the data set") from None
    if len(classes) != len(points):
        raise DataError(
            f"{path}: {len(classes)} classes for the {len(points)} points of {points_path.name}; restore it from the "
            "data set, or take the folder lidarseg away"
        )
    return classes[beside_own_car(points)]
