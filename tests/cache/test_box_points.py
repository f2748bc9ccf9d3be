"""Points of boxes, by hand: where they lie and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from cache.box_points import box_points, point_offsets


def box(x: float, y: float, length: float, width: float, yaw: float) -> np.ndarray:
    return np.array([[x, y, 0.0, length, width, 1.5, yaw, np.nan, np.nan]])


def test_nine_points_are_corners_edge_middles_and_centre_from_the_right_rear_on() -> None:
    found = box_points(box(10, 20, 4, 2, 0), "9")
    assert found.shape == (1, 9, 2)
    expected = [(8, 19), (8, 20), (8, 21), (10, 19), (10, 20), (10, 21), (12, 19), (12, 20), (12, 21)]
    np.testing.assert_allclose(found[0], expected)
    turned = box_points(box(10, 20, 4, 2, np.pi / 2), "9")[0]  # its nose points to +y, its right side to +x
    np.testing.assert_allclose(turned[0], (11, 18), atol=1e-12)
    np.testing.assert_allclose(turned[8], (9, 22), atol=1e-12)


def test_a_grid_of_points_is_the_centres_of_equal_parts() -> None:
    found = box_points(box(0, 0, 4, 3, 0), "2x3")[0]
    np.testing.assert_allclose(found, [(-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1)])
    np.testing.assert_allclose(box_points(box(0, 0, 4, 3, 0), "2x3", enlarge=2.0)[0], 2 * found)
    np.testing.assert_allclose(box_points(box(3, 4, 9, 9, 1.0), "1x1")[0], [(3, 4)])


@pytest.mark.parametrize("points", ["9", "7x7", "24x24", "2x5"])
def test_points_lie_in_the_box_and_are_symmetric(points: str) -> None:
    offsets = point_offsets(points)
    assert np.abs(offsets).max() <= 0.5
    np.testing.assert_allclose(offsets, -offsets[::-1], atol=1e-15)
    assert len(np.unique(offsets, axis=0)) == len(offsets)


def test_no_boxes_have_no_points() -> None:
    assert box_points(np.zeros((0, 9), np.float32), "9").shape == (0, 9, 2)
