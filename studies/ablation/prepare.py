"""What jobs stand on, made once in the run's folder: worlds with their frame stores, teachers, teacher stores.

Every step is skipped where its result lies there, and goes on where it was stopped. A world of 500 frames takes minutes
of all cores, a teacher as long as a student, a store under a minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cache.files import digest_of, file_sha256, write_bytes
from cache.layout import frames_place
from cache.manifest import MANIFEST
from cache.store import FrameStore
from models.build import resolve_config
from pipeline.frames import FrameOptions, cache_frames
from pipeline.teacher import cache_teacher
from studies.ablation.controls import untrained_teacher, write_basis
from studies.ablation.job import as_written
from studies.ablation.regimes import Regime, World
from studies.ablation.suite import Speaker, StoreSpec, laid_over, load_suite
from studies.demo import VERSION
from studies.simulation import simulate_once
from studies.training import TrainingJob, train_side_by_side
from trainer.run_files import RECORD, WEIGHTS

TEACHER = "ablation-teacher"
CAMERA_TEACHERS: Mapping[Speaker, str] = {
    "camera": "ablation-camera-teacher",
    "taught_camera": "ablation-taught-camera-teacher",
}
TAUGHT_FROM = load_suite("sparsekd").stores["cells"]  # the LiDAR teacher's store that the taught one learns from
TEACHER_SEED = 0
CALLABLES: Mapping[Speaker, str] = {
    "annotations": "studies.ablation.controls:annotated",
    "another_frame": "studies.ablation.controls:another_frame",
    "another_frames_features": "studies.ablation.controls:another_frames_features",
    "untrained_features": "studies.ablation.controls:untrained_features",
}


@dataclass(frozen=True)
class Settings:
    """Of a run. teacher, camera: laid over the recipes of LiDAR and camera teachers, for tests; workers: processes of
    passes; kept: a folder beside the results for trained teachers, so that whoever has the results has those whose
    answers they stand on; one that lies there is not trained anew."""

    folder: Path
    console: Console
    teacher: Mapping[str, Any]
    camera: Mapping[str, Any]
    workers: int | None = None
    kept: Path | None = None


def recipe_of(says: Speaker) -> str:
    """The recipe of the teacher behind a store: of the LiDAR one also where a control stands on it."""
    return CAMERA_TEACHERS.get(says, TEACHER)


def teacher_over(settings: Settings, regime: Regime, says: Speaker) -> tuple[str, dict[str, Any]]:
    """(recipe, overrides) of the teacher behind a store, `init_from` left out."""
    camera = says in CAMERA_TEACHERS
    steps = regime.camera_steps if camera else regime.teacher_steps
    over = dict(settings.camera if camera else settings.teacher)
    if says == "taught_camera":
        steps = regime.steps
        taught = {**dict(regime.recipe), "teacher": store_name(settings, regime, TAUGHT_FROM)}
        over = laid_over({"data": taught}, over)
    over["train"] = {"steps": steps, "seed": TEACHER_SEED, **dict(over.get("train", {}))}
    return recipe_of(says), over


def store_name(settings: Settings, regime: Regime, spec: StoreSpec) -> str:
    """Of a store in its world's cache: another one for another teacher."""
    teacher = as_written(*teacher_over(settings, regime, spec.says))
    return f"{spec.says}-{digest_of({'store': spec.written(), 'teacher': teacher})[:8]}"


def describes(settings: Settings, regime: Regime, world: World, spec: StoreSpec | None, init: str) -> dict[str, Any]:
    """What a row's store and first weights are, as data, for keys."""
    out: dict[str, Any] = {"world": world.written()}
    if spec is not None:
        recipe, over = teacher_over(settings, regime, spec.says)
        out |= {"store": spec.written(), "teacher": as_written(recipe, over)}
    if init:
        recipe, over = teacher_over(settings, regime, "trained")
        out |= {"init": init, "init_teacher": as_written(recipe, over)}
    return out


def world_cache(settings: Settings, world: World) -> Path:
    """Where a world's stores lie."""
    return settings.folder / "worlds" / f"{world.name}-{digest_of(world.written())[:8]}" / "cache"


