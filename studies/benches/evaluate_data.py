"""What the evaluation benchmark scores: a made-up validation split of any size, in memory and as stores.

Objects per sample and shares of the classes are those of nuScenes val (23 boxes a sample, four in ten of them cars); of
the predictions of a sample most objects have one or two near them and the rest stand anywhere, as a detector's
low-scored boxes do. Scores are float32, as models give them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish
from cache.frame import CAMERA_CHANNELS, Camera, Detections, Frame, GroundTruth, Pose
from cache.frame_fields import frame_entry, frame_fields, frame_identity, frame_values
from cache.layout import frames_place, teacher_place
from cache.plan import Scene, StorePlan
from cache.shard_writer import open_shard
from evaluation.boxes import attributes_of, truth_to_canonical
from pipeline.teacher import detection_fields

OBJECTS = 23
_SHARES = np.array([0.43, 0.075, 0.014, 0.02, 0.012, 0.19, 0.01, 0.01, 0.09, 0.149])
_SIZES = np.array(  # w, l, h (m) by class id
    [
        (1.95, 4.6, 1.7),
        (2.5, 6.9, 2.8),
        (2.9, 11.0, 3.5),
        (2.9, 12.3, 3.9),
        (2.8, 6.4, 3.2),
        (0.7, 0.7, 1.8),
        (0.8, 2.1, 1.5),
        (0.6, 1.7, 1.3),
        (0.4, 0.4, 1.1),
        (2.5, 0.5, 1.0),
    ]
)
_INTRINSIC = np.array([[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]])
_AT_LIDAR = Pose(np.array([0.94, 0.0, 1.84]), np.array([np.sqrt(0.5), 0.0, 0.0, -np.sqrt(0.5)]))
SAMPLES_PER_SCENE = 40


@dataclass(frozen=True)
class Split:
    """Frames, their truth, and what a made-up model says of them, by token."""

    frames: list[Frame]
    truth: list[GroundTruth]
    detections: dict[str, Detections]


def made_up_split(samples: int, predictions: int, seed: int = 0) -> Split:
    """A split of that many samples with that many predictions each; the same for the same seed."""
    random = np.random.default_rng(seed)
    frames = [made_up_frame(random, number) for number in range(samples)]
    truth = [_truth(random, frame) for frame in frames]
    said = {f.token: _detections(random, f, t, predictions) for f, t in zip(frames, truth, strict=True)}
    return Split(frames, truth, said)


def write_stores(cache: Path, split: Split, teacher: str) -> None:
    """The split as a frame store (images of a few bytes) and the predictions as a teacher store of boxes."""
    scenes = tuple({f.scene_token: Scene(f.scene_token, f.scene_name, f.split) for f in split.frames}.values())
    per_shard = 10 * SAMPLES_PER_SCENE
    shards = [
        range(first, min(first + per_shard, len(split.frames))) for first in range(0, len(split.frames), per_shard)
    ]
    common: dict[str, Any] = {
        "identity": frame_identity("v1.0-made-up", DETECTION_CLASSES),
        "scenes": scenes,
        "shards": tuple(tuple(split.frames[row].token for row in shard) for shard in shards),
    }
    fields = frame_fields(CAMERA_CHANNELS, points=False)
    header = {"annotated": True, "cameras": list(CAMERA_CHANNELS), "image_scale": 1.0, "points": False, "sweeps": 0}
    plans = {
        str(frames_place(cache)): StorePlan("frames", header=header, fields=fields, **common),
        str(teacher_place(cache, teacher)): StorePlan(
            "teacher", header={"teacher": "made up for the evaluation benchmark"}, fields=detection_fields(), **common
        ),
    }
    images, depth = dict.fromkeys(CAMERA_CHANNELS, b"none"), np.zeros((0, 4), np.uint16)
    for place, plan in plans.items():
        for shard in begin(place, plan):
            with open_shard(place, shard) as writer:
                for row in shards[shard.number]:
                    frame, truth, said = split.frames[row], split.truth[row], split.detections[split.frames[row].token]
                    boxes = {"boxes": said.boxes_lidar, "scores": said.scores, "labels": said.labels}
                    values = frame_values(frame, images, truth, depth) if plan.kind == "frames" else boxes
                    writer.write(frame_entry(frame, truth, len(DETECTION_CLASSES)), values)
        finish(place, plan)


def made_up_frame(random: np.random.Generator, number: int) -> Frame:
    """The frame of that number: a car turned and slightly tilted somewhere on a map, with the real rig's LiDAR."""
    yaw = random.uniform(-np.pi, np.pi)
    turn = np.array([np.cos(yaw / 2), *random.normal(0, 0.005, 2), np.sin(yaw / 2)])
    ego = Pose(np.array([*random.uniform(300, 2000, 2), 0.0]), turn / np.linalg.norm(turn))
    scene = number // SAMPLES_PER_SCENE
    token, name = f"{number:032x}", f"scene-{scene:04d}"
    time_us = 10**15 + 500_000 * number
    rig = tuple(Camera(channel, 1600, 900, time_us, _INTRINSIC, random.random((4, 4))) for channel in CAMERA_CHANNELS)
    return Frame(token, f"{scene:032x}", name, "val", time_us, ego, _AT_LIDAR, rig)


