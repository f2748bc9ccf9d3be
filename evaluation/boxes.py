"""Boxes between the two frames the metric needs: what a model says (canonical, float32) and what is scored (global).

Every pose is applied as the full 3-D rotation that it is, lidar -> ego -> global, in float64, so that the tilt of the
car reaches heading and height too. Also gives each box its attribute by the rule that the field's code bases share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.classes import ATTRIBUTES, DETECTION_CLASSES
from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth, Poses
from cache.geometry import boxes_to_lidar

MOVING_SPEED = 0.2  # m/s, the threshold OpenPCDet, mmdetection3d and BEVDepth use alike

_MOVING = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
# Class defaults below the threshold; "stopped" for a bus, since a bus at rest is in traffic or at a stop.
_STANDING = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}


def _attribute_table(names: dict[str, str]) -> np.ndarray:
    return np.array([ATTRIBUTES.index(names[name]) if name in names else -1 for name in DETECTION_CLASSES], np.int32)


_MOVING_IDS, _STANDING_IDS = _attribute_table(_MOVING), _attribute_table(_STANDING)


@dataclass(frozen=True)
class GlobalBoxes:
    """What a submission says of one frame: boxes (N, 12) float64 x, y, z, w, l, h, qw, qx, qy, qz, vx, vy in the global
    frame; scores (N,) float64; class_ids and attribute_ids (-1 none) (N,) int32."""

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    attribute_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 4) Hamilton product of quaternions (..., 4) in w, x, y, z order: first b, then a, as rotations."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a, np.float64), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b, np.float64), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def detections_to_global(frame: Frame, detections: Detections) -> GlobalBoxes:
    """A model's boxes as the metric reads them, order kept.

    An unknown velocity (NaN) becomes 0: a submission must say something, and the metric would skip a NaN, which would
    reward silence. Raises DataError naming frame and box where a value is not finite or a size is not positive.
    """
    return detections_to_arrays([frame], [detections])


def detections_to_arrays(frames: Sequence[Frame], detections: Sequence[Detections]) -> GlobalBoxes:
    """`detections_to_global` of many frames at once, one after the other in one set of arrays."""
    tokens = [frame.token for frame in frames]
    joined, counts = _joined(tokens, detections)
    ego, lidar = (Poses.of([getattr(frame, key) for frame in frames]) for key in ("ego_to_global", "lidar_to_ego"))
    return joined_to_global(tokens, ego, lidar, joined, counts)


def joined_to_global(
    tokens: Sequence[str],
    ego_to_global: Poses,
    lidar_to_ego: Poses,
    joined: Detections,
    counts: Sequence[int] | np.ndarray,
) -> GlobalBoxes:
    """`detections_to_global` of F frames whose boxes stand one after the other in `joined`, counts[i] of frame i.

    Each box is computed by itself, never as a row of a matrix product, whose sums depend on the rows beside it: so
    that what is scored here and what is exported frame by frame are the same bits.
    """
    labels = joined.labels.astype(np.int32, copy=False)
    _require_sound(tokens, counts, joined.boxes_lidar, joined.scores, labels)
    matrix = ego_to_global.matrices() @ lidar_to_ego.matrices()
    x, y, z, length, width, height, yaw, vx, vy = joined.boxes_lidar.T.astype(np.float64)
    out = np.empty((len(labels), 12))

    def of_boxes(per_frame: np.ndarray) -> np.ndarray:
        return np.repeat(per_frame, counts)

    rows = [[of_boxes(matrix[:, i, j]) for j in range(3)] for i in range(3)]
    for i, row in enumerate(rows):
        out[:, i] = row[0] * x + row[1] * y + row[2] * z + of_boxes(matrix[:, i, 3])
    out[:, 3], out[:, 4], out[:, 5] = width, length, height
    yaw /= 2
    aw, ax, ay, az = map(of_boxes, quaternion_product(ego_to_global.rotation, lidar_to_ego.rotation).T)
    bw, bz = np.cos(yaw), np.sin(yaw)  # a turn about z; first that, then lidar to global
    turn = [aw * bw - az * bz, ax * bw + ay * bz, ay * bw - ax * bz, aw * bz + az * bw]
    norm = np.sqrt(turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2] + turn[3] * turn[3])
    for i, part in enumerate(turn):
        np.divide(part, norm, out=out[:, 6 + i])
    for velocity in (vx, vy):
        velocity[np.isnan(velocity)] = 0.0
    for i in range(2):
        out[:, 10 + i] = rows[i][0] * vx + rows[i][1] * vy
    scores = joined.scores.astype(np.float64)
    return GlobalBoxes(out, scores, labels, attributes_of(labels, np.hypot(out[:, 10], out[:, 11])))


def truth_to_canonical(frame: Frame, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth in the canonical frame: boxes (N, 9) float32 as in `Detections`, labels (N,) int32. Inverse of
    `detections_to_global` up to the tilt of a box, which nine numbers cannot say."""
    return boxes_to_lidar(truth.boxes_global, frame.lidar_to_global()), np.asarray(truth.class_ids, np.int32)


