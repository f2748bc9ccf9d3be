"""Our own reader in the stream benchmark: the trainer's order and loader over the stores, one thread a worker.

A batch's pictures are decoded straight into its array, and nothing crosses a process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cache.store import FrameStore, TeacherStore
from studies.benches.stream_batch import (
    CAMERAS,
    CELLS,
    DETECTIONS,
    TEACHER_GROUPS,
    TRUTH_FIELDS,
    Batch,
    Sample,
    Setting,
    draw_pictures,
    picture_array,
)
from studies.benches.stream_contender import Epoch
from trainer.loader import Loader
from trainer.order import epoch_order, step_entries, steps_per_epoch


@contextlib.contextmanager
def opened(frames: Path, teacher: Path, setting: Setting) -> Iterator[Epoch]:
    """Reads a teacher store and, where the setting has pictures, its frame store; rows of both are the same frames."""
    stores = _Stores(frames if setting.pictures else None, teacher, setting)

    def epoch(number: int) -> Iterator[Batch]:
        order = epoch_order(0, number, setting.frames)
        steps = range(steps_per_epoch(setting.frames, setting.batch))
        jobs = (step_entries(order, step, setting.batch) for step in steps)
        with Loader(jobs, stores.batch, threads=setting.workers, depth=2 * setting.workers) as loader:
            yield from loader

    try:
        yield epoch
    finally:
        stores.close()


class _Stores:
    """Batches of rows; safe to share between threads, as the stores are."""

    def __init__(self, frames: Path | None, teacher: Path, setting: Setting) -> None:
        self.teacher = TeacherStore(teacher)
        self.frames = FrameStore(frames) if frames else None
        self.setting = setting
        if self.frames and self.frames.tokens != self.teacher.tokens[: len(self.frames)]:
            raise ValueError("the two stores do not hold the same rows")

    def close(self) -> None:
        self.teacher.close()
        if self.frames:
            self.frames.close()

    def batch(self, rows: np.ndarray) -> Batch:
        """The frames of these rows, each field decoded into its place in the batch."""
        arrays = self.teacher.read_joined(rows, CELLS + DETECTIONS)
        batch = {"frame": torch.from_numpy(rows.astype(np.int64))}
        counts = {name: self.teacher.lengths(rows, names[0]) for name, names in TEACHER_GROUPS.items()}
        if self.setting.pictures and self.frames:
            truth = self.frames.read_joined(rows, TRUTH_FIELDS)
            arrays |= {"gt_boxes": truth["gt_lidar"], "gt_labels": np.ascontiguousarray(truth["gt_ids"][:, 0])}
            counts["truth_offsets"] = self.frames.lengths(rows, "gt_lidar")
            images = picture_array(self.setting.pictures, len(rows))
            for row, out in zip(rows, images, strict=True):
                draw_pictures(self.frames.read_bytes_many(int(row), CAMERAS), self.setting.pictures, out)
            batch["images"] = torch.from_numpy(images)
        batch |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        return batch | {name: torch.from_numpy(np.cumsum([0, *lengths])) for name, lengths in counts.items()}

    def fields(self, row: int) -> dict[str, np.ndarray]:
        """Every array of one frame but its pictures."""
        cells, found = self.teacher.cells(row), self.teacher.detections(row)
        out = {
            "bev_index": cells.index,
            "bev_values": cells.values,
            "bev_weights": cells.weights,
            "boxes": found.boxes_lidar,
            "scores": found.scores,
            "labels": found.labels,
        }
        if self.frames:
            out["gt_boxes"] = self.frames.boxes_lidar(row)
            out["gt_labels"] = np.ascontiguousarray(self.frames.read(row, "gt_ids")[:, 0])
        return out


def samples(frames: Path, teacher: Path, setting: Setting) -> Iterator[Sample]:
    """Every frame of the stores as the peers are to store it: plain arrays, JPEG bytes, and the row as its number."""
    stores = _Stores(frames if setting.pictures else None, teacher, setting)
    try:
        for row in range(setting.frames):
            sample: dict[str, object] = {"frame": row, **stores.fields(row)}
            if stores.frames:
                sample |= {name: stores.frames.image(row, name) for name in CAMERAS}
            yield sample
    finally:
        stores.close()
