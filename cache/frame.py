"""What one frame is: identity, poses, cameras, ground truth, detections. Plain frozen numpy records, no I/O.

The canonical frame is the frame's own LIDAR_TOP (x right, y forward, z up, metres). Ground truth for the metric stays
global and float64, because the metric's `<` comparisons flip on float32's 1e-4 m at global coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CAMERA_CHANNELS: tuple[str, ...] = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
)


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) float64 rotation of a quaternion (w, x, y, z); a zero quaternion raises ValueError."""
    w, x, y, z = np.asarray(quaternion, np.float64)
    norm = w * w + x * x + y * y + z * z
    if not norm > 0:
        raise ValueError("quaternion of length 0")
    s = 2.0 / norm
    return np.array(
        [
            [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True)
class Pose:
    """A rigid transform child -> parent: translation (3,) metres, rotation quaternion (4,) w, x, y, z; float64."""

    translation: np.ndarray
    rotation: np.ndarray

    def matrix(self) -> np.ndarray:
        """(4, 4) float64 homogeneous matrix."""
        out = np.eye(4)
        out[:3, :3] = rotation_matrix(self.rotation)
        out[:3, 3] = self.translation
        return out

    def to_dict(self) -> dict[str, list[float]]:
        return {"translation": [float(v) for v in self.translation], "rotation": [float(v) for v in self.rotation]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pose:
        return cls(np.asarray(values["translation"], np.float64), np.asarray(values["rotation"], np.float64))


@dataclass(frozen=True)
class Poses:
    """`Pose`s of F frames, as arrays: translation (F, 3) metres, rotation (F, 4) w, x, y, z; float64."""

    translation: np.ndarray
    rotation: np.ndarray

    def matrices(self) -> np.ndarray:
        """(F, 4, 4) float64: `Pose.matrix` of each, to the bit."""
        w, x, y, z = self.rotation.T
        norm = w * w + x * x + y * y + z * z
        if not (norm > 0).all():
            raise ValueError("quaternion of length 0")
        s = 2.0 / norm
        out = np.zeros((len(norm), 4, 4))
        out[:, 0, 0], out[:, 0, 1], out[:, 0, 2] = 1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)
        out[:, 1, 0], out[:, 1, 1], out[:, 1, 2] = s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)
        out[:, 2, 0], out[:, 2, 1], out[:, 2, 2] = s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)
        out[:, :3, 3], out[:, 3, 3] = self.translation, 1.0
        return out

    @classmethod
    def of(cls, poses: Sequence[Pose]) -> Poses:
        """Of poses one by one."""
        return cls.from_dicts([vars(pose) for pose in poses])

    @classmethod
    def from_dicts(cls, values: Sequence[dict[str, Any]]) -> Poses:
        """Of poses as `Pose.to_dict` has them."""
        translation = np.array([one["translation"] for one in values], np.float64).reshape(-1, 3)
        return cls(translation, np.array([one["rotation"] for one in values], np.float64).reshape(-1, 4))


@dataclass(frozen=True)
class Camera:
    """One image of a frame as stored: size in pixels, intrinsic for that size, and where it looked from.

    lidar_to_camera (4, 4) maps the canonical frame to this camera at its own capture time, through both ego poses;
    camera axes are x right, y down, z forward.
    """

    channel: str
    width: int
    height: int
    timestamp_us: int
    intrinsic: np.ndarray
    lidar_to_camera: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        return {
            "channel": self.channel,
            "width": self.width,
            "height": self.height,
            "timestamp_us": self.timestamp_us,
            "intrinsic": np.asarray(self.intrinsic, np.float64).tolist(),
            "lidar_to_camera": np.asarray(self.lidar_to_camera, np.float64).tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Camera:
        return cls(
            str(values["channel"]),
            int(values["width"]),
            int(values["height"]),
            int(values["timestamp_us"]),
            np.asarray(values["intrinsic"], np.float64),
            np.asarray(values["lidar_to_camera"], np.float64),
        )


@dataclass(frozen=True)
class Frame:
    """Identity, poses and calibration of one frame; arrays that are large live in their own fields.

    keyframe: False for a moment between key frames, which is canonical in its own LIDAR_TOP and never annotated.
    """

    token: str
    scene_token: str
    scene_name: str
    split: str
    timestamp_us: int
    ego_to_global: Pose
    lidar_to_ego: Pose
    cameras: tuple[Camera, ...]
    keyframe: bool = True

    def lidar_to_global(self) -> np.ndarray:
        """(4, 4) float64: canonical frame -> global."""
        return self.ego_to_global.matrix() @ self.lidar_to_ego.matrix()

    def to_dict(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "scene_token": self.scene_token,
            "scene_name": self.scene_name,
            "split": self.split,
            "timestamp_us": self.timestamp_us,
            "ego_to_global": self.ego_to_global.to_dict(),
            "lidar_to_ego": self.lidar_to_ego.to_dict(),
            "cameras": [camera.to_dict() for camera in self.cameras],
            **({} if self.keyframe else {"keyframe": False}),  # stores of key frames are as they always were
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Frame:
        return cls(
            str(values["token"]),
            str(values["scene_token"]),
            str(values["scene_name"]),
            str(values["split"]),
            int(values["timestamp_us"]),
            Pose.from_dict(values["ego_to_global"]),
            Pose.from_dict(values["lidar_to_ego"]),
            tuple(Camera.from_dict(camera) for camera in values["cameras"]),
            bool(values.get("keyframe", True)),
        )


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of one frame as the metric needs them, global frame, only the ten detection classes.

    boxes_global (N, 12) float64: x, y, z, w, l, h, qw, qx, qy, qz, vx, vy (velocity NaN where undefined);
    class_ids, attribute_ids (-1 none), num_lidar_pts, num_radar_pts, visibility (1..4, 0 unknown): (N,) int32;
    racks_global (M, 10) float64: bicycle racks, x, y, z, w, l, h, qw, qx, qy, qz.
    """

    boxes_global: np.ndarray
    class_ids: np.ndarray
    attribute_ids: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray
    visibility: np.ndarray
    racks_global: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes_global)

    @classmethod
    def empty(cls) -> GroundTruth:
        none = np.zeros(0, np.int32)
        return cls(np.zeros((0, 12)), none, none, none, none, none, np.zeros((0, 10)))


@dataclass(frozen=True)
class Detections:
    """What a model says of one frame, canonical frame.

    boxes_lidar (N, 9) float32: x, y, z (gravity centre), l, w, h, yaw (counter-clockwise from +x), vx, vy;
    scores (N,) float32 in 0..1; labels (N,) int32 ids of `cache.classes.DETECTION_CLASSES`.
    """

    boxes_lidar: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with a score of at least `score`, order kept."""
        keep = self.scores >= score
        return Detections(self.boxes_lidar[keep], self.scores[keep], self.labels[keep])

    @classmethod
    def empty(cls) -> Detections:
        return cls(np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
