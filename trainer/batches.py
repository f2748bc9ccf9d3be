"""Rows of the stores and their augmentations -> what a detector and the terms read: `Batch` and `TeacherCells`.

Only the fields that the model's modality and the terms need are read. Cost for 4 frames on one core: images of 400 x
225 45 ms (1600 x 900: 95 ms), clouds of 100,000 points 25 ms, teacher cells under 1 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import BevcaskError, StoreError
from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore
from models.detector import Batch, Detector
from models.pictures import draw_cameras, normalised
from trainer.augment import FrameAugment, move_boxes, move_points
from trainer.said import TeacherSaid
from trainer.said_reader import SaidReader

CAMERAS = len(CAMERA_CHANNELS)


@dataclass(frozen=True)
class Needs:
    """What is read of a frame store: points or images of `image_size` (width, height), depth labels, annotations."""

    points: bool = False
    image_size: tuple[int, int] | None = None
    depth: bool = False
    labels: bool = False


def model_needs(model: Detector) -> Needs:
    """What the forward pass of `model` reads."""
    if model.modality == "lidar":
        return Needs(points=True)
    width, height = model.config["image_size"]
    return Needs(image_size=(int(width), int(height)))


class BatchBuilder:
    """Builds batches from a frame store and, with a reader of one, a teacher store. Safe to share between threads."""

    def __init__(self, frames: FrameStore, needs: Needs, said: SaidReader | None = None) -> None:
        self.frames, self.needs, self.said = frames, needs, said

    def require(self, rows: Sequence[int], unlabelled: Sequence[int] = ()) -> None:
        """Raises StoreError, naming the first frame and the remedy, where one of `rows`, or of the `unlabelled` ones,
        which need no annotations, lacks a needed field."""
        remedies = []
        if self.needs.points:
            remedies.append(("points", "LiDAR models read clouds: cache the frames with `cache-frames --points`"))
        if self.needs.image_size:
            remedies += [
                (c.lower(), "camera models read all six images: cache the frames again") for c in CAMERA_CHANNELS
            ]
        if self.needs.depth:
            remedies.append(("depth", "set [data] depth = false in the recipe, or cache the frames again"))
        checked = [*rows, *unlabelled]
        wanted = [(field, remedy, checked) for field, remedy in remedies]
        if self.needs.labels:
            wanted.append(("gt_lidar", "training reads annotations: choose a split that has them", list(rows)))
        for field, remedy, of_rows in wanted:
            for row in of_rows:
                if not self.frames.has(row, field):
                    raise StoreError(f"{self.frames.root}: frame {self.frames.tokens[row]} has no {field}; {remedy}")

    def build(
        self, rows: Sequence[int], augments: Sequence[FrameAugment], teacher_rows: Sequence[int] = ()
    ) -> tuple[Batch, TeacherSaid | None]:
        """The batch of these rows, one augmentation each; teacher_rows: the same frames in the teacher store."""
        needs, parts = self.needs, _Parts()
        matrices = [augment.bev.matrix() for augment in augments]
        labelled = [self.frames.is_labelled(row) for row in rows] if needs.labels else []
        for sample, (row, augment, matrix) in enumerate(zip(rows, augments, matrices, strict=True)):
            token = self.frames.tokens[row]
            try:
                if needs.points:
                    parts.points.append(torch.from_numpy(move_points(self.frames.points(row), matrix)))
                if needs.image_size is not None:
                    self._add_images(parts, row, sample, len(rows), augment, matrix, needs.image_size)
                if needs.labels and labelled[sample]:
                    self._add_boxes(parts, row, matrix)
                elif needs.labels:
                    parts.kept.append(np.zeros(0, bool))
                    parts.boxes.append(torch.zeros(0, 9))
                    parts.labels.append(torch.zeros(0, dtype=torch.int64))
            except BevcaskError:
                raise  # names frame and remedy
            except Exception as error:
                error.add_note(f"while building frame {token} of {self.frames.root}")
                raise
        batch = Batch(
            points=parts.points if needs.points else None,
            **(parts.image_tensors(augments) if needs.image_size is not None else {}),
            boxes=parts.boxes,
            labels=parts.labels,
            labelled=None if all(labelled) else torch.tensor(labelled),
            depth_points=torch.from_numpy(np.concatenate(parts.depth)) if needs.depth and parts.depth else None,
            tokens=[self.frames.tokens[row] for row in rows],
            bev_augmentation=torch.from_numpy(np.stack(matrices)),
        )
        return batch, None if self.said is None else self.said.read(teacher_rows, rows, parts.kept)

    def _add_images(
        self,
        parts: _Parts,
        row: int,
        sample: int,
        batch: int,
        augment: FrameAugment,
        matrix: np.ndarray,
        size: tuple[int, int],
    ) -> None:
        if parts.images is None:
            parts.images = np.empty((batch, CAMERAS, size[1], size[0], 3), np.uint8)
        views = draw_cameras(self.frames, row, size, augment.images, parts.images[sample])
        parts.intrinsics.append(views.intrinsics)
        parts.camera_to_lidar.append(matrix @ views.camera_to_lidar)
        parts.affines.append(views.affines)
        if self.needs.depth:
            parts.depth.append(move_depth(self.frames.depth(row), views.affines, size, sample))

    def _add_boxes(self, parts: _Parts, row: int, matrix: np.ndarray) -> None:
        """Boxes without a LiDAR or radar return are left out, as the released detectors do: nothing shows where they
        are.
        """
        ids = self.frames.read(row, "gt_ids")
        seen = ids[:, 2] + ids[:, 3] > 0
        parts.kept.append(seen)
        parts.boxes.append(torch.from_numpy(move_boxes(self.frames.boxes_lidar(row)[seen], matrix)))
        parts.labels.append(torch.from_numpy(ids[seen, 0].astype(np.int64)))


class _Parts:
    """What the frames of a batch have given so far."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.images: np.ndarray | None = None
        self.intrinsics: list[np.ndarray] = []
        self.camera_to_lidar: list[np.ndarray] = []
        self.depth: list[np.ndarray] = []
        self.boxes: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.affines: list[np.ndarray] = []
        self.kept: list[np.ndarray] = []  # of each frame the annotated boxes that it shows, (N,) bool

    def image_tensors(self, augments: Sequence[FrameAugment]) -> dict[str, Any]:
        assert self.images is not None
        jitters = [image for augment in augments for image in augment.images]
        return {
            "images": normalised(self.images, jitters),
            "intrinsics": torch.from_numpy(np.stack(self.intrinsics).astype(np.float32)).view(-1, CAMERAS, 3, 3),
            "camera_to_lidar": torch.from_numpy(np.stack(self.camera_to_lidar).astype(np.float32)).view(
                -1, CAMERAS, 4, 4
            ),
            "image_affine": torch.from_numpy(np.stack(self.affines).astype(np.float32)),
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
