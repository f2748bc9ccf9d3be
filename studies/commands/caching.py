"""Writing stores: the frame store, then what a teacher says of every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from cache.errors import ConfigError
from cache.layout import frames_place, teacher_place
from cache.local_cache import use_local_cache
from studies.commands.command_line import (
    cache_root,
    close_store,
    cluster_of,
    console,
    letter_sizes,
    need,
    next_step,
    number,
    path_of,
    print_json,
    scenes_of,
    task,
    whole,
)


@task(
    help={
        "data-root": "nuScenes folder (holds VERSION/, samples/, sweeps/)",
        "version": "v1.0-trainval, v1.0-mini, v1.0-test, ...",
        "cache": "folder of the stores; <cache>/frames is written",
        "split": "one split, such as train or mini_val (default: all of the version)",
        "points": "store the LiDAR clouds too, so that the teacher pass needs no data root",
        "sweeps": "LiDAR sweeps before the frame in a stored cloud",
        "image-scale": "stored image size over file size, up to 1 (the files' own bytes)",
        "between": "unlabelled frames, too: so many of the sweeps between two key frames, evenly spread in time",
        "labelled-scenes": "keep the annotations of only so many scenes of the training splits, or of those that a "
        "file names, one a line; key frames of the others become unlabelled ones",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "cluster": "slurm: start workers as SLURM jobs through dask-jobqueue (default: processes on this machine)",
        "performance-report": "write Dask's report of the run to this HTML file",
        "json": "print a last line of JSON",
    }
)
def cache_frames(
    c: Context,
    data_root: str | None = None,
    version: str | None = None,
    cache: str | None = None,
    split: str | None = None,
    points: bool = False,
    sweeps: int = 9,
    image_scale: float = 1.0,
    between: int = 0,
    labelled_scenes: str | None = None,
    workers: str | None = None,
    scheduler: str | None = None,
    cluster: str = "local",
    performance_report: str | None = None,
    json: bool = False,
) -> None:
    """Write the frame store: images, calibration, poses, annotations, depth labels and, if asked, clouds.

    Goes on where it stopped when it is run again.

    Example: ./bevcask cache-frames --data-root /data/nuscenes --version v1.0-trainval --cache CACHE
    Next: ./bevcask cache-teacher.
    """
    from pipeline.frames import FrameOptions
    from pipeline.frames import cache_frames as run

    root = cache_root(cache, "a folder or URL for the stores")
    manifest = run(
        Path(need(data_root, "--data-root", "a nuScenes folder")),
        need(version, "--version", "a data set version such as v1.0-mini"),
        root,
        split=split,
        options=FrameOptions(image_scale, points, sweeps, between, scenes_of(labelled_scenes, "--labelled-scenes")),
        workers=whole(workers, "--workers", 1),
        cluster=cluster_of(scheduler, cluster, performance_report),
    )
    then = f"./bevcask cache-teacher --cache {root} --name demo" + ("" if points else f" --data-root {data_root}")
    close_store("frame store", manifest, frames_place(root), json, [then])


@task(
    help={
        "cache": "folder of the stores: needs <cache>/frames, writes <cache>/teachers/NAME",
        "name": "name of the teacher store",
        "teacher": "a shipped teacher, a preset for a foreign checkpoint, or package.module:callable",
        "checkpoint": "weights: as `train` writes them, of OpenPCDet or mmdetection3d, or what the callable reads",
        "data-root": "nuScenes folder, needed where the frame store holds no points",
        "coverage": "cells to keep, e.g. gaussian+lidar(ground=0.2)*view(camera=CAM_FRONT)+random; see docs/format.md "
        "(default: gaussian, of a store with unlabelled frames gaussian+confident)",
        "fields": "further fields, e.g. logits,level(name=canvas),samples(boxes=truth,points=9); see docs/format.md",
        "encoding": "cells (those of the coverage) or dense (every value)",
        "dtype": "float16, float32 or u8 (a scale per frame and channel)",
        "format": "webdataset or zarr",
        "capacity": "zarr only: room in its arrays, e.g. K=900,N=300 (default: measured first)",
        "sweeps": "LiDAR sweeps before the key frame, read from --data-root (default 9)",
        "sweeps-after": "LiDAR sweeps behind the key frame as well, with a negative age: offline there is a future",
        "device": "cpu, cuda (one worker per visible GPU) or auto",
        "autocast": "float16 or bfloat16: a faster forward pass, whose difference from float32 is told",
        "batch": "frames in one forward pass (default: 4 on a CPU, as many as fit on a GPU)",
        "tta": "average over views: flips (4 mirrorings) or turns (8, quarter turns too); costs as many forward passes",
        "ensemble": "further checkpoints of the same architecture, with commas between: answers are averaged",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "cluster": "slurm: start workers as SLURM jobs through dask-jobqueue (default: processes on this machine)",
        "performance-report": "write Dask's report of the run to this HTML file",
        "local-cache": "a folder through which stores at URLs are read",
        "local-cache-limit": "its size, such as 200GB; the least recently used shards make room",
        "json": "print a last line of JSON",
    }
)
def cache_teacher(
    c: Context,
    cache: str | None = None,
    name: str | None = None,
    teacher: str = "demo",
    checkpoint: str | None = None,
    data_root: str | None = None,
    coverage: str = "",
    fields: str = "",
    encoding: str = "cells",
    dtype: str = "float16",
    format: str = "webdataset",
    capacity: str = "",
    sweeps: str | None = None,
    sweeps_after: int = 0,
    device: str = "auto",
    autocast: str = "",
    batch: str | None = None,
    tta: str = "",
    ensemble: str = "",
    workers: str | None = None,
    scheduler: str | None = None,
    cluster: str = "local",
    performance_report: str | None = None,
    local_cache: str | None = None,
    local_cache_limit: str | None = None,
    json: bool = False,
) -> None:
    """Run a teacher once over every frame and keep what students need of it.

    Goes on where it stopped when it is run again. Which --coverage and --fields a method needs: docs/teachers.md.

    Example: ./bevcask cache-teacher --cache CACHE --name demo --data-root /data/nuscenes
    Next: ./bevcask evaluate --cache CACHE --teacher demo, then ./bevcask train.
    """
    from pipeline.teacher import TeacherOptions
    from pipeline.teacher import cache_teacher as run

    use_local_cache(local_cache, local_cache_limit)
    root = cache_root(cache, "what cache-frames wrote")
    store = need(name, "--name", "a name for the teacher store")
    manifest = run(
        root,
        store,
        teacher=teacher,
        checkpoint=path_of(checkpoint),
        data_root=path_of(data_root),
        options=TeacherOptions(
            coverage,
            encoding,
            dtype,
            format,
            letter_sizes(capacity, "--capacity"),
            whole(sweeps, "--sweeps"),
            device,
            autocast,
            whole(batch, "--batch"),
            tta,
            tuple(Path(part) for part in ensemble.split(",") if part),
            sweeps_after,
            fields,
        ),
        workers=whole(workers, "--workers", 1),
        cluster=cluster_of(scheduler, cluster, performance_report),
    )
    then = f"./bevcask evaluate --cache {root} --teacher {store}"
    close_store("teacher store", manifest, teacher_place(root, store), json, [then])


@task(
    help={
        "data-root": "nuScenes folder (holds VERSION/, samples/, sweeps/)",
        "version": "v1.0-trainval, v1.0-mini, v1.0-test, ...",
        "split": "one split, such as train or mini_val (default: all of the version)",
        "points": "as for cache-frames: store the LiDAR clouds too",
        "image-scale": "as for cache-frames: stored image size over file size",
        "sweeps": "LiDAR sweeps before the frame, for stored clouds and for the teacher",
        "between": "as for cache-frames: unlabelled frames between two key frames",
        "teacher": "also estimate a teacher store: a shipped teacher",
        "checkpoint": "also estimate a teacher store: its weights, as for cache-teacher",
        "coverage": "as for cache-teacher",
        "fields": "as for cache-teacher",
        "encoding": "as for cache-teacher",
        "dtype": "as for cache-teacher",
        "format": "as for cache-teacher",
        "workers": "processes that the run would have (default: one per core)",
        "model": "instead: what this preset or recipe costs (parameters, multiply-adds, activations, latency)",
        "against": "with --model: the teacher to set it beside",
        "cloud": "with --model: a cloud to count on, .bin or .npy (default: the first of --data-root, or simulated)",
        "runs": "with --model: forward passes that are timed",
        "score": "with --against: the model's score, for the ratio of cost and performance (CPR)",
        "against-score": "with --against: the teacher's score",
        "activations-power": "with --against: CPR's power of the activations' ratio",
        "score-power": "with --against: CPR's power of the scores' ratio",
        "json": "print a last line of JSON",
    }
)
def plan(
    c: Context,
    data_root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    points: bool = False,
    image_scale: float = 1.0,
    sweeps: int = 9,
    between: int = 0,
    teacher: str | None = None,
    checkpoint: str | None = None,
    coverage: str = "",
    fields: str = "",
    encoding: str = "cells",
    dtype: str = "float16",
    format: str = "webdataset",
    workers: str | None = None,
    model: str | None = None,
    against: str | None = None,
    cloud: str | None = None,
    runs: int = 5,
    score: str | None = None,
    against_score: str | None = None,
    activations_power: float = 1.0,
    score_power: float = 5.0,
    json: bool = False,
) -> None:
    """What a caching run, or a model, would cost: frames, shards, bytes by field, time, from a short probe.

    Example: ./bevcask plan --data-root /data/nuscenes --version v1.0-trainval --teacher demo
    Example: ./bevcask plan --model lift-splat-tiny
    Next: ./bevcask cache-frames.
    """
    if model is not None:
        given = {"score": number(score, "--score"), "against": number(against_score, "--against-score")}
        source = (path_of(cloud), path_of(data_root), version, sweeps)
        _plan_model(model, against, source, runs, given, (activations_power, score_power), json)
        return
    from pipeline.cost import estimate
    from pipeline.frames import FrameOptions
    from pipeline.teacher import TeacherOptions
    from studies.upkeep import cost_tables

    root = Path(need(data_root, "--data-root", "a nuScenes folder"))
    wanted = need(version, "--version", "a data set version such as v1.0-mini")
    cost = estimate(
        root,
        wanted,
        split=split,
        options=FrameOptions(image_scale=image_scale, points=points, sweeps=sweeps, between=between),
        teacher=teacher,
        checkpoint=path_of(checkpoint),
        teacher_options=TeacherOptions(coverage, encoding, dtype, format, fields=fields),
        workers=whole(workers, "--workers", 1),
    )
    for renderable in cost_tables(cost):
        console.print(renderable)
    chosen = f" --split {split}" if split else ""
    chosen += f" --points --sweeps {sweeps}" if points else ""
    chosen += f" --image-scale {image_scale:g}" if image_scale != 1 else ""
    chosen += f" --between {between}" if between else ""
    next_step(f"./bevcask cache-frames --data-root {root} --version {wanted} --cache CACHE{chosen}")
    if json:
        print_json(cost.to_dict())


def _plan_model(
    model: str,
    against: str | None,
    source: tuple[Path | None, Path | None, str | None, int],
    runs: int,
    given: dict[str, float | None],
    powers: tuple[float, float],
    json: bool,
) -> None:
    """`plan --model`. source: cloud file, data root, version, sweeps."""
    from studies import model_cost as study

    if runs < 1:
        raise ConfigError(f"--runs {runs}: expected 1 or more")
    names = [model, *([against] if against else [])]
    points, frame = None, "six cameras"
    if not all(study.is_camera(name) for name in names):
        file, root, version, sweeps = source
        points, frame = study.read_cloud(study.CloudSource(file, root, version or study.SIMULATED, sweeps))
    found = [study.measure(name, None if study.is_camera(name) else points, runs) for name in names]
    beside = found[1] if against else None
    for renderable in study.cost_by_part(found[0], beside, frame):
        console.print(renderable)
    out: dict[str, Any] = {"frame": frame, "model": study.to_dict(found[0])}
    row = study.published_of(found[0])
    if row is not None:
        for renderable in study.published_table(row):
            console.print(renderable)
        out["published"] = row.to_dict()
    then = f"./bevcask plan --model {model} --against TEACHER sets it beside its teacher"
    if beside is not None:
        out["against"] = study.to_dict(beside)
        scores = study.scores_of(found[0], beside, given)
        then = "give --score and --against-score for the ratio of cost and performance"
        if scores is not None:
            out["cpr"], line = study.ratio_line(found[0], beside, scores, powers)
            console.print(line)
            then = "docs/models.md says how this is counted"
    next_step(then)
    if json:
        print_json(out)
