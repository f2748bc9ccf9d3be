"""Camera images between key frames: where and when nuScenes has them, and nothing else of the folder changes."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS
from pipeline.between import choose_evenly
from pipeline.simulator import plan_scenes
from pipeline.simulator.rig import CAMERA_OFFSET_US
from pipeline.simulator.scene import build_world
from tests.conftest import SIMULATED_VERSION


@pytest.fixture(scope="module")
def nusc(between_root: Path) -> NuScenes:
    return NuScenes(SIMULATED_VERSION, str(between_root), verbose=False)


def chain(nusc: NuScenes, channel: str, scene: int = 0) -> list[dict]:
    sample = nusc.get("sample", nusc.scene[scene]["first_sample_token"])
    row = nusc.get("sample_data", sample["data"][channel])
    while row["prev"]:
        row = nusc.get("sample_data", row["prev"])
    rows = [row]
    while rows[-1]["next"]:
        rows.append(nusc.get("sample_data", rows[-1]["next"]))
    return rows


def test_images_come_with_the_evenly_chosen_sweeps_at_the_cameras_own_offsets(
    nusc: NuScenes, between_root: Path
) -> None:
    sweeps = chain(nusc, "LIDAR_TOP")
    begin, end = (row["timestamp"] for row in sweeps if row["is_key_frame"])
    inside = [row for row in sweeps if begin < row["timestamp"] < end]
    chosen = [inside[i] for i in choose_evenly([row["timestamp"] for row in inside], begin, end, 2)]
    assert len(inside) == 3 and len(chosen) == 2
    for channel in CAMERA_CHANNELS:
        rows = chain(nusc, channel)
        assert [row["is_key_frame"] for row in rows] == [True, False, False, True]
        wanted = [row["timestamp"] + CAMERA_OFFSET_US[channel] for row in chosen]
        assert [row["timestamp"] for row in rows[1:-1]] == wanted
        for row in rows[1:-1]:
            assert row["filename"].startswith(f"sweeps/{channel}/") and (between_root / row["filename"]).is_file()
            assert row["sample_token"] == rows[-1]["sample_token"]
            assert nusc.get("ego_pose", row["ego_pose_token"])["timestamp"] == row["timestamp"]
        assert all(b["prev"] == a["token"] for a, b in itertools.pairwise(rows))


def test_each_image_shows_its_own_moment(nusc: NuScenes, between_root: Path) -> None:
    """The own car has driven on between two images, by what its world says, and the pictures differ."""
    options = {"scenes": {"train": 1, "val": 1}, "frames": 2, "sweeps": 3, "between_images": 2}
    plan = plan_scenes(between_root, version=SIMULATED_VERSION, **options, seed=0)[0]
    ego = build_world(plan).ego
    start = nusc.get("sample", nusc.scene[0]["first_sample_token"])["timestamp"]
    rows = chain(nusc, "CAM_BACK")
    for row in rows:
        pose = nusc.get("ego_pose", row["ego_pose_token"])
        expected = ego.poses(np.array([1e-6 * (row["timestamp"] - start)]))[0]
        np.testing.assert_allclose(pose["translation"][:2], expected[:2], atol=1e-6)
    pictures = [cv2.imread(str(between_root / row["filename"])).astype(int) for row in rows]
    assert all(picture.shape == (900, 1600, 3) for picture in pictures)
    assert all(np.abs(a - b).mean() > 2 for a, b in itertools.pairwise(pictures))


def test_without_the_option_the_folder_is_what_it_always_was(simulated_root: Path) -> None:
    """Digests of the tables without floating-point numbers, as they were before there was the option."""
    pinned = {
        "sample_data": "470a8c85868783426f03a7210e9d02be732eec37a959334ab4ab9d893c791aea",
        "sample": "5901c28c351ce1bb8980ba251ec0cb68c0a3727fad6b6c2c10aae29135b857e5",
    }
    for name, digest in pinned.items():
        found = hashlib.sha256((simulated_root / SIMULATED_VERSION / f"{name}.json").read_bytes()).hexdigest()
        assert found == digest, name
    assert sorted(path.name for path in (simulated_root / "sweeps").iterdir()) == ["LIDAR_TOP"]


def test_the_option_adds_and_changes_nothing_else(between_root: Path, tmp_path: Path) -> None:
    from pipeline.simulator import simulate

    plain = tmp_path / "plain"
    simulate(plain, version=SIMULATED_VERSION, scenes={"train": 1, "val": 1}, frames=2, sweeps=3, seed=0, workers=1)
    for path in sorted(path for path in plain.rglob("*") if path.is_file() and path.suffix != ".json"):
        assert path.read_bytes() == (between_root / path.relative_to(plain)).read_bytes(), path.name
    for path in sorted((plain / SIMULATED_VERSION).iterdir()):
        without, having = (
            json.loads((root / SIMULATED_VERSION / path.name).read_text()) for root in (plain, between_root)
        )
        links = ("prev", "next") if path.stem == "sample_data" else ()
        rows = {row["token"]: {k: v for k, v in row.items() if k not in links} for row in having}
        for row in without:
            assert rows.pop(row["token"]) == {k: v for k, v in row.items() if k not in links}
        # two scenes, one interval each, two sweeps, six cameras
        assert len(rows) == (24 if path.stem in ("sample_data", "ego_pose") else 0), path.stem


def test_more_images_than_sweeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"between_images=3: expected 0\.\.2"):
        plan_scenes(
            tmp_path, version=SIMULATED_VERSION, scenes={"train": 1}, frames=2, sweeps=2, seed=0, between_images=3
        )
