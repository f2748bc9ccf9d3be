"""The folder that the simulator writes: the devkit opens it, everything links, bytes follow from the seed alone."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from nuscenes.utils.splits import create_splits_scenes

from cache.errors import ConfigError, DataError, OutOfSpaceError
from pipeline.simulator import plan_scenes, simulate
from pipeline.simulator import scene as scene_module
from pipeline.simulator.rig import CAMERA_OFFSET_US, RING_ELEVATION_DEG
from pipeline.simulator.scene import build_world
from tests.conftest import SIMULATED_VERSION


@pytest.fixture(scope="module")
def nusc(simulated_root: Path) -> NuScenes:
    return NuScenes(SIMULATED_VERSION, str(simulated_root), verbose=False)


def test_scenes_bear_the_first_names_of_the_official_splits(nusc: NuScenes) -> None:
    official = create_splits_scenes()
    assert [s["name"] for s in nusc.scene] == official["mini_train"][:2] + official["mini_val"][:1]


def test_every_token_links_and_every_file_exists(nusc: NuScenes, simulated_root: Path) -> None:
    tables = [
        (nusc.sample, {"scene_token": "scene"}),
        (nusc.scene, {"log_token": "log", "first_sample_token": "sample", "last_sample_token": "sample"}),
        (nusc.calibrated_sensor, {"sensor_token": "sensor"}),
        (
            nusc.sample_data,
            {"sample_token": "sample", "ego_pose_token": "ego_pose", "calibrated_sensor_token": "calibrated_sensor"},
        ),
        (
            nusc.sample_annotation,
            {"sample_token": "sample", "instance_token": "instance", "visibility_token": "visibility"},
        ),
        (
            nusc.instance,
            {
                "category_token": "category",
                "first_annotation_token": "sample_annotation",
                "last_annotation_token": "sample_annotation",
            },
        ),
    ]
    for rows, links in tables:
        assert rows
        for row in rows:
            assert len(row["token"]) == 32
            for key, table in links.items():
                nusc.get(table, row[key])
    for rows in (nusc.sample, nusc.sample_data, nusc.sample_annotation):
        by_token = {row["token"]: row for row in rows}
        for row in rows:
            assert not row["next"] or by_token[row["next"]]["prev"] == row["token"]
    for row in nusc.sample_data:
        assert (simulated_root / row["filename"]).is_file()
        assert row["filename"].startswith("samples" if row["is_key_frame"] else "sweeps")
    for row in nusc.map:
        assert row["mask"].mask().any()


def test_sweeps_are_50_ms_apart_and_cameras_fire_at_their_offsets(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        key = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        assert key["timestamp"] == sample["timestamp"]
        row = key
        for back in (1, 2):
            row = nusc.get("sample_data", row["prev"])
            assert not row["is_key_frame"]
            assert sample["timestamp"] - row["timestamp"] == 50_000 * back
            assert row["sample_token"] == sample["token"]
        for channel, offset in CAMERA_OFFSET_US.items():
            camera = nusc.get("sample_data", sample["data"][channel])
            assert camera["timestamp"] - sample["timestamp"] == offset
            assert nusc.get("ego_pose", camera["ego_pose_token"])["timestamp"] == camera["timestamp"]


def test_num_lidar_pts_is_the_devkits_own_count(nusc: NuScenes) -> None:
    some = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            count = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert count == points_in_box(box, points).sum()
            some += count > 0
    assert some > 20


def test_clouds_have_the_layout_of_the_hdl_32e(nusc: NuScenes, simulated_root: Path) -> None:
    row = next(r for r in nusc.sample_data if r["fileformat"] == "pcd")
    points = np.fromfile(simulated_root / row["filename"], np.float32).reshape(-1, 32, 5)
    assert 1084 <= len(points) <= 1087
    np.testing.assert_array_equal(points[..., 4], np.broadcast_to(np.arange(32), points.shape[:2]))
    distance = np.linalg.norm(points[..., :3], axis=-1)
    assert 0.15 < (distance < 1).mean() < 0.6
    assert distance.max() < 101
    elevation = np.degrees(np.arcsin(points[..., 2] / distance))
    far = distance > 2
    for ring in range(32):
        if far[:, ring].any():
            assert abs(np.median(elevation[far[:, ring], ring]) - RING_ELEVATION_DEG[ring]) < 0.05
    azimuth = np.unwrap(np.arctan2(points[:, 10, 1], points[:, 10, 0]))
    assert np.degrees(np.median(np.diff(azimuth))) == pytest.approx(-0.332, abs=0.01)
    assert np.array_equal(points[..., 3], np.clip(np.rint(points[..., 3]), 0, 255))


def test_velocity_of_the_devkit_is_the_true_one_and_attributes_agree(nusc: NuScenes, simulated_root: Path) -> None:
    plans = plan_scenes(
        simulated_root, version=SIMULATED_VERSION, scenes={"train": 2, "val": 1}, frames=2, sweeps=2, seed=0
    )
    moving = 0
    for plan in plans:
        world = build_world(plan)
        for index, thing in enumerate(world.things):
            token = plan.token("sample_annotation", 0, index)
            if token not in nusc._token2ind["sample_annotation"] or thing.model.category is None:
                continue
            row = nusc.get("sample_annotation", token)
            speed = float(np.linalg.norm(nusc.box_velocity(token)[:2])) if row["next"] else None
            ends = thing.track.poses(np.array([0.0, 0.5]))
            if speed is not None:
                truth = (ends[1, :2] - ends[0, :2]) / 0.5
                np.testing.assert_allclose(nusc.box_velocity(token)[:2], truth, atol=0.01)
            names = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
            if thing.model.name in ("barrier", "traffic_cone", "bicycle_rack"):
                assert names == []
                continue
            assert len(names) == 1
            if names[0].endswith("moving"):
                assert thing.track.moves
                assert speed is None or speed > 0.5
                moving += 1
            elif names[0] != "cycle.with_rider":
                assert not thing.track.moves
                assert speed is None or speed < 0.01
    assert moving > 3


def test_all_ten_classes_appear_and_15_to_35_boxes_are_near(nusc: NuScenes) -> None:
    near = []
    for sample in nusc.sample:
        _, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        near.append(sum(np.hypot(*box.center[:2]) < 50 for box in boxes))
    assert 12 <= np.mean(near) <= 45
    assert {row["visibility_token"] for row in nusc.sample_annotation} == {"1", "2", "3", "4"}


def _digests(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def test_two_workers_write_the_same_bytes_as_one_and_another_seed_others(tmp_path: Path) -> None:
    options = {"version": SIMULATED_VERSION, "scenes": {"train": 1, "val": 1}, "frames": 1, "sweeps": 0}
    one = simulate(tmp_path / "one", **options, seed=3, workers=1)
    two = simulate(tmp_path / "two", **options, seed=3, workers=2)
    assert one.boxes == two.boxes
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    plans = [
        plan_scenes(tmp_path, version=SIMULATED_VERSION, scenes={"train": 1}, frames=1, sweeps=0, seed=s)
        for s in (3, 4)
    ]
    worlds = [build_world(plan[0]) for plan in plans]
    assert not np.array_equal(worlds[0].road.points, worlds[1].road.points)


def test_the_test_version_has_no_annotations(tmp_path: Path) -> None:
    summary = simulate(tmp_path / "t", version="v1.0-test", scenes={"test": 1}, frames=1, sweeps=0, workers=1)
    nusc = NuScenes("v1.0-test", str(tmp_path / "t"), verbose=False)
    assert summary.boxes == {}
    assert nusc.sample_annotation == [] and nusc.instance == []
    assert nusc.scene[0]["name"] == create_splits_scenes()["test"][0]
    image = cv2.imread(str(tmp_path / "t" / nusc.get("sample_data", nusc.sample[0]["data"]["CAM_BACK"])["filename"]))
    assert image.shape == (900, 1600, 3)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not empty"):
        simulate(tmp_path / "mine", workers=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v2.0"}, "v1.0-trainval"),
        ({"sweeps": 10}, "sweeps 0..9"),
        ({"frames": 0}, "frames >= 1"),
        ({"scenes": {"train": 701}}, "which has 700"),
        ({"scenes": {"tset": 1}}, "splits train, val"),
    ],
)
def test_impossible_options_say_what_is_possible(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "out", **options, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = Path.write_bytes, []

    def write_bytes(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(scene_module.Path, "write_bytes", write_bytes)
    with pytest.raises(OutOfSpaceError, match="no space left"):
        simulate(tmp_path / "out", version=SIMULATED_VERSION, scenes={"train": 1}, frames=1, sweeps=2, workers=1)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []
