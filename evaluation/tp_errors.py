"""The five errors of a match between a prediction and its object, over arrays of matches.

Translation, scale, orientation, velocity and attribute, as nuScenes defines them (detection task, TP metrics).
"""

from __future__ import annotations

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError

_BARRIER = DETECTION_CLASSES.index("barrier")
_UPRIGHT = 1e-6  # length in the ground plane of a unit heading below which its direction is rounding


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """(N, 3, 3) float64 of quaternions (N, 4) w, x, y, z of any length; of the zero quaternion the zero matrix."""
    length = np.sqrt(np.square(quaternions).sum(axis=1))
    w, x, y, z = (quaternions / np.where(length > 0, length, 1.0)[:, None]).T
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def yaw_of(quaternions: np.ndarray) -> np.ndarray:
    """(N,) float64 radians: heading of the turned x axis in the ground plane. The zero quaternion has yaw 0."""
    w, x, y, z = quaternions.T
    along, across = w * w + x * x - y * y - z * z, 2 * (x * y + w * z)
    yaw = np.arctan2(across, along)
    for steep in np.nonzero(np.hypot(along, across) < _UPRIGHT * np.square(quaternions).sum(axis=1))[0]:
        yaw[steep] = _devkit_yaw(quaternions[steep])  # a box on its end: what its heading is, rounding decides
    return yaw


def yaw_difference(a: np.ndarray, b: np.ndarray, period: np.ndarray) -> np.ndarray:
    """(N,) float64 radians, smallest difference of headings that repeat after `period`, 0 or more."""
    difference = (a - b + period / 2) % period - period / 2
    return np.abs(np.where(difference > np.pi, difference - 2 * np.pi, difference))


def scale_iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N,) IoU of boxes (N, 3) w, l, h laid over each other with centres and headings aligned."""
    smaller = np.minimum(truth, predicted)
    volumes = [sizes[:, 0] * sizes[:, 1] * sizes[:, 2] for sizes in (truth, predicted, smaller)]
    return volumes[2] / (volumes[0] + volumes[1] - volumes[2])


def match_errors(
    truth: np.ndarray,
    predicted: np.ndarray,
    distance: np.ndarray,
    class_ids: np.ndarray,
    truth_attributes: np.ndarray,
    predicted_attributes: np.ndarray,
) -> np.ndarray:
    """(N, 5) float64 in the order of `TP_ERRORS`, of matched boxes truth, predicted (N, 12) and their distance (m).

    NaN where a velocity or the object's attribute is unknown. Raises DataError for a size that is not positive.
    """
    if not ((truth[:, 3:6] > 0).all() and (predicted[:, 3:6] > 0).all()):
        raise DataError("the metric: a matched box has a size that is not above 0; mend it or drop the box")
    period = np.where(class_ids == _BARRIER, np.pi, 2 * np.pi)  # a barrier looks the same from both sides
    missed = (truth_attributes != predicted_attributes).astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite velocities on both sides
        velocity = predicted[:, 10:12] - truth[:, 10:12]
    return np.stack(
        [
            distance,
            1 - scale_iou(truth[:, 3:6], predicted[:, 3:6]),
            yaw_difference(yaw_of(truth[:, 6:10]), yaw_of(predicted[:, 6:10]), period),
            np.sqrt(np.square(velocity[:, 0]) + np.square(velocity[:, 1])),
            np.where(truth_attributes < 0, np.nan, missed),
        ],
        axis=1,
    )


def _devkit_yaw(quaternion: np.ndarray) -> float:
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    return float(quaternion_yaw(Quaternion(quaternion.tolist())))
