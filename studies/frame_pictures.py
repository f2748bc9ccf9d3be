"""The pictures of a report: the frames that a model does worst on and a typical one, what it says and what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import BevcaskError
from cache.frame import Frame, GroundTruth
from cache.geometry import boxes_to_lidar
from cache.store import FrameStore, TeacherStore
from evaluation.draw import BoxLayer, decode_jpeg, detection_layer, draw_bev, draw_cameras, truth_layer
from evaluation.explained import Explained
from evaluation.match_table import BoxesOf
from evaluation.report import ReportFrame
from evaluation.working_point import typical_frame, worst_frames
from studies.inspection import foreground_of

BEV_PIXELS = 820
_UNKNOWN_SCORE = 0.3  # of a class whose working score is not known: nothing of it was ever right


@dataclass(frozen=True)
class Gallery:
    """What can be drawn. rows: of the frame store, by token; teacher: beside the model, None where there is none."""

    store: FrameStore
    rows: Mapping[str, int]
    frames: Sequence[Frame]
    truth: Sequence[GroundTruth]
    teacher: TeacherStore | None


def report_frames(
    gallery: Gallery, explained: Explained, boxes_of: BoxesOf, layer: str, most: int
) -> list[ReportFrame]:
    """Up to `most` of the worst frames and then a typical one; none for 0. layer: the model's name in the pictures.

    What can't be read of a frame is told in its caption in place of the picture.
    """
    if not most:
        return []
    chosen = [(number, "") for number in worst_frames(explained.table, explained.counts, most)]
    middle = typical_frame(explained.table, explained.counts)
    if middle is not None and middle not in [number for number, _ in chosen]:
        chosen.append((middle, "For comparison, the frame of the median F1. "))
    return [_report_frame(gallery, explained, boxes_of, layer, number, words) for number, words in chosen]


def _report_frame(
    gallery: Gallery, explained: Explained, boxes_of: BoxesOf, layer: str, number: int, words: str
) -> ReportFrame:
    frame, counts = gallery.frames[number], explained.counts
    row = gallery.rows[frame.token]
    truth = truth_layer(frame, gallery.truth[number])
    model = _model_layer(layer, frame, boxes_of, explained.working)
    layers, grid, mask = [truth, model], None, None
    problems: list[str] = []
    if gallery.teacher is not None:
        try:
            at = gallery.teacher.row_of(frame.token)
            if layer != "teacher":
                layers.insert(1, detection_layer("teacher", gallery.teacher.detections(at)))
            grid, mask = gallery.teacher.grid, foreground_of(gallery.teacher, frame.token)
        except BevcaskError as error:
            problems.append(f"teacher: {_line(error)}")
    points = cameras = None
    try:
        points = gallery.store.points(row) if gallery.store.has(row, "points") else None
    except BevcaskError as error:
        problems.append(f"points: {_line(error)}")
    try:
        images = [decode_jpeg(gallery.store.image(row, camera.channel)) for camera in frame.cameras]
        cameras = draw_cameras(images, frame, [truth, model])
    except BevcaskError as error:
        problems.append(f"no pictures of the cameras: {_line(error)}")
    said = (
        f"F1 {counts.f1[number]:.2f} at the working scores: {counts.right[number]} right, {counts.wrong[number]} "
        f"wrong, {counts.missed[number]} missed of {int(counts.right[number] + counts.missed[number])} that count."
    )
    missing = f" Not drawn: {'; '.join(problems)}." if problems else ""
    bev = draw_bev(points, layers, grid=grid, mask=mask, size=BEV_PIXELS)
    return ReportFrame(f"{frame.scene_name}, sample {frame.token[:8]}", f"{words}{said}{missing}", bev, cameras)


def _model_layer(name: str, frame: Frame, boxes_of: BoxesOf, working: np.ndarray) -> BoxLayer:
    """What the model says at its working scores, in the canonical frame."""
    said = boxes_of([frame])
    least = np.where(np.isfinite(working), working, _UNKNOWN_SCORE)
    said = said.take(said.scores >= least[said.class_ids])
    boxes = boxes_to_lidar(said.boxes, frame.lidar_to_global())
    return BoxLayer(name, boxes, said.class_ids.astype(np.int32), said.scores)


def _line(error: BevcaskError) -> str:
    return " ".join(str(error).split())
