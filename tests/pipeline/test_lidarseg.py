"""lidarseg: classes of the key sweep reach the frame store where the data set has them, and the ground goes by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cache.coverage import Coverage
from cache.errors import ConfigError, DataError
from cache.grid import BevGrid
from cache.store import FrameStore
from pipeline.coverage import coverage_weights
from pipeline.evidence import evidence_of, require_names
from pipeline.extend import extend_frames
from pipeline.frames import FrameOptions, cache_frames
from pipeline.points import read_lidar_file
from pipeline.selectors.occupied import occupied_mask

VERSION = "v1.0-mini"
GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)
OPTIONS = FrameOptions(image_scale=0.1, points=True, sweeps=1)


def key_sweeps(root: Path) -> dict[str, tuple[str, Path]]:
    """Sample token -> sample_data token and file of its LiDAR sweep."""
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    keys = [row for row in rows if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]]
    return {row["sample_token"]: (row["token"], root / row["filename"]) for row in keys}


@pytest.fixture
def labelled(simulated_root: Path, tmp_path: Path) -> Path:
    """The simulated data set with random classes for all key sweeps but one."""
    root = tmp_path / "data"
    root.mkdir()
    for path in simulated_root.iterdir():
        (root / path.name).symlink_to(path)
    folder = root / "lidarseg" / VERSION
    folder.mkdir(parents=True)
    for i, (token, path) in enumerate(list(key_sweeps(root).values())[1:]):
        classes = np.random.default_rng(i).integers(0, 32, len(read_lidar_file(path))).astype(np.uint8)
        classes.tofile(folder / f"{token}_lidarseg.bin")
    return root


def test_the_ground_goes_by_class_where_there_are_classes_and_by_height_elsewhere(
    labelled: Path, tmp_path: Path
) -> None:
    cache_frames(labelled, VERSION, tmp_path / "c", split="mini_train", options=OPTIONS, workers=1)
    store, coverage = FrameStore(tmp_path / "c" / "frames"), Coverage.parse("lidar(ground=0.2)")
    without = 0
    for row in range(len(store)):
        token, path = key_sweeps(labelled)[store.token(row)]
        file = labelled / "lidarseg" / VERSION / f"{token}_lidarseg.bin"
        evidence, cloud = evidence_of(store, row, coverage), store.points(row)
        mask = coverage_weights(coverage, evidence, GRID)[0]
        if not file.exists():
            without += 1
            assert evidence.lidarseg is None
            np.testing.assert_array_equal(mask, occupied_mask(cloud, GRID, ground=0.2))
            continue
        points = read_lidar_file(path)
        kept = [max(abs(x), abs(y)) >= 1 for x, y in points[:, :2].tolist()]
        classes = np.fromfile(file, np.uint8)[kept]
        assert evidence.lidarseg is not None and len(points) > len(classes) > 1000
        np.testing.assert_array_equal(evidence.lidarseg, classes)
        np.testing.assert_array_equal(cloud[: len(classes), :2], points[kept, :2])
        obstacles = [label not in (0, 24, 25, 26, 27) for label in classes.tolist()]
        by_class = occupied_mask(cloud[: len(classes)][obstacles], GRID)
        assert (mask[by_class > 0] == 1).all() and (mask != occupied_mask(cloud, GRID, ground=0.2)).any()
    assert without == 1


def test_a_store_begun_without_classes_goes_on_without_them(
    simulated_root: Path, labelled: Path, tmp_path: Path
) -> None:
    small = FrameOptions(image_scale=0.05)
    cache_frames(simulated_root, VERSION, tmp_path / "c", split="mini_val", options=small, workers=1)
    before = (tmp_path / "c" / "frames" / "manifest.json").read_bytes()
    cache_frames(labelled, VERSION, tmp_path / "c", split="mini_val", options=small, workers=1)
    assert (tmp_path / "c" / "frames" / "manifest.json").read_bytes() == before
    extend_frames(tmp_path / "c", labelled, VERSION, workers=1)
    store = FrameStore(tmp_path / "c" / "frames")
    assert len(store) == 6 and not any(store.has(row, "lidarseg") for row in range(6))


def test_classes_that_are_not_of_these_points_quarantine_the_frame(labelled: Path, tmp_path: Path) -> None:
    files = sorted((labelled / "lidarseg" / VERSION).iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    manifest = cache_frames(labelled, VERSION, tmp_path / "c", options=FrameOptions(image_scale=0.05), workers=1)
    reasons = [row["reason"] for row in manifest.quarantined]
    assert len(reasons) == len(files) == 5 and all("classes for the" in reason for reason in reasons)


def test_classes_and_a_cloud_of_other_frames_are_told(labelled: Path, tmp_path: Path) -> None:
    cache_frames(labelled, VERSION, tmp_path / "c", split="mini_val", options=OPTIONS, workers=1)
    store = FrameStore(tmp_path / "c" / "frames")
    with pytest.raises(DataError, match=r"has lidarseg classes of \d+ points, its key sweep has \d+"):
        evidence_of(store, 0, Coverage.parse("lidar(ground=0.2)"), cloud=store.points(0)[5:])
    for text, said in (("gaussian(classes=tram)", "classes 'tram' is not among"), ("view(camera=UP)", "CAM_FRONT")):
        with pytest.raises(ConfigError, match=said):
            require_names(Coverage.parse(text), store)
