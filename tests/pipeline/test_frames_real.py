"""The frame pipeline on one real nuScenes keyframe, and every way its input can be bad."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cache.depth_labels import depth_labels
from cache.errors import ConfigError, DataError, FingerprintError, StoreError
from cache.frame import CAMERA_CHANNELS
from cache.geometry import points_in_boxes
from cache.store import FrameStore
from pipeline.frames import FrameOptions, cache_frames
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

pytestmark = needs_real_data
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    cache = tmp_path_factory.mktemp("real")
    manifest = cache_frames(REAL_ROOT, VERSION, cache, options=FrameOptions(points=True), workers=1)
    assert not manifest.quarantined
    return FrameStore(cache / "frames")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A writable copy of the data set."""
    return Path(shutil.copytree(REAL_ROOT, tmp_path / "data", copy_function=shutil.copyfile))


def lidar_file(root: Path) -> Path:
    return next((root / "samples" / "LIDAR_TOP").iterdir())


def test_points_in_boxes_agree_with_the_published_counts(store: FrameStore) -> None:
    truth = store.truth(0)
    counts = points_in_boxes(store.points(0)[:, :3], truth.boxes_global, store.frame(0).lidar_to_global())
    assert len(truth) == 68
    assert (np.abs(counts - truth.num_lidar_pts) <= 1).mean() >= 0.9


def test_images_are_stored_as_they_are_at_scale_one(store: FrameStore) -> None:
    for channel in CAMERA_CHANNELS:
        path = next((REAL_ROOT / "samples" / channel).iterdir())
        assert store.image(0, channel) == path.read_bytes()


def test_depth_labels_agree_with_the_devkits_own_projection(store: FrameStore) -> None:
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(VERSION, str(REAL_ROOT), verbose=False)
    sample = nusc.sample[0]
    for position, channel in enumerate(CAMERA_CHANNELS):
        points, depth, _ = nusc.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"][channel])
        labels = store.depth(0)
        ours = labels[labels[:, 0] == position]
        near_own_car = len(points[0]) - len(ours)  # the devkit keeps own-car returns here
        assert 0 <= near_own_car < 0.05 * len(points[0]) + 5
        theirs = np.stack([points[0], points[1], depth], axis=1)
        distance = np.abs(ours[:, None, 1:3] - theirs[None, :, :2]).max(axis=2)
        nearest = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 0.05
        assert np.abs(theirs[nearest, 2] - ours[:, 3]).max() < 0.02


def test_canonical_boxes_agree_with_the_devkits_sensor_frame_boxes(store: FrameStore) -> None:
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(VERSION, str(REAL_ROOT), verbose=False)
    _, boxes, _ = nusc.get_sample_data(nusc.sample[0]["data"]["LIDAR_TOP"])
    theirs = {tuple(np.round(box.wlh, 4)) + tuple(np.round(box.center, 3)): box for box in boxes}
    ours = store.boxes_lidar(0)
    matched = 0
    for box in ours:
        centre, size = box[:3], box[[4, 3, 5]]
        for other in theirs.values():
            if np.abs(other.center - centre).max() < 1e-4 and np.abs(other.wlh - size).max() < 1e-5:
                yaw = np.arctan2(*other.orientation.rotation_matrix[1::-1, 0])
                assert abs((yaw - box[6] + np.pi) % (2 * np.pi) - np.pi) < 1e-5
                matched += 1
    assert matched == len(ours) == 68


