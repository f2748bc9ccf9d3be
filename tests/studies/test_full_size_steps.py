"""The benchmark of training steps: which presets it takes, what it refuses, and that a step of each kind runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cache.errors import ConfigError
from models.build import preset_names
from studies.benches import full_size_steps as bench

QUIET = Console(quiet=True)


def test_every_preset_is_full_size_or_of_the_simulated_world() -> None:
    small = set(preset_names()) - set(bench.full_size_presets())
    assert small == {
        "bevdepth-tiny",
        "bevformer-demo",
        "centerpoint-pillar-tiny",
        "centerpoint-voxel-tiny",
        "cp-pillar-tiny-v0.8",
        "cp-voxel-tiny-s",
        "cp-voxel-tiny-xxs",
        "lift-splat-tiny",
        "object-dgcnn-tiny",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        bench.run(tmp_path, QUIET)


def test_a_step_of_points_and_of_pictures_runs_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = torch.rand(500, 5).numpy()
    monkeypatch.setattr(bench, "read_cloud", lambda source: (cloud, "made up"))
    names = "centerpoint-pillar-tiny,bevformer-demo"
    found = bench.run(tmp_path, QUIET, device="cpu", batch=2, steps=1, presets=names)
    for name in names.split(","):
        assert found[name]["ms"] > 0 and math.isfinite(found[name]["loss"]) and found[name]["parameters"] > 500_000
