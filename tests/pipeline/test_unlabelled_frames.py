"""`--between N`: frames between key frames, as the tables have them, beside key frames that stay as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from rich.console import Console

from cache.depth_labels import depth_labels
from cache.errors import ConfigError, FingerprintError
from cache.frame import CAMERA_CHANNELS
from cache.frame_fields import frame_entry
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.merge import merge_caches
from cache.orphans import find_orphans
from cache.store import FrameStore, TeacherStore
from pipeline.between import nearest
from pipeline.capacity import _readable
from pipeline.cost import estimate
from pipeline.evidence import nothing_on_unlabelled
from pipeline.extend import behind, extend_frames
from pipeline.frames import FrameOptions, cache_frames
from pipeline.points import aggregate
from pipeline.reencode import ReencodeOptions, reencode
from pipeline.tables import DataSet, open_tables
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.inspection import describe, draw_token
from studies.live_check import run_live
from studies.verification import verify_cache
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

VERSION = "v1.0-mini"
ANNOTATIONS = ("gt_boxes", "gt_ids", "gt_lidar", "racks")
OPTIONS = FrameOptions(image_scale=0.1, points=True, sweeps=2, between=2)


@pytest.fixture(scope="module")
def nusc(between_root: Path) -> NuScenes:
    return NuScenes(VERSION, str(between_root), verbose=False)


@pytest.fixture(scope="module")
def frames(between_cache: Path) -> FrameStore:
    return FrameStore(between_cache / "frames")


@pytest.fixture(scope="module")
def data(between_root: Path) -> DataSet:
    return open_tables(between_root, VERSION, None, 2, between=2)


def unlabelled(store: FrameStore) -> list[int]:
    return np.flatnonzero(store.index.kind == KIND_UNLABELLED).tolist()


def test_frames_stand_in_the_order_of_time_whole_scenes_in_a_shard(frames: FrameStore) -> None:
    beat = [KIND_LABELLED, KIND_UNLABELLED, KIND_UNLABELLED, KIND_LABELLED]
    assert frames.index.kind.tolist() == beat * 2 and frames.manifest.header["between"] == 2
    for shard in range(len(frames.manifest.shards)):
        rows = np.flatnonzero(frames.index.shard == shard)
        assert len(set(frames.index.scene[rows].tolist())) == 1 and len(rows) == 4
        assert (np.diff(frames.index.timestamp_us[rows]) > 0).all()


def test_a_frame_between_is_its_own_sweep_without_annotations(frames: FrameStore, nusc: NuScenes) -> None:
    for row in unlabelled(frames):
        frame, sweep = frames.frame(row), nusc.get("sample_data", frames.tokens[row])
        assert sweep["channel"] == "LIDAR_TOP" and not sweep["is_key_frame"]
        assert frame.timestamp_us == sweep["timestamp"] == frames.index.timestamp_us[row]
        pose = nusc.get("ego_pose", sweep["ego_pose_token"])
        assert frame.ego_to_global.translation.tolist() == pose["translation"]
        assert not frame.keyframe and not frames.is_keyframe(row) and not frames.is_labelled(row)
        assert not any(frames.has(row, name) for name in ANNOTATIONS)
        assert frames.has(row, "depth") and frames.has(row, "points")
        assert not frames.index.class_counts[row].any()
        assert frames.entry(row).digest == frame_entry(frame, None, 10).digest
    assert frames.key_rows("mini_val") == [4, 7]
    assert all(frames.frame(row).keyframe for row in frames.key_rows())


def test_its_images_are_the_nearest_ones_through_their_own_poses(
    frames: FrameStore, data: DataSet, nusc: NuScenes, between_root: Path
) -> None:
    """Against every image that the tables have, and the devkit's own way from LiDAR to camera."""
    records = {record.frame.token: record for scene in data.records for record in scene}
    for row in unlabelled(frames):
        frame, record = frames.frame(row), records[frames.tokens[row]]
        lidar = nusc.get("sample_data", frame.token)
        assert frame.lidar_to_ego.translation.tolist() == sensor_of(nusc, lidar)["translation"]
        for camera, path in zip(frame.cameras, record.image_paths, strict=True):
            rows = [other for other in nusc.sample_data if other["channel"] == camera.channel]
            image = min(rows, key=lambda other: (abs(other["timestamp"] - frame.timestamp_us), other["timestamp"]))
            assert path == image["filename"] and camera.timestamp_us == image["timestamp"]
            matrix = np.eye(4)
            for inverse, place in (
                (False, sensor_of(nusc, lidar)),
                (False, nusc.get("ego_pose", lidar["ego_pose_token"])),
                (True, nusc.get("ego_pose", image["ego_pose_token"])),
                (True, sensor_of(nusc, image)),
            ):
                from nuscenes.utils.geometry_utils import transform_matrix
                from pyquaternion import Quaternion

                step = transform_matrix(place["translation"], Quaternion(place["rotation"]), inverse=inverse)
                matrix = step @ matrix
            np.testing.assert_allclose(camera.lidar_to_camera, matrix, atol=1e-6)
    times = {tuple(camera.timestamp_us for camera in frames.frame(row).cameras) for row in range(len(frames))}
    assert len(times) == len(frames)  # no two frames see the same six images