def make_world(settings: Settings, world: World) -> Path:
    """Its cache, with the frame store: images, points, annotations. The raw folder is removed once all is in there."""
    cache = world_cache(settings, world)
    data = cache.with_name("data")
    if (cache / "frames" / MANIFEST).is_file():
        shutil.rmtree(data, ignore_errors=True)
        return cache
    settings.console.print(f"[bold]world[/bold] {world.name}: {world.train_scenes} + {world.val_scenes} scenes")
    simulate_once(data, VERSION, world, workers=settings.workers)
    labelled = world.labelled_scenes or None
    options = FrameOptions(world.image_scale, points=True, sweeps=world.sweeps, labelled_scenes=labelled)
    cache_frames(data, VERSION, cache, options=options, workers=settings.workers)
    shutil.rmtree(data)
    return cache


def teacher_file(settings: Settings, regime: Regime, world: World, says: Speaker) -> Path:
    """Where a teacher's weights lie, or will."""
    recipe, over = teacher_over(settings, regime, says)
    digest = digest_of({"recipe": as_written(recipe, over), "world": world.written()})[:8]
    return settings.folder / "teachers" / f"{says}-{digest}" / WEIGHTS


def make_teacher(settings: Settings, regime: Regime, world: World, says: Speaker) -> Path:
    """The weights of a trained teacher, from the labelled frames of the world's train split alone (and, of the taught
    one, from what the LiDAR teacher says of all), or of the untrained one."""
    weights = teacher_file(settings, regime, world, says)
    if says == "untrained":
        return weights if weights.is_file() else _make_untrained(settings, regime, world)
    kept = settings.kept / weights.parent.name if settings.kept is not None else None
    if kept is not None:
        _copy_teacher(kept, weights.parent)
    if not weights.is_file():
        _train_teacher(settings, regime, world, says)
    if kept is not None:
        _copy_teacher(weights.parent, kept)
    return weights


def _copy_teacher(source: Path, target: Path) -> None:
    """Its record and its weights, where the source has both and the target none."""
    if (target / WEIGHTS).is_file() or not all((source / name).is_file() for name in (RECORD, WEIGHTS)):
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, WEIGHTS):
        write_bytes(target / name, (source / name).read_bytes())


def _make_untrained(settings: Settings, regime: Regime, world: World) -> Path:
    recipe, over = teacher_over(settings, regime, "untrained")
    weights = teacher_file(settings, regime, world, "untrained")
    frames = FrameStore(frames_place(world_cache(settings, world)))
    rows = [row for row in frames.split_rows("train") if frames.is_labelled(row)]
    weights.parent.mkdir(parents=True, exist_ok=True)
    untrained_teacher(resolve_config(as_written(recipe, over)["model"]), frames, rows, weights, TEACHER_SEED)
    return weights


def _train_teacher(settings: Settings, regime: Regime, world: World, says: Speaker) -> None:
    recipe, over = teacher_over(settings, regime, says)
    if says == "taught_camera":
        make_store(settings, regime, world, TAUGHT_FROM)
        lidar = teacher_file(settings, regime, world, "trained")
        over["train"] = {**over["train"], "init_from": str(lidar)}
    settings.console.print(f"[bold]teacher[/bold] {recipe} on {world.name}")
    run = teacher_file(settings, regime, world, says).parent
    # one thread, as its students beside it: two that wait for each other on a busy core take five times as long
    train_side_by_side([TrainingJob(f"{says} teacher", recipe, world_cache(settings, world), run, over)], threads=1)


def make_store(settings: Settings, regime: Regime, world: World, spec: StoreSpec) -> dict[str, str]:
    """The teacher store of a spec in the world's cache; returns what it stands on, by name: digests of weights and
    manifest. One that is there is opened, not made."""
    cache, name = world_cache(settings, world), store_name(settings, regime, spec)
    speaker: Speaker = spec.says if spec.says not in CALLABLES else "trained"
    weights = make_teacher(settings, regime, world, speaker)
    teacher, checkpoint = "own", weights
    if spec.says in CALLABLES:
        teacher = CALLABLES[spec.says]
        checkpoint = weights.parent / f"basis-{spec.says}-{digest_of(str(cache))[:8]}.json"
        untrained = make_teacher(settings, regime, world, "untrained") if spec.says == "untrained_features" else None
        write_basis(checkpoint, FrameStore(frames_place(cache)), weights, untrained)
    if not (cache / "teachers" / name / MANIFEST).is_file():
        kept = " ".join(str(value) for key, value in spec.written().items() if key != "says")
        settings.console.print(f"[bold]store[/bold] {name}: {kept}")
    manifest = cache_teacher(
        cache,
        name,
        teacher=teacher,
        checkpoint=checkpoint,
        options=spec.options(),
        workers=settings.workers,
    )
    return {"teacher_sha256": file_sha256(weights)[:16], "store": manifest.digest[:16]}
