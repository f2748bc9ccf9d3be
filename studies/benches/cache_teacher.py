"""How close the teacher pass comes to the bare forward pass: frames per second of both, and where the rest goes.

The same teacher, frames, batches, device and thread counts on both sides: the tasks of `cache-teacher` reading ten
sweeps a frame from nuScenes files and writing a store, against the model alone on clouds that lie in memory. Turns go
round, so that both meet the same hour of a busy machine. Then two workers of one thread each against one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from dask.distributed import LocalCluster
from rich.console import Console

from cache.files import file_sha256
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore
from models.build import build_detector, save_weights
from models.detector import Batch, Detector
from pipeline.device import choose_device
from pipeline.engine import Cluster
from pipeline.frames import FrameOptions, cache_frames
from pipeline.overlap import STAGES
from pipeline.points import aggregate
from pipeline.simulator import simulate
from pipeline.teacher import SHIPPED_TEACHERS, TeacherOptions, cache_teacher, sweeps_from_tables
from pipeline.teacher_shard import BATCH, load_teacher

ABOUT = "the teacher pass against its bare forward pass, and two workers against one"
VERSION = "v1.0-mini"
FULL_SIZE = "centerpoint-pillar-0.2"
SWEEPS = 9  # before the key frame: ten in all


def run(
    work: Path,
    console: Console,
    *,
    scenes: int = 2,
    frames: int = 16,
    rounds: int = 3,
    two_workers: bool = True,
    full: bool = True,
) -> dict[str, Any]:
    """For CenterPoint-pillar 0.2 at full size: pipeline_frames_per_s, forward_frames_per_s, efficiency (their ratio),
    stage_seconds of one turn, two_workers (frames/s over one worker's); `demo`: the same of the demo's teacher.

    scenes x frames are simulated with ten sweeps each; a scene is a shard. rounds: turns of both sides, medians count;
    full, two_workers: false leaves the full-size teacher, or its two workers, out.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for workers that are started from here
    torch.set_num_threads(1)
    data, cache = work / f"data-{scenes}x{frames}", work / f"cache-{scenes}x{frames}"
    if not (data / VERSION).is_dir():
        console.print(f"[dim]simulating {scenes} scenes of {frames} frames ...[/dim]")
        simulate(data, version=VERSION, scenes={"train": scenes, "val": 0}, frames=frames, sweeps=SWEEPS, seed=0)
    cache_frames(data, VERSION, cache, options=FrameOptions(image_scale=0.1))
    weights = work / "full-size.safetensors"
    if full and not weights.is_file():
        torch.manual_seed(0)
        save_weights(build_detector({"preset": FULL_SIZE}), weights)
    out = _compared(cache, data, weights, rounds, console) if full else {}
    out["demo"] = _compared(cache, data, SHIPPED_TEACHERS["demo"], rounds, console)
    if full and two_workers:
        out["two_workers"] = _two_workers(cache, data, weights, rounds, console)
    return out


def _compared(cache: Path, data: Path, weights: Path, rounds: int, console: Console) -> dict[str, Any]:
    """Both sides in turns, in this process."""
    device = choose_device("auto")
    model = load_teacher(str(weights), file_sha256(weights), device)
    store = FrameStore(frames_place(cache))
    sweeps = sweeps_from_tables(store, data, SWEEPS)
    clouds = [aggregate(sweeps[token], data) for token in store.tokens]
    batch = BATCH
    pipeline, forward, stages = [], [], []
    for turn in range(rounds + 1):  # the first warms up
        summaries: list[dict[str, Any]] = []
        _pass(cache, data, weights, workers=1, told=summaries.extend)
        seconds = sum(summary["seconds"] for summary in summaries)
        bare = _bare_seconds(model, clouds, batch, device)
        if turn:
            pipeline.append(len(clouds) / seconds)
            forward.append(len(clouds) / bare)
            stages.append({stage: sum(s["stage_seconds"][stage] for s in summaries) for stage in STAGES})
            console.print(f"[dim]  pass {pipeline[-1]:.3f}, forward alone {forward[-1]:.3f} frames/s[/dim]")
    store.close()
    ratios = [a / b for a, b in zip(pipeline, forward, strict=True)]
    return {
        "pipeline_frames_per_s": round(median(pipeline), 3),
        "forward_frames_per_s": round(median(forward), 3),
        "efficiency": round(median(ratios), 4),
        "stage_seconds": {stage: round(median(turn[stage] for turn in stages), 3) for stage in STAGES},
        "frames": len(clouds),
        "points_per_frame": round(sum(map(len, clouds)) / len(clouds)),
        "batch": batch,
        "device": device,
        "rounds": {"pipeline": [round(x, 3) for x in pipeline], "forward": [round(x, 3) for x in forward]},
    }


def _bare_seconds(model: Detector, clouds: Sequence[Any], batch: int, device: str) -> float:
    """The model's forward passes over all clouds, which lie on the device already."""
    batches = [
        Batch(points=[torch.from_numpy(cloud).to(device) for cloud in group], tokens=["0" * 32] * len(group))
        for group in (clouds[i : i + batch] for i in range(0, len(clouds), batch))
    ]
    _settle(device)
    start = time.perf_counter()
    with torch.inference_mode():
        for group in batches:
            model(group)
    _settle(device)
    return time.perf_counter() - start


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


_NUMBER = itertools.count()


def _pass(cache: Path, data: Path, weights: Path, **how: Any) -> float:
    """One pass into a store of its own, which is removed; returns its wall time."""
    name = f"turn-{os.getpid()}-{next(_NUMBER)}"
    start = time.perf_counter()
    cache_teacher(
        cache,
        name,
        teacher="bench",
        checkpoint=weights,
        data_root=data,
        options=TeacherOptions(sweeps=SWEEPS, batch=BATCH),
        **how,
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(teacher_place(cache, name))
    return seconds


def _two_workers(cache: Path, data: Path, weights: Path, rounds: int, console: Console) -> dict[str, Any]:
    """Whole passes on running clusters of one and of two workers, in turns; both have loaded the model before."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds + 1):
        for workers in seconds:
            with LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=40
            ) as running:
                where = Cluster(running.scheduler_address)
                _pass(cache, data, weights, cluster=where)  # workers import and load
                wall = _pass(cache, data, weights, cluster=where)
            if turn:
                seconds[workers].append(wall)
                console.print(f"[dim]  {workers} workers: {wall:.1f} s[/dim]")
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "ratio": round(median(ratios), 3),
        "seconds": {str(n): [round(x, 2) for x in s] for n, s in seconds.items()},
    }
