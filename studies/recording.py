"""`./bevcask inspect --scene NAME --export FILE.rrd`: a scene over time as a Rerun recording, the viewer of the field.

Points, cameras, ground truth, teacher and student boxes and the teacher's mask, in the canonical frame of each moment,
which moves through the world as the car did. Needs the extra `viewer` (rerun-sdk); about a megabyte a frame, most of it
camera images, which go in as they are stored.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, StoreError
from cache.frame import Detections, Frame, GroundTruth
from cache.layout import frames_place, teacher_names, teacher_place
from cache.store import FrameStore, TeacherStore
from evaluation.draw import BoxLayer, detection_layer, truth_layer
from evaluation.layers import layer_colour
from studies.inspection import foreground_of

ROAD_Z_M = -1.8  # of the canonical frame, where masks are laid
_LEAST_SCORE = 0.2  # of boxes that are shown, as in the pictures
_MASK_RGB = (217, 78, 230)


@dataclass(frozen=True)
class SceneRequest:
    """What is recorded. teachers: names of teacher stores, all of the cache's where None; run: whose student predicts
    the scene's key frames, and the callable that it may be made with."""

    scene: str
    path: Path
    teachers: Sequence[str] | None = None
    run: Path | None = None
    trusted: str = ""

    def __post_init__(self) -> None:
        if self.path.suffix != ".rrd":
            raise ConfigError(f"--export {self.path}: a Rerun recording's name ends in .rrd")


def export_scene(cache: str | Path, request: SceneRequest) -> dict[str, Any]:
    """Writes the recording, whole or not at all, and says what is in it: frames, key frames, teachers, bytes.

    Raises ConfigError where rerun is not installed or a teacher is not there, StoreError naming scenes where there is
    no such one.
    """
    if importlib.util.find_spec("rerun") is None:
        raise ConfigError("--export needs rerun-sdk; install the extra: pip install -c constraints.txt -e '.[viewer]'")
    store = FrameStore(frames_place(cache))
    rows = _scene_rows(store, request.scene)
    names = teacher_names(cache) if request.teachers is None else list(request.teachers)
    unknown = sorted(set(names) - set(teacher_names(cache)))
    if unknown:
        raise ConfigError(f"{cache}: no teacher store {', '.join(unknown)}; it has {teacher_names(cache) or 'none'}")
    teachers = {name: TeacherStore(teacher_place(cache, name)) for name in names}
    student = _predictions(store, rows, request)
    partial = request.path.with_name(f".{request.path.stem}.{uuid.uuid4().hex[:8]}.partial.rrd")
    request.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(partial, store, rows, teachers, student, request)
        os.replace(partial, request.path)
    finally:
        partial.unlink(missing_ok=True)
    keys = sum(store.is_keyframe(row) for row in rows)
    return {"frames": len(rows), "key_frames": keys, "teachers": names, "bytes": request.path.stat().st_size}


def _scene_rows(store: FrameStore, scene: str) -> list[int]:
    """The scene's frames in order of time."""
    found = [row for row in range(len(store)) if store.scene_of(row) == scene]
    if not found:
        known = sorted({one.name for one in store.manifest.scenes})
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise StoreError(f"{store.root}: no scene {scene!r}; it has {shown}")
    return sorted(found, key=lambda row: int(store.index.timestamp_us[row]))


def _predictions(store: FrameStore, rows: Sequence[int], request: SceneRequest) -> Mapping[str, Detections]:
    if request.run is None:
        return {}
    from trainer.predict import load_run, predict  # torch

    keys = [row for row in rows if store.is_keyframe(row)]
    return predict(load_run(request.run, request.trusted), store, keys)


def _write(
    path: Path,
    store: FrameStore,
    rows: Sequence[int],
    teachers: Mapping[str, TeacherStore],
    student: Mapping[str, Detections],
    request: SceneRequest,
) -> None:
    import rerun as rr

    rr.set_strict_mode(True)  # else what rerun can't take is a warning, and is not in the file
    recording = rr.RecordingStream("bevcask", recording_id=request.scene)
    recording.save(str(path))
    try:
        recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        origin = store.frame(rows[0]).lidar_to_global()[:3, 3]  # float32 of map coordinates would be off by decimetres
        for number, row in enumerate(rows):
            frame = store.frame(row)
            recording.set_time("frame", sequence=number)
            recording.set_time("time", timestamp=frame.timestamp_us / 1e6)
            _log_frame(recording, store, row, frame, origin)
            labelled = store.is_labelled(row)  # else none, or those of the key frame before would stay
            truth = truth_layer(frame, store.truth(row) if labelled else GroundTruth.empty())
            _log_boxes(recording, "world/lidar/truth", truth)
            for name, teacher in teachers.items():
                _log_teacher(recording, name, teacher, frame)
            if request.run is not None:
                said = student.get(frame.token, Detections.empty())
                _log_boxes(recording, "world/lidar/student", detection_layer("student", said, _LEAST_SCORE))
    finally:
        recording.flush(blocking=True)
        recording.disconnect()
        rr.set_strict_mode(False)


