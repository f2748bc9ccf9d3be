"""Where boxes land in a picture: corners, clipping behind the camera, agreement with the devkit's own projection."""

from __future__ import annotations

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from pyquaternion import Quaternion

from evaluation.boxes import truth_to_canonical
from evaluation.projection import (
    EDGES,
    FRONT_FACE,
    NEAR_M,
    clip_polygon,
    clip_segments,
    corners,
    footprints,
    to_camera,
    to_pixels,
    visible_boxes,
)
from pipeline.tables import open_tables
from tests.evaluation.worlds import cameras
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

FRONT = cameras()[1]


def box(x: float, y: float, yaw: float = 0.0, length: float = 4.0) -> np.ndarray:
    return np.array([[x, y, 0.0, length, 2.0, 1.5, yaw, 0.0, 0.0]], np.float32)


def test_corners_are_the_devkits_corners() -> None:
    random = np.random.default_rng(50)
    for row in random.uniform(0.5, 6, (20, 9)):
        theirs = Box(row[:3], row[[4, 3, 5]], Quaternion(axis=[0, 0, 1], radians=row[6])).corners().T
        ours = corners(row[None])[0]
        assert sorted(map(tuple, np.round(ours, 9))) == sorted(map(tuple, np.round(theirs, 9)))
        np.testing.assert_allclose(ours[list(FRONT_FACE)].mean(axis=0), theirs[:4].mean(axis=0), atol=1e-9)


@needs_real_data
def test_boxes_on_the_real_keyframe_land_where_the_devkit_draws_them() -> None:
    """Through the pose at the camera's own time. Nine numbers keep no tilt: corners move by up to 3 % of a size."""
    nusc = NuScenes("v1.0-mini", str(REAL_ROOT), verbose=False)
    record = open_tables(REAL_ROOT, "v1.0-mini", None, 0).records[0][0]
    assert record.truth is not None
    boxes = truth_to_canonical(record.frame, record.truth)[0]
    compared = 0
    for camera in record.frame.cameras:
        token = nusc.get("sample", record.frame.token)["data"][camera.channel]
        _, theirs, _ = nusc.get_sample_data(token, box_vis_level=BoxVisibility.ANY)
        ours = boxes[visible_boxes(boxes, camera)]
        centres = to_camera(ours[:, :3].astype(np.float64), camera)
        for box in theirs:
            if not category_to_detection_name(box.name):
                continue
            best = int(np.argmin(np.linalg.norm(centres - box.center, axis=1)))
            expected = view_points(box.center[:, None], camera.intrinsic, normalize=True)[:2, 0]
            np.testing.assert_allclose(to_pixels(centres[best], camera), expected, atol=0.01)
            found = to_camera(corners(ours[best : best + 1])[0], camera)
            apart = np.linalg.norm(found[:, None] - box.corners().T[None], axis=-1).min(axis=1)
            assert apart.max() < 0.03 * max(box.wlh), (camera.channel, box.name)
            compared += 1
    assert compared >= 68


def test_footprint_begins_at_the_nose_on_the_left() -> None:
    np.testing.assert_allclose(footprints(box(10, 0))[0], [[12, 1], [12, -1], [8, -1], [8, 1]])
    np.testing.assert_allclose(footprints(box(0, 10, np.pi / 2))[0], [[-1, 12], [1, 12], [1, 8], [-1, 8]], atol=1e-6)


def test_a_box_ahead_is_in_the_middle_of_the_front_image_and_in_no_other() -> None:
    seen = [camera.channel for camera in cameras() if len(visible_boxes(box(0, 20, np.pi / 2), camera))]
    assert seen == ["CAM_FRONT"]
    centre = to_pixels(to_camera(box(0, 20)[:, :3].astype(float), FRONT), FRONT)[0]
    np.testing.assert_allclose(centre, [FRONT.width / 2, FRONT.height / 2])


def test_a_box_behind_the_camera_is_never_mirrored_into_the_image() -> None:
    assert len(visible_boxes(box(0, -20), FRONT)) == 0
    assert len(clip_polygon(to_camera(corners(box(0, -20))[0], FRONT)[list(FRONT_FACE)])) == 0


def test_a_box_beside_the_camera_is_cut_at_the_near_plane() -> None:
    beside = to_camera(corners(box(1.5, 1.0, np.pi / 2, 12.0)), FRONT)
    segments, which = clip_segments(beside[:, EDGES].reshape(-1, 2, 3))
    assert (segments[..., 2] >= NEAR_M - 1e-9).all()
    assert 0 < len(which) < len(EDGES)
    original = beside[0][EDGES][which]
    ahead = original[..., 2] > NEAR_M
    np.testing.assert_array_equal(segments[ahead], original[ahead])
    for cut, whole in zip(segments, original, strict=True):  # what is left lies on the edge that it was
        direction = (whole[1] - whole[0]) / np.linalg.norm(whole[1] - whole[0])
        assert np.abs(np.cross(cut - whole[0], direction)).max() < 1e-9


def test_boxes_are_painted_from_far_to_near() -> None:
    boxes = np.concatenate([box(0, 10), box(1, 40), box(-1, 25), box(0, -10)])
    assert visible_boxes(boxes, FRONT).tolist() == [1, 2, 0]


def test_no_boxes_are_no_trouble() -> None:
    assert visible_boxes(np.zeros((0, 9), np.float32), FRONT).tolist() == []
