"""The benchmarks of the loader and of the step do what they say, at a size that proves nothing about speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import SHIPPED_TEACHERS
from studies.benches import loader, step
from studies.benches.step_pair import PAIRS, Made, Side, recipe_of, teach
from studies.benches.stream_data import Data
from tests.conftest import SIMULATED_VERSION
from tests.trainer.synthetic import write_frames, write_teacher


def test_loader_bench_tells_rates_by_readers_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path, size=(96, 54), points=False)
    write_teacher(tmp_path)
    data = Data(tmp_path / "frames", tmp_path / "frames", tmp_path / "teachers" / "demo", tmp_path)
    monkeypatch.setattr(loader, "prepare", lambda work, world, console: data)
    out = loader.run(tmp_path, Console(quiet=True), readers="1,2", rounds=1, batch=2)
    assert set(out["threads"]) == set(out["processes"]) == set(out["scaling"]) == {"1", "2"}
    assert all(rate > 0 for kind in ("threads", "processes") for rate in out[kind].values())
    assert set(out["stages_ms"]) == {"read", "decode", "augment", "collate"} and out["stages_ms"]["decode"] > 0
    assert out["decode"]["reduction"] == 1 and out["decode"]["mean_abs_diff"] == 0  # pictures smaller than the input


@pytest.fixture(scope="module")
def made(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The tiny pair on a simulated world of a few frames, the student's step in fp32."""
    work = tmp_path_factory.mktemp("pair")
    options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
    cache_frames(simulated_root, SIMULATED_VERSION, work / "cache", split="mini_train", options=options, workers=1)
    pair = replace(PAIRS["tiny"], precision="fp32", batch=2)
    found = Made(work / "cache", SHIPPED_TEACHERS["demo"], recipe_of(pair, "mini_train"))
    teach(found, "cpu")
    return found


def test_both_sides_take_the_same_steps(made: Made) -> None:
    turns = {kind: Side(made, kind, torch.device("cpu")).run(3, 1) for kind in step.KINDS}
    cached, online = turns["cached"], turns["online"]
    assert len(cached.steps_s) == len(online.steps_s) == 3
    assert cached.losses == pytest.approx(online.losses, rel=2e-3)  # the store holds float16
    assert len(set(cached.losses)) == 3


def test_step_bench_gives_the_figures_it_promises(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "make_pair", lambda folder, pair, device: made)
    peaks: list[Any] = []
    monkeypatch.setattr(step, "_peak", lambda folder, kind, asked, threads: peaks.append(kind) or 10**9)
    out = step.run(tmp_path, Console(quiet=True), rounds=2, steps=2)
    assert out["speedup"] == pytest.approx(out["online_step_s"] / out["cached_step_s"]) and out["speedup"] > 0
    assert 0 <= out["stall_fraction"] <= 1 and len(out["rounds_speedup"]) == 2
    assert peaks == list(step.KINDS) and out["cached_peak_bytes"] == out["online_peak_bytes"] == 10**9