def _log_frame(recording: Any, store: FrameStore, row: int, frame: Frame, origin: np.ndarray) -> None:
    """Where the car is, its points, and its cameras with their images."""
    import rerun as rr

    pose = frame.lidar_to_global()
    recording.log("world/lidar", rr.Transform3D(translation=pose[:3, 3] - origin, mat3x3=pose[:3, :3]))
    if store.has(row, "points"):
        points = store.points(row)[:, :3]
        shade = np.clip((points[:, 2] + 2.0) / 4.5, 0, 1)[:, None]
        colours = (np.array([58, 83, 120]) * (1 - shade) + np.array([255, 243, 214]) * shade).astype(np.uint8)
        recording.log("world/lidar/points", rr.Points3D(points, colors=colours, radii=0.04))
    for camera in frame.cameras:
        entity = f"world/lidar/{camera.channel}"
        back = np.linalg.inv(camera.lidar_to_camera)
        recording.log(entity, rr.Transform3D(translation=back[:3, 3], mat3x3=back[:3, :3]))
        pinhole = rr.Pinhole(
            image_from_camera=camera.intrinsic,
            resolution=[camera.width, camera.height],
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=2.0,
        )
        recording.log(entity, pinhole)
        recording.log(entity, rr.EncodedImage(contents=store.image(row, camera.channel), media_type="image/jpeg"))


def _log_teacher(recording: Any, name: str, teacher: TeacherStore, frame: Frame) -> None:
    """The teacher's boxes and its mask; of a frame that it has not, that there is nothing."""
    import rerun as rr

    entity = f"world/lidar/teachers/{name}"
    try:
        at = teacher.row_of(frame.token)
    except StoreError:
        recording.log(entity, rr.Clear(recursive=True))
        return
    _log_boxes(recording, f"{entity}/boxes", detection_layer("teacher", teacher.detections(at), _LEAST_SCORE))
    mask, grid = foreground_of(teacher, frame.token), teacher.grid
    y, x = np.nonzero(mask > 0)
    centres = np.stack(
        [grid.x_min + (x + 0.5) * grid.cell_m, grid.y_min + (y + 0.5) * grid.cell_m, np.full(len(x), ROAD_Z_M)], axis=1
    )
    alpha = np.clip(40 + 180 * mask[y, x] / max(float(mask.max()), 1e-9), 0, 255)[:, None]
    colours = np.concatenate([np.tile(_MASK_RGB, (len(x), 1)), alpha], axis=1).astype(np.uint8)
    sizes = np.tile([grid.cell_m / 2, grid.cell_m / 2, 0.01], (len(x), 1))
    cells = rr.Boxes3D(centers=centres, half_sizes=sizes, colors=colours, fill_mode="solid")
    recording.log(f"{entity}/mask", cells)


def _log_boxes(recording: Any, entity: str, layer: BoxLayer) -> None:
    """Boxes in the canonical frame; none of them clears those of the frame before."""
    import rerun as rr

    boxes = np.asarray(layer.boxes_lidar, np.float64)
    half = boxes[:, 6] / 2
    zeros = np.zeros(len(boxes))
    names = [DETECTION_CLASSES[int(label)].replace("_", " ") for label in layer.labels]
    scores = [""] * len(boxes) if layer.scores is None else [f" {score:.2f}" for score in layer.scores]
    colour = [int(layer_colour(layer.name)[at : at + 2], 16) for at in (1, 3, 5)]
    recording.log(
        entity,
        rr.Boxes3D(
            centers=boxes[:, :3],
            half_sizes=boxes[:, 3:6] / 2,
            quaternions=np.stack([zeros, zeros, np.sin(half), np.cos(half)], axis=1),
            colors=np.tile(np.array(colour, np.uint8), (len(boxes), 1)),
            labels=[name + score for name, score in zip(names, scores, strict=True)],
            show_labels=False,
        ),
    )
