"""Tables, sweeps and frames on a simulated multi-scene data set, which the real single keyframe cannot show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.errors import DataError
from cache.store import FrameStore
from pipeline.frames import FrameOptions, cache_frames
from pipeline.points import aggregate
from pipeline.tables import open_tables

VERSION = "v1.0-mini"


def test_scenes_are_grouped_by_split_then_name(simulated_root: Path) -> None:
    data = open_tables(simulated_root, VERSION, None, 2)
    assert [s.split for s in data.scenes] == sorted(s.split for s in data.scenes)
    assert {s.split for s in data.scenes} == {"mini_train", "mini_val"}
    for scene, records in zip(data.scenes, data.records, strict=True):
        times = [record.frame.timestamp_us for record in records]
        assert times == sorted(times) and all(record.frame.scene_token == scene.token for record in records)


def test_sweeps_agree_with_the_devkits_own_aggregation(simulated_root: Path) -> None:
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud

    nusc = NuScenes(VERSION, str(simulated_root), verbose=False)
    data = open_tables(simulated_root, VERSION, None, 2)
    record = data.records[0][-1]
    assert len(record.sweeps) == 3
    cloud = aggregate(record.sweeps, simulated_root)
    sample = nusc.get("sample", record.frame.token)
    theirs, lag = LidarPointCloud.from_file_multisweep(
        nusc, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=3, min_distance=1.0
    )
    # the devkit drops x, y below 1 m as well; intensities and order agree, times too
    assert cloud.shape[0] == theirs.points.shape[1]
    np.testing.assert_allclose(cloud[:, :4], theirs.points[:4].T, atol=2e-3)
    np.testing.assert_allclose(cloud[:, 4], lag[0], atol=1e-5)


def test_velocities_in_the_canonical_frame_are_the_global_ones_turned(simulated_root: Path, tmp_path: Path) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, options=FrameOptions(image_scale=0.1), workers=1)
    store = FrameStore(tmp_path / "frames")
    moving = 0
    for row in range(len(store)):
        truth, boxes = store.truth(row), store.boxes_lidar(row)
        speed = np.hypot(*truth.boxes_global[:, 10:12].T)
        np.testing.assert_allclose(np.hypot(boxes[:, 7], boxes[:, 8]), speed, atol=0.05)
        fast = speed > 2
        heading = np.abs(np.cos(boxes[fast, 6]) * boxes[fast, 7] + np.sin(boxes[fast, 6]) * boxes[fast, 8])
        np.testing.assert_allclose(heading, speed[fast], rtol=0.05)  # what moves, moves along its own length
        moving += int(fast.sum())
    assert moving > 0


def test_one_bad_file_is_quarantined_the_rest_goes_on_and_a_repair_adds_it(
    simulated_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(simulated_root, tmp_path / "data"))
    data = open_tables(root, VERSION, None, 0)
    victim = data.records[0][0]
    path = root / victim.sweeps[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    manifest = cache_frames(root, VERSION, tmp_path / "c", options=FrameOptions(image_scale=0.1), workers=1)
    assert [q["token"] for q in manifest.quarantined] == [victim.frame.token]
    assert path.name in manifest.quarantined[0]["reason"]
    store = FrameStore(tmp_path / "c" / "frames")
    assert len(store) == len(data) - 1 and victim.frame.token not in store.tokens
    path.write_bytes(whole)
    repaired = cache_frames(root, VERSION, tmp_path / "c", options=FrameOptions(image_scale=0.1), workers=1)
    fresh = cache_frames(root, VERSION, tmp_path / "fresh", options=FrameOptions(image_scale=0.1), workers=1)
    assert not repaired.quarantined and len(FrameStore(tmp_path / "c" / "frames")) == len(data)
    assert repaired.digest == fresh.digest


def test_two_workers_write_the_same_bytes_as_one(simulated_root: Path, tmp_path: Path) -> None:
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    one = cache_frames(simulated_root, VERSION, tmp_path / "one", options=options, workers=1)
    two = cache_frames(simulated_root, VERSION, tmp_path / "two", options=options, workers=2)
    assert one.digest == two.digest
    for path in (tmp_path / "one").rglob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    assert len(json.loads((tmp_path / "one" / "frames" / "records" / "00000.json").read_text())["frames"]) > 0


def test_only_the_split_asked_for_is_cached(simulated_root: Path, tmp_path: Path) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_val", options=FrameOptions(image_scale=0.1), workers=1)
    store = FrameStore(tmp_path / "frames")
    assert {store.frame(row).split for row in range(len(store))} == {"mini_val"}
    with pytest.raises(DataError, match=r"split 'train' is not in v1\.0-mini"):
        open_tables(simulated_root, VERSION, "train", 0)


def test_stock_webdataset_iterates_and_decodes_the_shards(simulated_root: Path, tmp_path: Path) -> None:
    import webdataset as wds

    cache_frames(simulated_root, VERSION, tmp_path, options=FrameOptions(image_scale=0.1), workers=1)
    store = FrameStore(tmp_path / "frames")
    seen = []
    for shard in store.manifest.shards:
        for sample in wds.WebDataset(str(tmp_path / "frames" / shard.files[0].name), shardshuffle=False).decode("rgb8"):
            row = store.row_of(sample["__key__"])
            assert sample["frame.json"]["token"] == sample["__key__"]
            assert sample["cam_front.jpg"].shape == (90, 160, 3)
            np.testing.assert_array_equal(sample["gt_lidar.npy"], store.boxes_lidar(row))
            seen.append(sample["__key__"])
    assert seen == store.tokens


def test_later_sweeps_come_last_with_a_negative_age_and_stand_where_their_own_key_frame_has_them(
    simulated_root: Path,
) -> None:
    """The sweeps before the second key frame lie behind the first: both tell where the same file's points are."""
    past, both = (open_tables(simulated_root, VERSION, None, 2, after) for after in (0, 9))
    first, second = both.records[0][:2]
    older = len(past.records[0][0].sweeps)
    assert [sweep.path for sweep in first.sweeps[:older]] == [sweep.path for sweep in past.records[0][0].sweeps]
    later = first.sweeps[older:]
    assert later and [sweep.dt_s for sweep in later] == sorted((sweep.dt_s for sweep in later), reverse=True)
    assert all(sweep.dt_s < 0 for sweep in later)
    second_to_first = np.linalg.inv(first.frame.lidar_to_global()) @ second.frame.lidar_to_global()
    seen_from_second = {sweep.path: sweep for sweep in second.sweeps if sweep.dt_s >= 0}
    shared = [sweep for sweep in later if sweep.path in seen_from_second]
    assert len(shared) >= 2
    for sweep in shared:
        assert np.allclose(sweep.to_canonical, second_to_first @ seen_from_second[sweep.path].to_canonical, atol=1e-6)
