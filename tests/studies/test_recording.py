"""A scene as a Rerun recording, read back by Rerun's own reader, and what is refused without writing anything."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import ConfigError, StoreError
from cache.store import FrameStore, TeacherStore
from evaluation.draw import truth_layer
from studies import recording
from studies.recording import SceneRequest, export_scene

needs_rerun = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None,
    reason="rerun-sdk is not installed; pip install -c constraints.txt -e '.[viewer]' runs this test",
)


def scene_of(cache: Path) -> str:
    store = FrameStore(cache / "frames")
    return store.scene_of(store.key_rows("mini_val")[0])


def column(path: Path, entity: str, name: str) -> list[Any]:
    """A component of an entity, a value a frame in order, None where there is none."""
    import rerun as rr

    view = rr.dataframe.load_recording(str(path)).view(index="frame", contents=entity)
    table = view.select().read_all()
    (key,) = [key for key in table.column_names if key == f"/{entity}:{name}"]
    return table.column(key).to_pylist()


@needs_rerun
def test_a_recording_has_every_frame_with_points_cameras_boxes_and_masks(
    between_cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_LEAST_SCORE", 0.05)  # an untrained teacher is sure of nothing
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(weights, run / "model.safetensors")
    path, name = tmp_path / "new" / "scene.rrd", scene_of(between_cache)
    said = export_scene(between_cache, SceneRequest(name, path, run=run))
    store, teacher = FrameStore(between_cache / "frames"), TeacherStore(between_cache / "teachers" / "t")
    rows = sorted(
        (row for row in range(len(store)) if store.scene_of(row) == name), key=lambda row: store.frame(row).timestamp_us
    )
    assert said == {
        "frames": len(rows),
        "key_frames": sum(store.is_keyframe(row) for row in rows),
        "teachers": ["t"],
        "bytes": path.stat().st_size,
    }
    assert said["frames"] > said["key_frames"] == 2  # unlabelled ones between them
    assert list(path.parent.iterdir()) == [path]
    centres = column(path, "world/lidar/truth", "PoseTranslation3D")
    images = column(path, "world/lidar/CAM_FRONT", "Blob")
    points = column(path, "world/lidar/points", "Position3D")
    masks = column(path, "world/lidar/teachers/t/mask", "PoseTranslation3D")
    labels = column(path, "world/lidar/teachers/t/boxes", "Text")
    assert len(images) == len(points) == len(masks) == len(labels) == len(rows)
    assert {store.is_labelled(row) for row in rows} == {True, False}
    for row, found in zip(rows, centres, strict=True):
        boxes = (
            truth_layer(store.frame(row), store.truth(row)).boxes_lidar if store.is_labelled(row) else np.zeros((0, 9))
        )
        np.testing.assert_allclose(np.asarray(found).reshape(-1, 3), boxes[:, :3], atol=1e-5)
    for number, row in enumerate(rows):
        assert bytes(images[number][0]) == store.image(row, "CAM_FRONT")
        assert len(points[number]) == len(store.points(row))
        at = teacher.row_of(store.token(row))
        shown = teacher.detections(at).above(0.05)
        assert len(labels[number] or []) == len(shown)
        assert len(masks[number]) == (recording.foreground_of(teacher, store.token(row)) > 0).sum()
    assert any(labels) and any(masks)
    student = column(path, "world/lidar/student", "Text")
    assert [bool(said) for said in student] == [
        store.is_keyframe(row) for row in rows
    ]  # and none stays beyond its frame


@needs_rerun
def test_a_recording_that_fails_leaves_nothing(
    between_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise StoreError("gone")

    monkeypatch.setattr(recording, "_log_frame", fails)
    with pytest.raises(StoreError, match="gone"):
        export_scene(between_cache, SceneRequest(scene_of(between_cache), tmp_path / "s.rrd"))
    assert list(tmp_path.iterdir()) == []


@needs_rerun
def test_scenes_and_teachers_that_are_not_there_are_told_with_those_that_are(
    between_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"no scene 'scene-x'; it has scene-"):
        export_scene(between_cache, SceneRequest("scene-x", tmp_path / "s.rrd"))
    with pytest.raises(ConfigError, match=r"no teacher store u; it has \['t'\]"):
        export_scene(between_cache, SceneRequest(scene_of(between_cache), tmp_path / "s.rrd", teachers=["u"]))
    assert list(tmp_path.iterdir()) == []


def test_a_recording_needs_its_name_and_the_extra(
    between_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"a Rerun recording's name ends in \.rrd"):
        SceneRequest("scene", tmp_path / "s.html")
    monkeypatch.setattr(recording.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs rerun-sdk; install the extra: .*\[viewer\]"):
        export_scene(between_cache, SceneRequest("scene", tmp_path / "s.rrd"))
