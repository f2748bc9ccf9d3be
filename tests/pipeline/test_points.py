"""Reading LiDAR files: what is wrong with a file is found and named; sweeps land in the keyframe's frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache.errors import DataError
from pipeline.points import Sweep, aggregate, read_lidar_file


def write_cloud(path: Path, columns: int = 1084, seed: int = 0) -> np.ndarray:
    """A cloud laid out as an HDL-32E file: firing columns of 32 beams."""
    rng = np.random.default_rng(seed)
    points = np.empty((columns * 32, 5), np.float32)
    points[:, :3] = rng.uniform(5, 40, (len(points), 3))
    points[:, 3] = rng.integers(0, 256, len(points))
    points[:, 4] = np.arange(len(points)) % 32
    path.write_bytes(points.tobytes())
    return points


def test_reads_what_was_written(tmp_path: Path) -> None:
    points = write_cloud(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_lidar_file(tmp_path / "a.bin"), points)


@pytest.mark.parametrize(
    "keep", [0, 7, 20 * 33, 20 * 32 * 542, 20 * 32 * 1030, 20 * 32 * 1084 - 20, 20 * 32 * 1084 - 1]
)
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.bin"
    write_cloud(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.bin.*truncated"):
        read_lidar_file(path)


def test_other_lidars_may_have_any_number_of_points(tmp_path: Path) -> None:
    points = np.ones((77, 5), np.float32)
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    assert len(read_lidar_file(tmp_path / "a.bin")) == 77


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.bin: missing"):
        read_lidar_file(tmp_path / "gone.bin")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    points = write_cloud(tmp_path / "a.bin")
    points[5, 1] = points[9, 3] = value
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    with pytest.raises(DataError, match="2 of 34688 points are NaN or infinite"):
        read_lidar_file(tmp_path / "a.bin")


def test_sweeps_are_moved_and_own_car_points_removed_in_their_own_frame(tmp_path: Path) -> None:
    points = np.array([[10, 0, 1, 50, 0], [0.5, 0.5, 0, 1, 1]], np.float32)
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    quarter_turn = np.eye(4)
    quarter_turn[:2, :2] = [[0, -1], [1, 0]]
    quarter_turn[:3, 3] = [1, 2, 3]
    cloud = aggregate([Sweep("a.bin", np.eye(4), 0.0), Sweep("a.bin", quarter_turn, 0.05)], tmp_path)
    np.testing.assert_allclose(cloud, [[10, 0, 1, 50, 0], [1, 12, 4, 50, 0.05]], atol=1e-6)
