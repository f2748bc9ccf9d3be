"""The boxes of many frames in one set of arrays: what the array metric reads. Global frame, float64, order kept.

Order is part of the data: of predictions with equal scores the metric ranks the later one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.classes import ATTRIBUTES, DETECTION_CLASSES
from cache.frame import Detections, Frame, GroundTruth
from evaluation.boxes import GlobalBoxes, detections_to_arrays

CLASS_IDS = {name: number for number, name in enumerate(DETECTION_CLASSES)}
ATTRIBUTE_IDS = {"": -1, **{name: number for number, name in enumerate(ATTRIBUTES)}}


@dataclass(frozen=True)
class BoxArrays:
    """N boxes. frame (N,) int64: which of the frames; boxes (N, 12) float64 as in `GroundTruth.boxes_global`; scores
    (N,) float64 (-1 in truth); class_ids, attribute_ids (-1 none), points ((N,), -1 unknown), visibility (0 unknown):
    (N,) integers."""

    frame: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    attribute_ids: np.ndarray
    points: np.ndarray
    visibility: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, which: np.ndarray) -> BoxArrays:
        """Those that a mask or indices choose."""
        return BoxArrays(*(column[which] for column in vars(self).values()))


@dataclass(frozen=True)
class Places:
    """Where F frames were taken. ego (F, 3) float64: the ego vehicle, global; racks (M, 10) float64 as in
    `GroundTruth.racks_global`, and rack_frame (M,): the frame of each."""

    ego: np.ndarray
    racks: np.ndarray
    rack_frame: np.ndarray


def places_of(frames: Sequence[Frame], truth: Sequence[GroundTruth]) -> Places:
    """Poses and bicycle racks of frames."""
    ego = np.array([frame.ego_to_global.translation for frame in frames], np.float64).reshape(-1, 3)
    counts = [len(one.racks_global) for one in truth]
    racks = [np.asarray(one.racks_global, np.float64).reshape(-1, 10) for one in truth]
    return Places(ego, np.concatenate([np.zeros((0, 10)), *racks]), np.repeat(np.arange(len(truth)), counts))


def truth_arrays(truth: Sequence[GroundTruth], frame: np.ndarray | None = None) -> BoxArrays:
    """The ground truth of frames; points counts LiDAR and radar. frame: of each box of a joined record; by default each
    of `truth` is a frame."""
    if not truth:
        return _no_boxes()
    if frame is None:
        frame = np.repeat(np.arange(len(truth)), [len(one) for one in truth])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(one, name), np.int64) for one in truth])

    return BoxArrays(
        frame,
        np.concatenate([np.asarray(one.boxes_global, np.float64).reshape(-1, 12) for one in truth]),
        np.full(len(frame), -1.0),
        joined("class_ids"),
        joined("attribute_ids"),
        joined("num_lidar_pts") + joined("num_radar_pts"),
        joined("visibility"),
    )


def detection_arrays(frames: Sequence[Frame], detections: Sequence[Detections]) -> BoxArrays:
    """What a model says of frames, turned into the global frame as a submission would have it.

    Raises DataError naming sample and box where a value is not sound."""
    if not frames:
        return _no_boxes()
    found = detections_to_arrays(frames, detections)
    return global_arrays(found, np.repeat(np.arange(len(frames)), [len(one) for one in detections]))


def global_arrays(found: GlobalBoxes, frame: np.ndarray) -> BoxArrays:
    """Boxes of a model, already global; frame (N,): of each."""
    unknown = np.full(len(found), -1, np.int64)
    return BoxArrays(frame, found.boxes, found.scores, found.class_ids, found.attribute_ids, unknown, unknown * 0)


def submission_arrays(tokens: Mapping[str, int], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> BoxArrays:
    """The `results` of a checked submission in its own order. tokens: sample token -> number of the frame."""
    boxes = [(tokens[token], box) for token, of_sample in results.items() for box in of_sample]
    if not boxes:
        return _no_boxes()
    parts = ("translation", "size", "rotation", "velocity")
    points = np.array([int(box.get("num_pts", -1)) for _, box in boxes], np.int64)
    return BoxArrays(
        np.array([frame for frame, _ in boxes], np.int64),
        np.concatenate([np.array([box[part] for _, box in boxes], np.float64) for part in parts], axis=1),
        np.array([float(box["detection_score"]) for _, box in boxes]),
        np.array([CLASS_IDS[box["detection_name"]] for _, box in boxes], np.int64),
        np.array([ATTRIBUTE_IDS[box["attribute_name"]] for _, box in boxes], np.int64),
        points,
        np.zeros(len(boxes), np.int64),
    )


def join_boxes(parts: Sequence[BoxArrays]) -> BoxArrays:
    """All of them, one after another; `frame` stays as it is in each."""
    columns = zip(*(vars(part).values() for part in (_no_boxes(), *parts)), strict=True)
    return BoxArrays(*map(np.concatenate, columns))


def _no_boxes() -> BoxArrays:
    none = np.zeros(0, np.int64)
    return BoxArrays(none, np.zeros((0, 12)), np.zeros(0), none, none, none, none)