def test_scaled_store_has_scaled_intrinsics(tmp_path: Path, store: FrameStore) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, options=FrameOptions(image_scale=0.25), workers=1)
    small = FrameStore(tmp_path / "frames")
    for a, b in zip(small.frame(0).cameras, store.frame(0).cameras, strict=True):
        assert (a.width, a.height) == (400, 225)
        assert a.intrinsic[0, 0] == pytest.approx(b.intrinsic[0, 0] / 4)
        picture = cv2.imdecode(np.frombuffer(small.image(0, a.channel), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (225, 400, 3)
    assert not small.has(0, "points")
    with pytest.raises(StoreError, match="no field 'points'"):
        small.points(0)


def test_a_second_run_changes_no_byte(copy: Path, tmp_path: Path) -> None:
    cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    before = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    assert before == {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}


def test_other_settings_on_the_same_cache_are_refused_with_both_values(tmp_path: Path) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, options=FrameOptions(image_scale=0.25), workers=1)
    with pytest.raises(FingerprintError, match=r"header\.image_scale = 0\.25, this run asks for 0\.5"):
        cache_frames(REAL_ROOT, VERSION, tmp_path, options=FrameOptions(image_scale=0.5), workers=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_root": Path("nowhere")}, "data root nowhere does not exist"),
        ({"version": "v1.0-trainval"}, r"no version 'v1\.0-trainval', found \['v1\.0-mini'\]"),
        ({"split": "val"}, r"split 'val' is not in v1\.0-mini .*; it has \['mini_train'\]"),
    ],
)
def test_wrong_root_version_or_split_is_refused_before_anything_is_written(
    tmp_path: Path, arguments, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cache_frames(**{"data_root": REAL_ROOT, "version": VERSION, "cache": tmp_path / "c", "workers": 1, **arguments})
    assert not (tmp_path / "c").exists()


def test_missing_and_broken_tables_are_named(copy: Path, tmp_path: Path) -> None:
    table = copy / VERSION / "calibrated_sensor.json"
    rows = json.loads(table.read_text())
    table.write_text(json.dumps(rows[1:]))
    with pytest.raises(DataError, match=r"do not link|do not open"):
        cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    table.write_text("[{")
    with pytest.raises(DataError, match="do not open"):
        cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    table.unlink()
    with pytest.raises(DataError, match=r"tables missing: calibrated_sensor"):
        cache_frames(copy, VERSION, tmp_path / "c", workers=1)


@pytest.mark.parametrize("damage", ["missing", "truncated", "nan", "jpeg"])
def test_a_frame_that_cannot_be_read_is_reported_and_nothing_half_written_stays(
    copy: Path, tmp_path: Path, damage: str
) -> None:
    target = lidar_file(copy)
    whole = target.read_bytes()
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(whole[: len(whole) // 2])
    elif damage == "nan":
        points = np.frombuffer(whole, np.float32).copy()
        points[7] = np.nan
        target.write_bytes(points.tobytes())
    else:
        target = next((copy / "samples" / "CAM_BACK").iterdir())
        whole = target.read_bytes()
        target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"not one of 1 frames could be read.*{re.escape(target.name)}"):
        cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    root = tmp_path / "c" / "frames"
    assert not (root / "manifest.json").exists() and not list(root.rglob("*.partial"))
    with pytest.raises(StoreError, match="unfinished caching run"):
        FrameStore(root)
    target.write_bytes(whole)  # repaired: the same command now succeeds
    assert not cache_frames(copy, VERSION, tmp_path / "c", workers=1).quarantined
    assert len(FrameStore(root)) == 1


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_impossible_image_scale_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="--image-scale"):
        FrameOptions(image_scale=scale)


def test_a_stray_return_far_away_is_no_depth_label(store: FrameStore) -> None:
    camera = store.frame(0).cameras[1]
    ahead = np.linalg.inv(camera.lidar_to_camera) @ np.array([[0, 0, 30.0, 1], [0, 0, 1e6, 1], [0, 0, 199.0, 1]]).T
    points = np.concatenate([ahead[:3].T, np.zeros((3, 2))], axis=1).astype(np.float32)
    labels = depth_labels(points, [camera])
    np.testing.assert_allclose(labels[:, 3] / 100, [30.0, 199.0], atol=0.05)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("sample_data", "width", None),
        ("calibrated_sensor", "camera_intrinsic", []),
        ("calibrated_sensor", "rotation", [0, 0, 0, 0]),
    ],
)
def test_impossible_values_in_tables_are_one_clear_line(
    copy: Path, tmp_path: Path, table: str, key: str, value
) -> None:
    path = copy / VERSION / f"{table}.json"
    path.write_text(json.dumps([{**row, key: value} for row in json.loads(path.read_text())]))
    with pytest.raises(DataError, match="a table holds an impossible value"):
        cache_frames(copy, VERSION, tmp_path / "c", workers=1)
    assert not (tmp_path / "c").exists()
