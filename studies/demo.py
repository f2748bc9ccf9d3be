"""The demo: simulate, cache, teach, train a student with and without distillation, score, report. One command.

Every stage is what a user would run on their own data, and is skipped where an earlier demo with the same settings left
its result. The two students train side by side, half the cores each, from the same stores, order and seed.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cache.files import file_sha256, read_json, write_json
from cache.frame import CAMERA_CHANNELS, Detections
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from evaluation.draw import BoxLayer, decode_jpeg, detection_layer, draw_bev, draw_cameras, truth_layer
from evaluation.metrics import Metrics
from evaluation.report import ReportContent, ReportFrame, write_report
from evaluation.table import NO_CLAIM, MetricsRow, metrics_table
from pipeline.engine import default_workers
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import SHIPPED_TEACHERS, cache_teacher
from studies.inspection import foreground_of
from studies.scoring import score, score_shuffled
from studies.simulation import simulate_once
from studies.sources import teacher_detections
from studies.training import TrainingJob, loss_curves, train_side_by_side
from trainer.predict import load_run, predict
from trainer.recipe import load_recipe

VERSION = "v1.0-trainval"
ROWS = ("teacher", "student", "distilled")
GALLERY_FRAMES = 4
# setting -> folders of the demo that stand on it
DEPENDS = {
    "world": ("data", "cache", "teacher", "student", "distilled"),
    "teacher": ("cache/teachers", "distilled"),
    "demo-teacher": ("teacher", "cache/teachers", "distilled"),
    "demo-student": ("student",),
    "demo-distilled": ("distilled",),
}


@dataclass(frozen=True)
class DemoWorld:
    """The simulated data set: scenes per split, key frames a scene, LiDAR sweeps before each, stored image scale."""

    train_scenes: int = 220
    val_scenes: int = 80
    frames: int = 2
    sweeps: int = 4
    seed: int = 1
    image_scale: float = 0.25


@dataclass(frozen=True)
class DemoResult:
    """Metrics on val by row, the control (the student's predictions on other frames), seconds by stage, the report."""

    metrics: Mapping[str, Metrics]
    shuffled: Metrics
    seconds: Mapping[str, float]
    report: Path

    def table(self) -> dict[str, dict[str, float]]:
        """The `--json` line: three rows, values 0..1."""
        return {name: self.metrics[name].summary() for name in ROWS}


class _Stages:
    """Announces stages and keeps their times."""

    def __init__(self, console: Console, count: int) -> None:
        self._console, self._count, self._number = console, count, 0
        self.seconds: dict[str, float] = {}
        self._started: tuple[str, float] | None = None

    def start(self, name: str, about: str) -> None:
        self.end()
        self._number += 1
        self._console.print(f"[bold]{self._number}/{self._count} {name}[/bold] [dim]{about}[/dim]")
        self._started = name, time.monotonic()

    def end(self) -> None:
        if self._started is not None:
            name, began = self._started
            self.seconds[name] = time.monotonic() - began
            self._started = None


def run_demo(root: Path, console: Console, world: DemoWorld | None = None, steps: int | None = None) -> DemoResult:
    """Runs the whole chain under `root`, prints the table, writes <root>/report.html and <root>/result.json.

    world, steps: other than the demo's own world and the recipes' own lengths, for tests.
    """
    world = world or DemoWorld()
    length = {"train": {"steps": steps}} if steps else {}
    _forget_what_changed(root, world, length, console)
    stages = _Stages(console, 7)
    cache = root / "cache"

    stages.start("simulate", f"{world.train_scenes + world.val_scenes} scenes as a nuScenes folder")
    simulate_once(root / "data", VERSION, world)
    stages.start("frames", "images, calibration, annotations and clouds into the frame store")
    options = FrameOptions(image_scale=world.image_scale, points=True, sweeps=world.sweeps)
    cache_frames(root / "data", VERSION, cache, options=options)

    stages.start("teacher", "the LiDAR detector runs once over every frame")
    teacher_name = _ensure_teacher(root, cache, console, length)
    stages.start("score the teacher", "from its store, before any student sees it")
    store = FrameStore(frames_place(cache))
    rows = store.key_rows("val")
    detections = {"teacher": teacher_detections(store, rows, teacher_place(cache, teacher_name))}
    metrics = {"teacher": score(store, rows, detections["teacher"])}

    stages.start("train the students", "the same student without and with distillation, side by side")
    taught = {"data": {"teacher": teacher_name}, **length}
    jobs = [
        TrainingJob("student", "demo-student", cache, root / "student", length),
        TrainingJob("distilled", "demo-distilled", cache, root / "distilled", taught),
    ]
    train_side_by_side(jobs, threads=max(1, default_workers() // len(jobs)))
    stages.start("score the students", "by the official metric, from the frame store alone")
    torch.set_num_threads(default_workers())
    for job in jobs:
        detections[job.name] = predict(load_run(job.run), store, rows)
        metrics[job.name] = score(store, rows, detections[job.name])
    shuffled = score_shuffled(store, rows, detections["student"])

    stages.start("report", "pictures, curves, tables")
    stages.end()
    result = DemoResult(metrics, shuffled, stages.seconds, root / "report.html")
    write_report(
        result.report,
        _report(result, store, rows, TeacherStore(teacher_place(cache, teacher_name)), detections, jobs, world),
    )
    write_json(root / "result.json", _figures(result, world))
    rows_shown = [MetricsRow(name, metrics[name]) for name in ROWS]
    console.print(metrics_table(rows_shown, compared=("distilled", "student")))
    console.print(
        f"distilled against student: {NO_CLAIM}. Control: the student's predictions on other frames have "
        f"mAP {shuffled.mAP:.4f}, on their own {metrics['student'].mAP:.3f}."
    )
    return result


def _forget_what_changed(root: Path, world: DemoWorld, length: Mapping[str, Any], console: Console) -> None:
    """The demo's folder is its own: what an earlier demo made under other settings is removed, with all on it."""
    shipped = SHIPPED_TEACHERS["demo"]
    settings = {
        "world": asdict(world),
        "teacher": file_sha256(shipped) if shipped.is_file() else "trained here",
        **{recipe: load_recipe(recipe, length).digest for recipe in DEPENDS if recipe.startswith("demo-")},
    }
    path = root / "settings.json"
    earlier = read_json(path, "the demo's settings") if path.is_file() else settings
    changed = [name for name in settings if earlier.get(name) != settings[name]]
    if changed:
        console.print(
            f"[dim]{root} holds a demo with another {', '.join(changed)}: what stands on it is made again[/dim]"
        )
    for target in sorted({root / name for setting in changed for name in DEPENDS[setting]}):
        shutil.rmtree(target, ignore_errors=True)
    write_json(path, settings)


def _ensure_teacher(root: Path, cache: Path, console: Console, length: Mapping[str, Any]) -> str:
    """The teacher store's name: of the shipped teacher, or, where that is gone, of one trained here and now."""
    if SHIPPED_TEACHERS["demo"].is_file():
        cache_teacher(cache, "demo")
        return "demo"
    console.print("[dim]the shipped checkpoint is not there: training the teacher first[/dim]")
    run = root / "teacher"
    train_side_by_side([TrainingJob("teacher", "demo-teacher", cache, run, length)], threads=default_workers())
    cache_teacher(cache, "trained", teacher="trained", checkpoint=run / "model.safetensors")
    return "trained"


def _figures(result: DemoResult, world: DemoWorld) -> dict[str, Any]:
    return {
        **{name: result.metrics[name].to_dict() for name in ROWS},
        "student_shuffled": result.shuffled.to_dict(),
        "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
        "world": asdict(world),
    }


def _report(
    result: DemoResult,
    store: FrameStore,
    rows: Sequence[int],
    teacher: TeacherStore,
    detections: Mapping[str, Mapping[str, Detections]],
    jobs: Sequence[TrainingJob],
    world: DemoWorld,
) -> ReportContent:
    step = max(1, len(rows) // GALLERY_FRAMES)
    shown = rows[step // 2 :: step][:GALLERY_FRAMES]
    train_frames = len(store.split_rows("train"))
    student, shuffled = result.metrics["student"].mAP, result.shuffled.mAP
    return ReportContent(
        title="Bevcask demo: one teacher pass, two students",
        about=(
            "A LiDAR detector (the teacher) ran once over a simulated nuScenes data set; its bird's-eye-view features "
            "at the foreground cells went into a sharded store. Two camera-only students were then trained from the "
            "stores, equal in everything except that one of them also learnt to match the teacher's features there. "
            "All three are scored by the official nuScenes metric on frames that none of them was trained on."
        ),
        rows=[MetricsRow(name, result.metrics[name]) for name in ROWS],
        compared=("distilled", "student"),
        notes=[
            f"Control: handed to other frames, the student's predictions have mAP {shuffled:.4f} instead of "
            f"{student:.3f}, so it looks at its images and has not just learnt where objects usually are."
        ],
        frames=[_gallery_frame(store, row, teacher, detections) for row in shown],
        curves=[curve for job in jobs for curve in loss_curves(job.name, job.run)],
        made=[
            ("data", f"{train_frames} train and {len(rows)} val key frames, simulated with seed {world.seed}"),
            ("stores", f"frames {store.manifest.digest[:16]}, teacher {teacher.manifest.digest[:16]}"),
            (
                "teacher",
                f"{teacher.manifest.header['teacher']}, weights {teacher.manifest.header['weights_sha256'][:16]}",
            ),
            *((name, f"{seconds:.0f} s") for name, seconds in result.seconds.items()),
            ("machine", f"{platform.machine()}, {default_workers()} cores, torch {torch.__version__}"),
        ],
        commands=["./bevcask demo"],
        next_command="./bevcask cache-frames --data-root NUSCENES --version v1.0-mini --cache CACHE --points",
    )


def _gallery_frame(
    store: FrameStore, row: int, teacher: TeacherStore, detections: Mapping[str, Mapping[str, Detections]]
) -> ReportFrame:
    frame = store.frame(row)
    truth = truth_layer(frame, store.truth(row))
    models: list[BoxLayer] = [detection_layer(name, detections[name][frame.token]) for name in ROWS]
    images = [decode_jpeg(store.image(row, channel)) for channel in CAMERA_CHANNELS]
    mask = foreground_of(teacher, frame.token)
    return ReportFrame(
        title=f"{frame.scene_name}, sample {frame.token[:8]}",
        caption=(
            "From above: the LiDAR's points, the foreground mask of the dense term, ground truth, and the boxes of "
            "teacher, student and distilled student scored 0.2 or more. In the cameras: the ground truth."
        ),
        bev=draw_bev(store.points(row), [truth, *models], grid=teacher.grid, mask=mask),
        cameras=draw_cameras(images, frame, truth),
    )
