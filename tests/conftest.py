"""What several rooms' tests share: one small simulated nuScenes folder per session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

SIMULATED_VERSION = "v1.0-mini"


@pytest.fixture(scope="session")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated v1.0-mini: 2 train and 1 val scene, 2 keyframes each, 2 LiDAR sweeps before each. Read only."""
    from pipeline.simulator import simulate

    root = tmp_path_factory.mktemp("simulated") / "nuscenes"
    simulate(root, version=SIMULATED_VERSION, scenes={"train": 2, "val": 1}, frames=2, sweeps=2, seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def between_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated v1.0-mini: a train and a val scene, 2 keyframes each, 3 LiDAR sweeps before each, camera images with
    two of the sweeps between. Read only."""
    from pipeline.simulator import simulate

    root = tmp_path_factory.mktemp("between") / "nuscenes"
    options = {"scenes": {"train": 1, "val": 1}, "frames": 2, "sweeps": 3, "between_images": 2}
    simulate(root, version=SIMULATED_VERSION, **options, seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def between_cache(between_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its frames with two unlabelled ones an interval, with points, and the teacher store `t`. Tests add, and take
    nothing away."""
    from pipeline.frames import FrameOptions, cache_frames
    from pipeline.teacher import TeacherOptions, cache_teacher

    cache = tmp_path_factory.mktemp("between") / "cache"
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2, between=2)
    cache_frames(between_root, SIMULATED_VERSION, cache, options=options, workers=1)
    coverage = TeacherOptions("gaussian+topk(k=300)")
    cache_teacher(cache, "t", teacher="own", checkpoint=weights, options=coverage, workers=1)
    return cache


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained LiDAR teacher's weights file: always the same, and it says something of every frame. Read only."""
    import torch

    from models.build import build_detector, save_weights

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_weights(build_detector({"preset": "centerpoint-pillar-tiny"}), path)
    return path