def attributes_of(labels: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """(N,) int32 attribute ids from class ids and speeds (m/s): moving above 0.2 m/s, else the class's default; -1 for
    cones and barriers, which have none."""
    return np.where(speed > MOVING_SPEED, _MOVING_IDS[labels], _STANDING_IDS[labels]).astype(np.int32)


def submission_boxes(token: str, boxes: GlobalBoxes) -> list[dict[str, object]]:
    """The boxes of one sample as the official JSON has them; plain Python floats, which JSON writes exactly."""
    return [
        {
            "sample_token": token,
            "translation": row[:3],
            "size": row[3:6],
            "rotation": row[6:10],
            "velocity": row[10:12],
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
        }
        for row, score, label, attribute in zip(
            boxes.boxes.tolist(),
            boxes.scores.tolist(),
            boxes.class_ids.tolist(),
            boxes.attribute_ids.tolist(),
            strict=True,
        )
    ]


def _joined(tokens: Sequence[str], detections: Sequence[Detections]) -> tuple[Detections, list[int]]:
    """The boxes of all frames in one record, and how many of each frame."""
    rows = [np.asarray(one.boxes_lidar).reshape(-1, 9) for one in detections]
    counts = [len(boxes) for boxes in rows]
    for token, count, one in zip(tokens, counts, detections, strict=True):
        if not count == len(one.scores) == len(one.labels):
            raise DataError(
                f"detections of sample {token}: {count} boxes, {len(one.scores)} scores, {len(one.labels)} labels; "
                "expected as many of each"
            )
    scores, labels = (np.concatenate([getattr(one, key) for one in detections]) for key in ("scores", "labels"))
    return Detections(np.concatenate(rows), scores, labels), counts


def _require_sound(
    tokens: Sequence[str], counts: Sequence[int] | np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> None:
    if (
        np.isfinite(boxes).all()
        and np.isfinite(scores).all()
        and (boxes[:, 3:6] > 0).all()
        and (not len(labels) or 0 <= labels.min() <= labels.max() < len(DETECTION_CLASSES))
    ):
        return
    problems = (
        (~np.isfinite(boxes[:, :7]).all(axis=1), "a position, size or yaw that is not finite"),
        (np.isinf(boxes[:, 7:9]).any(axis=1), "an infinite velocity"),
        ((boxes[:, 3:6] <= 0).any(axis=1), "a size that is not positive"),
        (~np.isfinite(scores), "a score that is not finite"),
        ((labels < 0) | (labels >= len(DETECTION_CLASSES)), f"a label outside 0..{len(DETECTION_CLASSES) - 1}"),
    )
    for bad, what in problems:
        if bad.any():
            first, ends = int(np.argmax(bad)), np.cumsum(counts)
            frame = int(np.searchsorted(ends, first, side="right"))
            raise DataError(
                f"detections of sample {tokens[frame]}: box {first - int(ends[frame]) + counts[frame]} has {what}; "
                "mend the model or drop the box"
            )
