"""Rows of the stores and their augmentations -> what a detector and the terms read: `Batch` and `TeacherCells`.

Only the fields that the model's modality and the terms need are read. Cost for 4 frames on one core: images see
`trainer.camera_parts`, as much again for every moment of a temporal model's past; clouds of 100,000 points 25 ms,
teacher cells under 1 ms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.errors import BevcaskError, StoreError
from cache.frame import CAMERA_CHANNELS, Frame
from cache.geometry import past_to_now
from cache.store import FrameStore
from models.detector import Batch, Detector, Past
from trainer.augment import FrameAugment, move_boxes, move_points
from trainer.camera_parts import CameraParts
from trainer.said import TeachersSaid
from trainer.scene_windows import ABSENT
from trainer.teachers import TeachersReader
from trainer.watch import stage

PICTURES = ("frame", *(channel.lower() for channel in CAMERA_CHANNELS))  # what is read of a moment of the past


@dataclass(frozen=True)
class Needs:
    """What is read of a frame store: points or images of `image_size` (width, height), depth labels, annotations."""

    points: bool = False
    image_size: tuple[int, int] | None = None
    depth: bool = False
    labels: bool = False

    def fields(self) -> list[str]:
        """The fields of a frame store that `BatchBuilder` reads of a frame."""
        return [
            *(["points"] if self.points else []),
            *(PICTURES if self.image_size else []),
            *(["depth"] if self.depth else []),
            *(["gt_ids", "gt_lidar"] if self.labels else []),
        ]


def model_needs(model: Detector) -> Needs:
    """What the forward pass of `model` reads."""
    if model.modality == "lidar":
        return Needs(points=True)
    width, height = model.config["image_size"]
    return Needs(image_size=(int(width), int(height)))


def moments_before(model: Detector) -> int:
    """How many earlier moments a window of `model` holds: queue - 1 of a temporal model, 0 of one of single frames."""
    return int(model.config.get("queue", 1)) - 1 if model.modality == "camera" else 0


class BatchBuilder:
    """Builds batches from a frame store and, with a reader of them, teacher stores. Safe to share between threads."""

    def __init__(self, frames: FrameStore, needs: Needs, said: TeachersReader | None = None) -> None:
        self.frames, self.needs, self.said = frames, needs, said

    def require(self, rows: Sequence[int], unlabelled: Sequence[int] = (), past: Sequence[int] = ()) -> None:
        """Raises StoreError, naming the first frame and the remedy, where one of `rows`, or of the `unlabelled` ones,
        which need no annotations, or of `past`, which need images alone, lacks a needed field."""
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
        wanted = [(field, remedy, checked + ([] if field == "depth" else list(past))) for field, remedy in remedies]
        if self.needs.labels:
            wanted.append(("gt_lidar", "training reads annotations: choose a split that has them", list(rows)))
        for field, remedy, of_rows in wanted:
            for row in of_rows:
                if not self.frames.has(row, field):
                    raise StoreError(f"{self.frames.root}: frame {self.frames.tokens[row]} has no {field}; {remedy}")

    def build(
        self, rows: Sequence[int], augments: Sequence[FrameAugment], past: Sequence[Sequence[int]] = ()
    ) -> tuple[Batch, TeachersSaid | None]:
        """The batch of these rows, one augmentation each, and what the teachers said of the same frames; past: for
        every frame the rows of its earlier moments, oldest first, ABSENT where there is none (`trainer.past`)."""
        needs, parts = self.needs, _Parts()
        cameras = CameraParts(len(rows), needs.image_size) if needs.image_size else None
        matrices = [augment.bev.matrix() for augment in augments]
        labelled = [self.frames.is_labelled(row) for row in rows] if needs.labels else []
        for sample, (row, augment, matrix) in enumerate(zip(rows, augments, matrices, strict=True)):
            with self._named(row):
                if needs.points:
                    with stage("decode"):
                        cloud = self.frames.points(row)
                    with stage("augment"):
                        parts.points.append(torch.from_numpy(move_points(cloud, matrix)))
                if cameras is not None:
                    cameras.add(self.frames, row, sample, augment, matrix, needs.depth)
                if needs.labels and labelled[sample]:
                    self._add_boxes(parts, row, matrix)
                elif needs.labels:
                    parts.kept.append(np.zeros(0, bool))
                    parts.boxes.append(torch.zeros(0, 9))
                    parts.labels.append(torch.zeros(0, dtype=torch.int64))
        with stage("collate"):
            pictures = cameras.tensors(augments) if cameras is not None else {}
        batch = Batch(
            points=parts.points if needs.points else None,
            **pictures,
            boxes=parts.boxes,
            labels=parts.labels,
            labelled=None if all(labelled) else torch.tensor(labelled),
            tokens=[self.frames.tokens[row] for row in rows],
            bev_augmentation=torch.from_numpy(np.stack(matrices)),
            history=self._history(rows, augments, matrices, past),
        )
        if self.said is None:
            return batch, None
        with stage("decode"):
            return batch, self.said.read(rows, parts.kept)

    def _history(
        self,
        rows: Sequence[int],
        augments: Sequence[FrameAugment],
        matrices: Sequence[np.ndarray],
        past: Sequence[Sequence[int]],
    ) -> list[Past]:
        """Moments of the past that any frame has, oldest first. One augmentation is for a whole window: A, since maps
        of its moments then differ by motion alone, and what is done to images, which a model of windows expects of one
        drive."""
        moments = [column for column in zip(*past, strict=True) if set(column) != {ABSENT}]
        return [self._moment(rows, column, augments, matrices) for column in moments]

    def _moment(
        self,
        rows: Sequence[int],
        earlier: Sequence[int],
        augments: Sequence[FrameAugment],
        matrices: Sequence[np.ndarray],
    ) -> Past:
        assert self.needs.image_size is not None
        cameras = CameraParts(len(rows), self.needs.image_size)
        motions, ages = np.tile(np.eye(4), (len(rows), 1, 1)), np.zeros(len(rows), np.float32)
        for sample, (row, then, matrix) in enumerate(zip(rows, earlier, matrices, strict=True)):
            if then == ABSENT:
                continue
            with self._named(then):
                cameras.add(self.frames, then, sample, augments[sample], matrix)
                motions[sample], ages[sample] = motion_since(self.frames.frame(then), self.frames.frame(row), matrix)
        with stage("collate"):
            pictures = cameras.tensors(augments)
        frames = Batch(**pictures, tokens=["" if row == ABSENT else self.frames.tokens[row] for row in earlier])
        known = torch.tensor([row != ABSENT for row in earlier])
        return Past(frames, torch.from_numpy(motions), known, torch.from_numpy(ages))

    @contextlib.contextmanager
    def _named(self, row: int) -> Iterator[None]:
        """Names the frame in what goes wrong unexpectedly; BevcaskErrors name frame and remedy themselves."""
        try:
            yield
        except BevcaskError:
            raise
        except Exception as error:
            error.add_note(f"while building frame {self.frames.tokens[row]} of {self.frames.root}")
            raise

    def _add_boxes(self, parts: _Parts, row: int, matrix: np.ndarray) -> None:
        """Boxes without a LiDAR or radar return are left out, as the released detectors do: nothing shows where they
        are.
        """
        with stage("decode"):
            ids, boxes = self.frames.read(row, "gt_ids"), self.frames.boxes_lidar(row)
        seen = ids[:, 2] + ids[:, 3] > 0
        parts.kept.append(seen)
        with stage("augment"):
            parts.boxes.append(torch.from_numpy(move_boxes(boxes[seen], matrix)))
        parts.labels.append(torch.from_numpy(ids[seen, 0].astype(np.int64)))


def motion_since(then: Frame, now: Frame, matrix: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """`past_to_now` (4, 4) of two moments under A = `matrix`, and the seconds between them."""
    motion = past_to_now(then.lidar_to_global(), now.lidar_to_global(), matrix)
    return motion, (now.timestamp_us - then.timestamp_us) / 1e6


class _Parts:
    """What the frames of a batch have given so far, beside pictures."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.boxes: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.kept: list[np.ndarray] = []  # of each frame the annotated boxes that it shows, (N,) bool
