"""Pictures of a few val frames while a run goes on: from above with truth, teacher and student, and both BEV maps.

The same frames at every validation, so that TensorBoard's slider shows a student learning. The student looks at them
when it is told to; drawing, about half a second of one core a frame, is left to whoever calls what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cache.cells import Cells
from cache.errors import StoreError
from cache.frame import Detections
from cache.grid import BevGrid
from cache.store import FrameStore, TeacherStore
from evaluation.draw import detection_layer, draw_bev, draw_maps, encode_png, truth_layer
from evaluation.layers import BoxLayer, MapLayer
from models.detector import Detector, DetectorOutput
from trainer.plan import Plan
from trainer.predict_work import work_of

FRAMES = 3
SIZE = 900  # pixels
TOP_BOXES = 60  # of the best scores: an untrained student says hundreds


class Sink(Protocol):
    """Takes a PNG of size (width, height)."""

    def __call__(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None: ...


@dataclass(frozen=True)
class _Seen:
    """What the student says of one frame."""

    row: int
    detections: Detections
    maps: list[MapLayer]


class ValPictures:
    """A `trainer.validation.Look`: draws `FRAMES` of the rows that are validated into `sink`."""

    def __init__(self, plan: Plan, sink: Sink) -> None:
        self._store, self._sink = plan.frames, sink
        self._teachers = {name: joined.store for name, joined in plan.teachers.items()}

    def __call__(self, model: Detector, step: int, rows: Sequence[int]) -> Callable[[], None]:
        """Looks at the frames; returns what draws them."""
        chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, FRAMES + 2).astype(int)[1:-1])]
        seen = look_at(model, self._store, chosen)
        return lambda: self._draw(step, seen)

    def _draw(self, step: int, seen: Sequence[_Seen]) -> None:
        for one in seen:
            frame = self._store.frame(one.row)
            layers: list[BoxLayer] = [truth_layer(frame, self._store.truth(one.row))]
            maps: list[MapLayer] = []
            for name, teacher in self._teachers.items():
                known = as_teacher(name, teacher, frame.token)
                if known is not None:
                    layers.append(known[0])
                    maps.append(known[1])
            student = detection_layer("student", _best(one.detections), min_score=0.0)
            points = self._store.points(one.row) if self._store.has(one.row, "points") else None
            name = f"{frame.scene_name}/{frame.token}"
            grid = one.maps[0].grid
            self._put(step, f"{name}/boxes", draw_bev(points, [*layers, student], grid=grid, size=SIZE))
            self._put(step, f"{name}/maps", draw_maps([*maps, *one.maps], layers[0]))

    def _put(self, step: int, tag: str, image: np.ndarray) -> None:
        self._sink(step, tag, encode_png(image), (image.shape[1], image.shape[0]))


def look_at(model: Detector, store: FrameStore, rows: Sequence[int]) -> list[_Seen]:
    """What `model`, in evaluation mode, says of each of the rows, by itself; of temporal ones with a window's past."""
    device = next(model.parameters()).device
    work = work_of(model, store, sorted(rows), 1, past="window")
    out = []
    for unit in work.units:
        for job in unit:
            batch, built, _ = work.build(job)
            with torch.inference_mode():
                output = model(batch.to(device))
                found = model.decode(output)
            out.append(_Seen(built[0], found[0], student_maps(output, model.grid)))
    return out


def student_maps(output: DetectorOutput, grid: BevGrid) -> list[MapLayer]:
    """Of the first frame: the mean size of the BEV map's values, and the heat of each cell's hottest class."""
    maps = [MapLayer("student: mean |value|", grid, _array(output.bev[0].float().abs().mean(dim=0)))]
    if any("heatmap" in head for head in output.heads):
        maps.append(MapLayer("student: heat of the hottest class", grid, _array(output.class_heat()[0].amax(dim=0))))
    return maps


def as_teacher(name: str, teacher: TeacherStore, token: str) -> tuple[BoxLayer, MapLayer] | None:
    """A teacher's boxes and map of a frame; None where its store is of other frames."""
    try:
        row = teacher.row_of(token)
    except StoreError:
        return None
    cells: Cells = teacher.cells(row)
    values = np.zeros(teacher.grid.height * teacher.grid.width, np.float32)
    values[cells.index] = np.abs(cells.values.astype(np.float32)).mean(axis=1)
    layer = MapLayer(f"teacher {name}: mean |value|", teacher.grid, values.reshape(teacher.grid.shape))
    return detection_layer(f"teacher {name}", teacher.detections(row)), layer


def _best(detections: Detections) -> Detections:
    order = np.argsort(-detections.scores, kind="stable")[:TOP_BOXES]
    return Detections(detections.boxes_lidar[order], detections.scores[order], detections.labels[order])


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
