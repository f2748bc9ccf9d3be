"""What the size benchmark stands on: a simulated world, a full-width teacher that has learnt, a cache of busy scenes.

Everything is made once under the benchmark's folder and found again later: the demo's world and its frame store, the
teacher of the recipe `full-width-teacher` (ten minutes on one core), and a second, small cache of the scenes with about
35 objects a frame, as nuScenes has them, while the simulated mean is 24.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cache.errors import BevcaskError
from cache.files import read_json, write_json
from cache.grid import BevGrid
from cache.layout import frames_place
from cache.store import FrameStore
from models.gaussian import centre_cells
from pipeline.engine import default_workers
from pipeline.frames import FrameOptions, cache_frames
from studies.demo import VERSION, DemoWorld
from studies.scoring import score, score_shuffled
from studies.simulation import simulate_once
from studies.training import TrainingJob, train_side_by_side
from trainer.metrics import read_metrics
from trainer.predict import load_run, predict

RECIPE = "full-width-teacher"
OBJECTS = (33, 37)  # scenes whose mean number of objects a frame lies between these make up the busy cache
GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)


def prepare(work: Path, console: Console, world: DemoWorld, teacher_steps: int | None) -> Path:
    """The world, its frame store <work>/cache/frames and the trained teacher, whose weights file is returned."""
    settings = {"world": asdict(world), "teacher_steps": teacher_steps}
    path = work / "settings.json"
    if path.is_file() and read_json(path, "the benchmark's settings") != settings:
        console.print(f"[dim]{work} holds a benchmark with other settings: made again[/dim]")
        shutil.rmtree(work)
    write_json(path, settings)
    options = FrameOptions(image_scale=world.image_scale, points=True, sweeps=world.sweeps)
    if not (work / "data").is_dir():
        console.print(f"simulating {world.train_scenes + world.val_scenes} scenes of {world.frames} frames")
    simulate_once(work / "data", VERSION, world)
    cache_frames(work / "data", VERSION, work / "cache", options=options)
    _busy_frames(work, options)
    run = work / "teacher"
    if not (run / "run.json").is_file():
        console.print(f"training a teacher of full width by the recipe {RECIPE}")
        overrides = {"train": {"steps": teacher_steps}} if teacher_steps else {}
        train_side_by_side([TrainingJob("teacher", RECIPE, work / "cache", run, overrides)], threads=default_workers())
    return run / "model.safetensors"


def evidence(work: Path) -> dict[str, float]:
    """That the teacher has learnt: first and last loss of its log, mAP on val, and the control's: the same predictions
    on other frames. Worked out once."""
    path = work / "teacher" / "evidence.json"
    if not path.is_file():
        store = FrameStore(frames_place(work / "cache"))
        rows = store.key_rows("val")
        found = predict(load_run(work / "teacher"), store, rows)
        log = read_metrics(work / "teacher" / "metrics.jsonl")
        figures = {
            "steps": log[-1]["step"],
            "first_loss": log[0]["loss"],
            "last_loss": log[-1]["loss"],
            "mAP": score(store, rows, found).summary()["mAP"],
            "mAP_shuffled": score_shuffled(store, rows, found).summary()["mAP"],
        }
        write_json(path, figures)
    return {name: float(value) for name, value in read_json(path, "the teacher's figures").items()}


def objects_on_grid(store: FrameStore, row: int) -> int:
    """Annotated boxes whose centre lies on the 102.4 m grid."""
    return int(centre_cells(store.boxes_lidar(row), GRID)[2].sum())


def _busy_frames(work: Path, options: FrameOptions) -> None:
    """<work>/busy/frames: the frames of all scenes that have about 35 objects, from a folder that names only those."""
    data = work / "busy-data"
    if not data.is_dir():
        store = FrameStore(frames_place(work / "cache"))
        by_scene: dict[str, list[int]] = {}
        for row in range(len(store)):
            by_scene.setdefault(store.scene_of(row), []).append(objects_on_grid(store, row))
        names = sorted(name for name, counts in by_scene.items() if OBJECTS[0] <= np.mean(counts) <= OBJECTS[1])
        if not names:
            means = [float(np.mean(counts)) for counts in by_scene.values()]
            raise BevcaskError(
                f"{work}: no simulated scene has {OBJECTS[0]} to {OBJECTS[1]} objects a frame, the busiest has "
                f"{max(means):.0f}; simulate more scenes"
            )
        folder_of(work / "data", VERSION, data, names)
    cache_frames(data, VERSION, work / "busy", options=options)


def folder_of(data: Path, version: str, out: Path, scenes: Sequence[str]) -> None:
    """A nuScenes folder with only these scenes: links to `data`, and a scene table of its own."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / version).mkdir(parents=True)
    for path in data.iterdir():
        if path.name != version:
            (partial / path.name).symlink_to(path.resolve())
    for path in (data / version).iterdir():
        if path.name != "scene.json":
            (partial / version / path.name).symlink_to(path.resolve())
    rows: list[dict[str, Any]] = json.loads((data / version / "scene.json").read_text())
    (partial / version / "scene.json").write_text(json.dumps([row for row in rows if row["name"] in set(scenes)]))
    partial.rename(out)
