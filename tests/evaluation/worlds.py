"""Small made-up inputs for the evaluation's tests: frames with tilted poses, ground truth, noisy predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.frame import CAMERA_CHANNELS, Camera, Detections, Frame, GroundTruth, Pose
from evaluation.boxes import truth_to_canonical


def quaternion(axis: Sequence[float], angle: float) -> np.ndarray:
    """(4,) w, x, y, z of a turn by `angle` about `axis`."""
    unit = np.asarray(axis, float) / np.linalg.norm(axis)
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * unit])


def made_up_frame(random: np.random.Generator, number: int, scene: int = 0) -> Frame:
    """A frame somewhere on a map, the car turned and tilted, the LiDAR mounted as on the real one (turned -90 deg)."""
    yaw, tilt = random.uniform(-np.pi, np.pi), random.uniform(-0.05, 0.05)
    axis = [tilt, random.uniform(-0.05, 0.05), 1.0]
    ego = Pose(np.array([*random.uniform(300, 1500, 2), 0.0]), quaternion(axis, yaw))
    lidar = Pose(np.array([0.94, 0.0, 1.84]), quaternion([0.01, -0.02, -1.0], np.pi / 2))
    return Frame(f"{number:032x}", f"{scene:032x}", f"scene-{scene:04d}", "val", 10**15 + number, ego, lidar, cameras())


def cameras(width: int = 160, height: int = 90) -> tuple[Camera, ...]:
    """Six cameras at the LiDAR, looking along the headings of the real rig."""
    out = []
    focal = 0.8 * width
    intrinsic = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    for channel, degrees in zip(CAMERA_CHANNELS, (145.0, 90.0, 35.0, -20.0, -90.0, -160.0), strict=True):
        heading = np.deg2rad(degrees)
        forward = np.array([np.cos(heading), np.sin(heading), 0.0])
        right = np.array([np.sin(heading), -np.cos(heading), 0.0])
        matrix = np.eye(4)
        matrix[:3, :3] = [right, [0.0, 0.0, -1.0], forward]
        out.append(Camera(channel, width, height, 10**15, intrinsic, matrix))
    return tuple(out)


def made_up_truth(random: np.random.Generator, frame: Frame, boxes: int = 25, racks: int = 1) -> GroundTruth:
    """Objects of all classes up to 55 m from the car, a few without points, without velocity, without attribute."""
    ego = frame.ego_to_global.translation
    yaw = random.uniform(-np.pi, np.pi, boxes)
    rows = np.zeros((boxes, 12))
    rows[:, :2] = ego[:2] + random.uniform(-40, 40, (boxes, 2))
    rows[:, 2] = random.uniform(0.5, 1.5, boxes)
    rows[:, 3:6] = random.uniform(0.5, 4.0, (boxes, 3))
    rows[:, 6], rows[:, 9] = np.cos(yaw / 2), np.sin(yaw / 2)
    rows[:, 10:] = random.normal(0, 2, (boxes, 2)) * (random.random((boxes, 1)) < 0.6)
    rows[random.random(boxes) < 0.1, 10:] = np.nan
    labels = random.integers(0, len(DETECTION_CLASSES), boxes).astype(np.int32)
    counts = random.integers(0, 6, boxes).astype(np.int32)
    places = np.zeros((racks, 10))
    places[:, :2] = ego[:2] + random.uniform(-20, 20, (racks, 2))
    places[:, 3:7] = (4.0, 12.0, 6.0, 1.0)
    return GroundTruth(
        rows,
        labels,
        random.integers(-1, 8, boxes).astype(np.int32),
        counts,
        np.zeros(boxes, np.int32),
        np.full(boxes, 4, np.int32),
        places,
    )


def noisy_detections(random: np.random.Generator, frame: Frame, truth: GroundTruth) -> Detections:
    """What a fair model might say: most objects, moved, some doubled, some of another class; scores in steps of 0.1, so
    that many tie; and a bicycle in the middle of every rack, which the metric must drop."""
    boxes, labels = truth_to_canonical(frame, truth)
    keep = random.random(len(boxes)) < 0.85
    boxes, labels = boxes[keep], labels[keep]
    doubled = random.random(len(boxes)) < 0.3
    boxes, labels = np.concatenate([boxes, boxes[doubled]]), np.concatenate([labels, labels[doubled]])
    boxes[:, :2] += random.normal(0, 0.6, (len(boxes), 2))
    boxes[:, 3:6] *= random.uniform(0.8, 1.25, (len(boxes), 3))
    boxes[:, 6] += random.normal(0, 0.3, len(boxes)) + np.pi * (random.random(len(boxes)) < 0.1)
    boxes[:, 7:] += random.normal(0, 0.3, (len(boxes), 2))
    wrong = random.random(len(boxes)) < 0.1
    labels[wrong] = random.integers(0, len(DETECTION_CLASSES), int(wrong.sum()))
    if len(truth.racks_global):
        racks = np.concatenate([truth.racks_global, np.zeros((len(truth.racks_global), 2))], axis=1)
        none = np.zeros(len(racks), np.int32)
        as_truth = GroundTruth(
            racks, none + DETECTION_CLASSES.index("bicycle"), none, none, none, none, np.zeros((0, 10))
        )
        in_rack, bicycle = truth_to_canonical(frame, as_truth)
        in_rack[:, 3:6] = (1.7, 0.6, 1.3)
        boxes, labels = np.concatenate([boxes, in_rack]), np.concatenate([labels, bicycle])
    scores = np.round(random.uniform(0.05, 1.0, len(boxes)), 1)
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32))


@dataclass(frozen=True)
class Skill:
    """How well a made-up model sees. noise_m, yaw, size, velocity: spreads of its errors (m, rad, log, m/s); misses,
    turned, mistaken: shares of objects not seen, turned around, of another class; false: false boxes an object."""

    noise_m: float
    yaw: float
    size: float
    velocity: float
    misses: float
    turned: float
    mistaken: float
    false: float


GOOD = Skill(0.15, 0.05, 0.05, 0.2, misses=0.05, turned=0.02, mistaken=0.02, false=0.3)  # mAP about 0.7
MEDIOCRE = Skill(0.7, 0.45, 0.2, 1.0, misses=0.45, turned=0.2, mistaken=0.2, false=2.0)  # mAP about 0.07
POOR = Skill(1.5, 1.0, 0.3, 1.5, misses=0.65, turned=0.4, mistaken=0.4, false=3.0)  # mAP about 0.01


def seen_by(random: np.random.Generator, skill: Skill, frame: Frame, truth: GroundTruth) -> Detections:
    """What a model of that skill says of a frame."""
    boxes, labels = truth_to_canonical(frame, replace(truth, boxes_global=np.nan_to_num(truth.boxes_global)))
    keep = random.random(len(boxes)) >= skill.misses
    boxes, labels = boxes[keep].astype(np.float64), labels[keep]
    count = len(boxes)
    boxes[:, :2] += random.normal(0, skill.noise_m, (count, 2))
    boxes[:, 3:6] *= np.exp(random.normal(0, skill.size, (count, 3)))
    boxes[:, 6] += random.normal(0, skill.yaw, count) + np.pi * (random.random(count) < skill.turned)
    boxes[:, 7:] += random.normal(0, skill.velocity, (count, 2))
    mistaken = random.random(count) < skill.mistaken
    labels[mistaken] = random.integers(0, len(DETECTION_CLASSES), int(mistaken.sum()))
    like = random.integers(0, max(count, 1), int(skill.false * count))
    false = boxes[like]
    false[:, :2] = random.uniform(-50, 50, (len(false), 2))
    scores = np.concatenate([random.beta(3, 2, count), random.beta(2, 3, len(false))])
    all_boxes = np.concatenate([boxes, false]).astype(np.float32)
    return Detections(all_boxes, scores.astype(np.float32), np.concatenate([labels, labels[like]]))
