"""Boxes carried to the global frame are where the devkit puts them, and come back."""

from __future__ import annotations

import numpy as np
import pytest
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from cache.classes import ATTRIBUTES, DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Detections
from evaluation.boxes import (
    attributes_of,
    detections_to_arrays,
    detections_to_global,
    quaternion_product,
    truth_to_canonical,
)
from tests.evaluation.worlds import made_up_frame, made_up_truth, noisy_detections


def test_global_boxes_equal_the_devkits_box_arithmetic() -> None:
    random = np.random.default_rng(20)
    frame = made_up_frame(random, 1)
    boxes, labels = truth_to_canonical(frame, made_up_truth(random, frame))
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    ours = detections_to_global(frame, Detections(boxes, np.ones(len(boxes), np.float32), labels[: len(boxes)]))
    for row, (x, y, z, length, width, height, yaw, vx, vy) in zip(ours.boxes, boxes.astype(np.float64), strict=True):
        box = Box([x, y, z], [width, length, height], Quaternion(axis=[0, 0, 1], radians=yaw), velocity=(vx, vy, 0.0))
        for pose in (frame.lidar_to_ego, frame.ego_to_global):
            box.rotate(Quaternion(pose.rotation))
            box.translate(pose.translation)
        np.testing.assert_allclose(row[:3], box.center, atol=1e-9)
        np.testing.assert_allclose(row[3:6], box.wlh, atol=1e-12)
        np.testing.assert_allclose(Quaternion(row[6:10]).rotation_matrix, box.rotation_matrix, atol=1e-9)
        np.testing.assert_allclose(row[10:12], box.velocity[:2], atol=1e-9)


def test_ground_truth_comes_back_from_the_canonical_frame() -> None:
    random = np.random.default_rng(21)
    frame = made_up_frame(random, 1)
    truth = made_up_truth(random, frame)
    boxes, labels = truth_to_canonical(frame, truth)
    back = detections_to_global(frame, Detections(boxes, np.ones(len(boxes), np.float32), labels))
    np.testing.assert_allclose(back.boxes[:, :6], truth.boxes_global[:, :6], atol=2e-5)  # float32 at 50 m
    known = np.isfinite(truth.boxes_global[:, 10])
    np.testing.assert_allclose(
        back.boxes[known, 10:], truth.boxes_global[known, 10:], atol=0.05
    )  # tilt: v_z is not kept
    for ours, theirs in zip(back.boxes, truth.boxes_global, strict=True):
        turn = quaternion_yaw(Quaternion(ours[6:10])) - quaternion_yaw(Quaternion(theirs[6:10]))
        assert abs((turn + np.pi) % (2 * np.pi) - np.pi) < 0.01


def test_quaternion_product_is_the_rotations_product() -> None:
    random = np.random.default_rng(22)
    a, b = random.normal(size=(2, 5, 4))
    for ours, left, right in zip(quaternion_product(a, b), a, b, strict=True):
        np.testing.assert_allclose(ours, (Quaternion(left) * Quaternion(right)).elements)


def test_attributes_follow_the_shared_rule() -> None:
    labels = np.arange(len(DETECTION_CLASSES))
    expected = {
        "car": ("vehicle.moving", "vehicle.parked"),
        "truck": ("vehicle.moving", "vehicle.parked"),
        "bus": ("vehicle.moving", "vehicle.stopped"),
        "trailer": ("vehicle.moving", "vehicle.parked"),
        "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
        "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
        "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
        "bicycle": ("cycle.with_rider", "cycle.without_rider"),
        "traffic_cone": ("", ""),
        "barrier": ("", ""),
    }
    for position, speed in enumerate((0.21, 0.2)):
        ids = attributes_of(labels, np.full(len(labels), speed))
        names = {DETECTION_CLASSES[i]: ATTRIBUTES[a] if a >= 0 else "" for i, a in enumerate(ids)}
        assert names == {name: pair[position] for name, pair in expected.items()}


def test_many_frames_at_once_are_the_same_bits_as_frame_by_frame() -> None:
    random = np.random.default_rng(31)
    frames = [made_up_frame(random, number) for number in range(9)]
    detections = [noisy_detections(random, f, made_up_truth(random, f, boxes=3 * i)) for i, f in enumerate(frames)]
    joined = detections_to_arrays(frames, detections)
    each = [detections_to_global(frame, one) for frame, one in zip(frames, detections, strict=True)]
    for name, column in vars(joined).items():
        np.testing.assert_array_equal(column, np.concatenate([getattr(one, name) for one in each]), strict=True)


def test_an_unsound_box_of_many_frames_is_named_by_its_place_in_its_frame() -> None:
    random = np.random.default_rng(32)
    frames = [made_up_frame(random, number) for number in range(4)]
    detections = [noisy_detections(random, f, made_up_truth(random, f)) for f in frames]
    detections[0] = Detections.empty()
    detections[2].boxes_lidar[5, 4] = -1.0
    with pytest.raises(DataError, match=f"sample {frames[2].token}: box 5 has a size that is not positive"):
        detections_to_arrays(frames, detections)
    short = Detections(detections[3].boxes_lidar, detections[3].scores[1:], detections[3].labels)
    with pytest.raises(DataError, match=rf"sample {frames[3].token}: (\d+) boxes, \d+ scores, \d+ labels"):
        detections_to_arrays([frames[1], frames[3]], [detections[1], short])