def sensor_of(nusc: NuScenes, row: dict[str, Any]) -> dict[str, Any]:
    return nusc.get("calibrated_sensor", row["calibrated_sensor_token"])


def test_clouds_and_depth_labels_are_of_the_sweeps_up_to_it(
    frames: FrameStore, nusc: NuScenes, between_root: Path
) -> None:
    for row in unlabelled(frames):
        sweep = nusc.get("sample_data", frames.tokens[row])
        ages, older = [0.0], sweep
        for _ in range(2):
            older = nusc.get("sample_data", older["prev"])
            ages.append(1e-6 * (sweep["timestamp"] - older["timestamp"]))
        cloud = frames.points(row)
        np.testing.assert_allclose(np.unique(cloud[:, 4]), ages, atol=1e-6)
        own = np.fromfile(between_root / sweep["filename"], np.float32).reshape(-1, 5)
        own = own[(np.abs(own[:, :2]) >= 1).any(axis=1)]
        np.testing.assert_array_equal(cloud[cloud[:, 4] == 0][:, :3], own[:, :3])
        packed = frames.read(row, "depth")
        np.testing.assert_array_equal(packed, depth_labels(own, frames.frame(row).cameras))
        assert len(packed) > 1000


def test_key_frames_are_byte_for_byte_those_of_a_store_without_others(
    frames: FrameStore, between_root: Path, tmp_path: Path
) -> None:
    plain = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    manifest = cache_frames(between_root, VERSION, tmp_path, options=plain, workers=1)
    alone = FrameStore(tmp_path / "frames")
    assert "between" not in manifest.header and len(alone) == 4
    assert [frames.tokens[row] for row in frames.key_rows()] == alone.tokens
    for row, token in enumerate(alone.tokens):
        other = frames.row_of(token)
        assert frames.entry(other) == alone.entry(row)
        for spec in alone.manifest.fields:
            assert frames.read_bytes(other, spec.name) == alone.read_bytes(row, spec.name)


def test_a_store_begun_otherwise_refuses_with_both_values(simulated_root: Path, tmp_path: Path) -> None:
    for began, asked, said in (
        (0, 2, r"header\.between = \(absent\), this run asks for 2"),
        (2, 0, r"header\.between = 2, this run asks for \(absent\)"),
        (2, 1, r"header\.between = 2, this run asks for 1"),
    ):
        place = tmp_path / f"{began}"
        cache_frames(simulated_root, VERSION, place, options=FrameOptions(0.1, between=began), workers=1)
        with pytest.raises(FingerprintError, match=said):
            cache_frames(simulated_root, VERSION, place, options=FrameOptions(0.1, between=asked), workers=1)
    with pytest.raises(ConfigError, match=r"--between -1 is negative"):
        FrameOptions(between=-1)


def test_another_run_chooses_and_writes_the_same(between_cache: Path, between_root: Path, tmp_path: Path) -> None:
    again = cache_frames(between_root, VERSION, tmp_path, options=OPTIONS, workers=1)
    assert again.digest == FrameStore(between_cache / "frames").manifest.digest


