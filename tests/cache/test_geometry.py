"""Boxes into the canonical frame and points in boxes, against the devkit and against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache.frame import Pose
from cache.geometry import boxes_to_lidar, points_in_boxes


def yaw_quaternion(yaw: float) -> list[float]:
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def box(x: float, y: float, yaw: float, velocity: tuple[float, float] = (0.0, 0.0)) -> list[float]:
    return [x, y, 1.0, 2.0, 4.5, 1.5, *yaw_quaternion(yaw), *velocity]  # w 2, l 4.5, h 1.5


# The car stands at (100, 50) and looks along global +y; the LiDAR's x is to its right, y ahead.
LIDAR_TO_GLOBAL = Pose(np.array([100.0, 50.0, 2.0]), np.array([1.0, 0, 0, 0])).matrix()
TURNED = Pose(np.array([100.0, 50.0, 2.0]), np.array(yaw_quaternion(math.pi / 2))).matrix()


def test_a_box_keeps_place_size_heading_and_velocity() -> None:
    found = boxes_to_lidar(np.array([box(110, 50, 0.3, (3.0, -1.0))]), LIDAR_TO_GLOBAL)
    assert found.dtype == np.float32 and found.shape == (1, 9)
    np.testing.assert_allclose(found[0], [10, 0, -1, 4.5, 2, 1.5, 0.3, 3, -1], atol=1e-6)


def test_turning_the_sensor_turns_everything_the_other_way() -> None:
    found = boxes_to_lidar(np.array([box(110, 50, 0.3, (3.0, -1.0))]), TURNED)
    np.testing.assert_allclose(found[0], [0, -10, -1, 4.5, 2, 1.5, 0.3 - math.pi / 2, -1, -3], atol=1e-6)


def test_unknown_velocity_stays_unknown_and_no_boxes_stay_none() -> None:
    found = boxes_to_lidar(np.array([box(110, 50, 0.0, (math.nan, math.nan)), box(110, 50, 0, (1, 2))]), TURNED)
    assert np.isnan(found[0, 7:]).all() and np.isfinite(found[0, :7]).all() and np.isfinite(found[1]).all()
    empty = boxes_to_lidar(np.zeros((0, 12)), TURNED)
    assert empty.shape == (0, 9) and empty.dtype == np.float32


def test_points_on_a_face_count_and_points_beyond_it_do_not() -> None:
    one = np.array([box(110, 50, math.pi / 2)])  # l along global y, w along x
    half_w, half_l = 1.0, 2.25
    points = np.array([[10, 0, -1], [10 + half_w - 1e-9, 0, -1], [10 + half_w + 1e-3, 0, -1], [10, half_l + 1e-3, -1]])
    assert points_in_boxes(points, one, LIDAR_TO_GLOBAL).tolist() == [2]
    exact = np.array([[100.0 + 0.0, 50.0, 2.0, 2.0, 4.0, 2.0, 1, 0, 0, 0, 0, 0]])
    assert points_in_boxes(np.array([[2.0, 1.0, 1.0]]), exact, LIDAR_TO_GLOBAL).tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_headings_agree_with_the_devkits_box(seed: int) -> None:
    data_classes = pytest.importorskip("nuscenes.utils.data_classes")
    geometry = pytest.importorskip("nuscenes.utils.geometry_utils")
    quaternion = pytest.importorskip("pyquaternion").Quaternion
    rng = np.random.default_rng(seed)
    pose = Pose(rng.normal(size=3) * 100, np.array([1, 0.02, -0.01, 0.7]))
    points = rng.uniform(-10, 10, (2000, 3))
    rotations = rng.normal(size=(8, 4))
    boxes = np.zeros((8, 12))
    boxes[:, :3] = rng.uniform(-8, 8, (8, 3)) @ pose.matrix()[:3, :3].T + pose.translation
    boxes[:, 3:6] = rng.uniform(1, 6, (8, 3))
    boxes[:, 6:10] = rotations
    counts = points_in_boxes(points, boxes, pose.matrix())
    lidar = boxes_to_lidar(boxes, pose.matrix())
    for i, row in enumerate(boxes):
        theirs = data_classes.Box(row[:3], row[3:6], quaternion(row[6:10]))
        theirs.translate(-pose.translation)
        theirs.rotate(quaternion(pose.rotation).inverse)
        assert counts[i] == geometry.points_in_box(theirs, points.T).sum()
        heading = theirs.orientation.rotation_matrix[:, 0]
        assert math.cos(lidar[i, 6] - math.atan2(heading[1], heading[0])) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(lidar[i, :3], theirs.center, atol=1e-4)
    assert counts.sum() > 0
