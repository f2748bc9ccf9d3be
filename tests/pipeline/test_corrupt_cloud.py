"""One bad file among many, through the real command line: the rest is cached, the file is named, a repair adds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore, TeacherStore
from models.build import build_detector, save_weights
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import scene, simulate
from tests.models.synthetic import LIDAR
from tests.test_bad_input import VERSION, bevcask

FRAMES = 40
GREY = cv2.imencode(".jpg", np.full((900, 1600, 3), 90, np.uint8))[1].tobytes()


def _grey_pictures(recorder: Any, sample: str, time_us: int, keyframe: bool) -> np.ndarray:
    """In place of rendering, which is nearly all of a simulator's time and which a LiDAR teacher does not look at."""
    for channel in CAMERA_CHANNELS:
        at_us = time_us + scene.CAMERA_OFFSET_US[channel]
        recorder._store(channel, sample, at_us, keyframe, GREY, recorder._ego(at_us))
    return np.ones(len(recorder.world.things))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scene._Recorder, "_cameras", _grey_pictures)
    folder = tmp_path / "nuscenes"
    simulate(folder, version=VERSION, scenes={"train": 4}, frames=FRAMES // 4, sweeps=0, seed=2, workers=1)
    return folder


def test_a_corrupt_cloud_among_40_costs_its_frame_alone_until_it_is_repaired(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    cache_frames(root, VERSION, cache, options=FrameOptions(image_scale=0.1), workers=1)
    first = FrameStore(cache / "frames").token(0)  # the frame by which the pass would tell what the teacher gives
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    clouds = {r["sample_token"]: root / r["filename"] for r in rows if "samples/LIDAR_TOP" in r["filename"]}
    assert len(clouds) == FRAMES
    victim = clouds[first]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2 + 3])
    torch.manual_seed(0)
    weights = tmp_path / "small.safetensors"
    save_weights(build_detector(LIDAR), weights)
    command = ["cache-teacher", "--cache", str(cache), "--name", "t", "--teacher", "own", "--checkpoint", str(weights)]
    command += [
        "--fields",
        "logits,samples(points=2x2)",
        "--data-root",
        str(root),
        "--sweeps",
        "0",
        "--device",
        "cpu",
        "--workers",
        "1",
    ]

    done = bevcask(*command)
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 frames could not be read" in done.stderr.strip().splitlines()[-1]
    [quarantined] = [line for line in done.stdout.splitlines() if line.startswith("quarantined ")]
    assert victim.name in quarantined
    store = TeacherStore(cache / "teachers" / "t")
    [entry] = store.manifest.quarantined
    assert victim.name in entry["reason"] and quarantined.split()[1].rstrip(":") == entry["token"] == first
    assert len(store) == FRAMES - 1 and entry["token"] not in store.tokens
    before = {token: store.cells(store.row_of(token)) for token in store.tokens}

    victim.write_bytes(whole)
    done = bevcask(*command)
    assert done.returncode == 0, done.stderr
    store = TeacherStore(cache / "teachers" / "t")
    assert len(store) == FRAMES and not store.manifest.quarantined
    assert str(store.further.asked) == "logits,samples(points=2x2)"
    assert set(store.tokens) - set(before) == {entry["token"]}
    for token, cells in before.items():
        again = store.cells(store.row_of(token))
        np.testing.assert_array_equal(again.index, cells.index)
        # the batches of its shard are others now, and sums in them run in another order
        np.testing.assert_allclose(again.values.astype(np.float32), cells.values, rtol=1e-2, atol=1e-2)