def _truth(random: np.random.Generator, frame: Frame) -> GroundTruth:
    count = int(random.poisson(OBJECTS))
    labels = random.choice(len(_SHARES), count, p=_SHARES).astype(np.int32)
    rows = np.zeros((count, 12))
    distance, angle = 55 * random.random(count) ** 0.7, random.uniform(-np.pi, np.pi, count)
    rows[:, 0] = frame.ego_to_global.translation[0] + distance * np.cos(angle)
    rows[:, 1] = frame.ego_to_global.translation[1] + distance * np.sin(angle)
    rows[:, 3:6] = _SIZES[labels] * random.uniform(0.85, 1.15, (count, 3))
    yaw = random.uniform(-np.pi, np.pi, count)
    rows[:, 6], rows[:, 9] = np.cos(yaw / 2), np.sin(yaw / 2)
    speed = np.where(random.random(count) < 0.3, random.uniform(0, 12, count), 0.0)
    rows[:, 10], rows[:, 11] = speed * np.cos(yaw), speed * np.sin(yaw)
    attributes = attributes_of(labels, speed)
    attributes[random.random(count) < 0.004] = -1
    rows[random.random(count) < 0.02, 10:] = np.nan
    points = random.poisson(8, count).astype(np.int32) * (random.random(count) < 0.9)
    racks = np.zeros((int(random.random() < 0.05), 10))
    racks[:, :2] = frame.ego_to_global.translation[:2] + random.uniform(-30, 30, (len(racks), 2))
    racks[:, 3:7] = (2.0, 8.0, 1.5, 1.0)
    none, seen = np.zeros(count, np.int32), random.integers(1, 5, count).astype(np.int32)
    return GroundTruth(rows, labels, attributes, points.astype(np.int32), none, seen, racks)


def _detections(random: np.random.Generator, frame: Frame, truth: GroundTruth, count: int) -> Detections:
    known = replace(truth, boxes_global=np.nan_to_num(truth.boxes_global))
    boxes, labels = truth_to_canonical(frame, known)
    near = np.nonzero(random.random((2, len(boxes))) < [[0.8], [0.4]])[1][:count]
    rows = np.zeros((count, 9), np.float32)
    said = random.choice(len(DETECTION_CLASSES), count, p=_SHARES).astype(np.int32)
    rows[:, :2] = random.uniform(-55, 55, (count, 2))
    rows[:, 3:6] = _SIZES[said][:, [1, 0, 2]]
    rows[:, 6] = random.uniform(-np.pi, np.pi, count)
    scores = random.random(count) ** 3
    rows[: len(near)], said[: len(near)] = boxes[near], labels[near]
    rows[: len(near), :2] += random.normal(0, 0.5, (len(near), 2))
    rows[: len(near), 3:6] *= random.uniform(0.9, 1.1, (len(near), 3))
    rows[: len(near), 6] += random.normal(0, 0.2, len(near))
    rows[: len(near), 7:] += random.normal(0, 0.3, (len(near), 2))
    scores[: len(near)] = random.random(len(near))
    order = random.permutation(count)
    return Detections(rows[order], scores[order].astype(np.float32), said[order])
