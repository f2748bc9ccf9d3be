"""One moment of a batch as its cameras saw it: pictures, calibration and depth labels, frame after frame.

Cost for 4 frames on one core: images of 400 x 225 45 ms (1600 x 900: 95 ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore
from models.pictures import draw_cameras, normalised
from trainer.augment import FrameAugment
from trainer.watch import stage

CAMERAS = len(CAMERA_CHANNELS)


class CameraParts:
    """What `frames` frames show at `size` (width, height), filled one by one; a frame that was left out is black, under
    an identity for calibration."""

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        self._images = np.zeros((frames, CAMERAS, size[1], size[0], 3), np.uint8)
        self._intrinsics = np.tile(np.eye(3, dtype=np.float32), (frames, CAMERAS, 1, 1))
        self._to_lidar = np.tile(np.eye(4, dtype=np.float32), (frames, CAMERAS, 1, 1))
        self._affines = np.tile(np.eye(2, 3, dtype=np.float32), (frames, CAMERAS, 1, 1))
        self._depth: list[np.ndarray] = []

    def add(
        self, store: FrameStore, row: int, sample: int, augment: FrameAugment, matrix: np.ndarray, depth: bool = False
    ) -> None:
        """Draws a stored frame's cameras in the place `sample`, under A = `matrix`; with `depth` its labels too."""
        with stage("decode"):
            views = draw_cameras(store, row, self.size, augment.images, self._images[sample])
            labels = store.depth(row) if depth else None
        self._intrinsics[sample] = views.intrinsics
        self._to_lidar[sample] = matrix @ views.camera_to_lidar
        self._affines[sample] = views.affines
        if labels is not None:
            with stage("augment"):
                self._depth.append(move_depth(labels, views.affines, self.size, sample))

    def tensors(self, augments: Sequence[FrameAugment]) -> dict[str, Any]:
        """The fields of `Batch` that are of cameras; augments: of every frame."""
        return {
            "images": normalised(self._images, [image for augment in augments for image in augment.images]),
            "intrinsics": torch.from_numpy(self._intrinsics),
            "camera_to_lidar": torch.from_numpy(self._to_lidar),
            "image_affine": torch.from_numpy(self._affines),
            "depth_points": torch.from_numpy(np.concatenate(self._depth)) if self._depth else None,
        }


def move_depth(depth: np.ndarray, affines: np.ndarray, size: tuple[int, int], sample: int) -> np.ndarray:
    """Depth labels (K, 4) camera, u, v, depth_m of the stored images -> (K', 4) float32 image index, u, v, depth_m of
    the input images; those that left the image are dropped. Depth along the optical axis is not changed by what is
    done to the image."""
    camera = depth[:, 0].astype(np.int64)
    affine = affines.astype(np.float32)[camera]  # (K, 2, 3)
    u = affine[:, 0, 0] * depth[:, 1] + affine[:, 0, 1] * depth[:, 2] + affine[:, 0, 2]
    v = affine[:, 1, 0] * depth[:, 1] + affine[:, 1, 1] * depth[:, 2] + affine[:, 1, 2]
    inside = (u >= 0) & (u < size[0]) & (v >= 0) & (v < size[1])
    return np.stack([sample * len(affines) + camera, u, v, depth[:, 3]], axis=1)[inside].astype(np.float32)