def test_fewer_sweeps_give_fewer_frames_and_missing_images_none(
    between_root: Path, simulated_root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    many = open_tables(between_root, VERSION, None, 0, between=9)
    assert (many.between.intervals, many.between.frames, many.between.short) == (2, 6, 2)
    # 100 ms before the second key frame the nearest image of CAM_BACK_LEFT is its own, 99.7 ms later
    cache_frames(simulated_root, VERSION, tmp_path, options=FrameOptions(0.1, between=2), workers=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "--between 2: 3 unlabelled frames in 3 intervals of key frames; 3 sweeps left out" in said
    store = FrameStore(tmp_path / "frames")
    assert store.index.kind.tolist() == [KIND_LABELLED, KIND_UNLABELLED, KIND_LABELLED] * 3
    assert nearest([0, 499_700], 400_000) is None


def test_a_lost_image_quarantines_its_frames_and_a_repair_adds_them(between_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(between_root, tmp_path / "data"))
    victim = sorted((root / "sweeps" / "CAM_BACK").iterdir())[0]
    whole = victim.read_bytes()
    victim.unlink()
    manifest = cache_frames(root, VERSION, tmp_path / "c", options=OPTIONS, workers=1)
    assert manifest.quarantined and all(victim.name in entry["reason"] for entry in manifest.quarantined)
    assert len(FrameStore(tmp_path / "c" / "frames").key_rows()) == 4
    victim.write_bytes(whole)
    assert not cache_frames(root, VERSION, tmp_path / "c", options=OPTIONS, workers=1).quarantined


def test_extending_brings_the_frames_between_of_new_scenes(
    between_root: Path, weights: Path, frames: FrameStore, tmp_path: Path
) -> None:
    cache_frames(between_root, VERSION, tmp_path, split="mini_train", options=OPTIONS, workers=1)
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, workers=1)
    added = extend_frames(tmp_path, between_root, VERSION, workers=1)
    assert (added.scenes, added.frames) == (1, 4)
    store = FrameStore(tmp_path / "frames")
    assert store.tokens == frames.tokens and store.index.kind.tolist() == frames.index.kind.tolist()
    [waiting] = behind(tmp_path)
    assert waiting.missing == 4 and "confident" in waiting.command
    cache_teacher(tmp_path, "t", teacher="own", checkpoint=weights, workers=1)
    assert not behind(tmp_path)


def test_sweeps_from_the_data_root_give_the_bytes_of_stored_clouds(
    between_cache: Path, between_root: Path, weights: Path, tmp_path: Path
) -> None:
    cache_frames(between_root, VERSION, tmp_path, options=FrameOptions(0.1, between=2), workers=1)
    options = TeacherOptions("gaussian+topk(k=300)", sweeps=2)
    common = {"teacher": "own", "checkpoint": weights, "options": options, "workers": 1}
    cache_teacher(tmp_path, "t", data_root=between_root, **common)
    for shard in TeacherStore(tmp_path / "teachers" / "t").manifest.shards:
        name = shard.files[0].name
        assert (tmp_path / "teachers" / "t" / name).read_bytes() == (
            between_cache / "teachers" / "t" / name
        ).read_bytes()
    [check] = run_live(tmp_path, "t", 4, checkpoint=weights, data_root=between_root)
    assert check.identical == check.frames == 4


@pytest.mark.parametrize("layout", ["webdataset", "zarr"])
def test_the_teacher_keeps_cells_where_a_selector_applies(
    between_cache: Path, weights: Path, layout: str, frames: FrameStore
) -> None:
    name = f"default-{layout}"
    options = TeacherOptions(format=layout)
    cache_teacher(between_cache, name, teacher="own", checkpoint=weights, options=options, workers=1)
    store = TeacherStore(between_cache / "teachers" / name)
    header = store.manifest.header["coverage"]
    assert (header["labelled"], header["unlabelled"]) == (["gaussian", "confident"], ["confident"])
    assert store.index.kind.tolist() == frames.index.kind.tolist()
    for row in range(len(store)):
        cells, kind = store.cells(row), store.index.kind[row]
        assert (cells.weights[:, 0] > 0).any() == (kind == KIND_LABELLED)
        assert len(store.detections(row))
    kept = [len(store.cells(row)) for row in unlabelled(frames)]
    assert max(kept) > 0, kept


def test_a_coverage_that_has_nothing_between_is_told(frames: FrameStore, between_cache: Path) -> None:
    both, gaussian = (TeacherStore(between_cache / "teachers" / "t").coverage for _ in range(2))
    assert nothing_on_unlabelled(both, frames) == ""
    gaussian = type(both)(both.selectors[:1])
    said = nothing_on_unlabelled(gaussian, frames)
    assert "keeps no cell of the 4 unlabelled frames" in said and "+confident'" in said


def test_a_probe_meets_both_kinds_whatever_their_beat(frames: FrameStore) -> None:
    """Four frames a scene, a key frame at both ends: a comb of two teeth would meet key frames only."""
    rows = [row for row, _ in _readable(frames, cast(Any, SimpleNamespace(data_root=None, image_size=None)), None, 2)]
    assert sorted(frames.index.kind[rows].tolist()) == [KIND_LABELLED, KIND_UNLABELLED]


def test_upkeep_goes_on_working(between_cache: Path, between_root: Path, weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "merged"
    for split in ("mini_train", "mini_val"):
        cache_frames(between_root, VERSION, tmp_path / split, split=split, options=OPTIONS, workers=1)
        coverage = TeacherOptions("gaussian+topk(k=300)")
        cache_teacher(tmp_path / split, "t", teacher="own", checkpoint=weights, options=coverage, workers=1)
    merge_caches(cache, [tmp_path / "mini_train", tmp_path / "mini_val"])
    merged, whole = FrameStore(cache / "frames"), FrameStore(between_cache / "frames")
    assert merged.tokens == whole.tokens and merged.index.kind.tolist() == whole.index.kind.tolist()
    reencode(cache, "t", "u8", options=ReencodeOptions(dtype="u8"), workers=1)
    kinds = TeacherStore(cache / "teachers" / "u8").index.kind.tolist()
    assert kinds == whole.index.kind.tolist()
    assert find_orphans(cache) == []
    checks = verify_cache(cache, None, None, Console(quiet=True))
    assert len(checks) == 3 and not any(check.findings for check in checks)
    assert any("4 labelled, 4 unlabelled" in str(line) for line in describe(cache))
    drawn = draw_token(cache, whole.tokens[unlabelled(whole)[0]], "t", tmp_path / "frame.png")
    assert drawn.stat().st_size > 10_000


def test_merging_with_a_store_without_them_is_refused_with_both_values(between_root: Path, tmp_path: Path) -> None:
    for split, between in (("mini_train", 2), ("mini_val", 0)):
        options = FrameOptions(0.1, between=between)
        cache_frames(between_root, VERSION, tmp_path / split, split=split, options=options, workers=1)
    with pytest.raises(FingerprintError, match=r"between"):
        merge_caches(tmp_path / "out", [tmp_path / "mini_train", tmp_path / "mini_val"])


def test_the_plan_counts_them(between_root: Path) -> None:
    assert estimate(between_root, VERSION, options=FrameOptions(0.1)).frames == 4
    assert estimate(between_root, VERSION, options=FrameOptions(0.1, between=2)).frames == 8


def test_a_chain_that_bites_its_tail_ends_in_a_message(between_root: Path, tmp_path: Path) -> None:
    from cache.errors import DataError

    root = tmp_path / "data"
    root.mkdir()
    for part in between_root.iterdir():
        if part.name != VERSION:
            (root / part.name).symlink_to(part)
    shutil.copytree(between_root / VERSION, root / VERSION)
    path = root / VERSION / "sample_data.json"
    rows = json.loads(path.read_text())
    images = [row for row in rows if "CAM_FRONT/" in row["filename"]]
    images[2]["next"] = images[1]["token"]
    path.write_text(json.dumps(rows))
    open_tables(root, VERSION, None, 0)
    with pytest.raises(DataError, match="comes after itself"):
        open_tables(root, VERSION, None, 0, between=1)


@needs_real_data
def test_one_real_key_frame_has_nothing_between_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path, options=FrameOptions(0.1, between=2), workers=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "--between 2: 0 unlabelled frames in 0 intervals of key frames; no scene has two key frames" in said
    store = FrameStore(tmp_path / "frames")
    assert len(store) == 1 and store.key_rows() == [0]


def test_the_own_sweep_of_a_record_comes_first(data: DataSet, between_root: Path) -> None:
    record = data.records[0][1]
    assert record.sweeps[0].dt_s == 0 and len(record.sweeps) == 3 and len(record.image_paths) == len(CAMERA_CHANNELS)
    np.testing.assert_array_equal(record.sweeps[0].to_canonical, np.eye(4))
    cloud = aggregate(record.sweeps, between_root)
    assert np.unique(cloud[:, 4]).tolist() == pytest.approx([0.0, 0.35, 0.4], abs=1e-6)
