"""The audit of a teacher store before a student learns from it: what of the annotated world the store can teach.

Takes frames, their annotations, the teacher's detections and the places of its stored cells; gives counts by class and
by distance from the car: objects that the teacher found, that have stored cells, that no cell can serve. Never reads
the feature values. One frame at a time, so memory does not grow. Measured on one core of a busy machine: 0.9 ms a frame
with 40 boxes, 100 detections and 1,500 cells; 4.9 ms with 200, 500 and all of 128 x 128; a simulated store of local
files, reading included, 1.3 ms a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, CorruptError
from cache.frame import Detections, Frame, GroundTruth, rotation_matrix
from cache.grid import BevGrid
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from evaluation.boxes import detections_to_global

SCORE = 0.1
MATCH_M = 2.0  # of the metric's thresholds the one that its true positive errors are measured at
BAND_EDGES_M = (10.0, 20.0, 30.0, 40.0, 50.0)
BANDS = ("0-10", "10-20", "20-30", "30-40", "40-50", "50+")
# detection_cvpr_2019: farther objects, and farther detections, do not count
CLASS_RANGE_M = dict(zip(DETECTION_CLASSES, (50.0,) * 5 + (40.0,) * 3 + (30.0,) * 2, strict=True))
BORDER_M = 1e-5  # as the selector footprint: float32 boxes are no more exact
MEASURES = (
    "annotated",
    "counted",
    "supported",
    "with_cells",
    "outside_grid",
    "no_lidar",
    "detections",
    "unmatched",
)
_RANGES = np.array(list(CLASS_RANGE_M.values()))
_CYCLES = [DETECTION_CLASSES.index(name) for name in ("bicycle", "motorcycle")]
_SHAPE = (len(MEASURES), len(DETECTION_CLASSES), len(BANDS))


@dataclass(frozen=True)
class Setting:
    """What an audit is made with: the teacher's grid, its columns of weights by name, and the least score of a
    detection that lends support. ConfigError where that is outside 0..1."""

    grid: BevGrid
    columns: tuple[str, ...]
    score: float = SCORE

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ConfigError(f"score {self.score:g}: expected 0 to 1, the least score of a detection that counts")


@dataclass(frozen=True)
class AuditedFrame:
    """What stores say of one frame. truth, boxes_lidar (N, >= 7): the annotations, global and canonical, in one order;
    None without. index (K,): the stored cells, row * W + col; weights (K, S): one column a selector."""

    frame: Frame
    truth: GroundTruth | None
    boxes_lidar: np.ndarray | None
    detections: Detections
    index: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Audit:
    """Counts over frames; audits of one setting add up.

    objects (8, 10, 6): by measure, class and band of distance from the car (ego pose, seen from above, as the metric
    measures it). `annotated` are all boxes; `counted` those that the metric counts: in its class's range, with a LiDAR
    or radar point, no cycle in a rack. Of the counted: `supported` matched by a detection of the score, `with_cells`
    with a stored cell in the footprint, `outside_grid` without any cell of the grid there, `no_lidar` seen by radar
    only. `detections` are the teacher's of the score that the metric counts, `unmatched` those that match no object;
    both by their own distance.

    frames, without_cells (2,): labelled and unlabelled. cells (2, 1 + S): stored cells on them, in any column and in
    each; in_boxes (1 + S,): of those on labelled frames, cells in the footprint of any annotated box.
    """

    setting: Setting
    objects: np.ndarray
    frames: np.ndarray
    without_cells: np.ndarray
    cells: np.ndarray
    in_boxes: np.ndarray

    @classmethod
    def empty(cls, setting: Setting) -> Audit:
        """The audit of no frame."""
        columns = 1 + len(setting.columns)
        shapes: tuple[tuple[int, ...], ...] = (_SHAPE, (2,), (2,), (2, columns), (columns,))
        return cls(setting, *(np.zeros(shape, np.int64) for shape in shapes))

    def __add__(self, other: Audit) -> Audit:
        if self.setting != other.setting:
            raise ConfigError(f"audits of {self.setting} and {other.setting} do not add up; make both with one setting")
        names = [field.name for field in fields(self)][1:]
        return Audit(self.setting, *(getattr(self, name) + getattr(other, name) for name in names))

    def of(self, measure: str) -> np.ndarray:
        """(10, 6) int64: one measure by class and band."""
        return self.objects[MEASURES.index(measure)]

    @property
    def labelled(self) -> bool:
        """Whether there is anything to compare the teacher with."""
        return bool(self.frames[0])

    def totals(self) -> dict[str, int]:
        """Every measure over all classes and bands, and the objects that lack the teacher's support."""
        out = dict(zip(MEASURES, self.objects.sum(axis=(1, 2)).tolist(), strict=True))
        return {**out, "without_support": out["counted"] - out["supported"]}

    def cell_shares(self) -> list[tuple[str, float, float | None]]:
        """For any column and for each: its name, cells a frame, and the share of cells that lie in an annotated box
        (None without annotations, or without a cell)."""
        frames = max(int(self.frames.sum()), 1)
        names = ("any", *self.setting.columns)
        return [
            (name, int(self.cells[:, i].sum()) / frames, _share(int(self.in_boxes[i]), int(self.cells[0, i])))
            for i, name in enumerate(names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without annotated frames no objects."""
        (labelled, unlabelled), (bare, bare_unlabelled) = self.frames.tolist(), self.without_cells.tolist()
        out: dict[str, Any] = {
            "score": self.setting.score,
            "frames": {
                "labelled": labelled,
                "unlabelled": unlabelled,
                "labelled_without_cells": bare,
                "unlabelled_without_cells": bare_unlabelled,
            },
            "cells": {
                name: {"per_frame": per_frame, "in_boxes": share} for name, per_frame, share in self.cell_shares()
            },
        }
        if self.labelled:
            out |= {
                "match_m": MATCH_M,
                "distance": "m from the ego pose, seen from above",
                "bands": list(BANDS),
                "totals": self.totals(),
                "classes": {
                    name: {measure: self.of(measure)[i].tolist() for measure in MEASURES}
                    for i, name in enumerate(DETECTION_CLASSES)
                },
            }
        return out


def audit_store(frames: FrameStore, teacher: TeacherStore, rows: Sequence[int], score: float = SCORE) -> Audit:
    """Audits the teacher store on these rows of the frame store, whose classes must be nuScenes' ten.

    Raises ConfigError for the score, what `require_same_frames` raises where the stores do not belong together,
    CorruptError for a cell off the grid, DataError for an unsound detection.
    """
    setting = Setting(teacher.grid, tuple(teacher.selectors), score)
    cells = teacher.bev.height * teacher.bev.width  # `bev` also checks the header against grid and columns
    audit = Audit.empty(setting)
    for row, other in zip(rows, require_same_frames(frames, teacher, rows), strict=True):
        labelled = frames.is_labelled(row)
        index, weights = teacher.read_many(other, ("bev_index", "bev_weights"))
        if len(index) and not (index.min() >= 0 and index.max() < cells):
            raise CorruptError(
                f"{teacher.root}: frame {teacher.token(other)} has cells {index.min()}..{index.max()}, expected "
                f"0..{cells - 1}; cache the teacher again"
            )
        given = AuditedFrame(
            frames.frame(row),
            frames.truth(row) if labelled else None,
            frames.boxes_lidar(row) if labelled else None,
            teacher.detections(other),
            index,
            weights,
        )
        audit += audit_frame(given, setting)
    return audit


def audit_frame(given: AuditedFrame, setting: Setting) -> Audit:
    """The audit of one frame; without annotations its cells alone."""
    out = Audit.empty(setting)
    kind = 0 if given.truth is not None else 1
    held = given.weights > 0  # (K, S)
    held = np.concatenate([held.any(axis=1, keepdims=True), held], axis=1)  # (K, 1 + S), any column first
    out.frames[kind] = 1
    out.cells[kind] = held.sum(axis=0)
    out.without_cells[kind] = not held.any()
    if given.truth is None or given.boxes_lidar is None:
        return out
    truth, labels = given.truth, given.truth.class_ids
    box, cell = footprint_cells(given.boxes_lidar, setting.grid)
    under = np.zeros(setting.grid.height * setting.grid.width, bool)
    under[cell] = True
    out.in_boxes[:] = held[under[given.index]].sum(axis=0)
    stored = np.zeros(len(under), bool)
    stored[given.index[held[:, 0]]] = True

    ego = given.frame.ego_to_global.translation[:2]
    distance = _norm(truth.boxes_global[:, :2] - ego)
    seen = (np.asarray(truth.num_lidar_pts, np.int64) + truth.num_radar_pts) != 0
    counted = _counted(truth.boxes_global, labels, distance, truth.racks_global) & seen
    said = detections_to_global(given.frame, given.detections.above(setting.score))
    said_distance = _norm(said.boxes[:, :2] - ego)
    heard = _counted(said.boxes, said.class_ids, said_distance, truth.racks_global)
    found, taken = match(
        truth.boxes_global[counted, :2],
        labels[counted],
        said.boxes[heard, :2],
        said.class_ids[heard],
        said.scores[heard],
    )
    supported = np.zeros(len(labels), bool)
    supported[np.flatnonzero(counted)[found]] = True
    of_box = {
        "annotated": np.ones(len(labels), bool),
        "counted": counted,
        "supported": supported,
        "with_cells": counted & (np.bincount(box[stored[cell]], minlength=len(labels)) > 0),
        "outside_grid": counted & (np.bincount(box, minlength=len(labels)) == 0),
        "no_lidar": counted & (truth.num_lidar_pts == 0),
    }
    for name, chosen in of_box.items():
        _tally(out.of(name), labels[chosen], distance[chosen])
    _tally(out.of("detections"), said.class_ids[heard], said_distance[heard])
    _tally(out.of("unmatched"), said.class_ids[heard][~taken], said_distance[heard][~taken])
    return out


def match(
    truth_xy: np.ndarray, truth_labels: np.ndarray, xy: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,), (D,) bool: which objects are found by a detection, and which detections find one, as the metric matches a
    frame: by falling score (of equal ones the later first, as the devkit sorts) each detection takes the nearest object
    of its class that is still free, if its centre is less than 2 m away, seen from above."""
    found, taken = np.zeros(len(truth_xy), bool), np.zeros(len(xy), bool)
    distance = _norm(xy[:, None] - truth_xy[None])  # (D, N)
    distance[(labels[:, None] != truth_labels[None]) | ~(distance < MATCH_M)] = np.inf
    order = np.lexsort((np.arange(len(scores)), scores))[::-1]
    for detection in order[np.isfinite(distance[order]).any(axis=1)]:  # the others find nothing
        free = np.where(found, np.inf, distance[detection])
        nearest = int(free.argmin())
        if np.isfinite(free[nearest]):
            found[nearest] = taken[detection] = True
    return found, taken


def footprint_cells(boxes_lidar: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P,), (P,) of box and flat cell: the cells of each box (N, >= 7) seen from above, as the selector
    `footprint` without margin has them: those whose centre lies in the box, and the one that holds the box's own
    centre, since a cone holds no cell's centre. A box without a cell is off the grid (or not finite)."""
    boxes = np.asarray(boxes_lidar, np.float64)
    boxes = boxes[:, [0, 1, 3, 4, 6]] if len(boxes) else np.zeros((0, 5))
    finite = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    centre, yaw = boxes[finite, :2], boxes[finite, 4]
    half = np.maximum(boxes[finite, 2:4], 0) / 2 + BORDER_M
    turn = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)  # (N, 2) heading
    reach = np.abs(turn) * half[:, :1] + np.abs(turn[:, ::-1]) * half[:, 1:]
    corner, size = np.array([grid.x_min, grid.y_min]), np.array([grid.width, grid.height])
    # the window of each box: every cell that may lie in it, one to spare, none off the grid
    low = np.clip(np.floor((centre - reach - corner) / grid.cell_m) - 1, 0, size).astype(np.int64)
    high = np.clip(np.floor((centre + reach - corner) / grid.cell_m) + 2, 0, size).astype(np.int64)
    wide = high - low
    count = wide.prod(axis=1)
    box = np.repeat(np.arange(len(finite)), count)
    place = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count)
    col = low[box, 0] + place % np.maximum(wide[box, 0], 1)
    row = low[box, 1] + place // np.maximum(wide[box, 0], 1)
    away = corner + (np.stack([col, row], axis=1) + 0.5) * grid.cell_m - centre[box]
    along = np.abs((away * turn[box]).sum(axis=1))
    across = np.abs(away[:, 1] * turn[box, 0] - away[:, 0] * turn[box, 1])
    own = np.floor((centre[box] - corner) / grid.cell_m) == np.stack([col, row], axis=1)
    inside = ((along <= half[box, 0]) & (across <= half[box, 1])) | own.all(axis=1)
    return finite[box[inside]], (row * grid.width + col)[inside]


def _counted(boxes: np.ndarray, labels: np.ndarray, distance: np.ndarray, racks: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes (N, >= 3) global, in the range of their class and no cycle in a rack (M, 10)."""
    keep = distance < _RANGES[labels]
    cycle = np.isin(labels, _CYCLES)
    for rack in racks if cycle.any() else ():
        local = (boxes[:, :3] - rack[:3]) @ rotation_matrix(rack[6:10])
        keep &= ~(cycle & (np.abs(local) <= rack[[4, 3, 5]] / 2).all(axis=1))
    return keep


def _tally(counts: np.ndarray, labels: np.ndarray, distance: np.ndarray) -> None:
    """Adds things to `counts` (10, 6) by class and distance."""
    np.add.at(counts, (labels, np.searchsorted(BAND_EDGES_M, distance, side="right")), 1)


def _norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors**2).sum(axis=-1))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
